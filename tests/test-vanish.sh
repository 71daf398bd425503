#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Clients vanish and come back, very often: in the middle of the handshake, of
# a request, or while they wait for answers; some are killed.  What all of them
# were told can be explained, as in test-history.sh: what was acknowledged is
# there, what was not sent whole is not.  Of those who vanished nothing is left
# behind in the server, and it goes on.
#
# ADDCOW_LIVES says how many servers there are, of each kind.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/history.sh"

lives=3 rounds=8
if [ -n "$SANITIZER" ]; then lives=2 rounds=4; fi
if [ -n "$ADDCOW_LONG" ]; then lives=500; fi
if [ -n "$ADDCOW_VALGRIND" ]; then lives=1 rounds=2; fi
lives=${ADDCOW_LIVES:-$lives}

# open_files PID, sockets PID, threads PID, children PID: how many it has.
open_files ()
{
    find "/proc/$1/fd" -mindepth 1 | wc -l
}

sockets ()
{
    find "/proc/$1/fd" -lname 'socket:*' | wc -l
}

threads ()
{
    find "/proc/$1/task" -mindepth 1 -maxdepth 1 | wc -l
}

children ()
{
    cat "/proc/$1/task"/*/children | wc -w
}

# no_more_than COUNT COMMAND...: what it counts.
no_more_than ()
{
    [ "$("${@:2}")" -le "$1" ]
}

# one_life SEED MODE: nbdkit with several threads for a connection can crash
# when a client left with requests, be there a filter or not.
one_life ()
{
    local nr_files nr_threads
    new_life "$1"
    serve_life "$addcow" "$2" -t 1
    # All that it starts with is there once a client was.
    nbdinfo --size "$uri"
    wait_for no_more_than 1 sockets "$pid"
    nr_files=$(open_files "$pid")
    nr_threads=$(threads "$pid")

    live "$1" "$2" -r $rounds -n 100 -v 8 -P "$pid"
    nr_vanished=$((nr_vanished + $(sed 's/.*, \([0-9]*\) times.*/\1/' told)))

    wait_for no_more_than "$nr_files" open_files "$pid"
    wait_for no_more_than "$nr_threads" threads "$pid"
    no_more_than 0 children "$pid"
    stop_nbdkit "$pid"
    python files.py
}

cat > files.py <<'PY'
from fill_client import *
check_image(file_bytes("disk"), file_bytes("base.img"))
PY

nr_lives=0 nr_vanished=0
for ((i = 0; i < lives; i++)); do
    for mode in plain read all; do
        nr_lives=$((nr_lives + 1))
        one_life $((seed + nr_lives)) $mode
    done
done

echo "$nr_lives servers, $nr_vanished times vanished, seed $seed: nothing lost"

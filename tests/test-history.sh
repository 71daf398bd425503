#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Many clients read and write the same few sectors at the same time, while the
# image is filled and committed, and all calls take more time or less: what
# each of them was told can be explained by some order of what they asked for.
# And what is on the disk afterwards is what was read last.
#
# ADDCOW_LIVES says how many servers there are, of each kind.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/history.sh"

lives=4 rounds=8
if [ -n "$SANITIZER" ]; then lives=2; fi
if [ -n "$ADDCOW_LONG" ]; then lives=500; fi
if [ -n "$ADDCOW_VALGRIND" ]; then lives=1 rounds=2; fi
lives=${ADDCOW_LIVES:-$lives}

cat > files.py <<'PY'
from fill_client import *
check_image(file_bytes("disk"), file_bytes("base.img"))
PY

# The one who says what can be explained knows what cannot.
"$history_client" selftest -s "$seed"

# A plain file can be.
cp base.img plain.img
start_base sock file plain.img
uri=$base_uri
live "$seed" plain -r $rounds
stop_nbdkit "$base_pid"
cmp plain.img disk

# nbd: the backing file is a server, whose calls take their time too.
one_life ()
{
    local backing='' mode=$2
    new_life "$1"
    if [ "$mode" = nbd ]; then
        start_slow_base
        rm vm.*
        addcow-img create -q -b "$base_uri" vm.add-cow
        mode=all
    fi
    serve_life "$addcow" $mode
    live "$1" $mode -r $rounds
    stop_nbdkit "$pid"
    python files.py
    if [ "$2" = nbd ]; then stop_nbdkit "$base_pid"; fi
}

start_slow_base ()
{
    local _preload='' preload=$random_delay VG=() pid uri
    # It would bring the sanitizer with it.
    if [ -n "$SANITIZER" ]; then preload=''; fi
    start_nbdkit base.sock -r -t 4 file base.img
    base_pid=$pid
    base_uri="nbd+unix:///?socket=$tmp/base.sock"
}

nr_lives=0
for ((i = 0; i < lives; i++)); do
    for mode in plain read cache hydrate all nbd; do
        nr_lives=$((nr_lives + 1))
        one_life $((seed + nr_lives)) $mode
    done
done

echo "$nr_lives servers, $nr_requests requests, seed $seed: all explained"

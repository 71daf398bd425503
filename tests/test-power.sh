#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The power fails while clients write, zero, trim, flush and use FUA, with
# copy-on-read and filling: at whatever moment, and whatever of what was not
# synced is on the medium then, every sector has what was last flushed or what
# was written later.  See power-states.c.  Each round goes on from what such
# a failure left, and in it the server is killed once.
#
# The environment repeats or lengthens it: ADDCOW_SEED, POWER_ROUNDS,
# POWER_REQUESTS (of half a round), POWER_STATES (of a round), and POWER_KIND,
# one for all rounds.  What clients and server do at a time is never the same
# twice; the states of a log are: where POWER_KEEP names a folder, what is
# needed to build them again goes there when something is lost.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/power.sh"

seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
if [ -n "$ADDCOW_LONG" ]; then
    many=(60 5000 20000 20)
elif [ -n "$ADDCOW_VALGRIND" ]; then
    many=(1 100 50 1)
else
    many=(6 500 400 4)
fi
rounds=${POWER_ROUNDS:-${many[0]}}
requests=${POWER_REQUESTS:-${many[1]}}
states=${POWER_STATES:-${many[2]}}
looks=${many[3]}
echo "seed $seed"

requires nbdcopy --version
requires_filter cache
requires_filter fua
requires_filter multi-conn
requires_filter noparallel
cd "$tmp"
: > holes
requires fallocate -p -o 0 -l 4K holes

# kind N: what the server of round N is like, and what it is asked for.
kind ()
{
    options=(addcow-commit-interval=1 addcow-on-read=1 addcow-on-cache=1
             addcow-hydrate=1 addcow-hydrate-rate=1M)
    layers=()
    client_options=()
    first=power_killed
    case $(($1 % 6)) in
        0) ;;
        1) layers=(--filter=cache)
           # It keeps what is trimmed, and drops what is not flushed when
           # it is stopped; both is told.
           client_options=(-l -t) ;;
        2) options=(addcow-commit-interval=0)
           # Mostly there is nothing to commit.
           client_options=(-w 65536) ;;
        3) layers=(--filter=multi-conn --filter=fua)
           # Else that filter takes for flushed what is written while it
           # flushes (1.32).
           options=(addcow-commit-interval=1 multi-conn-mode=disable
                    multi-conn-track-dirty=off fuamode=emulate) ;;
        4) layers=(--filter=noparallel)
           options+=(serialize=requests) ;;
        5) layers=(--filter=fua)
           options+=(fuamode=force)
           # It has no flush, and does not know what a server that was
           # killed has left to be flushed.
           first=power_stopped ;;
    esac
}

# The disk of a state that was written is what the product reads.
look_at ()
{
    addcow-img check -q "$1/vm.add-cow"
    nbdkit -r -U - --filter="$addcow" file addcow="$1/vm.add-cow" \
        --run "nbdcopy \"\$uri\" $tmp/copy"
    cmp "$tmp/copy" "$1/disk"
}

for ((round = 0; round < rounds; round++)); do
    # Now and then one begins anew: in the others there is less and less to
    # be filled.
    if ((round % 4 == 0)); then power_new; fi
    power_begin
    s=$((seed + 1000 * round))
    kind "${POWER_KIND:-$round}"
    $first $s "$requests" "${options[@]}"
    power_stopped $((s + 1)) "$requests" "${options[@]}"

    rm -rf states
    mkdir states
    status=0
    timeout 1800 "$power_states" -s $s -n "$states" \
        -e $((states / looks - 1)) -o states log first/vm.add-cow \
        first/vm.raw base.img > result || status=$?
    cat result
    if [ $status -ne 0 ] && [ -n "$POWER_KEEP" ]; then
        cp -r log first base.img "$POWER_KEEP"
    fi
    [ $status -eq 0 ]
    cat result >> results
    for state in states/*; do look_at "$state"; done
    cp states/$looks/vm.* d/
done
cat results
echo "$((rounds * states)) states, seed $seed: nothing lost"

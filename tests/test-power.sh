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
# POWER_REQUESTS (of half a round), POWER_STATES (of a round).

source ./functions.sh
set -e
set -x

source "$abs_srcdir/power.sh"

seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
rounds=${POWER_ROUNDS:-${ADDCOW_LONG:+40}}
requests=${POWER_REQUESTS:-${ADDCOW_LONG:+10000}}
states=${POWER_STATES:-${ADDCOW_LONG:+25000}}
# Valgrind is slow, and not what this is about.
if [ -n "$ADDCOW_VALGRIND" ]; then requests=${requests:-400}; fi
rounds=${rounds:-2}
requests=${requests:-2500}
states=${states:-1000}
echo "seed $seed"

requires nbdcopy --version
cd "$tmp"
: > holes
requires fallocate -p -o 0 -l 4K holes

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
    filling=(addcow-on-read=1 addcow-on-cache=1 addcow-hydrate=1
             addcow-hydrate-rate=1M)
    if ((round % 4 == 3)); then filling=(); fi
    power_killed $s "$requests" "${filling[@]}"
    power_stopped $((s + 1)) "$requests" "${filling[@]}"

    rm -rf states
    mkdir states
    timeout 1800 "$power_states" -s $s -n "$states" \
        -e $((states / 5 - 1)) -o states log first/vm.add-cow \
        first/vm.raw base.img | tee -a results
    [ "${PIPESTATUS[0]}" -eq 0 ]
    for state in states/*; do look_at "$state"; done
    cp states/3/vm.* d/
done
cat results
echo "$((rounds * states)) states, seed $seed: nothing lost"

# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# What the tests of histories share, after functions.sh and nbd-backing.sh:
# lives of a server whose calls take their time, with many clients at a time,
# see history.h and random-delay.c.

history_client=$abs_top_builddir/tests/history-client
random_delay=$abs_top_builddir/tests/.libs/random-delay.so

# A seed decides what clients do, in ADDCOW_SEED; not when.
seed=${ADDCOW_SEED:-$(date +%s)}
echo "seed $seed"

# The disk is small, so that whoever fills it is where the clients are.
size=$((256 * 1024))
"$history_client" base base.img $size

# Else a trim need not make zeroes.
truncate -s 64K hole
requires fallocate -p -o 512 -l 1024 hole

# How many requests all lives had.
nr_requests=0

# new_life SEED: a new overlay, and what that life draws lots from.
new_life ()
{
    RANDOM=$1
    rm -f vm.* disk
    addcow-img create -q -b "${backing:-base.img}" vm.add-cow
    export DELAY_SEED=$1 DELAY_LARGE=0
    export DELAY_READ=$((RANDOM % 3 * 1000)) DELAY_WRITE=$((RANDOM % 3 * 500))
    export DELAY_SYNC=$((RANDOM % 2 * 3000)) DELAY_LOCK=$((RANDOM % 2 * 300))
}

# serve_life FILTER MODE [NBDKIT-ARGUMENT...]: with that filter, which fills as
# MODE says.
serve_life ()
{
    local preload=$random_delay
    local serve=(start_nbdkit sock -t 4 "${@:3}" --filter="$1" file
        addcow=vm.add-cow addcow-commit-interval=1)
    case $2 in
        plain) ;;
        read) serve+=(addcow-on-read=true) ;;
        cache) serve+=(addcow-on-cache=true) ;;
        hydrate) serve+=(addcow-hydrate=true) ;;
        all) serve+=(addcow-on-read=true addcow-on-cache=true
            addcow-hydrate=true) ;;
    esac
    # The first read of a fill is on its way for much of that life.
    case $2 in hydrate | all) DELAY_LARGE=400000 ;; esac
    "${serve[@]}"
}

# live SEED MODE [CLIENT-ARGUMENT...]: what clients of the server at $uri do
# then.  Fails with status 3 when that cannot be explained.
live ()
{
    local clients=$((8 + RANDOM % 9)) shape=(-w 32 -n 200)
    case $2 in hydrate | all) shape=(-w 64 -n 200) ;; esac
    "$history_client" run -s "$1" -c $clients "${shape[@]}" \
        -p $((RANDOM % 2 * 500)) -d disk "${@:3}" "$uri" > told || return $?
    cat told
    nr_requests=$((nr_requests + $(cut -d' ' -f1 told)))
}

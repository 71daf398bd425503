#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow=FOLDER: many clients come to many overlays and leave again, while
# these are opened, committed, filled and closed: each overlay has what was
# written to it and no other's, and in the end nothing is open.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
requires test -d /proc/self/fd
VG=() # as unwatched does

seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
count=24 clients=12 rounds=40
[ -z "$SANITIZER" ] || count=12 rounds=15
[ -z "$ADDCOW_LONG" ] || rounds=4000
size=$((256 * 1024))
random_file base.img $size
fallocate -p -o 64K -l 64K base.img
cp base.img base.copy
start_base base.sock -r -t 4 file base.img

mkdir vms
for ((i = 0; i < count; i++)); do
    case $((i % 3)) in
        0) addcow-img create -q -F raw -b ../base.img vms/$i.add-cow ;;
        1) addcow-img create -q -F raw -b "$base_uri" vms/$i.add-cow ;;
        2) # a chain
           addcow-img create -q -F raw -b ../base.img vms/below$i.add-cow
           addcow-img create -q -F add-cow -b below$i.add-cow \
               vms/$i.add-cow ;;
    esac
    names[i]=$i
done

open_files ()
{
    find /proc/"$1"/fd -type l | wc -l
}
no_more_than ()
{
    [ "$(open_files "$1")" -le "$2" ]
}

for parameters in '' addcow-on-read=true \
                  'addcow-hydrate=true addcow-hydrate-rate=2M'; do
    echo "seed $seed, $parameters"
    # shellcheck disable=SC2086
    start_nbdkit sock --filter="$addcow" file addcow=vms \
        addcow-confine=none addcow-commit-interval=1 $parameters
    before=$(open_files "$pid")
    timeout 500 /usr/bin/python3 "$abs_srcdir/folder_clients.py" "$seed" \
        "$tmp/sock" base.img "$clients" "$rounds" "${names[@]}"
    wait_for no_more_than "$pid" "$before"
    stop_nbdkit "$pid"
    seed=$((seed + 1))

    # They are as good alone as in the folder.
    for name in "${names[@]}"; do
        addcow-img check vms/$name.add-cow
        unwatched nbdkit -r -U - --filter="$addcow" file \
            addcow=vms/$name.add-cow --run 'nbdcopy "$uri" -' |
            cmp - "$name.want"
    done
done
cmp base.img base.copy

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# qemu-img compares, converts, maps and commits to an overlay as to any
# raw disk.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-io --version
requires_plugin file

cd "$tmp"

# The base has data in its first and third MiB and ends there.  Behind
# the first the overlay has 64 KiB of its own, and 64 KiB of zeroes within
# the third; it ends with 1 MiB that no file has.
mib=$((1024 * 1024))
random_file base.img $mib
truncate -s $((2 * mib)) base.img
random_file data $mib
cat data >> base.img
cp base.img base.copy
random_file data 65536

addcow-img create -q -b base.img vm.add-cow 4M
cp --sparse=always base.img expected
truncate -s 4M expected

changes=(-c "write -s data 1M 64k" -c "write -z 2112k 64k")
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
qemu-io -f raw "${changes[@]}" "$uri"
qemu-io -f raw "${changes[@]}" expected

compare ()
{
    qemu-img compare -f raw -F "${2:-raw}" "$uri" "$1"
}

differs_from ()
{
    local status=0
    compare "$@" || status=$?
    [ $status -eq 1 ]
}

compare expected

# A bit that differs is seen: in the base, in the image, behind both.
for offset in 100 $((mib + 5)) $((4 * mib - 1)); do
    cp expected other
    offset=$offset /usr/bin/python3 -c '
import os
with open("other", "r+b") as f:
    f.seek(int(os.environ["offset"]))
    byte = f.read(1)[0]
    f.seek(-1, os.SEEK_CUR)
    f.write(bytes([byte ^ 1]))'
    differs_from other
done

qemu-img map -f raw "$uri"
qemu-img map -f raw --output=json "$uri" > map
/usr/bin/python3 -c '
import json
MiB, KiB64 = 1 << 20, 1 << 16
extents = [[e["start"], e["length"], e["data"], e["zero"]]
           for e in json.load(open("map"))]
print(extents)
# The zeroes that were written may be a hole or not.
middle = 2 * MiB + KiB64
expected = [[0, MiB + KiB64, True, False],
            [MiB + KiB64, MiB - KiB64, False, True],
            [2 * MiB, KiB64, True, False],
            [middle, KiB64, False, True],
            [middle + KiB64, MiB - 2 * KiB64, True, False],
            [3 * MiB, MiB, False, True]]
for e in extents:
    if e[0] == middle and e[3]:
        e[2] = False
assert extents == expected'
qemu-img info -f raw --output=json "$uri" > info
/usr/bin/python3 -c '
import json
info = json.load(open("info"))
assert info["virtual-size"] == 4 << 20, info
assert info["format"] == "raw", info'

# From the overlay.
qemu-img convert -f raw -O raw "$uri" copy.raw
cmp copy.raw expected
qemu-img convert -f raw -O qcow2 "$uri" copy.qcow2
compare copy.qcow2 qcow2
stop_nbdkit "$pid"
start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
compare copy.raw
compare copy.qcow2 qcow2
stop_nbdkit "$pid"

# To an overlay, whose base must show nowhere.
random_file base2.img $((4 * mib))
cp base2.img base2.copy
for format in raw qcow2; do
    addcow-img create -q -b base2.img "to-$format.add-cow"
    start_nbdkit sock --filter="$addcow" file addcow="to-$format.add-cow"
    qemu-img convert -n -f "$format" -O raw "copy.$format" "$uri"
    compare expected
    stop_nbdkit "$pid"
    start_nbdkit sock -r --filter="$addcow" file addcow="to-$format.add-cow"
    compare expected
    qemu-img convert -f raw -O raw "$uri" copy2.raw
    cmp copy2.raw expected
    stop_nbdkit "$pid"
done

# A qcow2 on top of the overlay, committed to it.
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
qemu-img create -q -f qcow2 -b "$uri" -F raw top.qcow2
changes=(-c "write -P 0x77 2100000 5000" -c "write -z 0 64k"
    -c "write -P 0x78 $((4 * mib - 512)) 512")
qemu-io -f qcow2 "${changes[@]}" top.qcow2
compare expected
qemu-io -f raw "${changes[@]}" expected
differs_from top.qcow2 qcow2
qemu-img commit -q top.qcow2
compare expected
stop_nbdkit "$pid"
start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
compare expected

cmp base.img base.copy
cmp base2.img base2.copy

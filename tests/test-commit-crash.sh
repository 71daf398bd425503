#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Wherever addcow-img commit crashes, the disk is what it was, and another one
# goes on to its end.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/stream.sh"
source "$abs_srcdir/commit.sh"
source "$abs_srcdir/crash.sh"

size=$((256 * 1024 + 512))
random_file base.orig $((size - 3000))
fallocate -p -o 64K -l 64K base.orig

# An overlay to begin with; the backing file becomes longer.
padded base.orig $size
cp base.orig base.img
rm -f vm.*
addcow-img create -q -b base.img -F raw vm.add-cow $size
python <<'PY'
from overlay_files import *
disk = bytearray(read("disk"))
fill("vm.add-cow", disk, 1, most=150)
write("disk", disk)
PY
cp vm.add-cow old.add-cow
cp --sparse=always vm.raw old.raw

begin ()
{
    cp --preserve=timestamps base.orig base.img
    cp old.add-cow vm.add-cow
    cp --sparse=always old.raw vm.raw
}

same ()
{
    python <<'PY'
from overlay_files import *
old, new = (Metadata.decode(read(name))
            for name in ("old.add-cow", "vm.add-cow"))
# The name is, and only what was allocated is allocated.
assert (new.size, new.backing, new.image) == (old.size, old.backing, old.image)
assert all(o & n == n for o, n in zip(old.bitmap, new.bitmap))
assert content("vm.add-cow", read("base.img")) == read("disk")
PY
    if [ "$crash_at" = "done" ]; then empty; fi
    "${VG[@]}" "$addcow_img" commit -q vm.add-cow 2>err
    empty
    cmp base.img disk
    addcow-img info --output=json vm.add-cow | tr -d ' \n' |
        grep -F '"backing-changed":[]'
}

crash_each begin same addcow-img commit -q vm.add-cow

# Over another overlay, which is left a valid one.
cp base.orig base.img
addcow-img create -q -b base.img -F raw mid.add-cow $size
addcow-img create -q -f -b mid.add-cow -F add-cow vm.add-cow $size
python <<'PY'
from overlay_files import *
data, old = read("vm.add-cow"), Metadata.decode(read("old.add-cow"))
write("old.add-cow", data[:BITMAP_AT] + old.bitmap)
PY
cp mid.add-cow mid.old

begin_above ()
{
    cp old.add-cow vm.add-cow
    cp --sparse=always old.raw vm.raw
    cp mid.old mid.add-cow
    truncate -s 0 mid.raw
    truncate -s $size mid.raw
}

same_above ()
{
    python <<'PY'
from overlay_files import *
mid = content("mid.add-cow", read("base.img"), "mid.raw")
assert content("vm.add-cow", mid) == read("disk")
PY
    "${VG[@]}" "$addcow_img" commit -q vm.add-cow 2>err
    empty
    python <<'PY'
from overlay_files import *
assert content("mid.add-cow", read("base.img"), "mid.raw") == read("disk")
PY
    cmp base.img base.orig
}

crash_each begin_above same_above addcow-img commit -q vm.add-cow

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img commit makes the backing file what the disk is, whatever it is,
# and empties the overlay; only what was allocated is written.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-nbd --version
requires script --version
requires_filter log
requires_filter blocksize-policy
requires_filter nozero
requires_filter fua
requires_plugin memory
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
verb=commit
source "$abs_srcdir/stream.sh"
source "$abs_srcdir/commit.sh"

size=$((1024 * 1024))
random_file base.orig $size
fallocate -p -o 300K -l 200K base.orig

# unchanged_hints: what is noted of the backing file is so.
unchanged_hints ()
{
    addcow-img info vm.add-cow > out
    grep "^backing file size" out || cat out
    addcow-img info --output=json vm.add-cow > out
    grep -F '"backing-changed"' out
    tr -d ' \n' < out | grep -F '"backing-changed":[]'
}

# no_change: there is nothing to do, and nothing is done.
no_change ()
{
    rm -f served sock out err
    keep
    commit
    rm -f served sock out err
    kept
}

### A local raw file.

cp base.orig base.img
padded base.img $size
fresh -b base.img $size
filled 1
commit
cmp base.img disk
# Again there is nothing to do, and then there is something again.
no_change
filled 2
commit
cmp base.img disk

# With hints, which are right after.
cp base.orig base.img
padded base.img $size
fresh -b base.img -F raw $size
filled 3
touch -d '2001-02-03' base.img.stamp
commit
cmp base.img disk
unchanged_hints
rm base.img.stamp
# The other hints and the name are what they were.
addcow-img info vm.add-cow | grep -x "backing file format: raw"
addcow-img info vm.add-cow | grep -F "backing file: base.img "

# Nothing is allocated: it is not written, and not made to look so.
cp base.orig base.img
fresh -b base.img -F raw $size
padded base.img $size
no_change

# One that somebody else changed.
fresh -b base.img -F raw $size
padded base.img $size
filled 4
touch -d '2001-02-03' base.img
addcow-img commit vm.add-cow >out 2>err
grep -F "base.img: warning: has changed since it became the backing file" err
[ "$(wc -l < err)" -eq 1 ]
cmp base.img disk
unchanged_hints

# Longer: what is behind stays.
{ cat base.orig; echo more; } > base.img
padded base.img $size
fresh -b base.img $size
filled 5
commit
cmp -n $size base.img disk
[ "$(tail -c 5 base.img)" = more ]
[ "$(stat -c %s base.img)" -eq $((size + 5)) ]

# Shorter, and any length: it becomes as long as the disk.
lengths=(0 1 511 513 4097 $((size / 2 + 77)) $((size - 1)))
[ -z "$ADDCOW_VALGRIND" ] || lengths=(0 $((size / 2 + 77)))
for n in "${lengths[@]}"; do
    head -c "$n" base.orig > base.img
    padded base.img $size
    fresh -b base.img -F raw $size
    filled "$n"
    commit
    cmp base.img disk
    unchanged_hints
done
# Also if nothing is allocated.
head -c 700 base.orig > base.img
padded base.img $size
fresh -b base.img -F raw $size
commit
cmp base.img disk
unchanged_hints

# A disk that ends anywhere in its bitmap, and one of no bytes.
lengths=(512 3584 4608 $((4096 * 9 + 512)))
[ -z "$ADDCOW_VALGRIND" ] || lengths=(4608)
for n in "${lengths[@]}"; do
    head -c "$n" base.orig > base.img
    cp base.img disk
    fresh -b base.img "$n"
    filled "$n"
    commit
    cmp base.img disk
done
: > base.img
: > disk
fresh -b base.img 0
commit
[ ! -s base.img ]

# All is allocated.
cp base.orig base.img
padded base.img $size
fresh -b base.img $size
addcow-img stream -q vm.add-cow
random_file vm.raw $size
cp vm.raw disk
commit
cmp base.img disk

# An image that is longer keeps what it has there; what has no bit is freed.
cp base.orig base.img
padded base.img $size
rm vm.*
random_file vm.raw $((size + 4096))
tail -c 4096 vm.raw > behind
addcow-img create -q -b base.img vm.add-cow $size
filled 6 data zeroes
addcow-img commit -q vm.add-cow
cmp base.img disk
served
[ "$(stat -c %s vm.raw)" -eq $((size + 4096)) ]
tail -c 4096 vm.raw | cmp - behind
[ "$(stat -c %b vm.raw)" -le 16 ]

# Holes and zeroes of the image are holes of the backing file, and what is not
# allocated is as it was.
cp base.orig base.img
padded base.img $size
fresh -b base.img $size
filled 7
python <<'PY'
from overlay_files import *
write("data", repr((data_blocks("base.img"), data_blocks("vm.raw"))).encode())
PY
commit
python <<'PY'
from overlay_files import *
base, image = eval(read("data"))
sectors = set(eval(read("sectors")))
now = data_blocks("base.img")
for b in range(len(read("disk")) // 4096):
    allocated = {s in sectors for s in range(b * 8, b * 8 + 8)}
    if allocated == {False}:
        assert (b in now) == (b in base), b
    if allocated == {True}:
        assert b in image or b not in now, b
PY

# From the one end of a large one to the other.
truncate -s 8T large.img
rm vm.*
addcow-img create -q -b large.img -F raw vm.add-cow
python <<'PY'
import os
last = (8 << 40) - 512
with open("vm.raw", "r+b") as f:
    for at in 0, 4 << 40, last:
        f.seek(at)
        f.write(b"x" * 512)
with open("vm.add-cow", "r+b") as f:
    for at in 0, 4 << 40, last:
        f.seek(2068 + at // 4096)
        f.write(bytes([1 << at // 512 % 8]))
PY
timeout 60 "${VG[@]}" "$addcow_img" commit -q vm.add-cow
python <<'PY'
import os
from overlay_files import *
with open("large.img", "rb") as f:
    for at in 0, 4 << 40, (8 << 40) - 512:
        f.seek(at)
        assert f.read(512) == b"x" * 512
with open("vm.add-cow", "rb") as f:
    assert os.lseek(f.fileno(), 0, os.SEEK_END) == 2068 + (8 << 40) // 4096
PY
[ "$(stat -c %b large.img)" -le 96 ]
[ "$(stat -c %b vm.add-cow)" -le 32 ]
addcow-img info vm.add-cow | grep -x "allocated: 0 B (0 bytes, 0.00%)"
rm large.img vm.*

### Another format.

qemu-img convert -O qcow2 base.orig base.qcow2
padded base.orig $size
fresh -b base.qcow2 -F qcow2 $size
filled 8
commit
qemu-img compare -f raw -F qcow2 disk base.qcow2
qemu-img check base.qcow2
unchanged_hints
# One that has a backing file: that is not written.
cp base.orig base.img
padded base.img $size
rm base.qcow2
qemu-img create -q -f qcow2 -b base.img -F raw base.qcow2
fresh -b base.qcow2 -F qcow2 $size
filled 9
commit
qemu-img compare -f raw -F qcow2 disk base.qcow2
qemu-img check base.qcow2
unchanged_hints
cmp base.img base.orig
# What it keeps of itself is not lost by how the child ends.
qemu-img bitmap --add base.qcow2 changes
fresh -b base.qcow2 -F qcow2 $size
filled 10
commit
qemu-img info -U base.qcow2 > out
grep "name: changes" out
if grep "in-use" out; then exit 1; fi
unchanged_hints
# Shorter than the disk: only zeroes can be behind it.
qemu-img convert -O qcow2 base.orig base.qcow2
padded base.orig $((size * 2))
fresh -b base.qcow2 -F qcow2 $((size * 2))
python <<'PY'
from overlay_files import *
m = Metadata.decode(read("vm.add-cow"))
for s in range(2040, 4096):
    m.set(s)
write("vm.add-cow", read("vm.add-cow")[:BITMAP_AT] + m.bitmap)
with open("vm.raw", "r+b") as f:
    f.seek(2040 * 512)
    f.write(b"y" * 4096)
with open("disk", "r+b") as f:
    f.seek(2040 * 512)
    f.write(b"y" * 4096)
PY
commit
head -c $size disk > disk.head
qemu-img compare -f raw -F qcow2 disk.head base.qcow2

### A server.

# over_nbd FILTERS... -- PARAMETERS...: over a server of base.img.
over_nbd ()
{
    local filters=()
    while [ "$1" != -- ]; do
        filters+=("--filter=$1")
        shift
    done
    shift
    rm -f log
    start_base base.sock --filter=log "${filters[@]}" file base.img \
        logfile="$PWD/log" "$@"
    padded base.img $size
    fresh -b "$base_uri" -F raw $size
    filled "$RANDOM"
    : > log
    commit
    cp log log.commit
    cmp base.img disk
    stop_nbdkit "$base_pid"
}

cp base.orig base.img
over_nbd --
# Each byte that is allocated is written or zeroed once, and no other.
python <<'PY'
import re
from overlay_files import *
changed = []
flushes = 0
for line in read("log.commit").decode().splitlines():
    m = re.search(r" (Write|Zero) id=\d+ offset=0x(\w+) count=0x(\w+)", line)
    if m:
        at, n = int(m[2], 16), int(m[3], 16)
        assert at % 512 == 0 and n % 512 == 0
        changed += range(at // 512, (at + n) // 512)
    flushes += " Flush id=" in line
assert sorted(changed) == eval(read("sectors"))
assert flushes == 1
PY
# One that takes whole blocks only, one without requests for zeroes, one that
# has no flush.
over_nbd blocksize-policy -- blocksize-minimum=4096 blocksize-maximum=64K \
    blocksize-preferred=4096 blocksize-error-policy=error
over_nbd nozero -- zeromode=none
over_nbd fua -- fuamode=force
# It ends within the last sector.
truncate -s $((size - 100)) base.img
start_base base.sock file base.img
padded base.img $((size - 100))
fresh -b "$base_uri" -F raw $size
truncate -s $size disk
filled 12
truncate -s $((size - 100)) disk vm.raw
truncate -s $size disk vm.raw
commit
cmp -n $((size - 100)) base.img disk
stop_nbdkit "$base_pid"
# One without a file.
start_base base.sock memory $size
truncate -s 0 disk
truncate -s $size disk
fresh -b "$base_uri" -F raw $size
filled 11
commit
nbdcopy "$base_uri" copy
cmp copy disk
stop_nbdkit "$base_pid"

### Another overlay.

cp base.orig base.img
rm -f mid.*
addcow-img create -q -b base.img -F raw mid.add-cow
padded base.img $size
fresh -b mid.add-cow -F add-cow $size
filled 13
commit
unchanged_hints
cmp base.img base.orig
# The one below has what was allocated.
python <<'PY'
from overlay_files import *
assert Metadata.decode(read("mid.add-cow")).allocated().count(True) == \
    len(eval(read("sectors")))
assert content("mid.add-cow", read("base.img"), "mid.raw") == read("disk")
PY
# And that to the one below, which is the end.
addcow-img commit -q mid.add-cow
cmp base.img disk
served
# Only what is allocated here was written there.
fresh -b mid.add-cow -F add-cow $size
filled 14
commit
python <<'PY'
from overlay_files import *
m = Metadata.decode(read("mid.add-cow"))
assert [i for i, a in enumerate(m.allocated()) if a] == eval(read("sectors"))
PY

### What it prints.

again ()
{
    cp base.orig base.img
    padded base.img $size
    fresh -b base.img $size
    filled 15
}
for option in -q --quiet; do
    again
    addcow-img commit $option vm.add-cow >out 2>err
    [ ! -s out ]
    [ ! -s err ]
    empty
    cmp base.img disk
done
mkdir folder
ln -s ../vm.add-cow folder/link
again
[ "$(addcow-img commit ./folder/link)" = "Image committed." ]
empty
again
addcow-img commit -p vm.add-cow >out 2>err
[ ! -s err ]
again
# shellcheck disable=SC2016 # the shell there
command=$(printf '%q ' "${VG[@]}" "$addcow_img" commit --progress vm.add-cow)
script -qec "$command" typescript </dev/null
tr '\r' '\n' < typescript > bars
cat -v bars
empty
grep -F ' 100.00%' bars
grep -x "Image committed\." bars

fails_with "addcow-img: standard output: No space left on device" \
    bash -c '"$@" >/dev/full' - "${VG[@]}" "$addcow_img" commit vm.add-cow

### From file to file the system copies.

if [ -z "$ADDCOW_VALGRIND$SANITIZER" ]; then
    requires strace -f -o /dev/null true
    again
    strace -f -e trace=copy_file_range -o trace \
        "$addcow_img" commit -q vm.add-cow
    grep -E 'copy_file_range\(.*\) *= [1-9]' trace
    empty
    cmp base.img disk
    # Where it cannot, it is read and written.
    for error in EOPNOTSUPP EXDEV ENOSYS EINVAL EPERM; do
        again
        strace -f -o trace -e trace=copy_file_range \
            -e inject=copy_file_range:error=$error \
            "$addcow_img" commit -q vm.add-cow
        grep "= -1 $error .*(INJECTED)" trace
        empty
        cmp base.img disk
    done
fi

### A block device, which is as long as it is.

# on_device [LOSETUP-OPTION...]: the backing file is one, $loop.
on_device ()
{
    [ -n "$root" ] && type losetup && truncate -s $size device &&
        loop=$(losetup -f --show "$@" device) || return 1
    cleanup_fn "losetup -d $loop"
    cat base.orig > "$loop"
}

# Its blocks may be larger than sectors.
for block in 512 4096; do
    on_device -b $block || break
    padded base.orig $size
    fresh -b "$loop" -F raw $size
    filled 41
    commit
    cmp "$loop" disk
    # A longer disk must not have anything behind its end.
    cat base.orig > "$loop"
    padded base.orig $((size + 4096))
    fresh -b "$loop" $((size + 4096))
    filled 42 zeroes hole
    commit
    cmp -n $size "$loop" disk
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
    nbdsh -u "$uri" -c 'h.pwrite(b"x" * 512, h.get_size() - 512)'
    stop_nbdkit "$pid"
    refused "$loop: has $size bytes, too few for what is to be written there" \
        addcow-img commit vm.add-cow
done

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img stream makes the image the whole disk, whatever the backing
# file is and whatever was written before; holes stay holes, and nothing is
# changed but image and metadata file.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-nbd --version
requires strace -V
requires script --version
requires_filter log
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/stream.sh"

size=$((4 * 1024 * 1024))

# Data, zeroes that are written, and holes of many sizes.
random_file base.img $size
for ((i = 0; i < size; i += 256 * 1024)); do
    fallocate -p -o $i -l $((4096 << i / (256 * 1024) % 6)) base.img
    fallocate -z -o $((i + 200 * 1024)) -l 20480 base.img
done
dd if=/dev/zero of=base.img bs=512 seek=1001 count=999 conv=notrunc
cp --sparse=never base.img base.full
cp base.img disk

# stream [BACKING]: do it and look at the result.
stream ()
{
    addcow-img stream vm.add-cow >out 2>err || { cat out err; return 1; }
    alone "$@"
}

# holes.py [FILE]: in vm.raw, blocks of zeroes in "disk" are holes; or only
# those that are holes in FILE too.
cat > holes.py <<'PY'
import os, sys

def holes(name):
    """Which blocks of 4 KiB are holes."""
    with open(name, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        result = set(range(size // 4096))
        at = 0
        while at < size:
            try:
                start = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
            result -= set(range(start // 4096, -(-at // 4096)))
        return result

disk = open("disk", "rb").read()
zeroes = {n for n in range(len(disk) // 4096)
          if not any(disk[n * 4096:n * 4096 + 4096])}
if len(sys.argv) > 1:
    zeroes &= holes(sys.argv[1])
assert zeroes
assert not zeroes - holes("vm.raw"), sorted(zeroes - holes("vm.raw"))
PY
# The unit of this file system may be larger.
head -c 8192 /dev/urandom > probe
fallocate -p -o 4096 -l 4096 probe
small_holes=
if [ "$(stat -c %b probe)" -le 8 ]; then small_holes=yes; fi
keeps_holes ()
{
    [ -z "$small_holes" ] || python holes.py "$@"
}

### All kinds of backing files.

# The image is new, or full of something else.
for garbage in '' yes; do
    fresh ()
    {
        rm -f vm.*
        [ -z "$garbage" ] || random_file vm.raw $size
        addcow-img create -q "$@" vm.add-cow $size
    }

    fresh -b base.img
    stream base.img
    keeps_holes base.img
    fresh -b base.full -F raw
    stream base.full

    start_base base.sock -r file base.img
    fresh -b "$base_uri" -F raw
    stream "$base_uri"
    keeps_holes
    stop_nbdkit "$base_pid"

    qemu-img convert -O qcow2 base.img base.qcow2
    fresh -b base.qcow2 -F qcow2
    stream base.qcow2
    keeps_holes

    # A chain, all parts of which have something.
    options=(-b base.img -F raw)
    for n in 1 2 3; do
        rm -f $n.*
        addcow-img create -q "${options[@]}" $n.add-cow
        options=(-b "$n.add-cow" -F add-cow)
        start_nbdkit chain --filter="$addcow" file addcow=$n.add-cow
        nbdsh -u "$uri" -c "
h.pwrite(b'$n' * 299008, $n * 299008)
h.zero(200704, $n * 1003520)
"
        stop_nbdkit "$pid"
    done
    start_nbdkit chain -r --filter="$addcow" file addcow=3.add-cow
    nbdcopy "$uri" disk
    stop_nbdkit "$pid"
    fresh -b 3.add-cow -F add-cow
    stream 3.add-cow
    keeps_holes base.img

    # None, an empty one, one that ends anywhere, a longer one.
    truncate -s 0 disk empty
    truncate -s $size disk
    fresh
    stream
    keeps_holes
    fresh -b empty
    stream empty
    keeps_holes
    for n in 1 511 4097 $((size - 1)); do
        head -c "$n" base.full > short
        cp short disk
        truncate -s $size disk
        fresh -b short
        stream short
    done
    { cat base.full; echo more; } > long
    cp base.img disk
    fresh -b long
    stream long
done
cmp base.img base.full

# No byte of a hole is read from a server, and all else once.
start_base base.sock -r --filter=log file base.img logfile="$PWD/base.log"
rm vm.*
addcow-img create -q -b "$base_uri" vm.add-cow
stream "$base_uri"
stop_nbdkit "$base_pid"
python - $size <<'PY'
import re, sys
K = 1024
read = bytearray(int(sys.argv[1]))
for line in open("base.log"):
    m = re.search(r" Read id=\d+ offset=0x(\w+) count=0x(\w+)", line)
    if m:
        at, n = int(m[1], 16), int(m[2], 16)
        assert not any(read[at:at + n]), (at, n)
        read[at:at + n] = b"r" * n
# The large ones; small ones may be read with what is around them.
assert not any(read[4 * 256 * K:4 * 256 * K + 64 * K])
assert not any(read[5 * 256 * K:5 * 256 * K + 128 * K])
assert read.count(b"r") > len(read) / 2
PY

### What is in the overlay stays.

cp base.img disk
cat > write.py <<'PY'
import sys
from nbd_client import *

disk = bytearray(open("disk", "rb").read())
h = connect(sys.argv[1])
try_writes(h, disk, int(sys.argv[2]), 100, 100000)
h.trim(700000, 1000000)
disk[1000000:1700000] = bytes(700000)
h.pwrite(b"t" * 1000, 1234567)
disk[1234567:1235567] = b"t" * 1000
h.shutdown()
open("disk", "wb").write(disk)
PY
for seed in 1 2 3; do
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
    python write.py "$uri" $seed
    stop_nbdkit "$pid"
    stream base.img
    served
    # Again, and it says the same.
    stream base.img
    cp base.img disk
done
cmp base.img base.full

# A disk of no bytes.
rm vm.*
addcow-img create -q vm.add-cow 0
: > disk
stream

### What it prints.

again ()
{
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow
}
cp base.img disk
for option in -q --quiet; do
    again
    addcow-img stream $option vm.add-cow >out 2>err
    [ ! -s out ]
    [ ! -s err ]
    complete
done
# The names are as they are in the file and on the command line.
mkdir folder
addcow-img create -q -b ../base.img -i '../odd
name' folder/x
says='../odd\012name stands alone: ./folder/x is no longer needed'
says+=', nor is the backing file ../base.img by this overlay'
[ "$(addcow-img stream ./folder/x)" = "$says" ]
cmp disk 'odd
name'
# A link to the file.
again
ln -s ../vm.add-cow folder/link
addcow-img stream -q folder/link
complete

# Nobody sees the bar but on a terminal.
again
addcow-img stream -p vm.add-cow >out 2>err
alone base.img
again
# shellcheck disable=SC2016 # the shell there
command=$(printf '%q ' "${VG[@]}" "$addcow_img" stream --progress vm.add-cow)
script -qec "$command" typescript </dev/null
tr '\r' '\n' < typescript > bars
cat -v bars
complete
grep -F ' 100.00%' bars
grep -E '^(\[=*>? *\])? *[0-9.]+% ' bars
grep -x "vm.raw stands alone: .*" bars

fails_with "addcow-img: standard output: No space left on device" \
    bash -c '"$@" >/dev/full' - "${VG[@]}" "$addcow_img" stream vm.add-cow

### From file to file the system copies.

if [ -z "$ADDCOW_VALGRIND$SANITIZER" ]; then
    requires strace -f -o /dev/null true
    again
    strace -f -e trace=copy_file_range -o trace \
        "$addcow_img" stream vm.add-cow >out 2>err
    alone base.img
    grep -E 'copy_file_range\(.*\) *= [1-9]' trace
    # Where it cannot, it is read and written.
    for error in EOPNOTSUPP EXDEV ENOSYS EINVAL EPERM; do
        again
        strace -f -o trace -e trace=copy_file_range \
            -e inject=copy_file_range:error=$error \
            "$addcow_img" stream vm.add-cow >out 2>err
        alone base.img
        grep "= -1 $error .*(INJECTED)" trace
    done
fi

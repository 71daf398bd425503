#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What a server with the backing file is asked: never for bytes that it
# calls zeroes, nor for less or more at a time than it takes.  Servers that
# do not tell of zeroes or of sizes.

source ./functions.sh
set -e
set -x

for filter in log blocksize-policy noextents noparallel; do
    requires_filter $filter
done
requires_plugin eval
source "$abs_srcdir/nbd-backing.sh"

size=$((4 * 1024 * 1024))
random_file base.img $size
fallocate -p -o 0 -l 64K base.img
fallocate -p -o 256K -l 1M base.img
fallocate -p -o 2052K -l 4K base.img
fallocate -p -o 3M -l 512K base.img

cat > read.py <<'PY'
"""read.py OVERLAY-URI BASE-URI"""
import random, sys
from nbd_client import *

uri, base_uri = sys.argv[1:3]
disk = bytearray(open("base.img", "rb").read())
h = connect(uri)
base = connect(base_uri)
assert extents(h) == extents(base)
base.shutdown()

def client(number):
    h = connect(uri)
    r = random.Random(number)
    # At the edges of holes, which are multiples of 4K, and elsewhere.
    for _ in range(150):
        n = r.choice([1, 512, 700, 4096, 100000, 600000])
        at = r.randrange(0, len(disk), 4096) + r.choice([-700, -1, 0, 1, 99])
        at = min(max(at, 0), len(disk) - n)
        assert h.pread(n, at) == disk[at:at + n], (n, at)
    h.shutdown()

assert h.pread(len(disk), 0) == disk
in_parallel([lambda i=i: client(i) for i in range(4)])
# Sectors that are completed, in holes too; and some on the edge.
for at in 100, 65536 - 100, 256 * 1024 - 10, 300000, 2052 * 1024 - 1:
    h.pwrite(b"w" * 150, at)
    disk[at:at + 150] = b"w" * 150
h.zero(9000, 1280 * 1024 - 4600)
disk[1280 * 1024 - 4600:1280 * 1024 + 4400] = bytes(9000)
try_writes(h, disk, 3)
h.shutdown()
PY

### No byte of a hole is read, all data are.

cat > holes.py <<'PY'
import re, sys
read = []
size = int(sys.argv[2])
for line in open(sys.argv[1]):
    m = re.search(r" Read id=\d+ offset=0x(\w+) count=0x(\w+)", line)
    if m:
        read.append((int(m[1], 16), int(m[2], 16)))
K = 1024
holes = [(0, 64 * K), (256 * K, 1280 * K), (2052 * K, 2056 * K),
         (3072 * K, 3584 * K), (size, 1 << 63)]
was_read = bytearray(size)
for at, n in read:
    for start, end in holes:
        assert at >= end or at + n <= start, (at, n)
    was_read[at:at + n] = b"r" * n
assert was_read.count(b"r") == size - sum(b - a for a, b in holes[:-1])
PY

# Without a format what it begins like is looked at.
for format in '' raw; do
    start_base base.sock -r --filter=log file base.img logfile=base.log
    addcow-img create -q -f -b "$base_uri" vm.add-cow
    # shellcheck disable=SC2086 # it may be missing
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        ${format:+addcow-backing-format=$format}
    python read.py "$uri" "$base_uri"
    stop_nbdkit "$pid"
    stop_nbdkit "$base_pid"
    python holes.py base.log $size
done

# The whole is zeroes: nothing is read, when it is created either.
truncate -s $size zeroes.img
start_base base.sock -r --filter=log file zeroes.img logfile=base.log
addcow-img create -q -f -b "$base_uri" vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
nbdsh -u "$uri" -c "
assert h.pread($size, 0) == bytes($size)
h.pwrite(b'a' * 100, 100)
h.zero(100, 100000)
assert h.pread($size, 0) == bytes(100) + b'a' * 100 + bytes($size - 200)
"
stop_nbdkit "$pid"
stop_nbdkit "$base_pid"
grep -c ' Extents ' base.log
[ "$(grep -c ' Read ' base.log)" -eq 0 ]

### The sizes that it takes.

# sizes MINIMUM MAXIMUM: all else is an error there.
sizes ()
{
    start_base base.sock -r --filter=blocksize-policy file base.img \
        blocksize-minimum="$1" blocksize-preferred=64K \
        blocksize-maximum="$2" blocksize-error-policy=error
    addcow-img create -q -f -b "$base_uri" vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
    python read.py "$uri" "$base_uri"
    stop_nbdkit "$pid"
    stop_nbdkit "$base_pid"
}
sizes 4096 64K
sizes 512 128K
sizes 64K 64K
sizes 1 64K

# A block that the disk ends in, and the base in the next.
start_base base.sock -r --filter=blocksize-policy file base.img \
    blocksize-minimum=4096 blocksize-maximum=64K blocksize-error-policy=error
for n in $((300 * 1024 - 512)) $((size - 512)) $((size + 1024)); do
    rm vm.*
    addcow-img create -q -b "$base_uri" vm.add-cow $n
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
    nbdsh -u "$uri" -c "
base = (open('base.img', 'rb').read() + bytes(1024))[:$n]
for at in range(0, $n, 1 << 20):
    assert h.pread(min($n - at, 1 << 20), at) == base[at:at + (1 << 20)]
assert h.pread(700, $n - 700) == base[-700:]
h.pwrite(b'a' * 50, $n - 100)
assert h.pread(512, $n - 512) == base[-512:-100] + b'a' * 50 + base[-50:]
"
    stop_nbdkit "$pid"
done
stop_nbdkit "$base_pid"

### Servers without block status, and one request at a time.

for options in --filter=noextents --no-sr '--filter=noparallel -t 1'; do
    # shellcheck disable=SC2086
    start_base base.sock -r $options file base.img
    addcow-img create -q -f -b "$base_uri" vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
    python read.py "$uri" "$base_uri"
    stop_nbdkit "$pid"
    stop_nbdkit "$base_pid"
done

# One that tells of a little at a time, in extents that are equal to the
# next; and calls zeroes what is no hole.  LENGTH is that of an extent.
cat > extents.sh <<'END'
offset=$4
end=$(($3 + offset)) i=0
while [ $offset -lt $end ] && [ $i -lt 3 ]; do
    block=$((offset / LENGTH))
    next=$(((block + 1) * LENGTH))
    case $((block / 3 % 3)) in
        0) type= ;;
        1) type=zero ;;
        2) type=hole,zero ;;
    esac
    echo $offset $((next - offset)) $type
    offset=$next i=$((i + 1))
done
END
cat > make.py <<'PY'
import os, sys
length = int(sys.argv[1])
size = 2097 * 512
with open("odd.img", "wb") as f:
    for block in range(size // length + 1):
        f.write(os.urandom(length) if block // 3 % 3 == 0 else bytes(length))
    f.truncate(size)
PY
cat > odd.py <<'PY'
import sys
from nbd_client import *

h = connect(sys.argv[1])
block = 3 * int(sys.argv[2])
disk = open("odd.img", "rb").read()
assert len(disk) == h.get_size()
kinds = [DATA, nbd.STATE_ZERO, HOLE]
want = [(block, kinds[i % 3]) for i in range(len(disk) // block + 1)]
got = extents(h)
if block % 512 == 0:
    assert got == resized(want, len(disk)), got
else:
    # Where a server asked as it must be cannot tell, there are data.
    at = 0
    for n, kind in got:
        if kind != DATA:
            assert resized(want, n, at) == [(n, kind)], (at, n, kind)
        else:
            for i, kind in resized(want, n, at):
                assert kind == DATA or i < 512, (at, n)
        at += n
assert content(h) == disk
h.shutdown()
PY
for length in 7680 7777; do
    python make.py $length
    # shellcheck disable=SC2016 # it is nbdkit that runs them
    start_base base.sock -r eval get_size='echo 1073664' \
        pread='tail -c +$(($4 + 1)) '"$tmp"'/odd.img | head -c $3' \
        can_extents='exit 0' extents="LENGTH=$length; . $tmp/extents.sh"
    addcow-img create -q -f -b "$base_uri" vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
    python odd.py "$uri" $length
    stop_nbdkit "$pid"
    stop_nbdkit "$base_pid"
done

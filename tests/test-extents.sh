#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Block status: the image's extents where sectors are allocated, the
# backing file's elsewhere, zeroes past its end, equal neighbours as one.

source ./functions.sh
set -e
set -x

requires_nbdsh
cd "$tmp"
# 256K of backing file: data, a hole from 64K to 128K, data; 320K of disk.
truncate -s 256K base.img
dd if=/dev/urandom of=base.img bs=64K count=1 conv=notrunc
dd if=/dev/urandom of=base.img bs=64K count=2 seek=2 conv=notrunc
addcow-img create -q -b base.img vm.add-cow 320K
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow

cat > do.py <<'PY'
import sys, nbd
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
K = 1024
def status(count, offset, flags=0):
    got = []
    def f(context, start, entries, err):
        assert start == offset
        got.extend(zip(entries[::2], entries[1::2]))
        return 0
    h.block_status(count, offset, f, flags)
    return got
def check(want, count=320 * K, offset=0, flags=0):
    got = status(count, offset, flags)
    assert got == want, got

DATA, HOLE = 0, 3
check([(64 * K, DATA), (64 * K, HOLE), (128 * K, DATA), (64 * K, HOLE)])
# Only as much as was asked for, from where it was asked for.
check([(40 * K, DATA), (10 * K, HOLE)], 50 * K, 24 * K)
check([(40 * K, DATA)], 50 * K, 24 * K, nbd.CMD_FLAG_REQ_ONE)
# Data on data: one extent still.  Every second sector, so many runs.
for i in range(0, 128, 2):
    h.pwrite(b"a" * 512, i * 512)
check([(64 * K, DATA), (64 * K, HOLE), (128 * K, DATA), (64 * K, HOLE)])
check([(64 * K, DATA)], 320 * K, 0, nbd.CMD_FLAG_REQ_ONE)
# A trim of data is a hole in the image; data in the backing's hole.
h.trim(32 * K, 160 * K)
h.pwrite(b"b" * 4096, 96 * K)
check([(64 * K, DATA), (32 * K, HOLE), (4 * K, DATA), (28 * K, HOLE),
       (32 * K, DATA), (32 * K, HOLE), (64 * K, DATA), (64 * K, HOLE)])
# Zeroes next to a hole, and past the end of the backing file.
h.zero(64 * K, 256 * K)
check([(64 * K, DATA), (64 * K, HOLE)], 128 * K, 192 * K)
h.shutdown()
PY
/usr/bin/python3 do.py "$uri"
stop_nbdkit "$pid"

# A trim, and zeroes that may be a hole, take no space in the image; nor do
# they where the sectors were not allocated.
rm vm.*
addcow-img create -q -b base.img vm.add-cow 320K
blocks=$(stat -c %b vm.raw)
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
nbdsh -u "$uri" -c 'h.trim(65536, 0); h.zero(65536, 131072); h.flush()'
[ "$(stat -c %b vm.raw)" -eq "$blocks" ]
nbdsh -u "$uri" -c '
assert h.pread(65536, 0) + h.pread(65536, 131072) == bytes(131072)
h.zero(65536, 65536, nbd.CMD_FLAG_NO_HOLE)
h.flush()'
[ "$(stat -c %b vm.raw)" -ge $((blocks + 128)) ]
stop_nbdkit "$pid"

# An image that does not tell its extents: the backing's are told.
requires_filter noextents
addcow-img create -q -f -b base.img vm.add-cow 320K
start_nbdkit sock --filter="$addcow" --filter=noextents file \
    addcow=vm.add-cow
nbdsh --base-allocation -u "$uri" -c '
got = []
def f(context, start, entries, err):
    got.extend(entries)
    return 0
h.zero(65536, 0)
h.block_status(327680, 0, f)
assert got == [65536, 0, 65536, 3, 131072, 0, 65536, 3], got
'
stop_nbdkit "$pid"

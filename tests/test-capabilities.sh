#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What the export says that it can do, read-write and read-only, over
# plugins that can more and less; each is then used.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_filter nozero
requires_filter blocksize-policy
requires_filter fua
requires_filter multi-conn
requires_plugin memory
cd "$tmp"
random_file base.img 65536
addcow-img create -q -b base.img vm.add-cow

can ()
{
    nbdsh -u "$uri" -c '
print("flush=%d fua=%d trim=%d zero=%d fast=%d cache=%d multi=%d ro=%d "
      "rotational=%d" % (
    h.can_flush(), h.can_fua(), h.can_trim(), h.can_zero(),
    h.can_fast_zero(), h.can_cache(), h.can_multi_conn(), h.is_read_only(),
    h.is_rotational()))
print("block size", [h.get_block_size(i) for i in range(3)])
assert h.get_size() == 65536
' | tee can
}

use ()
{
    nbdsh -u "$uri" -c '
h.pwrite(b"a" * 3, 5)
h.pwrite(b"b" * 3000, 700, nbd.CMD_FLAG_FUA)
h.zero(1000, 999)
h.flush()
h.cache(65536, 0)
if h.can_trim():
    h.trim(512, 4096)
    h.trim(512, 4096)
base = open("base.img", "rb").read()
want = base[:5] + b"aaa" + base[8:700] + b"b" * 299 + bytes(1000) + \
    b"b" * 1701 + base[3700:]
if h.can_trim():
    want = want[:4096] + bytes(512) + want[4608:]
assert h.pread(65536, 0) == want
'
}

start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
can
diff can - <<'EXPECT'
flush=1 fua=1 trim=1 zero=1 fast=0 cache=1 multi=1 ro=0 rotational=0
block size [1, 512, 4294967295]
EXPECT
use
stop_nbdkit "$pid"

start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
can
diff can - <<'EXPECT'
flush=1 fua=0 trim=0 zero=0 fast=0 cache=1 multi=1 ro=1 rotational=0
block size [1, 512, 4294967295]
EXPECT
stop_nbdkit "$pid"

# A layer without zero, trim and FUA of its own.
addcow-img create -q -f -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" --filter=nozero --filter=fua \
    --filter=multi-conn file addcow=vm.add-cow zeromode=none \
    fuamode=emulate multi-conn-mode=disable
can
diff can - <<'EXPECT'
flush=1 fua=1 trim=1 zero=1 fast=0 cache=1 multi=0 ro=0 rotational=0
block size [1, 512, 4294967295]
EXPECT
use
stop_nbdkit "$pid"

# A layer with fast zeroes: those that are not fast are refused at once,
# and then change nothing.
addcow-img create -q -i '' mem.add-cow 64K
start_nbdkit sock --filter="$addcow" memory 64K addcow=mem.add-cow
can
grep 'fast=1' can
nbdsh -u "$uri" -c '
h.pwrite(b"a" * 1000, 0)
h.zero(600, 100, nbd.CMD_FLAG_FAST_ZERO)
h.zero(600, 8000, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(1000, 0) == b"a" * 100 + bytes(600) + b"a" * 300
assert h.pread(600, 8000) == bytes(600)
'
stop_nbdkit "$pid"
addcow-img create -q -f -i '' mem.add-cow 64K
start_nbdkit sock --filter="$addcow" --filter=nozero memory 64K \
    addcow=mem.add-cow zeromode=notrim fastzeromode=ignore
nbdsh -u "$uri" -c 'h.pwrite(b"a" * 1000, 0); h.zero(600, 100)'
stop_nbdkit "$pid"

# Larger blocks than sectors cannot be.
addcow-img create -q -f -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" --filter=blocksize-policy file \
    addcow=vm.add-cow blocksize-minimum=4096 blocksize-preferred=4096 \
    2>stderr
if nbdsh -u "$uri" -c 'pass'; then exit 1; fi
stop_nbdkit "$pid"
grep -F 'vm.add-cow: the image takes no requests smaller than 4096' stderr

# Blocks as large as sectors can be, and are told.
addcow-img create -q -f -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" --filter=blocksize-policy file \
    addcow=vm.add-cow blocksize-minimum=512 blocksize-preferred=4096 \
    blocksize-maximum=1M
can
grep -xF 'block size [512, 4096, 1048576]' can
nbdsh -u "$uri" -c '
base = open("base.img", "rb").read()
h.pwrite(b"a" * 512, 512)
assert h.pread(65536, 0) == base[:512] + b"a" * 512 + base[1024:]
'
stop_nbdkit "$pid"

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A server with the backing file that answers with errors, and one that is
# slow: the errors reach the client as they are and touch nothing else, and
# what is written while the old data are still on their way stays.

source ./functions.sh
set -e
set -x

requires_filter error
requires_filter delay
source "$abs_srcdir/nbd-backing.sh"

size=$((1024 * 1024))
random_file base.img $size
fallocate -p -o 512K -l 64K base.img

### Errors.

cat > errors.py <<'PY'
import errno, os, sys
from nbd_client import *

uri, error, trigger = sys.argv[1:]
number = getattr(errno, error)
disk = bytearray(open("base.img", "rb").read())
h = connect(uri)
h.pwrite(b"a" * 512, 512)
disk[512:1024] = b"a" * 512
h.flush()
assert bits("vm.add-cow") == [1]

open(trigger, "w").close()
for _ in range(2):
    fails(number, lambda: h.pread(512, 0))
    fails(number, lambda: h.pread(100000, 300001))
    # One of its sectors would be enough.
    fails(number, lambda: h.pread(1000, 400))
    fails(number, lambda: h.pwrite(b"b" * 100, 2000))
    fails(number, lambda: h.pwrite(b"b" * 2000, 3000))
    fails(number, lambda: h.zero(100, 5000))
    assert h.pread(512, 512) == b"a" * 512
h.flush()
now = bits("vm.add-cow")
# Whole sectors of what failed may have been written; none in part.
assert not {0, 3, 5, 9} & set(now), now
h.pwrite(b"c" * 1024, 10240)
disk[10240:11264] = b"c" * 1024
assert h.pread(1024, 10240) == disk[10240:11264]
# Told to be zeroes, so not asked for.
assert h.pread(65536, 512 * 1024) == bytes(65536)
os.unlink(trigger)

got = content(h)
assert got[:3000] == disk[:3000]
assert got[5000:] == disk[5000:]
for sector in range(6, 9):
    at = sector * 512
    piece = got[at:at + 512]
    assert piece == disk[at:at + 512] or \
        sector in now and piece == b"b" * 512, sector
disk[:] = got
try_writes(h, disk, 1, 100)
h.shutdown()
PY

for error in EIO ENOMEM ENOSPC EPERM EINVAL; do
    start_base base.sock -r --filter=error file base.img \
        error-pread=$error error-pread-rate=100% \
        error-pread-file="$tmp/trigger"
    addcow-img create -q -f -b "$base_uri" vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow 2>log
    python errors.py "$uri" $error "$tmp/trigger"
    stop_nbdkit "$pid"
    stop_nbdkit "$base_pid"
    [ $error = ENOMEM ] ||
        grep -F "$base_uri: reading the backing file: " log
    # The server was there all the time.
    [ "$(losses log "$base_uri")" -eq 0 ]
done

# When only some fail, those alone do.
start_base base.sock -r --filter=error file base.img \
    error-pread=EIO error-pread-rate=30%
addcow-img create -q -f -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-backing="$base_uri" addcow-backing-format=raw
cat > some.py <<'PY'
import errno, random, sys
from nbd_client import *
base = open("base.img", "rb").read()

def client(number):
    r = random.Random(number)
    h = connect(sys.argv[1])
    good = bad = 0
    while good < 100 or bad < 10:
        n = r.choice([1, 512, 3000, 20000])
        at = r.randrange(len(base) - n + 1)
        try:
            assert h.pread(n, at) == base[at:at + n]
            good += 1
        except nbd.Error as ex:
            assert ex.errnum == errno.EIO, ex
            bad += 1
    h.shutdown()

in_parallel([lambda i=i: client(i) for i in range(4)])
PY
python some.py "$uri"
stop_nbdkit "$pid"
stop_nbdkit "$base_pid"

# Block status fails: then there are data everywhere.
start_base base.sock -r --filter=error file base.img \
    error-extents=EIO error-extents-rate=100%
addcow-img create -q -f -b "$base_uri" vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
cat > status.py <<'PY'
import sys
from nbd_client import *
h = connect(sys.argv[1])
disk = bytearray(open("base.img", "rb").read())
assert extents(h) == [(len(disk), DATA)]
assert content(h) == disk
try_writes(h, disk, 1, 100)
h.shutdown()
PY
python status.py "$uri"
stop_nbdkit "$pid"
stop_nbdkit "$base_pid"

### A slow one.

cat > slow.py <<'PY'
import random, sys, threading
from nbd_client import *

uri = sys.argv[1]
base = open("base.img", "rb").read()

# Each piece is read, all of it, and written while that read waits.
PIECE = 4096
COUNT = 60
reader, writer = connect(uri), connect(uri)
r = random.Random(5)
pieces = r.sample(range(len(base) // PIECE), COUNT)
disk = bytearray(base)
flying = []
for p in pieces:
    buf = nbd.Buffer(PIECE)
    flying.append((reader.aio_pread(buf, p * PIECE), p, buf))
# Sent, so that they are on their way when the others come.
while reader.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
    reader.poll(-1)
changes = []
for p in pieces:
    kind = r.choice(["whole", "part", "zero", "trim"])
    at, n = p * PIECE, PIECE
    if kind == "part":
        at, n = at + 100, PIECE - 300
    data = r.randbytes(n) if kind in ("whole", "part") else bytes(n)
    if kind == "zero":
        cookie = writer.aio_zero(n, at)
    elif kind == "trim":
        cookie = writer.aio_trim(n, at)
    else:
        cookie = writer.aio_pwrite(
            nbd.Buffer.from_bytearray(bytearray(data)), at)
    changes.append((cookie, at, data))
for cookie, at, data in changes:
    while not writer.aio_command_completed(cookie):
        writer.poll(-1)
    disk[at:at + len(data)] = data
    # From now on nobody sees anything else.
    if len(data) == PIECE:
        assert writer.pread(len(data), at) == data
for cookie, p, buf in flying:
    while not reader.aio_command_completed(cookie):
        reader.poll(-1)
    got = buf.to_bytearray()
    for i in range(0, PIECE, 512):
        at = p * PIECE + i
        assert got[i:i + 512] in (base[at:at + 512], disk[at:at + 512]), p
assert content(writer) == disk
reader.shutdown()
writer.shutdown()
PY

start_base base.sock -r --filter=delay file base.img rdelay=60ms
addcow-img create -q -f -b "$base_uri" vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
python slow.py "$uri"
stop_nbdkit "$pid"
stop_nbdkit "$base_pid"

# And one that is a little slow, under the model.
start_base base.sock -r --filter=delay file base.img rdelay=5ms \
    delay-extents=5ms
rm -f vm.*
addcow-img create -q -b "$base_uri" vm.add-cow
server=(env)
if [ -n "$_preload" ]; then server+=("LD_PRELOAD=$_preload"); fi
server+=("${VG[@]}" "$(type -P nbdkit)" "--filter=$addcow")
seed=${MODEL_SEED:-$RANDOM$RANDOM}
env tmp="$tmp" /usr/bin/python3 "$abs_srcdir/model.py" 3 "$seed" $size \
    base.img vm.add-cow "${server[@]}" file addcow=vm.add-cow \
    addcow-commit-interval=1
stop_nbdkit "$base_pid"

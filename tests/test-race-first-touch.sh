#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Two connections write to one unallocated sector, one of them in part and
# slowly.  What was acknowledged last, byte by byte, is what is there:
# completing the sector must not bring the backing file's data back.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_filter delay
requires nbdfuse --version
requires test -w /dev/fuse

cd "$tmp"
random_file base.img $((16 * 1024 * 1024))

cat > race.py <<'PY'
import sys, nbd

uri, base = sys.argv[1], open(sys.argv[2], "rb").read()

def connect():
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.connect_uri(uri)
    return h

slow, fast = connect(), connect()

def start(h, op):
    """Send OP and be sure that the server has received it: requests of
    one connection are received in order."""
    cookie = op(h)
    h.pread(1, len(base) - 1)
    return cookie

def finish(h, cookie):
    while not h.aio_command_completed(cookie):
        h.poll(-1)

def buf(b):
    return nbd.Buffer.from_bytearray(bytearray(b))

def case(name, sector, first, second):
    """FIRST starts, then SECOND is done and flushed, then FIRST ends.
    Both are (offset in the sector, data); None is zeroes."""
    def aio(h, change):
        off, data, n = change
        if data is None:
            return h.aio_zero(n, sector * 512 + off)
        return h.aio_pwrite(buf(data * n), sector * 512 + off)
    one = start(slow, lambda h: aio(h, first))
    two = start(fast, lambda h: aio(h, second))
    finish(fast, two)
    fast.flush()
    finish(slow, one)
    got = fast.pread(4 * 512, sector * 512)
    want = base[sector * 512 : sector * 512 + 4 * 512]
    def apply(w, change):
        off, data, n = change
        return w[:off] + (data or b"\0") * n + w[off + n :]
    # In either order: each byte that both wrote is of one of them.
    ok = [apply(apply(want, first), second), apply(apply(want, second), first)]
    assert got in ok, name
    return got

slow.pread(1, len(base) - 1)    # fast from now on

# Far from each other, so that no reading ahead makes the backing fast.
FAR = 2048

# A write over four sectors, in part in the first and last, and whole
# writes to each of those.
part = (100, b"a", 3 * 512)
case("tail", 0 * FAR, part, (3 * 512, b"b", 512))
case("head", 1 * FAR, part, (0, b"b", 512))
case("all", 2 * FAR, part, (0, b"b", 4 * 512))
# Within one sector.
case("inside", 3 * FAR, (10, b"a", 20), (0, b"b", 512))
case("two parts", 4 * FAR, (10, b"a", 20), (200, b"b", 20))
case("zero in part", 5 * FAR, (10, None, 20), (0, b"b", 512))
case("zero whole", 6 * FAR, (10, b"a", 20), (0, None, 512))
case("whole first", 7 * FAR, (0, b"a", 2 * 512), (30, b"b", 600))
slow.shutdown()
fast.shutdown()
PY

# A slow image: between the parts of the first write there is time for the
# second.
addcow-img create -b base.img one.add-cow
start_nbdkit one.sock --filter="$addcow" --filter=delay file \
    addcow=one.add-cow wdelay=300ms delay-zero=300ms
/usr/bin/python3 race.py "$uri" base.img
stop_nbdkit "$pid"

# A slow backing file: between reading and writing a sector there is.
mkdir mnt
start_nbdkit base.sock --filter=delay file base.img rdelay=300ms
nbdfuse mnt/base.img "$uri" &
fuse=$!
cleanup_fn "fusermount3 -u $tmp/mnt || :; wait $fuse"
for _ in {1..100}; do
    if [ -e mnt/base.img ]; then break; fi
    sleep 0.1
done
addcow-img create -b mnt/base.img two.add-cow
start_nbdkit two.sock --filter="$addcow" file addcow=two.add-cow
/usr/bin/python3 race.py "$uri" base.img
stop_nbdkit "$pid"

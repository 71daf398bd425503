#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A backing file over NBD is lost and comes back: as if nothing had been,
# when that takes less than the timeout, else with errors for what it alone
# has.  Another one in its place is not taken for it.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"

size=$((8 * 1024 * 1024))
random_file base.img $size
name="nbd+unix:///?socket=$tmp/base.sock"

start_it ()
{
    # nbdkit with threads can crash when a client left with requests.
    start_base base.sock -r -t 1 file "${1:-base.img}"
    # Without them it does not end while a client is there.
    cleanup_fn "stop_nbdkit $base_pid KILL"
}

kill_it ()
{
    stop_nbdkit "$base_pid" KILL
}

# new_overlay [PARAMETER...]: serve a new one, with messages in log.
new_overlay ()
{
    rm -f vm.* log
    addcow-img create -q -b "$name" vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow "$@" 2>log
}

# told LOSSES RETURNS: each once, however many requests there were; and the
# reasons why no connection could be made are not told again and again.
told ()
{
    [ "$(losses log "$name")" -eq "$1" ]
    [ "$(returns log "$name")" -eq "$2" ]
    [ "$(grep -cF "$name: cannot connect: " log)" -le $((2 * $1 + 3)) ]
}

### Many times under load, and soon back.

cat > load.py <<'PY'
"""load.py URI BASE-FILE STOP: read and write until the file STOP is there."""
import os, random, sys
from nbd_client import *

uri, base_file, stop = sys.argv[1:]
disk = bytearray(open(base_file, "rb").read())
CLIENTS = 4
PIECE = 16384

def client(number):
    # Each PIECE is one client's, so that it knows what is there.
    r = random.Random(number)
    mine = range(number * PIECE, len(disk), CLIENTS * PIECE)
    h = connect(uri)
    count = 0
    while not os.path.exists(stop):
        at, n = r.choice(mine) + r.randrange(PIECE), r.choice([1, 700, 9000])
        n = min(n, PIECE - at % PIECE)
        kind = r.choices(["read", "write", "zero", "status"], [60, 3, 1, 3])[0]
        if kind == "read":
            assert h.pread(n, at) == disk[at:at + n], (at, n)
        elif kind == "status":
            assert sum(length for length, _ in extents(h, n, at)) == n
        elif kind == "write":
            data = r.randbytes(n)
            h.pwrite(data, at)
            disk[at:at + n] = data
        else:
            h.zero(n, at)
            disk[at:at + n] = bytes(n)
        count += 1
    h.shutdown()
    print("client", number, "did", count)

in_parallel([lambda i=i: client(i) for i in range(CLIENTS)])
h = connect(uri)
assert content(h) == disk
h.shutdown()
PY

start_it
new_overlay addcow-backing-timeout=$((patience * 2))
rm -f stop
/usr/bin/python3 load.py "$uri" base.img stop &
load=$!
cleanup_fn "touch $tmp/stop; end $load"
for i in {1..8}; do
    kill_it
    wait_for has losses log "$name" "$i"
    start_it
    wait_for has returns log "$name" "$i"
done
touch stop
wait $load
cat log
told 8 8
[ "$(grep -cF "reading the backing file" log)" -eq 0 ]

# The loss is only seen when it matters; one that is back by then is not
# told to anybody as an error.
for i in {1..3}; do
    kill_it
    start_it
    nbdsh -u "$uri" -c 'h.pread(1 << 20, 1 << 20)'
done
stop_nbdkit "$pid"

### Gone for longer than requests wait.

# What works without the backing file, and what does not.  Sector 0 is
# allocated, and 8 to 15.
cat > without.py <<'PY'
import sys
from nbd_client import *
from errno import EIO

h = connect(sys.argv[1])
base = open("base.img", "rb").read()
before = bits("vm.add-cow")
at = int(sys.argv[2])           # not yet used
assert h.pread(512, 0) == b"a" * 512
assert h.pread(4000, 4100) == b"b" * 4000
h.pwrite(b"a" * 100, 200)
in_parallel([
    lambda: fails(EIO, lambda: connect(sys.argv[1]).pread(512, at)),
    lambda: fails(EIO, lambda: connect(sys.argv[1]).pread(100000, 0)),
    lambda: fails(EIO, lambda: connect(sys.argv[1]).pwrite(b"p" * 99, at)),
    lambda: fails(EIO, lambda: connect(sys.argv[1]).zero(99, at + 512)),
    lambda: fails(EIO, lambda: connect(sys.argv[1]).pread(1, len(base) - 1)),
])
# Whole sectors; nobody waits for those that do.
h.pwrite(b"w" * 1024, at + 2048)
h.zero(1024, at + 4096)
h.trim(512, at + 8192)
assert h.pread(1024, at + 2048) == b"w" * 1024
assert h.pread(1024, at + 4096) == bytes(1024)
h.flush()
now = [2048, 2560, 4096, 4608, 8192]
assert bits("vm.add-cow") == sorted(before + [(at + n) // 512 for n in now])
h.shutdown()
PY

# All that is in the model of what without.py did at the offsets given.
cat > with.py <<'PY'
import sys
from nbd_client import *

h = connect(sys.argv[1])
disk = bytearray(open("base.img", "rb").read())
disk[:512] = b"a" * 512
disk[4096:8192] = b"b" * 4096
for at in map(int, sys.argv[2:]):
    disk[at + 2048:at + 3072] = b"w" * 1024
    disk[at + 4096:at + 5120] = bytes(1024)
    disk[at + 8192:at + 8704] = bytes(512)
assert content(h) == disk
h.shutdown()
PY

new_overlay addcow-backing-timeout=$lost_seconds
nbdsh -u "$uri" -c '
h.pwrite(b"a" * 512, 0)
h.pwrite(b"b" * 4096, 4096)
h.flush()
'
kill_it
python without.py "$uri" 1000448
told 1 0
start_it
wait_for python with.py "$uri" 1000448
cat log
told 1 1
grep -F "$name: reading the backing file: Input/output error" log

# And again.
kill_it
python without.py "$uri" 2000384
start_it
wait_for python with.py "$uri" 1000448 2000384
told 2 2

### It accepts, and never answers.

kill -STOP "$base_pid"
cleanup_fn "kill -CONT $base_pid 2>/dev/null || :"
python without.py "$uri" 3000320
kill -CONT "$base_pid"
wait_for python with.py "$uri" 1000448 2000384 3000320
cat log
told 3 3

### Another one comes in its place.

kill_it
for i in "4000256 $((size - 512))" "5000192 $((size + 1))" "6000128 0"; do
    head -c "${i#* }" /dev/zero | tr '\0' x > other.img
    start_it other.img
    python without.py "$uri" "${i% *}"
    why="the server is refused: it has ${i#* } bytes now, and had $size"
    wait_for grep -F "$name: cannot connect: $why" log
    kill_it
done
cat log
start_it
wait_for python with.py "$uri" 1000448 2000384 3000320 4000256 5000192 \
    6000128
cat log
told 4 4
stop_nbdkit "$pid"

### The server ends while a request waits.

new_overlay addcow-backing-timeout=3
nbdsh -u "$uri" -c 'h.pread(512, 0)'
kill_it
nbdsh -u "$uri" -c 'h.pread(512, 1 << 20)' &
client=$!
cleanup_fn "end $client"
wait_for grep -F "$name: cannot connect: " log
start=$SECONDS
stop_nbdkit "$pid"
[ $((SECONDS - start)) -lt $((patience / 2)) ]
wait $client || :

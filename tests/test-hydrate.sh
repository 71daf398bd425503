#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Hydration: the image fills by itself, with what the disk has and no more
# data than that, until it stands alone.  What is written meanwhile stays,
# the backing file is closed then, and after a stop or a kill it goes on from
# what was committed.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-nbd --version
requires pgrep --version
requires_filter log
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/filling.sh"

# No multiple of 4096, and longer than the backing file.
size=$((5 * 1024 * 1024 + 1536))
random_file base.img $((4 * 1024 * 1024 + 700))
fallocate -p -o 1M -l 512K base.img
fallocate -p -o 2052K -l 4K base.img
dd if=/dev/zero of=base.img bs=64K seek=48 count=2 conv=notrunc status=none
cp base.img base.orig

cat > before.py <<'PY'
"""before.py URI: what a guest did before the disk is filled."""
import sys
from fill_client import *

h = connect(sys.argv[1])
disk = bytearray(file_bytes("base.img", h.get_size()))

def write(at, n):
    h.pwrite(b"w" * n, at)
    disk[at:at + n] = b"w" * n

write(0, 512)
write(10000, 5000)
write(300 * 1024 + 7, 3)
write(1024 * 1024 + 100, 100)           # in a hole
write(4 * 1024 * 1024, 1400)            # at the base's end
write(len(disk) - 100, 100)
for change, at, n in [
        (h.zero, 512 * 1024, 100000), (h.trim, 700 * 1024, 65536),
        (h.zero, 900 * 1024 + 9, 20), (h.trim, 950 * 1024 - 9, 9000)]:
    change(n, at)
    disk[at:at + n] = bytes(n)
h.flush()
h.shutdown()
with open("disk", "wb") as f:
    f.write(disk)
PY

cat > load.py <<'PY'
"""load.py URI STOP: read and write until the file STOP is there."""
import random, sys
from fill_client import *

uri, stop = sys.argv[1:]
disk = bytearray(file_bytes("disk"))
PIECE = 5000

def client(number):
    # Each PIECE is one client's, so that it knows what is there.
    r = random.Random(number)
    mine = range(number * PIECE, len(disk) - PIECE, 3 * PIECE)
    h = connect(uri)
    while not os.path.exists(stop):
        at, n = r.choice(mine), r.choice([1, 600, PIECE])
        kind = r.choices(["read", "write", "zero", "flush", "status"],
                         [50, 4, 1, 1, 4])[0]
        if kind == "read":
            assert h.pread(n, at) == disk[at:at + n], at
        elif kind == "flush":
            h.flush()
        elif kind == "status":
            assert sum(length for length, _ in extents(h, n, at)) == n
        else:
            piece = r.randbytes(n) if kind == "write" else bytes(n)
            if kind == "write":
                h.pwrite(piece, at)
            else:
                h.zero(n, at)
            disk[at:at + n] = piece
    h.shutdown()

in_parallel([lambda i=i: client(i) for i in range(3)])
with open("disk", "wb") as f:
    f.write(disk)
PY

cat > holes.py <<'PY'
"""holes.py: what no guest wrote to and is zeroes takes no room."""
from fill_client import *
K = 1024
for at, n in [(1028 * K, 508 * K), (2052 * K, 4 * K), (3072 * K, 128 * K),
              (512 * K, 96 * K), (700 * K, 64 * K), (4104 * K, 1000 * K)]:
    assert hole("vm.raw", at, n), (at, n, data("vm.raw"))
PY

cat > same.py <<'PY'
import sys
from fill_client import *
h = connect(sys.argv[1])
assert content(h) == file_bytes("disk")
assert extents(h)
h.shutdown()
PY

# fill [PARAMETER...]: serve vm.add-cow until it is filled.
fill ()
{
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-hydrate=true addcow-commit-interval=0 "$@" 2>log
    wait_for grep -F 'stands alone: ' log
    # On the disk by then.
    complete vm.add-cow true
}

# use_and_stop [COMMAND]: what stands alone is used on, and is a disk by
# itself.  COMMAND looks at the log.
use_and_stop ()
{
    mv vm.add-cow gone.add-cow
    python same.py "$uri"
    nbdsh -u "$uri" -c '
h.pwrite(b"s" * 700, 2000000)
h.zero(3000, 3000000)
h.trim(8192, 8192)
h.flush()
assert h.pread(700, 2000000) == b"s" * 700
assert h.pread(3000, 3000000) == bytes(3000)
assert h.pread(8192, 8192) == bytes(8192)
h.shutdown()
'
    cat > used.py <<'PY'
disk = bytearray(open("disk", "rb").read())
disk[2000000:2000700] = b"s" * 700
disk[3000000:3003000] = bytes(3000)
disk[8192:16384] = bytes(8192)
open("disk", "wb").write(disk)
PY
    python used.py
    python same.py "$uri"
    stop_nbdkit "$pid"
    cat log
    ${1:-alone log}
    cmp disk vm.raw
    cmp base.img base.orig
}

### From a file; nothing but its data is written.

for n in $size $((4 * 1024 * 1024)) $((4 * 1024 * 1024 - 512)); do
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow "$n"
    if [ "$n" -eq $size ]; then
        start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
        python before.py "$uri"
        stop_nbdkit "$pid"
    else
        head -c "$n" base.img > disk
    fi
    fill
    wait_for eval '! has_open "$pid" base.img'
    [ "$n" -ne $size ] || python holes.py
    mv base.img gone.img
    python same.py "$uri"
    mv gone.img base.img
    use_and_stop
done

# While a guest uses it, over when it stands alone.
rm -f vm.* stop
addcow-img create -q -b base.img vm.add-cow $size
head -c $size base.img > disk
truncate -s $size disk
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true 2>log
/usr/bin/python3 load.py "$uri" stop &
load=$!
cleanup_fn "touch $tmp/stop; end $load"
wait_for alone log
for _ in {1..20}; do
    kill -0 $load
    nbdsh -u "$uri" -c 'h.pread(65536, 0)'
done
touch stop
wait $load
use_and_stop

### From a server: the connection is closed.

start_base base.sock -r --filter=log file base.img logfile=base.log
rm -f vm.*
addcow-img create -q -b "$base_uri" vm.add-cow $size
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
python before.py "$uri"
stop_nbdkit "$pid"
fill
wait_for eval \
    '[ "$(grep -c Disconnect base.log)" -eq "$(grep -c Connect base.log)" ]'
# A hole is not read, nor what a guest wrote.
cat > asked.py <<'PY'
"""asked.py LOG BYTES [METADATA]: BYTES were read, none of them twice, and none
that METADATA has."""
import re, sys
from fill_client import *
was_read = []
for line in open(sys.argv[1]):
    m = re.search(r" Read id=\d+ offset=0x(\w+) count=0x(\w+)", line)
    if m:
        at, n = int(m[1], 16), int(m[2], 16)
        was_read.append((at, n))
was_read.sort()
for (at, n), (after, _) in zip(was_read, was_read[1:]):
    assert at + n <= after, (at, n, after)
got = sum(n for _, n in was_read)
assert got == int(sys.argv[2]), got
if len(sys.argv) > 3:
    again = set(sectors(*was_read)) & set(bits(sys.argv[3]))
    assert not again, sorted(again)[:10]
PY
stop_nbdkit "$base_pid" KILL
python holes.py
use_and_stop

### From a program of QEMU's: it ends.

qemu-img convert -f raw -O qcow2 base.img base.qcow2
rm -f vm.*
addcow-img create -q -b base.qcow2 -F qcow2 vm.add-cow $size
head -c $size base.img > disk
truncate -s $size disk
fill
wait_for eval '! pgrep -P "$pid" -f qemu-nbd'
use_and_stop

### From other overlays.

rm -f vm.* middle.* low.*
addcow-img create -q -b base.img low.add-cow $size
start_nbdkit low.sock --filter="$addcow" file addcow=low.add-cow
python before.py "$uri"
stop_nbdkit "$pid"
addcow-img create -q -b low.add-cow -F add-cow middle.add-cow
addcow-img create -q -b middle.add-cow -F add-cow vm.add-cow
fill
for name in base.img low.raw low.add-cow middle.raw middle.add-cow; do
    wait_for eval "! has_open $pid $name"
done
use_and_stop

### Without a backing file there is nothing to do.

alone_without ()
{
    [ "$(told log 'vm.raw stands alone: vm.add-cow is no longer needed')" \
      -eq 1 ]
}
for how in '' none; do
    rm -f vm.*
    if [ -z "$how" ]; then
        addcow-img create -q vm.add-cow $size
    else
        addcow-img create -q -b base.img vm.add-cow $size
    fi
    truncate -s 0 disk
    truncate -s $size disk
    fill ${how:+addcow-backing="$how"}
    [ "$(stat -c %b vm.raw)" -eq 0 ]
    use_and_stop alone_without
done

### It goes on where it was.

# Data in all of it, so that every byte is read once.
random_file base.img $((2 * 1024 * 1024))
cp base.img base.orig
for signal in TERM KILL; do
    rm -f vm.* base.log
    start_serial base.sock -r --filter=log file base.img logfile=base.log
    # With a format nobody looks what it begins like.
    addcow-img create -q -b "$base_uri" -F raw vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-hydrate=true addcow-hydrate-rate=400K \
        addcow-commit-interval=1 2>log
    wait_for has_bits vm.add-cow 512
    stop_nbdkit "$pid" $signal
    not_alone log
    done=$(bits vm.add-cow)
    [ "$done" -lt 4096 ]
    cp vm.add-cow before.add-cow
    complete vm.add-cow false
    cp base.img disk
    if [ $signal = TERM ]; then
        # All of what was read was kept.
        python asked.py base.log $((done * 512))
    fi
    stop_nbdkit "$base_pid" KILL

    rm base.log
    start_serial base.sock -r --filter=log file base.img logfile=base.log
    fill
    python same.py "$uri"
    stop_nbdkit "$pid"
    cmp disk vm.raw
    stop_nbdkit "$base_pid" KILL
    python asked.py base.log $(((4096 - done) * 512)) before.add-cow
done

### Without hydration, by what a guest does.

random_file base.img $((1024 * 1024 + 1024))
cat > all.py <<'PY'
"""all.py URI write|read|zero flush|wait|leave: all of the disk, in two
parts."""
import sys
from fill_client import *

h = connect(sys.argv[1])
disk = bytearray(file_bytes("base.img"))
half = len(disk) // 2 + 100
if sys.argv[2] == "write":
    disk[:half] = b"1" * half
    disk[half:] = b"2" * (len(disk) - half)
    h.pwrite(disk[:half], 0)
    h.pwrite(disk[half:], half)
elif sys.argv[2] == "read":
    assert h.pread(half, 0) == disk[:half]
    assert h.pread(len(disk) - half, half) == disk[half:]
else:
    h.zero(half, 0)
    h.trim(len(disk) - half, half)
    disk = bytes(len(disk))
def alone():
    if sys.argv[3] == "flush":
        h.flush()
    return "stands alone: " in open("log").read()
if sys.argv[3] != "leave":
    wait_for(alone)
h.shutdown()
with open("disk", "wb") as f:
    f.write(disk)
PY
# By a flush, by the interval, by the last one who leaves.
for kind in write zero read; do
    for how in "flush 0" "wait 1" "leave 0"; do
        # shellcheck disable=SC2086
        set -- $how
        rm -f vm.*
        addcow-img create -q -b base.img vm.add-cow
        start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
            addcow-on-read=true addcow-commit-interval="$2" 2>log
        python all.py "$uri" $kind "$1"
        # What is kept of what was read may be written later.
        if [ $kind != read ] || [ "$1" != leave ]; then
            wait_for alone log
            wait_for eval '! has_open "$pid" base.img'
            nbdsh -u "$uri" -c 'h.pwrite(b"x", 5); h.pread(65536, 0)'
            nbdsh -u "$uri" -c "
h.pwrite(open('disk', 'rb').read(1024), 0)"
        fi
        stop_nbdkit "$pid"
        alone log
        complete vm.add-cow true
        cmp disk vm.raw
    done
done

# One that stands alone already: it may be served on with all of this.
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true addcow-on-read=true addcow-on-cache=true 2>log
nbdsh -u "$uri" -c "
assert h.pread(h.get_size(), 0) == open('disk', 'rb').read()
h.cache(h.get_size(), 0)
h.pwrite(b'x' * 10, 10)
h.flush()
"
wait_for alone log
stop_nbdkit "$pid"

# Somebody waits for a server that does not answer, for what is in the image
# by now: that is what he gets, and nobody waits for the server any more.
cat > held.py <<'PY'
import sys
from fill_client import *

reader, writer = connect(sys.argv[1]), connect(sys.argv[1])
base = file_bytes("base.img")
buf = nbd.Buffer(65536)
touch("hold")
reading = start(reader, lambda h: h.aio_pread(buf, 0))
wait_for(held)
os.unlink("hold")
writer.pwrite(b"w" * len(base), 0)
assert not finished(reader, [reading])
flushing = start(writer, lambda h: h.aio_flush())
finish(writer, flushing)
assert len(bits("vm.add-cow")) == len(base) // SECTOR
finish(reader, reading)
assert buf.to_bytearray() == b"w" * 65536
def alone():
    writer.flush()
    return "stands alone" in open("log").read()
wait_for(alone)
assert writer.pread(len(base), 0) == b"w" * len(base)
reader.shutdown()
writer.shutdown()
PY
for interval in 0 1; do
    gated reads base.img
    start_base base.sock -r "${plugin[@]}"
    rm -f vm.*
    addcow-img create -q -b "$base_uri" -F raw vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-commit-interval=$interval 2>log
    cleanup_fn "touch $tmp/go"
    python held.py "$uri"
    stop_nbdkit "$pid"
    alone log
    # Its client has left with a request under way.
    touch go
    stop_nbdkit "$base_pid" KILL
done

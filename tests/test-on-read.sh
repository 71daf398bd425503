#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Copy-on-read: what was read from the backing file is in the image then,
# and nothing else is; zeroes take no room there; it can be switched on and
# off; and no reader gets an error because of it.

source ./functions.sh
set -e
set -x

requires_filter delay
requires_filter error
requires_filter noparallel
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/filling.sh"

size=$((1024 * 1024))
random_file base.img $size
fallocate -p -o 256K -l 64K base.img
dd if=/dev/zero of=base.img bs=64K seek=6 count=1 conv=notrunc status=none
# Zeroes, but not of a whole block.
dd if=/dev/zero of=base.img bs=512 seek=1001 count=1 conv=notrunc status=none
truncate -s $((size + 700)) base.img

# serve [PARAMETER...]: a new overlay of base.img.
serve ()
{
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow "$@" 2>log
}

### What is read is kept, and nothing else.

cat > exact.py <<'PY'
import sys
from fill_client import *

h = connect(sys.argv[1])
size = h.get_size()
disk = bytearray(file_bytes("base.img", size))
done = []

def read(at, n):
    assert h.pread(n, at) == disk[at:at + n]
    done.append((at, n))

# In whole sectors, in parts of one, of two and of many.
read(0, 512)
read(2048, 4096)
read(10000, 1)
read(20479, 2)
read(30001, 7000)
bits_become(h, sectors(*done))
# Over some that are in the image: written, in whole and in part, and read.
for at, n in (50 * 1024, 512), (52 * 1024 + 100, 200), (60 * 1024 - 10, 20):
    h.pwrite(b"w" * n, at)
    disk[at:at + n] = b"w" * n
    done.append((at, n))
read(48 * 1024 + 300, 16 * 1024)
read(0, 3000)
# Zeroes: a hole, data, those that are no block; and at the edges of them.
read(256 * 1024 - 100, 8192)
read(384 * 1024 + 4096, 32768)
read(384 * 1024 - 5000, 9096)
read(1001 * 512, 512)
# The end of the backing file and of the disk.
read(size - 1200, 1200)
bits_become(h, sectors(*done))
# Looking at it, and requests to cache, are no reading.
extents(h)
h.cache(size, 0)
bits_become(h, sectors(*done))
for at, n in (256 * 1024, 4096), (384 * 1024, 36864):
    assert hole("vm.raw", at, n), (at, n, data("vm.raw"))
assert content(h) == disk
bits_become(h, range(size // 512))
# Only a block of which but a part was read before has data.
for at, n in (264 * 1024, 56 * 1024), (384 * 1024, 65536):
    assert hole("vm.raw", at, n), (at, n, data("vm.raw"))
h.shutdown()
with open("disk", "wb") as f:
    f.write(disk)
PY
cat > image.py <<'PY'
from fill_client import *
check_image(file_bytes("disk"), file_bytes("base.img"))
PY

for options in '' '--filter=noparallel serialize=connections' \
    '--filter=noparallel serialize=all-requests'; do
    # shellcheck disable=SC2086
    set -- $options
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow
    start_nbdkit sock --filter="$addcow" ${1:+"$1"} file ${2:+"$2"} \
        addcow=vm.add-cow addcow-on-read=true 2>log
    python exact.py "$uri"
    stop_nbdkit "$pid"
    cat log
    cmp disk vm.raw
    alone log
done

# The same of a server, of which nothing is needed any more that was read.
start_base base.sock -r file base.img
rm -f vm.*
addcow-img create -q -b "$base_uri" vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-on-read=true addcow-backing-timeout=$lost_seconds 2>log
cat > half.py <<'PY'
import errno, sys
from fill_client import *

h = connect(sys.argv[1])
half = 512 * 1024
base = file_bytes("base.img")
if sys.argv[2] == "fill":
    h.pread(half - 99, 0)
    bits_become(h, range(half // 512))
else:
    assert h.pread(half, 0) == base[:half]
    h.pwrite(b"w" * 100, 1000)
    assert h.pread(100, 1000) == b"w" * 100
    fails(errno.EIO, lambda: h.pread(512, half))
h.shutdown()
PY
python half.py "$uri" fill
stop_nbdkit "$base_pid" KILL
python half.py "$uri" use
stop_nbdkit "$pid"
cat log

### Nothing is kept unless that is asked for.

cat > nothing.py <<'PY'
import os, sys
from fill_client import *
h = connect(sys.argv[1])
assert content(h) == file_bytes("base.img", h.get_size())
h.flush()
h.shutdown()
PY
for how in '' addcow-on-read=false addcow-on-read=0 \
    addcow-on-read="$tmp/switch" addcow-on-cache=true; do
    serve ${how:+"$how"}
    python nothing.py "$uri"
    stop_nbdkit "$pid"
    [ "$(bits vm.add-cow)" -eq 0 ]
    [ "$(stat -c %b vm.raw)" -eq 0 ]
done

# Switched on and off.
serve addcow-on-read="$tmp/switch"
cat > switch.py <<'PY'
import sys
from fill_client import *
h = connect(sys.argv[1])
want = []
for i in range(3):
    h.pread(512, 4096 * i)
    bits_become(h, want)
    touch("switch")
    h.pread(512, 4096 * i + 1024)
    want.append(8 * i + 2)
    bits_become(h, want)
    os.unlink("switch")
h.pread(65536, 0)
bits_become(h, want)
h.shutdown()
PY
python switch.py "$uri"
stop_nbdkit "$pid"
[ "$(bits vm.add-cow)" -eq 3 ]

### What waits to be written is written when the server stops.

random_file large.img $((12 * 1024 * 1024))
cat > much.py <<'PY'
"""More than may wait at a time."""
import sys
from fill_client import *
base = file_bytes("large.img")
half = len(base) // 2

def client(number):
    h = connect(sys.argv[1])
    for at in range(number * 65536, half, 3 * 65536):
        assert h.pread(65536, at) == base[at:at + 65536]
    # The same as another one at the same time.
    assert h.pread(65536, half) == base[half:half + 65536]
    h.shutdown()

in_parallel([lambda i=i: client(i) for i in range(3)])
PY
# slow_image BASE SECONDS: a new overlay of BASE, whose image takes so long for
# a write, which a thread does: without multi-conn it would be the reader.
slow_image ()
{
    local bytes
    bytes=$(stat -c %s "$1")
    rm -f vm.*
    addcow-img create -q -b "$1" -i '' vm.add-cow
    truncate -s "$bytes" vm.raw
    # shellcheck disable=SC2016 # for the plugin
    start_nbdkit sock --filter="$addcow" eval addcow=vm.add-cow \
        addcow-on-read=true addcow-commit-interval=1 \
        thread_model='echo parallel' get_size="echo $bytes" \
        pread='dd if=$tmp/vm.raw bs=64K skip=$4 count=$3 \
            iflag=skip_bytes,count_bytes status=none' \
        can_write='exit 0' \
        pwrite="sleep $2;"'dd of=$tmp/vm.raw bs=64K seek=$4 \
            oflag=seek_bytes iflag=fullblock conv=notrunc status=none' \
        can_flush='exit 0' flush='exit 0' can_multi_conn='exit 0' 2>log
}

cat > large.py <<'PY'
from fill_client import *
base = file_bytes("large.img")
check_image(base, base)
PY

slow_image large.img 0.03
python much.py "$uri"
stop_nbdkit "$pid"
[ "$(bits vm.add-cow)" -eq $((6 * 1024 * 2 + 128)) ]
python large.py

# Killed, it loses no more than that; whatever is allocated is right.
slow_image large.img 0.03
python much.py "$uri"
stop_nbdkit "$pid" KILL
python large.py

# The last there was to be kept: that the disk stands alone is told then.
random_file small.img 65536
slow_image small.img 1
nbdsh -u "$uri" -c '
assert h.pread(65536, 0) == open("small.img", "rb").read()'
stop_nbdkit "$pid"
cat log
cmp small.img vm.raw
complete vm.add-cow true
grep -F 'stands alone: vm.add-cow and the backing file are no longer' log

### The image fails: that is no matter of the reader's.

cat > errors.py <<'PY'
import sys
from fill_client import *
h = connect(sys.argv[1])
base = file_bytes("base.img")
touch("trigger")
for _ in range(3):
    assert h.pread(10000, 1000) == base[1000:11000]
    h.flush()
assert h.pread(65536, 256 * 1024) == bytes(65536)
assert bits("vm.add-cow") == []
# What was tried meanwhile is over then, one way or the other.
os.unlink("trigger")
def kept():
    assert h.pread(10000, 1000) == base[1000:11000]
    h.flush()
    return set(sectors((1000, 10000))) <= set(bits("vm.add-cow"))
wait_for(kept)
h.shutdown()
PY
for options in ENOSPC EIO 'EIO --filter=noparallel serialize=connections'; do
    # shellcheck disable=SC2086
    set -- $options
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow
    start_nbdkit sock --filter="$addcow" --filter=error ${2:+"$2"} file \
        ${3:+"$3"} addcow=vm.add-cow addcow-on-read=true \
        error-pwrite="$1" error-pwrite-rate=100% \
        error-pwrite-file="$tmp/trigger" \
        error-zero="$1" error-zero-rate=100% \
        error-zero-file="$tmp/trigger" 2>log
    python errors.py "$uri"
    stop_nbdkit "$pid"
    cat log
done
# And when it still does when the server stops.
touch trigger
rm -f vm.*
addcow-img create -q -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" --filter=error file \
    addcow=vm.add-cow addcow-on-read=true error-pwrite=EIO \
    error-pwrite-rate=100% error-pwrite-file="$tmp/trigger"
python nothing.py "$uri"
stop_nbdkit "$pid"

### Where nothing can be written, it is not offered.

for how in true "$tmp/switch"; do
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow
    fails_with addcow-on-read nbdkit -r -U "$tmp/no" --filter="$addcow" \
        file addcow=vm.add-cow addcow-on-read="$how" --run true
done
start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow \
    addcow-on-read=false
python nothing.py "$uri"
stop_nbdkit "$pid"
for value in '' maybe 2 switch ./switch; do
    fails_with "could not decipher boolean ($value)" nbdkit -U "$tmp/no" \
        --filter="$addcow" file addcow=vm.add-cow addcow-on-read="$value" \
        --run true
done

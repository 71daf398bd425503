#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Cache requests fill: when one is answered its range is in the image, and
# nothing else; one over all of the disk makes it stand alone.

source ./functions.sh
set -e
set -x

requires_filter error
requires_filter noparallel
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/filling.sh"

size=$((1024 * 1024))
random_file base.img $size
fallocate -p -o 256K -l 64K base.img
dd if=/dev/zero of=base.img bs=64K seek=6 count=1 conv=notrunc status=none
truncate -s $((size - 700)) base.img

### What was asked for is there with the answer, and nothing else.

cat > exact.py <<'PY'
import sys
from fill_client import *

h = connect(sys.argv[1])
size = h.get_size()
disk = bytearray(file_bytes("base.img", size))
done = []

def is_kept():
    h.flush()
    got, want = bits("vm.add-cow"), sectors(*done)
    assert got == want, set(got) ^ set(want)

def cache(at, n):
    h.cache(n, at)
    done.append((at, n))
    is_kept()

def write(at, n):
    h.pwrite(b"w" * n, at)
    disk[at:at + n] = b"w" * n
    done.append((at, n))

cache(0, 512)
cache(2048, 4096)
cache(10000, 1)
cache(20479, 2)
cache(30001, 7000)
# Over what is there.
write(50 * 1024, 512)
write(52 * 1024 + 100, 200)
write(60 * 1024 - 10, 20)
cache(48 * 1024 + 300, 16 * 1024)
cache(48 * 1024, 4096)
# Zeroes; the end of the backing file and of the disk.
cache(256 * 1024 - 100, 8192)
cache(384 * 1024 - 5000, 5000 + 32768)
assert hole("vm.raw", 256 * 1024, 4096)
assert hole("vm.raw", 384 * 1024, 32768), data("vm.raw")
cache(size - 2000, 2000)
# To read keeps nothing.
assert content(h) == disk
is_kept()
# All of it.
cache(0, size)
# Only a block of which but a part was asked for before has data.
for at, n in (264 * 1024, 56 * 1024), (384 * 1024, 65536):
    assert hole("vm.raw", at, n), (at, n, data("vm.raw"))
assert content(h) == disk
# And once more.
h.cache(size, 0)
h.pwrite(b"x" * 100, 1000)
disk[1000:1100] = b"x" * 100
h.cache(size, 0)
assert content(h) == disk
h.shutdown()
with open("disk", "wb") as f:
    f.write(disk)
PY

# What is left is the disk, which needs nothing else.
stood_alone ()
{
    cat log
    alone log
    complete vm.add-cow true
    cmp disk vm.raw
}

for options in '' '--filter=noparallel serialize=connections' \
    '--filter=noparallel serialize=all-requests'; do
    # shellcheck disable=SC2086
    set -- $options
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow $size
    start_nbdkit sock --filter="$addcow" ${1:+"$1"} file ${2:+"$2"} \
        addcow=vm.add-cow addcow-on-cache=true 2>log
    python exact.py "$uri"
    wait_for alone log
    wait_for eval '! has_open "$pid" base.img'
    stop_nbdkit "$pid"
    stood_alone
done

# The backing file on a server: it may go then.
start_base base.sock -r file base.img
rm -f vm.*
addcow-img create -q -b "$base_uri" vm.add-cow $size
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-on-cache=true addcow-backing-timeout=$lost_seconds 2>log
python exact.py "$uri"
wait_for alone log
stop_nbdkit "$base_pid" KILL
nbdsh -u "$uri" -c "
assert h.pread($size, 0) == open('disk', 'rb').read()"
stop_nbdkit "$pid"
stood_alone

### Many at a time, over each other, and between writes.

cat > many.py <<'PY'
import random, sys
from fill_client import *

uri = sys.argv[1]
disk = bytearray(file_bytes("base.img", int(sys.argv[2])))
PIECE = 4000

def client(number):
    # Each PIECE is one client's, so that it knows what is there.
    r = random.Random(number)
    mine = range(number * PIECE, len(disk) - PIECE, 4 * PIECE)
    h = connect(uri)
    for _ in range(150):
        n = r.choice([1, 512, 5000, 100000])
        h.cache(n, r.randrange(len(disk) - n + 1))
        at, n = r.choice(mine), r.choice([10, 600, PIECE])
        content = r.randbytes(n)
        h.pwrite(content, at)
        disk[at:at + n] = content
        at = r.choice(mine)
        assert h.pread(PIECE, at) == disk[at:at + PIECE]
    h.shutdown()

in_parallel([lambda i=i: client(i) for i in range(4)])
with open("disk", "wb") as f:
    f.write(disk)
PY
cat > image.py <<'PY'
from fill_client import *
check_image(file_bytes("disk"), file_bytes("base.img"))
PY
rm -f vm.*
addcow-img create -q -b base.img vm.add-cow $size
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-on-cache=true
python many.py "$uri" $size
stop_nbdkit "$pid"
python image.py

### Nothing is kept unless that is asked for.

cat > nothing.py <<'PY'
import sys
from fill_client import *
h = connect(sys.argv[1])
h.cache(h.get_size(), 0)
assert content(h) == file_bytes("base.img", h.get_size())
h.flush()
h.shutdown()
PY
for how in '' addcow-on-cache=false addcow-on-cache=0; do
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow $size
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        ${how:+"$how"}
    python nothing.py "$uri"
    stop_nbdkit "$pid"
    [ "$(bits vm.add-cow)" -eq 0 ]
    [ "$(stat -c %b vm.raw)" -eq 0 ]
done

### Errors.

# What could not be filled is not allocated, and can be asked for again.
cat > errors.py <<'PY'
import errno, sys
from fill_client import *
h = connect(sys.argv[1])
number = getattr(errno, sys.argv[2])
disk = file_bytes("base.img", h.get_size())
touch("trigger")
fails(number, lambda: h.cache(10000, 1000))
fails(number, lambda: h.cache(len(disk), 0))
h.flush()
got = bits("vm.add-cow")
# What is no data could be filled.
assert not set(got) & set(sectors((0, 256 * 1024), (512 * 1024, 500000)))
os.unlink("trigger")
assert content(h) == disk
h.cache(10000, 1000)
h.flush()
assert set(sectors((1000, 10000))) <= set(bits("vm.add-cow"))
h.cache(len(disk), 0)
assert content(h) == disk
h.shutdown()
PY
for error in ENOSPC EIO; do
    # Writing the image.
    rm -f vm.* trigger
    addcow-img create -q -b base.img vm.add-cow $size
    start_nbdkit sock --filter="$addcow" --filter=error file \
        addcow=vm.add-cow addcow-on-cache=true \
        error-pwrite=$error error-pwrite-rate=100% \
        error-pwrite-file="$tmp/trigger" 2>log
    python errors.py "$uri" $error
    stop_nbdkit "$pid"
    cat log
    alone log
    # Reading the backing file.
    start_base base.sock -r --filter=error file base.img \
        error-pread=$error error-pread-rate=100% \
        error-pread-file="$tmp/trigger"
    rm -f vm.*
    addcow-img create -q -b "$base_uri" vm.add-cow $size
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-on-cache=true 2>log
    python errors.py "$uri" $error
    stop_nbdkit "$pid"
    stop_nbdkit "$base_pid"
    cat log
    alone log
    grep -F "$base_uri: reading the backing file: " log
done

### Where nothing can be written, it is not offered.

rm -f vm.*
addcow-img create -q -b base.img vm.add-cow $size
fails_with addcow-on-cache nbdkit -r -U "$tmp/no" --filter="$addcow" \
    file addcow=vm.add-cow addcow-on-cache=true --run true
start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow \
    addcow-on-cache=false
python nothing.py "$uri"
stop_nbdkit "$pid"
for value in '' maybe 2 "$tmp/switch"; do
    fails_with "could not decipher boolean ($value)" nbdkit -U "$tmp/no" \
        --filter="$addcow" file addcow=vm.add-cow addcow-on-cache="$value" \
        --run true
done

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img stream is interrupted, killed, loses its backing file or has no
# more space: the disk is what it was, what was filled is kept, and the next
# one goes on from there.

source ./functions.sh
set -e
set -x

requires_filter log
requires_filter error
requires_filter delay
requires prlimit --version
requires env --default-signal=INT true
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/stream.sh"

size=$((2 * 1024 * 1024))
random_file base.img $size
fallocate -p -o $((size / 2)) -l 100K base.img
cp base.img base.copy

cat > write.py <<'PY'
"""Something that must stay, all over the disk."""
import random, sys
import nbd

disk = bytearray(open("base.img", "rb").read())
r = random.Random(1)
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for _ in range(40):
    n = r.randrange(1, 3000)
    at = r.randrange(len(disk) - n)
    data = r.randbytes(n)
    h.pwrite(data, at)
    disk[at:at + n] = data
h.trim(100000, 333333)
disk[333333:433333] = bytes(100000)
h.shutdown()
open("disk", "wb").write(disk)
PY

# An overlay to begin with, of which old.bits are allocated.
addcow-img create -q -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
python write.py "$uri"
stop_nbdkit "$pid"
cp --sparse=always vm.raw old.raw
cp vm.add-cow old.add-cow
nr_old=$(nr_allocated)

# begin [BACKING]: from there, with another backing file perhaps.
begin ()
{
    rm -f vm.*
    cp old.add-cow vm.add-cow
    cp --sparse=always old.raw vm.raw
    blocks=$(stat -c %b vm.raw)
    if [ -n "$1" ]; then
        python - "$1" <<'PY'
import sys
from addcow_format import *
with open("vm.add-cow", "r+b") as f:
    f.seek(BACKING_AT)
    # With the hint it is not looked what it begins like.
    name = sys.argv[1].encode() + b"\0format=raw\0"
    f.write(name.ljust(1024, b"\0"))
PY
    fi
}

# has_filled: something more is in the image, or it has ended.
has_filled ()
{
    [ "$(stat -c %b vm.raw)" -gt $((blocks + 100)) ] ||
        ! kill -0 $streamer
}

# A part was filled, not all.
partly ()
{
    local n
    n=$(nr_allocated)
    [ "$n" -gt "$nr_old" ]
    [ "$n" -lt $((size / 512)) ]
    addcow-img info vm.add-cow | grep -x "complete: false"
    served
}

# goes_on [BACKING]: what was begun comes to its end.
goes_on ()
{
    addcow-img stream vm.add-cow >out 2>err
    alone "${1:-base.img}"
    cmp base.img base.copy
}

### Signals.

interrupted="addcow-img: vm.add-cow: interrupted: run it again to go on"
for signal in INT TERM HUP QUIT; do
    begin
    start_stream --rate=1M
    wait_for has_filled
    kill -s $signal $streamer
    ends 1
    [ ! -s out ]
    echo "$interrupted" | cmp - err
    partly
done
goes_on

# One that cannot be caught; twice, as the first may come before anything was
# committed.
begin
for i in 1 2; do
    start_stream --rate=1M
    blocks=$(stat -c %b vm.raw)
    wait_for has_filled
    kill -KILL $streamer
    ends 137
    addcow-img info vm.add-cow | grep -x "in use: false"
    served
done
goes_on

# How far it is; and meanwhile nobody else may have it.
begin
start_stream --rate=512K
wait_for has_filled
kill -USR1 $streamer
wait_for grep -E '^    \([0-9]+\.[0-9]+/100%\) .* of 2 MiB, ' err
kill -STOP $streamer
addcow-img info vm.add-cow | grep -x "in use: true"
in_use="addcow-img: vm.add-cow: in use by another process"
fails_with "$in_use" addcow-img stream vm.add-cow
for options in '' -r; do
    # shellcheck disable=SC2086
    fails_in_time "vm.add-cow is in use by another process" \
        serve $options file addcow=vm.add-cow
done
# Nor the image, by itself.
metadata other.add-cow size=$size image=vm.raw
fails_with "vm.raw: in use by another process" \
    addcow-img stream other.add-cow
kill -CONT $streamer
ends 0
: > err
alone base.img

# And when they have it, it does not.
begin
for options in '' -r; do
    # shellcheck disable=SC2086
    start_nbdkit sock $options --filter="$addcow" file addcow=vm.add-cow
    keep
    fails_with "$in_use" addcow-img stream vm.add-cow
    [ "$(cat "$tmp/stderr")" = "$in_use" ]
    kept
    stop_nbdkit "$pid"
done
goes_on

### What was filled is not read again.

cat > disjoint.py <<'PY'
"""disjoint.py LOG: what is allocated was not read."""
import re, sys
from nbd_client import *

allocated = set(bits("vm.add-cow"))
count = 0
for line in open(sys.argv[1]):
    m = re.search(r" Read id=\d+ offset=0x(\w+) count=0x(\w+)", line)
    if m:
        at, n = int(m[1], 16), int(m[2], 16)
        count += n
        if len(sys.argv) > 2:
            again = allocated & set(range(at // 512, (at + n - 1) // 512 + 1))
            assert not again, sorted(again)
print("read", count)
assert count
PY
start_base base.sock -r --filter=log file base.img logfile="$PWD/1.log"
begin "$base_uri"
start_stream --rate=1M
wait_for has_filled
kill -TERM $streamer
ends 1
stop_nbdkit "$base_pid"
python disjoint.py 1.log
cp vm.add-cow 1.add-cow
start_base base.sock -r --filter=log file base.img logfile="$PWD/2.log"
partly
stop_nbdkit "$base_pid"
start_base base.sock -r --filter=log file base.img logfile="$PWD/2.log"
goes_on "$base_uri"
stop_nbdkit "$base_pid"
cp 1.add-cow vm.add-cow
python disjoint.py 2.log again

### The backing file fails.

# In the middle, and from the beginning; when it is well again, it goes on.
start_base base.sock -r --filter=error --filter=delay file base.img \
    error-pread=EIO error-pread-rate=100% error-pread-file="$PWD/fail" \
    rdelay=10ms
begin "$base_uri"
start_stream --rate=1M
wait_for has_filled
: > fail
ends 1
[ ! -s out ]
echo "addcow-img: $base_uri: Input/output error" | cmp - err
fails_with "addcow-img: $base_uri: Input/output error" \
    addcow-img stream -q vm.add-cow
rm fail
partly
goes_on "$base_uri"

# It is gone when it is to begin, and goes in the middle.
begin "$base_uri"
start_stream --rate=1M
wait_for has_filled
stop_nbdkit "$base_pid" KILL
kill -TERM $streamer
ends 1
tail -n 1 err | grep -xF "$interrupted"
keep
fails_with "addcow-img: $base_uri: " addcow-img stream vm.add-cow
kept
start_base base.sock -r file base.img
partly
goes_on "$base_uri"
stop_nbdkit "$base_pid"

# One that does not answer.
start_base base.sock -r file base.img
cleanup_fn "kill -CONT $base_pid 2>/dev/null || :"
begin "$base_uri"
start_stream --rate=1M
wait_for has_filled
kill -STOP "$base_pid"
kill -TERM $streamer
ends 1
tail -n 1 err | grep -xF "$interrupted"
kill -CONT "$base_pid"
partly

goes_on "$base_uri"
stop_nbdkit "$base_pid"

# Nor when it begins: there is nothing to be committed then.
cat > silent.py <<'PY'
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
s.bind(sys.argv[1])
s.listen()
connection = s.accept()
open(sys.argv[2], "w").close()
connection[0].recv(1)
PY
/usr/bin/python3 silent.py "$tmp/base.sock" "$tmp/accepted" &
silent=$!
cleanup_fn "end $silent"
wait_for test -S "$tmp/base.sock"
begin "$base_uri"
rm out err
keep
start_stream
wait_for test -e "$tmp/accepted"
kill -TERM $streamer
ends 143
rm out err
kept

### No space.

# What fits is kept; nothing of what was there before is lost.
begin
RUN=(prlimit --fsize=$((size / 2)))
fails_with "vm.raw: File too large" addcow-img stream vm.add-cow
RUN=()
partly
goes_on

# The bits have no room either.
begin
RUN=(prlimit --fsize=2048)
fails_with ": File too large" addcow-img stream vm.add-cow
RUN=()
served
goes_on

if [ -n "$root" ] && mkdir small &&
        mount -t tmpfs -o size=$((size / 2)) addcow-test small; then
    cleanup_fn "umount $tmp/t/small"
    begin
    cp --sparse=always old.raw small/vm.raw
    rm vm.raw
    ln -s small/vm.raw .
    fails_with "vm.raw: No space left on device" addcow-img stream vm.add-cow
    # Nor when it is tried again.
    fails_with "vm.raw: No space left on device" addcow-img stream vm.add-cow
    partly
    mount -o remount,size=$((size * 2)) small
    goes_on
    rm vm.raw
fi

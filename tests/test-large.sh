#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An overlay of 8 TiB: it opens and is used like a small one, takes less
# than 4 MiB more of the server's memory until then, no hole of its
# metadata file is read, and offsets do not wrap.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires strace --version
requires_filter nofilter
cd "$tmp"
requires truncate -s 8T big
random_file base.img 1048576
addcow-img create -q -b base.img vm.add-cow 8T
[ "$(stat -c %s vm.add-cow)" -eq $((2068 + 2 * 1024 * 1024 * 1024)) ]
[ "$(du -k vm.add-cow | cut -f1)" -le 8 ]

memory ()
{
    nbdsh -u "$uri" -c 'h.pread(512, 0)'
    awk '/^VmRSS/ { print $2 }' "/proc/$pid/status"
}
start_nbdkit plain --filter=nofilter file vm.raw
plain=$(memory)
stop_nbdkit "$pid"
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
ours=$(memory)
stop_nbdkit "$pid"
if [ -z "$ADDCOW_VALGRIND$SANITIZER" ]; then
    [ $((ours - plain)) -lt 4096 ]
fi

cat > do.py <<'PY'
import sys, nbd
T = 1 << 40
base = open("base.img", "rb").read()
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
assert h.get_size() == 8 * T
places = [0, 4 * T - 3, 5 * T + 4097, 8 * T - 1000]
for i, at in enumerate(places):
    h.pwrite(bytes([i + 1]) * 1000, at)
# The largest counts there are, rounding out past 4 GiB.
h.zero(2 ** 32 - 1, T + 1)
h.trim(2 ** 32 - 512, 2 * T)
h.flush()
for i, at in enumerate(places):
    assert h.pread(1000, at) == bytes([i + 1]) * 1000
assert h.pread(1024 * 1024 - 1000, 1000) == base[1000:]
assert h.pread(1000, 7 * T) == bytes(1000)
got = []
def status(context, start, entries, err):
    got.extend(entries)
    return 0
h.block_status(2 ** 32 - 512, T, status)
# The first block has the completed sector in it.
assert got == [4096, 0, 2 ** 32 - 512 - 4096, 3], got
# Partial sectors at both ends came from the backing file.
assert h.pread(2, T + 2 ** 32 - 1) == bytes(2)
h.shutdown()
PY
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
/usr/bin/python3 do.py "$uri"
stop_nbdkit "$pid"

cat > check.py <<'PY'
T = 1 << 40
def bits(f, sector, n):
    """Whole bytes of the bitmap."""
    f.seek(2068 + sector // 8)
    return f.read(n // 8)
with open("vm.add-cow", "rb") as f:
    assert bits(f, 0, 16) == b"\x03\x00"
    assert bits(f, (4 * T) // 512 - 8, 16) == b"\x80\x03"
    assert bits(f, (8 * T) // 512 - 8, 8) == b"\xc0"
    # T + 1 and on: 2^32 bytes in part of the first and last sector.
    assert bits(f, T // 512, 1 << 23) == b"\xff" * (1 << 20)
    assert bits(f, T // 512 + (1 << 23), 8) == b"\x00"
    assert bits(f, 2 * T // 512, (1 << 23) - 8) == b"\xff" * ((1 << 20) - 1)
    assert bits(f, 2 * T // 512 + (1 << 23) - 8, 8) == b"\x7f"
PY
/usr/bin/python3 check.py

# Once more, and no more of the metadata file is read than what has data.
if [ -z "$ADDCOW_VALGRIND$SANITIZER" ]; then
    start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
    strace -f -y -e trace=pread64 -o trace -p "$pid" &
    tracer=$!
    cleanup_fn "kill $tracer 2>/dev/null || :"
    while ! grep -q "TracerPid:.*[1-9]" "/proc/$pid/status"; do
        sleep 0.1
    done
    nbdsh --base-allocation -u "$uri" -c '
def status(*args):
    return 0
for at in range(0, 8 << 40, (1 << 32) - 512):
    h.block_status(min((1 << 32) - 512, (8 << 40) - at), at, status)
'
    stop_nbdkit "$pid"
    wait $tracer || :
    read_bytes=$(awk -F'= ' '/add-cow/ { n += $NF } END { print n + 0 }' trace)
    data_bytes=$(($(du -k vm.add-cow | cut -f1) * 1024))
    [ "$read_bytes" -gt 0 ]
    [ "$read_bytes" -le "$data_bytes" ]
fi

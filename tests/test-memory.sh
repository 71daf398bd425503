#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The memory of a server with an overlay of 8 TiB: after writes all over it,
# whatever it may take for the allocation bits, and when a whole TiB is
# allocated.  What was written is there, also where the bits of it were let go
# of; and all of the disk can be asked for its extents.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_plugin null
cd "$tmp"
requires truncate -s 8T big
requires test -r /proc/self/smaps_rollup
random_file base.img 65536

cat > memory.py <<'PY'
import sys, nbd

pid, uri, what, most_kib = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]
T = 1 << 40
MOST = (1 << 32) - 512

def memory():
    """In KiB: what is the server's alone, and its part of what is shared."""
    with open("/proc/%s/smaps_rollup" % pid) as f:
        return sum(int(line.split()[1]) for line in f
                   if line.startswith(("Pss:", "SwapPss:")))

def run(requests):
    """Some at a time."""
    for request in requests:
        request()
        while h.aio_in_flight() >= 16:
            h.poll(-1)
    while h.aio_in_flight() > 0:
        h.poll(-1)

h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
assert h.get_size() == 8 * T
assert len(h.pread(512, 0)) == 512

def done(err):
    assert err.value == 0
    return 1

def write(i):
    return lambda: h.aio_pwrite(data(i), place(i), completion=done)

def data(i):
    return bytes([i % 255 + 1]) * 1024

def place(i):
    """Sectors are not whole."""
    return i * (8 * T // N) // 512 * 512 + 300

N = int(sys.argv[5])
before = memory()
if what == "scattered":
    run(write(i) for i in range(N))
    most = memory() - before
    h.flush()
    for i in range(7, N, 7): # the base has data before
        assert h.pread(1024, place(i)) == data(i), i
        assert h.pread(512, place(i) + 1024) == bytes(512), i
    most = max(most, memory() - before)
    nr = 0
    allocated = 0
    def status(context, start, entries, err):
        global nr, allocated
        nr += len(entries) // 2
        allocated += sum(n for n, flags in zip(entries[::2], entries[1::2])
                         if not flags & 2)
        return 0
    for at in range(0, 8 * T, MOST):
        h.block_status(min(MOST, 8 * T - at), at, status)
    # At least what was written, at most the blocks around it and the base.
    assert N * 1024 <= allocated <= N * 8192 + 65536, allocated
    assert nr >= 2 * N
else:
    for at in range(0, T, MOST):
        h.zero(min(MOST, T - at), at)
    most = memory() - before
    h.flush()
    nr = 0
most = max(most, memory() - before)
print("%s %d: %d KiB, %d extents" % (what, N, most, nr))
assert int(most_kib) == 0 or most <= int(most_kib), most
h.shutdown()
PY

# What is left of it shows in no sanitizer's or valgrind's process; there, it
# is for what they find.
limit ()
{
    if [ -n "$ADDCOW_VALGRIND$SANITIZER" ]; then echo 0; else echo "$1"; fi
}
nr=10000
[ -z "$ADDCOW_VALGRIND$SANITIZER" ] || nr=500

# scattered LIMIT-KIB ARGUMENT...
scattered ()
{
    local limit
    limit=$(limit "$1")
    shift
    rm -f vm.raw vm.add-cow
    addcow-img create -q -b base.img vm.add-cow 8T
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow "$@"
    /usr/bin/python3 memory.py "$pid" "$uri" scattered "$limit" "$nr"
    stop_nbdkit "$pid"
}
scattered $((64 * 1024))
# What is more than the pages is that of threads and requests.
[ "$nr" -lt 3000 ] || nr=3000
scattered $((20 * 1024)) addcow-cache-size=1M

# Pages of ones cost nothing.
rm -f vm.raw vm.add-cow
addcow-img create -q vm.add-cow 8T
# The image is the plugin's.
dd if=/dev/zero of=vm.add-cow bs=1 seek=1036 count=1024 conv=notrunc status=none
start_nbdkit sock --filter="$addcow" null 8T addcow=vm.add-cow
/usr/bin/python3 memory.py "$pid" "$uri" allocated "$(limit 4096)" 1
stop_nbdkit "$pid"

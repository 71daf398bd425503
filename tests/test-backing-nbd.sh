#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A backing file over NBD: the ways to a server and the names it has, bases
# of any length under larger and smaller disks, many clients.  All bytes and
# extents are compared with those of the base.

source ./functions.sh
set -e
set -x

requires qemu-nbd --version
source "$abs_srcdir/nbd-backing.sh"

# Data, and holes at which a file system can have them.
random_file base.img $((600 * 1024 + 77))
fallocate -p -o 64K -l 128K base.img
fallocate -p -o 300K -l 100K base.img

cat > check.py <<'PY'
"""check.py OVERLAY-URI BASE-URI BASE-FILE METADATA SIZE"""
import random, sys
from nbd_client import *

uri, base_uri, base_file, metadata, size = sys.argv[1:]
size = int(size)
disk = bytearray((open(base_file, "rb").read() + bytes(size))[:size])
h = connect(uri)
assert h.get_size() == size
base = connect(base_uri)
want = resized(extents(base), size)
base.shutdown()
assert extents(h) == want, (extents(h), want)
assert content(h) == disk
r = random.Random(1)
for _ in range(100 if size else 0):
    n = r.randrange(1, min(size, 70000) + 1)
    at = r.randrange(size - n + 1)
    assert h.pread(n, at) == disk[at:at + n]
    assert extents(h, n, at) == resized(want, n, at)
assert bits(metadata) == []
if size:
    try_writes(h, disk, 2)
h.shutdown()
h = connect(uri)
assert content(h) == disk
h.shutdown()
PY

# check NAME BASE-URI BASE-FILE [SIZE]: an overlay on what the header calls
# NAME; nbdinfo calls it BASE-URI.
check ()
{
    local size=$4 bytes
    rm -f vm.*
    # shellcheck disable=SC2086 # it may not be given
    addcow-img create -b "$1" vm.add-cow $size
    bytes=$(stat -c %s "$3")
    [ "$(stat -c %s vm.raw)" -eq "${size:-$(((bytes + 511) / 512 * 512))}" ]
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
    python check.py "$uri" "$2" "$3" vm.add-cow "$(stat -c %s vm.raw)"
    stop_nbdkit "$pid"
}

### Sizes.

cp base.img base.copy
start_base base.sock -r file base.img
check "$base_uri" "$base_uri" base.img
check "$base_uri" "$base_uri" base.img 65536
check "$base_uri" "$base_uri" base.img $((512 * 1024 + 512))
check "$base_uri" "$base_uri" base.img $((600 * 1024))
check "$base_uri" "$base_uri" base.img $((601 * 1024))
check "$base_uri" "$base_uri" base.img 3000320
check "nbd:unix:$tmp/base.sock" "$base_uri" base.img

# The parameter and not the header.
random_file other.img $((600 * 1024))
rm vm.*
addcow-img create -q -b other.img vm.add-cow 700K
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-backing="$base_uri" addcow-backing-format=raw
python check.py "$uri" "$base_uri" base.img vm.add-cow $((700 * 1024))
stop_nbdkit "$pid"
stop_nbdkit "$base_pid"

for length in 1 511 513; do
    head -c $length base.copy > short.img
    start_base base.sock -r file short.img
    check "$base_uri" "$base_uri" short.img
    check "$base_uri" "$base_uri" short.img 4096
    stop_nbdkit "$base_pid"
done

# Without a byte.
: > empty.img
start_base base.sock -r file empty.img
check "$base_uri" "$base_uri" empty.img 65536
stop_nbdkit "$base_pid"

### Exports.

mkdir exports
cp base.img 'exports/a'
random_file 'exports/b c%d' 70000
random_file 'exports/e:f' 40000
start_base base.sock -r file dir=exports
where="?socket=$tmp/base.sock"
check "nbd+unix:///a$where" "nbd+unix:///a$where" exports/a
check "nbd+unix:///b%20c%25d$where" "nbd+unix:///b%20c%25d$where" \
    'exports/b c%d'
check "nbd:unix:$tmp/base.sock:exportname=a" "nbd+unix:///a$where" exports/a
check "nbd:unix:$tmp/base.sock:exportname=b c%d" \
    "nbd+unix:///b%20c%25d$where" 'exports/b c%d'
check "nbd:unix:$tmp/base.sock:exportname=e:f" "nbd+unix:///e:f$where" \
    'exports/e:f'
stop_nbdkit "$base_pid"

### TCP.

start_tcp -r file dir=exports
for host in 127.0.0.1 localhost; do
    check "nbd://$host:$base_port/a" "nbd://127.0.0.1:$base_port/a" exports/a
    check "nbd:$host:$base_port:exportname=e:f" \
        "nbd://127.0.0.1:$base_port/e:f" exports/e:f
done
end "$base_pid"
start_tcp -r file exports/a
check "nbd:localhost:$base_port" "nbd://127.0.0.1:$base_port" exports/a
end "$base_pid"

### Other servers.

start_base base.sock -o -r file base.img
check "$base_uri" "$base_uri" base.img
stop_nbdkit "$base_pid"
# QEMU's has whole sectors.
head -c 600K base.copy > whole.img
fallocate -p -o 64K -l 128K whole.img
for name in '' 'x y'; do
    qemu-nbd -t -r -e 9 -f raw -k "$tmp/q.sock" -x "$name" whole.img &
    qemu=$!
    cleanup_fn "end $qemu"
    wait_for test -S q.sock
    where="nbd+unix:///${name/ /%20}?socket=$tmp/q.sock"
    check "$where" "$where" whole.img
    check "nbd:unix:$tmp/q.sock${name:+:exportname=$name}" "$where" whole.img
    end "$qemu"
    rm -f q.sock
done

### Many clients, each with many requests.

cat > clients.py <<'PY'
import random, sys
from nbd_client import *

uri, base_file = sys.argv[1:]
base = open(base_file, "rb").read()
size = len(base) // 512 * 512

def client(number):
    r = random.Random(number)
    h = connect(uri)
    flying = {}

    def land(cookie):
        at, n, buf = flying.pop(cookie)
        assert buf.to_bytearray() == base[at:at + n], (at, n)

    for _ in range(300):
        n = r.choice([1, 100, 512, 4096, 30000])
        at = r.randrange(size - n + 1)
        buf = nbd.Buffer(n)
        flying[h.aio_pread(buf, at)] = at, n, buf
        while len(flying) > 15:
            h.poll(-1)
            for cookie in list(flying):
                if h.aio_command_completed(cookie):
                    land(cookie)
    while flying:
        for cookie in list(flying):
            if h.aio_command_completed(cookie):
                land(cookie)
        if flying:
            h.poll(-1)
    h.shutdown()

in_parallel([lambda i=i: client(i) for i in range(12)])
PY

start_base base.sock -r file base.img
rm vm.*
addcow-img create -q -b "$base_uri" vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
python clients.py "$uri" base.img
stop_nbdkit "$pid"

# Clients that write, a server that is stopped and killed, and the model.
rm -f vm.*
addcow-img create -q -b "$base_uri" vm.add-cow
server=(env)
if [ -n "$_preload" ]; then server+=("LD_PRELOAD=$_preload"); fi
server+=("${VG[@]}" "$(type -P nbdkit)" "--filter=$addcow")
seed=${MODEL_SEED:-$RANDOM$RANDOM}
env tmp="$tmp" /usr/bin/python3 "$abs_srcdir/model.py" 2 "$seed" \
    "$(stat -c %s vm.raw)" base.img vm.add-cow \
    "${server[@]}" file addcow=vm.add-cow addcow-commit-interval=1
stop_nbdkit "$base_pid"
cmp base.img base.copy

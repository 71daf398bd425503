#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Filling never brings old data back: what is written to sectors while they
# are on their way from the backing file, or into the image, stays.  By
# copy-on-read, cache requests and hydration.

source ./functions.sh
set -e
set -x

requires_filter cow
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/filling.sh"

size=$((256 * 1024))
random_file base.img $size

cat > race.py <<'PY'
"""race.py URI read|cache|hydrate reads|writes: what fills the disk so is
held up in reading the backing file or in writing the image."""
import random, sys
from fill_client import *

uri, kind, slow = sys.argv[1:]
base = file_bytes("base.img")
disk = bytearray(base)
filler, writer, other = connect(uri), connect(uri), connect(uri)

# What is filled, for certain.
AT, COUNT = 65536, 65536
buf = nbd.Buffer(COUNT)
touch("hold")
if kind == "read":
    filling = start(filler, lambda h: h.aio_pread(buf, AT))
elif kind == "cache":
    filling = start(filler, lambda h: h.aio_cache(COUNT, AT))
else:
    touch("switch")

def all_held():
    return set(sectors((AT, COUNT))) <= \
        set(sectors(*held())) if held() else False

wait_for(all_held)
os.unlink("hold")
assert bits("vm.add-cow") == []

def change(kind, sector, skip, count, flags=0):
    """Write COUNT bytes, SKIP after the beginning of SECTOR."""
    at = AT + sector * SECTOR + skip
    content = random.randbytes(count) if kind == "write" else bytes(count)
    if kind == "write":
        cookie = start(writer, lambda h:
                       h.aio_pwrite(buffer(content), at, flags=flags))
    elif kind == "zero":
        cookie = start(writer, lambda h: h.aio_zero(count, at, flags=flags))
    else:
        cookie = start(writer, lambda h: h.aio_trim(count, at, flags=flags))
    disk[at:at + count] = content
    cookies.append(cookie)

cookies = []
for args in [
        ("write", -1, 0, 1024),                 # one before it, one in it
        ("write", 2, 0, 4 * SECTOR),            # whole sectors
        ("write", 8, 100, 50),                  # a part of one
        ("write", 10, 400, 1024),               # a part, a whole, a part
        ("zero", 20, 0, 4 * SECTOR),
        ("zero", 30, 7, 100),
        ("trim", 40, 0, 8 * SECTOR),
        ("trim", 50, 100, 5000),
        ("write", 70, 0, SECTOR, nbd.CMD_FLAG_FUA),
        ("write", 127, 200, 1000)]:             # past its end
    change(*args)

def written():
    return finished(writer, cookies)

if slow == "reads":
    wait_for(written)
    writer.flush()
    assert content(other) == disk
else:
    # Whoever comes second to a sector may have to wait for the first; but
    # one that would not wait has the time to be overtaken.
    for _ in range(100):
        if written():
            break
        time.sleep(0.01)
    # Nobody else waits: who reads it, who reads or writes elsewhere.
    assert other.pread(512, AT + 64 * SECTOR) == \
        base[AT + 64 * SECTOR:][:SECTOR]
    if kind != "hydrate":
        content = random.randbytes(1000)
        other.pwrite(content, 1100)
        disk[1100:2100] = content

touch("go")
wait_for(written)
writer.flush()
if kind != "hydrate":
    finish(filler, filling)
if kind == "read":
    got = buf.to_bytearray()
    for sector in range(COUNT // SECTOR):
        piece = got[sector * SECTOR:][:SECTOR]
        assert piece in (base[AT + sector * SECTOR:][:SECTOR],
                         disk[AT + sector * SECTOR:][:SECTOR]), sector

# Until everything has been filled.
want = sectors((0, len(disk)) if kind == "hydrate" else (AT, COUNT))
def filled():
    other.flush()
    return set(want) <= set(bits("vm.add-cow"))
wait_for(filled)
assert b"".join(other.pread(4096, at)
                for at in range(0, len(disk), 4096)) == disk
with open("disk", "wb") as f:
    f.write(disk)
for h in filler, writer, other:
    h.shutdown()
PY

cat > image.py <<'PY'
from fill_client import *
check_image(file_bytes("disk"), file_bytes("base.img"))
PY

fill_by ()
{
    case $1 in
        read) echo addcow-on-read=true ;;
        cache) echo addcow-on-cache=true ;;
        hydrate) echo addcow-hydrate="$tmp/switch" ;;
    esac
}

for kind in read cache hydrate; do
    # A slow backing file.
    gated reads base.img
    start_base base.sock -r "${plugin[@]}"
    rm -f vm.* switch
    addcow-img create -q -b "$base_uri" vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        "$(fill_by $kind)"
    cleanup_fn "touch $tmp/go"
    python race.py "$uri" $kind reads
    stop_nbdkit "$pid"
    stop_nbdkit "$base_pid"
    python image.py

    # A slow image.
    rm -f vm.* switch
    addcow-img create -q -b base.img -i '' vm.add-cow
    truncate -s $size vm.raw
    gated writes vm.raw
    start_nbdkit sock --filter="$addcow" "${plugin[@]}" addcow=vm.add-cow \
        "$(fill_by $kind)"
    cleanup_fn "touch $tmp/go"
    python race.py "$uri" $kind writes
    stop_nbdkit "$pid"
    python image.py
done

### That this is how to find what was lost.

# nbdkit's own filter, with what is a slow backing file to it.
cat > peer.py <<'PY'
import sys
from fill_client import *

uri = sys.argv[1]
base = file_bytes("base.img")
filler, writer = connect(uri), connect(uri)
buf = nbd.Buffer(65536)
touch("hold")
filling = start(filler, lambda h: h.aio_pread(buf, 0))
wait_for(held)
os.unlink("hold")
writer.pwrite(b"w" * 65536, 0)
writer.flush()
assert writer.pread(65536, 0) == b"w" * 65536
touch("go")
finish(filler, filling)
assert writer.pread(65536, 0) == base[:65536]
PY
gated reads base.img
start_base base.sock --filter=cow "${plugin[@]}" cow-on-read=true
cleanup_fn "touch $tmp/go"
python peer.py "$base_uri"
stop_nbdkit "$base_pid"

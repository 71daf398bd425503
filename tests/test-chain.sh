#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Overlays of overlays: what is read through them, their extents, locks,
# loops, very long chains, and levels that cannot be opened.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires nbdinfo --version
requires qemu-io --version
requires qemu-nbd --version
source "$abs_srcdir/bad-input.sh"

# overlay FILE size=BYTES [backing=NAME] [image=NAME]: as metadata, whose
# backing file is an overlay.
overlay ()
{
    local backing='' image='' size file=$1
    metadata "$@"
    shift
    local "$@"
    printf 'format=add-cow\0\0' | dd of="$file" bs=1 conv=notrunc status=none \
        seek=$((12 + ${#backing} + 1))
}

### Content and extents.

# Writes at random to the disk at URI, over what is in the file MODEL, which
# is then that of the new disk.
cat > "$tmp/level.py" <<'PY'
import random, sys, nbd

uri, size, seed, model, can_write = sys.argv[1:]
size = int(size)
rng = random.Random(int(seed))
disk = bytearray(open(model, "rb").read()[:size])
disk += bytes(size - len(disk))

h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
assert h.get_size() == size

def check_content():
    for offset in range(0, size, 256 * 1024):
        n = min(256 * 1024, size - offset)
        assert h.pread(n, offset) == disk[offset:offset + n], offset
    for _ in range(20):
        offset = rng.randrange(size)
        n = rng.randint(1, min(size - offset, 10000))
        assert h.pread(n, offset) == disk[offset:offset + n], (offset, n)

def check_extents():
    got = []
    def add(context, start, entries, err):
        got.extend(zip(entries[::2], entries[1::2]))
        return 0
    offset = 0
    while offset < size:
        got.clear()
        h.block_status(size - offset, offset, add)
        types = [t for n, t in got]
        assert all(a != b for a, b in zip(types, types[1:])), got
        for n, t in got:
            end = min(offset + n, size)
            assert not t & nbd.STATE_ZERO or not any(disk[offset:end]), offset
            offset = end
    h.cache(size, 0)

check_content()
check_extents()
if can_write == "yes":
    for _ in range(15):
        offset = rng.randrange(size)
        n = rng.randint(1, min(size - offset, rng.choice([3000, 100000])))
        kind = rng.choice("wwwzt")
        data = rng.randbytes(n) if kind == "w" else bytes(n)
        if kind == "w":
            h.pwrite(data, offset)
        elif kind == "z":
            h.zero(n, offset)
        else:
            h.trim(n, offset)
        disk[offset:offset + n] = data
    check_content()
    check_extents()
    open(model, "wb").write(disk)
h.shutdown()
PY

# level LEVEL SIZE SEED WRITE ARGUMENT...
level ()
{
    nbdkit -U - --filter="$addcow" file addcow="$1.add-cow" "${@:5}" \
        --run "/usr/bin/python3 $tmp/level.py \"\$uri\" $2 $3 model $4"
}

# chain SEED SIZE...: a base of the first size, then a level of each other.
chain ()
{
    local seed=$1 below=base.img n=0 size
    shift
    random_file base.img "$1"
    # Holes and zeroes.
    fallocate -p -o $(($1 / 4)) -l $(($1 / 4)) base.img
    cp base.img model
    shift
    for size; do
        n=$((n + 1))
        truncate -s "$size" $n.raw
        if [ $n -eq 1 ]; then
            metadata $n.add-cow size="$size" backing=$below image=$n.raw
        else
            overlay $n.add-cow size="$size" backing=$below image=$n.raw
        fi
        level $n "$size" $((seed + n)) yes
        below=$n.add-cow
    done
    # Once more, when nobody has anything to write.
    cp model top
    level $n "$size" "$seed" no -r
    cmp model top
}

K=1024
seed=$((RANDOM * 1000))
echo "seed: $seed"
chain $seed $((300 * K)) $((300 * K)) $((300 * K))
# A level's end is not that of those above; nor on what blocks have.
chain $((seed + 100)) $((200 * K + 100)) $((100 * K + 512)) $((300 * K)) \
    $((150 * K + 1536)) $((400 * K))
# shellcheck disable=SC2046
chain $((seed + 200)) $((200 * K)) \
    $(for ((i = 0; i < 50; i++)); do echo $(((150 + i * 7 % 40) * K)); done)
rm ./*.add-cow ./*.raw model top

# What lies past a level's end is a hole, next to the holes in it; data of
# two levels is one extent.
random_file base.img $((64 * K))
truncate -s $((128 * K)) base.img
truncate -s $((256 * K)) mid.raw top.raw
metadata mid.add-cow size=$((192 * K)) backing=base.img image=mid.raw
overlay top.add-cow size=$((256 * K)) backing=mid.add-cow image=top.raw
nbdkit -U - --filter="$addcow" file addcow=mid.add-cow --run \
    'nbdsh -u "$uri" -c "h.pwrite(b\"m\" * 4096, 65536)"'
nbdkit -U - --filter="$addcow" file addcow=top.add-cow --run \
    'nbdsh -u "$uri" -c "h.pwrite(b\"t\" * 4096, 69632)"'
cat > "$tmp/extents.py" <<'PY'
import sys, nbd
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
def status(count, offset, flags=0):
    got = []
    h.block_status(count, offset, lambda c, o, e, err: got.extend(e) or 0,
                   flags)
    return got
assert status(262144, 0) == [73728, 0, 188416, 3], status(262144, 0)
assert status(262144, 0, nbd.CMD_FLAG_REQ_ONE) == [73728, 0]
assert status(131072, 98304) == [131072, 3]
h.shutdown()
PY
nbdkit -r -U - --filter="$addcow" file addcow=top.add-cow --run \
    "/usr/bin/python3 $tmp/extents.py \"\$uri\""

### By parameters, and what is refused.

size=65536
random_file base.img $size
truncate -s $size mid.raw top.raw
metadata mid.add-cow size=$size backing=base.img image=mid.raw
overlay top.add-cow size=$size backing=mid.add-cow image=top.raw
metadata plain.add-cow size=$size image=top.raw
cp base.img model
for arguments in "addcow=top.add-cow" \
        "addcow=top.add-cow addcow-backing-format=add-cow" \
        "addcow=plain.add-cow addcow-backing=mid.add-cow
         addcow-backing-format=add-cow" \
        "addcow=top.add-cow addcow-backing=base.img" \
        "addcow=mid.add-cow"; do
    # shellcheck disable=SC2086
    nbdkit -r -U - --filter="$addcow" file $arguments \
        --run "/usr/bin/python3 $tmp/level.py \"\$uri\" $size 1 model no"
done
# Only where somebody said so.
refused "mid.add-cow: begins like a disk image of the format add-cow" \
    serve file addcow=plain.add-cow addcow-backing=mid.add-cow
refused "nbd://localhost: is a URI" serve file addcow=plain.add-cow \
    addcow-backing=nbd://localhost addcow-backing-format=add-cow
serve file addcow=top.add-cow addcow-backing-format=raw
refused "base.img: not an add-cow file" \
    serve file addcow=mid.add-cow addcow-backing-format=add-cow

# below TEXT NAME: refused for what is below an overlay, and one more.
below ()
{
    overlay x.add-cow size=$size backing="$2" image=top.raw
    truncate -s $size xx.raw
    overlay xx.add-cow size=$size backing=x.add-cow image=xx.raw
    refused "$1" serve file addcow=x.add-cow
    refused "$1" serve -r file addcow=xx.add-cow
    rm x.add-cow xx.add-cow
}

below "missing.add-cow: No such file or directory" missing.add-cow
mkdir folder
below "folder: Is a directory" folder
mkfifo fifo
below "fifo: not a regular file" fifo
cp mid.add-cow bad.add-cow
truncate -s 2068 bad.add-cow
below "bad.add-cow: truncated: shorter than its header and bitmap" bad.add-cow
truncate -s 2000 bad.add-cow
below "bad.add-cow: truncated: shorter than its header and bitmap" bad.add-cow
: > bad.add-cow
below "bad.add-cow: not an add-cow file" bad.add-cow
metadata bad.add-cow size=$size backing=base.img
below "bad.add-cow: names no image file" bad.add-cow
metadata bad.add-cow size=$size backing=base.img image=missing.raw
below "missing.raw: No such file or directory" bad.add-cow
truncate -s $((size - 1)) short.raw
metadata bad.add-cow size=$size backing=base.img image=short.raw
below "short.raw: image file is shorter than the virtual disk" bad.add-cow
metadata bad.add-cow size=$size backing=missing.img image=mid.raw
below "missing.img: No such file or directory" bad.add-cow
metadata bad.add-cow size=$size backing=base.img image=nbd://localhost
below "nbd://localhost: is a URI" bad.add-cow
metadata bad.add-cow size=1000 image=mid.raw
below "bad.add-cow: corrupt header: the disk size" bad.add-cow
# What is wrong there no parameter can mend.
printf 'QFI\xfb' > foreign.img
metadata bad.add-cow size=$size backing=foreign.img image=mid.raw
below "raw only when $PWD/bad.add-cow says so" bad.add-cow
if [ -n "$root" ]; then
    install -m 000 mid.add-cow bad.add-cow
    overlay x.add-cow size=$size backing=bad.add-cow image=top.raw
    refused "bad.add-cow: Permission denied" as_nobody \
        serve -r file addcow=x.add-cow
    rm x.add-cow
fi
rm -rf bad.add-cow foreign.img short.raw folder fifo

# Loops.
same="backing file and metadata file are the same file"
loop="is a backing file of itself"
overlay 1.add-cow size=$size backing=1.add-cow image=top.raw
refused "1.add-cow: $same" serve file addcow=1.add-cow
refused "1.add-cow: $same" serve -r file addcow=1.add-cow
refused "1.add-cow: $same" serve file addcow=plain.add-cow \
    addcow-backing=1.add-cow addcow-backing-format=add-cow
truncate -s $size 2.raw 3.raw
overlay 1.add-cow size=$size backing=2.add-cow image=top.raw
overlay 2.add-cow size=$size backing=1.add-cow image=2.raw
refused "1.add-cow: $loop" serve file addcow=1.add-cow
refused "1.add-cow: $loop" serve -r file addcow=1.add-cow
refused "2.add-cow: $loop" serve file addcow=2.add-cow
ln -s 1.add-cow link
overlay 2.add-cow size=$size backing=3.add-cow image=2.raw
overlay 3.add-cow size=$size backing=link image=3.raw
refused "link: $loop" serve file addcow=1.add-cow
refused "2.add-cow: $loop" serve file addcow=2.add-cow
# Not at the first one.
overlay 3.add-cow size=$size backing=2.add-cow image=3.raw
refused "2.add-cow: $loop" serve file addcow=1.add-cow
rm ./[123].add-cow link

### What fails later.

start_nbdkit sock --filter="$addcow" file addcow=top.add-cow 2> messages
nbdsh -u "$uri" -c 'h.pwrite(b"t" * 4096, 0)'
truncate -s 0 base.img
nbdsh -u "$uri" -c '
assert h.pread(4096, 0) == b"t" * 4096
try:
    h.pread(512, 4096)
except nbd.Error as e:
    assert e.errno == "EIO", e
else:
    assert False
assert h.pread(512, 0) == b"t" * 512'
grep -F "mid.add-cow: reading the backing file: Input/output error" messages
stop_nbdkit "$pid"
rm messages
cp model base.img

### Locks.

in_use="is in use by another process"
metadata top2.add-cow size=$size image=2.raw
truncate -s $size 2.raw
overlay top2.add-cow size=$size backing=mid.add-cow image=2.raw

start_nbdkit sock --filter="$addcow" file addcow=top.add-cow
refused "mid.add-cow $in_use" serve file addcow=mid.add-cow
serve -r file addcow=mid.add-cow
serve file addcow=top2.add-cow
for file in mid.raw base.img; do
    qemu-io -r -U -f raw -c 'read 0 512' $file
    keep
    if qemu-io -f raw -c 'write 0 512' $file; then exit 1; fi
    kept
done
stop_nbdkit "$pid"
serve file addcow=mid.add-cow

start_nbdkit sock --filter="$addcow" file addcow=mid.add-cow
refused "mid.add-cow $in_use" serve file addcow=top.add-cow
refused "mid.add-cow $in_use" serve -r file addcow=top.add-cow
stop_nbdkit "$pid"
serve file addcow=top.add-cow

for file in mid.raw base.img; do
    rm -f "$tmp/qemu.pid"
    qemu-nbd -t -f raw -k "$tmp/qemu" --fork --pid-file="$tmp/qemu.pid" $file
    server=$(cat "$tmp/qemu.pid")
    cleanup_fn "kill $server 2>/dev/null || :"
    refused "$file $in_use" serve -r file addcow=top.add-cow
    kill "$server"
    while kill -0 "$server" 2>/dev/null; do sleep 0.1; done
done
serve -r file addcow=top.add-cow
rm ./*.add-cow ./*.raw

### Very long ones.

# long COUNT: 0.add-cow on 1.add-cow on ..., each with an image of its own
# that has one sector.
cat > "$tmp/long.py" <<'PY'
import sys
sys.path.insert(0, sys.argv[1])
from addcow_format import Metadata
count = int(sys.argv[2])
for i in range(count):
    bits = bytearray(256)
    bits[i // 8] |= 1 << i % 8
    backing = b"%d.add-cow" % (i + 1) if i + 1 < count else b""
    data = bytearray(
        Metadata(1 << 20, backing, b"%d.raw" % i, bits).encode())
    if backing:
        hint = b"format=add-cow\0\0"
        at = 12 + len(backing) + 1
        data[at:at + len(hint)] = hint
    open("%d.add-cow" % i, "wb").write(data)
    with open("%d.raw" % i, "wb") as f:
        f.seek(i * 512)
        f.write(b"%4d" % i * 128)
        f.truncate(1 << 20)
PY
long ()
{
    /usr/bin/python3 "$tmp/long.py" "$abs_srcdir" "$1"
}

# with_files COUNT COMMAND...: it may open so many.
with_files ()
(
    # shellcheck disable=SC3045 # this is bash
    ulimit -Sn "$1"
    shift
    "$@"
)

long 1000
if (ulimit -Sn 8192); then
    cat > "$tmp/check.py" <<'PY'
import sys, nbd
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(sys.argv[1])
want = b"".join(b"%4d" % i * 128 for i in range(1000))
got = b"".join(h.pread(1 << 18, i << 18) for i in range(4))
assert got == want + bytes((1 << 20) - len(want))
h.shutdown()
PY
    with_files 8192 addcow-img map --output=json 0.add-cow > map
    /usr/bin/python3 - <<'PY'
import json
# What is below the last one's end is nowhere.
rows = [(r["start"], r["length"], r["depth"], r["present"])
        for r in json.load(open("map"))]
want = [(i * 512, 512, i, True) for i in range(1000)]
assert rows == want + [(512000, 536576, 999, False)], rows
PY
    with_files 8192 nbdkit -r -U - --filter="$addcow" file \
        addcow=0.add-cow --run "/usr/bin/python3 $tmp/check.py \"\$uri\""
    long 1100
    with_files 8192 refused \
        "1024.add-cow: is one backing file too many in a row" \
        serve -r file addcow=0.add-cow
    serve -r file addcow=1099.add-cow
fi
with_files 256 refused ": Too many open files" serve -r file addcow=0.add-cow

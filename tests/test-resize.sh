#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img resize: sizes as they are written; what the disk reads as and
# what is allocated after it was made larger and smaller, whatever its backing
# file is: what was cut off, and what the backing file has past the end, does
# not appear.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-io --version
requires qemu-nbd --version
requires nbdcopy --version
requires strace -V
source "$abs_srcdir/bad-input.sh"

export PYTHONPATH=$abs_srcdir

# Valgrind has seen that elsewhere.
create ()
{
    unwatched addcow-img create -q "$@"
}

# size_of FILE: that in the header.
size_of ()
{
    od -An -j 2060 -N 8 -t u8 --endian=big "$1" | tr -d ' '
}

### Sizes.

# These are many.
while read -r old text new; do
    rm -f x.*
    create x.add-cow "$old"
    unwatched addcow-img resize --shrink x.add-cow "$text" > out 2> err
    [ "$(cat out)" = "Image resized." ]
    [ ! -s err ]
    [ "$(size_of x.add-cow)" -eq "$new" ]
    [ "$(stat -c %s x.add-cow)" -eq $((2068 + (new + 4095) / 4096)) ]
    [ "$(stat -c %s x.raw)" -eq "$new" ]
done <<'TABLE'
1M 2M 2097152
1M 1M 1048576
1M 512 512
1M 0 0
1M 1 512
1M 1000001 1000448
1M +1 1049088
1M +512 1049088
1M +1.5K 1050112
1M +0 1048576
1M -0 1048576
1M -1 1048576
1M -511 1048576
1M -512 1048064
1M -513 1048064
1M -0.5M 524288
1M -1M 0
0 -0 0
0 +1 512
0 1G 1073741824
4K +4K 8192
4K 36K 36864
16220160 +4K 16224256
16220160 +4.5K 16224768
1M +8T 8796094070784
8T -8191G 1073741824
TABLE

# Where in the arguments, and nothing at the end.
rm x.*
create x.add-cow 1M
quiet ()
{
    addcow-img resize "${@:2}" > out 2>&1
    [ ! -s out ]
    [ "$(size_of x.add-cow)" -eq "$1" ]
}
quiet $((1024 * 1024)) -q x.add-cow 1M
quiet $((1025 * 1024)) -q x.add-cow +1K
quiet $((1024 * 1024)) --quiet x.add-cow -1K --shrink
quiet $((1023 * 1024)) --shrink -q x.add-cow -1K
quiet $((1022 * 1024)) -q x.add-cow --shrink -1K
quiet $((1021 * 1024)) -q -1K x.add-cow --shrink
quiet $((1020 * 1024)) -q --shrink -- x.add-cow -1K
quiet $((1019 * 1024)) -q --shrink -1K -- x.add-cow
quiet $((1020 * 1024)) -q -- x.add-cow +1K
# --shrink lets it become larger as well.
quiet $((1021 * 1024)) -q --shrink x.add-cow 1021K
# A file may have such a name.
mv x.add-cow ./-1K
addcow-img resize -q --shrink -- -1K -2K
mv ./-1K x.add-cow
[ "$(size_of x.add-cow)" -eq $((1019 * 1024)) ]

# The same size: nothing is written, not even what is past the end cleared.
printf 'behind' >> x.add-cow
chmod 644 x.*
keep
stat -c '%n %y %z' x.* > stamps
mv stamps "$tmp"
addcow-img resize -q x.add-cow 1019K
kept
stat -c '%n %y %z' x.* | cmp - "$tmp/stamps"
rm x.*

### Against QEMU's qcow2, in the same sequence.

cat > sequence.py <<'PY'
"""Write and resize at random: an overlay and a qcow2 image."""
import os
import random
import subprocess
import sys

import addcow_format

addcow, steps = sys.argv[1], int(sys.argv[2])
seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(10**9)
print("seed", seed)
rng = random.Random(seed)
img = os.environ["IMG"].split()


def run(*args):
    subprocess.run(args, check=True, stdout=subprocess.DEVNULL)


def read(name):
    with open(name, "rb") as f:
        return f.read()


def some_size():
    size = rng.choice([rng.randrange(1, 40), rng.randrange(1, 2000)]) * 512
    return rng.choice([size, size, (size + 4095) // 4096 * 4096])


def write(size):
    at = rng.randrange(size)
    count = rng.randrange(1, min(size - at, 50000) + 1)
    at, count = at // 512 * 512, -(-count // 512) * 512
    count = min(count, size - at)
    how = rng.choice(["write -P %d" % rng.randrange(1, 256), "write -z",
                      "write -P %d" % rng.randrange(1, 256)])
    command = "%s %d %d" % (how, at, count)
    run("qemu-io", "-f", "qcow2", "-c", command, "vm.qcow2")
    serve("qemu-io -f raw -c '%s' \"$uri\"" % command)


def serve(command):
    run("env", "LD_PRELOAD=" + os.environ["PRELOAD"], "nbdkit", "-U", "-",
        "--filter=" + addcow, "file", "addcow=vm.add-cow", "--run", command)


def same(size):
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "vm.qcow2", "want")
    if os.path.exists("got"):
        os.remove("got")
    if size:
        serve('nbdcopy "$uri" got')
        assert read("got") == read("want")
    m = addcow_format.Metadata.decode(read("vm.add-cow"))
    assert m.size == size and not m.after
    assert not m.bitmap or not m.bitmap[-1] & m.stray_mask()


size = os.path.getsize("want")
for step in range(steps):
    if rng.randrange(2):
        write(size)
        continue
    size = some_size()
    print("size", size)
    run("qemu-img", "resize", "-f", "qcow2", "--shrink", "vm.qcow2", str(size))
    run(*img, "resize", "--shrink", "vm.add-cow", str(size))
    same(size)
PY

steps=20
[ -z "$ADDCOW_VALGRIND" ] || steps=4

IMG="${VG[*]} $addcow_img"
export IMG

# both FORMAT: an overlay of base.FORMAT and a qcow2 image of it.
both ()
{
    local backing=()
    rm -f vm.* want
    [ "$1" = none ] || backing=(-b "base.$1" -F "$1")
    create "${backing[@]}" vm.add-cow 400K
    case $1 in
        # QEMU does not read that.
        add-cow) backing=(-b base.same -F raw) ;;
    esac
    # In larger clusters, what was cut off can come back.
    qemu-img create -q -f qcow2 -o cluster_size=512 "${backing[@]}" \
        vm.qcow2 400K
    qemu-img convert -f qcow2 -O raw vm.qcow2 want
    PRELOAD=$_preload python3 sequence.py "$addcow" $steps
}

# Longer than most sizes, with a hole and not whole sectors; as qcow2 this
# rounds up.
random_file base.raw 700100
fallocate -p -o 204800 -l 102400 base.raw
qemu-img convert -f raw -O qcow2 base.raw base.qcow2
create -b base.raw -F raw -i low.raw base.add-cow
nbdkit -r -U - --filter="$addcow" file addcow=base.add-cow \
    --run 'nbdcopy "$uri" base.same'
for format in raw qcow2 add-cow none; do
    both $format
done

### What is past the end of the disk.

# disk.py: what vm.add-cow, of base.img, reads as.
cat > disk.py <<'PY'
import sys
from addcow_format import Metadata

m = Metadata.decode(open("vm.add-cow", "rb").read())
image = open("vm.raw", "rb").read()
base = open("base.img", "rb").read() if m.backing else b""
base = base[:m.size].ljust(m.size, b"\0")
for s, allocated in enumerate(m.allocated()):
    at = slice(s * 512, s * 512 + 512)
    sys.stdout.buffer.write((image if allocated else base)[at])
PY
disk ()
{
    /usr/bin/python3 disk.py
}

allocated ()
{
    unwatched addcow-img info --output=json vm.add-cow |
        sed -n 's/.*"allocated-bytes": *\([0-9]*\).*/\1/p'
}

# reads_as FILE BYTES: as that, and zeroes up to BYTES.
reads_as ()
{
    cp "$1" want
    truncate -s "$2" want
    disk | cmp - want
}

# Old data of the backing file does not appear, nor what was cut off (as in
# QEMU's iotest 274).
random_file base.img $((2 * 1024 * 1024))
head -c 1M base.img > first
rm -f vm.*
create -b base.img vm.add-cow 1M
addcow-img resize -q vm.add-cow 2M
reads_as first 2M
[ "$(allocated)" -eq $((1024 * 1024)) ]
# It is holes.
[ "$(stat -c %b vm.raw)" -eq 0 ]
addcow-img resize -q --shrink vm.add-cow 512K
addcow-img resize -q vm.add-cow 2M
head -c 512K base.img > first
reads_as first 2M
# Past the end of the backing file nothing needs to be allocated.
addcow-img resize -q vm.add-cow 4M
reads_as first 4M
[ "$(allocated)" -eq $((1536 * 1024)) ]

# An image that is longer than its disk, and is full of something else.
rm vm.*
random_file vm.raw $((3 * 1024 * 1024 + 77))
create -b base.img vm.add-cow 1M
addcow-img resize -q vm.add-cow 3M
head -c 1M base.img > first
reads_as first 3M
[ "$(stat -c %s vm.raw)" -eq $((3 * 1024 * 1024 + 77)) ]
addcow-img resize -q --shrink vm.add-cow 1000K
addcow-img resize -q vm.add-cow 2M
head -c 1000K base.img > first
reads_as first 2M
[ "$(stat -c %s vm.raw)" -eq $((3 * 1024 * 1024 + 77)) ]

# Bits that are no sector's, and bytes behind the bitmap.
rm vm.*
create -b base.img vm.add-cow 5K
printf '\0\xfc' | dd of=vm.add-cow bs=1 seek=2068 conv=notrunc status=none
tr '\0' '\377' < /dev/zero | head -c 1000 >> vm.add-cow
truncate -s 3M vm.raw
addcow-img resize -q vm.add-cow 3M
head -c 5K base.img > first
reads_as first 3M
[ "$(allocated)" -eq $((2 * 1024 * 1024 - 5 * 1024)) ]

# The holes of the backing file need not be allocated either.
fallocate -p -o 1M -l 512K base.img
rm vm.*
create -b base.img vm.add-cow 1M
addcow-img resize -q vm.add-cow 2M
head -c 1M base.img > first
reads_as first 2M
[ "$(allocated)" -eq $((512 * 1024)) ]

# What does not fill its last sector.
random_file base.img 10001
rm vm.*
create -b base.img vm.add-cow 512
addcow-img resize -q vm.add-cow 64K
head -c 512 base.img > first
reads_as first 64K
[ "$(allocated)" -eq $((10240 - 512)) ]

# A disk that stands alone goes on to, and needs no backing file for it.
rm vm.*
create -b base.img vm.add-cow 10K
addcow-img stream -q vm.add-cow
mv base.img away
addcow-img resize -q vm.add-cow 50000
unwatched addcow-img info vm.add-cow | grep -x "complete: true"
truncate -s 50176 away
cmp away vm.raw
addcow-img resize -q --shrink vm.add-cow 4K
unwatched addcow-img info vm.add-cow | grep -x "complete: true"
addcow-img resize -q vm.add-cow 1M
unwatched addcow-img info vm.add-cow | grep -x "complete: true"
head -c 4K away > first
truncate -s 1M first
cmp first vm.raw
mv away base.img

# A disk of no sectors is complete, if its backing file is gone.
rm vm.*
random_file base.img 10001
create -b base.img vm.add-cow 0
addcow-img resize -q vm.add-cow 1K
[ "$(allocated)" -eq 1024 ]
addcow-img resize -q --shrink vm.add-cow 0
mv base.img away
addcow-img resize -q vm.add-cow 64K
mv away base.img
reads_as /dev/null 64K
addcow-img resize -q --shrink vm.add-cow 0
addcow-img resize -q vm.add-cow 64K
reads_as /dev/null 64K
[ "$(allocated)" -eq 10240 ]

# One that becomes smaller needs no backing file either.
rm vm.*
create -b base.img vm.add-cow 64K
mv base.img away
addcow-img resize -q --shrink vm.add-cow 1K
addcow-img resize -q vm.add-cow 1K
refused "base.img: No such file" addcow-img resize vm.add-cow 2K
mv away base.img

### Another overlay on it.

rm -f vm.* top.*
random_file base.img 65536
create -b base.img vm.add-cow 32K
create -b vm.add-cow -F add-cow top.add-cow 64K
nbdkit -r -U - --filter="$addcow" file addcow=top.add-cow \
    --run 'nbdcopy "$uri" before'
addcow-img resize -q vm.add-cow 64K
nbdkit -r -U - --filter="$addcow" file addcow=top.add-cow \
    --run 'nbdcopy "$uri" after' 2> err
cat err
grep "vm.add-cow.*has changed" err
cmp before after
head -c 32K base.img > first
truncate -s 64K first
cmp first after
start_nbdkit sock -r --filter="$addcow" file addcow=top.add-cow
refused "vm.add-cow: in use" addcow-img resize vm.add-cow +1K
stop_nbdkit "$pid"

### A symbolic link, and the mode of files.

mkdir links
ln -s ../vm.add-cow links/link
chmod 640 vm.add-cow vm.raw
addcow-img resize -q links/link 128K
[ -L links/link ]
[ "$(size_of vm.add-cow)" -eq 131072 ]
[ "$(stat -c %a%a vm.add-cow)" = 640640 ]

### The names, hints and what follows them in the header stay.

rm -f vm.*
create -b base.img -F raw vm.add-cow
printf 'what is this' |
    dd of=vm.add-cow bs=1 seek=2000 conv=notrunc status=none
head -c 2060 vm.add-cow > header
addcow-img resize -q vm.add-cow 1M
addcow-img resize -q --shrink vm.add-cow 1K
head -c 2060 vm.add-cow | cmp - header

### Large ones: what costs time is how often files are asked.

if truncate -s 8T big.img; then
    rm -f vm.*
    create -b big.img vm.add-cow 1M
    # calls BYTES ARGUMENT...
    calls ()
    {
        strace -o calls.log \
            -e trace=pread64,pwrite64,lseek,fallocate,ftruncate \
            "$addcow_img" resize -q --shrink vm.add-cow "$2"
        [ "$(wc -l < calls.log)" -lt 60 ]
        [ "$(size_of vm.add-cow)" -eq "$1" ]
        [ "$(du -k vm.add-cow | cut -f1)" -le 64 ]
    }
    calls $((8 << 40)) 8T
    printf '\1' |
        dd of=vm.add-cow bs=1 seek=$((2068 + (4 << 28))) conv=notrunc
    calls $((7 << 40)) -1T
    calls $((9 << 40)) +2T
    calls $((1 << 40)) 1T
    calls $((8 << 40)) 8T
    calls 512 512
    printf 'data' | dd of=big.img bs=1 seek=7T conv=notrunc status=none
    calls $((8 << 40)) 8T
    python3 -c "
from addcow_format import BITMAP_AT
m = open('vm.add-cow', 'rb')
m.seek(BITMAP_AT + (7 << 28))
assert m.read(1) == b'\xff'
"
fi

### While others look.

# Between the header and the bitmap.
rm -f vm.*
addcow-img create -q vm.add-cow 1G
for watch in '' --watch; do
    addcow-img resize -q vm.add-cow 1G
    printf '\1' | dd of=vm.add-cow bs=1 seek=200000 conv=notrunc status=none
    resize="'$addcow_img' resize -q --shrink vm.add-cow 1K"
    [ -z "$watch" ] || resize="$resize; printf '\\3' |
        dd of=vm.add-cow bs=1 seek=2068 conv=notrunc status=none"
    env LD_PRELOAD="${_preload:+$_preload:}$fault_inject" FAULT_RUN="$resize" \
        FAULT_RUN_CALL=fcntl FAULT_RUN_FILE=vm.add-cow \
        FAULT_TRIGGER="$tmp/trigger" \
        "${VG[@]}" "$addcow_img" info $watch vm.add-cow > out
    [ "$(size_of vm.add-cow)" -eq 1024 ]
done
grep -x 'complete: true' out

# Between the length of the file and the header.
addcow-img resize -q vm.add-cow 1M
env LD_PRELOAD="${_preload:+$_preload:}$fault_inject" \
    FAULT_RUN="'$addcow_img' resize -q vm.add-cow 1G" \
    FAULT_RUN_CALL=pread FAULT_RUN_FILE=vm.add-cow \
    "${VG[@]}" "$addcow_img" info vm.add-cow | grep -F '(1073741824 bytes)'

### A block device as the image: as long as it is.

if [ -n "$root" ] && type losetup && truncate -s 64K device &&
        loop=$(losetup -f --show device); then
    cleanup_fn "losetup -d $loop"
    rm -f vm.*
    random_file base.img 65536
    create -b base.img -i "$loop" vm.add-cow 32K
    random_file garbage 65536
    cat garbage > "$loop"
    refused "$loop: is a block device of 65536 bytes, too short for a disk of" \
        addcow-img resize vm.add-cow 65537
    addcow-img resize -q vm.add-cow 48K
    [ "$(allocated)" -eq $((16 * 1024)) ]
    cmp -n 32768 "$loop" garbage
    cmp -n 16384 -i 32768:0 "$loop" /dev/zero
    cmp -i 49152 "$loop" garbage
    addcow-img resize -q --shrink vm.add-cow 1K
    addcow-img resize -q vm.add-cow 64K
    cmp -n 1024 "$loop" garbage
    cmp -n $((63 * 1024)) -i 1024:0 "$loop" /dev/zero
fi

# One whose blocks are larger than sectors.
truncate -s 64K device.4k
if [ -n "$root" ] && type losetup &&
        loop=$(losetup -f --show -b 4096 device.4k); then
    cleanup_fn "losetup -d $loop"
    rm -f vm.*
    random_file base.img 65536
    cat base.img > "$loop"
    addcow-img create -q -b base.img -i "$loop" vm.add-cow 9K
    for new in 20K 20992 64K; do
        addcow-img resize -q vm.add-cow $new
    done
    addcow-img stream -q vm.add-cow
    cmp -n 9216 "$loop" base.img
    cmp -n $((55 * 1024)) -i 9216:0 "$loop" /dev/zero
fi

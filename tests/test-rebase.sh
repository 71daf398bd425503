#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img rebase: the disk keeps its content, whatever the two backing
# files are, and only what differs in them is brought to the image.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-io --version
requires qemu-nbd --version
requires script --version
requires_filter log
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/rebase.sh"

size=$((512 * 1499))

# Many of data, zeroes and holes, of which some are as in the others.
cat > bases.py <<'PY'
import os, random, sys
size = int(sys.argv[1])

def base(name, size, seed):
    r = random.Random(seed)
    with open(name, "wb") as f:
        f.truncate(size)
        at = 0
        while at < size:
            n = min(int(2 ** r.uniform(0, 17)), size - at)
            if r.randrange(3):
                n = min(-(-n // 512) * 512, size - at)
            what = r.choice(["hole", "zeroes", "common", "own"])
            if what != "hole":
                f.seek(at)
            if what == "zeroes":
                f.write(bytes(n))
            elif what == "common":
                f.write(bytes((at + i) // 512 % 250 + 1 for i in range(n)))
            elif what == "own":
                f.write(r.randbytes(n))
            at += n

base("1.img", size, 1)
base("2.img", size, 2)
base("longer.img", size + 70001, 3)
base("shorter.img", size - 200001, 4)
base("odd.img", size - 511, 5)
base("tiny.img", 1, 6)
base("mib.img", 1 << 20, 8)
open("empty.img", "w").close()
with open("hole.img", "wb") as f:
    f.truncate(size)
# Parts that are in one of them only.
data = random.Random(7).randbytes(size)
open("head.img", "wb").write(data[:300000])
with open("tail.img", "wb") as f:
    f.seek(300000)
    f.write(data[300000:])
PY
python bases.py $size
cp --sparse=never 1.img 1.full
chmod 444 ./*.img 1.full
md5sum ./*.img 1.full > sums

### Raw ones, from each to each of some.

seed=1
pair () # FROM TO OPTION...
{
    rebase_py make $size $((seed++)) "$1"
    rebase -b "$2" "${@:3}"
    rebase_py kept "${2:-/dev/null}"
    addcow-img info vm.add-cow > info
    if [ -n "$2" ]; then
        grep "^backing file: $2 " info
    else
        if grep "^backing file" info; then exit 1; fi
    fi
}

all="1.img 1.full 2.img longer.img shorter.img odd.img tiny.img empty.img
hole.img head.img tail.img"
[ -z "$ADDCOW_VALGRIND" ] || all="longer.img odd.img"
for from in $all; do
    for to in $all; do
        pair $from $to
    done
    pair $from ''
done
pair '' 2.img
pair '' longer.img -F raw
pair '' ''
pair shorter.img odd.img -F raw -p -q
pair tail.img head.img -q
md5sum -c --quiet sums

# It is served so, too, and is written as ever.
pair 1.img longer.img
served
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
python - "$uri" <<'PY'
import sys
from nbd_client import *
h = connect(sys.argv[1])
try_writes(h, bytearray(open("disk", "rb").read()), 3, 60)
h.shutdown()
PY
stop_nbdkit "$pid"
md5sum -c --quiet sums

### As qemu-img has it.

cat > qcow2.py <<'PY'
"""A qcow2 image that is allocated as vm.add-cow is: commands for qemu-io."""
from addcow_format import *
m = Metadata.decode(open("vm.add-cow", "rb").read())
image = open("vm.raw", "rb").read()
for s in range(m.sectors()):
    if m.get(s):
        sector = image[s * 512:s * 512 + 512]
        with open("sector.%d" % s, "wb") as f:
            f.write(sector)
        print("write -s sector.%d %d 512" % (s, s * 512))
PY
differential ()
{
    rebase_py make $size $((seed++)) "$1"
    rm -f vm.qcow2
    qemu-img create -q -f qcow2 -o cluster_size=512 -b "$1" -F raw \
        vm.qcow2 $size
    python qcow2.py > commands
    qemu-io -f qcow2 vm.qcow2 < commands > /dev/null
    rm sector.*
    rebase_py disk
    qemu-img compare -q -f qcow2 -F raw vm.qcow2 disk
    qemu-img rebase -b "$2" -F raw vm.qcow2
    rebase -b "$2" -F raw
    rebase_py same
    qemu-img compare -q -f qcow2 -F raw vm.qcow2 disk
    # And what -u makes of it.
    qemu-img rebase -u -b "$3" -F raw vm.qcow2
    rebase -u -b "$3" -F raw
    rebase_py disk
    qemu-img convert -f qcow2 -O raw vm.qcow2 qemu.disk
    # All that is allocated here is so there, where what was equal was kept
    # with what was not.
    python - <<'PY'
from addcow_format import *
m = Metadata.decode(open("vm.add-cow", "rb").read())
disk, qemu = open("disk", "rb").read(), open("qemu.disk", "rb").read()
for s in range(m.sectors()):
    if m.get(s):
        at = slice(s * 512, s * 512 + 512)
        assert disk[at] == qemu[at], s
PY
}
differential 1.img 2.img head.img
if [ -z "$ADDCOW_VALGRIND" ]; then
    differential 1.img longer.img 2.img
    differential longer.img 1.img shorter.img
fi

### Backing files that are not raw.

# by_kind BACKING FORMAT FILE: to that, and from it to a raw one; it has the
# content of FILE.
by_kind ()
{
    rebase_py make $size $((seed++)) 1.img
    rebase -b "$1" -F "$2"
    served
    rebase_py grown "$3"
    [ "$(hints | cut -d' ' -f1,2)" = "$1 $2" ]
    rebase -b 2.img
    rebase_py same
    [ "$(hints)" = "2.img None None None None" ]
}

qemu-img convert -f raw -O qcow2 longer.img longer.qcow2
by_kind longer.qcow2 qcow2 longer.img
# A length of whole sectors: more than that is what qemu has of others.
start_base base.sock -r --filter=log file mib.img logfile="$PWD/base.log"
by_kind "$base_uri" raw mib.img
stop_nbdkit "$base_pid"

# What both say to be zeroes is not read.
cat > reads.py <<'PY'
import re, sys
hole = int(sys.argv[1]), int(sys.argv[2])
count = 0
for line in open("base.log"):
    m = re.search(r" Read id=\d+ offset=0x(\w+) count=0x(\w+)", line)
    if m:
        at, n = int(m[1], 16), int(m[2], 16)
        assert at >= hole[1] or at + n <= hole[0], (at, n)
        count += n
assert count
PY
random_file hole.raw $size
chmod u+w hole.raw
fallocate -p -o 204800 -l 307200 hole.raw
rm base.log
start_base base.sock -r --filter=log file hole.raw logfile="$PWD/base.log"
rebase_py make $size 1
rebase -b "$base_uri"
python reads.py 204800 512000
stop_nbdkit "$base_pid"

# Chains: base <- mid <- low <- vm, to each of those below and back.
rebase_py make $size $((seed++)) 1.img
cp disk mid.disk
mv vm.raw mid.raw
addcow-img create -q -f -b 1.img -F raw -i mid.raw mid.add-cow
python - <<'PY'
from addcow_format import *
vm = Metadata.decode(open("vm.add-cow", "rb").read())
with open("mid.add-cow", "r+b") as f:
    f.seek(BITMAP_AT)
    f.write(vm.bitmap)
PY
addcow-img create -q -b mid.add-cow -F add-cow low.add-cow
start_nbdkit sock --filter="$addcow" file addcow=low.add-cow
nbdsh -u "$uri" -c 'h.pwrite(b"low" * 10000, 100000); h.zero(5000, 300000)'
nbdcopy "$uri" low.disk
stop_nbdkit "$pid"
md5sum mid.* low.* >> sums
for to in 1.img:raw:1.img mid.add-cow:add-cow:mid.disk; do
    IFS=: read -r name format content <<< "$to"
    rebase_py make $size $((seed++)) 1.img
    addcow-img rebase -u -b low.add-cow -F add-cow vm.add-cow
    rm -f sock
    # shellcheck disable=SC2016
    nbdkit -r -U sock --filter="$addcow" file addcow=vm.add-cow \
        --run 'nbdcopy "$uri" disk'
    rebase_py bits
    rebase -b "$name" -F "$format"
    served
    rebase_py grown "$content"
    # What is the same on that one is so still.
    rebase_py bits
    rebase -b low.add-cow -F add-cow
    served
    rebase_py grown low.disk
done
md5sum -c --quiet sums

### One that is the same.

names="./1.img link.img hard.img"
[ -z "$ADDCOW_VALGRIND" ] || names=link.img
for name in $names; do
    case $name in
        link.img) ln -s 1.img $name ;;
        hard.img) ln 1.img $name ;;
    esac
    rebase_py make $size $((seed++)) 1.img
    rebase -b $name -F raw
    rebase_py kept disk # nothing more
    [ "$(hints)" = "$name raw $size $(mtime 1.img) []" ]
done
rm -f link.img hard.img
# Not so in another format: one that begins like qcow2.
cp longer.qcow2 odd.qcow2
rebase_py make $size $((seed++))
addcow-img rebase -u -b odd.qcow2 -F raw vm.add-cow
rebase_py disk
rebase_py bits
rebase -b odd.qcow2 -F qcow2
served
rebase_py grown longer.img
rebase -b 1.img
rebase_py same

# Nothing is needed when all is allocated.
head -c $(((size / 512 + 7) / 8)) /dev/zero | tr '\0' '\377' |
    dd of=vm.add-cow bs=1 seek=2068 conv=notrunc status=none
addcow-img rebase -u -b missing.img vm.add-cow
rebase -b 2.img -F raw
cp vm.raw disk
truncate -s $size disk
rebase_py same

### Only the name.

rebase_py make $size $((seed++))
rebase_py bits
cp vm.raw vm.copy
rebase -u -b missing.img
[ "$(hints)" = "missing.img None None None None" ]
rebase -u -b missing.img -F qcow2
[ "$(hints)" = "missing.img qcow2 None None None" ]
rebase -u -b nbd://localhost/x -F raw
[ "$(hints)" = "nbd://localhost/x raw None None None" ]
rebase -u -b . -F raw
[ "$(hints)" = ". raw None None None" ]
rebase -u -b longer.img -F raw
[ "$(hints)" = "longer.img raw $((size + 70001)) $(mtime longer.img) []" ]
# That of a file and not of the disk in it.
rebase -u -b longer.qcow2 -F qcow2
[ "$(hints)" = "longer.qcow2 qcow2 $(stat -c %s longer.qcow2) \
$(mtime longer.qcow2) []" ]
rebase -u -b longer.qcow2
[ "$(hints)" = "longer.qcow2 None None None None" ]
rebase -u -b ''
[ "$(hints)" = "None None None None None" ]
rebase -u -b 2.img
rebase_py disk
served
cmp vm.raw vm.copy
rebase_py grown disk # nothing more
# Without its image.
mv vm.raw away
rebase -u -b 1.img
mv away vm.raw
metadata none.add-cow size=$size backing=base.img
addcow-img rebase -u -b 1.img none.add-cow
addcow-img info none.add-cow | grep "^backing file: 1.img "
# What could not be opened, as it is its own.
metadata vm.add-cow size=$size backing=vm.raw image=vm.raw
rebase -u -b 1.img
addcow-img info vm.add-cow | grep "^backing file: 1.img "

### The file.

# Its name is relative to its folder, where a link leads to.
mkdir sub
rm vm.*
addcow-img create -q -b ../1.img sub/vm.add-cow
ln -s sub/vm.add-cow vm.add-cow
cp 2.img sub/2.img
chmod 640 sub/vm.add-cow
owner=
if [ -n "$root" ]; then
    owner=1234:5678
    chown $owner sub/vm.add-cow
fi
(
    umask 077
    rebase -b 2.img -F raw
)
[ -L vm.add-cow ]
[ "$(stat -c %a sub/vm.add-cow)" = 640 ]
[ -z "$owner" ] || [ "$(stat -c %u:%g sub/vm.add-cow)" = $owner ]
[ "$(hints)" = "2.img raw $size $(mtime sub/2.img) []" ]
[ "$(find . -name '*.addcow-*')" = "" ]
rm vm.add-cow

# A name as long as it can be, with hints and without.
rebase_py make $size $((seed++)) 1.img
long=$(printf './%.0s' {1..460})1.img
rebase -b "$long" -F raw
rebase_py same
[ "$(hints)" = "$long raw $size $(mtime 1.img) []" ]
long=$(printf './%.0s' {1..509})1.img
[ ${#long} -eq 1023 ]
rebase -b "$long"
rebase_py same
rebase -b 1.img -F raw
rebase_py same

# Bytes that mean nothing go; bits that do not mean anything may stay.
printf 'more than that' >> vm.add-cow
rebase -b 1.full
rebase_py same
[ "$(stat -c %s vm.add-cow)" -eq $((2068 + (size / 512 + 7) / 8)) ]

### What is large and empty costs nothing.

rebase_soon ()
{
    local RUN=(timeout 100)
    rebase "$@"
}

rm vm.*
truncate -s 8T a.img b.img
echo a | dd of=a.img bs=1 seek=3T conv=notrunc status=none
echo b | dd of=b.img bs=1 seek=5T conv=notrunc status=none
truncate -s 8T vm.raw
metadata vm.add-cow size=$((8 << 40)) backing=a.img image=vm.raw
rebase_soon -b b.img
addcow-img info vm.add-cow | grep "^allocated: 1 KiB "
[ "$(stat -c %b vm.add-cow)" -lt 100 ]
rebase_soon -b ''
addcow-img info vm.add-cow | grep "^allocated: 1 KiB "
[ "$(dd if=vm.raw bs=1 skip=3T count=2 status=none)" = a ]
[ "$(dd if=vm.raw bs=1 skip=5T count=2 status=none | tr -d '\0')" = "" ]
rm vm.* a.img b.img

### How far it is.

rebase_py make $size $((seed++)) 1.img
script -qec "$addcow_img rebase -p -b 2.img vm.add-cow" script.out > /dev/null
grep -F "100.00%" script.out
rebase_py same
script -qec "$addcow_img rebase -p -q -b 1.img vm.add-cow" script.out \
    > /dev/null
if grep -F "%" script.out; then exit 1; fi
rebase_py same
md5sum -c --quiet sums

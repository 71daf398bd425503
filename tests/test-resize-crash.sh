#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Wherever addcow-img resize crashes, the disk has the old size or the new
# one and its content, and what is left past its end does not come back; also
# when it is killed by a signal, which is the same.  What a power failure may
# leave is in unit/test-resize.c.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/crash.sh"

export PYTHONPATH=$abs_srcdir

# Not whole bytes of the bitmap, and more than one sector of it.
small=$((1024 * 1024 + 3 * 512))
large=$((2304 * 1024 + 5 * 512))
random_file base.img $((2240 * 1024 + 100))
fallocate -p -o $((1536 * 1024)) -l 128K base.img

cat > overlay.py <<'PY'
"""make SIZE IMAGE ALLOCATED: vm.add-cow and vm.raw, of IMAGE bytes, into
old.*; some sectors are allocated, or all; what is past the end is full of
something, and bits are set there.  look SIZE [SIZE]: the disk has one of these
sizes, and is what it was at the last look, and zeroes."""
import random
import sys
from addcow_format import Metadata, SECTOR

base = open("base.img", "rb").read()


def read(name):
    with open(name, "rb") as f:
        return f.read()


def write(name, data):
    with open(name, "wb") as f:
        f.write(data)


def make(size, image_length, allocated):
    r = random.Random(size)
    m = Metadata(size, b"base.img", b"vm.raw", after=b"\xff" * 20)
    for s in range(m.sectors()):
        if allocated == "all" or r.randrange(3) == 0:
            m.set(s)
    m.bitmap[-1] |= m.stray_mask()
    image = r.randbytes(int(image_length))
    write("old.add-cow", m.encode())
    write("old.raw", image)
    write("old.disk", content(m, image))


def content(m, image):
    assert len(image) >= m.size
    out = bytearray(base[:m.size].ljust(m.size, b"\0"))
    for s, allocated in enumerate(m.allocated()):
        if allocated:
            at = slice(s * SECTOR, (s + 1) * SECTOR)
            out[at] = image[at]
    return out


def look(*sizes):
    m = Metadata.decode(read("vm.add-cow"))
    assert m.size in map(int, sizes), m.size
    disk = read("disk")[:m.size].ljust(m.size, b"\0")
    assert content(m, read("vm.raw")) == disk
    write("disk", disk)
    print("size", m.size)
    if "all" in sys.argv:
        assert all(m.allocated())
    if "clean" in sys.argv:
        assert not m.after and not m.bitmap[-1] & m.stray_mask()


arguments = [a for a in sys.argv[2:] if a != "clean"]
if sys.argv[1] == "make":
    make(int(arguments[0]), *arguments[1:])
else:
    look(*(a for a in arguments if a != "all"))
PY

overlay ()
{
    /usr/bin/python3 overlay.py "$@"
}

prepare ()
{
    cp old.add-cow vm.add-cow
    cp old.raw vm.raw
    cp old.disk disk
}

# It can be done again, whatever was left.
either ()
{
    if [ "$crash_at" = "done" ]; then
        overlay look $to $all clean
    else
        overlay look $from $to $all
    fi
    # What may be left past the end is harmless.
    unwatched addcow-img check -q vm.add-cow || [ $? -eq 3 ]
    for size in $to $from $to; do
        unwatched addcow-img resize -q --shrink vm.add-cow $size
        overlay look $size $all
    done
    overlay look $to $all clean
}

# each FROM TO IMAGE ALLOCATED
each ()
{
    from=$1 to=$2 all=
    [ "$4" != all ] || all=all
    overlay make "$1" "$3" "$4"
    crash_each prepare either addcow-img resize -q --shrink vm.add-cow "$2"
}

each $small $large $small some
calls=$(sed 's/^[0-9]* //; s, /.*/, ,' "$tmp/crash-calls" | tr '\n' ',')
case $calls in
    # What is written in between depends on the backing file.
    "fdatasync vm.add-cow,ftruncate vm.raw,ftruncate vm.add-cow,"*,"fdatasync \
vm.raw,fdatasync vm.add-cow,pwrite vm.add-cow,half pwrite vm.add-cow,fdatasync \
vm.add-cow,") ;;
    *) [ -n "$ADDCOW_VALGRIND" ] ;;
esac
each $small $large $((large + 1000)) some
each $small $large $small all
each $large $small $large some
each $large $small $((large + 1000)) some
each $large $small $large all

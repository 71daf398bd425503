#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What addcow-img commit refuses: with one line that says why, and every file
# as it was.  Bad metadata files, images and backing files are in
# test-bad-metadata.sh and test-bad-image.sh.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-nbd --version
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"

# A child has to be started, and in time.
limit=10
[ -z "$ADDCOW_VALGRIND$SANITIZER" ] || limit=60

# Refusing needs no leak checker, and there is much to refuse.
VG=()

size=65536
random_file base.img $size
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw

# bad TEXT ARGUMENT...
bad ()
{
    refused "$1" addcow-img commit "${@:2}"
}

as_nobody_bad ()
{
    refused "$1" as_nobody addcow-img commit "${@:2}"
}

# allocate FILE [IMAGE]: its last sector, with data.
allocate ()
{
    python - "$1" "${2:-vm.raw}" <<'PY'
import sys
from overlay_files import *
data = read(sys.argv[1])
m = Metadata.decode(data)
m.set(m.sectors() - 1)
write(sys.argv[1], data[:BITMAP_AT] + m.bitmap)
with open(sys.argv[2], "r+b") as f:
    f.seek(m.size - SECTOR)
    f.write(b"x" * SECTOR)
PY
}
allocate vm.add-cow

### Arguments.

help="(see addcow-img commit --help)"
bad "addcow-img: commit: "
bad "exactly one FILE is needed $help"
bad "exactly one FILE is needed $help" vm.add-cow vm.add-cow
bad "FILE must not be empty $help" ''
bad "unknown option '-x' $help" -x vm.add-cow
bad "unknown option '-x' $help" -qx vm.add-cow
bad "unknown option '-r' $help" -r 1M vm.add-cow
bad "unknown option '-b' $help" -b base.img vm.add-cow
bad "unknown option '--force' $help" --force vm.add-cow
bad "'--quiet=1' $help" --quiet=1 vm.add-cow
bad "'--progress=1' $help" --progress=1 vm.add-cow
bad "No such file or directory" -- --quiet

### Files.

bad "none: No such file or directory" none
bad "$PWD: Is a directory" "$PWD"
bad "base.img: not an add-cow file" base.img
: > tiny
bad "tiny: not an add-cow file" tiny
head -c 2000 vm.add-cow > short
bad "short: truncated" short
rm tiny short

# The image is where only a server would be told.
metadata none.add-cow size=$size backing=base.img
bad "none.add-cow: names no image" none.add-cow
# There is nothing to commit to.
metadata none.add-cow size=$size image=vm.raw
bad "none.add-cow: has no backing file" none.add-cow
metadata none.add-cow size=$size backing=gone.img image=vm.raw
bad "gone.img: No such file or directory" none.add-cow
# Not even if it was no longer needed.
truncate -s 2068 none.add-cow
head -c 16 /dev/zero | tr '\0' '\377' >> none.add-cow
bad "gone.img: No such file or directory" none.add-cow
metadata none.add-cow size=$size backing=vm.raw image=vm.raw
bad "backing file and image file are the same file" none.add-cow
metadata none.add-cow size=$size backing=none.add-cow image=vm.raw
bad "backing file and metadata file are the same file" none.add-cow
ln vm.raw link.raw
metadata none.add-cow size=$size backing=link.raw image=vm.raw
bad "backing file and image file are the same file" none.add-cow
rm link.raw
mkdir folder
mkfifo fifo
for name in folder fifo; do
    metadata none.add-cow size=$size backing=$name image=vm.raw
    bad "$name: neither a regular file nor a block device" none.add-cow
done
rm none.add-cow fifo

truncate -s $((size - 1)) short.raw
metadata short.add-cow size=$size backing=base.img image=short.raw
bad "short.raw: image file is shorter than the virtual disk" short.add-cow
rm short.*

# What cannot be written.
chmod 666 vm.raw vm.add-cow base.img
for name in vm.add-cow vm.raw base.img; do
    chmod 444 $name
    as_nobody_bad "$name: Permission denied" vm.add-cow
    chmod 666 $name
done
for name in vm.add-cow vm.raw base.img; do
    chmod 000 $name
    as_nobody_bad "$name: Permission denied" vm.add-cow
    chmod 666 $name
done
mkdir ro
if [ -n "$root" ] && mount -t tmpfs addcow-test ro; then
    cleanup_fn "umount $tmp/t/ro"
    cp base.img ro
    mount -o remount,ro ro
    metadata ro.add-cow size=$size backing=ro/base.img image=vm.raw
    bad "ro/base.img: Read-only file system" ro.add-cow
    rm ro.add-cow
fi

# What the backing file is has to be said when the overlay is made.
truncate -s $size odd.img
metadata odd.add-cow size=$size backing=odd.img image=vm.raw
allocate odd.add-cow
printf 'QFI\xfb' | dd of=odd.img conv=notrunc status=none
bad "only when odd.add-cow says so: say what it is with addcow-img rebase -u" \
    odd.add-cow
rm odd.*

# The disk must not make it one that is refused.
for magic in 'LUKS\xba\xbe' 'QFI\xfb'; do
    rm -f odd.*
    truncate -s $size odd.img odd.raw
    metadata odd.add-cow size=$size backing=odd.img image=odd.raw
    allocate odd.add-cow odd.raw
    printf %b "$magic" | dd of=odd.raw conv=notrunc status=none
    cp odd.add-cow last
    # It is not allocated, and not in the way.
    addcow-img commit -q odd.add-cow
    cp last odd.add-cow
    printf %b "$magic" | dd of=odd.raw conv=notrunc status=none
    printf '\x01' | dd of=odd.add-cow bs=1 seek=2068 conv=notrunc status=none
    bad "with addcow-img rebase -u -b odd.img -F raw odd.add-cow" odd.add-cow
    # It does what it says.
    cp odd.raw want
    addcow-img rebase -u -b odd.img -F raw odd.add-cow
    addcow-img commit -q odd.add-cow
    cmp odd.img want
    addcow-img map odd.add-cow > map
done
rm odd.* last want map

# One overlay is a backing file of itself.
truncate -s $size 1.raw 2.raw
addcow-img create -q -b base.img 1.add-cow
addcow-img create -q -b 1.add-cow -F add-cow 2.add-cow
addcow-img create -q -f -b 2.add-cow -F add-cow -i 1.raw 1.add-cow
bad "is a backing file of itself" 2.add-cow
# Its image is the one above, or the other way round.
addcow-img create -q -f -b base.img -i 1.raw 1.add-cow
addcow-img create -q -f -b 1.add-cow -F add-cow -i 1.raw 2.add-cow
bad "1.raw: in use by another process" 2.add-cow
addcow-img create -q -f -b base.img -i 1.raw 1.add-cow
truncate -s $size 2.raw
addcow-img create -q -f -b 1.add-cow -F add-cow -i 2.raw 2.add-cow
mv 1.raw away
bad "1.raw: No such file or directory" 2.add-cow
mv away 1.raw
: > 1.add-cow
bad "1.add-cow: not an add-cow file" 2.add-cow
rm 1.* 2.*

### In use.

# in_use NAME [FILE]
in_use ()
{
    bad "$1: in use by another process" "${2:-vm.add-cow}"
}

# The overlay itself, however it is served.
for options in '' -r; do
    # shellcheck disable=SC2086
    start_nbdkit sock $options --filter="$addcow" file addcow=vm.add-cow
    in_use vm.add-cow
    stop_nbdkit "$pid"
done
# Its backing file, through another overlay.
truncate -s $size other.raw
metadata other.add-cow size=$size backing=base.img image=other.raw
for options in '' -r; do
    # shellcheck disable=SC2086
    start_nbdkit sock $options --filter="$addcow" file addcow=other.add-cow
    in_use base.img
    stop_nbdkit "$pid"
done
# Or as somebody's disk.
qemu-nbd -t -f raw -k "$tmp/qemu" base.img &
qemu=$!
cleanup_fn "end $qemu"
wait_for nbdinfo "nbd+unix:///?socket=$tmp/qemu"
in_use base.img
end $qemu
# As somebody's image.
metadata other.add-cow size=$size image=base.img
start_nbdkit sock --filter="$addcow" file addcow=other.add-cow
in_use base.img
stop_nbdkit "$pid"
# An overlay that is one's backing file.
rm other.*
addcow-img create -q -b base.img mid.add-cow
addcow-img create -q -b mid.add-cow -F add-cow top.add-cow
addcow-img create -q -b mid.add-cow -F add-cow other.add-cow
allocate top.add-cow top.raw
for options in '' -r; do
    # shellcheck disable=SC2086
    start_nbdkit sock $options --filter="$addcow" file addcow=other.add-cow
    in_use mid.add-cow top.add-cow
    stop_nbdkit "$pid"
done
# And, with nobody in the way, it goes.
addcow-img commit -q top.add-cow
rm mid.* top.* other.*
# What QEMU reads.
qemu-img convert -O qcow2 base.img base.qcow2
addcow-img create -q -b base.qcow2 -F qcow2 q.add-cow
allocate q.add-cow q.raw
qemu-nbd -r -t -f qcow2 -k "$tmp/qemu" base.qcow2 &
qemu=$!
cleanup_fn "end $qemu"
wait_for nbdinfo "nbd+unix:///?socket=$tmp/qemu"
bad 'base.qcow2: qemu-nbd: Failed to ' q.add-cow
end $qemu
# A server that has not read anything of it yet.
addcow-img create -q -b base.qcow2 -F qcow2 other.add-cow
for options in '' -r; do
    # shellcheck disable=SC2086
    start_nbdkit sock $options --filter="$addcow" file addcow=other.add-cow
    bad 'base.qcow2: qemu-nbd: Failed to ' q.add-cow
    stop_nbdkit "$pid"
done
rm other.*

### Targets that cannot be written, or not so far.

# too_short NAME BYTES FILE
too_short ()
{
    bad "$1: has $2 bytes, too few for what is to be written there: make it \
131072 bytes long before$4" "$3"
}

rm q.*
addcow-img create -q -b base.qcow2 -F qcow2 q.add-cow 128K
allocate q.add-cow q.raw
too_short base.qcow2 65536 q.add-cow \
    ": qemu-img resize -f qcow2 $PWD/base.qcow2 131072"
# It does what it says.
cp base.qcow2 copy.qcow2
qemu-img resize -q -f qcow2 base.qcow2 131072
addcow-img commit -q q.add-cow 2>err
mv copy.qcow2 base.qcow2
printf 'garbage' | dd of=base.qcow2 conv=notrunc status=none
allocate q.add-cow q.raw
fails_in_time "base.qcow2: qemu-nbd: Failed to blk_new_open" \
    addcow-img commit q.add-cow
rm q.* base.qcow2

addcow-img create -q -b base.img mid.add-cow
addcow-img create -q -b mid.add-cow -F add-cow top.add-cow 128K
allocate top.add-cow top.raw
too_short mid.add-cow 65536 top.add-cow \
    ": addcow-img resize $PWD/mid.add-cow 131072"
rm mid.* top.*

start_base base.sock file base.img
addcow-img create -q -b "$base_uri" -F raw n.add-cow 128K
allocate n.add-cow n.raw
too_short "$base_uri" 65536 n.add-cow ""
stop_nbdkit "$base_pid"
bad "base.sock" n.add-cow
start_base base.sock -r file base.img
bad "$base_uri: the server does not let it be written" n.add-cow
stop_nbdkit "$base_pid"
# What it begins like.
printf 'QFI\xfb' > magic.img
truncate -s $size magic.img
start_base base.sock file magic.img
metadata m.add-cow size=$size backing="$base_uri" image=vm.raw
bad "begins like a disk image of the format qcow2" m.add-cow
stop_nbdkit "$base_pid"

# After all of that, it works.
addcow-img commit -q vm.add-cow
[ "$(tail -c 512 base.img | tr -d x | wc -c)" -eq 0 ]

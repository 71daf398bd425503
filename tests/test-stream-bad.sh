#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What addcow-img stream refuses: with one line that says why, and every file
# as it was.  Bad metadata files, images and backing files are in
# test-bad-metadata.sh and test-bad-image.sh.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"

size=65536
random_file base.img $size
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw

# bad TEXT ARGUMENT...
bad ()
{
    refused "$1" addcow-img stream "${@:2}"
}

as_nobody_bad ()
{
    refused "$1" as_nobody addcow-img stream "${@:2}"
}

### Arguments.

help="(see addcow-img stream --help)"
bad "addcow-img: stream: "
bad "exactly one FILE is needed $help"
bad "exactly one FILE is needed $help" vm.add-cow vm.add-cow
bad "FILE must not be empty $help" ''
bad "unknown option '-x' $help" -x vm.add-cow
bad "unknown option '-x' $help" -qx vm.add-cow
bad "unknown option '-r' $help" -r 1M vm.add-cow
bad "unknown option '--force' $help" --force vm.add-cow
bad "'--quiet=1' $help" --quiet=1 vm.add-cow
bad "'--progress=1' $help" --progress=1 vm.add-cow
bad "a value is missing after '--rate' $help" vm.add-cow --rate
bad "No such file or directory" -- --rate
for rate in '' 0 0K x K -1 -1M 1x 1KK 1KiB 1MB 0x10 1e3 .5M 1.5b ' 1' '1 ' \
            8E 9223372036854775808 18446744073709551616 1M/s; do
    bad "rate '$rate' $help" --rate="$rate" vm.add-cow
    bad "rate '$rate' $help" --rate "$rate" vm.add-cow
done

### Files.

# The image is where only a server would be told.
metadata none.add-cow size=$size backing=base.img
bad "none.add-cow: names no image" none.add-cow
rm none.add-cow

# It is refused before anything is filled, though there is nothing to fill.
cp vm.add-cow full.add-cow
head -c 16 /dev/zero | tr '\0' '\377' |
    dd of=full.add-cow bs=1 seek=2068 conv=notrunc status=none
truncate -s $((size - 1)) short.raw
mv vm.raw away
ln -s short.raw vm.raw
bad "vm.raw: image file is shorter than the virtual disk" full.add-cow
rm vm.raw
bad "vm.raw: No such file or directory" full.add-cow
mv away vm.raw

# What cannot be written.
chmod 666 vm.raw vm.add-cow base.img
for name in vm.add-cow vm.raw; do
    chmod 444 $name
    as_nobody_bad "$name: Permission denied" vm.add-cow
    chmod 666 $name
done
chmod 444 base.img
as_nobody addcow-img stream -q vm.add-cow
cmp base.img vm.raw

mkdir ro
if [ -n "$root" ] && mount -t tmpfs addcow-test ro; then
    cleanup_fn "umount $tmp/t/ro"
    cp vm.raw base.img ro
    metadata ro/vm.add-cow size=$size backing=base.img image=vm.raw
    mount -o remount,ro ro
    bad "ro/vm.add-cow: Read-only file system" ro/vm.add-cow
    metadata vm.add-cow size=$size backing=base.img image=ro/vm.raw
    bad "ro/vm.raw: Read-only file system" vm.add-cow
fi

# One overlay is a backing file of itself.
rm vm.*
truncate -s $size vm.raw 1.raw
addcow-img create -q -b base.img 1.add-cow
addcow-img create -q -b 1.add-cow -F add-cow vm.add-cow
addcow-img create -q -f -b vm.add-cow -F add-cow -i 1.raw 1.add-cow
bad "is a backing file of itself" vm.add-cow

# What the backing file is has to be said when the overlay is made.
rm vm.*
truncate -s $size odd.img
metadata vm.add-cow size=$size backing=odd.img image=vm.raw
truncate -s $size vm.raw
printf 'QFI\xfb' | dd of=odd.img conv=notrunc status=none
bad "only when vm.add-cow says so: say what it is with addcow-img rebase -u" \
    vm.add-cow

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What addcow-img rebase refuses: with one line that says why, and every file
# as it was.

source ./functions.sh
set -e
set -x

requires prlimit --version
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"

size=65536
random_file base.img $size
random_file new.img $size
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw

# bad TEXT ARGUMENT...
bad ()
{
    refused "$1" addcow-img rebase "${@:2}"
}

as_nobody_bad ()
{
    refused "$1" as_nobody addcow-img rebase "${@:2}"
}

# Safe and with -u alike.
both_bad ()
{
    bad "$@"
    unwatched bad "$1" -u "${@:2}"
}

### Arguments, without valgrind.

watched=("${VG[@]}")
VG=()
help="(see addcow-img rebase --help)"
bad "addcow-img: rebase: "
both_bad "exactly one FILE is needed $help"
both_bad "exactly one FILE is needed $help" -b new.img
both_bad "exactly one FILE is needed $help" -b new.img vm.add-cow vm.add-cow
both_bad "FILE must not be empty $help" -b new.img ''
both_bad "-b is needed: the new backing file, or '' for none $help" vm.add-cow
both_bad "-b is needed" -F raw vm.add-cow
both_bad "the backing file is given more than once $help" -b new.img \
    --backing=new.img vm.add-cow
both_bad "the format of the backing file is given more than once $help" \
    -b new.img -F raw -F raw vm.add-cow
both_bad "there is no backing file that could be of the format raw $help" \
    -b '' -F raw vm.add-cow
for format in '' 'a b' raw/ 'räw' "$(printf '%032d' 0)"; do
    both_bad "'$format' is not the name of a format $help" -b new.img \
        -F "$format" vm.add-cow
done
both_bad "unknown option '-x' $help" -b new.img -x vm.add-cow
both_bad "unknown option '-f' $help" -f new.img vm.add-cow
both_bad "unknown option '--force' $help" -b new.img --force vm.add-cow
both_bad "'--quiet=1' $help" -b new.img --quiet=1 vm.add-cow
both_bad "'--progress=1' $help" -b new.img --progress=1 vm.add-cow
both_bad "'--unsafe=1' $help" -b new.img --unsafe=1 vm.add-cow
both_bad "a value is missing after '--backing' $help" vm.add-cow --backing
both_bad "a value is missing after '-b' $help" vm.add-cow -b
both_bad "a value is missing after '--backing-format' $help" -b new.img \
    vm.add-cow --backing-format
both_bad "--backing: No such file or directory" -b new.img -- --backing

### Names.

name=$(printf './%.0s' {1..511})
both_bad "longer than the 1023 bytes" -b "${name}xx" vm.add-cow
# With hints there is room for less.
both_bad "$PWD/" -F raw -b "$(printf './%.0s' {1..508})new.img" vm.add-cow
ln -s vm.raw link.raw
ln vm.raw hard.raw
ln -s vm.add-cow link.add-cow
for name in vm.raw ./vm.raw file:vm.raw "$PWD/vm.raw" link.raw hard.raw; do
    both_bad "backing file and image file are the same" -b "$name" vm.add-cow
done
for name in vm.add-cow "$PWD/vm.add-cow" link.add-cow; do
    both_bad "backing file and metadata file are the same" -b "$name" \
        vm.add-cow
    both_bad "backing file and metadata file are the same" -b "$name" \
        -F add-cow link.add-cow
done
rm hard.raw

### FILE.

VG=("${watched[@]}")
mkdir folder
mkfifo fifo
: > empty
printf 'ADD_COW\xff\0\0\0\1' > tiny
head -c 5000 /dev/urandom > garbage
cp vm.add-cow version
printf '\2' | dd of=version bs=1 seek=11 conv=notrunc status=none
cp vm.add-cow short
truncate -s -1 short
cp vm.add-cow odd
printf '\1' | dd of=odd bs=1 seek=2067 conv=notrunc status=none
both_bad "missing: No such file or directory" -b new.img missing
both_bad "folder: Is a directory" -b new.img folder
both_bad "fifo: not a regular file" -b new.img fifo
both_bad "empty: not an add-cow file" -b new.img empty
both_bad "tiny: " -b new.img tiny
both_bad "garbage: not an add-cow file" -b new.img garbage
both_bad "version: " -b new.img version
both_bad "short: " -b new.img short
both_bad "odd: " -b new.img odd
both_bad "base.img: not an add-cow file" -b new.img base.img

# Of what has two names, one would stay with the old backing file.
ln vm.add-cow hard.add-cow
both_bad "vm.add-cow: has more than one name (hard links)" -b new.img \
    vm.add-cow
rm hard.add-cow

# The image.
metadata none.add-cow size=$size backing=base.img
bad "none.add-cow: names no image" -b new.img none.add-cow
mv vm.raw away
bad "vm.raw: No such file or directory" -b new.img vm.add-cow
truncate -s $((size - 1)) vm.raw
bad "vm.raw: image file is shorter than the virtual disk" -b new.img vm.add-cow
mv away vm.raw

both_bad "No such file or directory" -b new.img missing/vm.add-cow

### Backing files.

bad "missing.img: No such file or directory" -b missing.img vm.add-cow
bad "folder: neither a regular file" -b folder vm.add-cow
bad "fifo: neither a regular file" -b fifo vm.add-cow
bad "new.img: not an add-cow file" -b new.img -F add-cow vm.add-cow
bad "new.img: " -b new.img -F qcow2 vm.add-cow
bad "nbd+unix:///?socket=missing: " -b 'nbd+unix:///?socket=missing' vm.add-cow
printf 'QFI\xfb' > foreign.img
truncate -s $size foreign.img
bad "foreign.img: begins like a disk image of the format qcow2, and is read \
as raw only when told to: give -F qcow2, or -F raw to insist" \
    -b foreign.img vm.add-cow
bad "give -F add-cow" -b none.add-cow vm.add-cow
bad "none.add-cow: names no image" -b none.add-cow -F add-cow vm.add-cow

# The old one, without which no content can be kept.
metadata old.add-cow size=$size backing=missing.img image=vm.raw
bad "missing.img: No such file or directory (with -u it is not needed)" \
    -b new.img old.add-cow
bad "(with -u it is not needed)" -b '' old.add-cow
metadata old.add-cow size=$size backing=nbd+unix:///?socket=missing image=vm.raw
bad "(with -u it is not needed)" -b new.img old.add-cow
metadata old.add-cow size=$size backing=foreign.img image=vm.raw
bad "foreign.img: begins like a disk image of the format qcow2" -b new.img \
    old.add-cow
rm old.add-cow

# A chain that leads back here.
truncate -s $size above.raw top.raw
addcow-img create -q -b vm.add-cow -F add-cow above.add-cow
addcow-img create -q -b above.add-cow -F add-cow top.add-cow
bad "is a backing file of itself" -b above.add-cow -F add-cow vm.add-cow
bad "is a backing file of itself" -b top.add-cow -F add-cow vm.add-cow
# Also where one in it needs no backing file as long as it is complete.
truncate -s $size whole.raw
addcow-img create -q -b vm.add-cow -F add-cow whole.add-cow
head -c $((size / 4096)) /dev/zero | tr '\0' '\377' |
    dd of=whole.add-cow bs=1 seek=2068 conv=notrunc status=none
addcow-img create -q -f -b whole.add-cow -F add-cow top.add-cow
bad "vm.add-cow: is a backing file of itself" -b whole.add-cow -F add-cow \
    vm.add-cow
bad "vm.add-cow: is a backing file of itself" -b top.add-cow -F add-cow \
    vm.add-cow
# One with the same image.
metadata twin.add-cow size=$size backing=base.img image=vm.raw
bad "vm.raw: in use by another process" -b twin.add-cow -F add-cow vm.add-cow

### In use.

for options in '' -r; do
    # shellcheck disable=SC2086
    start_nbdkit sock $options --filter="$addcow" file addcow=vm.add-cow
    both_bad "vm.add-cow: in use by another process" -b new.img vm.add-cow
    stop_nbdkit "$pid"
done
# As a backing file, or what is to be one.
start_nbdkit sock -r --filter="$addcow" file addcow=above.add-cow
both_bad "vm.add-cow: in use by another process" -b new.img vm.add-cow
stop_nbdkit "$pid"
truncate -s $size other.raw
metadata other.add-cow size=$size image=other.raw
start_nbdkit sock --filter="$addcow" file addcow=other.add-cow
bad "other.add-cow: in use by another process" -b other.add-cow -F add-cow \
    vm.add-cow
bad "other.raw: in use by another process" -b other.raw vm.add-cow
stop_nbdkit "$pid"

### What may not be written.

chmod 666 vm.raw vm.add-cow base.img new.img
chmod 777 .
[ -z "$root" ] || chown 65534:65534 vm.add-cow
for name in vm.add-cow vm.raw; do
    chmod 444 $name
    as_nobody_bad "$name: Permission denied" -b new.img vm.add-cow
    chmod 666 $name
done
chmod 444 vm.add-cow
as_nobody_bad "vm.add-cow: Permission denied" -u -b new.img vm.add-cow
chmod 666 vm.add-cow
for name in base.img new.img; do
    chmod 000 $name
    as_nobody_bad "$name: Permission denied" -b new.img vm.add-cow
    chmod 666 $name
done
# The folder, where a new one is made: asked before anything is kept.
chmod 555 .
as_nobody_bad "vm.add-cow: Permission denied" -b new.img vm.add-cow
as_nobody_bad "vm.add-cow: Permission denied" -u -b new.img vm.add-cow
chmod 777 .
if [ -n "$root" ]; then
    # Nobody cannot give a file to somebody else.
    chown 0:0 vm.add-cow
    text="cannot give its owner and group to a new file: Operation not permitted"
    as_nobody_bad "vm.add-cow: $text" -b new.img vm.add-cow
    as_nobody_bad "vm.add-cow: $text" -u -b new.img vm.add-cow
fi

mkdir ro
if [ -n "$root" ] && mount -t tmpfs addcow-test ro; then
    cleanup_fn "umount $tmp/t/ro"
    cp vm.raw base.img new.img ro
    metadata ro/vm.add-cow size=$size backing=base.img image=vm.raw
    mount -o remount,ro ro
    both_bad "ro/vm.add-cow: Read-only file system" -b new.img ro/vm.add-cow
    metadata vm.add-cow size=$size backing=base.img image=ro/vm.raw
    bad "ro/vm.raw: Read-only file system" -b new.img vm.add-cow
    metadata vm.add-cow size=$size backing=base.img image=vm.raw
fi

# Of all that failed, nothing would have had to.
chmod 444 base.img new.img
[ -z "$root" ] || chown 65534:65534 vm.add-cow vm.raw
as_nobody addcow-img rebase -b new.img -F raw vm.add-cow
cmp vm.raw base.img

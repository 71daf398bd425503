#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What addcow-img create refuses, and what fails half-way: nothing is made
# then, and what was there is as it was.

source ./functions.sh
set -e
set -x

requires prlimit --version
source "$abs_srcdir/bad-input.sh"

random_file base.img 65536
truncate -s 65536 vm.raw
metadata vm.add-cow size=65536 backing=base.img image=vm.raw

# bad TEXT ARGUMENT...
bad ()
{
    fails_in_time "$1" addcow-img create "${@:2}"
}

### Arguments.

keep
help="(see addcow-img create --help)"
bad "$help"
bad "$help" -b base.img
bad "$help" new 1M 2M
bad "create: unknown option '-x' $help" -x new 1M
bad "unknown option '-x' $help" -qx new 1M
bad "unknown option '--nonsense' $help" --nonsense new 1M
bad "unknown option '--nonsense=1' $help" --nonsense=1 new 1M
bad "'-1' $help" new -1
bad "a value is missing after '-b' $help" new -b
bad "a value is missing after '-i' $help" new 1M -i
bad "a value is missing after '-o' $help" -o
bad "$help" new --backing
bad "$help" --quiet=1 new 1M
bad "without a backing file, SIZE is needed" new
bad "without a backing file, SIZE is needed" -i vm.raw new
bad "without a backing file, SIZE is needed" -o backing_file= new
bad "FILE must not be empty" '' 1M

for options in "-b base.img -b base.img new" \
               "-b base.img -o backing_file=base.img new" \
               "-i x -i y new 1M" "-i x -o image_file=x new 1M" \
               "-o size=1M new 1M" "-o size=1M,size=1M new" \
               "-o size=1M -o size=1M new"; do
    # shellcheck disable=SC2086
    bad "is given more than once $help" $options
done
for o in nonsense=1 Size=1M ' size=1M' backing=base.img cluster_size=64K \
         =1; do
    bad "-o: unknown key '${o%%=*}' $help" -o "$o" new 1M
done
for o in '' size x,y=1 ,size=1M size=1M,,,x; do
    bad "-o: '" -o "$o" new
done

### Sizes.

for size in '' x K 1x 1KK 1KB 1KiB 0x10 1e3 1. .5 .5K 1.K 1.5 1.5b 1,5K \
            ' 1' '1 ' '1 K' +1 '1K ' 1..5K 1.5.5K ٣; do
    bad "create: '$size' is not a size $help" new "$size"
    bad "is not a size $help" -b base.img -o size="${size//,/,,}" new
done
for size in 9223372036854775808 9223372036854775297 9223372036854775807 \
            18446744073709551615 18446744073709551616 \
            99999999999999999999999 8E 8.0E 7.99999999999999999999E 16E \
            8192P 8388608T 8589934592G 9007199254740992K 17179869184G \
            36028797018963968K; do
    bad "addcow-img: " new "$size"
    bad "addcow-img: " -i '' -o size="$size" new
done
# A disk may be so large, but no file system has room for its bitmap.
bad "File too large" -i '' new 9223372036854775296
kept

### FILE.

mkdir folder closed
mkfifo fifo
ln -s nowhere dangling
ln -s loop loop
keep
bad "vm.add-cow: exists already (-f overwrites it)" vm.add-cow 1M
bad "vm.raw: exists already" -i '' vm.raw 1M
bad "folder: exists already" folder 1M
bad "fifo: exists already" fifo 1M
bad "dangling: exists already" dangling 1M
bad "folder: Is a directory" -f folder 1M
bad "folder/: Is a directory" -f folder/ 1M
bad "fifo: not a regular file" -f fifo 1M
bad "/dev/null: not a regular file" -f -i "$PWD/vm.raw" /dev/null 1K
bad "dangling: " -f dangling 1M
bad "loop: Too many levels of symbolic links" loop 1M
bad "missing/new: No such file or directory" missing/new 1M
bad "missing/new: No such file or directory" -f -i vm.raw missing/new 1K
bad "base.img/new: Not a directory" base.img/new 1M
bad "File name too long" "$(printf '%0256d' 0)" 1M
bad "File name too long" -i vm.raw "$(printf '%0256d' 0)" 1K
bad "File name too long" "$(printf '%05000d' 0)" 1M
kept

### Names.

name=$(for ((i = 0; i < 511; i++)); do printf ./; done)
keep
bad "longer than the 1023 bytes" -b "${name}xx" new
bad "longer than the 1023 bytes" -i "${name}xx" new 1M
bad "longer than the 1023 bytes" -b "file:${name}" new
bad "longer than the 1023 bytes" -i "$(printf '%05000d' 0)" new 1M
bad "No such file or directory" -b "${name}x" new

# One file in two places, though none of them is there yet.
bad "image file and metadata file are the same" -b base.img -i new new
bad "image file and metadata file are the same" -b base.img x.raw
bad "image file and metadata file are the same" -i folder/../new new 1M
bad "image file and metadata file are the same" -i "$PWD/new" new 1M
bad "image file and metadata file are the same" -i file:new ./new 1M
bad "backing file and image file are the same" -b base.img -i base.img new
bad "backing file and image file are the same" -b vm.raw vm
bad "backing file and metadata file are the same" -f -b vm.add-cow vm.add-cow
kept

### The image.

keep
bad "missing/x.raw: No such file or directory" -i missing/x.raw new 1M
bad "image file is shorter than the virtual disk" -i vm.raw new 65537
bad "image file is shorter than the virtual disk" -i vm.raw new 1M
bad "image file is shorter than the virtual disk" -f -i vm.raw vm.add-cow 1M
bad "folder: neither a regular file" -i folder new 1M
bad "folder/: " -i folder/ new 1M
bad "fifo: neither a regular file" -i fifo new 1M
bad "loop: Too many levels of symbolic links" -i loop new 1M
bad "base.img/x: Not a directory" -i base.img/x new 1M
bad "dangling: " -i dangling new 1M
kept

### Where nothing may be written.

# As nobody, who owns nothing of this.
as_nobody_bad ()
{
    fails_in_time "$1" as_nobody addcow-img create "${@:2}"
}

install -m 000 base.img unreadable.img
chmod 644 vm.add-cow vm.raw base.img
mkdir -m 777 open
chmod 000 closed
mkfifo -m 000 unreadable.fifo
chmod 444 vm.add-cow
chmod 555 . folder
keep
as_nobody_bad "Permission denied" new 1M
as_nobody_bad "new: Permission denied" -i vm.raw new 1K
as_nobody_bad "new: Permission denied" -i '' new 1K
as_nobody_bad "vm.add-cow: Permission denied" -f -i vm.raw vm.add-cow 1K
as_nobody_bad "closed/new: Permission denied" closed/new 1M
as_nobody_bad "unreadable.img: Permission denied" -b ../unreadable.img open/new
as_nobody_bad "unreadable.img: Permission denied" \
    -i ../unreadable.img open/new 1K
# What is no disk is not even opened.
as_nobody_bad "unreadable.fifo: neither a regular file" \
    -b ../unreadable.fifo open/new
as_nobody_bad "unreadable.fifo: neither a regular file" \
    -i ../unreadable.fifo open/new 1K
# The one can be made and the other cannot.
as_nobody_bad "folder/x.raw: Permission denied" -i ../folder/x.raw open/new 1M
as_nobody_bad "folder/new: Permission denied" -i ../open/x.raw folder/new 1M
kept
chmod 755 . folder closed
chmod 644 vm.add-cow unreadable.img

### No room.

# limited BYTES TEXT ARGUMENT...: no file may be larger.
limited ()
{
    # shellcheck disable=SC2034 # fails_in_time uses it
    local RUN=(prlimit --fsize="$1")
    bad "${@:2}"
}

random_file old 5000
keep
limited 65536 "vm2.raw: File too large" vm2.add-cow 1M
limited 2067 "new: File too large" -i vm.raw new 65536
limited 2083 "new: File too large" -i vm.raw new 65536
limited 3000 "new: File too large" -i '' new 1G
limited 3000 "old: File too large" -f -i '' old 1G
# The image fits, the metadata does not: it goes again.
limited 2048 "new: File too large" -i x.raw new 512
limited 2068 "old: File too large" -f -i x.raw old 512
kept

mkdir small
if [ -n "$root" ] &&
        mount -t tmpfs -o size=64k,nr_inodes=4 addcow-test small; then
    cleanup_fn "umount $tmp/t/small"
    # There is room for a bitmap of any length, but no disk is so large.
    keep
    bad "File too large" -i '' small/new 9223372036854775297
    bad "File too large" -i '' small/new 9223372036854775807
    kept
    # Blocks are what is short.
    head -c 100000 /dev/zero > small/filler || :
    keep
    bad "small/new: No space left on device" small/new 1M
    bad "small/new: No space left on device" -i '' small/new 1M
    kept
    # Then inodes: for the image there is one.
    rm small/filler
    : > small/a
    : > small/b
    : > small/c
    keep
    bad "small/vm.raw: No space left on device" small/vm 1M
    kept
    rm small/c
    keep
    bad "small/vm: No space left on device" small/vm 1M
    kept
    # There is room for both.
    rm small/b
    addcow-img create small/vm 1M
    mount -o remount,ro small
    keep
    bad "Read-only file system" small/new 1M
    bad "Read-only file system" -f small/vm 1M
    kept
fi

# Of all that failed, nothing would have had to.
addcow-img create -b base.img new

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What addcow-img resize refuses, and what fails half-way: with one line that
# says why, and every file as it was.  Bad metadata files are in
# test-bad-metadata.sh.

source ./functions.sh
set -e
set -x

requires prlimit --version
source "$abs_srcdir/bad-input.sh"

size=65536
random_file base.img $((2 * size))
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw

# bad TEXT ARGUMENT...
bad ()
{
    refused "$1" addcow-img resize "${@:2}"
}

as_nobody_bad ()
{
    refused "$1" as_nobody addcow-img resize "${@:2}"
}

### Arguments.

help="(see addcow-img resize --help)"
needed="exactly one FILE and one SIZE are needed $help"
bad "addcow-img: resize: "
bad "$needed"
bad "$needed" vm.add-cow
bad "$needed" -1K
bad "$needed" --shrink -q vm.add-cow
bad "$needed" vm.add-cow vm.add-cow 1M
bad "$needed" vm.add-cow 1M 2M
bad "$needed" vm.add-cow 1M -2M
bad "$needed" vm.add-cow -- -1M -2M
bad "FILE must not be empty $help" '' 1M
bad "FILE must not be empty $help" '' -1M
bad "unknown option '-x' $help" -x vm.add-cow 1M
bad "unknown option '-x' $help" -qx vm.add-cow 1M
bad "unknown option '-K' $help" vm.add-cow -K
bad "unknown option '-2' $help" vm.add-cow -1K -2K
bad "unknown option '--force' $help" --force vm.add-cow 1M
bad "unknown option '--1K' $help" vm.add-cow --1K
bad "'--quiet=1' $help" --quiet=1 vm.add-cow 1M
bad "'--shrink=1' $help" --shrink=1 vm.add-cow 1M
bad "'vm.add-cow' is not a size $help" 1M vm.add-cow
bad "No such file or directory" -- --shrink 1M

# These are many, and take long under valgrind.
for text in '' x K 1x 1KK 1KB 1KiB 0x10 1e3 1. .5 .5K 1.K 1.5 1.5b 1,5K \
            ' 1' '1 ' '1 K' '1K ' 1..5K ٣ + ++1 +-1 '+ 1' +K +1.5 - +x; do
    unwatched bad "resize: '$text' is not a size $help" vm.add-cow "$text"
    unwatched bad "resize: '$text' is not a size $help" \
        --shrink -- vm.add-cow "$text"
done
for text in -1x -1.5 -1KiB '-1 ' -1-1 --1 -+1 - -K; do
    unwatched bad "'$text' is not a size $help" -- vm.add-cow "$text"
done
bad "'-1x' is not a size $help" vm.add-cow -1x

### Sizes.

for text in 9223372036854775808 9223372036854775297 9223372036854775807 \
            18446744073709551615 18446744073709551616 8E 16E 8192P \
            +9223372036854775807 +9223372036854710272 +8E \
            +18446744073709551615 +18446744073709551616; do
    unwatched bad "addcow-img: $text: too large for a disk" vm.add-cow "$text"
done
for text in -65537 -64.1K -1M -9223372036854775807 -9223372036854775808 \
            -18446744073709551616 -16E; do
    for shrink in '' --shrink; do
        # shellcheck disable=SC2086
        unwatched bad "vm.add-cow: New image size must not be negative" \
            $shrink vm.add-cow "$text"
    done
done
shrink="vm.add-cow: Use the --shrink option to perform a shrink operation"
for text in -512 -1K -64K 0 1 65024; do
    unwatched bad "$shrink" vm.add-cow "$text"
done
# A disk may be so large, but no file system lets a file be.
bad "vm.raw: File too large" vm.add-cow 9223372036854775296

### Files.

mkdir folder
mkfifo fifo
: > empty
random_file garbage 3000
head -c 2000 vm.add-cow > short.add-cow
head -c 2075 vm.add-cow > truncated.add-cow
bad "none: No such file or directory" none 1M
bad "none/vm.add-cow: No such file or directory" none/vm.add-cow 1M
bad "folder: Is a directory" folder 1M
bad "fifo: not a regular file" fifo 1M
bad "/dev/null: not a regular file" /dev/null 1M
bad "empty: not an add-cow file" empty 1M
bad "garbage: not an add-cow file" garbage 1M
bad "vm.raw: not an add-cow file" vm.raw 1M
bad "short.add-cow: truncated" short.add-cow 1M
bad "truncated.add-cow: truncated" truncated.add-cow 1M

# The image is where only a server would be told.
metadata none.add-cow size=$size backing=base.img
bad "none.add-cow: names no image" none.add-cow 1M
rm none.add-cow
metadata uri.add-cow size=$size backing=base.img image=nbd://localhost/
bad "is a URI" uri.add-cow 1M
rm uri.add-cow

mv vm.raw away
for text in 32K 64K 1M; do
    unwatched bad "vm.raw: No such file or directory" --shrink vm.add-cow $text
    truncate -s $((size - 1)) vm.raw
    unwatched bad "vm.raw: image file is shorter" --shrink vm.add-cow $text
    rm vm.raw
done
mv away vm.raw

# The backing file is needed where the disk grows.
mv base.img away
bad "base.img: No such file or directory" vm.add-cow 1M
mv away base.img
printf 'QFI\xfb' > odd.img
truncate -s 1M odd.img
metadata odd.add-cow size=$size backing=odd.img image=vm.raw
bad "only when odd.add-cow says so: say what it is with addcow-img rebase -u" \
    odd.add-cow 1M
rm odd.add-cow
metadata odd.add-cow size=$size backing=vm.raw image=vm.raw
bad "backing file and image file are the same file" odd.add-cow 1M
bad "backing file and image file are the same file" --shrink odd.add-cow 1K
rm odd.add-cow
addcow-img create -q -b base.img -i 1.raw 1.add-cow
addcow-img create -q -b 1.add-cow -F add-cow -i 2.raw 2.add-cow
addcow-img create -q -f -b 2.add-cow -F add-cow -i 1.raw 1.add-cow
bad "is a backing file of itself" 2.add-cow 1M
rm [12].*

# What cannot be read or written.
chmod 666 vm.raw vm.add-cow base.img
for name in vm.add-cow vm.raw; do
    for mode in 444 000; do
        chmod $mode $name
        for text in 32K 1M; do
            unwatched as_nobody_bad "$name: Permission denied" \
                --shrink vm.add-cow $text
        done
    done
    chmod 666 $name
done
chmod 000 base.img
as_nobody_bad "base.img: Permission denied" vm.add-cow 1M
chmod 444 base.img

mkdir ro
if [ -n "$root" ] && mount -t tmpfs addcow-test ro; then
    cleanup_fn "umount $tmp/t/ro"
    cp vm.raw base.img ro
    metadata ro/vm.add-cow size=$size backing=base.img image=vm.raw
    mount -o remount,ro ro
    bad "ro/vm.add-cow: Read-only file system" ro/vm.add-cow 1M
    metadata odd.add-cow size=$size backing=base.img image=ro/vm.raw
    bad "ro/vm.raw: Read-only file system" odd.add-cow 1M
    rm odd.add-cow
fi

### In use.

in_use ()
{
    bad "$1: in use by another process" vm.add-cow 1M
    bad "$1: in use by another process" --shrink vm.add-cow 1K
    bad "$1: in use by another process" vm.add-cow 64K
}
for r in '' -r; do
    # shellcheck disable=SC2086
    start_nbdkit sock $r --filter="$addcow" file addcow=vm.add-cow
    in_use vm.add-cow
    stop_nbdkit "$pid"
done
cp vm.add-cow other.add-cow
start_nbdkit sock --filter="$addcow" file addcow=other.add-cow
in_use vm.raw
stop_nbdkit "$pid"
rm other.add-cow

### No room.

# limited BYTES TEXT ARGUMENT...: no file may be larger.
limited ()
{
    # shellcheck disable=SC2034 # fails_in_time uses it
    local RUN=(prlimit --fsize="$1")
    bad "${@:2}"
}

limited $((size + 511)) "vm.raw: File too large" vm.add-cow +1K
limited $((size + 511)) "vm.raw: File too large" vm.add-cow 1T
truncate -s 1G large.raw
metadata large.add-cow size=512 backing=base.img image=large.raw
limited 10000 "large.add-cow: File too large" large.add-cow 1G
rm large.*

mkdir small
if [ -n "$root" ] && mount -t tmpfs -o size=64k addcow-test small; then
    cleanup_fn "umount $tmp/t/small"
    # All sectors that are new are allocated: the bits do not fit, and the
    # image is cut again.
    truncate -s 512 small/vm.raw
    metadata small/vm.add-cow size=512 backing=base.img image=vm.raw
    printf '\1' | dd of=small/vm.add-cow bs=1 seek=2068 conv=notrunc
    keep
    fails_in_time "small/vm.add-cow: No space left on device" \
        addcow-img resize small/vm.add-cow 1G
    kept
    # The bits of a smaller one do.
    addcow-img resize -q small/vm.add-cow 16M
    addcow-img info small/vm.add-cow | grep -x "complete: true"
    addcow-img resize -q --shrink small/vm.add-cow 512
    kept
fi

### What is refused would have been done otherwise.

addcow-img resize -q vm.add-cow 1M
addcow-img resize -q --shrink vm.add-cow 64K

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img check: images and backing files that cannot be used, or that have
# changed, and that are never mended.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-nbd --version
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/check.sh"

### The image.

# image STATUS KEYWORD TEXT NAME [NAME OF FILE]
image ()
{
    new image="$4"
    found "$1" vm.add-cow "$2"
    says "the image file cannot be used: $3"
    keep
    mended "$1" vm.add-cow "$2"
    kept
}
none="No such file or directory"
mkdir folder
ln -s vm.add-cow link
mkfifo fifo
ln -s loop loop
truncate -s $((size - 1)) short.raw
image 2 image-missing "$PWD/missing.raw: $none" missing.raw
image 2 image-missing "/missing/x: $none" /missing/x
image 2 image-short "$PWD/short.raw: image file is shorter" short.raw
image 2 image-short "" "file:$PWD/short.raw"
image 2 image-unusable "$PWD/folder: neither a regular file" folder
image 2 image-unusable "$PWD/fifo: neither a regular file" fifo
image 2 image-unusable "/dev/null: neither a regular file" /dev/null
image 2 image-unusable "$PWD/loop: Too many levels of symbolic" loop
image 2 image-unusable "$PWD/vm.raw/x: Not a directory" vm.raw/x
image 2 image-unusable "nbd://localhost: is a URI" nbd://localhost
image 2 image-unusable "$PWD/vm.add-cow: image file and metadata" vm.add-cow
image 2 image-unusable "$PWD/link: image file and metadata file are" link
# Also if the backing file is the same.
new image=vm.add-cow backing=vm.add-cow
found 2 vm.add-cow image-unusable backing-loop

### The backing file.

# backing KEYWORD TEXT NAME [FORMAT]
backing ()
{
    new backing="$3"
    [ -z "$4" ] || at $((12 + ${#3} + 1)) "format=$4"
    found 2 vm.add-cow "$1"
    says "the backing file $2"
    keep
    mended 2 vm.add-cow "$1"
    kept
}
backing backing-missing "cannot be used: $PWD/missing.img: $none" missing.img
backing backing-missing "cannot be used: $PWD/missing.img: $none" \
    missing.img qcow2
backing backing-missing "cannot be used: $PWD/missing.img: $none" \
    missing.img add-cow
backing backing-unusable "cannot be used: $PWD/folder: neither" folder
for format in raw qcow2 nonsense; do
    backing backing-unusable "cannot be used: $PWD/fifo: neither" fifo $format
done
backing backing-unusable "cannot be used: $PWD/vm.raw: backing file and" vm.raw
backing backing-unusable "cannot be used: $PWD/base.img: not an add-cow" \
    base.img add-cow
backing backing-unusable "cannot be used: nbd:x: is a URI" nbd:x add-cow
backing backing-loop "cannot be used: $PWD/vm.add-cow: backing file and" \
    vm.add-cow
backing backing-loop "cannot be used: $PWD/vm.add-cow: backing file and" \
    vm.add-cow add-cow

qemu-img create -q -f qcow2 base.qcow2 $size
backing backing-format "$PWD/base.qcow2 begins like a disk image of the \
format qcow2, and is read as raw only when vm.add-cow says so" base.qcow2
new backing=base.qcow2
at 23 'format=raw'
found 0 vm.add-cow
at 23 'format=qcow2'
found 0 vm.add-cow
backing backing-unusable "cannot be used: $PWD/base.img: qemu-nbd: " \
    base.img qcow2
backing backing-unusable "cannot be used: $PWD/base.img: qemu-nbd: " \
    base.img nonsense

# Of an overlay below.  What cannot be used there cannot be used here; what
# can is not told.
chain ()
{
    rm -f mid.*
    truncate -s $size mid.raw
    metadata mid.add-cow size=$size backing=base.img image=mid.raw
    new backing=mid.add-cow
    at 24 'format=add-cow'
}
chain
at $((full - 1)) '\xfe' mid.add-cow
found 0 vm.add-cow
rm mid.raw
found 2 vm.add-cow backing-missing
says "the backing file cannot be used: $PWD/mid.raw: $none"
chain
truncate -s -1 mid.raw
found 2 vm.add-cow backing-unusable
says "$PWD/mid.raw: image file is shorter than the virtual disk"
chain
truncate -s -1 mid.add-cow
found 2 vm.add-cow backing-unusable
says "$PWD/mid.add-cow: truncated"
chain
at 12 'base.qcow2\0' mid.add-cow
found 2 vm.add-cow backing-format
says "only when $PWD/mid.add-cow says so"
chain
at 12 'vm.add-cow\0format=add-cow' mid.add-cow
found 2 vm.add-cow backing-loop
found 2 mid.add-cow backing-loop
mended 2 vm.add-cow backing-loop
says "$PWD/vm.add-cow: is a backing file of itself"

# It has changed.
new
mtime=$(stat -c %.9Y base.img)
hints "${raw}size=$size\\0mtime=${mtime/./}\\0"
found 0 vm.add-cow
hints "size=1\\0\\0\\0\\0\\0\\0$(printf '\\0%.0s' {1..50})"
found 3 vm.add-cow backing-changed
says "length $size bytes, was 1): sectors that are not allocated may not be"
keep
mended 3 vm.add-cow backing-changed
kept
hints 'mtime=-5\0'
found 3 vm.add-cow backing-changed
says "was 1969-12-31 23:59:59.999999995 UTC"
hints 'size=2\0mtime=7\0'
found 3 vm.add-cow backing-changed

# Lines are lines, and JSON is UTF-8.
new image=$'a\n\xff\e'
found 2 vm.add-cow image-missing || :
run_check 2 human vm.add-cow
grep -F "/a\\012"$'\xff'"\\033: $none" "$tmp/human"
run_check 2 json --output=json vm.add-cow
grep -F "/a\\n"$'\xef\xbf\xbd'"\\u001b: $none" "$tmp/json"

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img check: each thing that can be wrong with a metadata file, several
# at a time, and how it is mended: byte for byte, and nothing else.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/check.sh"

# was_mended: vm.add-cow is now as good, and there is nothing left to mend.
was_mended ()
{
    cmp good vm.add-cow
    unwatched found 0 vm.add-cow
    keep
    unwatched mended 0 vm.add-cow
    kept
}

### Nothing.

new
found 0 vm.add-cow
run_check 0 human vm.add-cow
[ "$(cat "$tmp/human")" = "No errors were found on the image." ]
keep
mended 0 vm.add-cow
kept
ln -s vm.add-cow link
mkdir folder
ln -s ../vm.add-cow folder/link
found 0 link
found 0 folder/link
for n in 0 512 4096 $((4096 + 512)) $((4097 * 512)); do
    truncate -s "$n" a.raw
    metadata a.add-cow size="$n" backing=base.img image=a.raw
    found 0 a.add-cow
done
# A server knows the image.
new image=
found 0 vm.add-cow
new backing=
found 0 vm.add-cow
# Longer, but there is nothing in it.
new
head -c 5000 /dev/zero >> vm.add-cow
truncate -s 50M vm.add-cow
found 0 vm.add-cow
keep
mended 0 vm.add-cow
kept
# What follows the name of the image is never read, nor what follows none.
new
at 1050 'xyz'
found 0 vm.add-cow
new backing=
at 13 'x\0\0y'
found 0 vm.add-cow
# A backing file that nobody needs.
new backing=missing.img
head -c 126 /dev/zero | tr '\0' '\377' |
    dd of=vm.add-cow bs=1 seek=2068 conv=notrunc status=none
at $((full - 1)) '\x01'
found 0 vm.add-cow
# But for the last sector.
at $((full - 1)) '\x00'
found 2 vm.add-cow backing-missing
at $((full - 1)) '\x01'
at $((12 + 12)) 'format=raw\0size=1\0mtime=1\0\0'
found 0 vm.add-cow

### The header.

for n in 8 9 11 12 13 2060 2067; do
    new
    truncate -s $n vm.add-cow
    found 2 vm.add-cow header-truncated
    says "the file ends after $n bytes, in the header"
    keep
    mended 2 vm.add-cow header-truncated
    kept
done

long=$(printf '%01024d' 0)
new
at 12 "$long"
found 2 vm.add-cow backing-name
new
at 1036 "$long"
at 2061 '\1'
at $((full - 1)) '\xff'
found 2 vm.add-cow image-name
new
at 2067 '\1'
found 2 vm.add-cow size
says "not a multiple of 512"
new
at 2060 '\x80'
at 12 "$long$long"
found 2 vm.add-cow backing-name image-name size
says "2^63 or more"
keep
mended 2 vm.add-cow backing-name image-name size
kept

### The bitmap.

for n in 2068 2069 $((full - 1)); do
    new
    truncate -s $n vm.add-cow
    cp vm.add-cow good
    truncate -s $full good
    found 2 vm.add-cow bitmap-truncated
    says "the last $((full - n)) bytes of the bitmap are missing"
    mended 0 vm.add-cow "bitmap-truncated(fixed)"
    says "is read from the backing file from byte $(((n - 2068) * 4096)) on"
    was_mended
done

# Each bit; of the last byte only the first is a sector's.
for bit in 02 04 08 10 20 40 80; do
    new
    at $((full - 1)) '\x01'
    cp vm.add-cow good
    at $((full - 1)) "\\x$(printf %02x $((0x$bit + 1)))"
    found 3 vm.add-cow stray-bits
    mended 0 vm.add-cow "stray-bits(fixed)"
    was_mended
done

for n in 0 1 4000 70000 $((1 << 40)); do
    new
    cp vm.add-cow good
    at $((full + n)) '\1'
    truncate -s +10000 vm.add-cow
    found 3 vm.add-cow stray-bytes
    mended 0 vm.add-cow "stray-bytes(fixed)"
    was_mended
done

# Behind zeroes that are written.
new
cp vm.add-cow good
head -c 200000 /dev/zero >> vm.add-cow
at $((full + 199999)) '\1'
found 3 vm.add-cow stray-bytes
mended 0 vm.add-cow "stray-bytes(fixed)"
was_mended

# Time does not go by length.
truncate -s 8T big.raw
metadata big.add-cow size=$((8 << 40)) image=big.raw
truncate -s 7T big.add-cow
at $((6 << 40)) 'x' big.add-cow
in_time found 3 big.add-cow stray-bytes
in_time run_check 0 json -r --output=json big.add-cow
[ "$(keywords big.add-cow)" = "stray-bytes(fixed)" ]
[ "$(stat -c %s big.add-cow)" -eq $((2068 + (2 << 30))) ]
truncate -s 2069 big.add-cow
in_time run_check 0 json -r --output=json big.add-cow
[ "$(keywords big.add-cow)" = "bitmap-truncated(fixed)" ]
[ "$(stat -c %s big.add-cow)" -eq $((2068 + (2 << 30))) ]
[ "$(du -k big.add-cow | cut -f1)" -le 64 ]
rm big.*

### Hints.

# broken STRINGS GOOD KEYWORD...: what becomes of hints.
broken ()
{
    local strings=$1 keyword fixed=()
    new
    hints "$2"
    cp vm.add-cow good
    new
    hints "$strings"
    shift 2
    found 3 vm.add-cow "$@"
    for keyword; do fixed+=("$keyword(fixed)"); done
    mended 0 vm.add-cow "${fixed[@]}"
    was_mended
}
raw='format=raw\0'
broken "x\\0${raw}" "$raw" hint-no-key
broken "=x\\0${raw}a=\\0" "${raw}a=\\0" hint-no-key
broken "format=a.b\\0x=1\\0x=1\\0" 'x=1\0x=1\0' hint-value
broken "size=-1\\0$raw" "$raw" hint-value
broken "${raw}mtime=\\0" "$raw" hint-value
broken "${raw}size=$size\\0size=1\\0" "${raw}size=$size\\0" hint-twice
broken "$raw$raw" "$raw" hint-twice
broken "$raw\\0x=1\\0" "$raw" hint-trailing
broken '\0\0\0\0\0\1' '' hint-trailing
broken "size=?\\0b\\0$raw${raw}a=b\\0\\0x" "${raw}a=b\\0" \
    hint-no-key hint-value hint-twice hint-trailing
new
hints "$raw"
cp vm.add-cow good
hints "${raw}x=${long::1002}"
found 3 vm.add-cow hint-no-end
mended 0 vm.add-cow "hint-no-end(fixed)"
was_mended

# Over the border of two sectors, one of which is written first: what counts
# is the same in between.
border 11 "${raw}x\\0y=1\\0" "${raw}y=1\\0"
mended 0 vm.add-cow "hint-no-key(fixed)"
was_mended
border 20 "${raw}x\\0a=$size\\0" "${raw}a=$size\\0"
mended 0 vm.add-cow "hint-no-key(fixed)"
was_mended
border 7 "qqq\\0a=1\\0b=\\0c=\\0$raw" "a=1\\0b=\\0c=\\0$raw"
mended 0 vm.add-cow "hint-no-key(fixed)"
was_mended
# Where it cannot be, all is left as it is.
left ()
{
    border "$@"
    found 3 vm.add-cow hint-no-key
    keep
    mended 3 vm.add-cow hint-no-key
    kept
}
left 3 "x\\0${raw}y=1\\0" "${raw}y=1\\0"
left 9 "x\\0size=$size\\0" "size=$size\\0"
touch -d @0.000000999 base.img
left 9 'x\0mtime=999\0' 'mtime=999\0'

### Several.

truncate -s $((size - 1)) short.raw
new image=short.raw backing=
at 12 'gone.img\0size=1\0size=2\0x'
at $((full - 1)) '\x40\0\1'
cp vm.add-cow bad
found 2 vm.add-cow stray-bits stray-bytes hint-no-key hint-twice image-short \
    backing-missing
mended 2 vm.add-cow "stray-bits(fixed)" "stray-bytes(fixed)" \
    "hint-no-key(fixed)" "hint-twice(fixed)" image-short backing-missing
mended 2 vm.add-cow image-short backing-missing
truncate -s $size short.raw
mv bad vm.add-cow
cp base.img gone.img
truncate -s 2100 vm.add-cow
mended 3 vm.add-cow "bitmap-truncated(fixed)" "hint-no-key(fixed)" \
    "hint-twice(fixed)" backing-changed
mended 3 vm.add-cow backing-changed

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Hints in the header about the backing file: written to the byte, obeyed,
# shown, and compared with what the file is now.

source ./functions.sh
set -e
set -x

requires nbdinfo --version
source "$abs_srcdir/bad-input.sh"

# A reader that knows the layout of 2011 and nothing else.
cat > "$tmp/reader_2011.py" <<'PY'
import struct


def name(field):
    return field[: field.index(b"\0")]


def read(data):
    """(backing file, image file, size, bitmap) of a metadata file."""
    magic, version, backing, image, size = struct.unpack_from(
        ">8sL1024s1024sQ", data
    )
    assert magic == b"ADD_COW\xff" and version == 1
    return name(backing), name(image), size, data[2068:]
PY

# make_hints FILE BACKING AREA: a metadata file of 4 KiB with the bytes AREA,
# as Python writes them, behind the name of its backing file.
make_hints ()
{
    PYTHONPATH=$abs_srcdir /usr/bin/python3 - "$@" <<'PY'
import os, sys
from addcow_format import *

backing, area = os.fsencode(sys.argv[2]), eval(sys.argv[3])
data = bytearray(Metadata(4096, backing, b"vm.raw").encode())
at = BACKING_AT + len(backing) + 1
assert at + len(area) <= IMAGE_AT
data[at : at + len(area)] = area
open(sys.argv[1], "wb").write(data)
PY
}

# has_bytes FILE SIZE BACKING AREA: FILE is such a file, of a disk of SIZE
# without allocated sectors, with the image vm.raw; and the old reader finds
# its names and its size in it.
has_bytes ()
{
    PYTHONPATH=$tmp /usr/bin/python3 - "$@" <<'PY'
import os, sys
import reader_2011

size, backing = int(sys.argv[2]), os.fsencode(sys.argv[3])
area = eval(sys.argv[4])
field = backing + b"\0" + area
want = b"ADD_COW\xff\0\0\0\1" + field + bytes(1024 - len(field))
want += b"vm.raw" + bytes(1018) + size.to_bytes(8, "big")
bitmap = bytes((size + 4095) // 4096)
got = open(sys.argv[1], "rb").read()
assert got == want + bitmap, got[:200]
assert reader_2011.read(got) == (backing, b"vm.raw", size, bitmap)
PY
}

random_file base.img 65536
touch -d '2026-01-02 03:04:05.000000006 UTC' base.img
area="b'format=raw\\0size=65536\\0mtime=1767323045000000006\\0\\0'"

### addcow-img create.

for options in "-b base.img -F raw" "-Fraw --backing=base.img" \
               "-b base.img --backing-format=raw" \
               "-o backing_fmt=raw,backing_file=base.img"; do
    # shellcheck disable=SC2086
    addcow-img create $options vm.add-cow > out
    [ "$(cat out)" = "Formatting 'vm.add-cow', fmt=add-cow size=65536 \
backing_file=base.img backing_fmt=raw image_file=vm.raw" ]
    has_bytes vm.add-cow 65536 base.img "$area"
    rm vm.*
done
# Without -F there are none.
addcow-img create -b base.img vm.add-cow > out
grep backing_fmt out && exit 1
has_bytes vm.add-cow 65536 base.img "b''"

# The length is the file's own, whatever that of the disk.
random_file odd.img 1000
touch -d '1969-12-31 23:59:58.5 UTC' odd.img
addcow-img create -q -f -b odd.img -F raw vm.add-cow 64K
has_bytes vm.add-cow 65536 odd.img \
    "b'format=raw\\0size=1000\\0mtime=-1500000000\\0\\0'"

# A name that they just fit behind, and one of a byte more.
dots=$(for ((i = 0; i < 600; i++)); do printf ./; done)
room=$((1024 - 1 - 11 - 11 - 26 - 1))
fits=${dots:0:$((room - 8))}base.img
[ $(((room - 8) % 2)) -eq 0 ]
addcow-img create -q -f -b "$fits" -F raw vm.add-cow
has_bytes vm.add-cow 65536 "$fits" "$area"
mv base.img base1.img
fits=${fits%base.img}base1.img
addcow-img create -q -f -b "$fits" vm.add-cow
has_bytes vm.add-cow 65536 "$fits" "b''"
refused "no room for hints behind it" \
    addcow-img create -b "$fits" -F raw new.add-cow
refused "no room for hints behind it" \
    addcow-img create -f -b "$fits" -F raw vm.add-cow
mv base1.img base.img
rm vm.*

# What is wrong to say.
help="(see addcow-img create --help)"
for fmt in '' 'r w' raw. a/b a=b $'raw\n' rÄw \
           abcdefghijklmnopqrstuvwxyz_-1234; do
    refused "is not the name of a format $help" \
        addcow-img create -b base.img -F "$fmt" new.add-cow
done
refused "is not the name of a format $help" \
    addcow-img create -o backing_file=base.img,backing_fmt= new.add-cow
refused "is given more than once $help" \
    addcow-img create -b base.img -F raw -o backing_fmt=raw new.add-cow
for options in "" "-b ''" "-o backing_file="; do
    eval refused "'there is no backing file' " \
        "addcow-img create -F raw $options new.add-cow 1M"
done
# A name that could be a format, and is none that there is.
refused "base.img: " addcow-img create -b base.img \
    -F abcdefghijklmnopqrstuvwxyz_-123 new.add-cow
# URIs are the business of who opens them; no file of that name is.
metadata nbd:x size=4096
refused "nbd:x: " addcow-img create -b nbd:x new.add-cow
refused "nbd:x: " addcow-img create -b nbd:x -F raw new.add-cow
rm nbd:x

# A raw file that begins like another format needs to be told of.
{ printf 'QFI\373'; head -c 4092 /dev/urandom; } > magic.img
refused "magic.img: begins like a disk image of the format qcow2, and is \
read as raw only when told to: give -F qcow2, or -F raw to insist" \
    addcow-img create -b magic.img new.add-cow
addcow-img create -q -b magic.img -F raw magic.add-cow

### The filter.

# contents OFFSET COUNT ARGUMENT...: what a server has there.
contents ()
{
    rm -f "$tmp/serve"
    # shellcheck disable=SC2016 # it is nbdkit's $uri
    nbdkit -U "$tmp/serve" --filter="$addcow" file "${@:3}" \
        --run 'nbdcopy "$uri" -' 2> "$tmp/err" |
        tail -c +$(($1 + 1)) | head -c "$2"
    cat "$tmp/err" >&2
}

# quiet ARGUMENT..., warns TEXT ARGUMENT...: a server starts, and prints
# nothing or one line, which TEXT is the end of.
quiet ()
{
    serve file "$@" 2> "$tmp/err"
    diff "$tmp/err" /dev/null
}
warns ()
{
    serve file "${@:2}" 2> "$tmp/err"
    cat "$tmp/err"
    [ "$(wc -l < "$tmp/err")" -eq 1 ]
    grep -F "$PWD/base.img: warning: has changed since it became the backing \
file of vm.add-cow ($1): sectors that are not allocated may not be what they \
were" "$tmp/err"
}

# The hint is obeyed; a parameter comes before it.
contents 0 4096 addcow=magic.add-cow | cmp - magic.img
ways="give addcow-backing-format=qcow2, or addcow-backing-format=raw to insist"
make_hints plain.add-cow magic.img "b''"
truncate -s 4096 vm.raw
refused "magic.img: begins like a disk image of the format qcow2" \
    serve file addcow=plain.add-cow
grep -F "$ways" "$tmp/stderr"
contents 0 4096 addcow=plain.add-cow addcow-backing-format=raw |
    cmp - magic.img
make_hints other.add-cow magic.img "b'format=no-such-format\\0\\0'"
refused "magic.img: " serve file addcow=other.add-cow
contents 0 4096 addcow=other.add-cow addcow-backing-format=raw |
    cmp - magic.img
# The format of a file that another was taken for is not the other's.
refused "magic.img: begins like a disk image of the format qcow2" \
    serve file addcow=magic.add-cow addcow-backing=magic.img
quiet addcow=other.add-cow addcow-backing=base.img

# What has changed is told, and what that means.
mtime='2026-01-02 03:04:05.000000006 UTC'
later='2026-11-25 10:00:00.123456789 UTC'
addcow-img create -q -f -b base.img -F raw -i my.raw vm.add-cow
cp base.img same.img
quiet addcow=vm.add-cow
quiet -r addcow=vm.add-cow
touch -d "$later" base.img
warns "modified $later, was $mtime" addcow=vm.add-cow
warns "modified $later, was $mtime" -r addcow=vm.add-cow
warns "modified $later, was $mtime" addcow=vm.add-cow \
    addcow-backing-format=raw
unwatched warns "modified $later, was $mtime" addcow=vm.add-cow \
    addcow-confine="$PWD"
quiet addcow=vm.add-cow addcow-backing=base.img
quiet addcow=vm.add-cow addcow-backing=same.img
quiet addcow=vm.add-cow addcow-backing=none
truncate -s 131072 base.img
touch -d "$mtime" base.img
warns "length 131072 bytes, was 65536" addcow=vm.add-cow
touch -d "$later" base.img
warns "length 131072 bytes, was 65536; modified $later, was $mtime" \
    addcow=vm.add-cow
# No hints, no warning.
addcow-img create -q -i my.raw -b base.img quiet.add-cow 64K
touch -d "$mtime" base.img
quiet addcow=quiet.add-cow
truncate -s 65536 base.img
touch -d "$mtime" base.img
quiet addcow=vm.add-cow

# Hints stay where they are when the overlay is written to.
rm -f "$tmp/serve"
# shellcheck disable=SC2016 # it is nbdkit's $uri
nbdkit -U "$tmp/serve" --filter="$addcow" file addcow=vm.add-cow \
    --run 'nbdcopy base.img "$uri"'
addcow-img info vm.add-cow | grep -x "complete: true"
head -c $((12 + 1024)) vm.add-cow > "$tmp/before"
addcow-img create -q -f -b base.img -F raw -i my.raw vm.add-cow
head -c $((12 + 1024)) vm.add-cow | cmp - "$tmp/before"

# Whatever stands there, the file can be read; of what is broken there is no
# hint, and so no warning.
head -c 4096 base.img > small.img
for area in "b''" "b'\xff' * 1014" "b'size=1\\0' * 144 + b'xxxxxx'" \
            "b'size=4096' + b'0' * 1005" "b'format=qcow2' + b'x' * 1002" \
            "b'x=1' + b'\\0' * 500 + b'x' * 511" \
            "b'format=\\0size=\\0mtime=\\0\\0'" \
            "b'format=a/b\\0size=-1\\0mtime=1e9\\0\\0'" \
            "b'size=99999999999999999999\\0mtime=9999999999999999999\\0\\0'" \
            "b'=\\0=1\\0x\\0uuid=1\\0Format=qcow2\\0\\0'" \
            "b'\\0format=qcow2\\0size=1\\0mtime=1\\0\\0'" \
            "b'format=raw\\0format=qcow2\\0size=4096\\0size=1\\0\\0'"; do
    make_hints broken.add-cow small.img "$area"
    truncate -s 4096 vm.raw
    contents 0 4096 addcow=broken.add-cow | cmp - small.img
    case $area in
        *"'size=1"*) grep -F "(length 4096 bytes, was 1)" "$tmp/err" ;;
        *) diff "$tmp/err" /dev/null ;;
    esac
    addcow-img info broken.add-cow
done

### addcow-img info.

# json FILE EXPRESSION: true of the object TOP, its DATA.
json ()
{
    addcow-img info --output=json "$1" > out
    /usr/bin/python3 -c '
import json, sys
top = json.load(open("out"))
data = top["format-specific"]["data"]
assert eval(sys.argv[1]), top' "$2"
}

# What people are told about the backing file, after its name.
backing_lines ()
{
    keep
    addcow-img info "$1" > "$tmp/out"
    kept
    sed -n '/^backing/p' "$tmp/out" | sed '1d'
}

touch -d "$mtime" base.img
[ "$(backing_lines vm.add-cow)" = "backing file format: raw" ]
[ "$(sed -n 6p "$tmp/out")" = "backing file format: raw" ]
json vm.add-cow 'top["backing-filename-format"] == "raw"'
json vm.add-cow 'data["backing-size"] == 65536'
json vm.add-cow 'data["backing-mtime-ns"] == 1767323045000000006'
json vm.add-cow 'data["backing-changed"] == []'

touch -d "$later" base.img
[ "$(backing_lines vm.add-cow)" = "backing file format: raw
backing file has changed: modified $later, was $mtime" ]
json vm.add-cow 'data["backing-changed"] == ["mtime"]'
json vm.add-cow 'data["backing-mtime-ns"] == 1767323045000000006'
truncate -s 131072 base.img
touch -d "$mtime" base.img
[ "$(backing_lines vm.add-cow)" = "backing file format: raw
backing file has changed: length 131072 bytes, was 65536" ]
json vm.add-cow 'data["backing-changed"] == ["size"]'
json vm.add-cow 'data["backing-size"] == 65536'
touch -d "$later" base.img
[ "$(backing_lines vm.add-cow)" = "backing file format: raw
backing file has changed: length 131072 bytes, was 65536; modified $later, \
was $mtime" ]
json vm.add-cow 'data["backing-changed"] == ["size", "mtime"]'

# What is not there or not known has not changed; nothing is opened.
nothing='{"backing-size", "backing-mtime-ns", "backing-changed"} & set(data)'
rm base.img
[ "$(backing_lines vm.add-cow)" = "backing file format: raw" ]
json vm.add-cow 'data["backing-size"] == 65536'
json vm.add-cow '"backing-changed" not in data'
mkfifo base.img
[ "$(in_time backing_lines vm.add-cow)" = "backing file format: raw" ]
json vm.add-cow '"backing-changed" not in data'
rm base.img
json quiet.add-cow "not $nothing"
json quiet.add-cow '"backing-filename-format" not in top'
make_hints uri.add-cow nbd://localhost/x \
    "b'size=4096\\0mtime=-5\\0format=raw\\0\\0'"
[ "$(backing_lines uri.add-cow)" = "backing file format: raw" ]
json uri.add-cow 'data["backing-size"] == 4096'
json uri.add-cow 'data["backing-mtime-ns"] == -5'
json uri.add-cow '"backing-changed" not in data'
make_hints one.add-cow small.img "b'size=4095\\0\\0'"
[ "$(backing_lines one.add-cow)" = \
    "backing file has changed: length 4096 bytes, was 4095" ]
json one.add-cow 'data["backing-changed"] == ["size"]'
json one.add-cow '"backing-mtime-ns" not in data'
make_hints one.add-cow '' "b'format=raw\\0size=4095\\0\\0'"
json one.add-cow "not $nothing"

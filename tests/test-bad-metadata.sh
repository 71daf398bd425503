#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A metadata file that is none, or is broken, is refused by the filter and
# by the tool: at once, with one line that says what is wrong with which
# file, and with every file as it was.

source ./functions.sh
set -e
set -x

requires nbdinfo --version
source "$abs_srcdir/bad-input.sh"

truncate -s 1M base.img vm.raw
mkdir bad good

# Broken files go to bad/, with "TEXT<tab>NAME" for each in $tmp/cases.
# Those in good/ look odd but are not.
PYTHONPATH=$abs_srcdir /usr/bin/python3 - > "$tmp/cases" <<'PY'
from addcow_format import *

SIZE = 1024 * 1024
good = Metadata(SIZE, b"../base.img", b"../vm.raw").encode()
odd = 3 * 512
short = Metadata(odd, b"../base.img", b"../vm.raw").encode()


def bad(name, text, data):
    with open("bad/" + name, "wb") as f:
        f.write(data)
    print(text, name, sep="\t")


def at(offset, new, data=good):
    return data[:offset] + new + data[offset + len(new) :]


none = "not an add-cow file"
truncated = "truncated: shorter than its header and bitmap"
for i in range(8):
    for bit in 0, 7:
        bad("magic-%d-%d" % (i, bit), none, at(i, bytes([good[i] ^ 1 << bit])))
bad("magic-lower", none, at(0, b"add_cow\xff"))
bad("magic-swapped", none, at(0, MAGIC[::-1]))
bad("magic-later", none, b"\0" + good)
bad("zeroes", none, bytes(len(good)))
bad("qcow2", none, b"QFI\xfb\0\0\0\3" + bytes(4096))
bad("text", none, b"This is a text.\n")
bad("empty", none, b"")
bad("7-bytes", none, MAGIC[:7])
bad("2067-zeroes", none, bytes(2067))
bad("magic-short", none, at(7, b"\xfe")[:100])

bad("8-bytes", truncated, MAGIC)
bad("9-bytes", truncated, good[:9])
bad("12-bytes", truncated, good[:12])
bad("header-half", truncated, good[:1036])
bad("header-one-short", truncated, good[:2067])
bad("header-alone", truncated, good[:2068])
bad("bitmap-one-short", truncated, good[:-1])
bad("bitmap-of-one-short", truncated, short[:-1])
bad("size-one-more", truncated, at(SIZE_AT, (SIZE + 512).to_bytes(8, "big")))

version = "unknown add-cow version"
for v in 0, 2, 3, 255, 257, 0x01000000, 0x01000001, 2**31 + 1, 2**32 - 1:
    bad("version-%d" % v, version, at(VERSION_AT, v.to_bytes(4, "big")))

no_nul = b"x" * 1024
backing = "corrupt header: the backing file name has no end"
image = "corrupt header: the image file name has no end"
bad("backing-no-nul", backing, at(BACKING_AT, no_nul))
bad("image-no-nul", image, at(IMAGE_AT, no_nul))
bad("both-no-nul", backing, at(BACKING_AT, no_nul + no_nul))
bad("backing-no-nul-image-empty", backing, at(BACKING_AT, no_nul + bytes(1024)))
# A NUL there is, but it is the size's.
bad("image-no-nul-small", image, at(IMAGE_AT, no_nul, short))

sectors = "corrupt header: the disk size is not a multiple of 512"
large = "corrupt header: the disk size is 2^63 or more"


def size(name, text, n, order="big"):
    bad("size-" + name, text, at(SIZE_AT, n.to_bytes(8, order)))


size("1", sectors, 1)
size("511", sectors, 511)
size("513", sectors, 513)
size("minus-1", sectors, SIZE - 1)
size("plus-1", sectors, SIZE + 1)
size("plus-256", sectors, SIZE + 256)
size("2^63-1", sectors, 2**63 - 1)
size("2^63-256", sectors, 2**63 - 256)
size("2^63", large, 2**63)
size("2^63+1M", large, 2**63 + SIZE)
size("2^63+1", large, 2**63 + 1)
size("2^64-512", large, 2**64 - 512)
size("2^64-4096", large, 2**64 - 4096)
size("2^64-1", large, 2**64 - 1)
size("swapped", truncated, SIZE, "little")
size("swapped-2", truncated, 0x10200, "little")
size("swapped-3", large, SIZE | 0x80, "little")
size("2^63-512", truncated, 2**63 - 512)
size("2^62", truncated, 2**62)
size("2^32+1M", truncated, 2**32 + SIZE)


def fine(name, data):
    with open("good/" + name, "wb") as f:
        f.write(data)


fine("plain", good)
fine("longer", good + b"\xff" * 100)
fine("hints", at(BACKING_AT + 12, b"format=raw\0size=1048576\0\0"))
fine("hints-broken", at(BACKING_AT + 12, b"\xff" * 1012))
fine("image-rest", at(IMAGE_AT + 10, b"\xff" * 1014))
fine("stray-bits", short[:-1] + b"\xf8")
fine("size-0", Metadata(0, b"../base.img", b"../vm.raw").encode())
PY

# check TEXT FILE [as_nobody]: refused by both, in turn in their two forms,
# and by verbs of the tool that open all files, for writing and reading.
i=0
check ()
{
    local text="$2: $1" name=$2 output=human read_only=
    shift 2
    if ((i++ % 2)); then
        output=json
        read_only=-r
    fi
    fails_in_time "$text" "$@" addcow-img info --output=$output "$name"
    fails_in_time "$text" "$@" serve $read_only file addcow="$name"
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$text" "$@" addcow-img stream "$name"
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$text" "$@" addcow-img map --output=$output "$name"
}

for f in good/*; do
    addcow-img info "$f"
    serve file addcow="$f"
done

keep
n=0
while IFS=$'\t' read -r text name; do
    check "$text" "bad/$name"
    n=$((n + 1))
done < "$tmp/cases"
kept
[ "$n" -eq "$(find bad -type f | wc -l)" ]

# What is no file of data.
mkfifo bad/fifo
mkdir bad/folder
/usr/bin/python3 -c '
import socket
socket.socket(socket.AF_UNIX).bind("bad/socket")'
ln -s nowhere bad/dangling
ln -s loop-b bad/loop-a
ln -s loop-a bad/loop-b
ln -s fifo bad/fifo-link
ln -s folder bad/folder-link
ln -s zeroes bad/file-link
keep
check "not a regular file" bad/fifo
check "not a regular file" bad/fifo-link
check "not a regular file" bad/socket
check "not a regular file" /dev/zero
check "not a regular file" /dev/null
# The filter serves what is in them.
for name in bad/folder bad/folder-link bad/folder/; do
    fails_in_time "$name: Is a directory" addcow-img info "$name"
    fails_in_time "$name: Is a directory" addcow-img map "$name"
done
check "No such file or directory" bad/missing
check "No such file or directory" bad/missing/missing
check "No such file or directory" bad/dangling
check "Too many levels of symbolic links" bad/loop-a
check "Not a directory" bad/zeroes/x
check "not an add-cow file" bad/file-link
check "not an add-cow file" /proc/version
check "File name too long" "$(printf '%0256d' 0)"
kept

cp good/plain unreadable
chmod 000 unreadable
mkdir closed
cp good/plain closed/file
chmod 000 closed
keep
check "Permission denied" unreadable as_nobody
check "Permission denied" closed/file as_nobody
kept
chmod 700 closed

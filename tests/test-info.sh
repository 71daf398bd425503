#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img info: what it says, to people and as JSON, of files whose
# contents are known from elsewhere.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"

export PYTHONPATH=$abs_srcdir

### All of it, once.

random_file base.img 65536
mkdir sub
truncate -s 1M sub/vm.raw
dd if=base.img of=sub/vm.raw conv=notrunc status=none
sync sub/vm.raw
/usr/bin/python3 - <<'PY'
from addcow_format import *
bits = b"\xff" * 16 + b"\0" * 100 + b"\x81" * 2
open("sub/vm.add-cow", "wb").write(
    Metadata(1 << 20, b"../base.img", b"vm.raw", bits).encode())
PY
sync sub/vm.add-cow

keep
addcow-img info sub/vm.add-cow > "$tmp/out"
kept
image_kib=$(($(stat -c %b sub/vm.raw) / 2))
metadata_kib=$(($(stat -c %b sub/vm.add-cow) / 2))
diff "$tmp/out" - <<TEXT
image: sub/vm.add-cow
file format: add-cow
virtual size: 1 MiB (1048576 bytes)
disk size: $metadata_kib KiB
backing file: ../base.img (actual path: $PWD/sub/../base.img)
image file: vm.raw (actual path: $PWD/sub/vm.raw)
image file disk size: $image_kib KiB
allocated: 66 KiB (67584 bytes, 6.44%)
complete: false
in use: false
TEXT
addcow-img info --output=human sub/vm.add-cow | diff - "$tmp/out"

addcow-img info --output=json sub/vm.add-cow > "$tmp/out"
/usr/bin/python3 - "$tmp/out" <<'PY'
import json, os, sys

cwd = os.getcwd()
got = json.load(open(sys.argv[1]))
want = {
    "virtual-size": 1048576,
    "filename": "sub/vm.add-cow",
    "format": "add-cow",
    "actual-size": os.stat("sub/vm.add-cow").st_blocks * 512,
    "backing-filename": "../base.img",
    "full-backing-filename": cwd + "/sub/../base.img",
    "format-specific": {
        "type": "add-cow",
        "data": {
            "image-filename": "vm.raw",
            "full-image-filename": cwd + "/sub/vm.raw",
            "image-actual-size": os.stat("sub/vm.raw").st_blocks * 512,
            "allocated-bytes": 67584,
            "percent": 6.44,
            "complete": False,
            "in-use": False,
        },
    },
}
assert got == want, got
PY

### Bits.

# For each case, a file; "NAME ALLOCATED-BYTES PERCENT COMPLETE".
/usr/bin/python3 - > "$tmp/cases" <<'PY'
import random
from addcow_format import *

random.seed(4)


def case(name, size, bitmap, after=b""):
    m = Metadata(size, b"", b"vm.raw", bitmap, after)
    with open(name, "wb") as f:
        f.write(m.encode())
    n = sum(m.allocated())
    total = m.sectors()
    percent = "%.2f" % (10000 * n // total / 100 if total else 100)
    print(name, n * 512, percent, str(n == total).lower())


for sectors in 1, 7, 8, 9, 63, 64, 65, 4095, 4096, 16223, 16224, 16225, 48993:
    n = bitmap_length(sectors * 512)
    name = "s%d-" % sectors
    ones = b"\xff" * n
    used = sectors % 8
    stray = 0 if used == 0 else 0xFF << used & 0xFF
    case(name + "none", sectors * 512, b"", b"\xff" * 5000)
    case(name + "all", sectors * 512, ones)
    case(name + "all-after", sectors * 512, ones, ones)
    # Only bits that are no sector's, but for the first.
    case(name + "stray", sectors * 512, bytes(n - 1) + bytes([stray]))
    case(name + "exact", sectors * 512, ones[:-1] + bytes([0xFF & ~stray]))
    last = 1 << (sectors - 1) % 8
    case(name + "last", sectors * 512, bytes(n - 1) + bytes([last]))
    case(
        name + "but-last", sectors * 512, ones[:-1] + bytes([0xFF & ~last])
    )
    case(name + "but-first", sectors * 512, b"\xfe" + ones[1:])
    case(name + "random", sectors * 512, random.randbytes(n), ones)
case("empty", 0, b"")
case("empty-after", 0, b"", b"\xff" * 4096)
PY
while read -r name bytes percent complete; do
    addcow-img info "$name" > out
    grep -q "^allocated: .* ($bytes bytes, $percent%)\$" out
    grep -qx "complete: $complete" out
    addcow-img info --output=json "$name" > out
    grep -q "\"allocated-bytes\": $bytes,\$" out
    grep -q "\"percent\": $percent,\$" out
    grep -q "\"complete\": $complete,\$" out
done < "$tmp/cases"
rm s*-* empty* out

### Names.

# Files that are named need not be there; what is a URI has no path; where
# the path is the name it is not said twice.
info_has ()
{
    addcow-img info x.add-cow > out
    grep -xF "$1" out
}
metadata x.add-cow size=4096 backing=nbd://host/x image=ssh:y
info_has "backing file: nbd://host/x"
info_has "image file: ssh:y"
metadata x.add-cow size=4096 backing=/missing/x image=file:/missing/y
info_has "backing file: /missing/x"
info_has "image file: file:/missing/y (actual path: /missing/y)"
metadata x.add-cow size=4096
[ -z "$(addcow-img info x.add-cow | grep -e 'backing file' -e 'image file')" ]
# Through a link from elsewhere.
metadata x.add-cow size=4096 backing=b image=i
ln -s ../x.add-cow sub/link
(cd sub && addcow-img info link) > out
grep -xF "backing file: b (actual path: $PWD/b)" out
grep -xF "image file: i (actual path: $PWD/i)" out

# To people, what would make lines or do something to a terminal is said in
# digits; all other text is as it is.
name=$'a\nin use: true\t\x01\e[2J\x7f\r\\ \xc2\x9b2J ä/ü\xff'
said='a\012in use: true\011\001\033[2J\177\015\\ \302\2332J ä/ü'$'\xff'
metadata $'n\n\e' size=4096 backing="$name" image="$name"
addcow-img info $'n\n\e' > out
[ "$(wc -l < out)" -eq 9 ]
grep -axF 'image: n\012\033' out
grep -axF "backing file: $said (actual path: $PWD/$said)" out
grep -axF "image file: $said (actual path: $PWD/$said)" out
grep -axF "in use: false" out
rm n*

# JSON has names that are text as they are.
name=$'a "b" \\c\td\ne\x01\x7f ä/ü'
metadata "$PWD/n" size=4096 backing="$name" image="$name"
mkdir "$PWD/sub/"$'\n'
mv n sub/$'\n/n'
addcow-img info --output=json sub/$'\n/n' > out
/usr/bin/python3 - "$name" <<'PY'
import json, os, sys

got = json.load(open("out", "rb"))
name = os.fsencode(sys.argv[1]).decode()
assert got["filename"] == "sub/\n/n"
assert got["backing-filename"] == name
assert got["full-backing-filename"] == os.getcwd() + "/sub/\n/" + name
assert got["format-specific"]["data"]["image-filename"] == name
PY

### Large ones.

# A bitmap of 256 GiB, with one bit at either end of the disk.
/usr/bin/python3 - <<'PY'
from addcow_format import *

size = 1 << 50
with open("large", "wb") as f:
    f.write(Metadata(0, b"base.img", b"vm.raw").encode())
    f.seek(SIZE_AT)
    f.write(size.to_bytes(8, "big"))
    f.write(b"\x01")
    f.seek(BITMAP_AT + bitmap_length(size) - 1)
    f.write(b"\x80")
PY
in_time addcow-img info large > out
grep -xF "virtual size: 1 PiB (1125899906842624 bytes)" out
grep '^allocated: 1 KiB (1024 bytes, ' out
rm large

# Names that are not UTF-8 do not make it bad JSON.
addcow-img create -q -i $'bad\xff\xe4name' latin.add-cow 1M
addcow-img info --output=json latin.add-cow > out
/usr/bin/python3 -c '
import json
data = json.load(open("out", encoding="utf-8"))["format-specific"]["data"]
assert data["image-filename"] == "bad\ufffd\ufffdname", data'

# Nor do those that end in the middle of a character, or with one that Unicode
# has not.
for name in $'x\xc3' $'\xe4\xbd' $'\xff' $'\xf4\x90\x80\x80' \
            $'x\xf7\xbf\xbf\xbf' $'\xed\xa0\x80' $'\xc0\x80'; do
    addcow-img create -q -f -i "$name" latin.add-cow 1M
    addcow-img info --output=json latin.add-cow > out
    want=${name//[$'\x80'-$'\xff']/?} /usr/bin/python3 -c '
import json, os
data = json.load(open("out", encoding="utf-8"))["format-specific"]["data"]
assert data["image-filename"].replace("\ufffd", "?") == os.environ["want"], data'
done

### All there is to say of a file without names; who may only read it.

metadata bare.add-cow size=4096
addcow-img info --output=json bare.add-cow > out
/usr/bin/python3 -c '
import json, os
got = json.load(open("out"))
assert got == {
    "virtual-size": 4096, "filename": "bare.add-cow", "format": "add-cow",
    "actual-size": os.stat("bare.add-cow").st_blocks * 512,
    "format-specific": {"type": "add-cow", "data": {
        "allocated-bytes": 0, "percent": 0.0, "complete": False, "in-use": False}}}, got'
mkdir -p folder.raw
metadata folder.add-cow size=4096 image=folder.raw
[ "$(addcow-img info folder.add-cow | grep -c "disk size")" -eq 1 ]
[ "$(addcow-img info --output=json folder.add-cow |
    grep -c image-actual-size)" -eq 0 ]
chmod 755 .
chmod 444 bare.add-cow
as_nobody addcow-img info bare.add-cow

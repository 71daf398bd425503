#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What addcow-img map refuses, and what it does when something fails half-way.
# Bad metadata files, images and backing files are in test-bad-metadata.sh and
# test-bad-image.sh.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"
export PYTHONPATH=$abs_srcdir

size=65536
random_file base.img $size
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw

# bad TEXT ARGUMENT...
bad ()
{
    refused "$1" addcow-img map "${@:2}"
}

as_nobody_bad ()
{
    refused "$1" as_nobody addcow-img map "${@:2}"
}

### Arguments.

help="(see addcow-img map --help)"
bad "addcow-img: map: "
bad "exactly one FILE is needed $help"
bad "exactly one FILE is needed $help" vm.add-cow vm.add-cow
bad "FILE must not be empty $help" ''
bad "unknown option '-x' $help" -x vm.add-cow
bad "unknown option '-f' $help" -f raw vm.add-cow
bad "unknown option '--watch' $help" --watch vm.add-cow
bad "a value is missing after '--output' $help" vm.add-cow --output
bad "No such file or directory" -- --output
for output in '' xml JSON 'json,' jsonx 'human '; do
    bad "--output must be human or json $help" --output="$output" vm.add-cow
done

### Files.

bad "missing.add-cow: No such file or directory" missing.add-cow
mkdir folder
bad "folder: Is a directory" folder
for n in 0 7; do
    head -c $n vm.add-cow > tiny
    bad "tiny: not an add-cow file" tiny
done
for n in 8 2067 2068 2083; do
    head -c $n vm.add-cow > tiny
    bad "tiny: truncated: shorter than its header and bitmap" tiny
done
rm tiny

# The image is where only a server would be told.
metadata none.add-cow size=$size backing=base.img
bad "none.add-cow: names no image file" none.add-cow
rm none.add-cow
truncate -s $((size - 1)) short.raw
metadata short.add-cow size=$size backing=base.img image=short.raw
bad "short.raw: image file is shorter than the virtual disk" --output=json \
    short.add-cow
rm short.*

# What cannot be read; nothing need be writable.
for name in vm.add-cow vm.raw base.img; do
    chmod 000 $name
    as_nobody_bad "$name: Permission denied" vm.add-cow
    chmod 444 $name
done
as_nobody addcow-img map vm.add-cow > out
[ "$(wc -l < out)" -eq 2 ]
chmod 644 vm.add-cow vm.raw base.img
rm out

# One overlay is a backing file of itself.
truncate -s $size 1.raw
addcow-img create -q -b base.img 1.add-cow
truncate -s $size loop.raw
addcow-img create -q -b 1.add-cow -F add-cow loop.add-cow
addcow-img create -q -f -b loop.add-cow -F add-cow -i 1.raw 1.add-cow
bad "is a backing file of itself" loop.add-cow
rm loop.* 1.*

# What the backing file is has to be said when the overlay is made.
truncate -s $size odd.img
printf 'QFI\xfb' | dd of=odd.img conv=notrunc status=none
metadata odd.add-cow size=$size backing=odd.img image=vm.raw
bad "only when odd.add-cow says so: say what it is with addcow-img rebase -u" \
    odd.add-cow
rm odd.*

### What fails half-way.

# map ARGUMENT...: with fault_inject in it.
map ()
{
    "${RUN[@]}" env LD_PRELOAD="${_preload:+$_preload:}$fault_inject" \
        "${VG[@]}" "$addcow_img" map "$@"
}

# Nothing was printed of what was found before: the image is shorter when all
# files were opened.
printf '\377\0\0\377\0\0\0\0\377' |
    dd of=vm.add-cow bs=1 seek=2068 conv=notrunc status=none
for output in human json; do
    random_file vm.raw $size
    FAULT_RUN_CALL=fcntl FAULT_RUN_FILE=base.img \
        FAULT_RUN='truncate -s 16K vm.raw' \
        in_time fails_with "vm.raw: Input/output error" \
        map --output=$output vm.add-cow
done

# Of a long map there may be rows; then there is an error, and the JSON is not
# whole.  Who reads lets reading fail when he has seen a row, and the rest is
# more than what is on its way then.
/usr/bin/python3 - <<'PY'
from addcow_format import Metadata

size = 64 << 20
open("vm.add-cow", "wb").write(
    Metadata(size, b"base.img", b"vm.raw", b"\x55" * (size // 4096)).encode())
for name in "vm.raw", "base.img":
    open(name, "wb").truncate(size)
PY
cat > reader.py <<'PY'
import json, os, subprocess, sys

output, command = sys.argv[1], sys.argv[2:]
child = subprocess.Popen(
    [*command, "map", "--output=" + output, "vm.add-cow"],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
first = child.stdout.readline()
open(os.environ["FAULT_TRIGGER"], "w")
text = first + child.stdout.read()
errors = child.stderr.read()
os.unlink(os.environ["FAULT_TRIGGER"])
assert child.wait() == 1
assert errors == "addcow-img: vm.add-cow: Input/output error\n", errors
assert len(text) > 1 << 20
assert text.endswith("}"), text[-200:]
rows = json.loads(text + "]")
assert 5000 < len(rows) < 131072, len(rows)
assert rows[-1]["start"] == sum(row["length"] for row in rows[:-1])
PY
export FAULT_CALL=pread FAULT_FILE=vm.add-cow FAULT_ERRNO=5
export FAULT_TRIGGER=$tmp/trigger
if [ -z "$ADDCOW_VALGRIND" ]; then
    timeout 120 /usr/bin/python3 reader.py json env \
        LD_PRELOAD="${_preload:+$_preload:}$fault_inject" "$addcow_img"
fi
unset "${!FAULT_@}"

# What is not read is not told to have been, be it little or much.
to_full ()
{
    addcow-img map "$@" > /dev/full
}
full="standard output: No space left on device"
[ -n "$ADDCOW_VALGRIND" ] ||
    fails_in_time "$full" to_full --output=json vm.add-cow
fails_in_time "$full" to_full vm.add-cow
fails_in_time "$full" to_full --help

### In use.

# Files below that somebody writes to.
in_use="in use by another process"
rm vm.raw vm.add-cow
truncate -s $size vm.raw over.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw
addcow-img create -q -b vm.add-cow -F add-cow over.add-cow
requires qemu-nbd --version
for file in vm.raw base.img; do
    rm -f "$tmp/qemu.pid"
    qemu-nbd -t -f raw -k "$tmp/qemu" --fork --pid-file="$tmp/qemu.pid" $file
    server=$(cat "$tmp/qemu.pid")
    cleanup_fn "kill $server 2>/dev/null || :"
    bad "$file: $in_use" vm.add-cow
    bad "$file: $in_use" over.add-cow
    kill "$server"
    while kill -0 "$server" 2>/dev/null; do sleep 0.1; done
done
addcow-img map over.add-cow

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Wherever addcow-img create and stream crash: create leaves no FILE or a
# whole one, and never a part of an image under its name; stream leaves the
# disk what it was, and another one goes on from there.  And crash.sh, which
# tests that, sees every call and every failure.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/crash.sh"

export PYTHONPATH=$abs_srcdir
size=$((1024 * 1024))
random_file base.img $size
fallocate -p -o $((size / 2)) -l 64K base.img

cat > overlay.py <<'PY'
"""begin: of vm.add-cow make old.add-cow, old.raw, in which something is
allocated, and "disk".  same: the disk is still that, and no bit was lost."""
import random
import sys
from addcow_format import BITMAP_AT, Metadata, SECTOR


def read(name):
    return open(name, "rb").read()


def write(name, data):
    open(name, "wb").write(data)


base = read("base.img")


def begin():
    header = read("vm.add-cow")[:BITMAP_AT]
    m = Metadata(len(base))
    image = bytearray(len(base))
    r = random.Random(1)
    for first in r.sample(range(0, m.sectors(), 8), 10):
        for s in range(first + r.randrange(3), first + 5):
            m.set(s)
            image[s * SECTOR:(s + 1) * SECTOR] = r.randbytes(SECTOR)
    write("old.add-cow", header + m.bitmap)
    write("old.raw", image)
    write("disk", content(m, image))


def content(m, image):
    assert len(image) == len(base)
    out = bytearray(base)
    for s, allocated in enumerate(m.allocated()):
        if allocated:
            at = slice(s * SECTOR, (s + 1) * SECTOR)
            out[at] = image[at]
    return out


def same():
    old, new = read("old.add-cow"), read("vm.add-cow")
    assert len(new) == len(old) and new[:BITMAP_AT] == old[:BITMAP_AT]
    assert all(n & o == o for o, n in zip(old[BITMAP_AT:], new[BITMAP_AT:]))
    m = Metadata.decode(new)
    assert content(m, read("vm.raw")) == read("disk")
    print("allocated:", sum(m.allocated()))


globals()[sys.argv[1]]()
PY

### create.

no_files ()
{
    rm -rf vm.* .addcow-*
}

# whole FILE: as a create that nothing went wrong with has made it.
addcow-img create -q -b base.img -i vm.raw whole.add-cow
rm vm.raw
whole ()
{
    cmp "$1" whole.add-cow
    [ "$(stat -c %s vm.raw)" -eq $size ]
}

none_or_whole ()
{
    if [ -e vm.raw ]; then [ "$(stat -c %s vm.raw)" -eq $size ]; fi
    if [ -e vm.add-cow ]; then whole vm.add-cow; fi
    # Half of the header, whole sectors.
    if [ -n "$crash_part" ]; then [ "$(stat -c %s .addcow-*)" -eq 1024 ]; fi
    if [ "$crash_at" = "done" ]; then
        whole vm.add-cow
        [ -z "$(find . -name '.addcow-*')" ]
    fi
    # What a crash left is not in the way of another one.
    unwatched addcow-img create -q -f -b base.img vm.add-cow
    whole vm.add-cow
}

crash_each no_files none_or_whole addcow-img create -q -b base.img vm.add-cow

# Every call was seen, each once.
sed 's,[^ ]*/,,; s,\.addcow-[A-Za-z0-9]*,TEMP,' "$tmp/crash-calls" > calls
diff calls - <<'CALLS'
1 mkostemp TEMP
2 ftruncate TEMP
3 fsync TEMP
4 renameat2 TEMP
5 fsync t
6 mkostemp TEMP
7 pwrite TEMP
7 half pwrite TEMP
8 ftruncate TEMP
9 fsync TEMP
10 renameat2 TEMP
11 fsync t
CALLS

# Over another one, whose image it gets.
old_files ()
{
    no_files
    unwatched addcow-img create -q vm.add-cow $size
    cp vm.add-cow vm.old
}

old_or_whole ()
{
    if [ "$crash_at" = "done" ] || ! cmp vm.add-cow vm.old; then
        whole vm.add-cow
    fi
    [ "$(stat -c %s vm.raw)" -eq $size ]
}

crash_each old_files old_or_whole \
    addcow-img create -q -f -b base.img vm.add-cow

### stream.

old_overlay ()
{
    no_files
    cp old.add-cow vm.add-cow
    cp --sparse=always old.raw vm.raw
}

still_the_disk ()
{
    /usr/bin/python3 overlay.py same
    if [ "$crash_at" = "done" ]; then
        grep -F "vm.raw stands alone" "$tmp/out"
    else
        addcow-img stream -q vm.add-cow
    fi
    cmp vm.raw disk
    unwatched addcow-img info vm.add-cow | grep -x "complete: true"
}

# Where the system copies, and where it cannot.
addcow-img create -q -b base.img layer
for backing in "base.img -F raw" "layer -F add-cow"; do
    no_files
    # shellcheck disable=SC2086 # it is more than one word
    addcow-img create -q -b $backing vm.add-cow
    /usr/bin/python3 overlay.py begin
    crash_each old_overlay still_the_disk addcow-img stream vm.add-cow
    cat "$tmp/crash-calls"
done
# Under valgrind these may be left out.
for call in "pwrite $tmp/t/vm.raw" "fdatasync $tmp/t/vm.raw" \
            "pwrite $tmp/t/vm.add-cow" "fdatasync $tmp/t/vm.add-cow"; do
    [ -n "$ADDCOW_VALGRIND" ] || grep -F " $call" "$tmp/crash-calls"
done

### What crash.sh sees.  That has nothing to do with valgrind.

[ -z "$ADDCOW_VALGRIND" ] || exit 0

# ends_at TEXT PREPARE LOOK COMMAND...: crash_each ends the test.
ends_at ()
{
    local text=$1 status=0
    shift
    # In the background, where it is no part of a list, so that bash sees
    # what fails.
    ( set -e; crash_each "$@" ) > "$tmp/ended" 2>&1 &
    wait $! || status=$?
    cat "$tmp/ended"
    [ $status -eq 1 ]
    grep -F -- "$text" "$tmp/ended"
}

fails_first ()
{
    echo "fails first"
    [ -e nothing ]
    rm -rf nothing
}

fails_at_3 ()
{
    echo "looks at $crash_at"
    [ "$crash_at" != 3 ]
    true
}

fails_when_done ()
{
    echo "looks at $crash_at"
    [ "$crash_at" != "done" ]
    true
}

create=(addcow-img create -q -b base.img vm.add-cow)
ends_at "fails first" fails_first none_or_whole "${create[@]}"
ends_at "looks at 3" no_files fails_at_3 "${create[@]}"
ends_at "looks at done" no_files fails_when_done "${create[@]}"
ends_at "status 1" true true "${create[@]}"
no_files
ends_at "only 0 calls" true true addcow-img info whole.add-cow
ends_at "no addcow-img" true true cp base.img vm.raw

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow=FOLDER: when the last client leaves and what it wrote cannot be
# committed, that is tried again; if it fails still, what is lost is told, and
# no other overlay has anything to do with it.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
VG=() # as unwatched does

size=65536
random_file base.img $size
mkdir vms
for name in one two; do
    addcow-img create -q -F raw -b ../base.img vms/$name.add-cow
done
# Parameters that are given with names of files.
cp base.img other.img

preload=$fault_inject
export FAULT_TRIGGER=$tmp/trigger FAULT_CALL FAULT_FILE=one.add-cow \
    FAULT_ERRNO=28

# leave OFFSET DATA: a client of one writes and leaves while it fails; one of
# two is there.
cat > leave.py <<'PY'
import sys
from nbd_client import connect

sock, offset, data = sys.argv[1:]
one, two = (connect("nbd+unix:///%s?socket=%s" % (name, sock))
            for name in ("one", "two"))
for h in one, two:
    h.pwrite(data.encode() * 512, int(offset))
open("trigger", "w").close()
one.shutdown()
two.shutdown()
PY
# has NAME OFFSET DATA: it is committed.
has ()
{
    /usr/bin/python3 - "$@" <<'PY'
import sys
from addcow_format import Metadata
name, offset, data = sys.argv[1:]
offset = int(offset)
with open("vms/%s.add-cow" % name, "rb") as f:
    bits = Metadata.decode(f.read()).bitmap
assert bits[offset // 4096] & 1 << offset // 512 % 8
with open("vms/%s.raw" % name, "rb") as f:
    f.seek(offset)
    assert f.read(512) == data.encode() * 512
PY
}

for FAULT_CALL in pwrite fdatasync; do
    export FAULT_ONCE=yes
    start_nbdkit sock --filter="$addcow" file addcow=vms \
        addcow-commit-interval=0 addcow-backing=file:other.img 2>log
    /usr/bin/python3 leave.py "$tmp/sock" 0 a
    wait_for test ! -e trigger
    stop_nbdkit "$pid"
    cat log
    has one 0 a
    has two 0 a
    grep -F 'one.add-cow: what was allocated lately could not be committed' log
    if grep -F 'is lost' log; then exit 1; fi
    addcow-img create -q -f -F raw -b ../base.img vms/one.add-cow

    # It goes on failing; the server goes on.
    unset FAULT_ONCE
    start_nbdkit sock --filter="$addcow" file addcow=vms \
        addcow-commit-interval=0 addcow-confine=none 2>log
    /usr/bin/python3 leave.py "$tmp/sock" 1024 b
    wait_for grep -F 'since the last commit is lost' log
    has two 1024 b
    rm trigger
    nbdsh -u "nbd+unix:///one?socket=$tmp/sock" -c "
want = bytearray(open('base.img', 'rb').read())
got = h.pread($size, 0)
# What was written and not synced may be there or not.
if '$FAULT_CALL' == 'fdatasync' and got != want:
    want[1024:1536] = b'b' * 512
assert got == want
h.pwrite(b'c' * 512, 2048)
h.flush()"
    has one 2048 c
    stop_nbdkit "$pid"
    cat log
    grep -F 'is lost' log | grep -F 'two.add-cow' && exit 1
done
true

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow=FOLDER: when the last client leaves and what it wrote cannot be
# committed, the overlay is kept and that is tried again: when the interval is
# over, when a client comes, who has it opened anew or is refused, and when the
# server stops.  If all of that fails, what is lost is told.  No other overlay
# has anything to do with it.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
export patience # to Python
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
export FAULT_TRIGGER=$tmp/trigger FAULT_CALL FAULT_FILE FAULT_ERRNO

# leave OFFSET DATA: a client of one writes and leaves while it fails; one of
# two is there.
cat > leave.py <<'PY'
import sys
from nbd_client import connect

sock, offset, data = sys.argv[1:]
one, two = (connect("nbd+unix:///%s?socket=%s" % (name, sock))
            for name in ("one", "two"))
open("trigger", "w").close()
for h in one, two:
    h.pwrite(data.encode() * 512, int(offset))
one.shutdown()
two.shutdown()
PY
leave ()
{
    /usr/bin/python3 leave.py "$tmp/sock" "$@"
}

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

kept='one.add-cow: is kept open until it can be committed'
lost='since the last commit is lost'

start ()
{
    start_nbdkit sock --filter="$addcow" file addcow=vms \
        addcow-confine=none "$@" 2>log
}

stop ()
{
    stop_nbdkit "$pid"
    cat log
}

# is_kept TIMES: it was said as often.
is_kept ()
{
    test "$(grep -cF "$kept" log)" = "$1"
}

# Nothing of two failed, nothing of one was lost.
is_safe ()
{
    if grep -F "$lost" log; then exit 1; fi
    if grep -F 'two.add-cow' log; then exit 1; fi
}

# refused: a client of one is, as it cannot be committed.
refused ()
{
    if nbdinfo "nbd+unix:///one?socket=$tmp/sock"; then exit 1; fi
    grep -F 'one.add-cow: cannot be opened before' log
}

# try CALL FILE ERRNO: what is asked for last fails on the file FILE.
try ()
{
    FAULT_CALL=$1 FAULT_FILE=$2 FAULT_ERRNO=$3
    addcow-img create -q -f -F raw -b ../base.img vms/one.add-cow

    # Once: it is tried again at once.
    export FAULT_ONCE=yes
    start addcow-commit-interval=0 addcow-backing=file:other.img
    leave 0 a
    wait_for test ! -e trigger
    stop
    has one 0 a
    has two 0 a
    grep -F 'one.add-cow: what was allocated lately could not be committed' log
    if grep -F "$kept" log; then exit 1; fi
    is_safe
    addcow-img create -q -f -F raw -b ../base.img vms/one.add-cow
    unset FAULT_ONCE

    # It goes on failing, until clients come: some at once.
    start addcow-commit-interval=0
    leave 1024 b
    wait_for grep -F "$kept" log
    has two 1024 b
    if addcow-img check -q -r vms/one.add-cow; then exit 1; fi
    refused
    rm trigger
    /usr/bin/python3 - "$tmp/sock" <<'PY'
import sys
from concurrent.futures import ThreadPoolExecutor
from nbd_client import connect

def come(i):
    h = connect("nbd+unix:///one?socket=%s" % sys.argv[1])
    return h, h.pread(65536, 0)

want = bytearray(open("base.img", "rb").read())
want[1024:1536] = b"b" * 512
with ThreadPoolExecutor(4) as pool:
    came = list(pool.map(come, range(4)))
for h, got in came:
    assert got == want
h.pwrite(b"c" * 512, 2048)
h.flush()
for h, _ in came:
    h.shutdown()
PY
    has one 1024 b
    has one 2048 c
    # And it is closed.
    wait_for addcow-img check -q -r vms/one.add-cow
    stop
    is_safe
    is_kept 1

    # Until the interval is over, without a client.
    start addcow-commit-interval=1
    leave 3072 d
    wait_for grep -F "$kept" log
    rm trigger
    wait_for grep -F 'what could not be committed is committed' log
    wait_for addcow-img check -q -r vms/one.add-cow
    has one 3072 d
    # One more time: all is as it was.
    leave 4096 e
    wait_for is_kept 2
    rm trigger
    stop
    has one 4096 e
    is_safe

    # Until the server stops.
    start addcow-commit-interval=0
    leave 5120 f
    wait_for grep -F "$kept" log
    rm trigger
    stop
    has one 5120 f
    is_safe
    grep -F 'one.add-cow: what could not be committed is committed' log

    # To the end.
    start addcow-commit-interval=0
    leave 6144 g
    wait_for grep -F "$kept" log
    stop
    grep -F "one.add-cow: what was allocated $lost" log
    if grep -F 'two.add-cow' log; then exit 1; fi
    rm trigger
}
try pwrite one.add-cow 28
try fdatasync one.add-cow 5
try fdatasync one.raw 5

# The name is another overlay's by now: the old one is committed, and who asks
# for the name has the new one.
FAULT_CALL=pwrite FAULT_FILE=one.add-cow FAULT_ERRNO=28
addcow-img create -q -f -F raw -b ../base.img vms/one.add-cow
random_file new.img $size
addcow-img create -q -F raw -b ../new.img vms/new.add-cow
start addcow-commit-interval=0
leave 0 h
wait_for grep -F "$kept" log
mv vms/one.add-cow vms/old.add-cow
mv vms/new.add-cow vms/one.add-cow
rm trigger
nbdsh -u "nbd+unix:///one?socket=$tmp/sock" -c "
assert h.pread($size, 0) == open('new.img', 'rb').read()"
stop
is_safe
mv vms/old.add-cow vms/one.add-cow
has one 0 h

# A backing file that is let go of in the meantime is there again; the image
# is filled while there is a client, and stands alone in the end.
start_base base file base.img
for backing in "raw $base_uri" "add-cow base.add-cow"; do
    for on_read in no yes; do
        rm -f vms/*
        addcow-img create -q -F raw -b ../base.img vms/base.add-cow
        for name in one two; do
            addcow-img create -q -F "${backing% *}" -b "${backing#* }" \
                vms/$name.add-cow $size
        done
        start addcow-commit-interval=0 addcow-on-read=$on_read \
            addcow-hydrate="$tmp/switch"
        leave 0 i
        wait_for grep -F "$kept" log
        refused
        touch switch
        rm trigger
        nbdsh -u "nbd+unix:///one?socket=$tmp/sock" -c "
from fill_client import wait_for
want = b'i' * 512 + open('base.img', 'rb').read()[512:]
assert h.pread($size, 0) == want
wait_for(lambda: 'one.raw stands alone' in open('log').read())
assert h.pread($size, 0) == want"
        rm switch
        stop
        if grep -F "$lost" log; then exit 1; fi
        { printf 'i%.0s' {1..512}; tail -c +513 base.img; } > want
        cmp want vms/one.raw
    done
done

# There is no file descriptor left with which to try again, for a while.
rm -f vms/*
for name in one two; do
    addcow-img create -q -F raw -b ../base.img vms/$name.add-cow
done
start addcow-commit-interval=1
cat > few.py <<'PY'
import resource, sys
from fill_client import wait_for
from nbd_client import connect

sock, pid = sys.argv[1], int(sys.argv[2])
h = connect("nbd+unix:///one?socket=" + sock)
open("trigger", "w").close()
h.pwrite(b"j" * 512, 0)
limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
# What is open stays open.
resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limit[1]))
h.shutdown()
wait_for(lambda: "is kept open" in open("log").read())
resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
PY
/usr/bin/python3 few.py "$tmp/sock" "$pid"
grep -F 'one.raw: cannot be opened to commit what was written to it' log
rm trigger
wait_for grep -F 'what could not be committed is committed' log
stop
has one 0 j
if grep -F "$lost" log; then exit 1; fi

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Hydration where something fails: what cannot be read is left for later and
# all else is filled; a disk that is full makes it pause; each is told once,
# and when the cause is gone it goes on by itself.  Guests go on, and a server
# that is to end ends.

source ./functions.sh
set -e
set -x

requires prlimit --version
requires_filter error
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/filling.sh"

MiB=$((1024 * 1024))
size=$((8 * MiB))
random_file base.img $size
elsewhere="filling goes on elsewhere and tries again"

# same: the disk has the content of base.img, as it may be read.
same ()
{
    nbdsh -u "$uri" -c "
base = open('base.img', 'rb').read()
for at in range(0, $size, 1 << 20):
    assert h.pread(1 << 20, at) == base[at:at + (1 << 20)]"
}

# finish: it fills until it stands alone, having told of TEXT once.
finish ()
{
    wait_for alone log
    same
    stop_nbdkit "$pid"
    cat log
    alone log
    [ "$(told log "$1")" -eq 1 ]
    cmp base.img vm.raw
}

### Parts of the backing file that cannot be read.

# Each line of "bad" is the beginning and the end of one.
cat > bad.sh <<'SH'
echo "$4 $3" >> "$tmp/asked"
if [ -e "$tmp/bad" ]; then
    while read -r begin end; do
        if [ "$4" -lt "$end" ] && [ $(($4 + $3)) -gt "$begin" ]; then
            echo "$4 $3" >> "$tmp/refused"
            echo EIO bad >&2
            exit 1
        fi
    done < "$tmp/bad"
fi
dd if="$tmp/base.img" bs=256K skip="$4" count="$3" \
    iflag=skip_bytes,count_bytes status=none
SH
# shellcheck disable=SC2016 # for the plugin
start_serial base.sock -r eval get_size="echo $size" \
    pread='. $tmp/bad.sh' 2>/dev/null
cat > bad <<END
$((2 * MiB + 5000)) $((2 * MiB + 5001))
$((5 * MiB)) $((6 * MiB + 1024))
END
addcow-img create -q -b "$base_uri" -F raw vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true addcow-commit-interval=1 2>log
cat > others.py <<'PY'
"""others.py: what is not near to a bad part is filled, and no bad one."""
from fill_client import *
M = 1 << 20
got = set(bits("vm.add-cow"))
assert set(sectors((0, 2 * M), (3 * M, 2 * M), (7 * M, M))) <= got
assert not got & set(sectors((2 * M + 5000, 1), (5 * M, M + 1024)))
PY
wait_for python others.py
# It tries again, and tells nothing more; but it does not do that all the time.
wait_for eval '[ "$(wc -l < refused)" -ge 8 ]'
count=$(wc -l < refused)
sleep 1
[ "$(wc -l < refused)" -le $((count + 100)) ]
cat log
text="$base_uri: reading the backing file: Input/output error: $elsewhere"
[ "$(told log "$text")" -eq 1 ]
# A guest gets its own errors, and all else.
nbdsh -u "$uri" -c "
import errno
base = open('base.img', 'rb').read()
assert h.pread(1 << 20, 3 << 20) == base[3 << 20:][:1 << 20]
try:
    h.pread(512, 5 << 20)
    raise AssertionError('did not fail')
except nbd.Error as ex:
    assert ex.errnum == errno.EIO, ex
h.pwrite(b'w' * 512, 5 << 20)
assert h.pread(512, 5 << 20) == b'w' * 512
h.flush()
"
# It ends when it is to, and goes on after.
ends_soon "$pid"
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true addcow-commit-interval=1 2>log
wait_for eval "told log '$text' | grep -x 1"
rm bad
nbdsh -u "$uri" -c "
h.pwrite(open('base.img', 'rb').read()[5 << 20:][:512], 5 << 20)"
finish "$text"
stop_nbdkit "$base_pid" KILL

### The server with the backing file goes, and comes back.

start_it ()
{
    start_serial base.sock -r file base.img
}
start_it
rm -f vm.*
addcow-img create -q -b "$base_uri" -F raw vm.add-cow
# Slowly, or all could be there before the server goes.
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true addcow-hydrate-rate=100K addcow-commit-interval=1 \
    addcow-backing-timeout=$lost_seconds 2>log
wait_for has_bits vm.add-cow 1
stop_nbdkit "$base_pid" KILL
wait_for eval "told log '$text' | grep -x 1"
nbdsh -u "$uri" -c '
assert h.pread(512, 0) == open("base.img", "rb").read(512)
h.pwrite(open("base.img", "rb").read(1024), 0)
h.flush()
'
complete vm.add-cow false
ends_soon "$pid"
# It is there when this starts, or it would not.
start_it
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true addcow-hydrate-rate=100K addcow-commit-interval=1 \
    addcow-on-cache=true addcow-backing-timeout=$lost_seconds 2>log
wait_for has_bits vm.add-cow $(($(bits vm.add-cow) + 1))
stop_nbdkit "$base_pid" KILL
wait_for eval "told log '$text' | grep -x 1"
start_it
wait_for has_bits vm.add-cow $(($(bits vm.add-cow) + 1))
# The rest at once.
nbdsh -u "$uri" -c "
for at in range(0, $size, 1 << 20):
    h.cache(1 << 20, at)"
finish "$text"
stop_nbdkit "$base_pid" KILL

# It accepts, and never answers: to end the server is no matter of its.
start_it
rm -f vm.*
addcow-img create -q -b "$base_uri" -F raw vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true addcow-hydrate-rate=2M addcow-commit-interval=1 \
    addcow-backing-timeout=$((patience * 2)) 2>log
wait_for has_bits vm.add-cow 1
kill -STOP "$base_pid"
quiet ()
{
    local before
    before=$(bits vm.add-cow)
    sleep 1.5
    [ "$(bits vm.add-cow)" -eq "$before" ]
}
wait_for quiet
ends_soon "$pid"
kill -CONT "$base_pid"
stop_nbdkit "$base_pid" KILL

### The image has no room.

# Above the limit nothing can be written.
trap '' XFSZ
rm -f vm.* switch
addcow-img create -q -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate="$tmp/switch" addcow-commit-interval=1 2>log
prlimit --pid "$pid" --fsize=$((2 * MiB)):
touch switch
text="vm.raw: filling pauses: File too large"
wait_for eval "told log '$text' | grep -x 1"
# The plugin tells of each time.
failures ()
{
    grep -c "pwrite: File too large" log
}
wait_for eval '[ "$(failures)" -ge 3 ]'
count=$(failures)
sleep 1
[ "$(failures)" -le $((count + 12)) ]
cat > limited.py <<'PY'
import errno, sys
from fill_client import *
h = connect(sys.argv[1])
base = file_bytes("base.img")
M = 1 << 20
def filled():
    h.flush()
    return set(sectors((0, 65536))) <= set(bits("vm.add-cow"))
wait_for(filled)
assert content(h) == base
h.pwrite(b"w" * 1000, 10000)
assert h.pread(1000, 10000) == b"w" * 1000
h.pwrite(base[10000:11000], 10000)
fails(errno.ENOSPC, lambda: h.pwrite(b"w" * 1000, 7 * M))
assert content(h) == base
h.shutdown()
PY
python limited.py "$uri"
prlimit --pid "$pid" --fsize=unlimited:
finish "$text"

# It ends while it pauses.
rm -f vm.* switch
addcow-img create -q -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate="$tmp/switch" 2>log
prlimit --pid "$pid" --fsize=$((2 * MiB)):
touch switch
wait_for eval "told log '$text' | grep -x 1"
ends_soon "$pid"
trap - XFSZ

# A file system that is full.
mkdir small
if [ "$(id -u)" -eq 0 ] &&
        mount -t tmpfs -o size=4m addcow-test small; then
    cleanup_fn "umount $tmp/small"
    addcow-img create -q -b ../base.img small/vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=small/vm.add-cow \
        addcow-hydrate=true addcow-commit-interval=1 2>log
    text="vm.raw: filling pauses: No space left on device"
    wait_for eval "told log '$text' | grep -x 1"
    cat > full.py <<'PY'
import errno, sys
from fill_client import *
h = connect(sys.argv[1])
base = file_bytes("base.img")
assert content(h) == base
h.flush()
got = bits("small/vm.add-cow")
assert 4096 < len(got) < 16384, len(got)
# What has its room can be written to.
for sector in got[0], got[-1]:
    h.pwrite(b"w" * 512, sector * 512)
    assert h.pread(512, sector * 512) == b"w" * 512
    h.pwrite(base[sector * 512:][:512], sector * 512)
h.flush()
h.shutdown()
PY
    python full.py "$uri"
    mount -o remount,size=32m small
    mv small/vm.add-cow gone.add-cow
    wait_for alone log vm.raw small/vm.add-cow
    same
    stop_nbdkit "$pid"
    cat log
    [ "$(told log "$text")" -eq 1 ]
    cmp base.img small/vm.raw
fi

# Another error.
rm -f vm.* trigger
touch trigger
addcow-img create -q -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" --filter=error file addcow=vm.add-cow \
    addcow-hydrate=true addcow-commit-interval=1 error-pwrite=EIO \
    error-pwrite-rate=100% error-pwrite-file="$tmp/trigger" 2>log
text="vm.raw: filling pauses: Input/output error"
wait_for eval "told log '$text' | grep -x 1"
same
rm trigger
finish "$text"

### The last commit fails: nothing is said, and nothing closed.

rm -f vm.*
addcow-img create -q -b base.img vm.add-cow
touch trigger
export FAULT_TRIGGER=$tmp/trigger FAULT_FILE=vm.add-cow FAULT_CALL=pwrite \
    FAULT_ERRNO=5
preload=$fault_inject
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true addcow-commit-interval=0 2>log
preload=
wait_for grep -F 'vm.add-cow: filling pauses: Input/output error' log
same
not_alone log
[ "$(bits vm.add-cow)" -eq 0 ]
has_open "$pid" base.img
rm trigger
wait_for alone log
wait_for eval '! has_open "$pid" base.img'
complete vm.add-cow true
stop_nbdkit "$pid"
cmp base.img vm.raw

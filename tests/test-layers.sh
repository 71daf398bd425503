#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Over a plugin that reads and writes and can nothing else, and over ones
# with a single thing that is odd: what the filter offers is made up for,
# in the calls that the plugin logs; what the plugin cannot is not asked.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_plugin eval
requires_filter nozero
cd "$tmp"
random_file base.img 65536
export tmp

# serve NAME CALLBACK=SCRIPT...: an overlay over an eval plugin, whose
# callbacks log to $tmp/log; get_size, pread and pwrite are there, and
# "open" gives each connection a number and logs the name of the export.
serve ()
{
    local name=$1
    shift
    rm -f "$name.add-cow" "$name.img"
    addcow-img create -q -b base.img -i '' "$name.add-cow"
    truncate -s 65536 "$name.img"
    export img=$tmp/$name.img
    : > log
    : > connections
    : > exports
    [ -e begin.sh ] || : > begin.sh
    # shellcheck disable=SC2016 # for the plugin
    start_nbdkit sock --filter="$addcow" eval \
        addcow="$name.add-cow" addcow-commit-interval=0 \
        open='echo "<$3>" >> $tmp/exports
              echo x >> $tmp/connections; wc -l < $tmp/connections' \
        get_size='echo 65536' \
        pread='. $tmp/begin.sh; dd if=$img bs=512 skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none' \
        pwrite='echo pwrite $2 $4 $3 $5 >> $tmp/log; dd of=$img bs=64K seek=$4 oflag=seek_bytes conv=notrunc status=none iflag=fullblock' \
        can_write='exit 0' "$@"
}

#--- Nothing but pread and pwrite.

serve plain
nbdsh -u "$uri" -c '
assert h.can_flush() and h.can_fua() and h.can_zero() and h.can_cache()
print(h.can_fast_zero(), h.can_multi_conn())
assert not h.can_multi_conn()
base = open("base.img", "rb").read()
def log():
    with open("log", "r+") as f:
        lines = f.read().splitlines()
        f.truncate(0)
    print(lines, flush=True)
    return lines
h.pwrite(b"a" * 512, 512, nbd.CMD_FLAG_FUA)
assert log() == ["pwrite 1 512 512"]
h.pwrite(b"b" * 512, 512, nbd.CMD_FLAG_FUA)
assert log() == ["pwrite 1 512 512"]
h.cache(65536, 0)
assert log() == []
h.zero(2000, 100)
h.zero(2000, 100, nbd.CMD_FLAG_FUA)
h.flush()
log()
want = base[:100] + bytes(2000) + base[2100:]
assert h.pread(65536, 0) == want
h.shutdown()
'
stop_nbdkit "$pid"
[ "$(od -An -tx1 -j2068 -N1 plain.add-cow)" = " 1f" ]

#--- A client's export name does not choose the image.

serve name
for name in '' one two; do
    nbdsh -u "nbd+unix:///$name?socket=$tmp/sock" -c 'h.pread(512, 0)'
done
stop_nbdkit "$pid"
cat exports
[ "$(sort -u exports)" = "<>" ]

#--- Zeroes that would be slow: refused, and nothing is changed.

# shellcheck disable=SC2016 # for the plugin
serve fast can_zero='exit 0' can_fast_zero='exit 0' \
    zero='echo zero $3 $4 $5 >> $tmp/log
          case $5 in *fast*) echo ENOTSUP slow >&2; exit 1;; esac
          dd if=/dev/zero of=$img bs=1 seek=$4 count=$3 conv=notrunc status=none'
nbdsh -u "$uri" -c '
import errno
base = open("base.img", "rb").read()
h.pwrite(b"a" * 512, 512)
for at in 512, 8192:
    try:
        h.zero(512, at, nbd.CMD_FLAG_FAST_ZERO)
        raise AssertionError("a slow zero was fast")
    except nbd.Error as ex:
        assert ex.errnum == errno.ENOTSUP, ex
lines = open("log").read().splitlines()
print(lines, flush=True)
assert lines == ["pwrite 1 512 512", "zero 512 512 may_trim,fast",
                 "zero 512 8192 may_trim,fast"]
assert h.pread(65536, 0) == base[:512] + b"a" * 512 + base[1024:]
h.zero(512, 512, nbd.CMD_FLAG_NO_HOLE)
assert open("log").read().splitlines()[3:] == ["zero 512 512"]
assert h.pread(1024, 512) == bytes(512) + base[1024:1536]
h.shutdown()
'
stop_nbdkit "$pid"
[ "$(od -An -tx1 -j2068 -N2 fast.add-cow)" = " 02 00" ]

#--- A flush for FUA, where the layer has no FUA of its own.

# shellcheck disable=SC2016 # for the plugin
serve flush flush='echo flush $2 >> $tmp/log' can_flush='exit 0' \
    can_fua='echo none'
nbdsh -u "$uri" -c '
def log():
    with open("log", "r+") as f:
        lines = f.read().splitlines()
        f.truncate(0)
    print(lines, flush=True)
    return lines
h.pwrite(b"a" * 512, 512)
h.flush()
assert log() == ["pwrite 1 512 512", "flush 1"]
h.pwrite(b"b" * 512, 512, nbd.CMD_FLAG_FUA)
assert log() == ["pwrite 1 512 512", "flush 1"]
h.zero(512, 512, nbd.CMD_FLAG_FUA)
assert log() == ["pwrite 1 512 512", "flush 1"]
h.shutdown()
'
stop_nbdkit "$pid"

#--- Connections that do not see each other's flushes: all are flushed.

# shellcheck disable=SC2016 # for the plugin
serve single flush='echo flush $2 >> $tmp/log' can_flush='exit 0'
cat > two.py <<'PY'
import sys, nbd
one, two = nbd.NBD(), nbd.NBD()
one.connect_uri(sys.argv[1])
two.connect_uri(sys.argv[1])
one.pwrite(b"a" * 512, 512)
two.pwrite(b"b" * 512, 1024)
two.flush()
lines = open("log").read().splitlines()
print(lines, flush=True)
assert sorted(lines[-2:]) == ["flush 1", "flush 2"], lines
one.shutdown()
two.shutdown()
PY
/usr/bin/python3 two.py "$uri"
stop_nbdkit "$pid"

#--- One whose cache is its own.

# shellcheck disable=SC2016 # for the plugin
serve cache cache='echo cache $3 $4 >> $tmp/log' can_cache='echo native'
nbdsh -u "$uri" -c '
h.pwrite(b"a" * 1024, 512)
h.cache(4096, 0)
assert open("log").read().splitlines()[1:] == ["cache 1024 512"]
'
stop_nbdkit "$pid"

#--- A plugin that takes one request at a time: no commit comes between.

cat > begin.sh <<'SH'
# Nobody else may be here.
mkdir "$tmp/busy" || { touch "$tmp/conflict"; exit 1; }
if [ -e "$tmp/slow" ]; then
    touch "$tmp/in"
    while [ -e "$tmp/slow" ]; do sleep 0.05; done
fi
rmdir "$tmp/busy"
SH
for model in serialize_all_requests serialize_requests; do
    rm -rf busy slow in
    # shellcheck disable=SC2016 # for the plugin
    serve $model thread_model="echo $model" \
        flush='. $tmp/begin.sh; echo flush >> $tmp/log' can_flush='exit 0' \
        addcow-commit-interval=1
    cat > serial.py <<'PY'
import os, sys, time, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"a" * 512, 0)
open("slow", "w").close()
cookie = h.aio_pread(nbd.Buffer(512), 0)
end = time.monotonic() + 30
while not os.path.exists("in"):
    assert time.monotonic() < end
    h.poll(10)
# The commit is due while the plugin is busy.
end = time.monotonic() + 2
while time.monotonic() < end:
    h.poll(100)
assert not os.path.exists("conflict")
assert "flush" not in open("log").read()
os.unlink("slow")
end = time.monotonic() + 30
while not h.aio_command_completed(cookie):
    assert time.monotonic() < end
    h.poll(100)
end = time.monotonic() + 30
while "flush" not in open("log").read():
    assert time.monotonic() < end
    h.pread(512, 0)
h.shutdown()
PY
    /usr/bin/python3 serial.py "$uri"
    stop_nbdkit "$pid"
    [ ! -e conflict ]
done
: > begin.sh

#--- A layer that cannot say what it can do is not used.

serve broken can_zero='echo EIO no; exit 1'
if nbdsh -u "$uri" -c 'pass'; then exit 1; fi
stop_nbdkit "$pid"

#--- Zeroes that have to be written, more than are written at once.

addcow-img create -q -b base.img zeroes.add-cow 1M
preload=$fault_inject
FAULT_LOG=$tmp/log start_nbdkit sock --filter="$addcow" --filter=nozero file \
    addcow=zeroes.add-cow zeromode=none addcow-commit-interval=0
nbdsh -u "$uri" -c '
h.pwrite(b"a" * 1048576, 0)
h.flush()
open("log", "w").close()
h.zero(300000, 1000, nbd.CMD_FLAG_FUA)
lines = open("log").read().splitlines()
print(lines, flush=True)
assert lines[-1] == "fdatasync zeroes.raw 0 0"
assert h.pread(1048576, 0) == b"a" * 1000 + bytes(300000) + b"a" * 747576
'
stop_nbdkit "$pid"

#--- An image that fails a zero with the errno that means "not fast".

export FAULT_TRIGGER=$tmp/trigger FAULT_FILE=zeroes.raw FAULT_CALL=pwrite \
    FAULT_ERRNO=95
start_nbdkit sock --filter="$addcow" --filter=nozero file \
    addcow=zeroes.add-cow zeromode=none
touch trigger
nbdsh -u "$uri" -c '
import errno, os
try:
    h.zero(100, 0)
    raise AssertionError("did not fail")
except nbd.Error as ex:
    assert ex.errnum == errno.EIO, ex
os.unlink("trigger")
h.zero(100, 0)
assert h.pread(200, 0) == bytes(100) + b"a" * 100
'
stop_nbdkit "$pid"

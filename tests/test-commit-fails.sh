#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A commit that fails, at each of its steps, fails the flush with the errno
# of what failed; the bits are written again by the next one, all of them;
# the server goes on meanwhile.

source ./functions.sh
set -e
set -x

requires_nbdsh
cd "$tmp"
random_file base.img 1048576
preload=$fault_inject
export FAULT_TRIGGER=$tmp/trigger FAULT_LOG=$tmp/log
export FAULT_CALL FAULT_FILE FAULT_ERRNO

cat > do.py <<'PY'
import errno, os, sys, nbd
uri, call, file, number = sys.argv[1:5]
base = open("base.img", "rb").read() + bytes(31 << 20)
want = bytearray(base)
h, other = nbd.NBD(), nbd.NBD()
h.connect_uri(uri)
other.connect_uri(uri)

def bits():
    b = open("vm.add-cow", "rb").read()[2068:]
    return [n for n in range(len(b) * 8) if b[n // 8] >> n % 8 & 1]

def write(h, byte, sector, n=1, flags=0):
    want[sector * 512 : (sector + n) * 512] = byte * n * 512
    h.pwrite(byte * n * 512, sector * 512, flags)

def fails(op):
    try:
        op()
    except nbd.Error as ex:
        assert ex.errnum == int(number), ex
        return
    raise AssertionError("did not fail")

write(h, b"a", 3)
h.flush()
assert bits() == [3]
write(h, b"b", 5, 2)
write(h, b"c", 40000)           # in another page of the map
open("trigger", "w").close()
for _ in range(2):
    fails(h.flush)
    fails(other.flush)
fails(lambda: write(h, b"d", 7, 1, nbd.CMD_FLAG_FUA))
if call == "pwrite" or file == "vm.raw":
    assert bits() == [3]
# Reads and writes go on.
write(other, b"e", 8)
assert h.pread(len(base), 0) == want
os.unlink("trigger")
os.truncate("log", 0)
# The commit is good; that one failed for the FUA write a flush has to tell.
if file == "vm.raw":
    fails(h.flush)
else:
    h.flush()
assert bits() == [3, 5, 6, 7, 8, 40000]
log = open("log").read().splitlines()
# What the system may have dropped from the image is written again, too.
again = ["pwrite vm.raw %d %d" % (s * 512, n * 512)
         for s, n in ((5, 4), (40000, 1))] if file == "vm.raw" else []
assert sorted(log[:-3]) == sorted(again), log
assert log[-3:] == ["fdatasync vm.raw 0 0", "pwrite vm.add-cow 2068 6124",
                    "fdatasync vm.add-cow 0 0"], log
assert h.pread(len(base), 0) == want
open("want", "wb").write(want)
h.shutdown()
other.shutdown()
PY

try ()
{
    FAULT_CALL=$1 FAULT_FILE=$2 FAULT_ERRNO=$3
    rm -f vm.* log
    addcow-img create -q -b base.img vm.add-cow 32M
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-commit-interval=0 2>stderr
    /usr/bin/python3 do.py "$uri" "$@" || { cat stderr; exit 1; }
    kill -KILL "$pid"           # what was flushed needs no ordinary stop
    stop_nbdkit "$pid" KILL
    cat stderr
    [ "$2" = vm.raw ] || grep -F "vm.add-cow: metadata file: $4" stderr
    start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
    nbdcopy "$uri" got
    cmp got want
    stop_nbdkit "$pid"
}

requires nbdcopy --version
try pwrite vm.add-cow 28 'No space left on device'
try fdatasync vm.add-cow 5 'Input/output error'
try fdatasync vm.raw 5 -

# Who leaves, and a stop, while it fails: nothing else can be done but to
# say what is lost.
rm -f vm.* trigger
addcow-img create -q -b base.img vm.add-cow
FAULT_CALL=pwrite FAULT_FILE=vm.add-cow FAULT_ERRNO=28
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-commit-interval=0 2>stderr
nbdsh -u "$uri" -c '
h.pwrite(b"a" * 512, 0)
open("trigger", "w").close()
h.shutdown()
'
stop_nbdkit "$pid"
cat stderr
grep -F 'vm.add-cow: what was allocated lately could not be committed' stderr
grep -F 'vm.add-cow: what was allocated since the last commit is lost' stderr

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The system tells once that syncing the image failed.  When that happens
# in a commit that no client waits for, the next flush of every client fails,
# and only that; and so does that of who comes in the place of one that left.

source ./functions.sh
set -e
set -x

requires_nbdsh
cd "$tmp"
random_file base.img 65536
addcow-img create -q -b base.img vm.add-cow
preload=$fault_inject
export FAULT_TRIGGER=$tmp/trigger
export FAULT_LOG=$tmp/log
export FAULT_CALL=fdatasync FAULT_FILE=vm.raw FAULT_ERRNO=5
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-commit-interval=1 2>stderr

cat > do.py <<'PY'
import errno, os, sys, time, nbd
clients = [nbd.NBD() for _ in range(3)]
for h in clients:
    h.connect_uri(sys.argv[1])
def fails(op):
    try:
        op()
    except nbd.Error as ex:
        assert ex.errnum == errno.EIO, ex
        return
    raise AssertionError("did not fail")
def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
def bits():
    b = open("vm.add-cow", "rb").read()[2068:]
    return [n for n in range(len(b) * 8) if b[n // 8] >> n % 8 & 1]

clients[0].flush()
open("trigger", "w").close()
clients[0].pwrite(b"a" * 512, 512)
wait_for(lambda: "could not be committed" in open("stderr").read())
os.unlink("trigger")
# It is tried again, and then is as it should be, but for who asks.
wait_for(lambda: bits() == [1])
fails(clients[0].flush)
clients[0].flush()
# A FUA write is about itself.
clients[1].pwrite(b"c" * 512, 512, nbd.CMD_FLAG_FUA)
fails(clients[1].flush)
clients[1].flush()
clients[2].shutdown()
clients[2] = nbd.NBD()
clients[2].connect_uri(sys.argv[1])
clients[2].pwrite(b"d" * 512, 1024, nbd.CMD_FLAG_FUA)
fails(clients[2].flush)
clients[2].flush()
# Who comes when all were told has lost nothing.
late = nbd.NBD()
late.connect_uri(sys.argv[1])
late.flush()
assert late.pread(1024, 512) == b"c" * 512 + b"d" * 512

# A disk that stays bad is reported once, not at every interval; and again
# when it is bad again.
def reports():
    return open("stderr").read().count("could not be committed")
def syncs_that_failed():
    return open("log").read().count("failed fdatasync vm.raw")
assert reports() == 1
for n in 2, 3:
    before = syncs_that_failed()
    open("trigger", "w").close()
    late.pwrite(b"e" * 512, n * 4096)
    wait_for(lambda: syncs_that_failed() >= before + 3)
    assert reports() == n
    os.unlink("trigger")
    wait_for(lambda: n * 8 in bits())
for h in clients + [late]:
    h.shutdown()
PY
/usr/bin/python3 do.py "$uri"
stop_nbdkit "$pid"

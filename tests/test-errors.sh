#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Errors of the image reach the client with their errno and set no bits;
# what was there before is there still, and all works when they stop.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_filter error
cd "$tmp"
random_file base.img 65536

cat > do.py <<'PY'
import errno, os, sys, nbd
uri = sys.argv[1]
base = open("base.img", "rb").read()
h = nbd.NBD()
h.connect_uri(uri)

def bits():
    b = open("vm.add-cow", "rb").read()[2068:]
    return [n for n in range(len(b) * 8) if b[n // 8] >> n % 8 & 1]

def fails(number, op):
    try:
        op()
    except nbd.Error as ex:
        assert ex.errnum == number, ex
        return
    raise AssertionError("did not fail")

def trigger(name):
    open(name, "w").close()

# Writes that fail, whole and in part, to sectors that are not allocated.
h.pwrite(b"a" * 512, 512)
h.flush()
trigger("pwrite")
fails(errno.ENOSPC, lambda: h.pwrite(b"b" * 1024, 0))
fails(errno.ENOSPC, lambda: h.pwrite(b"b" * 100, 4096))
fails(errno.ENOSPC, lambda: h.pwrite(b"b" * 2000, 8000))
fails(errno.ENOSPC, lambda: h.pwrite(b"b" * 512, 4096, nbd.CMD_FLAG_FUA))
h.flush()
assert bits() == [1]
want = base[:512] + b"a" * 512 + base[1024:]
assert h.pread(65536, 0) == want
os.unlink("pwrite")
h.pwrite(b"b" * 100, 4096)
want = want[:4096] + b"b" * 100 + want[4196:]
h.flush()
assert bits() == [1, 8]

# Zeroes and trims that fail.
trigger("zero")
fails(errno.EIO, lambda: h.zero(4096, 16384))
fails(errno.EIO, lambda: h.trim(4096, 16384))
fails(errno.EIO, lambda: h.zero(100, 512))
trigger("trim")
fails(errno.EPERM, lambda: h.trim(512, 512))
h.flush()
assert bits() == [1, 8]
assert h.pread(65536, 0) == want
os.unlink("zero")
os.unlink("trim")
h.zero(4096, 16384)
want = want[:16384] + bytes(4096) + want[20480:]

# Reads of what is allocated fail, others do not.
trigger("pread")
fails(errno.EIO, lambda: h.pread(512, 512))
fails(errno.EIO, lambda: h.pread(65536, 0))
assert h.pread(512, 0) == base[:512]
os.unlink("pread")
assert h.pread(65536, 0) == want
h.shutdown()
PY

addcow-img create -q -b base.img vm.add-cow
start_nbdkit sock --filter="$addcow" --filter=error file addcow=vm.add-cow \
    error-pwrite=ENOSPC error-pwrite-rate=100% error-pwrite-file=pwrite \
    error-zero=EIO error-zero-rate=100% error-zero-file=zero \
    error-trim=EPERM error-trim-rate=100% error-trim-file=trim \
    error-pread=EIO error-pread-rate=100% error-pread-file=pread
/usr/bin/python3 do.py "$uri"
stop_nbdkit "$pid"

# Errors of the backing file and of the metadata file: the file is named.
preload=$fault_inject
export FAULT_TRIGGER=$tmp/trigger
export FAULT_CALL=pread FAULT_FILE FAULT_ERRNO=5
# At the end of the disk the metadata may have been read before.
for FAULT_FILE in base.img new.add-cow; do
    addcow-img create -q -f -b base.img -i '' new.add-cow 64M
    truncate -s 64M new.raw
    rm -f trigger
    start_nbdkit sock --filter="$addcow" file new.raw addcow=new.add-cow \
                 2>stderr
    touch trigger
    nbdsh -u "$uri" -c '
import errno
def fails(op):
    try:
        op()
    except nbd.Error as ex:
        assert ex.errnum == errno.EIO, ex
        return
    raise AssertionError("did not fail")
fails(lambda: h.pread(512, 0))
fails(lambda: h.pwrite(b"a" * 100, 0))
fails(lambda: h.zero(100, 0))
'
    rm trigger
    nbdsh -u "$uri" -c '
base = open("base.img", "rb").read()
assert h.pread(65536, 0) == base
h.pwrite(b"a" * 100, 0)
assert h.pread(65536, 0) == b"a" * 100 + base[100:]
'
    stop_nbdkit "$pid"
    cat stderr
    [ "$(grep -cF "$FAULT_FILE: " stderr)" -eq 3 ]
    grep -F 'Input/output error' stderr
done

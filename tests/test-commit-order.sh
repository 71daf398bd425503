#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What reaches the files, call by call: opening syncs the metadata file and
# writes nothing; nothing goes to it before a flush; a flush syncs the image,
# then writes the bits, then syncs the metadata; without new bits it is one
# sync of the image; a write with FUA to committed sectors is left to the
# image.

source ./functions.sh
set -e
set -x

requires_nbdsh
cd "$tmp"
random_file base.img 65536
addcow-img create -b base.img vm.add-cow
preload=$fault_inject
export FAULT_LOG=$tmp/log
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-commit-interval=0
[ "$(cat log)" = "fdatasync vm.add-cow 0 0" ]
: > log

cat > do.py <<'PY'
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
def log():
    with open("log", "r+") as f:
        lines = f.read().splitlines()
        f.truncate(0)
    print(lines, flush=True)
    return lines
bits = "pwrite vm.add-cow 2068 16"

h.pwrite(b"a" * 4096, 0)
assert log() == ["pwrite vm.raw 0 4096"]
h.flush()
assert log() == ["fdatasync vm.raw 0 0", bits, "fdatasync vm.add-cow 0 0"]
h.flush()
assert log() == ["fdatasync vm.raw 0 0"]
h.pwrite(b"b" * 4096, 0)
assert log() == ["pwrite vm.raw 0 4096"]
h.flush()
assert log() == ["fdatasync vm.raw 0 0"]
h.pwrite(b"c" * 100, 4000, nbd.CMD_FLAG_FUA)
assert log() == ["pwrite vm.raw 4096 512", "pwrite vm.raw 4000 96",
                 "fdatasync vm.raw 0 0", bits, "fdatasync vm.add-cow 0 0"]
h.pwrite(b"d" * 100, 4000, nbd.CMD_FLAG_FUA)
assert log() == ["pwrite vm.raw 4000 100", "fdatasync vm.raw 0 0"]
h.zero(512, 8192, nbd.CMD_FLAG_FUA)
assert log() == ["fallocate vm.raw 8192 512", "fdatasync vm.raw 0 0", bits,
                 "fdatasync vm.add-cow 0 0"]
h.zero(512, 8192, nbd.CMD_FLAG_FUA)
assert log() == ["fallocate vm.raw 8192 512", "fdatasync vm.raw 0 0"]
h.trim(512, 8192 + 512, nbd.CMD_FLAG_FUA)
assert log() == ["fallocate vm.raw 8704 512", "fdatasync vm.raw 0 0", bits,
                 "fdatasync vm.add-cow 0 0"]
h.trim(512, 8192 + 512, nbd.CMD_FLAG_FUA)
assert log() == ["fallocate vm.raw 8704 512", "fdatasync vm.raw 0 0"]
# FUA to a committed sector while another is not committed: the flush may
# not be skipped because of it, nor left to the image alone.
h.pwrite(b"e" * 512, 16384)
h.pwrite(b"f" * 512, 0, nbd.CMD_FLAG_FUA)
assert log() == ["pwrite vm.raw 16384 512", "pwrite vm.raw 0 512",
                 "fdatasync vm.raw 0 0", bits, "fdatasync vm.add-cow 0 0"]
# Reading and asking for extents writes nothing.
h.pread(65536, 0)
h.cache(65536, 0)
assert log() == []
# Leaving commits.
h.pwrite(b"g" * 512, 20480)
assert log() == ["pwrite vm.raw 20480 512"]
h.shutdown()
PY
/usr/bin/python3 do.py "$uri"
stop_nbdkit "$pid"
cat log
diff log - <<'LOG'
fdatasync vm.raw 0 0
pwrite vm.add-cow 2068 16
fdatasync vm.add-cow 0 0
LOG

# A server that only reads writes and syncs nothing.
: > log
start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
nbdsh -u "$uri" -c 'h.pread(65536, 0); h.flush()'
stop_nbdkit "$pid"
[ ! -s log ]

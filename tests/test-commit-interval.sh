#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# New bits are committed without a flush: by a thread after the interval,
# or, where the plugin takes one request at a time, by a later request.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_filter noparallel
cd "$tmp"
random_file base.img 65536

cat > do.py <<'PY'
import sys, time, nbd
uri, touch = sys.argv[1], sys.argv[2] == "touch"
h = nbd.NBD()
h.connect_uri(uri)
def bits():
    b = open("vm.add-cow", "rb").read()[2068:]
    return [n for n in range(len(b) * 8) if b[n // 8] >> n % 8 & 1]
def wait_for(want):
    end = time.monotonic() + 60
    while bits() != want:
        assert time.monotonic() < end, bits()
        time.sleep(0.05)
        if touch:
            h.pread(1, 0)
h.pwrite(b"a" * 512, 512)
wait_for([1])
h.pwrite(b"a" * 512, 1536)
wait_for([1, 3])
h.shutdown()
PY

for args in "none" "touch --filter=noparallel serialize=connections" \
    "touch --filter=noparallel serialize=all-requests" \
    "none --filter=noparallel serialize=requests"; do
    # shellcheck disable=SC2086
    set -- $args
    addcow-img create -q -f -b base.img vm.add-cow
    start_nbdkit sock --filter="$addcow" ${2:+"$2"} file ${3:+"$3"} \
        addcow=vm.add-cow addcow-commit-interval=1
    /usr/bin/python3 do.py "$uri" "$1"
    stop_nbdkit "$pid"
done

# Not before it is over, without a thread that spins until then; and with 0
# not at all.
preload=$fault_inject
for args in "3600" "0" "0 --filter=noparallel serialize=all-requests"; do
    # shellcheck disable=SC2086
    set -- $args
    addcow-img create -q -f -b base.img vm.add-cow
    rm -f log
    FAULT_LOG=$tmp/log start_nbdkit sock --filter="$addcow" ${2:+"$2"} file \
        ${3:+"$3"} addcow=vm.add-cow addcow-commit-interval="$1"
    server=$pid nbdsh -u "$uri" -c '
import os, time
def cpu():
    f = open("/proc/%s/stat" % os.environ["server"]).read().split()
    return int(f[13]) + int(f[14])
h.pwrite(b"a" * 512, 512)
before = cpu()
end = time.monotonic() + 1.5
while time.monotonic() < end:
    time.sleep(0.1)
    h.pread(1, 0)
assert cpu() - before < 50, "the server is busy"
# The sync is that of opening.
assert open("log").read().splitlines() == ["fdatasync vm.add-cow 0 0",
                                           "pwrite vm.raw 512 512"]
h.shutdown()
'
    stop_nbdkit "$pid"
done

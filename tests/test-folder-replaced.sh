#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow=FOLDER: a metadata file that gets another one's name between its
# being found and locked is not served, whether names are confined or not:
# there the name led to one file from the beginning, here it is opened again.
# Nor is one while it has clients, to those who come after that.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
VG=() # as unwatched does

mkdir vms
for name in old new; do
    random_file vms/$name.img 65536
    addcow-img create -q -F raw -b $name.img vms/$name.add-cow
done

# served NAME: a client of vm reads what the overlay NAME has.
served ()
{
    nbdsh -u "nbd+unix:///vm?socket=$tmp/sock" \
        -c "assert h.pread(65536, 0) == open('vms/$1.img', 'rb').read()"
}

preload=$fault_inject
# The old one stays, under another name.
export FAULT_RUN="mv vms/vm.add-cow vms/moved && mv vms/next vms/vm.add-cow" \
    FAULT_RUN_CALL=fcntl FAULT_RUN_FILE=/vm.add-cow
for confine in "$tmp/vms" none; do
    cp vms/old.add-cow vms/vm.add-cow
    cp vms/new.add-cow vms/next
    # From a folder of its own, as nbdkit leaves it.
    start_nbdkit sock --filter="$addcow" file addcow=vms \
        addcow-confine="$confine" 2>log
    if [ "$confine" != none ]; then
        if served new; then exit 1; fi
        cat log
        grep -F 'vms/vm.add-cow: was replaced while it was opened' log
    fi
    served new
    test ! -e vms/next
    stop_nbdkit "$pid"
done

# With a client that stays.
preload=
cat > clients.py <<'PY'
import os, sys
import nbd
from nbd_client import connect

uri = "nbd+unix:///vm?socket=" + sys.argv[1]


def has(h, name):
    with open("vms/%s.img" % name, "rb") as f:
        return h.pread(65536, 0) == f.read()


def refused(message):
    try:
        connect(uri)
        assert False
    except nbd.Error:
        with open("log") as f:
            assert "vms/vm.add-cow: " + message in f.read()


h = connect(uri)
os.rename("vms/vm.add-cow", "vms/moved")
refused("No such file")
os.rename("vms/next", "vms/vm.add-cow")
refused("is another file by now than the one that is served")
# It has it for as long as it likes, and who comes with the right name joins.
assert has(h, "old")
os.rename("vms/vm.add-cow", "vms/next")
os.rename("vms/moved", "vms/vm.add-cow")
other = connect(uri)
assert has(other, "old")
os.rename("vms/vm.add-cow", "vms/moved")
os.rename("vms/next", "vms/vm.add-cow")
other.shutdown()
h.shutdown()
PY
for confine in "$tmp/vms" none; do
    cp vms/old.add-cow vms/vm.add-cow
    cp vms/new.add-cow vms/next
    start_nbdkit sock --filter="$addcow" file addcow=vms \
        addcow-confine="$confine" 2>log
    /usr/bin/python3 clients.py "$tmp/sock"
    wait_for served new
    cat log
    stop_nbdkit "$pid"
done

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow=FOLDER: what several overlays have as their backing file is opened
# once, whatever it is, for as long as one of them has clients.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-nbd --version
requires pgrep --version
requires_filter log
source "$abs_srcdir/nbd-backing.sh"
export patience # to Python
VG=() # as unwatched does

size=$((1024 * 1024))
random_file base.img $size
qemu-img convert -f raw -O qcow2 base.img base.qcow2
start_base base.sock -r file base.img
mkdir vms
addcow-img create -q -F raw -b ../base.img vms/base.add-cow
for i in 1 2 3 4; do
    addcow-img create -q -F raw -b ../base.img vms/raw$i.add-cow
    addcow-img create -q -F raw -b "$base_uri" vms/nbd$i.add-cow
    addcow-img create -q -F qcow2 -b ../base.qcow2 vms/qemu$i.add-cow
    addcow-img create -q -F add-cow -b base.add-cow vms/chain$i.add-cow
done
start_nbdkit sock --filter="$addcow" file addcow=vms addcow-confine=none \
    addcow-backing-timeout="$patience"

cat > clients.py <<'PY'
import os, subprocess, sys, time
from nbd_client import connect

sock, pid, base_pid = sys.argv[1:]
base = open("base.img", "rb").read()
kinds = "raw", "nbd", "qemu", "chain"


def eventually(what, *expected):
    end = time.monotonic() + 120
    while what(*expected[:-1]) != expected[-1]:
        assert time.monotonic() < end, (what, what(*expected[:-1]), expected)
        time.sleep(0.05)


def is_open(name):
    """How often the server has it open."""
    n = 0
    for fd in os.listdir("/proc/%s/fd" % pid):
        try:
            n += os.readlink("/proc/%s/fd/%s" % (pid, fd)).endswith("/" + name)
        except FileNotFoundError:
            pass
    return n


def connections():
    """Of the base server, and its socket that listens."""
    out = subprocess.run(["find", "/proc/%s/fd" % base_pid, "-lname",
                          "socket:*"], stdout=subprocess.PIPE).stdout
    return len(out.splitlines()) - 1


def children():
    out = subprocess.run(["pgrep", "-P", pid, "-r", "R,S,D", "-f", "qemu-nbd"],
                         stdout=subprocess.PIPE).stdout
    return len(out.splitlines())


clients = {}
for i in 1, 2, 3, 4:
    for kind in kinds:
        h = connect("nbd+unix:///%s%d?socket=%s" % (kind, i, sock))
        assert h.pread(len(base), 0) == base
        h.pwrite(b"%d" % i * 512, 512 * i)
        clients[kind, i] = h
    # The overlay that is below four has the base open as its own backing
    # file, which is that of the others.
    eventually(is_open, "base.img", 1)
    eventually(is_open, "base.add-cow", 1)
    eventually(connections, 1)
    eventually(children, 1)


def right():
    for (kind, i), h in clients.items():
        want = bytearray(base)
        want[512 * i:512 * i + 512] = b"%d" % i * 512
        assert h.pread(len(base), 0) == want, (kind, i)


right()
# Some leave; the others notice nothing.
for i in 2, 4:
    for kind in kinds:
        clients.pop((kind, i)).shutdown()
    right()
assert is_open("base.img") == is_open("base.add-cow") == 1
assert connections() == children() == 1
for kind in "raw", "nbd", "qemu":
    for i in 1, 3:
        clients.pop((kind, i)).shutdown()
eventually(connections, 0)
eventually(children, 0)
# The chain has it still.
right()
assert is_open("base.img") == 1
while clients:
    clients.popitem()[1].shutdown()
eventually(is_open, "base.img", 0)
eventually(is_open, "base.add-cow", 0)
PY
timeout 500 /usr/bin/python3 clients.py "$tmp/sock" "$pid" "$base_pid"
stop_nbdkit "$pid"

# Confined, too, where each overlay finds the file by itself.
cp base.img vms/golden.img
for i in 1 2 3; do
    addcow-img create -q -F raw -b golden.img vms/in$i.add-cow
done
start_nbdkit sock --filter="$addcow" file addcow=vms
nbdsh -c "
import os
hs = []
for i in 1, 2, 3:
    h = nbd.NBD()
    h.connect_uri('nbd+unix:///in%d?socket=$tmp/sock' % i)
    assert h.pread($size, 0) == open('base.img', 'rb').read()
    hs.append(h)

# What only holds its place is open with O_PATH and reads nothing.
def readable():
    n = 0
    for fd in os.listdir('/proc/$pid/fd'):
        if os.readlink('/proc/$pid/fd/' + fd).endswith('/golden.img'):
            with open('/proc/$pid/fdinfo/' + fd) as f:
                flags = [l for l in f if l.startswith('flags:')][0]
            n += not int(flags.split()[1], 8) & os.O_PATH
    return n
assert readable() == 1, readable()
"
stop_nbdkit "$pid"

# Somebody reads it still when an overlay comes to stand alone, and who commits
# has others to see to: he comes again, also when no client does anything.
start_nbdkit sock --filter=log --filter="$addcow" file addcow=vms \
    addcow-confine=none addcow-commit-interval=1 \
    addcow-backing-timeout="$patience" logfile=requests 2>log
cleanup_fn "kill -CONT $base_pid 2>/dev/null || :"
cat > alone.py <<'PY'
import os, signal, sys
from addcow_format import Metadata
from fill_client import wait_for
from nbd_client import connect
import nbd

sock, base_pid = sys.argv[1], int(sys.argv[2])
base = open("base.img", "rb").read()


def all_committed():
    with open("vms/late.add-cow", "rb") as f:
        bits = Metadata.decode(f.read()).bitmap
    return set(bits) == {255}


def stopped():
    with open("/proc/%d/stat" % base_pid) as f:
        return f.read().rsplit(")", 1)[1].split()[0] == "T"


def begun():
    reader.poll(0)
    with open("requests") as f:
        return "offset=0x400 " in f.read()


def alone():
    with open("log") as f:
        return "stands alone" in f.read()


other, reader, writer = (connect("nbd+unix:///%s?socket=%s" % (name, sock))
                         for name in ("nbd1", "late", "late"))
assert reader.pread(512, 0) == other.pread(512, 0) == base[:512]
os.kill(base_pid, signal.SIGSTOP)
wait_for(stopped)
buf = nbd.Buffer(512)
read = reader.aio_pread(buf, 1024)
wait_for(begun)
writer.pwrite(b"w" * len(base), 0)
wait_for(all_committed)
# Who commits has looked by now or soon will, and the reader is there: others
# use the backing file, so its waiting is not ended.
os.kill(base_pid, signal.SIGCONT)
while not reader.aio_command_completed(read):
    reader.poll(-1)
assert bytes(buf.to_bytearray()) in (base[1024:1536], b"w" * 512)
wait_for(alone)
assert reader.pread(len(base), 0) == b"w" * len(base)
for h in other, reader, writer:
    h.shutdown()
PY
addcow-img create -q -F raw -b "$base_uri" vms/late.add-cow
timeout 500 /usr/bin/python3 alone.py "$tmp/sock" "$base_pid"

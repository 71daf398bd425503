#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow=FOLDER: names of exports, and names in metadata files, that somebody
# made up, lead to nothing outside of the folder, and harm nobody.

source ./functions.sh
set -e
set -x

requires nbdinfo --version
VG=() # as unwatched does
cd "$tmp"

size=65536
mkdir vms vms/sub other
random_file vms/base.img $size
random_file other/base.img $size
truncate -s $size other/secret.raw vms/sub/vm.raw
addcow-img create -q -F raw -b base.img vms/good.add-cow
addcow-img create -q -F raw -b base.img other/outside.add-cow
ln -s ../other/outside.add-cow vms/link-out.add-cow
ln -s good.add-cow vms/link-in.add-cow
mkfifo vms/fifo.add-cow
mkdir vms/folder.add-cow
addcow-img create -q -F raw -b base.img "vms/a b:c.add-cow"
addcow-img create -q -F raw -b base.img $'vms/gr\xc3\xbcn.add-cow'
addcow-img create -q -F raw -b base.img "vms/$(printf '%0200d' 0).add-cow"

# evil NAME BACKING IMAGE: a metadata file of its own.
export PYTHONPATH=$abs_srcdir PYTHONDONTWRITEBYTECODE=1
evil ()
{
    /usr/bin/python3 - "$@" $size <<'PY'
import os, sys
from addcow_format import Metadata
name, backing, image, size = map(os.fsencode, sys.argv[1:])
with open(b"vms/" + name + b".add-cow", "wb") as f:
    f.write(Metadata(int(size), backing, image).encode())
PY
}
# Who waits to be closed is in use; these two are served.
truncate -s $size vms/vm.raw vms/vm1.raw vms/vm2.raw
evil image-out ./base.img ../other/secret.raw
evil image-absolute base.img "$PWD/other/secret.raw"
evil image-sub base.img sub/vm.raw
evil image-none base.img ''
evil image-device base.img /dev/zero
evil image-uri base.img nbd://localhost
ln -s ../other/secret.raw vms/secret.raw
ln -s vm.raw vms/link.raw
ln -s sub vms/here
evil image-link-out base.img secret.raw
evil image-link base.img link.raw
evil image-round base.img here/../../vms/vm1.raw
evil backing-out ../other/base.img vm2.raw
evil backing-uri nbd://localhost:1 vm.raw
evil backing-self backing-self.add-cow vm.raw
evil image-self base.img image-self.add-cow
evil image-proc base.img /proc/self/fd/0
evil $'lines' $'base\nimg' vm.raw
evil control "$(printf '\001%.0s' {1..1023})" vm.raw
evil latin $'gr\xfcn' vm.raw
evil file-scheme file:base.img file:vm3.raw
truncate -s $size vms/vm3.raw

cat > names.py <<'PY'
"""What a server says to names of exports, which may be any bytes."""

import os, socket, struct, sys, time

sock, what = sys.argv[1:]
base = open("vms/base.img", "rb").read()
GO, ACK, UNKNOWN, INVALID, INFO = 7, 1, 2**31 + 6, 2**31 + 3, 3


def receive(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        assert more, "the server hung up"
        data += more
    return data


def begin():
    s = socket.socket(socket.AF_UNIX)
    s.connect(sock)
    assert receive(s, 16) == b"NBDMAGICIHAVEOPT"
    receive(s, 2)
    s.sendall(struct.pack(">I", 3))
    return s


def go(s, name):
    """The type of the last reply to NBD_OPT_GO."""
    data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    s.sendall(b"IHAVEOPT" + struct.pack(">II", GO, len(data)) + data)
    while True:
        magic, option, kind, length = struct.unpack(">QIII", receive(s, 20))
        assert magic == 0x3e889045565a9 and option == GO
        receive(s, length)
        if kind != INFO:
            return kind


def read(s):
    s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 4096))
    magic, error, cookie = struct.unpack(">IIQ", receive(s, 16))
    assert (magic, error, cookie) == (0x67446698, 0, 1)
    return receive(s, 4096)


def served(name, patience=0):
    end = time.monotonic() + patience
    s = begin()
    kind = go(s, name)
    while kind != ACK and time.monotonic() < end:
        time.sleep(0.05)
        s = begin()
        kind = go(s, name)
    if kind != ACK:
        return kind
    assert read(s) == base[:4096], name
    return ACK


bad = [b"", b"/", b".", b"..", b"./good", b"/good", b"sub/../good",
       b"../vms/good", b"x" * 248, b"x" * 4096, b"good\n", b"good/", b"good.add-cow/",
       b"good.add-cow.add-cow", b"good.raw", b".add-cow", b"\xff\xfe", b"\xc3",
       b"\xed\xa0\x80", b"\xc0\xaf..", b"gr\xfcn", b"good\x7f", b"\x1b[2J",
       b"a%20b:c", b"file:good", b"*", b"goo?", b"GOOD", b"%s%n", b"\\good"]
good = [b"good", b"good.add-cow", b"link-in", b"a b:c", b"gr\xc3\xbcn",
        b"0" * 200, b"0" * 200 + b".add-cow"]
# Two of them are the same file, which the server may be closing.
for name in good:
    assert served(name, patience=60) == ACK, name
for name in bad:
    assert served(name) in (UNKNOWN, INVALID), name
# With what does not even fit, and within one connection.
assert served(b"x" * 4097) == INVALID
s = begin()
for name in bad:
    assert go(s, name) in (UNKNOWN, INVALID), name
assert go(s, b"good") == ACK and read(s) == base[:4096]

# Metadata files that lead elsewhere.
refused = ["link-out", "fifo", "folder", "image-out", "image-absolute",
           "image-sub", "image-none", "image-device", "image-uri",
           "image-link-out", "image-link", "backing-uri", "backing-self",
           "image-self", "image-proc", "lines", "control", "latin"]
if what == "confined":
    refused.append("backing-out")
for name in refused:
    assert served(name.encode()) == UNKNOWN, name
assert served(b"image-round") == ACK
assert served(b"file-scheme") == ACK
if what == "wider":
    s = begin()
    assert go(s, b"backing-out") == ACK
    assert read(s) == open("other/base.img", "rb").read(4096)
PY

cp -a vms vms.copy
for confine in '' "$PWD"; do
    start_nbdkit sock --filter="$addcow" file addcow=vms \
        ${confine:+addcow-confine="$confine"} 2>log
    timeout 120 /usr/bin/python3 names.py "$tmp/sock" \
        "$([ -n "$confine" ] && echo wider || echo confined)"
    # The list has only what can be one of names.
    nbdinfo --list "$uri" > list 2>/dev/null || :
    /usr/bin/python3 - "$uri" > names <<'PY'
import sys, nbd
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
h.opt_list(lambda name, about: print('export="%s":\ndescription: %s' %
                                     (name, about)))
h.opt_abort()
PY
    grep -xF 'export="good":' list
    # Descriptions are text.
    for name in control latin; do
        grep -xF -A1 "export=\"$name\":" names |
            grep -xF 'description: overlay of a file'
    done
    stop_nbdkit "$pid"
    # Each message is one line that begins as nbdkit's do, and is text.
    if grep -v '^nbdkit: ' log; then exit 1; fi
    LC_ALL=C grep -n $'[\001-\010\013-\037\177]' log && exit 1
    grep -F 'good\012' log
    grep -F 'base\012img' log
    grep -F '\033[2J' log
done
grep -F "vms/image-sub.add-cow: its image must be a file in the folder" log
diff -r --no-dereference -x '*.add-cow' vms vms.copy
[ "$(stat -c %b other/secret.raw)" -eq 0 ]

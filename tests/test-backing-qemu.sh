#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Backing files that qemu-nbd reads: in other formats, under any name, over
# NBD and over HTTP.  All bytes are compared with those of the raw disk
# that they were made of.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-io --version
requires qemu-nbd --version
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"

size=$((3 * 1024 * 1024))
# Data that compress, data that do not, and none.
python -c "for i in range($size // 8): print('%07x' % i)" > base.img
dd if=/dev/urandom of=base.img bs=1K seek=100 count=300 conv=notrunc
fallocate -p -o 1M -l 1M base.img

cat > check.py <<'PY'
"""check.py URI SIZE DISK [START END]...: those ranges are told as zeroes,
and of others only what is zeroes is."""
import sys
from nbd_client import *

uri, size, file = sys.argv[1:4]
size = int(size)
zeroes = list(map(int, sys.argv[4:]))
disk = bytearray((open(file, "rb").read() + bytes(size))[:size])
h = connect(uri)
assert h.get_size() == size
assert content(h) == disk
at = 0
told = bytearray(size)
for n, kind in extents(h):
    if kind & nbd.STATE_ZERO:
        assert not any(disk[at:at + n]), (at, n)
        told[at:at + n] = b"z" * n
    at += n
assert at == size
for start, end in zip(zeroes[::2], zeroes[1::2]):
    assert told.count(b"z", start, end) == end - start, (start, end)
try_writes(h, disk, 7, 100)
h.shutdown()
h = connect(uri)
assert content(h) == disk
h.shutdown()
PY

# check FORMAT NAME DISK [START END]...: see check.py.
check ()
{
    local format=$1 name=$2 disk=$3
    shift 3
    rm -f vm.*
    truncate -s $((size + 4096)) vm.raw
    metadata vm.add-cow size=$((size + 4096)) backing="$name" image=vm.raw
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-backing-format="$format"
    python check.py "$uri" $((size + 4096)) "$disk" "$@" $size \
        $((size + 4096))
    stop_nbdkit "$pid"
}

# named FORMAT NAME: by the name in the header, and by the parameter, it is
# base.img.
named ()
{
    local read="assert h.pread($size, 0) == open('base.img', 'rb').read()"
    local run="nbdsh -u \"\$uri\" -c \"$read\""
    rm -f "$tmp/sock"
    metadata vm.add-cow size=$size backing="$2" image=vm.raw
    nbdkit -U "$tmp/sock" --filter="$addcow" file addcow=vm.add-cow \
        addcow-backing-format="$1" --run "$run"
    rm -f "$tmp/sock"
    rm -f "$tmp/sock"
    metadata vm.add-cow size=$size image=vm.raw
    nbdkit -U "$tmp/sock" --filter="$addcow" file addcow=vm.add-cow \
        addcow-backing="$2" addcow-backing-format="$1" --run "$run"
}

### Formats.

hole="$((1024 * 1024)) $((2048 * 1024))"
for format in qcow2 vmdk vdi vhdx vpc qed; do
    options=()
    [ $format != vpc ] || options=(-o force_size=on)
    qemu-img convert -f raw -O $format "${options[@]}" base.img base.$format
    sum=$(md5sum base.$format)
    case $format in
        vhdx | vpc) zeroes= ;; # their blocks are larger
        *) zeroes=$hole ;;
    esac
    # shellcheck disable=SC2086 # two numbers
    check $format base.$format base.img $zeroes
    [ "$sum" = "$(md5sum base.$format)" ]
done
# Other ones of them.
qemu-img convert -f raw -O qcow2 -c base.img small.qcow2
qemu-img convert -f raw -O qcow2 -o cluster_size=512 base.img tiny.qcow2
qemu-img convert -f raw -O vmdk -o subformat=monolithicFlat base.img flat.vmdk
# shellcheck disable=SC2086
{
    check qcow2 small.qcow2 base.img $hole
    check qcow2 tiny.qcow2 base.img $hole
    check vmdk flat.vmdk base.img
}
# A chain of its own: raw, qcow2, qcow2, in a folder of theirs.
mkdir chain
cp base.img chain/1.img
(
    cd chain
    qemu-img create -q -f qcow2 -F raw -b 1.img 2.qcow2
    qemu-img create -q -f qcow2 -F qcow2 -b 2.qcow2 3.qcow2
    qemu-io -f qcow2 -c 'write -P 1 70000 9000' -c 'write -z 512K 128K' \
        2.qcow2
    qemu-io -f qcow2 -c 'write -P 2 72000 100000' \
        -c 'write -z -u 2560K 64K' 3.qcow2
)
qemu-img convert -f qcow2 -O raw chain/3.qcow2 chain.img
# shellcheck disable=SC2086
check qcow2 chain/3.qcow2 chain.img $hole $((512 * 1024)) $((640 * 1024)) \
    $((2560 * 1024)) $((2624 * 1024))

### Names.

rm vm.*
truncate -s $size vm.raw
mkdir names
# shellcheck disable=SC2016 # these are names
for name in 'a b' 'a,b,,c' 'a:b' 'nbd:b' 'a%20b%' 'a=b' '$a"b' "a'b" '-a' \
            '{a' 'json:{}' 'file=x,format=raw' $'a\nb' $'\xff' 'a\b'; do
    cp base.qcow2 "names/$name"
    named qcow2 "names/$name"
    # In the folder of the metadata file itself.
    cp base.qcow2 "./$name"
    named qcow2 "./$name"
    rm "./$name"
done
cp base.qcow2 -- 'names/--help'
cp base.qcow2 -- --help
named qcow2 --help
named qcow2 "$PWD/base.qcow2"
named qcow2 "file:base.qcow2"
named qcow2 "file://$PWD/base.qcow2"
ln -s names/a:b link
named qcow2 link
# The folder that the server is in does not matter.
rm -f vm.*
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.qcow2 image=vm.raw
(
    cd names
    nbdkit -U - --filter="$addcow" file addcow=../vm.add-cow \
        addcow-backing-format=qcow2 --run \
        "cd ..; exec /usr/bin/python3 check.py \"\$uri\" $size base.img"
)

### Over NBD.

mkdir exports
cp base.qcow2 'exports/a b'
start_base base.sock -r file dir=exports
check qcow2 "nbd+unix:///a%20b?socket=$tmp/base.sock" base.img
named qcow2 "nbd:unix:$tmp/base.sock:exportname=a b"
stop_nbdkit "$base_pid"
start_tcp -r file base.vmdk
check vmdk "nbd://localhost:$base_port" base.img
named vmdk "nbd:localhost:$base_port"
end "$base_pid"

### Over HTTP.

cat > web.py <<'PY'
"""web.py PORTFILE: serve the current folder, parts of files too."""
import http.server, os, re, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        name = self.path.lstrip("/").split("?")[0]
        if not os.path.isfile(name):
            self.send_error(404)
            return
        with open(name, "rb") as f:
            data = f.read()
        m = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))
        self.send_response(206 if m else 200)
        if m:
            start = int(m[1])
            end = int(m[2]) if m[2] else len(data) - 1
            end = min(end, len(data) - 1)
            self.send_header("Content-Range", "bytes %d-%d/%d" % (
                start, end, len(data)))
            data = data[start:end + 1]
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass

s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
with open(sys.argv[1] + ".new", "w") as f:
    f.write("%d\n" % s.server_port)
os.rename(sys.argv[1] + ".new", sys.argv[1])
s.serve_forever()
PY
/usr/bin/python3 web.py web.port &
http=$!
cleanup_fn "end $http"
wait_for test -s web.port
here=http://127.0.0.1:$(cat web.port)
# QEMU's driver for it comes in a package of its own.
requires qemu-img info "$here/base.img"
check qcow2 "$here/base.qcow2" base.img
named qcow2 "$here/base.qcow2?a=b,c&d=%20"
check raw "$here/base.img" base.img
# The header says what it is.
for name in base.qcow2 "$here/base.qcow2"; do
    rm vm.*
    addcow-img create -b "$name" -F qcow2 vm.add-cow
    [ "$(stat -c %s vm.raw)" -eq $size ]
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
    python check.py "$uri" $size base.img
    stop_nbdkit "$pid"
done
# Without a format it is raw, but only if it looks like that.
rm vm.*
addcow-img create -b "$here/base.img" vm.add-cow
[ "$(stat -c %s vm.raw)" -eq $size ]
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
python check.py "$uri" $size base.img
stop_nbdkit "$pid"
metadata vm.add-cow size=$size backing="$here/base.qcow2" image=vm.raw
fails_with "addcow-backing-format=qcow2" serve file addcow=vm.add-cow
grep -F "addcow-backing-format=raw" "$tmp/stderr"

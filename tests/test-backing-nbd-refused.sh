#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Servers that are not there, are of no use, or do not have what was asked
# for: neither the filter nor addcow-img create goes on with one as the
# backing file, and each says in one line which it was.

source ./functions.sh
set -e
set -x

requires_plugin eval
requires qemu-img --version
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
limit=$((limit * 5))

size=65536
random_file base.img $size
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw
serve file addcow=vm.add-cow

# not_accepted TEXT NAME: refused, in the header and out of
# it, with a line that has TEXT too.
not_accepted ()
{
    local text=$1 name=$2
    metadata x.add-cow size=$size backing="$name" image=vm.raw
    keep
    fails_in_time "$name: " serve file addcow=x.add-cow
    grep -F -- "$text" "$tmp/stderr"
    fails_in_time "$name: " serve file addcow=vm.add-cow \
        addcow-backing="$name"
    grep -F -- "$text" "$tmp/stderr"
    fails_in_time "$name: " addcow-img create -b "$name" new.add-cow
    grep -F -- "$text" "$tmp/stderr"
    kept
}

### Nobody is there.

not_accepted "No such file or directory" "nbd+unix:///?socket=$tmp/nowhere"
not_accepted "No such file or directory" "nbd:unix:$tmp/nowhere"
not_accepted "Connection refused" "nbd+unix:///?socket=$PWD/base.img"
not_accepted "" "nbd+unix:///?socket=$tmp"
port=$(python -c '
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
not_accepted "Connection refused" "nbd://127.0.0.1:$port/"
not_accepted "Connection refused" "nbd:127.0.0.1:$port"
not_accepted "" "nbd://name.invalid/"
not_accepted "" "nbd+vsock://1:$port/"

### It cannot be asked so.

for name in nbd: nbd+unix: nbd+unix:///x nbd:unix: nbd:unix \
            nbd+unix:///?socket= nbd+unix:///?sock=x nbd://localhost:x/ \
            nbd:localhost: nbd:localhost:x nbd:localhost:0 \
            "nbd:unix:$tmp/nowhere:export=x" nbds:localhost:1; do
    not_accepted "" "$name"
done

### It does not answer, or nothing that makes sense.

cat > server.py <<'PY'
"""server.py SOCKET WHAT: listen on SOCKET and do to who connects WHAT."""
import os, socket, sys
name, what = sys.argv[1:]
s = socket.socket(socket.AF_UNIX)
s.bind(name + ".new")
s.listen(50)
os.rename(name + ".new", name)
clients = []
while True:
    c = s.accept()[0]
    if what == "garbage":
        c.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n" * 10)
    if what in ("close", "garbage"):
        c.close()
    else:
        clients.append(c)
PY
for what in close garbage; do
    rm -f odd
    /usr/bin/python3 server.py odd $what &
    odd=$!
    cleanup_fn "end $odd"
    wait_for test -S odd
    not_accepted "" "nbd+unix:///?socket=$tmp/t/odd"
    end $odd
done
# Not for ever, but for as long as it is told.
rm -f odd
/usr/bin/python3 server.py odd silence &
odd=$!
cleanup_fn "end $odd"
wait_for test -S odd
name="nbd+unix:///?socket=$tmp/t/odd"
fails_in_time "$name: " serve file addcow=vm.add-cow addcow-backing="$name" \
    addcow-backing-timeout=1
end $odd

for value in 0 -1 x 1.5 '' 1s 99999999999; do
    fails_in_time addcow-backing-timeout serve file addcow=vm.add-cow \
        addcow-backing-timeout="$value"
done
for value in 1 86400; do
    serve file addcow=vm.add-cow addcow-backing-timeout=$value
done

### It does not have it.

mkdir exports
cp base.img exports/a
start_base base.sock -r file dir=exports
not_accepted "no export named" "nbd+unix:///b?socket=$tmp/base.sock"
not_accepted "no export named" "nbd+unix:///a/b?socket=$tmp/base.sock"
not_accepted "no export named" "nbd:unix:$tmp/base.sock:exportname=b"
not_accepted "no export named" "nbd+unix:///?socket=$tmp/base.sock"
name="nbd+unix:///a?socket=$tmp/base.sock"
serve file addcow=vm.add-cow addcow-backing="$name"

# Names are confined to files; valgrind does not know openat2.
if [ -z "$ADDCOW_VALGRIND" ]; then
    metadata x.add-cow size=$size backing="$name" image=vm.raw
    fails_in_time "$name" serve file addcow=x.add-cow addcow-confine=/
fi
stop_nbdkit "$base_pid"

### It has an image that is not raw.

qemu-img create -q -f qcow2 base.qcow2 64k
addcow-img create -q -b base.img below.add-cow
cp below.add-cow exports/below
for i in base.qcow2:qcow2 exports/below:add-cow; do
    file=${i%:*} format=${i#*:}
    start_base base.sock -r file "$file"
    metadata x.add-cow size=$size backing="$base_uri" image=vm.raw
    fails_in_time "$base_uri: " serve file addcow=x.add-cow
    grep -F "addcow-backing-format=$format" "$tmp/stderr"
    grep -F "addcow-backing-format=raw" "$tmp/stderr"
    fails_in_time "$base_uri: " addcow-img create -b "$base_uri" new.add-cow
    # It is insisted on.
    start_nbdkit sock --filter="$addcow" file addcow=x.add-cow \
        addcow-backing-format=raw
    nbdsh -u "$uri" -c "
want = (open('$file', 'rb').read() + bytes($size))[:$size]
assert h.pread($size, 0) == want
"
    stop_nbdkit "$pid"
    stop_nbdkit "$base_pid"
done

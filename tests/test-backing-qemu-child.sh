#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The life of the qemu-nbd that reads a backing file: it ends with the
# server, however that ends, and is started again when it alone does.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-nbd --version
requires pgrep --version
source "$abs_srcdir/nbd-backing.sh"

size=$((4 * 1024 * 1024))
random_file base.img $size
qemu-img convert -f raw -O qcow2 base.img base.qcow2
addcow-img create -q -b base.img vm.add-cow

arguments=(--filter="$addcow" file addcow=vm.add-cow
    addcow-backing=base.qcow2 addcow-backing-format=qcow2
    addcow-backing-timeout="$patience")

# All that there are of the server PID, and no zombies.
children ()
{
    pgrep -P "$1" -r R,S,D -f qemu-nbd
}

gone ()
{
    [ ! -e "/proc/$1" ] || grep '^State:.Z' "/proc/$1/status"
}

# read_all URI: right, and so is there exactly one child, $child.
read_all ()
{
    nbdsh -u "$1" -c "
assert h.pread($size, 0) == open('base.img', 'rb').read()"
    child=$(children "$pid")
    [ "$(wc -w <<< "$child")" -eq 1 ]
}

# The folder that the socket of the process $1 is in, if it has one.
socket_folder ()
{
    local inode
    for inode in $(find "/proc/$1/fd" -printf '%l\n' |
                   sed -n 's/^socket:\[\(.*\)\]$/\1/p'); do
        awk -v i="$inode" '$7 == i && $8 { print $8 }' /proc/net/unix
    done | sed -n 's,/[^/]*$,,p' | sort -u
}

### It ends with the server.

for signal in TERM INT KILL; do
    start_nbdkit sock "${arguments[@]}"
    read_all "$uri"
    folder=$(socket_folder "$child")
    [ -n "$folder" ]
    stop_nbdkit "$pid" $signal
    wait_for gone "$child"
    [ ! -e "$folder" ]
done
# One that is stuck, and does not see that nobody is there any more.
for signal in TERM KILL; do
    start_nbdkit sock "${arguments[@]}"
    read_all "$uri"
    kill -STOP "$child"
    cleanup_fn "kill -KILL $child 2>/dev/null || :"
    stop_nbdkit "$pid" $signal
    wait_for gone "$child"
done
# Nobody has asked for anything yet.
for signal in TERM KILL; do
    start_nbdkit sock "${arguments[@]}"
    child=$(children "$pid" || :)
    stop_nbdkit "$pid" $signal
    for p in $child; do wait_for gone "$p"; done
done

# In the background.  Whoever starts it waits for no child.
for signal in TERM KILL; do
    rm -f sock pid
    nbdkit -P pid -U sock "${arguments[@]}" > out 2>&1
    wait_for test -s pid
    pid=$(cat pid)
    cleanup_fn "kill -KILL $pid 2>/dev/null || :"
    uri="nbd+unix:///?socket=$tmp/sock"
    for _ in {1..3}; do
        read_all "$uri"
    done
    [ "$(readlink "/proc/$child/cwd")" != "$tmp" ]
    kill -$signal "$pid"
    wait_for gone "$pid"
    wait_for gone "$child"
done

# With --run, and when it is not the server's own end that ends it.
nbdkit -U - "${arguments[@]}" --run "
pgrep -P \$PPID -f qemu-nbd > first || :
nbdsh -u \"\$uri\" -c 'h.pread(1, 0)'
pgrep -P \$PPID -f qemu-nbd > second
"
wait_for gone "$(cat second)"

### It ends alone.

start_nbdkit sock "${arguments[@]}" 2>log
read_all "$uri"
for signal in KILL TERM KILL; do
    old=$child
    seen=$(wc -l < log)
    kill -$signal "$old"
    wait_for gone "$old"
    read_all "$uri"
    [ "$child" != "$old" ]
    # Whoever had it started may leave.
    old=$child
    for _ in {1..5}; do
        read_all "$uri"
        [ "$child" -eq "$old" ]
    done
    [ "$(wc -l < log)" -gt "$seen" ]
done
cat log
grep -F base.qcow2 log

# Under load.
cat > load.py <<'PY'
import os, random, sys
from nbd_client import *
base = open("base.img", "rb").read()

def client(number):
    r = random.Random(number)
    h = connect(sys.argv[1])
    while not os.path.exists("stop"):
        n = r.choice([1, 700, 4096, 50000])
        at = r.randrange(len(base) - n + 1)
        assert h.pread(n, at) == base[at:at + n]
    h.shutdown()

in_parallel([lambda i=i: client(i) for i in range(4)])
PY
/usr/bin/python3 load.py "$uri" &
load=$!
cleanup_fn "touch $tmp/stop; end $load"
other ()
{
    child=$(children "$pid") && [ "$child" != "$old" ]
}
for _ in {1..5}; do
    old=$child
    kill -KILL "$old"
    wait_for other
    nbdsh -u "$uri" -c 'h.pread(512, 1 << 20)'
done
touch stop
wait $load
# What it is to be read from is gone, and is back.
old=$child
mv base.qcow2 moved.qcow2
kill -KILL "$old"
nbdsh -u "$uri" -c "
assert h.pread($size, 0) == open('base.img', 'rb').read()" &
client=$!
cleanup_fn "end $client"
wait_for eval '[ "$(grep -c "No such file" log)" -gt 0 ]'
mv moved.qcow2 base.qcow2
wait $client
cat log
stop_nbdkit "$pid"

### What it says is in the log.

qemu-img convert -f raw -O qcow2 base.img corrupt.qcow2
cat > corrupt.py <<'PY'
# Where the table of the first clusters is, is no place for one.
import struct
with open("corrupt.qcow2", "r+b") as f:
    f.seek(40)
    table, = struct.unpack(">Q", f.read(8))
    f.seek(table)
    f.write(struct.pack(">Q", 1 << 63 | 0x12345))
PY
python corrupt.py
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-backing=corrupt.qcow2 addcow-backing-format=qcow2 2>log
cat > fails.py <<'PY'
import errno, sys
from nbd_client import *
h = connect(sys.argv[1])
fails(errno.EIO, lambda: h.pread(512, 0))
fails(errno.EIO, lambda: h.pwrite(b"a" * 100, 1000))
h.pwrite(b"a" * 512, 512)
assert h.pread(512, 512) == b"a" * 512
h.flush()
assert bits("vm.add-cow") == [1]
h.shutdown()
PY
python fails.py "$uri"
wait_for grep -i 'image is corrupt' log
stop_nbdkit "$pid"

### Many clients, and two servers with one base.

# valgrind has room for 500 threads.
start_nbdkit sock -t 4 "${arguments[@]}"
cat > many.py <<'PY'
import random, sys
from nbd_client import *
base = open("base.img", "rb").read()
handles = [connect(sys.argv[1]) for _ in range(50)]

def client(h, number):
    r = random.Random(number)
    for _ in range(20):
        n = r.choice([512, 4096, 20000])
        at = r.randrange(512, len(base) - n + 1)
        assert h.pread(n, at) == base[at:at + n]
    h.shutdown()

assert handles[0].pread(512, 512) in (base[512:1024], b"a" * 512)
base = base[:512] + handles[0].pread(512, 512) + base[1024:]
in_parallel([lambda i=i: client(handles[i], i) for i in range(50)])
PY
python many.py "$uri"
addcow-img create -q -b base.img two.add-cow
start_nbdkit two.sock --filter="$addcow" file addcow=two.add-cow \
    addcow-backing=base.qcow2 addcow-backing-format=qcow2
read_all "$uri"
stop_nbdkit "$pid"

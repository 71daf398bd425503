#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A hundred overlays of one base are filled at the same time, half of them
# from a server that has it: all come to their end and let go of the base,
# which is as it was.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
requires test -d /proc/self/fd

count=100
[ -z "$ADDCOW_VALGRIND$SANITIZER" ] || count=20
size=$((4 * 1024 * 1024))

# Of which every overlay reads all but the holes.
random_file base.img $size
fallocate -p -o 1M -l 512K base.img
fallocate -p -o 3000K -l 64K base.img
cp base.img base.copy

start_base base.sock -r -t 4 file base.img

# Each has its own server.  They fill from when "go" is there.
server=(env)
if [ -n "$_preload" ]; then server+=("LD_PRELOAD=$_preload"); fi
server+=("${VG[@]}" "$(type -P nbdkit)" -f --filter="$addcow" file)
servers=()
stop_all ()
{
    local p status=0
    for p in "${servers[@]}"; do kill "$p" || :; done
    for p in "${servers[@]}"; do wait "$p" || status=$?; done
    servers=()
    return $status
}
cleanup_fn stop_all
for ((i = 0; i < count; i++)); do
    if ((i % 2)); then
        addcow-img create -q -F raw -b "$base_uri" $i.add-cow
    else
        addcow-img create -q -F raw -b base.img $i.add-cow
    fi
    "${server[@]}" -P $i.pid -U $i.sock addcow=$i.add-cow \
        addcow-hydrate="$tmp/go" 2>$i.log &
    servers+=($!)
done
for ((i = 0; i < count; i++)); do
    wait_for test -s $i.pid
    [ ! -s $i.log ]
done

# Some have guests, who write where it is not filled yet; and read what is
# filled or not.
cat > guests.py <<'PY'
import random, sys
from nbd_client import *

base = open("base.img", "rb").read()

def guest(number):
    disk = bytearray(base)
    h = connect("nbd+unix:///?socket=%d.sock" % number)
    if number == 0:
        open("go", "w").close()
    try_writes(h, disk, number)
    h.shutdown()
    with open("%d.disk" % number, "wb") as f:
        f.write(disk)

in_parallel([lambda i=i: guest(i) for i in range(int(sys.argv[1]))])
PY
guests=4
python guests.py $guests

for ((i = 0; i < count; i++)); do
    wait_for grep "^nbdkit: .*$i.raw stands alone: $i.add-cow and the backing \
file are no longer needed\$" $i.log
    [ "$(wc -l < $i.log)" -eq 1 ]
done

# None of them has the base: the server ends when no client is left.
kill "$base_pid"
wait_for eval "! kill -0 $base_pid"
stop_nbdkit "$base_pid"
for ((i = 0; i < count; i++)); do
    [ -z "$(find "/proc/${servers[i]}/fd/" -lname "*/base.img")" ]
done
mv base.img away.img

# They go on, each alone, as they are and when they have ended.
nbdsh -u "nbd+unix:///?socket=$tmp/0.sock" -c '
assert h.pread(1 << 22, 0) == open("0.disk", "rb").read()'
stop_all
for ((i = 0; i < count; i++)); do
    if [ $i -lt $guests ]; then
        cmp $i.raw $i.disk
    else
        cmp $i.raw away.img
    fi
    addcow-img info $i.add-cow | grep -x "complete: true"
done
cmp away.img base.copy

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Who may have an overlay, its image and its backing file open at the same
# time: other servers, addcow-img, QEMU.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires nbdinfo --version
requires qemu-io --version
requires qemu-nbd --version
source "$abs_srcdir/bad-input.sh"

size=65536
random_file base.img $size
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw
in_use="vm.add-cow is in use by another process"

# start ARGUMENT...: a server on vm.add-cow.
start ()
{
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow "$@"
}

# is_refused, is_accepted ARGUMENT...: whether one more server may start.
is_refused ()
{
    refused "$in_use" serve "$@" file addcow=vm.add-cow
}

is_accepted ()
{
    serve "$@" file addcow=vm.add-cow
}

### Servers.

start
ln -s vm.add-cow link.add-cow
ln vm.add-cow hard.add-cow
is_refused
is_refused -r
refused "link.add-cow is in use" serve file addcow=link.add-cow
refused "hard.add-cow is in use" serve file addcow=hard.add-cow
refused "$PWD/$in_use" serve -r file addcow="$PWD/vm.add-cow"
rm link.add-cow hard.add-cow
# The lock is not lost by somebody looking at the file, nor by a client
# that leaves.
addcow-img info vm.add-cow
nbdinfo --size "$uri"
is_refused
stop_nbdkit "$pid"
is_accepted

# However the server ends.
start
is_refused
nbdsh -u "$uri" -c 'h.pwrite(b"x" * 512, 0)'
stop_nbdkit "$pid" KILL
is_accepted
for signal in INT QUIT HUP; do
    start
    is_refused
    stop_nbdkit "$pid" $signal || [ $signal = HUP ]
    is_accepted
done

# In the background.
nbdkit -P "$tmp/pid" -U "$tmp/background" --filter="$addcow" file \
    addcow=vm.add-cow
for ((i = 0; i < 100; i++)); do
    if [ -s "$tmp/pid" ]; then break; fi
    sleep 0.1
done
server=$(cat "$tmp/pid")
cleanup_fn "kill $server 2>/dev/null || :"
is_refused
is_refused -r
kill "$server"
while kill -0 "$server" 2>/dev/null; do sleep 0.1; done
is_accepted

# Readers stand each other; by all the ways in which nbdkit is told.
start -r
is_refused
stop_nbdkit "$pid"
for option in -r --read-only --readonly --readonl -fr -nrv "-e -e -r"; do
    # shellcheck disable=SC2086 # may be several
    start $option
    is_accepted -r
    # shellcheck disable=SC2086
    start_nbdkit other --filter="$addcow" file addcow=vm.add-cow $option
    is_refused
    stop_nbdkit "$pid"
    is_refused -e r
    stop_nbdkit "$(cat "$tmp/sock.pid")"
done
is_accepted
# Not a way.
for option in "-e -r" "--exportname --read-only" -er -v "-t 1"; do
    # shellcheck disable=SC2086
    start $option
    is_refused -r
    stop_nbdkit "$pid"
done

# What may only be read is locked for reading.
chmod 444 vm.add-cow
chmod 644 vm.raw base.img
as_nobody start
if [ -n "$root" ]; then
    is_accepted -r
    is_refused
fi
stop_nbdkit "$pid"
chmod 644 vm.add-cow

# One image, two overlays.
metadata vm2.add-cow size=$size backing=base.img image=vm.raw
start
refused "vm.raw is in use by another process" serve file addcow=vm2.add-cow
refused "vm.raw is in use by another process" serve -r file addcow=vm2.add-cow
# Or as somebody's backing file.
truncate -s $size on-top.raw
metadata on-top.add-cow size=$size backing=vm.raw image=on-top.raw
refused "vm.raw is in use by another process" serve file addcow=on-top.add-cow
stop_nbdkit "$pid"
start_nbdkit sock --filter="$addcow" file addcow=on-top.add-cow
refused "vm.raw is in use by another process" serve file addcow=vm.add-cow
stop_nbdkit "$pid"
start -r
serve -r file addcow=vm2.add-cow
serve file addcow=on-top.add-cow
refused "vm.raw is in use by another process" serve file addcow=vm2.add-cow
stop_nbdkit "$pid"
rm on-top.* vm2.add-cow

# not_qemu COMMAND...: QEMU is kept out.
not_qemu ()
{
    "$@" > "$tmp/out" 2>&1 && return 1
    cat "$tmp/out"
    grep 'Failed to get .* lock' "$tmp/out"
}

# Many on one backing file.
pids=()
for i in 1 2 3 4 5 6; do
    truncate -s $size $i.raw
    metadata $i.add-cow size=$size backing=base.img image=$i.raw
    start_nbdkit sock$i --filter="$addcow" file addcow=$i.add-cow
    pids+=("$pid")
done
for i in 1 2 3 4 5 6; do
    nbdsh -u "nbd+unix://?socket=$tmp/sock$i" \
        -c "h.pwrite(b'$i' * 512, 512 * $i); h.flush()"
done
# Nobody may write to it, even if only one of them is left.
for i in 0 1 2 3 4; do stop_nbdkit "${pids[i]}"; done
keep
not_qemu qemu-io -f raw -c 'write 0 512' base.img
kept
stop_nbdkit "${pids[5]}"
for i in 1 2 3 4 5 6; do
    [ "$(dd if=$i.raw bs=512 skip=$i count=1 status=none | tr -d $i |
         wc -c)" -eq 0 ]
    [ "$(tr -d '\0' < $i.raw | wc -c)" -eq 512 ]
    rm $i.raw $i.add-cow
done

### QEMU.

# locked FILE: the bytes of it that somebody has a lock on.
locked ()
{
    /usr/bin/python3 - "$1" <<'PY'
import fcntl, struct, sys

with open(sys.argv[1], "rb") as f:
    held = []
    for byte in range(400):
        ask = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, byte, 1, 0)
        F_OFD_GETLK = 36
        answer = fcntl.fcntl(f, F_OFD_GETLK, ask)
        if struct.unpack("hhqqi4x", answer)[0] != fcntl.F_UNLCK:
            held.append(byte)
print(*held)
PY
}

# As QEMU's block/file-posix.c has it: 100 and up, what one does, 200 and up,
# what nobody else may; 0 is to read consistently, 1 to write, 3 to resize.
start
[ "$(locked vm.raw)" = "100 101 201 203" ]
[ "$(locked base.img)" = "100 201 203" ]
stop_nbdkit "$pid"
start -r
[ "$(locked vm.raw)" = "100 201 203" ]
[ "$(locked base.img)" = "100 201 203" ]
stop_nbdkit "$pid"
[ "$(locked vm.raw)" = "" ]

# QEMU comes second.
start
keep
not_qemu qemu-io -f raw -c 'write 0 512' vm.raw
not_qemu qemu-io -f raw -c 'write 0 512' base.img
truncate -s $size "$tmp/other.img"
for file in vm.raw base.img; do
    not_qemu qemu-img resize -q -f raw --shrink $file 512
    not_qemu qemu-img convert -n -f raw -O raw "$tmp/other.img" $file
done
kept
# Reading the backing file is all right.
qemu-io -r -f raw -c 'read 0 512' base.img
qemu-img compare -f raw -F raw base.img base.img
stop_nbdkit "$pid"
start -r
keep
not_qemu qemu-io -f raw -c 'write 0 512' vm.raw
not_qemu qemu-io -f raw -c 'write 0 512' base.img
kept
qemu-io -r -f raw -c 'read 0 512' vm.raw
stop_nbdkit "$pid"

# QEMU comes first.
qemu-io -f raw -c 'write 0 512' vm.raw
# with_qemu_on FILE COMMAND...: run it while qemu-nbd has FILE open.
with_qemu_on ()
{
    local i qemu status=0
    rm -f "$tmp/qemu.pid"
    qemu-nbd -t -f raw -k "$tmp/qemu.sock" --pid-file="$tmp/qemu.pid" \
        "${qemu_options[@]}" "$1" &
    qemu=$!
    cleanup_fn "kill $qemu 2>/dev/null || :"
    for ((i = 0; i < 100; i++)); do
        if [ -s "$tmp/qemu.pid" ]; then break; fi
        sleep 0.1
    done
    [ -s "$tmp/qemu.pid" ]
    shift
    "$@" || status=1
    kill $qemu
    wait $qemu || :
    return $status
}
qemu_options=()
raw_in_use="vm.raw is in use by another process"
base_in_use="base.img is in use by another process"
with_qemu_on vm.raw refused "$raw_in_use" serve file addcow=vm.add-cow
with_qemu_on vm.raw refused "$raw_in_use" serve -r file addcow=vm.add-cow
with_qemu_on vm.raw refused "vm.raw" addcow-img create new.add-cow -i vm.raw 4K
with_qemu_on vm.raw refused "vm.raw" addcow-img create -b vm.raw new.add-cow
with_qemu_on vm.raw refused "vm.raw" addcow-img create -f -i '' vm.raw 4K
with_qemu_on base.img refused "$base_in_use" serve file addcow=vm.add-cow
with_qemu_on base.img refused "$base_in_use" serve -r file addcow=vm.add-cow
with_qemu_on base.img refused "base.img" addcow-img create -b base.img x.add-cow
qemu_options=(-r)
with_qemu_on base.img is_accepted
with_qemu_on vm.raw is_accepted -r


### addcow-img.

addcow-img info --output=json vm.add-cow > info
grep '"in-use": false' info
start
addcow-img info --output=json vm.add-cow > info
grep '"in-use": true' info
addcow-img info vm.add-cow > info
grep -x 'in use: true' info
refused "vm.add-cow: in use by another process" \
    addcow-img create -f -b base.img vm.add-cow
refused "exists already" addcow-img create -b base.img vm.add-cow
refused "vm.raw: in use by another process" \
    addcow-img create -b base.img -i vm.raw new.add-cow
refused "vm.raw: in use by another process" \
    addcow-img create -b vm.raw new.add-cow
# Its backing file may be everybody's.
addcow-img create -b base.img new.add-cow
stop_nbdkit "$pid"

start -r
# By those who cannot change it, it is not.
addcow-img info --output=json vm.add-cow > info
grep '"in-use": false' info
refused "vm.add-cow: in use by another process" \
    addcow-img create -f -b base.img vm.add-cow
refused "vm.raw: in use by another process" \
    addcow-img create -f -b base.img -i vm.raw new.add-cow
stop_nbdkit "$pid"
addcow-img create -f -b base.img vm.add-cow

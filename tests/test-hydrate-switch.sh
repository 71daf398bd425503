#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Hydration is switched on and off by a path while the server runs, and kept
# to a rate; and what the parameters may be.

source ./functions.sh
set -e
set -x

requires_filter log
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/filling.sh"

size=$((4 * 1024 * 1024))
random_file base.img $size

# serve [PARAMETER...]: a new overlay of base.img, which is on a server.
serve ()
{
    rm -f vm.* base.log
    start_serial base.sock -r --filter=log file base.img logfile=base.log
    addcow-img create -q -b "$base_uri" -F raw vm.add-cow
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-commit-interval=1 "$@" 2>log
}

### A path.

# Slowly: it must not be over while it is looked at.
serve addcow-hydrate="$tmp/switch" addcow-hydrate-rate=256K
# It is not there; a guest reads and writes.  There is time for more than one
# look at it.
nbdsh -u "$uri" -c '
base = open("base.img", "rb").read()
assert h.pread(100000, 1 << 20) == base[1 << 20:][:100000]
h.pwrite(b"w" * 512, 512)
h.flush()
'
read=$(reads base.log)
sleep 2
[ "$(bits vm.add-cow)" -eq 1 ]
[ "$(reads base.log)" -eq "$read" ]

# It comes.
touch switch
wait_for has_bits vm.add-cow 512
# It goes: what is under way ends, and nothing follows.
rm switch
quiet ()
{
    local before
    before=$(reads base.log)
    sleep 2
    [ "$(reads base.log)" -eq "$before" ]
}
wait_for quiet
wait_for eval 'before=$(bits vm.add-cow); sleep 2;
               [ "$(bits vm.add-cow)" -eq "$before" ]'
complete vm.add-cow false
nbdsh -u "$uri" -c 'h.pread(4096, 3 << 20)'
# And again.
for _ in 1 2; do
    before=$(bits vm.add-cow)
    touch switch
    wait_for has_bits vm.add-cow $((before + 400))
    rm switch
done
touch switch
wait_for alone log
rm switch
stop_nbdkit "$pid"
alone log
cp base.img disk
printf 'w%.0s' {1..512} | dd of=disk bs=512 seek=1 conv=notrunc status=none
cmp disk vm.raw
stop_nbdkit "$base_pid" KILL

# There from the start.
touch switch
serve addcow-hydrate="$tmp/switch"
wait_for alone log
stop_nbdkit "$pid"
cmp base.img vm.raw
stop_nbdkit "$base_pid" KILL
rm switch

# Off.
for value in false 0 off; do
    serve addcow-hydrate=$value addcow-hydrate-rate=1M
    nbdsh -u "$uri" -c 'h.pread(512, 0)'
    read=$(reads base.log)
    sleep 1
    [ "$(reads base.log)" -eq "$read" ]
    stop_nbdkit "$pid"
    [ "$(bits vm.add-cow)" -eq 0 ]
    stop_nbdkit "$base_pid" KILL
done

### A rate.

# So low that the test will not see the end of it; nobody has to wait.
for rate in 512 1 20K; do
    serve addcow-hydrate=true addcow-hydrate-rate=$rate
    wait_for has_bits vm.add-cow 1
    cat > guest.py <<'PY'
import random, sys
from fill_client import *
h = connect(sys.argv[1])
disk = bytearray(file_bytes("base.img"))
try_writes(h, disk, 1, 100)
h.shutdown()
PY
    python guest.py "$uri"
    complete vm.add-cow false
    ends_soon "$pid"
    not_alone log
    stop_nbdkit "$base_pid" KILL
done

# What is no data does not count.
rm -f vm.*
truncate -s 256M holes.img
addcow-img create -q -b holes.img vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true addcow-hydrate-rate=64K 2>log
wait_for alone log
stop_nbdkit "$pid"
[ "$(stat -c %b vm.raw)" -eq 0 ]

### What is wrong with them.

rm -f vm.*
addcow-img create -q -b base.img vm.add-cow
# refused TEXT [ARGUMENT...] PARAMETER: with TEXT as the reason.
refused ()
{
    fails_with "$1" nbdkit "${@:2:$#-2}" -U "$tmp/no" --filter="$addcow" \
        file addcow=vm.add-cow "${*: -1}" --run true
}
for value in '' maybe 2 switch ./switch; do
    refused "could not decipher boolean ($value)" addcow-hydrate="$value"
done
for value in '' x; do
    refused "could not parse size string ($value)" \
        addcow-hydrate-rate="$value"
done
refused "unknown suffix 'Q'" addcow-hydrate-rate=1Q
refused "(-1)" addcow-hydrate-rate=-1
refused "(99999999999999999999)" addcow-hydrate-rate=99999999999999999999
refused "addcow-hydrate-rate= must be more than 0" addcow-hydrate-rate=0
# Nothing can be written there.
for value in true "$tmp/switch"; do
    refused "vm.add-cow: addcow-hydrate needs a disk that can be written to" \
        -r addcow-hydrate="$value"
done
start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=false addcow-hydrate-rate=1M
nbdsh -u "$uri" -c 'h.pread(512, 0)'
stop_nbdkit "$pid"
[ "$(bits vm.add-cow)" -eq 0 ]

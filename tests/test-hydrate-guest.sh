#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A guest boots, reads and writes while its disk is filled from a server
# that is slow.  What it wrote is there, the rest is what the base has, and
# the image is that disk without the overlay.

source ./functions.sh
set -e
set -x

requires_filter log
requires_filter rate
requires_nbdsh
source "$abs_srcdir/guest.sh"
source "$abs_srcdir/nbd-backing.sh"

make_initrd <<'END_OF_RUN'
run ()
{
    set -e
    mount -t ext4 /dev/vda /mnt
    cd /mnt
    echo FILLING BEGINS
    # All over what is being filled, without reading it.
    for i in $(seq 100); do
        dd if=/dev/urandom of=big.file bs=4k seek=$((i * 1009 % 2929)) \
            count=1 conv=notrunc,fsync 2>/dev/null
        usleep 30000
    done
    sums base.file gone.file large.file
    for i in 1 2 3 4; do
        dd if=/dev/urandom of=new$i.file bs=30000 count=$((i * 20))
        dd if=/dev/urandom of=base.file bs=1000 seek=$((i * 601)) count=50 \
            conv=notrunc,fsync
    done
    cp large.file copy.file
    sync
    mv new1.file copy.file
    rm gone.file
    echo more >> state
    sync
    echo BOOT $boot IS DONE
    # What was written is in the guest's memory still.
    sums *.file
    cd /
    umount /mnt
    echo UNMOUNTED
}
END_OF_RUN

mkdir files
random_file files/base.file 3000000
random_file files/large.file 8000000
random_file files/gone.file 200000
random_file files/big.file 12000000
echo zero > files/state
truncate -s 64M base.img
mke2fs -q -F -t ext4 -d files base.img
cp base.img base.copy

start_base base.sock -r -t 1 --filter=rate file base.img rate=32M
addcow-img create -q -F raw -b "$base_uri" vm.add-cow

# The guest's requests are in requests.log.
start_nbdkit sock --filter=log --filter="$addcow" file addcow=vm.add-cow \
    logfile=requests.log addcow-on-read=true addcow-hydrate="$tmp/go" \
    2>server.log

mkfifo console
(boot 1) > console &
guest_pid=$!
cleanup_fn "kill -TERM $guest_pid 2>/dev/null || :"
while IFS= read -r line; do
    echo "$line"
    if [ "${line%$'\r'}" = "FILLING BEGINS" ]; then touch go; fi
done < console > log
wait $guest_pid
cat log server.log
ended log 1
[ -e go ]

# As the guest found it.
host_sums files | grep -v big.file > expected
part before log > sums
cmp sums expected
part after log > expected
names=$(cut -d' ' -f1 expected | tr '\n' ' ')
[ "$names" = \
    "base.file big.file copy.file large.file new2.file new3.file new4.file " ]

# Filled or not, the disk is the same; and then nobody needs the base.
nbdcopy "$uri" before
wait_for grep "vm.raw stands alone: vm.add-cow and the backing file are no \
longer needed" server.log
stop_nbdkit "$base_pid" KILL
nbdcopy "$uri" after
stop_nbdkit "$pid"
cat server.log
[ "$(grep -c . server.log)" -eq 1 ]
cmp before after
cmp after vm.raw
addcow-img info vm.add-cow | grep -x "complete: true"

# Seen from outside, without the overlay.
mv vm.raw disk
rm vm.add-cow
e2fsck -f -n disk
mkdir out
debugfs -R "rdump / out" disk
host_sums out > sums
cmp sums expected
[ "$(tr '\n' ' ' < out/state)" = "zero more " ]

# What the guest did not write is what the base has.
cat > unwritten.py <<'PY'
import re

base = open("base.img", "rb").read()
disk = bytearray(open("disk", "rb").read())
assert len(disk) == len(base)
written = bytearray(len(disk))
for line in open("requests.log"):
    m = re.search(
        r" (?:Write|Zero|Trim) id=\d+ offset=0x(\w+) count=0x(\w+)", line)
    if m:
        at, n = int(m[1], 16), int(m[2], 16)
        written[at:at + n] = b"w" * n
count = written.count(b"w")
print("the guest wrote", count)
assert 1000000 < count < len(disk) / 2
for at in range(0, len(disk), 512):
    if b"w" not in written[at:at + 512]:
        assert disk[at:at + 512] == base[at:at + 512], at
PY
python unwritten.py
cmp base.img base.copy

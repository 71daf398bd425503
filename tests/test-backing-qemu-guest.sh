#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A guest lives on an overlay of a qcow2 image, whose qemu-nbd is killed
# while the guest reads.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-nbd --version
requires pgrep --version
source "$abs_srcdir/guest.sh"

make_initrd <<'END_OF_RUN'
run ()
{
    set -e
    mount -t ext4 /dev/vda /mnt
    cd /mnt
    sums *.file
    echo READ
    for i in 1 2 3; do
        echo 3 > /proc/sys/vm/drop_caches
        sums *.file
    done
    dd if=/dev/urandom of=base.file bs=1000 seek=77 count=500 \
        conv=notrunc,fsync
    cp base.file copy.file
    rm gone.file
    sync
    echo 3 > /proc/sys/vm/drop_caches
    echo BOOT $boot IS DONE
    sums *.file
    cd /
    umount /mnt
    echo UNMOUNTED
}
END_OF_RUN

mkdir files
random_file files/base.file 3000000
random_file files/gone.file 2000000
truncate -s 32M disk.img
mke2fs -q -F -t ext4 -d files disk.img
qemu-img convert -f raw -O qcow2 -c disk.img base.qcow2
sum=$(md5sum base.qcow2)
addcow-img create -q -b base.qcow2 -F qcow2 vm.add-cow

start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow 2>log
mkfifo console
(boot 1) > console &
guest_pid=$!
cleanup_fn "kill -TERM $guest_pid 2>/dev/null || :"
while IFS= read -r line; do
    echo "$line"
    if [ "${line%$'\r'}" = READ ]; then
        kill -KILL "$(pgrep -P "$pid" -f qemu-nbd)"
    fi
done < console > console.log
cat console.log
wait $guest_pid
stop_nbdkit "$pid"
cat log
grep -F "base.qcow2: connection lost: " log
grep -F "base.qcow2: connected again" log

ended console.log 1
host_sums files > expected
part before console.log | sort -u > sums
cmp sums expected
part after console.log > expected
[ "$(cut -d' ' -f1 expected | tr '\n' ' ')" = "base.file copy.file " ]

# And seen from outside.
start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
nbdcopy "$uri" disk
stop_nbdkit "$pid"
e2fsck -f -n disk
mkdir out
debugfs -R "rdump / out" disk
host_sums out > sums
cmp sums expected
[ "$sum" = "$(md5sum base.qcow2)" ]

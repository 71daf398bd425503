#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A guest lives on an overlay: what it synced is there when it boots again
# after an ordinary stop, and after the server was killed under it.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/guest.sh"

make_initrd <<'END_OF_RUN'
run ()
{
    set -e
    mount -t ext4 /dev/vda /mnt
    cd /mnt
    echo "STATE $(cat state)"
    sums *.file
    case $boot in
    1)
        dd if=/dev/urandom of=first.file bs=64k count=20 conv=fsync
        dd if=/dev/urandom of=base.file bs=1000 seek=77 count=50 \
            conv=notrunc,fsync
        cp first.file copy.file
        rm gone.file
        echo one >> state
        sync
        ;;
    2)
        rm copy.file
        echo two | dd of=state bs=1 seek=9 conv=notrunc,fsync
        dd if=/dev/urandom of=second.file bs=64k count=10 conv=fsync
        dd if=/dev/urandom of=first.file bs=4k seek=7 count=1 \
            conv=notrunc,fsync
        ;;
    3)
        echo three >> state
        ;;
    esac
    echo BOOT $boot IS DONE
    sums *.file
    if [ $boot = 2 ]; then
        echo SYNCED
        sleep 1000
    fi
    cd /
    umount /mnt
    echo UNMOUNTED
}
END_OF_RUN

# The disk that they all begin with.
mkdir files
random_file files/base.file 3000000
random_file files/gone.file 200000
echo zero > files/state
truncate -s 64M base.img
mke2fs -q -F -t ext4 -d files base.img
cp base.img base.copy
addcow-img create -q -b base.img vm.add-cow

# Nothing is committed but by the guest's own flushes.
start ()
{
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-commit-interval=0
}

state ()
{
    [ "$(tr -d '\r' < "$1" | sed -n '/^STATE/,/^SUM/p' |
        sed 's/^STATE //; /^SUM/d' | tr '\n' ' ')" = "$2 " ]
}

# 1: an ordinary life.
start
(boot 1) > log1
cat log1
stop_nbdkit "$pid"
ended log1 1
state log1 "zero"
host_sums files > expected
part before log1 > sums
cmp sums expected
part after log1 > expected
[ "$(cut -d' ' -f1 expected | tr '\n' ' ')" = "base.file copy.file first.file " ]
[ "$(grep -c -x -F -f sums expected)" -eq 0 ]

# 2: the server is killed when fsync has returned.
start
mkfifo console
(boot 2) > console &
guest_pid=$!
cleanup_fn "kill -TERM $guest_pid 2>/dev/null || :"
while IFS= read -r line; do
    echo "$line"
    [ "${line%$'\r'}" = SYNCED ] && break
done < console > log2
cat log2
stop_nbdkit "$pid" KILL
kill -TERM $guest_pid 2>/dev/null || :
wait $guest_pid || :
state log2 "zero one"
part before log2 > sums
cmp sums expected
part after log2 > expected
[ "$(cut -d' ' -f1 expected | tr '\n' ' ')" = "base.file first.file second.file " ]

start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
nbdcopy "$uri" disk
stop_nbdkit "$pid"
debugfs -R features disk | grep needs_recovery

# 3: the journal is replayed, and all is there.
start
(boot 3) > log3
cat log3
stop_nbdkit "$pid"
ended log3 3
state log3 "zero one two"
part before log3 > sums
cmp sums expected

# And seen from outside.
start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
nbdcopy "$uri" disk
stop_nbdkit "$pid"
e2fsck -f -n disk
mkdir out
debugfs -R "rdump / out" disk
host_sums out > sums
cmp sums expected
[ "$(tr '\n' ' ' < out/state)" = "zero one two three " ]
cmp base.img base.copy

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A guest lives on an overlay: what it synced is there when it boots again
# after an ordinary stop, and after the server was killed under it.

source ./functions.sh
set -e
set -x

requires qemu-system-x86_64 --version
requires busybox true
requires cpio --version
requires modprobe --version
requires mke2fs -V
requires e2fsck -V
requires debugfs -V
requires nbdcopy --version
requires_plugin file

# Debian's kernel for virtual machines.
for kernel in /boot/vmlinuz-*-cloud-amd64; do
    version=${kernel#/boot/vmlinuz-}
done
requires test -r "$kernel"
requires test -d "/lib/modules/$version"
busybox=$(type -P busybox)
requires bash -c '! ldd "$0"' "$busybox"

cd "$tmp"

# What boots: busybox, and those modules that the kernel needs for a disk.
mkdir -p initrd/bin initrd/dev initrd/proc initrd/mnt initrd/modules
cp "$busybox" initrd/bin/busybox
for m in virtio_pci virtio_blk ext4; do
    modprobe -S "$version" --show-depends $m
done | while read -r what file _; do
    [ "$what" = insmod ] || continue
    name=${file##*/}
    [ -e "initrd/modules/$name" ] || echo "$name" >> initrd/modules/order
    cp "$file" initrd/modules/
done
cat > initrd/init <<'END_OF_INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for m in $(cat /modules/order); do
    insmod /modules/$m
done

sums ()
{
    for f in "$@"; do
        echo "SUM $f $(sha256sum < $f)"
    done
}

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

(run) 2>&1
poweroff -f
END_OF_INIT
chmod +x initrd/init
(cd initrd && find . | cpio -o -H newc -R 0:0 --quiet) > initrd.img

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

guest=(timeout -k 10 120 qemu-system-x86_64 -accel tcg -m 256 -nodefaults
    -no-user-config -display none -serial stdio -no-reboot
    -kernel "$kernel" -initrd initrd.img)

# boot NUMBER: run the guest; its console is stdout.  For a subshell.
boot ()
{
    exec "${guest[@]}" \
        -append "console=ttyS0 quiet panic=-1 boot=$1" \
        -drive "file=nbd+unix:///?socket=$tmp/sock,format=raw,if=virtio" \
        </dev/null
}

# part BEFORE|AFTER LOG: the checksums that a guest printed, before and
# after it wrote.
part ()
{
    tr -d '\r' < "$2" |
        awk -v part="$1" '/^BOOT/ { after = 1 }
            $1 == "SUM" && after == (part == "after") { print $2, $3 }'
}

# ended LOG BOOT: that boot did all it should.
ended ()
{
    tr -d '\r' < "$1" | grep -x "BOOT $2 IS DONE"
    tr -d '\r' < "$1" | grep -x UNMOUNTED
}

state ()
{
    [ "$(tr -d '\r' < "$1" | sed -n '/^STATE/,/^SUM/p' |
        sed 's/^STATE //; /^SUM/d' | tr '\n' ' ')" = "$2 " ]
}

host_sums ()
{
    (cd "$1" && for f in *.file; do
        echo "$f $(sha256sum < "$f" | cut -d' ' -f1)"
    done)
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

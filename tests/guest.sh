# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# What the tests with a guest share, after functions.sh.  They work in
# $tmp.  The disk of a guest is served on $tmp/sock, its console is stdout.

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

cd "$tmp" || exit 1

# make_initrd: what boots: busybox, those modules that the kernel needs for
# a disk, and stdin, a script that defines "run".  With the parameters of
# the kernel as variables, that is what the guest does.
make_initrd ()
{
    local m what file name
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
    {
        cat <<'END_OF_BEGIN'
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

END_OF_BEGIN
        cat
        echo '(run) 2>&1'
        echo 'poweroff -f'
    } > initrd/init
    chmod +x initrd/init
    (cd initrd && find . | cpio -o -H newc -R 0:0 --quiet) > initrd.img
}

# boot NUMBER: run the guest, with $boot.  For a subshell.
boot ()
{
    exec timeout -k 10 120 qemu-system-x86_64 -accel tcg -m 256 -nodefaults \
        -no-user-config -display none -serial stdio -no-reboot \
        -kernel "$kernel" -initrd initrd.img \
        -append "console=ttyS0 quiet panic=-1 boot=$1" \
        -drive "file=nbd+unix:///?socket=$tmp/sock,format=raw,if=virtio" \
        </dev/null
}

# part before|after LOG: the checksums that a guest printed, before and
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

host_sums ()
{
    (cd "$1" && for f in *.file; do
        echo "$f $(sha256sum < "$f" | cut -d' ' -f1)"
    done)
}

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Images and backing files that cannot be used are refused, with every
# file as it was; those that only look strange are not.  What cannot be
# written is served read-only.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires nbdinfo --version
requires_plugin memory
requires_plugin eval
source "$abs_srcdir/bad-input.sh"

size=65536
random_file base.img $size
truncate -s $size vm.raw
metadata vm.add-cow size=$size backing=base.img image=vm.raw
serve file addcow=vm.add-cow

mkdir folder
mkfifo fifo
ln -s nowhere dangling
ln -s loop loop
ln -s vm.raw raw-link
ln -s base.img base-link

### Images.

# image TEXT NAME [AS]: refused, by the name in the header as by file=.
image ()
{
    metadata x.add-cow size=$size backing=base.img image="$2"
    keep
    fails_in_time "$2: $1" "${@:3}" serve file addcow=x.add-cow
    fails_in_time "$2: $1" "${@:3}" serve -r file addcow=x.add-cow
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$2: $1" "${@:3}" addcow-img stream x.add-cow
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$2: $1" "${@:3}" addcow-img map x.add-cow
    nbdkit_says fails_in_time "$2: $1" "${@:3}" serve file addcow=vm.add-cow \
        file="$2"
    # Nor is it one that create would keep.
    fails_in_time "$2: $1" "${@:3}" addcow-img create -f -b base.img \
        -i "$2" y.add-cow
    kept
    rm x.add-cow
}

short="image file is shorter than the virtual disk"
for n in 0 1 512 $((size / 2)) $((size - 512)) $((size - 1)); do
    truncate -s "$n" short.raw
    image "$short" short.raw
done
image "neither a regular file nor a block device" folder
image "neither a regular file nor a block device" fifo
image "neither a regular file nor a block device" /dev/null
image "Too many levels of symbolic links" loop
image "Not a directory" base.img/x

missing="No such file or directory"
for name in missing.raw missing/x.raw dangling; do
    metadata x.add-cow size=$size backing=base.img image=$name
    refused "$name: $missing" serve file addcow=x.add-cow
    [ -n "$ADDCOW_VALGRIND" ] ||
        refused "$name: $missing" addcow-img stream x.add-cow
    [ -n "$ADDCOW_VALGRIND" ] ||
        refused "$name: $missing" addcow-img map x.add-cow
    nbdkit_says refused "$name: $missing" serve file addcow=vm.add-cow \
        file=$name
    rm x.add-cow
done

install -m 000 vm.raw unreadable
image "Permission denied" unreadable as_nobody
chmod 600 unreadable

uri="is a URI, a local file is needed here"
for name in nbd://localhost nbd+unix:///?socket=x a:b.raw json:{} \
            FILE:vm.raw z.9+-:x; do
    metadata x.add-cow size=$size backing=base.img image="$name"
    keep
    fails_in_time "$name: $uri" serve file addcow=x.add-cow
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$name: $uri" addcow-img stream x.add-cow
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$name: $uri" addcow-img map x.add-cow
    fails_in_time "$name: $uri" addcow-img create -i "$name" z.add-cow $size
    kept
    rm x.add-cow
done
metadata x.add-cow size=$size backing=file:base.img image=file:vm.raw
serve file addcow=x.add-cow
metadata x.add-cow size=$size backing="file:$PWD/base.img" \
    image="file://$PWD/vm.raw"
serve file addcow=x.add-cow
# A scheme begins with a letter, and stands before any slash.
ln -s vm.raw 1:vm.raw
ln -s vm.raw :vm.raw
ln -s ../vm.raw folder/x:vm.raw
for name in ./1:vm.raw 1:vm.raw :vm.raw folder/x:vm.raw; do
    metadata x.add-cow size=$size backing=base.img image="$name"
    serve file addcow=x.add-cow
done
rm x.add-cow ./1:vm.raw :vm.raw folder/x:vm.raw

# Longer than needed is good.
truncate -s $((size + 1)) long.raw
serve file addcow=vm.add-cow file=long.raw

# The plugin has its own image.
metadata own.add-cow size=$size backing=base.img
for n in $size $((size + 1)) $((size * 2)); do
    test "$(serve memory "$n" addcow=own.add-cow)" = $size
done
refused "file" serve file addcow=own.add-cow
# One that is too small is only known once somebody connects.  The server
# says so then, and lives.
keep
for n in 0 512 $((size - 512)) $((size - 1)); do
    status=0
    # shellcheck disable=SC2016 # it is nbdkit's $uri
    nbdkit -U - --filter="$addcow" memory "$n" addcow=own.add-cow \
        --run 'nbdinfo --size "$uri" || nbdinfo --size "$uri" || exit 7' \
        2> "$tmp/messages" || status=$?
    [ $status -eq 7 ]
    [ "$(grep -c "own.add-cow: the image is $n bytes long, shorter than \
the virtual disk of $size bytes" "$tmp/messages")" -eq 2 ]
done
kept

# What another plugin makes of file= is its affair.
metadata x.add-cow size=$size backing=base.img image=missing/or:not
# shellcheck disable=SC2016 # it is the plugin's $3
serve eval addcow=x.add-cow get_size="echo $size" config='exit 0' \
    pread='head -c $3 /dev/zero'
rm x.add-cow

### One file in two places.

ln vm.raw raw-hard
ln base.img base-hard
metadata self.add-cow size=$size image=vm.raw
ln self.add-cow self-hard
ln -s self.add-cow self-link
# Large enough to be what it must not be.
truncate -s $((size * 2)) self.add-cow

# same TEXT BACKING IMAGE
same ()
{
    # Written in place: the links stay.
    metadata "$tmp/new" size=$size backing="$2" image="$3"
    dd if="$tmp/new" of=self.add-cow conv=notrunc status=none
    keep
    fails_in_time "$1" serve file addcow=self.add-cow
    fails_in_time "$1" serve -r file addcow=self-link
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$1" addcow-img stream self-hard
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$1" addcow-img map self-hard
    fails_in_time "$1" addcow-img create -f -b "$2" -i "$3" self.add-cow
    fails_in_time "$1" addcow-img create -f -b "$2" -i "$3" self-link $size
    kept
}

it_is="image file and metadata file are the same file"
for name in self.add-cow ./self.add-cow self-hard self-link \
            "$PWD/folder/../self.add-cow" file:self-link; do
    same "${name##*[:/]}: $it_is" base.img "$name"
    same "${name##*[:/]}: $it_is" "$name" "$name"
done
it_is="backing file and metadata file are the same file"
for name in self.add-cow self-hard self-link "$PWD/self.add-cow"; do
    same "${name##*/}: $it_is" "$name" vm.raw
done
it_is="backing file and image file are the same file"
for name in vm.raw raw-hard raw-link folder/../raw-link file:raw-hard; do
    same "${name##*[:/]}: $it_is" "$name" vm.raw
    same "vm.raw: $it_is" vm.raw "$name"
done
same "base-link: $it_is" base-link base-hard

# By the parameters.
refused "self-hard: image file and metadata file are the same file" \
    serve file addcow=self.add-cow file=self-hard
refused "base.img: backing file and image file are the same file" \
    serve file addcow=vm.add-cow file=base-link
rm self.add-cow self-hard self-link

### Backing files.

# backing TEXT NAME [AS]
backing ()
{
    metadata x.add-cow size=$size backing="$2" image=vm.raw
    keep
    fails_in_time "$2: $1" "${@:3}" serve file addcow=x.add-cow
    fails_in_time "$2: $1" "${@:3}" serve -r memory $size addcow=x.add-cow
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$2: $1" "${@:3}" addcow-img stream x.add-cow
    [ -n "$ADDCOW_VALGRIND" ] ||
        fails_in_time "$2: $1" "${@:3}" addcow-img map x.add-cow
    fails_in_time "$2: $1" "${@:3}" addcow-img create -b "$2" y.add-cow
    fails_in_time "$2: $1" "${@:3}" addcow-img create -b "$2" y.add-cow $size
    kept
    rm x.add-cow
}

backing "$missing" missing.img
backing "$missing" missing/x.img
backing "$missing" dangling
backing "neither a regular file nor a block device" folder
backing "neither a regular file nor a block device" fifo
backing "neither a regular file nor a block device" /dev/zero
backing "Too many levels of symbolic links" loop
install -m 000 base.img unreadable
backing "Permission denied" unreadable as_nobody
chmod 600 unreadable

# Disk images of another kind are not read as raw.
foreign="begins like a disk image"
while read -r name offset magic; do
    metadata x.add-cow size=$size backing=other.img image=vm.raw

    random_file other.img 4096
    printf '%b' "$magic" |
        dd of=other.img bs=1 seek="$offset" conv=notrunc status=none
    backing "$foreign" other.img
    # No longer than the magic.
    truncate -s $((offset + $(printf '%b' "$magic" | wc -c))) other.img
    metadata x.add-cow size=$size backing=other.img image=vm.raw
    refused "other.img: $foreign" serve file addcow=x.add-cow
    # One byte of it missing; somewhere else; not quite it.
    truncate -s -1 other.img
    serve file addcow=x.add-cow
    random_file other.img 4096
    for other in $((offset + 1)) 512; do
        printf '%b' "$magic" |
            dd of=other.img bs=1 seek=$other conv=notrunc status=none
    done
    serve file addcow=x.add-cow
    random_file other.img 4096
    printf '%b' "${magic%????}" |
        dd of=other.img bs=1 seek="$offset" conv=notrunc status=none
    serve file addcow=x.add-cow
    rm other.img
    echo "$name done"
done <<'TABLE'
qcow2 0 \0121\0106\0111\0373
qed 0 \0121\0105\0104\0000
vmdk 0 \0113\0104\0115\0126
vmdk 0 \0103\0117\0127\0104
vmdk 0 #\x20Disk\x20DescriptorFile
vhdx 0 vhdxf\0151\0154\0145
vpc 0 conec\0164\0151\0170
vdi 64 \0177\0020\0332\0276
parallels 0 WithoutFreeSpace
parallels 0 WithouFreSpacExt
bochs 0 Bochs\x20Virtual\x20HD\x20Image
luks 0 LUKS\0272\0276
add-cow 0 ADD_COW\0377
TABLE

# As qemu-img makes them.
if type -P qemu-img; then
    for format in qcow qcow2 qed vmdk vhdx vpc vdi parallels; do
        qemu-img create -q -f $format other.img 1M
        backing "$foreign" other.img
    done
    qemu-img create -q -f vmdk -o subformat=monolithicFlat other.img 1M
    backing "$foreign" other.img
fi
backing "$foreign" vm.add-cow

### What cannot be written.

cat > "$tmp/read-only.py" <<'PY'
import sys, nbd

h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.is_read_only()
base = open("base.img", "rb").read()
assert h.pread(len(base), 0) == base
for write in (
    lambda: h.pwrite(b"x" * 512, 0),
    lambda: h.zero(512, 0),
    lambda: h.trim(512, 0),
):
    try:
        write()
    except nbd.Error as e:
        assert e.errno == "EPERM", e
    else:
        assert False
h.shutdown()
PY

# read_only COMMAND...: what COMMAND serves may not be written.
read_only ()
{
    keep
    "$@" --run "/usr/bin/python3 $tmp/read-only.py \"\$uri\""
    kept
}

rm -f other*.img unreadable
chmod 644 base.img
server=(nbdkit -U - --filter="$addcow" file addcow=vm.add-cow)
chmod 666 vm.raw vm.add-cow
read_only "${server[@]}" -r
chmod 444 vm.raw
read_only as_nobody "${server[@]}"
chmod 666 vm.raw
chmod 444 vm.add-cow
read_only as_nobody "${server[@]}"
chmod 444 vm.raw
read_only as_nobody "${server[@]}"
# But for that, it could be.
chmod 666 vm.raw vm.add-cow
as_nobody "${server[@]}" --run '/usr/bin/python3 -c "
import sys, nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert not h.is_read_only()
h.pwrite(b\"x\" * 512, 0)
h.shutdown()" "$uri"'
[ "$(head -c 512 vm.raw | tr -d x | wc -c)" -eq 0 ]

# An image that is too short for itself, but not behind what makes it long
# enough, nor for a plugin that knows better.
requires_filter truncate
truncate -s $((size / 2)) short.raw
metadata short.add-cow size=$size backing=base.img image=short.raw
fails_in_time "$short" serve file addcow=short.add-cow
[ "$(serve --filter=truncate file addcow=short.add-cow truncate=$size)" \
    -eq $size ]
# shellcheck disable=SC2016 # for the plugin
[ "$(serve eval addcow=short.add-cow get_size="echo $size" \
    pread='head -c $3 /dev/zero' config='exit 0')" -eq $size ]

# A metadata file that root may not write either.
mkdir ro
if [ -n "$root" ] && mount -t tmpfs addcow-test ro; then
    cleanup_fn "umount $tmp/t/ro"
    cp base.img vm.raw ro
    metadata ro/vm.add-cow size=$size backing=base.img image=vm.raw
    mount -o remount,ro ro
    read_only nbdkit -U - --filter="$addcow" file addcow=ro/vm.add-cow
fi

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What addcow-img create makes: the metadata file byte for byte, as somebody
# else writes it, and the image; that, and nothing besides.

source ./functions.sh
set -e
set -x

requires nbdinfo --version
source "$abs_srcdir/bad-input.sh"

random_file base.img 65536

# expect FILE SIZE BACKING IMAGE: FILE is such a metadata file.
expect ()
{
    PYTHONPATH=$abs_srcdir /usr/bin/python3 - "$@" <<'PY'
import os, sys
from addcow_format import Metadata

name, size, backing, image = map(os.fsencode, sys.argv[1:])
want = Metadata(int(size), backing, image).encode()
assert open(name, "rb").read() == want
PY
}

# makes FILES ARGUMENT...: addcow-img create makes FILES and changes no
# other.
makes ()
{
    local new
    find . | sort > "$tmp/before"
    md5sum base.img > "$tmp/sums"
    addcow-img create "${@:2}" > "$tmp/out" 2> "$tmp/err"
    cat "$tmp/out" "$tmp/err"
    [ ! -s "$tmp/err" ]
    find . | sort > "$tmp/after"
    new=$(comm -13 "$tmp/before" "$tmp/after" | tr '\n' ' ')
    [ "$new" = "$1" ]
    [ -z "$(comm -23 "$tmp/before" "$tmp/after")" ]
    md5sum -c "$tmp/sums"
}

# image_is FILE SIZE: a sparse file.
image_is ()
{
    [ -f "$1" ] && [ "$(stat -c '%s %b' "$1")" = "$2 0" ]
}

### The common case.

makes "./vm.add-cow ./vm.raw " -b base.img vm.add-cow
[ "$(cat "$tmp/out")" = "Formatting 'vm.add-cow', fmt=add-cow size=65536 \
backing_file=base.img image_file=vm.raw" ]
expect vm.add-cow 65536 base.img vm.raw
image_is vm.raw 65536
[ "$(serve file addcow=vm.add-cow)" -eq 65536 ]
rm vm.*

# The name of the image.
for name in vm vm.img .vm a.b.c .a.b; do
    case $name in
        .vm) raw=.vm.raw ;;
        vm) raw=vm.raw ;;
        *) raw=${name%.*}.raw ;;
    esac
    addcow-img create -q -b base.img $name
    expect $name 65536 base.img $raw
    image_is $raw 65536
    rm $name $raw
done

# A name with a colon in it is no URI, nor is what is before that stripped.
for name in a:b file:b 1:2 a.b:c.d; do
    makes "./$name.add-cow ./$name.raw " -b base.img "$name.add-cow"
    expect "$name.add-cow" 65536 base.img "./$name.raw"
    serve file addcow="$name.add-cow"
    rm "$name".*
done
mkdir c:d
makes "./c:d/vm.add-cow ./c:d/vm.raw " c:d/vm.add-cow 1M
expect c:d/vm.add-cow 1048576 "" vm.raw
rm -r c:d

# Nothing but the two, whatever there is room for.
makes "./x.add-cow ./x.raw " x.add-cow 1M
expect x.add-cow 1048576 "" x.raw
image_is x.raw 1048576
serve file addcow=x.add-cow
rm x.*
makes "./x.add-cow " -i '' -b base.img x.add-cow
expect x.add-cow 65536 base.img ""
rm x.*
makes "./x.add-cow " -i '' x.add-cow 4097
expect x.add-cow 4608 "" ""
rm x.*
makes "./x.add-cow ./x.raw " -b '' x.add-cow 0
expect x.add-cow 0 "" x.raw
image_is x.raw 0
rm x.*

### Sizes.

for bytes in 0 1 511 512 513 4096 4097; do
    random_file odd.img $bytes
    addcow-img create -q -b odd.img x.add-cow
    round=$(((bytes + 511) / 512 * 512))
    expect x.add-cow $round odd.img x.raw
    image_is x.raw $round
    [ "$(stat -c %s odd.img)" -eq $bytes ]
    rm x.*
done
rm odd.img
# Smaller and larger than the backing file.
for bytes in 512 66048 1048576; do
    makes "./x.add-cow ./x.raw " -b base.img x.add-cow $bytes
    expect x.add-cow $bytes base.img x.raw
    image_is x.raw $bytes
    rm x.*
done
# A whole page and its neighbours, and more than 32 bits.
for bytes in $((16224 * 512)) $((16225 * 512)) $((5 << 40)); do
    addcow-img create -q -i '' x.add-cow $bytes
    [ "$(stat -c %s x.add-cow)" -eq $((2068 + (bytes + 4095) / 4096)) ]
    [ "$(stat -c %b x.add-cow)" -le 16 ]
    rm x.*
done

### Ways to say it.

mkdir sub
for options in "-b base.img -i my.raw vm 1M" \
               "-bbase.img -imy.raw vm 1M" \
               "vm -b base.img 1M -i my.raw" \
               "--backing=base.img --image my.raw vm 1M" \
               "-o backing_file=base.img,image_file=my.raw,size=1M vm" \
               "-o size=1M,image_file=my.raw,backing_file=base.img vm" \
               "-o size=1M -b base.img -i my.raw -- vm" \
               "-o backing_file=base.img -o image_file=my.raw vm 1M" \
               "--options=backing_file=base.img -i my.raw -f vm 1024K"; do
    # shellcheck disable=SC2086
    makes "./my.raw ./vm " $options
    expect vm 1048576 base.img my.raw
    rm my.raw vm
done
ln base.img 'a,b=c,.img'
makes "./,.raw ./vm " -o 'backing_file=a,,b=c,,.img,image_file=,,.raw' vm
expect vm 65536 'a,b=c,.img' ',.raw'
rm vm ,.raw 'a,b=c,.img'

# -q prints nothing.
makes "./vm ./vm.raw " -q -b base.img vm
[ ! -s "$tmp/out" ]
rm vm vm.raw

# Names are kept as they were given, and are relative to the new file's
# folder and not to the current one.
mkdir -p sub/deep
cp base.img sub/own.img
for name in ../base.img "$PWD/base.img" own.img file:own.img ./own.img; do
    makes "./sub/vm.add-cow ./sub/vm.raw " -b "$name" sub/vm.add-cow
    expect sub/vm.add-cow 65536 "$name" vm.raw
    serve file addcow=sub/vm.add-cow
    rm sub/vm.*
done
cp base.img sub/a:b.img
makes "./sub/c:d.raw ./sub/vm " -b ./a:b.img -i ./c:d.raw "$PWD/sub/vm"
expect sub/vm 65536 ./a:b.img ./c:d.raw
serve file addcow=sub/vm
rm sub/vm sub/*:*
makes "./sub/deep/y.raw ./sub/vm " -b own.img -i deep/y.raw sub/vm
expect sub/vm 65536 own.img deep/y.raw
rm sub/vm sub/deep/y.raw
makes "./sub/vm ./y.raw " -b own.img -i file:../y.raw sub/vm
expect sub/vm 65536 own.img file:../y.raw
serve file addcow=sub/vm
rm sub/vm y.raw
(cd sub/deep && addcow-img create -q -b base.img ../../vm)
expect vm 65536 base.img vm.raw
rm vm vm.raw
name=$'\xff \n"%s'
cp base.img "$name"
addcow-img create -b "$name" "$name.add-cow" > "$tmp/out"
expect "$name.add-cow" 65536 "$name" "$name.raw"
# The line that says so is one.
said=$'\xff \\012"%s'
[ "$(cat "$tmp/out")" = "Formatting '$said.add-cow', fmt=add-cow size=65536 \
backing_file=$said image_file=$said.raw" ]
rm "$name"*
long=$(for ((i = 0; i < 509; i++)); do printf ./; done)
makes "./sub/12345 ./sub/vm " -b "${long:2}own.img" -i "${long}12345" sub/vm
expect sub/vm 65536 "${long:2}own.img" "${long}12345"
[ "$(serve file addcow=sub/vm)" -eq 65536 ]
rm sub/vm sub/12345

### What is there already.

# An image is kept, if it is long enough, with all it is.
random_file kept.raw 100000
chmod 604 kept.raw
cp -p kept.raw "$tmp/kept"
inode=$(stat -c '%i %a %s %Y' kept.raw)
makes "./vm " -b base.img -i kept.raw vm
expect vm 65536 base.img kept.raw
cmp kept.raw "$tmp/kept"
[ "$(stat -c '%i %a %s %Y' kept.raw)" = "$inode" ]
# Nothing of what it holds is in the overlay.
serve file addcow=vm
rm vm
truncate -s 65536 kept.raw
makes "./vm " -b base.img -i kept.raw vm
rm vm

# -f makes FILE anew, of the old one nothing is left; the image is kept.
head -c 100000 /dev/urandom > vm
makes "" -f -b base.img -i kept.raw vm
expect vm 65536 base.img kept.raw
head -c 65536 "$tmp/kept" | cmp - kept.raw
makes "" -f --force -i kept.raw vm 512
expect vm 512 "" kept.raw
makes "./vm.raw " -f -b base.img vm
expect vm 65536 base.img vm.raw
rm vm vm.raw
# It need not be there.
makes "./vm ./vm.raw " -f -b base.img vm
rm vm vm.raw
# Through a link: that stays one.
mkdir real
ln -s real/vm link
addcow-img create -q -b ../base.img real/vm
random_file real/vm 5000
makes "./real/link.raw " -f -b ../base.img link
[ "$(readlink link)" = real/vm ]
expect real/vm 65536 ../base.img link.raw
rm -r link real

### Modes.

for mask in 000 002 022 027 077; do
    (umask $mask && addcow-img create -q -b base.img vm)
    mode=$(printf %o $((0666 & ~0$mask)))
    [ "$(stat -c %a vm)" = "$mode" ]
    [ "$(stat -c %a vm.raw)" = "$mode" ]
    rm vm vm.raw
done

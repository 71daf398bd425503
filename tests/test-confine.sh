#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-confine: which names in metadata files lead to files under the
# folder, and which out of it.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires nbdinfo --version
source "$abs_srcdir/bad-input.sh"

VG=() # as unwatched does

size=65536
outside="is not under the folder that names are confined to"

# Two of everything: inside is what may be opened.
mkdir conf conf/sub conf/sub/deep conf-evil other
random_file conf/base.img $size
for name in conf/sub/base.img conf/sub/deep/base.img conf-evil/base.img \
            other/base.img base.img; do
    random_file $name $size
done
for folder in conf conf/sub conf/sub/deep conf-evil other .; do
    truncate -s $size $folder/vm.raw
done
for file in base.img vm.raw; do
    suffix=${file##*.}
    ln -s $file conf/link."$suffix"
    ln -s link."$suffix" conf/link-link."$suffix"
    ln -s sub/deep/../../$file conf/link-dots."$suffix"
    ln -s "$PWD/conf/$file" conf/link-absolute."$suffix"
    ln -s ../conf/$file conf/link-round."$suffix"
    ln -s ../other/$file conf/leaves."$suffix"
    ln -s "$PWD/other/$file" conf/leaves-absolute."$suffix"
    ln -s leaves."$suffix" conf/leaves-by-link."$suffix"
    ln -s nowhere."$suffix" conf/dangling."$suffix"
    ln -s ../nowhere."$suffix" conf/dangling-outside."$suffix"
    ln -s loop."$suffix" conf/loop."$suffix"
    ln conf-evil/$file conf/hard."$suffix"
done
ln -s sub conf/sub-link
ln -s "$PWD/conf/sub" conf/sub-absolute
ln -s ../other conf/leaves-folder
ln -s ../conf-evil conf/evil
ln -s / conf/root
ln -s "$PWD/conf" way-in

# reads BASE PLUGIN PARAMETER...: what is served is what is in BASE.
cat > "$tmp/read.py" <<'PY'
import sys, nbd
uri, base = sys.argv[1:]
h = nbd.NBD()
h.connect_uri(uri)
want = open(base, "rb").read()
assert h.pread(len(want), 0) == want
PY
reads ()
{
    nbdkit -U - --filter="$addcow" "${@:2}" \
        --run "/usr/bin/python3 $tmp/read.py \"\$uri\" $1"
}

# backing BASE NAME [FOLDER]: in a metadata file in conf, NAME means BASE.
backing ()
{
    metadata conf/x.add-cow size=$size backing="$2" image=vm.raw
    reads "$1" -r file addcow=conf/x.add-cow addcow-confine="${3:-conf}"
    rm conf/x.add-cow
}

# no_backing TEXT NAME [FOLDER]: and it is refused.
no_backing ()
{
    metadata conf/x.add-cow size=$size backing="$2" image=vm.raw
    refused "$1" serve file addcow=conf/x.add-cow addcow-confine="${3:-conf}"
    refused "$1" serve -r memory $size addcow=conf/x.add-cow \
        addcow-confine="${3:-conf}"
    rm conf/x.add-cow
}

# image IMAGE NAME [FOLDER]: likewise for images, which is where it writes.
n=0
image ()
{
    local mark=$((n++ % 10))
    metadata conf/x.add-cow size=$size backing=base.img image="$2"
    nbdkit -U - --filter="$addcow" file addcow=conf/x.add-cow \
        addcow-confine="${3:-conf}" --run "nbdsh -u \"\$uri\" -c '
h.pwrite(b\"$mark\" * 512, 512)
h.flush()'"
    [ "$(dd if="$1" bs=512 skip=1 count=1 status=none | tr -d $mark |
        wc -c)" -eq 0 ]
    rm conf/x.add-cow
}

no_image ()
{
    metadata conf/x.add-cow size=$size backing=base.img image="$2"
    refused "$1" serve file addcow=conf/x.add-cow addcow-confine="${3:-conf}"
    refused "$1" serve -r memory $size addcow=conf/x.add-cow \
        addcow-confine="${3:-conf}"
    rm conf/x.add-cow
}

### Names.

# The name of both, without the suffix.
leaves ()
{
    no_backing "$1.img: $outside" "$1.img"
    no_image "$1.raw: $outside" "$1.raw"
}

# missing TEXT NAME
missing ()
{
    no_backing "$2.img: $1" "$2.img"
    no_image "$2.raw: $1" "$2.raw"
}

for folder in '' ./ sub/../ sub/deep/../../ ../conf/ "$PWD/conf/" \
              ../other/../conf/ ../way-in/ "$PWD/way-in/" \
              "root$PWD/conf/" leaves-folder/../conf/ file: \
              "file:$PWD/conf/" "file://$PWD/way-in/"; do
    backing conf/base.img "${folder}base.img"
    image conf/vm.raw "${folder}vm.raw"
done
for name in link link-link link-dots link-absolute link-round; do
    backing conf/base.img $name.img
    image conf/vm.raw $name.raw
done
for name in sub/ sub-link/ sub-absolute/ sub/deep/../ \
            leaves-folder/../conf/sub/; do
    backing conf/sub/base.img "${name}base.img"
    image conf/sub/vm.raw "${name}vm.raw"
done
# A hard link is as much a file of this folder as of the other.
backing conf-evil/base.img hard.img
image conf-evil/vm.raw hard.raw

for name in leaves leaves-absolute leaves-by-link; do
    leaves "$name"
done
for folder in .. ../other "$PWD/other" "$PWD" leaves-folder ../conf-evil evil \
              sub/../.. sub/../leaves-folder sub-absolute/../../other \
              "$PWD/conf-evil" "root$PWD/other"; do
    no_backing "$folder/base.img: $outside" "$folder/base.img"
    no_image "$folder/vm.raw: $outside" "$folder/vm.raw"
done
no_backing "$PWD/other/base.img: $outside" "file:$PWD/other/base.img"
no_backing "file:../other/base.img: $outside" "file:../other/base.img"
no_image "file:../other/vm.raw: $outside" "file:../other/vm.raw"
for name in . .. ../conf "$PWD/conf" / root; do
    no_backing "$outside" "$name"
    no_image "$outside" "$name"
done
no_backing "sub: neither a regular file nor a block device" sub
missing "No such file or directory" nowhere
missing "No such file or directory" dangling
missing "No such file or directory" dangling-outside
missing "Too many levels of symbolic links" loop
missing "Not a directory" base.img/x
# What this process has open, and what it is.
for name in /proc/self/exe /proc/self/fd/2 /dev/stdin /proc/self/cmdline \
            /etc/passwd /dev/null; do
    no_backing "$name: $outside" "$name"
    no_image "$name: $outside" "$name"
done
mkfifo conf/fifo
no_backing "fifo: neither a regular file nor a block device" fifo

for uri in nbd://localhost "nbd+unix:///?socket=$PWD/conf/s" \
           https://localhost/base.img a:b.img json:{}; do
    no_backing "$uri: $outside" "$uri"
    no_image "$uri: is a URI" "$uri"
done

### The folder.

for folder in conf/ ./conf other/../conf "$PWD/conf" "$PWD/conf//" way-in \
              way-in/ "$PWD/way-in" conf/sub/.. .; do
    backing conf/base.img base.img "$folder"
    image conf/vm.raw vm.raw "$folder"
    no_backing "$outside" /etc/passwd "$folder"
done
no_backing "$outside" ../base.img way-in
for folder in / // /..; do
    backing conf/base.img base.img $folder
    backing other/base.img "$PWD/other/base.img" $folder
    image other/vm.raw leaves.raw $folder
    no_backing "/: $outside" / conf
done
for folder in conf/sub conf-evil conf/evil conf/leaves-folder; do
    no_image "$PWD/conf/vm.raw: $outside" "$PWD/conf/vm.raw" $folder
    metadata conf/x.add-cow size=$size backing=base.img
    refused "base.img: $outside" serve memory $size addcow=conf/x.add-cow \
        addcow-confine=$folder
done
metadata conf/x.add-cow size=$size
for folder in nowhere conf/dangling.img; do
    no_backing "$folder: No such file or directory" base.img $folder
    metadata conf/x.add-cow size=$size
    refused "$folder: No such file or directory" \
        serve memory $size addcow=conf/x.add-cow addcow-confine=$folder
done
no_backing "conf/base.img: Not a directory" base.img conf/base.img
refused "addcow-confine= needs a value" \
    serve memory $size addcow=conf/x.add-cow addcow-confine=

### What is not confined.

metadata conf/x.add-cow size=$size backing=base.img image=vm.raw
reads other/base.img file addcow=conf/x.add-cow addcow-confine=conf \
    addcow-backing=other/base.img
reads base.img file addcow=conf/x.add-cow addcow-confine=conf \
    addcow-backing="$PWD/base.img" file=other/vm.raw
reads conf/base.img -r file addcow=conf/x.add-cow addcow-confine=conf \
    file=other/vm.raw
metadata conf/x.add-cow size=$size backing=../other/base.img \
    image=../other/vm.raw
reads other/base.img file addcow=conf/x.add-cow addcow-confine=conf \
    addcow-backing=other/base.img file=other/vm.raw
# Each for itself.
refused "$outside" serve file addcow=conf/x.add-cow addcow-confine=conf \
    addcow-backing=other/base.img
refused "$outside" serve file addcow=conf/x.add-cow addcow-confine=conf \
    file=other/vm.raw
# The metadata file: but names in it are relative to where it is.
metadata other/x.add-cow size=$size backing=../conf/base.img \
    image=../conf/vm.raw
reads conf/base.img -r file addcow=other/x.add-cow addcow-confine=conf
metadata other/x.add-cow size=$size backing=base.img image=../conf/vm.raw
refused "base.img: $outside" serve file addcow=other/x.add-cow \
    addcow-confine=conf
ln -s ../other/x.add-cow conf/y.add-cow
refused "base.img: $outside" serve file addcow=conf/y.add-cow \
    addcow-confine=conf
rm {conf,other}/[xy].add-cow

### Chains.

truncate -s $size conf/top.raw
# top BACKING
top ()
{
    metadata conf/top.add-cow size=$size backing="$1" image=top.raw
    chained=(file addcow=conf/top.add-cow addcow-backing-format=add-cow
        addcow-confine=conf)
}
metadata conf/sub/mid.add-cow size=$size backing=deep/base.img image=vm.raw
top sub/mid.add-cow
reads conf/sub/deep/base.img "${chained[@]}"
metadata other/mid.add-cow size=$size backing=base.img image=vm.raw
top ../other/mid.add-cow
refused "../other/mid.add-cow: $outside" serve "${chained[@]}"
# Names below are relative to where that one is, through a link also.
ln -s sub/mid.add-cow conf/mid-link.add-cow
top mid-link.add-cow
reads conf/sub/deep/base.img "${chained[@]}"
for name in ../../other/base.img ../leaves.img "$PWD/base.img"; do
    metadata conf/sub/mid.add-cow size=$size backing="$name" image=vm.raw
    refused "$name: $outside" serve "${chained[@]}"
done
metadata conf/sub/mid.add-cow size=$size image=../../other/vm.raw
refused "other/vm.raw: $outside" serve "${chained[@]}"
# A level that is a parameter is not confined; what it names is.
metadata other/mid.add-cow size=$size backing=../conf/base.img \
    image=../conf/vm.raw
reads conf/base.img "${chained[@]}" addcow-backing=other/mid.add-cow
metadata other/mid.add-cow size=$size backing=base.img image=../conf/vm.raw
refused "base.img: $outside" serve "${chained[@]}" \
    addcow-backing=other/mid.add-cow
# Messages have the names, not how they were opened.
: > conf/sub/mid.add-cow
top sub/mid.add-cow
refused "conf/sub/mid.add-cow: not an add-cow file" serve "${chained[@]}"
metadata conf/sub/mid.add-cow size=$size
refused "conf/sub/mid.add-cow: names no image" serve "${chained[@]}"
truncate -s 512 conf/sub/short.raw
metadata conf/sub/mid.add-cow size=$size image=short.raw
refused "conf/sub/short.raw: image file is shorter" serve "${chained[@]}"
top top.add-cow
refused "conf/top.add-cow: backing file and metadata file are the same" \
    serve "${chained[@]}"

### Names that change.

# In the background and as another user, who cannot look into what is root's.
metadata conf/x.add-cow size=$size backing=base.img image=vm.raw
cp conf/base.img model
user=()
if [ -n "$root" ]; then
    chmod 711 .
    chmod 755 conf
    chmod 666 conf/vm.raw
    user=(-u nobody)
fi
nbdkit -P "$tmp/pid" -U "$tmp/background" "${user[@]}" --filter="$addcow" \
    file addcow=conf/x.add-cow addcow-confine=conf
for ((i = 0; i < 100; i++)); do
    if [ -s "$tmp/pid" ]; then break; fi
    sleep 0.1
done
server=$(cat "$tmp/pid")
cleanup_fn "kill $server 2>/dev/null || :"
uri="nbd+unix:///?socket=$tmp/background"
# Neither what a name led to, nor what it is opened by, has it any more.
mv conf/base.img conf/moved.img
ln -s ../other/base.img conf/base.img
/usr/bin/python3 "$tmp/read.py" "$uri" model
nbdsh -u "$uri" -c 'h.pwrite(b"w" * 512, 512); h.flush()'
[ "$(dd if=conf/vm.raw bs=512 skip=1 count=1 status=none | tr -d w |
    wc -c)" -eq 0 ]
kill "$server"
while kill -0 "$server" 2>/dev/null; do sleep 0.1; done
refused "base.img: $outside" serve file addcow=conf/x.add-cow \
    addcow-confine=conf

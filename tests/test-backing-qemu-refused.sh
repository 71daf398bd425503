#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Backing files that qemu-nbd cannot or may not read: the server does not
# start, and says why in one line of its own.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-nbd --version
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
limit=$((limit * 5))

size=$((1024 * 1024))
random_file base.img $size
truncate -s $size vm.raw
qemu-img convert -f raw -O qcow2 base.img base.qcow2
metadata vm.add-cow size=$size backing=base.qcow2 image=vm.raw

# says TEXT COMMAND...: it fails in time, with TEXT in a line of nbdkit or
# addcow-img; there may be lines of qemu-nbd.
says ()
{
    local text=$1 status=0
    shift
    keep
    in_time "$@" >"$tmp/stdout" 2>"$tmp/stderr" </dev/null || status=$?
    cat "$tmp/stdout" "$tmp/stderr"
    [ $status -eq 1 ]
    [ ! -s "$tmp/stdout" ]
    grep -E '^(nbdkit|addcow-img): ' "$tmp/stderr" > "$tmp/ours"
    [ "$(wc -l < "$tmp/ours")" -eq 1 ]
    grep -F -- "$text" "$tmp/ours"
    kept
}

# with FORMAT NAME: the arguments that make it the backing file.
serve_with ()
{
    serve file addcow=vm.add-cow addcow-backing="$2" \
        addcow-backing-format="$1" "${@:3}"
}
serve_with qcow2 base.qcow2

### It cannot be read.

says "missing.qcow2: " serve_with qcow2 missing.qcow2
says "base.img: " serve_with qcow2 base.img
says "base.qcow2: " serve_with vdi base.qcow2
for format in foo -x --help qcow2,x=y 'raw ' Qcow2; do
    says "base.qcow2: " serve_with "$format" base.qcow2
done
mkdir folder
says "folder: " serve_with qcow2 folder
: > empty.qcow2
says "empty.qcow2: " serve_with qcow2 empty.qcow2
cp base.qcow2 corrupt.qcow2
printf '\xff\xff\xff\xff' | dd of=corrupt.qcow2 bs=1 seek=4 conv=notrunc
says "corrupt.qcow2: " serve_with qcow2 corrupt.qcow2
head -c 100 base.qcow2 > short.qcow2
says "short.qcow2: " serve_with qcow2 short.qcow2
qemu-img create -q -f qcow2 -u -F raw -b missing.img orphan.qcow2 1M
says "orphan.qcow2: " serve_with qcow2 orphan.qcow2
# Someone writes to it.
qemu-nbd -t -f qcow2 -k "$tmp/writer" base.qcow2 &
writer=$!
cleanup_fn "end $writer"
wait_for test -S "$tmp/writer"
says "base.qcow2: " serve_with qcow2 base.qcow2
end $writer

# Nobody is there.
says "nbd+unix:///?socket=$tmp/nowhere: " \
    serve_with qcow2 "nbd+unix:///?socket=$tmp/nowhere"
port=$(python -c '
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
says "http://127.0.0.1:$port/x: " serve_with raw "http://127.0.0.1:$port/x"
says "http://127.0.0.1:$port/x: " addcow-img create \
    -b "http://127.0.0.1:$port/x" new.add-cow
for name in foo:bar foo://bar a:b.qcow2 json:{} 'json:{"driver":"null-co"}' \
            http: ssh:; do
    says "$name: " serve_with qcow2 "$name"
    says "$name: " addcow-img create -b "$name" new.add-cow
done

### There is no qemu-nbd.

mkdir "$tmp/path"
for i in env timeout valgrind; do
    ! type -P $i || ln -s "$(type -P $i)" "$tmp/path"
done
without ()
{
    local RUN=("${RUN[@]}" env "PATH=$tmp/path")
    "$@"
}
says qemu-utils without serve_with qcow2 base.qcow2
says qemu-utils without addcow-img create -b "http://127.0.0.1:$port/x" \
    new.add-cow
# Nor what it is started by.
ln -s "$(type -P qemu-nbd)" "$tmp/path"
says util-linux without serve_with qcow2 base.qcow2
ln -s "$(type -P setpriv)" "$tmp/path"
says setsid without addcow-img create -b "http://127.0.0.1:$port/x" \
    new.add-cow

### Names are confined, and it names others itself.

mkdir -p in out
mv base.img out
(
    cd in
    qemu-img create -q -f qcow2 -F raw -b ../out/base.img backing.qcow2
    qemu-img create -q -f qcow2 -F raw -b "$PWD/../out/base.img" \
        absolute.qcow2
    qemu-img create -q -f qcow2 -o data_file=../out/data.img data.qcow2 1M
    qemu-img create -q -f qcow2 -o data_file=../out/data2.img \
        -o data_file_raw=on data-raw.qcow2 1M
    cp ../out/base.img inside.img
    qemu-img create -q -f qcow2 -F raw -b inside.img beside.qcow2
    qemu-img create -q -f qcow2 -u -F raw -b 'json:{"driver":"null-co"}' \
        json.qcow2 1M
    qemu-img create -q -f qed -F raw -b ../out/base.img backing.qed
    qemu-img create -q -f vmdk -o subformat=monolithicFlat flat.vmdk 1M
)
cp base.qcow2 in/plain.qcow2
truncate -s $size in/vm.raw

# confined FORMAT NAME
confined ()
{
    metadata in/vm.add-cow size=$size backing="$2" image=vm.raw
    serve file addcow=in/vm.add-cow addcow-backing-format="$1" \
        addcow-confine=in
}
confined qcow2 plain.qcow2
metadata in/vm.add-cow size=$size backing=plain.qcow2 image=vm.raw
start_nbdkit confined.sock --filter="$addcow" file addcow=in/vm.add-cow \
    addcow-backing-format=qcow2 addcow-confine=in
nbdsh -u "$uri" -c "
assert h.pread($size, 0) == open('out/base.img', 'rb').read()"
stop_nbdkit "$pid"
for name in backing absolute data data-raw beside json; do
    metadata in/vm.add-cow size=$size backing=$name.qcow2 image=vm.raw
    says "$name.qcow2: " confined qcow2 $name.qcow2
done
for name in backing.qed flat.vmdk; do
    metadata in/vm.add-cow size=$size backing=$name image=vm.raw
    says "$name: " confined "${name#*.}" $name
done
# By whoever starts the server it may be named.
serve file addcow=vm.add-cow addcow-backing=in/backing.qcow2 \
    addcow-backing-format=qcow2

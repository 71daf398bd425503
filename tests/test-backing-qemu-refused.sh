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

# says NAME WHY COMMAND...: it fails in time, with one line of nbdkit or
# addcow-img, about NAME and with WHY in it.
says ()
{
    local text="$1: " why=$2 status=0
    shift 2
    keep
    in_time "$@" >"$tmp/stdout" 2>"$tmp/stderr" </dev/null || status=$?
    cat "$tmp/stdout" "$tmp/stderr"
    [ $status -eq 1 ]
    [ ! -s "$tmp/stdout" ]
    grep -E '^(nbdkit|addcow-img): ' "$tmp/stderr" > "$tmp/ours"
    [ "$(wc -l < "$tmp/ours")" -eq 1 ]
    grep -F -- "$text" "$tmp/ours" | grep -F -- "$why"
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

says missing.qcow2 "No such file" serve_with qcow2 missing.qcow2
says base.img "not in qcow2 format" serve_with qcow2 base.img
says base.qcow2 VDI serve_with vdi base.qcow2
for format in foo -x --help qcow2,x=y 'raw ' Qcow2; do
    says base.qcow2 "Unknown driver '$format'" serve_with "$format" base.qcow2
done
mkdir folder
says folder "regular file" serve_with qcow2 folder
# It would be waited for until somebody writes to it.
mkfifo fifo
says fifo "neither a regular file nor" serve_with qcow2 fifo
says fifo "neither a regular file nor" \
    addcow-img create -b fifo -F qcow2 new.add-cow
: > empty.qcow2
says empty.qcow2 "not in qcow2 format" serve_with qcow2 empty.qcow2
cp base.qcow2 corrupt.qcow2
printf '\xff\xff\xff\xff' | dd of=corrupt.qcow2 bs=1 seek=4 conv=notrunc
says corrupt.qcow2 version serve_with qcow2 corrupt.qcow2
head -c 100 base.qcow2 > short.qcow2
says short.qcow2 "too short" serve_with qcow2 short.qcow2
qemu-img create -q -f qcow2 -u -F raw -b missing.img orphan.qcow2 1M
says orphan.qcow2 missing.img serve_with qcow2 orphan.qcow2
# Someone writes to it.
qemu-nbd -t -f qcow2 -k "$tmp/writer" base.qcow2 &
writer=$!
cleanup_fn "end $writer"
wait_for test -S "$tmp/writer"
refused "base.qcow2 is in use by another process" serve_with qcow2 base.qcow2
end $writer

# Nobody is there.
says "nbd+unix:///?socket=$tmp/nowhere" "No such file" \
    serve_with qcow2 "nbd+unix:///?socket=$tmp/nowhere"
port=$(python -c '
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
here=http://127.0.0.1:$port/x
says "$here" "Failed to connect" serve_with raw "$here"
says "$here" "Failed to connect" addcow-img create -b "$here" new.add-cow
for name in foo:bar foo://bar a:b.qcow2 json:{} 'json:{"driver":"null-co"}' \
            http: ssh:; do
    says "$name" qemu-nbd: serve_with qcow2 "$name"
    says "$name" qemu-nbd: addcow-img create -b "$name" new.add-cow
done

### There is no qemu-nbd.

mkdir "$tmp/path"
for i in env timeout valgrind valgrind.bin; do
    ! type -P $i || ln -s "$(type -P $i)" "$tmp/path"
done
without ()
{
    local RUN=("${RUN[@]}" env "PATH=$tmp/path")
    "$@"
}
says base.qcow2 qemu-utils without serve_with qcow2 base.qcow2
says "$here" qemu-utils without addcow-img create -b "$here" new.add-cow
# Nor what it is started by.
ln -s "$(type -P qemu-nbd)" "$tmp/path"
says base.qcow2 util-linux without serve_with qcow2 base.qcow2
ln -s "$(type -P setpriv)" "$tmp/path"
says "$here" setsid without addcow-img create -b "$here" new.add-cow

### Names are confined, and it names others itself.

mkdir -p in out
mv base.img out
(
    cd in
    qemu-img create -q -f qcow2 -F raw -b ../out/base.img backing.qcow2
    qemu-img create -q -f qcow2 -F raw -b "$PWD/../out/base.img" \
        absolute.qcow2
    qemu-img create -q -f qcow2 -o data_file=../out/1.img data.qcow2 1M
    qemu-img create -q -f qcow2 -o "data_file=$PWD/../out/2.img" \
        data-absolute.qcow2 1M
    qemu-img create -q -f qcow2 -o "data_file=$PWD/../out/3.img" \
        -o data_file_raw=on data-raw.qcow2 1M
    cp ../out/base.img inside.img
    qemu-img create -q -f qcow2 -F raw -b inside.img beside.qcow2
    qemu-img create -q -f qcow2 -u -F raw -b 'json:{"driver":"null-co"}' \
        json.qcow2 1M
    qemu-img create -q -f qed -F raw -b ../out/base.img backing.qed
    qemu-img create -q -f vmdk -o subformat=monolithicFlat flat.vmdk 1M
    sed "s,\"flat-flat.vmdk\",\"$PWD/flat-flat.vmdk\"," flat.vmdk \
        > flat-absolute.vmdk
)
cp base.qcow2 in/plain.qcow2
truncate -s $size in/vm.raw

# confined FORMAT: with what in/vm.add-cow names.
confined ()
{
    serve file addcow=in/vm.add-cow addcow-backing-format="$1" \
        addcow-confine=in
}

# valgrind does not know openat2.
if [ -z "$ADDCOW_VALGRIND" ]; then
    metadata in/vm.add-cow size=$size backing=plain.qcow2 image=vm.raw
    start_nbdkit confined.sock --filter="$addcow" file \
        addcow=in/vm.add-cow addcow-backing-format=qcow2 addcow-confine=in
    nbdsh -u "$uri" -c "
assert h.pread($size, 0) == open('out/base.img', 'rb').read()"
    stop_nbdkit "$pid"
    for name in backing.qcow2 absolute.qcow2 data.qcow2 data-absolute.qcow2 \
                data-raw.qcow2 beside.qcow2 json.qcow2 backing.qed; do
        metadata in/vm.add-cow size=$size backing=$name image=vm.raw
        says $name "the image names other files" confined "${name#*.}"
    done
    for name in flat.vmdk flat-absolute.vmdk; do
        metadata in/vm.add-cow size=$size backing=$name image=vm.raw
        says $name "may name other files" confined vmdk
    done
fi
# By whoever starts the server it may be named.
for name in backing.qcow2 data-absolute.qcow2 backing.qed \
            flat-absolute.vmdk; do
    serve file addcow=vm.add-cow addcow-backing=in/$name \
        addcow-backing-format="${name#*.}"
done

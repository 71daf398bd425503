#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Hydration over other plugins than the file plugin, and over those that do
# not take requests in parallel: one that takes one at a time gets one at a
# time; where that is so for all connections together, or they need not see
# what others write, it is refused.

source ./functions.sh
set -e
set -x

requires_plugin memory
requires_plugin nbd
requires_filter noparallel
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/filling.sh"

size=$((768 * 1024))
random_file base.img $size
fallocate -p -o 256K -l 256K base.img

# Write and read while it fills, and until it has.
cat > use.py <<'PY'
"""use.py URI LOG"""
import random, sys
from fill_client import *

uri, log = sys.argv[1:]
disk = bytearray(file_bytes("base.img"))
handles = [connect(uri) for _ in range(2)]
r = random.Random(3)

def alone():
    return "stands alone: vm.add-cow and the backing file" in open(log).read()

def step():
    h = r.choice(handles)
    at, n = r.randrange(len(disk) - 5000), r.choice([100, 512, 5000])
    content = r.randbytes(n)
    h.pwrite(content, at)
    disk[at:at + n] = content
    at = r.randrange(len(disk) - 5000)
    assert r.choice(handles).pread(5000, at) == disk[at:at + 5000], at
    h.flush()
    return alone()

for _ in range(5):
    step()
touch("switch")
wait_for(step)
for _ in range(5):
    step()
assert content(handles[0]) == disk
for h in handles:
    h.shutdown()
with open("disk", "wb") as f:
    f.write(disk)
PY

# hydrate OPTION... -- PLUGIN [PARAMETER...]: of an overlay whose image has no
# name.
hydrate ()
{
    local options=()
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    rm -f vm.* switch
    addcow-img create -q -b base.img -i '' vm.add-cow
    start_nbdkit sock --filter="$addcow" "${options[@]}" "$@" \
        addcow=vm.add-cow addcow-hydrate="$tmp/switch" 2>log
    python use.py "$uri" log
    [ "$(grep -cF 'stands alone: ' log)" -eq 1 ]
    complete vm.add-cow true
}

### Other plugins.

hydrate -- memory $size
stop_nbdkit "$pid"

truncate -s $size image
start_base image.sock file image
hydrate -- nbd socket="$tmp/image.sock"
stop_nbdkit "$pid"
stop_nbdkit "$base_pid"
cmp disk image

### One request at a time.

rm image
truncate -s $size image
hydrate --filter=noparallel -- file image serialize=requests
stop_nbdkit "$pid"
cmp disk image

# Really one; of a connection, where it is that.
cat > alone.sh <<'SH'
case $model in
    serialize_requests) busy=$tmp/busy.$2 ;;
    *) busy=$tmp/busy ;;
esac
mkdir "$busy" || { touch "$tmp/conflict"; exit 1; }
trap 'rmdir "$busy"' EXIT
sleep 0.01
SH
for model in serialize_requests parallel; do
    export model
    rm -f image number
    truncate -s $size image
    begin='. $tmp/alone.sh;'
    [ $model != parallel ] || begin=
    # shellcheck disable=SC2016 # for the plugin
    hydrate -- eval thread_model="echo $model" \
        open='echo x >> $tmp/number; wc -l < $tmp/number' \
        get_size="echo $size" \
        pread="$begin"'dd if=$tmp/image bs=256K skip=$4 count=$3 \
            iflag=skip_bytes,count_bytes status=none' \
        can_write='exit 0' \
        pwrite="$begin"'dd of=$tmp/image bs=256K seek=$4 oflag=seek_bytes \
            iflag=fullblock conv=notrunc status=none' \
        can_multi_conn='exit 0' can_flush='exit 0' flush="$begin"'exit 0'
    stop_nbdkit "$pid"
    [ ! -e conflict ]
    cmp disk image
done

### Where it is refused.

rm -f vm.*
addcow-img create -q -b base.img vm.add-cow
for value in true "$tmp/switch"; do
    for model in all-requests connections; do
        fails_with "addcow-hydrate cannot be used here" \
            nbdkit -f -U "$tmp/no" --filter="$addcow" --filter=noparallel \
            file addcow=vm.add-cow serialize=$model addcow-hydrate="$value"
    done
    rm -f no # which a server that fails late leaves behind
    fails_with "without multi-conn" \
        nbdkit -f -U "$tmp/no" --filter="$addcow" --filter=multi-conn file \
        addcow=vm.add-cow multi-conn-mode=disable addcow-hydrate="$value"
done

# But not copy-on-read, and filling on cache requests.
# try PARAMETER FILTER PARAMETER...: it is filled by reading or caching all.
try ()
{
    rm -f vm.*
    addcow-img create -q -b base.img vm.add-cow
    start_nbdkit sock --filter="$addcow" --filter="$2" file \
        addcow=vm.add-cow addcow-hydrate=false "$1=true" "${@:3}" 2>log
    # A read that is not of whole sectors, too.
    nbdsh -u "$uri" -c "
assert h.pread($size - 200, 100) == open('base.img', 'rb').read()[100:-100]
if '$1' == 'addcow-on-cache':
    h.cache($size, 0)
h.flush()"
    stop_nbdkit "$pid"
    cat log
    complete vm.add-cow true
    cmp base.img vm.raw
}
for what in addcow-on-read addcow-on-cache; do
    try $what noparallel serialize=connections
    try $what noparallel serialize=all-requests
    try $what multi-conn multi-conn-mode=disable
done

# What a client cannot write to is not filled by way of it.
# shellcheck disable=SC2016 # for the plugin
for what in addcow-on-read addcow-on-cache; do
    rm -f vm.*
    addcow-img create -q -b base.img -i '' vm.add-cow
    start_nbdkit sock --filter="$addcow" eval addcow=vm.add-cow $what=true \
        get_size="echo $size" pread='echo EIO >&2; exit 1'
    nbdsh -u "$uri" -c "
h.cache($size, 0)
assert h.pread($size, 0) == open('base.img', 'rb').read()"
    stop_nbdkit "$pid"
    [ "$(bits vm.add-cow)" -eq 0 ]
done

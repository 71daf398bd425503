#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# nbdcopy reads an overlay as the disk it is, and fills one over several
# connections at once; what it copied is there after a restart.

source ./functions.sh
set -e
set -x

requires nbdcopy --version
requires nbdinfo --version
requires_plugin file
requires_nbdsh

cd "$tmp"

# Neither size is a multiple of what nbdcopy copies at once, that of the
# base not even of a sector.
base_bytes=$((12 * 1024 * 1024 + 100))
size=$((16 * 1024 * 1024 + 1536))
random_file base.img $base_bytes
cp base.img base.copy

# Out: what was written here and there, the base, and zeroes behind it.
addcow-img create -q -b base.img out.add-cow $size
cp base.img expected
truncate -s $size expected
export size base_bytes

start_nbdkit sock --filter="$addcow" file addcow=out.add-cow
nbdsh -u "$uri" -c '
import os
size, base_bytes = int(os.environ["size"]), int(os.environ["base_bytes"])
with open("expected", "r+b") as expected:
    for offset, n in ((0, 4096), (5000, 700), (1 << 20, 3 << 20),
                      (base_bytes - 50, 20), (base_bytes + 5000, 100),
                      (size - 1, 1)):
        data = os.urandom(n)
        h.pwrite(data, offset)
        expected.seek(offset)
        expected.write(data)
    h.zero(100001, 8 << 20)
    expected.seek(8 << 20)
    expected.write(bytes(100001))'
nbdcopy "$uri" copy
cmp copy expected
stop_nbdkit "$pid"

start_nbdkit sock -r --filter="$addcow" file addcow=out.add-cow
nbdcopy "$uri" copy
cmp copy expected
stop_nbdkit "$pid"

# In: a file with holes, where the base must not show through.  Several
# connections in any case, and small requests, many in each page of the
# map.
random_file full $size
dd if=/dev/zero of=full bs=1M seek=1 count=2 conv=notrunc
dd if=/dev/zero of=full bs=4k seek=3841 count=16 conv=notrunc
cp --sparse=always full source

for options in "" "-C 4 -T 4 -R 32 --request-size=4096"; do
    addcow-img create -q -f -b base.img in.add-cow $size
    start_nbdkit sock --filter="$addcow" file addcow=in.add-cow
    nbdinfo --can multi-conn "$uri"
    # shellcheck disable=SC2086
    nbdcopy $options source "$uri"
    stop_nbdkit "$pid"

    start_nbdkit sock --filter="$addcow" file addcow=in.add-cow
    # shellcheck disable=SC2086
    nbdcopy $options "$uri" copy
    cmp copy source
    stop_nbdkit "$pid"
    # Holes were written too: the image stands alone.
    cmp in.raw source
    rm in.raw
done

# From one overlay to another.
addcow-img create -q -b base.img in2.add-cow $size
start_nbdkit from -r --filter="$addcow" file addcow=out.add-cow
from=$uri
start_nbdkit to --filter="$addcow" file addcow=in2.add-cow
nbdcopy "$from" "$uri"
stop_nbdkit "$pid"
start_nbdkit to -r --filter="$addcow" file addcow=in2.add-cow
nbdcopy "$uri" copy
cmp copy expected

cmp base.img base.copy

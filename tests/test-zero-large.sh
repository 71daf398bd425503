#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Zeroing more than 64 MiB at once where the plugin cannot zero and has
# nbdkit write zeroes: nbdkit 1.32 writes all of them to the first 64 MiB
# if it gets the request in one piece.

source ./functions.sh
set -e
set -x

requires_nbdsh
cd "$tmp"
addcow-img create -q vm.add-cow 160M
random_file part 1048576
for ((i = 0; i < 160; i++)); do cat part; done > vm.raw
# What is there counts: mark everything allocated.
/usr/bin/python3 -c '
with open("vm.add-cow", "r+b") as f:
    f.seek(2068)
    f.write(b"\xff" * (160 * 256))'

preload=$fault_inject
export FAULT_CALL=fallocate FAULT_FILE=vm.raw FAULT_ERRNO=95
export FAULT_TRIGGER=$tmp/part
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
nbdsh -u "$uri" -c 'h.zero(150 << 20, 1 << 20)'
stop_nbdkit "$pid"
cmp -n 1048576 vm.raw part
cmp -n $((150 * 1048576)) -i 1048576:0 vm.raw /dev/zero
cmp -i $((151 * 1048576)):0 -n 1048576 vm.raw part

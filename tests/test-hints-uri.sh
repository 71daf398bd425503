#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Hints about backing files that are not read directly: the length of what a
# server has, and the file behind an image of another format.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"

requires qemu-nbd --version

# said PARAMETER...: what nbdkit prints while it serves; it must serve.
said ()
{
    rm -f "$tmp/said"
    # shellcheck disable=SC2016 # it is nbdkit's $uri
    nbdkit -r -U "$tmp/said" --filter="$addcow" file "$@" \
        --run 'nbdinfo --size "$uri"' 2>"$tmp/said.log"
    cat "$tmp/said.log"
}

changed="warning: has changed since it became the backing file of vm.add-cow"

# The server's is another length now; its file's time nobody knows.
random_file base.img 65536
start_base base.sock -r file base.img
addcow-img create -q -b "$base_uri" -F raw vm.add-cow
stop_nbdkit "$base_pid"
touch -d '2001-02-03' base.img
start_base base.sock -r file base.img
[ "$(said addcow=vm.add-cow)" = 65536 ]
stop_nbdkit "$base_pid"
truncate -s 131072 base.img
start_base base.sock -r file base.img
said addcow=vm.add-cow |
    grep -F "$base_uri: $changed (length 131072 bytes, was 65536)"
# Another one is not what the hints are about.
[ "$(said addcow=vm.add-cow addcow-backing="$base_uri")" = 65536 ]
stop_nbdkit "$base_pid"

# Of an image it is the file that is looked at, and not the disk in it.
qemu-img create -q -f qcow2 base.qcow2 1M
rm vm.*
addcow-img create -q -b base.qcow2 -F qcow2 vm.add-cow
[ "$(said addcow=vm.add-cow)" = 1048576 ]
qemu-io -f qcow2 -c 'write -P 7 0 64k' base.qcow2
said addcow=vm.add-cow |
    grep -F "$PWD/base.qcow2: $changed (length $(stat -c %s base.qcow2) bytes"

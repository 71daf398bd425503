#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# An ext4 file system made on an overlay through nbdfuse, and one in the
# base that is changed through it, are clean and whole after a restart.

source ./functions.sh
set -e
set -x

requires nbdfuse --version
requires fusermount3 --version
requires test -w /dev/fuse
requires mke2fs -V
requires e2fsck -V
requires debugfs -V
requires_plugin file

cd "$tmp"
mkdir mnt

# The export as the file mnt/nbd.
mount_nbd ()
{
    local i
    rm -f nbdfuse.pid
    nbdfuse -P nbdfuse.pid mnt "$uri" &
    nbdfuse_pid=$!
    cleanup_fn 'fusermount3 -u -z mnt 2>/dev/null || :'
    for ((i = 0; i < 600; i++)); do
        [ -s nbdfuse.pid ] && break
        kill -0 $nbdfuse_pid
        sleep 0.1
    done
    [ -s nbdfuse.pid ]
}

unmount_nbd ()
{
    fusermount3 -u mnt
    wait $nbdfuse_pid
}

start ()
{
    start_nbdkit sock --filter="$addcow" file addcow="$1"
    mount_nbd
}

stop ()
{
    unmount_nbd
    stop_nbdkit "$pid"
}

# read_back FOLDER: the files of the file system are those of FOLDER.
read_back ()
{
    rm -rf out
    mkdir out
    debugfs -R "rdump / out" mnt/nbd
    rmdir out/lost+found
    diff -r "$1" out
}

is_clean ()
{
    e2fsck -f -n mnt/nbd
}

mkdir -p files/a/b/c
for n in 0 1 511 512 513 4095 4097 60000 300001; do
    random_file files/$n $n
done
random_file files/a/large 5000000
for ((n = 0; n < 100; n++)); do
    random_file "files/a/b/c/$n" $((n * 37))
done

# Made on an overlay whose base is full of something else.
random_file noise.img $((32 * 1024 * 1024))
cp noise.img noise.copy
addcow-img create -q -b noise.img new.add-cow
start new.add-cow
mke2fs -q -F -t ext4 -d files mnt/nbd
is_clean
read_back files
stop
start new.add-cow
is_clean
read_back files
stop
cmp noise.img noise.copy

# In the base, and changed.
truncate -s 32M base.img
mke2fs -q -F -t ext4 -d files base.img
cp base.img base.copy
addcow-img create -q -b base.img changed.add-cow
start changed.add-cow
is_clean
read_back files
cp -r files changed
rm changed/60000
random_file changed/60000 70000
rm changed/513 changed/a/b/c/7
mkdir changed/d
random_file changed/d/new 1234567
ln changed/300001 changed/d/link
cat > commands <<END_OF_COMMANDS
rm 60000
write changed/60000 60000
rm 513
rm a/b/c/7
mkdir d
write changed/d/new d/new
ln 300001 d/link
sif 300001 links_count 2
END_OF_COMMANDS
debugfs -w -f commands mnt/nbd
is_clean
read_back changed
stop
start changed.add-cow
is_clean
read_back changed
stop
cmp base.img base.copy

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# fio writes and verifies at random block sizes while the disk is filled, by
# hydration and copy-on-read, and the server is ended and started again and
# again; at the end of each overlay its image alone is verified.  Another
# server stays, on an overlay of a qcow2 file.  Neither grows, nor keeps
# descriptors, threads or children of who has left.
#
# The short form has a few lives of a few rounds.  With ADDCOW_LONG it is
# ADDCOW_SECONDS, an hour by default, with a life each minute.

source ./functions.sh
set -e
set -x

requires fio --version
requires fio --enghelp=nbd
requires_nbdsh
requires qemu-img --version
requires qemu-nbd --version
requires_plugin file

cd "$tmp"
seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
if [ -n "$ADDCOW_LONG" ]; then
    shape=(--zones=64 --zone-size=16M --rate=10M --lives-each=2
        --reads=200 --seconds="${ADDCOW_SECONDS:-3600}" --seconds-each=60)
elif [ -n "$SANITIZER$ADDCOW_VALGRIND" ]; then
    shape=(--zones=3 --zone-size=1M --rate=1M --lives-each=3
        --lives=3 --rounds=2 --reads=10)
else
    shape=(--zones=8 --zone-size=2M --rate=2M --lives-each=3
        --lives=3 --rounds=4 --reads=20)
fi
# What frees nothing at once has no size that means something.
if [ -n "$SANITIZER$ADDCOW_VALGRIND" ]; then shape+=(--any-memory); fi

# For what is filled last, at the rate above.
export patience=300

# The command of functions.sh's nbdkit, for a program to run.
server=(env)
if [ -n "$_preload" ]; then server+=("LD_PRELOAD=$_preload"); fi
server+=("${VG[@]}" "$(type -P nbdkit)")

/usr/bin/python3 "$abs_srcdir/fio_lives.py" "${shape[@]}" --seed="$seed" \
    --create="$abs_top_builddir/img/addcow-img" \
    -- "${server[@]}" --filter="$addcow" file

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A server is killed, from outside at some moment and from inside before and
# within its calls, told to stop, and left by its clients, all under load and
# while the image is filled; see kill_lives.py.  Nothing is lost but bits that
# nobody had made durable.
#
# ADDCOW_KILLS kills; ADDCOW_SEED repeats what is drawn, if not its timing.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_plugin file

cd "$tmp"
seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
kills=40
if [ -n "$ADDCOW_VALGRIND" ]; then kills=10; fi
if [ -n "$ADDCOW_LONG" ]; then kills=500; fi
kills=${ADDCOW_KILLS:-$kills}

# Shorter than the disk, with holes; and in the image is anything.
size=$((4099 * 512))
random_file base.img 1500077
fallocate -p -o 300000 -l 200000 base.img
addcow-img create -q -F raw -b base.img vm.add-cow $size
random_file vm.raw $size
cp base.img base.copy

# The command of functions.sh's nbdkit, for a program to run.
export CRASH_PROGRAM=nbdkit
libs=${_preload:+$_preload:}$abs_top_builddir/tests/.libs/crash-at.so

/usr/bin/python3 "$abs_srcdir/kill_lives.py" --seed="$seed" --kills="$kills" \
    --check="$abs_top_builddir/img/addcow-img" --check=check -- \
    env LD_PRELOAD="$libs" "${VG[@]}" "$(type -P nbdkit)" \
    --filter="$addcow" file addcow=vm.add-cow || { cat log; exit 1; }
cmp base.img base.copy

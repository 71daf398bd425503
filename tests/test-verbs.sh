#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random verbs of addcow-img, with crashes, and writes through a server
# between them, against a model in memory (verbs_model.py).  -s SEED repeats a
# life, and -n LIVES more of them.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_plugin file
requires qemu-img --version
requires qemu-nbd --version

lives=16 steps=30
if [ -n "$SANITIZER" ]; then lives=6; fi
if [ -n "$ADDCOW_VALGRIND" ]; then lives=2 steps=12; fi

seed=$RANDOM$RANDOM
while getopts s:n: option; do
    case $option in
        s) seed=$OPTARG lives=1 ;;
        n) lives=$OPTARG ;;
        *) exit 1 ;;
    esac
done

# The commands of functions.sh, for a program to run.
img=("${VG[@]}" "$abs_top_builddir/img/addcow-img")
server=(env)
if [ -n "$_preload" ]; then server+=("LD_PRELOAD=$_preload"); fi
server+=("${VG[@]}" "$(type -P nbdkit)" --filter="$addcow")

# What a crash loses of memory is no leak.
crash=(--crash-lib="${_preload:+$_preload:}\
$abs_top_builddir/tests/.libs/crash-at.so")
if [ -n "${VG[0]}" ]; then crash+=(--crash-option=--leak-check=no); fi

env TMPDIR="$tmp" PYTHONPATH="$abs_srcdir" PYTHONDONTWRITEBYTECODE=1 \
    /usr/bin/python3 "$abs_srcdir/verbs_model.py" "${crash[@]}" \
    --nbdkit="$(type -P nbdkit)" --steps=$steps "$seed" "$lives" \
    -- "${img[@]}" -- "${server[@]}"

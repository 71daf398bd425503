#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# System calls of a server on its metadata, image and backing files that
# fail, are interrupted or do only a part, one after the other, at each call
# number, against a model (fault_server.py).  In the short form a sample is
# drawn, of ADDCOW_LIVES lives.  ADDCOW_SEED repeats what is drawn, and with
# ADDCOW_LIFE, which is printed, the life that failed.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_plugin file

seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
lives=${ADDCOW_LIVES:-150}
if [ -n "$SANITIZER" ]; then lives=${ADDCOW_LIVES:-50}; fi
# Without valgrind, which takes long to start.
if [ -n "$ADDCOW_VALGRIND" ]; then VG=() lives=${ADDCOW_LIVES:-20}; fi
if [ -n "$ADDCOW_LONG" ]; then lives=${ADDCOW_LIVES:-all}; fi

# The commands of functions.sh, for a program to run.
img=("${VG[@]}" "$abs_top_builddir/img/addcow-img")
server=("${VG[@]}" "$(type -P nbdkit)" --filter="$addcow")

export SANITIZER PRELOAD
PRELOAD=${_preload:+$_preload:}$abs_top_builddir/tests/.libs/fault-nth.so
env PYTHONPATH="$abs_srcdir" PYTHONDONTWRITEBYTECODE=1 \
    /usr/bin/python3 "$abs_srcdir/fault_server.py" "$seed" "$lives" "$tmp" \
    "${img[@]}" -- "${server[@]}"

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What a power failure leaves while addcow-img creates, resizes, commits,
# rebases and streams (power_verbs.py), also when it was killed before: some
# hundred disks of each verb; with ADDCOW_LONG many thousand.  ADDCOW_SEED
# repeats the lives from that seed on, of which there are ADDCOW_LIVES, of the
# verbs in ADDCOW_VERBS.

source ./functions.sh
set -e
set -x

lives=5 states=25
if [ -n "$SANITIZER" ]; then lives=3; fi
if [ -n "$ADDCOW_VALGRIND" ]; then lives=1 states=5; fi
if [ -n "$ADDCOW_LONG" ]; then lives=600; fi
lives=${ADDCOW_LIVES:-$lives}
seed=${ADDCOW_SEED:-$RANDOM$RANDOM}

# No power goes here, so nothing need be synced but in the log.
folder=$tmp
if [ -z "$ADDCOW_LONG" ] && [ "$(stat -f -c %T /dev/shm)" = tmpfs ] &&
    [ "$(($(stat -f -c '%a * %S' /dev/shm)))" -gt 33554432 ]; then
    folder=$(mktemp -d /dev/shm/addcow-test.XXXXXX)
    cleanup_fn "rm -rf '$folder'"
fi

libs=$abs_top_builddir/tests/.libs
log=${_preload:+$_preload:}$libs/power-log.so
verbs=()
for verb in $ADDCOW_VERBS; do verbs+=(--verb="$verb"); done

env TMPDIR="$folder" PYTHONPATH="$abs_srcdir" PYTHONDONTWRITEBYTECODE=1 \
    /usr/bin/python3 "$abs_srcdir/power_verbs.py" --log-lib="$log" \
    --crash-lib="${_preload:+$_preload:}$libs/crash-at.so:$libs/power-log.so" \
    --states=$states "${verbs[@]}" "$seed" "$lives" \
    -- "${VG[@]}" ${VG[0]:+--leak-check=no} "$abs_top_builddir/img/addcow-img"

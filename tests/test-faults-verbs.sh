#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# System calls of verbs of addcow-img that fail, are interrupted or do only a
# part, one after the other, at each call number (fault_verbs.py).  In the
# short form a sample is drawn, of ADDCOW_RUNS runs.  ADDCOW_SEED repeats what
# is drawn, and with ADDCOW_RUN, which is printed, the run that failed.

source ./functions.sh
set -e
set -x

seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
runs=${ADDCOW_RUNS:-300}
if [ -n "$SANITIZER" ]; then runs=${ADDCOW_RUNS:-150}; fi
# Without valgrind, which takes long to start.
if [ -n "$ADDCOW_VALGRIND" ]; then VG=() runs=${ADDCOW_RUNS:-40}; fi
if [ -n "$ADDCOW_LONG" ]; then runs=${ADDCOW_RUNS:-all}; fi

export PRELOAD=${_preload:+$_preload:}$abs_top_builddir/tests/.libs/fault-nth.so
env PYTHONPATH="$abs_srcdir" PYTHONDONTWRITEBYTECODE=1 \
    /usr/bin/python3 "$abs_srcdir/fault_verbs.py" "$seed" "$runs" "$tmp" \
    "${VG[@]}" "$abs_top_builddir/img/addcow-img"

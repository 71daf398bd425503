#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Metadata files of somebody who means no good: names that lead anywhere,
# sizes and lengths that are none, any bits, and bytes that were changed.  A
# server with addcow-confine reads nothing outside, takes no more memory than
# with another, and ends; so does addcow-img.
#
# What is refused, and with which words, is in test-bad-metadata.sh and
# test-confine.sh.  ADDCOW_SEED: the same files again.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires strace -f -o /dev/null true
export PYTHONPATH=$abs_srcdir PYTHONDONTWRITEBYTECODE=1

# Not under valgrind, as unwatched does.
seed=${ADDCOW_SEED:-$((RANDOM * 32768 + RANDOM))}
count=200
[ -z "$ADDCOW_VALGRIND$SANITIZER" ] || count=50
[ -z "$ADDCOW_LONG" ] || count=20000
limit=16384
[ -z "$SANITIZER" ] || limit=0

# hostile COUNT [COMMAND...]: that many, each server run with COMMAND.
hostile ()
{
    rm -rf "$tmp/area"
    mkdir "$tmp/area"
    (cd "$tmp/area" &&
        /usr/bin/python3 "$abs_srcdir/hostile.py" "$seed" "$1" "$addcow" \
            "$abs_top_builddir/img/addcow-img" "$limit" "${@:2}" \
            env ${_preload:+LD_PRELOAD="$_preload"})
}
hostile "$count"

# What is opened, and not only to know which file it is, is not outside.
limit=0
hostile 40 \
    strace -f -y -o "$tmp/trace" -A -e trace=open,openat,openat2
outside="<$tmp/area/(outside|conf-evil)/"
opened=$(grep -vE 'O_PATH' "$tmp/trace" | grep -E "$outside" || :)
[ -z "$opened" ]
# Such a line would be seen.
grep -E "O_RDONLY.* = [0-9]+<$tmp/area/conf/base.img>" "$tmp/trace" > /dev/null
grep -E "O_PATH.* = [0-9]+$outside" "$tmp/trace" > /dev/null

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random requests from several connections, with restarts and kills, against
# a model in memory (model.py): over the plain file plugin, over plugins
# that are not parallel, over one whose connections do not see each other's
# flushes.  MODEL_SEED and MODEL_SECONDS repeat or lengthen it.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_filter noparallel
requires_filter multi-conn
requires_filter fua

cd "$tmp"
seconds=${MODEL_SECONDS:-3}
seed=${MODEL_SEED:-$RANDOM$RANDOM}

# try BASE-BYTES SIZE [OPTION...] -- [PARAMETER...]
try ()
{
    local base_bytes=$1 size=$2 base=- options=()
    shift 2
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    rm -f vm.* base.img
    if [ "$base_bytes" != none ]; then
        random_file base.img "$base_bytes"
        base=base.img
        addcow-img create -q -b base.img vm.add-cow "$size"
        cp base.img base.orig
    else
        addcow-img create -q vm.add-cow "$size"
    fi
    # What was in an image before means nothing.
    random_file vm.raw "$size"
    env tmp="$tmp" /usr/bin/python3 "$abs_srcdir/model.py" "$seconds" \
        "$seed" "$size" "$base" vm.add-cow \
        "${server[@]}" --filter="$addcow" "${options[@]}" \
        file addcow=vm.add-cow addcow-commit-interval=1 "$@"
    if [ "$base" != - ]; then cmp base.img base.orig; fi
}

# The command of functions.sh's nbdkit, for a program to run.
server=(env)
if [ -n "$_preload" ]; then server+=("LD_PRELOAD=$_preload"); fi
server+=("${VG[@]}" "$(type -P nbdkit)")

try $((200 * 1024)) $((200 * 1024)) --
try $((90 * 1024 + 77)) $((512 * 300)) --
try none $((100 * 512)) --
try $((100 * 1024)) $((60 * 1024)) --filter=noparallel -- serialize=requests
try $((100 * 1024)) $((60 * 1024)) --filter=noparallel -- \
    serialize=all-requests
try $((100 * 1024)) $((60 * 1024)) --filter=multi-conn --filter=fua -- \
    multi-conn-mode=disable fuamode=emulate

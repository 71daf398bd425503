#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img check on metadata files at random, against a model; see
# check_model.py.  ADDCOW_SEED=N repeats a run.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"

count=700
if [ -n "$SANITIZER" ]; then count=200; fi
if [ -n "$ADDCOW_VALGRIND" ]; then count=25; fi

random_file base.img 300000
truncate -s 300032 vm.raw
PYTHONPATH=$abs_srcdir /usr/bin/python3 "$abs_srcdir/check_model.py" \
    "${ADDCOW_SEED:-$RANDOM}" $count "${VG[@]}" "$addcow_img"

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The simulation of unit/test-simulation, where the seed also decides who goes
# on at each access to an atomic variable of the engine: what is done without
# a lock is done in all orders.
#
# The environment repeats it: ADDCOW_SEED, ADDCOW_WORLDS.

source ./functions.sh
set -e
set -x

cd "$tmp"
source "$abs_srcdir/simulation.sh"

worlds=${ADDCOW_WORLDS:-1500}
[ -z "$ADDCOW_LONG" ] || worlds=${ADDCOW_WORLDS:-500000}

# As for ThreadSanitizer, but what is called is ours.
objects=()
for source in filler map map-cache overlay range-lock sparse; do
    compile -fsanitize=thread -c -o "$source.o" "$abs_top_srcdir/lib/$source.c"
    objects+=("$source.o")
done
compile -I"$abs_srcdir/unit" -c -o atomic-turns.o \
    "$abs_srcdir/unit/atomic-turns.c"
nm overlay.o | grep -q ' U __tsan_atomic64_load'
link simulation "${objects[@]}" atomic-turns.o

./simulation -n "$worlds"

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# That test-power.sh finds what it is there to find: filters that are built
# with one thing wrong in their commits and flushes lose data when the power
# fails.
#
# The environment repeats or lengthens it: ADDCOW_SEED, POWER_REQUESTS,
# POWER_STATES.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/power.sh"

seed=${ADDCOW_SEED:-$RANDOM$RANDOM}
requests=${POWER_REQUESTS:-1000}
states=${POWER_STATES:-4000}
echo "seed $seed"

# Valgrind has nothing to say about these.
VG=()
cd "$tmp"
source "$abs_srcdir/mutants.sh"

# try NAME: what becomes of the disk of that filter.  The status is that of
# power-states: 2 when something is lost.
try ()
{
    local status=0
    addcow=$tmp/$1.so
    power_new
    power_begin
    power_stopped "$seed" "$requests" "${options[@]}"
    timeout 600 "$power_states" -s "$seed" -n "$states" log \
        first/vm.add-cow first/vm.raw base.img > out || status=$?
    cat out
    return $status
}

# loses NAME
loses ()
{
    local status=0
    try "$1" || status=$?
    [ $status -eq 2 ]
    grep -F "lost: sector" out | head -n 1 | sed "s/^/$1: /" >> results
}

options=(addcow-commit-interval=1 addcow-on-read=1 addcow-hydrate=1
         addcow-hydrate-rate=1M)

# How it is built makes no difference.
build_mutant none overlay.c
try none

# The flush of the image is left out.
build_mutant no-flush overlay.c \
    "  r = flush_images (ov, image);
  wait_for_flushing (ov);" \
    "  r = 0; (void) flush_images; (void) image;
  wait_for_flushing (ov);"
loses no-flush

# The bits are written before it.
build_mutant bits-first overlay.c \
    "  r = flush_images (ov, image);
  wait_for_flushing (ov);" \
    "  r = map_write_frozen (ov->map);
  if (r == 0)
    r = flush_images (ov, image);
  wait_for_flushing (ov);" \
    "    r = map_write_frozen (ov->map);
    if (r)
      o->r" \
    "    r = 0;
    if (r)
      o->r"
loses bits-first

# Bits that arrive while the image is flushed are written, too.
build_mutant late-bits overlay.c \
    "  r = flush_images (ov, image);
  wait_for_flushing (ov);" \
    "  r = flush_images (ov, image);
  map_thaw (ov->map, false);
  if (map_freeze (ov->map))
    abort ();
  wait_for_flushing (ov);"
loses late-bits

# The metadata file is not synced behind the bits.
build_mutant no-sync map.c \
    "  int r = map->metadata->ops->flush (map->metadata);" "  int r = 0;"
loses no-sync

# A flush shares a commit that began before.
build_mutant late-flush overlay.c \
    "me.wanted = ov->nr_started + 1;" \
    "me.wanted = ov->nr_started;"
loses late-flush

# Where mostly there is nothing to commit: FUA is left out,
options=(addcow-commit-interval=0)
client_options=(-w 65536)
build_mutant no-fua overlay.c \
    "  if (*more)
    flags &= ~IMAGE_FUA;" \
    "  flags &= ~IMAGE_FUA;"
loses no-fua

# or flushes are.
client_options+=(-u)
build_mutant no-plain-flush overlay.c \
    "    r = flush_image (ov, image);
    if (r)
      outcome.r" \
    "    r = 0;
    if (r)
      outcome.r"
loses no-plain-flush

cat results
echo "$(wc -l < results) filters that lose data, seed $seed: all found"

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# That test-history.sh would find what it is to find: this filter without one
# of the things that keep threads apart, and nbdkit's cow filter, which loses
# writes.  When they meet is by lot, so there are lives until they do; that
# all of so many go well, nobody will see.

source ./functions.sh
set -e
set -x

requires_filter cow
VG=() # the mutants are not what valgrind is to look at
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/history.sh"
source "$abs_srcdir/mutants.sh"

max_lives=1000

# finds MODE SERVE...: there is a life in which clients are told what cannot
# be explained.  SERVE starts the server.
finds ()
{
    local mode=$1 i status
    shift
    for ((i = 1; i <= max_lives; i++)); do
        new_life $((seed + i))
        DELAY_READ=2000 DELAY_WRITE=2000
        "$@"
        status=0
        live $((seed + i)) "$mode" -r 4 || status=$?
        stop_nbdkit "$pid" KILL
        [ $status -ne 0 ] || continue
        [ $status -eq 3 ]
        echo "$name: found in life $i"
        found+=" $i"
        return 0
    done
    echo "$name: not found"
    return 1
}

# in_mode MODE NAME: that mutant is found where the image is filled so.
in_mode ()
{
    local name=$2
    finds "$1" serve_life "$tmp/$2.so" "$1"
}

found=

build_mutant fill-without-range overlay.c \
'    range_acquire (&f->ov->first_touch, &range, sector, nr_sectors);
  else if (!range_try_acquire (&f->ov->first_touch, &range, sector, nr_sectors))
    return 0;
  r = fill_held (f, sector, nr_sectors, first, fault);
  range_release (&f->ov->first_touch, &range);' \
'    range_acquire (&f->ov->first_touch, &range, sector, nr_sectors);
  else if (!range_try_acquire (&f->ov->first_touch, &range, sector, nr_sectors))
    return 0;
  range_release (&f->ov->first_touch, &range);
  r = fill_held (f, sector, nr_sectors, first, fault);'
in_mode read fill-without-range
in_mode hydrate fill-without-range

build_mutant fill-what-is-set overlay.c \
'    if (!allocated) {
      r = fill_run' \
'    {
      r = fill_run'
in_mode read fill-what-is-set
in_mode cache fill-what-is-set
in_mode hydrate fill-what-is-set

# Kept are partial writers apart, from each other alone.
build_mutant whole-without-range overlay.c \
'  range_acquire (&ov->first_touch, &range, sector, nr_sectors);
  r = write_completed' \
'  if (c->offset % SECTOR == 0 && c->count % SECTOR == 0) {
    range_acquire (&ov->first_touch, &range, sector, nr_sectors);
    range_release (&ov->first_touch, &range);
    range_acquire (&ov->first_touch, &range, ov->size_bytes / SECTOR, 1);
  }
  else
    range_acquire (&ov->first_touch, &range, sector, nr_sectors);
  r = write_completed'
in_mode plain whole-without-range

build_mutant bits-before-data overlay.c \
'  r = write_completed (ov, image, c, fault);
  if (r == 0)
    *first = map_set (ov->map, sector, nr_sectors);' \
'  *first = map_set (ov->map, sector, nr_sectors);
  r = write_completed (ov, image, c, fault);'
in_mode plain bits-before-data

build_mutant complete-what-is-set overlay.c \
'  if (allocated)
    return 0;
  *done = true;' \
'  *done = true;'
in_mode plain complete-what-is-set

build_mutant wait-for-one-range range-lock.c \
'  for (r = range->prev; r; r = r->prev)' \
'  for (r = range->prev; r; r = NULL)'
in_mode plain wait-for-one-range

build_mutant blocks-of-base overlay.c \
'    if (allocated)
      r = image->ops->extents' \
'    if (allocated && ov->backing_dropped)
      r = image->ops->extents'
in_mode plain blocks-of-base

serve_cow ()
{
    local preload=$random_delay
    start_nbdkit sock -t 4 --filter=cow file base.img cow-on-read=true
}
name=cow
finds plain serve_cow

echo "seed $seed: all found, in lives$found"

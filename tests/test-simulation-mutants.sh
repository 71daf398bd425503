#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# That unit/test-simulation finds what it is there to find: it is built with
# engines that have one thing wrong, and each must be found out; so must it be
# again with the seed of the world that found it.
#
# The environment repeats it: ADDCOW_SEED.

source ./functions.sh
set -e
set -x

# A seed that is fixed finds the same everywhere.
seed=${ADDCOW_SEED:-1}
worlds=30000 # the most that are tried
echo "seed $seed"

cd "$tmp"
source "$abs_srcdir/simulation.sh"

# build NAME SOURCE [OLD NEW]...: the program $tmp/NAME, with SOURCE of lib/
# edited.
build ()
{
    local name=$1 source=$2
    shift 2
    edit_source "lib/$source" "$source" "$@"
    link "$name" "$source"
}

nr_found=0

# mutant NAME SOURCE OLD NEW...: what is so built is found out.
mutant ()
{
    local name=$1 first status=0

    build "$@"
    timeout 600 "./$name" -s "$seed" -n "$worlds" >"$name.out" 2>&1 ||
        status=$?
    if [ "$status" = 0 ] || [ "$status" = 124 ]; then
        echo "$name was not found"
        exit 1
    fi
    cat "$name.out"
    # A deadlock, and what asserts, tells of no world.
    first=$(sed -n 's/.*repeat with -s \([0-9]*\) -n 1$/\1/p' "$name.out")
    if [ -n "$first" ]; then
        ./"$name" -s "$first" -n 1 >again 2>&1 && exit 1
        ./"$name" -s "$first" -n 1 >"and again" 2>&1 && exit 1
        cmp again "and again"
        grep "repeat with -s $first -n 1" again
        echo "FOUND $name: world $((first - seed))"
    else
        echo "FOUND $name: otherwise"
    fi
    nr_found=$((nr_found + 1))
}

# As it is, it holds.
build none overlay.c
timeout 600 ./none -s "$seed" -n 200

mutant no-image-flush overlay.c \
    '  r = flush_images (ov, image);
  wait_for_flushing (ov);' '  r = 0;
  wait_for_flushing (ov);'

mutant bits-before-flush overlay.c \
    '  r = flush_images (ov, image);
  wait_for_flushing (ov);' '  map_write_frozen (ov->map);
  r = flush_images (ov, image);
  wait_for_flushing (ov);'

mutant bits-of-flush overlay.c \
    '  r = map_freeze (ov->map);
  if (r)
    return set_fault (&o->fault, FAULT_MEMORY, r);
  r = flush_images (ov, image);' '  r = flush_images (ov, image);
  map_freeze (ov->map);'

mutant no-metadata-sync map.c \
    '  int r = map->metadata->ops->flush (map->metadata);
' '  int r = 0;
'

mutant fill-without-lock overlay.c \
    '  if (wait)
    range_acquire (&f->ov->first_touch, &range, sector, nr_sectors);
  else if (!range_try_acquire (&f->ov->first_touch, &range, sector, nr_sectors))
    return 0;
' '' \
    '  range_release (&f->ov->first_touch, &range);
' ''

mutant write-without-lock overlay.c \
    '  range_acquire (&ov->first_touch, &range, sector, nr_sectors);
  r = write_completed' '  r = write_completed' \
    '    *first = map_set (ov->map, sector, nr_sectors);
  range_release (&ov->first_touch, &range);' \
    '    *first = map_set (ov->map, sector, nr_sectors);'

mutant bits-before-data overlay.c \
    '  r = write_completed (ov, image, c, fault);
  if (r == 0)
    *first = map_set (ov->map, sector, nr_sectors);' \
    '  *first = map_set (ov->map, sector, nr_sectors);
  r = write_completed (ov, image, c, fault);'

mutant failed-is-committed overlay.c \
    'map_thaw (ov->map, o->r == 0);' 'map_thaw (ov->map, true);'

mutant not-written-again overlay.c \
    '  if (ov->suspect) {
    o->r = rewrite' '  if (ov->suspect) ov->suspect = false;
  if (0) {
    o->r = rewrite'

# Pages that are let go of, where there is little memory.
mutant drops-to-zeroes map-cache.c \
    'page_leave_locked (cache, page, SLOT_UNKNOWN);' \
    'page_leave_locked (cache, page, SLOT_ZEROES);'

mutant drops-dirty map-cache.c \
    'return page->nr_pins > 0 || page->dirty || page->frozen;' \
    'return page->nr_pins > 0 || page->frozen;'

mutant drops-pinned map-cache.c \
    'return page->nr_pins > 0 || page->dirty || page->frozen;' \
    'return page->dirty || page->frozen;'

mutant drop-is-not-counted map-cache.c \
    '  if (page->changed)
    atomic_fetch_add' '  if (0)
    atomic_fetch_add'

# What takes longer, to build or to find.
longer_mutants ()
{
mutant no-wait-for-unlocked overlay.c \
    '  wait_for_unlocked (ov);
' ''

mutant no-wait-for-first-touch overlay.c \
    '  wait_for_first_touch (ov);
' ''

mutant rewrite-without-lock overlay.c \
    '  range_acquire (&rw->ov->first_touch, &range, sector, nr_sectors);
' '' \
    '  range_release (&rw->ov->first_touch, &range);
' ''

mutant flush-beside-commit overlay.c \
    'return *epoch == ov->nr_over && !map' 'return !map'

mutant commit-beside-flush overlay.c \
    '  r = flush_images (ov, image);
  wait_for_flushing (ov);' '  r = flush_images (ov, image);'

mutant failed-meanwhile overlay.c \
    '  if (r == 0 && o->nr_failures != nr_failures)
    r = ov->last_failure;
' ''

mutant shares-current-commit overlay.c \
    'me.wanted = ov->nr_started + 1;' 'me.wanted = ov->nr_over + 1;'

mutant fua-without-commit overlay.c \
    '  outcome = shared_commit (ov, image);
  return fail_if_others_did (ov, nr_failures, &outcome, fault);
}

int
overlay_write' '  return 0;
}

int
overlay_write'

mutant fua-of-allocated overlay.c \
    '  *more = outcome.r == 0 && (*more || ov->nr_started != epoch);' \
    '  *more = false;'

mutant untold overlay.c \
    '  else if (untold)
    return set_fault (fault, FAULT_IMAGE, ov->last_failure);
  return o->r;' '  return o->r;'

mutant heirs-are-not-told overlay.c \
    '  image->nr_failures_told = nr_told;' \
    '  image->nr_failures_told = ov->nr_failures;'

mutant detach-without-commit overlay.c \
    '  if (map_uncommitted (ov->map))
    r = commit_quietly (ov, image, fault);

' ''

mutant alone-with-uncommitted overlay.c \
    'return sector == end && !map_uncommitted (ov->map) && !ov->suspect;' \
    'return sector == end;'

mutant drop-without-wait overlay.c \
    '  while (wait && ov->nr_in_backing > 0)' '  while (0)' \
    'return ov->nr_in_backing == 0;' 'return true;'

mutant trim-of-clear overlay.c \
    '  if (r == 1)
    return rewrite (ov, image, c, fault);' \
    '  if (r == 1 || c->trim)
    return rewrite (ov, image, c, fault);'

mutant tail-not-completed overlay.c \
    'if (from < to && tail_begin >= head_end) {' 'if (0) {'

mutant whole-header-page map.c \
    'const uint64_t from = MAX (page_offset, FORMAT_HEADER_BYTES);' \
    'const uint64_t from = MAX (page_offset, FORMAT_HEADER_BYTES + 1);'

mutant thaw-forgets map.c \
    '  if (page->dirty)
    return;
  page_settle' '  page->dirty = false;
  page_settle'

mutant drops-frozen map-cache.c \
    'return page->nr_pins > 0 || page->dirty || page->frozen;' \
    'return page->nr_pins > 0 || page->dirty;'

mutant old-words map-cache.c \
    '  if (blank && !page->blank)
    page_clear (page);
' ''

mutant waits-for-memory-in-range overlay.c \
    '    if (prepare (ov, image, sector, nr_sectors, &n, fault) == -1)
      return -1;
    part' '    struct range range;
    range_acquire (&ov->first_touch, &range, sector, nr_sectors);
    n = prepare (ov, image, sector, nr_sectors, &n, fault) ? 0 : n;
    range_release (&ov->first_touch, &range);
    if (n == 0)
      return -1;
    part'
}
[ -z "$ADDCOW_LONG" ] || longer_mutants

echo "$nr_found mutants, seed $seed: all found"

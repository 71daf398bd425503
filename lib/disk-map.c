/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "bitmap.h"
#include "common.h"
#include "disk-map.h"
#include "disk.h"

#define SECTOR FORMAT_SECTOR_BYTES

/* A part of the disk that is looked at, at one depth. */
struct level {
  struct disk *disk;
  unsigned depth;
  uint64_t offset; /* how far was told */
  map_fn *fn;
  void *opaque;
  struct failure *failure;
};

/*--- One file. --------------------------------------------------------*/

/* What is told of a file, on its way to FN. */
struct teller {
  struct map_extent next; /* but for its count and its type */
  bool raw;
  map_fn *fn;
  void *opaque;
};

/* An extent_fn.  A hole of a raw file is a part of it.  In another format it
 * is most likely what was never written.  A hole that need not read as zeroes,
 * as NBD servers may have them, has to be read as data has.
 */
static int
tell_extent (void *opaque, uint64_t count, unsigned type)
{
  struct teller *t = opaque;
  struct map_extent extent = t->next;

  extent.count = count;
  extent.zero = type & EXTENT_ZERO;
  extent.data = !(extent.zero && type & EXTENT_HOLE);
  extent.present = extent.data || t->raw;
  extent.in_place = t->raw;
  if (!extent.present)
    extent.file_name = NULL;
  t->next.offset += count;
  return t->fn (t->opaque, &extent);
}

static struct teller
teller_of (const struct level *l, unsigned depth, const char *file_name,
           bool raw)
{
  return (struct teller){
    .next = { .offset = l->offset, .depth = depth, .file_name = file_name },
    .raw = raw,
    .fn = l->fn,
    .opaque = l->opaque,
  };
}

/* R is of reading FILE_NAME, or FN's. */
static int
result (const struct level *l, const char *file_name, int r)
{
  return r > 0 ? failure_set (l->failure, file_name, r) : r;
}

static int
map_image (struct level *l, uint64_t count)
{
  const char *name = l->disk->image_location.name;
  struct teller t = teller_of (l, l->depth, name, true);
  int r = fd_extents (l->disk->image_fd, count, l->offset, tell_extent, &t);

  l->offset += count;
  return result (l, name, r);
}

/* The range lies within the backing file, whose last sector may not be whole:
 * what is missing there is like a hole in it.
 */
static int
map_backing_file (struct level *l, uint64_t count)
{
  struct backing *backing = l->disk->backing;
  const char *name = l->disk->backing_location.name;
  const uint64_t end = l->offset + count;
  const uint64_t file_end = MIN (end, backing->size_bytes);
  struct teller t = teller_of (l, l->depth + 1, name, backing->raw);
  int r = 0;

  while (r == 0 && t.next.offset < file_end)
    r = backing->ops->extents (backing, file_end - t.next.offset, t.next.offset,
                               tell_extent, &t);
  if (r == 0 && file_end < end)
    r = tell_extent (&t, end - file_end, EXTENT_HOLE | EXTENT_ZERO);
  l->offset = end;
  return result (l, name, r);
}

/*--- One overlay. -----------------------------------------------------*/

/* No file has it. */
static int
map_nothing (struct level *l, uint64_t count)
{
  const struct map_extent extent = {
    .offset = l->offset,
    .count = count,
    .depth = l->depth,
    .zero = true,
  };

  l->offset += count;
  return l->fn (l->opaque, &extent);
}

/* Of COUNT bytes, those that are in the sectors of the backing file. */
static uint64_t
within_backing (const struct level *l, uint64_t count)
{
  const struct backing *backing = l->disk->backing;
  const uint64_t end = backing ? DIV_ROUND_UP (backing->size_bytes, SECTOR) : 0;

  return l->offset / SECTOR >= end ? 0 : MIN (count, end * SECTOR - l->offset);
}

static int
map_clear (struct level *l, uint64_t count)
{
  struct backing *backing = l->disk->backing;
  const uint64_t n = within_backing (l, count);
  int r = 0;

  if (n > 0 && backing->ops->map) {
    r = backing->ops->map (backing, n, l->offset, l->depth + 1, l->fn,
                           l->opaque, l->failure);
    l->offset += n;
  }
  else if (n > 0)
    r = map_backing_file (l, n);
  if (r == 0 && n < count)
    r = map_nothing (l, count - n);
  return r;
}

/* Runs of sectors that are set, as many as are found at once: files below are
 * not looked at while the bitmap is read, which takes a lot of stack.
 */
struct batch {
  struct {
    uint64_t sector, nr_sectors;
  } runs[128];
  unsigned nr_runs;
};

static int
add_run (void *opaque, uint64_t sector, uint64_t nr_sectors)
{
  struct batch *b = opaque;

  b->runs[b->nr_runs].sector = sector;
  b->runs[b->nr_runs].nr_sectors = nr_sectors;
  return ++b->nr_runs == ARRAY_SIZE (b->runs) ? EXTENT_STOP : 0;
}

static int
map_run (struct level *l, uint64_t sector, uint64_t nr_sectors)
{
  const uint64_t begin = sector * SECTOR;
  int r = 0;

  if (l->offset < begin)
    r = map_clear (l, begin - l->offset);
  return r ? r : map_image (l, nr_sectors * SECTOR);
}

/* Tell of the next batch of runs, or of the rest up to END. */
static int
map_batch (struct level *l, uint64_t end)
{
  struct image *metadata = &l->disk->metadata.image;
  struct batch b;
  unsigned i;
  int r;

  b.nr_runs = 0;
  r = bitmap_each_run (metadata, l->offset / SECTOR, (end - l->offset) / SECTOR,
                       add_run, &b);
  if (r > 0)
    return failure_set (l->failure, l->disk->file_name, r);
  for (i = 0; i < b.nr_runs; i++) {
    int s = map_run (l, b.runs[i].sector, b.runs[i].nr_sectors);

    if (s)
      return s;
  }
  return r == EXTENT_STOP || l->offset == end ? 0
                                              : map_clear (l, end - l->offset);
}

int
disk_map_below (struct disk *disk, uint64_t count, uint64_t offset,
                unsigned depth, map_fn *fn, void *opaque,
                struct failure *failure)
{
  const uint64_t end = offset + count;
  struct level l = {
    .disk = disk,
    .depth = depth,
    .offset = offset,
    .fn = fn,
    .opaque = opaque,
    .failure = failure,
  };
  int r = 0;

  while (r == 0 && l.offset < end)
    r = map_batch (&l, end);
  return r;
}

/*--- All of it. -------------------------------------------------------*/

/* Joins equal neighbours on their way to FN. */
struct joiner {
  struct map_extent extent; /* that may grow still; or of no bytes */
  map_fn *fn;
  void *opaque;
};

static int
tell_joined (struct joiner *j)
{
  return j->extent.count ? j->fn (j->opaque, &j->extent) : 0;
}

/* Of one depth, there is one file. */
static bool
is_equal (const struct map_extent *a, const struct map_extent *b)
{
  return a->depth == b->depth && a->present == b->present &&
         a->zero == b->zero && a->data == b->data && a->in_place == b->in_place;
}

static int
join (void *opaque, const struct map_extent *extent)
{
  struct joiner *j = opaque;
  int r;

  if (j->extent.count && is_equal (&j->extent, extent)) {
    j->extent.count += extent->count;
    return 0;
  }
  r = tell_joined (j);
  j->extent = *extent;
  return r;
}

int
disk_map (struct disk *disk, map_fn *fn, void *opaque, struct failure *failure)
{
  struct joiner j = { .fn = fn, .opaque = opaque };
  int r;

  r = disk_map_below (disk, disk->header.size_bytes, 0, 0, join, &j, failure);
  return r ? r : tell_joined (&j);
}

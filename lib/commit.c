/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "bitmap.h"
#include "commit.h"
#include "common.h"
#include "format.h"
#include "sparse.h"

#define SECTOR FORMAT_SECTOR_BYTES

/* How much is read and written at once, a multiple of SPARSE_BLOCK; how much
 * the system is asked to copy at once; how much is made zero at once.  After
 * each it is looked whether to stop.
 */
#define BUF_BYTES (1024 * 1024)
#define MAX_COPY (16 * 1024 * 1024)
#define MAX_ZERO (1024 * 1024 * 1024)

/* The bits of a round are cleared, and holes made in the image, by ranges.
 * What is nearer to the last one than this belongs to it: that many bits are
 * a block of the metadata file, and less than this is no matter to clear.
 * A round ends after so many.
 */
#define NEAR_SECTORS (SPARSE_BLOCK * 8)
#define MAX_RANGES 16384

struct sectors {
  uint64_t begin, end;
};

struct commit {
  struct commit_options options;
  char *buf;
  _Atomic uint64_t nr_bytes; /* see commit_nr_bytes */

  /* The round that is under way: what is in the target, but may not be
   * durable there.
   */
  struct sectors *ranges;
  size_t nr_ranges;
  uint64_t nr_data; /* bytes */
  bool failed;      /* to end: there is no other try, see end_round */

  /* Some file systems, NFS for one, let a write fail because of what they
   * could not write of those before, and say that once: a flush may know
   * nothing of it.
   */
  bool is_unsure;

  struct fault *fault; /* of commit_run */
};

int
commit_new (struct commit **ret, const struct commit_options *options)
{
  struct commit *c = calloc (1, sizeof *c);

  if (c == NULL)
    return ENOMEM;
  c->options = *options;
  c->buf = malloc (BUF_BYTES);
  c->ranges = malloc (MAX_RANGES * sizeof *c->ranges);
  if (c->buf && c->ranges) {
    *ret = c;
    return 0;
  }
  commit_free (c);
  return ENOMEM;
}

void
commit_free (struct commit *c)
{
  if (c == NULL)
    return;
  free (c->buf);
  free (c->ranges);
  free (c);
}

uint64_t
commit_nr_bytes (const struct commit *c)
{
  return c->nr_bytes;
}

/* Returns ERR, which is not 0. */
static int
fail (struct commit *c, enum fault_part part, int err)
{
  c->fault->part = part;
  c->fault->err = err;
  return err;
}

/* An extents_fn. */
static int
extents_of_image (void *opaque, uint64_t count, uint64_t offset, extent_fn *fn,
                  void *fn_opaque)
{
  struct image *image = opaque;

  return image->ops->extents (image, count, offset, fn, fn_opaque);
}

static bool
system_may_copy (const struct commit *c)
{
  return c->options.image_fd >= 0 && c->options.target->ops->copy &&
         !c->is_unsure;
}

/* Find the first part of the image's range.  Returns 0, or an error number
 * and has set the fault.
 */
static int
find_part (struct commit *c, uint64_t count, uint64_t offset, struct part *p)
{
  const bool copy = system_may_copy (c);
  int r;

  *p = (struct part){
    .max = MIN (count, MAX_ZERO),
    .max_data = MIN (count, copy ? MAX_COPY : BUF_BYTES),
    .min_hole = copy ? SPARSE_BLOCK : SPARSE_SMALL_HOLE,
  };
  r = sparse_find_part (p, offset, extents_of_image, c->options.image);
  return r ? fail (c, FAULT_IMAGE, r) : 0;
}

/*--- Does it fit? -----------------------------------------------------*/

/* Is there only zero in this range of the image?  Returns 0, EXTENT_STOP if
 * not, or an error number and has set the fault.
 */
static int
look_for_data (struct commit *c, uint64_t count, uint64_t offset)
{
  struct image *image = c->options.image;

  while (count > 0) {
    const size_t n = MIN (count, BUF_BYTES);
    int r = image->ops->read (image, c->buf, n, offset);

    if (r)
      return fail (c, FAULT_IMAGE, r);
    if (!sparse_is_zero (c->buf, n))
      return EXTENT_STOP;
    offset += n;
    count -= n;
  }
  return 0;
}

/* A run of allocated sectors that are not all within the target. */
static int
look_at_run (void *opaque, uint64_t sector, uint64_t nr_sectors)
{
  struct commit *c = opaque;
  const uint64_t end = (sector + nr_sectors) * SECTOR;
  uint64_t offset = sector * SECTOR;
  int r = 0;

  while (r == 0 && offset < end) {
    struct part part;
    uint64_t begin = MAX (offset, c->options.target_bytes);

    r = find_part (c, end - offset, offset, &part);
    if (r)
      break;
    offset += part.n;
    if (!part.zero && begin < offset)
      r = look_for_data (c, offset - begin, begin);
  }
  return r;
}

int
commit_fits (struct commit *c, bool *fits, struct fault *fault)
{
  const uint64_t first = c->options.target_bytes / SECTOR;
  const uint64_t end = c->options.size_bytes / SECTOR;
  int r;

  *fits = true;
  if (first >= end)
    return 0;
  *fault = (struct fault){ .err = 0 };
  c->fault = fault;
  r = bitmap_each_run (c->options.metadata, first, end - first, look_at_run, c);
  if (r > 0) {
    if (fault->err == 0)
      fail (c, FAULT_METADATA, r);
    return -1;
  }
  *fits = r == 0;
  return 0;
}

/*--- Writing to the target. -------------------------------------------*/

static int
target_failed (struct commit *c, int err)
{
  c->is_unsure = true;
  return fail (c, FAULT_BACKING, err);
}

/* May a copy that failed with ERR tell of what was written before? */
static bool
tells_of_others (int err)
{
  return err == ENOSPC || err == EDQUOT || err == EFBIG || err == EIO;
}

static int
copy_data (struct commit *c, uint64_t count, uint64_t offset)
{
  struct image *image = c->options.image, *target = c->options.target;
  int r;

  if (system_may_copy (c)) {
    r = target->ops->copy (target, c->options.image_fd, count, offset);
    if (r == 0)
      return 0;
    /* Whatever the matter is, reading and writing will say of which file. */
    c->is_unsure = tells_of_others (r);
  }
  while (count > 0) {
    const size_t n = MIN (count, BUF_BYTES);

    r = image->ops->read (image, c->buf, n, offset);
    if (r)
      return fail (c, FAULT_IMAGE, r);
    r = sparse_write (target, c->buf, n, offset);
    if (r)
      return target_failed (c, r);
    offset += n;
    count -= n;
  }
  return 0;
}

/* Bring a part to the target, as far as that reaches. */
static int
copy_part (struct commit *c, const struct part *p, uint64_t offset)
{
  const uint64_t end = MIN (offset + p->n, c->options.target_bytes);
  struct image *target = c->options.target;
  int r;

  if (offset >= end)
    return 0;
  if (!p->zero) {
    c->nr_data += end - offset;
    return copy_data (c, end - offset, offset);
  }
  r = target->ops->zero (target, end - offset, offset, IMAGE_MAY_TRIM);
  return r ? target_failed (c, r) : 0;
}

/* A run of allocated sectors, all of which were brought to the target before.
 */
static int
copy_run_again (void *opaque, uint64_t sector, uint64_t nr_sectors)
{
  struct commit *c = opaque;
  const uint64_t end = (sector + nr_sectors) * SECTOR;
  uint64_t offset = sector * SECTOR;
  int r = 0;

  while (r == 0 && offset < end) {
    struct part part;

    r = find_part (c, end - offset, offset, &part);
    if (r)
      break;
    r = copy_part (c, &part, offset);
    offset += part.n;
  }
  return r;
}

/* Bring to the target again what this round has. */
static int
copy_again (struct commit *c)
{
  size_t i;
  int r = 0;

  for (i = 0; r == 0 && i < c->nr_ranges; i++) {
    const struct sectors *s = &c->ranges[i];

    r = bitmap_each_run (c->options.metadata, s->begin, s->end - s->begin,
                         copy_run_again, c);
  }
  return r && c->fault->err == 0 ? fail (c, FAULT_METADATA, r) : r;
}

/*--- Ending a round. --------------------------------------------------*/

/* Note that the range is in the target. */
static void
add_range (struct commit *c, uint64_t begin, uint64_t end)
{
  struct sectors *last = c->ranges + c->nr_ranges;

  if (c->nr_ranges > 0 && begin - last[-1].end < NEAR_SECTORS)
    last[-1].end = end;
  else {
    *last = (struct sectors){ begin, end };
    c->nr_ranges++;
  }
}

static bool
is_round_full (const struct commit *c)
{
  return c->nr_data >= c->options.round_bytes || c->nr_ranges == MAX_RANGES;
}

static int
clear_bits (struct commit *c)
{
  struct image *metadata = c->options.metadata;
  size_t i;
  int r = 0;

  for (i = 0; r == 0 && i < c->nr_ranges; i++) {
    const struct sectors *s = &c->ranges[i];

    r = bitmap_clear (metadata, s->begin, s->end - s->begin);
  }
  if (r == 0 && c->nr_ranges > 0)
    r = metadata->ops->flush (metadata);
  return r;
}

/* That this can fail is no matter: the space is taken for nothing, then. */
static void
free_space (struct commit *c)
{
  struct image *image = c->options.image;
  size_t i;

  for (i = 0; i < c->nr_ranges; i++) {
    const struct sectors *s = &c->ranges[i];

    image->ops->trim (image, (s->end - s->begin) * SECTOR, s->begin * SECTOR,
                      0);
  }
}

/* Returns 0, or an error number and has set the fault.  That is not to be
 * tried again: the system forgets what it could not write, and the next flush
 * would succeed.
 */
static int
end_round (struct commit *c)
{
  struct image *target = c->options.target;
  int r;

  c->failed = true;
  r = c->is_unsure ? copy_again (c) : 0;
  if (r)
    return r;
  r = target->ops->flush (target);
  if (r)
    return fail (c, FAULT_BACKING, r);
  r = clear_bits (c);
  if (r)
    return fail (c, FAULT_METADATA, r);
  free_space (c);
  c->nr_ranges = 0;
  c->nr_data = 0;
  c->failed = c->is_unsure = false;
  return 0;
}

/*--- All of it. -------------------------------------------------------*/

/* A run of allocated sectors; bits of it are cleared as it goes. */
static int
copy_run (void *opaque, uint64_t sector, uint64_t nr_sectors)
{
  struct commit *c = opaque;
  const uint64_t end = sector + nr_sectors;

  while (sector < end) {
    struct part part;
    int r;

    if (*c->options.stop)
      return EXTENT_STOP;
    r = find_part (c, (end - sector) * SECTOR, sector * SECTOR, &part);
    if (r == 0)
      r = copy_part (c, &part, sector * SECTOR);
    if (r)
      return r;
    add_range (c, sector, sector + part.n / SECTOR);
    sector += part.n / SECTOR;
    c->nr_bytes += part.n;
    if (is_round_full (c) && (r = end_round (c)))
      return r;
  }
  return 0;
}

int
commit_run (struct commit *c, bool *complete, struct fault *fault)
{
  const uint64_t nr_sectors = c->options.size_bytes / SECTOR;
  struct image *image = c->options.image;
  struct fault last = { .err = 0 };
  int r;

  *fault = (struct fault){ .err = 0 };
  c->fault = fault;
  r = bitmap_each_run (c->options.metadata, 0, nr_sectors, copy_run, c);
  if (r > 0 && fault->err == 0)
    fail (c, FAULT_METADATA, r);
  *complete = r == 0;

  /* What came before a failure is committed all the same, if it can be: the
   * space that this frees may be what is missing.
   */
  c->fault = fault->err ? &last : fault;
  if (!c->failed)
    end_round (c);
  if (fault->err)
    return -1;
  if (*complete && c->options.free_all && nr_sectors > 0)
    image->ops->trim (image, c->options.size_bytes, 0, 0);
  return 0;
}

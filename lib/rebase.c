/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "common.h"
#include "format.h"
#include "rebase.h"

#define SECTOR FORMAT_SECTOR_BYTES

/* How much is read and compared at once. */
#define PIECE (1024 * 1024)

/* Less that is zeroes in both is read with what is around it. */
#define SMALL_HOLE (64 * 1024)

/* How much is kept before it is committed. */
#define COMMIT_BYTES (64 * 1024 * 1024)

/* One of the two backing files. */
struct side {
  struct backing *backing;
  char *buf;    /* PIECE bytes */
  uint64_t end; /* up to where it is known what it has */
  bool zero;    /* zeroes, or data */

  /* While that is found out. */
  const struct rebase *rb;
  uint64_t n;
};

struct comparing {
  struct rebase *rb;
  struct side from, to;
  uint64_t offset;  /* how far it is */
  uint64_t nr_kept; /* bytes that may be uncommitted */
  struct fault *fault;
};

static void
cleanup_comparing (struct comparing *c)
{
  free (c->from.buf);
  free (c->to.buf);
}

/* Returns -1 with *FAULT, so that it can be told from EXTENT_STOP. */
static int
fault_of (struct comparing *c, enum fault_part part, int err)
{
  *c->fault = (struct fault){ .part = part, .err = err };
  return -1;
}

static int
backing_fault (struct comparing *c, const struct side *side, int err)
{
  c->rb->failed = side->backing;
  return fault_of (c, FAULT_BACKING, err);
}

/*--- What there is. ---------------------------------------------------*/

static int
side_add (void *opaque, uint64_t count, unsigned type)
{
  struct side *side = opaque;
  const bool zero = type & EXTENT_ZERO;

  if (side->n == 0)
    side->zero = zero;
  else if (zero != side->zero)
    return EXTENT_STOP;
  side->n += count;
  return side->rb->interrupted ? EXTENT_STOP : 0;
}

/* Let SIDE know what it has at OFFSET, before END; both are whole sectors, and
 * so is what it knows: what is data in a sector makes it data.
 */
static int
side_look (struct comparing *c, struct side *side, uint64_t offset,
           uint64_t end)
{
  int r;

  if (offset < side->end)
    return 0;
  side->n = 0;
  r = backing_extents (side->backing, end - offset, offset, side_add, side);
  if (r > 0)
    return backing_fault (c, side, r);
  if (side->zero && side->n >= SECTOR)
    side->n -= side->n % SECTOR;
  else {
    side->zero = false;
    side->n = DIV_ROUND_UP (side->n, SECTOR) * SECTOR;
  }
  side->end = offset + side->n;
  return 0;
}

/* What is next: zeroes in both, or what has to be compared. */
struct step {
  uint64_t count;
  bool equal;
  bool from_data, to_data; /* some of it */
};

static int
find_step (struct comparing *c, uint64_t end, struct step *s)
{
  *s = (struct step){ .count = 0 };
  while (s->count < PIECE && c->offset + s->count < end) {
    const uint64_t at = c->offset + s->count;
    uint64_t stop;
    bool zero;

    if (side_look (c, &c->from, at, end) == -1 ||
        side_look (c, &c->to, at, end) == -1)
      return -1;
    stop = MIN (MIN (c->from.end, c->to.end), end);
    zero = c->from.zero && c->to.zero;
    if (zero && (stop - at >= SMALL_HOLE || stop == end)) {
      s->equal = s->count == 0;
      s->count = s->equal ? stop - at : s->count;
      return 0;
    }
    s->count = MIN (stop - c->offset, PIECE);
    s->from_data |= !c->from.zero;
    s->to_data |= !c->to.zero;
  }
  return 0;
}

/*--- Comparing and keeping. -------------------------------------------*/

static int
side_read (struct comparing *c, struct side *side, bool data, size_t count)
{
  int r;

  if (!data) {
    memset (side->buf, 0, count);
    return 0;
  }
  r = backing_read (side->backing, side->buf, count, c->offset);
  return r ? backing_fault (c, side, r) : 0;
}

static bool
differs (const struct comparing *c, size_t at, size_t count)
{
  return memcmp (c->from.buf + at, c->to.buf + at, count) != 0;
}

static int
commit (struct comparing *c)
{
  c->nr_kept = 0;
  return overlay_commit (c->rb->ov, c->fault);
}

static int
keep (struct comparing *c, size_t at, size_t count)
{
  if (overlay_keep (c->rb->ov, c->rb->image, c->from.buf + at, count,
                    c->offset + at, true, c->fault) == -1)
    return -1;
  c->nr_kept += count;
  return 0;
}

/* Keep the sectors that differ, in COUNT bytes that were read. */
static int
keep_differing (struct comparing *c, size_t count)
{
  size_t begin = 0, end;

  while (begin < count && differs (c, begin, count - begin)) {
    while (!differs (c, begin, SECTOR))
      begin += SECTOR;
    end = begin + SECTOR;
    while (end < count && differs (c, end, SECTOR))
      end += SECTOR;
    if (keep (c, begin, end - begin) == -1)
      return -1;
    begin = end;
  }
  return c->nr_kept >= COMMIT_BYTES ? commit (c) : 0;
}

static int
compare (struct comparing *c, const struct step *s)
{
  if (s->equal || (!s->from_data && !s->to_data))
    return 0;
  if (side_read (c, &c->from, s->from_data, s->count) == -1 ||
      side_read (c, &c->to, s->to_data, s->count) == -1)
    return -1;
  return keep_differing (c, s->count);
}

/* What is not allocated up to END. */
static int
compare_up_to (struct comparing *c, uint64_t end)
{
  while (c->offset < end && !c->rb->interrupted) {
    struct step s;

    if (find_step (c, end, &s) == -1 || compare (c, &s) == -1)
      return -1;
    c->offset += s.count;
    c->rb->nr_bytes += s.count;
  }
  return 0;
}

/* Go on up to a run of bits that are set, and over that.  The bits that are
 * set here are all before it.
 */
static int
compare_before_run (void *opaque, uint64_t sector, uint64_t nr_sectors)
{
  struct comparing *c = opaque;

  if (compare_up_to (c, sector * SECTOR) == -1)
    return EXTENT_STOP;
  if (c->rb->interrupted)
    return EXTENT_STOP;
  c->offset = (sector + nr_sectors) * SECTOR;
  return 0;
}

static int
compare_all (struct comparing *c)
{
  const uint64_t size_bytes = overlay_size_bytes (c->rb->ov);
  int r;

  c->fault->err = 0;
  r = bitmap_each_run (c->rb->metadata, 0, size_bytes / SECTOR,
                       compare_before_run, c);
  if (r > 0)
    return fault_of (c, FAULT_METADATA, r);
  if (c->fault->err)
    return -1;
  return compare_up_to (c, size_bytes);
}

int
rebase_keep (struct rebase *rb, struct fault *fault)
{
  __attribute__ ((cleanup (cleanup_comparing))) struct comparing c = {
    .rb = rb,
    .from = { .backing = rb->from, .rb = rb, .buf = malloc (PIECE) },
    .to = { .backing = rb->to, .rb = rb, .buf = malloc (PIECE) },
    .fault = fault,
  };

  if (c.from.buf == NULL || c.to.buf == NULL)
    return fault_of (&c, FAULT_MEMORY, ENOMEM);
  if (compare_all (&c) == -1)
    return -1;
  return commit (&c);
}

void
rebase_interrupt (struct rebase *rb)
{
  rb->interrupted = true;
  backing_interrupt (rb->from);
  backing_interrupt (rb->to);
}

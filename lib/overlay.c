/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "common.h"
#include "error.h"
#include "format.h"
#include "map.h"
#include "overlay.h"
#include "range-lock.h"

#define SECTOR FORMAT_SECTOR_BYTES

/* How many uncommitted pages of the map make a writer commit: 8 MiB of
 * bits, 32 GiB of disk.
 */
#define MAX_UNCOMMITTED_PAGES 2048

/* How many extents one call tells of. */
#define MAX_EXTENTS 65536

struct overlay {
  struct image *metadata;
  struct backing *backing;
  uint64_t size_bytes;
  struct map *map;
  void (*dirty) (void *opaque);
  void *opaque;

  struct range_lock first_touch;

  /* Commits are numbered from 1 in the order in which they start; only
   * one runs at a time.
   */
  pthread_mutex_t commit_lock; /* protects all that follows */
  pthread_cond_t commit_over;
  bool committing;             /* or gathering */
  _Atomic uint64_t nr_started; /* changed with, read without the lock */
  _Atomic uint64_t nr_over;    /* likewise */
  struct sharer *sharers;      /* who waits for one */
  unsigned nr_sharers;

  /* Who commits waits for those who are likely to come, see gather_locked.
   */
  pthread_cond_t gathered;
  unsigned nr_expected;
  struct timespec gather_until; /* by CLOCK_MONOTONIC */

  /* Flushes of images that failed, and how the newest did.  Changed by
   * who commits or flushes.
   */
  _Atomic uint64_t nr_failures;
  _Atomic int last_failure;

  pthread_mutex_t images_lock; /* protects the list, and busy of images */
  pthread_cond_t image_idle;
  struct image *images;
};

/* How a commit or a flush ended. */
struct outcome {
  int r; /* 0, or -1 and FAULT */
  struct fault fault;
  uint64_t nr_failures; /* of the overlay, as of its flush */
};

/* Somebody who waits for a commit that somebody else may run; on the
 * waiter's stack.  Protected by commit_lock.
 */
struct sharer {
  uint64_t wanted; /* this commit, or a later one */
  bool over;
  struct outcome outcome; /* of that commit */
  struct sharer *next;
};

static int
set_fault (struct fault *fault, enum fault_part part, int err)
{
  fault->part = err == ENOMEM && part != FAULT_IMAGE ? FAULT_MEMORY : part;
  fault->err = err;
  return -1;
}

int
overlay_open (struct overlay **ret, struct image *metadata, uint64_t size_bytes,
              struct backing *backing, void (*dirty) (void *opaque),
              void *opaque)
{
  struct overlay *ov = calloc (1, sizeof *ov);
  pthread_condattr_t attr;
  int r;

  if (ov == NULL)
    return ENOMEM;
  ov->metadata = metadata;
  ov->backing = backing;
  ov->size_bytes = size_bytes;
  ov->dirty = dirty;
  ov->opaque = opaque;
  r = map_open (&ov->map, metadata, size_bytes);
  if (r) {
    free (ov);
    return r;
  }
  range_lock_init (&ov->first_touch);
  pthread_mutex_init (&ov->commit_lock, NULL);
  pthread_cond_init (&ov->commit_over, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&ov->gathered, &attr);
  pthread_condattr_destroy (&attr);
  pthread_mutex_init (&ov->images_lock, NULL);
  pthread_cond_init (&ov->image_idle, NULL);
  *ret = ov;
  return 0;
}

void
overlay_close (struct overlay *ov)
{
  if (ov == NULL)
    return;
  map_close (ov->map);
  range_lock_destroy (&ov->first_touch);
  pthread_cond_destroy (&ov->commit_over);
  pthread_cond_destroy (&ov->gathered);
  pthread_mutex_destroy (&ov->commit_lock);
  pthread_cond_destroy (&ov->image_idle);
  pthread_mutex_destroy (&ov->images_lock);
  free (ov);
}

uint64_t
overlay_size_bytes (const struct overlay *ov)
{
  return ov->size_bytes;
}

bool
overlay_uncommitted (struct overlay *ov)
{
  return map_uncommitted (ov->map);
}

/*--- Images. ----------------------------------------------------------*/

void
overlay_attach (struct overlay *ov, struct image *image)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->images_lock);
  image->busy = 0;
  image->nr_failures_told = ov->nr_failures;
  image->prev = NULL;
  image->next = ov->images;
  if (ov->images)
    ov->images->prev = image;
  ov->images = image;
}

static void
image_put (struct overlay *ov, struct image *image)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->images_lock);
  if (--image->busy == 0)
    pthread_cond_broadcast (&ov->image_idle);
}

/* The first attached image, or the one behind IMAGE, which is released.
 * The caller puts what it got; it stays attached until then.  An image
 * that is attached meanwhile may be left out.
 */
static struct image *
image_get_next (struct overlay *ov, struct image *image)
{
  struct image *next;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->images_lock);
  next = image ? image->next : ov->images;
  if (next)
    next->busy++;
  if (image && --image->busy == 0)
    pthread_cond_broadcast (&ov->image_idle);
  return next;
}

/*--- Commit. ----------------------------------------------------------*/

/* Let a flush of an image that failed with ERR be told to all. */
static void
count_failure (struct overlay *ov, int err)
{
  ov->last_failure = err;
  ov->nr_failures++;
}

static int
flush_image (struct overlay *ov, struct image *image)
{
  int r = image->ops->flush (image);

  if (r)
    count_failure (ov, r);
  return r;
}

/* The end of a flush or FUA write through IMAGE, which ended with *O: it
 * has failed if something did before that its client was not told of.
 */
static int
tell_failures (struct overlay *ov, struct image *image, const struct outcome *o,
               struct fault *fault)
{
  uint64_t nr_told = image->nr_failures_told;
  const bool untold = nr_told < o->nr_failures;

  while (nr_told < o->nr_failures &&
         !atomic_compare_exchange_weak (&image->nr_failures_told, &nr_told,
                                        o->nr_failures))
    ;
  if (o->r == -1)
    *fault = o->fault;
  else if (untold)
    return set_fault (fault, FAULT_IMAGE, ov->last_failure);
  return o->r;
}

/* Flush every attached image, for those whose flush covers no other. */
static int
flush_all_images (struct overlay *ov)
{
  struct image *image = NULL;
  int r = 0;

  while ((image = image_get_next (ov, image)) != NULL) {
    int err = flush_image (ov, image);

    if (err && r == 0)
      r = err;
  }
  return r;
}

/* Make durable what any client wrote before. */
static int
flush_images (struct overlay *ov, struct image *image)
{
  return image->multi_conn ? flush_image (ov, image) : flush_all_images (ov);
}

/* One commit.  The caller is the only one that commits. */
static void
commit (struct overlay *ov, struct image *image, struct outcome *o)
{
  int r;

  r = map_freeze (ov->map);
  if (r) {
    o->r = set_fault (&o->fault, FAULT_MEMORY, r);
    return;
  }
  r = flush_images (ov, image);
  o->nr_failures = ov->nr_failures;
  if (r)
    o->r = set_fault (&o->fault, FAULT_IMAGE, r);
  else {
    r = map_write_frozen (ov->map);
    if (r)
      o->r = set_fault (&o->fault, FAULT_METADATA, r);
  }
  map_thaw (ov->map, o->r == 0);
}

/* The longest that a commit waits for company. */
#define MAX_GATHER_NS 2000000

/* Clients that flush again and again fall into two halves, each waiting
 * for the commit of the other.  So wait until those whom the last commit
 * was for are back, but not past ov->gather_until.  A client alone never
 * waits.  Caller holds commit_lock, which is released meanwhile.
 */
static void
gather_locked (struct overlay *ov)
{
  while (ov->nr_sharers < ov->nr_expected)
    if (pthread_cond_timedwait (&ov->gathered, &ov->commit_lock,
                                &ov->gather_until))
      break;
}

/* A commit that began at BEGIN is over: those who shared it, and those
 * who wait already, are expected for the next, for as long as it took.
 * Caller holds commit_lock.
 */
static void
expect_locked (struct overlay *ov, const struct timespec *begin)
{
  struct timespec *until = &ov->gather_until;
  int64_t ns;

  ov->nr_expected = ov->nr_sharers;
  clock_gettime (CLOCK_MONOTONIC, until);
  ns = (until->tv_sec - begin->tv_sec) * INT64_C (1000000000) +
       (until->tv_nsec - begin->tv_nsec);
  until->tv_nsec += MIN (ns, MAX_GATHER_NS);
  if (until->tv_nsec >= 1000000000) {
    until->tv_nsec -= 1000000000;
    until->tv_sec++;
  }
}

/* Commit NUMBER is over: let those know who waited for it.  Caller holds
 * commit_lock.
 */
static void
commit_over_locked (struct overlay *ov, uint64_t number,
                    const struct outcome *outcome)
{
  struct sharer **p = &ov->sharers;

  while (*p) {
    struct sharer *s = *p;

    if (s->wanted > number) {
      p = &s->next;
      continue;
    }
    *p = s->next;
    ov->nr_sharers--;
    s->outcome = *outcome;
    s->over = true;
  }
  ov->nr_over = number;
  ov->committing = false;
  pthread_cond_broadcast (&ov->commit_over);
}

/* Run a commit, as the only one who does.  Caller holds commit_lock, which
 * is released meanwhile.
 */
static void
run_commit_locked (struct overlay *ov, struct image *image)
{
  struct outcome outcome = { .r = 0 };
  struct timespec begin;
  uint64_t number;

  ov->committing = true;
  gather_locked (ov);
  number = ++ov->nr_started;
  pthread_mutex_unlock (&ov->commit_lock);
  clock_gettime (CLOCK_MONOTONIC, &begin);
  commit (ov, image, &outcome);
  pthread_mutex_lock (&ov->commit_lock);
  expect_locked (ov, &begin);
  commit_over_locked (ov, number, &outcome);
}

/* Run a commit that begins after this was called, or wait for one that
 * somebody else runs.
 */
static struct outcome
shared_commit (struct overlay *ov, struct image *image)
{
  struct sharer me = { .over = false };
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->commit_lock);

  me.wanted = ov->nr_started + 1;
  me.next = ov->sharers;
  ov->sharers = &me;
  if (++ov->nr_sharers == ov->nr_expected)
    pthread_cond_signal (&ov->gathered);
  while (ov->committing && !me.over)
    pthread_cond_wait (&ov->commit_over, &ov->commit_lock);
  if (!me.over)
    run_commit_locked (ov, image);
  return me.outcome;
}

/* The same, for who tells no client. */
static int
commit_quietly (struct overlay *ov, struct image *image, struct fault *fault)
{
  const struct outcome outcome = shared_commit (ov, image);

  if (outcome.r == -1)
    *fault = outcome.fault;
  return outcome.r;
}

/* Can a flush be left to the image?  All bits that were seen set are on
 * disk, and there is no commit, as of *EPOCH.
 */
static bool
nothing_to_commit (struct overlay *ov, uint64_t *epoch)
{
  *epoch = ov->nr_started;
  return *epoch == ov->nr_over && !map_uncommitted (ov->map) &&
         map_synced (ov->map);
}

int
overlay_flush (struct overlay *ov, struct image *image, struct fault *fault)
{
  struct outcome outcome = { .r = 0 };
  uint64_t epoch;
  int r;

  if (nothing_to_commit (ov, &epoch)) {
    r = flush_image (ov, image);
    if (r)
      outcome.r = set_fault (&outcome.fault, FAULT_IMAGE, r);
    outcome.nr_failures = ov->nr_failures;
    if (ov->nr_started == epoch)
      return tell_failures (ov, image, &outcome, fault);
  }
  outcome = shared_commit (ov, image);
  return tell_failures (ov, image, &outcome, fault);
}

int
overlay_commit (struct overlay *ov, struct fault *fault)
{
  struct image *image;
  int r;

  if (!map_uncommitted (ov->map))
    return 0;
  image = image_get_next (ov, NULL);
  if (image == NULL)
    return 0;
  r = commit_quietly (ov, image, fault);
  image_put (ov, image);
  return r;
}

int
overlay_detach (struct overlay *ov, struct image *image, struct fault *fault)
{
  int r = 0;

  if (map_uncommitted (ov->map))
    r = commit_quietly (ov, image, fault);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->images_lock);
  while (image->busy > 0)
    pthread_cond_wait (&ov->image_idle, &ov->images_lock);
  if (image->prev)
    image->prev->next = image->next;
  else
    ov->images = image->next;
  if (image->next)
    image->next->prev = image->prev;
  image->prev = image->next = NULL;
  return r;
}

/* Let others know of new bits; bound how many there can be. */
static int
after_map_set (struct overlay *ov, struct image *image, bool first,
               struct fault *fault)
{
  if (first && ov->dirty)
    ov->dirty (ov->opaque);
  if (map_nr_uncommitted_pages (ov->map) > MAX_UNCOMMITTED_PAGES)
    return overlay_flush (ov, image, fault);
  return 0;
}

/*--- Reading. ---------------------------------------------------------*/

/* Split off the part of a request that begins at OFFSET and has one kind
 * of sectors: its length in bytes goes to *N.
 */
static int
next_piece (struct overlay *ov, uint64_t count, uint64_t offset,
            bool *allocated, uint64_t *n, struct fault *fault)
{
  const uint64_t sector = offset / SECTOR;
  const uint64_t end = DIV_ROUND_UP (offset + count, SECTOR);
  uint64_t run;
  int r;

  r = map_run (ov->map, sector, end - sector, allocated, &run);
  if (r)
    return set_fault (fault, FAULT_METADATA, r);
  *n = MIN (count, (sector + run) * SECTOR - offset);
  return 0;
}

int
overlay_read (struct overlay *ov, struct image *image, void *buf, size_t count,
              uint64_t offset, struct fault *fault)
{
  while (count > 0) {
    bool allocated;
    uint64_t n;
    int r;

    if (next_piece (ov, count, offset, &allocated, &n, fault) == -1)
      return -1;
    if (allocated) {
      r = image->ops->read (image, buf, n, offset);
      if (r)
        return set_fault (fault, FAULT_IMAGE, r);
    }
    else {
      r = backing_read (ov->backing, buf, n, offset);
      if (r)
        return set_fault (fault, FAULT_BACKING, r);
    }
    buf = (char *) buf + n;
    count -= n;
    offset += n;
  }
  return 0;
}

int
overlay_cache (struct overlay *ov, struct image *image, uint64_t count,
               uint64_t offset, struct fault *fault)
{
  while (count > 0) {
    bool allocated;
    uint64_t n;
    int r;

    if (next_piece (ov, count, offset, &allocated, &n, fault) == -1)
      return -1;
    if (allocated) {
      r = image->ops->cache (image, n, offset);
      if (r)
        return set_fault (fault, FAULT_IMAGE, r);
    }
    else {
      r = backing_cache (ov->backing, n, offset);
      if (r)
        return set_fault (fault, FAULT_BACKING, r);
    }
    count -= n;
    offset += n;
  }
  return 0;
}

/*--- Writing. ---------------------------------------------------------*/

/* A request that changes a range.  A trim of what is allocated is left to
 * the image, which may keep the old data; else it is zeroes, so that the
 * backing file's data does not stay.
 */
struct change {
  const char *buf; /* what is written, NULL: zeroes */
  bool trim;
  uint64_t count;
  uint64_t offset;
  unsigned flags;
};

/* Write a part of the change to the image. */
static int
write_part (struct image *image, const struct change *c, uint64_t from,
            uint64_t to, unsigned flags, struct fault *fault)
{
  int r;

  if (from == to)
    return 0;
  if (c->buf)
    r = image->ops->write (image, c->buf + (from - c->offset), to - from, from,
                           flags);
  else
    r = image->ops->zero (image, to - from, from, flags);
  return r ? set_fault (fault, FAULT_IMAGE, r) : 0;
}

/* Write the part [FROM, TO) of the change, which is within SECTOR but
 * not all of it and whose sector is not allocated, as a whole sector: the
 * rest is of the backing file.  Caller holds the sector in first_touch.
 */
static int
complete_sector (struct overlay *ov, struct image *image,
                 const struct change *c, uint64_t from, uint64_t to,
                 struct fault *fault)
{
  const uint64_t start = from - from % SECTOR;
  char sector[SECTOR];
  int r;

  r = backing_read (ov->backing, sector, sizeof sector, start);
  if (r)
    return set_fault (fault, FAULT_BACKING, r);
  if (c->buf)
    memcpy (sector + (from - start), c->buf + (from - c->offset), to - from);
  else
    memset (sector + (from - start), 0, to - from);
  r = image->ops->write (image, sector, sizeof sector, start, 0);
  return r ? set_fault (fault, FAULT_IMAGE, r) : 0;
}

/* If [FROM, TO), within one sector, is a part of it, and it is not
 * allocated, complete it.  *DONE tells.
 */
static int
complete_edge (struct overlay *ov, struct image *image, const struct change *c,
               uint64_t from, uint64_t to, bool *done, struct fault *fault)
{
  bool allocated;
  uint64_t run;
  int r;

  *done = false;
  if (to - from == SECTOR)
    return 0;
  r = map_run (ov->map, from / SECTOR, 1, &allocated, &run);
  if (r)
    return set_fault (fault, FAULT_METADATA, r);
  if (allocated)
    return 0;
  *done = true;
  return complete_sector (ov, image, c, from, to, fault);
}

/* Bring the change to the image, edges completed.  Caller holds its
 * sectors in first_touch.
 */
static int
write_completed (struct overlay *ov, struct image *image,
                 const struct change *c, struct fault *fault)
{
  uint64_t from = c->offset;
  uint64_t to = c->offset + c->count;
  const uint64_t head_end = MIN (to, from - from % SECTOR + SECTOR);
  const uint64_t tail_begin = MAX (from, (to - 1) / SECTOR * SECTOR);
  bool done;

  if (complete_edge (ov, image, c, from, head_end, &done, fault) == -1)
    return -1;
  if (done)
    from = head_end;
  if (from < to && tail_begin >= head_end) {
    if (complete_edge (ov, image, c, tail_begin, to, &done, fault) == -1)
      return -1;
    if (done)
      to = tail_begin;
  }
  return write_part (image, c, from, to, c->flags & ~IMAGE_FUA, fault);
}

/* The change, where a sector in it is not allocated. */
static int
first_touch (struct overlay *ov, struct image *image, const struct change *c,
             uint64_t sector, uint64_t nr_sectors, struct fault *fault)
{
  struct range range;
  bool first = false;
  int r;

  range_acquire (&ov->first_touch, &range, sector, nr_sectors);
  r = map_prepare (ov->map, sector, nr_sectors);
  if (r)
    r = set_fault (fault, FAULT_METADATA, r);
  else
    r = write_completed (ov, image, c, fault);
  if (r == 0)
    first = map_set (ov->map, sector, nr_sectors);
  range_release (&ov->first_touch, &range);

  return r ? r : after_map_set (ov, image, first, fault);
}

/* Are all sectors of the range allocated?  1, 0, or -1 and *FAULT. */
static int
all_allocated (struct overlay *ov, uint64_t sector, uint64_t nr_sectors,
               struct fault *fault)
{
  bool allocated;
  uint64_t run;
  int r;

  do {
    r = map_run (ov->map, sector, nr_sectors, &allocated, &run);
    if (r)
      return set_fault (fault, FAULT_METADATA, r);
    sector += run;
    nr_sectors -= run;
  } while (allocated && nr_sectors > 0);
  return allocated;
}

/* Bring the change to the image as it is: all sectors are allocated. */
static int
write_allocated (struct image *image, const struct change *c, unsigned flags,
                 struct fault *fault)
{
  int r;

  if (!c->trim)
    return write_part (image, c, c->offset, c->offset + c->count, flags, fault);
  r = image->ops->trim (image, c->count, c->offset, flags & IMAGE_FUA);
  return r ? set_fault (fault, FAULT_IMAGE, r) : 0;
}

/* The change, where all of its sectors are allocated. */
static int
rewrite (struct overlay *ov, struct image *image, const struct change *c,
         struct fault *fault)
{
  uint64_t epoch;

  if (!(c->flags & IMAGE_FUA))
    return write_allocated (image, c, c->flags, fault);
  if (nothing_to_commit (ov, &epoch)) {
    struct outcome outcome = { .r = 0 };

    /* There is a flush in it, and what failed may have been that. */
    outcome.r = write_allocated (image, c, c->flags, &outcome.fault);
    if (outcome.r == -1)
      count_failure (ov, outcome.fault.err);
    outcome.nr_failures = ov->nr_failures;
    if (outcome.r == -1 || ov->nr_started == epoch)
      return tell_failures (ov, image, &outcome, fault);
  }
  else if (write_allocated (image, c, c->flags & ~IMAGE_FUA, fault) == -1)
    return -1;
  return overlay_flush (ov, image, fault);
}

static int
change (struct overlay *ov, struct image *image, const struct change *c,
        struct fault *fault)
{
  const uint64_t sector = c->offset / SECTOR;
  const uint64_t nr_sectors = DIV_ROUND_UP (c->offset + c->count, SECTOR) -
                              sector;
  int r;

  r = all_allocated (ov, sector, nr_sectors, fault);
  if (r == -1)
    return -1;
  if (r == 1)
    return rewrite (ov, image, c, fault);
  r = first_touch (ov, image, c, sector, nr_sectors, fault);
  if (r == 0 && c->flags & IMAGE_FUA)
    return overlay_flush (ov, image, fault);
  return r;
}

int
overlay_write (struct overlay *ov, struct image *image, const void *buf,
               size_t count, uint64_t offset, unsigned flags,
               struct fault *fault)
{
  const struct change c = {
    .buf = buf,
    .count = count,
    .offset = offset,
    .flags = flags,
  };

  return change (ov, image, &c, fault);
}

int
overlay_zero (struct overlay *ov, struct image *image, uint64_t count,
              uint64_t offset, unsigned flags, struct fault *fault)
{
  const struct change c = {
    .buf = NULL,
    .count = count,
    .offset = offset,
    .flags = flags,
  };

  return change (ov, image, &c, fault);
}

int
overlay_trim (struct overlay *ov, struct image *image, uint64_t count,
              uint64_t offset, unsigned flags, struct fault *fault)
{
  const struct change c = {
    .trim = true,
    .count = count,
    .offset = offset,
    .flags = flags | IMAGE_MAY_TRIM,
  };

  return change (ov, image, &c, fault);
}

/*--- Extents. ---------------------------------------------------------*/

/* Joins equal neighbours on their way to FN. */
struct joiner {
  extent_fn *fn;
  void *opaque;
  uint64_t offset; /* how far extents were told of */
  uint64_t count;  /* of the extent that may grow still */
  unsigned type;
  unsigned nr_told;
};

static int
joiner_tell (struct joiner *j)
{
  const uint64_t count = j->count;

  if (count == 0)
    return 0;
  j->count = 0;
  if (j->nr_told++ == MAX_EXTENTS)
    return EXTENT_STOP;
  return j->fn (j->opaque, count, j->type);
}

static int
joiner_add (void *opaque, uint64_t count, unsigned type)
{
  struct joiner *j = opaque;
  int r;

  if (type != j->type) {
    r = joiner_tell (j);
    if (r)
      return r;
  }
  j->type = type;
  j->count += count;
  j->offset += count;
  return 0;
}

static int
extents_of_piece (struct overlay *ov, struct image *image, bool allocated,
                  uint64_t n, struct joiner *j, struct fault *fault)
{
  const uint64_t end = j->offset + n;
  int r = 0;

  while (r == 0 && j->offset < end) {
    if (allocated)
      r = image->ops->extents (image, end - j->offset, j->offset, joiner_add,
                               j);
    else
      r = backing_extents (ov->backing, end - j->offset, j->offset, joiner_add,
                           j);
  }
  if (r > 0)
    return set_fault (fault, allocated ? FAULT_IMAGE : FAULT_BACKING, r);
  return r == EXTENT_STOP ? 1 : 0;
}

int
overlay_extents (struct overlay *ov, struct image *image, uint64_t count,
                 uint64_t offset, extent_fn *fn, void *opaque,
                 struct fault *fault)
{
  const uint64_t end = offset + count;
  struct joiner j = { .fn = fn, .opaque = opaque, .offset = offset };
  int r;

  while (j.offset < end) {
    bool allocated;
    uint64_t n;

    if (next_piece (ov, end - j.offset, j.offset, &allocated, &n, fault) == -1)
      return -1;
    r = extents_of_piece (ov, image, allocated, n, &j, fault);
    if (r)
      return r == 1 ? 0 : -1;
  }
  r = joiner_tell (&j);
  return r > 0 ? set_fault (fault, FAULT_MEMORY, r) : 0;
}

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
#include "image-file.h"
#include "map.h"
#include "overlay.h"
#include "range-lock.h"
#include "sparse.h"

#define SECTOR FORMAT_SECTOR_BYTES

/* How many extents one call tells of. */
#define MAX_EXTENTS 65536

/* How often one call of extents or cache calls the image or backing file. */
#define MAX_CALLS 65536

struct overlay {
  struct backing *backing; /* see backing_enter */
  uint64_t size_bytes;
  struct map *map;
  struct overlay_hooks hooks;

  /* All sectors before this one are allocated.  Moves up, but perhaps not as
   * far as somebody knew already.
   */
  _Atomic uint64_t first_clear;

  /* Who uses the backing file, and that nobody is to begin. */
  _Atomic unsigned nr_in_backing;
  _Atomic bool backing_dropped;
  pthread_mutex_t backing_lock;
  pthread_cond_t backing_idle; /* with it: nr_in_backing became 0 */

  struct range_lock first_touch;

  /* Commits are numbered from 1 in the order in which they start; only
   * one runs at a time.
   */
  pthread_mutex_t commit_lock; /* protects all that follows */
  pthread_cond_t commit_over;
  bool committing;              /* or gathering */
  _Atomic uint64_t nr_started;  /* changed with, read without the lock */
  _Atomic uint64_t nr_over;     /* likewise */
  _Atomic unsigned nr_flushing; /* flushes that are no commit, likewise */
  pthread_cond_t flushing_over;
  struct sharer *sharers; /* who waits for one */
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

  /* What is uncommitted may be lost in the image: see
   * rewrite_uncommitted.
   */
  _Atomic bool suspect;

  pthread_mutex_t images_lock; /* protects the list, and busy of images */
  pthread_cond_t image_idle;
  struct image *images;
  uint64_t nr_failures_untold; /* since then to some who left; see attach */
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

/* Another overlay needs the memory of what is uncommitted here. */
static void
commit_for_others (void *opaque)
{
  struct fault fault;

  overlay_commit (opaque, &fault);
}

int
overlay_open (struct overlay **ret, struct image *metadata, uint64_t size_bytes,
              struct backing *backing, struct map_cache *cache,
              const struct overlay_hooks *hooks)
{
  struct overlay *ov = calloc (1, sizeof *ov);
  pthread_condattr_t attr;
  int r;

  if (ov == NULL)
    return ENOMEM;
  ov->backing = backing;
  ov->size_bytes = size_bytes;
  if (hooks)
    ov->hooks = *hooks;
  ov->nr_failures_untold = UINT64_MAX;
  r = map_open (&ov->map, metadata, size_bytes, cache);
  if (r) {
    free (ov);
    return r;
  }
  range_lock_init (&ov->first_touch);
  pthread_mutex_init (&ov->commit_lock, NULL);
  pthread_cond_init (&ov->commit_over, NULL);
  pthread_cond_init (&ov->flushing_over, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&ov->gathered, &attr);
  pthread_condattr_destroy (&attr);
  pthread_mutex_init (&ov->images_lock, NULL);
  pthread_cond_init (&ov->image_idle, NULL);
  pthread_mutex_init (&ov->backing_lock, NULL);
  pthread_cond_init (&ov->backing_idle, NULL);
  map_commit_with (ov->map, commit_for_others, ov);
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
  pthread_cond_destroy (&ov->flushing_over);
  pthread_cond_destroy (&ov->gathered);
  pthread_mutex_destroy (&ov->commit_lock);
  pthread_cond_destroy (&ov->image_idle);
  pthread_mutex_destroy (&ov->images_lock);
  pthread_cond_destroy (&ov->backing_idle);
  pthread_mutex_destroy (&ov->backing_lock);
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

/* What was written through any image is of all clients, if flushes cover
 * all: so a new image stands where the one stands that was told least, be
 * it that this has left.
 */
void
overlay_attach (struct overlay *ov, struct image *image)
{
  uint64_t nr_told = ov->nr_failures;
  const struct image *i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->images_lock);
  image->inherits_failures = ov->nr_failures_untold < nr_told;
  nr_told = MIN (nr_told, ov->nr_failures_untold);
  for (i = ov->images; i; i = i->next)
    nr_told = MIN (nr_told, i->nr_failures_told);
  image->nr_failures_told = nr_told;
  image->nr_unlocked = 0;
  image->busy = 0;
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

/* IMAGE, which is attached, or if it takes no writes another one that does;
 * NULL: there is none.  The caller puts it.
 */
static struct image *
image_get_writable (struct overlay *ov, struct image *image)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->images_lock);
  if (image->read_only)
    for (image = ov->images; image && image->read_only;)
      image = image->next;
  if (image)
    image->busy++;
  return image;
}

/*--- Flushes of the image, and those that fail. -----------------------*/

/* Let a flush of an image that failed with ERR be told to all. */
static void
count_failure (struct overlay *ov, int err)
{
  ov->suspect = true;
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

/* Who took the place of somebody that was not told, or that no client has,
 * is told now, of NR_FAILURES.
 */
static void
told_heir (struct overlay *ov, struct image *image, uint64_t nr_failures)
{
  struct image *i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->images_lock);
  for (i = ov->images; i; i = i->next)
    if (i->no_client)
      i->nr_failures_told = MAX (i->nr_failures_told, nr_failures);
  if (image->inherits_failures)
    ov->nr_failures_untold = UINT64_MAX;
  image->inherits_failures = false;
}

/* The end of a flush through IMAGE, which ended with *O: it has failed if
 * something did before that its client was not told of.
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
  if (untold)
    told_heir (ov, image, o->nr_failures);
  if (o->r == -1)
    *fault = o->fault;
  else if (untold)
    return set_fault (fault, FAULT_IMAGE, ov->last_failure);
  return o->r;
}

/* The end of a FUA write that ended with *O and began when there were
 * NR_FAILURES: another flush that failed since then may have had the
 * system's answer for it.  What failed before is a flush's to tell.
 */
static int
fail_if_others_did (struct overlay *ov, uint64_t nr_failures,
                    const struct outcome *o, struct fault *fault)
{
  if (o->r == -1)
    *fault = o->fault;
  else if (ov->nr_failures != nr_failures)
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

/* Flushes that are no commit, and writes with a flush in them: they may
 * have the system's answer to what a commit flushes.  None begins once a
 * commit has (see nothing_to_commit, which comes after flushing_begin).
 */
static void
flushing_begin (struct overlay *ov)
{
  ov->nr_flushing++;
}

static void
flushing_end (struct overlay *ov)
{
  if (--ov->nr_flushing > 0 || ov->nr_started == ov->nr_over)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->commit_lock);
  pthread_cond_broadcast (&ov->flushing_over);
}

static void
wait_for_flushing (struct overlay *ov)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->commit_lock);
  while (ov->nr_flushing > 0)
    pthread_cond_wait (&ov->flushing_over, &ov->commit_lock);
}

/*--- What a failed flush may have lost. -------------------------------*/

/* Wait until no write is under way that holds no range; as ov->suspect is
 * set, no other one begins.
 */
static void
wait_for_unlocked (struct overlay *ov)
{
  struct image *image;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->images_lock);
  image = ov->images;
  while (image)
    if (image->nr_unlocked > 0) {
      pthread_cond_wait (&ov->image_idle, &ov->images_lock);
      image = ov->images; /* the list may be another one */
    }
    else
      image = image->next;
}

/* Wait until nobody holds a range that did before: such a one may have
 * written what is lost, and sets its bits when it is done.
 */
static void
wait_for_first_touch (struct overlay *ov)
{
  struct range range;

  range_acquire (&ov->first_touch, &range, 0, ov->size_bytes / SECTOR);
  range_release (&ov->first_touch, &range);
}

/* How much is read and written back at once. */
#define REWRITE_SECTORS 128

struct rewriter {
  struct overlay *ov;
  struct image *image; /* or NULL: none can be written to */
  char *buf;           /* REWRITE_SECTORS */
  bool image_failed;
};

static int
rewrite_sectors (struct rewriter *rw, uint64_t sector, uint64_t nr_sectors)
{
  const size_t count = nr_sectors * SECTOR;
  struct range range;
  int r;

  rw->image_failed = true;
  if (rw->image == NULL)
    return rw->ov->last_failure;
  range_acquire (&rw->ov->first_touch, &range, sector, nr_sectors);
  r = rw->image->ops->read (rw->image, rw->buf, count, sector * SECTOR);
  if (r == 0)
    r = rw->image->ops->write (rw->image, rw->buf, count, sector * SECTOR, 0);
  range_release (&rw->ov->first_touch, &range);
  rw->image_failed = r != 0;
  return r;
}

static int
rewrite_run (void *opaque, uint64_t sector, uint64_t nr_sectors)
{
  struct rewriter *rw = opaque;
  int r = 0;

  while (nr_sectors > 0 && r == 0) {
    const uint64_t n = MIN (nr_sectors, REWRITE_SECTORS);

    r = rewrite_sectors (rw, sector, n);
    sector += n;
    nr_sectors -= n;
  }
  return r;
}

/* A flush of the image failed, and what it should have made durable may
 * never be: the system has told it and takes the data for written.  To
 * allocated sectors that happens as on any disk.  But sectors whose bits are
 * not committed would, with their bits on disk, have neither their old nor
 * their new content.  So they are read, from where the system has them
 * still, and written again, and the next flush is about them.  Meanwhile
 * all writers hold their ranges, lest what was read goes over what is
 * newer.  IMAGE is that of who commits; if it takes no writes another one is
 * written to, and while there is none the commit fails as the flush did.
 */
static int
rewrite_uncommitted (struct overlay *ov, struct image *image,
                     struct fault *fault)
{
  CLEANUP_FREE char *buf = malloc (REWRITE_SECTORS * SECTOR);
  struct rewriter rw = { .ov = ov, .buf = buf };
  int r;

  if (buf == NULL)
    return set_fault (fault, FAULT_MEMORY, ENOMEM);
  wait_for_flushing (ov);
  wait_for_unlocked (ov);
  wait_for_first_touch (ov);
  rw.image = image_get_writable (ov, image);
  r = map_each_uncommitted (ov->map, rewrite_run, &rw);
  if (rw.image)
    image_put (ov, rw.image);
  if (r)
    return set_fault (fault, rw.image_failed ? FAULT_IMAGE : FAULT_METADATA, r);
  ov->suspect = false;
  return 0;
}

/*--- Commit. ----------------------------------------------------------*/

/* Freeze and flush: no error, and nobody's flush failed since there were
 * NR_FAILURES.
 */
static int
flush_for_commit (struct overlay *ov, struct image *image, uint64_t nr_failures,
                  struct outcome *o)
{
  int r;

  r = map_freeze (ov->map);
  if (r)
    return set_fault (&o->fault, FAULT_MEMORY, r);
  r = flush_images (ov, image);
  wait_for_flushing (ov);
  o->nr_failures = ov->nr_failures;
  if (r == 0 && o->nr_failures != nr_failures)
    r = ov->last_failure;
  return r ? set_fault (&o->fault, FAULT_IMAGE, r) : 0;
}

/* One commit.  The caller is the only one that commits. */
static void
commit (struct overlay *ov, struct image *image, struct outcome *o)
{
  /* Before looking at suspect, which is set before this is counted: so a
   * failure is seen in the one or in the other.
   */
  uint64_t nr_failures = ov->nr_failures;
  int r;

  if (ov->suspect) {
    o->r = rewrite_uncommitted (ov, image, &o->fault);
    o->nr_failures = nr_failures = ov->nr_failures;
    if (o->r == -1)
      return;
  }
  o->r = flush_for_commit (ov, image, nr_failures, o);
  if (o->r == 0) {
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
         map_synced (ov->map) && !ov->suspect;
}

/* Flush the image alone, if that will do.  *DONE tells. */
static struct outcome
flush_without_commit (struct overlay *ov, struct image *image, bool *done)
{
  struct outcome outcome = { .r = 0 };
  uint64_t epoch;
  int r;

  *done = false;
  flushing_begin (ov);
  if (nothing_to_commit (ov, &epoch)) {
    r = flush_image (ov, image);
    if (r)
      outcome.r = set_fault (&outcome.fault, FAULT_IMAGE, r);
    outcome.nr_failures = ov->nr_failures;
    *done = ov->nr_started == epoch;
  }
  flushing_end (ov);
  return outcome;
}

int
overlay_flush (struct overlay *ov, struct image *image, struct fault *fault)
{
  bool done;
  struct outcome outcome = flush_without_commit (ov, image, &done);

  if (!done)
    outcome = shared_commit (ov, image);
  return tell_failures (ov, image, &outcome, fault);
}

int
overlay_commit (struct overlay *ov, struct fault *fault)
{
  struct image *image;
  int r;

  if (!map_uncommitted (ov->map) && !ov->suspect)
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
  if (image->nr_failures_told < ov->nr_failures)
    ov->nr_failures_untold = MIN (ov->nr_failures_untold,
                                  image->nr_failures_told);
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
static void
tell_dirty (struct overlay *ov, bool first)
{
  if (first && ov->hooks.dirty)
    ov->hooks.dirty (ov->hooks.opaque);
}

static int
after_map_set (struct overlay *ov, struct image *image, bool first,
               struct fault *fault)
{
  tell_dirty (ov, first);
  if (map_has_many_uncommitted (ov->map))
    return commit_quietly (ov, image, fault);
  return 0;
}

/* Let there be memory for pages of the map that are to change.  The caller
 * holds no range.
 */
static int
make_room (struct overlay *ov, struct image *image, struct fault *fault)
{
  if (map_commit_other (ov->map))
    return 0;
  if (map_uncommitted (ov->map))
    return commit_quietly (ov, image, fault);
  map_wait_for_room (ov->map);
  return 0;
}

/* map_prepare, with a commit if there is no memory.  The caller holds no
 * range, and nothing else is prepared.
 */
static int
prepare (struct overlay *ov, struct image *image, uint64_t sector,
         uint64_t max_sectors, uint64_t *nr_sectors, struct fault *fault)
{
  int r;

  while ((r = map_prepare (ov->map, sector, max_sectors, nr_sectors)) ==
         MAP_FULL)
    if (make_room (ov, image, fault) == -1)
      return -1;
  return r ? set_fault (fault, FAULT_METADATA, r) : 0;
}

/*--- The backing file, and its end. -----------------------------------*/

static void
backing_leave (struct overlay *ov)
{
  if (--ov->nr_in_backing > 0 || !ov->backing_dropped)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->backing_lock);
  pthread_cond_broadcast (&ov->backing_idle);
}

/* Begin to use the backing file for a sector that was not allocated.  False:
 * it was dropped meanwhile, and all sectors are allocated.
 */
static bool
backing_enter (struct overlay *ov)
{
  ov->nr_in_backing++;
  if (!ov->backing_dropped)
    return true;
  backing_leave (ov);
  return false;
}

void
overlay_interrupt (struct overlay *ov)
{
  if (!backing_enter (ov))
    return;
  backing_interrupt (ov->backing);
  backing_leave (ov);
}

bool
overlay_drop_backing (struct overlay *ov, bool wait)
{
  /* Who reads it still reads in vain, and looks again when that fails. */
  ov->nr_in_backing++;
  if (!atomic_exchange (&ov->backing_dropped, true))
    backing_interrupt (ov->backing);
  backing_leave (ov);

  /* Once nobody is in it, nobody will be.  That must not be asked again: who
   * comes later is counted for a moment too, and reads nothing.
   */
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->backing_lock);
  while (ov->nr_in_backing > 0) {
    if (!wait)
      return false;
    pthread_cond_wait (&ov->backing_idle, &ov->backing_lock);
  }
  return true;
}

/* Is SECTOR allocated?  No, where that cannot be found out. */
static bool
is_allocated (struct overlay *ov, uint64_t sector)
{
  bool allocated;
  uint64_t run;

  return map_run (ov->map, sector, 1, &allocated, &run) == 0 && allocated;
}

/* The last sector is looked at before any other: mostly that will do, as
 * disks are filled from the front.
 */
bool
overlay_stands_alone (struct overlay *ov)
{
  const uint64_t end = ov->size_bytes / SECTOR;
  uint64_t sector = ov->first_clear;
  bool allocated;
  uint64_t run;

  if (sector < end && !is_allocated (ov, end - 1))
    return false;
  /* To look for the end of what is not allocated could take long. */
  while (sector < end && is_allocated (ov, sector)) {
    if (map_run (ov->map, sector, end - sector, &allocated, &run))
      return false;
    sector += run;
    ov->first_clear = sector;
  }
  /* In this order: see map_uncommitted. */
  return sector == end && !map_uncommitted (ov->map) && !ov->suspect;
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
    else if (!backing_enter (ov))
      continue;
    else {
      r = backing_read (ov->backing, buf, n, offset);
      backing_leave (ov);
      if (r && ov->backing_dropped)
        continue;
      if (r)
        return set_fault (fault, FAULT_BACKING, r);
      if (ov->hooks.missed)
        ov->hooks.missed (ov->hooks.opaque, image, buf, n, offset);
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
  unsigned i;

  for (i = 0; count > 0 && i < MAX_CALLS; i++) {
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
    else if (!backing_enter (ov))
      continue;
    else {
      r = backing_cache (ov->backing, n, offset);
      backing_leave (ov);
      if (r && ov->backing_dropped)
        continue;
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

  /* Dropped it cannot be: this sector is not allocated. */
  backing_enter (ov);
  r = backing_read (ov->backing, sector, sizeof sector, start);
  backing_leave (ov);
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

/* What of the change is in the range of sectors. */
static struct change
part_of (const struct change *c, uint64_t sector, uint64_t nr_sectors)
{
  const uint64_t end = MIN (c->offset + c->count,
                            (sector + nr_sectors) * SECTOR);
  struct change part = *c;

  part.offset = MAX (c->offset, sector * SECTOR);
  part.count = end - part.offset;
  if (c->buf)
    part.buf = c->buf + (part.offset - c->offset);
  return part;
}

/* The change, in prepared sectors of which one may be not allocated. */
static int
first_touch_prepared (struct overlay *ov, struct image *image,
                      const struct change *c, uint64_t sector,
                      uint64_t nr_sectors, bool *first, struct fault *fault)
{
  struct range range;
  int r;

  range_acquire (&ov->first_touch, &range, sector, nr_sectors);
  r = write_completed (ov, image, c, fault);
  if (r == 0)
    *first = map_set (ov->map, sector, nr_sectors);
  range_release (&ov->first_touch, &range);
  return r;
}

/* The change, where a sector in it is not allocated. */
static int
first_touch (struct overlay *ov, struct image *image, const struct change *c,
             uint64_t sector, uint64_t nr_sectors, struct fault *fault)
{
  uint64_t n;
  int r = 0;

  for (; r == 0 && nr_sectors > 0; sector += n, nr_sectors -= n) {
    struct change part;
    bool first = false;

    if (prepare (ov, image, sector, nr_sectors, &n, fault) == -1)
      return -1;
    part = part_of (c, sector, n);
    r = first_touch_prepared (ov, image, &part, sector, n, &first, fault);
    map_unprepare (ov->map, sector, n);
    if (r == 0)
      r = after_map_set (ov, image, first, fault);
  }
  return r;
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
write_as_is (struct image *image, const struct change *c, unsigned flags,
             struct fault *fault)
{
  int r;

  if (!c->trim)
    return write_part (image, c, c->offset, c->offset + c->count, flags, fault);
  r = image->ops->trim (image, c->count, c->offset, flags & IMAGE_FUA);
  return r ? set_fault (fault, FAULT_IMAGE, r) : 0;
}

/* A write that holds no range is over, or is not to be. */
static void
unlocked_end (struct overlay *ov, struct image *image)
{
  if (--image->nr_unlocked > 0 || !ov->suspect)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&ov->images_lock);
  pthread_cond_broadcast (&ov->image_idle);
}

/* The same, without a lock unless there is one who has to be kept out. */
static int
write_allocated (struct overlay *ov, struct image *image,
                 const struct change *c, unsigned flags, struct fault *fault)
{
  const uint64_t sector = c->offset / SECTOR;
  const uint64_t end = DIV_ROUND_UP (c->offset + c->count, SECTOR);
  struct range range;
  int r;

  image->nr_unlocked++;
  if (!ov->suspect) {
    r = write_as_is (image, c, flags, fault);
    unlocked_end (ov, image);
    return r;
  }
  unlocked_end (ov, image);
  range_acquire (&ov->first_touch, &range, sector, end - sector);
  r = write_as_is (image, c, flags, fault);
  range_release (&ov->first_touch, &range);
  return r;
}

/* Write with FUA, if that will do; else without, and with *MORE for a commit
 * to follow.
 */
static struct outcome
write_fua (struct overlay *ov, struct image *image, const struct change *c,
           bool *more)
{
  struct outcome outcome = { .r = 0 };
  unsigned flags = c->flags;
  uint64_t epoch;

  flushing_begin (ov);
  *more = !nothing_to_commit (ov, &epoch);
  if (*more)
    flags &= ~IMAGE_FUA;
  outcome.r = write_allocated (ov, image, c, flags, &outcome.fault);
  /* If there is a flush in it what failed may have been that. */
  if (outcome.r == -1 && !*more)
    count_failure (ov, outcome.fault.err);
  *more = outcome.r == 0 && (*more || ov->nr_started != epoch);
  flushing_end (ov);
  return outcome;
}

/* The change, where all of its sectors are allocated. */
static int
rewrite (struct overlay *ov, struct image *image, const struct change *c,
         struct fault *fault)
{
  const uint64_t nr_failures = ov->nr_failures;
  struct outcome outcome;
  bool more;

  if (!(c->flags & IMAGE_FUA))
    return write_allocated (ov, image, c, c->flags, fault);
  outcome = write_fua (ov, image, c, &more);
  if (more)
    outcome = shared_commit (ov, image);
  return fail_if_others_did (ov, nr_failures, &outcome, fault);
}

static int
change (struct overlay *ov, struct image *image, const struct change *c,
        struct fault *fault)
{
  const uint64_t sector = c->offset / SECTOR;
  const uint64_t nr_sectors = DIV_ROUND_UP (c->offset + c->count, SECTOR) -
                              sector;
  struct outcome outcome;
  uint64_t nr_failures;
  int r;

  r = all_allocated (ov, sector, nr_sectors, fault);
  if (r == -1)
    return -1;
  if (r == 1)
    return rewrite (ov, image, c, fault);
  nr_failures = ov->nr_failures;
  r = first_touch (ov, image, c, sector, nr_sectors, fault);
  if (r == -1 || !(c->flags & IMAGE_FUA))
    return r;
  outcome = shared_commit (ov, image);
  return fail_if_others_did (ov, nr_failures, &outcome, fault);
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
  unsigned nr_calls; /* for what is joined */
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

  while (r == 0 && j->offset < end && j->nr_calls < MAX_CALLS) {
    j->nr_calls++;
    if (allocated)
      r = image->ops->extents (image, end - j->offset, j->offset, joiner_add,
                               j);
    else if (backing_enter (ov)) {
      r = backing_extents (ov->backing, end - j->offset, j->offset, joiner_add,
                           j);
      backing_leave (ov);
      if (r > 0 && ov->backing_dropped)
        r = 0;
    }
    else
      allocated = true;
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

  while (j.offset < end && j.nr_calls < MAX_CALLS) {
    bool allocated;
    uint64_t n;

    if (next_piece (ov, end - j.offset, j.offset, &allocated, &n, fault) == -1)
      return -1;
    r = extents_of_piece (ov, image, allocated, n, &j, fault);
    if (r == -1)
      return -1;
    if (r == 1)
      break;
  }
  r = joiner_tell (&j);
  return r > 0 ? set_fault (fault, FAULT_MEMORY, r) : 0;
}

/*--- Filling. ---------------------------------------------------------*/

/* How much is made zero at once, where that is fast and where it is not. */
#define MAX_FAST_ZERO (64 * 1024 * 1024)
#define MAX_SLOW_ZERO (16 * 1024 * 1024)

/* Bring clear sectors to the image, in the range that is held. */
struct filling {
  struct overlay *ov;
  struct image *image;
  const char *buf;     /* what is at OFFSET; or NULL, */
  int fd;              /* then it is in this file at the same place; or -1, */
  unsigned zero_flags; /* then it is zeroes, made so with these */
  uint64_t offset;
};

static int
fill_run (const struct filling *f, uint64_t sector, uint64_t nr_sectors)
{
  const uint64_t offset = sector * SECTOR;
  const uint64_t count = nr_sectors * SECTOR;

  if (f->buf)
    return sparse_write (f->image, f->buf + (offset - f->offset), count,
                         offset);
  if (f->fd >= 0)
    return f->image->ops->copy (f->image, f->fd, count, offset);
  return f->image->ops->zero (f->image, count, offset, f->zero_flags);
}

/* Fill what is not allocated of the range, which is prepared and which the
 * caller holds in first_touch.  *FIRST as map_set says.
 */
static int
fill_held (const struct filling *f, uint64_t sector, uint64_t nr_sectors,
           bool *first, struct fault *fault)
{
  int r = 0;

  while (r == 0 && nr_sectors > 0) {
    bool allocated;
    uint64_t run;

    r = map_run (f->ov->map, sector, nr_sectors, &allocated, &run);
    if (r)
      break;
    if (!allocated) {
      r = fill_run (f, sector, run);
      if (r)
        return set_fault (fault, FAULT_IMAGE, r);
      *first |= map_set (f->ov->map, sector, run);
    }
    sector += run;
    nr_sectors -= run;
  }
  return r ? set_fault (fault, FAULT_METADATA, r) : 0;
}

static int
fill_prepared (const struct filling *f, uint64_t sector, uint64_t nr_sectors,
               bool wait, bool *first, struct fault *fault)
{
  struct range range;
  int r;

  if (wait)
    range_acquire (&f->ov->first_touch, &range, sector, nr_sectors);
  else if (!range_try_acquire (&f->ov->first_touch, &range, sector, nr_sectors))
    return 0;
  r = fill_held (f, sector, nr_sectors, first, fault);
  range_release (&f->ov->first_touch, &range);
  return r;
}

/* Prepare some of the range, if there is memory or it is waited for.  Returns
 * 0, 1 if there is none, or -1 and *FAULT.
 */
static int
prepare_fill (const struct filling *f, uint64_t sector, uint64_t max_sectors,
              bool wait, uint64_t *nr_sectors, struct fault *fault)
{
  int r;

  if (wait)
    return prepare (f->ov, f->image, sector, max_sectors, nr_sectors, fault);
  r = map_prepare (f->ov->map, sector, max_sectors, nr_sectors);
  if (r == MAP_FULL)
    return 1;
  return r ? set_fault (fault, FAULT_METADATA, r) : 0;
}

static int
fill_sectors (const struct filling *f, uint64_t count, bool wait,
              struct fault *fault)
{
  uint64_t sector = f->offset / SECTOR;
  uint64_t nr_sectors = count / SECTOR;
  uint64_t n;
  int r;

  for (; nr_sectors > 0; sector += n, nr_sectors -= n) {
    bool first = false;

    r = prepare_fill (f, sector, nr_sectors, wait, &n, fault);
    if (r)
      return r == 1 ? 0 : -1;
    r = fill_prepared (f, sector, n, wait, &first, fault);
    map_unprepare (f->ov->map, sector, n);
    if (r == -1) {
      tell_dirty (f->ov, first);
      return -1;
    }
    if (after_map_set (f->ov, f->image, first, fault) == -1)
      return -1;
  }
  return 0;
}

int
overlay_keep (struct overlay *ov, struct image *image, const void *buf,
              size_t count, uint64_t offset, bool wait, struct fault *fault)
{
  const struct filling f = {
    .ov = ov,
    .image = image,
    .buf = buf,
    .offset = offset,
  };

  return fill_sectors (&f, count, wait, fault);
}

/* Are backing file and image files, so that the system may be able to copy
 * from the one to the other?
 */
static bool
system_may_copy (const struct filling *f)
{
  return f->image->ops->copy && f->ov->backing && f->ov->backing->ops->fd;
}

/* An extents_fn. */
static int
extents_below (void *opaque, uint64_t count, uint64_t offset, extent_fn *fn,
               void *fn_opaque)
{
  return backing_extents (opaque, count, offset, fn, fn_opaque);
}

/* Find the first part of COUNT bytes at f->offset, whole sectors, MAX_DATA at
 * most unless it is zeroes.  Returns 0 or an error number.
 */
static int
find_part (const struct filling *f, uint64_t count, uint64_t max_data,
           struct part *p)
{
  *p = (struct part){
    .max = MIN (count, MAX_FAST_ZERO),
    .max_data = MIN (count, max_data),
    .min_hole = system_may_copy (f) ? SPARSE_BLOCK : SPARSE_SMALL_HOLE,
  };
  return sparse_find_part (p, f->offset, extents_below, f->ov->backing);
}

static int
fill_zeroes (struct filling *f, struct filled *filled, struct fault *fault)
{
  int r;

  f->zero_flags = IMAGE_MAY_TRIM | IMAGE_FAST;
  r = fill_sectors (f, filled->nr_bytes, true, fault);
  if (r == 0 || fault->part != FAULT_IMAGE || fault->err != EOPNOTSUPP)
    return r;
  f->zero_flags = IMAGE_MAY_TRIM;
  filled->nr_bytes = MIN (filled->nr_bytes, MAX_SLOW_ZERO);
  return fill_sectors (f, filled->nr_bytes, true, fault);
}

/* Let the system copy what is in the backing file, if both are files that
 * it can do that with.  *DONE tells.
 */
static int
fill_by_copy (struct filling *f, struct filled *filled, bool *done,
              struct fault *fault)
{
  struct backing *backing = f->ov->backing;
  int r;

  *done = false;
  if (!system_may_copy (f) ||
      f->offset + filled->nr_bytes > backing->size_bytes)
    return 0;
  f->fd = backing->ops->fd (backing);
  r = fill_sectors (f, filled->nr_bytes, true, fault);
  f->fd = -1;
  /* Whatever the matter is, reading and writing will say of which file. */
  *done = r == 0 || fault->part != FAULT_IMAGE;
  return *done ? r : 0;
}

static int
fill_data (struct filling *f, void *buf, struct filled *filled,
           struct fault *fault)
{
  bool done;
  int r;

  r = fill_by_copy (f, filled, &done, fault);
  if (!done) {
    r = backing_read (f->ov->backing, buf, filled->nr_bytes, f->offset);
    if (r)
      return set_fault (fault, FAULT_BACKING, r);
    f->buf = buf;
    r = fill_sectors (f, filled->nr_bytes, true, fault);
  }
  if (r == 0)
    filled->nr_copied = filled->nr_bytes;
  return r;
}

/* Fill the first part of filled->nr_bytes, which are not allocated.  The
 * caller has entered the backing file.
 */
static int
fill_part (struct filling *f, void *buf, size_t buf_bytes,
           struct filled *filled, struct fault *fault)
{
  struct part part;
  int r = find_part (f, filled->nr_bytes, buf_bytes, &part);

  if (r) {
    filled->nr_bytes = MIN (filled->nr_bytes, buf_bytes);
    return set_fault (fault, FAULT_BACKING, r);
  }
  filled->nr_bytes = part.n;
  if (part.zero)
    return fill_zeroes (f, filled, fault);
  return fill_data (f, buf, filled, fault);
}

int
overlay_fill (struct overlay *ov, struct image *image, void *buf,
              size_t buf_bytes, uint64_t count, uint64_t offset,
              struct filled *filled, struct fault *fault)
{
  struct filling f = {
    .ov = ov,
    .image = image,
    .fd = -1,
    .offset = offset,
  };
  bool allocated;
  int r;

  *filled = (struct filled){ .nr_bytes = MIN (count, buf_bytes) };
  if (next_piece (ov, count, offset, &allocated, &filled->nr_bytes, fault) ==
      -1)
    return -1;
  filled->was_allocated = allocated || !backing_enter (ov);
  if (filled->was_allocated)
    return 0;
  r = fill_part (&f, buf, buf_bytes, filled, fault);
  backing_leave (ov);
  if (r == -1 && fault->part == FAULT_BACKING && ov->backing_dropped) {
    filled->was_allocated = true;
    return 0;
  }
  return r;
}

int
overlay_fill_range (struct overlay *ov, struct image *image, uint64_t count,
                    uint64_t offset, struct fault *fault)
{
  const size_t buf_bytes = 256 * 1024;
  const uint64_t end = DIV_ROUND_UP (offset + count, SECTOR) * SECTOR;
  CLEANUP_FREE char *buf = malloc (buf_bytes);
  struct filled filled;

  if (buf == NULL)
    return set_fault (fault, FAULT_MEMORY, ENOMEM);
  for (offset -= offset % SECTOR; offset < end; offset += filled.nr_bytes)
    if (overlay_fill (ov, image, buf, buf_bytes, end - offset, offset, &filled,
                      fault) == -1)
      return -1;
  return 0;
}

/* It may have the system's answer to what a commit flushes, see
 * flushing_begin.
 */
void
overlay_write_out (struct overlay *ov, int fd, uint64_t count, uint64_t offset,
                   bool wait)
{
  int r;

  flushing_begin (ov);
  if (ov->nr_started == ov->nr_over) {
    r = fd_write_out (fd, count, offset, wait);
    if (r)
      count_failure (ov, r);
  }
  flushing_end (ov);
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>

#include "common.h"
#include "image-next.h"

/* nbdkit passes larger requests to zero on, but where the plugin has it
 * write zeroes instead, 1.32 writes those beyond the first 64 MiB to the
 * same place again (server/plugins.c, plugin_zero).
 */
#define MAX_ZERO (64 * 1024 * 1024)

/* The largest count of a request that is whole sectors. */
#define MAX_COUNT (UINT32_MAX & ~UINT32_C (511))

_Static_assert(EXTENT_HOLE == NBDKIT_EXTENT_HOLE &&
                   EXTENT_ZERO == NBDKIT_EXTENT_ZERO,
               "extent types are passed on as they are");

#define CLEANUP_EXTENTS_FREE __attribute__ ((cleanup (cleanup_extents)))

static void
cleanup_extents (struct nbdkit_extents **extents)
{
  nbdkit_extents_free (*extents);
}

static struct image_next *
from_image (struct image *image)
{
  return container_of (image, struct image_next, image);
}

/* Before a call of the layer, which says in *ERR why it failed: nbdkit sets
 * that for some of a plugin's calls only where it is 0.
 */
static void
enter (struct image_next *in, int *err)
{
  *err = 0;
  if (in->serialize)
    pthread_mutex_lock (&in->lock);
}

/* Leave, and turn what a call of the layer returned into 0 or an errno.  After
 * EINTR the call is made again: a layer may leave that to its caller, and a
 * client would be told EINVAL.
 */
static int
leave (struct image_next *in, int r, int err)
{
  if (in->serialize)
    pthread_mutex_unlock (&in->lock);
  return r == -1 ? err : 0;
}

static int
image_next_read (struct image *image, void *buf, size_t count, uint64_t offset)
{
  struct image_next *in = from_image (image);
  int err, r;

  do {
    enter (in, &err);
    r = in->next->pread (in->next, buf, count, offset, 0, &err);
    r = leave (in, r, err);
  } while (r == EINTR);
  return r;
}

static int
image_next_flush (struct image *image)
{
  struct image_next *in = from_image (image);
  int err, r;

  /* A layer that cannot flush has nothing to flush. */
  if (in->can_flush != 1)
    return 0;
  do {
    enter (in, &err);
    r = in->next->flush (in->next, 0, &err);
    r = leave (in, r, err);
  } while (r == EINTR);
  return r;
}

/* The flags for the layer; those it lacks are made up for afterwards. */
static uint32_t
next_flags (const struct image_next *in, unsigned flags)
{
  uint32_t f = 0;

  if (flags & IMAGE_FUA && in->can_fua > NBDKIT_FUA_NONE)
    f |= NBDKIT_FLAG_FUA;
  if (flags & IMAGE_MAY_TRIM)
    f |= NBDKIT_FLAG_MAY_TRIM;
  if (flags & IMAGE_FAST)
    f |= NBDKIT_FLAG_FAST_ZERO;
  return f;
}

static int
make_up_for_fua (struct image_next *in, unsigned flags)
{
  if (flags & IMAGE_FUA && in->can_fua == NBDKIT_FUA_NONE)
    return image_next_flush (&in->image);
  return 0;
}

static int
image_next_write (struct image *image, const void *buf, size_t count,
                  uint64_t offset, unsigned flags)
{
  struct image_next *in = from_image (image);
  int err, r;

  do {
    enter (in, &err);
    r = in->next->pwrite (in->next, buf, count, offset, next_flags (in, flags),
                          &err);
    r = leave (in, r, err);
  } while (r == EINTR);
  return r ? r : make_up_for_fua (in, flags);
}

/* For a layer that has no zero, not even one that nbdkit emulates. */
static int
write_zeroes (struct image *image, uint32_t count, uint64_t offset,
              unsigned flags)
{
  static const char zeroes[64 * 1024];
  int r = 0;

  while (r == 0 && count > 0) {
    const size_t n = MIN (count, sizeof zeroes);

    r = image_next_write (image, zeroes, n, offset, flags & IMAGE_FUA);
    count -= n;
    offset += n;
  }
  return r;
}

static int
zero_part (struct image_next *in, uint32_t count, uint64_t offset,
           unsigned flags)
{
  int err, r;

  if (flags & IMAGE_FAST && in->can_fast_zero != 1)
    return EOPNOTSUPP;
  if (in->can_zero == NBDKIT_ZERO_NONE)
    return write_zeroes (&in->image, count, offset, flags);
  do {
    enter (in, &err);
    r = in->next->zero (in->next, count, offset, next_flags (in, flags), &err);
    r = leave (in, r, err);
  } while (r == EINTR);
  return r ? r : make_up_for_fua (in, flags);
}

static int
image_next_zero (struct image *image, uint64_t count, uint64_t offset,
                 unsigned flags)
{
  int r = 0;

  while (r == 0 && count > 0) {
    const uint32_t n = MIN (count, MAX_ZERO);

    r = zero_part (from_image (image), n, offset, flags);
    count -= n;
    offset += n;
  }
  return r;
}

static int
trim_part (struct image_next *in, uint32_t count, uint64_t offset,
           unsigned flags)
{
  int err, r;

  do {
    enter (in, &err);
    r = in->next->trim (in->next, count, offset,
                        next_flags (in, flags & IMAGE_FUA), &err);
    r = leave (in, r, err);
  } while (r == EINTR);
  return r ? r : make_up_for_fua (in, flags);
}

static int
image_next_trim (struct image *image, uint64_t count, uint64_t offset,
                 unsigned flags)
{
  struct image_next *in = from_image (image);
  int r = 0;

  if (in->can_trim != 1)
    return flags & IMAGE_FUA ? image_next_flush (image) : 0;
  while (r == 0 && count > 0) {
    const uint32_t n = MIN (count, MAX_COUNT);

    r = trim_part (in, n, offset, flags);
    count -= n;
    offset += n;
  }
  return r;
}

/* Ask once; *EXTENTS is the caller's to free. */
static int
get_extents (struct image_next *in, uint32_t count, uint64_t offset,
             struct nbdkit_extents **extents)
{
  int err, r;

  *extents = nbdkit_extents_new (offset, offset + count);
  if (*extents == NULL)
    return errno;
  enter (in, &err);
  r = in->next->extents (in->next, count, offset, 0, *extents, &err);
  return leave (in, r, err);
}

static int
image_next_extents (struct image *image, uint64_t count, uint64_t offset,
                    extent_fn *fn, void *opaque)
{
  CLEANUP_EXTENTS_FREE struct nbdkit_extents *extents = NULL;
  struct image_next *in = from_image (image);
  const uint32_t n = MIN (count, MAX_COUNT);
  int r;
  size_t i;

  if (in->can_extents != 1)
    return fn (opaque, count, 0);
  /* What was told before an error is not told again. */
  while ((r = get_extents (in, n, offset, &extents)) == EINTR)
    nbdkit_extents_free (extents);
  for (i = 0; r == 0 && i < nbdkit_extents_count (extents); i++) {
    const struct nbdkit_extent e = nbdkit_get_extent (extents, i);

    r = fn (opaque, e.length, e.type & (EXTENT_HOLE | EXTENT_ZERO));
  }
  return r;
}

static int
image_next_cache (struct image *image, uint64_t count, uint64_t offset)
{
  struct image_next *in = from_image (image);
  int r = 0;

  while (in->can_cache != NBDKIT_CACHE_NONE && r == 0 && count > 0) {
    const uint32_t n = MIN (count, MAX_COUNT);
    int err;

    do {
      enter (in, &err);
      r = in->next->cache (in->next, n, offset, 0, &err);
      r = leave (in, r, err);
    } while (r == EINTR);
    count -= n;
    offset += n;
  }
  return r;
}

static const struct image_ops image_next_ops = {
  .read = image_next_read,
  .write = image_next_write,
  .zero = image_next_zero,
  .trim = image_next_trim,
  .flush = image_next_flush,
  .extents = image_next_extents,
  .cache = image_next_cache,
};

int
image_next_init (struct image_next *in, nbdkit_next *next, int thread_model)
{
  int multi_conn = next->can_multi_conn (next);
  /* A layer without flush cannot flush for other connections. */
  const bool covers_all = multi_conn == 1 && next->can_flush (next) == 1;

  *in = (struct image_next){
    .image = { .ops = &image_next_ops, .multi_conn = covers_all },
    .next = next,
    .size_bytes = next->get_size (next),
    .can_write = next->can_write (next),
    .can_flush = next->can_flush (next),
    .can_trim = next->can_trim (next),
    .can_zero = next->can_zero (next),
    .can_fast_zero = next->can_fast_zero (next),
    .can_extents = next->can_extents (next),
    .can_fua = next->can_fua (next),
    .can_cache = next->can_cache (next),
    .serialize = thread_model < NBDKIT_THREAD_MODEL_PARALLEL,
  };
  if (multi_conn == -1 || in->size_bytes == -1 || in->can_write == -1 ||
      in->can_flush == -1 || in->can_trim == -1 || in->can_zero == -1 ||
      in->can_fast_zero == -1 || in->can_extents == -1 || in->can_fua == -1 ||
      in->can_cache == -1)
    return -1;
  in->image.read_only = in->can_write != 1;
  pthread_mutex_init (&in->lock, NULL);
  return 0;
}

void
image_next_destroy (struct image_next *in)
{
  pthread_mutex_destroy (&in->lock);
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "common.h"
#include "filler-share.h"

#define MS INT64_C (1000000)
#define SECOND (1000 * MS)
#define ALIGN_BYTES 4096

/* How long to wait for the end of a step, for each filler that may wait. */
#define WAIT_NS (2 * MS)

struct filler_share {
  size_t buf_bytes;
  uint64_t rate_bytes;

  pthread_mutex_t lock; /* see filler-share.h */
  unsigned nr_fillers;
  unsigned seed;
  int64_t rate_ns; /* no step before that, to keep the rate */

  void **free; /* buffers that no step has, and that were made */
  unsigned nr_free;
  unsigned nr_unmade;
};

int
filler_share_new (struct filler_share **ret, unsigned nr_steps,
                  size_t buf_bytes, uint64_t rate_bytes)
{
  struct filler_share *s = calloc (1, sizeof *s);

  if (s == NULL)
    return ENOMEM;
  s->free = calloc (nr_steps, sizeof s->free[0]);
  if (s->free == NULL) {
    free (s);
    return ENOMEM;
  }
  s->buf_bytes = buf_bytes;
  s->rate_bytes = MIN (rate_bytes, INT64_MAX);
  s->nr_unmade = nr_steps;
  s->seed = 1;
  pthread_mutex_init (&s->lock, NULL);
  *ret = s;
  return 0;
}

void
filler_share_free (struct filler_share *s)
{
  if (s == NULL)
    return;
  while (s->nr_free > 0)
    free (s->free[--s->nr_free]);
  pthread_mutex_destroy (&s->lock);
  free (s->free);
  free (s);
}

void
filler_share_join (struct filler_share *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  s->nr_fillers++;
}

void
filler_share_leave (struct filler_share *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  s->nr_fillers--;
}

size_t
filler_share_step_bytes (const struct filler_share *s, size_t max_bytes)
{
  const uint64_t eighth = s->rate_bytes / 8 / ALIGN_BYTES * ALIGN_BYTES;
  const size_t max = MIN (max_bytes, s->buf_bytes);

  if (s->rate_bytes == 0)
    return max;
  return MIN (MAX (eighth, ALIGN_BYTES), max);
}

/* Some time after NS, so that not all ask at once.  One alone asks then. */
static int64_t
spread_locked (struct filler_share *s, int64_t ns)
{
  if (s->nr_fillers <= 1)
    return ns;
  return ns + (int64_t) rand_r (&s->seed) % (s->nr_fillers * WAIT_NS);
}

/* A buffer that no step has, or NULL. */
static void *
take_locked (struct filler_share *s)
{
  void *buf;

  if (s->nr_free > 0)
    return s->free[--s->nr_free];
  if (s->nr_unmade == 0)
    return NULL;
  buf = malloc (s->buf_bytes);
  if (buf)
    s->nr_unmade--;
  return buf;
}

/* How long N bytes take, which may be negative. */
static int64_t
rate_time (const struct filler_share *s, int64_t n)
{
  return s->rate_bytes ? n * SECOND / (int64_t) s->rate_bytes : 0;
}

void *
filler_share_begin (struct filler_share *s, size_t count, int64_t now_ns,
                    int64_t *again_ns)
{
  void *buf;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  if (s->rate_ns > now_ns) {
    *again_ns = spread_locked (s, s->rate_ns);
    return NULL;
  }
  buf = take_locked (s);
  if (buf)
    s->rate_ns = MAX (s->rate_ns, now_ns) + rate_time (s, count);
  else
    *again_ns = spread_locked (s, now_ns + WAIT_NS);
  return buf;
}

void
filler_share_end (struct filler_share *s, void *buf, size_t count,
                  uint64_t nr_copied)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  s->rate_ns += rate_time (s, (int64_t) nr_copied - (int64_t) count);
  s->free[s->nr_free++] = buf;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Preloaded into a server by tests: calls take some time, by lot, before or
 * after they do what they do.  So threads that are not kept apart meet.
 *
 *   DELAY_READ   pread, in microseconds: a call in two takes as much at most
 *   DELAY_LARGE  the same of each pread of 64 KiB or more, which is no client's
 *                but a fill's
 *   DELAY_WRITE  the same of pwrite and fallocate
 *   DELAY_SYNC   the same of fdatasync
 *   DELAY_LOCK   the same of pthread_mutex_lock, a call in 32
 *   DELAY_SEED   what the lots are drawn from
 */

#include <config.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "preload.h"

#define LARGE_BYTES (64 * 1024)

static unsigned max_read_us, max_large_us, max_write_us, max_sync_us,
    max_lock_us;
static _Atomic uint64_t seed; /* of the next thread */
static __thread struct rng rng;

static unsigned
number (const char *name)
{
  const char *text = getenv (name);

  return text ? strtoul (text, NULL, 0) : 0;
}

__attribute__ ((constructor)) static void
read_environment (void)
{
  seed = number ("DELAY_SEED");
  max_read_us = number ("DELAY_READ");
  max_large_us = number ("DELAY_LARGE");
  max_write_us = number ("DELAY_WRITE");
  max_sync_us = number ("DELAY_SYNC");
  max_lock_us = number ("DELAY_LOCK");
}

/* One of 0 ... N - 1. */
static unsigned
below (unsigned n)
{
  if (rng.state == 0)
    rng.state = (++seed) << 32;
  return rng_below (&rng, n);
}

/* When a call is to take longer, one in N. */
enum when { NEVER, BEFORE, AFTER };

static enum when
choose (unsigned max_us, unsigned n)
{
  if (max_us == 0 || below (n) > 0)
    return NEVER;
  return below (2) ? BEFORE : AFTER;
}

static void
wait_if (enum when now, enum when when, unsigned max_us)
{
  if (now == when)
    usleep (below (max_us));
}

EXPORT ssize_t
pread64 (int fd, void *buf, size_t count, off64_t offset)
{
  const enum when when = choose (max_read_us, 2);
  ssize_t r;
  REAL (pread64);

  wait_if (BEFORE, when, max_read_us);
  r = real (fd, buf, count, offset);
  wait_if (AFTER, when, max_read_us);
  if (max_large_us > 0 && count >= LARGE_BYTES)
    usleep (below (max_large_us));
  return r;
}

EXPORT ssize_t
pwrite64 (int fd, const void *buf, size_t count, off64_t offset)
{
  const enum when when = choose (max_write_us, 2);
  ssize_t r;
  REAL (pwrite64);

  wait_if (BEFORE, when, max_write_us);
  r = real (fd, buf, count, offset);
  wait_if (AFTER, when, max_write_us);
  return r;
}

EXPORT int
fallocate64 (int fd, int mode, off64_t offset, off64_t count)
{
  const enum when when = choose (max_write_us, 2);
  int r;
  REAL (fallocate64);

  wait_if (BEFORE, when, max_write_us);
  r = real (fd, mode, offset, count);
  wait_if (AFTER, when, max_write_us);
  return r;
}

EXPORT int
fdatasync (int fd)
{
  const enum when when = choose (max_sync_us, 2);
  int r;
  REAL (fdatasync);

  wait_if (BEFORE, when, max_sync_us);
  r = real (fd);
  wait_if (AFTER, when, max_sync_us);
  return r;
}

EXPORT int
pthread_mutex_lock (pthread_mutex_t *mutex)
{
  const enum when when = choose (max_lock_us, 32);
  REAL (pthread_mutex_lock);

  /* After it others would wait for the lock, and meet no one. */
  if (when != NEVER)
    usleep (below (max_lock_us));
  return real (mutex);
}

ALSO_WITHOUT_64 (pread);
ALSO_WITHOUT_64 (pwrite);
ALSO_WITHOUT_64 (fallocate);

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the engine calls where a test is linked with --wrap=FUNCTION: the test
 * has its own __wrap_FUNCTION, for which __real_FUNCTION is the one of the
 * engine or of the system.  Here is what such tests share; what they do
 * instead of it is theirs.  For what is wrapped in all see workers.h.
 */

#ifndef ADDCOW_WRAPS_H
#define ADDCOW_WRAPS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "check.h"

struct map;

void *__real_malloc (size_t);
void *__wrap_malloc (size_t);
int __real_map_run (struct map *, uint64_t, uint64_t, bool *, uint64_t *);
int __wrap_map_run (struct map *, uint64_t, uint64_t, bool *, uint64_t *);

/*--- Time. ------------------------------------------------------------*/

#define MS INT64_C (1000000)
#define SECOND (1000 * MS)

int __real_clock_gettime (clockid_t, struct timespec *);
int __wrap_clock_gettime (clockid_t, struct timespec *);
int __real_pthread_cond_timedwait (pthread_cond_t *, pthread_mutex_t *,
                                   const struct timespec *);
int __wrap_pthread_cond_timedwait (pthread_cond_t *, pthread_mutex_t *,
                                   const struct timespec *);

/* A clock that shows NS has been asked for the time. */
static inline void
tell_time (clockid_t clock, struct timespec *ts, int64_t ns)
{
  CHECK_EQ (clock, CLOCK_MONOTONIC);
  ts->tv_sec = ns / SECOND;
  ts->tv_nsec = ns % SECOND;
}

/* What that clock shows when it is *TS, which must be valid. */
static inline int64_t
ns_of (const struct timespec *ts)
{
  CHECK (ts->tv_nsec >= 0 && ts->tv_nsec < SECOND);
  return ts->tv_sec * SECOND + ts->tv_nsec;
}

/*--- Threads that are workers. ----------------------------------------*/

int __real_pthread_create (pthread_t *, const pthread_attr_t *,
                           void *(*) (void *), void *);
int __wrap_pthread_create (pthread_t *, const pthread_attr_t *,
                           void *(*) (void *), void *);
int __real_pthread_join (pthread_t, void **);
int __wrap_pthread_join (pthread_t, void **);

/* What a thread was to run.  A worker runs start_main. */
struct start {
  void *(*fn) (void *);
  void *opaque;
};

static inline void
start_main (void *opaque)
{
  const struct start *start = opaque;

  start->fn (start->opaque);
}

/*--- The image as a file, for who fills it. ---------------------------*/

#define IMAGE_FD 4321 /* no such file is open */

int __wrap_fd_write_out (int fd, uint64_t count, uint64_t offset, bool wait);
void __wrap_fd_forget (int fd, uint64_t count, uint64_t offset);

#endif /* ADDCOW_WRAPS_H */

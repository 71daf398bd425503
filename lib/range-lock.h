/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Exclusive locks on ranges of sectors.
 *
 * Who asks first is served first: a range waits for every earlier range
 * that overlaps it, held or waiting, so nobody starves, and as a thread
 * holds one range at a time nobody can wait in a circle.
 */

#ifndef ADDCOW_RANGE_LOCK_H
#define ADDCOW_RANGE_LOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct range {
  uint64_t begin, end; /* sectors [begin, end) */
  struct range *prev, *next;
};

struct range_lock {
  pthread_mutex_t lock; /* protects all that follows */
  pthread_cond_t released;
  unsigned nr_waiting;
  struct range *first, *last; /* held or waiting, in order of arrival */
};

void range_lock_init (struct range_lock *rl);

/* Nobody may hold a range. */
void range_lock_destroy (struct range_lock *rl);

/* Lock NR_SECTORS (at least 1) from SECTOR on.  *RANGE is the caller's,
 * on its stack, until range_release.  Waits for overlapping ranges.
 */
void range_acquire (struct range_lock *rl, struct range *range, uint64_t sector,
                    uint64_t nr_sectors);

/* The same, but false, and nothing is locked, if it would have to wait. */
bool range_try_acquire (struct range_lock *rl, struct range *range,
                        uint64_t sector, uint64_t nr_sectors);

/* Release what these locked.  Does not wait. */
void range_release (struct range_lock *rl, struct range *range);

#endif /* ADDCOW_RANGE_LOCK_H */

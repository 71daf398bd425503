/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdbool.h>

#include "common.h"
#include "range-lock.h"

void
range_lock_init (struct range_lock *rl)
{
  *rl = (struct range_lock){ .nr_waiting = 0 };
  pthread_mutex_init (&rl->lock, NULL);
  pthread_cond_init (&rl->released, NULL);
}

void
range_lock_destroy (struct range_lock *rl)
{
  pthread_cond_destroy (&rl->released);
  pthread_mutex_destroy (&rl->lock);
}

/* Does an earlier range than RANGE overlap it?  Caller holds rl->lock. */
static bool
must_wait_locked (const struct range *range)
{
  const struct range *r;

  for (r = range->prev; r; r = r->prev)
    if (r->begin < range->end && range->begin < r->end)
      return true;
  return false;
}

/* Put RANGE behind all others.  Caller holds rl->lock. */
static void
append_locked (struct range_lock *rl, struct range *range, uint64_t sector,
               uint64_t nr_sectors)
{
  range->begin = sector;
  range->end = sector + nr_sectors;
  range->next = NULL;
  range->prev = rl->last;
  if (rl->last)
    rl->last->next = range;
  else
    rl->first = range;
  rl->last = range;
}

/* Take RANGE out again.  Caller holds rl->lock. */
static void
remove_locked (struct range_lock *rl, struct range *range)
{
  if (range->prev)
    range->prev->next = range->next;
  else
    rl->first = range->next;
  if (range->next)
    range->next->prev = range->prev;
  else
    rl->last = range->prev;
}

void
range_acquire (struct range_lock *rl, struct range *range, uint64_t sector,
               uint64_t nr_sectors)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rl->lock);
  append_locked (rl, range, sector, nr_sectors);
  while (must_wait_locked (range)) {
    rl->nr_waiting++;
    pthread_cond_wait (&rl->released, &rl->lock);
    rl->nr_waiting--;
  }
}

bool
range_try_acquire (struct range_lock *rl, struct range *range, uint64_t sector,
                   uint64_t nr_sectors)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rl->lock);
  append_locked (rl, range, sector, nr_sectors);
  if (!must_wait_locked (range))
    return true;
  remove_locked (rl, range);
  return false;
}

void
range_release (struct range_lock *rl, struct range *range)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rl->lock);
  remove_locked (rl, range);
  if (rl->nr_waiting > 0)
    pthread_cond_broadcast (&rl->released);
}

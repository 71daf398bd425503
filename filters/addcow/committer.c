/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>

#include "committer.h"
#include "common.h"

void
committer_init (struct committer *c, unsigned interval_seconds)
{
  pthread_condattr_t attr;

  *c = (struct committer){ .interval_seconds = interval_seconds };
  pthread_mutex_init (&c->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&c->wake, &attr);
  pthread_condattr_destroy (&attr);
  pthread_cond_init (&c->idle, NULL);
}

/*--- The queue. -------------------------------------------------------*/

/* Put it behind all others, or before them if it is due at once. */
static void
queue_locked (struct committer *c, struct commits *commits, bool at_once)
{
  if (commits->queued)
    return;
  clock_gettime (CLOCK_MONOTONIC, &commits->due);
  commits->queued = true;
  commits->prev = commits->next = NULL;
  if (!at_once)
    commits->due.tv_sec += c->interval_seconds;
  if (c->first == NULL)
    c->first = c->last = commits;
  else if (at_once) {
    commits->next = c->first;
    c->first = c->first->prev = commits;
  }
  else {
    commits->prev = c->last;
    c->last = c->last->next = commits;
  }
  pthread_cond_signal (&c->wake);
}

static void
unqueue_locked (struct committer *c, struct commits *commits)
{
  if (!commits->queued)
    return;
  commits->queued = false;
  *(commits->prev ? &commits->prev->next : &c->first) = commits->next;
  *(commits->next ? &commits->next->prev : &c->last) = commits->prev;
}

static bool
is_due (const struct commits *commits)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return now.tv_sec > commits->due.tv_sec ||
         (now.tv_sec == commits->due.tv_sec &&
          now.tv_nsec >= commits->due.tv_nsec);
}

/*--- Commits. ---------------------------------------------------------*/

/* Returns whether it failed. */
static bool
commit (struct commits *commits, bool had_failed)
{
  struct fault fault;

  if (overlay_commit (commits->ov, &fault) == 0) {
    commits->committed (commits->opaque);
    return false;
  }
  /* A disk that stays full is reported once, not at every interval. */
  if (!had_failed)
    commits->report (commits->opaque, &fault);
  return true;
}

/* What is done was the last.  Caller holds c->lock, which is released
 * meanwhile.
 */
static void
end_locked (struct committer *c, struct commits *commits)
{
  commits->added = false;
  pthread_mutex_unlock (&c->lock);
  commits->over (commits->opaque);
  pthread_mutex_lock (&c->lock);
}

/* Commit one that is queued, and see whether there is more already.  Caller
 * holds c->lock, which is released meanwhile.
 */
static void
commit_locked (struct committer *c, struct commits *commits)
{
  const bool begun = commits->begun, had_failed = commits->failed;
  bool failed = had_failed;
  bool is_over;

  unqueue_locked (c, commits);
  commits->busy = commits->begun = true;
  commits->dirty = false;
  pthread_mutex_unlock (&c->lock);
  if (begun)
    failed = commit (commits, had_failed);
  else
    commits->committed (commits->opaque); /* all may be there since long */
  is_over = commits->is_over && commits->is_over (commits->opaque);
  pthread_mutex_lock (&c->lock);

  commits->busy = false;
  commits->failed = failed;
  pthread_cond_broadcast (&c->idle);
  if (is_over)
    end_locked (c, commits);
  else if (commits->added &&
           (commits->dirty || overlay_uncommitted (commits->ov)))
    queue_locked (c, commits, false);
}

static void *
committer_thread (void *opaque)
{
  struct committer *c = opaque;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  while (!c->stop) {
    if (c->first && is_due (c->first))
      commit_locked (c, c->first);
    else if (c->first) {
      const struct timespec due = c->first->due;

      pthread_cond_timedwait (&c->wake, &c->lock, &due);
    }
    else
      pthread_cond_wait (&c->wake, &c->lock);
  }
  return NULL;
}

int
committer_start (struct committer *c, unsigned nr_threads)
{
  assert (nr_threads <= MAX_COMMITTERS);
  if (c->interval_seconds == 0)
    return 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  while (c->nr_threads < nr_threads) {
    int r = pthread_create (&c->threads[c->nr_threads], NULL, committer_thread,
                            c);

    if (r)
      return r;
    c->nr_threads++;
  }
  return 0;
}

void
committer_stop (struct committer *c)
{
  pthread_mutex_lock (&c->lock);
  c->stop = true;
  pthread_cond_broadcast (&c->wake);
  pthread_mutex_unlock (&c->lock);
  while (c->nr_threads > 0)
    pthread_join (c->threads[--c->nr_threads], NULL);
}

bool
committer_is_running (const struct committer *c)
{
  return c->nr_threads > 0;
}

/*--- Overlays. --------------------------------------------------------*/

void
committer_add (struct commits *commits)
{
  struct committer *c = commits->committer;

  if (c->interval_seconds == 0)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  commits->added = true;
  commits->begun = c->nr_threads == 0;
  if (!commits->begun || commits->dirty)
    queue_locked (c, commits, !commits->begun);
}

void
committer_remove (struct commits *commits)
{
  struct committer *c = commits->committer;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  commits->added = false;
  unqueue_locked (c, commits);
  while (commits->busy)
    pthread_cond_wait (&c->idle, &c->lock);
}

void
committer_dirty (struct commits *commits)
{
  struct committer *c = commits->committer;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  if (commits->added && !commits->busy)
    queue_locked (c, commits, false);
  else
    commits->dirty = true; /* looked at later */
}

void
committer_poll (struct commits *commits)
{
  struct committer *c = commits->committer;

  if (c->nr_threads > 0 || c->interval_seconds == 0)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  if (commits->queued && is_due (commits))
    commit_locked (c, commits);
}

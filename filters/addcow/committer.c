/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>

#include "common.h"
#include "committer.h"

void
committer_init (struct committer *c)
{
  pthread_condattr_t attr;

  *c = (struct committer){ .interval_seconds = 0 };
  pthread_mutex_init (&c->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&c->wake, &attr);
  pthread_condattr_destroy (&attr);
}

static void
mark_dirty_locked (struct committer *c)
{
  if (c->dirty)
    return;
  c->dirty = true;
  clock_gettime (CLOCK_MONOTONIC, &c->due);
  c->due.tv_sec += c->interval_seconds;
  pthread_cond_signal (&c->wake);
}

void
committer_dirty (void *opaque)
{
  struct committer *c = opaque;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  mark_dirty_locked (c);
}

static bool
is_due_locked (const struct committer *c)
{
  struct timespec now;

  if (!c->dirty)
    return false;
  clock_gettime (CLOCK_MONOTONIC, &now);
  return now.tv_sec > c->due.tv_sec ||
         (now.tv_sec == c->due.tv_sec && now.tv_nsec >= c->due.tv_nsec);
}

/* Commit, and see whether there is more already.  Caller holds c->lock,
 * which is released meanwhile.
 */
static void
commit_locked (struct committer *c)
{
  struct fault fault;
  bool failed;

  c->dirty = false;
  pthread_mutex_unlock (&c->lock);
  failed = overlay_commit (c->ov, &fault) == -1;
  if (!failed)
    c->committed ();
  pthread_mutex_lock (&c->lock);

  /* A disk that stays full is reported once, not at every interval. */
  if (failed && !c->failed)
    c->report (&fault);
  c->failed = failed;
  if (overlay_uncommitted (c->ov))
    mark_dirty_locked (c);
}

static void *
committer_thread (void *opaque)
{
  struct committer *c = opaque;

  c->committed (); /* all may be there since long */
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  while (!c->stop) {
    if (is_due_locked (c))
      commit_locked (c);
    else if (c->dirty)
      pthread_cond_timedwait (&c->wake, &c->lock, &c->due);
    else
      pthread_cond_wait (&c->wake, &c->lock);
  }
  return NULL;
}

int
committer_start (struct committer *c, bool threaded)
{
  int r;

  if (c->interval_seconds == 0 || !threaded)
    return 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  /* Before it begins, as it looks at this too. */
  c->running = true;
  r = pthread_create (&c->thread, NULL, committer_thread, c);
  if (r)
    c->running = false;
  return r;
}

void
committer_poll (struct committer *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  if (c->interval_seconds > 0 && !c->running && is_due_locked (c))
    commit_locked (c);
}

void
committer_stop (struct committer *c)
{
  bool running;

  pthread_mutex_lock (&c->lock);
  c->stop = true;
  running = c->running;
  pthread_cond_signal (&c->wake);
  pthread_mutex_unlock (&c->lock);
  if (running)
    pthread_join (c->thread, NULL);
}

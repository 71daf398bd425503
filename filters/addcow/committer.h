/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commits that no client asks for: new bits of an overlay become durable at
 * most the commit interval after they were set.
 *
 * The overlays that have something to commit stand in a queue, in the order
 * in which they are due.  Threads sleep until there is one, then until it is
 * due, then commit it; a few of them serve all overlays of the server.  Where
 * the plugin or another filter does not allow requests that nbdkit does not
 * know of (a thread model below serialize_requests), there are none, and the
 * request that finds the interval over commits.
 *
 * The committer's mutex protects its fields and those of all that it was
 * given.  No other lock is taken while it is held.
 */

#ifndef ADDCOW_COMMITTER_H
#define ADDCOW_COMMITTER_H

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

#include "overlay.h"

#define MAX_COMMITTERS 4

/* The commits of an overlay. */
struct commits {
  /* Set before anything else; the rest is empty. */
  struct committer *committer;
  struct overlay *ov;
  void (*report) (void *opaque, const struct fault *fault); /* it failed */

  /* After each that succeeded, and at first where there are threads.  Without
   * locks.  It may call committer_dirty, to be called again.
   */
  void (*committed) (void *opaque);

  /* NULL, or: after each, be it that it failed, and after the first
   * COMMITTED: was it the last?  Without locks.  If so OVER is called by the
   * same thread, likewise; what is here is not used any more then, and may be
   * gone after it.  Only changed while it is not added.
   */
  bool (*is_over) (void *opaque);
  void (*over) (void *opaque);

  void *opaque;

  /* Protected by the committer's lock. */
  bool added;
  struct commits *prev, *next; /* in the queue */
  bool queued;
  bool busy;           /* somebody is committing */
  bool dirty;          /* told so meanwhile, or before it was added */
  bool begun;          /* committed was called once */
  bool failed;         /* the last one did, it was reported */
  struct timespec due; /* when it is QUEUED: not before that */
};

struct committer {
  unsigned interval_seconds; /* 0: never */

  pthread_mutex_t lock; /* protects all that follows */
  pthread_cond_t wake;  /* for threads */
  pthread_cond_t idle;  /* one that was busy is not any more */
  struct commits *first, *last;
  bool stop;
  pthread_t threads[MAX_COMMITTERS];
  unsigned nr_threads;
};

/* Make *C ready.  It does nothing yet. */
void committer_init (struct committer *c, unsigned interval_seconds);

/* Begin, with NR_THREADS threads, which may be 0.  Returns 0 or an errno:
 * those that began are there still.
 */
int committer_start (struct committer *c, unsigned nr_threads);

/* End the threads, if there are any.  Commits nothing. */
void committer_stop (struct committer *c);

/* Are there threads, who call COMMITTED? */
bool committer_is_running (const struct committer *c);

/* Commit from now on.  With threads one of them calls COMMITTED soon.  Takes
 * the committer's lock, does not block otherwise.
 */
void committer_add (struct commits *commits);

/* No more: waits until nobody is committing.  Does nothing when it was not
 * added.
 */
void committer_remove (struct commits *commits);

/* There is something to commit.  Takes the committer's lock, does not block
 * otherwise.
 */
void committer_dirty (struct commits *commits);

/* After a request, without threads: commit if it is time to.  May block. */
void committer_poll (struct commits *commits);

#endif /* ADDCOW_COMMITTER_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Commits that no client asks for: new bits become durable at most the
 * commit interval after they were set.
 *
 * A thread sleeps until there is something to commit, then for the
 * interval, then commits.  Where the plugin or another filter does not
 * allow requests that nbdkit does not know of (a thread model below
 * serialize_requests), there is no thread, and the request that finds
 * the interval over commits.
 *
 * The committer's mutex protects its fields and is held while no other
 * lock is taken.
 */

#ifndef ADDCOW_COMMITTER_H
#define ADDCOW_COMMITTER_H

#include <pthread.h>
#include <stdbool.h>
#include <time.h>

#include "overlay.h"

struct committer {
  unsigned interval_seconds; /* 0: never */
  struct overlay *ov;
  void (*report) (const struct fault *fault); /* of a failed commit */
  void (*committed) (void); /* at first and after each, without locks */

  pthread_mutex_t lock; /* protects all that follows */
  pthread_cond_t wake;
  bool running; /* there is a thread */
  bool stop;
  bool dirty;          /* there may be something to commit */
  bool failed;         /* the last one did, it was reported */
  struct timespec due; /* when DIRTY: not before that */
  pthread_t thread;
};

/* Make *C ready for committer_dirty.  It does nothing yet. */
void committer_init (struct committer *c);

/* Begin: with a thread, if THREADED.  Set the first four fields before.
 * Returns 0 or an errno.
 */
int committer_start (struct committer *c, bool threaded);

/* There is something to commit.  OPAQUE is a struct committer.  Takes
 * the committer's lock, does not block otherwise.
 */
void committer_dirty (void *opaque);

/* After a request, without a thread: commit if it is time to.  May
 * block.
 */
void committer_poll (struct committer *c);

/* End the thread, if there is one.  Commits nothing. */
void committer_stop (struct committer *c);

#endif /* ADDCOW_COMMITTER_H */

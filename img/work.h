/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Long work: threads do it, and the one that has begun it waits here for its
 * end, for signals, and for the time to show how far it is.
 *
 * SIGINT, SIGTERM, SIGHUP and SIGQUIT let the work end early, in order; what
 * that means is the verb's.  SIGUSR1 has a line printed to stderr.
 */

#ifndef ADDCOW_WORK_H
#define ADDCOW_WORK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "progress.h"

struct work {
  const char *file_name; /* for messages */
  bool progress;         /* show the bar, if stderr is a terminal */

  struct progress shown; /* the caller's to begin, before work_wait */
  /* How much is done, called by who waits. */
  uint64_t (*done_bytes) (void *opaque);
  void *opaque;

  int over_fd;   /* an eventfd: work_over was called */
  int signal_fd; /* of signals that are blocked */
  _Atomic bool over;
  _Atomic bool interrupted; /* by a signal: work that looks at it ends */
};

#define WORK_NONE \
  { \
    .over_fd = -1, .signal_fd = -1 \
  }

/* Let no signal that only asks something end the program, and a file that
 * would be too large be an error.  To be called first.
 */
void work_keep_signals (void);

/* From now on signals are waited for by work_wait; threads that are started
 * after this do not get any.  What is done before can be ended by them.
 * Returns EXIT_SUCCESS, or EXIT_FAILURE and has said why.
 */
int work_take_signals (struct work *w);

/* The work is over.  From any thread. */
void work_over (struct work *w);

/* Wait until the work is over or interrupted.  Returns EXIT_SUCCESS, or
 * EXIT_FAILURE and has said why.
 */
int work_wait (struct work *w);

/* Run FN in a thread of its own and wait for its end.  After a signal
 * INTERRUPT is called once, unless it is NULL: FN is to end soon then; it may
 * also look at w->interrupted.  Signals were taken.  Returns EXIT_SUCCESS when
 * FN has ended, whatever it did, or EXIT_FAILURE and has said why: FN was not
 * run then.
 */
int work_run (struct work *w, void (*fn) (void *opaque),
              void (*interrupt) (void *opaque));

/* End the bar. */
void work_end (struct work *w);

/* Say that W was interrupted.  Returns EXIT_FAILURE. */
int work_interrupted_error (const struct work *w);

/* Release what W owns; also of WORK_NONE. */
void work_clear (struct work *w);

#endif /* ADDCOW_WORK_H */

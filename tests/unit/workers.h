/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Threads whose every step a test decides, without a sleep.
 *
 * A worker runs until it is done, is held at a gate, or waits for a
 * condition inside the engine (the tests are linked with
 * --wrap=pthread_cond_wait and so on, which is how that is known).
 * workers_settle returns when each of them is in one of these states, so
 * that "it waits" and "it went through" are facts and not a matter of
 * time.
 *
 * Or workers run under a schedule: one at a time, and at each operation
 * of a simulated file, each lock of a mutex and each wait for a
 * condition a seed decides who goes on.  Then a run can be repeated.  They
 * have a clock of their own then, which goes on a little with each turn, and
 * to when the first of them wants to go on where all wait: hours pass in no
 * time.
 *
 * Under a schedule workers are no threads but stacks, for to hand the turn
 * from thread to thread takes the kernel microseconds.  Valgrind and the
 * sanitizers follow threads better, and get them; whose turn it is is the
 * same for a seed.
 */

#ifndef ADDCOW_WORKERS_H
#define ADDCOW_WORKERS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "check.h"

enum worker_state {
  WORKER_RUNNING,
  WORKER_WAITING, /* for a condition */
  WORKER_PARKED,  /* woken from there, and kept */
  WORKER_HELD,    /* at a gate */
  WORKER_DONE,
};

struct worker {
  pthread_t thread;
  void (*fn) (void *opaque);
  void *opaque;
  enum worker_state state;
  bool park;
  const void *condition; /* waited for */
  struct worker *next;

  /* Under a schedule. */
  pthread_cond_t turn; /* a thread: it may go on */
  struct fiber *fiber; /* or no thread */
  int64_t until_ns;    /* it waits until then; 0: for ever */
  bool is_late;        /* it has waited until then */
};

void worker_start (struct worker *worker, void (*fn) (void *opaque),
                   void *opaque);
void worker_join (struct worker *worker);
enum worker_state worker_state (struct worker *worker);

/* Is this run by valgrind, or built with a sanitizer? */
bool workers_are_watched (void);

/* Wait until no worker is running. */
void workers_settle (void);

/* When woken from a condition, WORKER is kept there; PARK false lets it
 * go on.
 */
void worker_park (struct worker *worker, bool park);

/* A gate holds the first worker that comes to it, once. */
struct gate {
  bool taken; /* somebody is or was held */
  bool open;
};

void gate_pass (struct gate *gate);
void gate_open (struct gate *gate);

/* Run FN of each of the N workers under the schedule that RNG decides,
 * to their ends.  All workers waiting is a failure of the test.
 */
void workers_run_scheduled (struct worker *workers, unsigned n,
                            struct rng *rng);

/* Under a schedule, let another worker go on, perhaps. */
void worker_yield (void);

/* Does the caller run under a schedule?  What follows is for those. */
bool worker_is_scheduled (void);

/* Another worker, to be released by worker_end, which waits for it. */
struct worker *worker_add (void (*fn) (void *opaque), void *opaque);
void worker_end (struct worker *worker);

/* The schedule's clock, which begins at an hour. */
int64_t workers_now_ns (void);

/* Wait for the condition, and who wakes its waiters, until the clock shows
 * NS.  Returns false when it does.  The mutex is as for pthread_cond_wait.
 */
bool worker_wait_until (pthread_cond_t *cond, pthread_mutex_t *mutex,
                        int64_t ns);

/* Do nothing for NS. */
void worker_sleep (int64_t ns);

/* How many turns there were, under all schedules. */
uint64_t workers_nr_turns (void);

/* For the simulated files' own mutex: no step of the schedule. */
int __real_pthread_mutex_lock (pthread_mutex_t *mutex);

#endif /* ADDCOW_WORKERS_H */

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <pthread.h>

#include "workers.h"

int __real_pthread_cond_wait (pthread_cond_t *cond, pthread_mutex_t *mutex);
int __real_pthread_cond_broadcast (pthread_cond_t *cond);
int __real_pthread_cond_signal (pthread_cond_t *cond);

int __wrap_pthread_cond_wait (pthread_cond_t *cond, pthread_mutex_t *mutex);
int __wrap_pthread_cond_broadcast (pthread_cond_t *cond);
int __wrap_pthread_cond_signal (pthread_cond_t *cond);
int __wrap_pthread_mutex_lock (pthread_mutex_t *mutex);

/* Protects all that follows and the workers.  Nothing else is locked by
 * who holds it.
 */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct worker *workers;

static struct rng *schedule;   /* NULL: they run as they like */
static struct worker *current; /* whose turn it is */

static __thread struct worker *self;

static void
acquire (void)
{
  __real_pthread_mutex_lock (&lock);
}

static void
release (void)
{
  pthread_mutex_unlock (&lock);
}

static void
set_state_locked (struct worker *worker, enum worker_state state)
{
  worker->state = state;
  __real_pthread_cond_broadcast (&changed);
}

/*--- The schedule. ----------------------------------------------------*/

/* Give the turn to one of those that can run. */
static void
pass_turn_locked (void)
{
  struct worker *worker, *chosen = NULL;
  unsigned n = 0;
  bool all_done = true;

  for (worker = workers; worker; worker = worker->next) {
    if (worker->state != WORKER_DONE)
      all_done = false;
    if (worker->state == WORKER_RUNNING && rng_one_in (schedule, ++n))
      chosen = worker;
  }
  if (chosen == NULL && !all_done) {
    fprintf (stderr, "deadlock: every worker waits\n");
    check_end ();
  }
  current = chosen;
  if (chosen)
    __real_pthread_cond_broadcast (&chosen->turn);
}

static void
await_turn_locked (void)
{
  while (schedule && current != self)
    __real_pthread_cond_wait (&self->turn, &lock);
}

void
worker_yield (void)
{
  if (self == NULL)
    return;
  acquire ();
  if (schedule && !rng_one_in (schedule, 3)) {
    pass_turn_locked ();
    await_turn_locked ();
  }
  release ();
}

void
workers_run_scheduled (struct worker *ws, unsigned n, struct rng *rng)
{
  unsigned i;

  acquire ();
  schedule = rng;
  current = NULL;
  release ();
  for (i = 0; i < n; i++)
    worker_start (&ws[i], ws[i].fn, ws[i].opaque);
  acquire ();
  pass_turn_locked ();
  release ();
  for (i = 0; i < n; i++)
    worker_join (&ws[i]);
  acquire ();
  schedule = NULL;
  release ();
}

/*--- Workers. ---------------------------------------------------------*/

static void *
worker_main (void *opaque)
{
  self = opaque;
  acquire ();
  await_turn_locked ();
  release ();

  self->fn (self->opaque);

  acquire ();
  set_state_locked (self, WORKER_DONE);
  if (schedule)
    pass_turn_locked ();
  release ();
  return NULL;
}

void
worker_start (struct worker *worker, void (*fn) (void *opaque), void *opaque)
{
  *worker = (struct worker){ .fn = fn, .opaque = opaque };
  pthread_cond_init (&worker->turn, NULL);
  acquire ();
  worker->next = workers;
  workers = worker;
  release ();
  CHECK_EQ (pthread_create (&worker->thread, NULL, worker_main, worker), 0);
}

void
worker_join (struct worker *worker)
{
  struct worker **p;

  pthread_join (worker->thread, NULL);
  acquire ();
  for (p = &workers; *p != worker; p = &(*p)->next)
    ;
  *p = worker->next;
  release ();
  pthread_cond_destroy (&worker->turn);
}

enum worker_state
worker_state (struct worker *worker)
{
  enum worker_state state;

  acquire ();
  state = worker->state;
  release ();
  return state;
}

static bool
any_running_locked (void)
{
  struct worker *worker;

  for (worker = workers; worker; worker = worker->next)
    if (worker->state == WORKER_RUNNING)
      return true;
  return false;
}

void
workers_settle (void)
{
  acquire ();
  while (any_running_locked ())
    __real_pthread_cond_wait (&changed, &lock);
  release ();
}

void
worker_park (struct worker *worker, bool park)
{
  acquire ();
  worker->park = park;
  if (!park && worker->state == WORKER_PARKED)
    set_state_locked (worker, WORKER_RUNNING);
  release ();
}

/*--- Gates. -----------------------------------------------------------*/

void
gate_pass (struct gate *gate)
{
  acquire ();
  if (!gate->taken) {
    CHECK (self != NULL); /* or who would open it? */
    gate->taken = true;
    self->condition = gate;
    set_state_locked (self, WORKER_HELD);
    while (!gate->open)
      __real_pthread_cond_wait (&changed, &lock);
  }
  release ();
}

void
gate_open (struct gate *gate)
{
  struct worker *worker;

  acquire ();
  gate->open = true;
  /* Nobody but who was held here is. */
  for (worker = workers; worker; worker = worker->next)
    if (worker->state == WORKER_HELD && worker->condition == gate)
      worker->state = WORKER_RUNNING;
  __real_pthread_cond_broadcast (&changed);
  release ();
}

/*--- In place of the C library's. -------------------------------------*/

int
__wrap_pthread_cond_wait (pthread_cond_t *cond, pthread_mutex_t *mutex)
{
  if (self == NULL)
    return __real_pthread_cond_wait (cond, mutex);

  acquire ();
  self->condition = cond;
  set_state_locked (self, WORKER_WAITING);
  pthread_mutex_unlock (mutex);
  if (schedule) {
    pass_turn_locked ();
    await_turn_locked ();
  }
  else
    while (self->state != WORKER_RUNNING)
      __real_pthread_cond_wait (&changed, &lock);
  release ();
  return pthread_mutex_lock (mutex);
}

int
__wrap_pthread_cond_broadcast (pthread_cond_t *cond)
{
  struct worker *worker;

  acquire ();
  for (worker = workers; worker; worker = worker->next)
    if (worker->state == WORKER_WAITING && worker->condition == cond)
      set_state_locked (worker, worker->park ? WORKER_PARKED : WORKER_RUNNING);
  release ();
  return __real_pthread_cond_broadcast (cond);
}

/* One of those who wait is woken and no more, so that who signals where
 * all should know is found out.
 */
int
__wrap_pthread_cond_signal (pthread_cond_t *cond)
{
  struct worker *worker, *chosen = NULL;
  unsigned n = 0;

  acquire ();
  for (worker = workers; worker; worker = worker->next)
    if (worker->state == WORKER_WAITING && worker->condition == cond &&
        (chosen == NULL || (schedule && rng_one_in (schedule, ++n + 1))))
      chosen = worker;
  if (chosen)
    set_state_locked (chosen, chosen->park ? WORKER_PARKED : WORKER_RUNNING);
  release ();
  return chosen ? 0 : __real_pthread_cond_signal (cond);
}

int
__wrap_pthread_mutex_lock (pthread_mutex_t *mutex)
{
  bool scheduled;
  int r;

  if (self == NULL)
    return __real_pthread_mutex_lock (mutex);
  acquire ();
  scheduled = schedule != NULL;
  release ();
  if (!scheduled)
    return __real_pthread_mutex_lock (mutex);
  do {
    worker_yield ();
    r = pthread_mutex_trylock (mutex);
  } while (r == EBUSY);
  return r;
}

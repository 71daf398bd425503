/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <ucontext.h>

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

static bool use_fibers; /* as long as there is a schedule */

/* Of fibers only one runs, and none needs a lock. */
static void
acquire (void)
{
  if (!use_fibers)
    __real_pthread_mutex_lock (&lock);
}

static void
release (void)
{
  if (!use_fibers)
    pthread_mutex_unlock (&lock);
}

static void
set_state_locked (struct worker *worker, enum worker_state state)
{
  worker->state = state;
  if (!use_fibers)
    __real_pthread_cond_broadcast (&changed);
}

/*--- Stacks that are no threads. --------------------------------------*/

#define STACK_BYTES (128 * 1024)
#define GUARD_BYTES (64 * 1024) /* whole pages, of any size */

struct fiber {
  ucontext_t context;
  struct fiber *next; /* of those that nobody has */
};

static ucontext_t main_context;
static struct fiber *free_fibers;

/* What looks at every access to memory had better know of the stacks. */
bool
workers_are_watched (void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
  return true;
#endif
#endif
  const char *preload = getenv ("LD_PRELOAD");

  return preload && strstr (preload, "/vgpreload_");
}

static void *
stack_new (void)
{
  char *stack = mmap (NULL, GUARD_BYTES + STACK_BYTES, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  CHECK (stack != MAP_FAILED);
  stack += GUARD_BYTES;
  CHECK_EQ (mprotect (stack, STACK_BYTES, PROT_READ | PROT_WRITE), 0);
  return stack;
}

static struct fiber *
fiber_new (void)
{
  struct fiber *fiber = free_fibers;

  if (fiber) {
    free_fibers = fiber->next;
    return fiber;
  }
  fiber = calloc (1, sizeof *fiber);
  CHECK (fiber != NULL);
  fiber->context.uc_stack.ss_sp = stack_new ();
  fiber->context.uc_stack.ss_size = STACK_BYTES;
  return fiber;
}

static void
fiber_start (struct fiber *fiber, void (*fn) (void))
{
  const stack_t stack = fiber->context.uc_stack;

  CHECK_EQ (getcontext (&fiber->context), 0);
  fiber->context.uc_stack = stack;
  makecontext (&fiber->context, fn, 0);
}

static void
fiber_free (struct fiber *fiber)
{
  fiber->next = free_fibers;
  free_fibers = fiber;
}

/* Go on as WORKER; NULL is who runs the schedule. */
static void
fiber_switch (struct worker *worker)
{
  struct worker *me = self;

  if (worker == me)
    return;
  self = worker;
  CHECK_EQ (swapcontext (me ? &me->fiber->context : &main_context,
                         worker ? &worker->fiber->context : &main_context),
            0);
}

/*--- The schedule. ----------------------------------------------------*/

#define SECOND_NS INT64_C (1000000000)

static int64_t schedule_ns; /* its clock */
static uint64_t nr_turns;

static void
wake_locked (struct worker *worker, bool is_late)
{
  worker->until_ns = 0;
  worker->is_late = is_late;
  set_state_locked (worker, WORKER_RUNNING);
}

/* Wake who has waited long enough.  Returns how many can run. */
static unsigned
count_running_locked (void)
{
  struct worker *worker;
  unsigned n = 0;

  for (worker = workers; worker; worker = worker->next) {
    if (worker->until_ns && worker->until_ns <= schedule_ns)
      wake_locked (worker, true);
    n += worker->state == WORKER_RUNNING;
  }
  return n;
}

/* Let time go on until somebody has waited long enough.  Returns false if
 * all are done.
 */
static bool
pass_time_locked (void)
{
  const struct worker *worker;
  int64_t ns = INT64_MAX;
  bool all_done = true;

  for (worker = workers; worker; worker = worker->next) {
    if (worker->state != WORKER_DONE)
      all_done = false;
    if (worker->until_ns && worker->until_ns < ns)
      ns = worker->until_ns;
  }
  if (all_done)
    return false;
  if (ns == INT64_MAX) {
    fprintf (stderr, "deadlock: every worker waits\n");
    check_end ();
  }
  schedule_ns = ns;
  return true;
}

/* One of those that can run; NULL: all are done. */
static struct worker *
choose_locked (void)
{
  const uint64_t r = rng_next (schedule);
  struct worker *worker;
  unsigned n;

  nr_turns++;
  schedule_ns += 50 + (r >> 32) % 256;
  while ((n = count_running_locked ()) == 0)
    if (!pass_time_locked ())
      return NULL;
  n = r % n;
  for (worker = workers;; worker = worker->next)
    if (worker->state == WORKER_RUNNING && n-- == 0)
      return worker;
}

/* Give the turn to one of those that can run. */
static void
pass_turn_locked (void)
{
  current = choose_locked ();
  if (current && !use_fibers)
    __real_pthread_cond_broadcast (&current->turn);
}

/* Wait for the turn.  As a fiber that is to let go on whose it is. */
static void
await_turn_locked (void)
{
  if (use_fibers)
    fiber_switch (current);
  else
    while (schedule && current != self)
      __real_pthread_cond_wait (&self->turn, &lock);
}

/* Wait, for CONDITION, until the clock shows NS or, if that is 0, for ever.
 * Returns false when it does.
 */
static bool
wait_scheduled_locked (const void *condition, int64_t ns)
{
  self->condition = condition;
  self->until_ns = ns;
  self->is_late = false;
  set_state_locked (self, WORKER_WAITING);
  pass_turn_locked ();
  await_turn_locked ();
  self->condition = NULL;
  return !self->is_late;
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

bool
worker_is_scheduled (void)
{
  bool yes;

  if (self == NULL)
    return false;
  acquire ();
  yes = schedule != NULL;
  release ();
  return yes;
}

int64_t
workers_now_ns (void)
{
  int64_t ns;

  acquire ();
  ns = schedule_ns;
  release ();
  return ns;
}

uint64_t
workers_nr_turns (void)
{
  uint64_t n;

  acquire ();
  n = nr_turns;
  release ();
  return n;
}

bool
worker_wait_until (pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t ns)
{
  bool woken = false;

  acquire ();
  pthread_mutex_unlock (mutex);
  if (ns > schedule_ns)
    woken = wait_scheduled_locked (cond, ns);
  release ();
  pthread_mutex_lock (mutex);
  return woken;
}

void
worker_sleep (int64_t ns)
{
  acquire ();
  wait_scheduled_locked (NULL, schedule_ns + ns);
  release ();
}

struct worker *
worker_add (void (*fn) (void *opaque), void *opaque)
{
  struct worker *worker = malloc (sizeof *worker);
  struct worker *me = self;

  CHECK (worker != NULL);
  self = NULL; /* to make a thread is no worker's business */
  worker_start (worker, fn, opaque);
  self = me;
  return worker;
}

void
worker_end (struct worker *worker)
{
  struct worker *me = self;

  acquire ();
  while (worker->state != WORKER_DONE)
    wait_scheduled_locked (worker, 0);
  release ();
  self = NULL; /* nor is this, what it waits for has happened */
  worker_join (worker);
  self = me;
  free (worker);
}

void
workers_run_scheduled (struct worker *ws, unsigned n, struct rng *rng)
{
  unsigned i;

  acquire ();
  use_fibers = !workers_are_watched ();
  schedule = rng;
  schedule_ns = 3600 * SECOND_NS;
  current = NULL;
  release ();
  for (i = 0; i < n; i++)
    worker_start (&ws[i], ws[i].fn, ws[i].opaque);
  acquire ();
  pass_turn_locked ();
  if (use_fibers)
    await_turn_locked (); /* until all are done */
  release ();
  for (i = 0; i < n; i++)
    worker_join (&ws[i]);
  acquire ();
  schedule = NULL;
  use_fibers = false;
  release ();
}

/*--- Workers. ---------------------------------------------------------*/

/* The end of the caller, who is a worker. */
static void
done_locked (void)
{
  struct worker *worker;

  set_state_locked (self, WORKER_DONE);
  for (worker = workers; worker; worker = worker->next)
    if (worker->state == WORKER_WAITING && worker->condition == self)
      wake_locked (worker, false);
  if (schedule)
    pass_turn_locked ();
}

static void *
worker_main (void *opaque)
{
  self = opaque;
  acquire ();
  await_turn_locked ();
  release ();

  self->fn (self->opaque);

  acquire ();
  done_locked ();
  release ();
  return NULL;
}

static void
fiber_main (void)
{
  self->fn (self->opaque);
  done_locked ();
  fiber_switch (current);
  CHECK (!"come back from the end");
}

void
worker_start (struct worker *worker, void (*fn) (void *opaque), void *opaque)
{
  *worker = (struct worker){ .fn = fn, .opaque = opaque };
  pthread_cond_init (&worker->turn, NULL);
  if (use_fibers) {
    worker->fiber = fiber_new ();
    fiber_start (worker->fiber, fiber_main);
  }
  acquire ();
  worker->next = workers;
  workers = worker;
  release ();
  if (!use_fibers)
    CHECK_EQ (pthread_create (&worker->thread, NULL, worker_main, worker), 0);
}

void
worker_join (struct worker *worker)
{
  struct worker **p;

  if (worker->fiber)
    fiber_free (worker->fiber);
  else
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
  pthread_mutex_unlock (mutex);
  if (schedule)
    wait_scheduled_locked (cond, 0);
  else {
    self->condition = cond;
    set_state_locked (self, WORKER_WAITING);
    while (self->state != WORKER_RUNNING)
      __real_pthread_cond_wait (&changed, &lock);
  }
  release ();
  return pthread_mutex_lock (mutex);
}

static void
wake_or_park_locked (struct worker *worker)
{
  if (worker->park)
    set_state_locked (worker, WORKER_PARKED);
  else
    wake_locked (worker, false);
}

int
__wrap_pthread_cond_broadcast (pthread_cond_t *cond)
{
  struct worker *worker;

  acquire ();
  for (worker = workers; worker; worker = worker->next)
    if (worker->state == WORKER_WAITING && worker->condition == cond)
      wake_or_park_locked (worker);
  release ();
  return use_fibers ? 0 : __real_pthread_cond_broadcast (cond);
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
    wake_or_park_locked (chosen);
  release ();
  return chosen || use_fibers ? 0 : __real_pthread_cond_signal (cond);
}

int
__wrap_pthread_mutex_lock (pthread_mutex_t *mutex)
{
  int r;

  if (!worker_is_scheduled ())
    return __real_pthread_mutex_lock (mutex);
  do {
    worker_yield ();
    r = pthread_mutex_trylock (mutex);
  } while (r == EBUSY);
  return r;
}

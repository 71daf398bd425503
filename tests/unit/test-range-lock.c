/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Range locks: one at a time, in order of arrival, nobody forgotten.
 */

#include <config.h>

#include <stdatomic.h>

#include "common.h"
#include "range-lock.h"
#include "workers.h"

static struct range_lock rl;

/* A worker that takes a range, and holds it until its gate opens. */
struct holder {
  struct worker worker;
  struct range range;
  uint64_t begin, count;
  struct gate gate;
};

static void
hold (void *opaque)
{
  struct holder *h = opaque;

  range_acquire (&rl, &h->range, h->begin, h->count);
  gate_pass (&h->gate);
  range_release (&rl, &h->range);
}

static void
start (struct holder *h, uint64_t begin, uint64_t count)
{
  h->begin = begin;
  h->count = count;
  h->gate = (struct gate){ .taken = false };
  worker_start (&h->worker, hold, h);
  workers_settle ();
}

static void
finish (struct holder *h)
{
  gate_open (&h->gate);
  worker_join (&h->worker);
  workers_settle ();
}

static bool
has_it (struct holder *h)
{
  return worker_state (&h->worker) == WORKER_HELD;
}

static bool
waits (struct holder *h)
{
  return worker_state (&h->worker) == WORKER_WAITING;
}

static void
test_overlap (void)
{
  static const struct {
    uint64_t begin, count;
    bool overlaps; /* [100, 110) */
  } cases[] = {
    { 100, 10, true }, { 99, 1, false },     { 99, 2, true },
    { 110, 1, false }, { 109, 1, true },     { 109, 5, true },
    { 0, 100, false }, { 0, 101, true },     { 105, 1, true },
    { 0, 1000, true }, { 110, 1000, false }, { UINT64_C (1) << 62, 1, false },
  };
  struct holder a, b;
  size_t i;

  for (i = 0; i < ARRAY_SIZE (cases); i++) {
    start (&a, 100, 10);
    CHECK (has_it (&a));
    start (&b, cases[i].begin, cases[i].count);
    CHECK_EQ (waits (&b), cases[i].overlaps);
    CHECK_EQ (has_it (&b), !cases[i].overlaps);
    if (i % 2 && !cases[i].overlaps) {
      finish (&b);
      finish (&a);
    }
    else {
      finish (&a);
      CHECK (has_it (&b));
      finish (&b);
    }
  }
}

/* Who came first is first, even where a later one could go at once: so a
 * large range is not kept waiting by small ones that keep coming.
 */
static void
test_order (void)
{
  struct holder a, large, small[4], other;
  int i;

  start (&a, 0, 10);
  start (&large, 0, 100);
  CHECK (waits (&large));
  for (i = 0; i < 4; i++) {
    start (&small[i], 50 + i, 1);
    CHECK (waits (&small[i]));
  }
  start (&other, 100, 1);
  CHECK (has_it (&other));

  finish (&a);
  CHECK (has_it (&large));
  for (i = 0; i < 4; i++)
    CHECK (waits (&small[i]));
  finish (&large);
  for (i = 0; i < 4; i++)
    CHECK (has_it (&small[i]));
  for (i = 0; i < 4; i++)
    finish (&small[i]);
  finish (&other);
}

/* Many that wait for one sector get it in the order they came. */
static void
test_queue (void)
{
  enum { NR = 8 };
  struct holder h[NR];
  int i, j;

  for (i = 0; i < NR; i++)
    start (&h[i], 7, 1 + i % 3);
  for (i = 0; i < NR; i++) {
    CHECK (has_it (&h[i]));
    for (j = i + 1; j < NR; j++)
      CHECK (waits (&h[j]));
    finish (&h[i]);
  }
}

/* One that waits for two waits until both are gone. */
static void
test_waits_for_all (void)
{
  struct holder a, b, c;

  start (&a, 0, 10);
  start (&b, 10, 10);
  start (&c, 5, 10);
  CHECK (waits (&c));
  finish (&b);
  CHECK (waits (&c));
  finish (&a);
  CHECK (has_it (&c));
  finish (&c);
}

/* Who is not to wait gets what nobody holds or waits for, and leaves
 * nothing behind otherwise.
 */
static void
test_try (void)
{
  struct holder a, b, c;
  struct range range, other;

  CHECK (range_try_acquire (&rl, &range, 10, 10));
  CHECK (range_try_acquire (&rl, &other, 20, 1));
  CHECK (!range_try_acquire (&rl, &(struct range){ .begin = 0 }, 19, 1));
  CHECK (!range_try_acquire (&rl, &(struct range){ .begin = 0 }, 0, 11));
  CHECK (!range_try_acquire (&rl, &(struct range){ .begin = 0 }, 15, 10));
  CHECK (rl.first == &range && rl.last == &other);
  CHECK (range.next == &other && other.prev == &range && other.next == NULL);

  /* It is as good as any other. */
  start (&a, 15, 1);
  CHECK (waits (&a));
  start (&b, 20, 1);
  CHECK (waits (&b));
  range_release (&rl, &range);
  workers_settle ();
  CHECK (has_it (&a));
  CHECK (waits (&b));

  /* Who waits was there before. */
  start (&c, 0, 16);
  CHECK (waits (&c));
  CHECK (!range_try_acquire (&rl, &range, 0, 1));
  CHECK (range_try_acquire (&rl, &range, 16, 4));
  range_release (&rl, &range);
  finish (&a);
  CHECK (has_it (&c));
  finish (&c);
  range_release (&rl, &other);
  workers_settle ();
  CHECK (has_it (&b));
  finish (&b);
  CHECK (rl.first == NULL && rl.last == NULL);
  CHECK (range_try_acquire (&rl, &range, 0, 100));
  range_release (&rl, &range);
}

/*--- Many threads that nobody leads. ----------------------------------*/

#define NR_SECTORS 16
#define NR_THREADS 8
#define NR_ROUNDS 3000

static _Atomic unsigned owner[NR_SECTORS];

static void *
hammer (void *opaque)
{
  const unsigned me = (uintptr_t) opaque;
  struct rng rng = { me };
  unsigned i, j;

  for (i = 0; i < NR_ROUNDS; i++) {
    const unsigned begin = rng_below (&rng, NR_SECTORS);
    const unsigned count = rng_range (&rng, 1, NR_SECTORS - begin);
    struct range range;

    if (rng_one_in (&rng, 2))
      range_acquire (&rl, &range, begin, count);
    else if (!range_try_acquire (&rl, &range, begin, count))
      continue;
    for (j = begin; j < begin + count; j++)
      CHECK_EQ (atomic_exchange (&owner[j], me), 0);
    for (j = begin; j < begin + count; j++)
      CHECK_EQ (atomic_exchange (&owner[j], 0), me);
    range_release (&rl, &range);
  }
  return NULL;
}

static void
test_hammer (void)
{
  pthread_t threads[NR_THREADS];
  uintptr_t i;

  for (i = 0; i < NR_THREADS; i++)
    CHECK_EQ (pthread_create (&threads[i], NULL, hammer, (void *) (i + 1)), 0);
  for (i = 0; i < NR_THREADS; i++)
    pthread_join (threads[i], NULL);
  CHECK (rl.first == NULL && rl.last == NULL);
  CHECK_EQ (rl.nr_waiting, 0);
}

int
main (void)
{
  check_watchdog (120);
  range_lock_init (&rl);
  test_overlap ();
  test_order ();
  test_queue ();
  test_waits_for_all ();
  test_try ();
  test_hammer ();
  range_lock_destroy (&rl);
  return 0;
}

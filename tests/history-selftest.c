/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Is what history_check says true?  Histories of one byte, made by hand and
 * by lot.
 */

#include <config.h>

#include "check.h"
#include "common.h"
#include "history.h"

#define AT 1000 /* where history_base_id is 0 */
#define MAX_OPS 8

static uint8_t bytes[MAX_OPS];
static struct history_op ops[MAX_OPS];
static size_t nr_ops;

static void
add (enum history_kind kind, unsigned id, uint64_t begin, uint64_t end)
{
  struct history_op *op = &ops[nr_ops];

  CHECK (nr_ops < MAX_OPS);
  bytes[nr_ops] = history_byte (id, AT);
  *op = (struct history_op){
    .kind = kind,
    .id = id,
    .offset = AT,
    .count = 1,
    .begin = begin,
    .end = end,
    .data = kind == HISTORY_READ ? &bytes[nr_ops] : NULL,
  };
  nr_ops++;
}

static void
rd (unsigned id, uint64_t begin, uint64_t end)
{
  add (HISTORY_READ, id, begin, end);
}

static void
wr (unsigned id, uint64_t begin, uint64_t end)
{
  add (HISTORY_WRITE, id, begin, end);
}

static void
clear (uint64_t begin, uint64_t end)
{
  add (HISTORY_CLEAR, HISTORY_ZERO, begin, end);
}

static bool
good (void)
{
  struct history h = {
    .ops = ops,
    .nr_ops = nr_ops,
    .begin = AT,
    .end = AT + 1,
  };
  struct history_fault fault;
  const bool r = history_check (&h, &fault);

  nr_ops = 0;
  return r;
}

static void
accept (void)
{
  /* Nothing, the base, what was written, in turn. */
  CHECK (good ());
  rd (0, 1, 2), wr (1, 3, 4), rd (1, 5, 6), wr (2, 7, 8), rd (2, 9, 10);
  CHECK (good ());
  /* A read during a write sees the old or the new. */
  wr (1, 1, 10), rd (0, 2, 3), rd (1, 4, 5), rd (1, 11, 12);
  CHECK (good ());
  /* Two writes at a time, in either order. */
  wr (1, 1, 10), wr (2, 2, 9), rd (1, 11, 12);
  CHECK (good ());
  wr (1, 1, 10), wr (2, 2, 9), rd (2, 11, 12);
  CHECK (good ());
  /* The one that ended first was the last one. */
  wr (1, 1, 20), wr (2, 2, 5), rd (1, 3, 4), rd (2, 6, 7), rd (2, 21, 22);
  CHECK (good ());
  /* Two clears are two. */
  clear (1, 2), rd (HISTORY_ZERO, 3, 4), wr (1, 5, 6), rd (1, 7, 8);
  clear (9, 20), rd (1, 10, 11), rd (HISTORY_ZERO, 12, 13);
  CHECK (good ());
  /* No answer came: it happens much later, or never. */
  wr (1, 1, HISTORY_NO_END), wr (2, 2, 3), rd (2, 4, 5), rd (1, 6, 7);
  CHECK (good ());
  wr (1, 1, HISTORY_NO_END), wr (2, 2, 3), rd (2, 4, 5);
  CHECK (good ());
}

static void
refuse (void)
{
  /* What nobody wrote. */
  rd (7, 1, 2);
  CHECK (!good ());
  rd (HISTORY_ZERO, 1, 2);
  CHECK (!good ());
  /* What was not written yet. */
  rd (1, 1, 2), wr (1, 3, 4);
  CHECK (!good ());
  /* A write that was acknowledged is lost: to the base, to an older one. */
  wr (1, 1, 2), rd (0, 3, 4);
  CHECK (!good ());
  wr (1, 1, 2), wr (2, 3, 4), rd (1, 5, 6);
  CHECK (!good ());
  clear (1, 2), rd (0, 3, 4);
  CHECK (!good ());
  wr (1, 1, 2), clear (3, 4), rd (1, 5, 6);
  CHECK (!good ());
  /* By one that was under way, and was seen already. */
  wr (1, 1, 20), rd (1, 2, 3), wr (2, 4, 5), rd (1, 6, 7);
  CHECK (!good ());
  /* New, then old. */
  wr (1, 1, 20), rd (1, 2, 3), rd (0, 4, 5);
  CHECK (!good ());
  wr (1, 1, 20), wr (2, 2, 19), rd (1, 3, 4), rd (2, 5, 6), rd (1, 7, 8);
  CHECK (!good ());
  /* Two readers that do not agree: each alone would do. */
  wr (1, 1, 20), wr (2, 2, 19), rd (1, 3, 6), rd (2, 7, 8), rd (1, 9, 10);
  CHECK (!good ());
  /* It comes back, after one that began when it was over. */
  wr (1, 1, 2), wr (2, 3, 10), rd (2, 4, 5), rd (1, 6, 7);
  CHECK (!good ());
  /* One clear does not do it twice. */
  clear (1, 20), rd (HISTORY_ZERO, 2, 3), wr (1, 4, 5);
  rd (HISTORY_ZERO, 6, 7);
  CHECK (!good ());
  /* Nor one that no answer came of. */
  wr (1, 1, HISTORY_NO_END), rd (1, 2, 3), wr (2, 4, 5), rd (2, 6, 7);
  rd (1, 8, 9);
  CHECK (!good ());
}

/*--- All orders. ------------------------------------------------------*/

/* Can those that are not in USED follow, when the byte is VALUE? */
static bool
can_follow (unsigned used, unsigned value)
{
  uint64_t first_end = HISTORY_NO_END;
  size_t i;
  bool over = true;

  for (i = 0; i < nr_ops; i++)
    if (!(used >> i & 1)) {
      over &= ops[i].end == HISTORY_NO_END;
      if (ops[i].end < first_end)
        first_end = ops[i].end;
    }
  if (over) /* what is left need not happen */
    return true;
  for (i = 0; i < nr_ops; i++) {
    if (used >> i & 1 || ops[i].begin > first_end)
      continue;
    if (ops[i].kind != HISTORY_READ) {
      if (can_follow (used | 1u << i, ops[i].id))
        return true;
    }
    else if (ops[i].id == value && can_follow (used | 1u << i, value))
      return true;
  }
  return false;
}

/* Some requests at moments of a clock, each once. */
static void
draw (struct rng *rng)
{
  const size_t n = rng_range (rng, 2, MAX_OPS);
  uint64_t moments[2 * MAX_OPS], swap;
  size_t i, j;

  for (i = 0; i < 2 * n; i++) {
    moments[i] = i + 1;
    j = rng_below (rng, i + 1);
    swap = moments[i], moments[i] = moments[j], moments[j] = swap;
  }
  for (i = 0; i < n; i++) {
    const uint64_t a = moments[2 * i], b = moments[2 * i + 1];
    const uint64_t begin = MIN (a, b);
    const uint64_t end = MAX (a, b);

    if (rng_below (rng, 2))
      rd (rng_one_in (rng, 4) ? HISTORY_ZERO : rng_below (rng, n), begin, end);
    else if (rng_one_in (rng, 3))
      clear (begin, rng_one_in (rng, 8) ? HISTORY_NO_END : end);
    else
      wr (i + 1, begin, rng_one_in (rng, 8) ? HISTORY_NO_END : end);
  }
}

static void
compare (uint64_t seed)
{
  struct rng rng = { .state = seed };
  unsigned i, nr_good = 0;
  const unsigned n = 100000;

  for (i = 0; i < n; i++) {
    draw (&rng);
    const bool expected = can_follow (0, 0);

    nr_good += expected;
    CHECK_EQ (good (), expected);
  }
  /* Of both there were many. */
  CHECK (nr_good > n / 100 && nr_good < n - n / 100);
  printf ("%u histories by lot, seed %" PRIu64 ", %u of them can be\n", n, seed,
          nr_good);
}

static void
bytes_of_ids (void)
{
  uint64_t at;
  unsigned id;

  for (at = 0; at < 100; at++)
    for (id = 0; id <= HISTORY_ZERO; id++)
      CHECK_EQ (history_id (history_byte (id, at), at), id);
}

void
history_selftest (uint64_t seed)
{
  bytes_of_ids ();
  accept ();
  refuse ();
  compare (seed);
}

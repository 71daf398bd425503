/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is known of the extents of a backing file: the same as there, asked
 * for once, in a bounded memory, by any number of threads.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"
#include "common.h"
#include "extent-cache.h"
#include "workers.h"

#define PART ((uint64_t) EXTENT_CACHE_PART_BYTES)

/* A backing file whose every block has a type that a seed decides. */
struct far {
  uint64_t seed;
  uint64_t size_bytes;
  uint64_t block_bytes;
  unsigned max_told;     /* extents in one fetch */
  unsigned fails_one_in; /* fetches; 0: none */
  _Atomic uint64_t nr_fetches, nr_failed;
  _Atomic uint64_t nr_bytes_told;
};

static unsigned
type_at (const struct far *far, uint64_t offset)
{
  struct rng rng = { far->seed + offset / far->block_bytes / 3 };

  return rng_below (&rng, 4);
}

/* How far from OFFSET on the type is the same, within the part. */
static uint64_t
run_at (const struct far *far, uint64_t offset)
{
  const uint64_t end = MIN (far->size_bytes, (offset / PART + 1) * PART);
  const unsigned type = type_at (far, offset);
  uint64_t to = offset;

  while (to < end && type_at (far, to) == type)
    to = MIN (end, (to / far->block_bytes + 1) * far->block_bytes);
  return to - offset;
}

/* Tells of some blocks, the last of which may reach past what was asked
 * for, and in the end perhaps of an error.
 */
static int
fetch (void *opaque, uint64_t count, uint64_t offset, extent_fn *fn,
       void *fn_opaque)
{
  struct far *far = opaque;
  struct rng rng = { far->seed + ++far->nr_fetches };
  const unsigned n = rng_range (&rng, 1, far->max_told);
  const bool fails = far->fails_one_in && rng_one_in (&rng, far->fails_one_in);
  const uint64_t end = offset + count;
  unsigned i;

  CHECK (count > 0);
  CHECK (end <= far->size_bytes);
  for (i = 0; i < n && offset < end; i++) {
    const uint64_t to = (offset / far->block_bytes + 1) * far->block_bytes;
    int r = fn (fn_opaque, to - offset, type_at (far, offset));

    CHECK_EQ (r, 0);
    far->nr_bytes_told += MIN (to, end) - offset;
    offset = to;
  }
  if (fails)
    far->nr_failed++;
  return fails ? EIO : 0;
}

/* An error may be told; what is told otherwise is right. */
static bool
look (struct extent_cache *cache, const struct far *far, uint64_t offset)
{
  uint64_t count;
  unsigned type;
  int r = extent_cache_look (cache, offset, &type, &count);

  if (r) {
    CHECK_EQ (r, EIO);
    return false;
  }
  CHECK_EQ (type, type_at (far, offset));
  CHECK (count > 0);
  CHECK (count <= run_at (far, offset));
  return true;
}

struct looker {
  pthread_t thread;
  struct extent_cache *cache;
  const struct far *far;
  struct rng rng;
  unsigned nr_looks;
};

static void *
look_around (void *opaque)
{
  struct looker *l = opaque;
  unsigned i;

  for (i = 0; i < l->nr_looks; i++)
    look (l->cache, l->far, rng_below (&l->rng, l->far->size_bytes));
  return NULL;
}

#define NR_THREADS 4

static void
look_in_parallel (struct extent_cache *cache, const struct far *far,
                  unsigned nr_looks)
{
  struct looker lookers[NR_THREADS];
  unsigned i;

  for (i = 0; i < NR_THREADS; i++) {
    lookers[i] = (struct looker){
      .cache = cache,
      .far = far,
      .rng = { far->seed + i },
      .nr_looks = nr_looks,
    };
    CHECK_EQ (
        pthread_create (&lookers[i].thread, NULL, look_around, &lookers[i]), 0);
  }
  for (i = 0; i < NR_THREADS; i++)
    pthread_join (lookers[i].thread, NULL);
}

/* All of it, one extent after the other; returns how many. */
static unsigned
walk (struct extent_cache *cache, const struct far *far)
{
  uint64_t offset = 0;
  unsigned n = 0;

  while (offset < far->size_bytes) {
    uint64_t count;
    unsigned type;

    CHECK_EQ (extent_cache_look (cache, offset, &type, &count), 0);
    CHECK_EQ (type, type_at (far, offset));
    CHECK (count > 0);
    offset += count;
    n++;
  }
  CHECK_EQ (offset, far->size_bytes);
  return n;
}

static void
test_once (uint64_t seed)
{
  struct far far = {
    .seed = seed,
    .size_bytes = 3 * PART + 12345,
    .block_bytes = 1000003,
    .max_told = 5,
  };
  struct extent_cache *cache = extent_cache_new (far.size_bytes, SIZE_MAX,
                                                 fetch, &far);
  uint64_t offset, nr_fetches;
  unsigned n = 0;

  CHECK (cache != NULL);
  look_in_parallel (cache, &far, 500);
  /* Once all is known there are no more than there are, but for the ends
   * of parts.
   */
  walk (cache, &far);
  for (offset = 0; offset < far.size_bytes; offset += run_at (&far, offset))
    n++;
  CHECK_EQ (walk (cache, &far), n);
  /* Each byte was told once, and is not asked for again. */
  CHECK_EQ (far.nr_bytes_told, far.size_bytes);
  nr_fetches = far.nr_fetches;
  look_in_parallel (cache, &far, 100);
  CHECK_EQ (far.nr_fetches, nr_fetches);
  extent_cache_free (cache);
}

static void
test_errors (uint64_t seed)
{
  struct far far = {
    .seed = seed,
    .size_bytes = 2 * PART - 1,
    .block_bytes = 77777,
    .max_told = 3,
    .fails_one_in = 3,
  };
  struct extent_cache *cache = extent_cache_new (far.size_bytes, SIZE_MAX,
                                                 fetch, &far);

  CHECK (cache != NULL);
  look_in_parallel (cache, &far, 300);
  CHECK (far.nr_failed > 0);
  far.fails_one_in = 0;
  walk (cache, &far);
  extent_cache_free (cache);
}

/* With room for hardly anything: right, and asked for again and again. */
static void
test_eviction (uint64_t seed)
{
  struct far far = {
    .seed = seed,
    .size_bytes = UINT64_C (1) << 62,
    .block_bytes = 3 * 1024 * 1024 + 5,
    .max_told = 100,
  };
  struct extent_cache *cache = extent_cache_new (far.size_bytes, 4096, fetch,
                                                 &far);
  uint64_t nr_fetches;

  CHECK (cache != NULL);
  look_in_parallel (cache, &far, 2000);
  CHECK (extent_cache_bytes (cache) <= 4096 + 1024);
  look (cache, &far, 0);
  nr_fetches = far.nr_fetches;
  look (cache, &far, 0); /* what was looked at last is kept */
  CHECK_EQ (far.nr_fetches, nr_fetches);
  look_in_parallel (cache, &far, 100);
  nr_fetches = far.nr_fetches;
  look (cache, &far, 0);
  CHECK (far.nr_fetches > nr_fetches);
  extent_cache_free (cache);
}

/* What is looked at often is kept. */
static void
test_kept (uint64_t seed)
{
  struct far far = {
    .seed = seed,
    .size_bytes = 1000 * PART,
    .block_bytes = PART,
    .max_told = 1,
  };
  struct extent_cache *cache = extent_cache_new (far.size_bytes, 4096, fetch,
                                                 &far);
  uint64_t i;

  CHECK (cache != NULL);
  for (i = 0; i < 1000; i++) {
    look (cache, &far, i * PART);
    look (cache, &far, 0);
  }
  CHECK_EQ (far.nr_fetches, 1000);
  extent_cache_free (cache);
}

static int
tell_nothing (void *opaque UNUSED, uint64_t count UNUSED,
              uint64_t offset UNUSED, extent_fn *fn UNUSED,
              void *fn_opaque UNUSED)
{
  return 0;
}

/* Who tells of nothing is not asked for ever. */
static void
test_nothing (void)
{
  struct extent_cache *cache = extent_cache_new (PART, SIZE_MAX, tell_nothing,
                                                 NULL);
  uint64_t count;
  unsigned type;

  CHECK (cache != NULL);
  CHECK_EQ (extent_cache_look (cache, 5, &type, &count), EIO);
  extent_cache_free (cache);
  extent_cache_free (NULL);
}

/* All that is fetched fails, late: the first when it is let, the others when
 * all of them are there.
 */
struct late {
  struct extent_cache *cache;
  struct gate first;
  pthread_barrier_t others;
};

static int
fail_late (void *opaque, uint64_t count UNUSED, uint64_t offset UNUSED,
           extent_fn *fn UNUSED, void *fn_opaque UNUSED)
{
  struct late *late = opaque;

  if (!late->first.open)
    gate_pass (&late->first);
  else
    pthread_barrier_wait (&late->others);
  return EIO;
}

static void
look_in_vain (void *opaque)
{
  struct late *late = opaque;
  uint64_t count;
  unsigned type;

  CHECK_EQ (extent_cache_look (late->cache, 5, &type, &count), EIO);
}

/* Who waited for a fetch that failed does not wait for another's. */
static void
test_late (void)
{
  struct worker workers[NR_THREADS];
  struct late late = { .cache = NULL };
  unsigned i;

  late.cache = extent_cache_new (PART, SIZE_MAX, fail_late, &late);
  CHECK (late.cache != NULL);
  pthread_barrier_init (&late.others, NULL, NR_THREADS - 1);
  for (i = 0; i < NR_THREADS; i++) {
    worker_start (&workers[i], look_in_vain, &late);
    workers_settle ();
    CHECK_EQ (worker_state (&workers[i]), i ? WORKER_WAITING : WORKER_HELD);
  }
  gate_open (&late.first);
  for (i = 0; i < NR_THREADS; i++)
    worker_join (&workers[i]);
  pthread_barrier_destroy (&late.others);
  extent_cache_free (late.cache);
}

int
main (int argc, char *argv[])
{
  const struct test_options o = test_options (argc, argv);
  uint64_t i;

  check_watchdog (300);
  for (i = 0; i < MAX (o.iterations, 3); i++) {
    printf ("seed %" PRIu64 "\n", o.seed + i);
    test_once (o.seed + i);
    test_errors (o.seed + i);
    test_eviction (o.seed + i);
    test_kept (o.seed + i);
  }
  test_nothing ();
  test_late ();
  return EXIT_SUCCESS;
}

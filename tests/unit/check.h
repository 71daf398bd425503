/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What every unit test uses: checks that end the program, numbers that a
 * seed decides, options.
 */

#ifndef ADDCOW_CHECK_H
#define ADDCOW_CHECK_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static inline void
check_end (void)
{
  fflush (stdout);
  fflush (stderr);
  _exit (EXIT_FAILURE); /* other threads may be anywhere */
}

/* EXPR holds, or say where it did not and exit 1. */
#define CHECK(expr) \
  do { \
    if (!(expr)) { \
      fprintf (stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #expr); \
      check_end (); \
    } \
  } while (0)

/* Two integers are equal; says what they were. */
#define CHECK_EQ(a, b) \
  do { \
    const int64_t a_ = (int64_t) (a), b_ = (int64_t) (b); \
    if (a_ != b_) { \
      fprintf (stderr, "%s:%d: failed: %s == %s: %" PRIi64 ", %" PRIi64 "\n", \
               __FILE__, __LINE__, #a, #b, a_, b_); \
      check_end (); \
    } \
  } while (0)

#define CHECK_STR(a, b) \
  do { \
    const char *a_ = (a), *b_ = (b); \
    if (strcmp (a_, b_) != 0) { \
      fprintf (stderr, "%s:%d: failed: %s: \"%s\", not \"%s\"\n", __FILE__, \
               __LINE__, #a, a_, b_); \
      check_end (); \
    } \
  } while (0)

/* A test that hangs has failed. */
static inline void
check_watchdog (unsigned seconds)
{
  alarm (seconds);
}

/*--- Numbers (splitmix64). --------------------------------------------*/

struct rng {
  uint64_t state;
};

static inline uint64_t
rng_next (struct rng *rng)
{
  uint64_t z = rng->state += UINT64_C (0x9e3779b97f4a7c15);

  z = (z ^ z >> 30) * UINT64_C (0xbf58476d1ce4e5b9);
  z = (z ^ z >> 27) * UINT64_C (0x94d049bb133111eb);
  return z ^ z >> 31;
}

/* One of 0 ... N - 1. */
static inline uint64_t
rng_below (struct rng *rng, uint64_t n)
{
  return rng_next (rng) % n;
}

/* One of MIN ... MAX. */
static inline uint64_t
rng_range (struct rng *rng, uint64_t min, uint64_t max)
{
  return min + rng_below (rng, max - min + 1);
}

/* True once in N times. */
static inline bool
rng_one_in (struct rng *rng, unsigned n)
{
  return rng_below (rng, n) == 0;
}

/*--- Options of a test with a seed. -----------------------------------*/

struct test_options {
  uint64_t seed;       /* -s SEED, else ADDCOW_SEED, else of the clock */
  uint64_t iterations; /* -n COUNT, else 0 */
  bool threads;        /* -t */
};

static inline struct test_options
test_options (int argc, char *argv[])
{
  struct test_options o = { 0 };
  const char *seed = getenv ("ADDCOW_SEED");
  struct timespec now;
  int c;

  clock_gettime (CLOCK_REALTIME, &now);
  o.seed = (now.tv_sec * UINT64_C (1000000000) + now.tv_nsec) % 1000000000;
  if (seed && *seed)
    o.seed = strtoull (seed, NULL, 0);
  while ((c = getopt (argc, argv, "s:n:t")) != -1) {
    if (c == 's')
      o.seed = strtoull (optarg, NULL, 0);
    else if (c == 'n')
      o.iterations = strtoull (optarg, NULL, 0);
    else if (c == 't')
      o.threads = true;
    else {
      fprintf (stderr, "usage: %s [-s SEED] [-n ITERATIONS] [-t]\n", argv[0]);
      exit (EXIT_FAILURE);
    }
  }
  return o;
}

static inline double
seconds_now (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec / 1e9;
}

#endif /* ADDCOW_CHECK_H */

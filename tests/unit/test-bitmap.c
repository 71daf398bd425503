/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bits of a file without a map: against a model, at all edges, with
 * errors, and that holes are not read.
 */

#include <config.h>

#include <errno.h>

#include "bitmap.h"
#include "common.h"
#include "format.h"
#include "sim-image.h"

/* Some more than a chunk of the reader. */
#define NR_BITS (3 * 65536 * 8 + 77)

static struct sim_world world;
static struct sim_store store;
static struct sim_image metadata;
static bool model[NR_BITS];

static void
set_up (void)
{
  sim_world_init (&world);
  world.no_log = true;
  sim_store_init (&store, &world,
                  FORMAT_HEADER_BYTES + DIV_ROUND_UP (NR_BITS, 8));
  store.knows_holes = true;
  sim_image_init (&metadata, &store);
  memset (model, 0, sizeof model);
}

static void
tear_down (void)
{
  sim_store_clear (&store);
  sim_world_clear (&world);
}

/* What is told of: in order, without gaps between runs that touch. */
struct told {
  uint64_t next; /* what was told of, and the clear bit behind, end here */
  uint64_t nr_runs;
  uint64_t stop_at; /* the run at which to stop; 0: none */
};

static int
tell (void *opaque, uint64_t sector, uint64_t nr_sectors)
{
  struct told *t = opaque;
  uint64_t i;

  CHECK (sector >= t->next && nr_sectors > 0);
  for (i = t->next; i < sector; i++)
    CHECK (!model[i]);
  for (i = sector; i < sector + nr_sectors; i++)
    CHECK (model[i]);
  t->next = sector + nr_sectors;
  return ++t->nr_runs == t->stop_at ? EXTENT_STOP : 0;
}

/* Look at the range; a run ends with it. */
static void
look (uint64_t sector, uint64_t nr_sectors)
{
  const uint64_t end = sector + nr_sectors;
  struct told t = { .next = sector };
  uint64_t i, nr_set, nr_expected = 0, nr_runs = 0;

  CHECK_EQ (bitmap_each_run (&metadata.image, sector, nr_sectors, tell, &t), 0);
  CHECK (t.next <= MAX (end, sector));
  for (i = t.next; i < end; i++)
    CHECK (!model[i]);
  for (i = sector; i < end; i++) {
    nr_expected += model[i];
    nr_runs += model[i] && (i == sector || !model[i - 1]);
  }
  CHECK_EQ (t.nr_runs, nr_runs);
  CHECK_EQ (bitmap_count (&metadata.image, sector, nr_sectors, &nr_set), 0);
  CHECK_EQ (nr_set, nr_expected);
}

static void
change (uint64_t sector, uint64_t nr_sectors, bool set)
{
  uint64_t i;

  if (set)
    CHECK_EQ (bitmap_set (&metadata.image, sector, nr_sectors), 0);
  else
    CHECK_EQ (bitmap_clear (&metadata.image, sector, nr_sectors), 0);
  for (i = sector; i < sector + nr_sectors; i++)
    model[i] = set;
}

/* Every beginning and every end within some bytes. */
static void
test_edges (void)
{
  uint64_t first, n;
  bool set;

  set_up ();
  for (first = 0; first < 20; first++)
    for (n = 0; n < 40; n++)
      for (set = true;; set = false) {
        change (first, n, set);
        look (0, 80);
        look (first, n);
        if (!set)
          break;
      }
  /* Neither the header nor what is behind the range. */
  change (0, NR_BITS, true);
  for (n = 0; n < FORMAT_HEADER_BYTES; n++)
    CHECK_EQ (sim_store_byte (&store, n), 0);
  CHECK_EQ (sim_store_byte (&store, store.size_bytes - 1),
            0xff >> (8 - NR_BITS % 8));
  look (0, NR_BITS);
  tear_down ();
}

static void
test_random (struct rng *rng)
{
  int i;

  set_up ();
  for (i = 0; i < 60; i++) {
    const uint64_t sector = rng_below (rng, NR_BITS);
    const uint64_t most = NR_BITS - sector;
    uint64_t n = rng_below (rng, most + 1);

    if (rng_one_in (rng, 2))
      n = MIN (n, rng_below (rng, 300));
    change (sector, n, rng_one_in (rng, 2));
    if (i % 6 == 0)
      look (0, NR_BITS);
    look (sector, n);
  }
  tear_down ();
}

static void
test_stops (void)
{
  struct told t = { .stop_at = 2 };

  set_up ();
  change (5, 3, true);
  change (600000, 9, true);
  change (700000, 9, true);
  CHECK_EQ (bitmap_each_run (&metadata.image, 0, NR_BITS, tell, &t),
            EXTENT_STOP);
  CHECK_EQ (t.nr_runs, 2);
  tear_down ();
}

/* What is cleared is a hole again, and holes are not read. */
static void
test_holes (void)
{
  uint64_t nr_set;

  set_up ();
  change (0, NR_BITS, true);
  change (0, NR_BITS, false);
  world.no_log = false;
  CHECK_EQ (bitmap_count (&metadata.image, 0, NR_BITS, &nr_set), 0);
  CHECK_EQ (nr_set, 0);
  CHECK (!sim_store_is_data (&store, store.size_bytes / 2));
  CHECK (sim_log_count (&world, NULL, SIM_READ) <= 2);
  tear_down ();
}

static void
test_errors (void)
{
  uint64_t nr_set;

  set_up ();
  change (0, NR_BITS, true);
  sim_fail (&metadata.port, SIM_READ, 2, EREMOTEIO, 0);
  CHECK_EQ (bitmap_count (&metadata.image, 0, NR_BITS, &nr_set), EREMOTEIO);
  sim_fail (&metadata.port, SIM_READ, 1, EREMOTEIO, 0);
  CHECK_EQ (bitmap_set (&metadata.image, 3, 100), EREMOTEIO);
  sim_fail (&metadata.port, SIM_READ, 2, EREMOTEIO, 0);
  CHECK_EQ (bitmap_clear (&metadata.image, 3, 100), EREMOTEIO);
  sim_fail (&metadata.port, SIM_WRITE, 2, ENOSPC, 0);
  CHECK_EQ (bitmap_set (&metadata.image, 3, 100), ENOSPC);
  sim_fail (&metadata.port, SIM_ZERO, 1, ENOSPC, 0);
  CHECK_EQ (bitmap_clear (&metadata.image, 0, NR_BITS), ENOSPC);
  sim_fail (&metadata.port, SIM_EXTENTS, 1, EIO, 0);
  CHECK_EQ (bitmap_each_run (&metadata.image, 0, NR_BITS, tell, NULL), EIO);
  tear_down ();
}

int
main (int argc, char *argv[])
{
  const struct test_options options = test_options (argc, argv);
  struct rng rng = { options.seed };

  check_watchdog (120);
  printf ("seed: %" PRIu64 "\n", options.seed);
  test_edges ();
  test_random (&rng);
  test_stops ();
  test_holes ();
  test_errors ();
  return 0;
}

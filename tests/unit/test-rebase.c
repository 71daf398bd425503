/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an overlay keeps for another backing file: exactly the sectors in
 * which the two differ.  Operations fail, the power goes or it is interrupted,
 * and the disk is what it was; done again until it comes to its end, it is the
 * same on either backing file.
 *
 *     test-rebase [-s SEED] [-n ITERATIONS]
 *
 * Iteration i has the seed SEED + i.  Without -n it runs for some seconds.
 */

#include <config.h>

#include <errno.h>

#include "bitmap.h"
#include "common.h"
#include "format.h"
#include "overlay.h"
#include "rebase.h"
#include "sim-image.h"

#define SECTOR 512
#define SECONDS 3
#define MAX_SECTORS 6000
#define MAX_BYTES (MAX_SECTORS * SECTOR)

static struct sim_world world;
static struct sim_store image_store, metadata_store, from_store, to_store;
static struct sim_image image, metadata;
static struct sim_backing from, to;
static struct overlay *ov;
static struct rebase rb;

static uint64_t nr_sectors;
static bool one_extent;
static bool has_from, has_to;

/* As they are to be: the disk, and what it would be on the new backing file if
 * nothing were kept; the bits at first.
 */
static uint8_t disk[MAX_BYTES], other[MAX_BYTES], buf[MAX_BYTES];
static bool was_set[MAX_SECTORS], is_set[MAX_SECTORS];

static struct rng fault_rng;
static unsigned fault_one_in;   /* 0: never */
static unsigned nr_ops_to_live; /* 0: for ever */
static unsigned nr_ops_to_interrupt;
static uint64_t iteration_seed;

static void
fail (const char *what, uint64_t sector)
{
  fprintf (stderr, "%s: sector %" PRIu64 "; repeat with -s %" PRIu64 " -n 1\n",
           what, sector, iteration_seed);
  check_end ();
}

/*--- What there is at first. ------------------------------------------*/

/* Fill STORE in pieces: holes, zeroes, data that others have there too, and
 * data of its own.  Not all begin at a sector.
 */
static void
make_content (struct sim_store *store, struct rng *rng)
{
  static uint8_t piece[MAX_BYTES + SECTOR];
  uint64_t at = 0, i;

  while (at < store->size_bytes) {
    const unsigned kind = rng_below (rng, 4);
    const uint8_t own = rng_next (rng) | 1;
    uint64_t n = rng_range (rng, 1, UINT64_C (1) << rng_range (rng, 0, 20));

    if (!rng_one_in (rng, 4))
      n = DIV_ROUND_UP (n, SECTOR) * SECTOR;
    n = MIN (n, store->size_bytes - at);
    for (i = 0; i < n; i++)
      piece[i] = kind < 2 ? 0 : kind == 2 ? (at + i) / SECTOR * 7 + 1 : own;
    if (kind > 0)
      sim_store_put (store, piece, n, at);
    at += n;
  }
}

static void
make_store (struct sim_store *store, struct rng *rng)
{
  uint64_t size_bytes = nr_sectors * SECTOR;

  if (rng_one_in (rng, 2))
    size_bytes = rng_range (rng, 0, MAX_BYTES + SECTOR);
  sim_store_init (store, &world, size_bytes);
  store->knows_holes = !rng_one_in (rng, 4);
  make_content (store, rng);
}

static void
make_bits (struct rng *rng)
{
  uint64_t i, n;
  bool set = rng_one_in (rng, 2);

  memset (was_set, 0, sizeof was_set);
  for (i = 0; i < nr_sectors; i += n, set = !set) {
    n = rng_range (rng, 1, UINT64_C (1) << rng_range (rng, 0, 12));
    n = MIN (n, nr_sectors - i);
    memset (was_set + i, set, n);
  }
  for (i = 0; i < nr_sectors; i++)
    if (was_set[i]) {
      const uint64_t at = FORMAT_HEADER_BYTES + i / 8;
      const uint8_t byte = sim_store_byte (&metadata_store, at) | 1 << i % 8;

      sim_store_put (&metadata_store, &byte, 1, at);
    }
}

static void
get_padded (struct sim_store *store, uint8_t *bytes)
{
  memset (bytes, 0, nr_sectors * SECTOR);
  if (store)
    sim_store_get (store, bytes, MIN (store->size_bytes, nr_sectors * SECTOR),
                   0);
}

static void
get_bits (void)
{
  uint64_t i;

  for (i = 0; i < nr_sectors; i++)
    is_set[i] = sim_store_byte (&metadata_store, FORMAT_HEADER_BYTES + i / 8) >>
                    i % 8 &
                1;
}

/* The disk on STORE, by the files. */
static void
get_disk (struct sim_store *store, uint8_t *bytes)
{
  uint64_t i;

  get_padded (store, bytes);
  get_bits ();
  for (i = 0; i < nr_sectors; i++)
    if (is_set[i])
      sim_store_get (&image_store, bytes + i * SECTOR, SECTOR, i * SECTOR);
}

static bool
sectors_differ (const uint8_t *a, const uint8_t *b, uint64_t sector)
{
  return memcmp (a + sector * SECTOR, b + sector * SECTOR, SECTOR) != 0;
}

/* It is as it was, on the old backing file. */
static void
check_disk (const char *when)
{
  uint64_t i;

  get_disk (has_from ? &from_store : NULL, buf);
  for (i = 0; i < nr_sectors; i++) {
    if (sectors_differ (disk, buf, i))
      fail (when, i);
    if (was_set[i] && !is_set[i])
      fail ("a bit is clear", i);
    if (is_set[i] && !was_set[i] && !sectors_differ (disk, other, i))
      fail ("kept, and is the same", i);
  }
}

/* And on the new one; nothing else was kept. */
static void
check_done (void)
{
  uint64_t i;

  check_disk ("done");
  get_disk (has_to ? &to_store : NULL, buf);
  for (i = 0; i < nr_sectors; i++) {
    if (sectors_differ (disk, buf, i))
      fail ("on the new one", i);
    if (is_set[i] != (was_set[i] || sectors_differ (disk, other, i)))
      fail ("bit", i);
  }
}

/*--- Doing it. --------------------------------------------------------*/

static void
count_down (struct sim_port *port UNUSED, enum sim_op op UNUSED,
            uint64_t offset UNUSED, uint64_t count UNUSED, void *opaque UNUSED)
{
  if (nr_ops_to_live > 0 && --nr_ops_to_live == 0)
    sim_world_kill (&world);
  if (nr_ops_to_interrupt > 0 && --nr_ops_to_interrupt == 0)
    rebase_interrupt (&rb);
}

static void
set_up_port (struct sim_port *port)
{
  port->hook = count_down;
  port->one_extent = one_extent;
  port->random_faults = fault_one_in ? &fault_rng : NULL;
  port->one_in = fault_one_in;
}

static void
open_overlay (void)
{
  sim_image_init (&image, &image_store);
  sim_image_init (&metadata, &metadata_store);
  sim_backing_init (&from, &from_store);
  sim_backing_init (&to, &to_store);
  set_up_port (&image.port);
  set_up_port (&metadata.port);
  set_up_port (&from.port);
  set_up_port (&to.port);
  CHECK_EQ (overlay_open (&ov, &metadata.image, nr_sectors * SECTOR, NULL, NULL,
                          NULL),
            0);
  overlay_attach (ov, &image.image);
  rb = (struct rebase){
    .ov = ov,
    .metadata = &metadata.image,
    .image = &image.image,
    .from = has_from ? &from.backing : NULL,
    .to = has_to ? &to.backing : NULL,
  };
}

static void
lose_power (struct rng *rng)
{
  struct sim_store old_image = image_store;
  struct sim_store old_metadata = metadata_store;

  sim_store_crash (&image_store, &world, &old_image, rng);
  sim_store_crash (&metadata_store, &world, &old_metadata, rng);
  sim_store_clear (&old_image);
  sim_store_clear (&old_metadata);
  world.dead = false;
}

/* Which backing file fails is told. */
static void
check_fault (const struct fault *fault)
{
  CHECK (fault->err > 0);
  if (fault->part == FAULT_BACKING)
    CHECK (rb.failed && (rb.failed == rb.from || rb.failed == rb.to));
}

/* Bits that were written and not synced count, and may be lost.  So disk_open
 * syncs them.
 */
static void
sync_metadata (void)
{
  sim_image_init (&metadata, &metadata_store);
  CHECK_EQ (metadata.image.ops->flush (&metadata.image), 0);
}

/* Returns whether it came to its end. */
static bool
try_once (struct rng *rng)
{
  struct fault fault;
  bool done;
  int r;

  sync_metadata ();
  open_overlay ();
  r = rebase_keep (&rb, &fault);
  if (r == -1)
    check_fault (&fault);
  else
    CHECK (!overlay_uncommitted (ov));
  done = r == 0 && !rb.interrupted;
  if (done) {
    get_bits ();
    CHECK (rb.nr_bytes <= nr_sectors * SECTOR);
  }
  if (!sim_world_is_dead (&world) && !rng_one_in (rng, 4))
    overlay_detach (ov, &image.image, &fault);
  overlay_close (ov);
  nr_ops_to_live = nr_ops_to_interrupt = fault_one_in = 0;
  if (sim_world_is_dead (&world) || rng_one_in (rng, 3))
    lose_power (rng);
  else {
    sim_store_remember (&image_store);
    sim_store_remember (&metadata_store);
  }
  check_disk ("not done");
  return done;
}

static void
iteration (uint64_t seed)
{
  struct rng rng = { seed };
  unsigned i;

  iteration_seed = seed;
  sim_world_init (&world);
  world.no_log = true;
  fault_rng.state = rng_next (&rng);
  nr_sectors = rng_range (&rng, 1, MAX_SECTORS);
  one_extent = rng_one_in (&rng, 4);
  has_from = !rng_one_in (&rng, 8);
  has_to = !rng_one_in (&rng, 4);
  sim_store_init (&image_store, &world, nr_sectors * SECTOR);
  sim_store_init (&metadata_store, &world,
                  format_file_bytes (nr_sectors * SECTOR));
  make_content (&image_store, &rng);
  make_bits (&rng);
  make_store (&from_store, &rng);
  make_store (&to_store, &rng);
  image_store.track = metadata_store.track = true;
  image_store.forgets = metadata_store.forgets = true;
  get_disk (has_from ? &from_store : NULL, disk);
  get_disk (has_to ? &to_store : NULL, other);

  for (i = rng_below (&rng, 4); i > 0; i--) {
    fault_one_in = rng_one_in (&rng, 2) ? rng_range (&rng, 2, 60) : 0;
    nr_ops_to_live = rng_one_in (&rng, 3) ? rng_range (&rng, 1, 100) : 0;
    nr_ops_to_interrupt = rng_one_in (&rng, 3) ? rng_range (&rng, 1, 50) : 0;
    if (try_once (&rng))
      break;
  }
  CHECK (i > 0 || try_once (&rng));
  check_done ();

  sim_store_clear (&image_store);
  sim_store_clear (&metadata_store);
  sim_store_clear (&from_store);
  sim_store_clear (&to_store);
  sim_world_clear (&world);
}

/*--- What is not read, and what is committed when. --------------------*/

#define MIB UINT64_C (1048576)

static void
begin_large (uint64_t size_bytes)
{
  sim_world_init (&world);
  nr_sectors = size_bytes / SECTOR;
  one_extent = false;
  has_from = has_to = true;
  sim_store_init (&image_store, &world, size_bytes);
  sim_store_init (&metadata_store, &world, format_file_bytes (size_bytes));
  sim_store_init (&from_store, &world, size_bytes);
  sim_store_init (&to_store, &world, size_bytes);
  metadata_store.knows_holes = true;
  from_store.knows_holes = to_store.knows_holes = true;
}

static void
end_large (void)
{
  struct fault fault;

  CHECK_EQ (overlay_detach (ov, &image.image, &fault), 0);
  overlay_close (ov);
  sim_store_clear (&image_store);
  sim_store_clear (&metadata_store);
  sim_store_clear (&from_store);
  sim_store_clear (&to_store);
  sim_world_clear (&world);
}

/* Of a very large disk, what is data is read, in the one where it is. */
static void
test_holes (void)
{
  const uint64_t at = UINT64_C (1) << 40;
  struct sim_event e;
  struct fault fault;

  begin_large (UINT64_C (8) << 40);
  sim_store_put (&from_store, "from", 4, at);
  sim_store_put (&to_store, "to", 2, 2 * at);
  open_overlay ();
  CHECK_EQ (rebase_keep (&rb, &fault), 0);
  CHECK_EQ (rb.nr_bytes, nr_sectors * SECTOR);
  CHECK_EQ (sim_log_count (&world, &from.port, SIM_READ), 1);
  CHECK_EQ (sim_log_count (&world, &to.port, SIM_READ), 1);
  e = sim_log_get (&world, &from.port, SIM_READ, 0);
  CHECK (e.offset <= at && e.offset + e.count > at && e.count <= MIB);
  e = sim_log_get (&world, &to.port, SIM_READ, 0);
  CHECK (e.offset <= 2 * at && e.offset + e.count > 2 * at && e.count <= MIB);
  CHECK (sim_log_count (&world, &from.port, SIM_EXTENTS) < 10);
  end_large ();
}

/* What was kept is committed now and then, not only at the end. */
static void
test_commits (void)
{
  static uint8_t data[MIB];
  const unsigned nr_mib = 200;
  struct fault fault;
  unsigned i;

  begin_large (nr_mib * MIB);
  image_store.discards = true;
  memset (data, 1, sizeof data);
  for (i = 0; i < nr_mib; i++)
    sim_store_put (&from_store, data, sizeof data, i * MIB);
  open_overlay ();
  CHECK_EQ (rebase_keep (&rb, &fault), 0);
  CHECK (!overlay_uncommitted (ov));
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_FLUSH), 4);
  CHECK_EQ (sim_log_count (&world, &metadata.port, SIM_FLUSH), 4);
  CHECK_EQ (sim_log_count (&world, &from.port, SIM_READ), nr_mib);
  CHECK_EQ (sim_log_count (&world, &to.port, SIM_READ), 0);
  end_large ();
}

/* Who waits for a server is let go, whichever it is. */
static unsigned nr_interrupted;

static void
count_interrupt (struct backing *backing)
{
  CHECK (backing == rb.from || backing == rb.to);
  nr_interrupted++;
}

static void
test_interrupt (void)
{
  const struct backing_ops ops = { .interrupt = count_interrupt };
  struct backing a = { .ops = &ops }, b = { .ops = &ops };

  rb = (struct rebase){ .from = &a, .to = &b };
  rebase_interrupt (&rb);
  CHECK (rb.interrupted);
  CHECK_EQ (nr_interrupted, 2);
  rb = (struct rebase){ .from = NULL, .to = &b };
  rebase_interrupt (&rb);
  CHECK_EQ (nr_interrupted, 3);
}

int
main (int argc, char *argv[])
{
  const struct test_options o = test_options (argc, argv);
  const double until = seconds_now () + SECONDS;
  uint64_t i;

  printf ("-s %" PRIu64 "\n", o.seed);
  fflush (stdout);
  check_watchdog (60);
  test_holes ();
  test_commits ();
  test_interrupt ();
  for (i = 0; o.iterations ? i < o.iterations : seconds_now () < until; i++) {
    check_watchdog (60);
    iteration (o.seed + i);
  }
  printf ("%" PRIu64 " iterations\n", i);
  return 0;
}

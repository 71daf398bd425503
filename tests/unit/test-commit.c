/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Committing an overlay: the disk reads the same whenever the power goes and
 * whatever fails, and in the end the target is the disk.
 */

#include <config.h>

#include <errno.h>

#include "bitmap.h"
#include "commit.h"
#include "common.h"
#include "format.h"
#include "sim-image.h"

#define SECTOR FORMAT_SECTOR_BYTES
#define MAX_SECTORS 400
#define MAX_BYTES (MAX_SECTORS * SECTOR)

enum { METADATA, IMAGE, TARGET, NR_FILES };

struct files {
  struct sim_world world;
  struct sim_store stores[NR_FILES];
  struct sim_image images[NR_FILES];
  uint64_t size_bytes;
  unsigned nr_left; /* operations that change, before the power goes; or 0 */
  _Atomic bool stop;
  unsigned stop_after; /* operations on the target, or 0 */
};

/* Called before each operation. */
static void
count_down (struct sim_port *port, enum sim_op op, uint64_t offset UNUSED,
            uint64_t count UNUSED, void *opaque)
{
  struct files *f = opaque;

  if (port == &f->images[TARGET].port && f->stop_after > 0 &&
      --f->stop_after == 0)
    f->stop = true;
  if (op != SIM_WRITE && op != SIM_ZERO && op != SIM_TRIM && op != SIM_FLUSH)
    return;
  if (f->nr_left > 0 && --f->nr_left == 0)
    sim_world_kill (&f->world);
}

static void
open_stores (struct files *f)
{
  int i;

  for (i = 0; i < NR_FILES; i++) {
    sim_image_init (&f->images[i], &f->stores[i]);
    f->images[i].port.hook = count_down;
    f->images[i].port.opaque = f;
  }
}

static void
make_files (struct files *f, uint64_t size_bytes, uint64_t target_bytes)
{
  const uint64_t sizes[] = {
    [METADATA] = format_file_bytes (size_bytes),
    [IMAGE] = size_bytes,
    [TARGET] = target_bytes,
  };
  int i;

  memset (f, 0, sizeof *f);
  sim_world_init (&f->world);
  f->size_bytes = size_bytes;
  for (i = 0; i < NR_FILES; i++) {
    sim_store_init (&f->stores[i], &f->world, sizes[i]);
    f->stores[i].track = f->stores[i].knows_holes = true;
    f->stores[i].forgets = true;
  }
  open_stores (f);
}

static void
clear_files (struct files *f)
{
  int i;

  for (i = 0; i < NR_FILES; i++)
    sim_store_clear (&f->stores[i]);
  sim_world_clear (&f->world);
}

/* What is left of F when the power goes now. */
static void
crash (struct files *after, struct files *f, struct rng *rng)
{
  int i;

  memset (after, 0, sizeof *after);
  sim_world_init (&after->world);
  after->size_bytes = f->size_bytes;
  for (i = 0; i < NR_FILES; i++)
    sim_store_crash (&after->stores[i], &after->world, &f->stores[i], rng);
  open_stores (after);
}

static bool
is_set (struct files *f, uint64_t sector)
{
  return sim_store_byte (&f->stores[METADATA],
                         FORMAT_HEADER_BYTES + sector / 8) &
         1 << sector % 8;
}

static void
set (struct files *f, uint64_t sector)
{
  const uint64_t at = FORMAT_HEADER_BYTES + sector / 8;
  const uint8_t byte = sim_store_byte (&f->stores[METADATA], at) |
                       1 << sector % 8;

  sim_store_put (&f->stores[METADATA], &byte, 1, at);
}

/* Some of the range is data that RNG decides, some holes and zeroes. */
static void
put_random (struct sim_store *store, uint64_t count, uint64_t offset,
            struct rng *rng)
{
  uint8_t buf[8 * SECTOR];

  while (count > 0) {
    const size_t most = MIN (count, sizeof buf);
    const size_t n = rng_range (rng, 1, most);
    size_t i;

    for (i = 0; i < n; i++)
      buf[i] = rng_next (rng);
    if (rng_one_in (rng, 4))
      memset (buf, 0, n);
    if (!rng_one_in (rng, 3))
      sim_store_put (store, buf, n, offset);
    count -= n;
    offset += n;
  }
}

/* A whole hole in the image, of more than is read with what is around it. */
static void
fill_files (struct files *f, struct rng *rng)
{
  const uint64_t nr_sectors = f->size_bytes / SECTOR;
  uint64_t sector = 0;

  put_random (&f->stores[TARGET], f->stores[TARGET].size_bytes, 0, rng);
  put_random (&f->stores[IMAGE], f->size_bytes, 0, rng);
  while (sector < nr_sectors) {
    const uint64_t n = rng_range (rng, 1, rng_one_in (rng, 3) ? 150 : 10);
    const bool allocate = rng_one_in (rng, 2);
    uint64_t i;

    for (i = sector; i < MIN (sector + n, nr_sectors); i++)
      if (allocate)
        set (f, i);
    sector += n;
  }
}

/* The sectors behind the end of the target are zeroes where allocated. */
static void
clear_behind_target (struct files *f)
{
  static const uint8_t zeroes[MAX_BYTES];
  const uint64_t begin = f->stores[TARGET].size_bytes;

  if (begin < f->size_bytes)
    sim_store_put (&f->stores[IMAGE], zeroes, f->size_bytes - begin, begin);
}

/* What the disk is. */
static void
get_disk (struct files *f, uint8_t disk[MAX_BYTES])
{
  const uint64_t target_bytes = f->stores[TARGET].size_bytes;
  uint64_t sector;

  memset (disk, 0, MAX_BYTES);
  sim_store_get (&f->stores[TARGET], disk, MIN (target_bytes, f->size_bytes),
                 0);
  for (sector = 0; sector < f->size_bytes / SECTOR; sector++)
    if (is_set (f, sector))
      sim_store_get (&f->stores[IMAGE], disk + sector * SECTOR, SECTOR,
                     sector * SECTOR);
}

static void
check_disk (struct files *f, const uint8_t expected[MAX_BYTES])
{
  static uint8_t disk[MAX_BYTES];

  get_disk (f, disk);
  CHECK (memcmp (disk, expected, f->size_bytes) == 0);
}

static struct commit *
new_commit (struct files *f, uint64_t round_bytes)
{
  const struct commit_options options = {
    .metadata = &f->images[METADATA].image,
    .image = &f->images[IMAGE].image,
    .target = &f->images[TARGET].image,
    .image_fd = -1,
    .size_bytes = f->size_bytes,
    .target_bytes = f->stores[TARGET].size_bytes,
    .round_bytes = round_bytes,
    .free_all = true,
    .stop = &f->stop,
  };
  struct commit *c;

  CHECK_EQ (commit_new (&c, &options), 0);
  return c;
}

/* Returns as commit_run; *FAULT may be looked at. */
static int
run (struct files *f, uint64_t round_bytes, bool *complete, struct fault *fault)
{
  struct commit *c = new_commit (f, round_bytes);
  int r;

  *complete = false;
  r = commit_run (c, complete, fault);
  commit_free (c);
  return r;
}

static uint64_t
nr_allocated (struct files *f)
{
  uint64_t n;

  CHECK_EQ (
      bitmap_count (&f->images[METADATA].image, 0, f->size_bytes / SECTOR, &n),
      0);
  return n;
}

/* Commit to the end: then nothing is allocated, and the target is the disk,
 * as far as it reaches.
 */
static void
finish (struct files *f, const uint8_t expected[MAX_BYTES])
{
  static uint8_t target[MAX_BYTES];
  const uint64_t n = MIN (f->size_bytes, f->stores[TARGET].size_bytes);
  struct fault fault;
  bool complete;
  uint64_t i;

  CHECK_EQ (run (f, 4096, &complete, &fault), 0);
  CHECK (complete);
  CHECK_EQ (nr_allocated (f), 0);
  for (i = 0; i < f->size_bytes; i += SECTOR)
    CHECK (!sim_store_is_data (&f->stores[IMAGE], i));
  sim_store_get (&f->stores[TARGET], target, n, 0);
  CHECK (memcmp (target, expected, n) == 0);
  check_disk (f, expected);
}

/* Files that are the same for the same seed, and what the disk is. */
static void
set_up (struct files *f, uint64_t seed, uint8_t expected[MAX_BYTES])
{
  struct rng rng = { seed };
  const uint64_t size = rng_range (&rng, 1, MAX_SECTORS) * SECTOR;
  uint64_t target = size;

  if (rng_one_in (&rng, 3))
    target = rng_range (&rng, 1, size + 1000);
  make_files (f, size, target);
  fill_files (f, &rng);
  clear_behind_target (f);
  get_disk (f, expected);
}

/* The power goes before each operation that changes something, and again
 * before one of what is done after that.
 */
static void
test_power (struct rng *rng)
{
  static uint8_t expected[MAX_BYTES];
  const uint64_t seed = rng_next (rng);
  const uint64_t round_bytes = rng_range (rng, 1, 40000);
  struct files f, after, after_that;
  struct fault fault;
  bool complete = false;
  unsigned n;

  for (n = 1; !complete; n++) {
    set_up (&f, seed, expected);
    f.nr_left = n;
    run (&f, round_bytes, &complete, &fault);
    if (sim_world_is_dead (&f.world))
      complete = false;
    crash (&after, &f, rng);
    check_disk (&after, expected);

    after.nr_left = rng_range (rng, 1, 10);
    run (&after, round_bytes, &(bool){ false }, &fault);
    crash (&after_that, &after, rng);
    check_disk (&after_that, expected);
    finish (&after_that, expected);
    clear_files (&after_that);
    clear_files (&after);
    clear_files (&f);
  }
  CHECK (n > 2);
}

/* Each operation fails once; then the power goes. */
static void
test_errors (struct rng *rng)
{
  static const enum fault_part parts[] = {
    [METADATA] = FAULT_METADATA,
    [IMAGE] = FAULT_IMAGE,
    [TARGET] = FAULT_BACKING,
  };
  static const enum sim_op ops[] = {
    SIM_READ, SIM_WRITE, SIM_ZERO, SIM_TRIM, SIM_FLUSH, SIM_EXTENTS,
  };
  static uint8_t expected[MAX_BYTES];
  const uint64_t seed = rng_next (rng);
  struct files f, after;
  struct fault fault;
  bool complete;
  unsigned n;
  size_t op;
  int file, r;

  for (file = 0; file < NR_FILES; file++)
    for (op = 0; op < ARRAY_SIZE (ops); op++)
      for (n = 1; n < 4; n++) {
        set_up (&f, seed, expected);
        sim_fail (&f.images[file].port, ops[op], n, EREMOTEIO, 0);
        r = run (&f, 20000, &complete, &fault);
        if (r == -1) {
          CHECK_EQ (fault.err, EREMOTEIO);
          CHECK_EQ (fault.part, parts[file]);
        }
        else
          CHECK (complete);
        /* That holes cannot be made is no error. */
        CHECK (r == 0 || ops[op] != SIM_TRIM);
        CHECK (r == -1 || ops[op] != SIM_FLUSH || n > 1 || file == IMAGE ||
               (file == METADATA &&
                sim_log_count (&f.world, &f.images[METADATA].port, SIM_FLUSH) ==
                    0));
        check_disk (&f, expected);
        crash (&after, &f, rng);
        check_disk (&after, expected);
        finish (&after, expected);
        clear_files (&after);
        clear_files (&f);
      }
}

/* Flushing the target fails, and would not again: nothing is taken for
 * written.
 */
static void
test_flush_fails (struct rng *rng)
{
  static uint8_t expected[MAX_BYTES];
  struct files f, after;
  struct fault fault;
  bool complete;
  uint64_t before;

  set_up (&f, rng_next (rng), expected);
  before = nr_allocated (&f);
  sim_fail (&f.images[TARGET].port, SIM_FLUSH, 1, EIO, 0);
  CHECK_EQ (run (&f, 1, &complete, &fault), -1);
  CHECK_EQ (fault.part, FAULT_BACKING);
  CHECK_EQ (nr_allocated (&f), before);
  CHECK_EQ (sim_log_count (&f.world, &f.images[TARGET].port, SIM_FLUSH), 1);
  CHECK_EQ (sim_log_count_changes (&f.world, &f.images[METADATA].port), 0);
  CHECK_EQ (sim_log_count_changes (&f.world, &f.images[IMAGE].port), 0);
  crash (&after, &f, rng);
  check_disk (&after, expected);
  clear_files (&after);
  finish (&f, expected);
  clear_files (&f);
}

/* Every second sector is allocated. */
static void
set_up_stripes (struct files *f)
{
  static uint8_t data[MAX_BYTES];
  uint64_t i;

  memset (data, 'x', sizeof data);
  make_files (f, MAX_BYTES, MAX_BYTES);
  sim_store_put (&f->stores[IMAGE], data, MAX_BYTES, 0);
  for (i = 0; i < MAX_SECTORS; i += 2)
    set (f, i);
}

/* What was written before there was no space is committed. */
static void
test_full (void)
{
  struct fault fault;
  struct files f;
  bool complete;

  set_up_stripes (&f);
  sim_fail (&f.images[TARGET].port, SIM_WRITE, 101, ENOSPC, 0);
  CHECK_EQ (run (&f, COMMIT_ROUND_BYTES, &complete, &fault), -1);
  CHECK_EQ (fault.part, FAULT_BACKING);
  CHECK_EQ (fault.err, ENOSPC);
  CHECK_EQ (nr_allocated (&f), MAX_SECTORS / 2 - 100);
  CHECK (!is_set (&f, 0) && !is_set (&f, 198) && is_set (&f, 200));
  CHECK (!sim_store_is_data (&f.stores[IMAGE], 0));
  CHECK (sim_store_is_data (&f.stores[IMAGE], 200 * SECTOR));
  clear_files (&f);
}

/* The write that fails tells of one before it that was lost, and no flush
 * does.
 */
static void
lose_writes (struct sim_port *port, enum sim_op op, uint64_t offset,
             uint64_t count UNUSED, void *opaque UNUSED)
{
  static const uint8_t lost[SECTOR];

  if (op == SIM_WRITE && offset == 200 * SECTOR)
    sim_store_put (port->store, lost, SECTOR, 0);
}

static void
test_write_tells_of_others (void)
{
  static uint8_t expected[MAX_BYTES];
  struct fault fault;
  struct files f;
  bool complete;

  set_up_stripes (&f);
  get_disk (&f, expected);
  f.images[TARGET].port.hook = lose_writes;
  sim_fail (&f.images[TARGET].port, SIM_WRITE, 101, ENOSPC, 0);
  CHECK_EQ (run (&f, COMMIT_ROUND_BYTES, &complete, &fault), -1);
  CHECK_EQ (fault.err, ENOSPC);
  check_disk (&f, expected);
  f.images[TARGET].port.hook = NULL;
  finish (&f, expected);
  clear_files (&f);

  /* Where that cannot be written again, nothing is taken for written. */
  set_up_stripes (&f);
  sim_fail (&f.images[TARGET].port, SIM_WRITE, 101, ENOSPC, 1);
  CHECK_EQ (run (&f, COMMIT_ROUND_BYTES, &complete, &fault), -1);
  CHECK_EQ (fault.err, ENOSPC);
  CHECK_EQ (nr_allocated (&f), MAX_SECTORS / 2);
  check_disk (&f, expected);
  clear_files (&f);
}

/* It stops soon. */
static void
test_stop_soon (void)
{
  struct fault fault;
  struct files f;
  bool complete;

  set_up_stripes (&f);
  f.stop_after = 5;
  CHECK_EQ (run (&f, COMMIT_ROUND_BYTES, &complete, &fault), 0);
  CHECK (!complete);
  CHECK_EQ (nr_allocated (&f), MAX_SECTORS / 2 - 5);
  CHECK (sim_store_is_data (&f.stores[IMAGE], 12 * SECTOR));
  clear_files (&f);
}

/* Who stops ends in order: what was brought to the target is committed. */
static void
test_stop (struct rng *rng)
{
  static uint8_t expected[MAX_BYTES];
  const uint64_t seed = rng_next (rng);
  struct fault fault;
  struct files f;
  bool complete = false;
  unsigned n;

  for (n = 1; !complete; n++) {
    uint64_t before, done;
    struct commit *c;

    set_up (&f, seed, expected);
    before = nr_allocated (&f);
    f.stop_after = n;
    c = new_commit (&f, rng_range (rng, 1, 100000));
    CHECK_EQ (commit_run (c, &complete, &fault), 0);
    done = commit_nr_bytes (c) / SECTOR;
    commit_free (c);
    CHECK_EQ (nr_allocated (&f), before - done);
    CHECK (complete == (done == before));
    CHECK (before == 0 || done > 0);
    check_disk (&f, expected);
    f.stop_after = 0;
    f.stop = false;
    finish (&f, expected);
    clear_files (&f);
  }
}

/* Each round: the target is flushed, then bits are cleared and flushed, then
 * there are holes.
 */
static void
test_order (void)
{
  static uint8_t data[MAX_BYTES];
  const enum sim_op ops[] = { SIM_WRITE, SIM_FLUSH, SIM_ZERO, SIM_FLUSH,
                              SIM_TRIM };
  const int files[] = { TARGET, TARGET, METADATA, METADATA, IMAGE };
  struct fault fault;
  struct files f;
  uint64_t i, end = 0;
  bool complete;

  memset (data, 'x', sizeof data);
  make_files (&f, 256 * SECTOR, 256 * SECTOR);
  sim_store_put (&f.stores[IMAGE], data, 256 * SECTOR, 0);
  for (i = 0; i < 256; i++)
    set (&f, i);
  CHECK_EQ (run (&f, 1, &complete, &fault), 0);
  for (i = 0; i < ARRAY_SIZE (ops); i++) {
    const struct sim_event e = sim_log_get (&f.world, &f.images[files[i]].port,
                                            ops[i], 0);

    CHECK (e.begin > end);
    end = e.end;
  }
  clear_files (&f);
}

/* Holes of the image are zeroes, and holes, in the target. */
static void
test_holes (void)
{
  static uint8_t data[MAX_BYTES];
  struct fault fault;
  struct files f;
  bool complete;
  uint64_t i;

  memset (data, 'x', sizeof data);
  make_files (&f, MAX_BYTES, MAX_BYTES);
  sim_store_put (&f.stores[TARGET], data, MAX_BYTES, 0);
  for (i = 0; i < MAX_SECTORS; i++)
    set (&f, i);
  CHECK_EQ (run (&f, COMMIT_ROUND_BYTES, &complete, &fault), 0);
  for (i = 0; i < MAX_SECTORS; i++)
    CHECK (!sim_store_is_data (&f.stores[TARGET], i * SECTOR));
  CHECK_EQ (sim_log_count (&f.world, &f.images[IMAGE].port, SIM_READ), 0);
  CHECK_EQ (sim_log_count (&f.world, &f.images[TARGET].port, SIM_WRITE), 0);
  clear_files (&f);
}

static bool
fits (struct files *f)
{
  struct commit *c = new_commit (f, 1);
  struct fault fault;
  bool result;

  CHECK_EQ (commit_fits (c, &result, &fault), 0);
  commit_free (c);
  return result;
}

static void
test_fits (void)
{
  const uint8_t x = 'x';
  struct fault fault;
  struct commit *c;
  struct files f;
  bool result;

  make_files (&f, MAX_BYTES, 100 * SECTOR + 5);
  CHECK (fits (&f));
  /* Data that are not allocated are no data. */
  sim_store_put (&f.stores[IMAGE], &x, 1, 100 * SECTOR + 5);
  CHECK (fits (&f));
  set (&f, 99);
  CHECK (fits (&f));
  set (&f, 100);
  CHECK (!fits (&f));
  sim_fail (&f.images[IMAGE].port, SIM_READ, 1, EIO, 0);
  c = new_commit (&f, 1);
  CHECK_EQ (commit_fits (c, &result, &fault), -1);
  CHECK_EQ (fault.part, FAULT_IMAGE);
  sim_fail (&f.images[METADATA].port, SIM_READ, 1, EIO, 0);
  CHECK_EQ (commit_fits (c, &result, &fault), -1);
  CHECK_EQ (fault.part, FAULT_METADATA);
  commit_free (c);
  /* The byte before that is in the target. */
  sim_store_put (&f.stores[IMAGE], "\0", 1, 100 * SECTOR + 5);
  sim_store_put (&f.stores[IMAGE], &x, 1, 100 * SECTOR + 4);
  CHECK (fits (&f));
  set (&f, MAX_SECTORS - 1);
  CHECK (fits (&f));
  sim_store_put (&f.stores[IMAGE], &x, 1, MAX_BYTES - 1);
  CHECK (!fits (&f));
  clear_files (&f);
}

int
main (int argc, char *argv[])
{
  const struct test_options options = test_options (argc, argv);
  const uint64_t nr = options.iterations ? options.iterations : 10;
  struct rng rng = { options.seed };
  uint64_t i;

  check_watchdog (600);
  printf ("seed: %" PRIu64 "\n", options.seed);
  test_order ();
  test_holes ();
  test_fits ();
  test_full ();
  test_write_tells_of_others ();
  test_stop_soon ();
  for (i = 0; i < nr; i++) {
    test_power (&rng);
    test_errors (&rng);
    test_flush_fails (&rng);
    test_stop (&rng);
  }
  return 0;
}

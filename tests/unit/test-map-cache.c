/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bound on the memory of maps: what is let go of and what is not, what
 * comes back, who has to commit, and what one map may take from others.
 *
 *     test-map-cache [-s SEED] [-n ITERATIONS]
 */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>

#include "bitmap.h"
#include "common.h"
#include "format.h"
#include "map.h"
#include "sim-image.h"

#define PAGE_BYTES UINT64_C (4096)
#define PAGE_BITS (PAGE_BYTES * 8)
#define FIRST_BIT (FORMAT_HEADER_BYTES * 8)
#define SECTOR UINT64_C (512)
#define NR_PAGES 200

/* The first sector of page I. */
static uint64_t
page_sector (uint64_t i)
{
  return i == 0 ? 0 : i * PAGE_BITS - FIRST_BIT;
}

/*--- Maps over simulated files. ---------------------------------------*/

#define NR_MAPS 3

static struct sim_world world;
static struct map_cache *cache;
static uint64_t max_bytes;

static struct disk {
  struct sim_store store;
  struct sim_image metadata;
  struct map *map;
  pthread_mutex_t commit_lock; /* who commits */
  _Atomic unsigned nr_commits; /* for others */
} disks[NR_MAPS];

static struct disk *const a = &disks[0], *const b = &disks[1];

static void
begin (uint64_t max_pages)
{
  unsigned i;

  sim_world_init (&world);
  max_bytes = max_pages * PAGE_BYTES;
  CHECK_EQ (map_cache_new (&cache, max_bytes), 0);
  for (i = 0; i < NR_MAPS; i++) {
    struct disk *d = &disks[i];
    const uint64_t size = page_sector (NR_PAGES) * SECTOR;

    sim_store_init (&d->store, &world, format_file_bytes (size));
    sim_image_init (&d->metadata, &d->store);
    CHECK_EQ (map_open (&d->map, &d->metadata.image, size, cache), 0);
    pthread_mutex_init (&d->commit_lock, NULL);
    d->nr_commits = 0;
  }
}

static void
end (void)
{
  unsigned i;

  for (i = 0; i < NR_MAPS; i++) {
    map_close (disks[i].map);
    sim_store_clear (&disks[i].store);
    pthread_mutex_destroy (&disks[i].commit_lock);
  }
  CHECK_EQ (map_cache_bytes (cache), 0);
  map_cache_free (cache);
  sim_world_clear (&world);
}

static uint64_t
nr_pages (void)
{
  return map_cache_bytes (cache) / PAGE_BYTES;
}

static int
commit (struct disk *d)
{
  int r;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->commit_lock);
  CHECK_EQ (map_freeze (d->map), 0);
  r = map_write_frozen (d->map);
  map_thaw (d->map, r == 0);
  return r;
}

static void
commit_for_others (void *opaque)
{
  struct disk *d = opaque;

  d->nr_commits++;
  commit (d);
}

static int
prepare (struct disk *d, uint64_t sector)
{
  uint64_t n;

  return map_prepare (d->map, sector, 1, &n);
}

static void
set_prepared (struct disk *d, uint64_t sector)
{
  map_set (d->map, sector, 1);
  map_unprepare (d->map, sector, 1);
}

/* As lib/overlay.c does. */
static int
set (struct disk *d, uint64_t sector)
{
  int r;

  while ((r = prepare (d, sector)) == MAP_FULL) {
    if (map_commit_other (d->map))
      continue;
    if (!map_uncommitted (d->map))
      map_wait_for_room (d->map);
    else if ((r = commit (d)) != 0)
      return r;
  }
  if (r == 0)
    set_prepared (d, sector);
  return r;
}

static bool
get (struct disk *d, uint64_t sector)
{
  bool allocated;
  uint64_t run;

  CHECK_EQ (map_run (d->map, sector, 1, &allocated, &run), 0);
  return allocated;
}

static bool
disk_bit (struct disk *d, uint64_t sector)
{
  return sim_store_byte (&d->store, FORMAT_HEADER_BYTES + sector / 8) >>
             sector % 8 &
         1;
}

/* How often D's file was read. */
static size_t
nr_reads (struct disk *d)
{
  return sim_log_count (&world, &d->metadata.port, SIM_READ);
}

/* A bit in each page of the file. */
static void
put_bits (struct disk *d)
{
  uint64_t i;

  for (i = 0; i < NR_PAGES; i++)
    sim_store_put (&d->store, "\x10", 1,
                   FORMAT_HEADER_BYTES + page_sector (i) / 8);
}

static bool
get_put_bit (struct disk *d, uint64_t page)
{
  CHECK (!get (d, page_sector (page) + 3));
  return get (d, page_sector (page) + 4);
}

/*--- What comes back. -------------------------------------------------*/

/* Look-ups of more than there is memory for. */
static void
test_clean (uint64_t max_pages)
{
  uint64_t i;

  begin (max_pages);
  put_bits (a);
  for (i = 0; i < 2 * NR_PAGES; i++) {
    CHECK (get_put_bit (a, i % NR_PAGES));
    CHECK (nr_pages () <= max_pages);
  }
  CHECK (!map_uncommitted (a->map));
  CHECK_EQ (sim_log_count_changes (&world, NULL), 0);
  end ();
}

/* Bits of more pages than there is memory for: some commit on the way, and
 * all are there.
 */
static void
test_dirty (uint64_t max_pages)
{
  uint64_t i;

  begin (max_pages);
  put_bits (a);
  for (i = 0; i < NR_PAGES; i += 2) {
    CHECK_EQ (set (a, page_sector (i) + 100 + i), 0);
    CHECK (nr_pages () <= max_pages + 2);
  }
  for (i = 0; i < NR_PAGES; i++) {
    CHECK (get_put_bit (a, i));
    CHECK_EQ (get (a, page_sector (i) + 100 + i), i % 2 == 0);
    CHECK (!get (a, page_sector (i) + 101 + i));
    CHECK (nr_pages () <= max_pages + 2);
  }
  CHECK_EQ (commit (a), 0);
  for (i = 0; i < NR_PAGES; i++)
    CHECK_EQ (disk_bit (a, page_sector (i) + 100 + i), i % 2 == 0);
  end ();
}

/* Who was looked at stays, who came after goes. */
static void
test_second_chance (void)
{
  uint64_t i;

  begin (16);
  put_bits (a);
  for (i = 1; i < 100; i++) {
    CHECK (get_put_bit (a, 0));
    CHECK (get_put_bit (a, i));
    CHECK (get_put_bit (a, 0));
  }
  CHECK_EQ (nr_reads (a), 100);
  CHECK (get_put_bit (a, 1));
  CHECK_EQ (nr_reads (a), 101);
  end ();
}

/* A write that failed leaves a page without bits: no memory. */
static void
test_empty_page (void)
{
  begin (16);
  CHECK_EQ (prepare (a, 77), 0);
  CHECK_EQ (nr_pages (), 2);
  map_unprepare (a->map, 77, 1);
  CHECK_EQ (nr_pages (), 0);
  CHECK (!get (a, 77));
  CHECK_EQ (nr_reads (a), 0);
  end ();
}

/*--- What is kept. ----------------------------------------------------*/

/* Nobody takes what is pinned, and who looks at other pages needs nothing. */
static void
test_pins (void)
{
  uint64_t i, n = 0;
  size_t before;

  begin (16);
  put_bits (a);
  put_bits (b);
  while (prepare (a, page_sector (n)) == 0)
    n++;
  CHECK (n >= 3 && n <= 6);
  CHECK_EQ (prepare (a, page_sector (0)), 0); /* again */
  before = nr_reads (a);
  for (i = 0; i < NR_PAGES; i++)
    CHECK (get_put_bit (b, i));
  for (i = n; i < NR_PAGES; i++)
    CHECK (get_put_bit (a, i));
  CHECK (nr_pages () <= 16);
  CHECK_EQ (nr_reads (a), before + (NR_PAGES - n));
  for (i = 0; i < n; i++)
    CHECK (get_put_bit (a, i));
  CHECK_EQ (nr_reads (a), before + (NR_PAGES - n));

  /* It was pinned twice. */
  map_unprepare (a->map, page_sector (0), 1);
  set_prepared (a, page_sector (0));
  for (i = 1; i < n; i++)
    map_unprepare (a->map, page_sector (i), 1);
  CHECK_EQ (commit (a), 0);
  CHECK (disk_bit (a, 0));
  end ();
}

/* Without any memory look-ups go on, and nothing is kept. */
static void
test_look_ups_need_none (void)
{
  bool allocated;
  uint64_t i, run;

  begin (0);
  put_bits (a);
  for (i = 0; i < NR_PAGES - 2; i++) {
    CHECK (get_put_bit (a, i));
    CHECK_EQ (
        map_run (a->map, page_sector (i) + 5, PAGE_BITS, &allocated, &run), 0);
    CHECK (!allocated);
    CHECK_EQ (run, page_sector (i + 1) - page_sector (i) - 1);
    CHECK_EQ (nr_pages (), 0);
  }
  end ();
}

/* A large range is prepared in parts, and all that was is let go of. */
static void
test_large_range (void)
{
  uint64_t sector = 5, n, nr = 0;

  begin (128);
  while (sector < page_sector (NR_PAGES)) {
    CHECK_EQ (map_prepare (a->map, sector, page_sector (NR_PAGES) - sector, &n),
              0);
    CHECK (nr_pages () <= 2 * 8 + 1);
    map_set (a->map, sector, n);
    map_unprepare (a->map, sector, n);
    sector += n;
    nr++;
    CHECK_EQ (commit (a), 0);
  }
  CHECK (nr > 20);
  CHECK (!get (a, 4));
  CHECK (get (a, 5) && get (a, page_sector (NR_PAGES) - 1));
  CHECK_EQ (nr_pages (), 1); /* the first; all others are ones */
  end ();
}

/*--- Commits that fail. -----------------------------------------------*/

/* Memory does not grow while they do, and all bits that were set are there
 * when they no longer do.
 */
static void
test_failing_commits (enum sim_op op)
{
  bool is_set[NR_PAGES] = { false };
  uint64_t i, nr = 0;

  begin (64);
  CHECK_EQ (commit (a), 0);
  sim_fail (&a->metadata.port, op, 1, ENOSPC, 1000);
  for (i = 0; i < NR_PAGES; i++) {
    const int r = set (a, page_sector (i) + 9);

    CHECK (r == 0 || r == ENOSPC);
    is_set[i] = r == 0;
    nr += is_set[i];
    CHECK (nr_pages () <= 64);
  }
  CHECK (nr >= 16 && nr <= 24);
  for (i = 0; i < NR_PAGES; i++)
    CHECK_EQ (get (a, page_sector (i) + 9), is_set[i]);

  /* Another map is none the worse. */
  for (i = 0; i < NR_PAGES; i++) {
    CHECK_EQ (set (b, page_sector (i) + 9), 0);
    CHECK (nr_pages () <= 64);
  }
  sim_fail (&a->metadata.port, op, 0, 0, 0);
  for (i = 0; i < NR_PAGES; i++)
    CHECK_EQ (set (a, page_sector (i) + 9), 0);
  CHECK_EQ (commit (a), 0);
  for (i = 0; i < NR_PAGES; i++)
    CHECK (disk_bit (a, page_sector (i) + 9));
  end ();
}

/*--- Several maps. ----------------------------------------------------*/

/* Nobody keeps what is clean from a busy one. */
static void
test_idle_map (void)
{
  uint64_t i;

  begin (64);
  put_bits (a);
  put_bits (b);
  for (i = 0; i < NR_PAGES; i++)
    CHECK (get_put_bit (a, i));
  CHECK_EQ (nr_pages (), 64);
  for (i = 0; i < 16; i++) {
    CHECK_EQ (set (b, page_sector (i)), 0);
    CHECK_EQ (nr_pages (), 64);
  }
  CHECK_EQ (sim_log_count (&world, NULL, SIM_WRITE), 0);
  CHECK_EQ (map_nr_uncommitted_pages (b->map), 16);
  for (i = 0; i < NR_PAGES; i++)
    CHECK (get_put_bit (a, i));
  end ();
}

/* The one that has most commits for others; but not again when that was in
 * vain, and others go on then.
 */
static void
test_commit_for_others (void)
{
  uint64_t i;

  begin (16);
  map_commit_with (a->map, commit_for_others, a);
  map_commit_with (b->map, commit_for_others, b);
  CHECK (!map_commit_other (a->map));
  for (i = 0; i < 5; i++)
    CHECK_EQ (set (a, page_sector (i)), 0);
  CHECK_EQ (a->nr_commits, 0);
  CHECK (!map_commit_other (a->map));
  for (i = 0; i < 10; i++)
    CHECK_EQ (set (b, page_sector (i)), 0);
  CHECK_EQ (a->nr_commits, 1);
  CHECK_EQ (map_nr_uncommitted_pages (a->map), 0);
  CHECK_EQ (commit (b), 0);

  for (i = 0; i < 5; i++)
    CHECK_EQ (set (a, page_sector (i) + 1), 0);
  sim_fail (&a->metadata.port, SIM_FLUSH, 1, EIO, 1000);
  for (i = 0; i < NR_PAGES; i++) {
    CHECK_EQ (set (b, page_sector (i) + 1), 0);
    CHECK (nr_pages () <= 16 + 2);
  }
  CHECK_EQ (a->nr_commits, 2);
  CHECK_EQ (map_nr_uncommitted_pages (a->map), 5);

  /* By its own commit it is as good as others. */
  sim_fail (&a->metadata.port, SIM_FLUSH, 0, 0, 0);
  CHECK_EQ (commit (a), 0);
  CHECK_EQ (commit (b), 0);
  for (i = 0; i < 5; i++)
    CHECK_EQ (set (a, page_sector (i) + 2), 0);
  for (i = 0; i < 10; i++)
    CHECK_EQ (set (b, page_sector (i) + 2), 0);
  CHECK_EQ (a->nr_commits, 3);
  end ();
}

/* All that there is belongs to others who cannot commit: each map goes on
 * with one page, of its own commits.
 */
static void
test_page_of_ones_own (void)
{
  struct disk *const c = &disks[2];
  uint64_t i;

  begin (16);
  for (i = 0; prepare (a, page_sector (i)) == 0; i++)
    ;
  for (i = 0; prepare (b, page_sector (i)) == 0; i++)
    ;
  CHECK_EQ (nr_pages (), 16);
  for (i = 0; i < NR_PAGES; i++) {
    CHECK_EQ (set (c, page_sector (i)), 0);
    CHECK_EQ (nr_pages (), 18);
    CHECK_EQ (map_nr_uncommitted_pages (c->map), 1);
  }
  CHECK_EQ (commit (c), 0);
  for (i = 0; i < NR_PAGES; i++)
    CHECK (disk_bit (c, page_sector (i)));
  end ();
}

/* A map that ends leaves nothing, and others theirs. */
static void
test_close (void)
{
  uint64_t i;

  begin (64);
  put_bits (a);
  for (i = 0; i < 10; i++) {
    CHECK (get_put_bit (a, 20 + i));
    CHECK_EQ (set (a, page_sector (i)), 0);
    CHECK_EQ (set (b, page_sector (i)), 0);
  }
  CHECK_EQ (map_freeze (a->map), 0);
  CHECK_EQ (set (a, page_sector (3) + 10), 0);
  map_close (a->map);
  a->map = NULL;
  CHECK_EQ (nr_pages (), 20);
  for (i = 0; i < 10; i++) {
    CHECK (get (b, page_sector (i)));
    CHECK (!get (b, page_sector (i) + 1));
  }
  CHECK_EQ (commit (b), 0);
  end ();
}

static struct gate gate;

static void
close_worker (void *opaque)
{
  struct disk *d = opaque;

  map_close (d->map);
  d->map = NULL;
}

static void
commit_other_worker (void *opaque)
{
  struct disk *d = opaque;

  CHECK (map_commit_other (d->map));
}

/* Who closes a map waits for who commits it. */
static void
test_close_waits (void)
{
  struct worker committer, closer;

  begin (16);
  gate = (struct gate){ .open = false };
  map_commit_with (a->map, commit_for_others, a);
  CHECK_EQ (set (a, 5), 0);
  sim_hold (&a->metadata.port, SIM_WRITE, SIM_ANYWHERE, &gate);
  worker_start (&committer, commit_other_worker, b);
  workers_settle ();
  CHECK_EQ (worker_state (&committer), WORKER_HELD);
  worker_start (&closer, close_worker, a);
  workers_settle ();
  CHECK_EQ (worker_state (&closer), WORKER_WAITING);
  CHECK (!map_commit_other (b->map));
  gate_open (&gate);
  worker_join (&committer);
  worker_join (&closer);
  sim_no_gates (&a->metadata.port);
  CHECK (disk_bit (a, 5));
  end ();
}

static void
set_worker (void *opaque)
{
  CHECK_EQ (set (opaque, page_sector (100)), 0);
}

/* Who can only wait for others does, and goes on when they are done. */
static void
test_wait (bool they_set)
{
  struct worker worker;
  uint64_t i, n = 0;

  begin (16);
  while (prepare (a, page_sector (n)) == 0)
    n++;
  worker_start (&worker, set_worker, a);
  workers_settle ();
  CHECK_EQ (worker_state (&worker), WORKER_WAITING);
  if (they_set)
    map_set (a->map, page_sector (0), 1);
  map_unprepare (a->map, page_sector (0), 1);
  worker_join (&worker);
  CHECK_EQ (map_nr_uncommitted_pages (a->map), 1);
  CHECK_EQ (disk_bit (a, page_sector (0)), they_set);
  for (i = 1; i < n; i++)
    map_unprepare (a->map, page_sector (i), 1);
  CHECK_EQ (commit (a), 0);
  CHECK (disk_bit (a, page_sector (100)));
  end ();
}

/*--- What was read is out of date. ------------------------------------*/

static unsigned after_countdown;

/* While somebody has read page 7, and not kept it, a bit is set in it,
 * committed, and the page let go of.
 */
static void
change_and_drop (enum sim_op op)
{
  uint64_t i;

  if ((op != SIM_READ && op != SIM_EXTENTS) || after_countdown == 0 ||
      --after_countdown > 0)
    return;
  CHECK_EQ (set (a, page_sector (7) + 50), 0);
  CHECK_EQ (commit (a), 0);
  for (i = 20; i < 60; i++)
    CHECK (get_put_bit (b, i));
}

static void
test_out_of_date (bool is_hole, bool pin)
{
  bool over = false;
  unsigned n;

  for (n = 1; !over; n++) {
    begin (4);
    put_bits (b);
    if (!is_hole)
      put_bits (a);
    else /* the chunk is no hole, the page is */
      sim_store_put (&a->store, "\1", 1, 100 * PAGE_BYTES);
    a->metadata.port.after = change_and_drop;
    after_countdown = n;
    if (!pin)
      get (a, page_sector (7) + 50); /* before or after */
    else {
      CHECK_EQ (set (a, page_sector (7) + 60), 0);
      CHECK_EQ (commit (a), 0);
      CHECK (disk_bit (a, page_sector (7) + 60));
    }
    over = after_countdown > 0;
    after_countdown = 0;
    CHECK_EQ (get (a, page_sector (7) + 50), !over);
    CHECK_EQ (disk_bit (a, page_sector (7) + 50), !over);
    CHECK_EQ (get (a, page_sector (7) + 4), !is_hole);
    end ();
  }
  CHECK (n > 2);
}

/*--- Threads. ---------------------------------------------------------*/

#define NR_THREADS 4

static unsigned nr_steps;
static _Atomic uint64_t most_pages;
static _Atomic uint8_t is_set[NR_THREADS][NR_MAPS][NR_PAGES];

/* Thread ME sets sectors that are ME modulo NR_THREADS, of all maps. */
static void *
hammer_thread (void *opaque)
{
  const uint64_t me = (uintptr_t) opaque;
  struct rng rng = { me };
  uint64_t i, now;

  for (i = 0; i < nr_steps; i++) {
    const unsigned m = rng_below (&rng, NR_MAPS);
    const uint64_t page = rng_below (&rng, NR_PAGES);
    const uint64_t sector = page_sector (page) + 8 + me;
    const unsigned other = rng_below (&rng, NR_THREADS);
    const bool was_set = is_set[other][m][page];

    if (was_set)
      CHECK (get (&disks[m], page_sector (page) + 8 + other));
    CHECK_EQ (get (&disks[m], sector), is_set[me][m][page]);
    CHECK (get_put_bit (&disks[m], page));
    if (rng_one_in (&rng, 4)) {
      CHECK_EQ (set (&disks[m], sector), 0);
      is_set[me][m][page] = 1;
    }
    now = nr_pages ();
    if (now > most_pages)
      most_pages = now;
  }
  return NULL;
}

static void
test_hammer (uint64_t max_pages)
{
  pthread_t threads[NR_THREADS];
  uintptr_t i;
  unsigned m;

  begin (max_pages);
  world.no_log = true;
  most_pages = 0;
  memset ((void *) is_set, 0, sizeof is_set);
  for (m = 0; m < NR_MAPS; m++) {
    put_bits (&disks[m]);
    map_commit_with (disks[m].map, commit_for_others, &disks[m]);
  }
  for (i = 0; i < NR_THREADS; i++)
    CHECK_EQ (pthread_create (&threads[i], NULL, hammer_thread, (void *) i), 0);
  for (i = 0; i < NR_THREADS; i++)
    pthread_join (threads[i], NULL);
  CHECK (most_pages <= max_pages + 2 * NR_MAPS);
  end ();
}

int
main (int argc, char *argv[])
{
  static const uint64_t sizes[] = { 0, 1, 2, 3, 4, 7, 16, 64, 1000 };
  const struct test_options o = test_options (argc, argv);
  size_t i;

  nr_steps = o.iterations ? o.iterations : workers_are_watched () ? 500 : 3000;
  check_watchdog (300);
  for (i = 0; i < ARRAY_SIZE (sizes); i++) {
    test_clean (sizes[i]);
    test_dirty (sizes[i]);
    test_hammer (sizes[i]);
  }
  test_second_chance ();
  test_empty_page ();
  test_pins ();
  test_look_ups_need_none ();
  test_large_range ();
  test_failing_commits (SIM_WRITE);
  test_failing_commits (SIM_FLUSH);
  test_idle_map ();
  test_commit_for_others ();
  test_page_of_ones_own ();
  test_close ();
  test_close_waits ();
  test_wait (false);
  test_wait (true);
  test_out_of_date (false, false);
  test_out_of_date (false, true);
  test_out_of_date (true, false);
  test_out_of_date (true, true);
  printf ("%u steps of %d threads with each of %zu caches\n", nr_steps,
          NR_THREADS, ARRAY_SIZE (sizes));
  return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A look-up takes no lock, so anything may happen to its page between two
 * of its steps.  Here it does: the map is compiled into this program with
 * a call before each atomic load, and for each load of a look-up there is
 * a run in which, right there, a commit ends, the page is let go of and
 * used for another one.  And a look-up may come after any step of a
 * change: so there is a call after each atomic store.
 */

#include <config.h>

#include <stdatomic.h>

#include "check.h"

static void before_load (void);
static void after_store (void);

/* The macro of a compiler's stdatomic.h cannot be used in one of its name,
 * what it is made of can.
 */
#undef atomic_load_explicit
#undef atomic_store_explicit
#ifdef __clang__
#define LOAD __c11_atomic_load
#define STORE __c11_atomic_store
#else
#define LOAD __atomic_load_n
#define STORE __atomic_store_n
#endif
#define atomic_load_explicit(p, order) (before_load (), LOAD (p, order))
#define atomic_store_explicit(p, value, order) \
  (STORE (p, value, order), after_store ())

/* The program has no other copy of it. */
#include "map.c"

#include "sim-image.h"

static struct sim_world world;
static struct sim_store store;
static struct sim_image metadata;
static struct map *map;

static unsigned countdown; /* of loads; 0: nothing is due */
static void (*action) (void);

static void
before_load (void)
{
  if (countdown > 0 && --countdown == 0)
    action ();
}

static bool watching;

/* Whoever sees a bit set, and then nothing uncommitted, takes it to be on
 * disk: in this map none is.
 */
static void
after_store (void)
{
  bool allocated;
  uint64_t run;

  if (!watching)
    return;
  CHECK_EQ (map_run (map, 5, 1, &allocated, &run), 0);
  if (allocated)
    CHECK (map_uncommitted (map));
}

static uint64_t
page_sector (uint64_t i)
{
  return i == 0 ? 0 : i * PAGE_BITS - FIRST_BIT;
}

static void
set (uint64_t sector, uint64_t nr_sectors)
{
  uint64_t n;

  CHECK_EQ (map_prepare (map, sector, nr_sectors, &n), 0);
  CHECK_EQ (n, nr_sectors);
  map_set (map, sector, nr_sectors);
  map_unprepare (map, sector, nr_sectors);
}

/* Page 1 is full and as good as committed. */
static void
begin (void)
{
  const uint64_t size_bytes = page_sector (8) * FORMAT_SECTOR_BYTES;

  sim_world_init (&world);
  sim_store_init (&store, &world, format_file_bytes (size_bytes));
  sim_image_init (&metadata, &store);
  CHECK_EQ (map_open (&map, &metadata.image, size_bytes, NULL), 0);
  set (page_sector (1), PAGE_BITS - 1);
  set (page_sector (2) - 1, 1);
  CHECK_EQ (map_freeze (map), 0);
  CHECK_EQ (map_write_frozen (map), 0);
}

static void
end (void)
{
  map_close (map);
  sim_store_clear (&store);
  sim_world_clear (&world);
}

/* The page goes, and is used for page 3, few of whose bits are set. */
static void
recycle (void)
{
  struct page *page = slot_page (slot_load (map, 1));

  map_thaw (map, true);
  CHECK_EQ (slot_load (map, 1), SLOT_ONES);
  set (page_sector (3) + 1000, 70);
  CHECK (slot_page (slot_load (map, 3)) == page);
}

/* It goes, and nobody else has it. */
static void
release (void)
{
  map_thaw (map, true);
  CHECK_EQ (slot_load (map, 1), SLOT_ONES);
}

/* It goes to another page, which becomes full too, and to a third. */
static void
recycle_twice (void)
{
  recycle ();
  set (page_sector (3), PAGE_BITS);
  CHECK_EQ (map_freeze (map), 0);
  CHECK_EQ (map_write_frozen (map), 0);
  map_thaw (map, true);
  set (page_sector (5) + 3, 1);
}

/* A look-up of page 1 sees what is true before and after. */
static void
test_full_page (void (*what) (void), uint64_t first, uint64_t max)
{
  unsigned n;
  bool over = false;

  for (n = 1; !over; n++) {
    bool allocated;
    uint64_t run;

    begin ();
    action = what;
    countdown = n;
    CHECK_EQ (map_run (map, page_sector (1) + first, max, &allocated, &run), 0);
    over = countdown > 0;
    countdown = 0;
    CHECK (allocated);
    CHECK_EQ (run, MIN (max, PAGE_BITS - first));
    if (over)
      map_thaw (map, true);
    end ();
  }
  CHECK (n > 3);
}

/* The page that is let go of, and what its generation was before. */
static struct page *released;
static uint64_t released_generation;
static unsigned nr_released;

int __real_madvise (void *, size_t, int);
int __wrap_madvise (void *, size_t, int);

int
__wrap_madvise (void *addr, size_t count, int advice)
{
  if (released && addr == (void *) released->words) {
    nr_released++;
    CHECK (released->generation != released_generation);
    CHECK_EQ (slot_load (map, 1), SLOT_ONES);
  }
  return __real_madvise (addr, count, advice);
}

/* Before the words of a page change, it is out of its slot and whoever
 * reads them will know.
 */
static void
test_release_order (void)
{
  begin ();
  released = slot_page (slot_load (map, 1));
  released_generation = released->generation;
  map_thaw (map, true);
  CHECK_EQ (nr_released, 1);
  released = NULL;
  end ();
}

static void
set_more (void)
{
  set (page_sector (1) + 200, 10000);
}

/* Bits that are set meanwhile are seen or not; those that were set are
 * seen, and no other.
 */
static void
test_growing_page (void)
{
  unsigned n;
  bool over = false;

  for (n = 1; !over; n++) {
    bool allocated;
    uint64_t run;

    begin ();
    map_thaw (map, true);
    map_close (map);
    sim_store_clear (&store);
    sim_store_init (&store, &world, format_file_bytes (page_sector (8) * 512));
    CHECK_EQ (map_open (&map, &metadata.image, page_sector (8) * 512, NULL), 0);
    set (page_sector (1), 200);
    action = set_more;
    countdown = n;
    CHECK_EQ (map_run (map, page_sector (1), PAGE_BITS, &allocated, &run), 0);
    over = countdown > 0;
    countdown = 0;
    CHECK (allocated);
    CHECK (run >= 200 && run <= 10200);
    end ();
  }
}

/* Look-ups of others take the page and use it for other bits. */
static void
drop (void)
{
  bool allocated;
  uint64_t i, run;

  for (i = 2; i < 8; i++) {
    CHECK_EQ (map_run (map, page_sector (i), 9, &allocated, &run), 0);
    CHECK (!allocated && run == 9);
  }
  CHECK_EQ (slot_load (map, 1), SLOT_UNKNOWN);
}

/* A page goes while it is looked at, and is read again. */
static void
test_dropped_page (void)
{
  const uint64_t size_bytes = page_sector (8) * FORMAT_SECTOR_BYTES;
  struct map_cache *cache;
  bool over = false;
  unsigned n, i;

  for (n = 1; !over; n++) {
    bool allocated;
    uint64_t run;

    sim_world_init (&world);
    sim_store_init (&store, &world, format_file_bytes (size_bytes));
    sim_image_init (&metadata, &store);
    for (i = 1; i < 8; i++)
      sim_store_put (&store, i == 1 ? "\xff" : "\0\xfe", 2, i * PAGE_BYTES);
    CHECK_EQ (map_cache_new (&cache, 2 * PAGE_BYTES), 0);
    CHECK_EQ (map_open (&map, &metadata.image, size_bytes, cache), 0);
    CHECK_EQ (map_run (map, page_sector (1), 9, &allocated, &run), 0);
    action = drop;
    countdown = n;
    CHECK_EQ (map_run (map, page_sector (1), 100, &allocated, &run), 0);
    over = countdown > 0;
    countdown = 0;
    CHECK (allocated);
    CHECK_EQ (run, 8);
    end ();
    map_cache_free (cache);
  }
  CHECK (n > 5);
}

static void
test_set_bit_is_uncommitted (void)
{
  uint64_t n;

  begin ();
  map_thaw (map, true);
  CHECK (!map_uncommitted (map));
  CHECK_EQ (map_prepare (map, 0, 100, &n), 0);
  watching = true;
  CHECK (map_set (map, 0, 100));
  watching = false;
  end ();
}

int
main (void)
{
  static const uint64_t firsts[] = { 0, 1, 1000, 1069, 20000, PAGE_BITS - 1 };
  size_t i;

  check_watchdog (120);
  for (i = 0; i < ARRAY_SIZE (firsts); i++) {
    test_full_page (recycle, firsts[i], 1);
    test_full_page (recycle, firsts[i], 300);
    test_full_page (release, firsts[i], 300);
    test_full_page (recycle_twice, firsts[i], 300);
  }
  test_full_page (recycle, 0, PAGE_BITS);
  test_full_page (release, 0, PAGE_BITS);
  test_growing_page ();
  test_dropped_page ();
  test_release_order ();
  test_set_bit_is_uncommitted ();
  return 0;
}

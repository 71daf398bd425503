/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The allocation map against a model that keeps a byte for each sector,
 * its commits, what it reads and writes, and its look-ups without locks.
 *
 *     test-map [-s SEED] [-n ITERATIONS]
 */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "bitmap.h"
#include "common.h"
#include "format.h"
#include "map.h"
#include "sim-image.h"

#define PAGE_BYTES 4096
#define PAGE_BITS (PAGE_BYTES * 8)
#define HEADER FORMAT_HEADER_BYTES
#define FIRST_BIT (HEADER * 8)
#define SECTOR UINT64_C (512)

/* The first sector of page I. */
static uint64_t
page_sector (uint64_t i)
{
  return i == 0 ? 0 : i * PAGE_BITS - FIRST_BIT;
}

/*--- Memory that the map takes and gives back. ------------------------*/

static _Atomic size_t nr_mapped; /* bytes */
static _Atomic size_t nr_given_back;
static _Atomic size_t nr_madvises;
static _Atomic bool cannot_give_back;
static long kernel_page_bytes; /* 0: what they are */

void *__real_mmap (void *, size_t, int, int, int, off_t);
void *__wrap_mmap (void *, size_t, int, int, int, off_t);
int __real_madvise (void *, size_t, int);
int __wrap_madvise (void *, size_t, int);
long __real_sysconf (int);
long __wrap_sysconf (int);

void *
__wrap_mmap (void *addr, size_t count, int prot, int flags, int fd,
             off_t offset)
{
  nr_mapped += count;
  return __real_mmap (addr, count, prot, flags, fd, offset);
}

/* Like a kernel of such pages: counts are rounded up to them. */
int
__wrap_madvise (void *addr, size_t count, int advice)
{
  nr_madvises++;
  if (cannot_give_back) {
    errno = EINVAL;
    return -1;
  }
  if (advice == MADV_DONTNEED)
    nr_given_back += count;
  if (kernel_page_bytes)
    count = DIV_ROUND_UP (count, kernel_page_bytes) * kernel_page_bytes;
  return __real_madvise (addr, count, advice);
}

long
__wrap_sysconf (int name)
{
  if (name == _SC_PAGESIZE && kernel_page_bytes)
    return kernel_page_bytes;
  return __real_sysconf (name);
}

static bool no_memory;

void *__real_malloc (size_t);
void *__wrap_malloc (size_t);

void *
__wrap_malloc (size_t count)
{
  if (no_memory) {
    errno = ENOMEM;
    return NULL;
  }
  return __real_malloc (count);
}

static _Atomic size_t nr_allocated; /* bytes */

void *__real_calloc (size_t, size_t);
void *__wrap_calloc (size_t, size_t);

void *
__wrap_calloc (size_t n, size_t size)
{
  nr_allocated += n * size;
  return __real_calloc (n, size);
}

/*--- A map over a simulated file. -------------------------------------*/

static struct sim_world world;
static struct sim_store store;
static struct sim_image metadata;
static struct map *map;
static struct map_cache *cache; /* NULL: one of its own */

static void
begin (uint64_t nr_sectors, uint64_t more_bytes)
{
  sim_world_init (&world);
  sim_store_init (&store, &world,
                  format_file_bytes (nr_sectors * SECTOR) + more_bytes);
  sim_image_init (&metadata, &store);
}

static void
open_map (uint64_t nr_sectors)
{
  CHECK_EQ (map_open (&map, &metadata.image, nr_sectors * SECTOR, cache), 0);
}

static void
end (void)
{
  map_close (map);
  map = NULL;
  sim_store_clear (&store);
  sim_world_clear (&world);
}

static bool
disk_bit (uint64_t sector)
{
  return sim_store_byte (&store, HEADER + sector / 8) >> sector % 8 & 1;
}

static int commit (void);

/* Set what there is memory for, after a commit if that is needed. */
static bool
set_some (uint64_t sector, uint64_t max_sectors, uint64_t *n)
{
  bool first;
  int r;

  while ((r = map_prepare (map, sector, max_sectors, n)) == MAP_FULL)
    CHECK_EQ (commit (), 0);
  CHECK_EQ (r, 0);
  CHECK (*n >= 1 && *n <= max_sectors);
  first = map_set (map, sector, *n);
  map_unprepare (map, sector, *n);
  return first;
}

/* Returns as map_set. */
static bool
set (uint64_t sector, uint64_t nr_sectors)
{
  bool first = false;
  uint64_t n;

  for (; nr_sectors > 0; sector += n, nr_sectors -= n)
    first |= set_some (sector, nr_sectors, &n);
  return first;
}

static bool
get (uint64_t sector)
{
  bool allocated;
  uint64_t run;

  CHECK_EQ (map_run (map, sector, 1, &allocated, &run), 0);
  CHECK_EQ (run, 1);
  return allocated;
}

static int
commit (void)
{
  int r;

  CHECK_EQ (map_freeze (map), 0);
  r = map_write_frozen (map);
  map_thaw (map, r == 0);
  return r;
}

/*--- Against a model. -------------------------------------------------*/

#define MAX_SECTORS (5 * PAGE_BITS)
#define MORE_BYTES 5000

struct model {
  uint64_t nr_sectors;
  uint8_t now[MAX_SECTORS];
  uint8_t frozen[MAX_SECTORS]; /* as of the last freeze */
  uint8_t on_disk[MAX_SECTORS];
  bool is_frozen;
};

static struct model model;

static uint64_t
random_size (struct rng *rng)
{
  const uint64_t boundary = page_sector (rng_range (rng, 0, 4));

  switch (rng_below (rng, 4)) {
  case 0:
    return rng_range (rng, 0, 40);
  case 1:
    return rng_range (rng, 0, MAX_SECTORS - FIRST_BIT);
  default:
    return MAX (boundary, 20) - 20 + rng_below (rng, 41);
  }
}

/* Fill the sectors of one page in a way of their own. */
static void
random_page (struct rng *rng, uint64_t begin_sector, uint64_t end_sector)
{
  const unsigned way = rng_below (rng, 6);
  uint64_t s;
  uint8_t value = rng_below (rng, 2);

  for (s = begin_sector; s < end_sector; s++) {
    if (way == 0)
      value = 0;
    else if (way == 1)
      value = 1;
    else if (way == 2)
      value = rng_below (rng, 2);
    else if (way == 3)
      value = s == end_sector - 1;
    else if (way == 4)
      value = s != begin_sector;
    else if (rng_one_in (rng, 1000))
      value = !value;
    model.now[s] = value;
  }
}

/* Make the file as the model says: sectors of the file without a bit are
 * holes or not.  Around the bitmap stands what nobody may touch.
 */
static void
make_file (struct rng *rng)
{
  const uint64_t bytes = DIV_ROUND_UP (model.nr_sectors, 8);
  static uint8_t file[HEADER + MAX_SECTORS / 8 + MORE_BYTES];
  const uint64_t length = HEADER + bytes + MORE_BYTES;
  uint64_t s, offset;

  memset (file, 0, sizeof file);
  memset (file, 0xa9, HEADER);
  for (s = 0; s < model.nr_sectors; s++)
    file[HEADER + s / 8] |= model.now[s] << s % 8;
  if (model.nr_sectors % 8 && rng_one_in (rng, 2))
    file[HEADER + bytes - 1] |= 0xff << model.nr_sectors % 8;
  if (rng_one_in (rng, 2))
    memset (file + HEADER + bytes, 0x96, MORE_BYTES);

  begin (model.nr_sectors, MORE_BYTES);
  for (offset = 0; offset < length; offset += 512) {
    const uint64_t n = MIN (512, length - offset);
    bool zero = true;

    for (s = 0; s < n; s++)
      zero = zero && file[offset + s] == 0;
    if (!zero || rng_one_in (rng, 10))
      sim_store_put (&store, file + offset, n, offset);
  }
  store.knows_holes = !rng_one_in (rng, 4);
  metadata.port.one_extent = rng_one_in (rng, 4);
  memcpy (model.on_disk, model.now, model.nr_sectors);
}

static void
check_run (uint64_t sector, uint64_t max_sectors)
{
  bool allocated;
  uint64_t run, want = 1;

  CHECK_EQ (map_run (map, sector, max_sectors, &allocated, &run), 0);
  CHECK_EQ (allocated, model.now[sector]);
  while (want < max_sectors && model.now[sector + want] == allocated)
    want++;
  CHECK_EQ (run, want);
}

static void
random_query (struct rng *rng)
{
  const uint64_t sector = rng_below (rng, model.nr_sectors);
  const uint64_t few = rng_range (rng, 1, 200);
  const uint64_t rest = model.nr_sectors - sector;

  check_run (sector, rng_one_in (rng, 2) ? rest : MIN (rest, few));
}

static bool
model_is_uncommitted (void)
{
  return memcmp (model.now, model.on_disk, model.nr_sectors) != 0;
}

static void
random_set (struct rng *rng)
{
  static const unsigned lengths[] = { 1, 9, 70, 1000, 40000, 200000 };
  uint64_t sector = rng_below (rng, model.nr_sectors);
  const bool was = map_uncommitted (map);
  uint64_t n;
  bool first;

  if (rng_one_in (rng, 2)) { /* at the boundary of a page */
    sector = page_sector (rng_below (rng, 6)) + rng_below (rng, 3);
    sector = MIN (sector, model.nr_sectors - 1);
  }
  n = rng_range (rng, 1, lengths[rng_below (rng, 6)]);
  n = MIN (n, model.nr_sectors - sector);

  first = set (sector, n);
  memset (model.now + sector, 1, n);
  CHECK_EQ (first, !was && map_uncommitted (map));
  if (model_is_uncommitted ())
    CHECK (map_uncommitted (map));
}

/* What is on disk is what the model says, and the rest as it was made.
 * Bits past the last sector may become zero.
 */
static void
check_disk (const struct sim_store *before_store UNUSED, const uint8_t *before,
            uint64_t length)
{
  static uint8_t file[HEADER + MAX_SECTORS / 8 + MORE_BYTES];
  const uint64_t end_byte = HEADER + DIV_ROUND_UP (model.nr_sectors, 8);
  uint64_t s;

  sim_store_get (&store, file, length, 0);
  CHECK (memcmp (file, before, HEADER) == 0);
  CHECK (memcmp (file + end_byte, before + end_byte, length - end_byte) == 0);
  for (s = 0; s < model.nr_sectors; s++)
    if ((file[HEADER + s / 8] >> s % 8 & 1) != model.on_disk[s]) {
      fprintf (stderr, "sector %" PRIu64 " on disk\n", s);
      CHECK_EQ (!model.on_disk[s], model.on_disk[s]);
    }
  if (model.nr_sectors % 8) {
    const uint8_t stray = file[end_byte - 1] >> model.nr_sectors % 8;
    const uint8_t was = before[end_byte - 1] >> model.nr_sectors % 8;

    CHECK (stray == was || stray == 0);
  }
}

static void
check_writes (void)
{
  const uint64_t end_byte = HEADER + DIV_ROUND_UP (model.nr_sectors, 8);
  size_t i, n = sim_log_count (&world, NULL, SIM_WRITE);

  for (i = 0; i < n; i++) {
    const struct sim_event e = sim_log_get (&world, NULL, SIM_WRITE, i);

    CHECK (e.offset >= HEADER && e.count > 0);
    CHECK (e.offset + e.count <= end_byte);
    CHECK_EQ (e.flags, 0);
  }
  CHECK_EQ (sim_log_count (&world, NULL, SIM_ZERO), 0);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_TRIM), 0);
}

/* No page is read that is a hole, none is asked for twice. */
static void
check_reads (struct sim_port *port UNUSED, enum sim_op op, uint64_t offset,
             uint64_t count, void *opaque)
{
  uint8_t *asked = opaque;
  uint64_t page, at;

  if (op != SIM_READ)
    return;
  CHECK_EQ (offset % PAGE_BYTES, 0);
  CHECK (!asked[offset / PAGE_BYTES]);
  asked[offset / PAGE_BYTES] = 1;
  for (page = offset; page < offset + count; page += PAGE_BYTES) {
    bool data = !store.knows_holes;

    for (at = page; at < MIN (page + PAGE_BYTES, offset + count); at += 512)
      data = data || sim_store_is_data (&store, at);
    CHECK (data);
  }
}

static void
random_commit_step (struct rng *rng)
{
  if (!model.is_frozen) {
    CHECK_EQ (map_freeze (map), 0);
    memcpy (model.frozen, model.now, model.nr_sectors);
    model.is_frozen = true;
    return;
  }
  if (rng_one_in (rng, 4)) /* the image could not be flushed */
    map_thaw (map, false);
  else {
    CHECK_EQ (map_write_frozen (map), 0);
    memcpy (model.on_disk, model.frozen, model.nr_sectors);
    map_thaw (map, true);
    CHECK_EQ (map_uncommitted (map), model_is_uncommitted ());
  }
  model.is_frozen = false;
}

static void
test_model (struct rng *rng, unsigned nr_steps)
{
  static uint8_t before[HEADER + MAX_SECTORS / 8 + MORE_BYTES];
  uint8_t asked[8] = { 0 };
  uint64_t i, n;

  model.nr_sectors = random_size (rng);
  for (i = 0; page_sector (i) < model.nr_sectors; i++)
    random_page (rng, page_sector (i),
                 MIN (page_sector (i + 1), model.nr_sectors));
  make_file (rng);
  sim_store_get (&store, before, store.size_bytes, 0);
  metadata.port.hook = check_reads;
  metadata.port.opaque = asked;
  open_map (model.nr_sectors);
  CHECK_EQ (world.nr_events, 0);

  model.is_frozen = false;
  if (model.nr_sectors > 0)
    for (i = 0; i < nr_steps; i++) {
      const unsigned what = rng_below (rng, 8);

      if (what == 0)
        random_commit_step (rng);
      else if (what == 1)
        random_set (rng);
      else
        random_query (rng);
    }

  if (model.is_frozen)
    map_thaw (map, false);
  CHECK_EQ (commit (), 0);
  CHECK (!map_uncommitted (map));
  CHECK_EQ (map_nr_uncommitted_pages (map), 0);
  memcpy (model.on_disk, model.now, model.nr_sectors);
  check_disk (&store, before, store.size_bytes);
  check_writes ();

  /* Counting, and a second map that reads what the first one wrote. */
  metadata.port.hook = NULL;
  metadata.port.one_extent = false;
  for (n = 0, i = 0; i < model.nr_sectors; i++)
    n += model.now[i];
  CHECK_EQ (bitmap_count (&metadata.image, 0, model.nr_sectors, &i), 0);
  CHECK_EQ (i, n);
  map_close (map);
  open_map (model.nr_sectors);
  for (i = 0; i < model.nr_sectors; i += n) {
    bool allocated;

    CHECK_EQ (map_run (map, i, model.nr_sectors - i, &allocated, &n), 0);
    CHECK_EQ (allocated, model.now[i]);
    CHECK (i + n == model.nr_sectors || allocated != model.now[i + n]);
  }
  end ();
}

/*--- What is read. ----------------------------------------------------*/

static void
test_reads_forward (void)
{
  const uint64_t nr_pages = 2000;
  const uint64_t nr_sectors = page_sector (nr_pages);
  uint8_t *times = calloc (nr_pages, 1);
  uint64_t page, i, s;

  CHECK (times != NULL);
  begin (nr_sectors, 0);
  store.discards = false;
  /* Every third run of 40 pages is there. */
  for (page = 0; page < nr_pages; page++)
    if (page / 40 % 3 == 0)
      sim_store_put (&store, "\1", 1, page * PAGE_BYTES + 2100);
  /* Only one sector of such a page is data, so make it whole. */
  for (page = 0; page < nr_pages; page++)
    if (page / 40 % 3 == 0)
      for (i = 0; i < PAGE_BYTES; i += 512)
        if (!sim_store_is_data (&store, page * PAGE_BYTES + i))
          sim_store_put (&store, "\0", 1, page * PAGE_BYTES + i);

  open_map (nr_sectors);
  for (s = 0; s < nr_sectors; s += 9999)
    get (s);
  get (nr_sectors - 1);
  for (s = 0; s < nr_sectors; s += 9999)
    get (s);
  for (i = 0; i < sim_log_count (&world, NULL, SIM_READ); i++) {
    const struct sim_event e = sim_log_get (&world, NULL, SIM_READ, i);

    CHECK_EQ (e.offset % PAGE_BYTES, 0);
    for (page = e.offset / PAGE_BYTES;
         page < DIV_ROUND_UP (e.offset + e.count, PAGE_BYTES); page++)
      times[page]++;
  }
  for (page = 0; page < nr_pages; page++)
    CHECK_EQ (times[page], page / 40 % 3 == 0);
  CHECK_EQ (sim_log_count_changes (&world, NULL), 0);
  free (times);
  end ();
}

/* For who looks at page after page, the system is asked to read on: what was
 * not asked for yet, but neither a hole within a chunk nor what is behind the
 * end; and not for who goes the other way.
 */
static void
try_reads_ahead (unsigned nr_pages)
{
  enum { HOLE = 300, HOLE_END = 340, LESS = 100 };
  const uint64_t nr_sectors = page_sector (nr_pages) - LESS;
  const uint64_t end_byte = format_file_bytes (nr_sectors * SECTOR);
  unsigned *times = calloc (nr_pages, sizeof times[0]);
  static uint8_t ones[PAGE_BYTES];
  unsigned nr_hinted = 0, nr_late = 0;
  uint64_t page, i;

  CHECK (times != NULL);
  memset (ones, 0xff, sizeof ones);
  begin (nr_sectors, 0);
  sim_store_put (&store, ones, PAGE_BYTES, 0);
  for (i = 1; i < nr_pages; i++)
    if (i < HOLE || i >= HOLE_END)
      sim_store_put (&store, ones, MIN (PAGE_BYTES, end_byte - i * PAGE_BYTES),
                     i * PAGE_BYTES);
  /* The first one follows no other. */
  open_map (nr_sectors);
  get (0);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_CACHE), 0);
  for (i = 0; i < nr_pages; i++) {
    const size_t n = sim_log_count (&world, NULL, SIM_CACHE);

    CHECK_EQ (get (page_sector (i)), i < HOLE || i >= HOLE_END);
    if (sim_log_count (&world, NULL, SIM_CACHE) == n)
      continue;
    const struct sim_event e = sim_log_get (&world, NULL, SIM_CACHE, n);

    CHECK (e.count > 0 && e.count <= 1024 * 1024);
    CHECK (e.offset + e.count <= end_byte);
    for (page = e.offset / PAGE_BYTES;
         page < DIV_ROUND_UP (e.offset + e.count, PAGE_BYTES); page++) {
      times[page]++;
      nr_hinted++;
      nr_late += page <= i;
    }
  }
  for (page = 0; page < nr_pages; page++)
    CHECK (times[page] <= (page < HOLE || page >= HOLE_END));
  CHECK_EQ (nr_late, 0);
  /* All but two reads of 16 pages at the beginning and behind the hole. */
  CHECK (nr_hinted + (HOLE_END - HOLE) + 5 * 16 >= nr_pages);

  map_close (map);
  open_map (nr_sectors);
  sim_log_clear (&world);
  for (i = nr_pages; i > 0; i--)
    get (page_sector (i - 1));
  CHECK_EQ (sim_log_count (&world, NULL, SIM_CACHE), 0);
  free (times);
  end ();
}

static void
test_reads_ahead (void)
{
  try_reads_ahead (1300);
  try_reads_ahead (1024); /* where a chunk ends, too */
}

/* Pages of one value are not asked for again and take no memory. */
static void
test_uniform_pages (void)
{
  const uint64_t nr_sectors = page_sector (300);
  static uint8_t ones[PAGE_BYTES];
  uint64_t i;
  size_t mapped;

  memset (ones, 0xff, sizeof ones);
  begin (nr_sectors, 0);
  for (i = 1; i < 300; i += 2)
    sim_store_put (&store, ones, PAGE_BYTES, i * PAGE_BYTES);
  open_map (nr_sectors);
  mapped = nr_mapped;
  for (i = 0; i < 300; i++) {
    bool allocated;
    uint64_t run;

    CHECK_EQ (map_run (map, page_sector (i), nr_sectors - page_sector (i),
                       &allocated, &run),
              0);
    CHECK_EQ (allocated, i % 2);
    CHECK_EQ (run, page_sector (i + 1) - page_sector (i));
  }
  CHECK_EQ (nr_mapped, mapped);
  sim_log_clear (&world);
  for (i = 0; i < nr_sectors; i += 3333)
    get (i);
  CHECK_EQ (world.nr_events, 0);

  /* To set what is set makes nothing dirty. */
  CHECK (!set (page_sector (1), PAGE_BITS));
  CHECK (!map_uncommitted (map));
  CHECK_EQ (nr_mapped, mapped);
  end ();
}

/* A hole ends within a page; a page that is known is left alone when one
 * before it is found to be a hole.
 */
static void
test_holes (void)
{
  begin (page_sector (600), 0);
  sim_store_put (&store, "\1", 1, 2 * PAGE_BYTES + 2048);
  open_map (page_sector (600));
  CHECK (!get (page_sector (1)));
  CHECK (get (page_sector (2) + 2048 * 8));
  CHECK (!get (page_sector (2)));

  set (page_sector (9) + 5, 1);
  CHECK (!get (page_sector (7)));
  CHECK (!get (page_sector (10)));
  CHECK (get (page_sector (9) + 5));
  end ();
}

/* A page is full when its sectors' bits are set: those of the header and
 * the stray ones at the end are no sectors.
 */
static void
test_only_sectors_count (void)
{
  const uint64_t nr_sectors = 100;
  uint8_t header[HEADER];
  uint64_t nr_header_bits = 0, i;

  memset (header, 0, sizeof header);
  header[7] = 0xff;
  header[11] = 1;
  nr_header_bits = 9;
  begin (nr_sectors, 0);
  sim_store_put (&store, header, sizeof header, 0);
  sim_store_put (&store, "\1", 1, HEADER);
  open_map (nr_sectors);
  CHECK (get (0));
  set (1, nr_sectors - nr_header_bits - 1);
  CHECK_EQ (commit (), 0);
  CHECK (get (nr_sectors - nr_header_bits - 1));
  for (i = nr_sectors - nr_header_bits; i < nr_sectors; i++)
    CHECK (!get (i));
  end ();

  begin (nr_sectors, 0);
  sim_store_put (&store, "\1", 1, HEADER);
  sim_store_put (&store, "\xf0", 1, HEADER + 12);
  open_map (nr_sectors);
  set (1, nr_sectors - 5);
  CHECK_EQ (commit (), 0);
  CHECK (get (nr_sectors - 5));
  for (i = nr_sectors - 4; i < nr_sectors; i++)
    CHECK (!get (i));
  end ();
}

static void
test_large (void)
{
  const uint64_t nr_sectors = (UINT64_C (1) << 50) / SECTOR;
  bool allocated;
  uint64_t run;

  begin (nr_sectors, 0);
  open_map (nr_sectors);
  CHECK_EQ (world.nr_events, 0);
  CHECK (!get (0));
  CHECK (!get (nr_sectors - 1));
  CHECK_EQ (map_run (map, nr_sectors / 2, 1 << 23, &allocated, &run), 0);
  CHECK (!allocated && run == 1 << 23);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_READ), 0);
  CHECK (world.nr_events < 10);
  set (nr_sectors - 1, 1);
  set (12345678, 1000);
  CHECK_EQ (commit (), 0);
  CHECK (disk_bit (nr_sectors - 1) && !disk_bit (nr_sectors - 2));
  CHECK (disk_bit (12345678) && disk_bit (12346677));
  CHECK (!disk_bit (12345677) && !disk_bit (12346678));

  /* Nor are holes read to be counted. */
  sim_log_clear (&world);
  CHECK_EQ (bitmap_count (&metadata.image, 0, nr_sectors, &run), 0);
  CHECK_EQ (run, 1001);
  CHECK (sim_log_count (&world, NULL, SIM_READ) < 10);
  end ();
}

/* A file that is one hole but for its header. */

static uint64_t nothing_bytes;

static int
nothing_read (struct image *image UNUSED, void *buf, size_t count,
              uint64_t offset UNUSED)
{
  memset (buf, 0, count);
  return 0;
}

static int
nothing_extents (struct image *image UNUSED, uint64_t count, uint64_t offset,
                 extent_fn *fn, void *opaque)
{
  CHECK (offset + count <= nothing_bytes);
  return offset < HEADER
             ? fn (opaque, MIN (count, PAGE_BYTES - offset % PAGE_BYTES), 0)
             : fn (opaque, count, EXTENT_HOLE | EXTENT_ZERO);
}

/* To look around in holes takes no memory for each, nor to set something in
 * one of them for the others; whatever the size.
 */
static void
test_memory_of_holes (uint64_t size_bytes, struct rng *rng)
{
  static const struct image_ops ops = {
    .read = nothing_read,
    .extents = nothing_extents,
  };
  struct image file = { .ops = &ops };
  const uint64_t nr_sectors = size_bytes / SECTOR;
  const uint64_t there = rng_below (rng, nr_sectors - 1);
  size_t allocated, mapped;
  unsigned i;

  nothing_bytes = format_file_bytes (size_bytes);
  CHECK_EQ (map_open (&map, &file, size_bytes, cache), 0);
  allocated = nr_allocated;
  mapped = nr_mapped;
  for (i = 0; i < 10000; i++) {
    const uint64_t sector = rng_below (rng, nr_sectors);

    if (i == 5000) {
      set (there, 1);
    }
    CHECK (get (there) == (i >= 5000));
    CHECK (!get (there + 1));
    CHECK (sector == there || !get (sector));
  }
  CHECK (nr_allocated - allocated < 100000);
  CHECK (nr_mapped - mapped < 1000000);
  map_close (map);
}

static void
test_load_error (void)
{
  const uint64_t nr_sectors = page_sector (3);
  bool allocated;
  uint64_t run;
  static const enum sim_op ops[] = { SIM_READ, SIM_EXTENTS };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (ops); i++) {
    begin (nr_sectors, 0);
    sim_store_put (&store, "\xff\1", 2, HEADER);
    sim_store_put (&store, "\xff", 1, 2 * PAGE_BYTES);
    open_map (nr_sectors);
    sim_fail (&metadata.port, ops[i], 1, EREMOTEIO, 1);
    CHECK_EQ (map_run (map, 0, nr_sectors, &allocated, &run), EREMOTEIO);
    CHECK_EQ (map_prepare (map, 0, 1, &run), EREMOTEIO);
    CHECK_EQ (map_run (map, 0, nr_sectors, &allocated, &run), 0);
    CHECK (allocated && run == 9);

    /* An error in a page further on is of who asks for that page. */
    sim_fail (&metadata.port, ops[i], 1, EIO, 9);
    CHECK_EQ (map_run (map, 9, nr_sectors - 9, &allocated, &run), 0);
    CHECK (!allocated && run >= page_sector (1) - 9);
    CHECK_EQ (map_run (map, page_sector (2), 1, &allocated, &run), EIO);
    sim_fail (&metadata.port, ops[i], 0, 0, 0);
    CHECK_EQ (map_run (map, page_sector (2) - 1, 9, &allocated, &run), 0);
    CHECK (!allocated && run == 1);
    CHECK (get (page_sector (2)));

    sim_fail (&metadata.port, ops[i], 1, EREMOTEIO, 0);
    CHECK_EQ (bitmap_count (&metadata.image, 0, nr_sectors, &run), EREMOTEIO);
    end ();
  }
}

#define BAD_PAGE 15
static const struct image_ops *sim_ops;
static struct image_ops bad_ops;
static unsigned nr_bad_reads;

static int
read_but_bad_page (struct image *image, void *buf, size_t count,
                   uint64_t offset)
{
  if (offset < (BAD_PAGE + 1) * PAGE_BYTES &&
      offset + count > BAD_PAGE * PAGE_BYTES) {
    nr_bad_reads++;
    return EIO;
  }
  return sim_ops->read (image, buf, count, offset);
}

/* A page that cannot be read is an error of its own sectors, not of those
 * whose pages would be read with it.
 */
static void
test_unreadable_page (void)
{
  static uint8_t data[PAGE_BYTES] = { [100] = 2 };
  const uint64_t nr_sectors = page_sector (40);
  bool allocated;
  uint64_t i, run;

  begin (nr_sectors, 0);
  for (i = 0; i < 40; i++)
    sim_store_put (&store, data, sizeof data, i * PAGE_BYTES);
  sim_ops = metadata.image.ops;
  bad_ops = *sim_ops;
  bad_ops.read = read_but_bad_page;
  metadata.image.ops = &bad_ops;
  open_map (nr_sectors);
  for (i = 0; i < 40; i++)
    if (i != BAD_PAGE) {
      CHECK (i == 0 || get (page_sector (i) + 801));
      CHECK (!get (page_sector (i) + 802));
      set (page_sector (i) + 802, 1);
    }
  CHECK (nr_bad_reads > 0);

  CHECK_EQ (map_run (map, page_sector (BAD_PAGE), 1, &allocated, &run), EIO);
  CHECK_EQ (map_prepare (map, page_sector (BAD_PAGE), 1, &run), EIO);
  metadata.image.ops = sim_ops;
  CHECK (get (page_sector (BAD_PAGE) + 801));
  end ();
}

/* Pages in two chunks of the table that have data without a hole between
 * them: what is read ahead ends with the chunk.
 */
static void
test_load_at_end_of_chunk (void)
{
  static uint8_t page[PAGE_BYTES];
  const uint64_t nr_sectors = page_sector (515);
  uint64_t i;

  begin (nr_sectors, 0);
  memset (page, 2, sizeof page);
  for (i = 508; i < 515; i++)
    sim_store_put (&store, page, sizeof page, i * PAGE_BYTES);
  open_map (nr_sectors);
  for (i = 511; i < 515; i++) {
    CHECK (!get (page_sector (i)));
    CHECK (get (page_sector (i) + 1));
  }
  end ();
}

/*--- Commit. ----------------------------------------------------------*/

/* Without memory a commit does not begin, and the next one is whole. */
static void
test_no_memory (void)
{
  begin (page_sector (4), 0);
  open_map (page_sector (4));
  set (10, 1);
  no_memory = true;
  CHECK_EQ (map_freeze (map), ENOMEM);
  no_memory = false;
  CHECK (map_uncommitted (map));
  set (page_sector (2), 1);
  CHECK_EQ (commit (), 0);
  CHECK (disk_bit (10) && disk_bit (page_sector (2)));
  CHECK (!map_uncommitted (map));
  end ();
}

/* Bits that were found in the file are not on disk before a sync that
 * succeeded; and when one has failed they are written again first.
 */
static void
test_synced (void)
{
  begin (page_sector (4), 0);
  sim_store_put (&store, "\xff", 1, HEADER);
  open_map (page_sector (4));
  CHECK (get (0));
  CHECK (!map_synced (map));
  sim_fail (&metadata.port, SIM_FLUSH, 1, EIO, 0);
  CHECK_EQ (commit (), EIO);
  CHECK (!map_synced (map));
  CHECK_EQ (sim_log_count (&world, NULL, SIM_WRITE), 0);
  CHECK_EQ (commit (), 0);
  CHECK (map_synced (map));
  CHECK_EQ (sim_log_count (&world, NULL, SIM_FLUSH), 2);
  CHECK_EQ (commit (), 0);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_FLUSH), 2);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_WRITE), 1);
  end ();
}

/* What is written is what was set at the freeze. */
static void
test_freeze (void)
{
  const uint64_t b = page_sector (1); /* in the next page */

  begin (page_sector (4), 0);
  open_map (page_sector (4));
  CHECK (set (10, 1));
  CHECK (!set (b + 10, 1));
  CHECK_EQ (map_nr_uncommitted_pages (map), 2);

  CHECK_EQ (map_freeze (map), 0);
  CHECK_EQ (map_nr_uncommitted_pages (map), 2);
  set (11, 1);              /* in a frozen page */
  set (page_sector (2), 1); /* in another one */
  CHECK_EQ (map_nr_uncommitted_pages (map), 3);
  CHECK_EQ (map_write_frozen (map), 0);
  set (b + 11, 1); /* after the write */
  map_thaw (map, true);

  CHECK (disk_bit (10) && disk_bit (b + 10));
  CHECK (!disk_bit (11) && !disk_bit (b + 11));
  CHECK (!disk_bit (page_sector (2)));
  CHECK (get (11) && get (b + 11) && get (page_sector (2)));
  CHECK (map_uncommitted (map));
  CHECK_EQ (map_nr_uncommitted_pages (map), 3);

  CHECK_EQ (commit (), 0);
  CHECK (!map_uncommitted (map));
  CHECK (disk_bit (11) && disk_bit (b + 11) && disk_bit (page_sector (2)));

  /* The pages were neighbours: one write each time, then one flush. */
  CHECK_EQ (sim_log_count (&world, NULL, SIM_WRITE), 2);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_FLUSH), 2);
  CHECK (sim_log_get (&world, NULL, SIM_WRITE, 1).end <
         sim_log_get (&world, NULL, SIM_FLUSH, 1).begin);

  /* Nothing new: nothing is written, nothing is flushed. */
  set (10, 2);
  CHECK_EQ (commit (), 0);
  CHECK_EQ (sim_log_count_changes (&world, NULL), 4);
  end ();
}

/* Each page that was in a commit that failed is written again. */
static void
test_failed_commit (enum sim_op op, unsigned n, int err)
{
  static const uint64_t pages[] = { 5, 0, 2, 3 };
  size_t i;
  uint64_t s;

  begin (page_sector (8), 0);
  store.track = store.forgets = true;
  open_map (page_sector (8));
  CHECK_EQ (commit (), 0); /* bits that are found are another matter */
  for (i = 0; i < ARRAY_SIZE (pages); i++)
    set (page_sector (pages[i]) + 100, 3);
  if (err) {
    sim_fail (&metadata.port, op, n, err, 0);
    CHECK_EQ (commit (), err);
  }
  else {
    CHECK_EQ (map_freeze (map), 0);
    map_thaw (map, false);
  }
  CHECK (map_uncommitted (map));
  CHECK_EQ (map_nr_uncommitted_pages (map), 4);
  set (page_sector (6), 1);

  sim_log_clear (&world);
  CHECK_EQ (commit (), 0);
  CHECK (!map_uncommitted (map));
  CHECK_EQ (sim_log_count (&world, NULL, SIM_WRITE), 3);
  CHECK_EQ (sim_log_get (&world, NULL, SIM_WRITE, 0).offset, HEADER);
  CHECK_EQ (sim_log_get (&world, NULL, SIM_WRITE, 1).offset, 2 * PAGE_BYTES);
  CHECK_EQ (sim_log_get (&world, NULL, SIM_WRITE, 1).count, 2 * PAGE_BYTES);
  CHECK_EQ (sim_log_get (&world, NULL, SIM_WRITE, 2).offset, 5 * PAGE_BYTES);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_FLUSH), 1);

  /* All of it is durable, whatever else was lost. */
  for (i = 0; i < 20; i++) {
    struct sim_world after_world;
    struct sim_store after;
    struct rng rng = { i };
    size_t j;

    sim_world_init (&after_world);
    sim_store_crash (&after, &after_world, &store, &rng);
    for (j = 0; j < ARRAY_SIZE (pages); j++)
      for (s = 99; s < 104; s++) {
        const uint64_t sector = page_sector (pages[j]) + s;

        CHECK_EQ (sim_store_byte (&after, HEADER + sector / 8) >> sector % 8 &
                      1,
                  s >= 100 && s < 103);
      }
    sim_store_clear (&after);
    sim_world_clear (&after_world);
  }
  end ();
}

/* Bits set in a frozen page whose commit fails: all are written later. */
static void
test_set_during_failed_commit (void)
{
  begin (page_sector (2), 0);
  open_map (page_sector (2));
  CHECK_EQ (commit (), 0); /* bits that are found are another matter */
  set (1, 1);
  CHECK_EQ (map_freeze (map), 0);
  set (3, 1);
  sim_fail (&metadata.port, SIM_FLUSH, 1, EIO, 0);
  CHECK_EQ (map_write_frozen (map), EIO);
  map_thaw (map, false);
  CHECK_EQ (map_nr_uncommitted_pages (map), 1);
  CHECK_EQ (commit (), 0);
  CHECK (disk_bit (1) && disk_bit (3));
  CHECK_EQ (map_nr_uncommitted_pages (map), 0);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_WRITE), 2);
  end ();
}

/* A page that becomes all ones gives its memory back, but not before it
 * is on disk.
 */
static void
test_full_pages (void)
{
  const uint64_t nr_pages = 1000;
  const uint64_t nr_sectors = page_sector (nr_pages) + 77;
  uint64_t i;
  size_t mapped, given_back;

  begin (nr_sectors, 0);
  open_map (nr_sectors);
  mapped = nr_mapped;
  given_back = nr_given_back;

  set (0, page_sector (1));
  CHECK_EQ (nr_given_back, given_back);
  sim_fail (&metadata.port, SIM_WRITE, 1, EIO, 0);
  CHECK_EQ (commit (), EIO);
  CHECK_EQ (nr_given_back, given_back);
  CHECK_EQ (commit (), 0);
  CHECK_EQ (nr_given_back, given_back + PAGE_BYTES);

  /* Became full while it was frozen: the next commit's. */
  set (page_sector (1), PAGE_BITS - 1);
  CHECK_EQ (map_freeze (map), 0);
  set (page_sector (2) - 1, 1);
  CHECK_EQ (map_write_frozen (map), 0);
  map_thaw (map, true);
  CHECK (map_uncommitted (map));
  CHECK_EQ (nr_given_back, given_back + PAGE_BYTES);
  CHECK_EQ (commit (), 0);
  CHECK_EQ (nr_given_back, given_back + 2 * PAGE_BYTES);

  /* The last page is full when its sectors are. */
  for (i = 2; i <= nr_pages; i++) {
    cannot_give_back = i % 100 == 50;
    set (page_sector (i), MIN (PAGE_BITS, nr_sectors - page_sector (i)));
    CHECK (get (page_sector (i)));
    CHECK_EQ (commit (), 0);
    CHECK (get (page_sector (i)));
    CHECK (i == nr_pages || !get (page_sector (i + 1)));
  }
  cannot_give_back = false;
  CHECK_EQ (nr_given_back, given_back + (nr_pages + 1 - 10) * PAGE_BYTES);
  CHECK (nr_mapped - mapped <= 256 * PAGE_BYTES);

  for (i = 0; i < nr_sectors; i += 4321)
    CHECK (get (i));
  CHECK_EQ (bitmap_count (&metadata.image, 0, nr_sectors, &i), 0);
  CHECK_EQ (i, nr_sectors);
  end ();
}

/* A kernel whose pages are larger: it is not asked to take a page, as it
 * would take those beside it.
 */
static void
test_large_kernel_pages (void)
{
  const uint64_t nr_sectors = page_sector (8);
  size_t madvises = nr_madvises;
  bool allocated;
  uint64_t i, run;

  begin (nr_sectors, 0);
  kernel_page_bytes = 65536;
  open_map (nr_sectors);
  for (i = 1; i < 5; i++)
    set (page_sector (i) + i, 1);
  CHECK_EQ (commit (), 0);
  set (page_sector (1), PAGE_BITS);
  CHECK_EQ (commit (), 0);
  for (i = 2; i < 5; i++)
    CHECK (get (page_sector (i) + i));
  CHECK_EQ (nr_madvises, madvises);

  /* The page that takes its place begins empty. */
  set (page_sector (6), 1);
  CHECK_EQ (map_run (map, page_sector (6) + 1, PAGE_BITS - 1, &allocated, &run),
            0);
  CHECK (!allocated);
  CHECK_EQ (run, PAGE_BITS - 1);
  kernel_page_bytes = 0;
  end ();
}

/*--- Look-ups while pages come and go. --------------------------------*/

#define HAMMER_PAGES 400
#define NR_READERS 3

/* Of each page, sectors below done are set, from begun on are not. */
static _Atomic uint64_t done[HAMMER_PAGES];
static _Atomic uint64_t begun[HAMMER_PAGES];
static _Atomic bool hammer_over;
static _Atomic unsigned hammer_front; /* the page that is filled now */

static void *
hammer_reader (void *opaque)
{
  struct rng rng = { (uintptr_t) opaque };

  while (!hammer_over) {
    const unsigned front = hammer_front;
    const unsigned back = rng_below (&rng, 4);
    const unsigned page = front - MIN (front, back);
    const uint64_t nr = page_sector (page + 1) - page_sector (page);
    const uint64_t first = rng_one_in (&rng, 2) ? 0 : rng_below (&rng, nr);
    const uint64_t d = done[page];
    bool allocated;
    uint64_t run, b;

    CHECK_EQ (
        map_run (map, page_sector (page) + first, nr - first, &allocated, &run),
        0);
    b = begun[page];
    if (first < d) {
      CHECK (allocated);
      CHECK (run >= d - first);
    }
    if (allocated)
      CHECK (first + run <= b);
  }
  return NULL;
}

static void *
hammer_commits (void *opaque UNUSED)
{
  while (!hammer_over)
    CHECK_EQ (commit (), 0);
  return NULL;
}

/* One thread fills page after page, another commits, so that pages are
 * let go of and taken for the next ones; readers must not see a set bit
 * as clear in one that moved on.
 */
static void
test_hammer (struct rng *rng, unsigned nr_pages)
{
  pthread_t readers[NR_READERS], committer;
  uintptr_t i;
  unsigned page;

  begin (page_sector (HAMMER_PAGES), 0);
  world.no_log = true;
  store.discards = true;
  open_map (page_sector (HAMMER_PAGES));
  hammer_over = false;
  hammer_front = 0;
  for (page = 0; page < HAMMER_PAGES; page++)
    done[page] = begun[page] = 0;
  for (i = 0; i < NR_READERS; i++)
    CHECK_EQ (
        pthread_create (&readers[i], NULL, hammer_reader, (void *) (i + 1)), 0);
  CHECK_EQ (pthread_create (&committer, NULL, hammer_commits, NULL), 0);

  for (page = 0; page < nr_pages; page++) {
    const uint64_t nr = page_sector (page + 1) - page_sector (page);
    uint64_t s = 0;

    hammer_front = page;
    while (s < nr) {
      uint64_t n = rng_range (rng, 1, 6000);

      n = MIN (n, nr - s);
      begun[page] = s + n;
      set (page_sector (page) + s, n);
      s += n;
      done[page] = s;
    }
  }

  hammer_over = true;
  pthread_join (committer, NULL);
  for (i = 0; i < NR_READERS; i++)
    pthread_join (readers[i], NULL);
  CHECK_EQ (commit (), 0);
  for (page = 0; page < nr_pages; page++)
    CHECK (get (page_sector (page)) && get (page_sector (page + 1) - 1));
  end ();
}

/* Many threads look at, and load, the same unknown pages at once; and
 * set bits in them.
 */
#define LOAD_PAGES 64
#define LOAD_THREADS 4

static void *
load_thread (void *opaque)
{
  const uintptr_t me = (uintptr_t) opaque;
  struct rng rng = { me };
  unsigned i;

  for (i = 0; i < 4 * LOAD_PAGES; i++) {
    const uint64_t first = page_sector (rng_below (&rng, LOAD_PAGES));

    /* The file has the first 8 of each page, each thread sets one. */
    CHECK (get (first) && get (first + 7));
    CHECK (!get (first + 8));
    set (first + 16 + me, 1);
    CHECK (get (first + 16 + me));
    CHECK (!get (first + 16 + me + LOAD_THREADS));
  }
  return NULL;
}

static void
test_load_race (void)
{
  pthread_t threads[LOAD_THREADS];
  uintptr_t i;

  begin (page_sector (LOAD_PAGES), 0);
  world.no_log = true;
  for (i = 0; i < LOAD_PAGES; i++)
    sim_store_put (&store, "\xff", 1, HEADER + page_sector (i) / 8);
  store.knows_holes = false;
  open_map (page_sector (LOAD_PAGES));
  for (i = 0; i < LOAD_THREADS; i++)
    CHECK_EQ (pthread_create (&threads[i], NULL, load_thread, (void *) i), 0);
  for (i = 0; i < LOAD_THREADS; i++)
    pthread_join (threads[i], NULL);
  end ();
}

/* Threads that set neighbouring bits lose none, nor the count of them. */
static void *
set_thread (void *opaque)
{
  const uintptr_t me = (uintptr_t) opaque;
  uint64_t i;

  for (i = me; i < page_sector (4); i += LOAD_THREADS)
    set (i, 1);
  return NULL;
}

static void
test_set_race (void)
{
  pthread_t threads[LOAD_THREADS];
  const size_t given_back = nr_given_back;
  uint64_t nr;
  uintptr_t i;

  begin (page_sector (4), 0);
  world.no_log = true;
  open_map (page_sector (4));
  for (i = 0; i < LOAD_THREADS; i++)
    CHECK_EQ (pthread_create (&threads[i], NULL, set_thread, (void *) i), 0);
  for (i = 0; i < LOAD_THREADS; i++)
    pthread_join (threads[i], NULL);
  CHECK_EQ (commit (), 0);
  CHECK_EQ (bitmap_count (&metadata.image, 0, page_sector (4), &nr), 0);
  CHECK_EQ (nr, page_sector (4));
  CHECK_EQ (nr_given_back, given_back + 4 * PAGE_BYTES);
  end ();
}

int
main (int argc, char *argv[])
{
  const struct test_options o = test_options (argc, argv);
  const uint64_t iterations = o.iterations ? o.iterations : 500;
  struct rng rng = { o.seed };
  uint64_t i;

  printf ("-s %" PRIu64 "\n", o.seed);
  fflush (stdout);
  check_watchdog (300);
  test_reads_forward ();
  test_reads_ahead ();
  test_uniform_pages ();
  test_holes ();
  test_only_sectors_count ();
  test_large ();
  test_memory_of_holes (UINT64_C (1) << 30, &rng);
  test_memory_of_holes (UINT64_C (1) << 44, &rng);
  test_memory_of_holes (UINT64_C (1) << 50, &rng);
  test_memory_of_holes ((UINT64_C (1) << 57) + SECTOR, &rng);
  test_load_error ();
  test_unreadable_page ();
  test_load_at_end_of_chunk ();
  test_freeze ();
  test_no_memory ();
  test_synced ();
  test_failed_commit (SIM_WRITE, 1, ENOSPC);
  test_failed_commit (SIM_WRITE, 2, EDQUOT);
  test_failed_commit (SIM_FLUSH, 1, EIO);
  test_failed_commit (SIM_FLUSH, 0, 0);
  test_set_during_failed_commit ();
  test_full_pages ();
  test_large_kernel_pages ();
  for (i = 0; i < iterations; i++)
    test_model (&rng, 200);
  test_hammer (&rng, HAMMER_PAGES);
  for (i = 0; i < 5; i++)
    test_load_race ();
  test_set_race ();
  return 0;
}

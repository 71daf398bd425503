/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"
#include "format.h"
#include "map-page.h"
#include "map.h"
#include "sparse.h"

#define WORD_BITS 64

/* Bits are numbered from the start of the file: the header is the first
 * FIRST_BIT bits of page 0, sector s is bit FIRST_BIT + s.
 */
#define FIRST_BIT (FORMAT_HEADER_BYTES * 8)

/* How many pages are prepared at once: 1 GiB of disk; and what part of the
 * memory that there is, busy as they are.
 */
#define MAX_PREPARED_PAGES 64
#define MAX_PREPARED_PART 16

/* How many uncommitted pages make a writer commit: 8 MiB of bits, 32 GiB of
 * disk; and what part of the memory, see map-cache.h.
 */
#define MAX_UNCOMMITTED_PAGES 2048
#define MAX_UNCOMMITTED_PART 4

/* How many pages are read at once, of a part of the memory. */
#define MAX_LOADED_PAGES 16
#define MAX_LOADED_PART 16

/* How much more the system reads meanwhile for who loads all pages, one behind
 * the other.
 */
#define AHEAD_BYTES (1024 * 1024)

struct map {
  struct image *metadata;
  uint64_t end_bit;  /* one past the last sector's */
  uint64_t end_byte; /* one past the bitmap */
  uint64_t nr_pages;
  bool forgets_holes;                                 /* see MAX_KEPT_CHUNKS */
  uint64_t max_prepared, max_loaded, max_uncommitted; /* pages */

  /* In the file, the ends of what was loaded last and of what is read ahead:
   * whosever that was, they are for hints.
   */
  _Atomic uint64_t loaded_end, ahead_end;

  struct map_cache *cache;     /* what follows is protected by its lock */
  struct map_cache *own_cache; /* if nobody gave one, or NULL */
  struct map_user user;
  struct chunk *all_chunks;
  struct page *dirty;
  uint64_t nr_dirty;

  _Atomic bool synced; /* see map_synced */

  /* Bits that were found in the file may not be what the system writes to
   * the disk: see write_found.  Of who commits.
   */
  bool found_lost;

  /* Between map_freeze and map_thaw: the frozen pages by index, and a
   * copy of each in the order of the bytes on disk.  The commit's own,
   * but for the pages' flags.
   */
  struct page **frozen;
  uint64_t nr_frozen;
  uint64_t *frozen_words;
  uint64_t nr_frozen_words; /* pages of them */

  _Atomic (struct chunk *) chunks[];
};

/* From so many pages on they are mapped: large blocks that are freed stay
 * with malloc, once for each thread that commits.
 */
#define MIN_MAPPED_PAGES 32

static uint64_t *
words_alloc (uint64_t nr_pages)
{
  void *p;

  if (nr_pages < MIN_MAPPED_PAGES)
    return malloc (nr_pages * PAGE_BYTES);
  p = mmap (NULL, nr_pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

static void
free_frozen (struct map *map)
{
  free (map->frozen);
  if (map->frozen_words && map->nr_frozen_words >= MIN_MAPPED_PAGES)
    munmap (map->frozen_words, map->nr_frozen_words * PAGE_BYTES);
  else
    free (map->frozen_words);
  map->frozen = NULL;
  map->frozen_words = NULL;
  map->nr_frozen = map->nr_frozen_words = 0;
}

/* In a table of more than this, 64 MiB for a disk of 64 PiB, it is not kept
 * where holes are: to look around in one that somebody made up would fill it.
 */
#define MAX_KEPT_CHUNKS (UINT64_C (1) << 23)

/* A PART of the pages of CACHE, at least 1 and at most MAX. */
static uint64_t
part_of (const struct map_cache *cache, unsigned part, uint64_t max)
{
  return MAX (1, MIN (cache->max_pages / part, max));
}

int
map_open (struct map **ret, struct image *metadata, uint64_t size_bytes,
          struct map_cache *cache)
{
  const uint64_t end_byte = format_file_bytes (size_bytes);
  const uint64_t nr_pages = DIV_ROUND_UP (end_byte, PAGE_BYTES);
  const uint64_t nr_chunks = DIV_ROUND_UP (nr_pages, CHUNK_SLOTS);
  struct map *map;

  /* calloc of a large table costs address space, no memory. */
  map = calloc (1, sizeof *map + nr_chunks * sizeof map->chunks[0]);
  if (map == NULL)
    return ENOMEM;
  if (cache == NULL && map_cache_new (&map->own_cache, MAP_CACHE_BYTES) != 0) {
    free (map);
    return ENOMEM;
  }
  map->cache = cache ? cache : map->own_cache;
  map->metadata = metadata;
  map->end_bit = FIRST_BIT + size_bytes / FORMAT_SECTOR_BYTES;
  map->end_byte = end_byte;
  map->nr_pages = nr_pages;
  map->loaded_end = UINT64_MAX;
  map->forgets_holes = nr_chunks > MAX_KEPT_CHUNKS;
  map->max_prepared = part_of (map->cache, MAX_PREPARED_PART,
                               MAX_PREPARED_PAGES);
  map->max_loaded = part_of (map->cache, MAX_LOADED_PART, MAX_LOADED_PAGES);
  map->max_uncommitted = part_of (map->cache, MAX_UNCOMMITTED_PART,
                                  MAX_UNCOMMITTED_PAGES);
  map_cache_add_user (map->cache, &map->user);
  *ret = map;
  return 0;
}

static void chunk_forget (struct map *map, struct chunk *chunk);

void
map_close (struct map *map)
{
  if (map == NULL)
    return;
  map_cache_remove_user (map->cache, &map->user);
  /* By the list, as to walk a large table would make memory of it. */
  while (map->all_chunks) {
    struct chunk *chunk = map->all_chunks;

    chunk_forget (map, chunk);
    map->all_chunks = chunk->next;
    free (chunk);
  }
  free_frozen (map);
  map_cache_free (map->own_cache);
  free (map);
}

void
map_commit_with (struct map *map, void (*fn) (void *opaque), void *opaque)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);

  map->user.commit = fn;
  map->user.opaque = opaque;
}

/*--- The table. -------------------------------------------------------*/

static uintptr_t
slot_load (struct map *map, uint64_t index)
{
  struct chunk *chunk = atomic_load_explicit (&map->chunks[index / CHUNK_SLOTS],
                                              memory_order_acquire);

  if (chunk == NULL)
    return SLOT_UNKNOWN;
  return atomic_load_explicit (&chunk->slots[index % CHUNK_SLOTS],
                               memory_order_acquire);
}

/* Caller holds the lock and chunk_make_locked was called for INDEX. */
static void
slot_store_locked (struct map *map, uint64_t index, uintptr_t slot)
{
  struct chunk *chunk = atomic_load_explicit (&map->chunks[index / CHUNK_SLOTS],
                                              memory_order_relaxed);

  atomic_store_explicit (&chunk->slots[index % CHUNK_SLOTS], slot,
                         memory_order_release);
}

static struct page *
slot_page (uintptr_t slot)
{
  return slot >= SLOT_FIRST_ADDRESS ? (struct page *) slot : NULL;
}

/* Where the file is a hole in all of a chunk: one for all maps, which is not
 * written to.
 */
static struct chunk hole_chunk = {
  .slots = { [0 ... CHUNK_SLOTS - 1] = SLOT_ZEROES },
};

/* A chunk for page INDEX, whose pages are SLOT, or NULL.  Caller holds the
 * lock.
 */
static struct chunk *
chunk_new_locked (struct map *map, uint64_t index, uintptr_t slot)
{
  const uint64_t nr_slots = MIN (
      CHUNK_SLOTS, map->nr_pages - index / CHUNK_SLOTS * CHUNK_SLOTS);
  struct chunk *chunk = calloc (1, sizeof *chunk +
                                       nr_slots * sizeof chunk->slots[0]);
  unsigned i;

  if (chunk == NULL)
    return NULL;
  for (i = 0; i < nr_slots; i++)
    atomic_init (&chunk->slots[i], slot);
  chunk->nr_slots = nr_slots;
  chunk->next = map->all_chunks;
  map->all_chunks = chunk;
  return chunk;
}

/* Let the chunk of page INDEX be there, and be its own.  Who looks meanwhile
 * may find zeroes in the one for all, as before.  Caller holds the lock.
 * Returns 0 or ENOMEM.
 */
static int
chunk_make_locked (struct map *map, uint64_t index)
{
  _Atomic (struct chunk *) *where = &map->chunks[index / CHUNK_SLOTS];
  struct chunk *chunk = atomic_load_explicit (where, memory_order_relaxed);

  if (chunk && chunk != &hole_chunk)
    return 0;
  chunk = chunk_new_locked (map, index, chunk ? SLOT_ZEROES : SLOT_UNKNOWN);
  if (chunk == NULL)
    return ENOMEM;
  atomic_store_explicit (where, chunk, memory_order_release);
  return 0;
}

/* The file is a hole in all of the chunk of page INDEX.  Caller holds the
 * lock.
 */
static void
chunk_hole_locked (struct map *map, uint64_t index)
{
  _Atomic (struct chunk *) *where = &map->chunks[index / CHUNK_SLOTS];

  if (atomic_load_explicit (where, memory_order_relaxed) == NULL)
    atomic_store_explicit (where, &hole_chunk, memory_order_release);
}

/* How often something was let go of in the chunk of page INDEX: see
 * page_load.
 */
static uint64_t
chunk_nr_dropped (struct map *map, uint64_t index)
{
  struct chunk *chunk = atomic_load_explicit (&map->chunks[index / CHUNK_SLOTS],
                                              memory_order_acquire);

  if (chunk == NULL)
    return 0;
  return atomic_load_explicit (&chunk->nr_dropped, memory_order_acquire);
}

/* Let go of all pages of CHUNK, of a map that nobody uses any more. */
static void
chunk_forget (struct map *map, struct chunk *chunk)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);
  unsigned i;

  for (i = 0; i < chunk->nr_slots; i++) {
    struct page *page = slot_page (
        atomic_load_explicit (&chunk->slots[i], memory_order_relaxed));

    if (page)
      page_forget_locked (map->cache, page);
  }
}

/* The bits of page INDEX that belong to sectors: [*FIRST, *END). */
static void
page_valid_bits (const struct map *map, uint64_t index, unsigned *first,
                 unsigned *end)
{
  *first = index == 0 ? FIRST_BIT : 0;
  *end = MIN (map->end_bit - index * PAGE_BITS, PAGE_BITS);
}

static unsigned
page_nr_valid (const struct map *map, uint64_t index)
{
  unsigned first, end;

  page_valid_bits (map, index, &first, &end);
  return end - first;
}

/* How many bits from FIRST on, at most MAX (at least 1), are as the
 * first, whose value goes to *VALUE.
 */
static unsigned
scan_words (const _Atomic uint64_t *words, unsigned first, unsigned max,
            bool *value)
{
  unsigned i = first / WORD_BITS;
  unsigned skip = first % WORD_BITS;
  unsigned n = 0;
  uint64_t flip = 0;

  while (n < max) {
    uint64_t w = atomic_load_explicit (&words[i], memory_order_acquire) >> skip;

    if (n == 0) {
      *value = w & 1;
      flip = *value ? ~UINT64_C (0) : 0;
    }
    /* Now 1 is where a bit differs; those shifted in do not count. */
    w ^= flip >> skip;
    if (w) {
      n += __builtin_ctzll (w);
      return MIN (n, max);
    }
    n += WORD_BITS - skip;
    skip = 0;
    i++;
  }
  return max;
}

/*--- Loading. ---------------------------------------------------------*/

struct first_extent {
  uint64_t count;
  unsigned type;
};

static int
keep_first_extent (void *opaque, uint64_t count, unsigned type)
{
  struct first_extent *e = opaque;

  e->count = count;
  e->type = type;
  return EXTENT_STOP;
}

/* Are all bits of WORDS, a page, the same?  Most pages are like that, and this
 * is much faster than to count.
 */
static bool
is_uniform (const uint64_t *words)
{
  return (words[0] == 0 || words[0] == ~UINT64_C (0)) &&
         memcmp (words, words + 1, PAGE_BYTES - sizeof words[0]) == 0;
}

/* The bits [FIRST, END) of WORDS, a page, that are set. */
static unsigned
count_bits (const uint64_t *words, unsigned first, unsigned end)
{
  unsigned n = 0;
  unsigned i;

  if (is_uniform (words))
    return words[0] ? end - first : 0;
  for (i = first / WORD_BITS; i * WORD_BITS < end; i++) {
    uint64_t w = words[i];

    if (i == first / WORD_BITS)
      w &= ~UINT64_C (0) << first % WORD_BITS;
    if (end - i * WORD_BITS < WORD_BITS)
      w &= (UINT64_C (1) << end % WORD_BITS) - 1;
    n += __builtin_popcountll (w);
  }
  return n;
}

/* What somebody wants of a page that is not known: that it is pinned, or how
 * many bits from FIRST on, at most MAX, are as the first.
 */
struct wanted {
  bool pin;
  bool done;
  unsigned first, max;
  bool value;
  unsigned run;
};

/* A page with the bits of WORDS, in its slot. */
static int
page_make_locked (struct map *map, uint64_t index, const uint64_t *words,
                  unsigned nr_set, bool pin)
{
  struct page *page;
  unsigned i;
  int r;

  r = page_new_locked (map->cache, &map->user, pin, words == NULL, &page);
  if (r)
    return r;
  for (i = 0; words && i < PAGE_WORDS; i++)
    atomic_store_explicit (&page->words[i], words[i], memory_order_release);
  page->user = &map->user;
  page->chunk = atomic_load_explicit (&map->chunks[index / CHUNK_SLOTS],
                                      memory_order_relaxed);
  page->index = index;
  page->nr_valid = page_nr_valid (map, index);
  page->nr_set = nr_set;
  slot_store_locked (map, index, (uintptr_t) page);
  if (!pin)
    page_unpin_locked (map->cache, page);
  return 0;
}

/* Put the page that was read into WORDS into its slot, unless another thread
 * was faster; for who WANTED it, or NULL.  Caller holds the lock.  Returns 0;
 * or if it is to be pinned, MAP_FULL or ENOMEM.
 */
static int
page_install_locked (struct map *map, uint64_t index, const uint64_t *words,
                     struct wanted *wanted)
{
  const bool pin = wanted && wanted->pin;
  unsigned first, end, nr_set;
  int r;

  if (slot_load (map, index) != SLOT_UNKNOWN)
    return 0;
  page_valid_bits (map, index, &first, &end);
  nr_set = count_bits (words, first, end);
  if (nr_set == 0 || nr_set == end - first) {
    slot_store_locked (map, index, nr_set ? SLOT_ONES : SLOT_ZEROES);
    return 0;
  }
  r = page_make_locked (map, index, words, nr_set, pin);
  if (pin)
    wanted->done = r == 0;
  else if (wanted) {
    wanted->run = scan_words ((const _Atomic uint64_t *) words, wanted->first,
                              wanted->max, &wanted->value);
    wanted->done = true;
  }
  return pin ? r : 0;
}

/* Nothing of the pages from INDEX on is in the file for COUNT bytes. */
static void
mark_hole_locked (struct map *map, uint64_t index, uint64_t count)
{
  const uint64_t chunk_end = (index / CHUNK_SLOTS + 1) * CHUNK_SLOTS;
  const uint64_t end = MIN (MIN (index + count / PAGE_BYTES, chunk_end),
                            map->nr_pages);

  for (; index < end; index++)
    if (slot_load (map, index) == SLOT_UNKNOWN)
      slot_store_locked (map, index, SLOT_ZEROES);
}

/* How many pages from INDEX on are to be read, at most MAX. */
static uint64_t
nr_unknown (struct map *map, uint64_t index, uint64_t max)
{
  uint64_t n = 1;

  while (n < max && slot_load (map, index + n) == SLOT_UNKNOWN)
    n++;
  return n;
}

/* Read *N pages from INDEX on into WORDS, up to LIMIT.  If one of them
 * cannot be read, that is no error of the others: *N becomes 1 then.
 */
static int
read_pages (struct map *map, uint64_t index, uint64_t limit, uint64_t *words,
            uint64_t *n)
{
  const uint64_t begin = index * PAGE_BYTES;
  int r;

  r = map->metadata->ops->read (map->metadata, words,
                                MIN (*n * PAGE_BYTES, limit - begin), begin);
  if (r && *n > 1) {
    *n = 1;
    r = map->metadata->ops->read (map->metadata, words, PAGE_BYTES, begin);
  }
  return r;
}

/* [BEGIN, END) of the file is about to be read, and its data goes on to
 * DATA_END.  If it follows what was read last, have the system read on, which
 * it does not by itself (fd_is_random).
 */
static void
read_ahead (struct map *map, uint64_t begin, uint64_t end, uint64_t data_end)
{
  const bool follows = atomic_exchange_explicit (&map->loaded_end, end,
                                                 memory_order_relaxed) == begin;
  uint64_t ahead = atomic_load_explicit (&map->ahead_end, memory_order_relaxed);
  uint64_t limit;

  if (ahead < end || ahead > end + AHEAD_BYTES)
    ahead = end;
  /* Nobody asked what is behind the end of a chunk: most likely more. */
  if (data_end % (CHUNK_SLOTS * PAGE_BYTES) == 0)
    data_end += AHEAD_BYTES;
  limit = MIN (MIN (data_end, map->end_byte), end + AHEAD_BYTES);
  if (!follows || ahead >= limit || ahead - end > AHEAD_BYTES / 2)
    return;
  atomic_store_explicit (&map->ahead_end, limit, memory_order_relaxed);
  map->metadata->ops->cache (map->metadata, limit - ahead, ahead);
}

/* One past the last byte of the chunk of page INDEX. */
static uint64_t
chunk_end_byte (const struct map *map, uint64_t index)
{
  return MIN ((index / CHUNK_SLOTS + 1) * CHUNK_SLOTS * PAGE_BYTES,
              map->end_byte);
}

/* If nothing is known of the chunk of page INDEX, and the file is a hole in
 * all of it, *IS_HOLE is true.
 */
static int
chunk_look (struct map *map, uint64_t index, bool *is_hole)
{
  const uint64_t begin = (index - index % CHUNK_SLOTS) * PAGE_BYTES;
  const uint64_t end = chunk_end_byte (map, index);
  struct first_extent e = { 0 };
  int r;

  *is_hole = false;
  if (atomic_load_explicit (&map->chunks[index / CHUNK_SLOTS],
                            memory_order_acquire))
    return 0;
  r = map->metadata->ops->extents (map->metadata, end - begin, begin,
                                   keep_first_extent, &e);
  if (r > 0)
    return r;
  *is_hole = (e.type & EXTENT_ZERO) && e.count >= end - begin;
  return 0;
}

static void
chunk_set_hole (struct map *map, uint64_t index)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);

  chunk_hole_locked (map, index);
}

/* Find out what page INDEX is, and some of those behind it; what is WANTED
 * may have been done then, else its slot tells more.
 *
 * What is read while no lock is held could be out of date: somebody may have
 * set a bit, committed it, and the page may have been dropped.  Then that was
 * counted, and all is done again.
 */
static int
page_load (struct map *map, uint64_t index, struct wanted *wanted)
{
  const uint64_t begin = index * PAGE_BYTES;
  const uint64_t limit = chunk_end_byte (map, index);
  const uint64_t nr_dropped = chunk_nr_dropped (map, index);
  struct first_extent e = { 0 };
  CLEANUP_FREE uint64_t *words = NULL;
  uint64_t n = 0, i;
  int r;

  r = map->metadata->ops->extents (map->metadata, limit - begin, begin,
                                   keep_first_extent, &e);
  if (r > 0)
    return r;
  /* The last page of the file may be a hole and yet not a whole page. */
  if (begin + e.count == map->end_byte)
    e.count = (map->nr_pages - index) * PAGE_BYTES;

  if (!(e.type & EXTENT_ZERO) || e.count < PAGE_BYTES) {
    n = nr_unknown (map, index,
                    MIN (MAX (e.count / PAGE_BYTES, 1), map->max_loaded));
    words = calloc (n, PAGE_BYTES);
    if (words == NULL)
      return ENOMEM;
    read_ahead (map, begin, begin + n * PAGE_BYTES, begin + e.count);
    r = read_pages (map, index, limit, words, &n);
    if (r)
      return r;
    for (i = 0; i < n * PAGE_WORDS; i++)
      words[i] = le64toh (words[i]);
  }

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);
  if (chunk_nr_dropped (map, index) != nr_dropped)
    return 0;
  r = chunk_make_locked (map, index);
  if (r)
    return r;
  if (n == 0)
    mark_hole_locked (map, index, e.count);
  for (i = 0; i < n && r == 0; i++)
    r = page_install_locked (map, index + i, words + i * PAGE_WORDS,
                             i == 0 ? wanted : NULL);
  return r;
}

/* The same for who only looks: what is found out need not be kept. */
static int
page_look (struct map *map, uint64_t index, struct wanted *wanted)
{
  bool is_hole;
  int r = chunk_look (map, index, &is_hole);

  if (r)
    return r;
  if (!is_hole)
    return page_load (map, index, wanted);
  wanted->value = false;
  wanted->run = wanted->max;
  wanted->done = true;
  if (!map->forgets_holes)
    chunk_set_hole (map, index);
  return 0;
}

/*--- Looking up. ------------------------------------------------------*/

/* Somebody looked at PAGE.  Mostly it is known already. */
static void
page_use (struct page *page)
{
  if (!atomic_load_explicit (&page->used, memory_order_relaxed))
    atomic_store_explicit (&page->used, true, memory_order_relaxed);
}

/* map_run within page INDEX: bits [FIRST, FIRST + MAX). */
static int
page_run (struct map *map, uint64_t index, unsigned first, unsigned max,
          bool *value, unsigned *run)
{
  for (;;) {
    const uintptr_t slot = slot_load (map, index);
    struct page *page = slot_page (slot);
    uint64_t generation;

    if (slot == SLOT_UNKNOWN) {
      struct wanted wanted = { .first = first, .max = max };
      int r = page_look (map, index, &wanted);

      if (r)
        return r;
      if (!wanted.done)
        continue;
      *value = wanted.value;
      *run = wanted.run;
      return 0;
    }
    if (page == NULL) {
      *value = slot == SLOT_ONES;
      *run = max;
      return 0;
    }

    generation = atomic_load_explicit (&page->generation, memory_order_acquire);
    if (slot_load (map, index) != slot)
      continue;
    *run = scan_words (page->words, first, max, value);
    page_use (page);
    if (atomic_load_explicit (&page->generation, memory_order_acquire) ==
        generation)
      return 0;
  }
}

int
map_run (struct map *map, uint64_t sector, uint64_t max_sectors,
         bool *allocated, uint64_t *run)
{
  uint64_t bit = FIRST_BIT + sector;
  uint64_t done = 0;

  while (done < max_sectors) {
    const unsigned first = bit % PAGE_BITS;
    const unsigned max = MIN (max_sectors - done, PAGE_BITS - first);
    unsigned n;
    bool value;
    int r;

    r = page_run (map, bit / PAGE_BITS, first, max, &value, &n);
    if (r && done == 0)
      return r;
    /* An error further on is told to who asks for those sectors. */
    if (r || (done > 0 && value != *allocated))
      break;
    *allocated = value;
    done += n;
    bit += n;
    if (n < max)
      break;
  }
  *run = done;
  return 0;
}

/*--- Setting. ---------------------------------------------------------*/

/* Pin page INDEX, where it is known; it is not all ones. */
static int
page_pin (struct map *map, uint64_t index, bool *done)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);
  const uintptr_t slot = slot_load (map, index);
  struct page *page = slot_page (slot);
  int r;

  *done = page || slot == SLOT_ZEROES;
  if (page)
    return page_pin_locked (map->cache, page);
  if (slot != SLOT_ZEROES)
    return 0;
  r = chunk_make_locked (map, index);
  return r ? r : page_make_locked (map, index, NULL, 0, true);
}

/* Make sure that page INDEX is in memory and stays there, or is all ones. */
static int
page_prepare (struct map *map, uint64_t index)
{
  struct wanted wanted = { .pin = true };
  uintptr_t slot;
  int r = 0;

  while (r == 0 && !wanted.done) {
    slot = slot_load (map, index);
    if (slot == SLOT_ONES)
      return 0;
    if (slot == SLOT_UNKNOWN)
      r = page_load (map, index, &wanted);
    else
      r = page_pin (map, index, &wanted.done);
  }
  return r;
}

int
map_prepare (struct map *map, uint64_t sector, uint64_t max_sectors,
             uint64_t *nr_sectors)
{
  const uint64_t bit = FIRST_BIT + sector;
  const uint64_t index = bit / PAGE_BITS;
  const uint64_t last = (bit + max_sectors - 1) / PAGE_BITS;
  const uint64_t end = MIN (last + 1, index + map->max_prepared);
  uint64_t i;
  int r = 0;

  for (i = index; i < end && r == 0; i++)
    r = page_prepare (map, i);
  if (r && --i == index)
    return r;
  *nr_sectors = MIN (max_sectors, i * PAGE_BITS - bit);
  return 0;
}

void
map_unprepare (struct map *map, uint64_t sector, uint64_t nr_sectors)
{
  uint64_t index = (FIRST_BIT + sector) / PAGE_BITS;
  const uint64_t last = (FIRST_BIT + sector + nr_sectors - 1) / PAGE_BITS;
  struct page *page;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);
  for (; index <= last; index++) {
    page = slot_page (slot_load (map, index));
    if (page)
      page_unpin_locked (map->cache, page);
  }
}

bool
map_commit_other (struct map *map)
{
  return map_cache_commit_other (map->cache, &map->user);
}

void
map_wait_for_room (struct map *map)
{
  map_cache_wait (map->cache, &map->user);
}

static void
page_dirty_locked (struct map *map, struct page *page)
{
  if (page->dirty)
    return;
  page->dirty = page->changed = true;
  page->next = map->dirty;
  map->dirty = page;
  map->nr_dirty++;
  if (!page->frozen)
    atomic_fetch_add_explicit (&map->user.nr_uncommitted, 1,
                               memory_order_release);
}

/* Set bits [FIRST, END) of PAGE. */
static void
page_set_locked (struct map *map, struct page *page, unsigned first,
                 unsigned end)
{
  while (first < end) {
    _Atomic uint64_t *word = &page->words[first / WORD_BITS];
    const unsigned skip = first % WORD_BITS;
    const unsigned n = MIN (WORD_BITS - skip, end - first);
    const uint64_t mask =
        (n == WORD_BITS ? ~UINT64_C (0) : (UINT64_C (1) << n) - 1) << skip;
    const uint64_t old = atomic_load_explicit (word, memory_order_relaxed);

    if (~old & mask) {
      /* Dirty first: see map_uncommitted. */
      page_dirty_locked (map, page);
      page->nr_set += __builtin_popcountll (~old & mask);
      atomic_store_explicit (word, old | mask, memory_order_release);
    }
    first += n;
  }
}

bool
map_set (struct map *map, uint64_t sector, uint64_t nr_sectors)
{
  uint64_t bit = FIRST_BIT + sector;
  const uint64_t end = bit + nr_sectors;
  bool was_clean;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);
  was_clean = !map_uncommitted (map);
  while (bit < end) {
    const uint64_t index = bit / PAGE_BITS;
    const uint64_t page_end = MIN ((index + 1) * PAGE_BITS, end);
    const uintptr_t slot = slot_load (map, index);
    struct page *page = slot_page (slot);

    assert (slot == SLOT_ONES || (page && page->nr_pins > 0));
    if (page)
      page_set_locked (map, page, bit % PAGE_BITS,
                       (page_end - 1) % PAGE_BITS + 1);
    bit = page_end;
  }
  return was_clean && map_uncommitted (map);
}

/*--- Commit. ----------------------------------------------------------*/

uint64_t
map_nr_uncommitted_pages (struct map *map)
{
  return atomic_load_explicit (&map->user.nr_uncommitted, memory_order_acquire);
}

bool
map_has_many_uncommitted (struct map *map)
{
  return map_nr_uncommitted_pages (map) > map->max_uncommitted;
}

bool
map_uncommitted (struct map *map)
{
  return map_nr_uncommitted_pages (map) > 0;
}

bool
map_synced (struct map *map)
{
  return atomic_load_explicit (&map->synced, memory_order_acquire);
}

/* The dirty pages as an array, which the caller frees: nobody takes one out
 * of the list but who commits.
 */
static int
dirty_pages (struct map *map, struct page ***ret, uint64_t *nr)
{
  struct page **pages, *page;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);
  pages = malloc ((map->nr_dirty + 1) * sizeof pages[0]);
  if (pages == NULL)
    return ENOMEM;
  *nr = 0;
  for (page = map->dirty; page; page = page->next)
    pages[(*nr)++] = page;
  *ret = pages;
  return 0;
}

/* Make WORDS the bits of PAGE that are set in memory alone. */
static int
uncommitted_bits (struct map *map, const struct page *page,
                  _Atomic uint64_t words[PAGE_WORDS])
{
  uint64_t on_disk[PAGE_WORDS] = { 0 };
  const uint64_t begin = page->index * PAGE_BYTES;
  unsigned first, end, i;
  int r;

  r = map->metadata->ops->read (map->metadata, on_disk,
                                MIN (PAGE_BYTES, map->end_byte - begin), begin);
  if (r)
    return r;
  page_valid_bits (map, page->index, &first, &end);
  for (i = 0; i < PAGE_WORDS; i++)
    words[i] = i < first / WORD_BITS
                   ? 0
                   : atomic_load_explicit (&page->words[i],
                                           memory_order_acquire) &
                         ~le64toh (on_disk[i]);
  /* The header ends within a word; it is not of the page in memory. */
  if (first % WORD_BITS)
    words[first / WORD_BITS] &= ~UINT64_C (0) << first % WORD_BITS;
  return 0;
}

static int
each_uncommitted_of_page (struct map *map, const struct page *page,
                          int (*fn) (void *opaque, uint64_t sector,
                                     uint64_t nr_sectors),
                          void *opaque)
{
  _Atomic uint64_t words[PAGE_WORDS];
  unsigned bit, end, n;
  bool set;
  int r;

  r = uncommitted_bits (map, page, words);
  page_valid_bits (map, page->index, &bit, &end);
  for (; r == 0 && bit < end; bit += n) {
    n = scan_words (words, bit, end - bit, &set);
    if (set)
      r = fn (opaque, page->index * PAGE_BITS + bit - FIRST_BIT, n);
  }
  return r;
}

int
map_each_uncommitted (struct map *map,
                      int (*fn) (void *opaque, uint64_t sector,
                                 uint64_t nr_sectors),
                      void *opaque)
{
  CLEANUP_FREE struct page **pages = NULL;
  uint64_t nr = 0, i;
  int r;

  r = dirty_pages (map, &pages, &nr);
  for (i = 0; i < nr && r == 0; i++)
    r = each_uncommitted_of_page (map, pages[i], fn, opaque);
  return r;
}

static int
compare_index (const void *a, const void *b)
{
  const struct page *const *p = a;
  const struct page *const *q = b;

  return ((*p)->index > (*q)->index) - ((*p)->index < (*q)->index);
}

int
map_freeze (struct map *map)
{
  struct page *page;
  uint64_t i;
  unsigned j;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);
  assert (map->frozen == NULL);
  if (map->nr_dirty == 0)
    return 0;
  map->frozen = malloc (map->nr_dirty * sizeof map->frozen[0]);
  map->frozen_words = words_alloc (map->nr_dirty);
  map->nr_frozen_words = map->nr_dirty;
  if (map->frozen == NULL || map->frozen_words == NULL) {
    free_frozen (map);
    return ENOMEM;
  }

  for (page = map->dirty; page; page = page->next) {
    page->dirty = false;
    page->frozen = true;
    map->frozen[map->nr_frozen++] = page;
  }
  map->dirty = NULL;
  map->nr_dirty = 0;

  qsort (map->frozen, map->nr_frozen, sizeof map->frozen[0], compare_index);
  for (i = 0; i < map->nr_frozen; i++)
    for (j = 0; j < PAGE_WORDS; j++)
      map->frozen_words[i * PAGE_WORDS + j] = htole64 (atomic_load_explicit (
          &map->frozen[i]->words[j], memory_order_relaxed));
  return 0;
}

/* Write frozen pages [BEGIN, END), which are neighbours in the file: of
 * the first and the last page, the part that is bitmap.
 */
static int
write_run (struct map *map, uint64_t begin, uint64_t end)
{
  const char *bytes = (const char *) (map->frozen_words + begin * PAGE_WORDS);
  const uint64_t page_offset = map->frozen[begin]->index * PAGE_BYTES;
  const uint64_t from = MAX (page_offset, FORMAT_HEADER_BYTES);
  const uint64_t to = MIN (page_offset + (end - begin) * PAGE_BYTES,
                           map->end_byte);

  return map->metadata->ops->write (map->metadata, bytes + (from - page_offset),
                                    to - from, from, 0);
}

/* How much of what was found is written at once. */
#define FOUND_BYTES (16 * PAGE_BYTES)

/* Write bytes [BEGIN, END) of the bitmap, FOUND_BYTES at most, as they are in
 * the file.  What is all zero there need not be.
 */
static int
write_found_part (struct map *map, char *buf, uint64_t begin, uint64_t end)
{
  int r = map->metadata->ops->read (map->metadata, buf, end - begin, begin);

  if (r || sparse_is_zero (buf, end - begin))
    return r;
  return map->metadata->ops->write (map->metadata, buf, end - begin, begin, 0);
}

/* The metadata file was not synced by who was killed, and to sync it has
 * failed: the system takes the bits that were found in it for written, which
 * they may not be.  Nobody knows which ones those are, so all are written
 * again.  It is the commit that writes to the file, and nobody else.
 */
static int
write_found (struct map *map)
{
  CLEANUP_FREE char *buf = malloc (FOUND_BYTES);
  uint64_t offset = FORMAT_HEADER_BYTES;
  int r = 0;

  if (buf == NULL)
    return ENOMEM;
  while (r == 0 && offset < map->end_byte) {
    struct first_extent e = { .count = 0 };
    uint64_t n;

    r = map->metadata->ops->extents (map->metadata, map->end_byte - offset,
                                     offset, keep_first_extent, &e);
    if (r > 0)
      break;
    r = 0;
    n = MIN (e.count, map->end_byte - offset);
    if (!(e.type & EXTENT_ZERO)) {
      n = MIN (n, FOUND_BYTES - offset % FOUND_BYTES);
      r = write_found_part (map, buf, offset, offset + n);
    }
    offset += n;
  }
  return r;
}

static int
sync_metadata (struct map *map)
{
  int r = map->metadata->ops->flush (map->metadata);

  if (r) {
    map->found_lost = !map_synced (map);
    return r;
  }
  map->found_lost = false;
  atomic_store_explicit (&map->synced, true, memory_order_release);
  return 0;
}

int
map_write_frozen (struct map *map)
{
  uint64_t begin, end;
  int r;

  if (map->nr_frozen == 0 && map_synced (map))
    return 0;
  if (map->found_lost) {
    r = write_found (map);
    if (r)
      return r;
  }
  for (begin = 0; begin < map->nr_frozen; begin = end) {
    for (end = begin + 1; end < map->nr_frozen; end++)
      if (map->frozen[end]->index != map->frozen[end - 1]->index + 1)
        break;
    r = write_run (map, begin, end);
    if (r)
      return r;
  }
  return sync_metadata (map);
}

static void
page_thaw_locked (struct map *map, struct page *page, bool committed)
{
  if (!committed)
    page_dirty_locked (map, page);
  page->frozen = false;
  if (page->dirty)
    return;
  page_settle_locked (map->cache, page, true);
  atomic_fetch_sub_explicit (&map->user.nr_uncommitted, 1,
                             memory_order_acq_rel);
}

void
map_thaw (struct map *map, bool committed)
{
  uint64_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->cache->lock);
  for (i = 0; i < map->nr_frozen; i++)
    page_thaw_locked (map, map->frozen[i], committed);
  map->user.stuck &= !committed;
  free_frozen (map);
}

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
#include "map.h"
#include "sparse.h"

#define PAGE_BYTES 4096
#define PAGE_BITS (PAGE_BYTES * 8)
#define PAGE_WORDS (PAGE_BYTES / 8)
#define WORD_BITS 64

/* Bits are numbered from the start of the file: the header is the first
 * FIRST_BIT bits of page 0, sector s is bit FIRST_BIT + s.
 */
#define FIRST_BIT (FORMAT_HEADER_BYTES * 8)

/* What a slot says, when it is not the address of a struct page. */
#define SLOT_UNKNOWN ((uintptr_t) 0)
#define SLOT_ZEROES ((uintptr_t) 1)
#define SLOT_ONES ((uintptr_t) 2)
#define SLOT_FIRST_ADDRESS ((uintptr_t) 4)

#define CHUNK_SLOTS 512

/* The second level of the table.  Made when one of its pages is first
 * looked at, never freed before the map.  Where the file is a hole there is
 * one for all, whose pages are zeroes, until a page is to be set.
 */
struct chunk {
  struct chunk *next; /* in map->all_chunks */
  _Atomic uintptr_t slots[CHUNK_SLOTS];
};

struct page {
  _Atomic uint64_t generation; /* moves when the page leaves its slot */
  _Atomic uint64_t *words;     /* PAGE_WORDS, bits in the host's order */
  uint64_t index;              /* of the slot that it is in */
  unsigned nr_set;             /* bits of sectors, not of the header */
  bool dirty;                  /* in map->dirty */
  bool frozen;                 /* in map->frozen */
  struct page *next;           /* in map->dirty or map->free */
};

/* Pages come in slabs that live as long as the map, see map.h. */
#define SLAB_PAGES 64
struct slab {
  struct slab *next;
  void *words; /* mapped: SLAB_PAGES * PAGE_BYTES */
  struct page pages[SLAB_PAGES];
};

struct map {
  struct image *metadata;
  uint64_t end_bit;  /* one past the last sector's */
  uint64_t end_byte; /* one past the bitmap */
  uint64_t nr_pages;
  bool can_give_back; /* a page here is one of the kernel's */

  bool forgets_holes; /* see MAX_KEPT_CHUNKS */

  pthread_mutex_t lock; /* see map.h */
  struct chunk *all_chunks;
  struct chunk *hole; /* the one for all, or NULL: none was needed yet */
  struct slab *slabs;
  struct page *free;
  struct page *dirty;
  uint64_t nr_dirty;

  _Atomic bool synced; /* see map_synced */

  /* Bits that were found in the file may not be what the system writes to
   * the disk: see write_found.  Of who commits.
   */
  bool found_lost;

  /* Pages that are dirty or frozen.  Changed under lock, read without. */
  _Atomic uint64_t nr_uncommitted;

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

int
map_open (struct map **ret, struct image *metadata, uint64_t size_bytes)
{
  const uint64_t end_byte = format_file_bytes (size_bytes);
  const uint64_t nr_pages = DIV_ROUND_UP (end_byte, PAGE_BYTES);
  const uint64_t nr_chunks = DIV_ROUND_UP (nr_pages, CHUNK_SLOTS);
  struct map *map;

  /* calloc of a large table costs address space, no memory. */
  map = calloc (1, sizeof *map + nr_chunks * sizeof map->chunks[0]);
  if (map == NULL)
    return ENOMEM;
  map->metadata = metadata;
  map->end_bit = FIRST_BIT + size_bytes / FORMAT_SECTOR_BYTES;
  map->end_byte = end_byte;
  map->nr_pages = nr_pages;
  map->forgets_holes = nr_chunks > MAX_KEPT_CHUNKS;
  map->can_give_back = sysconf (_SC_PAGESIZE) == PAGE_BYTES;
  pthread_mutex_init (&map->lock, NULL);
  *ret = map;
  return 0;
}

void
map_close (struct map *map)
{
  if (map == NULL)
    return;
  /* By the list, as to walk a large table would make memory of it. */
  while (map->all_chunks) {
    struct chunk *chunk = map->all_chunks;

    map->all_chunks = chunk->next;
    free (chunk);
  }
  while (map->slabs) {
    struct slab *slab = map->slabs;

    map->slabs = slab->next;
    munmap (slab->words, SLAB_PAGES * PAGE_BYTES);
    free (slab);
  }
  free_frozen (map);
  pthread_mutex_destroy (&map->lock);
  free (map);
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

/* Caller holds map->lock and chunk_make_locked was called for INDEX. */
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

/* A chunk whose pages are SLOT, or NULL.  Caller holds map->lock. */
static struct chunk *
chunk_new_locked (struct map *map, uintptr_t slot)
{
  struct chunk *chunk = calloc (1, sizeof *chunk);
  unsigned i;

  if (chunk == NULL)
    return NULL;
  for (i = 0; i < CHUNK_SLOTS; i++)
    atomic_init (&chunk->slots[i], slot);
  chunk->next = map->all_chunks;
  map->all_chunks = chunk;
  return chunk;
}

/* Let the chunk of page INDEX be there, and be its own.  Who looks meanwhile
 * may find zeroes in the one for all, as before.  Caller holds map->lock.
 * Returns 0 or ENOMEM.
 */
static int
chunk_make_locked (struct map *map, uint64_t index)
{
  _Atomic (struct chunk *) *where = &map->chunks[index / CHUNK_SLOTS];
  struct chunk *chunk = atomic_load_explicit (where, memory_order_relaxed);

  if (chunk && chunk != map->hole)
    return 0;
  chunk = chunk_new_locked (map, chunk ? SLOT_ZEROES : SLOT_UNKNOWN);
  if (chunk == NULL)
    return ENOMEM;
  atomic_store_explicit (where, chunk, memory_order_release);
  return 0;
}

/* The file is a hole in all of the chunk of page INDEX.  Caller holds
 * map->lock.  Returns 0 or ENOMEM.
 */
static int
chunk_hole_locked (struct map *map, uint64_t index)
{
  _Atomic (struct chunk *) *where = &map->chunks[index / CHUNK_SLOTS];

  if (atomic_load_explicit (where, memory_order_relaxed))
    return 0;
  if (map->hole == NULL)
    map->hole = chunk_new_locked (map, SLOT_ZEROES);
  if (map->hole == NULL)
    return ENOMEM;
  atomic_store_explicit (where, map->hole, memory_order_release);
  return 0;
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

/*--- Memory of pages. -------------------------------------------------*/

static int
slab_add_locked (struct map *map)
{
  struct slab *slab = calloc (1, sizeof *slab);
  unsigned i;

  if (slab == NULL)
    return ENOMEM;
  slab->words = mmap (NULL, SLAB_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (slab->words == MAP_FAILED) {
    free (slab);
    return ENOMEM;
  }
  for (i = SLAB_PAGES; i-- > 0;) {
    struct page *page = &slab->pages[i];

    page->words = (void *) ((char *) slab->words + i * PAGE_BYTES);
    page->next = map->free;
    map->free = page;
  }
  slab->next = map->slabs;
  map->slabs = slab;
  return 0;
}

/* A page whose words are all 0, or NULL.  Caller holds map->lock. */
static struct page *
page_alloc_locked (struct map *map)
{
  struct page *page;

  if (map->free == NULL && slab_add_locked (map) != 0)
    return NULL;
  page = map->free;
  map->free = page->next;
  page->next = NULL;
  page->nr_set = 0;
  return page;
}

/* Take PAGE out of its slot, which then says SLOT, and give its memory
 * back.  Caller holds map->lock; the page is neither dirty nor frozen.
 *
 * A look-up may be reading the words: it sees the generation move, which
 * happens before they change.
 *
 * Where the kernel's pages are larger, madvise would round up and take
 * the neighbours' words as well.
 */
static void
page_release_locked (struct map *map, struct page *page, uintptr_t slot)
{
  unsigned i;

  assert (!page->dirty && !page->frozen);
  slot_store_locked (map, page->index, slot);
  atomic_fetch_add_explicit (&page->generation, 1, memory_order_acq_rel);
  if (!map->can_give_back ||
      madvise ((void *) page->words, PAGE_BYTES, MADV_DONTNEED) == -1)
    for (i = 0; i < PAGE_WORDS; i++) /* locked memory, for one */
      atomic_store_explicit (&page->words[i], 0, memory_order_release);
  page->next = map->free;
  map->free = page;
}

/*--- Loading. ---------------------------------------------------------*/

/* How many pages are read at once. */
#define LOAD_PAGES 16

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

/* The bits [FIRST, END) of WORDS that are set. */
static unsigned
count_bits (const uint64_t *words, unsigned first, unsigned end)
{
  unsigned n = 0;
  unsigned i;

  for (i = first / WORD_BITS; i * WORD_BITS < end; i++) {
    uint64_t w = le64toh (words[i]);

    if (i == first / WORD_BITS)
      w &= ~UINT64_C (0) << first % WORD_BITS;
    if (end - i * WORD_BITS < WORD_BITS)
      w &= (UINT64_C (1) << end % WORD_BITS) - 1;
    n += __builtin_popcountll (w);
  }
  return n;
}

/* Put the page that was read into WORDS into its slot, unless another
 * thread was faster.  Caller holds map->lock.  Returns 0 or ENOMEM.
 */
static int
page_install_locked (struct map *map, uint64_t index, const uint64_t *words)
{
  unsigned first, end, nr_set, i;
  struct page *page;

  if (slot_load (map, index) != SLOT_UNKNOWN)
    return 0;
  page_valid_bits (map, index, &first, &end);
  nr_set = count_bits (words, first, end);
  if (nr_set == 0 || nr_set == end - first) {
    slot_store_locked (map, index, nr_set ? SLOT_ONES : SLOT_ZEROES);
    return 0;
  }

  page = page_alloc_locked (map);
  if (page == NULL)
    return ENOMEM;
  for (i = 0; i < PAGE_WORDS; i++)
    atomic_store_explicit (&page->words[i], le64toh (words[i]),
                           memory_order_release);
  page->index = index;
  page->nr_set = nr_set;
  slot_store_locked (map, index, (uintptr_t) page);
  return 0;
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

static int
chunk_set_hole (struct map *map, uint64_t index)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);

  return chunk_hole_locked (map, index);
}

/* Find out what page INDEX is, and some of those behind it.
 *
 * What is read while no lock is held cannot be out of date: nobody sets
 * a bit in a page, let alone writes it, before it is known.
 */
static int
page_load (struct map *map, uint64_t index)
{
  const uint64_t begin = index * PAGE_BYTES;
  const uint64_t limit = chunk_end_byte (map, index);
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
                    MIN (MAX (e.count / PAGE_BYTES, 1), LOAD_PAGES));
    words = calloc (n, PAGE_BYTES);
    if (words == NULL)
      return ENOMEM;
    r = read_pages (map, index, limit, words, &n);
    if (r)
      return r;
  }

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
  r = chunk_make_locked (map, index);
  if (r)
    return r;
  if (n == 0)
    mark_hole_locked (map, index, e.count);
  for (i = 0; i < n && r == 0; i++)
    r = page_install_locked (map, index + i, words + i * PAGE_WORDS);
  return r;
}

/* The same for who only looks: *IS_ZEROES is true if it is found out without
 * keeping it.
 */
static int
page_look (struct map *map, uint64_t index, bool *is_zeroes)
{
  bool is_hole;
  int r = chunk_look (map, index, &is_hole);

  *is_zeroes = r == 0 && is_hole && map->forgets_holes;
  if (r || *is_zeroes)
    return r;
  return is_hole ? chunk_set_hole (map, index) : page_load (map, index);
}

/*--- Looking up. ------------------------------------------------------*/

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

/* map_run within page INDEX: bits [FIRST, FIRST + MAX). */
static int
page_run (struct map *map, uint64_t index, unsigned first, unsigned max,
          bool *value, unsigned *run)
{
  for (;;) {
    const uintptr_t slot = slot_load (map, index);
    struct page *page = slot_page (slot);
    uint64_t generation;
    bool is_zeroes = false;
    int r;

    if (slot == SLOT_UNKNOWN) {
      r = page_look (map, index, &is_zeroes);
      if (r)
        return r;
      if (!is_zeroes)
        continue;
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

/* Make sure that page INDEX is in memory or all ones. */
static int
page_prepare (struct map *map, uint64_t index)
{
  for (;;) {
    const uintptr_t slot = slot_load (map, index);
    struct page *page;
    int r;

    if (slot == SLOT_ONES || slot_page (slot))
      return 0;
    if (slot == SLOT_UNKNOWN) {
      r = page_load (map, index);
      if (r)
        return r;
      continue;
    }

    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
    if (slot_load (map, index) != SLOT_ZEROES)
      continue;
    r = chunk_make_locked (map, index);
    if (r)
      return r;
    page = page_alloc_locked (map);
    if (page == NULL)
      return ENOMEM;
    page->index = index;
    slot_store_locked (map, index, (uintptr_t) page);
    return 0;
  }
}

int
map_prepare (struct map *map, uint64_t sector, uint64_t nr_sectors)
{
  uint64_t index = (FIRST_BIT + sector) / PAGE_BITS;
  const uint64_t last = (FIRST_BIT + sector + nr_sectors - 1) / PAGE_BITS;
  int r = 0;

  for (; index <= last && r == 0; index++)
    r = page_prepare (map, index);
  return r;
}

static void
page_dirty_locked (struct map *map, struct page *page)
{
  if (page->dirty)
    return;
  page->dirty = true;
  page->next = map->dirty;
  map->dirty = page;
  map->nr_dirty++;
  if (!page->frozen)
    atomic_fetch_add_explicit (&map->nr_uncommitted, 1, memory_order_release);
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

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
  was_clean = !map_uncommitted (map);
  while (bit < end) {
    const uint64_t index = bit / PAGE_BITS;
    const uint64_t page_end = MIN ((index + 1) * PAGE_BITS, end);
    const uintptr_t slot = slot_load (map, index);
    struct page *page = slot_page (slot);

    assert (page || slot == SLOT_ONES);
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
  return atomic_load_explicit (&map->nr_uncommitted, memory_order_acquire);
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

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
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

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
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
  if (page->nr_set == page_nr_valid (map, page->index))
    page_release_locked (map, page, SLOT_ONES);
  atomic_fetch_sub_explicit (&map->nr_uncommitted, 1, memory_order_acq_rel);
}

void
map_thaw (struct map *map, bool committed)
{
  uint64_t i;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&map->lock);
  for (i = 0; i < map->nr_frozen; i++)
    page_thaw_locked (map, map->frozen[i], committed);
  free_frozen (map);
}

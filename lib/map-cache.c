/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "common.h"
#include "map-page.h"

/* Pages come in slabs that live as long as the cache. */
#define SLAB_PAGES 64
struct slab {
  struct slab *next;
  void *words; /* mapped: SLAB_PAGES * PAGE_BYTES */
  struct page pages[SLAB_PAGES];
};

int
map_cache_new (struct map_cache **ret, uint64_t max_bytes)
{
  struct map_cache *cache = calloc (1, sizeof *cache);

  if (cache == NULL)
    return ENOMEM;
  cache->max_pages = max_bytes / PAGE_BYTES;
  cache->can_give_back = sysconf (_SC_PAGESIZE) == PAGE_BYTES;
  pthread_mutex_init (&cache->lock, NULL);
  pthread_cond_init (&cache->room, NULL);
  *ret = cache;
  return 0;
}

void
map_cache_free (struct map_cache *cache)
{
  if (cache == NULL)
    return;
  assert (cache->users == NULL && cache->nr_resident == 0);
  while (cache->slabs) {
    struct slab *slab = cache->slabs;

    cache->slabs = slab->next;
    munmap (slab->words, SLAB_PAGES * PAGE_BYTES);
    free (slab);
  }
  pthread_cond_destroy (&cache->room);
  pthread_mutex_destroy (&cache->lock);
  free (cache);
}

static bool
page_is_busy (const struct page *page)
{
  return page->nr_pins > 0 || page->dirty || page->frozen;
}

/* What counts, in pages. */
static uint64_t
nr_pages_locked (const struct map_cache *cache)
{
  return cache->nr_resident + cache->nr_busy;
}

uint64_t
map_cache_bytes (struct map_cache *cache)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cache->lock);

  return nr_pages_locked (cache) * PAGE_BYTES;
}

/*--- Maps. ------------------------------------------------------------*/

void
map_cache_add_user (struct map_cache *cache, struct map_user *user)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cache->lock);

  user->prev = NULL;
  user->next = cache->users;
  if (cache->users)
    cache->users->prev = user;
  cache->users = user;
}

static void
wait_locked (struct map_cache *cache)
{
  cache->nr_waiting++;
  pthread_cond_wait (&cache->room, &cache->lock);
  cache->nr_waiting--;
}

static void
wake_locked (struct map_cache *cache)
{
  if (cache->nr_waiting > 0)
    pthread_cond_broadcast (&cache->room);
}

void
map_cache_remove_user (struct map_cache *cache, struct map_user *user)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cache->lock);

  user->stuck = true; /* nobody else begins */
  while (user->nr_callers > 0)
    wait_locked (cache);
  if (user->prev)
    user->prev->next = user->next;
  else
    cache->users = user->next;
  if (user->next)
    user->next->prev = user->prev;
}

static struct map_user *
choose_other_locked (struct map_cache *cache, const struct map_user *user)
{
  uint64_t most = atomic_load (&user->nr_uncommitted);
  struct map_user *u, *other = NULL;

  for (u = cache->users; u; u = u->next) {
    const uint64_t n = atomic_load (&u->nr_uncommitted);

    if (n > most && !u->stuck && u->commit) {
      most = n;
      other = u;
    }
  }
  return other;
}

bool
map_cache_commit_other (struct map_cache *cache, struct map_user *user)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cache->lock);
  struct map_user *other = choose_other_locked (cache, user);

  if (other == NULL)
    return false;
  other->nr_callers++;
  other->stuck = true; /* until a commit of it succeeds */
  pthread_mutex_unlock (&cache->lock);
  other->commit (other->opaque);
  pthread_mutex_lock (&cache->lock);
  other->nr_callers--;
  wake_locked (cache);
  return true;
}

/*--- Room. ------------------------------------------------------------*/

static void
queue_add_locked (struct map_cache *cache, struct page *page)
{
  page->next = NULL;
  page->prev = cache->newest;
  if (cache->newest)
    cache->newest->next = page;
  else
    cache->oldest = page;
  cache->newest = page;
}

static void
queue_remove_locked (struct map_cache *cache, struct page *page)
{
  if (page->prev)
    page->prev->next = page->next;
  else
    cache->oldest = page->next;
  if (page->next)
    page->next->prev = page->prev;
  else
    cache->newest = page->prev;
  page->prev = page->next = NULL;
}

/* Take PAGE, which is idle and in no list, out of its slot, which then says
 * SLOT, to the free ones.
 *
 * A look-up may be reading the words: it sees the generation move, which
 * happens before they change.
 */
static void
page_leave_locked (struct map_cache *cache, struct page *page, uintptr_t slot)
{
  assert (!page_is_busy (page));
  atomic_store_explicit (&page->chunk->slots[page->index % CHUNK_SLOTS], slot,
                         memory_order_release);
  atomic_fetch_add_explicit (&page->generation, 1, memory_order_acq_rel);
  page->blank = false;
  page->next = cache->free;
  cache->free = page;
  cache->nr_resident--;
}

static void
page_clear (struct page *page)
{
  unsigned i;

  for (i = 0; i < PAGE_WORDS; i++)
    atomic_store_explicit (&page->words[i], 0, memory_order_release);
  page->blank = true;
}

/* Where the kernel's pages are larger, madvise would round up and take
 * the neighbours' words as well.
 */
static void
page_give_back (const struct map_cache *cache, struct page *page)
{
  if (!cache->can_give_back ||
      madvise ((void *) page->words, PAGE_BYTES, MADV_DONTNEED) == -1)
    page_clear (page); /* locked memory, for one */
  page->blank = true;
}

void
page_release_locked (struct map_cache *cache, struct page *page, uintptr_t slot)
{
  page_leave_locked (cache, page, slot);
  page_give_back (cache, page);
}

/* Let go of an idle page: the file has its bits.  Somebody may be reading
 * what the file had before.
 */
static void
page_drop_locked (struct map_cache *cache, struct page *page)
{
  queue_remove_locked (cache, page);
  if (page->changed)
    atomic_fetch_add_explicit (&page->chunk->nr_dropped, 1,
                               memory_order_acq_rel);
  page_leave_locked (cache, page, SLOT_UNKNOWN);
}

/* The idle page that is to go, or NULL.  Who looks may mark pages again and
 * again; each is passed over once.
 */
static struct page *
queue_choose_locked (struct map_cache *cache)
{
  uint64_t n = cache->nr_resident - cache->nr_busy;
  struct page *page;

  while ((page = cache->oldest) && n-- > 1 &&
         atomic_exchange_explicit (&page->used, false, memory_order_relaxed)) {
    queue_remove_locked (cache, page);
    queue_add_locked (cache, page);
  }
  return page;
}

/* No map may be busy with more than this part of the memory. */
static bool
has_its_part (const struct map_cache *cache, const struct map_user *user)
{
  return user->nr_busy > 0 &&
         2 * (user->nr_busy + 1) > cache->max_pages / 4 * 3;
}

/* Let there be room for NR pages more of USER; who is to be busy gets it in
 * any case if nothing of it is.  Of the memory of pages that had to go, one is
 * left to be used at once, if REUSE.  False: there is no room.
 */
static bool
make_room_locked (struct map_cache *cache, const struct map_user *user,
                  unsigned nr, bool busy, bool reuse)
{
  struct page *page, *dropped = NULL;
  bool room = true;

  if (busy && has_its_part (cache, user))
    return false;
  while (nr_pages_locked (cache) + nr > cache->max_pages) {
    page = queue_choose_locked (cache);
    if (page == NULL) {
      room = busy && user->nr_busy == 0;
      break;
    }
    if (dropped)
      page_give_back (cache, dropped);
    page_drop_locked (cache, page);
    dropped = page;
  }
  if (dropped && !(room && reuse))
    page_give_back (cache, dropped);
  return room;
}

void
map_cache_wait (struct map_cache *cache, struct map_user *user)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cache->lock);

  while (atomic_load (&user->nr_uncommitted) == 0 &&
         !make_room_locked (cache, user, 2, true, false))
    wait_locked (cache);
}

/*--- Pages. -----------------------------------------------------------*/

static int
slab_add_locked (struct map_cache *cache)
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
    page->blank = true;
    page->next = cache->free;
    cache->free = page;
  }
  slab->next = cache->slabs;
  cache->slabs = slab;
  return 0;
}

int
page_new_locked (struct map_cache *cache, struct map_user *user, bool stay,
                 bool blank, struct page **ret)
{
  struct page *page;

  if (!make_room_locked (cache, user, stay ? 2 : 1, stay, true))
    return MAP_FULL;
  if (cache->free == NULL && slab_add_locked (cache) != 0)
    return ENOMEM;
  page = cache->free;
  cache->free = page->next;
  cache->nr_resident++;
  if (blank && !page->blank)
    page_clear (page);
  page->nr_pins = 1;
  page->changed = false;
  page->prev = page->next = NULL;
  atomic_store_explicit (&page->used, false, memory_order_relaxed);
  cache->nr_busy++;
  user->nr_busy++;
  *ret = page;
  return 0;
}

int
page_pin_locked (struct map_cache *cache, struct page *page)
{
  const bool was_busy = page_is_busy (page);

  if (!was_busy) {
    queue_remove_locked (cache, page); /* lest it makes the room */
    if (!make_room_locked (cache, page->user, 1, true, false)) {
      queue_add_locked (cache, page);
      return MAP_FULL;
    }
    cache->nr_busy++;
    page->user->nr_busy++;
  }
  page->nr_pins++;
  return 0;
}

void
page_unpin_locked (struct map_cache *cache, struct page *page)
{
  assert (page->nr_pins > 0);
  page->nr_pins--;
  page_settle_locked (cache, page, true);
}

void
page_settle_locked (struct map_cache *cache, struct page *page, bool was_busy)
{
  if (was_busy)
    wake_locked (cache);
  if (!was_busy || page_is_busy (page))
    return;
  cache->nr_busy--;
  page->user->nr_busy--;
  if (page->nr_set == page->nr_valid)
    page_release_locked (cache, page, SLOT_ONES);
  else if (page->nr_set == 0)
    page_release_locked (cache, page, SLOT_ZEROES);
  else
    queue_add_locked (cache, page);
}

void
page_forget_locked (struct map_cache *cache, struct page *page)
{
  if (!page_is_busy (page))
    queue_remove_locked (cache, page);
  else {
    page->nr_pins = 0;
    page->dirty = page->frozen = false;
    cache->nr_busy--;
    page->user->nr_busy--;
    wake_locked (cache);
  }
  page_release_locked (cache, page, SLOT_UNKNOWN);
}

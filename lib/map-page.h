/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A page of a map in memory: what map.c and map-cache.c have in common.  For
 * others there are map.h and map-cache.h.
 *
 * Everything here but what is atomic is protected by the lock of the cache,
 * which is the one lock of all maps that use it.  No I/O is done while it is
 * held, and no other lock is taken.
 */

#ifndef ADDCOW_MAP_PAGE_H
#define ADDCOW_MAP_PAGE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "map.h"

#define PAGE_BYTES 4096
#define PAGE_BITS (PAGE_BYTES * 8)
#define PAGE_WORDS (PAGE_BYTES / 8)

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
  unsigned nr_slots;

  /* How often a page was let go of that is not in the file as it was when it
   * was read last.  Changed under the lock, read without.
   */
  _Atomic uint64_t nr_dropped;

  _Atomic uintptr_t slots[]; /* CHUNK_SLOTS; of the last one, less */
};

/* A map as its cache knows it. */
struct map_user {
  struct map_user *prev, *next; /* in cache->users */
  uint64_t nr_busy;

  /* Pages that are dirty or frozen.  Changed under the lock, read without. */
  _Atomic uint64_t nr_uncommitted;

  /* Commits the map for others, without locks; or NULL. */
  void (*commit) (void *opaque);
  void *opaque;
  unsigned nr_callers; /* who are in there */
  bool stuck;          /* one of them was, since the last commit */
};

struct page {
  _Atomic uint64_t generation; /* moves when the page leaves its slot */
  _Atomic uint64_t *words;     /* PAGE_WORDS, bits in the host's order */
  struct map_user *user;
  struct chunk *chunk; /* with the slot that it is in, */
  uint64_t index;      /* of this page of the map */

  /* Looked at since it became idle.  Not beside what page_is_busy looks at:
   * compilers read all of that at once.
   */
  _Atomic unsigned used;

  unsigned nr_valid; /* bits of sectors, not of the header, */
  unsigned nr_set;   /* and those that are set */
  unsigned nr_pins;
  bool dirty;   /* in the map's list of those */
  bool frozen;  /* a commit has a copy */
  bool changed; /* since it was read from the file */
  bool blank;   /* free: all words are 0 */

  /* In the queue of those that are idle; next in the map's list of dirty
   * pages, or of free ones.
   */
  struct page *prev, *next;
};

struct map_cache {
  pthread_mutex_t lock; /* protects all that follows */
  pthread_cond_t room;  /* some page is no longer busy, or a caller is back */
  unsigned nr_waiting;  /* for it */
  uint64_t max_pages;
  bool can_give_back; /* a page here is one of the kernel's */
  uint64_t nr_resident;
  uint64_t nr_busy;
  struct slab *slabs;
  struct page *free;
  struct page *oldest, *newest; /* the queue of those that are idle */
  struct map_user *users;
};

/* Make USER known to CACHE, and forget it, which waits for who commits it.
 * These take the lock.
 */
void map_cache_add_user (struct map_cache *cache, struct map_user *user);
void map_cache_remove_user (struct map_cache *cache, struct map_user *user);

/* Have another map than that of USER commit, if one has more to.  Returns
 * whether there was one.  Takes the lock, but not while it commits; blocks.
 */
bool map_cache_commit_other (struct map_cache *cache, struct map_user *user);

/* Wait until somebody may have made room for USER, or it has something to
 * commit.  Takes the lock.
 */
void map_cache_wait (struct map_cache *cache, struct map_user *user);

/*--- The caller of these holds the lock. ------------------------------*/

/* A page that is pinned once, without a slot: the caller sets user, chunk,
 * index, nr_valid and nr_set, and puts it there.  Its words are 0 if BLANK,
 * else anything.  If it is not to STAY pinned the caller unpins it then, and
 * there is room for that alone.  Returns 0, MAP_FULL or ENOMEM.
 */
int page_new_locked (struct map_cache *cache, struct map_user *user, bool stay,
                     bool blank, struct page **page);

/* Pin PAGE, or undo that.  The first returns 0 or MAP_FULL. */
int page_pin_locked (struct map_cache *cache, struct page *page);
void page_unpin_locked (struct map_cache *cache, struct page *page);

/* Something changed by which a page can be busy; before, it WAS_BUSY.  If it
 * is idle now it may be gone when this returns.
 */
void page_settle_locked (struct map_cache *cache, struct page *page,
                         bool was_busy);

/* Take PAGE out of its slot, which then says SLOT, and give its memory back.
 * It is idle, and in no list.
 */
void page_release_locked (struct map_cache *cache, struct page *page,
                          uintptr_t slot);

/* The same, of a map that ends. */
void page_forget_locked (struct map_cache *cache, struct page *page);

#endif /* ADDCOW_MAP_PAGE_H */

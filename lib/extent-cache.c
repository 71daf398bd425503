/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <search.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "extent-cache.h"

#define PART EXTENT_CACHE_PART_BYTES

/* An extent that ends END bytes after the beginning of its part, and begins
 * where the one before it ends.
 */
struct span {
  uint32_t end;
  uint32_t type;
};

struct spans {
  struct span *list;
  size_t n, nr_allocated;
};

struct part {
  uint64_t number; /* it begins at number * PART */
  struct spans spans;
  unsigned nr_fetching;     /* who fetch: not to be forgotten */
  struct part *prev, *next; /* in the order in which they were looked at */
};

struct extent_cache {
  uint64_t size_bytes;
  size_t max_bytes;
  extent_fetch_fn *fetch;
  void *opaque;

  pthread_mutex_t lock; /* protects all that follows */
  pthread_cond_t fetched;
  void *tree;                   /* of parts, by number: see tsearch(3) */
  unsigned nr_failed;           /* fetches */
  struct part *newest, *oldest; /* looked at */
  size_t nr_bytes;              /* that all parts take */
};

/* What a part takes beside its spans, in the tree too. */
#define PART_COST (sizeof (struct part) + 64)

static int
compare_parts (const void *a, const void *b)
{
  const struct part *x = a, *y = b;

  return (x->number > y->number) - (x->number < y->number);
}

struct extent_cache *
extent_cache_new (uint64_t size_bytes, size_t max_bytes, extent_fetch_fn *fetch,
                  void *opaque)
{
  struct extent_cache *cache = calloc (1, sizeof *cache);

  if (cache == NULL)
    return NULL;
  cache->size_bytes = size_bytes;
  cache->max_bytes = max_bytes;
  cache->fetch = fetch;
  cache->opaque = opaque;
  pthread_mutex_init (&cache->lock, NULL);
  pthread_cond_init (&cache->fetched, NULL);
  return cache;
}

/*--- Parts. -----------------------------------------------------------*/

static void
list_remove (struct extent_cache *cache, struct part *part)
{
  if (part->prev)
    part->prev->next = part->next;
  else
    cache->newest = part->next;
  if (part->next)
    part->next->prev = part->prev;
  else
    cache->oldest = part->prev;
}

static void
list_add (struct extent_cache *cache, struct part *part)
{
  part->prev = NULL;
  part->next = cache->newest;
  if (cache->newest)
    cache->newest->prev = part;
  else
    cache->oldest = part;
  cache->newest = part;
}

static void
forget (struct extent_cache *cache, struct part *part)
{
  tdelete (part, &cache->tree, compare_parts);
  list_remove (cache, part);
  cache->nr_bytes -= PART_COST +
                     part->spans.nr_allocated * sizeof *part->spans.list;
  free (part->spans.list);
  free (part);
}

/* Forget what is too much, but never KEEP. */
static void
shrink (struct extent_cache *cache, const struct part *keep)
{
  struct part *part = cache->oldest, *newer;

  for (; part && cache->nr_bytes > cache->max_bytes; part = newer) {
    newer = part->prev;
    if (part != keep && part->nr_fetching == 0)
      forget (cache, part);
  }
}

static struct part *
new_part (struct extent_cache *cache, uint64_t number)
{
  struct part *part = calloc (1, sizeof *part);

  if (part == NULL)
    return NULL;
  part->number = number;
  if (tsearch (part, &cache->tree, compare_parts) == NULL) {
    free (part);
    return NULL;
  }
  list_add (cache, part);
  cache->nr_bytes += PART_COST;
  return part;
}

/* Find or make the part, the newest then.  NULL if memory is short. */
static struct part *
get_part (struct extent_cache *cache, uint64_t number)
{
  const struct part key = { .number = number };
  struct part **found = tfind (&key, &cache->tree, compare_parts);

  if (found == NULL)
    return new_part (cache, number);
  if (*found != cache->newest) {
    list_remove (cache, *found);
    list_add (cache, *found);
  }
  return *found;
}

/* How many bytes of the part are known. */
static uint32_t
known (const struct part *part)
{
  return part->spans.n ? part->spans.list[part->spans.n - 1].end : 0;
}

/*--- Fetching. --------------------------------------------------------*/

/* Add an extent that ends at END to the spans. */
static int
add_span (struct spans *spans, uint32_t end, uint32_t type)
{
  if (spans->n > 0 && spans->list[spans->n - 1].type == type) {
    spans->list[spans->n - 1].end = end;
    return 0;
  }
  if (spans->n == spans->nr_allocated) {
    const size_t n = MAX (4, spans->nr_allocated * 2);
    struct span *list = realloc (spans->list, n * sizeof *list);

    if (list == NULL)
      return ENOMEM;
    spans->list = list;
    spans->nr_allocated = n;
  }
  spans->list[spans->n++] = (struct span){ .end = end, .type = type };
  return 0;
}

/* Extents on their way from who fetches them. */
struct adder {
  struct spans spans;
  uint32_t end;     /* of what was added last */
  uint32_t max_end; /* of the part */
};

static int
add_fetched (void *opaque, uint64_t count, unsigned type)
{
  struct adder *a = opaque;

  a->end += MIN (count, a->max_end - a->end);
  return add_span (&a->spans, a->end, type);
}

/* Add what was fetched to what is known, as far as there is memory.  Others
 * may have added some of it before.
 */
static int
merge (struct extent_cache *cache, struct part *part, const struct spans *new)
{
  const size_t nr_before = part->spans.nr_allocated;
  size_t i;
  int r = 0;

  for (i = 0; i < new->n &&r == 0; i++)
    if (new->list[i].end > known (part))
      r = add_span (&part->spans, new->list[i].end, new->list[i].type);
  cache->nr_bytes += (part->spans.nr_allocated - nr_before) *
                     sizeof *part->spans.list;
  return r;
}

/* Let more of PART be known.  Caller holds lock, which is released
 * meanwhile.
 */
static int
fetch_locked (struct extent_cache *cache, struct part *part)
{
  const uint64_t start = part->number * PART;
  const uint32_t begin = known (part);
  struct adder a = {
    .end = begin,
    .max_end = MIN (PART, cache->size_bytes - start),
  };
  int r;

  part->nr_fetching++;
  pthread_mutex_unlock (&cache->lock);
  r = cache->fetch (cache->opaque, a.max_end - begin, start + begin,
                    add_fetched, &a);
  pthread_mutex_lock (&cache->lock);
  part->nr_fetching--;
  if (r <= 0)
    r = merge (cache, part, &a.spans);
  if (r == 0 && a.end == begin)
    r = EIO; /* it told of nothing */
  if (r)
    cache->nr_failed++;
  free (a.spans.list);
  pthread_cond_broadcast (&cache->fetched);
  shrink (cache, part);
  return r;
}

static const struct span *
find_span (const struct spans *spans, uint32_t at)
{
  size_t low = 0, high = spans->n - 1;

  while (low < high) {
    const size_t middle = (low + high) / 2;

    if (spans->list[middle].end > at)
      high = middle;
    else
      low = middle + 1;
  }
  return &spans->list[low];
}

int
extent_cache_look (struct extent_cache *cache, uint64_t offset, unsigned *type,
                   uint64_t *count)
{
  const uint32_t at = offset % PART;
  const struct span *span;
  struct part *part;
  bool patient = true;
  int r;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cache->lock);
  for (;;) {
    part = get_part (cache, offset / PART);
    if (part == NULL)
      return ENOMEM;
    if (at < known (part))
      break;
    if (patient && part->nr_fetching > 0) {
      const unsigned nr_failed = cache->nr_failed;

      pthread_cond_wait (&cache->fetched, &cache->lock);
      /* A fetch that fails may have taken long.  Who waited for one does
       * not wait for those of others who did, one after the other.
       */
      patient = cache->nr_failed == nr_failed;
    }
    else {
      r = fetch_locked (cache, part);
      if (r)
        return r;
    }
  }
  span = find_span (&part->spans, at);
  *type = span->type;
  *count = span->end - at;
  return 0;
}

size_t
extent_cache_bytes (struct extent_cache *cache)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cache->lock);
  return cache->nr_bytes;
}

void
extent_cache_free (struct extent_cache *cache)
{
  if (cache == NULL)
    return;
  while (cache->newest)
    forget (cache, cache->newest);
  pthread_cond_destroy (&cache->fetched);
  pthread_mutex_destroy (&cache->lock);
  free (cache);
}

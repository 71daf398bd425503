/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is known of the extents of a backing file that never changes and
 * is far away, so that they are asked for once.
 *
 * The backing file is cut into parts of EXTENT_CACHE_PART_BYTES.  What is
 * known of a part are the extents from its beginning up to some point;
 * the rest is fetched when it is needed, by who needs it first.  Parts that
 * were looked at least lately are forgotten when all together take too
 * much memory.
 *
 * Lock: cache->lock protects everything; it is not held while fetching.
 */

#ifndef ADDCOW_EXTENT_CACHE_H
#define ADDCOW_EXTENT_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "image.h" /* extent_fn */

struct extent_cache;

#define EXTENT_CACHE_PART_BYTES (64 * 1024 * 1024)

/* Tell FN of extents from OFFSET on, at least one and at most COUNT bytes;
 * FN does not block.  Returns 0, what FN returned, or an error number.  Is
 * called by any thread, without locks, and may block.
 */
typedef int extent_fetch_fn (void *opaque, uint64_t count, uint64_t offset,
                             extent_fn *fn, void *fn_opaque);

/* A cache of what FETCH, called with OPAQUE, tells of a backing file of
 * SIZE_BYTES.  It takes at most MAX_BYTES of memory, and what one part
 * needs.  Freed by extent_cache_free.  NULL if memory is short.
 */
struct extent_cache *extent_cache_new (uint64_t size_bytes, size_t max_bytes,
                                       extent_fetch_fn *fetch, void *opaque);

/* NULL is ignored. */
void extent_cache_free (struct extent_cache *cache);

/* What is at OFFSET, within the backing file: *TYPE goes on for *COUNT
 * bytes at least.  Fetches it where it is not known.  Takes lock; may
 * block as fetching does.  Returns 0, ENOMEM, or the error of fetching.
 */
int extent_cache_look (struct extent_cache *cache, uint64_t offset,
                       unsigned *type, uint64_t *count);

/* How much memory is taken now, about.  Takes lock. */
size_t extent_cache_bytes (struct extent_cache *cache);

#endif /* ADDCOW_EXTENT_CACHE_H */

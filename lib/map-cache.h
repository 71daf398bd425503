/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The memory of maps: pages that all maps with the same cache share, and a
 * bound on how much they take.
 *
 * What counts
 * -----------
 * A page is PAGE_BYTES of bits, of 16 MiB of disk.  Each one in memory
 * counts, and once more when it is busy, that is
 *
 *   pinned        between map_prepare and map_unprepare
 *   uncommitted   dirty or frozen, see map.h
 *
 * for the copy that the next commit makes of it.  Pages of zeroes and of ones
 * take no memory.
 *
 * Who needs a page when the bound is reached takes one that is idle, of
 * whatever map: the one that was idle longest, but for those that somebody
 * looked at meanwhile, which get a second chance.  Its map reads it from the
 * file again when it is asked for.  If all are busy,
 *
 * - a look-up goes on without memory: what it read is not kept;
 * - who is to change bits has somebody commit first: the map that has most
 *   uncommitted pages, if that is another one; else his own.  He holds nothing
 *   then that anybody waits for.  If his own commit fails his request fails
 *   as it did, before anything is written.  A map that others could not commit
 *   is left alone until it has done so itself.
 *
 * So that no map depends on any other, be it on a disk that is full, busy
 * pages of one take at most 3/4 of the memory, and each map that has none gets
 * one in any case.  So the bound holds up to two pages, 8 KiB, for each map.
 * What it is not about: the tables of the maps, 8 bytes for each page of a map
 * near one that was looked at; 80 bytes for each page in memory; what is being
 * read, 64 KiB at most for each thread that does.
 *
 * Memory comes in slabs, which are mapped as long as the cache lives: so who
 * looks something up without a lock may read a page that has become another
 * one's (see map.h), and many maps take few mappings.  The kernel gets the
 * memory of pages back that nobody needs soon.
 */

#ifndef ADDCOW_MAP_CACHE_H
#define ADDCOW_MAP_CACHE_H

#include <stdint.h>

struct map_cache;

#define MAP_CACHE_BYTES (UINT64_C (32) << 20) /* where nobody says another */

/* Make a cache with a bound of MAX_BYTES.  On success *CACHE is freed with
 * map_cache_free.  Takes no memory for pages yet.  Returns 0 or ENOMEM.
 */
int map_cache_new (struct map_cache **cache, uint64_t max_bytes);

/* Free the cache, whose maps are closed; NULL is ignored. */
void map_cache_free (struct map_cache *cache);

/* How much memory pages and their copies take now, as said above.  Takes its
 * lock, does not block.
 */
uint64_t map_cache_bytes (struct map_cache *cache);

#endif /* ADDCOW_MAP_CACHE_H */

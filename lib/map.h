/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The allocation map: one bit a sector, in memory and in the metadata
 * file.
 *
 * The metadata file is seen as pages of 4096 bytes, aligned in the file,
 * so that a page of the map is a page of the file's cache and of most
 * disks; the header is the beginning of page 0.  A page is in one of
 * these states, which its slot in a two-level table tells:
 *
 *   unknown   not looked at yet
 *   zeroes    all of its bits are 0      } no memory
 *   ones      all of its bits are 1      }
 *   in memory
 *
 * Pages are looked at when a bit in them is first asked for, some at a time;
 * who looks at page after page has the system read on meanwhile.  Holes of
 * the file are found with SEEK_DATA and are zeroes, nothing is read for
 * them, and where there is nothing else they take next to no memory,
 * wherever they are asked for.  A page that becomes all ones gives its
 * memory back once that is on disk.  So opening costs the same for every
 * size, and memory goes by what is in use and mixed.
 *
 * Bits go from 0 to 1 only.
 *
 * Who may see what
 * ----------------
 * A bit is looked up without a lock.  The words of a page are atomic and
 * its memory is never unmapped while the map lives, but it may be given
 * to another page, of this map or another one; each such change moves the
 * page's generation, and a look-up whose page moved on meanwhile is done
 * again.
 *
 * Everything that changes the map holds its lock, which is the one of its
 * cache and so of all maps with the same: it protects the slots, the words
 * against other writers, the lists of pages and the flags of a page.  No I/O
 * is done while it is held.
 *
 * What is let go of
 * -----------------
 * A page that is idle (map-cache.h) has no bit that is not in the file: those
 * that were set were written by a commit whose sync succeeded since, and the
 * others were found there.  So who reads it again finds all of its bits.
 * After a sync that failed a page is dirty, and stays, until one succeeds: what
 * the kernel may have forgotten then is never read again.  What was found is
 * on disk, as who opens an overlay has its metadata file synced and reads it
 * after that (disk.h); where that cannot be, in a file that a server left
 * that was killed and that is read only, nobody syncs it now either.
 *
 * Who reads a page from the file holds no lock.  What he read may have become
 * out of date, if the page came into memory meanwhile, was changed, committed
 * and let go of: so it is counted when a page is let go of that was changed,
 * and who finds when he is done that one was, reads again.
 *
 * Commit
 * ------
 * A page with bits that may not be on disk yet is uncommitted: "dirty"
 * when it has bits set since the last freeze, "frozen" while a commit is
 * writing what it had at the freeze, perhaps both.  A commit is
 *
 *     map_freeze          copy the dirty pages
 *     flush the image     (the caller's part)
 *     map_write_frozen    write the copies, sync the metadata file
 *     map_thaw            forget them, or make them dirty again
 *
 * so that the bits that reach the disk are those that were set before
 * the flush began.  When the power goes at any moment, a bit on disk is
 * one of such a copy, whose data is durable; a page written in part has
 * old and new bits, all of them true.  After a failed commit the pages
 * are dirty again and the next one writes them whole, for the kernel may
 * have dropped them.  If no sync has succeeded since the file was opened,
 * the next one also writes again what was found in it, which a server that
 * was killed may have left to be synced.
 *
 * Commits are part of the model in tests/model/overlay.pml, see overlay.h.
 * Pages that are let go of are not: its bits are those that a look-up finds,
 * from memory or from the file.
 */

#ifndef ADDCOW_MAP_H
#define ADDCOW_MAP_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"
#include "map-cache.h"

struct map;

/* Make the map of a disk of SIZE_BYTES, a valid size, over METADATA,
 * which is as long as header and bitmap and outlives the map, as does
 * CACHE, where its pages are; NULL: one of its own, of MAP_CACHE_BYTES.  Reads
 * nothing.  On success *MAP is freed with map_close.  Returns 0 or ENOMEM.
 */
int map_open (struct map **map, struct image *metadata, uint64_t size_bytes,
              struct map_cache *cache);

/* Free the map; NULL is ignored.  Writes nothing: bits that are not
 * committed are lost.  The caller makes sure nobody uses it any more, but for
 * who commits it because others want memory: waits for those.
 */
void map_close (struct map *map);

/* Have FN commit the map when another one needs memory.  It is called from
 * any thread that uses the cache, without locks, and may block.
 */
void map_commit_with (struct map *map, void (*fn) (void *opaque), void *opaque);

/* Look up SECTOR: *ALLOCATED tells its bit, *RUN (at least 1, at most
 * MAX_SECTORS, which is at least 1) how many sectors from there on have
 * the same.  The range lies within the disk.  Takes no lock where the
 * pages are known; else takes the lock and may block for reading the
 * metadata file.  Returns 0 or an error number of that, ENOMEM.
 *
 * The image may be read for a sector that is found allocated: its data
 * was there before its bit.
 */
int map_run (struct map *map, uint64_t sector, uint64_t max_sectors,
             bool *allocated, uint64_t *run);

/* There is no memory for pages that are to change: see map-cache.h. */
#define MAP_FULL (-1)

/* Make sure that map_set cannot fail: bring the pages of the range into memory
 * and keep them there until map_unprepare, which is to be called once for what
 * was prepared: the first *NR_SECTORS of MAX_SECTORS (at least 1).  That is
 * less when it would be very much at once, or when there is no memory for
 * more, or an error further on.  Many may have the same pages prepared.  May
 * block for reading the metadata file; takes the lock.  Returns 0; or with
 * nothing prepared, an error number of reading, ENOMEM, or MAP_FULL.
 */
int map_prepare (struct map *map, uint64_t sector, uint64_t max_sectors,
                 uint64_t *nr_sectors);
void map_unprepare (struct map *map, uint64_t sector, uint64_t nr_sectors);

/* What to do about MAP_FULL, without holding anything that others wait for.
 * First, have another map commit, if one has more to.  Returns whether that
 * was tried; takes the lock, but not while it blocks.
 */
bool map_commit_other (struct map *map);

/* If there was none, and this map has nothing to commit: wait until there may
 * be memory, or something to commit.  Takes the lock.
 */
void map_wait_for_room (struct map *map);

/* Set the bits of the range, which is prepared and whose data is in the
 * image.  Takes the lock, does not block otherwise.  Returns true when the
 * map had nothing uncommitted before and has now.
 */
bool map_set (struct map *map, uint64_t sector, uint64_t nr_sectors);

/* Is there any bit that may not be on disk?  Takes no lock.  Whoever saw
 * a bit set and then finds nothing uncommitted knows the bit to be on
 * disk.
 */
bool map_uncommitted (struct map *map);

/* Has the metadata file been synced since it was opened?  Before that,
 * bits that were found set in it may not be on disk: whoever wrote them
 * may have been killed then.  The first commit does it.  Takes no lock.
 */
bool map_synced (struct map *map);

/* How many pages hold such bits: what a commit will write and what
 * cannot be let go of before.  Takes no lock.
 */
uint64_t map_nr_uncommitted_pages (struct map *map);

/* Are there so many that whoever made it so should commit?  Takes no lock. */
bool map_has_many_uncommitted (struct map *map);

/* Call FN for the runs of sectors that have been set, but not in the
 * metadata file, until it returns other than 0.  The caller is the one who
 * commits.  Blocks; takes the lock, but not while FN is called.  Returns 0,
 * what FN returned, an error number of reading the metadata file, or ENOMEM.
 */
int map_each_uncommitted (struct map *map,
                          int (*fn) (void *opaque, uint64_t sector,
                                     uint64_t nr_sectors),
                          void *opaque);

/* Begin a commit; one at a time, the caller sees to that.  Returns 0 or
 * ENOMEM, and then nothing is frozen.  Takes the lock, does not block.
 */
int map_freeze (struct map *map);

/* Write what is frozen and sync the metadata file.  Returns 0 or an
 * error number of that.  Blocks; takes no lock.
 */
int map_write_frozen (struct map *map);

/* End a commit that map_freeze began: COMMITTED, or it failed and the
 * bits have to be written again.  Takes the lock, does not block.
 */
void map_thaw (struct map *map, bool committed);

#endif /* ADDCOW_MAP_H */

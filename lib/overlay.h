/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An overlay: the disk that map, image and backing file make together.
 *
 * Data and who owns them
 * ----------------------
 * The overlay owns its map, and not what it was opened with: the metadata
 * file, the backing file and the images are the caller's and outlive it.
 * The metadata file and the backing file are one each; images are many:
 * a server has one for each connection, all of the same bytes.  An image
 * is attached before it is used and detached after, so that commits that
 * no client waits for have something to flush.
 *
 * Routing
 * -------
 * A sector whose bit is set is read from the image, any other from the
 * backing file.  Everything is written to the image, at the same offset.
 *
 * - Requests to sectors that are all allocated go straight to the image
 *   and take no lock (unless a flush has failed, see below).
 * - The first touch of a sector is guarded: whoever writes to a range
 *   with an unallocated sector in it holds the range in ov->first_touch
 *   until the bits are set, whole-sector writers as well as partial ones.
 *   In it, the first and last sector of the request, where they are
 *   written in part and not allocated, are completed from the backing
 *   file; the data is written; then the bits are set.  A write that fails
 *   sets none.  What is very large, or more than there is memory for in the
 *   map, is done in parts, each as if it were a request.
 * - Readers take no lock.  One that finds a bit clear and reads the
 *   backing file while the sector is first written gets the old data,
 *   and may: the write was not acknowledged when the read began.
 * - Zeroing, and trimming where a sector is not allocated, write zeroes
 *   (a hole where it can be) and set bits like a write.
 *
 * Filling
 * -------
 * To fill is to give a sector the content that it has in the backing file.
 * The backing file never changes, so it is read without any lock, however
 * long that takes, and nobody waits for it.  Then the range is held in
 * first_touch, as for a write, and only those of its sectors are written
 * whose bits are clear now: who wrote the others meanwhile has set theirs
 * before he let go of the range.  So what is filled is never newer than
 * what is there, and a writer waits at most for a write to the image.
 *
 * When all sectors are allocated and that is on disk, the disk stands
 * alone: nothing is read from the backing file any more, and it can be
 * closed once those are done who had looked before.  They are counted.
 *
 * What is on disk at each moment
 * ------------------------------
 * Nothing is written to the metadata file but by a commit (map.h), and
 * a commit flushes the image between taking the bits and writing them.
 * When the power goes, a sector whose bit is on disk has its data there
 * too, and any other reads as it did in the backing file.  A sector that
 * is written again, with its bit on disk, holds after a power failure
 * what its image holds: its old or its new content.
 *
 * A flush is a commit when there are uncommitted bits, else a flush of
 * the image.  Flushes that arrive while a commit is under way share the
 * next one.  A write with FUA to sectors whose bits are on disk is one
 * to the image; any other is a write and then a flush.  A commit waits a
 * little for those who shared the last one, so that they do not take turns
 * in two halves.  When many pages are uncommitted, the writer that made it
 * so commits, which bounds the memory that they take.  The first flush syncs
 * the metadata file in any case: bits that were found in it may not be on disk
 * yet.
 *
 * When flushing an image fails, data of any client may be lost, and the
 * system tells that once; but the flush may be part of a commit that
 * only some clients wait for, or none.  So failures are counted, and
 * each image knows how many its users were told of: the next flush of each
 * that was not fails, and the first one of who comes in the place of
 * somebody who left untold.  A FUA write fails when something failed
 * during it.  None may succeed that overlaps a commit, which may have got
 * the system's answer in its stead: it is followed by a commit of its own.
 * Nor may a commit that overlaps a flush that fails.  Flushes that are no
 * commit are left to the image as they are: of two at a time one may have
 * the answer for both, as without an overlay.
 *
 * What the system has not written it takes for written after it told that.
 * So when flushing an image failed, the sectors whose bits are not
 * committed are read and written again before the next commit, under
 * their ranges, when all are done who held ranges then; until that is over
 * every writer holds its range.
 *
 * Locks, in the order in which they are taken
 * -------------------------------------------
 *   first_touch (ranges)  who may give sectors their first content; held
 *                         over I/O to backing file and image
 *   the map's lock        see map.h; one of all overlays with the same cache;
 *                         not held over I/O
 *   commit_lock           who commits, which commits are over; not held
 *                         over I/O
 *   images_lock           the list of attached images and their users;
 *                         not held over I/O
 *   backing_lock          waiting until nobody uses the backing file
 * None of the mutexes is held when another one is taken.  Who commits may
 * take ranges, so nobody who holds one waits for a commit.  Pages of the map
 * are prepared before a range is taken: for want of memory that may be a
 * commit, of this overlay or of another one with the same cache, and who waits
 * for it holds no range and has nothing prepared, of any.
 *
 * tests/model/overlay.pml is a model of this, which tests/test-spin.sh has
 * checked in all of its states: who changes the one looks at the other.
 */

#ifndef ADDCOW_OVERLAY_H
#define ADDCOW_OVERLAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backing.h"
#include "image.h"
#include "map-cache.h"

struct overlay;

/* What failed, and how: of functions that return -1. */
struct fault {
  enum fault_part {
    FAULT_IMAGE,    /* the operation on the image */
    FAULT_BACKING,  /* reading the backing file */
    FAULT_METADATA, /* reading, writing, syncing metadata */
    FAULT_MEMORY,   /* there was none */
  } part;
  int err; /* an error number, see error.h */
};

/* What the owner of an overlay wants to know.  Each is called from any
 * thread, without locks, with OPAQUE; each may be NULL.
 */
struct overlay_hooks {
  /* There is something to commit and was nothing before.  Must not block. */
  void (*dirty) (void *opaque);

  /* A client of IMAGE read BUF, COUNT bytes at OFFSET, from the backing
   * file.  It waits for this for its answer.
   */
  void (*missed) (void *opaque, struct image *image, const void *buf,
                  size_t count, uint64_t offset);

  void *opaque;
};

/* Make the overlay of SIZE_BYTES (valid, see format.h) over METADATA and
 * BACKING, which may be NULL.  CACHE outlives it, see map_open; NULL is one
 * of its own.  HOOKS are copied; NULL is none.  On success *OV is freed by
 * overlay_close.  Reads nothing.  Returns 0 or ENOMEM.
 */
int overlay_open (struct overlay **ov, struct image *metadata,
                  uint64_t size_bytes, struct backing *backing,
                  struct map_cache *cache, const struct overlay_hooks *hooks);

/* Free OV; NULL is ignored.  Commits nothing: detaching the last image
 * did.  The caller makes sure that nobody uses it any more.
 */
void overlay_close (struct overlay *ov);

uint64_t overlay_size_bytes (const struct overlay *ov);

/* Make IMAGE known to OV.  Takes images_lock. */
void overlay_attach (struct overlay *ov, struct image *image);

/* Commit what is uncommitted through IMAGE, and forget it; waits until
 * no commit uses it.  Returns 0, or -1 and *FAULT when the commit failed,
 * after which the bits are uncommitted still.  Blocks.
 */
int overlay_detach (struct overlay *ov, struct image *image,
                    struct fault *fault);

/* The requests of a disk.  Ranges lie within it and are byte-granular;
 * COUNT is at least 1.  IMAGE is attached.  FLAGS are those of image.h:
 * IMAGE_FUA for write, zero and trim, IMAGE_MAY_TRIM and IMAGE_FAST for
 * zero.  They block, may be called from any thread and many at a time,
 * and return 0, or -1 and *FAULT.
 */
int overlay_read (struct overlay *ov, struct image *image, void *buf,
                  size_t count, uint64_t offset, struct fault *fault);
int overlay_write (struct overlay *ov, struct image *image, const void *buf,
                   size_t count, uint64_t offset, unsigned flags,
                   struct fault *fault);
int overlay_zero (struct overlay *ov, struct image *image, uint64_t count,
                  uint64_t offset, unsigned flags, struct fault *fault);
int overlay_trim (struct overlay *ov, struct image *image, uint64_t count,
                  uint64_t offset, unsigned flags, struct fault *fault);

/* A hint: after very many changes between image and backing file, the rest
 * of the range is left out.
 */
int overlay_cache (struct overlay *ov, struct image *image, uint64_t count,
                   uint64_t offset, struct fault *fault);

/* What was acknowledged before this began is durable when it returns. */
int overlay_flush (struct overlay *ov, struct image *image,
                   struct fault *fault);

/* Call FN for the extents of the range, equal neighbours as one; it may
 * stop (see image.h).  Extents are those of the image where sectors are
 * allocated and those of the backing file elsewhere.  After very many,
 * told or asked for, the rest is left out, so that a reply has an end.
 */
int overlay_extents (struct overlay *ov, struct image *image, uint64_t count,
                     uint64_t offset, extent_fn *fn, void *opaque,
                     struct fault *fault);

/* Commit what is uncommitted, and find out whether a flush that failed left
 * anything to do, through any attached image; does nothing when there is no
 * image or nothing to do.  Returns 0, or -1 and *FAULT.  Blocks.
 */
int overlay_commit (struct overlay *ov, struct fault *fault);

/* Is there anything to commit?  Takes no lock. */
bool overlay_uncommitted (struct overlay *ov);

/*--- Filling. ---------------------------------------------------------*/

/* Write to the image what was read from the backing file before: BUF, COUNT
 * bytes at OFFSET, both whole sectors.  Sectors that are allocated by now
 * are left alone; blocks of zeroes become holes where they can.  Waits for
 * whoever writes to the range, if WAIT; else nothing is done then.  Blocks.
 * Returns 0, or -1 and *FAULT; what was written before it failed is
 * allocated.
 */
int overlay_keep (struct overlay *ov, struct image *image, const void *buf,
                  size_t count, uint64_t offset, bool wait,
                  struct fault *fault);

/* What a step of filling did, or failed to do. */
struct filled {
  uint64_t nr_bytes; /* how far it came, at least a sector */
  bool was_allocated;
  uint64_t nr_copied; /* bytes of data; not what reads as zeroes */
};

/* Fill the first part of a range of whole sectors that is in one state: what
 * is allocated already, or zeroes, or data of at most BUF_BYTES, a multiple
 * of 4096, which are read into BUF.  Blocks.  Returns 0, or -1 and *FAULT,
 * and in any case *FILLED.
 */
int overlay_fill (struct overlay *ov, struct image *image, void *buf,
                  size_t buf_bytes, uint64_t count, uint64_t offset,
                  struct filled *filled, struct fault *fault);

/* Fill all sectors that the range touches; it is byte-granular.  Blocks.
 * Returns 0, or -1 and *FAULT, after which a part of it is filled.
 */
int overlay_fill_range (struct overlay *ov, struct image *image, uint64_t count,
                        uint64_t offset, struct fault *fault);

/* Have a range that was filled written to the disk, so that filling leaves
 * little for the next flush.  FD is the image as an open file.  WAIT for it;
 * else it is only begun.  An error counts as a flush that failed.  Nothing is
 * done during a commit.  Blocks.
 */
void overlay_write_out (struct overlay *ov, int fd, uint64_t count,
                        uint64_t offset, bool wait);

/* Is every sector allocated, and is that on disk?  No, as long as a flush of
 * the image that failed was not made up for by a commit.  It costs next to
 * nothing to ask again and again, but may block for reading the metadata file;
 * where that fails the answer is no.
 */
bool overlay_stands_alone (struct overlay *ov);

/* Let who waits for the backing file fail, and all who read it from now on:
 * what uses the overlay is about to end.  Does not wait.
 */
void overlay_interrupt (struct overlay *ov);

/* Use the backing file no more; the disk stands alone.  Some may read it
 * still: waits for them, if WAIT.  Returns whether nobody does: from then on
 * its owner may close it.
 */
bool overlay_drop_backing (struct overlay *ov, bool wait);

#endif /* ADDCOW_OVERLAY_H */

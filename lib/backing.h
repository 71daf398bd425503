/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The interface to where unallocated sectors come from: a flat array of
 * bytes that is never written.
 *
 * Every operation may be called from any thread and from many at a time,
 * but close, which comes once, last and alone.  Each returns 0 or an
 * error number.
 */

#ifndef ADDCOW_BACKING_H
#define ADDCOW_BACKING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "disk-map.h" /* map_fn */
#include "image.h"    /* extent_fn */

struct backing;

struct backing_ops {
  /* Fill BUF.  The range lies within size_bytes.  May block. */
  int (*read) (struct backing *, void *buf, size_t count, uint64_t offset);

  /* Call FN for extents from OFFSET on, within size_bytes.  It may stop
   * before COUNT bytes are told of, but tells of one extent at least; with
   * EXTENT_STOP if the caller had better not ask for the rest now.  May
   * block.
   */
  int (*extents) (struct backing *, uint64_t count, uint64_t offset,
                  extent_fn *fn, void *opaque);

  /* The range will be read soon.  A hint; does not wait for the data. */
  int (*cache) (struct backing *, uint64_t count, uint64_t offset);

  /* A descriptor, the backing file's, that has the same bytes in the same
   * places; does not block.  NULL: it has none.
   */
  int (*fd) (struct backing *);

  /* It is a disk that has files of its own: call FN for them, the first of
   * which are DEPTH down, see disk_map_below.  NULL: it is one file.
   */
  int (*map) (struct backing *, uint64_t count, uint64_t offset, unsigned depth,
              map_fn *fn, void *opaque, struct failure *failure);

  /* From now on what is read, and what others wait for, fails with EIO, but
   * soon.  Does not wait.  NULL: nothing takes long.
   */
  void (*interrupt) (struct backing *);

  /* Release everything, *BACKING too.  May block. */
  void (*close) (struct backing *);
};

struct backing {
  const struct backing_ops *ops;
  uint64_t size_bytes; /* never changes; any number of bytes */

  /* The file has the same bytes in the same places.  Set by backing_open. */
  bool raw;

  /* It is an overlay, and this its disk; or NULL. */
  struct disk *disk;
};

/* The operations as the overlay needs them: on any range.  BACKING may
 * be NULL, for no backing file; there and past the end are zeroes.
 * These may block where the operation may.
 */
int backing_read (struct backing *backing, void *buf, size_t count,
                  uint64_t offset);
int backing_extents (struct backing *backing, uint64_t count, uint64_t offset,
                     extent_fn *fn, void *opaque);
int backing_cache (struct backing *backing, uint64_t count, uint64_t offset);
void backing_interrupt (struct backing *backing);
void backing_close (struct backing *backing);

/* How a backing file is opened.  What it points to is the caller's, and
 * log and its opaque are used until the backing file is closed.
 */
struct backing_options {
  /* What its bytes are: "raw", "add-cow", or the name that QEMU has for
   * a format.  NULL if nobody said: then it is raw, but refused when it
   * begins like a format that is not.
   */
  const char *format;

  /* How long requests wait for a server that was lost, and opening for one
   * that does not answer; at least 1.
   */
  unsigned timeout_seconds;

  /* See location_find: of names in metadata files that are opened; what
   * such images of other formats name themselves is refused.  Or NULL.
   */
  const char *confine;

  /* Take no locks: see disk.h. */
  bool unlocked;

  /* That of the overlay above, whose disk_options say it; or NULL. */
  struct map_cache *map_cache;

  /* The metadata files above, see backing-addcow.h; or NULL. */
  const struct chain *chain;

  /* A chain that comes back is an error also where it does so below an overlay
   * whose sectors are all allocated: that needs no backing file now, but will
   * when it becomes longer, or is committed.
   */
  bool no_loops;

  /* Something happened to the backing file NAME that no request tells of,
   * such as that a connection was lost.  TEXT is one line.  Called from any
   * thread, without locks.  Or NULL.
   */
  void (*log) (void *opaque, const char *name, const char *text);
  void *log_opaque;

  /* Share with whoever else opens the same in this pool, see backing-pool.h;
   * or NULL.  It has its own log.
   */
  struct backing_pool *pool;

  /* For the pool alone: what this is opened to be the backing file of. */
  struct shared_backing *opening;
};

#define BACKING_TIMEOUT_SECONDS 30 /* where nobody says another */

/* Open what is at LOCATION, read-only, by what it is:
 *
 *   a local file or block device that is raw   backing-file.c
 *   a raw disk that an NBD server has          backing-nbd.c
 *   another overlay, by its metadata file      backing-addcow.c
 *   anything else that QEMU reads              backing-qemu.c
 *
 * On success *BACKING is closed by the caller.  On failure the error number
 * is returned and *FAILURE says the rest.  Blocks, but not on a FIFO, and
 * not on a server for longer than the timeout.  No thread is left running:
 * the process may fork, and go on in its child, before the first request.
 */
struct location;
struct failure;
int backing_open (struct backing **backing, const struct location *location,
                  const struct backing_options *options,
                  struct failure *failure);

/* Does BUF, the first COUNT bytes of a disk, begin like an image of a
 * format that is not raw?  Returns the name of the format or NULL.
 */
const char *backing_magic (const void *buf, size_t count);
#define BACKING_MAGIC_BYTES 512

#endif /* ADDCOW_BACKING_H */

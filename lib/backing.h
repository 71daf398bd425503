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

#include <stddef.h>
#include <stdint.h>

#include "image.h" /* extent_fn */

struct backing;

struct backing_ops {
  /* Fill BUF.  The range lies within size_bytes.  May block. */
  int (*read) (struct backing *, void *buf, size_t count, uint64_t offset);

  /* Call FN for extents from OFFSET on, within size_bytes.  It may stop
   * before COUNT bytes are told of, but tells of one extent at least.
   * May block.
   */
  int (*extents) (struct backing *, uint64_t count, uint64_t offset,
                  extent_fn *fn, void *opaque);

  /* The range will be read soon.  A hint; does not wait for the data. */
  int (*cache) (struct backing *, uint64_t count, uint64_t offset);

  /* Release everything, *BACKING too.  May block. */
  void (*close) (struct backing *);
};

struct backing {
  const struct backing_ops *ops;
  uint64_t size_bytes; /* never changes; any number of bytes */
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
void backing_close (struct backing *backing);

/* Open FILE_NAME, a local regular file or block device, as a raw backing
 * file (backing-file.c).  It is opened read-only, and QEMU's locks (see
 * lock.h) are held on it so that nobody there writes to it meanwhile.
 *
 * On success *BACKING is closed by the caller.  Returns 0,
 * ADDCOW_E_NOT_DISK, ADDCOW_E_IN_USE, ADDCOW_E_FOREIGN_FORMAT when it
 * begins with the magic of another disk image format, or an errno.
 * Opening blocks no longer than the file system does: not on a FIFO.
 */
int backing_file_open (const char *file_name, struct backing **backing);

/* Does BUF, the first COUNT bytes of a disk, begin like an image of a
 * format that is not raw?  Returns the name of the format or NULL.
 */
const char *backing_magic (const void *buf, size_t count);
#define BACKING_MAGIC_BYTES 512

#endif /* ADDCOW_BACKING_H */

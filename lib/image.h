/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The interface to what is written to: a flat array of bytes.
 *
 * The image of an overlay is one, through image-file.c or the next layer
 * of an nbdkit server.  So is the metadata file, which is why the map and
 * its commits can be run over simulated files.
 *
 * Every operation may block, may be called from any thread and from many
 * at a time, and returns 0 or an error number.  Ranges must lie within
 * the image; a count of 0 is allowed and does nothing.
 */

#ifndef ADDCOW_IMAGE_H
#define ADDCOW_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Flags of write, zero and trim. */
#define IMAGE_FUA (1 << 0) /* durable before it returns */
/* Flags of zero. */
#define IMAGE_MAY_TRIM (1 << 1) /* a hole will do */
#define IMAGE_FAST (1 << 2)     /* fail with EOPNOTSUPP rather than be slow */

/* What an extent is: both bits as in NBD's base:allocation. */
#define EXTENT_HOLE (1 << 0) /* takes no space */
#define EXTENT_ZERO (1 << 1) /* reads as zeroes */

/* Called for one extent after the other, without gaps.  Returns 0 to go
 * on, anything else to stop: a positive error number is an error, -1 is
 * none.  What it returned is what the caller's caller gets.
 */
typedef int extent_fn (void *opaque, uint64_t count, unsigned type);
#define EXTENT_STOP (-1)

struct image;

struct image_ops {
  int (*read) (struct image *, void *buf, size_t count, uint64_t offset);
  int (*write) (struct image *, const void *buf, size_t count, uint64_t offset,
                unsigned flags);

  /* Make the range read as zeroes.  Falls back to writing them, unless
   * IMAGE_FAST is given and that would be needed; then, EOPNOTSUPP.
   */
  int (*zero) (struct image *, uint64_t count, uint64_t offset, unsigned flags);

  /* Nobody needs the range any more.  A hint: what it reads as
   * afterwards is undefined.
   */
  int (*trim) (struct image *, uint64_t count, uint64_t offset, unsigned flags);

  /* What was written before this began is durable when it returns. */
  int (*flush) (struct image *);

  /* Call FN for extents from OFFSET on.  It may stop before COUNT bytes
   * are told of, but tells of one extent at least.
   */
  int (*extents) (struct image *, uint64_t count, uint64_t offset,
                  extent_fn *fn, void *opaque);

  /* The range will be read soon.  A hint. */
  int (*cache) (struct image *, uint64_t count, uint64_t offset);

  /* Write what the file FD has in the same range, by a copy that the system
   * makes.  When it fails a part may have been written.  NULL: cannot.
   */
  int (*copy) (struct image *, int fd, uint64_t count, uint64_t offset);

  /* Cut it behind LENGTH_BYTES, or lengthen it by what reads as zeroes: also
   * what was cut off before.  A flush makes that durable.  NULL: cannot.
   */
  int (*set_length) (struct image *, uint64_t length_bytes);
};

struct image {
  const struct image_ops *ops;

  /* A flush through this image covers what was written through any
   * other image of the same overlay.
   */
  bool multi_conn;

  /* The overlay's, while the image is attached to it: its neighbours in
   * the list of images, how many commits are using it.  Protected by the
   * overlay's images_lock.
   */
  struct image *prev, *next;
  unsigned busy;

  /* The overlay's too: how many of its failed flushes of images those who
   * use this image were told of, and whether some of the others were not
   * told to those whose place they may have taken.
   */
  _Atomic uint64_t nr_failures_told;
  bool inherits_failures;

  /* Set before it is attached: it takes no writes, and gets none. */
  bool read_only;

  /* Set before it is attached: nobody is told what fails through it, and so
   * somebody else is told in its stead.
   */
  bool no_client;

  /* Writes under way that hold no range, see overlay.h. */
  _Atomic unsigned nr_unlocked;
};

#endif /* ADDCOW_IMAGE_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A backing file that is open for writing: what an overlay is committed to.
 *
 * It is an image (see image.h) of which only read, write, zero, flush and
 * copy are there, and trim and cache do nothing.
 */

#ifndef ADDCOW_TARGET_H
#define ADDCOW_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "backing.h"
#include "image.h"

struct target;

struct target_ops {
  /* Make it SIZE_BYTES long, which is more than it was; the rest is zeroes.
   * Durable after a flush.  NULL: it cannot be.  Returns 0 or an errno.
   */
  int (*grow) (struct target *, uint64_t size_bytes);

  /* Let what others wait for fail with EIO, but soon.  From any thread.
   * NULL: nothing takes long.
   */
  void (*interrupt) (struct target *);

  /* Nothing more will be written: what is left to be done to the file is
   * done when this returns, and it is as it will stay.  May block.  Returns 0
   * or an error number.  NULL: nothing is.
   */
  int (*end) (struct target *);

  /* Release everything, *TARGET too.  May block. */
  void (*close) (struct target *);
};

struct target {
  const struct target_ops *ops;
  struct image *image;
  uint64_t size_bytes;
};

/* Open what is at LOCATION for writing, by what it is: as backing_open.  Who
 * reads it through another overlay, or writes it, keeps it from being opened,
 * and the other way round, as far as locks are known: ADDCOW_E_IN_USE.
 */
int target_open (struct target **target, const struct location *location,
                 const struct backing_options *options,
                 struct failure *failure);

/* See target_ops. */
bool target_can_grow (const struct target *target);
int target_grow (struct target *target, uint64_t size_bytes);
void target_interrupt (struct target *target);
int target_end (struct target *target);

/* NULL is ignored. */
void target_close (struct target *target);

#endif /* ADDCOW_TARGET_H */

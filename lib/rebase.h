/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Making an overlay ready for another backing file: what the disk has there
 * now and would not have there then is brought to the image.
 *
 * Only what is not allocated is looked at, from the first sector to the last:
 * the sectors in which the two backing files differ are kept as a fill keeps
 * them (see overlay.h), any other is left alone.  Where both say that they
 * have zeroes nothing is read.  A backing file that is shorter than the disk
 * has zeroes after its end, and so has none.
 *
 * What is on disk at each moment
 * ------------------------------
 * Commits, from time to time and at the end, are those of the overlay: a bit is
 * on disk when its data is.  So all the while the disk, which is on the old
 * backing file still, reads as before, and who begins anew goes on with
 * what is not allocated by then.  When this has come to its end the disk would
 * read the same on either; to name the new one in the header is left to
 * the caller.
 */

#ifndef ADDCOW_REBASE_H
#define ADDCOW_REBASE_H

#include <stdbool.h>
#include <stdint.h>

#include "backing.h"
#include "image.h"
#include "overlay.h"

struct rebase {
  /* The caller's; nobody else uses any of them meanwhile. */
  struct overlay *ov;
  struct image *metadata; /* of OV */
  struct image *image;    /* attached to OV */
  struct backing *from;   /* what OV is on; or NULL */
  struct backing *to;     /* or NULL */

  /* What others may look at: how many of the bytes that were not allocated are
   * done.
   */
  _Atomic uint64_t nr_bytes;
  _Atomic bool interrupted;

  /* With FAULT_BACKING: which of the two failed. */
  struct backing *failed;
};

/* Do it.  When RB is interrupted it ends early, with 0.  Everything is
 * committed when it returns 0.  Blocks.  Returns 0, or -1 and *FAULT: what was
 * kept before may be uncommitted then, until the image is detached.
 */
int rebase_keep (struct rebase *rb, struct fault *fault);

/* Let rebase_keep end soon, also where it waits for a server.  From any
 * thread; does not block.
 */
void rebase_interrupt (struct rebase *rb);

#endif /* ADDCOW_REBASE_H */

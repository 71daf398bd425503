/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Committing an overlay: bringing what its image has to its backing file,
 * here the target, so that the overlay is empty and reads the same.
 *
 * Nobody else uses any of the files meanwhile.
 *
 * What is on disk at each moment
 * ------------------------------
 * It goes in rounds, from the first sector to the last.  A round
 *
 *   1. writes to the target what the image has of some allocated sectors:
 *      they are read from the image still, whatever the target has there;
 *   2. flushes the target, which is the same as the image there from then on;
 *      where a write failed, what was written before it in this round is
 *      written again first;
 *   3. clears the bits of these sectors and flushes the metadata file: each
 *      sector of it is old or new when the power goes, and both mean the same
 *      content;
 *   4. makes holes in the image where nothing is allocated any more.  Not
 *      before the bits are durable: one that came back would mean a hole.
 *
 * So the overlay reads the same at each moment, and who is interrupted goes
 * on with what is allocated still.
 */

#ifndef ADDCOW_COMMIT_H
#define ADDCOW_COMMIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image.h"
#include "overlay.h" /* struct fault */

struct commit_options {
  struct image *metadata, *image, *target;
  int image_fd; /* the image as an open file, or -1 */
  uint64_t size_bytes;

  /* The length of the target.  Where it is less than SIZE_BYTES, the rest
   * reads as zeroes through the overlay, and cannot be written.
   */
  uint64_t target_bytes;

  /* A round ends after so many bytes of data. */
  uint64_t round_bytes;

  /* At the end, make all of the image holes as far as the disk reaches, and
   * not only what was allocated.  Takes long where holes are not known.
   */
  bool free_all;

  /* Set by any thread: end soon, but in order. */
  const _Atomic bool *stop;
};

/* The length of a round that is good for disks. */
#define COMMIT_ROUND_BYTES (64 * 1024 * 1024)

struct commit;

/* On success *C is freed by commit_free.  OPTIONS are copied, and what they
 * point to is used by commit_run only.  Returns 0 or ENOMEM.
 */
int commit_new (struct commit **c, const struct commit_options *options);
void commit_free (struct commit *c);

/* Can all that is allocated be in the target: are there only zeroes behind
 * its end?  Reads what there is.  Returns 0 and *FITS, or -1 and *FAULT.
 */
int commit_fits (struct commit *c, bool *fits, struct fault *fault);

/* Commit.  Blocks.  Returns 0, also when it was stopped, which *COMPLETE
 * tells; or -1 and *FAULT, where FAULT_BACKING is the target: what was done
 * until then is committed, unless that failed.  The target is flushed in any
 * case.
 */
int commit_run (struct commit *c, bool *complete, struct fault *fault);

/* How many bytes of allocated sectors commit_run has brought to the target.
 * From any thread.
 */
uint64_t commit_nr_bytes (const struct commit *c);

#endif /* ADDCOW_COMMIT_H */

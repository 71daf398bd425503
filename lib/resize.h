/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Giving the disk of an overlay that nobody uses another size.
 *
 * What lies past the end of the disk means nothing: bits of the bitmap, what
 * follows them in the metadata file, bytes of the image.  So it can be made
 * ready and cleared up at any time.  What decides is the size in the header.
 * It lies within one sector of the metadata file, which is written whole or
 * not at all.
 *
 * What is on disk at each moment
 * ------------------------------
 * Growing:
 *
 *   1. An image that is shorter than the new disk is made as long.
 *   2. The metadata file is cut behind the old bitmap, the bits in its last
 *      byte that are no sector's are cleared, and it is made as long as
 *      the new bitmap needs.
 *   3. Those bits of the new part are set where the backing file has data,
 *      which must not appear: what is new reads as zeroes.  All of them are
 *      set if all old ones are: a disk that stands alone goes on to.
 *   4. Where they are set the image is made to read as zeroes.
 *   5. The image is flushed, and the metadata file is.
 *   6. The new size is written to the header, and the metadata file flushed.
 *
 * What is new and not allocated reads as zeroes, because the backing file has
 * nothing there, or zeroes.  Up to 6. the disk is the old one, whatever
 * happens.  When something fails up to there, lengths and bits are put back.
 *
 * Shrinking:
 *
 *   1. The new size is written to the header, and the metadata file flushed.
 *   2. The bits past the new end are cleared, the metadata file is cut
 *      behind the bitmap, and flushed.
 *   3. An image that was exactly as long as the old disk is cut, too, and
 *      flushed.  One that was longer is not ours alone, and is left alone.
 *
 * So when the power goes, the disk has the old size or the new one, and its
 * content; bits and bytes past its end may be left, which are harmless.  They
 * do not come back: growing clears them.
 */

#ifndef ADDCOW_RESIZE_H
#define ADDCOW_RESIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "backing.h"
#include "image.h"
#include "overlay.h" /* struct fault */

/* An overlay as it is.  All of it is the caller's, who has locked it. */
struct resize {
  struct image *metadata, *image; /* they can set their length, but where */
  bool image_is_fixed;            /* it is a block device */
  uint64_t image_bytes;           /* its length */

  struct backing *backing; /* NULL: there is none, or: */
  bool backing_is_missing; /* it is not needed, all sectors are allocated */

  uint64_t size_bytes; /* of the disk */
};

/* Make the disk of *R one of NEW_SIZE_BYTES, a valid size (format.h).  The
 * backing file is used for growing only.  Time goes by what is no hole in the
 * files, and by what is to be allocated.  Blocks; takes no lock; keeps
 * nothing.
 *
 * Returns 0 and all of it is durable, or -1 and *FAULT: the disk has one
 * of both sizes then.  ADDCOW_E_IMAGE_SHORT of an image that is fixed: it is
 * shorter than the new disk.
 */
int resize (const struct resize *r, uint64_t new_size_bytes,
            struct fault *fault);

#endif /* ADDCOW_RESIZE_H */

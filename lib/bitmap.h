/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bits in a metadata file, without a map: for who looks at a file that
 * others may be using, or changes one that nobody else uses.
 *
 * Sectors are numbered as in the disk.  The functions go by ranges of them
 * whose bytes must lie within the file, and which may reach past the end of
 * the disk: what is there means nothing to others, see format.h.
 *
 * All may block, take no lock, keep no state, and return 0 or an error
 * number of reading or writing METADATA.  What costs time is what is not a
 * hole in the file.
 */

#ifndef ADDCOW_BITMAP_H
#define ADDCOW_BITMAP_H

#include <stdint.h>

#include "image.h"

/* Call FN for the runs of sectors in the range whose bits are set, as long
 * as they are, until it returns other than 0, which is returned.  FN may
 * change the bits of its run and those before.
 */
int
bitmap_each_run (struct image *metadata, uint64_t sector, uint64_t nr_sectors,
                 int (*fn) (void *opaque, uint64_t sector, uint64_t nr_sectors),
                 void *opaque);

/* How many bits of the range are set. */
int bitmap_count (struct image *metadata, uint64_t sector, uint64_t nr_sectors,
                  uint64_t *nr_set);

/* Set or clear the bits of the range; nothing is synced.  Bits around it are
 * written again as they are.  When it fails a part may be changed.  To clear
 * many makes a hole in the file.
 */
int bitmap_set (struct image *metadata, uint64_t sector, uint64_t nr_sectors);
int bitmap_clear (struct image *metadata, uint64_t sector, uint64_t nr_sectors);

#endif /* ADDCOW_BITMAP_H */

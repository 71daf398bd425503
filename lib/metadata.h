/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening a metadata file: the file, its header, its length.
 */

#ifndef ADDCOW_METADATA_H
#define ADDCOW_METADATA_H

#include <stdbool.h>

#include "format.h"

/* Open the regular file FILE_NAME, for writing if WRITABLE, without
 * reading or locking anything.  *FD is the caller's.  Returns 0,
 * ADDCOW_E_NOT_REGULAR or an errno.  Does not block on a FIFO.
 */
int metadata_open (const char *file_name, bool writable, int *fd);

/* Read the header of FD into *HEADER and see that the file is as long as
 * it says.  Returns 0, an error of format_decode, ADDCOW_E_TRUNCATED, or
 * an errno.  A file too short for a header is truncated when it begins
 * with the magic, else not an add-cow file.  May block.
 */
int metadata_read_header (int fd, struct header *header);

/* Let the system forget what it has in memory of FD, that what is read is what
 * the disk has.  Who had the file before may have failed to sync it: the
 * system takes what it could not write for written then, and no sync will
 * bring it to the disk.  So this is done before anything is read that will be
 * relied on.  Returns 0 or an errno of a sync that comes first.  Blocks.
 */
int metadata_forget_cached (int fd);

#endif /* ADDCOW_METADATA_H */

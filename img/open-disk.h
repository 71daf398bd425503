/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening an overlay for a verb, and wording what fails.
 */

#ifndef ADDCOW_OPEN_DISK_H
#define ADDCOW_OPEN_DISK_H

#include "disk.h"

/* Open and lock FILE_NAME and its image for writing; the image must be a
 * local file or block device as long as the disk.  The backing file is opened
 * unless WITHOUT_BACKING.  *DISK and *IMAGE_FD, open for reading and writing,
 * are the caller's, also when it fails, if they are not NULL and -1.  Returns
 * EXIT_SUCCESS, or EXIT_FAILURE and has said why.  May block.
 */
int open_disk_writable (const char *file_name, bool without_backing,
                        struct disk **disk, int *image_fd);

/* Open FILE_NAME and all files below it for reading; the image must be as for
 * open_disk_writable.  If somebody has FILE_NAME open for writing, no locks
 * are taken and *IN_USE is true.  *DISK is the caller's if it is not NULL.
 * Returns as open_disk_writable.  May block.
 */
int open_disk_readable (const char *file_name, struct disk **disk,
                        bool *in_use);
/* Open the backing file of DISK, which was opened without, if it has one: see
 * disk_open_backing.  Returns EXIT_SUCCESS, or EXIT_FAILURE and has said why.
 * May block.
 */
int open_disk_backing (struct disk *disk);

/* Say what opening FILE_NAME failed with.  Returns EXIT_FAILURE. */
int open_disk_failure (const char *file_name, const struct failure *failure);

/* Say what a request to DISK failed with.  Returns EXIT_FAILURE. */
int disk_fault_error (const struct disk *disk, const struct fault *fault);

/* For backing_options: print TEXT. */
void log_backing (void *opaque, const char *name, const char *text);

#endif /* ADDCOW_OPEN_DISK_H */

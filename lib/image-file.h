/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A local file or block device as an image (see image.h).
 */

#ifndef ADDCOW_IMAGE_FILE_H
#define ADDCOW_IMAGE_FILE_H

#include <stdbool.h>

#include "image.h"

struct image_file {
  struct image image;
  int fd; /* the caller's: never closed here */
};

/* Make *FILE an image over the open descriptor FD.  Nothing to free. */
void image_file_init (struct image_file *file, int fd);

/* The length in bytes of FD, a regular file or a block device, into
 * *SIZE_BYTES.  Returns 0, ADDCOW_E_NOT_DISK for anything else, or an
 * errno.
 */
int fd_size (int fd, uint64_t *size_bytes);

/* open, fdatasync, fsync and ftruncate, begun again when a signal interrupted
 * them, as it may on some file systems.  *FD is the caller's.  They return 0
 * or an errno, and may block.
 */
int fd_open (const char *file_name, int flags, int *fd);
int fd_sync (int fd);
int fd_sync_with_times (int fd);
int fd_set_length (int fd, uint64_t length_bytes);

/* Open FILE_NAME, a regular file or a block device, for reading; what is
 * something else is not opened, nor waited for.  *FD is the caller's,
 * *SIZE_BYTES its length.  Returns 0, ADDCOW_E_NOT_DISK or an errno.
 */
int fd_open_disk (const char *file_name, int *fd, uint64_t *size_bytes);

/* Open the file that FD has open for reading and writing, whatever has its
 * name by now.  *NEW_FD is the caller's.  Returns 0 or an errno.
 */
int fd_reopen_writable (int fd, int *new_fd);

/* Read all of the range from FD.  Returns 0 or an errno: EIO where the
 * file ends inside it.  May block.
 */
int fd_read (int fd, void *buf, size_t count, uint64_t offset);

/* Write all of the range to FD.  Returns 0 or an errno.  May block. */
int fd_write (int fd, const void *buf, size_t count, uint64_t offset);

/* Begin to write to the disk what is in memory of the range of FD, and if
 * WAIT wait until it is written.  That makes nothing durable, but an error
 * may be what a later flush would have told: it is told once for each open
 * file, and perhaps not to those that are opened after that.  Returns 0, also
 * where the system cannot do that, or an errno.
 */
int fd_write_out (int fd, uint64_t count, uint64_t offset, bool wait);

/* Let the system forget what it has in memory of the range of FD, as far as
 * it is on the disk too.
 */
void fd_forget (int fd, uint64_t count, uint64_t offset);

/* FD is read here and there: the system should read no more than it is asked
 * for, and not fill its memory with the holes around.
 */
void fd_is_random (int fd);

/* Call FN for the data and the holes of the range of FD; a file that
 * cannot tell is data.  Returns 0, what FN returned, or an errno: EIO where
 * the file has no such range.
 */
int fd_extents (int fd, uint64_t count, uint64_t offset, extent_fn *fn,
                void *opaque);

#endif /* ADDCOW_IMAGE_FILE_H */

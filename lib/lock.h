/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Locks between processes.
 *
 * All are OFD locks: they belong to the open file description, so they
 * survive the fork into the background, are not lost when another
 * descriptor of the same file is closed, and go when the last descriptor
 * does, however the process ends.
 *
 * - The metadata file is locked whole: exclusive for a writer, shared for
 *   readers.
 * - Image and backing files are locked as QEMU locks its images, so that
 *   QEMU and we keep out of each other's way.  QEMU's block/file-posix.c
 *   is the specification: who has a permission holds a shared lock on
 *   byte 100 + permission, who does not let others have it holds one on
 *   byte 200 + permission, and after placing the locks everyone looks
 *   whether somebody else's stand against them.
 *
 * None of these waits.
 */

#ifndef ADDCOW_LOCK_H
#define ADDCOW_LOCK_H

#include <stdbool.h>

/* Lock the metadata file FD.  EXCLUSIVE needs a descriptor open for
 * writing.  Calling it again changes the kind of lock; where that fails
 * the old one is kept.  Returns 0, ADDCOW_E_IN_USE or an errno.
 */
int lock_metadata (int fd, bool exclusive);

/* Would a shared lock on the metadata file FD be refused, because it has
 * a writer?  Places no lock.  A file that cannot be asked has none.
 */
bool lock_metadata_has_writer (int fd);

/* Take QEMU's locks on FD, an image (WRITER) or something that is only
 * read: others may read it, nobody else may write it.  A file system
 * without locks is no error, as in QEMU.  Returns 0, ADDCOW_E_IN_USE or
 * an errno; the locks go when FD is closed.
 */
int lock_qemu (int fd, bool writer);

#endif /* ADDCOW_LOCK_H */

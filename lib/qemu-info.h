/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What QEMU knows about a disk image without opening what that needs.
 */

#ifndef ADDCOW_QEMU_INFO_H
#define ADDCOW_QEMU_INFO_H

#include <stdbool.h>

/* Does the image NAME (for QEMU: a path or "json:...") need other files,
 * such as a backing file, that it names itself?  FD, which may be in NAME as
 * /proc/self/fd/FD, is open for QEMU too.  Runs qemu-img and waits for it.
 * Returns 0 and *NAMES, ENOENT when there is no qemu-img, EIO when it fails
 * or prints what is not understood, or another errno.
 */
int qemu_info_names_files (const char *name, int fd, bool *names);

/* The same from TEXT, what it printed, into *NAMES.  Returns 0 or EIO. */
int qemu_info_parse (const char *text, bool *names);

#endif /* ADDCOW_QEMU_INFO_H */

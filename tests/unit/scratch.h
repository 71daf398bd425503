/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files of the file system, for the tests that need real ones.
 */

#ifndef ADDCOW_SCRATCH_H
#define ADDCOW_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

/* An absolute path to a new folder, which is removed at exit with all
 * that is in it.  Freed by the caller.
 */
char *scratch_folder (void);

/* FOLDER "/" NAME.  Freed by the caller. */
char *scratch_path (const char *folder, const char *name);

/* Make a file of COUNT bytes and close it. */
void scratch_file (const char *path, const void *buf, size_t count);

/* Make an overlay of NR_SECTORS whose metadata file is PATH.  BACKING and IMAGE
 * are the names in its header, "" for none, and HINTS, unless NULL, what is
 * said of BACKING.  The metadata file is open for what else is to be written:
 * the caller's.
 */
struct hints;
int scratch_overlay (const char *path, uint64_t nr_sectors, const char *backing,
                     const struct hints *hints, const char *image);

/* Open for reading and writing, made if need be: the caller's. */
int scratch_open (const char *path);

#endif /* ADDCOW_SCRATCH_H */

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

/* Open for reading and writing, made if need be: the caller's. */
int scratch_open (const char *path);

#endif /* ADDCOW_SCRATCH_H */

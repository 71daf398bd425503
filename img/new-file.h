/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Files that appear whole or not at all: made under a temporary name in
 * their folder, synced, renamed, and the folder synced.
 */

#ifndef ADDCOW_NEW_FILE_H
#define ADDCOW_NEW_FILE_H

#include <stdbool.h>

struct new_file {
  char *path;      /* what it will be called */
  char *temporary; /* what it is called now, or NULL */
  int fd;          /* open for writing, or -1 */
  bool installed;  /* it has its name */
};

#define NEW_FILE_NONE \
  { \
    .fd = -1 \
  }

/* Open the metadata file PATH, which will be replaced, for writing, and lock it
 * until *FD, the caller's, is closed, also if this fails.  Returns 0, an error
 * of metadata_open or lock_metadata; ADDCOW_E_IN_USE too when that is not the
 * file of the name any more: somebody else is just replacing it.
 */
int lock_replaced (const char *path, int *fd);

/* Make the name that the file PATH has durable: sync its folder, links
 * followed.  Returns 0 or an errno.  Blocks.
 */
int sync_folder (const char *path);

/* Begin a file that will be called PATH.  Returns 0 or an errno;
 * new_file_discard is due in any case.
 */
int new_file_open (struct new_file *file, const char *path);

/* Give it its name.  What has that name is replaced if REPLACE, else
 * EEXIST is returned.  Returns 0 or an errno, and then what it replaced,
 * if it did, is gone, else there is no file of that name; only where it
 * could not be removed again, INSTALLED still says so.  Blocks.
 */
int new_file_install (struct new_file *file, bool replace);

/* Take its name from it again, unless that is another file's by now. */
void new_file_remove (struct new_file *file);

/* Release *FILE; what was not installed is gone. */
void new_file_discard (struct new_file *file);

#endif /* ADDCOW_NEW_FILE_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * From the names in a header to files.
 *
 * A relative name is relative to the folder of the metadata file, after
 * symbolic links to that file have been followed, and never to the
 * working folder.  A name is a URI when "scheme:" stands before any
 * slash, where a scheme is a letter and then letters, digits, "+", "-"
 * and "."; "file:" is no URI but stripped.  A local file whose name has
 * a colon in it is written "./a:b.raw".
 *
 * Nothing here keeps state or takes a lock.
 */

#ifndef ADDCOW_NAMES_H
#define ADDCOW_NAMES_H

#include <stdbool.h>

/* Is NAME a URI, other than one of "file:"? */
bool name_is_uri (const char *name);

/* The folder that relative names in the metadata file METADATA are
 * relative to.  METADATA need not exist (it is then taken as it stands,
 * its folder resolved).  May block.  On success *FOLDER is an absolute
 * path which the caller frees.  Returns 0 or an errno.
 */
int name_folder (const char *metadata, char **folder);

/* The path of the local file that NAME, which is not empty, means in a
 * metadata file in FOLDER.  On success *PATH is freed by the caller.
 * Returns 0, ADDCOW_E_URI or ENOMEM.
 */
int name_resolve (const char *folder, const char *name, char **path);

/* The last component of PATH; points into PATH. */
const char *name_basename (const char *path);

/* Where what a name means is. */
struct location {
  char *name; /* a URI, or the path of a local file: for messages */
  char *path; /* by which the file is opened; NULL for a URI */
  int fd;     /* if confined, keeps it the file that was found; else -1 */
};

#define LOCATION_NONE \
  { \
    .fd = -1 \
  }

/* Where NAME, which is not empty, in a metadata file in FOLDER is.
 *
 * CONFINE, unless NULL, is a folder under which local files must lie, when
 * all links to them are followed; URIs are refused then.  Such a file must
 * exist, and stays the same one until the location is cleared, whatever
 * happens to its name.
 *
 * On success *LOCATION is cleared by the caller.  May block.  Returns 0,
 * ENOMEM, and if confined, ADDCOW_E_OUTSIDE or another errno.
 */
int location_find (struct location *location, const char *folder,
                   const char *name, const char *confine);

/* Can names be confined to CONFINE, is it a folder?  Returns 0 or an
 * errno, so that what is wrong with it is not told of a name.
 */
int confine_check (const char *confine);

/* The location of a local file at PATH, or of a URI, as it stands. */
int location_set (struct location *location, const char *name);

/* Free what *LOCATION owns; also of LOCATION_NONE. */
void location_clear (struct location *location);

#endif /* ADDCOW_NAMES_H */

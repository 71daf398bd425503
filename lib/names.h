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

#endif /* ADDCOW_NAMES_H */

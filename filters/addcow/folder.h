/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The overlays of a folder: a client chooses one by the name of its export.
 *
 * NAME, or NAME.add-cow, is the metadata file NAME.add-cow in the folder.  It
 * is opened when the first client asks for it and closed, committed, when
 * the last one has left; if it cannot be committed it is kept, and closed when
 * that has been tried again with success.  All of them share it.  Nothing is
 * kept of the others: files may come and go.
 *
 * An overlay is opened and closed by one thread while those who want the same
 * one wait and those who want another do not.  Who waited for one that could
 * not be opened gets no other answer; who comes later tries again.  One that
 * was kept is not served as it is: who asks for it has it committed and
 * closed first, and is refused if that fails.  Who asks for one that is open,
 * while its metadata file has not its name any more, is refused: the name may
 * be another's.  To close one can take as long as a server is waited for that
 * has the backing file of another one, too, who has clients
 * (lib/backing-pool.h).
 *
 * Names that are asked for are anybody's, and so are those in metadata files:
 * they are confined to the folder unless the parameters widen that, and the
 * image has to be a file in the folder itself, from where the plugin opens it.
 *
 * The folder's mutex protects the tree of overlays and the fields of each that
 * say so.  No other lock than the committer's is taken while it is held, no
 * file is looked at and nothing is logged.
 */

#ifndef ADDCOW_FOLDER_H
#define ADDCOW_FOLDER_H

#include <nbdkit-filter.h>

#include "served.h"

struct folder;

/* Serve what is in the folder PATH, an absolute path, which the caller keeps
 * until it is freed.  SETTINGS are for all overlays.  Nothing is read.  Returns
 * 0, or -1 and the error was reported.
 */
int folder_new (struct folder **folder, struct settings *settings,
                const char *path);

/* Close the overlays that were kept, and those whose clients did not give them
 * back, as nbdkit does not close all connections when it ends.  None is opened
 * any more.  Threads that commit may be there still.  May block.
 */
void folder_stop (struct folder *folder);

/* Free it, after folder_stop.  NULL is ignored. */
void folder_free (struct folder *folder);

/* Have the overlay of the export EXPORT_NAME, opened and started, until
 * folder_put.  Returns 0, or -1 and the error was reported.  May block, for
 * opening it and for committing and closing it before.
 */
int folder_get (struct folder *folder, const char *export_name,
                struct served **served);

/* Give it back: no image of the caller is attached to it any more.  The last
 * one has it committed and closed, or kept.  May block.
 */
void folder_put (struct folder *folder, struct served *served);

/* What to say of the overlay that has HEADER, to clients: it tells neither
 * where its files are nor passwords.  The caller frees it; NULL: no memory.
 */
char *folder_describe (const struct header *header);

/* Add all overlays to EXPORTS, with what they are.  Returns 0, or -1 and the
 * error was reported.  Blocks.
 */
int folder_list (struct folder *folder, struct nbdkit_exports *exports);

#endif /* ADDCOW_FOLDER_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The kinds of backing files, for backing_open, which chooses.
 *
 * Each opens what is at LOCATION as backing_open does.
 */

#ifndef ADDCOW_BACKING_KINDS_H
#define ADDCOW_BACKING_KINDS_H

#include <stdbool.h>

#include "backing.h"
#include "error.h"
#include "names.h"

typedef int backing_open_fn (struct backing **backing,
                             const struct location *location,
                             const struct backing_options *options,
                             struct failure *failure);

/* Which there are. */
enum backing_kind {
  BACKING_FILE,
  BACKING_NBD,
  BACKING_ADDCOW,
  BACKING_QEMU,
};
enum backing_kind backing_kind (const struct location *location,
                                const char *format);

/* Open it as backing_open does, but not in a pool. */
backing_open_fn backing_open_kind;

/* For those whose bytes are the disk's: if nobody said that they are, is
 * that what BUF, the first COUNT bytes, begins like?  NAME is for messages.
 */
int backing_check_magic (const void *buf, size_t count, const char *name,
                         const struct backing_options *options,
                         struct failure *failure);

/* The same of BACKING.  Reads, and may block as reading does. */
int backing_check_raw (struct backing *backing, const char *name,
                       const struct backing_options *options,
                       struct failure *failure);

/* A local regular file or block device, raw.  QEMU's locks (see lock.h)
 * are held on it so that nobody there writes to it meanwhile.
 */
backing_open_fn backing_file_open;

/* What an NBD server has, raw: a URI for which backing_nbd_takes says yes.
 */
backing_open_fn backing_nbd_open;
bool backing_nbd_takes (const char *name);

/* Another overlay: a local metadata file, whose names lead to an image
 * that is a local file and to one more backing file or none.
 */
backing_open_fn backing_addcow_open;

/* Anything that QEMU reads: of a format that is not raw, or at a URI of
 * another scheme.
 */
backing_open_fn backing_qemu_open;

#endif /* ADDCOW_BACKING_KINDS_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The kinds of backing files, for backing_open, which chooses.
 *
 * Each opens what is at LOCATION as backing_open does, but does not look
 * at what a raw one begins with.
 */

#ifndef ADDCOW_BACKING_KINDS_H
#define ADDCOW_BACKING_KINDS_H

#include "backing.h"
#include "error.h"
#include "names.h"

typedef int backing_open_fn (struct backing **backing,
                             const struct location *location,
                             const struct backing_options *options,
                             struct failure *failure);

/* A local regular file or block device, raw.  QEMU's locks (see lock.h)
 * are held on it so that nobody there writes to it meanwhile.
 */
backing_open_fn backing_file_open;

#endif /* ADDCOW_BACKING_KINDS_H */

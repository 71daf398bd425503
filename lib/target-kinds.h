/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The kinds of targets, for target_open, which chooses.  They are those of
 * backing-kinds.h, and each opens what is at LOCATION as target_open does.
 */

#ifndef ADDCOW_TARGET_KINDS_H
#define ADDCOW_TARGET_KINDS_H

#include "backing-kinds.h"
#include "target.h"

typedef int target_open_fn (struct target **target,
                            const struct location *location,
                            const struct backing_options *options,
                            struct failure *failure);

/* Locked as by QEMU's writers, see lock.h. */
target_open_fn target_file_open;

/* Written through its overlay, which is locked for writing. */
target_open_fn target_addcow_open;

/* Written over NBD.  A connection that was lost is not made again: what the
 * server had not flushed may be lost with it.
 */
target_open_fn target_nbd_open;
target_open_fn target_qemu_open;

/* For image_ops of targets: done, for nothing. */
int target_no_trim (struct image *image, uint64_t count, uint64_t offset,
                    unsigned flags);
int target_no_cache (struct image *image, uint64_t count, uint64_t offset);

#endif /* ADDCOW_TARGET_KINDS_H */

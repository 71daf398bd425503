/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "common.h"
#include "target-kinds.h"

int
target_open (struct target **target, const struct location *location,
             const struct backing_options *options, struct failure *failure)
{
  static target_open_fn *const open[] = {
    [BACKING_FILE] = target_file_open,
    [BACKING_NBD] = target_nbd_open,
    [BACKING_ADDCOW] = target_addcow_open,
    [BACKING_QEMU] = target_qemu_open,
  };

  return open[backing_kind (location, options->format)](target, location,
                                                        options, failure);
}

bool
target_can_grow (const struct target *target)
{
  return target->ops->grow != NULL;
}

int
target_grow (struct target *target, uint64_t size_bytes)
{
  int r = target->ops->grow (target, size_bytes);

  if (r == 0)
    target->size_bytes = size_bytes;
  return r;
}

void
target_interrupt (struct target *target)
{
  if (target->ops->interrupt)
    target->ops->interrupt (target);
}

int
target_end (struct target *target)
{
  return target->ops->end ? target->ops->end (target) : 0;
}

void
target_close (struct target *target)
{
  if (target)
    target->ops->close (target);
}

int
target_no_trim (struct image *image UNUSED, uint64_t count UNUSED,
                uint64_t offset UNUSED, unsigned flags UNUSED)
{
  return 0;
}

int
target_no_cache (struct image *image UNUSED, uint64_t count UNUSED,
                 uint64_t offset UNUSED)
{
  return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "backing.h"
#include "common.h"

/* How many of COUNT bytes at OFFSET lie within BACKING. */
static uint64_t
within (const struct backing *backing, uint64_t count, uint64_t offset)
{
  if (backing == NULL || offset >= backing->size_bytes)
    return 0;
  return MIN (count, backing->size_bytes - offset);
}

int
backing_read (struct backing *backing, void *buf, size_t count, uint64_t offset)
{
  const size_t n = within (backing, count, offset);

  memset ((char *) buf + n, 0, count - n);
  return n ? backing->ops->read (backing, buf, n, offset) : 0;
}

int
backing_extents (struct backing *backing, uint64_t count, uint64_t offset,
                 extent_fn *fn, void *opaque)
{
  const uint64_t n = within (backing, count, offset);

  if (n == 0)
    return fn (opaque, count, EXTENT_HOLE | EXTENT_ZERO);
  return backing->ops->extents (backing, n, offset, fn, opaque);
}

int
backing_cache (struct backing *backing, uint64_t count, uint64_t offset)
{
  const uint64_t n = within (backing, count, offset);

  return n ? backing->ops->cache (backing, n, offset) : 0;
}

void
backing_close (struct backing *backing)
{
  if (backing)
    backing->ops->close (backing);
}

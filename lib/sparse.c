/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "common.h"
#include "format.h"
#include "sparse.h"

#define SECTOR FORMAT_SECTOR_BYTES

bool
sparse_is_zero (const void *p, size_t n)
{
  const char *bytes = p;

  return bytes[0] == 0 && memcmp (bytes, bytes + 1, n - 1) == 0;
}

/* How much of BUF, which is at OFFSET, is of whole blocks of zeroes, or is
 * not: *ZERO tells.
 */
static size_t
equal_blocks (const char *buf, size_t count, uint64_t offset, bool *zero)
{
  size_t n = 0;

  while (n < count) {
    const size_t room = SPARSE_BLOCK - (offset + n) % SPARSE_BLOCK;
    const size_t block = MIN (room, count - n);
    const bool z = block == SPARSE_BLOCK && sparse_is_zero (buf + n, block);

    if (n == 0)
      *zero = z;
    else if (z != *zero)
      break;
    n += block;
  }
  return n;
}

int
sparse_write (struct image *image, const char *buf, size_t count,
              uint64_t offset)
{
  int r = 0;

  while (r == 0 && count > 0) {
    bool zero;
    const size_t n = equal_blocks (buf, count, offset, &zero);

    if (zero)
      r = image->ops->zero (image, n, offset, IMAGE_MAY_TRIM);
    else
      r = image->ops->write (image, buf, n, offset, 0);
    buf += n;
    count -= n;
    offset += n;
  }
  return r;
}

static int
part_add (void *opaque, uint64_t count, unsigned type)
{
  struct part *p = opaque;
  const bool hole = type & EXTENT_ZERO &&
                    (count >= p->min_hole || p->n + count >= p->max);

  if (p->n == 0)
    p->zero = hole;
  else if (hole != p->zero)
    return EXTENT_STOP;
  p->n += count;
  return p->n >= (p->zero ? p->max : p->max_data) ? EXTENT_STOP : 0;
}

int
sparse_find_part (struct part *p, uint64_t offset, extents_fn *extents,
                  void *opaque)
{
  int r;

  p->n = 0;
  p->zero = false;
  do
    r = extents (opaque, p->max - p->n, offset + p->n, part_add, p);
  while (r == 0 && p->n < p->max);
  if (r > 0)
    return r;
  p->n = MIN (p->n, p->zero ? p->max : p->max_data);
  if (p->zero && p->n >= SECTOR)
    p->n -= p->n % SECTOR;
  else {
    p->zero = false;
    p->n = DIV_ROUND_UP (p->n, SECTOR) * SECTOR;
  }
  return 0;
}

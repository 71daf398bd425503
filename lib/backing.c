/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "backing-kinds.h"
#include "backing-pool.h"
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
backing_interrupt (struct backing *backing)
{
  if (backing && backing->ops->interrupt)
    backing->ops->interrupt (backing);
}

void
backing_close (struct backing *backing)
{
  if (backing)
    backing->ops->close (backing);
}

/*--- Opening. ---------------------------------------------------------*/

const char *
backing_magic (const void *buf, size_t count)
{
  static const struct {
    const char *format;
    size_t offset;
    size_t len;
    const char *magic;
  } magics[] = {
#define MAGIC(format, offset, string) \
  { format, offset, sizeof string - 1, string }
    MAGIC ("qcow2", 0, "QFI\xfb"),
    MAGIC ("qed", 0, "QED\0"),
    MAGIC ("vmdk", 0, "KDMV"),
    MAGIC ("vmdk", 0, "COWD"),
    MAGIC ("vmdk", 0, "# Disk DescriptorFile"),
    MAGIC ("vhdx", 0, "vhdxfile"),
    MAGIC ("vpc", 0, "conectix"),
    MAGIC ("vdi", 64, "\x7f\x10\xda\xbe"),
    MAGIC ("parallels", 0, "WithoutFreeSpace"),
    MAGIC ("parallels", 0, "WithouFreSpacExt"),
    MAGIC ("bochs", 0, "Bochs Virtual HD Image"),
    MAGIC ("luks", 0, "LUKS\xba\xbe"),
    MAGIC ("add-cow", 0, "ADD_COW\xff"),
#undef MAGIC
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (magics); i++)
    if (magics[i].offset + magics[i].len <= count &&
        memcmp ((const char *) buf + magics[i].offset, magics[i].magic,
                magics[i].len) == 0)
      return magics[i].format;
  return NULL;
}

int
backing_check_magic (const void *buf, size_t count, const char *name,
                     const struct backing_options *options,
                     struct failure *failure)
{
  const char *format = options->format ? NULL : backing_magic (buf, count);

  if (format == NULL)
    return 0;
  failure_set (failure, name, ADDCOW_E_FOREIGN_FORMAT);
  failure->format = format;
  return failure->err;
}

int
backing_check_raw (struct backing *backing, const char *name,
                   const struct backing_options *options,
                   struct failure *failure)
{
  uint8_t buf[BACKING_MAGIC_BYTES];
  const size_t n = MIN (backing->size_bytes, sizeof buf);
  int r;

  if (options->format)
    return 0;
  r = backing_read (backing, buf, n, 0);
  if (r)
    return failure_set (failure, name, r);
  return backing_check_magic (buf, n, name, options, failure);
}

static bool
is_raw (const char *format)
{
  return format == NULL || strcmp (format, "raw") == 0;
}

enum backing_kind
backing_kind (const struct location *location, const char *format)
{
  if (is_raw (format) && location->path)
    return BACKING_FILE;
  if (is_raw (format) && backing_nbd_takes (location->name))
    return BACKING_NBD;
  if (format && strcmp (format, "add-cow") == 0)
    return BACKING_ADDCOW;
  return BACKING_QEMU;
}

int
backing_open_kind (struct backing **backing, const struct location *location,
                   const struct backing_options *options,
                   struct failure *failure)
{
  static backing_open_fn *const open[] = {
    [BACKING_FILE] = backing_file_open,
    [BACKING_NBD] = backing_nbd_open,
    [BACKING_ADDCOW] = backing_addcow_open,
    [BACKING_QEMU] = backing_qemu_open,
  };
  int r;

  r = open[backing_kind (location, options->format)](backing, location, options,
                                                     failure);
  if (r == 0)
    (*backing)->raw = is_raw (options->format);
  return r;
}

int
backing_open (struct backing **backing, const struct location *location,
              const struct backing_options *options, struct failure *failure)
{
  if (options->pool)
    return backing_pool_open (backing, location, options, failure);
  return backing_open_kind (backing, location, options, failure);
}

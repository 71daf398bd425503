/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A local raw file or block device as a backing file.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backing.h"
#include "common.h"
#include "error.h"
#include "image-file.h"
#include "lock.h"

struct backing_file {
  struct backing backing;
  int fd;
};

static int
backing_file_fd (struct backing *backing)
{
  return container_of (backing, struct backing_file, backing)->fd;
}

static int
backing_file_read (struct backing *backing, void *buf, size_t count,
                   uint64_t offset)
{
  return fd_read (backing_file_fd (backing), buf, count, offset);
}

static int
backing_file_extents (struct backing *backing, uint64_t count, uint64_t offset,
                      extent_fn *fn, void *opaque)
{
  return fd_extents (backing_file_fd (backing), count, offset, fn, opaque);
}

static int
backing_file_cache (struct backing *backing, uint64_t count, uint64_t offset)
{
  return posix_fadvise (backing_file_fd (backing), offset, count,
                        POSIX_FADV_WILLNEED);
}

static void
backing_file_close (struct backing *backing)
{
  struct backing_file *file = container_of (backing, struct backing_file,
                                            backing);

  close (file->fd);
  free (file);
}

static const struct backing_ops backing_file_ops = {
  .read = backing_file_read,
  .extents = backing_file_extents,
  .cache = backing_file_cache,
  .close = backing_file_close,
};

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

static int
refuse_foreign_format (int fd, uint64_t size_bytes)
{
  uint8_t buf[BACKING_MAGIC_BYTES];
  const size_t n = MIN (size_bytes, sizeof buf);
  int r = fd_read (fd, buf, n, 0);

  if (r)
    return r;
  return backing_magic (buf, n) ? ADDCOW_E_FOREIGN_FORMAT : 0;
}

int
backing_file_open (const char *file_name, struct backing **backing)
{
  CLEANUP_CLOSE int fd = -1;
  struct backing_file *file;
  uint64_t size_bytes;
  int r;

  r = fd_open_disk (file_name, &fd, &size_bytes);
  if (r)
    return r;
  r = refuse_foreign_format (fd, size_bytes);
  if (r)
    return r;
  r = lock_qemu (fd, false);
  if (r)
    return r;

  file = malloc (sizeof *file);
  if (file == NULL)
    return errno;
  *file = (struct backing_file){
    .backing = { .ops = &backing_file_ops, .size_bytes = size_bytes },
    .fd = fd,
  };
  fd = -1;
  *backing = &file->backing;
  return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A local raw file or block device as a backing file.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "backing-kinds.h"
#include "common.h"
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
  .fd = backing_file_fd,
  .close = backing_file_close,
};

int
backing_file_open (struct backing **backing, const struct location *location,
                   const struct backing_options *options,
                   struct failure *failure)
{
  CLEANUP_CLOSE int fd = -1;
  struct backing_file *file;
  uint64_t size_bytes;
  int r;

  r = fd_open_disk (location->path, &fd, &size_bytes);
  if (r == 0 && !options->unlocked)
    r = lock_qemu (fd, false);
  if (r)
    return failure_set (failure, location->name, r);

  file = malloc (sizeof *file);
  if (file == NULL)
    return failure_set (failure, location->name, ENOMEM);
  *file = (struct backing_file){
    .backing = { .ops = &backing_file_ops, .size_bytes = size_bytes },
    .fd = fd,
  };
  fd = -1;
  r = backing_check_raw (&file->backing, location->name, options, failure);
  if (r) {
    backing_close (&file->backing);
    return r;
  }
  *backing = &file->backing;
  return 0;
}

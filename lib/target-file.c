/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A local raw file or block device as a target.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "disk.h"
#include "error.h"
#include "image-file.h"
#include "lock.h"
#include "target-kinds.h"

struct target_file {
  struct target target;
  struct image_file file;
};

static struct target_file *
file_of (struct target *target)
{
  return container_of (target, struct target_file, target);
}

static int
target_file_grow (struct target *target, uint64_t size_bytes)
{
  return fd_set_length (file_of (target)->file.fd, size_bytes);
}

/* Not fdatasync: that it was modified, and when, shall be there too. */
static int
target_file_end (struct target *target)
{
  return fd_sync_with_times (file_of (target)->file.fd);
}

static void
target_file_close (struct target *target)
{
  struct target_file *t = file_of (target);

  close (t->file.fd);
  free (t);
}

static const struct target_ops target_file_ops = {
  .grow = target_file_grow,
  .end = target_file_end,
  .close = target_file_close,
};

/* A block device is as long as it is. */
static const struct target_ops target_device_ops = {
  .end = target_file_end,
  .close = target_file_close,
};

static int
check_raw (int fd, uint64_t size_bytes, const char *name,
           const struct backing_options *options, struct failure *failure)
{
  uint8_t buf[BACKING_MAGIC_BYTES];
  const size_t n = MIN (size_bytes, sizeof buf);
  int r = fd_read (fd, buf, n, 0);

  if (r)
    return failure_set (failure, name, r);
  return backing_check_magic (buf, n, name, options, failure);
}

/* Is FD, which is locked, what PATH names still? */
static int
check_name (const char *path, int fd)
{
  struct stat locked, there;

  if (fstat (fd, &locked) == -1 || stat (path, &there) == -1)
    return errno;
  return same_file (&locked, &there) ? 0 : ADDCOW_E_IN_USE;
}

/* Open PATH, and let nobody else use it.  Who did may have made it longer, or
 * put another file in its place, until it was locked.
 */
static int
open_and_lock (const char *path, int *fd, uint64_t *size_bytes)
{
  CLEANUP_CLOSE int looked_at = -1;
  int r;

  r = fd_open_disk (path, &looked_at, size_bytes);
  if (r == 0)
    r = fd_reopen_writable (looked_at, fd);
  if (r == 0)
    r = lock_qemu (*fd, true);
  if (r == 0)
    r = check_name (path, *fd);
  return r ? r : fd_size (*fd, size_bytes);
}

int
target_file_open (struct target **target, const struct location *location,
                  const struct backing_options *options,
                  struct failure *failure)
{
  CLEANUP_CLOSE int fd = -1;
  struct target_file *t;
  uint64_t size_bytes;
  struct stat st;
  int r;

  r = open_and_lock (location->path, &fd, &size_bytes);
  if (r)
    return failure_set (failure, location->name, r);
  r = check_raw (fd, size_bytes, location->name, options, failure);
  if (r)
    return r;
  t = malloc (sizeof *t);
  if (t == NULL || fstat (fd, &st) == -1) {
    free (t);
    return failure_set (failure, location->name, errno);
  }
  t->target = (struct target){
    .ops = S_ISREG (st.st_mode) ? &target_file_ops : &target_device_ops,
    .image = &t->file.image,
    .size_bytes = size_bytes,
  };
  image_file_init (&t->file, fd);
  fd = -1;
  *target = &t->target;
  return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "error.h"
#include "image-file.h"

int
fd_open (const char *file_name, int flags, int *fd)
{
  do
    *fd = open (file_name, flags);
  while (*fd == -1 && errno == EINTR);
  return *fd == -1 ? errno : 0;
}

int
fd_sync (int fd)
{
  while (fdatasync (fd) == -1)
    if (errno != EINTR)
      return errno;
  return 0;
}

int
fd_sync_with_times (int fd)
{
  while (fsync (fd) == -1)
    if (errno != EINTR)
      return errno;
  return 0;
}

int
fd_set_length (int fd, uint64_t length_bytes)
{
  while (ftruncate (fd, length_bytes) == -1)
    if (errno != EINTR)
      return errno;
  return 0;
}

int
fd_size (int fd, uint64_t *size_bytes)
{
  struct stat st;
  off_t end;

  if (fstat (fd, &st) == -1)
    return errno;
  if (S_ISREG (st.st_mode)) {
    *size_bytes = st.st_size;
    return 0;
  }
  if (!S_ISBLK (st.st_mode))
    return ADDCOW_E_NOT_DISK;
  end = lseek (fd, 0, SEEK_END);
  if (end == -1)
    return errno;
  *size_bytes = end;
  return 0;
}

int
fd_open_disk (const char *file_name, int *fd, uint64_t *size_bytes)
{
  CLEANUP_CLOSE int new_fd = -1;
  struct stat st;
  int r;

  /* Looked at before it is opened: a device may do things when opened,
   * and O_NONBLOCK is for a FIFO that takes its place in between.
   */
  if (stat (file_name, &st) == -1)
    return errno;
  if (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode))
    return ADDCOW_E_NOT_DISK;
  r = fd_open (file_name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
               &new_fd);
  if (r)
    return r == ENXIO ? ADDCOW_E_NOT_DISK : r;
  r = fd_size (new_fd, size_bytes);
  if (r)
    return r;
  *fd = new_fd;
  new_fd = -1;
  return 0;
}

int
fd_reopen_writable (int fd, int *new_fd)
{
  char path[sizeof "/proc/self/fd/" + 3 * sizeof (int)];

  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  return fd_open (path, O_RDWR | O_CLOEXEC | O_NOCTTY, new_fd);
}

int
fd_read (int fd, void *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    ssize_t r = pread (fd, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return errno;
    if (r == 0)
      return EIO;
    buf = (char *) buf + r;
    count -= r;
    offset += r;
  }
  return 0;
}

int
fd_write (int fd, const void *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    ssize_t r = pwrite (fd, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return errno;
    buf = (const char *) buf + r;
    count -= r;
    offset += r;
  }
  return 0;
}

/* A system, or a file, that cannot write out is no error. */
static int
write_out_error (int err)
{
  switch (err) {
  case EINVAL:
  case ENOSYS:
  case EOPNOTSUPP:
  case ESPIPE:
    return 0;
  default:
    return err;
  }
}

int
fd_write_out (int fd, uint64_t count, uint64_t offset, bool wait)
{
  const unsigned flags = wait ? SYNC_FILE_RANGE_WAIT_BEFORE |
                                    SYNC_FILE_RANGE_WRITE |
                                    SYNC_FILE_RANGE_WAIT_AFTER
                              : SYNC_FILE_RANGE_WRITE;

  while (sync_file_range (fd, offset, count, flags) == -1)
    if (errno != EINTR)
      return write_out_error (errno);
  return 0;
}

void
fd_forget (int fd, uint64_t count, uint64_t offset)
{
  posix_fadvise (fd, offset, count, POSIX_FADV_DONTNEED);
}

void
fd_is_random (int fd)
{
  posix_fadvise (fd, 0, 0, POSIX_FADV_RANDOM);
}

/* There is no data behind some place.  Is that a hole up to END, or has the
 * file become shorter?  Returns 0, EIO, or an error of asking.
 */
static int
check_end (int fd, uint64_t end)
{
  uint64_t size_bytes;
  int r = fd_size (fd, &size_bytes);

  if (r == 0 && size_bytes < end)
    r = EIO;
  return r;
}

/* Where the hole or the data at OFFSET ends, at most END.  That SEEK_DATA
 * and SEEK_HOLE move the file's position does no harm: nobody uses it.
 */
static int
next_boundary (int fd, uint64_t offset, uint64_t end, uint64_t *boundary,
               unsigned *type)
{
  off_t data, hole;

  data = lseek (fd, offset, SEEK_DATA);
  if (data == -1 && errno == ENXIO) {
    int r = check_end (fd, end);

    if (r)
      return r;
    data = end;
  }
  if (data != -1 && (uint64_t) data > offset) {
    *boundary = MIN ((uint64_t) data, end);
    *type = EXTENT_HOLE | EXTENT_ZERO;
    return 0;
  }
  *type = 0;
  *boundary = end;
  if (data == -1)
    return errno == EINVAL || errno == EOPNOTSUPP ? 0 : errno;
  hole = lseek (fd, offset, SEEK_HOLE);
  if (hole != -1 && (uint64_t) hole > offset)
    *boundary = MIN ((uint64_t) hole, end);
  return 0;
}

int
fd_extents (int fd, uint64_t count, uint64_t offset, extent_fn *fn,
            void *opaque)
{
  const uint64_t end = offset + count;

  while (offset < end) {
    uint64_t boundary = end;
    unsigned type = 0;
    int r;

    r = next_boundary (fd, offset, end, &boundary, &type);
    if (r)
      return r;
    r = fn (opaque, boundary - offset, type);
    if (r)
      return r;
    offset = boundary;
  }
  return 0;
}

static int
image_file_fd (struct image *image)
{
  return container_of (image, struct image_file, image)->fd;
}

static int
image_file_flush (struct image *image)
{
  return fd_sync (image_file_fd (image));
}

static int
flush_if_fua (struct image *image, unsigned flags)
{
  return flags & IMAGE_FUA ? image_file_flush (image) : 0;
}

static int
image_file_read (struct image *image, void *buf, size_t count, uint64_t offset)
{
  return fd_read (image_file_fd (image), buf, count, offset);
}

static int
image_file_write (struct image *image, const void *buf, size_t count,
                  uint64_t offset, unsigned flags)
{
  int r = fd_write (image_file_fd (image), buf, count, offset);

  return r ? r : flush_if_fua (image, flags);
}

static int
punch_or_zero_range (int fd, uint64_t count, uint64_t offset, unsigned flags)
{
  const int mode = flags & IMAGE_MAY_TRIM ? FALLOC_FL_PUNCH_HOLE
                                          : FALLOC_FL_ZERO_RANGE;

  while (fallocate (fd, mode | FALLOC_FL_KEEP_SIZE, offset, count) == -1)
    if (errno != EINTR)
      return errno == ENODEV ? EOPNOTSUPP : errno;
  return 0;
}

static int
write_zeroes (int fd, uint64_t count, uint64_t offset)
{
  static const char zeroes[64 * 1024];

  while (count > 0) {
    const size_t n = MIN (count, sizeof zeroes);
    int r = fd_write (fd, zeroes, n, offset);

    if (r)
      return r;
    count -= n;
    offset += n;
  }
  return 0;
}

/* The blocks of most block devices that do not take every sector. */
#define BLOCK 4096

/* Write what is of no whole block, and the others if it must be. */
static int
zero_by_blocks (int fd, uint64_t count, uint64_t offset, unsigned flags)
{
  const uint64_t end = offset + count;
  const uint64_t whole = DIV_ROUND_UP (offset, BLOCK) * BLOCK;
  const uint64_t whole_end = end / BLOCK * BLOCK;
  int r;

  if (whole >= whole_end)
    return write_zeroes (fd, count, offset);
  r = write_zeroes (fd, whole - offset, offset);
  if (r == 0)
    r = write_zeroes (fd, end - whole_end, whole_end);
  if (r)
    return r;
  r = punch_or_zero_range (fd, whole_end - whole, whole, flags);
  if (r == EINVAL || r == EOPNOTSUPP)
    r = write_zeroes (fd, whole_end - whole, whole);
  return r;
}

/* EINVAL is of a block device whose blocks are larger than sectors. */
static int
image_file_zero (struct image *image, uint64_t count, uint64_t offset,
                 unsigned flags)
{
  const int fd = image_file_fd (image);
  int r;

  if (count == 0)
    return 0;
  r = punch_or_zero_range (fd, count, offset, flags);
  if (r == EINVAL && flags & IMAGE_FAST)
    r = EOPNOTSUPP;
  else if (r == EINVAL)
    r = zero_by_blocks (fd, count, offset, flags);
  else if (r == EOPNOTSUPP && !(flags & IMAGE_FAST))
    r = write_zeroes (fd, count, offset);
  return r ? r : flush_if_fua (image, flags);
}

static int
image_file_trim (struct image *image, uint64_t count, uint64_t offset,
                 unsigned flags)
{
  int r = 0;

  if (count > 0)
    r = punch_or_zero_range (image_file_fd (image), count, offset,
                             IMAGE_MAY_TRIM);
  if (r && r != EOPNOTSUPP && r != EINVAL)
    return r;
  return flush_if_fua (image, flags);
}

static int
image_file_extents (struct image *image, uint64_t count, uint64_t offset,
                    extent_fn *fn, void *opaque)
{
  return fd_extents (image_file_fd (image), count, offset, fn, opaque);
}

static int
image_file_cache (struct image *image, uint64_t count, uint64_t offset)
{
  return posix_fadvise (image_file_fd (image), offset, count,
                        POSIX_FADV_WILLNEED);
}

static int
image_file_copy (struct image *image, int fd, uint64_t count, uint64_t offset)
{
  off_t in = offset, out = offset;

  while (count > 0) {
    const ssize_t r = copy_file_range (fd, &in, image_file_fd (image), &out,
                                       count, 0);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return errno;
    if (r == 0)
      return EIO;
    count -= r;
  }
  return 0;
}

static int
image_file_set_length (struct image *image, uint64_t length_bytes)
{
  return fd_set_length (image_file_fd (image), length_bytes);
}

static const struct image_ops image_file_ops = {
  .read = image_file_read,
  .write = image_file_write,
  .zero = image_file_zero,
  .trim = image_file_trim,
  .flush = image_file_flush,
  .extents = image_file_extents,
  .cache = image_file_cache,
  .copy = image_file_copy,
  .set_length = image_file_set_length,
};

void
image_file_init (struct image_file *file, int fd)
{
  *file = (struct image_file){
    .image = { .ops = &image_file_ops, .multi_conn = true },
    .fd = fd,
  };
}

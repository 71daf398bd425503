/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A file as an image: whole reads and writes, extents, zeroes, sizes.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

#include "check.h"
#include "common.h"
#include "error.h"
#include "image-file.h"
#include "scratch.h"

#define KIB 1024

/*--- System calls that do half of it. ---------------------------------*/

static bool interrupt; /* short counts, and EINTR between */
static unsigned nr_calls;
static int fallocate_err;     /* fail, unless 0 */
static off_t fallocate_block; /* with EINVAL for parts of these, unless 0 */
static unsigned nr_fallocates;
static unsigned nr_interrupted; /* so many of them fail with EINTR */
static int last_mode;
static int seek_data_err; /* fail, unless 0 */
static unsigned nr_syncs;
static int sync_range_err; /* fail, unless 0 */

/* Of the last call: how much of what file, where; and how. */
static struct call {
  int fd;
  uint64_t offset, count;
  unsigned how;
} synced, advised;

ssize_t __real_pread (int fd, void *buf, size_t count, off_t offset);
ssize_t __wrap_pread (int fd, void *buf, size_t count, off_t offset);
ssize_t __real_pwrite (int fd, const void *buf, size_t count, off_t offset);
ssize_t __wrap_pwrite (int fd, const void *buf, size_t count, off_t offset);
int __real_fallocate (int fd, int mode, off_t offset, off_t count);
int __wrap_fallocate (int fd, int mode, off_t offset, off_t count);
off_t __real_lseek (int fd, off_t offset, int whence);
off_t __wrap_lseek (int fd, off_t offset, int whence);
int __real_fdatasync (int fd);
int __wrap_fdatasync (int fd);
ssize_t __real_copy_file_range (int in, off_t *from, int out, off_t *to,
                                size_t count, unsigned flags);
ssize_t __wrap_copy_file_range (int in, off_t *from, int out, off_t *to,
                                size_t count, unsigned flags);
int __real_sync_file_range (int fd, off_t offset, off_t count, unsigned flags);
int __wrap_sync_file_range (int fd, off_t offset, off_t count, unsigned flags);
int __real_posix_fadvise (int fd, off_t offset, off_t count, int advice);
int __wrap_posix_fadvise (int fd, off_t offset, off_t count, int advice);

ssize_t
__wrap_pread (int fd, void *buf, size_t count, off_t offset)
{
  if (interrupt && ++nr_calls % 2) {
    errno = EINTR;
    return -1;
  }
  return __real_pread (fd, buf, interrupt ? MIN (count, 700) : count, offset);
}

ssize_t
__wrap_pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  if (interrupt && ++nr_calls % 2) {
    errno = EINTR;
    return -1;
  }
  return __real_pwrite (fd, buf, interrupt ? MIN (count, 700) : count, offset);
}

ssize_t
__wrap_copy_file_range (int in, off_t *from, int out, off_t *to, size_t count,
                        unsigned flags)
{
  nr_calls++;
  if (interrupt && nr_calls % 2) {
    errno = EINTR;
    return -1;
  }
  return __real_copy_file_range (in, from, out, to,
                                 interrupt ? MIN (count, 700) : count, flags);
}

int
__wrap_fallocate (int fd, int mode, off_t offset, off_t count)
{
  nr_fallocates++;
  last_mode = mode;
  if (nr_interrupted > 0) {
    nr_interrupted--;
    errno = EINTR;
    return -1;
  }
  if (fallocate_err) {
    errno = fallocate_err;
    return -1;
  }
  if (fallocate_block &&
      (offset % fallocate_block || count % fallocate_block)) {
    errno = EINVAL;
    return -1;
  }
  return __real_fallocate (fd, mode, offset, count);
}

off_t
__wrap_lseek (int fd, off_t offset, int whence)
{
  if (whence == SEEK_DATA && seek_data_err) {
    errno = seek_data_err;
    return -1;
  }
  return __real_lseek (fd, offset, whence);
}

int
__wrap_fdatasync (int fd)
{
  nr_syncs++;
  return __real_fdatasync (fd);
}

int
__wrap_sync_file_range (int fd, off_t offset, off_t count, unsigned flags)
{
  synced = (struct call){ fd, offset, count, flags };
  if (sync_range_err) {
    errno = sync_range_err;
    return -1;
  }
  return __real_sync_file_range (fd, offset, count, flags);
}

int
__wrap_posix_fadvise (int fd, off_t offset, off_t count, int advice)
{
  advised = (struct call){ fd, offset, count, advice };
  return __real_posix_fadvise (fd, offset, count, advice);
}

/*--- Reading and writing. ---------------------------------------------*/

static char *folder;

static int
open_file (void)
{
  char *path = scratch_path (folder, "file");
  int fd = scratch_open (path);

  CHECK_EQ (ftruncate (fd, 0), 0);
  free (path);
  return fd;
}

static void
fill (uint8_t *buf, size_t count, unsigned seed)
{
  size_t i;

  for (i = 0; i < count; i++)
    buf[i] = (i * 7 + i / 256 + seed) | 1;
}

static void
test_read_write (void)
{
  static uint8_t out[10000], in[10000];
  const int fd = open_file ();
  int i;

  fill (out, sizeof out, 0);
  for (i = 0; i < 2; i++) {
    interrupt = i;
    nr_calls = 0;
    CHECK_EQ (ftruncate (fd, 0), 0);
    CHECK_EQ (fd_write (fd, out, sizeof out, 1000), 0);
    memset (in, 0, sizeof in);
    CHECK_EQ (fd_read (fd, in, sizeof in, 1000), 0);
    CHECK (memcmp (in, out, sizeof in) == 0);
    CHECK_EQ (lseek (fd, 0, SEEK_END), 1000 + sizeof out);
    memset (in, 1, sizeof in);
    CHECK_EQ (fd_read (fd, in, 1100, 0), 0);
    CHECK (in[0] == 0 && in[999] == 0 && in[1000] == out[0]);

    /* A range that the file does not have. */
    CHECK_EQ (fd_read (fd, in, sizeof in, 1001), EIO);
    CHECK_EQ (fd_read (fd, in, 1, 11000), EIO);
    CHECK_EQ (fd_read (fd, in, 1, 1 << 20), EIO);
    CHECK_EQ (fd_read (fd, in, 1, 10999), 0);
    CHECK_EQ (fd_read (fd, in, 0, 11000), 0);
    CHECK_EQ (fd_write (fd, out, 0, 1 << 20), 0);
    CHECK_EQ (lseek (fd, 0, SEEK_END), 1000 + sizeof out);
  }
  CHECK (nr_calls > 0);
  interrupt = false;
  close (fd);
}

static void
test_real_errno (void)
{
  char *path = scratch_path (folder, "file");
  const int fd = open_file ();
  const int read_only = open (path, O_RDONLY | O_CLOEXEC);
  const int write_only = open (path, O_WRONLY | O_CLOEXEC);
  struct rlimit was, limit;
  static uint8_t buf[8192];
  struct image_file file;

  CHECK_EQ (ftruncate (fd, sizeof buf), 0);
  CHECK_EQ (fd_write (read_only, buf, 1, 0), EBADF);
  CHECK_EQ (fd_read (write_only, buf, 1, 0), EBADF);
  image_file_init (&file, read_only);
  CHECK_EQ (file.image.ops->write (&file.image, buf, 1, 0, IMAGE_FUA), EBADF);
  CHECK_EQ (file.image.ops->zero (&file.image, 1, 0, 0), EBADF);
  CHECK_EQ (file.image.ops->trim (&file.image, 1, 0, 0), EBADF);

  /* What fits is written, then comes the error. */
  fill (buf, sizeof buf, 3);
  CHECK_EQ (getrlimit (RLIMIT_FSIZE, &was), 0);
  limit = was;
  limit.rlim_cur = 12000;
  signal (SIGXFSZ, SIG_IGN);
  CHECK_EQ (setrlimit (RLIMIT_FSIZE, &limit), 0);
  CHECK_EQ (fd_write (fd, buf, sizeof buf, 8192), EFBIG);
  CHECK_EQ (setrlimit (RLIMIT_FSIZE, &was), 0);
  CHECK_EQ (lseek (fd, 0, SEEK_END), 12000);

  close (write_only);
  close (read_only);
  close (fd);
  free (path);
}

static void
test_size (void)
{
  const int fd = open_file ();
  uint64_t size = 99;
  int pipe_fds[2], folder_fd;

  CHECK_EQ (fd_size (fd, &size), 0);
  CHECK_EQ (size, 0);
  CHECK_EQ (ftruncate (fd, 12345), 0);
  CHECK_EQ (fd_size (fd, &size), 0);
  CHECK_EQ (size, 12345);
  close (fd);
  CHECK_EQ (fd_size (fd, &size), EBADF);

  CHECK_EQ (pipe (pipe_fds), 0);
  CHECK_EQ (fd_size (pipe_fds[0], &size), ADDCOW_E_NOT_DISK);
  close (pipe_fds[0]);
  close (pipe_fds[1]);
  folder_fd = open (folder, O_RDONLY | O_CLOEXEC);
  CHECK (folder_fd >= 0);
  CHECK_EQ (fd_size (folder_fd, &size), ADDCOW_E_NOT_DISK);
  close (folder_fd);
}

static void
test_set_length (void)
{
  const int fd = open_file ();
  char *path = scratch_path (folder, "file");
  const int read_only = open (path, O_RDONLY | O_CLOEXEC);
  struct image_file file;
  uint8_t buf[100];
  uint64_t size;

  image_file_init (&file, fd);
  memset (buf, 1, sizeof buf);
  CHECK_EQ (fd_write (fd, buf, sizeof buf, 0), 0);
  CHECK_EQ (file.image.ops->set_length (&file.image, 60), 0);
  CHECK_EQ (fd_size (fd, &size), 0);
  CHECK_EQ (size, 60);

  /* What was cut off does not come back. */
  CHECK_EQ (file.image.ops->set_length (&file.image, 100), 0);
  CHECK_EQ (fd_read (fd, buf, sizeof buf, 0), 0);
  CHECK (buf[0] == 1 && buf[59] == 1 && buf[60] == 0 && buf[99] == 0);

  image_file_init (&file, read_only);
  CHECK_EQ (file.image.ops->set_length (&file.image, 1), EINVAL);
  CHECK_EQ (fd_size (fd, &size), 0);
  CHECK_EQ (size, 100);
  close (read_only);
  close (fd);
  free (path);
}

/*--- Extents. ---------------------------------------------------------*/

struct seen {
  int fd;
  uint64_t offset;
  unsigned n;
  unsigned stop_after;
  unsigned stop_with;
  unsigned last_type;
};

/* Each extent is what SEEK_DATA and SEEK_HOLE say of it. */
static int
see_extent (void *opaque, uint64_t count, unsigned type)
{
  struct seen *s = opaque;
  const off_t size = lseek (s->fd, 0, SEEK_END);

  CHECK (count > 0);
  CHECK (type == 0 || type == (EXTENT_HOLE | EXTENT_ZERO));
  if (s->n > 0)
    CHECK (type != s->last_type);
  if ((off_t) s->offset < size) {
    off_t end = lseek (s->fd, s->offset, type ? SEEK_DATA : SEEK_HOLE);

    if (end == -1) {
      CHECK_EQ (errno, ENXIO);
      CHECK (type != 0);
      end = size;
    }
    CHECK ((off_t) (s->offset + count) <= end);
  }
  s->offset += count;
  s->last_type = type;
  s->n++;
  return s->n == s->stop_after ? (int) s->stop_with : 0;
}

static unsigned
check_extents (int fd, uint64_t count, uint64_t offset)
{
  struct seen s = { .fd = fd, .offset = offset };

  CHECK_EQ (fd_extents (fd, count, offset, see_extent, &s), 0);
  CHECK_EQ (s.offset, offset + count);
  return s.n;
}

static void
test_extents (void)
{
  static const uint64_t data[] = { 0, 64, 65, 200, 511 }; /* KiB */
  const int fd = open_file ();
  struct image_file file;
  struct seen s;
  uint8_t buf[KIB];
  struct rng rng = { 2 };
  size_t i;

  CHECK_EQ (ftruncate (fd, 512 * KIB), 0);
  CHECK_EQ (check_extents (fd, 512 * KIB, 0), 1);
  fill (buf, sizeof buf, 1);
  for (i = 0; i < ARRAY_SIZE (data); i++)
    CHECK_EQ (fd_write (fd, buf, sizeof buf, data[i] * KIB), 0);
  check_extents (fd, 512 * KIB, 0);
  for (i = 0; i < 300; i++) {
    const uint64_t offset = rng_below (&rng, 512 * KIB);

    check_extents (fd, rng_range (&rng, 1, 512 * KIB - offset), offset);
  }
  CHECK_EQ (fd_extents (fd, 0, 0, NULL, NULL), 0);

  /* Stopped, with an error and without. */
  if (check_extents (fd, 512 * KIB, 0) > 2) {
    s = (struct seen){ .fd = fd, .stop_after = 2, .stop_with = ENOMEM };
    CHECK_EQ (fd_extents (fd, 512 * KIB, 0, see_extent, &s), ENOMEM);
    CHECK_EQ (s.n, 2);
    s = (struct seen){
      .fd = fd,
      .stop_after = 1,
      .stop_with = EXTENT_STOP,
    };
    image_file_init (&file, fd);
    CHECK_EQ (
        file.image.ops->extents (&file.image, 512 * KIB, 0, see_extent, &s),
        EXTENT_STOP);
    CHECK_EQ (s.n, 1);
  }
  else
    printf ("the file system has no holes\n");
  close (fd);
  CHECK_EQ (fd_extents (fd, 1, 0, see_extent, &s), EBADF);
}

static int
keep_extent (void *opaque, uint64_t count, unsigned type)
{
  struct seen *s = opaque;

  s->offset += count;
  s->last_type = type;
  s->n++;
  return 0;
}

/* A file that does not know its holes is data, and no error. */
static void
test_no_holes (void)
{
  static const int errs[] = { EINVAL, EOPNOTSUPP };
  const int fd = open_file ();
  struct seen s;
  size_t i;

  CHECK_EQ (ftruncate (fd, 8 * KIB), 0);
  for (i = 0; i < ARRAY_SIZE (errs); i++) {
    s = (struct seen){ .last_type = 99 };
    seek_data_err = errs[i];
    CHECK_EQ (fd_extents (fd, 6 * KIB, KIB, keep_extent, &s), 0);
    CHECK (s.n == 1 && s.offset == 6 * KIB && s.last_type == 0);
  }
  seek_data_err = EIO;
  CHECK_EQ (fd_extents (fd, 6 * KIB, KIB, keep_extent, &s), EIO);
  seek_data_err = 0;
  close (fd);
}

/* What the file does not have is no hole, and no data either. */
static void
test_past_end (void)
{
  const int fd = open_file ();
  struct seen s = { .last_type = 99 };
  int i;

  for (i = 0; i < 2; i++) {
    CHECK_EQ (ftruncate (fd, 8 * KIB), 0);
    CHECK_EQ (fd_extents (fd, 7 * KIB, KIB, keep_extent, &s), 0);
    CHECK_EQ (fd_extents (fd, 7 * KIB + 1, KIB, keep_extent, &s), EIO);
    CHECK_EQ (fd_extents (fd, 4 * KIB, 8 * KIB, keep_extent, &s), EIO);
    CHECK_EQ (ftruncate (fd, 0), 0);
    CHECK_EQ (fd_extents (fd, 1, 0, keep_extent, &s), EIO);

    /* And once more with data in it. */
    CHECK_EQ (fd_write (fd, "data", 4, 4 * KIB), 0);
  }
  close (fd);
}

/*--- Zero, trim, flush. -----------------------------------------------*/

#define ZERO_FILE (256 * KIB)

struct zero_case {
  uint64_t count, offset;
};

/* All of FD is as filled, but zeroes in the range. */
static void
check_zeroed (int fd, const struct zero_case *c)
{
  static uint8_t want[ZERO_FILE], got[ZERO_FILE];

  fill (want, sizeof want, 5);
  memset (want + c->offset, 0, c->count);
  CHECK_EQ (fd_read (fd, got, sizeof got, 0), 0);
  CHECK (memcmp (got, want, sizeof got) == 0);
  CHECK_EQ (lseek (fd, 0, SEEK_END), ZERO_FILE);
}

static void
test_zero (void)
{
  static const struct zero_case cases[] = {
    { 0, 0 },         { 1, 0 },
    { 512, 512 },     { 4096, 4096 },
    { 100, 4090 },    { 200 * KIB, 10 * KIB },
    { ZERO_FILE, 0 }, { 70 * KIB + 1, 12345 },
  };
  static const int errs[] = { 0, EOPNOTSUPP, ENODEV, ENOSPC };
  static uint8_t buf[ZERO_FILE];
  const struct zero_case nothing = { 0, 0 };
  const int fd = open_file ();
  struct image_file file;
  size_t i, j;
  unsigned flags;

  image_file_init (&file, fd);
  CHECK (file.image.multi_conn);
  fill (buf, sizeof buf, 5);
  for (i = 0; i < ARRAY_SIZE (cases); i++)
    for (j = 0; j < ARRAY_SIZE (errs); j++)
      for (flags = 0; flags < 8; flags++) {
        const struct zero_case *c = &cases[i];
        int r;

        CHECK_EQ (fd_write (fd, buf, sizeof buf, 0), 0);
        fallocate_err = errs[j];
        r = file.image.ops->zero (&file.image, c->count, c->offset, flags);
        if (r == EOPNOTSUPP)
          CHECK (flags & IMAGE_FAST);
        else if (errs[j] == ENOSPC && c->count > 0)
          CHECK_EQ (r, ENOSPC);
        else
          CHECK_EQ (r, 0);
        if (errs[j] != 0 && errs[j] != ENOSPC && flags & IMAGE_FAST &&
            c->count > 0)
          CHECK_EQ (r, EOPNOTSUPP);
        check_zeroed (fd, r ? &nothing : c);
      }
  fallocate_err = 0;
  close (fd);
}

/* Block devices may know nothing but whole blocks. */
static void
test_zero_blocks (void)
{
  static const struct zero_case cases[] = {
    { 512, 512 },  { 4096, 4096 }, { 4096, 512 },    { 512, 4096 },
    { 7680, 512 }, { 8192, 7680 }, { ZERO_FILE, 0 }, { 100 * KIB, 10 * KIB },
  };
  static const off_t blocks[] = { 1024, 4096, 16 * KIB, 1024 * KIB };
  static uint8_t buf[ZERO_FILE];
  const struct zero_case nothing = { 0, 0 };
  const int fd = open_file ();
  struct image_file file;
  size_t i, j;
  unsigned flags;

  image_file_init (&file, fd);
  fill (buf, sizeof buf, 5);
  for (i = 0; i < ARRAY_SIZE (cases); i++)
    for (j = 0; j < ARRAY_SIZE (blocks); j++)
      for (flags = 0; flags < 8; flags++) {
        const struct zero_case *c = &cases[i];
        const bool whole = c->count % blocks[j] == 0 &&
                           c->offset % blocks[j] == 0;
        int r;

        CHECK_EQ (fd_write (fd, buf, sizeof buf, 0), 0);
        fallocate_block = blocks[j];
        r = file.image.ops->zero (&file.image, c->count, c->offset, flags);
        if (!(flags & IMAGE_FAST))
          CHECK_EQ (r, 0);
        else if (!whole)
          CHECK_EQ (r, EOPNOTSUPP);
        check_zeroed (fd, r ? &nothing : c);
        CHECK_EQ (file.image.ops->trim (&file.image, c->count, c->offset, 0),
                  0);
      }

  /* What can be a hole is one. */
  fallocate_block = 4096;
  CHECK_EQ (fd_write (fd, buf, sizeof buf, 0), 0);
  nr_fallocates = 0;
  CHECK_EQ (file.image.ops->zero (&file.image, 200 * KIB, 512, IMAGE_MAY_TRIM),
            0);
  CHECK_EQ (nr_fallocates, 2);
  if (lseek (fd, 4096, SEEK_DATA) != 4096)
    CHECK_EQ (lseek (fd, 4096, SEEK_DATA), 200 * KIB);
  fallocate_err = ENOSPC;
  CHECK_EQ (file.image.ops->zero (&file.image, 512, 512, 0), ENOSPC);
  fallocate_err = 0;
  fallocate_block = 0;
  close (fd);
}

static void
test_holes (void)
{
  static uint8_t buf[ZERO_FILE];
  const struct zero_case c = { 64 * KIB, 64 * KIB };
  const int fd = open_file ();
  struct image_file file;
  bool punches;

  image_file_init (&file, fd);
  fill (buf, sizeof buf, 5);
  CHECK_EQ (fd_write (fd, buf, sizeof buf, 0), 0);
  punches = __real_fallocate (fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                              64 * KIB) == 0 &&
            lseek (fd, 0, SEEK_DATA) == 64 * KIB;
  if (!punches) {
    printf ("the file system punches no holes\n");
    close (fd);
    return;
  }

  /* Without IMAGE_MAY_TRIM the space is kept; with it, given back. */
  CHECK_EQ (fd_write (fd, buf, sizeof buf, 0), 0);
  CHECK_EQ (file.image.ops->zero (&file.image, c.count, c.offset, 0), 0);
  check_zeroed (fd, &c);
  CHECK_EQ (last_mode, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE);
  CHECK_EQ (
      file.image.ops->zero (&file.image, c.count, c.offset, IMAGE_MAY_TRIM), 0);
  check_zeroed (fd, &c);
  CHECK_EQ (last_mode, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
  CHECK_EQ (lseek (fd, 64 * KIB, SEEK_DATA), 128 * KIB);
  CHECK_EQ (check_extents (fd, ZERO_FILE, 0), 3);

  CHECK_EQ (fd_write (fd, buf, sizeof buf, 0), 0);
  CHECK_EQ (file.image.ops->trim (&file.image, c.count, c.offset, 0), 0);
  check_zeroed (fd, &c);
  CHECK_EQ (lseek (fd, 64 * KIB, SEEK_DATA), 128 * KIB);
  close (fd);
}

static void
test_zero_modes (void)
{
  const int fd = open_file ();
  struct image_file file;

  image_file_init (&file, fd);
  CHECK_EQ (ftruncate (fd, ZERO_FILE), 0);

  /* A trim that cannot be is none. */
  fallocate_err = EOPNOTSUPP;
  nr_fallocates = 0;
  CHECK_EQ (file.image.ops->trim (&file.image, 4096, 0, IMAGE_FUA), 0);
  CHECK_EQ (nr_fallocates, 1);
  fallocate_err = ENOSPC;
  CHECK_EQ (file.image.ops->trim (&file.image, 4096, 0, 0), ENOSPC);
  fallocate_err = 0;
  CHECK_EQ (file.image.ops->trim (&file.image, 0, 0, 0), 0);

  /* A signal is no error. */
  nr_interrupted = 2;
  nr_fallocates = 0;
  CHECK_EQ (file.image.ops->zero (&file.image, 4096, 0, 0), 0);
  CHECK_EQ (nr_fallocates, 3);

  /* With FUA all that changes something is followed by a sync. */
  nr_syncs = 0;
  CHECK_EQ (file.image.ops->write (&file.image, "abc", 3, 1, 0), 0);
  CHECK_EQ (file.image.ops->zero (&file.image, 4096, 0, 0), 0);
  CHECK_EQ (file.image.ops->trim (&file.image, 4096, 0, 0), 0);
  CHECK_EQ (nr_syncs, 0);
  CHECK_EQ (file.image.ops->write (&file.image, "abc", 3, 1, IMAGE_FUA), 0);
  CHECK_EQ (nr_syncs, 1);
  CHECK_EQ (file.image.ops->zero (&file.image, 4096, 0, IMAGE_FUA), 0);
  CHECK_EQ (nr_syncs, 2);
  CHECK_EQ (file.image.ops->trim (&file.image, 4096, 0, IMAGE_FUA), 0);
  CHECK_EQ (nr_syncs, 3);

  CHECK_EQ (file.image.ops->write (&file.image, "", 0, 1, 0), 0);
  CHECK_EQ (file.image.ops->flush (&file.image), 0);
  CHECK_EQ (file.image.ops->cache (&file.image, 4096, 0), 0);
  close (fd);
  CHECK_EQ (file.image.ops->flush (&file.image), EBADF);
  CHECK_EQ (file.image.ops->cache (&file.image, 4096, 0), EBADF);
}

static void
test_copy (void)
{
  static uint8_t out[10000], in[20000];
  char *path = scratch_path (folder, "from");
  const int fd = open_file (), from = scratch_open (path);
  struct image_file file;
  unsigned i;

  fill (out, sizeof out, 3);
  CHECK_EQ (fd_write (from, out, sizeof out, 0), 0);
  image_file_init (&file, fd);
  for (i = 0; i < 2; i++) {
    interrupt = i;
    nr_calls = 0;
    CHECK_EQ (ftruncate (fd, 0), 0);
    CHECK_EQ (ftruncate (fd, sizeof in), 0);
    CHECK_EQ (file.image.ops->copy (&file.image, from, 5000, 1001), 0);
    CHECK (i ? nr_calls >= 16 : nr_calls > 0);
    CHECK_EQ (fd_read (fd, in, sizeof in, 0), 0);
    CHECK (memcmp (in + 1001, out + 1001, 5000) == 0);
    CHECK (in[1000] == 0 && in[6001] == 0);
    CHECK_EQ (lseek (fd, 0, SEEK_END), sizeof in);

    nr_calls = 0;
    CHECK_EQ (file.image.ops->copy (&file.image, from, 0, 1001), 0);
    CHECK_EQ (nr_calls, 0);
    /* The file has become shorter. */
    CHECK_EQ (file.image.ops->copy (&file.image, from, 1001, 9000), EIO);
    CHECK_EQ (file.image.ops->copy (&file.image, from, 1000, 9000), 0);
    CHECK_EQ (file.image.ops->copy (&file.image, from, 1, 15000), EIO);
  }
  interrupt = false;
  CHECK_EQ (file.image.ops->copy (&file.image, -1, 1, 0), EBADF);
  /* What the places of the descriptors are is nobody's matter. */
  CHECK_EQ (lseek (from, 0, SEEK_CUR), 0);
  close (from);
  close (fd);
  CHECK_EQ (unlink (path), 0);
  free (path);
}

/*--- Writing out, forgetting. -----------------------------------------*/

static bool
was_called (const struct call *c, int fd, uint64_t count, uint64_t offset,
            unsigned how)
{
  return c->fd == fd && c->count == count && c->offset == offset &&
         c->how == how;
}

static void
test_write_out (void)
{
  static const int cannot[] = { EINVAL, ENOSYS, EOPNOTSUPP, ESPIPE };
  static const int errs[] = { EIO, ENOSPC, EDQUOT };
  static uint8_t out[64 * KIB], in[64 * KIB];
  const int fd = open_file ();
  int pipe_fds[2];
  size_t i;

  fill (out, sizeof out, 4);
  CHECK_EQ (fd_write (fd, out, sizeof out, 0), 0);
  CHECK_EQ (fd_write_out (fd, 32 * KIB, 8 * KIB, false), 0);
  CHECK (was_called (&synced, fd, 32 * KIB, 8 * KIB, SYNC_FILE_RANGE_WRITE));
  CHECK_EQ (fd_write_out (fd, 16 * KIB, 4 * KIB, true), 0);
  CHECK (was_called (&synced, fd, 16 * KIB, 4 * KIB,
                     SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                         SYNC_FILE_RANGE_WAIT_AFTER));
  fd_forget (fd, 16 * KIB, 4 * KIB);
  CHECK (was_called (&advised, fd, 16 * KIB, 4 * KIB, POSIX_FADV_DONTNEED));
  CHECK_EQ (fd_read (fd, in, sizeof in, 0), 0);
  CHECK (memcmp (in, out, sizeof in) == 0);

  /* Where the system cannot do that it is no error. */
  for (i = 0; i < ARRAY_SIZE (cannot); i++) {
    sync_range_err = cannot[i];
    CHECK_EQ (fd_write_out (fd, 16 * KIB, 0, i % 2), 0);
  }
  for (i = 0; i < ARRAY_SIZE (errs); i++) {
    sync_range_err = errs[i];
    CHECK_EQ (fd_write_out (fd, 16 * KIB, 0, i % 2), errs[i]);
  }
  sync_range_err = 0;
  CHECK_EQ (pipe (pipe_fds), 0);
  CHECK_EQ (fd_write_out (pipe_fds[1], 16 * KIB, 0, false), 0);
  CHECK_EQ (fd_write_out (pipe_fds[1], 16 * KIB, 0, true), 0);
  fd_forget (pipe_fds[1], 16 * KIB, 0);
  close (pipe_fds[0]);
  close (pipe_fds[1]);
  close (fd);
  CHECK_EQ (fd_write_out (fd, 16 * KIB, 0, true), EBADF);
  fd_forget (fd, 16 * KIB, 0);
}

int
main (void)
{
  folder = scratch_folder ();
  test_read_write ();
  test_real_errno ();
  test_size ();
  test_set_length ();
  test_extents ();
  test_no_holes ();
  test_past_end ();
  test_zero ();
  test_zero_blocks ();
  test_holes ();
  test_zero_modes ();
  test_copy ();
  test_write_out ();
  free (folder);
  return 0;
}

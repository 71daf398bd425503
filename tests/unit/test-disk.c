/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening the files of a disk, and what others do to them meanwhile.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "check.h"
#include "common.h"
#include "disk.h"
#include "format.h"
#include "lock.h"
#include "scratch.h"

#define SECTOR UINT64_C (512)

static char *folder, *path, *new_path, *backing_path;

/* An add-cow file without names, of a disk of NR_SECTORS. */
static void
make_file (const char *name, uint64_t nr_sectors)
{
  struct header header = { .size_bytes = nr_sectors * SECTOR };
  uint8_t buf[FORMAT_HEADER_BYTES + 16] = { 0 };

  CHECK (nr_sectors <= 16 * 8);
  format_encode (&header, buf);
  scratch_file (name, buf, format_file_bytes (header.size_bytes));
}

static int
open_disk (struct disk **disk, bool read_only)
{
  const struct disk_options options = { .read_only = read_only };
  CLEANUP_FAILURE struct failure failure = { 0 };
  int r = disk_open (disk, path, &options, &failure);

  if (r) {
    CHECK_EQ (failure.err, r);
    CHECK_STR (failure.file_name, path);
  }
  return r;
}

/*--- Somebody does something just before a lock is taken. -------------*/

static unsigned nr_replacements; /* so many times, another file */
static uint64_t new_sectors;     /* of the next one */
static bool remove_it;

int __real_fcntl64 (int fd, int cmd, ...);
int __wrap_fcntl64 (int fd, int cmd, ...);
int __real_fcntl (int fd, int cmd, ...);
int __wrap_fcntl (int fd, int cmd, ...);

static void
before_fcntl (int cmd)
{
  if (cmd != F_OFD_SETLK)
    return;
  if (remove_it)
    CHECK_EQ (unlink (path), 0);
  if (nr_replacements > 0) {
    nr_replacements--;
    make_file (new_path, new_sectors++);
    CHECK_EQ (rename (new_path, path), 0);
  }
}

/* The third argument is as wide as a pointer, whatever it is. */
#define WRAP(name) \
  int __wrap_##name (int fd, int cmd, ...) \
  { \
    va_list args; \
    void *arg; \
\
    va_start (args, cmd); \
    arg = va_arg (args, void *); \
    va_end (args); \
    before_fcntl (cmd); \
    return __real_##name (fd, cmd, arg); \
  }
WRAP (fcntl)
WRAP (fcntl64)

/* The number that the next descriptor gets. */
static int
next_fd (void)
{
  int fd = open (".", O_RDONLY | O_CLOEXEC);

  CHECK (fd >= 0);
  close (fd);
  return fd;
}

static void
test_replaced (bool read_only, unsigned times)
{
  const int fd = next_fd ();
  struct disk *disk;
  int other;

  make_file (path, 5);
  nr_replacements = times;
  new_sectors = 6;
  CHECK_EQ (open_disk (&disk, read_only), 0);
  CHECK_EQ (nr_replacements, 0);
  CHECK_EQ (disk->header.size_bytes, (5 + times) * SECTOR);
  CHECK_EQ (disk->writable, !read_only);

  /* Nobody else gets what has the name. */
  other = scratch_open (path);
  CHECK_EQ (lock_metadata (other, true), ADDCOW_E_IN_USE);
  disk_close (disk);
  CHECK_EQ (lock_metadata (other, true), 0);
  close (other);
  CHECK_EQ (next_fd (), fd);
}

static void
test_replaced_for_ever (void)
{
  const int fd = next_fd ();
  struct disk *disk;

  make_file (path, 5);
  nr_replacements = 50;
  new_sectors = 6;
  CHECK_EQ (open_disk (&disk, false), ADDCOW_E_IN_USE);
  nr_replacements = 0;
  CHECK_EQ (next_fd (), fd);
}

static void
test_removed (void)
{
  struct disk *disk;

  make_file (path, 5);
  remove_it = true;
  CHECK_EQ (open_disk (&disk, false), ENOENT);
  remove_it = false;
}

/*--- What the kernel remembers and the disk does not have. ------------*/

/* Of the file that is opened: S a sync, F that its pages are forgotten, B
 * a read of its bitmap.
 */
static char calls[100];
static int sync_err, advice_err;

int __real_fdatasync (int fd);
int __wrap_fdatasync (int fd);
int __real_posix_fadvise (int fd, off_t offset, off_t count, int advice);
int __wrap_posix_fadvise (int fd, off_t offset, off_t count, int advice);
int __real_posix_fadvise64 (int fd, off_t offset, off_t count, int advice);
int __wrap_posix_fadvise64 (int fd, off_t offset, off_t count, int advice);
ssize_t __real_pread (int fd, void *buf, size_t count, off_t offset);
ssize_t __wrap_pread (int fd, void *buf, size_t count, off_t offset);
ssize_t __real_pread64 (int fd, void *buf, size_t count, off_t offset);
ssize_t __wrap_pread64 (int fd, void *buf, size_t count, off_t offset);

static void
note (char call)
{
  const size_t n = strlen (calls);

  CHECK (n < sizeof calls - 1);
  calls[n] = call;
  calls[n + 1] = '\0';
}

int
__wrap_fdatasync (int fd)
{
  note ('S');
  errno = sync_err;
  return sync_err ? -1 : __real_fdatasync (fd);
}

#define WRAP_FADVISE(name) \
  int __wrap_##name (int fd, off_t offset, off_t count, int advice) \
  { \
    CHECK (offset == 0 && count == 0); \
    if (advice == POSIX_FADV_RANDOM) \
      return __real_##name (fd, offset, count, advice); \
    CHECK_EQ (advice, POSIX_FADV_DONTNEED); \
    note ('F'); \
    return advice_err ? advice_err \
                      : __real_##name (fd, offset, count, advice); \
  }
WRAP_FADVISE (posix_fadvise)
WRAP_FADVISE (posix_fadvise64)

#define WRAP_PREAD(name) \
  ssize_t __wrap_##name (int fd, void *buf, size_t count, off_t offset) \
  { \
    if (offset + count > FORMAT_HEADER_BYTES) \
      note ('B'); \
    return __real_##name (fd, buf, count, offset); \
  }
WRAP_PREAD (pread)
WRAP_PREAD (pread64)

/* Open, with SYNC_ERR or ADVICE_ERR or none, and look at a sector. */
static void
check_calls (bool read_only, const char *expected)
{
  struct image_file image;
  struct disk *disk;
  struct fault fault;
  char buf[SECTOR];

  calls[0] = '\0';
  CHECK_EQ (open_disk (&disk, read_only), sync_err);
  if (sync_err == 0) {
    image_file_init (&image, -1);
    overlay_attach (disk->overlay, &image.image);
    CHECK_EQ (
        overlay_read (disk->overlay, &image.image, buf, sizeof buf, 0, &fault),
        0);
    CHECK_EQ (overlay_detach (disk->overlay, &image.image, &fault), 0);
    disk_close (disk);
  }
  CHECK_STR (calls, expected);
}

static void
test_forgotten (void)
{
  struct disk *disk;

  make_file (path, 5);
  check_calls (false, "SFB");
  check_calls (true, "B");
  advice_err = EINVAL;
  check_calls (false, "SFB");
  advice_err = 0;
  sync_err = EIO;
  check_calls (false, "S");
  check_calls (false, "S");
  sync_err = 0;
  check_calls (false, "SFB");

  /* What is no add-cow file is left alone. */
  scratch_file (path, "a text", 6);
  calls[0] = '\0';
  CHECK_EQ (open_disk (&disk, false), ADDCOW_E_MAGIC);
  CHECK_STR (calls, "");
}

/*--- A backing file that is not as it was. ----------------------------*/

static unsigned nr_logged;
static char logged[1000];

static void
log_backing (void *opaque, const char *name, const char *text)
{
  CHECK (opaque == &nr_logged);
  CHECK_STR (name, backing_path);
  CHECK (strchr (text, '\n') == NULL);
  CHECK (strlen (text) < sizeof logged);
  strcpy (logged, text);
  nr_logged++;
}

/* Make a file on a backing file of 512 bytes, with HINTS. */
static void
make_overlay (const struct hints *hints)
{
  struct header header = { .size_bytes = SECTOR };
  uint8_t buf[FORMAT_HEADER_BYTES + 1] = { 0 };

  CHECK_EQ (format_set_name (header.backing_file, backing_path), 0);
  CHECK_EQ (format_set_hints (&header, hints), 0);
  format_encode (&header, buf);
  scratch_file (path, buf, sizeof buf);
  scratch_file (backing_path, buf, SECTOR);
}

static int
open_overlay (const char *format, bool log)
{
  const struct disk_options options = {
    .backing = {
      .format = format,
      .log = log ? log_backing : NULL,
      .log_opaque = &nr_logged,
    },
  };
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk *disk;
  int r;

  nr_logged = 0;
  r = disk_open (&disk, path, &options, &failure);
  if (r == 0)
    disk_close (disk);
  return r;
}

static void
test_hints (void)
{
  struct hints hints = { .has_size = true, .size_bytes = 511 };

  /* It begins like an add-cow file. */
  make_overlay (&hints);
  CHECK_EQ (open_overlay (NULL, true), ADDCOW_E_FOREIGN_FORMAT);
  CHECK_EQ (nr_logged, 0);
  CHECK_EQ (open_overlay ("raw", true), 0);
  CHECK_EQ (nr_logged, 1);

  strcpy (hints.format, "raw");
  make_overlay (&hints);
  CHECK_EQ (open_overlay (NULL, true), 0);
  CHECK_EQ (nr_logged, 1);
  CHECK (strstr (logged, path) != NULL);
  CHECK (strstr (logged, "(length 512 bytes, was 511)") != NULL);
  CHECK_EQ (open_overlay (NULL, false), 0);

  hints.size_bytes = SECTOR;
  make_overlay (&hints);
  CHECK_EQ (open_overlay (NULL, true), 0);
  CHECK_EQ (nr_logged, 0);
}

/*--- The end of the backing file. -------------------------------------*/

/* How many descriptors this process has of the file NAME. */
static unsigned
nr_open (const char *name)
{
  struct stat st, other;
  unsigned n = 0;
  int fd;

  CHECK_EQ (stat (name, &st), 0);
  for (fd = 0; fd < 1000; fd++)
    n += fstat (fd, &other) == 0 && same_file (&st, &other);
  return n;
}

/* When all is in the image the backing file is let go of, and its lock. */
static void
test_close_backing (void)
{
  const struct hints hints = { .has_size = false };
  const struct disk_options options = { .read_only = false };
  CLEANUP_FAILURE struct failure failure = { 0 };
  uint8_t base[SECTOR], buf[SECTOR] = { 0 };
  char *image_path = scratch_path (folder, "image");
  struct image_file image;
  struct fault fault;
  struct disk *disk;
  int fd, other;

  make_overlay (&hints);
  memset (base, 7, sizeof base);
  scratch_file (backing_path, base, sizeof base);
  scratch_file (image_path, buf, sizeof buf);
  fd = scratch_open (image_path);
  image_file_init (&image, fd);
  CHECK_EQ (disk_open (&disk, path, &options, &failure), 0);
  overlay_attach (disk->overlay, &image.image);
  CHECK_EQ (nr_open (backing_path), 1);

  CHECK_EQ (overlay_fill_range (disk->overlay, &image.image, SECTOR, 0, &fault),
            0);
  CHECK_EQ (overlay_commit (disk->overlay, &fault), 0);
  CHECK (overlay_stands_alone (disk->overlay));
  other = scratch_open (backing_path);
  CHECK_EQ (lock_qemu (other, true), ADDCOW_E_IN_USE);
  CHECK (overlay_drop_backing (disk->overlay, false));
  disk_close_backing (disk);
  CHECK_EQ (lock_qemu (other, true), 0);
  close (other);
  CHECK_EQ (nr_open (backing_path), 0);
  CHECK (disk->backing == NULL);

  CHECK_EQ (unlink (backing_path), 0);
  CHECK_EQ (overlay_read (disk->overlay, &image.image, buf, SECTOR, 0, &fault),
            0);
  CHECK (memcmp (buf, base, sizeof buf) == 0);
  CHECK_EQ (overlay_detach (disk->overlay, &image.image, &fault), 0);
  disk_close (disk);
  close (fd);
  free (image_path);
}

/*--- The image, to be written to. -------------------------------------*/

/* Open PATH with the image IMAGE, or none. */
static struct disk *
open_with_image (const char *image, bool read_only)
{
  const struct disk_options options = {
    .read_only = read_only,
    .image_path = image,
  };
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk *disk;

  CHECK_EQ (disk_open (&disk, path, &options, &failure), 0);
  return disk;
}

/* It is the file that is locked, also when another one has its name. */
static void
test_open_image (bool read_only)
{
  const int before = next_fd ();
  char *image_path = scratch_path (folder, "image");
  uint8_t buf[5 * SECTOR] = { 1 };
  struct rlimit was, limit;
  struct stat st, other;
  struct disk *disk;
  int fd, none;

  make_file (path, 5);
  scratch_file (image_path, buf, sizeof buf);
  CHECK_EQ (stat (image_path, &st), 0);
  disk = open_with_image (image_path, read_only);
  make_file (new_path, 6);
  CHECK_EQ (rename (new_path, image_path), 0);
  CHECK_EQ (disk_open_image (disk, &fd), 0);
  CHECK (fd != disk->image_fd);
  CHECK_EQ (fstat (fd, &other), 0);
  CHECK (same_file (&st, &other));
  CHECK_EQ (fcntl (fd, F_GETFD), FD_CLOEXEC);
  CHECK_EQ (fcntl (fd, F_GETFL) & O_ACCMODE, O_RDWR);
  CHECK_EQ (fd_write (fd, "new", 3, 7), 0);
  CHECK_EQ (fd_read (fd, buf, 10, 0), 0);
  CHECK (buf[0] == 1 && memcmp (buf + 7, "new", 3) == 0);

  CHECK_EQ (getrlimit (RLIMIT_NOFILE, &was), 0);
  limit = was;
  limit.rlim_cur = next_fd ();
  CHECK_EQ (setrlimit (RLIMIT_NOFILE, &limit), 0);
  CHECK_EQ (disk_open_image (disk, &none), EMFILE);
  CHECK_EQ (setrlimit (RLIMIT_NOFILE, &was), 0);

  /* It is the caller's. */
  disk_close (disk);
  CHECK_EQ (fd_read (fd, buf, 10, 0), 0);
  CHECK_EQ (close (fd), 0);
  free (image_path);
  CHECK_EQ (next_fd (), before);
}

static void
test_no_image (void)
{
  char *image_path = scratch_path (folder, "no-image");
  struct disk *disk;
  int fd = -1;

  make_file (path, 5);
  disk = open_with_image (image_path, false);
  CHECK_EQ (disk_open_image (disk, &fd), ADDCOW_E_NO_IMAGE);
  disk_close (disk);
  disk = open_with_image (NULL, false);
  CHECK_EQ (disk_open_image (disk, &fd), ADDCOW_E_NO_IMAGE);
  CHECK_EQ (fd, -1);
  disk_close (disk);
  free (image_path);
}

int
main (void)
{
  int i;

  folder = scratch_folder ();
  path = scratch_path (folder, "file");
  new_path = scratch_path (folder, "new");
  backing_path = scratch_path (folder, "backing");
  for (i = 0; i < 2; i++) {
    test_replaced (i, 0);
    test_replaced (i, 1);
    test_replaced (i, 2);
  }
  test_replaced_for_ever ();
  test_removed ();
  test_forgotten ();
  test_hints ();
  test_close_backing ();
  test_open_image (false);
  test_open_image (true);
  test_no_image ();
  free (path);
  free (new_path);
  free (backing_path);
  free (folder);
  return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The command line of addcow-img.
 *
 * The input is one byte of flags, 8 bytes, and strings, each up to a NUL: what
 * is behind the program's name.
 *
 * Whatever it is, the verb ends with a status that it has; if that is 1 there
 * is one line on stderr and nothing on stdout.  No file is made or opened:
 * from where the arguments were looked at on, the functions that would are
 * ones here.  Those are given an overlay of so many bytes as the 8 say; and of
 * create the header that it would have written is looked at.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuzz.h"

/* Its main is called here. */
int addcow_img_main (int argc, char *argv[]);
#define main addcow_img_main
#include "../img/main.c"
#undef main

#include "checker.h"
#include "disk.h"
#include "format.h"
#include "lock.h"
#include "metadata.h"
#include "new-file.h"
#include "open-disk.h"
#include "resize.h"
#include "target.h"

enum { FAILS = 1, EXISTS = 2, IMAGE_EXISTS = 4, BACKING_FAILS = 8 };

static unsigned flags;
static uint64_t disk_bytes; /* a valid size */

/*--- What would do something. -----------------------------------------*/

int __wrap_open_disk_writable (const char *file_name, bool without_backing,
                               struct disk **disk, int *image_fd);
int __wrap_open_disk_readable (const char *file_name, struct disk **disk,
                               bool *in_use);
int __wrap_check_overlay (struct check *check, const char *file_name,
                          const struct check_options *options,
                          struct failure *failure);
int __wrap_metadata_open (const char *file_name, bool writable, int *fd);
int __wrap_lock_replaced (const char *path, int *fd);
int __wrap_fd_open_disk (const char *file_name, int *fd, uint64_t *size_bytes);
int __wrap_lock_qemu (int fd, bool writable);
int __wrap_backing_open (struct backing **backing,
                         const struct location *location,
                         const struct backing_options *options,
                         struct failure *failure);
int __wrap_hints_take (struct hints *now, const struct location *location,
                       uint64_t size_bytes);
int __wrap_new_file_open (struct new_file *file, const char *path);
int __wrap_new_file_install (struct new_file *file, bool replace);
void __wrap_new_file_remove (struct new_file *file);
void __wrap_new_file_discard (struct new_file *file);
int __wrap_ftruncate (int fd, off_t length);
int __wrap_resize (const struct resize *r, uint64_t new_size_bytes,
                   struct fault *fault);

static bool is_resize;

int
__wrap_open_disk_writable (const char *file_name, bool without_backing UNUSED,
                           struct disk **disk, int *image_fd)
{
  CHECK (file_name[0]);
  if (!is_resize || (flags & FAILS))
    return img_file_error (file_name, EACCES);
  *disk = calloc (1, sizeof **disk);
  CHECK (*disk != NULL);
  (*disk)->metadata_fd = (*disk)->image_fd = -1;
  (*disk)->image_location.fd = (*disk)->backing_location.fd = -1;
  (*disk)->file_name = strdup (file_name);
  (*disk)->header.size_bytes = disk_bytes;
  CHECK (location_set (&(*disk)->image_location, "vm.raw") == 0);
  *image_fd = memfd_create ("image", MFD_CLOEXEC);
  CHECK (*image_fd >= 0);
  return EXIT_SUCCESS;
}

int
__wrap_open_disk_readable (const char *file_name, struct disk **disk UNUSED,
                           bool *in_use UNUSED)
{
  CHECK (file_name[0]);
  return img_file_error (file_name, EACCES);
}

int
__wrap_check_overlay (struct check *check UNUSED, const char *file_name,
                      const struct check_options *options UNUSED,
                      struct failure *failure)
{
  CHECK (file_name[0]);
  return flags & FAILS ? failure_set (failure, file_name, EACCES) : 0;
}

int
__wrap_metadata_open (const char *file_name, bool writable UNUSED,
                      int *fd UNUSED)
{
  CHECK (file_name[0]);
  return EACCES;
}

int
__wrap_lock_replaced (const char *path, int *fd)
{
  CHECK (path[0]);
  if (flags & FAILS)
    return ADDCOW_E_IN_USE;
  *fd = open ("/dev/null", O_RDONLY | O_CLOEXEC);
  return 0;
}

int
__wrap_fd_open_disk (const char *file_name, int *fd, uint64_t *size_bytes)
{
  CHECK (file_name[0]);
  if (!(flags & IMAGE_EXISTS))
    return ENOENT;
  *fd = open ("/dev/null", O_RDONLY | O_CLOEXEC);
  *size_bytes = disk_bytes;
  return 0;
}

int
__wrap_lock_qemu (int fd UNUSED, bool writable UNUSED)
{
  return 0;
}

static void
close_fake (struct backing *backing)
{
  free (backing);
}

int
__wrap_backing_open (struct backing **backing, const struct location *location,
                     const struct backing_options *options,
                     struct failure *failure)
{
  static const struct backing_ops ops = { .close = close_fake };

  CHECK (location->name && location->name[0]);
  CHECK (options->format == NULL || format_is_hint (options->format));
  CHECK (options->timeout_seconds >= 1);
  if (flags & BACKING_FAILS)
    return failure_set (failure, location->name, ENOENT);
  *backing = calloc (1, sizeof **backing);
  CHECK (*backing != NULL);
  (*backing)->ops = &ops;
  (*backing)->size_bytes = disk_bytes + (flags & FAILS);
  return 0;
}

int
__wrap_hints_take (struct hints *now, const struct location *location UNUSED,
                   uint64_t size_bytes)
{
  *now = (struct hints){
    .has_size = true,
    .size_bytes = size_bytes,
    .has_mtime = true,
    .mtime_ns = INT64_MIN,
  };
  return 0;
}

/* A file that has no name. */
int
__wrap_new_file_open (struct new_file *file, const char *path)
{
  CHECK (path[0]);
  file->fd = memfd_create ("new", MFD_CLOEXEC);
  CHECK (file->fd >= 0);
  return 0;
}

/* What has the magic is a header, and is valid. */
int
__wrap_new_file_install (struct new_file *file, bool replace UNUSED)
{
  uint8_t buf[FORMAT_HEADER_BYTES] = { 0 };
  struct header header;
  struct hints hints;

  if (pread (file->fd, buf, sizeof buf, 0) > 0) {
    CHECK (format_decode (buf, &header) == 0);
    CHECK (format_check_hints (&header) == 0);
    format_get_hints (&header, &hints);
    CHECK (hints.format[0] == '\0' || header.backing_file[0]);
  }
  file->installed = true;
  return 0;
}

void
__wrap_new_file_remove (struct new_file *file UNUSED)
{
}

void
__wrap_new_file_discard (struct new_file *file)
{
  if (file->fd >= 0)
    close (file->fd);
  file->fd = -1;
}

int
__wrap_ftruncate (int fd UNUSED, off_t length)
{
  CHECK (length >= 0);
  return 0;
}

int
__wrap_resize (const struct resize *r, uint64_t new_size_bytes,
               struct fault *fault UNUSED)
{
  CHECK (format_check_size (new_size_bytes) == 0);
  CHECK (r->size_bytes == disk_bytes);
  return 0;
}

/*--- Running it. ------------------------------------------------------*/

#define MAX_ARGUMENTS 40

/* Sizes alone: each parses to the same when it was written out. */
static void
try_size (const char *text)
{
  uint64_t size = 0;
  char buf[SIZE_TEXT_BYTES];
  const int r = size_parse (text, &size);

  CHECK (r == 0 || r == EINVAL || r == ERANGE);
  if (r == 0) {
    CHECK (size <= INT64_MAX);
    CHECK (strlen (size_text (size, buf)) < sizeof buf);
  }
}

struct output {
  FILE *fp;
  char *text;
  size_t n;
};

static FILE *
begin_output (struct output *o)
{
  o->fp = open_memstream (&o->text, &o->n);
  CHECK (o->fp != NULL);
  return o->fp;
}

static size_t
nr_lines (const struct output *o)
{
  size_t i, n = 0;

  for (i = 0; i < o->n; i++)
    n += o->text[i] == '\n';
  return n;
}

static void
check_output (int status, const struct output *out, const struct output *err)
{
  CHECK (status == 0 || status == 1);
  if (status == 0) {
    CHECK (err->n == 0);
    return;
  }
  CHECK (out->n == 0);
  CHECK (nr_lines (err) == 1 && err->text[err->n - 1] == '\n');
  CHECK (strncmp (err->text, "addcow-img: ", 12) == 0);
}

static void
run (int argc, char *argv[])
{
  FILE *const saved_out = stdout, *const saved_err = stderr;
  struct output out, err;
  int status;

  optind = 0;
  stdout = begin_output (&out);
  stderr = begin_output (&err);
  status = addcow_img_main (argc, argv);
  stdout = saved_out;
  stderr = saved_err;
  fclose (out.fp);
  fclose (err.fp);
  check_output (status, &out, &err);
  free (out.text);
  free (err.text);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct input in = { data, size };
  char *arguments[MAX_ARGUMENTS + 2] = { (char *) "addcow-img" };
  char *argv[MAX_ARGUMENTS + 2];
  int i, n;

  flags = take (&in, 1);
  disk_bytes = (take (&in, 8) & INT64_MAX) / 512 * 512;
  for (n = 1; n <= MAX_ARGUMENTS && in.left > 0; n++) {
    arguments[n] = take_string (&in);
    try_size (arguments[n]);
  }
  is_resize = n > 1 && strcmp (arguments[1], "resize") == 0;
  memcpy (argv, arguments, sizeof argv); /* getopt moves them around */
  run (n, argv);
  for (i = 1; i < n; i++)
    free (arguments[i]);
  return 0;
}

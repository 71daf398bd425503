/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing-kinds.h"
#include "common.h"
#include "disk-input.h"
#include "format.h"
#include "names.h"
#include "scratch.h"

#define BASE_BYTES 65536

static char *folder, *path;
static int file_fd = -1;
static bool real_backing;

uint8_t
backing_byte (uint64_t offset)
{
  return (offset / 512 * 7 + offset) % 251 + 1;
}

/*--- What the engine calls. -------------------------------------------*/

int __wrap_fdatasync (int fd);
int __wrap_location_find (struct location *location, const char *folder,
                          const char *name, const char *confine);
int __real_location_find (struct location *location, const char *folder,
                          const char *name, const char *confine);
int __wrap_backing_open (struct backing **backing,
                         const struct location *location,
                         const struct backing_options *options,
                         struct failure *failure);
int __real_backing_open (struct backing **backing,
                         const struct location *location,
                         const struct backing_options *options,
                         struct failure *failure);

/* There is no power to fail. */
int
__wrap_fdatasync (int fd UNUSED)
{
  return 0;
}

/* The table of a large disk's map: with AddressSanitizer, making one takes
 * long, though nothing is in it.
 */
#define LARGE (UINT64_C (32) << 20)

void *__wrap_calloc (size_t n, size_t size);
void *__real_calloc (size_t n, size_t size);
void __wrap_free (void *p);
void __real_free (void *p);

static struct {
  void *p;
  size_t size;
} tables[4]; /* one of each disk in a chain */

void *
__wrap_calloc (size_t n, size_t size)
{
  size_t i, all;

  if (__builtin_mul_overflow (n, size, &all) || all < LARGE)
    return __real_calloc (n, size);
  for (i = 0; tables[i].p; i++)
    CHECK (i + 1 < ARRAY_SIZE (tables));
  tables[i].p = mmap (NULL, all, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK (tables[i].p != MAP_FAILED);
  tables[i].size = all;
  return tables[i].p;
}

void
__wrap_free (void *p)
{
  size_t i;

  for (i = 0; i < ARRAY_SIZE (tables) && p; i++)
    if (tables[i].p == p) {
      munmap (p, tables[i].size);
      tables[i].p = NULL;
      return;
    }
  __real_free (p);
}

/* URIs lead nowhere, as the one that is told of them opens nothing. */
int
__wrap_location_find (struct location *location, const char *in,
                      const char *name, const char *confine)
{
  if (confine == NULL && !name_is_uri (name))
    confine = folder;
  return __real_location_find (location, in, name, confine);
}

static int
fake_read (struct backing *b, void *buf, size_t count, uint64_t offset)
{
  uint8_t *p = buf;
  size_t i;

  CHECK (offset <= b->size_bytes && count <= b->size_bytes - offset);
  for (i = 0; i < count; i++)
    p[i] = backing_byte (offset + i);
  return 0;
}

static int
fake_extents (struct backing *b, uint64_t count, uint64_t offset, extent_fn *fn,
              void *opaque)
{
  CHECK (count > 0);
  CHECK (offset <= b->size_bytes && count <= b->size_bytes - offset);
  return fn (opaque, count, 0);
}

static int
fake_cache (struct backing *b UNUSED, uint64_t count UNUSED,
            uint64_t offset UNUSED)
{
  return 0;
}

static void
fake_close (struct backing *b)
{
  free (b);
}

static const struct backing_ops fake_ops = {
  .read = fake_read,
  .extents = fake_extents,
  .cache = fake_cache,
  .close = fake_close,
};

int
__wrap_backing_open (struct backing **backing, const struct location *location,
                     const struct backing_options *options,
                     struct failure *failure)
{
  const enum backing_kind kind = backing_kind (location, options->format);

  if (real_backing && location->path &&
      (kind == BACKING_FILE || kind == BACKING_ADDCOW))
    return __real_backing_open (backing, location, options, failure);
  *backing = calloc (1, sizeof **backing);
  CHECK (*backing != NULL);
  (*backing)->ops = &fake_ops;
  (*backing)->size_bytes = FAKE_BACKING_BYTES;
  return 0;
}

/*--- The folder. ------------------------------------------------------*/

static void
make_link (const char *target, const char *name)
{
  CLEANUP_FREE char *link = scratch_path (folder, name);

  CHECK (symlink (target, link) == 0);
}

static void
make_base (void)
{
  static uint8_t buf[BASE_BYTES];
  CLEANUP_FREE char *base = scratch_path (folder, "base.img");
  size_t i;

  for (i = 0; i < sizeof buf; i++)
    buf[i] = backing_byte (i);
  scratch_file (base, buf, sizeof buf);
}

static void
make_mid (void)
{
  CLEANUP_FREE char *mid = scratch_path (folder, "mid.add-cow");
  CLEANUP_FREE char *image = scratch_path (folder, "mid.raw");
  struct header header = {
    .backing_file = "base.img",
    .image_file = "mid.raw",
    .size_bytes = BASE_BYTES,
  };
  uint8_t buf[FORMAT_HEADER_BYTES + BASE_BYTES / 4096] = { 0 };

  format_encode (&header, buf);
  scratch_file (mid, buf, sizeof buf);
  scratch_file (image, "", 0);
  CHECK (truncate (image, BASE_BYTES) == 0);
}

/* As long as it can be. */
static void
make_image (void)
{
  CLEANUP_FREE char *image = scratch_path (folder, "vm.raw");
  uint64_t size = INT64_MAX;

  scratch_file (image, "", 0);
  while (truncate (image, size) == -1)
    size /= 2;
}

static void
set_up (void)
{
  folder = scratch_folder ();
  path = scratch_path (folder, "vm.add-cow");
  make_base ();
  make_mid ();
  make_image ();
  make_link ("vm.add-cow", "loop.add-cow");
  make_link ("loop", "loop");
  make_link ("..", "up");
  make_link ("/", "root");
  file_fd = scratch_open (path);
}

/*--- The metadata file. -----------------------------------------------*/

static void
put (const void *buf, size_t count, uint64_t offset)
{
  if (count > 0)
    CHECK (pwrite (file_fd, buf, count, offset) == (ssize_t) count);
}

/* Where the file system has no files so long, as long as can be. */
static void
set_length (struct disk_input *d, uint64_t length)
{
  while (ftruncate (file_fd, length) == -1)
    length /= 2;
  d->length_bytes = length;
}

static void
make_header (struct input *in, uint64_t size)
{
  uint8_t buf[FORMAT_HEADER_BYTES] = { 0 };
  const size_t len = take (in, 2) % (FORMAT_NAME_BYTES + 1);
  CLEANUP_FREE char *image = NULL;
  const uint8_t *backing;
  size_t n;

  memcpy (buf, FORMAT_MAGIC "\0\0\0\1", FORMAT_BACKING_OFFSET);
  n = take_bytes (in, &backing, len);
  if (n > 0)
    memcpy (buf + FORMAT_BACKING_OFFSET, backing, n);
  image = take_string (in);
  memcpy (buf + FORMAT_BACKING_OFFSET + FORMAT_NAME_BYTES, image,
          MIN (strlen (image), FORMAT_NAME_BYTES));
  format_encode_size (size, buf + FORMAT_SIZE_OFFSET);
  put (buf, sizeof buf, 0);
}

static void
make_pieces (struct disk_input *d, struct input *in)
{
  while (in->left > 0 && d->length_bytes > FORMAT_HEADER_BYTES) {
    const uint64_t room = d->length_bytes - FORMAT_HEADER_BYTES;
    const uint64_t at = take (in, 8) % room;
    const uint8_t *p;
    size_t n = take_bytes (in, &p, take (in, 1));

    put (p, MIN (n, room - at), FORMAT_HEADER_BYTES + at);
  }
}

static void
make_parts (struct disk_input *d, struct input *in)
{
  const uint64_t size = take (in, 8);
  const int8_t more = take (in, 1);

  make_header (in, size);
  set_length (d, format_file_bytes (MIN (size, INT64_MAX)) + more);
  make_pieces (d, in);
}

void
disk_input_make (struct disk_input *d, const uint8_t *data, size_t size)
{
  struct input in = { data, size };

  if (folder == NULL)
    set_up ();
  *d = (struct disk_input){ .folder = folder, .path = path, .fd = file_fd };
  CHECK (ftruncate (file_fd, 0) == 0);
  d->flags = take (&in, 1);
  real_backing = d->flags & DISK_INPUT_REAL_BACKING;
  d->ops.left = take_bytes (&in, &d->ops.p, take (&in, 1));
  if (take (&in, 1)) {
    make_parts (d, &in);
    return;
  }
  put (in.p, in.left, 0);
  d->length_bytes = in.left;
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing-addcow.h"
#include "bitmap.h"
#include "checker.h"
#include "common.h"
#include "disk.h"
#include "format.h"
#include "hints-write.h"
#include "image-file.h"
#include "lock.h"
#include "metadata.h"
#include "names.h"

struct checker {
  struct check *check;
  const char *file_name;
  const struct check_options *options;
  struct failure *failure;

  int fd; /* of the metadata file */
  uint64_t length_bytes;
  struct image_file metadata;
  uint8_t buf[FORMAT_HEADER_BYTES];
  bool has_header; /* in: */
  struct header header;
  struct hints hints;
  bool complete; /* every sector is allocated */

  char *folder;
  struct location image;   /* none: no name, or not to be compared */
  struct location backing; /* none: no name */
  int image_fd;            /* or -1 */
};

static void
cleanup_checker (struct checker *c)
{
  if (c->fd >= 0)
    close (c->fd);
  if (c->image_fd >= 0)
    close (c->image_fd);
  free (c->folder);
  location_clear (&c->image);
  location_clear (&c->backing);
}

static uint64_t
nr_sectors (const struct checker *c)
{
  return c->header.size_bytes / FORMAT_SECTOR_BYTES;
}

/* How many bits the bitmap has after the one of the last sector. */
static uint64_t
nr_stray (const struct checker *c)
{
  return format_bitmap_bytes (c->header.size_bytes) * 8 - nr_sectors (c);
}

/*--- Problems. --------------------------------------------------------*/

bool
check_is_corruption (enum check_what what)
{
  switch (what) {
  case CHECK_STRAY_BITS:
  case CHECK_STRAY_BYTES:
  case CHECK_HINT_NO_KEY:
  case CHECK_HINT_VALUE:
  case CHECK_HINT_TWICE:
  case CHECK_HINT_NO_END:
  case CHECK_HINT_TRAILING:
  case CHECK_BACKING_CHANGED:
    return false;
  default:
    return true;
  }
}

static struct check_problem *
add_problem (struct checker *c, enum check_what what)
{
  struct check_problem *p = &c->check->problems[c->check->nr_problems++];

  *p = (struct check_problem){ .what = what };
  return p;
}

void
check_clear (struct check *check)
{
  unsigned i;

  for (i = 0; i < check->nr_problems; i++)
    failure_clear (&check->problems[i].failure);
  check->nr_problems = 0;
}

/* Why the metadata file cannot be looked at, or changed. */
static int
fail (struct checker *c, int err)
{
  return err ? failure_set (c->failure, c->file_name, err) : 0;
}

/* Is *F about how the files are?  Otherwise it is about who asks, about a
 * server or about the moment.  Where there is a detail ENOENT is about a
 * program.
 */
static bool
is_about_files (const struct failure *f)
{
  switch (f->err) {
  case ENOENT:
    return f->detail == NULL;
  case EISDIR:
  case ELOOP:
  case ENAMETOOLONG:
  case ENOTDIR:
    return true;
  case ADDCOW_E_IN_USE:
    return false;
  default:
    return f->err >= ADDCOW_E_MAGIC;
  }
}

/* *F, which was found out about the image or the backing file, is a problem,
 * or why there is nothing to be said; it is emptied.
 */
static int
judge (struct checker *c, enum check_what what, bool is_problem,
       struct failure *f)
{
  struct failure *to = c->failure;

  if (is_problem)
    to = &add_problem (c, what)->failure;
  *to = *f;
  *f = (struct failure){ .err = 0 };
  return is_problem ? 0 : to->err;
}

/*--- The metadata file. -----------------------------------------------*/

static bool
has_name (const struct checker *c)
{
  struct stat named, opened;

  return stat (c->file_name, &named) == 0 && fstat (c->fd, &opened) == 0 &&
         same_file (&named, &opened);
}

static int
open_file (struct checker *c)
{
  int r = metadata_open (c->file_name, c->options->repair, &c->fd);

  if (r == 0)
    r = lock_metadata (c->fd, c->options->repair);
  /* It was replaced before it was locked: somebody is at work. */
  if (r == 0 && !has_name (c))
    r = ADDCOW_E_IN_USE;
  /* What was mended before may be in memory alone. */
  if (r == 0 && c->options->repair)
    r = metadata_forget_cached (c->fd);
  if (r == 0)
    r = fd_size (c->fd, &c->length_bytes);
  image_file_init (&c->metadata, c->fd);
  return fail (c, r);
}

static void
add_header_error (struct checker *c, int err)
{
  switch (err) {
  case ADDCOW_E_BACKING_NAME:
    add_problem (c, CHECK_BACKING_NAME);
    break;
  case ADDCOW_E_IMAGE_NAME:
    add_problem (c, CHECK_IMAGE_NAME);
    break;
  case ADDCOW_E_SIZE_SECTORS:
    add_problem (c, CHECK_SIZE_SECTORS);
    break;
  default:
    add_problem (c, CHECK_SIZE_LARGE);
  }
}

/* Of a file that is shorter than a header the rest is taken for zeroes. */
static int
check_header (struct checker *c)
{
  int errors[FORMAT_MAX_ERRORS];
  unsigned i, n;
  int r;

  r = fd_read (c->fd, c->buf, MIN (c->length_bytes, sizeof c->buf), 0);
  if (r)
    return fail (c, r);
  n = format_errors (c->buf, errors);
  if (n > 0 &&
      (errors[0] == ADDCOW_E_MAGIC || (errors[0] == ADDCOW_E_VERSION &&
                                       c->length_bytes >= FORMAT_VERSION_END)))
    return fail (c, errors[0]);
  if (c->length_bytes < FORMAT_HEADER_BYTES) {
    add_problem (c, CHECK_HEADER_TRUNCATED)->nr_bytes = c->length_bytes;
    return 0;
  }
  for (i = 0; i < n; i++)
    add_header_error (c, errors[i]);
  c->has_header = n == 0;
  if (c->has_header)
    format_decode (c->buf, &c->header);
  return 0;
}

static int
check_stray_bits (struct checker *c)
{
  uint64_t nr_set;
  int r;

  r = bitmap_count (&c->metadata.image, nr_sectors (c), nr_stray (c), &nr_set);
  if (r == 0 && nr_set > 0)
    add_problem (c, CHECK_STRAY_BITS);
  return r;
}

/* Looks for a byte in the extents of a file that is not zero. */
struct search {
  int fd;
  uint64_t offset; /* of the next extent */
};

static bool
is_zero (const uint8_t *p, size_t n)
{
  return n == 0 || (p[0] == 0 && memcmp (p, p + 1, n - 1) == 0);
}

/* Stops when there is one. */
static int
search_extent (void *opaque, uint64_t count, unsigned type)
{
  struct search *s = opaque;
  const uint64_t end = s->offset + count;
  uint8_t buf[65536];

  while (!(type & EXTENT_ZERO) && s->offset < end) {
    const size_t n = MIN (end - s->offset, sizeof buf);
    int r = fd_read (s->fd, buf, n, s->offset);

    if (r)
      return r;
    if (!is_zero (buf, n))
      return EXTENT_STOP;
    s->offset += n;
  }
  s->offset = end;
  return 0;
}

static int
check_stray_bytes (struct checker *c)
{
  struct search s = {
    .fd = c->fd,
    .offset = format_file_bytes (c->header.size_bytes),
  };
  int r = fd_extents (c->fd, c->length_bytes - s.offset, s.offset,
                      search_extent, &s);

  if (r == EXTENT_STOP)
    add_problem (c, CHECK_STRAY_BYTES);
  return r == EXTENT_STOP ? 0 : r;
}

static void
add_truncated (struct checker *c, uint64_t missing_bytes)
{
  struct check_problem *p = add_problem (c, CHECK_BITMAP_TRUNCATED);

  p->nr_bytes = missing_bytes;
  p->disk_offset = (c->length_bytes - FORMAT_HEADER_BYTES) * 8 *
                   FORMAT_SECTOR_BYTES;
}

static int
check_bitmap (struct checker *c)
{
  const uint64_t file_bytes = format_file_bytes (c->header.size_bytes);
  uint64_t nr_set;
  int r;

  if (c->length_bytes < file_bytes) {
    add_truncated (c, file_bytes - c->length_bytes);
    return 0;
  }
  r = check_stray_bits (c);
  if (r == 0)
    r = check_stray_bytes (c);
  if (r == 0)
    r = bitmap_count (&c->metadata.image, 0, nr_sectors (c), &nr_set);
  c->complete = r == 0 && nr_set == nr_sectors (c);
  return fail (c, r);
}

static void
check_hints (struct checker *c)
{
  static const struct {
    unsigned wrong;
    enum check_what what;
  } table[] = {
    { FORMAT_HINT_NO_KEY, CHECK_HINT_NO_KEY },
    { FORMAT_HINT_VALUE, CHECK_HINT_VALUE },
    { FORMAT_HINT_TWICE, CHECK_HINT_TWICE },
    { FORMAT_HINT_NO_END, CHECK_HINT_NO_END },
    { FORMAT_HINT_TRAILING, CHECK_HINT_TRAILING },
  };
  const unsigned wrong = format_check_hints (&c->header);
  size_t i;

  for (i = 0; i < ARRAY_SIZE (table); i++)
    if (wrong & table[i].wrong)
      add_problem (c, table[i].what);
  format_get_hints (&c->header, &c->hints);
}

/*--- The image. -------------------------------------------------------*/

/* What keeps the image from being used into *F; it becomes c->image if it is
 * another file than the metadata file, and c->image_fd if it can be read.
 */
static int
open_image (struct checker *c, struct failure *f)
{
  const char *name = c->header.image_file;
  const struct location none = LOCATION_NONE;
  uint64_t size_bytes;
  int r;

  r = name_is_uri (name) ? ADDCOW_E_URI
                         : location_find (&c->image, c->folder, name, NULL);
  if (r)
    return failure_set (f, name, r);
  r = disk_check_distinct (c->file_name, c->fd, &c->image, &none, f);
  if (r) {
    location_clear (&c->image);
    return r;
  }
  r = fd_open_disk (c->image.path, &c->image_fd, &size_bytes);
  if (r == 0)
    r = lock_qemu (c->image_fd, false);
  if (r == 0 && size_bytes < c->header.size_bytes)
    r = ADDCOW_E_IMAGE_SHORT;
  return r ? failure_set (f, c->image.name, r) : 0;
}

/* One without a name is the server's business. */
static int
check_image (struct checker *c)
{
  CLEANUP_FAILURE struct failure f = { 0 };
  enum check_what what = CHECK_IMAGE_UNUSABLE;
  int r;

  if (c->header.image_file[0] == '\0')
    return 0;
  r = open_image (c, &f);
  if (r == 0)
    return 0;
  if (r == ENOENT)
    what = CHECK_IMAGE_MISSING;
  else if (r == ADDCOW_E_IMAGE_SHORT)
    what = CHECK_IMAGE_SHORT;
  return judge (c, what, is_about_files (&f), &f);
}

/*--- The backing file. ------------------------------------------------*/

static bool
is_format (const struct checker *c, const char *format)
{
  return strcmp (c->hints.format, format) == 0;
}

/* Is the backing file a local one that QEMU reads? */
static bool
is_qemus (const struct checker *c)
{
  return c->backing.path && c->hints.format[0] && !is_format (c, "raw") &&
         !is_format (c, "add-cow");
}

/* Why a local file cannot be opened is known better here than to QEMU, which
 * has no error numbers.
 */
static int
probe_qemus (struct checker *c, struct failure *f)
{
  CLEANUP_CLOSE int fd = -1;
  uint64_t size_bytes;
  int r;

  if (!is_qemus (c))
    return 0;
  r = fd_open_disk (c->backing.path, &fd, &size_bytes);
  if (r == 0)
    r = lock_qemu (fd, false);
  if (r == 0 || r == ADDCOW_E_NOT_DISK)
    return 0;
  return failure_set (f, c->backing.name, r);
}

/* What keeps the backing file from being used into *F. */
static int
open_backing (struct checker *c, struct backing **backing, struct failure *f)
{
  struct backing_options options = c->options->backing;
  struct chain link;
  int r;

  r = chain_link (&link, NULL, c->fd, c->image_fd);
  if (r)
    return failure_set (f, c->file_name, r);
  options.chain = &link;
  options.format = c->hints.format[0] ? c->hints.format : NULL;
  r = probe_qemus (c, f);
  return r ? r : backing_open (backing, &c->backing, &options, f);
}

/* A child that does not serve what is there, and can be opened, cannot read
 * it.
 */
static bool
is_about_backing (const struct checker *c, const struct failure *f)
{
  if (is_qemus (c) && f->detail && f->err != ENOENT && f->err != ETIMEDOUT)
    return true;
  return is_about_files (f);
}

static int
judge_backing (struct checker *c, struct failure *f)
{
  enum check_what what = CHECK_BACKING_UNUSABLE;

  if (f->err == ENOENT)
    what = CHECK_BACKING_MISSING;
  else if (f->err == ADDCOW_E_FOREIGN_FORMAT)
    what = CHECK_BACKING_FORMAT;
  else if (f->err == ADDCOW_E_BACKING_IS_METADATA ||
           f->err == ADDCOW_E_CHAIN_LOOP)
    what = CHECK_BACKING_LOOP;
  return judge (c, what, is_about_backing (c, f), f);
}

static int
check_unchanged (struct checker *c, const struct backing *backing)
{
  char change[HINTS_TEXT_BYTES];
  struct check_problem *p;
  struct hints now;
  int r;

  if (!c->hints.has_size && !c->hints.has_mtime)
    return 0;
  r = hints_take (&now, &c->backing, backing->size_bytes);
  if (r)
    return failure_set (c->failure, c->backing.name, r);
  if (hints_change_text (&c->hints, &now, change)[0] == '\0')
    return 0;
  p = add_problem (c, CHECK_BACKING_CHANGED);
  failure_set (&p->failure, c->backing.name, 0);
  strcpy (p->change, change);
  return 0;
}

static int
check_backing (struct checker *c)
{
  CLEANUP_FAILURE struct failure f = { 0 };
  struct backing *backing;
  int r;

  if (c->header.backing_file[0] == '\0')
    return 0;
  r = location_find (&c->backing, c->folder, c->header.backing_file, NULL);
  if (r)
    return failure_set (c->failure, c->header.backing_file, r);
  r = disk_check_distinct (c->file_name, c->fd, &c->image, &c->backing, &f);
  if (r == 0 && c->complete)
    return 0;
  if (r == 0)
    r = open_backing (c, &backing, &f);
  if (r)
    return judge_backing (c, &f);
  r = check_unchanged (c, backing);
  backing_close (backing);
  return r;
}

/*--- Mending. ---------------------------------------------------------*/

static void
set_fixed (struct checker *c, enum check_what first, enum check_what last)
{
  unsigned i;

  for (i = 0; i < c->check->nr_problems; i++) {
    struct check_problem *p = &c->check->problems[i];

    p->fixed = p->fixed || (p->what >= first && p->what <= last);
  }
}

static bool
is_found (const struct checker *c, enum check_what first, enum check_what last)
{
  unsigned i;

  for (i = 0; i < c->check->nr_problems; i++)
    if (c->check->problems[i].what >= first &&
        c->check->problems[i].what <= last)
      return true;
  return false;
}

static int
sync_file (struct checker *c)
{
  return fd_sync (c->fd);
}

/* Whether it is cut or grows, there are zeroes and holes behind what it had.
 */
static int
set_length (struct checker *c)
{
  const uint64_t length_bytes = format_file_bytes (c->header.size_bytes);

  return fd_set_length (c->fd, length_bytes);
}

static int
mend_bitmap (struct checker *c)
{
  int r = 0;

  if (!is_found (c, CHECK_BITMAP_TRUNCATED, CHECK_STRAY_BYTES))
    return 0;
  if (is_found (c, CHECK_STRAY_BITS, CHECK_STRAY_BITS))
    r = bitmap_clear (&c->metadata.image, nr_sectors (c), nr_stray (c));
  if (r == 0)
    r = set_length (c);
  if (r == 0)
    r = sync_file (c);
  if (r == 0)
    set_fixed (c, CHECK_BITMAP_TRUNCATED, CHECK_STRAY_BYTES);
  return fail (c, r);
}

static int
mend_hints (struct checker *c)
{
  struct header mended = c->header;
  bool written;
  int r;

  if (!is_found (c, CHECK_HINT_NO_KEY, CHECK_HINT_TRAILING))
    return 0;
  format_mend_hints (&mended);
  r = hints_write (c->fd, &c->header, &mended, &written);
  if (r == 0 && written)
    set_fixed (c, CHECK_HINT_NO_KEY, CHECK_HINT_TRAILING);
  return fail (c, r);
}

static int
check_all (struct checker *c)
{
  int r = open_file (c);

  if (r == 0)
    r = check_header (c);
  if (r || !c->has_header)
    return r;
  r = check_bitmap (c);
  if (r)
    return r;
  check_hints (c);
  r = fail (c, name_folder (c->file_name, &c->folder));
  if (r == 0)
    r = check_image (c);
  if (r == 0)
    r = check_backing (c);
  if (r || !c->options->repair)
    return r;
  r = mend_bitmap (c);
  return r ? r : mend_hints (c);
}

int
check_overlay (struct check *check, const char *file_name,
               const struct check_options *options, struct failure *failure)
{
  __attribute__ ((cleanup (cleanup_checker))) struct checker c = {
    .check = check,
    .file_name = file_name,
    .options = options,
    .failure = failure,
    .fd = -1,
    .image = LOCATION_NONE,
    .backing = LOCATION_NONE,
    .image_fd = -1,
  };
  return check_all (&c);
}

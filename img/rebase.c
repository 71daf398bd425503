/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img rebase: give an overlay another backing file.
 *
 * First, unless only the name is to change, what the disk would lose is
 * brought to the image (lib/rebase.h).  Then a new metadata file takes the
 * place of the old one.  The name of the backing file and its hints are longer
 * than what a disk writes at once, so to write over them is no way: when the
 * power goes there may be a mixture of the two.
 *
 * What is on disk at each moment
 * ------------------------------
 * - FILE names the old backing file.  Bits appear in it as their data is
 *   durable.  Whoever opens it now reads what he would have read before.
 * - All that has to be kept is: bits and data are durable, FILE names the old
 *   backing file still, and both give the same disk.
 * - Beside it there is a file .addcow-XXXXXX, a part of the new one.
 * - It is whole and synced, has the bits of FILE, and gets the name FILE.  From
 *   then on FILE is either of the two until the folder is synced.
 *
 * Both files are locked until the end, the new one before it has its name: who
 * opened the old one before it was replaced does not get it.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing-addcow.h"
#include "backing-arg.h"
#include "bitmap.h"
#include "common.h"
#include "disk.h"
#include "hints.h"
#include "image-file.h"
#include "img.h"
#include "lock.h"
#include "metadata.h"
#include "new-file.h"
#include "open-disk.h"
#include "rebase.h"
#include "work.h"

struct verb {
  const char *file_name;
  struct backing_arg to;
  bool header_only;

  struct work work;
  struct disk *disk;       /* NULL if only the header changes */
  int lock_fd;             /* then this has the lock, or -1 */
  int metadata_fd;         /* of the one or the other */
  struct header header;    /* as it will be */
  char *path;              /* of FILE, links followed */
  char *folder;            /* that names are relative to */
  struct backing *backing; /* the new one, or NULL */

  int image_fd;
  struct image_file image;
  struct rebase rebase;
  struct fault fault;
  bool failed;
};

static void
cleanup_verb (struct verb *v)
{
  backing_close (v->backing);
  disk_close (v->disk);
  if (v->image_fd >= 0)
    close (v->image_fd);
  if (v->lock_fd >= 0)
    close (v->lock_fd);
  backing_arg_clear (&v->to);
  work_clear (&v->work);
  free (v->path);
  free (v->folder);
}

/*--- Looking. ---------------------------------------------------------*/

/* What is not read need not be there: only FILE itself is opened. */
static int
open_metadata (struct verb *v)
{
  int r;

  r = lock_replaced (v->file_name, &v->lock_fd);
  if (r == 0)
    r = metadata_read_header (v->lock_fd, &v->header);
  v->metadata_fd = v->lock_fd;
  return r ? img_file_error (v->file_name, r) : EXIT_SUCCESS;
}

static int
open_disk (struct verb *v)
{
  if (open_disk_writable (v->file_name, true, &v->disk, &v->image_fd) !=
      EXIT_SUCCESS)
    return EXIT_FAILURE;
  v->header = v->disk->header;
  v->metadata_fd = v->disk->metadata_fd;
  return EXIT_SUCCESS;
}

/* What will be replaced must be the file that is locked, and have no other
 * name: that would stay with the old backing file and the same image.
 */
static int
find_path (struct verb *v)
{
  struct stat locked, there;

  v->path = realpath (v->file_name, NULL);
  if (v->path == NULL || stat (v->path, &there) == -1 ||
      fstat (v->metadata_fd, &locked) == -1)
    return img_file_error (v->file_name, errno);
  if (!same_file (&there, &locked))
    return img_file_error (v->file_name, ADDCOW_E_IN_USE);
  if (locked.st_nlink == 1)
    return EXIT_SUCCESS;
  img_error ("%s: has more than one name (hard links), which would become "
             "different overlays with one image",
             v->file_name);
  return EXIT_FAILURE;
}

static int
resolve_names (struct verb *v)
{
  CLEANUP_FREE char *image_path = NULL;
  const char *image = v->header.image_file;
  int r;

  r = name_folder (v->file_name, &v->folder);
  if (r == 0 && image[0] && !name_is_uri (image))
    r = name_resolve (v->folder, image, &image_path);
  if (r)
    return img_file_error (v->file_name, r);
  if (backing_arg_resolve (&v->to, v->folder, &v->header) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return check_distinct_paths (v->path, image_path, v->to.location.path);
}

/* As backing_arg_set_hints, of what need not be there. */
static int
set_hints_unopened (struct verb *v)
{
  const struct location *location = &v->to.location;
  struct hints hints;
  int r;

  if (v->to.format == NULL)
    return EXIT_SUCCESS;
  if (location->path == NULL || hints_take (&hints, location, 0) != 0)
    hints = (struct hints){ .has_size = false };
  strcpy (hints.format, v->to.format);
  r = format_set_hints (&v->header, &hints);
  return r ? img_file_error (location->name, r) : EXIT_SUCCESS;
}

/* The hints are taken before anything is compared: what changes after that is
 * noticed.
 */
static int
open_new_backing (struct verb *v)
{
  struct chain link;
  const struct backing_options options = {
    .timeout_seconds = BACKING_TIMEOUT_SECONDS,
    .chain = &link,
    .no_loops = true,
    .log = log_backing,
  };
  int r;

  if (!backing_arg_is_there (&v->to))
    return EXIT_SUCCESS;
  r = chain_link (&link, NULL, v->metadata_fd, v->image_fd);
  if (r)
    return img_file_error (v->file_name, r);
  if (backing_arg_open (&v->to, &options, &v->backing) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return backing_arg_set_hints (&v->to, v->backing->size_bytes, &v->header);
}

static int
open_old_backing (struct verb *v)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  const struct disk_options options = {
    .backing = {
      .timeout_seconds = BACKING_TIMEOUT_SECONDS,
      .log = log_backing,
    },
  };

  if (disk_open_backing (v->disk, &options, &failure) == 0)
    return EXIT_SUCCESS;
  if (failure.err == ADDCOW_E_FOREIGN_FORMAT && failure.detail == NULL)
    return open_disk_failure (v->file_name, &failure);
  img_error ("%s: %s (with -u it is not needed)",
             failure.file_name ? failure.file_name : "?",
             failure_text (&failure));
  return EXIT_FAILURE;
}

static const char *
format_or_raw (const char *format)
{
  return format && format[0] ? format : "raw";
}

/* Are both backing files one, read in the same way? */
static bool
is_same_backing (const struct verb *v)
{
  const char *from = v->disk->backing_location.path;
  const char *to = v->to.location.path;
  struct stat st_from, st_to;
  struct hints hints;

  format_get_hints (&v->disk->header, &hints);
  return from && to && stat (from, &st_from) == 0 && stat (to, &st_to) == 0 &&
         same_file (&st_from, &st_to) &&
         strcmp (format_or_raw (hints.format), format_or_raw (v->to.format)) ==
             0;
}

/*--- Keeping. ---------------------------------------------------------*/

static uint64_t
done_bytes (void *opaque)
{
  const struct verb *v = opaque;

  return v->rebase.nr_bytes;
}

static void
keep (void *opaque)
{
  struct verb *v = opaque;

  v->failed = rebase_keep (&v->rebase, &v->fault) == -1;
}

static void
interrupt (void *opaque)
{
  struct verb *v = opaque;

  rebase_interrupt (&v->rebase);
}

static int
fault_error (const struct verb *v, const struct fault *fault)
{
  if (fault->part == FAULT_BACKING && v->rebase.failed == v->backing)
    return img_file_error (v->to.location.name, fault->err);
  return disk_fault_error (v->disk, fault);
}

/* Commit what was kept, also where not all could be. */
static int
end_keeping (struct verb *v)
{
  struct fault fault;
  const int r = overlay_detach (v->disk->overlay, &v->image.image, &fault);

  work_end (&v->work);
  if (v->rebase.interrupted && r == 0)
    return work_interrupted_error (&v->work);
  if (v->failed && !v->rebase.interrupted)
    return fault_error (v, &v->fault);
  return r == -1 ? fault_error (v, &fault) : EXIT_SUCCESS;
}

static int
keep_differences (struct verb *v)
{
  const uint64_t size_bytes = v->disk->header.size_bytes;
  uint64_t nr_set;
  int r;

  r = bitmap_count (&v->disk->metadata.image, 0,
                    size_bytes / FORMAT_SECTOR_BYTES, &nr_set);
  if (r)
    return img_file_error (v->file_name, r);
  image_file_init (&v->image, v->image_fd);
  overlay_attach (v->disk->overlay, &v->image.image);
  v->rebase = (struct rebase){
    .ov = v->disk->overlay,
    .metadata = &v->disk->metadata.image,
    .image = &v->image.image,
    .from = v->disk->backing,
    .to = v->backing,
  };
  progress_begin (&v->work.shown, size_bytes - nr_set * FORMAT_SECTOR_BYTES, 0);
  r = work_run (&v->work, keep, interrupt);
  if (end_keeping (v) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return r;
}

/*--- The new metadata file. -------------------------------------------*/

/* Give NEW_FD the owner and the mode that FD has. */
static int
copy_owner (const struct verb *v, int fd, int new_fd)
{
  struct stat st, new_st;

  if (fstat (fd, &st) == -1 || fstat (new_fd, &new_st) == -1)
    return img_file_error (v->file_name, errno);
  if ((st.st_uid != new_st.st_uid || st.st_gid != new_st.st_gid) &&
      fchown (new_fd, st.st_uid, st.st_gid) == -1) {
    img_error ("%s: cannot give its owner and group to a new file: %s",
               v->file_name, addcow_strerror (errno));
    return EXIT_FAILURE;
  }
  if (fchmod (new_fd, st.st_mode & 07777) == -1)
    return img_file_error (v->file_name, errno);
  return EXIT_SUCCESS;
}

static int
begin_file (const struct verb *v, struct new_file *file)
{
  const int r = new_file_open (file, v->path);

  if (r)
    return img_file_error (v->file_name, r);
  return copy_owner (v, v->metadata_fd, file->fd);
}

/* Can there be such a file?  Asked before work that may take hours. */
static int
try_file (const struct verb *v)
{
  __attribute__ ((
      cleanup (new_file_discard))) struct new_file file = NEW_FILE_NONE;

  return begin_file (v, &file);
}

struct copying {
  int fd;
  struct image_file to;
  uint64_t offset;
};

static int
copy_by_hand (struct copying *c, uint64_t count, uint64_t offset)
{
  char buf[64 * 1024];
  int r = 0;

  while (r == 0 && count > 0) {
    const size_t n = MIN (count, sizeof buf);

    r = fd_read (c->fd, buf, n, offset);
    if (r == 0)
      r = fd_write (c->to.fd, buf, n, offset);
    count -= n;
    offset += n;
  }
  return r;
}

static int
copy_extent (void *opaque, uint64_t count, unsigned type)
{
  struct copying *c = opaque;
  struct image *to = &c->to.image;
  const uint64_t offset = c->offset;

  c->offset += count;
  if (type & EXTENT_ZERO || to->ops->copy (to, c->fd, count, offset) == 0)
    return 0;
  return copy_by_hand (c, count, offset);
}

/* Holes stay holes, where files can have them. */
static int
copy_bits (const struct verb *v, int new_fd)
{
  struct copying c = { .fd = v->metadata_fd, .offset = FORMAT_HEADER_BYTES };

  image_file_init (&c.to, new_fd);
  return fd_extents (c.fd, format_bitmap_bytes (v->header.size_bytes), c.offset,
                     copy_extent, &c);
}

static int
write_file (const struct verb *v, int fd)
{
  uint8_t buf[FORMAT_HEADER_BYTES];
  int r;

  format_encode (&v->header, buf);
  r = fd_write (fd, buf, sizeof buf, 0);
  if (r == 0)
    r = fd_set_length (fd, format_file_bytes (v->header.size_bytes));
  return r ? r : copy_bits (v, fd);
}

static int
replace_file (const struct verb *v)
{
  __attribute__ ((
      cleanup (new_file_discard))) struct new_file file = NEW_FILE_NONE;
  int r;

  if (begin_file (v, &file) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  r = write_file (v, file.fd);
  if (r == 0)
    r = lock_metadata (file.fd, true);
  if (r == 0)
    r = new_file_install (&file, true);
  return r ? img_file_error (v->file_name, r) : EXIT_SUCCESS;
}

/*--- All of it. -------------------------------------------------------*/

static int
rebase_header (struct verb *v)
{
  if (open_metadata (v) != EXIT_SUCCESS || find_path (v) != EXIT_SUCCESS ||
      resolve_names (v) != EXIT_SUCCESS ||
      set_hints_unopened (v) != EXIT_SUCCESS ||
      work_take_signals (&v->work) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return replace_file (v);
}

static int
rebase_disk (struct verb *v)
{
  if (open_disk (v) != EXIT_SUCCESS || find_path (v) != EXIT_SUCCESS ||
      resolve_names (v) != EXIT_SUCCESS || try_file (v) != EXIT_SUCCESS ||
      open_new_backing (v) != EXIT_SUCCESS ||
      open_old_backing (v) != EXIT_SUCCESS ||
      work_take_signals (&v->work) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (!is_same_backing (v) && keep_differences (v) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return replace_file (v);
}

static int
rebase (struct verb *v)
{
  work_keep_signals ();
  return v->header_only ? rebase_header (v) : rebase_disk (v);
}

/* What getopt_long returned as C into *V. */
static int
parse_option (struct verb *v, int c, char *argv[])
{
  switch (c) {
  case 'b':
    return backing_arg_set_name (&v->to, optarg);
  case 'F':
    return backing_arg_set_format (&v->to, optarg);
  case 'p':
    v->work.progress = true;
    return EXIT_SUCCESS;
  case 'u':
    v->header_only = true;
    return EXIT_SUCCESS;
  default:
    return img_option_error ("rebase", c, argv);
  }
}

static int
check_arguments (struct verb *v)
{
  if (v->to.name == NULL)
    return img_usage_error ("rebase", "-b is needed: the new backing file, or "
                                      "'' for none");
  return backing_arg_check (&v->to);
}

int
img_rebase (int argc, char *argv[])
{
  static const struct option options[] = {
    { "backing", required_argument, NULL, 'b' },
    { "backing-format", required_argument, NULL, 'F' },
    { "help", no_argument, NULL, 'h' },
    { "progress", no_argument, NULL, 'p' },
    { "quiet", no_argument, NULL, 'q' },
    { "unsafe", no_argument, NULL, 'u' },
    { NULL, 0, NULL, 0 },
  };
  __attribute__ ((cleanup (cleanup_verb))) struct verb v = {
    .to = BACKING_ARG_NONE ("rebase"),
    .work = WORK_NONE,
    .lock_fd = -1,
    .image_fd = -1,
  };
  bool quiet = false;
  int opt;

  opterr = 0;
  while ((opt = getopt_long (argc, argv, ":b:F:hpqu", options, NULL)) != -1) {
    if (opt == 'h')
      return img_help ("rebase");
    if (opt == 'q')
      quiet = true;
    else if (parse_option (&v, opt, argv) != EXIT_SUCCESS)
      return EXIT_FAILURE;
  }
  if (img_only_file ("rebase", argc, argv, &v.file_name) != EXIT_SUCCESS ||
      check_arguments (&v) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  v.work.file_name = v.file_name;
  v.work.progress &= !quiet;
  v.work.done_bytes = done_bytes;
  v.work.opaque = &v;
  return rebase (&v);
}

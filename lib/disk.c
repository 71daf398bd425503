/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing-addcow.h"
#include "backing-kinds.h"
#include "bitmap.h"
#include "common.h"
#include "disk.h"
#include "hints.h"
#include "lock.h"
#include "metadata.h"
#include "names.h"
#include "target.h"

bool
same_file (const struct stat *a, const struct stat *b)
{
  if (S_ISBLK (a->st_mode) && S_ISBLK (b->st_mode))
    return a->st_rdev == b->st_rdev;
  return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

static const char *
metadata_path (const struct disk *disk, const struct disk_options *options)
{
  return options->metadata_path ? options->metadata_path : disk->file_name;
}

/* Open and lock the file that has the name now.  A loop is looked for first:
 * there, it is this process that has the lock.
 */
static int
open_and_lock (struct disk *disk, const struct disk_options *options)
{
  const char *path = metadata_path (disk, options);
  int r;

  disk->writable = !options->read_only;
  r = metadata_open (path, disk->writable, &disk->metadata_fd);
  if (disk->writable && (r == EACCES || r == EPERM || r == EROFS)) {
    disk->writable = false;
    r = metadata_open (path, false, &disk->metadata_fd);
  }
  if (r == 0)
    r = chain_check_file (options->backing.chain, disk->metadata_fd);
  if (r || options->unlocked)
    return r;
  return lock_metadata (disk->metadata_fd, disk->writable);
}

/* Is what is open the file that has the name? */
static bool
has_name (const struct disk *disk, const char *path)
{
  struct stat named, opened;

  return stat (path, &named) == 0 && fstat (disk->metadata_fd, &opened) == 0 &&
         same_file (&named, &opened);
}

/* How often a file may be replaced while it is opened. */
#define MAX_OPENS 10

/* Open and lock the metadata file, and read its header.
 *
 * Another file may be given the name before the one that was opened is
 * locked; that lock would keep nobody from the new one.
 */
static int
open_metadata (struct disk *disk, const struct disk_options *options)
{
  int i, r;

  for (i = 0; i < MAX_OPENS; i++) {
    r = open_and_lock (disk, options);
    if (r)
      return r;
    if (has_name (disk, metadata_path (disk, options)))
      break;
    close (disk->metadata_fd);
    disk->metadata_fd = -1;
  }
  if (i == MAX_OPENS)
    return ADDCOW_E_IN_USE;
  image_file_init (&disk->metadata, disk->metadata_fd);
  fd_is_random (disk->metadata_fd);
  r = metadata_read_header (disk->metadata_fd, &disk->header);
  if (r || !disk->writable)
    return r;
  /* Not before it is known to be a metadata file, which is small; but what was
   * read may not be on disk.
   */
  r = metadata_forget_cached (disk->metadata_fd);
  return r ? r : metadata_read_header (disk->metadata_fd, &disk->header);
}

/* What is told the caller is his to say, and is not confined. */
static int
find_image (struct disk *disk, const char *folder,
            const struct disk_options *options, struct failure *failure)
{
  const char *name = disk->header.image_file;
  int r = 0;

  if (options->image_path)
    r = location_set (&disk->image_location, name = options->image_path);
  else if (name[0] && name_is_uri (name))
    r = ADDCOW_E_URI;
  else if (name[0])
    r = location_find (&disk->image_location, folder, name,
                       options->backing.confine);
  return r ? failure_set (failure, name, r) : 0;
}

static int
find_backing (struct disk *disk, const char *folder,
              const struct disk_options *options, struct failure *failure)
{
  const char *name = options->backing_name;
  CLEANUP_FREE char *here = NULL;
  int r = 0;

  if (name && name[0]) {
    here = realpath (".", NULL);
    r = here ? location_find (&disk->backing_location, here, name, NULL)
             : errno;
  }
  else if (name == NULL && disk->header.backing_file[0]) {
    name = disk->header.backing_file;
    r = location_find (&disk->backing_location, folder, name,
                       options->backing.confine);
  }
  return r ? failure_set (failure, name, r) : 0;
}

static int
resolve_names (struct disk *disk, const struct disk_options *options,
               struct failure *failure)
{
  const char *confine = options->backing.confine;
  CLEANUP_FREE char *folder = NULL;
  int r;

  if (confine && (r = confine_check (confine)))
    return failure_set (failure, confine, r);
  r = name_folder (metadata_path (disk, options), &folder);
  if (r)
    return failure_set (failure, disk->file_name, r);
  r = find_image (disk, folder, options, failure);
  return r ? r : find_backing (disk, folder, options, failure);
}

static bool
stat_location (const struct location *location, struct stat *st)
{
  return location->path && stat (location->path, st) == 0;
}

int
disk_check_distinct (const char *file_name, int metadata_fd,
                     const struct location *image_location,
                     const struct location *backing_location,
                     struct failure *failure)
{
  struct stat metadata, image, backing;
  bool have_image, have_backing;

  if (fstat (metadata_fd, &metadata) == -1)
    return failure_set (failure, file_name, errno);
  have_image = stat_location (image_location, &image);
  have_backing = stat_location (backing_location, &backing);

  if (have_image && same_file (&image, &metadata))
    return failure_set (failure, image_location->name,
                        ADDCOW_E_IMAGE_IS_METADATA);
  if (have_backing && same_file (&backing, &metadata))
    return failure_set (failure, backing_location->name,
                        ADDCOW_E_BACKING_IS_METADATA);
  if (have_image && have_backing && same_file (&image, &backing))
    return failure_set (failure, backing_location->name,
                        ADDCOW_E_BACKING_IS_IMAGE);
  return 0;
}

static int
open_image (struct disk *disk, const struct disk_options *options)
{
  const bool check = options->check_image;
  uint64_t size_bytes;
  int r;

  r = fd_open_disk (disk->image_location.path, &disk->image_fd, &size_bytes);
  if (r)
    return check ? r : 0;
  if (check && size_bytes < disk->header.size_bytes)
    return ADDCOW_E_IMAGE_SHORT;
  return options->unlocked ? 0 : lock_qemu (disk->image_fd, disk->writable);
}

/* Tell the log of OPTIONS if the backing file is *NOW not as *HINTS say. */
static int
tell_change (const struct disk *disk, const struct hints *hints,
             const struct hints *now, const struct backing_options *options)
{
  char change[HINTS_TEXT_BYTES];
  CLEANUP_FREE char *text = NULL;

  if (hints_change_text (hints, now, change)[0] == '\0')
    return 0;
  if (asprintf (
          &text,
          "warning: has changed since it became the backing file of %s "
          "(%s): sectors that are not allocated may not be what they were",
          disk->file_name, change) == -1) {
    text = NULL;
    return ENOMEM;
  }
  options->log (options->log_opaque, disk->backing_location.name, text);
  return 0;
}

/* Is there anything to tell a change from? */
static bool
may_change (const struct hints *hints, const struct backing_options *options)
{
  return options->log && (hints->has_size || hints->has_mtime);
}

/* How the backing file of DISK is opened into *BACKING, and what was said of
 * it into *HINTS.  The header's hints are about its own backing file and no
 * other.  LINK is the caller's, as long as *BACKING is used.
 */
static int
prepare_backing (struct disk *disk, const struct disk_options *options,
                 struct backing_options *backing, struct hints *hints,
                 struct chain *link, struct failure *failure)
{
  int r;

  *backing = options->backing;
  *hints = (struct hints){ .has_size = false };
  if (options->backing_name == NULL)
    format_get_hints (&disk->header, hints);
  if (backing->format == NULL && hints->format[0])
    backing->format = hints->format;
  r = chain_link (link, backing->chain, disk->metadata_fd, disk->image_fd);
  if (r)
    return failure_set (failure, disk->file_name, r);
  backing->chain = link;
  backing->unlocked = options->unlocked;
  backing->map_cache = options->map_cache;
  return 0;
}

static int
open_backing (struct disk *disk, const struct disk_options *options,
              struct failure *failure)
{
  struct backing_options backing;
  struct hints hints, now;
  struct chain link;
  int r;

  r = prepare_backing (disk, options, &backing, &hints, &link, failure);
  if (r == 0)
    r = backing_open (&disk->backing, &disk->backing_location, &backing,
                      failure);
  if (r || !may_change (&hints, &backing))
    return r;
  r = hints_take (&now, &disk->backing_location, disk->backing->size_bytes);
  if (r == 0)
    r = tell_change (disk, &hints, &now, &backing);
  return r ? failure_set (failure, disk->backing_location.name, r) : 0;
}

int
disk_open_target (struct disk *disk, const struct disk_options *options,
                  struct target **target, struct failure *failure)
{
  const struct location *location = &disk->backing_location;
  struct backing_options backing;
  struct hints hints, now;
  struct chain link;
  bool tell, early;
  int r;

  r = prepare_backing (disk, options, &backing, &hints, &link, failure);
  if (r)
    return r;
  tell = may_change (&hints, &backing);
  /* A qemu-nbd may change the file by opening it.  Any other is looked at when
   * it is locked.
   */
  early = location->path &&
          backing_kind (location, backing.format) == BACKING_QEMU;
  if (tell && early)
    r = hints_take (&now, location, 0);
  if (r)
    return failure_set (failure, location->name, r);
  r = target_open (target, location, &backing, failure);
  if (r || !tell)
    return r;
  if (!early)
    r = hints_take (&now, location, (*target)->size_bytes);
  if (r == 0)
    r = tell_change (disk, &hints, &now, &backing);
  if (r == 0)
    return 0;
  target_close (*target);
  *target = NULL;
  return failure_set (failure, location->name, r);
}

/* Is every sector allocated?  Reads all of the bitmap. */
static bool
is_complete (struct disk *disk)
{
  const uint64_t nr_sectors = disk->header.size_bytes / FORMAT_SECTOR_BYTES;
  uint64_t nr_set;

  return bitmap_count (&disk->metadata.image, 0, nr_sectors, &nr_set) == 0 &&
         nr_set == nr_sectors;
}

/* A disk that stands alone needs no backing file: it may be gone. */
int
disk_open_backing (struct disk *disk, const struct disk_options *options,
                   struct failure *failure)
{
  int r;

  if (disk->backing_location.name == NULL)
    return 0;
  r = open_backing (disk, options, failure);
  if (r == 0 || (r == ADDCOW_E_CHAIN_LOOP && options->backing.no_loops) ||
      !is_complete (disk))
    return r;
  failure_clear (failure);
  backing_close (disk->backing);
  disk->backing = NULL;
  return 0;
}

static int
open_all (struct disk *disk, const struct disk_options *options,
          struct failure *failure)
{
  int r;

  r = chain_check_length (options->backing.chain);
  if (r == 0)
    r = open_metadata (disk, options);
  if (r)
    return failure_set (failure, disk->file_name, r);
  r = resolve_names (disk, options, failure);
  if (r)
    return r;
  r = disk_check_distinct (disk->file_name, disk->metadata_fd,
                           &disk->image_location, &disk->backing_location,
                           failure);
  if (r)
    return r;
  if (disk->image_location.path) {
    r = open_image (disk, options);
    if (r)
      return failure_set (failure, disk->image_location.name, r);
  }
  if (!options->without_backing) {
    r = disk_open_backing (disk, options, failure);
    if (r)
      return r;
  }
  r = overlay_open (&disk->overlay, &disk->metadata.image,
                    disk->header.size_bytes, disk->backing, options->map_cache,
                    options->hooks);
  return r ? failure_set (failure, disk->file_name, r) : 0;
}

int
disk_open (struct disk **ret, const char *file_name,
           const struct disk_options *options, struct failure *failure)
{
  struct disk *disk;
  int r;

  disk = calloc (1, sizeof *disk);
  if (disk == NULL)
    return failure_set (failure, file_name, ENOMEM);
  disk->metadata_fd = disk->image_fd = -1;
  disk->image_location.fd = disk->backing_location.fd = -1;
  disk->file_name = strdup (file_name);
  if (disk->file_name == NULL)
    r = failure_set (failure, file_name, ENOMEM);
  else
    r = open_all (disk, options, failure);
  if (r) {
    disk_close (disk);
    return r;
  }
  *ret = disk;
  return 0;
}

int
disk_open_image (const struct disk *disk, int *fd)
{
  if (disk->image_fd == -1)
    return ADDCOW_E_NO_IMAGE;
  return fd_reopen_writable (disk->image_fd, fd); /* the one that is locked */
}

void
disk_close_backing (struct disk *disk)
{
  backing_close (disk->backing);
  disk->backing = NULL;
}

void
disk_close (struct disk *disk)
{
  if (disk == NULL)
    return;
  overlay_close (disk->overlay);
  backing_close (disk->backing);
  if (disk->image_fd >= 0)
    close (disk->image_fd);
  if (disk->metadata_fd >= 0)
    close (disk->metadata_fd);
  location_clear (&disk->image_location);
  location_clear (&disk->backing_location);
  free (disk->file_name);
  free (disk);
}

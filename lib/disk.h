/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The files of an overlay, opened and locked: from the name of a metadata
 * file to a struct overlay that is ready to be used.
 *
 * The image is opened by whoever does the I/O to it; here it is only
 * looked at and locked.
 */

#ifndef ADDCOW_DISK_H
#define ADDCOW_DISK_H

#include <stdbool.h>

#include "backing.h"
#include "error.h"
#include "format.h"
#include "image-file.h"
#include "names.h"
#include "overlay.h"

struct disk_options {
  bool read_only; /* nothing will be written */

  /* Where the image is, instead of where the header says; or NULL. */
  const char *image_path;

  /* By which the metadata file is opened, if that is not its name: see
   * struct location; or NULL.
   */
  const char *metadata_path;

  /* The image is a local raw file or block device: an error if it is
   * missing, unreadable or too short.  Otherwise what stands at its path
   * is only locked, if there is something.
   */
  bool check_image;

  /* The backing file, instead of the one that the header names: a name,
   * relative to the working folder, or "" for none; or NULL.  What the
   * header says about its own is not about this.
   */
  const char *backing_name;

  /* Find out where the backing file is, but do not open it: the disk reads as
   * if there were none.
   */
  bool without_backing;

  /* Look at a disk that somebody else may be using, and take no locks; with
   * read_only.  What is read may be of different moments.
   */
  bool unlocked;

  /* A format here goes before that of the header's hint.  The chain is set
   * by disk_open and by nobody else.  Log is also told when the backing
   * file is not as the header's hints say it was.
   */
  struct backing_options backing;

  /* See overlay_open; or NULL.  The overlays below have the same cache. */
  struct map_cache *map_cache;
  const struct overlay_hooks *hooks;
};

struct disk {
  char *file_name; /* of the metadata file, as given */
  struct header header;
  bool writable; /* the files are locked for writing */

  struct location image_location;   /* no name: somebody else knows */
  struct location backing_location; /* no name: none */

  int metadata_fd;
  struct image_file metadata;
  int image_fd;            /* holds the locks of the image, or -1 */
  struct backing *backing; /* NULL: none, or closed */
  struct overlay *overlay;
};

/* Open the overlay whose metadata file is FILE_NAME.  Where all sectors are
 * allocated the backing file need not be there, nor be readable.  Unless
 * read-only is asked for or all that the metadata file allows, it is locked for
 * writing.  On success *DISK is closed with disk_close; on failure the
 * error number is returned and *FAILURE tells the file.  Creates and
 * writes nothing; for writing, what others wrote to the metadata file is
 * synced.  May block in the file system.
 */
int disk_open (struct disk **disk, const char *file_name,
               const struct disk_options *options, struct failure *failure);

/* Open the backing file of DISK, which was opened with the same OPTIONS but
 * without it, if it has one.  Its overlay goes on without.  Where all sectors
 * are allocated and it cannot be opened, disk->backing stays NULL, but for what
 * options->backing.no_loops says.  Returns 0, or an error number and *FAILURE.
 * May block, as disk_open.
 */
int disk_open_backing (struct disk *disk, const struct disk_options *options,
                       struct failure *failure);

/* Open the image, which was found when DISK was opened, for reading and
 * writing.  *FD is the caller's.  Returns 0 or an errno; ADDCOW_E_NO_IMAGE
 * where there is none that is a local file.  May block.
 */
int disk_open_image (const struct disk *disk, int *fd);

/* Open the backing file, without which DISK was opened with the same OPTIONS,
 * for writing; log is told if it is not as hints say it was.  *TARGET is the
 * caller's, see target.h.  Returns 0, or an error number and *FAILURE.  Blocks
 * as backing_open.
 */
struct target;
int disk_open_target (struct disk *disk, const struct disk_options *options,
                      struct target **target, struct failure *failure);

/* Close the backing file, which overlay_drop_backing has said that nobody
 * uses any more.  To be called once.  May block.
 */
void disk_close_backing (struct disk *disk);

/* Close everything; NULL is ignored. */
void disk_close (struct disk *disk);

/* Are A and B, which are stat'ed, the same file or block device? */
struct stat;
bool same_file (const struct stat *a, const struct stat *b);

/* Three names must be three files: the metadata file FILE_NAME, open as
 * METADATA_FD, the image, and the backing file; what is not there, or is
 * no local file, is like none of them.  Returns 0, ADDCOW_E_IMAGE_IS_METADATA,
 * ADDCOW_E_BACKING_IS_METADATA, ADDCOW_E_BACKING_IS_IMAGE or an errno, and
 * *FAILURE.  May block in the file system.
 */
int disk_check_distinct (const char *file_name, int metadata_fd,
                         const struct location *image_location,
                         const struct location *backing_location,
                         struct failure *failure);

#endif /* ADDCOW_DISK_H */

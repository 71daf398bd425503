/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "common.h"
#include "img.h"
#include "lock.h"
#include "metadata.h"
#include "open-disk.h"

void
log_backing (void *opaque UNUSED, const char *name, const char *text)
{
  img_error ("%s: %s", name, text);
}

/* Other than for create and rebase there is no option to say what the backing
 * file is.  What is allocated is lost when the overlay is made anew.
 */
int
open_disk_failure (const char *file_name, const struct failure *failure)
{
  if (failure->err != ADDCOW_E_FOREIGN_FORMAT || failure->detail ||
      failure->file_name == NULL)
    return img_failure (failure);
  img_error ("%s: begins like a disk image of the format %s, and is read as "
             "raw only when %s says so: say what it is with addcow-img rebase "
             "-u -b BACKING -F %s, or -F raw to insist",
             failure->file_name, failure->format, file_name, failure->format);
  return EXIT_FAILURE;
}

int
disk_fault_error (const struct disk *disk, const struct fault *fault)
{
  switch (fault->part) {
  case FAULT_IMAGE:
    return img_file_error (disk->image_location.name, fault->err);
  case FAULT_BACKING:
    return img_file_error (disk->backing_location.name, fault->err);
  default:
    return img_file_error (disk->file_name, fault->err);
  }
}

static int
no_image_error (const char *file_name)
{
  img_error ("%s: names no image file", file_name);
  return EXIT_FAILURE;
}

static struct disk_options
verb_options (bool without_backing)
{
  return (struct disk_options){
    .check_image = true,
    .without_backing = without_backing,
    .backing = {
      .timeout_seconds = BACKING_TIMEOUT_SECONDS,
      .log = log_backing,
    },
  };
}

int
open_disk_writable (const char *file_name, bool without_backing,
                    struct disk **disk, int *image_fd)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  const struct disk_options options = verb_options (without_backing);
  int r;

  if (disk_open (disk, file_name, &options, &failure))
    return open_disk_failure (file_name, &failure);
  if (!(*disk)->writable)
    return img_file_error (file_name,
                           access (file_name, W_OK) == -1 ? errno : EACCES);
  r = disk_open_image (*disk, image_fd);
  if (r == ADDCOW_E_NO_IMAGE)
    return no_image_error (file_name);
  return r ? img_file_error ((*disk)->image_location.name, r) : EXIT_SUCCESS;
}

/* Has FILE_NAME a writer? */
static bool
has_writer (const char *file_name)
{
  CLEANUP_CLOSE int fd = -1;

  return metadata_open (file_name, false, &fd) == 0 &&
         lock_metadata_has_writer (fd);
}

int
open_disk_readable (const char *file_name, struct disk **disk, bool *in_use)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk_options options = verb_options (false);
  int r;

  *in_use = false;
  options.read_only = true;
  r = disk_open (disk, file_name, &options, &failure);
  if (r == ADDCOW_E_IN_USE && has_writer (file_name)) {
    *in_use = options.unlocked = true;
    failure_clear (&failure);
    r = disk_open (disk, file_name, &options, &failure);
  }
  if (r)
    return open_disk_failure (file_name, &failure);
  return (*disk)->image_fd == -1 ? no_image_error (file_name) : EXIT_SUCCESS;
}

int
open_disk_backing (struct disk *disk)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  const struct disk_options options = verb_options (false);

  if (disk_open_backing (disk, &options, &failure))
    return open_disk_failure (disk->file_name, &failure);
  return EXIT_SUCCESS;
}

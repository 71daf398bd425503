/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Another overlay as a target: it is written to as by a server, and what it
 * has for its own backing file is not changed.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "backing-addcow.h"
#include "common.h"
#include "disk.h"
#include "target-kinds.h"

struct target_addcow {
  struct target target;
  struct image image; /* of its disk, for who writes to the target */
  struct disk *disk;
  int image_fd;
  struct image_file file;
};

static struct target_addcow *
addcow_of_image (struct image *image)
{
  return container_of (image, struct target_addcow, image);
}

static int
target_addcow_read (struct image *image, void *buf, size_t count,
                    uint64_t offset)
{
  struct target_addcow *t = addcow_of_image (image);
  struct fault fault;

  return overlay_read (t->disk->overlay, &t->file.image, buf, count, offset,
                       &fault) == -1
             ? fault.err
             : 0;
}

static int
target_addcow_write (struct image *image, const void *buf, size_t count,
                     uint64_t offset, unsigned flags)
{
  struct target_addcow *t = addcow_of_image (image);
  struct fault fault;

  return overlay_write (t->disk->overlay, &t->file.image, buf, count, offset,
                        flags, &fault) == -1
             ? fault.err
             : 0;
}

static int
target_addcow_zero (struct image *image, uint64_t count, uint64_t offset,
                    unsigned flags)
{
  struct target_addcow *t = addcow_of_image (image);
  struct fault fault;

  return overlay_zero (t->disk->overlay, &t->file.image, count, offset, flags,
                       &fault) == -1
             ? fault.err
             : 0;
}

static int
target_addcow_flush (struct image *image)
{
  struct target_addcow *t = addcow_of_image (image);
  struct fault fault;

  return overlay_flush (t->disk->overlay, &t->file.image, &fault) == -1
             ? fault.err
             : 0;
}

static const struct image_ops target_addcow_image_ops = {
  .read = target_addcow_read,
  .write = target_addcow_write,
  .zero = target_addcow_zero,
  .trim = target_no_trim,
  .flush = target_addcow_flush,
  .cache = target_no_cache,
};

/* What matters was flushed. */
static void
target_addcow_close (struct target *target)
{
  struct target_addcow *t = container_of (target, struct target_addcow, target);
  struct fault fault;

  overlay_detach (t->disk->overlay, &t->file.image, &fault);
  disk_close (t->disk);
  close (t->image_fd);
  free (t);
}

/* The metadata file is the file, see hints. */
static int
target_addcow_end (struct target *target)
{
  struct target_addcow *t = container_of (target, struct target_addcow, target);

  return fd_sync_with_times (t->disk->metadata_fd);
}

static const struct target_ops target_addcow_ops = {
  .end = target_addcow_end,
  .close = target_addcow_close,
};

/* Open the image of what was opened. */
static int
open_image (struct disk *disk, int *image_fd, struct failure *failure)
{
  int r;

  if (!disk->writable)
    return failure_set (failure, disk->file_name,
                        access (disk->file_name, W_OK) == -1 ? errno : EACCES);
  r = disk_open_image (disk, image_fd);
  if (r == ADDCOW_E_NO_IMAGE)
    return failure_set (failure, disk->file_name, r);
  return r ? failure_set (failure, disk->image_location.name, r) : 0;
}

int
target_addcow_open (struct target **target, const struct location *location,
                    const struct backing_options *options,
                    struct failure *failure)
{
  const struct disk_options below = { .backing = *options };
  CLEANUP_CLOSE int image_fd = -1;
  struct target_addcow *t;
  struct disk *disk;
  int r;

  r = backing_addcow_open_disk (&disk, location, &below, failure);
  if (r)
    return r;
  r = open_image (disk, &image_fd, failure);
  t = r ? NULL : malloc (sizeof *t);
  if (t == NULL) {
    disk_close (disk);
    return r ? r : failure_set (failure, location->name, ENOMEM);
  }
  *t = (struct target_addcow){
    .target = { .ops = &target_addcow_ops,
                .image = &t->image,
                .size_bytes = disk->header.size_bytes },
    .image = { .ops = &target_addcow_image_ops },
    .disk = disk,
    .image_fd = image_fd,
  };
  image_file_init (&t->file, image_fd);
  image_fd = -1;
  overlay_attach (disk->overlay, &t->file.image);
  *target = &t->target;
  return 0;
}

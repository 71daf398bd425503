/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Another overlay as a backing file, read in the same process.
 *
 * It is a disk of its own that is open read-only: its metadata file has a
 * shared lock, so that nobody writes to it meanwhile, and its own backing
 * file may be one more.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "backing-addcow.h"
#include "backing-kinds.h"
#include "common.h"
#include "disk-map.h"
#include "disk.h"
#include "image-file.h"
#include "overlay.h"

/*--- Chains. ----------------------------------------------------------*/

static int
identify (struct chain_file *file, int fd)
{
  struct stat st;

  if (fstat (fd, &st) == -1)
    return errno;
  file->dev = st.st_dev;
  file->ino = st.st_ino;
  return 0;
}

static bool
is_same (const struct chain_file *a, const struct chain_file *b)
{
  return a->dev == b->dev && a->ino == b->ino;
}

int
chain_link (struct chain *link, const struct chain *above, int metadata_fd,
            int image_fd)
{
  int r;

  *link = (struct chain){
    .above = above,
    .length = above ? above->length + 1 : 1,
  };
  r = identify (&link->metadata, metadata_fd);
  if (r == 0 && image_fd >= 0)
    r = identify (&link->image, image_fd);
  return r;
}

int
chain_check_length (const struct chain *chain)
{
  return chain && chain->length >= CHAIN_MAX ? ADDCOW_E_CHAIN_LONG : 0;
}

int
chain_check_file (const struct chain *chain, int metadata_fd)
{
  struct chain_file file;
  int r = identify (&file, metadata_fd);

  if (r)
    return r;
  for (; chain; chain = chain->above) {
    if (is_same (&chain->metadata, &file))
      return ADDCOW_E_CHAIN_LOOP;
    if (is_same (&chain->image, &file))
      return ADDCOW_E_IMAGE_IS_METADATA;
  }
  return 0;
}

int
chain_check_below (const struct chain *chain, const struct backing *backing)
{
  const unsigned above = chain ? chain->length : 0;
  unsigned n = 0;
  int r = 0;

  for (; r == 0 && backing && backing->disk; backing = backing->disk->backing) {
    if (above + n++ >= CHAIN_MAX)
      return ADDCOW_E_CHAIN_LONG;
    r = chain_check_file (chain, backing->disk->metadata_fd);
  }
  return r;
}

/*--- The backing file. ------------------------------------------------*/

struct backing_addcow {
  struct backing backing;
  struct disk *disk;
  struct image_file image;
};

static struct backing_addcow *
addcow_of (struct backing *backing)
{
  return container_of (backing, struct backing_addcow, backing);
}

static int
backing_addcow_read (struct backing *backing, void *buf, size_t count,
                     uint64_t offset)
{
  struct backing_addcow *b = addcow_of (backing);
  struct fault fault;

  return overlay_read (b->disk->overlay, &b->image.image, buf, count, offset,
                       &fault) == -1
             ? fault.err
             : 0;
}

/* Extents on their way up. */
struct teller {
  extent_fn *fn;
  void *opaque;
  uint64_t told; /* bytes, of those that did not make FN stop */
};

static int
tell (void *opaque, uint64_t count, unsigned type)
{
  struct teller *t = opaque;
  int r = t->fn (t->opaque, count, type);

  if (r == 0)
    t->told += count;
  return r;
}

/* What FN stopped must stop all overlays above.  So must what this one left
 * out: each has a bound for what one request costs, which would be none if
 * those above asked for the rest.
 */
static int
backing_addcow_extents (struct backing *backing, uint64_t count,
                        uint64_t offset, extent_fn *fn, void *opaque)
{
  struct backing_addcow *b = addcow_of (backing);
  struct teller t = { .fn = fn, .opaque = opaque };
  struct fault fault;

  if (overlay_extents (b->disk->overlay, &b->image.image, count, offset, tell,
                       &t, &fault) == -1)
    return fault.err;
  return t.told < count ? EXTENT_STOP : 0;
}

static int
backing_addcow_cache (struct backing *backing, uint64_t count, uint64_t offset)
{
  struct backing_addcow *b = addcow_of (backing);
  struct fault fault;

  return overlay_cache (b->disk->overlay, &b->image.image, count, offset,
                        &fault) == -1
             ? fault.err
             : 0;
}

static int
backing_addcow_map (struct backing *backing, uint64_t count, uint64_t offset,
                    unsigned depth, map_fn *fn, void *opaque,
                    struct failure *failure)
{
  return disk_map_below (addcow_of (backing)->disk, count, offset, depth, fn,
                         opaque, failure);
}

static void
backing_addcow_interrupt (struct backing *backing)
{
  overlay_interrupt (addcow_of (backing)->disk->overlay);
}

static void
backing_addcow_close (struct backing *backing)
{
  struct backing_addcow *b = addcow_of (backing);
  struct fault fault;

  /* Nothing was written: there is nothing to commit that could fail. */
  overlay_detach (b->disk->overlay, &b->image.image, &fault);
  disk_close (b->disk);
  free (b);
}

static const struct backing_ops backing_addcow_ops = {
  .read = backing_addcow_read,
  .extents = backing_addcow_extents,
  .cache = backing_addcow_cache,
  .map = backing_addcow_map,
  .interrupt = backing_addcow_interrupt,
  .close = backing_addcow_close,
};

/* What the backing file of an overlay below is cannot be told from here:
 * its header has to say it.
 */
static void
word_foreign_format (struct failure *failure, const char *metadata)
{
  CLEANUP_FREE char *name = failure->file_name;
  CLEANUP_FREE char *detail = NULL;

  failure->file_name = NULL;
  if (asprintf (&detail,
                "begins like a disk image of the format %s, and is read as "
                "raw only when %s says so: say what it is with addcow-img "
                "rebase -u -b BACKING -F %s, or -F raw to insist",
                failure->format, metadata, failure->format) == -1)
    detail = NULL;
  failure_set_detail (failure, name ? name : metadata, failure->err, detail);
}

int
backing_addcow_open_disk (struct disk **disk, const struct location *location,
                          const struct disk_options *options,
                          struct failure *failure)
{
  struct disk_options below = *options;
  int r;

  if (location->path == NULL)
    return failure_set (failure, location->name, ADDCOW_E_URI);
  below.metadata_path = location->path;
  below.check_image = true;
  below.backing.format = NULL;
  r = disk_open (disk, location->name, &below, failure);
  if (r == ADDCOW_E_FOREIGN_FORMAT && failure->detail == NULL)
    word_foreign_format (failure, location->name);
  return r;
}

int
backing_addcow_open (struct backing **backing, const struct location *location,
                     const struct backing_options *options,
                     struct failure *failure)
{
  const struct disk_options below = {
    .read_only = true,
    .unlocked = options->unlocked,
    .map_cache = options->map_cache,
    .backing = *options,
  };
  struct backing_addcow *b;
  struct disk *disk;
  int r;

  r = backing_addcow_open_disk (&disk, location, &below, failure);
  if (r)
    return r;
  if (disk->image_fd == -1) {
    disk_close (disk);
    return failure_set (failure, location->name, ADDCOW_E_NO_IMAGE);
  }
  b = malloc (sizeof *b);
  if (b == NULL) {
    disk_close (disk);
    return failure_set (failure, location->name, ENOMEM);
  }
  *b = (struct backing_addcow){
    .backing = { .ops = &backing_addcow_ops,
                 .size_bytes = disk->header.size_bytes,
                 .disk = disk },
    .disk = disk,
  };
  image_file_init (&b->image, disk->image_fd);
  overlay_attach (disk->overlay, &b->image.image);
  *backing = &b->backing;
  return 0;
}

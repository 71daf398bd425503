/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdkit-addcow-filter: parameters and callbacks.  What an overlay is and
 * does is in lib/overlay.h.
 *
 * The overlay is opened in .config_complete, so that what is wrong with
 * its files is an error at start, and before the server forks or changes
 * its user.  All connections share it; each has its own image, which is
 * attached from .prepare to .finalize.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "committer.h"
#include "common.h"
#include "disk.h"
#include "error.h"
#include "image-next.h"
#include "server-args.h"

#define MAX_TIMEOUT_SECONDS 86400

/* The parameters. */
static const char *metadata_file;
static const char *file_parameter; /* file=, which is the plugin's */
static const char *dir_parameter;  /* the name of dir=, so is this */
static const char *backing_name;   /* "" for none */
static const char *backing_format;
static const char *confine;
static unsigned backing_timeout = BACKING_TIMEOUT_SECONDS;
static unsigned commit_interval = 5;

/* What the parameters made: the one disk that is served. */
static struct disk *disk;
static struct committer committer;
static int server_thread_model;

struct handle {
  bool read_only;
  bool attached;
  struct image_next image;
};

/*--- Errors. ----------------------------------------------------------*/

static void
report_failure (const struct failure *f)
{
  const char *name = f->file_name ? f->file_name : metadata_file;

  if (f->err == ADDCOW_E_IN_USE)
    nbdkit_error ("%s is in use by another process", name);
  else if (f->err == ADDCOW_E_FOREIGN_FORMAT && f->detail == NULL)
    nbdkit_error ("%s: begins like a disk image of the format %s, and is "
                  "read as raw only when told to: give "
                  "addcow-backing-format=%s, or addcow-backing-format=raw "
                  "to insist",
                  name, f->format, f->format);
  else
    nbdkit_error ("%s: %s", name, failure_text (f));
}

/* Say what failed, unless the next layer has said it. */
static void
report_fault (const struct fault *fault)
{
  switch (fault->part) {
  case FAULT_IMAGE:
    break;
  case FAULT_BACKING:
    nbdkit_error ("%s: reading the backing file: %s",
                  disk->backing_location.name, addcow_strerror (fault->err));
    break;
  case FAULT_METADATA:
    nbdkit_error ("%s: metadata file: %s", disk->file_name,
                  addcow_strerror (fault->err));
    break;
  case FAULT_MEMORY:
    nbdkit_error ("%s: %s", disk->file_name, addcow_strerror (fault->err));
    break;
  }
}

/* What happened to a backing file, and to no request. */
static void
log_backing (void *opaque UNUSED, const char *name, const char *text)
{
  nbdkit_error ("%s: %s", name, text);
}

static void
report_commit_fault (const struct fault *fault)
{
  report_fault (fault);
  nbdkit_error ("%s: what was allocated lately could not be committed, "
                "it will be tried again",
                disk->file_name);
}

/* The end of a data callback, whose result R is. */
static int
finish (int r, const struct fault *fault, int *err)
{
  if (r == -1) {
    report_fault (fault);
    *err = addcow_errno (fault->err);
  }
  if (server_thread_model < NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS)
    committer_poll (&committer);
  return r;
}

/*--- Parameters. ------------------------------------------------------*/

/* Kept from .config, to hand file= to the plugin in .config_complete. */
static nbdkit_next_config *next_config;
static nbdkit_backend *next_config_data;

/* By which the file plugin serves a folder; dirfd= is of later versions. */
static bool
is_dir_parameter (const char *key)
{
  return strcmp (key, "dir") == 0 || strcmp (key, "directory") == 0 ||
         strcmp (key, "dirfd") == 0;
}

/* Keep the VALUE of KEY, which may be given once and not be empty. */
static int
set_once (const char **where, const char *key, const char *value)
{
  if (*where) {
    nbdkit_error ("%s= was given more than once", key);
    return -1;
  }
  if (value[0] == '\0') {
    nbdkit_error ("%s= needs a value", key);
    return -1;
  }
  *where = value;
  return 0;
}

static int
set_backing (const char *key, const char *value)
{
  if (set_once (&backing_name, key, value) == -1)
    return -1;
  if (strcmp (value, "none") == 0)
    backing_name = "";
  return 0;
}

static int
set_timeout (const char *key, const char *value)
{
  if (nbdkit_parse_unsigned (key, value, &backing_timeout) == -1)
    return -1;
  if (backing_timeout >= 1 && backing_timeout <= MAX_TIMEOUT_SECONDS)
    return 0;
  nbdkit_error ("%s= must be from 1 to %d", key, MAX_TIMEOUT_SECONDS);
  return -1;
}

static int
addcow_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
               const char *key, const char *value)
{
  next_config = next;
  next_config_data = nxdata;

  if (strcmp (key, "addcow") == 0)
    return set_once (&metadata_file, key, value);
  if (strcmp (key, "addcow-backing") == 0)
    return set_backing (key, value);
  if (strcmp (key, "addcow-backing-format") == 0)
    return set_once (&backing_format, key, value);
  if (strcmp (key, "addcow-backing-timeout") == 0)
    return set_timeout (key, value);
  if (strcmp (key, "addcow-confine") == 0)
    return set_once (&confine, key, value);
  if (strcmp (key, "addcow-commit-interval") == 0)
    return nbdkit_parse_unsigned (key, value, &commit_interval);
  if (strncmp (key, "addcow-", strlen ("addcow-")) == 0) {
    nbdkit_error ("unknown parameter '%s'", key);
    return -1;
  }
  if (strcmp (key, "file") == 0)
    file_parameter = value;
  else if (is_dir_parameter (key))
    dir_parameter = key;
  return next (nxdata, key, value);
}

#define addcow_config_help \
  "addcow=<FILE>           (required) The add-cow metadata file.\n" \
  "addcow-backing=<NAME>   Read unallocated sectors from here instead of\n" \
  "                        from where the metadata file says; none: they\n" \
  "                        are zeroes.\n" \
  "addcow-backing-format=<F>  What the backing file is: raw, add-cow,\n" \
  "                        qcow2, or what else QEMU reads.\n" \
  "addcow-backing-timeout=<SECONDS>  How long to wait for an NBD server\n" \
  "                        that was lost (default 30).\n" \
  "addcow-commit-interval=<SECONDS>  Make new allocations durable so\n" \
  "                        often without a flush (default 5, 0: never).\n" \
  "addcow-confine=<FOLDER> Files that are named in metadata files must lie\n" \
  "                        under it."

static int
open_disk (void)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct server_args args;

  server_args_get (&args, "addcow");
  if (dir_parameter && args.file_plugin) {
    nbdkit_error ("%s= cannot be used with addcow=FILE: %s describes one "
                  "disk, not a folder of them",
                  dir_parameter, metadata_file);
    return -1;
  }
  const struct disk_options options = {
    .read_only = args.read_only,
    .image_path = file_parameter,
    .check_image = args.file_plugin_is_next,
    .backing_name = backing_name,
    .backing = {
      .format = backing_format,
      .timeout_seconds = backing_timeout,
      .confine = confine,
      .log = log_backing,
    },
    .hooks = &(struct overlay_hooks){
      .dirty = committer_dirty,
      .opaque = &committer,
    },
  };
  if (disk_open (&disk, metadata_file, &options, &failure)) {
    report_failure (&failure);
    return -1;
  }
  return 0;
}

static int
addcow_config_complete (nbdkit_next_config_complete *next,
                        nbdkit_backend *nxdata)
{
  if (metadata_file == NULL) {
    nbdkit_error ("the parameter addcow=FILE is required");
    return -1;
  }

  committer_init (&committer);
  if (open_disk () == -1)
    return -1;
  committer.interval_seconds = commit_interval;
  committer.ov = disk->overlay;
  committer.report = report_commit_fault;

  if (file_parameter == NULL && disk->image_location.path &&
      next_config (next_config_data, "file", disk->image_location.path) == -1)
    return -1;
  return next (nxdata);
}

/*--- The server's life. -----------------------------------------------*/

static int
addcow_get_ready (int thread_model)
{
  server_thread_model = thread_model;
  return 0;
}

static int
addcow_after_fork (nbdkit_backend *backend UNUSED)
{
  int r;

  r = committer_start (&committer, server_thread_model >=
                                       NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS);
  if (r) {
    nbdkit_error ("cannot start a thread: %s", addcow_strerror (r));
    return -1;
  }
  return 0;
}

static void
addcow_cleanup (nbdkit_backend *backend UNUSED)
{
  committer_stop (&committer);
  if (overlay_uncommitted (disk->overlay))
    nbdkit_error ("%s: what was allocated since the last commit is lost",
                  disk->file_name);
}

static void
addcow_unload (void)
{
  disk_close (disk);
}

/*--- Connections. -----------------------------------------------------*/

/* The disk is one, whatever name a client asks for: the plugin, which may
 * choose an image by it, is asked for its default.
 */
static void *
addcow_open (nbdkit_next_open *next, nbdkit_context *context, int readonly,
             const char *exportname UNUSED, int is_tls UNUSED)
{
  struct handle *h;

  if (!disk->writable)
    readonly = 1;
  if (next (context, readonly, "") == -1)
    return NULL;

  h = calloc (1, sizeof *h);
  if (h == NULL) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  h->read_only = readonly;
  return h;
}

/* Can the next layer be the image? */
static int
check_next (nbdkit_next *next, const struct image_next *image)
{
  uint32_t minimum, preferred, maximum;

  if ((uint64_t) image->size_bytes < overlay_size_bytes (disk->overlay)) {
    nbdkit_error ("%s: the image is %" PRId64 " bytes long, shorter than "
                  "the virtual disk of %" PRIu64 " bytes",
                  disk->image_location.name ? disk->image_location.name
                                            : disk->file_name,
                  image->size_bytes, overlay_size_bytes (disk->overlay));
    return -1;
  }
  if (next->block_size (next, &minimum, &preferred, &maximum) == -1)
    return -1;
  if (minimum > FORMAT_SECTOR_BYTES) {
    nbdkit_error ("%s: the image takes no requests smaller than %" PRIu32
                  " bytes: add --filter=blocksize behind this filter",
                  disk->file_name, minimum);
    return -1;
  }
  return 0;
}

static int
addcow_prepare (nbdkit_next *next, void *handle, int readonly UNUSED)
{
  struct handle *h = handle;

  if (image_next_init (&h->image, next, server_thread_model) == -1)
    return -1;
  if (h->image.can_write != 1)
    h->read_only = true;
  if (check_next (next, &h->image) == -1) {
    image_next_destroy (&h->image);
    return -1;
  }
  overlay_attach (disk->overlay, &h->image.image);
  h->attached = true;
  return 0;
}

static void
detach (struct handle *h)
{
  struct fault fault;

  if (!h->attached)
    return;
  if (overlay_detach (disk->overlay, &h->image.image, &fault) == -1)
    report_commit_fault (&fault);
  image_next_destroy (&h->image);
  h->attached = false;
}

static int
addcow_finalize (nbdkit_next *next UNUSED, void *handle)
{
  detach (handle);
  return 0;
}

static void
addcow_close (void *handle)
{
  struct handle *h = handle;

  /* Attached still when a filter before this one failed. */
  detach (h);
  free (h);
}

/*--- What the export can do. ------------------------------------------*/

static int64_t
addcow_get_size (nbdkit_next *next UNUSED, void *handle UNUSED)
{
  return overlay_size_bytes (disk->overlay);
}

static int
addcow_block_size (nbdkit_next *next, void *handle UNUSED, uint32_t *minimum,
                   uint32_t *preferred, uint32_t *maximum)
{
  if (next->block_size (next, minimum, preferred, maximum) == -1)
    return -1;
  if (*minimum == 0) { /* the layer does not say */
    *minimum = 1;
    *preferred = FORMAT_SECTOR_BYTES;
    *maximum = 0xffffffff;
  }
  return 0;
}

static int
addcow_can_write (nbdkit_next *next UNUSED, void *handle)
{
  struct handle *h = handle;

  return !h->read_only;
}

/* Even where the image has nothing to flush, there is the metadata. */
static int
addcow_can_flush (nbdkit_next *next UNUSED, void *handle UNUSED)
{
  return 1;
}

static int
addcow_can_zero (nbdkit_next *next UNUSED, void *handle UNUSED)
{
  return NBDKIT_ZERO_NATIVE;
}

static int
addcow_can_extents (nbdkit_next *next UNUSED, void *handle UNUSED)
{
  return 1;
}

static int
addcow_can_fua (nbdkit_next *next UNUSED, void *handle UNUSED)
{
  return NBDKIT_FUA_NATIVE;
}

static int
addcow_can_cache (nbdkit_next *next UNUSED, void *handle UNUSED)
{
  return NBDKIT_CACHE_NATIVE;
}

/*--- Requests. --------------------------------------------------------*/

static unsigned
image_flags (uint32_t flags)
{
  return (flags & NBDKIT_FLAG_FUA ? IMAGE_FUA : 0) |
         (flags & NBDKIT_FLAG_MAY_TRIM ? IMAGE_MAY_TRIM : 0) |
         (flags & NBDKIT_FLAG_FAST_ZERO ? IMAGE_FAST : 0);
}

static int
addcow_pread (nbdkit_next *next UNUSED, void *handle, void *buf, uint32_t count,
              uint64_t offset, uint32_t flags UNUSED, int *err)
{
  struct handle *h = handle;
  struct fault fault;
  int r = overlay_read (disk->overlay, &h->image.image, buf, count, offset,
                        &fault);

  return finish (r, &fault, err);
}

static int
addcow_pwrite (nbdkit_next *next UNUSED, void *handle, const void *buf,
               uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = handle;
  struct fault fault;
  int r = overlay_write (disk->overlay, &h->image.image, buf, count, offset,
                         image_flags (flags), &fault);

  return finish (r, &fault, err);
}

static int
addcow_flush (nbdkit_next *next UNUSED, void *handle, uint32_t flags UNUSED,
              int *err)
{
  struct handle *h = handle;
  struct fault fault;
  int r = 0;

  /* Nothing is written to a disk that is not writable. */
  if (disk->writable)
    r = overlay_flush (disk->overlay, &h->image.image, &fault);

  return finish (r, &fault, err);
}

static int
addcow_trim (nbdkit_next *next UNUSED, void *handle, uint32_t count,
             uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = handle;
  struct fault fault;
  int r = overlay_trim (disk->overlay, &h->image.image, count, offset,
                        image_flags (flags), &fault);

  return finish (r, &fault, err);
}

static int
addcow_zero (nbdkit_next *next UNUSED, void *handle, uint32_t count,
             uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = handle;
  struct fault fault;
  int r = overlay_zero (disk->overlay, &h->image.image, count, offset,
                        image_flags (flags), &fault);

  /* The server takes this errno for the answer to a fast zero alone. */
  if (r == -1 && fault.err == EOPNOTSUPP && !(flags & NBDKIT_FLAG_FAST_ZERO))
    fault.err = EIO;
  return finish (r, &fault, err);
}

/* Extents on their way to nbdkit. */
struct adder {
  struct nbdkit_extents *extents;
  uint64_t offset; /* of the next extent */
  bool one;        /* is all that was asked for */
};

static int
add_extent (void *opaque, uint64_t count, unsigned type)
{
  struct adder *a = opaque;

  if (nbdkit_add_extent (a->extents, a->offset, count, type) == -1)
    return errno;
  a->offset += count;
  return a->one ? EXTENT_STOP : 0;
}

static int
addcow_extents (nbdkit_next *next UNUSED, void *handle, uint32_t count,
                uint64_t offset, uint32_t flags, struct nbdkit_extents *extents,
                int *err)
{
  struct handle *h = handle;
  struct fault fault;
  struct adder a = {
    .extents = extents,
    .offset = offset,
    .one = flags & NBDKIT_FLAG_REQ_ONE,
  };
  int r = overlay_extents (disk->overlay, &h->image.image, count, offset,
                           add_extent, &a, &fault);

  return finish (r, &fault, err);
}

static int
addcow_cache (nbdkit_next *next UNUSED, void *handle, uint32_t count,
              uint64_t offset, uint32_t flags UNUSED, int *err)
{
  struct handle *h = handle;
  struct fault fault;
  int r = overlay_cache (disk->overlay, &h->image.image, count, offset, &fault);

  return finish (r, &fault, err);
}

static struct nbdkit_filter filter = {
  .name = "addcow",
  .longname = "nbdkit add-cow filter",
  .description = "Make a raw image a copy-on-write overlay of a backing "
                 "file.",
  .unload = addcow_unload,
  .config = addcow_config,
  .config_complete = addcow_config_complete,
  .config_help = addcow_config_help,
  .get_ready = addcow_get_ready,
  .after_fork = addcow_after_fork,
  .cleanup = addcow_cleanup,
  .open = addcow_open,
  .close = addcow_close,
  .prepare = addcow_prepare,
  .finalize = addcow_finalize,
  .get_size = addcow_get_size,
  .block_size = addcow_block_size,
  .can_write = addcow_can_write,
  .can_flush = addcow_can_flush,
  .can_zero = addcow_can_zero,
  .can_extents = addcow_can_extents,
  .can_fua = addcow_can_fua,
  .can_cache = addcow_can_cache,
  .pread = addcow_pread,
  .pwrite = addcow_pwrite,
  .flush = addcow_flush,
  .trim = addcow_trim,
  .zero = addcow_zero,
  .extents = addcow_extents,
  .cache = addcow_cache,
};

/* What the macro defines; nbdkit's headers do not declare it. */
struct nbdkit_filter *filter_init (void);

NBDKIT_REGISTER_FILTER (filter)

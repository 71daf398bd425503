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
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "committer.h"
#include "common.h"
#include "disk.h"
#include "error.h"
#include "hydrate.h"
#include "image-next.h"
#include "server-args.h"
#include "switch.h"

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
static struct switch_ on_read;
static int on_cache;
static struct switch_ hydrating;
static bool hydrate_given;
static uint64_t hydrate_rate; /* bytes a second; 0: any */

/* What the parameters made: the one disk that is served. */
static struct disk *disk;
static struct committer committer;
static struct hydrate hydrate;
static int server_thread_model;
static _Atomic bool stands_alone; /* it was said */

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

/* As people know it. */
static const char *
image_name (void)
{
  if (file_parameter)
    return file_parameter;
  return disk->header.image_file[0] ? disk->header.image_file : "the image";
}

static void
report_filling_fault (void *opaque UNUSED, const struct fault *fault)
{
  if (fault->part == FAULT_BACKING)
    nbdkit_error ("%s: reading the backing file: %s: filling goes on "
                  "elsewhere and tries again",
                  disk->backing_location.name, addcow_strerror (fault->err));
  else
    nbdkit_error ("%s: filling pauses: %s",
                  fault->part == FAULT_IMAGE ? image_name () : disk->file_name,
                  addcow_strerror (fault->err));
}

/*--- Standing alone. --------------------------------------------------*/

/* When the image has everything, close what is not needed, and say so.  Who
 * cannot wait for others who read the backing file leaves it to the next one
 * who looks.
 */
static void
look_if_alone (bool wait)
{
  bool had_backing;

  if (stands_alone || !disk->writable || !overlay_stands_alone (disk->overlay))
    return;
  if (!overlay_drop_backing (disk->overlay, wait) ||
      atomic_exchange (&stands_alone, true))
    return;
  hydrate_is_complete (&hydrate);
  had_backing = disk->backing != NULL;
  disk_close_backing (disk);
  nbdkit_error ("%s stands alone: %s %s no longer needed", image_name (),
                disk->file_name,
                had_backing ? "and the backing file are" : "is");
}

static void
filling_is_complete (void *opaque UNUSED)
{
  look_if_alone (true);
}

/* Without its thread this is a request of a client. */
static void
is_committed (void)
{
  look_if_alone (committer.running);
}

/*--- Requests begin and end. ------------------------------------------*/

/* The begin of a data callback.  Returns HANDLE. */
static struct handle *
begin (void *handle)
{
  hydrate_client_begins (&hydrate);
  return handle;
}

/* The end of a data callback, whose result R is. */
static int
finish (int r, const struct fault *fault, int *err)
{
  hydrate_client_ends (&hydrate);
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
set_bool (int *where, const char *value)
{
  *where = nbdkit_parse_bool (value);
  return *where == -1 ? -1 : 0;
}

static int
set_rate (const char *key, const char *value)
{
  const int64_t n = nbdkit_parse_size (value);

  if (n > 0) {
    hydrate_rate = n;
    return 0;
  }
  if (n == 0)
    nbdkit_error ("%s= must be more than 0", key);
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
  if (strcmp (key, "addcow-on-read") == 0)
    return switch_parse (&on_read, value);
  if (strcmp (key, "addcow-on-cache") == 0)
    return set_bool (&on_cache, value);
  if (strcmp (key, "addcow-hydrate") == 0) {
    hydrate_given = true;
    return switch_parse (&hydrating, value);
  }
  if (strcmp (key, "addcow-hydrate-rate") == 0)
    return set_rate (key, value);
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
  "                        under it.\n" \
  "addcow-hydrate=<BOOL>|</PATH>  Fill the image in the background until it\n" \
  "                        stands alone; or do so while PATH exists.\n" \
  "addcow-hydrate-rate=<SIZE>  At most so many bytes a second.\n" \
  "addcow-on-cache=<BOOL>  Keep what clients ask to be cached.\n" \
  "addcow-on-read=<BOOL>|</PATH>  Keep what is read from the backing file\n" \
  "                        in the image; or do so while PATH exists."

/* The server ends when a layer is written to that said it cannot be. */
static bool
can_write (struct image *image)
{
  return container_of (image, struct image_next, image)->can_write == 1;
}

/* Keep the sector of OFFSET, of which only a part was read. */
static void
keep_sector (struct image *image, uint64_t offset)
{
  struct fault fault;

  if (hydrate.filler && filler_keep (hydrate.filler, NULL, FORMAT_SECTOR_BYTES,
                                     offset - offset % FORMAT_SECTOR_BYTES))
    return;
  overlay_fill_range (disk->overlay, image, 1, offset, &fault);
}

/* Keep whole sectors that were read: later, or now if that is too much.  The
 * read has succeeded, whatever comes of this.
 */
static void
keep_sectors (struct image *image, const void *buf, size_t count,
              uint64_t offset)
{
  struct fault fault;

  if (hydrate.filler && filler_keep (hydrate.filler, buf, count, offset))
    return;
  overlay_keep (disk->overlay, image, buf, count, offset, false, &fault);
}

static void
keep (struct image *image, const char *buf, size_t count, uint64_t offset)
{
  const uint64_t end = offset + count;
  const uint64_t first = DIV_ROUND_UP (offset, FORMAT_SECTOR_BYTES) *
                         FORMAT_SECTOR_BYTES;
  const uint64_t last = end - end % FORMAT_SECTOR_BYTES;

  if (first < last)
    keep_sectors (image, buf + (first - offset), last - first, first);
  if (first != offset)
    keep_sector (image, offset);
  if (last != end && last >= first)
    keep_sector (image, last);
}

/*--- What the overlay tells. ------------------------------------------*/

static void
overlay_is_dirty (void *opaque UNUSED)
{
  committer_dirty (&committer);
}

static void
overlay_missed (void *opaque UNUSED, struct image *image, const void *buf,
                size_t count, uint64_t offset)
{
  if (hydrate.counts)
    filler_hot (hydrate.filler, count, offset);
  if (disk->writable && can_write (image) && switch_is_on (&on_read))
    keep (image, buf, count, offset);
}

static const struct overlay_hooks overlay_hooks = {
  .dirty = overlay_is_dirty,
  .missed = overlay_missed,
};

/*--- Opening. ---------------------------------------------------------*/

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
    .hooks = &overlay_hooks,
  };
  if (disk_open (&disk, metadata_file, &options, &failure)) {
    report_failure (&failure);
    return -1;
  }
  hydrate.image_fd = args.file_plugin_is_next ? disk->image_fd : -1;
  return 0;
}

/* The parameter, if any is on, that needs a disk that can be written to. */
static const char *
filling_parameter (void)
{
  if (switch_may_be_on (&hydrating))
    return "addcow-hydrate";
  if (switch_may_be_on (&on_read))
    return "addcow-on-read";
  return on_cache ? "addcow-on-cache" : NULL;
}

static bool
filling_is_wanted (void *opaque UNUSED)
{
  return switch_is_on (&hydrating);
}

static void
set_up_hydrate (void)
{
  hydrate.ov = disk->overlay;
  hydrate.only_keep = !switch_may_be_on (&hydrating);
  hydrate.rate_bytes = hydrate_rate;
  hydrate.commits = commit_interval > 0;
  hydrate.backing = disk->backing;
  hydrate.wanted = hydrating.path ? filling_is_wanted : NULL;
  hydrate.complete = filling_is_complete;
  hydrate.failed = report_filling_fault;
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
  committer.committed = is_committed;
  if (filling_parameter () && !disk->writable) {
    nbdkit_error ("%s: %s needs a disk that can be written to", metadata_file,
                  filling_parameter ());
    return -1;
  }
  if (hydrate_rate && !hydrate_given) {
    nbdkit_error ("addcow-hydrate-rate= is for addcow-hydrate=, which was not "
                  "given");
    return -1;
  }
  set_up_hydrate ();

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
  if (switch_may_be_on (&hydrating) &&
      thread_model < NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS) {
    nbdkit_error ("addcow-hydrate cannot be used here: the plugin or a filter "
                  "takes one request at a time of all connections");
    return -1;
  }
  return 0;
}

static int check_next (nbdkit_next *next, const struct image_next *image);

/* A thread of ours can keep what is read, and fill. */
static bool
needs_hydrate (void)
{
  return (switch_may_be_on (&hydrating) || switch_may_be_on (&on_read)) &&
         server_thread_model >= NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS;
}

static int
addcow_after_fork (nbdkit_backend *backend)
{
  int r;

  if (needs_hydrate () &&
      hydrate_start (&hydrate, backend, server_thread_model, check_next) == -1)
    return -1;
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
  struct fault fault;

  if (!hydrate_stop (&hydrate, &fault))
    report_commit_fault (&fault);
  committer_stop (&committer);
  /* By what was kept only now. */
  look_if_alone (true);
  if (overlay_uncommitted (disk->overlay))
    nbdkit_error ("%s: what was allocated since the last commit is lost",
                  disk->file_name);
}

static void
addcow_unload (void)
{
  disk_close (disk);
  switch_clear (&on_read);
  switch_clear (&hydrating);
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
  else
    look_if_alone (false);
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
  struct handle *h = begin (handle);
  struct fault fault;
  int r = overlay_read (disk->overlay, &h->image.image, buf, count, offset,
                        &fault);

  return finish (r, &fault, err);
}

static int
addcow_pwrite (nbdkit_next *next UNUSED, void *handle, const void *buf,
               uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = begin (handle);
  struct fault fault;
  int r = overlay_write (disk->overlay, &h->image.image, buf, count, offset,
                         image_flags (flags), &fault);

  return finish (r, &fault, err);
}

static int
addcow_flush (nbdkit_next *next UNUSED, void *handle, uint32_t flags UNUSED,
              int *err)
{
  struct handle *h = begin (handle);
  struct fault fault;
  int r = 0;

  /* Nothing is written to a disk that is not writable. */
  if (disk->writable)
    r = overlay_flush (disk->overlay, &h->image.image, &fault);
  /* Else its thread will. */
  if (r == 0 && !committer.running)
    look_if_alone (false);

  return finish (r, &fault, err);
}

static int
addcow_trim (nbdkit_next *next UNUSED, void *handle, uint32_t count,
             uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = begin (handle);
  struct fault fault;
  int r = overlay_trim (disk->overlay, &h->image.image, count, offset,
                        image_flags (flags), &fault);

  return finish (r, &fault, err);
}

static int
addcow_zero (nbdkit_next *next UNUSED, void *handle, uint32_t count,
             uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = begin (handle);
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
  struct handle *h = begin (handle);
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

/* How much of a cache request is filled before looking if anybody waits for
 * it still.
 */
#define FILL_BYTES (1024 * 1024)

/* Fill a range, which can take long: it ends when the server or the
 * connection does.
 */
static int
fill (struct handle *h, uint64_t count, uint64_t offset, struct fault *fault)
{
  while (count > 0) {
    const uint64_t n = MIN (count, FILL_BYTES);

    if (overlay_fill_range (disk->overlay, &h->image.image, n, offset, fault) ==
        -1)
      return -1;
    offset += n;
    count -= n;
    if (nbdkit_nanosleep (0, 0) == -1) {
      *fault = (struct fault){ .part = FAULT_IMAGE, .err = ESHUTDOWN };
      return -1; /* nbdkit has said it */
    }
  }
  return 0;
}

static int
addcow_cache (nbdkit_next *next UNUSED, void *handle, uint32_t count,
              uint64_t offset, uint32_t flags UNUSED, int *err)
{
  struct handle *h = begin (handle);
  struct fault fault;
  int r = 0;

  if (on_cache && !h->read_only)
    r = fill (h, count, offset, &fault);
  if (r == 0)
    r = overlay_cache (disk->overlay, &h->image.image, count, offset, &fault);
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

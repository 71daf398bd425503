/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdkit-addcow-filter: parameters and callbacks.  What an overlay is and
 * does is in lib/overlay.h.
 *
 * With addcow=FILE one overlay is opened in .config_complete, so that what is
 * wrong with its files is an error at start, and before the server forks or
 * changes its user; all connections share it.  With addcow=FOLDER a client
 * chooses one when it connects, see folder.h.  Each connection has its own
 * image, which is attached from .prepare to .finalize.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <nbdkit-filter.h>

#include "backing-pool.h"
#include "committer.h"
#include "common.h"
#include "filler-share.h"
#include "folder.h"
#include "map-cache.h"
#include "names.h"
#include "report.h"
#include "served.h"
#include "server-args.h"
#include "switch.h"

#define MAX_TIMEOUT_SECONDS 86400
#define MIN_CACHE_BYTES (1024 * 1024)

/* Of all overlays of a folder together: steps of filling at a time, and data
 * of each.
 */
#define MAX_FILL_STEPS 8
#define MAX_FILL_BYTES (1024 * 1024)

/* The parameters. */
static const char *metadata_name; /* addcow=: a file or a folder */
static const char *dir_parameter; /* the name of dir=, the plugin's */
static bool unconfined;           /* addcow-confine=none */
static uint64_t cache_size = MAP_CACHE_BYTES;
static struct settings settings = {
  .backing_timeout_seconds = BACKING_TIMEOUT_SECONDS,
  .commit_interval_seconds = 5,
};

/* What they made: one of both. */
static struct served *only;                             /* the overlay */
static struct folder *folder;                           /* many of them */
static char *folder_path, *made_confine, *made_backing; /* made absolute */

struct handle {
  struct served *served;
  bool read_only;
  bool attached;
  struct image_next image;
};

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
  if (set_once (&settings.backing_name, key, value) == -1)
    return -1;
  if (strcmp (value, "none") == 0)
    settings.backing_name = "";
  return 0;
}

static int
set_confine (const char *key, const char *value)
{
  const char *name = unconfined ? "none" : settings.confine;

  if (set_once (&name, key, value) == -1)
    return -1;
  unconfined = strcmp (value, "none") == 0;
  if (!unconfined)
    settings.confine = value;
  return 0;
}

static int
set_timeout (const char *key, const char *value)
{
  unsigned *seconds = &settings.backing_timeout_seconds;

  if (nbdkit_parse_unsigned (key, value, seconds) == -1)
    return -1;
  if (*seconds >= 1 && *seconds <= MAX_TIMEOUT_SECONDS)
    return 0;
  nbdkit_error ("%s= must be from 1 to %d", key, MAX_TIMEOUT_SECONDS);
  return -1;
}

static int
set_cache_size (const char *key, const char *value)
{
  const int64_t n = nbdkit_parse_size (value);

  if (n == -1)
    return -1;
  cache_size = n;
  if (cache_size >= MIN_CACHE_BYTES)
    return 0;
  nbdkit_error ("%s= must be at least 1M", key);
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
    settings.hydrate_rate_bytes = n;
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
    return set_once (&metadata_name, key, value);
  if (strcmp (key, "addcow-backing") == 0)
    return set_backing (key, value);
  if (strcmp (key, "addcow-backing-format") == 0)
    return set_once (&settings.backing_format, key, value);
  if (strcmp (key, "addcow-backing-timeout") == 0)
    return set_timeout (key, value);
  if (strcmp (key, "addcow-cache-size") == 0)
    return set_cache_size (key, value);
  if (strcmp (key, "addcow-confine") == 0)
    return set_confine (key, value);
  if (strcmp (key, "addcow-commit-interval") == 0)
    return nbdkit_parse_unsigned (key, value,
                                  &settings.commit_interval_seconds);
  if (strcmp (key, "addcow-on-read") == 0)
    return switch_parse (&settings.on_read, value);
  if (strcmp (key, "addcow-on-cache") == 0)
    return set_bool (&settings.on_cache, value);
  if (strcmp (key, "addcow-hydrate") == 0) {
    settings.hydrate_given = true;
    return switch_parse (&settings.hydrating, value);
  }
  if (strcmp (key, "addcow-hydrate-rate") == 0)
    return set_rate (key, value);
  if (strncmp (key, "addcow-", strlen ("addcow-")) == 0) {
    nbdkit_error ("unknown parameter '%s'", key);
    return -1;
  }
  if (strcmp (key, "file") == 0)
    settings.file_parameter = value;
  else if (is_dir_parameter (key))
    dir_parameter = key;
  return next (nxdata, key, value);
}

#define addcow_config_help \
  "addcow=<FILE>|<FOLDER>  (required) The add-cow metadata file, or a\n" \
  "                        folder of such files, of which clients choose\n" \
  "                        one by the name of the export.\n" \
  "addcow-backing=<NAME>   Read unallocated sectors from here instead of\n" \
  "                        from where the metadata file says; none: they\n" \
  "                        are zeroes.\n" \
  "addcow-backing-format=<F>  What the backing file is: raw, add-cow,\n" \
  "                        qcow2, or what else QEMU reads.\n" \
  "addcow-backing-timeout=<SECONDS>  How long to wait for an NBD server\n" \
  "                        that was lost (default 30).\n" \
  "addcow-cache-size=<SIZE>  How much memory the allocation bits may take\n" \
  "                        (default 32M).\n" \
  "addcow-commit-interval=<SECONDS>  Make new allocations durable so\n" \
  "                        often without a flush (default 5, 0: never).\n" \
  "addcow-confine=<FOLDER>|none  Files that are named in metadata files\n" \
  "                        must lie under it; in a folder of overlays this\n" \
  "                        is that folder.  none: anywhere.\n" \
  "addcow-hydrate=<BOOL>|</PATH>  Fill the image in the background until it\n" \
  "                        stands alone; or do so while PATH exists.\n" \
  "addcow-hydrate-rate=<SIZE>  At most so many bytes a second.\n" \
  "addcow-on-cache=<BOOL>  Keep what clients ask to be cached.\n" \
  "addcow-on-read=<BOOL>|</PATH>  Keep what is read from the backing file\n" \
  "                        in the image; or do so while PATH exists."

static int
check_filling (void)
{
  const char *parameter = settings_filling (&settings);

  if (parameter && settings.args.read_only) {
    report_error ("%s: %s needs a disk that can be written to", metadata_name,
                  parameter);
    return -1;
  }
  if (settings.hydrate_rate_bytes && !settings.hydrate_given) {
    nbdkit_error ("addcow-hydrate-rate= is for addcow-hydrate=, which was not "
                  "given");
    return -1;
  }
  return 0;
}

/*--- One overlay. -----------------------------------------------------*/

static int
complete_file (void)
{
  const struct served_files files = {
    .name = metadata_name,
    .confine = settings.confine,
  };
  const char *image;

  if (dir_parameter && settings.args.file_plugin) {
    report_error ("%s= cannot be used with addcow=FILE: %s describes one "
                  "disk, not a folder of them",
                  dir_parameter, metadata_name);
    return -1;
  }
  if (served_open (&only, &settings, &files) == -1)
    return -1;
  image = only->disk->image_location.path;
  if (settings.file_parameter || image == NULL)
    return 0;
  return next_config (next_config_data, "file", image);
}

/*--- A folder. --------------------------------------------------------*/

/* Each overlay has three files open or more. */
static void
raise_nofile_limit (void)
{
  struct rlimit limit;

  if (getrlimit (RLIMIT_NOFILE, &limit) == -1 ||
      limit.rlim_cur == limit.rlim_max)
    return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit (RLIMIT_NOFILE, &limit) == -1)
    nbdkit_debug ("setrlimit: %m");
}

/* For how many the kernel makes room at once: thousands of overlays. */
#define ROOM_FOR_FILES 16384

/* Where there are threads, the kernel's table of open files grows while who
 * opens one waits for all processors, more than 10 ms each time.  So it gets
 * its size before.
 */
static void
make_room_for_files (void)
{
  CLEANUP_CLOSE int fd = open (folder_path, O_PATH | O_DIRECTORY | O_CLOEXEC);
  CLEANUP_CLOSE int last = -1;
  struct rlimit limit;

  if (fd == -1 || getrlimit (RLIMIT_NOFILE, &limit) == -1)
    return;
  last = fcntl (fd, F_DUPFD_CLOEXEC,
                (int) MIN (limit.rlim_cur, ROOM_FOR_FILES) - 1);
  if (last == -1)
    nbdkit_debug ("fcntl: %m");
}

static int
make_backing_absolute (void)
{
  const char *name = settings.backing_name;
  char *here;
  int r;

  if (name == NULL || name[0] == '\0' || name_is_uri (name))
    return 0;
  here = nbdkit_realpath (".");
  if (here == NULL)
    return -1;
  r = name_resolve (here, name, &made_backing);
  free (here);
  settings.backing_name = made_backing;
  if (r == 0)
    return 0;
  nbdkit_error ("%s", addcow_strerror (r));
  return -1;
}

/* Overlays are opened when the server's folder is another one. */
static int
make_names_absolute (void)
{
  folder_path = nbdkit_realpath (metadata_name);
  if (folder_path == NULL)
    return -1;
  if (settings.confine == NULL && !unconfined)
    settings.confine = folder_path;
  else if (settings.confine) {
    settings.confine = made_confine = nbdkit_realpath (settings.confine);
    if (made_confine == NULL)
      return -1;
  }
  return make_backing_absolute ();
}

/* The plugin opens the images, by their names in the folder.  A filter between
 * may have one state for all (as cow and cache do), or open something else.
 */
static int
check_folder_plugin (void)
{
  if (!settings.args.file_plugin_is_next) {
    report_error ("%s is a folder: its overlays can be served over "
                  "nbdkit-file-plugin alone, without a filter between",
                  metadata_name);
    return -1;
  }
  if (settings.file_parameter || dir_parameter) {
    report_error ("%s= cannot be used with addcow=FOLDER: the images are those "
                  "that metadata files in %s name",
                  settings.file_parameter ? "file" : dir_parameter,
                  metadata_name);
    return -1;
  }
  return 0;
}

static int
complete_folder (void)
{
  int r;

  if (check_folder_plugin () == -1 || make_names_absolute () == -1)
    return -1;
  raise_nofile_limit ();
  r = filler_share_new (&settings.share, MAX_FILL_STEPS, MAX_FILL_BYTES,
                        settings.hydrate_rate_bytes);
  if (r == 0)
    r = backing_pool_new (&settings.pool, served_log_backing, NULL);
  if (r) {
    nbdkit_error ("%s", addcow_strerror (r));
    return -1;
  }
  if (folder_new (&folder, &settings, folder_path) == -1)
    return -1;
  return next_config (next_config_data, "dir", folder_path);
}

/*--- The server's life. -----------------------------------------------*/

static int
addcow_config_complete (nbdkit_next_config_complete *next,
                        nbdkit_backend *nxdata)
{
  struct stat st;
  int r;

  if (metadata_name == NULL) {
    nbdkit_error ("the parameter addcow=FILE is required");
    return -1;
  }
  committer_init (&settings.committer, settings.commit_interval_seconds);
  server_args_get (&settings.args, "addcow");
  if (check_filling () == -1)
    return -1;
  if (map_cache_new (&settings.map_cache, cache_size) != 0) {
    nbdkit_error ("malloc: %m");
    return -1;
  }
  if (stat (metadata_name, &st) == 0 && S_ISDIR (st.st_mode))
    r = complete_folder ();
  else
    r = complete_file ();
  return r == -1 ? -1 : next (nxdata);
}

static int
addcow_get_ready (int thread_model)
{
  settings.thread_model = thread_model;
  if (switch_may_be_on (&settings.hydrating) &&
      thread_model < NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS) {
    nbdkit_error ("addcow-hydrate cannot be used here: the plugin or a filter "
                  "takes one request at a time of all connections");
    return -1;
  }
  return 0;
}

/* How many threads commit: none, where nbdkit has to know of each request. */
static unsigned
nr_committers (void)
{
  if (settings.thread_model < NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS)
    return 0;
  return folder ? MAX_COMMITTERS : 1;
}

static int
addcow_after_fork (nbdkit_backend *backend)
{
  int r;

  if (folder)
    make_room_for_files ();
  r = committer_start (&settings.committer, nr_committers ());
  if (r) {
    nbdkit_error ("cannot start a thread: %s", addcow_strerror (r));
    return -1;
  }
  return only ? served_start (only, backend) : 0;
}

static void
addcow_cleanup (nbdkit_backend *backend UNUSED)
{
  if (only)
    served_stop (only);
  if (folder)
    folder_stop (folder);
  committer_stop (&settings.committer);
}

static void
addcow_unload (void)
{
  served_close (only);
  folder_free (folder);
  filler_share_free (settings.share);
  backing_pool_free (settings.pool);
  map_cache_free (settings.map_cache);
  free (folder_path);
  free (made_confine);
  free (made_backing);
  switch_clear (&settings.on_read);
  switch_clear (&settings.hydrating);
}

/*--- Exports. ---------------------------------------------------------*/

static int
addcow_list_exports (nbdkit_next_list_exports *next, nbdkit_backend *nxdata,
                     int readonly, int is_tls UNUSED,
                     struct nbdkit_exports *exports)
{
  if (folder)
    return folder_list (folder, exports);
  return next (nxdata, readonly, exports);
}

/* A folder has none, which .open says. */
static const char *
addcow_default_export (nbdkit_next_default_export *next, nbdkit_backend *nxdata,
                       int readonly, int is_tls UNUSED)
{
  return folder ? "" : next (nxdata, readonly);
}

static const char *
addcow_export_description (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;
  CLEANUP_FREE char *text = NULL;

  if (folder == NULL)
    return next->export_description (next);
  text = folder_describe (&h->served->disk->header);
  return text ? nbdkit_strdup_intern (text) : NULL;
}

/*--- Connections. -----------------------------------------------------*/

/* Have the overlay of EXPORTNAME for H. */
static int
get_served (struct handle *h, const char *exportname)
{
  if (folder)
    return folder_get (folder, exportname, &h->served);
  h->served = only;
  return 0;
}

static void
put_served (struct handle *h)
{
  if (folder && h->served)
    folder_put (folder, h->served);
  h->served = NULL;
}

/* Open the next layer.  One overlay is one disk, whatever name a client asks
 * for: the plugin, which may choose an image by it, is asked for its default.
 */
static int
open_next (struct handle *h, nbdkit_next_open *next, nbdkit_context *context,
           int readonly)
{
  struct disk *disk = h->served->disk;

  h->read_only = readonly || !disk->writable;
  if (served_check_name (h->served) == -1 ||
      next (context, h->read_only,
            folder ? served_image_name (h->served) : "") == -1)
    return -1;
  return served_check_name (h->served);
}

static void *
addcow_open (nbdkit_next_open *next, nbdkit_context *context, int readonly,
             const char *exportname, int is_tls UNUSED)
{
  struct handle *h = calloc (1, sizeof *h);

  if (h == NULL) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  if (get_served (h, exportname) == -1) {
    free (h);
    return NULL;
  }
  if (open_next (h, next, context, readonly) == -1) {
    put_served (h);
    free (h);
    return NULL;
  }
  return h;
}

static int
addcow_prepare (nbdkit_next *next, void *handle, int readonly UNUSED)
{
  struct handle *h = handle;

  if (image_next_init (&h->image, next, settings.thread_model) == -1)
    return -1;
  if (h->image.can_write != 1)
    h->read_only = true;
  if (served_check_image (h->served, next, &h->image) == -1) {
    image_next_destroy (&h->image);
    return -1;
  }
  overlay_attach (h->served->disk->overlay, &h->image.image);
  h->attached = true;
  return 0;
}

static void
detach (struct handle *h)
{
  if (!h->attached)
    return;
  served_detach (h->served, &h->image.image);
  image_next_destroy (&h->image);
  h->attached = false;
}

/* When the server ends this is the last that is called for a connection. */
static int
addcow_finalize (nbdkit_next *next UNUSED, void *handle)
{
  struct handle *h = handle;

  detach (h);
  put_served (h);
  return 0;
}

static void
addcow_close (void *handle)
{
  struct handle *h = handle;

  /* It may not have been finalized: when a filter before this one failed. */
  detach (h);
  put_served (h);
  free (h);
}

/*--- What the export can do. ------------------------------------------*/

static int64_t
addcow_get_size (nbdkit_next *next UNUSED, void *handle)
{
  struct handle *h = handle;

  return overlay_size_bytes (h->served->disk->overlay);
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

/* The begin of a data callback.  Returns the overlay of H. */
static struct overlay *
begin (struct handle *h)
{
  served_begin (h->served);
  return h->served->disk->overlay;
}

/* The end of a data callback, whose result R is. */
static int
finish (struct handle *h, int r, const struct fault *fault, int *err)
{
  return served_finish (h->served, r, fault, err);
}

static int
addcow_pread (nbdkit_next *next UNUSED, void *handle, void *buf, uint32_t count,
              uint64_t offset, uint32_t flags UNUSED, int *err)
{
  struct handle *h = handle;
  struct overlay *ov = begin (h);
  struct fault fault;
  int r = overlay_read (ov, &h->image.image, buf, count, offset, &fault);

  return finish (h, r, &fault, err);
}

static int
addcow_pwrite (nbdkit_next *next UNUSED, void *handle, const void *buf,
               uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = handle;
  struct overlay *ov = begin (h);
  struct fault fault;
  int r = overlay_write (ov, &h->image.image, buf, count, offset,
                         image_flags (flags), &fault);

  return finish (h, r, &fault, err);
}

static int
addcow_flush (nbdkit_next *next UNUSED, void *handle, uint32_t flags UNUSED,
              int *err)
{
  struct handle *h = handle;
  struct overlay *ov = begin (h);
  struct fault fault;
  int r = 0;

  /* Nothing is written to a disk that is not writable. */
  if (h->served->disk->writable)
    r = overlay_flush (ov, &h->image.image, &fault);
  if (r == 0)
    served_flushed (h->served);
  return finish (h, r, &fault, err);
}

static int
addcow_trim (nbdkit_next *next UNUSED, void *handle, uint32_t count,
             uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = handle;
  struct overlay *ov = begin (h);
  struct fault fault;
  int r = overlay_trim (ov, &h->image.image, count, offset, image_flags (flags),
                        &fault);

  return finish (h, r, &fault, err);
}

static int
addcow_zero (nbdkit_next *next UNUSED, void *handle, uint32_t count,
             uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = handle;
  struct overlay *ov = begin (h);
  struct fault fault;
  int r = overlay_zero (ov, &h->image.image, count, offset, image_flags (flags),
                        &fault);

  /* The server takes this errno for the answer to a fast zero alone. */
  if (r == -1 && fault.err == EOPNOTSUPP && !(flags & NBDKIT_FLAG_FAST_ZERO))
    fault.err = EIO;
  return finish (h, r, &fault, err);
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
  struct overlay *ov = begin (h);
  struct fault fault;
  struct adder a = {
    .extents = extents,
    .offset = offset,
    .one = flags & NBDKIT_FLAG_REQ_ONE,
  };
  int r = overlay_extents (ov, &h->image.image, count, offset, add_extent, &a,
                           &fault);

  return finish (h, r, &fault, err);
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
  struct overlay *ov = h->served->disk->overlay;

  while (count > 0) {
    const uint64_t n = MIN (count, FILL_BYTES);

    if (overlay_fill_range (ov, &h->image.image, n, offset, fault) == -1)
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
  struct handle *h = handle;
  struct overlay *ov = begin (h);
  struct fault fault;
  int r = 0;

  if (settings.on_cache && !h->read_only)
    r = fill (h, count, offset, &fault);
  if (r == 0)
    r = overlay_cache (ov, &h->image.image, count, offset, &fault);
  return finish (h, r, &fault, err);
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
  .list_exports = addcow_list_exports,
  .default_export = addcow_default_export,
  .open = addcow_open,
  .close = addcow_close,
  .prepare = addcow_prepare,
  .finalize = addcow_finalize,
  .export_description = addcow_export_description,
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

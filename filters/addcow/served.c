/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common.h"
#include "names.h"
#include "report.h"
#include "served.h"

/*--- Errors. ----------------------------------------------------------*/

/* Say what failed, unless the next layer has said it. */
static void
report_fault (const struct disk *disk, const struct fault *fault)
{
  switch (fault->part) {
  case FAULT_IMAGE:
    break;
  case FAULT_BACKING:
    report_error ("%s: reading the backing file: %s",
                  disk->backing_location.name, addcow_strerror (fault->err));
    break;
  case FAULT_METADATA:
    report_error ("%s: metadata file: %s", disk->file_name,
                  addcow_strerror (fault->err));
    break;
  case FAULT_MEMORY:
    report_error ("%s: %s", disk->file_name, addcow_strerror (fault->err));
    break;
  }
}

void
served_log_backing (void *opaque UNUSED, const char *name, const char *text)
{
  report_error ("%s: %s", name, text);
}

static void
report_commit_fault (void *opaque, const struct fault *fault)
{
  const struct served *s = opaque;

  report_fault (s->disk, fault);
  report_error ("%s: what was allocated lately could not be committed: %s",
                s->disk->file_name, addcow_strerror (fault->err));
}

/* As people know it. */
static const char *
image_name (const struct served *s)
{
  if (s->settings->file_parameter)
    return s->settings->file_parameter;
  return s->disk->header.image_file[0] ? s->disk->header.image_file
                                       : "the image";
}

static void
report_filling_fault (void *opaque, const struct fault *fault)
{
  const struct served *s = opaque;

  if (fault->part == FAULT_BACKING)
    report_error ("%s: reading the backing file: %s: filling goes on "
                  "elsewhere and tries again",
                  s->disk->backing_location.name, addcow_strerror (fault->err));
  else
    report_error ("%s: filling pauses: %s",
                  fault->part == FAULT_IMAGE ? image_name (s)
                                             : s->disk->file_name,
                  addcow_strerror (fault->err));
}

/*--- Standing alone. --------------------------------------------------*/

/* When the image has everything, close what is not needed, and say so.  Who
 * cannot wait for others who read the backing file leaves it to the next one
 * who looks: returns false then.
 */
static bool
look_if_alone (struct served *s, bool wait)
{
  struct disk *disk = s->disk;
  bool had_backing;

  if (s->stands_alone || !disk->writable ||
      !overlay_stands_alone (disk->overlay))
    return true;
  if (!overlay_drop_backing (disk->overlay, wait))
    return false;
  if (atomic_exchange (&s->stands_alone, true))
    return true;
  hydrate_is_complete (&s->hydrate);
  had_backing = disk->backing != NULL;
  disk_close_backing (disk);
  report_error ("%s stands alone: %s %s no longer needed", image_name (s),
                disk->file_name,
                had_backing ? "and the backing file are" : "is");
  return true;
}

static void
filling_is_complete (void *opaque)
{
  look_if_alone (opaque, true);
}

/* Without its thread this is a request of a client; and one that has other
 * overlays to commit must not wait for a server that was lost: it comes again
 * when the next interval is over.
 */
static void
is_committed (void *opaque)
{
  struct served *s = opaque;
  const struct settings *settings = s->settings;
  const bool wait = committer_is_running (&settings->committer) &&
                    settings->pool == NULL;

  if (!look_if_alone (s, wait))
    committer_dirty (&s->commits);
}

/*--- Copy-on-read. ----------------------------------------------------*/

/* The server ends when a layer is written to that said it cannot be. */
static bool
can_write (struct image *image)
{
  return container_of (image, struct image_next, image)->can_write == 1;
}

/* Keep the sector of OFFSET, of which only a part was read. */
static void
keep_sector (struct served *s, struct image *image, uint64_t offset)
{
  struct fault fault;

  if (s->hydrate.filler &&
      filler_keep (s->hydrate.filler, NULL, FORMAT_SECTOR_BYTES,
                   offset - offset % FORMAT_SECTOR_BYTES))
    return;
  overlay_fill_range (s->disk->overlay, image, 1, offset, &fault);
}

/* Keep whole sectors that were read: later, or now if that is too much.  The
 * read has succeeded, whatever comes of this.
 */
static void
keep_sectors (struct served *s, struct image *image, const void *buf,
              size_t count, uint64_t offset)
{
  struct fault fault;

  if (s->hydrate.filler && filler_keep (s->hydrate.filler, buf, count, offset))
    return;
  overlay_keep (s->disk->overlay, image, buf, count, offset, false, &fault);
}

static void
keep (struct served *s, struct image *image, const char *buf, size_t count,
      uint64_t offset)
{
  const uint64_t end = offset + count;
  const uint64_t first = DIV_ROUND_UP (offset, FORMAT_SECTOR_BYTES) *
                         FORMAT_SECTOR_BYTES;
  const uint64_t last = end - end % FORMAT_SECTOR_BYTES;

  if (first < last)
    keep_sectors (s, image, buf + (first - offset), last - first, first);
  if (first != offset)
    keep_sector (s, image, offset);
  if (last != end && last >= first)
    keep_sector (s, image, last);
}

/*--- What the overlay tells. ------------------------------------------*/

static void
overlay_is_dirty (void *opaque)
{
  struct served *s = opaque;

  committer_dirty (&s->commits);
}

static void
overlay_missed (void *opaque, struct image *image, const void *buf,
                size_t count, uint64_t offset)
{
  struct served *s = opaque;

  if (s->hydrate.counts)
    filler_hot (s->hydrate.filler, count, offset);
  if (s->disk->writable && can_write (image) &&
      switch_is_on (&s->settings->on_read))
    keep (s, image, buf, count, offset);
}

/*--- Opening. ---------------------------------------------------------*/

static int
open_disk (struct served *s, const struct served_files *files)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  const struct settings *settings = s->settings;
  const struct overlay_hooks hooks = {
    .dirty = overlay_is_dirty,
    .missed = overlay_missed,
    .opaque = s,
  };
  const struct disk_options options = {
    .read_only = settings->args.read_only,
    .image_path = settings->file_parameter,
    .metadata_path = files->path,
    .check_image = settings->args.file_plugin_is_next,
    .backing_name = settings->backing_name,
    .backing = {
      .format = settings->backing_format,
      .timeout_seconds = settings->backing_timeout_seconds,
      .confine = files->confine,
      .log = served_log_backing,
      .pool = settings->pool,
    },
    .map_cache = settings->map_cache,
    .hooks = &hooks,
  };

  if (disk_open (&s->disk, files->name, &options, &failure) == 0)
    return 0;
  report_failure (&failure, files->image_folder ? files->name : NULL);
  return -1;
}

const char *
settings_filling (const struct settings *settings)
{
  if (switch_may_be_on (&settings->hydrating))
    return "addcow-hydrate";
  if (switch_may_be_on (&settings->on_read))
    return "addcow-on-read";
  return settings->on_cache ? "addcow-on-cache" : NULL;
}

static bool
filling_is_wanted (void *opaque)
{
  const struct served *s = opaque;

  return switch_is_on (&s->settings->hydrating);
}

static int
check_context (void *opaque, nbdkit_next *next, const struct image_next *image)
{
  return served_check_image (opaque, next, image);
}

static void
set_up_hydrate (struct served *s)
{
  const struct settings *settings = s->settings;
  struct hydrate *h = &s->hydrate;

  h->ov = s->disk->overlay;
  h->only_keep = !switch_may_be_on (&settings->hydrating);
  h->rate_bytes = settings->hydrate_rate_bytes;
  h->share = settings->share;
  h->commits = settings->commit_interval_seconds > 0;
  h->backing = s->disk->backing;
  h->image_fd = settings->args.file_plugin_is_next ? s->disk->image_fd : -1;
  h->wanted = settings->hydrating.path ? filling_is_wanted : NULL;
  h->complete = filling_is_complete;
  h->failed = report_filling_fault;
  h->check = check_context;
  h->opaque = s;
}

/* Is what has the name of the image, by which the next layer opens it, the
 * file that was locked?
 */
static bool
is_image (const struct served *s)
{
  struct stat named, locked;

  return s->disk->image_fd == -1 ||
         (fstat (s->disk->image_fd, &locked) == 0 &&
          fstatat (AT_FDCWD, s->image_path, &named, s->image_flags) == 0 &&
          same_file (&named, &locked));
}

const char *
served_image_name (const struct served *s)
{
  const char *name = s->disk->image_location.name;

  return name ? name_basename (name) : "";
}

static int
set_path_in_folder (struct served *s, const char *folder)
{
  const char *name = served_image_name (s);

  if (asprintf (&s->image_path, "%s/%s", folder, name) == -1) {
    s->image_path = NULL;
    report_error ("asprintf: %m");
    return -1;
  }
  s->image_flags = AT_SYMLINK_NOFOLLOW;
  if (name[0] && s->disk->image_fd >= 0 && is_image (s))
    return 0;
  report_error ("%s: its image must be a file in the folder %s itself",
                s->disk->file_name, folder);
  return -1;
}

static int
set_image_path (struct served *s, const struct served_files *files)
{
  const struct location *location = &s->disk->image_location;

  if (files->image_folder)
    return set_path_in_folder (s, files->image_folder);
  /* What is relative to the folder of the start cannot be found again. */
  if (location->fd == -1 && location->name && location->name[0] == '/')
    s->image_path = strdup (location->name);
  return 0;
}

static int
set_up (struct served *s, const struct served_files *files)
{
  const char *parameter = settings_filling (s->settings);

  if (open_disk (s, files) == -1)
    return -1;
  if (parameter && !s->disk->writable) {
    report_error ("%s: %s needs a disk that can be written to", files->name,
                  parameter);
    return -1;
  }
  if (set_image_path (s, files) == -1)
    return -1;
  s->commits.committer = &s->settings->committer;
  s->commits.ov = s->disk->overlay;
  s->commits.report = report_commit_fault;
  s->commits.committed = is_committed;
  s->commits.opaque = s;
  set_up_hydrate (s);
  return 0;
}

int
served_open (struct served **ret, struct settings *settings,
             const struct served_files *files)
{
  struct served *s = calloc (1, sizeof *s);

  if (s == NULL) {
    nbdkit_error ("calloc: %m");
    return -1;
  }
  s->settings = settings;
  s->rest_fd = -1;
  if (set_up (s, files) == -1) {
    served_close (s);
    return -1;
  }
  *ret = s;
  return 0;
}

/* End what commit_rest began, which tries again. */
static void
drop_rest (struct served *s)
{
  struct fault fault;

  if (s->rest_fd == -1)
    return;
  /* That it fails was reported when it did so first. */
  overlay_detach (s->disk->overlay, &s->rest.image, &fault);
  close (s->rest_fd);
  s->rest_fd = -1;
}

void
served_close (struct served *s)
{
  if (s == NULL)
    return;
  drop_rest (s);
  if (s->disk && overlay_uncommitted (s->disk->overlay))
    report_error ("%s: what was allocated since the last commit is lost",
                  s->disk->file_name);
  disk_close (s->disk);
  free (s->image_path);
  free (s);
}

/*--- Starting and stopping. -------------------------------------------*/

/* A thread of ours can keep what is read, and fill. */
static bool
needs_hydrate (const struct settings *settings)
{
  return (switch_may_be_on (&settings->hydrating) ||
          switch_may_be_on (&settings->on_read)) &&
         settings->thread_model >= NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS;
}

/* Without a context of ours the image is filled as a file, if it is one for
 * the next layer too.
 */
static bool
can_hydrate (const struct served *s, const nbdkit_backend *backend)
{
  return backend || s->hydrate.image_fd >= 0;
}

int
served_start (struct served *s, nbdkit_backend *backend)
{
  int r = 0;

  /* First, as it looks at the backing file, which who commits may close. */
  if (needs_hydrate (s->settings) && can_hydrate (s, backend))
    r = hydrate_start (&s->hydrate, backend, s->settings->thread_model);
  if (r == 0)
    committer_add (&s->commits);
  return r;
}

/* Have an image that no client has attached, until drop_rest.  Returns 0, or
 * an errno, ADDCOW_E_NO_IMAGE where there can be none.
 */
static int
attach_rest (struct served *s)
{
  int r;

  if (s->rest_fd >= 0)
    return 0;
  if (!s->settings->args.file_plugin_is_next)
    return ADDCOW_E_NO_IMAGE;
  r = disk_open_image (s->disk, &s->rest_fd);
  if (r)
    return r;
  image_file_init (&s->rest, s->rest_fd);
  s->rest.image.no_client = true;
  overlay_attach (s->disk->overlay, &s->rest.image);
  return 0;
}

/* What could not be committed when the last client left: try again. */
static void
commit_rest (struct served *s)
{
  struct fault fault;
  int r;

  if (!overlay_uncommitted (s->disk->overlay))
    return;
  r = attach_rest (s);
  if (r && r != ADDCOW_E_NO_IMAGE)
    report_error ("%s: cannot be opened to commit what was written to it: %s",
                  image_name (s), addcow_strerror (r));
  else if (r == 0 && overlay_commit (s->disk->overlay, &fault) == -1)
    report_commit_fault (s, &fault);
}

bool
served_stop (struct served *s)
{
  struct fault fault;

  if (!hydrate_stop (&s->hydrate, &fault))
    report_commit_fault (s, &fault);
  committer_remove (&s->commits);
  commit_rest (s);
  /* By what was kept only now. */
  look_if_alone (s, true);
  if (overlay_uncommitted (s->disk->overlay))
    return false;
  drop_rest (s);
  return true;
}

void
served_keep (struct served *s, bool (*is_over) (void *opaque),
             void (*over) (void *opaque))
{
  s->commits.is_over = is_over;
  s->commits.over = over;
  s->commits.failed = true; /* which was said */
  committer_add (&s->commits);
}

bool
served_is_committed (struct served *s)
{
  struct overlay *ov = s->disk->overlay;
  struct fault fault;

  /* Whoever commits found no image to do it through. */
  if (overlay_uncommitted (ov) && s->rest_fd == -1 && attach_rest (s) == 0)
    overlay_commit (ov, &fault);
  return !overlay_uncommitted (ov);
}

/*--- Images of clients. -----------------------------------------------*/

int
served_check_image (struct served *s, nbdkit_next *next,
                    const struct image_next *image)
{
  const struct disk *disk = s->disk;
  const uint64_t size_bytes = overlay_size_bytes (disk->overlay);
  uint32_t minimum, preferred, maximum;

  if ((uint64_t) image->size_bytes < size_bytes) {
    report_error ("%s: the image is %" PRId64 " bytes long, shorter than "
                  "the virtual disk of %" PRIu64 " bytes",
                  disk->image_location.name ? disk->image_location.name
                                            : disk->file_name,
                  image->size_bytes, size_bytes);
    return -1;
  }
  if (next->block_size (next, &minimum, &preferred, &maximum) == -1)
    return -1;
  if (minimum > FORMAT_SECTOR_BYTES) {
    report_error ("%s: the image takes no requests smaller than %" PRIu32
                  " bytes: add --filter=blocksize behind this filter",
                  disk->file_name, minimum);
    return -1;
  }
  return 0;
}

int
served_check_name (struct served *s)
{
  if (s->image_path == NULL || is_image (s))
    return 0;
  report_error ("%s: is another file by now than the one that is served",
                s->image_path);
  return -1;
}

void
served_detach (struct served *s, struct image *image)
{
  struct fault fault;

  if (overlay_detach (s->disk->overlay, image, &fault) == -1)
    report_commit_fault (s, &fault);
  else
    look_if_alone (s, false);
}

/*--- Requests begin and end. ------------------------------------------*/

void
served_begin (struct served *s)
{
  hydrate_client_begins (&s->hydrate);
}

int
served_finish (struct served *s, int r, const struct fault *fault, int *err)
{
  hydrate_client_ends (&s->hydrate);
  if (r == -1) {
    report_fault (s->disk, fault);
    *err = addcow_errno (fault->err);
  }
  committer_poll (&s->commits);
  return r;
}

void
served_flushed (struct served *s)
{
  /* Else a thread will. */
  if (!committer_is_running (&s->settings->committer))
    look_if_alone (s, false);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An overlay that is served: its files, opened and locked (lib/disk.h), the
 * commits and the filling that no client asks for, and what is said of all
 * that.  Everybody who uses the overlay shares it.
 *
 * Its life is: served_open; served_start, when threads may run; clients that
 * attach and detach their images; served_stop, when the last one has;
 * served_close.  One that cannot be committed then may be kept instead
 * (served_keep) and stopped again later, but it is not started any more: its
 * backing file may be gone.
 */

#ifndef ADDCOW_SERVED_H
#define ADDCOW_SERVED_H

#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-filter.h>

#include "backing.h"
#include "committer.h"
#include "disk.h"
#include "hydrate.h"
#include "image-next.h"
#include "server-args.h"
#include "switch.h"

/* What holds for all overlays of a server: its parameters and what was made
 * of them.  Nothing of it changes once clients come, but what has a lock of
 * its own.
 */
struct settings {
  const char *file_parameter; /* file=, which is the plugin's */
  const char *backing_name;   /* "" for none */
  const char *backing_format;
  const char *confine;
  unsigned backing_timeout_seconds;
  unsigned commit_interval_seconds;
  struct switch_ on_read;
  int on_cache;
  struct switch_ hydrating;
  bool hydrate_given;
  uint64_t hydrate_rate_bytes; /* a second; 0: any */

  struct server_args args;
  int thread_model; /* of the server, known from .get_ready on */
  struct committer committer;
  struct map_cache *map_cache;
  struct filler_share *share; /* of all overlays; NULL: each its own */
  struct backing_pool *pool;  /* likewise */
};

/* The parameter, if any is on, that needs disks that can be written to; or
 * NULL.
 */
const char *settings_filling (const struct settings *settings);

struct served {
  struct settings *settings;
  void *owner; /* the caller's */
  struct disk *disk;

  /* By which the next layer opens the image each time, or NULL: it is not
   * known, or it always leads to the same file.
   */
  char *image_path;
  int image_flags; /* of fstatat */

  struct commits commits;
  struct hydrate hydrate;

  /* The image by which is tried again what could not be committed, when no
   * client has any: attached if REST_FD is not -1.
   */
  struct image_file rest;
  int rest_fd;

  _Atomic bool stands_alone; /* it was said */
};

/* What happened to a backing file, and to no request: see struct
 * backing_options.
 */
void served_log_backing (void *opaque, const char *name, const char *text);

/* Where the files of an overlay are. */
struct served_files {
  const char *name;    /* of the metadata file: for messages */
  const char *path;    /* by which it is opened, if not by NAME; or NULL */
  const char *confine; /* see struct backing_options */

  /* The image must be a file directly in this folder, an absolute path, from
   * which the next layer opens it by its name; or NULL.
   */
  const char *image_folder;
};

/* Open the overlay whose metadata file is that of FILES.  On success *SERVED
 * is closed by served_close.  Returns 0, or -1 and the error was reported.
 * May block, as disk_open does.
 */
int served_open (struct served **served, struct settings *settings,
                 const struct served_files *files);

/* Begin to commit and, if that is asked for, to fill: through a context of
 * BACKEND that no client has, or if it is NULL, through the file that the
 * image is.  Returns 0, or -1 and the error was reported; served_stop is due
 * in any case.
 */
int served_start (struct served *s, nbdkit_backend *backend);

/* End that: what is not committed is committed.  No client uses the overlay any
 * more.  Returns whether that succeeded; it was reported that it did not.  May
 * block.
 */
bool served_stop (struct served *s);

/* After that, when it did not: go on to try to commit, at each interval where
 * there are threads for that.  IS_OVER and OVER get S and are called as struct
 * commits says.  Takes the committer's lock, does not block otherwise.
 */
void served_keep (struct served *s, bool (*is_over) (void *opaque),
                  void (*over) (void *opaque));

/* To be called by IS_OVER: is all committed by now?  May block, to try it where
 * that was not possible.
 */
bool served_is_committed (struct served *s);

/* Close all; NULL is ignored.  What served_stop could not commit is tried once
 * more, if that had an image to do it through, and reported if it is lost.  May
 * block.
 */
void served_close (struct served *s);

/* Is IMAGE, that of the next layer, fit for the overlay?  Returns 0, or -1 and
 * the error was reported.
 */
int served_check_image (struct served *s, nbdkit_next *next,
                        const struct image_next *image);

/* The name of the image, without the folder that it is in.  The overlay's. */
const char *served_image_name (const struct served *s);

/* Is what the next layer opens still the file that was locked, as far as that
 * can be seen?  If not clients would write to several files and share one map.
 * Returns 0, or -1 and the error was reported.  To be called before the layer
 * is opened, and after.
 */
int served_check_name (struct served *s);

/* Detach IMAGE of a client, and commit what is uncommitted.  May block. */
void served_detach (struct served *s, struct image *image);

/* A request of a client begins, or ends: with R, which is returned, and if
 * that is -1, with *FAULT, which is reported and put into *ERR.
 */
void served_begin (struct served *s);
int served_finish (struct served *s, int r, const struct fault *fault,
                   int *err);

/* A client's flush has succeeded. */
void served_flushed (struct served *s);

#endif /* ADDCOW_SERVED_H */

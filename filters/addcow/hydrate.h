/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Filling the image while it is served: the engine's filler (lib/filler.h)
 * over a context of the plugin that no client has, or over the file that the
 * plugin has open.
 *
 * It is opened when the server has forked, before the first client, or where
 * there are many overlays with its first client, and closed when the last one
 * is gone.  It is there too when only what clients read is to be kept, so that
 * they need not wait for that.
 *
 * The file is for nbdkit-file-plugin when it serves a folder: which of its
 * files it opens it asks the connection of a client, which a context of ours
 * has not.
 *
 * Plugins that take one request of all connections at a time cannot have it:
 * nbdkit keeps what its clients do apart, opening and closing included, but
 * not what others do.
 */

#ifndef ADDCOW_HYDRATE_H
#define ADDCOW_HYDRATE_H

#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-filter.h>

#include "filler.h"
#include "image-file.h"
#include "image-next.h"
#include "overlay.h"

struct hydrate {
  /* Set before it starts. */
  struct overlay *ov;
  bool only_keep;
  uint64_t rate_bytes;           /* a second; 0: any */
  struct filler_share *share;    /* see filler.h */
  bool commits;                  /* from time to time, not only at the end */
  const struct backing *backing; /* looked at by hydrate_start alone */
  int image_fd;                  /* the image as a local file, or -1 */

  /* The context has to be fit to be the image: returns 0, or -1 and the error
   * was reported.
   */
  int (*check) (void *opaque, nbdkit_next *next,
                const struct image_next *image);

  bool (*wanted) (void *opaque); /* these: see filler.h */
  void (*complete) (void *opaque);
  void (*failed) (void *opaque, const struct fault *);
  void *opaque;

  /* NULL: there is none, or it has not started. */
  struct filler *filler;

  /* Are clients to be counted?  Not when all is done. */
  _Atomic bool counts;

  struct image *image; /* attached, or NULL */

  /* One of both is the image. */
  nbdkit_next *next;
  bool prepared;
  struct image_next image_next;
  int fd; /* of the file, if has_fd */
  bool has_fd;
  struct image_file image_file;
};

/* Where what is written through one connection need not be seen by others
 * nothing is started if only_keep, and it is an error otherwise.
 *
 * Open a context of BACKEND, or if that is NULL the file of image_fd, see that
 * it is fit to be the image, and begin.  To be called when the server has
 * forked.  THREAD_MODEL is the server's.  Returns 0, or -1 and the error has
 * been reported.
 */
int hydrate_start (struct hydrate *h, nbdkit_backend *backend,
                   int thread_model);

/* End: what is queued is kept, and what is not committed is, and if that
 * fails false is returned and *FAULT tells.  What was opened is closed.  Does
 * nothing when it has not started.  Waits for requests under way.
 */
bool hydrate_stop (struct hydrate *h, struct fault *fault);

/* All is filled: clients are not counted any more. */
void hydrate_is_complete (struct hydrate *h);

/* A request of a client begins, or ends. */
void hydrate_client_begins (struct hydrate *h);
void hydrate_client_ends (struct hydrate *h);

#endif /* ADDCOW_HYDRATE_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Filling the image while it is served: the engine's filler (lib/filler.h)
 * over a context of the plugin that no client has.
 *
 * The context is opened when the server has forked, before the first
 * client, and closed when the last one is gone.  It is there too when only
 * what clients read is to be kept, so that they need not wait for that.
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
#include "image-next.h"
#include "overlay.h"

struct hydrate {
  /* Set before it starts. */
  struct overlay *ov;
  bool only_keep;
  uint64_t rate_bytes;           /* a second; 0: any */
  bool commits;                  /* from time to time, not only at the end */
  const struct backing *backing; /* looked at by hydrate_start alone */
  int image_fd;                  /* the image as a local file, or -1 */
  bool (*wanted) (void *);       /* see filler.h; their opaque is NULL */
  void (*complete) (void *);
  void (*failed) (void *, const struct fault *);

  /* NULL: there is none, or it has not started. */
  struct filler *filler;

  /* Are clients to be counted?  Not when all is done. */
  _Atomic bool counts;

  nbdkit_next *next;
  bool prepared, attached;
  struct image_next image;
};

/* Where what is written through one connection need not be seen by others
 * nothing is started if only_keep, and it is an error otherwise.
 *
 * Open the context, see that CHECK finds it fit to be the image, and begin.
 * To be called from .after_fork.  THREAD_MODEL is the server's.  Returns 0, or
 * -1 and the error has been reported.
 */
int hydrate_start (struct hydrate *h, nbdkit_backend *backend, int thread_model,
                   int (*check) (nbdkit_next *next,
                                 const struct image_next *image));

/* End: what is queued is kept, and what is not committed is, and if that
 * fails false is returned and *FAULT tells.  The context is closed.  Does
 * nothing when it has not started.  Waits for requests under way.
 */
bool hydrate_stop (struct hydrate *h, struct fault *fault);

/* All is filled: clients are not counted any more. */
void hydrate_is_complete (struct hydrate *h);

/* A request of a client begins, or ends. */
void hydrate_client_begins (struct hydrate *h);
void hydrate_client_ends (struct hydrate *h);

#endif /* ADDCOW_HYDRATE_H */

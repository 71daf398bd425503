/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "common.h"
#include "error.h"
#include "hydrate.h"

/* What is filled is seen by clients, each by way of a connection of its own.
 */
static int
check_can_fill (const struct hydrate *h)
{
  if (h->image.can_write != 1)
    nbdkit_error ("the image cannot be filled: it cannot be written to");
  else if (h->next->can_multi_conn (h->next) != 1)
    nbdkit_error ("the image cannot be filled while it is served: without "
                  "multi-conn, which the plugin does not offer, clients need "
                  "not see what others write");
  else
    return 0;
  return -1;
}

/* On success the image is attached, unless it is better not used. */
static int
open_context (struct hydrate *h, nbdkit_backend *backend, int thread_model,
              int (*check) (nbdkit_next *next, const struct image_next *image))
{
  nbdkit_next *next = nbdkit_next_context_open (backend, 0, "", 1);

  if (next == NULL)
    return -1;
  h->next = next;
  if (next->prepare (next) == -1)
    return -1;
  h->prepared = true;
  if (h->only_keep && next->can_multi_conn (next) != 1)
    return 0;
  if (image_next_init (&h->image, next, thread_model) == -1)
    return -1;
  if (check (next, &h->image) == -1 || check_can_fill (h) == -1) {
    image_next_destroy (&h->image);
    return -1;
  }
  h->image.image.no_client = true;
  overlay_attach (h->ov, &h->image.image);
  h->attached = true;
  return 0;
}

static int
start_filler (struct hydrate *h)
{
  struct filler_options options;
  int r;

  filler_options_init (&options, h->ov, &h->image.image, h->backing);
  options.rate_bytes = h->rate_bytes;
  if (!h->commits)
    options.commit_bytes = 0;
  options.image_fd = h->image_fd;
  options.only_keep = h->only_keep;
  options.wanted = h->wanted;
  options.complete = h->complete;
  options.failed = h->failed;
  h->counts = !h->only_keep; /* until it is complete, which may be at once */
  r = filler_start (&h->filler, &options);
  if (r == 0)
    return 0;
  h->counts = false;
  nbdkit_error ("cannot start filling the image: %s", addcow_strerror (r));
  return -1;
}

int
hydrate_start (struct hydrate *h, nbdkit_backend *backend, int thread_model,
               int (*check) (nbdkit_next *next, const struct image_next *image))
{
  struct fault fault;

  if (open_context (h, backend, thread_model, check) == 0) {
    /* Each client keeps what it reads by its own connection. */
    if (!h->attached)
      return hydrate_stop (h, &fault) ? 0 : -1;
    if (start_filler (h) == 0)
      return 0;
  }
  hydrate_stop (h, &fault); /* nothing was written */
  return -1;
}

bool
hydrate_stop (struct hydrate *h, struct fault *fault)
{
  int r = 0;

  filler_stop (h->filler);
  h->filler = NULL;
  if (h->attached) {
    r = overlay_detach (h->ov, &h->image.image, fault);
    image_next_destroy (&h->image);
    h->attached = false;
  }
  if (h->prepared)
    h->next->finalize (h->next);
  h->prepared = false;
  if (h->next)
    nbdkit_next_context_close (h->next);
  h->next = NULL;
  return r == 0;
}

void
hydrate_is_complete (struct hydrate *h)
{
  h->counts = false;
}

void
hydrate_client_begins (struct hydrate *h)
{
  if (h->counts)
    filler_client_begins (h->filler);
}

void
hydrate_client_ends (struct hydrate *h)
{
  if (h->counts)
    filler_client_ends (h->filler);
}

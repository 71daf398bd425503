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
  if (h->image_next.can_write != 1)
    nbdkit_error ("the image cannot be filled: it cannot be written to");
  else if (h->next->can_multi_conn (h->next) != 1)
    nbdkit_error ("the image cannot be filled while it is served: without "
                  "multi-conn, which the plugin does not offer, clients need "
                  "not see what others write");
  else
    return 0;
  return -1;
}

static void
attach (struct hydrate *h, struct image *image)
{
  image->no_client = true;
  overlay_attach (h->ov, image);
  h->image = image;
}

/* On success the image is attached, unless it is better not used. */
static int
open_context (struct hydrate *h, nbdkit_backend *backend, int thread_model)
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
  if (image_next_init (&h->image_next, next, thread_model) == -1)
    return -1;
  if (h->check (h->opaque, next, &h->image_next) == -1 ||
      check_can_fill (h) == -1) {
    image_next_destroy (&h->image_next);
    return -1;
  }
  attach (h, &h->image_next.image);
  return 0;
}

static int
open_file (struct hydrate *h)
{
  int r = fd_reopen_writable (h->image_fd, &h->fd);

  if (r) {
    nbdkit_error ("the image cannot be filled: %s", addcow_strerror (r));
    return -1;
  }
  h->has_fd = true;
  image_file_init (&h->image_file, h->fd);
  attach (h, &h->image_file.image);
  return 0;
}

static int
start_filler (struct hydrate *h)
{
  struct filler_options options;
  int r;

  filler_options_init (&options, h->ov, h->image, h->backing);
  options.rate_bytes = h->rate_bytes;
  options.share = h->share;
  if (h->share) /* there are many: a thread for each is enough */
    options.nr_workers = 1;
  if (!h->commits)
    options.commit_bytes = 0;
  options.image_fd = h->image_fd;
  options.only_keep = h->only_keep;
  options.wanted = h->wanted;
  options.complete = h->complete;
  options.failed = h->failed;
  options.opaque = h->opaque;
  h->counts = !h->only_keep; /* until it is complete, which may be at once */
  r = filler_start (&h->filler, &options);
  if (r == 0)
    return 0;
  h->counts = false;
  nbdkit_error ("cannot start filling the image: %s", addcow_strerror (r));
  return -1;
}

int
hydrate_start (struct hydrate *h, nbdkit_backend *backend, int thread_model)
{
  struct fault fault;

  if ((backend ? open_context (h, backend, thread_model) : open_file (h)) ==
      0) {
    /* Each client keeps what it reads by its own connection. */
    if (h->image == NULL)
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
  if (h->image) {
    r = overlay_detach (h->ov, h->image, fault);
    if (!h->has_fd)
      image_next_destroy (&h->image_next);
    h->image = NULL;
  }
  if (h->has_fd)
    close (h->fd);
  h->has_fd = false;
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

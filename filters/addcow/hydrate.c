/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "common.h"
#include "error.h"
#include "hydrate.h"

/* More are of use where each waits for another machine; memory goes by the
 * product.
 */
#define NR_WORKERS_NEAR 4
#define NR_WORKERS_FAR 8
#define REQUEST_BYTES_NEAR (256 * 1024)
#define REQUEST_BYTES_FAR (1024 * 1024)

#define COMMIT_BYTES (64 * 1024 * 1024)

static int
open_context (struct hydrate *h, nbdkit_backend *backend, int thread_model,
              pthread_mutex_t *lock,
              int (*check) (nbdkit_next *next, const struct image_next *image))
{
  nbdkit_next *next = nbdkit_next_context_open (backend, 0, "", 1);

  if (next == NULL)
    return -1;
  h->next = next;
  if (next->prepare (next) == -1)
    return -1;
  h->prepared = true;
  if (image_next_init (&h->image, next, thread_model, lock) == -1)
    return -1;
  if (check (next, &h->image) == -1) {
    image_next_destroy (&h->image);
    return -1;
  }
  if (h->image.can_write != 1) {
    nbdkit_error ("the image cannot be filled: it cannot be written to");
    image_next_destroy (&h->image);
    return -1;
  }
  overlay_attach (h->ov, &h->image.image);
  h->attached = true;
  return 0;
}

static int
start_filler (struct hydrate *h)
{
  const struct filler_options options = {
    .ov = h->ov,
    .image = &h->image.image,
    .nr_workers = h->backing_is_far ? NR_WORKERS_FAR : NR_WORKERS_NEAR,
    .request_bytes = h->backing_is_far ? REQUEST_BYTES_FAR : REQUEST_BYTES_NEAR,
    .rate_bytes = h->rate_bytes,
    .commit_bytes = h->commits ? COMMIT_BYTES : 0,
    .image_fd = h->image_fd,
    .only_keep = h->only_keep,
    .wanted = h->wanted,
    .complete = h->complete,
    .failed = h->failed,
  };
  int r = filler_start (&h->filler, &options);

  if (r == 0)
    return 0;
  nbdkit_error ("cannot start filling the image: %s", addcow_strerror (r));
  return -1;
}

int
hydrate_start (struct hydrate *h, nbdkit_backend *backend, int thread_model,
               pthread_mutex_t *lock,
               int (*check) (nbdkit_next *next, const struct image_next *image))
{
  struct fault fault;

  if (open_context (h, backend, thread_model, lock, check) == 0 &&
      start_filler (h) == 0) {
    h->counts = !h->only_keep;
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

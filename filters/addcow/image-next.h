/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The next layer of an nbdkit server, as one connection sees it, as an
 * image (lib/image.h).
 *
 * Errors are those that the layer set, which it has reported already.
 */

#ifndef ADDCOW_IMAGE_NEXT_H
#define ADDCOW_IMAGE_NEXT_H

#include <pthread.h>
#include <stdbool.h>

#include <nbdkit-filter.h>

#include "image.h"

struct image_next {
  struct image image;
  nbdkit_next *next;
  int64_t size_bytes;

  /* What the layer can do, as its can_* functions say. */
  int can_write;
  int can_flush;
  int can_trim;
  int can_zero;
  int can_fast_zero;
  int can_extents;
  int can_fua;
  int can_cache;

  /* With plugins that take one request of a connection at a time, this
   * keeps a commit of another thread out while one is under way.  Held
   * over a single call of the layer, the last lock that is taken.
   */
  bool serialize;
  pthread_mutex_t lock;
};

/* Make *IMAGE one over NEXT, which is asked what it can do; to be called
 * from .prepare.  THREAD_MODEL is the server's.  Returns 0, and then
 * image_next_destroy is due, or -1: the layer has reported the error.
 */
int image_next_init (struct image_next *image, nbdkit_next *next,
                     int thread_model);

void image_next_destroy (struct image_next *image);

#endif /* ADDCOW_IMAGE_NEXT_H */

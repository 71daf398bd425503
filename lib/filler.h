/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Filling an overlay in the background, by a few threads.
 *
 * What a worker does next
 * -----------------------
 * - Keep what a client read from the backing file: it is queued, as a copy,
 *   so that the client need not wait for the image.
 * - Fill a hot area, one that a client has just read from: it is likely to
 *   read on there.  An area is 1 MiB; with it goes the one behind it.  The
 *   newest is first.
 * - Fill its own span of 4 MiB, or more where the last one had no data, which
 *   it takes from the front; the next one begins where the last one ended,
 *   whoever took it.  A step is as much as overlay_fill does at once.
 *
 * When the spans have come to the end of the disk that was a pass.  What
 * could not be filled in it is left for the next one, which begins some time
 * after the last failure: a second, or twice as long as before when nothing at
 * all was filled meanwhile, up to a minute.  What is filled is not remembered
 * but in the map, so whoever starts again goes on where the bits say.
 *
 * - When reading the backing file fails smaller steps are made of it; the
 *   smallest is left out, after many in a row a longer part of the disk,
 *   chosen at random: a server that is gone makes a short pass, and one bad
 *   region does not hide another.
 * - When writing fails all filling pauses for a second, or twice as long as
 *   the last pause, up to a minute, and what is queued to be kept is dropped.
 * - When clients are busy one worker goes on, and rests three times as long
 *   as it worked.  They are while a request of theirs is under way, and for
 *   a little time after.
 *
 * A worker that comes to the end of a span begins to have it written to the
 * disk, and waits until the one before is.  So filling goes no faster than
 * the disk for long, and leaves little for the flush of a client.
 *
 * After each commit_bytes of data the worker that filled the last one
 * commits, so that what was done is not done again after a crash.  The spans
 * that were filled are dropped from the system's memory then, so that filling
 * takes that of nobody who has better use for it; hot areas are not, as they
 * will be read.  When everything is allocated it is committed, that is told,
 * and the threads end.
 *
 * Locks
 * -----
 * filler->lock protects all that is not said to be atomic or a worker's own.
 * No other lock is taken while it is held, but that of the share, and no I/O
 * is done.
 */

#ifndef ADDCOW_FILLER_H
#define ADDCOW_FILLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "overlay.h"

struct filler;
struct filler_share;

struct filler_options {
  struct overlay *ov;
  struct image *image; /* attached; for all workers, at a time */
  unsigned nr_workers;
  size_t request_bytes; /* of data at once; a multiple of 4096 */
  uint64_t rate_bytes;  /* of data in a second; 0: as fast as can be */

  /* The rate and the buffers of this, instead of RATE_BYTES and its own; its
   * owner frees it later.  Or NULL.
   */
  struct filler_share *share;

  uint64_t commit_bytes; /* 0: commit only when all is allocated */

  /* The image as a file, to write it out as it is filled; or -1. */
  int image_fd;

  /* Nothing is filled but what is given to filler_keep. */
  bool only_keep;

  /* Is filling wanted now?  Asked again and again, from any worker.  NULL:
   * it is.
   */
  bool (*wanted) (void *opaque);

  /* All sectors are allocated, and that is on disk.  Called once. */
  void (*complete) (void *opaque);

  /* Filling failed, and is tried again; told when that begins, and again
   * when there was no such failure for some minutes.
   */
  void (*failed) (void *opaque, const struct fault *fault);

  /* Of these; they are called by workers, without locks. */
  void *opaque;
};

/* Set OPTIONS to what is good for filling IMAGE from BACKING, which may be
 * NULL; the rest is empty.
 */
void filler_options_init (struct filler_options *options, struct overlay *ov,
                          struct image *image, const struct backing *backing);

/* Start.  OPTIONS are copied.  On success *FILLER is stopped by filler_stop.
 * Returns 0 or an errno.
 */
int filler_start (struct filler **filler, const struct filler_options *options);

/* Write what is queued to be kept, then end the threads and free all; NULL
 * is ignored.  Waits for requests that are under way, but those to the
 * backing file are interrupted, which cannot be read any more after this.
 */
void filler_stop (struct filler *filler);

/* Keep a copy of BUF, which was read from the backing file: COUNT bytes at
 * OFFSET, whole sectors.  With NULL it is read again, for a sector of which
 * only a part was read.  Returns false, and nothing is kept, when too much is
 * queued already or memory is short.  Where to keep it would do no good, or
 * is likely to fail, it is dropped.  Takes filler->lock; does not block.
 */
bool filler_keep (struct filler *filler, const void *buf, size_t count,
                  uint64_t offset);

/* A client has read this range from the backing file.  Takes filler->lock;
 * does not block.
 */
void filler_hot (struct filler *filler, uint64_t count, uint64_t offset);

/* A request of a client begins, or ends.  Takes no lock. */
void filler_client_begins (struct filler *filler);
void filler_client_ends (struct filler *filler);

/* How many bytes were filled, zeroes and what was kept included.  Takes no
 * lock.
 */
uint64_t filler_nr_bytes (struct filler *filler);

#endif /* ADDCOW_FILLER_H */

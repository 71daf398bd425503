/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the fillers of a process (filler.h) share: the rate at which they fill
 * and how many steps are under way at a time, with the memory of these.
 *
 * A step begins with a buffer, which is given back when it ends.  There are
 * as many buffers as there may be steps; each is made when it is first
 * needed.  So a thousand fillers take the memory and the disk's time of a
 * few.  Who gets none asks again later: at a moment that is drawn, the later
 * the more fillers there are, as else all would ask at once.
 *
 * The share's mutex protects all of it.  It is the last lock that is taken,
 * nothing is done while it is held.
 */

#ifndef ADDCOW_FILLER_SHARE_H
#define ADDCOW_FILLER_SHARE_H

#include <stddef.h>
#include <stdint.h>

struct filler_share;

/* Make one for NR_STEPS steps at a time, of BUF_BYTES of data at most, that
 * fill RATE_BYTES in a second; 0: as fast as can be.  On success *SHARE is
 * freed by the caller.  Returns 0 or ENOMEM.
 */
int filler_share_new (struct filler_share **share, unsigned nr_steps,
                      size_t buf_bytes, uint64_t rate_bytes);

/* NULL is ignored.  No filler uses it any more. */
void filler_share_free (struct filler_share *share);

/* A filler begins to use SHARE, or ends. */
void filler_share_join (struct filler_share *share);
void filler_share_leave (struct filler_share *share);

/* How much data a step is to fill at most, of at most MAX_BYTES: no more than
 * an eighth of the rate, so that this is even.  A multiple of 4096.
 */
size_t filler_share_step_bytes (const struct filler_share *share,
                                size_t max_bytes);

/* Begin a step that is likely to fill COUNT bytes of data, at NOW_NS, the
 * monotonic time.  Returns the buffer; or NULL, and *AGAIN_NS is when to ask
 * again.  Does not block.
 */
void *filler_share_begin (struct filler_share *share, size_t count,
                          int64_t now_ns, int64_t *again_ns);

/* End the step that got BUF for COUNT bytes of data and filled NR_COPIED. */
void filler_share_end (struct filler_share *share, void *buf, size_t count,
                       uint64_t nr_copied);

#endif /* ADDCOW_FILLER_SHARE_H */

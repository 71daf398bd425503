/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an NBD server has as a target, be it a server that has a name or a
 * child process qemu-nbd.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "nbd-client.h"
#include "nbd-peers.h"
#include "target-kinds.h"

/* How much one request writes, or zeroes, and how many there are at a time.
 */
#define PIECE_BYTES (256 * 1024)
#define ZERO_BYTES (32 * 1024 * 1024)
#define MAX_PIECES 16

struct target_nbd {
  struct target target;
  struct image image;
  struct nbd_client *client; /* NULL: ended */
  struct nbd_limits limits;
  char *name;
  void (*log) (void *opaque, const char *name, const char *text);
  void *log_opaque;

  char *block; /* of limits.minimum bytes */
};

static struct target_nbd *
nbd_of (struct target *target)
{
  return container_of (target, struct target_nbd, target);
}

static struct target_nbd *
nbd_of_image (struct image *image)
{
  return container_of (image, struct target_nbd, image);
}

/*--- Requests. --------------------------------------------------------*/

/* Those of one operation. */
struct pieces {
  struct target_nbd *t;
  uint32_t flags;
  unsigned n;
  struct nbd_request requests[MAX_PIECES];
};

/* Wait for all that was asked for.  Returns the first error. */
static int
pieces_wait (struct pieces *p)
{
  unsigned i;
  int r = 0;

  for (i = 0; i < p->n; i++) {
    const int err = nbd_client_wait (&p->requests[i]);

    r = r ? r : err;
  }
  p->n = 0;
  return r;
}

/* A request that is free. */
static int
pieces_next (struct pieces *p, struct nbd_request **request)
{
  int r = p->n == MAX_PIECES ? pieces_wait (p) : 0;

  if (r == 0)
    *request = &p->requests[p->n++];
  return r;
}

static size_t
piece_bytes (const struct target_nbd *t)
{
  return MIN (PIECE_BYTES, t->limits.maximum);
}

/* Write BUF, or with NULL zeroes, to a range of whole blocks. */
static int
write_blocks (struct pieces *p, const char *buf, uint64_t count,
              uint64_t offset)
{
  static const char zeroes[PIECE_BYTES];
  struct target_nbd *t = p->t;
  const bool zero = buf == NULL && t->limits.has_zero;
  const size_t most = zero ? ZERO_BYTES : piece_bytes (t);

  while (count > 0) {
    const size_t n = MIN (count, most);
    struct nbd_request *request;
    int r = pieces_next (p, &request);

    if (r)
      return r;
    if (zero)
      nbd_client_zero (t->client, request, n, offset, p->flags);
    else
      nbd_client_write (t->client, request, buf ? buf : zeroes, n, offset,
                        p->flags & LIBNBD_CMD_FLAG_FUA);
    if (buf)
      buf += n;
    offset += n;
    count -= n;
  }
  return 0;
}

static int
read_pieces (struct target_nbd *t, char *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    const size_t n = MIN (count, piece_bytes (t));
    struct nbd_request request;
    int r;

    nbd_client_read (t->client, &request, buf, n, offset);
    r = nbd_client_wait (&request);
    if (r)
      return r;
    buf += n;
    offset += n;
    count -= n;
  }
  return 0;
}

/* Write a part of a block: with the rest of it, as it is. */
static int
write_in_block (struct pieces *p, const char *buf, size_t count,
                uint64_t offset)
{
  struct target_nbd *t = p->t;
  const size_t skip = offset % t->limits.minimum;
  const uint64_t begin = offset - skip;
  const size_t n = MIN (t->limits.minimum, t->target.size_bytes - begin);
  int r;

  r = read_pieces (t, t->block, n, begin);
  if (r)
    return r;
  if (buf)
    memcpy (t->block + skip, buf, count);
  else
    memset (t->block + skip, 0, count);
  r = write_blocks (p, t->block, n, begin);
  return r ? r : pieces_wait (p); /* there is one buffer */
}

/* Write BUF, or with NULL zeroes, to any range. */
static int
write_range (struct pieces *p, const char *buf, uint64_t count, uint64_t offset)
{
  const uint32_t minimum = p->t->limits.minimum;
  const uint64_t size_bytes = p->t->target.size_bytes;
  int r = 0;

  while (r == 0 && count > 0) {
    const uint64_t end = offset + count;
    const size_t room = minimum - offset % minimum;
    uint64_t n = MIN (count, room);

    if (offset % minimum == 0 && (n == minimum || end == size_bytes)) {
      n = end == size_bytes ? count : count - count % minimum;
      r = write_blocks (p, buf, n, offset);
    }
    else
      r = write_in_block (p, buf, n, offset);
    if (buf)
      buf += n;
    offset += n;
    count -= n;
  }
  return r;
}

/* The same, waiting for the answers.  A server that can make nothing durable
 * later does it at once.
 */
static int
change (struct target_nbd *t, const char *buf, uint64_t count, uint64_t offset,
        unsigned flags)
{
  struct pieces p = { .t = t };
  int r, err;

  if (t->limits.has_fua && !t->limits.has_flush)
    p.flags |= LIBNBD_CMD_FLAG_FUA;
  if (!(flags & IMAGE_MAY_TRIM))
    p.flags |= LIBNBD_CMD_FLAG_NO_HOLE;
  r = write_range (&p, buf, count, offset);
  err = pieces_wait (&p); /* in any case: they read from BUF */
  r = r ? r : err;
  if (r == 0 && flags & IMAGE_FUA)
    r = t->image.ops->flush (&t->image);
  return r;
}

/*--- The image. -------------------------------------------------------*/

static int
target_nbd_read (struct image *image, void *buf, size_t count, uint64_t offset)
{
  struct target_nbd *t = nbd_of_image (image);
  char *to = buf;

  while (count > 0) {
    const size_t skip = offset % t->limits.minimum;
    const uint64_t begin = offset - skip;
    const size_t block = MIN (t->limits.minimum, t->target.size_bytes - begin);
    const size_t n = MIN (count, block - skip);
    int r = read_pieces (t, t->block, block, begin);

    if (r)
      return r;
    memcpy (to, t->block + skip, n);
    to += n;
    offset += n;
    count -= n;
  }
  return 0;
}

static int
target_nbd_write (struct image *image, const void *buf, size_t count,
                  uint64_t offset, unsigned flags)
{
  return change (nbd_of_image (image), buf, count, offset, flags);
}

static int
target_nbd_zero (struct image *image, uint64_t count, uint64_t offset,
                 unsigned flags)
{
  if (flags & IMAGE_FAST)
    return EOPNOTSUPP;
  return change (nbd_of_image (image), NULL, count, offset, flags);
}

/* A server that knows no flush has nothing that could be lost. */
static int
target_nbd_flush (struct image *image)
{
  struct target_nbd *t = nbd_of_image (image);
  struct nbd_request request;

  if (!t->limits.has_flush)
    return 0;
  nbd_client_flush (t->client, &request);
  return nbd_client_wait (&request);
}

static const struct image_ops target_nbd_image_ops = {
  .read = target_nbd_read,
  .write = target_nbd_write,
  .zero = target_nbd_zero,
  .trim = target_no_trim,
  .flush = target_nbd_flush,
  .cache = target_no_cache,
};

/*--- Opening and closing. ---------------------------------------------*/

static void
target_nbd_interrupt (struct target *target)
{
  nbd_client_interrupt (nbd_of (target)->client);
}

/* A child closes its image. */
static int
target_nbd_end (struct target *target)
{
  struct target_nbd *t = nbd_of (target);

  nbd_client_close (t->client);
  t->client = NULL;
  return 0;
}

static void
target_nbd_close (struct target *target)
{
  struct target_nbd *t = nbd_of (target);

  nbd_client_close (t->client);
  free (t->block);
  free (t->name);
  free (t);
}

static const struct target_ops target_nbd_ops = {
  .interrupt = target_nbd_interrupt,
  .end = target_nbd_end,
  .close = target_nbd_close,
};

static void
log_client (void *opaque, const char *text)
{
  const struct target_nbd *t = opaque;

  if (t->log)
    t->log (t->log_opaque, t->name, text);
}

/* Connect to PEER, who is closed if this fails. */
static int
connect_client (struct target_nbd *t, struct nbd_peer *peer,
                unsigned timeout_seconds, struct failure *failure)
{
  const struct nbd_client_options options = {
    .timeout_seconds = timeout_seconds,
    .writable = true,
    .log = log_client,
    .opaque = t,
  };
  CLEANUP_FREE char *why = NULL;
  int r;

  r = nbd_client_open (&t->client, peer, &options, &t->target.size_bytes, &why);
  if (r == 0)
    return 0;
  peer->ops->close (peer);
  return failure_set_detail (failure, t->name, r, why);
}

static int
check (struct target_nbd *t, const struct backing_options *options,
       struct failure *failure)
{
  char buf[BACKING_MAGIC_BYTES];
  const size_t n = MIN (t->target.size_bytes, sizeof buf);
  int r;

  if (t->limits.is_read_only)
    return failure_set_detail (failure, t->name, EROFS,
                               "the server does not let it be written");
  if (t->limits.minimum > PIECE_BYTES)
    return failure_set_detail (failure, t->name, EOPNOTSUPP,
                               "the server takes only requests that are too "
                               "large");
  t->block = malloc (t->limits.minimum);
  r = t->block ? target_nbd_read (&t->image, buf, n, 0) : ENOMEM;
  if (r)
    return failure_set (failure, t->name, r);
  return backing_check_magic (buf, n, t->name, options, failure);
}

static int
open_peer (struct target **target, struct nbd_peer *peer, const char *name,
           const struct backing_options *options, struct failure *failure)
{
  struct target_nbd *t = calloc (1, sizeof *t);
  int r;

  if (t)
    t->name = strdup (name);
  if (t == NULL || t->name == NULL) {
    free (t);
    peer->ops->close (peer);
    return failure_set (failure, name, ENOMEM);
  }
  t->target.ops = &target_nbd_ops;
  t->target.image = &t->image;
  t->image.ops = &target_nbd_image_ops;
  t->log = options->log;
  t->log_opaque = options->log_opaque;
  r = connect_client (t, peer, options->timeout_seconds, failure);
  if (r == 0) {
    t->limits = nbd_client_limits (t->client);
    r = check (t, options, failure);
  }
  if (r) {
    target_close (&t->target);
    return r;
  }
  *target = &t->target;
  return 0;
}

int
target_nbd_open (struct target **target, const struct location *location,
                 const struct backing_options *options, struct failure *failure)
{
  struct nbd_peer *peer;
  int r = nbd_peer_of_uri (&peer, location, failure);

  return r ? r : open_peer (target, peer, location->name, options, failure);
}

int
target_qemu_open (struct target **target, const struct location *location,
                  const struct backing_options *options,
                  struct failure *failure)
{
  struct nbd_peer *peer;
  int r = nbd_peer_of_qemu (&peer, location, options, true, failure);

  return r ? r : open_peer (target, peer, location->name, options, failure);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A connection to an NBD server that is read from, and made again when
 * it was lost; or that is written to, and lost for good then: what the server
 * had acknowledged, and not flushed, may be lost too.
 *
 * Data and who owns them
 * ----------------------
 * The client owns one libnbd handle at a time, or none while it is not
 * connected, and a thread, which connects, waits for what the server sends
 * and finds out that the connection is lost.  Whoever wants something from
 * the server owns his request until it is over; it is on a list of the
 * client's until then, in one of two states:
 *
 *   queued      no handle has it: there is none, or it was lost
 *   in flight   the handle has it, and may write into its buffer
 *
 * A request that waits too long is taken off the queue by who waits.  One
 * that is in flight can be had back only by closing the handle: then the
 * thread closes it, that request fails with EIO, and the others are queued
 * again.  So a server that is stuck costs one connection, and what it was
 * asked is asked again over the next.  A connection that answers other
 * requests meanwhile is not stuck, and is given more time.
 *
 * An error that the server sends is the end of a request; that it is
 * shutting down, or gone, is not.
 *
 * Requests are sent by who makes them, and not by way of the thread, which
 * is woken only when the socket takes no more or the handle is lost.  Who
 * finds the lock taken does not wait for it: who has it sends that request
 * too before it is released.  So many who read do not sleep for each other.
 *
 * The thread is started by the first request.  See nbd_client_rest for
 * processes that fork.
 *
 * Locks
 * -----
 * client->lock protects the handle and both lists; libnbd calls back with
 * it held.  Not held while waiting for the server or connecting to it.
 * What comes in while it is held is on a list that needs no lock.
 */

#ifndef ADDCOW_NBD_CLIENT_H
#define ADDCOW_NBD_CLIENT_H

#include <semaphore.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <libnbd.h>

/* Who is at the other end.  Only the thread, and before it is started who
 * opens or closes the client, calls these.
 */
struct nbd_peer;
struct nbd_peer_ops {
  /* Begin to connect the new handle NBD.  Returns 0, or -1 and the error is
   * libnbd's.
   */
  int (*connect) (struct nbd_peer *, struct nbd_handle *nbd);

  /* The handle is ready.  NULL for a peer that need not know. */
  void (*connected) (struct nbd_peer *, struct nbd_handle *nbd);

  /* The handle will be closed.  Likewise. */
  void (*disconnect) (struct nbd_peer *, struct nbd_handle *nbd);

  /* Take what can be read from peer->fd, without waiting.  Likewise. */
  void (*heard) (struct nbd_peer *);

  /* Why connecting failed, if the peer knows better than libnbd, which
   * says WHY.  The string is the peer's.  Likewise.
   */
  const char *(*why) (struct nbd_peer *, const char *why);

  /* Release everything, *PEER too. */
  void (*close) (struct nbd_peer *);
};

struct nbd_peer {
  const struct nbd_peer_ops *ops;
  int fd; /* readable when the peer is to be heard, or -1 */

  /* It is a child of the thread that connected and ends with it. */
  bool is_child;
};

struct nbd_client;

struct nbd_client_options {
  unsigned timeout_seconds; /* see backing.h */
  bool writable;            /* a connection that was lost is not made again */

  /* Called when the connection was lost and made again, from the thread,
   * without locks.
   */
  void (*log) (void *opaque, const char *text);
  void *opaque;
};

/* Connect to PEER.  *SIZE_BYTES is what the server has.  On success *CLIENT
 * is closed by nbd_client_close, and owns PEER.  Blocks, no longer than the
 * timeout.  Returns 0, or an errno and in *WHY a text that the caller frees,
 * or NULL; PEER is the caller's still.
 */
int nbd_client_open (struct nbd_client **client, struct nbd_peer *peer,
                     const struct nbd_client_options *options,
                     uint64_t *size_bytes, char **why);

/* End the thread, and with it a peer that is its child, until there is a
 * request again.  The process may fork meanwhile, and the one that goes on
 * may be the child.  Nobody uses CLIENT.
 */
void nbd_client_rest (struct nbd_client *client);

/* From now on every request fails with EIO and request->lost, those too that
 * are waited for.  Takes lock; does not wait.
 */
void nbd_client_interrupt (struct nbd_client *client);

/* Nobody uses CLIENT any more; NULL is ignored.  Waits for the thread. */
void nbd_client_close (struct nbd_client *client);

/* What the server takes.  Offsets and lengths of requests are multiples of
 * minimum, a power of two, but at the end of the disk; lengths, but of zero,
 * are at most maximum, a multiple of it.  Takes no lock: a server that comes
 * back and takes less is refused.
 */
struct nbd_limits {
  uint32_t minimum, maximum;
  bool has_extents; /* it tells, or told, of extents */
  bool is_read_only;
  bool has_zero, has_flush, has_fua;
};
struct nbd_limits nbd_client_limits (const struct nbd_client *client);

/* Something asked of the server: the caller's, in place until it was
 * waited for.  Protected by lock but for what is said.
 */
struct nbd_request {
  enum nbd_request_type {
    NBD_REQUEST_READ,
    NBD_REQUEST_EXTENTS,
    NBD_REQUEST_CACHE, /* nobody waits for it, the client owns it */
    NBD_REQUEST_WRITE,
    NBD_REQUEST_ZERO,
    NBD_REQUEST_FLUSH,
  } type;
  struct nbd_client *client;
  char *buf; /* not changed by a write */
  size_t count;
  uint64_t offset;
  uint32_t flags;                /* libnbd's, of a write or zero */
  int64_t began_ms, deadline_ms; /* by CLOCK_MONOTONIC */

  enum { NBD_REQUEST_QUEUED, NBD_REQUEST_IN_FLIGHT } state;
  struct nbd_request *prev, *next; /* in the list of that state */
  bool expired;                    /* waited too long, in flight */

  size_t nr_seen;    /* bytes that were read: the first ones, unless: */
  bool *seen;        /* which ones, or NULL */
  uint32_t *extents; /* pairs of length and type, or NULL */
  size_t nr_extents; /* numbers in it */

  sem_t over;
  _Atomic bool is_over; /* set before: then, ERR and what was asked for */
  int err;
  bool lost;
};

/* Ask for COUNT bytes at OFFSET, cut as it must be, into BUF; or for what
 * extents begin there, within COUNT bytes.  Takes lock; blocks no longer
 * than the lock is held.
 */
void nbd_client_read (struct nbd_client *client, struct nbd_request *request,
                      void *buf, size_t count, uint64_t offset);
void nbd_client_extents (struct nbd_client *client, struct nbd_request *request,
                         size_t count, uint64_t offset);

/* The same for what a writable client asks.  FLAGS are those of libnbd's
 * commands that the server takes: LIBNBD_CMD_FLAG_FUA, and for zero
 * LIBNBD_CMD_FLAG_NO_HOLE.  COUNT of zero is less than 2^32.
 */
void nbd_client_write (struct nbd_client *client, struct nbd_request *request,
                       const void *buf, size_t count, uint64_t offset,
                       uint32_t flags);
void nbd_client_zero (struct nbd_client *client, struct nbd_request *request,
                      size_t count, uint64_t offset, uint32_t flags);
void nbd_client_flush (struct nbd_client *client, struct nbd_request *request);

/* Wait until REQUEST is over.  Returns 0, the server's error, or EIO with
 * request->lost when no server answered in time.  After extents the
 * caller frees request->extents, in any case.
 */
int nbd_client_wait (struct nbd_request *request);

/* Tell the server that the range will be read soon, if it wants to know
 * and is connected.  Does not wait.  Takes lock.
 */
void nbd_client_cache (struct nbd_client *client, uint64_t count,
                       uint64_t offset);

#endif /* ADDCOW_NBD_CLIENT_H */

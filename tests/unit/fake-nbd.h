/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An NBD server in this process, with a disk that a seed decides, which
 * does what it is told to do wrong.
 *
 * It speaks as much of the protocol as a client needs that reads: one
 * connection at a time, each as server->how says when it is accepted.
 */

#ifndef ADDCOW_FAKE_NBD_H
#define ADDCOW_FAKE_NBD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_NBD_EIO 5
#define FAKE_NBD_EINVAL 22
#define FAKE_NBD_ESHUTDOWN 108

struct fake_nbd_how {
  uint64_t size_bytes;
  uint64_t extent_bytes;     /* each is data or a hole that is zero */
  uint32_t minimum, maximum; /* of requests; 0: nothing is told */
  bool simple;               /* no structured replies, so no extents */
  bool shuffles;             /* answers in any order, and in pieces */
  bool hates_cache;          /* closes the connection for it */
  bool mute;                 /* answers no request */
  bool leaves_out;           /* the last byte of each read */
  bool repeats;              /* the first half of each, in place of the other */
  bool crumbles;             /* extents of one byte, as many as may be sent */
  uint32_t read_error, extents_error; /* in each answer; 0: none */
  int64_t max_sent; /* on one connection, which is closed then; -1: no end */
};

struct fake_nbd {
  uint64_t seed;
  int fd;
  pthread_t thread;

  pthread_mutex_t lock; /* protects these */
  struct fake_nbd_how how;
  int connection_fd; /* or -1 */
  bool stopped;

  _Atomic unsigned nr_connections, nr_reads, nr_extents, nr_caches, nr_muted;
};

/* Begin to serve, on the socket PATH.  Ended by fake_nbd_stop. */
void fake_nbd_start (struct fake_nbd *server, const char *path, uint64_t seed,
                     const struct fake_nbd_how *how);

/* End it, with its connection. */
void fake_nbd_stop (struct fake_nbd *server);

/* End the connection and go on as HOW says. */
void fake_nbd_change (struct fake_nbd *server, const struct fake_nbd_how *how);

/* What a disk of this seed and these extents has. */
void fake_nbd_content (uint64_t seed, uint64_t extent_bytes, void *buf,
                       size_t count, uint64_t offset);

#endif /* ADDCOW_FAKE_NBD_H */

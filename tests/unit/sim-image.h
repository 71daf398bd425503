/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Simulated files: images, metadata files and backing files in memory,
 * that log what is done to them, fail when told to, stop a thread in the
 * middle of an operation, and lose power.
 *
 * A store is the bytes of a file.  An image or a backing file is a handle
 * on one; there can be many on the same.  All stores of a world have one
 * clock, one log and lose power at one moment.
 *
 * Power failure
 * -------------
 * A store that tracks its writes knows of each of its 512-byte sectors
 * what is durable and every version since.  A flush that succeeds makes
 * durable what had been written when it began: through the same handle,
 * or through any if the handle has multi_conn.  After power failed each
 * sector is, by itself, at any of these versions.  So is the length of the
 * store; what was cut off and comes back so is old, or zeroes.
 *
 * When a flush fails, what it should have made durable may be so or not;
 * if the store forgets, no later flush makes it so (as the kernel does
 * with pages it could not write), else the next flush that succeeds.  If
 * faults are random that may also happen to what was written meanwhile.
 */

#ifndef ADDCOW_SIM_IMAGE_H
#define ADDCOW_SIM_IMAGE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "backing.h"
#include "check.h"
#include "image.h"
#include "workers.h"

enum sim_op {
  SIM_READ,
  SIM_WRITE,
  SIM_ZERO,
  SIM_TRIM,
  SIM_FLUSH,
  SIM_EXTENTS,
  SIM_CACHE,
  SIM_COPY,
  SIM_SET_LENGTH, /* in the log, its offset is the new length */
  SIM_NR_OPS,
};

/*--- The world and its log. -------------------------------------------*/

struct sim_port;

struct sim_event {
  const struct sim_port *port;
  enum sim_op op;
  uint64_t offset, count;
  unsigned flags;
  int err;
  uint64_t begin, end; /* by the world's clock; end 0: not yet */
};

struct sim_world {
  pthread_mutex_t lock; /* protects all below, and all stores */
  uint64_t clock;
  bool no_log;
  bool dead;        /* without power: nothing has an effect */
  uint64_t died_at; /* by the clock */

  /* What was under way when it died happened in part, as this says.  NULL:
   * it did not happen.
   */
  struct rng *torn;
  struct sim_event *events;
  size_t nr_events, max_events;
};

void sim_world_init (struct sim_world *world);
void sim_world_clear (struct sim_world *world);

/* From now on every operation fails and changes nothing. */
void sim_world_kill (struct sim_world *world);
bool sim_world_is_dead (struct sim_world *world);

/* Forget the log; no operation may be under way. */
void sim_log_clear (struct sim_world *world);

/* How many operations of the kind OP there were through PORT; NULL is
 * any port.
 */
size_t sim_log_count (struct sim_world *world, const struct sim_port *port,
                      enum sim_op op);

/* The N-th (from 0) of these; fails the test if there is none. */
struct sim_event sim_log_get (struct sim_world *world,
                              const struct sim_port *port, enum sim_op op,
                              size_t n);

/* How many operations that change anything, or flush. */
size_t sim_log_count_changes (struct sim_world *world,
                              const struct sim_port *port);

/*--- Bytes. -----------------------------------------------------------*/

struct sim_store {
  struct sim_world *world;
  uint64_t size_bytes;
  bool knows_holes; /* else all is data */
  bool track;       /* the versions of sectors */
  bool forgets;     /* what a flush failed to write */
  bool discards;    /* keeps nothing: everything is zero */
  struct sim_block ***blocks;
  uint64_t nr_block_tables;
  struct sim_block *unsettled; /* that have versions, and perhaps others */
  uint64_t durable_bytes;      /* its length after the last flush, */
  struct sim_length *lengths;  /* and since, the newest first */
};

/* All zero, all hole. */
void sim_store_init (struct sim_store *store, struct sim_world *world,
                     uint64_t size_bytes);
void sim_store_clear (struct sim_store *store);

/* Outside any operation: not logged, at once durable. */
void sim_store_put (struct sim_store *store, const void *buf, size_t count,
                    uint64_t offset);
void sim_store_get (struct sim_store *store, void *buf, size_t count,
                    uint64_t offset);
uint8_t sim_store_byte (struct sim_store *store, uint64_t offset);

/* Is the 512-byte sector of OFFSET data, and no hole? */
bool sim_store_is_data (struct sim_store *store, uint64_t offset);

/* Make *AFTER, in WORLD, what RNG lets be left of STORE when the power
 * goes now.  It tracks and forgets as STORE.
 */
void sim_store_crash (struct sim_store *after, struct sim_world *world,
                      struct sim_store *store, struct rng *rng);

/* Forgive failed flushes: what they did not write, the next one will. */
void sim_store_remember (struct sim_store *store);

/* What is on disk replaces what is in memory, where a flush failed.  RNG lets
 * it have been written all the same.
 */
void sim_store_forget (struct sim_store *store, struct rng *rng);

/* Has a flush failed on what the sector of OFFSET holds? */
bool sim_store_is_lost (struct sim_store *store, uint64_t offset);

/*--- Handles. ---------------------------------------------------------*/

#define SIM_GATES 4

struct sim_port {
  struct sim_store *store;
  bool one_extent; /* extents tells of one at a time */
  bool slow_zero;  /* zero with IMAGE_FAST fails */
  bool trim_keeps; /* trim does nothing at all */

  /* Called before an operation has its effect, without a lock. */
  void (*hook) (struct sim_port *port, enum sim_op op, uint64_t offset,
                uint64_t count, void *opaque);
  void *opaque;
  void (*after) (enum sim_op op); /* when it has had it; or NULL */

  /* Protected by the world's lock. */
  struct {
    unsigned countdown; /* fails when this becomes 0 */
    unsigned repeat;    /* and so many times after that */
    int err;
  } faults[SIM_NR_OPS];
  struct rng *random_faults; /* or, at random, what and how much */
  unsigned one_in;
  unsigned spared_ops; /* bits 1 << OP: these do not fail so */

  /* Changes of more than a sector are seen in two parts, this says which.
   * NULL: at once.
   */
  struct rng *splits;

  struct {
    struct gate *gate;
    enum sim_op op;
    uint64_t offset; /* a byte in its range; or SIM_ANYWHERE */
  } gates[SIM_GATES];
};
#define SIM_ANYWHERE UINT64_MAX

struct sim_image {
  struct image image;
  struct sim_port port;
  struct sim_backing *copies; /* see sim_can_copy */
};

struct sim_backing {
  struct backing backing;
  struct sim_port port;
  bool closed; /* using it fails the test */
};

/* multi_conn is set. */
void sim_image_init (struct sim_image *image, struct sim_store *store);
void sim_backing_init (struct sim_backing *backing, struct sim_store *store);

/* Let IMAGE copy from BACKING, which says that it has a descriptor. */
void sim_can_copy (struct sim_image *image, struct sim_backing *backing);

/* Begin to write the range out, or WAIT for it: makes nothing durable, but
 * may fail as a flush of it.
 */
int sim_write_out (struct sim_image *image, uint64_t count, uint64_t offset,
                   bool wait);

/* Let the N-th operation of kind OP from now on (1: the next) fail with
 * ERR, and the MORE that follow it.
 */
void sim_fail (struct sim_port *port, enum sim_op op, unsigned n, int err,
               unsigned more);

/* Hold the first worker that comes to an operation OP on the byte OFFSET,
 * or SIM_ANYWHERE.  A held flush covers what was written before it was
 * held.  *GATE is the caller's; clear it with sim_no_gates.
 */
void sim_hold (struct sim_port *port, enum sim_op op, uint64_t offset,
               struct gate *gate);
void sim_no_gates (struct sim_port *port);

#endif /* ADDCOW_SIM_IMAGE_H */

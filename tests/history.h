/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Histories: what clients of a disk asked for and were told, at the same
 * time, and whether any disk could have told them that.
 *
 * What a byte holds
 * -----------------
 * Each byte of a disk is a register of its own: NBD promises nothing about a
 * request as a whole, and the system none about a sector.  Its value tells
 * who wrote it.  A write has an id from 1 to HISTORY_MAX_ID, and no two writes
 * to a byte have the same; id 0 is what the backing file has there.  At
 * OFFSET the id is the byte history_byte (id, OFFSET), which differs from
 * byte to byte, so that data that went to the wrong place is found.  Zeroing
 * and trimming leave the byte 0, which stands for no id but HISTORY_ZERO, and
 * of these there may be many.
 *
 * Which histories there can be
 * ----------------------------
 * One that can be explained: every request has its effect on a byte at one
 * moment between when it was sent and when its answer came, and each read
 * got what was there at its moment (the history is linearizable).  A change
 * that was not acknowledged has no end: it may have had its effect, or will,
 * or not; a read without an end says nothing.
 *
 * To find out, the events are gone through in their order.  Known are all
 * states that the register can be in: its value and which of the requests
 * that are under way had their effect.  When one ends, those are kept in
 * which it had, after as many of the others as it takes; with none left the
 * history has no explanation.  That is exact.  It is exponential in how many
 * changes of one byte are under way at one moment alone, and so in the number
 * of connections; those without an end do not count, as they are thought of
 * only where a read saw them.
 *
 * Nothing here does I/O but history_print, takes a lock or keeps state.
 */

#ifndef ADDCOW_HISTORY_H
#define ADDCOW_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define HISTORY_MAX_ID 254
#define HISTORY_ZERO 255
#define HISTORY_NO_END UINT64_MAX

/* No more requests to one byte may be under way at one moment. */
#define HISTORY_MAX_PENDING 64

enum history_kind {
  HISTORY_READ,
  HISTORY_WRITE,
  HISTORY_CLEAR, /* zero or trim */
};

struct history_op {
  enum history_kind kind;
  unsigned client; /* to be printed */
  unsigned id;     /* of a write */
  uint64_t offset; /* bytes, in the disk */
  uint32_t count;
  uint64_t begin; /* all different, of requests to one byte, */
  uint64_t end;   /* and more than BEGIN */
  uint8_t *data;  /* what a read got; whoever made it frees it */
};

/* The byte that ID (to HISTORY_MAX_ID, or HISTORY_ZERO) leaves at OFFSET, and
 * the other way round.
 */
uint8_t history_byte (unsigned id, uint64_t offset);
unsigned history_id (uint8_t byte, uint64_t offset);

/* The same for COUNT bytes from OFFSET on. */
void history_fill (uint8_t *buf, unsigned id, uint64_t offset, size_t count);

/* What the backing file has at OFFSET: id 0, or HISTORY_ZERO in every third
 * block of 4096 bytes.
 */
unsigned history_base_id (uint64_t offset);

/* A history of the bytes [BEGIN, END) of a disk. */
struct history {
  struct history_op *ops; /* in any order; they lie within the range */
  size_t nr_ops;
  uint64_t begin, end;
};

/* What has no explanation. */
struct history_fault {
  uint64_t offset; /* the byte */
  size_t op;       /* whose end there is no state for */
};

/* Can H be explained, byte by byte?  Sorts h->ops by their begin.  On false
 * *FAULT tells of the first byte that cannot.  Aborts without memory.
 */
bool history_check (struct history *h, struct history_fault *fault);

/* Print the requests to the byte of FAULT, up to its end. */
void history_print (const struct history *h, const struct history_fault *fault,
                    FILE *f);

/* That history_check does what it says: histories made by hand, and many by
 * lot from SEED, compared with trying all orders.  Ends the program with an
 * error if it does not.
 */
void history_selftest (uint64_t seed);

#endif /* ADDCOW_HISTORY_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Copying what is sparse: where there are holes and zeroes, and keeping them.
 *
 * Nothing here keeps state or takes a lock.  What does I/O may block, and
 * returns 0 or an error number.
 */

#ifndef ADDCOW_SPARSE_H
#define ADDCOW_SPARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "image.h"

/* What is looked at for zeroes as one, by its place in the disk. */
#define SPARSE_BLOCK 4096

/* A hole that is smaller is read with what is around it: its blocks become
 * holes all the same.  Not so where the system copies, for which a hole in
 * what it is given is zeroes.
 */
#define SPARSE_SMALL_HOLE 65536

/* Are the N bytes at P, at least one, all zero? */
bool sparse_is_zero (const void *p, size_t n);

/* Write BUF to the range of IMAGE; whole blocks of zeroes become holes where
 * they can.
 */
int sparse_write (struct image *image, const char *buf, size_t count,
                  uint64_t offset);

/* The first part of a range that is data or zeroes. */
struct part {
  uint64_t max, max_data; /* no more need be known */
  uint64_t min_hole;      /* a smaller one is data */
  uint64_t n;             /* bytes, whole sectors */
  bool zero;
};

/* Tells of extents, as the operations of that name do. */
typedef int extents_fn (void *opaque, uint64_t count, uint64_t offset,
                        extent_fn *fn, void *fn_opaque);

/* Find the first part of what begins at OFFSET, a whole sector, by asking
 * EXTENTS, into p->n and p->zero; the others are set.  What is data in a
 * sector makes it data.  Returns 0 or a positive number that EXTENTS returned.
 */
int sparse_find_part (struct part *p, uint64_t offset, extents_fn *extents,
                      void *opaque);

#endif /* ADDCOW_SPARSE_H */

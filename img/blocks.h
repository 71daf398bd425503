/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A disk as one line of blocks, for people: how much of each part is
 * allocated.
 */

#ifndef ADDCOW_BLOCKS_H
#define ADDCOW_BLOCKS_H

#include <stdint.h>

#include "image.h"

#define BLOCKS_MAX 78

struct blocks {
  unsigned nr_blocks;  /* 0: there is nothing to draw, or no terminal */
  uint64_t part_bytes; /* of the largest part */
  uint8_t shades[BLOCKS_MAX];
};

/* If stdout is a terminal, find out from METADATA, the metadata file of a disk
 * of SIZE_BYTES, what the line is there; else make *B empty.  Nothing to free.
 * What costs time is what is allocated.  Returns 0 or an error number of
 * reading METADATA.  May block.
 */
int blocks_look (struct blocks *b, struct image *metadata, uint64_t size_bytes);

/* Print to stdout the line and one above that says what it is; nothing if *B
 * is empty.
 */
void blocks_print (const struct blocks *b);

#endif /* ADDCOW_BLOCKS_H */

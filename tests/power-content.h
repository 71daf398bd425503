/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What sectors contain, each content once: two sectors are equal when their
 * numbers are.  For the programs that build what a power failure leaves;
 * they have one thread, and run out of memory by ending.
 */

#ifndef ADDCOW_POWER_CONTENT_H
#define ADDCOW_POWER_CONTENT_H

#include <stddef.h>
#include <stdint.h>

#define POWER_SECTOR 512

typedef uint32_t content_id;

#define CONTENT_ZERO 0 /* all zeroes */

/* The number of BYTES, POWER_SECTOR of them. */
content_id content_of (const uint8_t *bytes);

/* The bytes of ID, until the next content_of. */
const uint8_t *content_bytes (content_id id);

/* The number of what ID becomes when COUNT bytes at AT, within the sector,
 * are BUF, or zeroes if that is NULL.
 */
content_id content_change (content_id id, unsigned at, unsigned count,
                           const uint8_t *buf);

/* Append an element to an array: room for one more of SIZE bytes in *ARRAY,
 * which has NR of *MAX.  The array may move.
 */
void power_grow (void *array, uint64_t nr, uint64_t *max, size_t size);

#endif /* ADDCOW_POWER_CONTENT_H */

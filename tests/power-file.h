/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A file whose power may fail: what is certain to be on the medium of each
 * sector, and every version that may be there in its place.  Built from the
 * records of a log (power-log.h) by who reads that.
 *
 * Positions are numbers that grow: those of the records.
 *
 * The versions of a sector have an order, which they only have if no two
 * changes of one sector are under way at a time.  That is what whoever
 * writes here promises (the engine as well as the clients), and so it is
 * checked: it ends the program.
 */

#ifndef ADDCOW_POWER_FILE_H
#define ADDCOW_POWER_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "power-content.h"

/* What may be on the medium in the place of what is there for certain. */
struct power_version {
  content_id content;
  uint32_t change;
};

struct power_sector {
  content_id durable;
  uint32_t nr_later, max_later;
  struct power_version *later; /* the newest last */
};

struct power_file {
  uint64_t size_bytes, nr_sectors;
  struct power_sector *sectors;
  uint64_t *dirty; /* the sectors that have later versions */
  uint64_t nr_dirty, max_dirty;
  uint64_t *ends; /* by number of the change: its end, or 0 */
  uint64_t nr_changes, max_changes;
};

/* Make FILE what the file PATH contains, all of it durable.  Cleared by
 * power_file_clear.
 */
void power_file_init (struct power_file *file, const char *path);
void power_file_clear (struct power_file *file);

/* COUNT bytes at OFFSET, within the file, begin to become BUF, or zeroes if
 * that is NULL.  Returns the number of the change.
 */
uint32_t power_file_change (struct power_file *file, const uint8_t *buf,
                            uint64_t count, uint64_t offset);

/* Change NUMBER ended at POSITION. */
void power_file_end (struct power_file *file, uint32_t number,
                     uint64_t position);

/* Change NUMBER was none: it failed and did nothing. */
void power_file_undo (struct power_file *file, uint32_t number);

/* At POSITION the file was found to contain BUF there, with nobody else
 * about.
 */
void power_file_found (struct power_file *file, const uint8_t *buf,
                       uint64_t count, uint64_t offset, uint64_t position);

/* A sync that began at POSITION has succeeded. */
void power_file_sync (struct power_file *file, uint64_t position);

/* What a read of SECTOR gives, without any failure. */
static inline content_id
power_file_newest (const struct power_file *file, uint64_t sector)
{
  const struct power_sector *s = &file->sectors[sector];

  return s->nr_later ? s->later[s->nr_later - 1].content : s->durable;
}

#endif /* ADDCOW_POWER_FILE_H */

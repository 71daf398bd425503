/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the clients of a disk may find on it after a power failure: of each
 * sector what was there at its last flush, or what was asked for later.
 *
 * What is certain is what a client was told: what was acknowledged before a
 * flush was asked for is certain when that is acknowledged, and a write with
 * FUA when it is itself.  No two requests that change a sector are under
 * way at a time.
 */

#ifndef ADDCOW_POWER_DISK_H
#define ADDCOW_POWER_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "power-content.h"
#include "power-file.h"

struct power_request {
  uint64_t first, end; /* sectors */
};

/* The sectors of a file, as versions whose change is a request. */
struct power_disk {
  uint64_t nr_sectors;
  struct power_sector *sectors;
  struct power_request *requests;
  uint64_t nr_requests, max_requests;
  uint32_t *acknowledged; /* requests, in this order */
  uint64_t nr_acknowledged, max_acknowledged;
  uint64_t nr_flushed; /* of these */
};

/* A disk of NR_SECTORS, all zero; power_disk_set gives one its first
 * content.  Cleared by power_disk_clear.
 */
void power_disk_init (struct power_disk *disk, uint64_t nr_sectors);
void power_disk_set (struct power_disk *disk, uint64_t sector,
                     content_id content);
void power_disk_clear (struct power_disk *disk);

/* A client asks for COUNT bytes at OFFSET to become BUF, or zeroes if that
 * is NULL.  Returns the number of the request.
 */
uint32_t power_disk_change (struct power_disk *disk, const uint8_t *buf,
                            uint64_t count, uint64_t offset);

/* Request NUMBER is acknowledged; FUA: and durable. */
void power_disk_acknowledge (struct power_disk *disk, uint32_t number,
                             bool fua);

/* A flush is asked for.  Returns what it will cover, a number that goes to
 * power_disk_flushed when it is acknowledged.
 */
uint64_t power_disk_flush (const struct power_disk *disk);
void power_disk_flushed (struct power_disk *disk, uint64_t covered);

/* After a restart the disk reads as CONTENTS, one of each sector, which is
 * one that it may have.  It is as what was acknowledged now.
 */
void power_disk_found (struct power_disk *disk, const content_id *contents);

/* What SECTOR has when nothing fails and no request is under way. */
static inline content_id
power_disk_newest (const struct power_disk *disk, uint64_t sector)
{
  const struct power_sector *s = &disk->sectors[sector];

  return s->nr_later ? s->later[s->nr_later - 1].content : s->durable;
}

/* May SECTOR have CONTENT after a power failure now? */
static inline bool
power_disk_may (const struct power_disk *disk, uint64_t sector,
                content_id content)
{
  const struct power_sector *s = &disk->sectors[sector];
  uint32_t i;

  if (content == s->durable)
    return true;
  for (i = 0; i < s->nr_later; i++)
    if (content == s->later[i].content)
      return true;
  return false;
}

#endif /* ADDCOW_POWER_DISK_H */

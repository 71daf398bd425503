/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "power-disk.h"
#include "unit/check.h"

#define MIN(a, b) ((a) < (b) ? (a) : (b))

void
power_disk_init (struct power_disk *disk, uint64_t nr_sectors)
{
  *disk = (struct power_disk){ .nr_sectors = nr_sectors };
  disk->sectors = calloc (nr_sectors, sizeof disk->sectors[0]);
  CHECK (disk->sectors);
}

void
power_disk_set (struct power_disk *disk, uint64_t sector, content_id content)
{
  disk->sectors[sector].durable = content;
}

void
power_disk_clear (struct power_disk *disk)
{
  uint64_t i;

  for (i = 0; i < disk->nr_sectors; i++)
    free (disk->sectors[i].later);
  free (disk->sectors);
  free (disk->requests);
  free (disk->acknowledged);
}

/*--- Requests. --------------------------------------------------------*/

static uint32_t
new_request (struct power_disk *disk, uint64_t first, uint64_t end)
{
  power_grow (&disk->requests, disk->nr_requests, &disk->max_requests,
              sizeof disk->requests[0]);
  CHECK (disk->nr_requests < UINT32_MAX);
  disk->requests[disk->nr_requests] = (struct power_request){ first, end };
  return disk->nr_requests++;
}

static void
add_version (struct power_sector *s, content_id content, uint32_t number)
{
  uint64_t max = s->max_later;

  power_grow (&s->later, s->nr_later, &max, sizeof s->later[0]);
  s->max_later = max;
  s->later[s->nr_later++] = (struct power_version){ content, number };
}

uint32_t
power_disk_change (struct power_disk *disk, const uint8_t *buf, uint64_t count,
                   uint64_t offset)
{
  const uint64_t end = (offset + count - 1) / POWER_SECTOR + 1;
  const uint32_t number = new_request (disk, offset / POWER_SECTOR, end);

  CHECK (count > 0 && end <= disk->nr_sectors);
  while (count > 0) {
    const uint64_t sector = offset / POWER_SECTOR;
    const unsigned at = offset % POWER_SECTOR;
    const unsigned n = MIN (count, POWER_SECTOR - at);

    add_version (&disk->sectors[sector],
                 content_change (power_disk_newest (disk, sector), at, n, buf),
                 number);
    if (buf)
      buf += n;
    offset += n;
    count -= n;
  }
  return number;
}

/* What request NUMBER made of S is durable, and all that came before is
 * gone; unless something later is durable already.
 */
static void
make_durable (struct power_sector *s, uint32_t number)
{
  uint32_t i;

  for (i = 0; i < s->nr_later && s->later[i].change != number; i++)
    ;
  if (i == s->nr_later)
    return;
  s->durable = s->later[i].content;
  s->nr_later -= i + 1;
  memmove (s->later, s->later + i + 1, s->nr_later * sizeof s->later[0]);
}

static void
make_request_durable (struct power_disk *disk, uint32_t number)
{
  const struct power_request *rq = &disk->requests[number];
  uint64_t i;

  for (i = rq->first; i < rq->end; i++)
    make_durable (&disk->sectors[i], number);
}

void
power_disk_acknowledge (struct power_disk *disk, uint32_t number, bool fua)
{
  power_grow (&disk->acknowledged, disk->nr_acknowledged,
              &disk->max_acknowledged, sizeof disk->acknowledged[0]);
  disk->acknowledged[disk->nr_acknowledged++] = number;
  if (fua)
    make_request_durable (disk, number);
}

uint64_t
power_disk_flush (const struct power_disk *disk)
{
  return disk->nr_acknowledged;
}

void
power_disk_flushed (struct power_disk *disk, uint64_t covered)
{
  for (; disk->nr_flushed < covered; disk->nr_flushed++)
    make_request_durable (disk, disk->acknowledged[disk->nr_flushed]);
}

void
power_disk_found (struct power_disk *disk, const content_id *contents)
{
  const uint32_t number = new_request (disk, 0, disk->nr_sectors);
  uint64_t i;

  for (i = 0; i < disk->nr_sectors; i++) {
    CHECK (power_disk_may (disk, i, contents[i]));
    if (disk->sectors[i].nr_later)
      add_version (&disk->sectors[i], contents[i], number);
  }
  power_disk_acknowledge (disk, number, false);
}

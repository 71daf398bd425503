/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>
#include <sys/stat.h>

#include "power-file.h"
#include "unit/check.h"

#define MIN(a, b) ((a) < (b) ? (a) : (b))

void
power_file_init (struct power_file *file, const char *path)
{
  FILE *fp = fopen (path, "r");
  struct stat st;
  uint64_t i;

  if (fp == NULL)
    perror (path);
  CHECK (fp && fstat (fileno (fp), &st) == 0);
  *file = (struct power_file){
    .size_bytes = st.st_size,
    .nr_sectors = (st.st_size + POWER_SECTOR - 1) / POWER_SECTOR,
  };
  file->sectors = calloc (file->nr_sectors + 1, sizeof file->sectors[0]);
  CHECK (file->sectors);
  for (i = 0; i < file->nr_sectors; i++) {
    uint8_t bytes[POWER_SECTOR] = { 0 };

    CHECK (fread (bytes, 1, sizeof bytes, fp) > 0);
    file->sectors[i].durable = content_of (bytes);
  }
  fclose (fp);
}

void
power_file_clear (struct power_file *file)
{
  uint64_t i;

  for (i = 0; i < file->nr_sectors; i++)
    free (file->sectors[i].later);
  free (file->sectors);
  free (file->dirty);
  free (file->ends);
}

/*--- Changes. ---------------------------------------------------------*/

static uint32_t
new_change (struct power_file *file)
{
  power_grow (&file->ends, file->nr_changes, &file->max_changes,
              sizeof file->ends[0]);
  file->ends[file->nr_changes] = 0;
  CHECK (file->nr_changes < UINT32_MAX);
  return file->nr_changes++;
}

static void
add_version (struct power_file *file, uint64_t sector, content_id content,
             uint32_t change)
{
  struct power_sector *s = &file->sectors[sector];
  uint64_t max = s->max_later;

  if (s->nr_later == 0) {
    power_grow (&file->dirty, file->nr_dirty, &file->max_dirty,
                sizeof file->dirty[0]);
    file->dirty[file->nr_dirty++] = sector;
  }
  power_grow (&s->later, s->nr_later, &max, sizeof s->later[0]);
  s->max_later = max;
  s->later[s->nr_later++] = (struct power_version){ content, change };
}

/* Is a change of SECTOR under way, or was when the program was killed? */
static bool
is_changing (const struct power_file *file, uint64_t sector)
{
  const struct power_sector *s = &file->sectors[sector];

  return s->nr_later && file->ends[s->later[s->nr_later - 1].change] == 0;
}

uint32_t
power_file_change (struct power_file *file, const uint8_t *buf, uint64_t count,
                   uint64_t offset)
{
  const uint32_t change = new_change (file);

  CHECK (offset <= file->size_bytes && count <= file->size_bytes - offset);
  while (count > 0) {
    const uint64_t sector = offset / POWER_SECTOR;
    const unsigned at = offset % POWER_SECTOR;
    const unsigned n = MIN (count, POWER_SECTOR - at);

    if (is_changing (file, sector)) {
      fprintf (stderr, "two changes of sector %" PRIu64 " at a time\n", sector);
      check_end ();
    }
    add_version (file, sector,
                 content_change (power_file_newest (file, sector), at, n, buf),
                 change);
    if (buf)
      buf += n;
    offset += n;
    count -= n;
  }
  return change;
}

void
power_file_end (struct power_file *file, uint32_t number, uint64_t position)
{
  CHECK (position > 0 && file->ends[number] == 0);
  file->ends[number] = position;
}

void
power_file_found (struct power_file *file, const uint8_t *buf, uint64_t count,
                  uint64_t offset, uint64_t position)
{
  const uint32_t change = new_change (file);

  CHECK (offset % POWER_SECTOR == 0);
  CHECK (offset <= file->size_bytes && count <= file->size_bytes - offset);
  power_file_end (file, change, position);
  for (; count > 0; offset += POWER_SECTOR) {
    const unsigned n = MIN (count, POWER_SECTOR);
    const uint64_t sector = offset / POWER_SECTOR;
    const content_id content = content_change (CONTENT_ZERO, 0, n, buf);

    if (is_changing (file, sector) ||
        content != power_file_newest (file, sector))
      add_version (file, sector, content, change);
    buf += n;
    count -= n;
  }
}

/*--- What is dirty. ---------------------------------------------------*/

/* Forget the N oldest of the later versions of S. */
static void
drop_oldest (struct power_sector *s, uint32_t n)
{
  s->nr_later -= n;
  memmove (s->later, s->later + n, s->nr_later * sizeof s->later[0]);
}

static void
sync_sector (const struct power_file *file, struct power_sector *s,
             uint64_t position)
{
  uint32_t n = s->nr_later;

  for (; n > 0; n--) {
    const uint64_t end = file->ends[s->later[n - 1].change];

    if (end && end < position)
      break;
  }
  if (n == 0)
    return;
  s->durable = s->later[n - 1].content;
  drop_oldest (s, n);
}

static void
undo_sector (struct power_sector *s, uint32_t number)
{
  if (s->later[s->nr_later - 1].change == number)
    s->nr_later--;
}

/* Let those that are not dirty any more leave the list. */
static void
tidy_dirty (struct power_file *file)
{
  uint64_t i, n = 0;

  for (i = 0; i < file->nr_dirty; i++)
    if (file->sectors[file->dirty[i]].nr_later)
      file->dirty[n++] = file->dirty[i];
  file->nr_dirty = n;
}

void
power_file_sync (struct power_file *file, uint64_t position)
{
  uint64_t i;

  for (i = 0; i < file->nr_dirty; i++)
    sync_sector (file, &file->sectors[file->dirty[i]], position);
  tidy_dirty (file);
}

void
power_file_undo (struct power_file *file, uint32_t number)
{
  uint64_t i;

  for (i = 0; i < file->nr_dirty; i++)
    undo_sector (&file->sectors[file->dirty[i]], number);
  tidy_dirty (file);
}

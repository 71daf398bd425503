/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "power-content.h"
#include "unit/check.h"

/* Contents by number, and a hash table of numbers + 1; 0 is a free place. */
static uint8_t (*contents)[POWER_SECTOR];
static uint64_t nr_contents, max_contents;
static uint32_t *table;
static uint64_t table_size; /* a power of two */

void
power_grow (void *array, uint64_t nr, uint64_t *max, size_t size)
{
  void *old, *new;

  if (nr < *max)
    return;
  memcpy (&old, array, sizeof old);
  *max = *max ? *max * 2 : 4;
  new = realloc (old, *max * size);
  CHECK (new);
  memcpy (array, &new, sizeof new);
}

static uint64_t
hash_of (const uint8_t *bytes)
{
  uint64_t h = 0, word;
  unsigned i;

  for (i = 0; i < POWER_SECTOR; i += sizeof word) {
    memcpy (&word, bytes + i, sizeof word);
    h = (h ^ word) * UINT64_C (0x9e3779b97f4a7c15);
    h ^= h >> 29;
  }
  return h;
}

/* The place of BYTES in the table, or where they would be. */
static uint64_t
place_of (const uint8_t *bytes)
{
  uint64_t i = hash_of (bytes) & (table_size - 1);

  while (table[i] && memcmp (contents[table[i] - 1], bytes, POWER_SECTOR) != 0)
    i = (i + 1) & (table_size - 1);
  return i;
}

static void
enlarge_table (void)
{
  uint64_t i;

  free (table);
  table_size = table_size ? table_size * 2 : 65536;
  table = calloc (table_size, sizeof table[0]);
  CHECK (table);
  for (i = 0; i < nr_contents; i++)
    table[place_of (contents[i])] = i + 1;
}

static content_id
add (const uint8_t *bytes)
{
  uint64_t place;

  if (nr_contents * 2 >= table_size)
    enlarge_table ();
  place = place_of (bytes);
  if (table[place])
    return table[place] - 1;
  power_grow (&contents, nr_contents, &max_contents, sizeof contents[0]);
  memcpy (contents[nr_contents++], bytes, POWER_SECTOR);
  CHECK (nr_contents < UINT32_MAX);
  table[place] = nr_contents;
  return nr_contents - 1;
}

static void
begin (void)
{
  static const uint8_t zeroes[POWER_SECTOR];

  if (nr_contents == 0)
    CHECK (add (zeroes) == CONTENT_ZERO);
}

content_id
content_of (const uint8_t *bytes)
{
  begin ();
  return add (bytes);
}

const uint8_t *
content_bytes (content_id id)
{
  begin ();
  return contents[id];
}

content_id
content_change (content_id id, unsigned at, unsigned count, const uint8_t *buf)
{
  uint8_t bytes[POWER_SECTOR];

  memcpy (bytes, content_bytes (id), POWER_SECTOR);
  if (buf)
    memcpy (bytes + at, buf, count);
  else
    memset (bytes + at, 0, count);
  return content_of (bytes);
}

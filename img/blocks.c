/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <langinfo.h>
#include <locale.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "bitmap.h"
#include "blocks.h"
#include "common.h"
#include "format.h"
#include "img.h"

/* What a line has besides the blocks: brackets, and a column at the end, for
 * terminals that begin a new line after the last one.
 */
#define OTHER_COLUMNS 3

enum { EMPTY = 0, FULL = 4 };

static const char *const utf8_blocks[] = { " ", "░", "▒", "▓", "█" };
static const char *const ascii_blocks[] = { " ", ".", ":", "+", "#" };

/* For NR_SET of NR_SECTORS.  Only nothing is empty, only all is full. */
static uint8_t
shade (uint64_t nr_set, uint64_t nr_sectors)
{
  if (nr_set == 0)
    return EMPTY;
  if (nr_set == nr_sectors)
    return FULL;
  return 1 + nr_set * 3 / nr_sectors;
}

/* The first sector of part I; parts differ by one at most.  Does not overflow:
 * a disk has less than 2^54 sectors.
 */
static uint64_t
part_begin (unsigned i, unsigned nr_parts, uint64_t nr_sectors)
{
  return nr_sectors * i / nr_parts;
}

int
blocks_look (struct blocks *b, struct image *metadata, uint64_t size_bytes)
{
  const uint64_t nr_sectors = size_bytes / FORMAT_SECTOR_BYTES;
  size_t columns;
  unsigned i;

  b->nr_blocks = 0;
  if (!isatty (STDOUT_FILENO))
    return 0;
  columns = terminal_columns (stdout);
  if (columns <= OTHER_COLUMNS || nr_sectors == 0)
    return 0;
  b->nr_blocks = MIN (MIN (columns - OTHER_COLUMNS, BLOCKS_MAX), nr_sectors);
  b->part_bytes = DIV_ROUND_UP (nr_sectors, b->nr_blocks) * FORMAT_SECTOR_BYTES;
  for (i = 0; i < b->nr_blocks; i++) {
    const uint64_t begin = part_begin (i, b->nr_blocks, nr_sectors);
    const uint64_t n = part_begin (i + 1, b->nr_blocks, nr_sectors) - begin;
    uint64_t nr_set;
    int r = bitmap_count (metadata, begin, n, &nr_set);

    if (r)
      return r;
    b->shades[i] = shade (nr_set, n);
  }
  return 0;
}

/* Is the terminal's encoding, as far as the environment tells, UTF-8? */
static bool
is_utf8 (void)
{
  const locale_t locale = newlocale (LC_CTYPE_MASK, "", (locale_t) 0);
  bool result;

  if (locale == (locale_t) 0)
    return false;
  result = strcmp (nl_langinfo_l (CODESET, locale), "UTF-8") == 0;
  freelocale (locale);
  return result;
}

void
blocks_print (const struct blocks *b)
{
  const char *const *texts;
  char text[SIZE_TEXT_BYTES];
  unsigned i;

  if (b->nr_blocks == 0)
    return;
  texts = is_utf8 () ? utf8_blocks : ascii_blocks;
  printf ("allocated, a block for each %s:\n[",
          size_text (b->part_bytes, text));
  for (i = 0; i < b->nr_blocks; i++)
    fputs (texts[b->shades[i]], stdout);
  printf ("]\n");
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <endian.h>
#include <string.h>

#include "bitmap.h"
#include "common.h"
#include "format.h"

#define WORD_BITS 64

/* How much is read or written at once: a multiple of a word. */
#define CHUNK_BYTES 65536

/*--- Walking over what is set. ----------------------------------------*/

/* Takes 64 bits, that of SECTOR the lowest, some of them set.  Returns as
 * the functions here.
 */
typedef int word_fn (void *opaque, uint64_t sector, uint64_t word);

struct walk {
  struct image *metadata;
  uint64_t begin, end; /* sectors */
  uint64_t offset;     /* in bytes, of the next extent of the file */
  word_fn *fn;
  void *opaque;
};

static uint64_t
byte_of (uint64_t sector)
{
  return FORMAT_HEADER_BYTES + sector / 8;
}

/* The bits of WORD, which begins with SECTOR, that are in the range. */
static uint64_t
in_range (const struct walk *w, uint64_t sector, uint64_t word)
{
  if (sector < w->begin)
    word &= ~UINT64_C (0) << (w->begin - sector);
  if (w->end - sector < WORD_BITS)
    word &= (UINT64_C (1) << (w->end - sector)) - 1;
  return word;
}

/* Walk over the bytes [begin, end) of the file. */
static int
walk_bytes (struct walk *w, uint64_t begin, uint64_t end)
{
  uint64_t words[CHUNK_BYTES / sizeof (uint64_t)];

  while (begin < end) {
    const size_t n = MIN (end - begin, sizeof words);
    const uint64_t sector = (begin - FORMAT_HEADER_BYTES) * 8;
    const size_t nr_words = DIV_ROUND_UP (n, sizeof words[0]);
    size_t i;
    int r;

    words[nr_words - 1] = 0;
    r = w->metadata->ops->read (w->metadata, words, n, begin);
    for (i = 0; r == 0 && i < nr_words; i++) {
      const uint64_t at = sector + i * WORD_BITS;
      const uint64_t word = in_range (w, at, le64toh (words[i]));

      if (word)
        r = w->fn (w->opaque, at, word);
    }
    if (r)
      return r;
    begin += n;
  }
  return 0;
}

static int
walk_extent (void *opaque, uint64_t count, unsigned type)
{
  struct walk *w = opaque;
  const uint64_t begin = w->offset;

  w->offset += count;
  return type & EXTENT_ZERO ? 0 : walk_bytes (w, begin, begin + count);
}

static int
walk (struct image *metadata, uint64_t sector, uint64_t nr_sectors, word_fn *fn,
      void *opaque)
{
  struct walk w = {
    .metadata = metadata,
    .begin = sector,
    .end = sector + nr_sectors,
    .offset = byte_of (sector),
    .fn = fn,
    .opaque = opaque,
  };
  const uint64_t end = FORMAT_HEADER_BYTES + DIV_ROUND_UP (w.end, 8);
  int r = 0;

  while (r == 0 && nr_sectors > 0 && w.offset < end)
    r = metadata->ops->extents (metadata, end - w.offset, w.offset, walk_extent,
                                &w);
  return r;
}

/* Joins what is set on its way to FN. */
struct joiner {
  int (*fn) (void *opaque, uint64_t sector, uint64_t nr_sectors);
  void *opaque;
  uint64_t begin, end; /* of the run that may grow still */
};

static int
tell_run (struct joiner *j)
{
  if (j->begin == j->end)
    return 0;
  return j->fn (j->opaque, j->begin, j->end - j->begin);
}

static int
add_word (void *opaque, uint64_t sector, uint64_t word)
{
  struct joiner *j = opaque;

  while (word) {
    const unsigned first = __builtin_ctzll (word);
    const uint64_t rest = ~(word >> first);
    const unsigned n = rest ? __builtin_ctzll (rest) : WORD_BITS;

    if (sector + first != j->end) {
      int r = tell_run (j);

      if (r)
        return r;
      j->begin = sector + first;
    }
    j->end = sector + first + n;
    word &= first + n < WORD_BITS ? ~UINT64_C (0) << (first + n) : 0;
  }
  return 0;
}

int
bitmap_each_run (struct image *metadata, uint64_t sector, uint64_t nr_sectors,
                 int (*fn) (void *opaque, uint64_t sector, uint64_t nr_sectors),
                 void *opaque)
{
  struct joiner j = {
    .fn = fn,
    .opaque = opaque,
    .begin = sector,
    .end = sector,
  };
  int r = walk (metadata, sector, nr_sectors, add_word, &j);

  return r ? r : tell_run (&j);
}

static int
count_word (void *opaque, uint64_t sector UNUSED, uint64_t word)
{
  *(uint64_t *) opaque += __builtin_popcountll (word);
  return 0;
}

int
bitmap_count (struct image *metadata, uint64_t sector, uint64_t nr_sectors,
              uint64_t *nr_set)
{
  *nr_set = 0;
  return walk (metadata, sector, nr_sectors, count_word, nr_set);
}

/*--- Changing. --------------------------------------------------------*/

/* Change the bits of MASK in the byte of SECTOR. */
static int
change_byte (struct image *metadata, uint64_t sector, uint8_t mask, bool set)
{
  uint8_t byte;
  int r = metadata->ops->read (metadata, &byte, 1, byte_of (sector));

  if (r)
    return r;
  byte = set ? byte | mask : byte & ~mask;
  return metadata->ops->write (metadata, &byte, 1, byte_of (sector), 0);
}

static int
write_ones (struct image *metadata, uint64_t count, uint64_t offset)
{
  uint8_t ones[CHUNK_BYTES];
  int r = 0;

  memset (ones, 0xff, sizeof ones);
  while (r == 0 && count > 0) {
    const size_t n = MIN (count, sizeof ones);

    r = metadata->ops->write (metadata, ones, n, offset, 0);
    offset += n;
    count -= n;
  }
  return r;
}

static int
change (struct image *metadata, uint64_t sector, uint64_t nr_sectors, bool set)
{
  const uint64_t end = sector + nr_sectors;
  uint64_t count;
  int r;

  if (sector % 8 && nr_sectors > 0) {
    const uint64_t stop = MIN (end, sector - sector % 8 + 8);

    r = change_byte (metadata, sector,
                     (0xff << sector % 8) & (0xff >> (7 - (stop - 1) % 8)),
                     set);
    if (r)
      return r;
    sector = stop;
  }
  count = (end - sector) / 8;
  if (count > 0) {
    r = set ? write_ones (metadata, count, byte_of (sector))
            : metadata->ops->zero (metadata, count, byte_of (sector),
                                   IMAGE_MAY_TRIM);
    if (r)
      return r;
  }
  if (end % 8 == 0 || sector == end)
    return 0;
  return change_byte (metadata, end, 0xff >> (8 - end % 8), set);
}

int
bitmap_set (struct image *metadata, uint64_t sector, uint64_t nr_sectors)
{
  return change (metadata, sector, nr_sectors, true);
}

int
bitmap_clear (struct image *metadata, uint64_t sector, uint64_t nr_sectors)
{
  return change (metadata, sector, nr_sectors, false);
}

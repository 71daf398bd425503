/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "common.h"
#include "hints-write.h"
#include "image-file.h"

/* The field of the backing file lies in this many sectors of the file, each
 * of which is written as a whole or not at all when the power goes.
 */
#define FIRST_SECTOR (FORMAT_BACKING_OFFSET / FORMAT_SECTOR_BYTES)
#define END_SECTOR \
  DIV_ROUND_UP (FORMAT_BACKING_OFFSET + FORMAT_NAME_BYTES, FORMAT_SECTOR_BYTES)
#define NR_FIELD_SECTORS (END_SECTOR - FIRST_SECTOR)

/* The part of the field that lies in sector I of those. */
static void
field_part (unsigned i, size_t *begin, size_t *end)
{
  const size_t from = (FIRST_SECTOR + i) * FORMAT_SECTOR_BYTES;
  const size_t first = FORMAT_BACKING_OFFSET;

  *begin = MAX (from, first) - first;
  *end = MIN (from + FORMAT_SECTOR_BYTES - first, FORMAT_NAME_BYTES);
}

/* The sector that is written as the Ith. */
static unsigned
in_order (unsigned i, bool upwards)
{
  return upwards ? i : NR_FIELD_SECTORS - 1 - i;
}

/*--- What may be said at any moment. ----------------------------------*/

struct change {
  struct hints before, after;
  bool has_values; /* that are not valid, before */
};

/* Are size and mtime in *PART those in *WHOLE, or fewer of them? */
static bool
is_part (const struct hints *part, const struct hints *whole)
{
  return (!part->has_size ||
          (whole->has_size && part->size_bytes == whole->size_bytes)) &&
         (!part->has_mtime ||
          (whole->has_mtime && part->mtime_ns == whole->mtime_ns));
}

/* A value of two halves that is not valid is none, but who knows to whom. */
static bool
may_be_read (const struct change *change, const struct header *header)
{
  struct hints hints;

  format_get_hints (header, &hints);
  return (change->has_values ||
          !(format_check_hints (header) & FORMAT_HINT_VALUE)) &&
         strcmp (hints.format, change->before.format) == 0 &&
         (is_part (&hints, &change->before) ||
          is_part (&hints, &change->after));
}

/* Would that be so at each moment, if the sectors in which *TO differs from
 * *FROM were written in that order?
 */
static bool
is_safe (const struct change *change, const struct header *from,
         const struct header *to, bool upwards)
{
  struct header header = *from;
  unsigned i;

  for (i = 0; i < NR_FIELD_SECTORS; i++) {
    size_t begin, end;

    field_part (in_order (i, upwards), &begin, &end);
    memcpy (header.backing_file + begin, to->backing_file + begin, end - begin);
    if (!may_be_read (change, &header))
      return false;
  }
  return true;
}

/*--- One header after the other. --------------------------------------*/

#define MAX_HEADERS 4

/* What the file has first, in between and last. */
struct way {
  unsigned nr_headers;
  const struct header *headers[MAX_HEADERS];
  bool upwards[MAX_HEADERS]; /* how the header becomes the next */
};

/* Is there an order of sectors for each step?  Then it is set.  What is new in
 * the hints is in *NOW; NULL: nothing.
 */
static bool
find_orders (struct way *way, const struct hints *now)
{
  struct change change;
  unsigned i;

  change.has_values = format_check_hints (way->headers[0]) & FORMAT_HINT_VALUE;
  format_get_hints (way->headers[0], &change.before);
  change.after = change.before;
  if (now && now->has_size) {
    change.after.has_size = true;
    change.after.size_bytes = now->size_bytes;
  }
  if (now && now->has_mtime) {
    change.after.has_mtime = true;
    change.after.mtime_ns = now->mtime_ns;
  }
  for (i = 0; i + 1 < way->nr_headers; i++) {
    const struct header *from = way->headers[i], *to = way->headers[i + 1];

    way->upwards[i] = is_safe (&change, from, to, true);
    if (!way->upwards[i] && !is_safe (&change, from, to, false))
      return false;
  }
  return true;
}

/* Write what differs in sector I, and have it on disk. */
static int
write_part (int fd, const struct header *from, const struct header *to,
            unsigned i)
{
  const char *old = from->backing_file, *new = to->backing_file;
  size_t begin, end;
  int r;

  field_part (i, &begin, &end);
  while (begin < end && old[begin] == new[begin])
    begin++;
  if (begin == end)
    return 0;
  r = fd_write (fd, new + begin, end - begin, FORMAT_BACKING_OFFSET + begin);
  return r ? r : fd_sync (fd);
}

static int
write_step (int fd, const struct way *way, unsigned step)
{
  unsigned i;
  int r = 0;

  for (i = 0; r == 0 && i < NR_FIELD_SECTORS; i++)
    r = write_part (fd, way->headers[step], way->headers[step + 1],
                    in_order (i, way->upwards[step]));
  return r;
}

/* *WRITTEN as for hints_write. */
static int
go (int fd, struct way *way, const struct hints *now, bool *written)
{
  unsigned i;
  int r = 0;

  *written = find_orders (way, now);
  for (i = 0; *written && r == 0 && i + 1 < way->nr_headers; i++)
    r = write_step (fd, way, i);
  return r;
}

int
hints_write (int fd, const struct header *from, const struct header *to,
             bool *written)
{
  struct way way = { 2, { from, to }, { false } };

  return go (fd, &way, NULL, written);
}

/* Three ways, of which the last is always safe: nothing moves, and what is
 * hidden says nothing while it changes.
 */
int
hints_update (int fd, const struct header *from, const struct hints *now)
{
  struct header to = *from, hidden_from = *from, hidden_to;
  struct header in_place = *from, hidden_in_place;
  struct way direct = { 2, { from, &to }, { false } };
  bool written;
  int r;

  format_update_hints (&to, now);
  format_update_hints_in_place (&in_place, now);
  format_hide_hints (&hidden_from);
  hidden_to = to;
  format_hide_hints (&hidden_to);
  hidden_in_place = in_place;
  format_hide_hints (&hidden_in_place);

  r = go (fd, &direct, now, &written);
  if (!written) {
    struct way way = { 4, { from, &hidden_from, &hidden_to, &to }, { false } };

    r = go (fd, &way, now, &written);
  }
  if (!written) {
    struct way way = { 4,
                       { from, &hidden_from, &hidden_in_place, &in_place },
                       { false } };

    r = go (fd, &way, now, &written);
  }
  return r;
}

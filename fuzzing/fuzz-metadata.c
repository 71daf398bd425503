/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A disk over any metadata file: see disk-input.h for the input.
 *
 *   flags  1: only to be read; 2: names are not confined by the engine;
 *          4: the image of the header has to be there
 *   ops    14 bytes each: what; 8, an offset, modulo the size; 4, a count;
 *          one for what is written
 *
 * Every byte that is read is compared with where it must come from: the image
 * or the backing file, as the bitmap says, or what was written since.  At
 * the end the bits of the sectors that were allocated are set in the file,
 * and nothing else has changed.
 *
 * The image and the backing file are no files but say for every byte what it
 * is, so that disks of any size can be read and written.
 */

#include <config.h>

#include <errno.h>
#include <unistd.h>

#include "common.h"
#include "disk-input.h"
#include "disk.h"
#include "disk-map.h"
#include "format.h"
#include "fuzz.h"
#include "overlay.h"

#define SECTOR 512
#define MAX_OPS 16
#define MAX_COUNT 10000

enum { READ_ONLY = 1, UNCONFINED = 2, CHECK_IMAGE = 4 };

/*--- Sectors that were written. ---------------------------------------*/

struct sector {
  uint64_t number;
  uint8_t bytes[SECTOR];
  bool used;
};

/* A set of them, by number. */
#define NR_SLOTS 8192
struct sectors {
  struct sector slots[NR_SLOTS];
  unsigned used[NR_SLOTS], n;
};

static struct sectors in_image, written;

static struct sector *
find (struct sectors *set, uint64_t number)
{
  unsigned i = number * UINT64_C (0x9e3779b97f4a7c15) >> 51;

  while (set->slots[i].used && set->slots[i].number != number)
    i = (i + 1) % NR_SLOTS;
  return &set->slots[i];
}

static void
forget_all (struct sectors *set)
{
  while (set->n > 0)
    set->slots[set->used[--set->n]].used = false;
}

/* The one of NUMBER, made if need be: *NEW then. */
static struct sector *
find_or_add (struct sectors *set, uint64_t number, bool *new)
{
  struct sector *s = find (set, number);

  *new = !s->used;
  if (*new) {
    CHECK (set->n < NR_SLOTS / 2);
    *s = (struct sector){ .number = number, .used = true };
    set->used[set->n++] = s - set->slots;
  }
  return s;
}

/*--- The image. -------------------------------------------------------*/

static uint64_t image_bytes; /* its length is that of the disk */

/* What sector NUMBER of it has. */
static void
image_sector (uint64_t number, uint8_t bytes[SECTOR])
{
  const struct sector *s = find (&in_image, number);
  unsigned i;

  if (s->used)
    memcpy (bytes, s->bytes, SECTOR);
  else
    for (i = 0; i < SECTOR; i++)
      bytes[i] = ~(number * 5 + i) % 241;
}

/* The part of sector *NUMBER that the range has, the first one of it that is
 * left: from *BEGIN on.  Moves the range on, and returns how long it is.
 */
static size_t
next_part (uint64_t *count, uint64_t *offset, uint64_t *number, size_t *begin)
{
  size_t n;

  *number = *offset / SECTOR;
  *begin = *offset % SECTOR;
  n = MIN (*count, SECTOR - *begin);
  *count -= n;
  *offset += n;
  return n;
}

/* The sector of the image to change. */
static uint8_t *
image_change (uint64_t number)
{
  uint8_t bytes[SECTOR];
  struct sector *s;
  bool new;

  image_sector (number, bytes);
  s = find_or_add (&in_image, number, &new);
  if (new)
    memcpy (s->bytes, bytes, SECTOR);
  return s->bytes;
}

static void
check_range (uint64_t count, uint64_t offset)
{
  CHECK (offset <= image_bytes && count <= image_bytes - offset);
}

static int
image_read (struct image *image UNUSED, void *buf, size_t count,
            uint64_t offset)
{
  uint64_t left = count, number;
  uint8_t bytes[SECTOR], *p = buf;
  size_t begin, n;

  check_range (count, offset);
  for (; left > 0; p += n) {
    n = next_part (&left, &offset, &number, &begin);
    image_sector (number, bytes);
    memcpy (p, bytes + begin, n);
  }
  return 0;
}

static int
image_write (struct image *image UNUSED, const void *buf, size_t count,
             uint64_t offset, unsigned flags UNUSED)
{
  uint64_t left = count, number;
  const uint8_t *p = buf;
  size_t begin, n;

  check_range (count, offset);
  for (; left > 0; p += n) {
    n = next_part (&left, &offset, &number, &begin);
    memcpy (image_change (number) + begin, p, n);
  }
  return 0;
}

static int
image_zero (struct image *image UNUSED, uint64_t count, uint64_t offset,
            unsigned flags UNUSED)
{
  uint64_t number;
  size_t begin, n;

  check_range (count, offset);
  while (count > 0) {
    n = next_part (&count, &offset, &number, &begin);
    memset (image_change (number) + begin, 0, n);
  }
  return 0;
}

static int
image_trim (struct image *image UNUSED, uint64_t count, uint64_t offset,
            unsigned flags UNUSED)
{
  check_range (count, offset);
  return 0;
}

static int
image_flush (struct image *image UNUSED)
{
  return 0;
}

static int
image_extents (struct image *image UNUSED, uint64_t count, uint64_t offset,
               extent_fn *fn, void *opaque)
{
  CHECK (count > 0);
  check_range (count, offset);
  return fn (opaque, count, 0);
}

static int
image_cache (struct image *image UNUSED, uint64_t count, uint64_t offset)
{
  check_range (count, offset);
  return 0;
}

static const struct image_ops image_ops = {
  .read = image_read,
  .write = image_write,
  .zero = image_zero,
  .trim = image_trim,
  .flush = image_flush,
  .extents = image_extents,
  .cache = image_cache,
};

/*--- What is right. ---------------------------------------------------*/

/* The beginning of the file, as it was. */
#define HEAD_BYTES 16384
static uint8_t before[HEAD_BYTES];

struct fuzz {
  struct disk_input in;
  struct disk *disk;
  struct overlay *ov;
  struct image image;
  uint64_t size_bytes, backing_bytes;
};

/* As it is in the file: the engine writes it in commits only, and bits do not
 * become 0.
 */
static bool
is_set (const struct fuzz *z, uint64_t sector)
{
  uint8_t byte;

  CHECK (pread (z->in.fd, &byte, 1, FORMAT_HEADER_BYTES + sector / 8) == 1);
  return byte & 1 << sector % 8;
}

/* What sector NUMBER of the backing file has; a real one may be any file. */
static void
below (const struct fuzz *z, uint64_t number, uint8_t bytes[SECTOR])
{
  const uint64_t begin = number * SECTOR;
  unsigned i;

  if (z->in.flags & DISK_INPUT_REAL_BACKING) {
    CHECK (backing_read (z->disk->backing, bytes, SECTOR, begin) == 0);
    return;
  }
  for (i = 0; i < SECTOR; i++)
    bytes[i] = begin + i < z->backing_bytes ? backing_byte (begin + i) : 0;
}

/* What sector NUMBER of the disk has. */
static void
expected (const struct fuzz *z, uint64_t number, uint8_t bytes[SECTOR])
{
  const struct sector *s = find (&written, number);

  if (s->used)
    memcpy (bytes, s->bytes, SECTOR);
  else if (is_set (z, number))
    image_sector (number, bytes);
  else
    below (z, number, bytes);
}

/* From now on sector NUMBER is allocated, and its content known. */
static struct sector *
allocate (const struct fuzz *z, uint64_t number)
{
  uint8_t bytes[SECTOR];
  struct sector *s;
  bool new;

  expected (z, number, bytes);
  s = find_or_add (&written, number, &new);
  memcpy (s->bytes, bytes, SECTOR);
  return s;
}

/*--- Operations. ------------------------------------------------------*/

static uint8_t buf[MAX_COUNT];

static void
do_read (struct fuzz *z, size_t count, uint64_t offset)
{
  const uint8_t *p = buf;
  uint64_t left = count, at = offset, number;
  struct fault fault;
  uint8_t bytes[SECTOR];
  size_t begin, n;

  memset (buf, 0xee, count);
  CHECK (overlay_read (z->ov, &z->image, buf, count, offset, &fault) == 0);
  for (; left > 0; p += n) {
    n = next_part (&left, &at, &number, &begin);
    expected (z, number, bytes);
    CHECK (memcmp (p, bytes + begin, n) == 0);
  }
}

/* BUF, or zeroes if it is NULL, was written. */
static void
put_written (const struct fuzz *z, const uint8_t *p, uint64_t count,
             uint64_t offset)
{
  uint64_t number;
  size_t begin, n;

  while (count > 0) {
    uint8_t *to;

    n = next_part (&count, &offset, &number, &begin);
    to = allocate (z, number)->bytes + begin;
    if (p == NULL) {
      memset (to, 0, n);
      continue;
    }
    memcpy (to, p, n);
    p += n;
  }
}

static void
do_write (struct fuzz *z, size_t count, uint64_t offset, uint8_t what)
{
  struct fault fault;
  size_t i;

  for (i = 0; i < count; i++)
    buf[i] = what + i / 100;
  CHECK (overlay_write (z->ov, &z->image, buf, count, offset,
                        what & 1 ? IMAGE_FUA : 0, &fault) == 0);
  put_written (z, buf, count, offset);
}

static void
do_zero (struct fuzz *z, size_t count, uint64_t offset, uint8_t what)
{
  struct fault fault;

  CHECK (overlay_zero (z->ov, &z->image, count, offset,
                       what & (IMAGE_FUA | IMAGE_MAY_TRIM), &fault) == 0);
  put_written (z, NULL, count, offset);
}

/* What is trimmed is what it was, or zero; and zero where a whole sector was
 * not allocated.
 */
static void
check_trimmed (struct fuzz *z, uint64_t number, size_t begin, size_t n,
               bool was_allocated)
{
  struct sector *s = allocate (z, number);
  uint8_t now[SECTOR];
  size_t i;

  image_sector (number, now);
  for (i = begin; i < begin + n; i++) {
    CHECK (now[i] == 0 ||
           (now[i] == s->bytes[i] && (was_allocated || n < SECTOR)));
    s->bytes[i] = now[i];
  }
}

static void
do_trim (struct fuzz *z, uint64_t count, uint64_t offset, uint8_t what)
{
  bool was_allocated[MAX_COUNT / SECTOR + 2];
  uint64_t left = count, at = offset, number;
  struct fault fault;
  size_t begin, n, i;

  for (i = 0; left > 0; i++) {
    next_part (&left, &at, &number, &begin);
    was_allocated[i] = find (&written, number)->used || is_set (z, number);
  }
  CHECK (overlay_trim (z->ov, &z->image, count, offset, what & IMAGE_FUA,
                       &fault) == 0);
  for (i = 0; count > 0; i++) {
    n = next_part (&count, &offset, &number, &begin);
    if (!was_allocated[i] || find (&written, number)->used)
      check_trimmed (z, number, begin, n, was_allocated[i]);
  }
}

struct telling {
  struct fuzz *z;
  uint64_t offset, end;
};

static int
tell_extent (void *opaque, uint64_t count, unsigned type)
{
  struct telling *t = opaque;

  CHECK (count > 0 && count <= t->end - t->offset);
  CHECK ((type & ~(EXTENT_HOLE | EXTENT_ZERO)) == 0);
  /* Only what is past the backing file's end reads as zeroes here, unless
   * that is a real one.
   */
  if ((type & EXTENT_ZERO) && !(t->z->in.flags & DISK_INPUT_REAL_BACKING))
    CHECK (t->offset + SECTOR > t->z->backing_bytes);
  t->offset += count;
  return 0;
}

static void
do_extents (struct fuzz *z, uint64_t count, uint64_t offset)
{
  struct telling t = { z, offset, offset + count };
  struct fault fault;

  CHECK (overlay_extents (z->ov, &z->image, count, offset, tell_extent, &t,
                          &fault) == 0);
  CHECK (t.offset > offset);
}

static void
do_fill (struct fuzz *z, size_t count, uint64_t offset)
{
  struct fault fault;
  uint64_t n;

  CHECK (overlay_fill_range (z->ov, &z->image, count, offset, &fault) == 0);
  for (n = offset / SECTOR; n * SECTOR < offset + count; n++)
    allocate (z, n);
}

static int
tell_map (void *opaque, const struct map_extent *e)
{
  struct telling *t = opaque;

  CHECK (e->offset == t->offset && e->count > 0);
  CHECK (e->count <= t->end - t->offset);
  CHECK (!e->present || e->file_name);
  t->offset += e->count;
  return 0;
}

/* Of what is in the file; all of a disk may be told. */
static void
do_map (struct fuzz *z)
{
  struct telling t = { z, 0, z->size_bytes };
  CLEANUP_FAILURE struct failure failure = { 0 };

  if (z->disk->image_fd == -1)
    return;
  if (disk_map (z->disk, tell_map, &t, &failure) == 0)
    CHECK (t.offset == t.end);
}

static void
do_op (struct fuzz *z, struct input *ops)
{
  const unsigned kind = take (ops, 1);
  const uint64_t offset = take (ops, 8) % z->size_bytes;
  const uint64_t asked = take (ops, 4);
  const uint64_t wide = MIN (asked, z->size_bytes - offset);
  const size_t count = MAX (MIN (wide, sizeof buf), 1);
  const uint8_t what = take (ops, 1);
  struct fault fault;

  switch (kind % 10) {
  case 0:
    do_read (z, count, offset);
    break;
  case 1:
    do_extents (z, MAX (wide, 1), offset);
    break;
  case 2:
    CHECK (overlay_cache (z->ov, &z->image, MAX (wide, 1), offset, &fault) ==
           0);
    break;
  case 3:
    if (what % 16 == 0)
      do_map (z);
    break;
  case 4:
    overlay_stands_alone (z->ov);
    break;
  default:
    if (!z->disk->writable)
      break;
    if (kind % 10 == 5)
      do_write (z, count, offset, what);
    else if (kind % 10 == 6)
      do_zero (z, count, offset, what);
    else if (kind % 10 == 7)
      do_trim (z, count, offset, what);
    else if (kind % 10 == 8)
      do_fill (z, count, offset);
    else
      CHECK (overlay_flush (z->ov, &z->image, &fault) == 0);
  }
}

/*--- The end. ---------------------------------------------------------*/

/* The bit of SECTOR in a byte that WAS and IS: those past the end of the disk
 * may be cleared.
 */
static void
check_bit (const struct fuzz *z, uint64_t sector, uint8_t was, uint8_t is)
{
  const uint8_t bit = 1 << sector % 8;

  if ((was & bit) == (is & bit))
    return;
  if (sector < z->size_bytes / SECTOR)
    CHECK ((is & bit) && find (&written, sector)->used);
  else
    CHECK (!(is & bit));
}

static void
check_file (const struct fuzz *z)
{
  static uint8_t now[HEAD_BYTES];
  unsigned i, bit;
  ssize_t n;

  CHECK (lseek (z->in.fd, 0, SEEK_END) == (off_t) z->in.length_bytes);
  n = pread (z->in.fd, now, sizeof now, 0);
  CHECK (n >= FORMAT_HEADER_BYTES);
  CHECK (memcmp (now, before, FORMAT_HEADER_BYTES) == 0);
  for (i = FORMAT_HEADER_BYTES; i < n; i++)
    for (bit = 0; now[i] != before[i] && bit < 8; bit++)
      check_bit (z, (i - FORMAT_HEADER_BYTES) * 8 + bit, before[i], now[i]);
  for (i = 0; i < written.n; i++)
    CHECK (is_set (z, written.slots[written.used[i]].number));
}

static void
use (struct fuzz *z)
{
  struct fault fault;
  unsigned i;

  z->image.ops = &image_ops;
  z->ov = z->disk->overlay;
  z->size_bytes = image_bytes = z->disk->header.size_bytes;
  z->backing_bytes = z->disk->backing ? z->disk->backing->size_bytes : 0;
  CHECK (overlay_size_bytes (z->ov) == z->size_bytes);
  CHECK (z->in.length_bytes >= format_file_bytes (z->size_bytes));
  overlay_attach (z->ov, &z->image);
  for (i = 0; i < MAX_OPS && z->in.ops.left > 0 && z->size_bytes > 0; i++)
    do_op (z, &z->in.ops);
  CHECK (overlay_detach (z->ov, &z->image, &fault) == 0);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct fuzz z = { .disk = NULL };
  int r;

  disk_input_make (&z.in, data, size);
  forget_all (&in_image);
  forget_all (&written);
  memset (before, 0, sizeof before);
  CHECK (pread (z.in.fd, before, sizeof before, 0) >= 0);
  const struct disk_options options = {
    .read_only = z.in.flags & READ_ONLY,
    .check_image = z.in.flags & CHECK_IMAGE,
    .backing = {
      .timeout_seconds = 1,
      .confine = z.in.flags & UNCONFINED ? NULL : z.in.folder,
    },
  };
  r = disk_open (&z.disk, z.in.path, &options, &failure);
  if (r) {
    CHECK (failure.err == r && failure.file_name);
    return 0;
  }
  use (&z);
  disk_close (z.disk);
  check_file (&z);
  return 0;
}

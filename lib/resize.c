/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "bitmap.h"
#include "common.h"
#include "error.h"
#include "format.h"
#include "resize.h"

/* Was ERR, if it is not 0, the fault of PART?  Returns 0 or -1. */
static int
blame (enum fault_part part, int err, struct fault *fault)
{
  if (err == 0)
    return 0;
  *fault = (struct fault){ .part = part, .err = err };
  return -1;
}

static int
set_length (struct image *image, uint64_t length_bytes)
{
  return image->ops->set_length (image, length_bytes);
}

static int
flush (struct image *image)
{
  return image->ops->flush (image);
}

/* In the metadata file, clear all that is past the end of a disk of SIZE_BYTES.
 */
static int
clear_past_end (const struct resize *r, uint64_t size_bytes)
{
  const uint64_t nr_sectors = size_bytes / FORMAT_SECTOR_BYTES;
  int err;

  err = set_length (r->metadata, format_file_bytes (size_bytes));
  if (err || nr_sectors % 8 == 0)
    return err;
  return bitmap_clear (r->metadata, nr_sectors, 8 - nr_sectors % 8);
}

static int
write_size (const struct resize *r, uint64_t size_bytes)
{
  uint8_t buf[FORMAT_SIZE_BYTES];
  int err;

  format_encode_size (size_bytes, buf);
  err = r->metadata->ops->write (r->metadata, buf, sizeof buf,
                                 FORMAT_SIZE_OFFSET, 0);
  return err ? err : flush (r->metadata);
}

/*--- Growing. ---------------------------------------------------------*/

static int
lengthen_image (const struct resize *r, uint64_t size_bytes)
{
  if (r->image_bytes >= size_bytes)
    return 0;
  return r->image_is_fixed ? ADDCOW_E_IMAGE_SHORT
                           : set_length (r->image, size_bytes);
}

/* Sets the bits of what is data. */
struct setter {
  struct image *metadata;
  uint64_t offset; /* of the next extent */
  bool failed;     /* to set bits */
};

static int
set_extent (void *opaque, uint64_t count, unsigned type)
{
  struct setter *s = opaque;
  const uint64_t sector = s->offset / FORMAT_SECTOR_BYTES;
  uint64_t end;
  int err;

  s->offset += count;
  if (type & EXTENT_ZERO)
    return 0;
  end = DIV_ROUND_UP (s->offset, FORMAT_SECTOR_BYTES);
  err = bitmap_set (s->metadata, sector, end - sector);
  s->failed = err != 0;
  return err;
}

static int
set_where_data (const struct resize *r, uint64_t new_size_bytes,
                struct fault *fault)
{
  struct setter s = { .metadata = r->metadata, .offset = r->size_bytes };
  uint64_t end = new_size_bytes;

  if (r->backing == NULL)
    return 0;
  end = MIN (end, r->backing->size_bytes);
  while (s.offset < end) {
    const int err = backing_extents (r->backing, end - s.offset, s.offset,
                                     set_extent, &s);

    if (err && err != EXTENT_STOP)
      return blame (s.failed ? FAULT_METADATA : FAULT_BACKING, err, fault);
  }
  return 0;
}

/* Is every sector allocated?  Of a disk without any, nobody would say so. */
static int
is_complete (const struct resize *r, bool *complete)
{
  const uint64_t nr_sectors = r->size_bytes / FORMAT_SECTOR_BYTES;
  uint64_t nr_set;
  int err;

  err = bitmap_count (r->metadata, 0, nr_sectors, &nr_set);
  *complete = r->backing_is_missing || (nr_sectors && nr_set == nr_sectors);
  return err;
}

static int
set_bits (const struct resize *r, uint64_t new_size_bytes, struct fault *fault)
{
  const uint64_t begin = r->size_bytes / FORMAT_SECTOR_BYTES;
  const uint64_t end = new_size_bytes / FORMAT_SECTOR_BYTES;
  bool complete;
  int err;

  err = is_complete (r, &complete);
  if (err)
    return blame (FAULT_METADATA, err, fault);
  if (!complete)
    return set_where_data (r, new_size_bytes, fault);
  return blame (FAULT_METADATA, bitmap_set (r->metadata, begin, end - begin),
                fault);
}

/* Makes what is data zeroes. */
struct zeroer {
  const struct resize *r;
  uint64_t offset; /* of the next extent */
  bool failed;     /* because of the image */
};

static int
zero_extent (void *opaque, uint64_t count, unsigned type)
{
  struct zeroer *z = opaque;
  struct image *image = z->r->image;
  const uint64_t offset = z->offset;

  z->offset += count;
  if (type & EXTENT_ZERO)
    return 0;
  return image->ops->zero (image, count, offset, IMAGE_MAY_TRIM);
}

/* What the image did not have before is zeroes. */
static int
zero_run (void *opaque, uint64_t sector, uint64_t nr_sectors)
{
  struct zeroer *z = opaque;
  struct image *image = z->r->image;
  const uint64_t end = MIN ((sector + nr_sectors) * FORMAT_SECTOR_BYTES,
                            z->r->image_bytes);
  int err = 0;

  z->offset = sector * FORMAT_SECTOR_BYTES;
  while (err == 0 && z->offset < end)
    err = image->ops->extents (image, end - z->offset, z->offset, zero_extent,
                               z);
  z->failed = err != 0;
  return err;
}

static int
zero_image (const struct resize *r, uint64_t new_size_bytes,
            struct fault *fault)
{
  const uint64_t begin = r->size_bytes / FORMAT_SECTOR_BYTES;
  const uint64_t end = new_size_bytes / FORMAT_SECTOR_BYTES;
  struct zeroer z = { .r = r };
  const int err = bitmap_each_run (r->metadata, begin, end - begin, zero_run,
                                   &z);

  return blame (z.failed ? FAULT_IMAGE : FAULT_METADATA, err, fault);
}

/* All but the size in the header. */
static int
make_ready (const struct resize *r, uint64_t new_size_bytes,
            struct fault *fault)
{
  const uint64_t file_bytes = format_file_bytes (new_size_bytes);

  if (blame (FAULT_IMAGE, lengthen_image (r, new_size_bytes), fault) == -1 ||
      blame (FAULT_METADATA, clear_past_end (r, r->size_bytes), fault) == -1 ||
      blame (FAULT_METADATA, set_length (r->metadata, file_bytes), fault) ==
          -1 ||
      set_bits (r, new_size_bytes, fault) == -1 ||
      zero_image (r, new_size_bytes, fault) == -1 ||
      blame (FAULT_IMAGE, flush (r->image), fault) == -1)
    return -1;
  return blame (FAULT_METADATA, flush (r->metadata), fault);
}

/* Where this fails, too, something is left that means nothing. */
static void
put_back (const struct resize *r, uint64_t new_size_bytes)
{
  if (r->image_bytes < new_size_bytes && !r->image_is_fixed)
    set_length (r->image, r->image_bytes);
  clear_past_end (r, r->size_bytes);
}

static int
grow (const struct resize *r, uint64_t new_size_bytes, struct fault *fault)
{
  if (make_ready (r, new_size_bytes, fault) == -1) {
    put_back (r, new_size_bytes);
    return -1;
  }
  return blame (FAULT_METADATA, write_size (r, new_size_bytes), fault);
}

/*--- Shrinking. -------------------------------------------------------*/

static int
shrink (const struct resize *r, uint64_t new_size_bytes, struct fault *fault)
{
  if (blame (FAULT_METADATA, write_size (r, new_size_bytes), fault) == -1 ||
      blame (FAULT_METADATA, clear_past_end (r, new_size_bytes), fault) == -1 ||
      blame (FAULT_METADATA, flush (r->metadata), fault) == -1)
    return -1;
  if (r->image_is_fixed || r->image_bytes != r->size_bytes)
    return 0;
  if (blame (FAULT_IMAGE, set_length (r->image, new_size_bytes), fault) == -1)
    return -1;
  return blame (FAULT_IMAGE, flush (r->image), fault);
}

int
resize (const struct resize *r, uint64_t new_size_bytes, struct fault *fault)
{
  if (new_size_bytes > r->size_bytes)
    return grow (r, new_size_bytes, fault);
  if (new_size_bytes < r->size_bytes)
    return shrink (r, new_size_bytes, fault);
  return 0;
}

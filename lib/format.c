/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <endian.h>
#include <string.h>

#include "common.h"
#include "error.h"
#include "format.h"

/* The header as it is on disk.  There is no padding to keep out: every
 * field is an array of bytes.
 */
struct header_on_disk {
  uint8_t magic[FORMAT_MAGIC_BYTES];
  uint8_t version[4];
  char backing_file[FORMAT_NAME_BYTES];
  char image_file[FORMAT_NAME_BYTES];
  uint8_t size[8];
};

_Static_assert(sizeof (struct header_on_disk) == FORMAT_HEADER_BYTES,
               "the header is 2068 bytes");

int
format_check_size (uint64_t size_bytes)
{
  if (size_bytes > INT64_MAX)
    return ADDCOW_E_SIZE_LARGE;
  if (size_bytes % FORMAT_SECTOR_BYTES != 0)
    return ADDCOW_E_SIZE_SECTORS;
  return 0;
}

int
format_decode (const uint8_t buf[FORMAT_HEADER_BYTES], struct header *header)
{
  const struct header_on_disk *disk = (const void *) buf;
  uint32_t version;
  uint64_t size;

  if (memcmp (disk->magic, FORMAT_MAGIC, FORMAT_MAGIC_BYTES) != 0)
    return ADDCOW_E_MAGIC;

  memcpy (&version, disk->version, sizeof version);
  if (be32toh (version) != FORMAT_VERSION)
    return ADDCOW_E_VERSION;

  if (memchr (disk->backing_file, 0, FORMAT_NAME_BYTES) == NULL)
    return ADDCOW_E_BACKING_NAME;
  if (memchr (disk->image_file, 0, FORMAT_NAME_BYTES) == NULL)
    return ADDCOW_E_IMAGE_NAME;
  memcpy (header->backing_file, disk->backing_file, FORMAT_NAME_BYTES);
  memcpy (header->image_file, disk->image_file, FORMAT_NAME_BYTES);

  memcpy (&size, disk->size, sizeof size);
  header->size_bytes = be64toh (size);
  return format_check_size (header->size_bytes);
}

void
format_encode (const struct header *header, uint8_t buf[FORMAT_HEADER_BYTES])
{
  struct header_on_disk *disk = (void *) buf;
  const uint32_t version = htobe32 (FORMAT_VERSION);
  const uint64_t size = htobe64 (header->size_bytes);

  memset (disk, 0, sizeof *disk);
  memcpy (disk->magic, FORMAT_MAGIC, FORMAT_MAGIC_BYTES);
  memcpy (disk->version, &version, sizeof version);
  memcpy (disk->backing_file, header->backing_file,
          strlen (header->backing_file));
  memcpy (disk->image_file, header->image_file, strlen (header->image_file));
  memcpy (disk->size, &size, sizeof size);
}

int
format_set_name (char field[FORMAT_NAME_BYTES], const char *name)
{
  const size_t len = strlen (name);

  if (len >= FORMAT_NAME_BYTES)
    return ADDCOW_E_NAME_LONG;
  memset (field, 0, FORMAT_NAME_BYTES);
  memcpy (field, name, len);
  return 0;
}

uint64_t
format_bitmap_bytes (uint64_t size_bytes)
{
  return DIV_ROUND_UP (size_bytes, (uint64_t) FORMAT_SECTOR_BYTES * 8);
}

uint64_t
format_file_bytes (uint64_t size_bytes)
{
  return FORMAT_HEADER_BYTES + format_bitmap_bytes (size_bytes);
}

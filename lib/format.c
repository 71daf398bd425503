/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
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
  memcpy (disk->backing_file, header->backing_file, FORMAT_NAME_BYTES);
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

/*--- Hints. -----------------------------------------------------------*/

#define DIGITS "0123456789"
#define FORMAT_HINT_CHARACTERS \
  "abcdefghijklmnopqrstuvwxyz" \
  "ABCDEFGHIJKLMNOPQRSTUVWXYZ" DIGITS "_-"

#define FORMAT_KEY "format="
#define SIZE_KEY "size="
#define MTIME_KEY "mtime="

bool
format_is_hint (const char *text)
{
  const size_t len = strlen (text);

  return len > 0 && len < FORMAT_HINT_BYTES &&
         strspn (text, FORMAT_HINT_CHARACTERS) == len;
}

/* strtoll would take spaces and a plus as well. */
static bool
parse_number (const char *text, int64_t *number)
{
  const char *digits = text + (text[0] == '-');
  const size_t len = strspn (digits, DIGITS);

  if (len == 0 || digits[len] != '\0')
    return false;
  errno = 0;
  *number = strtoll (text, NULL, 10);
  return errno == 0;
}

/* The value in STRING if its key is KEY, which ends with "=", or NULL. */
static const char *
value_of (const char *string, const char *key)
{
  const size_t len = strlen (key);

  return strncmp (string, key, len) == 0 ? string + len : NULL;
}

static void
get_hint (const char *string, struct hints *hints)
{
  const char *value;
  int64_t number;

  if ((value = value_of (string, FORMAT_KEY))) {
    if (hints->format[0] == '\0' && format_is_hint (value))
      strcpy (hints->format, value);
  }
  else if ((value = value_of (string, SIZE_KEY))) {
    if (!hints->has_size && value[0] != '-' && parse_number (value, &number)) {
      hints->has_size = true;
      hints->size_bytes = number;
    }
  }
  else if ((value = value_of (string, MTIME_KEY))) {
    if (!hints->has_mtime && parse_number (value, &number)) {
      hints->has_mtime = true;
      hints->mtime_ns = number;
    }
  }
}

void
format_get_hints (const struct header *header, struct hints *hints)
{
  const char *const end = header->backing_file + FORMAT_NAME_BYTES;
  const char *p = header->backing_file + strlen (header->backing_file) + 1;
  const char *nul;

  *hints = (struct hints){ .has_size = false };
  if (header->backing_file[0] == '\0')
    return;
  for (; p < end && *p; p = nul + 1) {
    nul = memchr (p, '\0', end - p);
    if (nul == NULL)
      return;
    get_hint (p, hints);
  }
}

/* Append KEY and VALUE and a NUL at *P. */
static void
put_hint (char **p, const char *key, const char *value)
{
  *p = stpcpy (stpcpy (*p, key), value) + 1;
}

int
format_set_hints (struct header *header, const struct hints *hints)
{
  /* The longest keys and numbers that there are, and the empty string. */
  char strings[sizeof FORMAT_KEY + FORMAT_HINT_BYTES + sizeof SIZE_KEY +
               sizeof MTIME_KEY + 2 * sizeof "-9223372036854775808" + 1];
  char number[sizeof "18446744073709551615"];
  const size_t name = strlen (header->backing_file) + 1;
  char *p = strings;

  if (hints->format[0])
    put_hint (&p, FORMAT_KEY, hints->format);
  if (hints->has_size) {
    snprintf (number, sizeof number, "%" PRIu64, hints->size_bytes);
    put_hint (&p, SIZE_KEY, number);
  }
  if (hints->has_mtime) {
    snprintf (number, sizeof number, "%" PRIi64, hints->mtime_ns);
    put_hint (&p, MTIME_KEY, number);
  }
  if (p > strings) /* without any, a name may have all the room */
    *p++ = '\0';

  if (name + (p - strings) > FORMAT_NAME_BYTES)
    return ADDCOW_E_HINTS_LONG;
  memset (header->backing_file + name, 0, FORMAT_NAME_BYTES - name);
  memcpy (header->backing_file + name, strings, p - strings);
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

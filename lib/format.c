/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
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
  uint8_t size[FORMAT_SIZE_BYTES];
};

_Static_assert(sizeof (struct header_on_disk) == FORMAT_HEADER_BYTES,
               "the header is 2068 bytes");
_Static_assert(offsetof (struct header_on_disk, backing_file) ==
                   FORMAT_BACKING_OFFSET,
               "backing_file is at byte 12");
_Static_assert(offsetof (struct header_on_disk, size) == FORMAT_SIZE_OFFSET,
               "the size is the last field");

int
format_check_size (uint64_t size_bytes)
{
  if (size_bytes > INT64_MAX)
    return ADDCOW_E_SIZE_LARGE;
  if (size_bytes % FORMAT_SECTOR_BYTES != 0)
    return ADDCOW_E_SIZE_SECTORS;
  return 0;
}

static uint64_t
size_of (const struct header_on_disk *disk)
{
  uint64_t size;

  memcpy (&size, disk->size, sizeof size);
  return be64toh (size);
}

static uint32_t
version_of (const struct header_on_disk *disk)
{
  uint32_t version;

  memcpy (&version, disk->version, sizeof version);
  return be32toh (version);
}

static bool
has_end (const char name[FORMAT_NAME_BYTES])
{
  return memchr (name, 0, FORMAT_NAME_BYTES) != NULL;
}

unsigned
format_errors (const uint8_t buf[FORMAT_HEADER_BYTES],
               int errors[FORMAT_MAX_ERRORS])
{
  const struct header_on_disk *disk = (const void *) buf;
  unsigned n = 0;

  if (memcmp (disk->magic, FORMAT_MAGIC, FORMAT_MAGIC_BYTES) != 0)
    errors[n++] = ADDCOW_E_MAGIC;
  else if (version_of (disk) != FORMAT_VERSION)
    errors[n++] = ADDCOW_E_VERSION;
  if (n > 0)
    return n;

  if (!has_end (disk->backing_file))
    errors[n++] = ADDCOW_E_BACKING_NAME;
  if (!has_end (disk->image_file))
    errors[n++] = ADDCOW_E_IMAGE_NAME;
  errors[n] = format_check_size (size_of (disk));
  return errors[n] ? n + 1 : n;
}

int
format_decode (const uint8_t buf[FORMAT_HEADER_BYTES], struct header *header)
{
  const struct header_on_disk *disk = (const void *) buf;
  int errors[FORMAT_MAX_ERRORS];

  if (format_errors (buf, errors) > 0)
    return errors[0];
  memcpy (header->backing_file, disk->backing_file, FORMAT_NAME_BYTES);
  memcpy (header->image_file, disk->image_file, FORMAT_NAME_BYTES);
  header->size_bytes = size_of (disk);
  return 0;
}

void
format_encode (const struct header *header, uint8_t buf[FORMAT_HEADER_BYTES])
{
  struct header_on_disk *disk = (void *) buf;
  const uint32_t version = htobe32 (FORMAT_VERSION);

  memset (disk, 0, sizeof *disk);
  memcpy (disk->magic, FORMAT_MAGIC, FORMAT_MAGIC_BYTES);
  memcpy (disk->version, &version, sizeof version);
  memcpy (disk->backing_file, header->backing_file, FORMAT_NAME_BYTES);
  memcpy (disk->image_file, header->image_file, strlen (header->image_file));
  format_encode_size (header->size_bytes, disk->size);
}

void
format_encode_size (uint64_t size_bytes, uint8_t buf[FORMAT_SIZE_BYTES])
{
  const uint64_t size = htobe64 (size_bytes);

  memcpy (buf, &size, sizeof size);
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

/* The same while they are hidden. */
#define HIDDEN '-'
#define HIDDEN_SIZE_KEY "-ize="
#define HIDDEN_MTIME_KEY "-time="

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

static unsigned
get_format (const char *value, struct hints *hints)
{
  if (!format_is_hint (value))
    return FORMAT_HINT_VALUE;
  if (hints->format[0])
    return FORMAT_HINT_TWICE;
  strcpy (hints->format, value);
  return 0;
}

static unsigned
get_size (const char *value, struct hints *hints)
{
  int64_t number;

  if (value[0] == '-' || !parse_number (value, &number))
    return FORMAT_HINT_VALUE;
  if (hints->has_size)
    return FORMAT_HINT_TWICE;
  hints->has_size = true;
  hints->size_bytes = number;
  return 0;
}

static unsigned
get_mtime (const char *value, struct hints *hints)
{
  int64_t number;

  if (!parse_number (value, &number))
    return FORMAT_HINT_VALUE;
  if (hints->has_mtime)
    return FORMAT_HINT_TWICE;
  hints->has_mtime = true;
  hints->mtime_ns = number;
  return 0;
}

/* Returns what is wrong with STRING: it does not count then. */
static unsigned
get_hint (const char *string, struct hints *hints)
{
  const char *value;

  if ((value = value_of (string, FORMAT_KEY)))
    return get_format (value, hints);
  if ((value = value_of (string, SIZE_KEY)))
    return get_size (value, hints);
  if ((value = value_of (string, MTIME_KEY)))
    return get_mtime (value, hints);
  return string[0] != '=' && strchr (string, '=') ? 0 : FORMAT_HINT_NO_KEY;
}

static bool
all_zero (const char *p, const char *end)
{
  while (p < end && *p == '\0')
    p++;
  return p == end;
}

/* Read the hints of *HEADER into *HINTS, and the strings that are not wrong
 * to KEPT, which has room for all and may be NULL.  Returns what is wrong.
 */
static unsigned
walk_hints (const struct header *header, struct hints *hints, char *kept)
{
  const char *const end = header->backing_file + FORMAT_NAME_BYTES;
  const char *p = header->backing_file + strlen (header->backing_file) + 1;
  unsigned wrong = 0;
  const char *nul;

  *hints = (struct hints){ .has_size = false };
  if (header->backing_file[0] == '\0')
    return 0;
  for (; p < end && *p; p = nul + 1) {
    unsigned w;

    nul = memchr (p, '\0', end - p);
    if (nul == NULL)
      return wrong | FORMAT_HINT_NO_END;
    w = get_hint (p, hints);
    if (w == 0 && kept)
      kept = stpcpy (kept, p) + 1;
    wrong |= w;
  }
  return all_zero (p, end) ? wrong : wrong | FORMAT_HINT_TRAILING;
}

void
format_get_hints (const struct header *header, struct hints *hints)
{
  walk_hints (header, hints, NULL);
}

unsigned
format_check_hints (const struct header *header)
{
  struct hints hints;

  return walk_hints (header, &hints, NULL);
}

void
format_mend_hints (struct header *header)
{
  const size_t name = strlen (header->backing_file) + 1;
  char kept[FORMAT_NAME_BYTES] = { 0 };
  struct hints hints;

  if (header->backing_file[0] == '\0')
    return;
  walk_hints (header, &hints, kept);
  memcpy (header->backing_file + name, kept, FORMAT_NAME_BYTES - name);
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

/* The first string behind the name in FIELD, or the one behind STRING; NULL
 * if there is none.
 */
static const char *
next_string (const char field[FORMAT_NAME_BYTES], const char *string)
{
  const char *const end = field + FORMAT_NAME_BYTES;
  const char *next = string ? string : field;

  if (field[0] == '\0')
    return NULL;
  next += strlen (next) + 1;
  return next < end && *next && memchr (next, '\0', end - next) ? next : NULL;
}

/* The value in STRING if it is a hint with a number, be it hidden, and that
 * number into *THEN; or NULL.
 */
static const char *
get_number (const char *string, struct hints *then)
{
  const char *value;

  *then = (struct hints){ .has_size = false };
  if ((value = value_of (string, SIZE_KEY)) ||
      (value = value_of (string, HIDDEN_SIZE_KEY)))
    get_size (value, then);
  else if ((value = value_of (string, MTIME_KEY)) ||
           (value = value_of (string, HIDDEN_MTIME_KEY)))
    get_mtime (value, then);
  return then->has_size || then->has_mtime ? value : NULL;
}

/* A string with the value of NOW, in BUF, if STRING is a hint that has one
 * there, of WIDTH characters at least; else STRING.
 */
static const char *
updated (const char *string, const struct hints *now, int width,
         char buf[FORMAT_NAME_BYTES])
{
  struct hints then;

  get_number (string, &then);
  if (then.has_size && now->has_size)
    snprintf (buf, FORMAT_NAME_BYTES, SIZE_KEY "%0*" PRIu64, width,
              now->size_bytes);
  else if (then.has_mtime && now->has_mtime)
    snprintf (buf, FORMAT_NAME_BYTES, MTIME_KEY "%0*" PRIi64, width,
              now->mtime_ns);
  else
    return string;
  return buf;
}

void
format_update_hints (struct header *header, const struct hints *now)
{
  char field[FORMAT_NAME_BYTES] = { 0 };
  char *const end = field + sizeof field;
  char *to = stpcpy (field, header->backing_file) + 1;
  const char *p = NULL;
  bool changed = false;
  char buf[FORMAT_NAME_BYTES];

  while ((p = next_string (header->backing_file, p))) {
    const char *string = updated (p, now, 1, buf);

    changed |= strcmp (string, p) != 0;
    if (strlen (string) < (size_t) (end - to))
      to = stpcpy (to, string) + 1;
  }
  if (changed)
    memcpy (header->backing_file, field, sizeof field);
}

void
format_hide_hints (struct header *header)
{
  const char *p = NULL;
  struct hints then;

  while ((p = next_string (header->backing_file, p)))
    if (get_number (p, &then))
      header->backing_file[p - header->backing_file] = HIDDEN;
}

void
format_update_hints_in_place (struct header *header, const struct hints *now)
{
  char buf[FORMAT_NAME_BYTES];
  const char *p = NULL;

  format_hide_hints (header);
  while ((p = next_string (header->backing_file, p))) {
    struct hints then;
    const char *value = get_number (p, &then);
    const char *string = updated (p, now, value ? strlen (value) : 1, buf);

    if (string != p && strlen (string) == strlen (p))
      strcpy (header->backing_file + (p - header->backing_file), string);
  }
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

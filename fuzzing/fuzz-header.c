/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The header of a metadata file, its hints, and its names.
 *
 *   byte  0     what follows: 0 a header as it is on disk, else names and
 *               hints to put into one: backing_file with all that follows
 *               (up to 1024 bytes, with a length of two bytes before it),
 *               image_file up to a NUL, size
 *
 * A name that is found where names are confined to must lie there.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "error.h"
#include "format.h"
#include "fuzz.h"
#include "hints.h"
#include "names.h"
#include "scratch.h"

static char *folder;  /* of all: */
static char *confine; /* a folder in it, with ways out */

static void
make_link (const char *target, const char *name)
{
  CLEANUP_FREE char *path = scratch_path (confine, name);

  CHECK (symlink (target, path) == 0);
}

static void
make_file (const char *in, const char *name)
{
  CLEANUP_FREE char *path = scratch_path (in, name);

  scratch_file (path, "secret", 6);
}

static void
set_up (void)
{
  CLEANUP_FREE char *below = NULL;
  CLEANUP_FREE char *evil = NULL;

  folder = scratch_folder ();
  confine = scratch_path (folder, "c");
  below = scratch_path (confine, "d");
  evil = scratch_path (folder, "c-evil");
  CHECK (mkdir (confine, 0700) == 0 && mkdir (below, 0700) == 0 &&
         mkdir (evil, 0700) == 0);
  make_file (folder, "o");
  make_file (evil, "e");
  make_file (confine, "f");
  make_file (below, "g");
  make_link ("f", "l");
  make_link ("..", "u");
  make_link ("/", "r");
  make_link ("../c-evil", "x");
  make_link ("self", "self");
  make_link ("/proc/self/root", "p");
}

/*--- Names. -----------------------------------------------------------*/

/* Does *LOCATION lead to something under the folder that it is confined to?
 */
static bool
is_confined (const struct location *location)
{
  char link[64], path[PATH_MAX];
  const size_t len = strlen (confine);
  ssize_t n;

  snprintf (link, sizeof link, "/proc/self/fd/%d", location->fd);
  n = readlink (link, path, sizeof path - 1);
  CHECK (n > 0);
  path[n] = '\0';
  return strncmp (path, confine, len) == 0 && path[len] == '/';
}

static void
try_confined (const char *name)
{
  struct location location;
  int r = location_find (&location, confine, name, confine);

  if (r == 0)
    CHECK (location.path && location.fd >= 0 && is_confined (&location));
  else
    CHECK (location.name == NULL && location.path == NULL && location.fd == -1);
  if (name_is_uri (name))
    CHECK (r == ADDCOW_E_OUTSIDE);
  location_clear (&location);
}

static void
try_name (const char *name)
{
  char field[FORMAT_NAME_BYTES];
  CLEANUP_FREE char *path = NULL;
  struct location location;
  int r;

  memset (field, 'x', sizeof field);
  r = format_set_name (field, name);
  CHECK (r == 0 || r == ADDCOW_E_NAME_LONG);
  CHECK ((r == 0) == (strlen (name) < FORMAT_NAME_BYTES));
  if (r == 0)
    CHECK (strcmp (field, name) == 0 && field[FORMAT_NAME_BYTES - 1] == 0);
  CHECK (strchr (name_basename (name), '/') == NULL);
  if (name[0] == '\0')
    return;

  r = name_resolve ("/folder", name, &path);
  CHECK (r == (name_is_uri (name) ? ADDCOW_E_URI : 0));
  if (r == 0)
    CHECK (path[0] == '/');
  r = location_find (&location, "/folder", name, NULL);
  CHECK (r == 0 && location.fd == -1);
  CHECK ((location.path == NULL) == name_is_uri (name));
  location_clear (&location);
  try_confined (name);
}

/*--- Hints. -----------------------------------------------------------*/

static bool
same_hints (const struct hints *a, const struct hints *b)
{
  return strcmp (a->format, b->format) == 0 && a->has_size == b->has_size &&
         a->has_mtime == b->has_mtime &&
         (!a->has_size || a->size_bytes == b->size_bytes) &&
         (!a->has_mtime || a->mtime_ns == b->mtime_ns);
}

static void
check_hints (const struct hints *h)
{
  CHECK (h->format[0] == '\0' || format_is_hint (h->format));
  if (h->has_size)
    CHECK (h->size_bytes <= INT64_MAX);
}

/* What is mended says the same, and nothing is wrong with it. */
static void
try_mending (const struct header *header, const struct hints *hints)
{
  struct header mended = *header, again;
  struct hints then;

  format_mend_hints (&mended);
  CHECK (strcmp (mended.backing_file, header->backing_file) == 0);
  CHECK (format_check_hints (&mended) == 0);
  format_get_hints (&mended, &then);
  CHECK (same_hints (hints, &then));
  again = mended;
  format_mend_hints (&again);
  CHECK (memcmp (&again, &mended, sizeof again) == 0);
  if (format_check_hints (header) == 0)
    CHECK (memcmp (&mended, header, sizeof mended) == 0);
}

/* Where nothing moves the format stays, and so does each string. */
static void
try_in_place (const struct header *header, const struct hints *hints,
              const struct hints *now)
{
  struct header changed = *header;
  struct hints then;
  size_t i;

  format_hide_hints (&changed);
  format_get_hints (&changed, &then);
  CHECK (strcmp (then.format, hints->format) == 0);
  CHECK (!then.has_size && !then.has_mtime);
  format_update_hints_in_place (&changed, now);
  format_get_hints (&changed, &then);
  check_hints (&then);
  CHECK (strcmp (then.format, hints->format) == 0);
  if (then.has_size)
    CHECK (now->has_size && then.size_bytes == now->size_bytes);
  if (then.has_mtime)
    CHECK (now->has_mtime && then.mtime_ns == now->mtime_ns);
  for (i = 0; i < FORMAT_NAME_BYTES; i++)
    CHECK ((changed.backing_file[i] == 0) == (header->backing_file[i] == 0));
}

static void
try_changing (const struct header *header, const struct hints *hints,
              const struct hints *now)
{
  struct header changed = *header;
  char text[HINTS_TEXT_BYTES];
  struct hints then;
  int r;

  format_update_hints (&changed, now);
  CHECK (strcmp (changed.backing_file, header->backing_file) == 0);
  CHECK (strcmp (changed.image_file, header->image_file) == 0);
  format_get_hints (&changed, &then);
  check_hints (&then);
  /* One that has no room is left out, one that was hidden is not any more. */
  CHECK (!then.has_size || hints->has_size || now->has_size);
  if (then.has_size && now->has_size)
    CHECK (then.size_bytes == now->size_bytes);
  if (then.has_mtime && now->has_mtime)
    CHECK (then.mtime_ns == now->mtime_ns);
  try_in_place (header, hints, now);
  hints_change_text (hints, now, text);
  CHECK (strlen (text) < sizeof text);
  CHECK ((text[0] == '\0') == (!hints_compare (hints, now).size &&
                               !hints_compare (hints, now).mtime));

  if (header->backing_file[0] == '\0')
    return;
  r = format_set_hints (&changed, now);
  CHECK (r == 0 || r == ADDCOW_E_HINTS_LONG);
  if (r)
    return;
  format_get_hints (&changed, &then);
  CHECK (same_hints (&then, now) && format_check_hints (&changed) == 0);
}

/* Other hints than *HINTS, from what is left of IN. */
static void
try_hints (const struct header *header, struct input *in)
{
  struct hints hints, now;

  format_get_hints (header, &hints);
  check_hints (&hints);
  try_mending (header, &hints);
  now = (struct hints){
    .has_size = take (in, 1) & 1,
    .size_bytes = take (in, 8) & INT64_MAX,
    .has_mtime = take (in, 1) & 1,
    .mtime_ns = take (in, 8),
  };
  if (take (in, 1) & 1)
    strcpy (now.format, "qcow2");
  try_changing (header, &hints, &now);
  try_changing (header, &hints, &hints);
}

/*--- Headers. ---------------------------------------------------------*/

static void
try_valid (const struct header *header, struct input *in)
{
  uint8_t buf[FORMAT_HEADER_BYTES];
  struct header again;

  CHECK (memchr (header->backing_file, 0, FORMAT_NAME_BYTES));
  CHECK (memchr (header->image_file, 0, FORMAT_NAME_BYTES));
  CHECK (format_check_size (header->size_bytes) == 0);
  CHECK (format_file_bytes (header->size_bytes) > FORMAT_HEADER_BYTES ||
         header->size_bytes == 0);
  format_encode (header, buf);
  CHECK (format_decode (buf, &again) == 0);
  CHECK (memcmp (again.backing_file, header->backing_file, FORMAT_NAME_BYTES) ==
         0);
  CHECK (strcmp (again.image_file, header->image_file) == 0);
  CHECK (again.size_bytes == header->size_bytes);
  try_hints (header, in);
  try_name (header->backing_file);
  try_name (header->image_file);
}

static void
try_bytes (const uint8_t buf[FORMAT_HEADER_BYTES], struct input *in)
{
  int errors[FORMAT_MAX_ERRORS] = { 0 };
  struct header header;
  const unsigned n = format_errors (buf, errors);
  const int r = format_decode (buf, &header);

  CHECK (n <= FORMAT_MAX_ERRORS);
  CHECK (r == (n > 0 ? errors[0] : 0));
  if (r == 0)
    try_valid (&header, in);
}

static void
try_parts (struct input *in)
{
  uint8_t buf[FORMAT_HEADER_BYTES] = { 0 };
  const size_t len = take (in, 2) % (FORMAT_NAME_BYTES + 1);
  CLEANUP_FREE char *image = NULL;
  const uint8_t *backing;
  size_t n;

  memcpy (buf, FORMAT_MAGIC "\0\0\0\1", 12);
  n = take_bytes (in, &backing, len);
  if (n > 0)
    memcpy (buf + FORMAT_BACKING_OFFSET, backing, n);
  image = take_string (in);
  memcpy (buf + FORMAT_BACKING_OFFSET + FORMAT_NAME_BYTES, image,
          MIN (strlen (image), FORMAT_NAME_BYTES));
  format_encode_size (take (in, 8), buf + FORMAT_SIZE_OFFSET);
  try_name (image);
  try_bytes (buf, in);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct input in = { data, size };
  uint8_t buf[FORMAT_HEADER_BYTES] = { 0 };
  const uint8_t *p;
  size_t n;

  if (folder == NULL)
    set_up ();
  if (take (&in, 1)) {
    try_parts (&in);
    return 0;
  }
  n = take_bytes (&in, &p, sizeof buf);
  if (n > 0)
    memcpy (buf, p, n);
  try_bytes (buf, &in);
  return 0;
}

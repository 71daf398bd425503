/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include "common.h"
#include "json.h"

/* What glibc takes for UTF-8 goes on behind the last character of Unicode. */
#define LAST_CHARACTER 0x10ffff

/* How many bytes TEXT, of LEFT bytes, begins with that are a character; 0: it
 * begins with none.
 */
static size_t
character (const char *text, size_t left)
{
  mbstate_t state = { 0 };
  wchar_t wc;
  const size_t n = mbrtowc (&wc, text, left, &state);

  return n > left || wc > LAST_CHARACTER ? 0 : n;
}

/* A copy of TEXT as UTF-8, or NULL when memory is short. */
static char *
to_utf8 (const char *text)
{
  static const char replacement[] = "\xef\xbf\xbd";
  size_t left = strlen (text);
  char *copy = malloc (left * strlen (replacement) + 1);
  char *p = copy;

  setlocale (LC_CTYPE, "C.UTF-8");
  while (copy && left > 0) {
    const size_t n = character (text, left);

    p = n > 0 ? mempcpy (p, text, n) : stpcpy (p, replacement);
    text += MAX (n, 1);
    left -= MAX (n, 1);
  }
  if (copy)
    *p = '\0';
  return copy;
}

void
json_add_string (json_object *object, const char *key, const char *value)
{
  CLEANUP_FREE char *text = value && value[0] ? to_utf8 (value) : NULL;

  if (text)
    json_object_object_add (object, key, json_object_new_string (text));
}

void
json_add_uint64 (json_object *object, const char *key, uint64_t value)
{
  json_object_object_add (object, key, json_object_new_uint64 (value));
}

void
json_add_int64 (json_object *object, const char *key, int64_t value)
{
  json_object_object_add (object, key, json_object_new_int64 (value));
}

void
json_add_bool (json_object *object, const char *key, bool value)
{
  json_object_object_add (object, key, json_object_new_boolean (value));
}

int
json_put (json_object *object, int flags)
{
  const char *text = json_object_to_json_string_ext (object, flags);

  if (text)
    printf ("%s\n", text);
  json_object_put (object);
  return text ? 0 : ENOMEM;
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "img.h"

static int
suffix_shift (const char *suffix, unsigned *shift)
{
  static const struct {
    char letter;
    unsigned shift;
  } suffixes[] = {
    { 'b', 0 },  { 'B', 0 },  { 'k', 10 }, { 'K', 10 }, { 'M', 20 },
    { 'G', 30 }, { 'T', 40 }, { 'P', 50 }, { 'E', 60 },
  };
  size_t i;

  *shift = 0;
  if (suffix[0] == '\0')
    return 0;
  for (i = 0; i < ARRAY_SIZE (suffixes); i++)
    if (suffix[0] == suffixes[i].letter && suffix[1] == '\0') {
      *shift = suffixes[i].shift;
      return 0;
    }
  return EINVAL;
}

int
size_parse (const char *text, uint64_t *size_bytes)
{
  const size_t digits = strspn (text, "0123456789");
  unsigned long long whole;
  double fraction = 0;
  unsigned shift;
  char *end;

  if (digits == 0)
    return EINVAL;
  errno = 0;
  whole = strtoull (text, &end, 10);
  if (errno)
    return errno;
  if (*end == '.') {
    const size_t n = strspn (end + 1, "0123456789");
    CLEANUP_FREE char *decimals = strndup (end, n + 1);

    if (decimals == NULL || n == 0)
      return decimals ? EINVAL : ENOMEM;
    fraction = strtod (decimals, NULL);
    end += n + 1;
  }
  if (suffix_shift (end, &shift) || (fraction > 0 && shift == 0))
    return EINVAL;

  if (whole > (uint64_t) INT64_MAX >> shift)
    return ERANGE;
  *size_bytes = (whole << shift) +
                (uint64_t) (fraction * (UINT64_C (1) << shift));
  return *size_bytes > INT64_MAX ? ERANGE : 0;
}

const char *
size_text (uint64_t size_bytes, char buf[SIZE_TEXT_BYTES])
{
  static const char *const units[] = {
    "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB",
  };
  double size = size_bytes;
  size_t i;

  /* From 999.5, three digits would be 1e+03. */
  for (i = 0; size >= 999.5 && i < ARRAY_SIZE (units) - 1; i++)
    size /= 1024;
  snprintf (buf, SIZE_TEXT_BYTES, "%.3g %s", size, units[i]);
  return buf;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Sizes as the tool reads and prints them.
 */

#include <config.h>

#include <errno.h>

#include "check.h"

/* The program has no other file of the tool. */
#include "size.c"

static void
test_parse (void)
{
  static const struct {
    const char *text;
    uint64_t size;
  } good[] = {
    { "0", 0 },
    { "1", 1 },
    { "512", 512 },
    { "512b", 512 },
    { "512B", 512 },
    { "1k", 1024 },
    { "1K", 1024 },
    { "3M", 3 << 20 },
    { "10G", UINT64_C (10) << 30 },
    { "1T", UINT64_C (1) << 40 },
    { "1P", UINT64_C (1) << 50 },
    { "1E", UINT64_C (1) << 60 },
    { "7E", UINT64_C (7) << 60 },
    { "1.5k", 1536 },
    { "1.5G", UINT64_C (3) << 29 },
    { "0.25M", 1 << 18 },
    { "1.0k", 1024 },
    { "007", 7 },
    { "9223372036854775807", INT64_MAX },
  };
  static const struct {
    const char *text;
    int err;
  } bad[] = {
    { "", EINVAL },
    { " 1", EINVAL },
    { "1 ", EINVAL },
    { "-1", EINVAL },
    { "+1", EINVAL },
    { "k", EINVAL },
    { ".5k", EINVAL },
    { "1.k", EINVAL },
    { "1.5", EINVAL },
    { "1.5b", EINVAL },
    { "1kk", EINVAL },
    { "1kB", EINVAL },
    { "1KiB", EINVAL },
    { "1x", EINVAL },
    { "1m", EINVAL },
    { "0x10", EINVAL },
    { "1e3", EINVAL },
    { "1..5k", EINVAL },
    { "1,5k", EINVAL },
    { "inf", EINVAL },
    { "8E", ERANGE },
    { "9223372036854775808", ERANGE },
    { "18446744073709551615", ERANGE },
    { "18446744073709551616", ERANGE },
    { "99999999999999999999999", ERANGE },
    { "18014398509481984k", ERANGE },
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (good); i++) {
    uint64_t size = 99;

    if (size_parse (good[i].text, &size) != 0 || size != good[i].size) {
      fprintf (stderr, "%s: %" PRIu64 "\n", good[i].text, size);
      CHECK (false);
    }
  }
  for (i = 0; i < ARRAY_SIZE (bad); i++) {
    uint64_t size;
    int r = size_parse (bad[i].text, &size);

    if (r != bad[i].err) {
      fprintf (stderr, "\"%s\": %s\n", bad[i].text, strerrordesc_np (r));
      CHECK (false);
    }
  }
}

static void
test_text (void)
{
  static const struct {
    uint64_t size;
    const char *text;
  } cases[] = {
    { 0, "0 B" },
    { 512, "512 B" },
    { 999, "999 B" },
    { 1000, "0.977 KiB" },
    { 1024, "1 KiB" },
    { 1023487, "999 KiB" },
    { 1023488, "0.976 MiB" },
    { 1024000, "0.977 MiB" },
    { 1536, "1.5 KiB" },
    { 3 << 19, "1.5 MiB" },
    { UINT64_C (10) << 30, "10 GiB" },
    { UINT64_C (999) << 40, "999 TiB" },
    { UINT64_C (1) << 62, "4 EiB" },
    { INT64_MAX, "8 EiB" },
  };
  char buf[SIZE_TEXT_BYTES];
  size_t i;

  for (i = 0; i < ARRAY_SIZE (cases); i++)
    CHECK_STR (size_text (cases[i].size, buf), cases[i].text);
}

int
main (void)
{
  test_parse ();
  test_text ();
  return 0;
}

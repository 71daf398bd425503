/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What there is to say about a backing file, and what has changed.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "check.h"
#include "common.h"
#include "error.h"
#include "hints.h"
#include "names.h"
#include "scratch.h"

static char *path;

static struct hints
take (const char *name, uint64_t size_bytes)
{
  struct location location;
  struct hints hints;

  memset (&hints, 0xee, sizeof hints);
  CHECK_EQ (location_set (&location, name), 0);
  CHECK_EQ (hints_take (&hints, &location, size_bytes), 0);
  location_clear (&location);
  CHECK_STR (hints.format, "");
  return hints;
}

static void
set_mtime (int64_t seconds, long ns)
{
  const struct timespec times[2] = { { 0, UTIME_OMIT }, { seconds, ns } };

  CHECK_EQ (utimensat (AT_FDCWD, path, times, 0), 0);
}

static void
test_file (void)
{
  static const struct {
    int64_t seconds;
    long ns;
    int64_t mtime_ns;
  } cases[] = {
    { 0, 0, 0 },
    { 1, 2, 1000000002 },
    { 1767323045, 999999999, 1767323045999999999 },
    { -1, 999999999, -1 },
    { -2, 0, -2000000000 },
  };
  struct hints hints;
  size_t i;

  /* Its own length and not the one that it is told. */
  scratch_file (path, "abcdefg", 7);
  for (i = 0; i < ARRAY_SIZE (cases); i++) {
    set_mtime (cases[i].seconds, cases[i].ns);
    hints = take (path, 99);
    CHECK (hints.has_size && hints.has_mtime);
    CHECK_EQ (hints.size_bytes, 7);
    CHECK_EQ (hints.mtime_ns, cases[i].mtime_ns);
  }
}

/* What no file system here may have. */
static void
test_stat (void)
{
  static const struct {
    int64_t seconds;
    long ns;
    bool known;
  } cases[] = {
    { 9223372036, 854775807, true }, { 9223372036, 854775808, false },
    { 9223372037, 0, false },        { INT64_MAX, 0, false },
    { -9223372036, 0, true },        { INT64_MIN, 0, false },
  };
  struct stat st = { .st_mode = S_IFREG | 0600, .st_size = INT64_MAX };
  struct hints hints;
  size_t i;

  for (i = 0; i < ARRAY_SIZE (cases); i++) {
    st.st_mtim.tv_sec = cases[i].seconds;
    st.st_mtim.tv_nsec = cases[i].ns;
    memset (&hints, 0xee, sizeof hints);
    hints_of_stat (&hints, &st);
    CHECK (hints.has_size);
    CHECK_EQ (hints.size_bytes, INT64_MAX);
    CHECK_EQ (hints.has_mtime, cases[i].known);
    if (hints.has_mtime)
      CHECK_EQ (hints.mtime_ns, cases[i].seconds * 1000000000 + cases[i].ns);
  }
  st.st_mode = S_IFBLK | 0600;
  st.st_mtim.tv_sec = 0;
  hints_of_stat (&hints, &st);
  CHECK (!hints.has_size && !hints.has_mtime);
}

static void
test_uri (void)
{
  const struct hints hints = take ("nbd://localhost/x", 12345);

  CHECK (hints.has_size && !hints.has_mtime);
  CHECK_EQ (hints.size_bytes, 12345);
}

static void
test_errors (void)
{
  struct location location;
  struct hints hints;

  CHECK_EQ (location_set (&location, path), 0);
  CHECK_EQ (unlink (path), 0);
  CHECK_EQ (hints_take (&hints, &location, 0), ENOENT);
  CHECK_EQ (mkfifo (path, 0600), 0);
  CHECK_EQ (hints_take (&hints, &location, 0), ADDCOW_E_NOT_DISK);
  location_clear (&location);
}

#define SIZE(n) .has_size = true, .size_bytes = (n)
#define MTIME(n) .has_mtime = true, .mtime_ns = (n)

static void
test_compare (void)
{
  static const struct {
    struct hints then, now;
    bool size, mtime;
    const char *text;
  } cases[] = {
    { { SIZE (1), MTIME (2) }, { SIZE (1), MTIME (2) }, false, false, "" },
    { { SIZE (1), MTIME (2) },
      { SIZE (0), MTIME (2) },
      true,
      false,
      "length 0 bytes, was 1" },
    { { SIZE (1), MTIME (-2) },
      { SIZE (1), MTIME (1795600800123456789) },
      false,
      true,
      "modified 2026-11-25 10:00:00.123456789 UTC, "
      "was 1969-12-31 23:59:59.999999998 UTC" },
    { { SIZE (INT64_MAX), MTIME (INT64_MIN) },
      { SIZE (INT64_MAX - 1), MTIME (INT64_MAX) },
      true,
      true,
      "length 9223372036854775806 bytes, was 9223372036854775807; "
      "modified 2262-04-11 23:47:16.854775807 UTC, "
      "was 1677-09-21 00:12:43.145224192 UTC" },
    { { SIZE (0), MTIME (0) },
      { SIZE (5), MTIME (1) },
      true,
      true,
      "length 5 bytes, was 0; modified 1970-01-01 00:00:00.000000001 UTC, "
      "was 1970-01-01 00:00:00.000000000 UTC" },
    /* What one of them does not know has not changed. */
    { { .format = "raw" }, { SIZE (1), MTIME (2) }, false, false, "" },
    { { SIZE (1), MTIME (2) }, { .format = "" }, false, false, "" },
    { { MTIME (2) }, { SIZE (1), MTIME (2) }, false, false, "" },
    { { SIZE (1), MTIME (2) },
      { SIZE (2) },
      true,
      false,
      "length 2 bytes, was 1" },
  };
  char buf[HINTS_TEXT_BYTES];
  size_t i;

  for (i = 0; i < ARRAY_SIZE (cases); i++) {
    const struct hints_change change = hints_compare (&cases[i].then,
                                                      &cases[i].now);

    CHECK_EQ (change.size, cases[i].size);
    CHECK_EQ (change.mtime, cases[i].mtime);
    memset (buf, 'x', sizeof buf);
    CHECK (hints_change_text (&cases[i].then, &cases[i].now, buf) == buf);
    CHECK_STR (buf, cases[i].text);
  }
}

/* STRINGS, of COUNT bytes, behind the name "base" become EXPECTED. */
static void
check_update (const char *strings, size_t count, const char *expected,
              size_t expected_count)
{
  const struct hints now = {
    .has_size = true,
    .has_mtime = true,
    .size_bytes = 1234567,
    .mtime_ns = -5,
  };
  struct header header, wanted;

  memset (&header, 0, sizeof header);
  strcpy (header.backing_file, "base");
  strcpy (header.image_file, "image");
  wanted = header;
  memcpy (header.backing_file + 5, strings, count);
  memcpy (wanted.backing_file + 5, expected, expected_count);
  format_update_hints (&header, &now);
  CHECK (memcmp (&header, &wanted, sizeof header) == 0);
}

#define CHECK_UPDATE(strings, expected) \
  check_update (strings, sizeof (strings), expected, sizeof (expected))

static void
test_update (void)
{
  static const struct hints no_mtime = { .has_size = true, .size_bytes = 9 };
  struct header header = { .backing_file = "b\0size=1\0mtime=2\0" };
  char long_name[FORMAT_NAME_BYTES] = { 0 };

  CHECK_UPDATE ("", "");
  CHECK_UPDATE ("format=raw\0size=1\0mtime=2\0",
                "format=raw\0size=1234567\0mtime=-5\0");
  CHECK_UPDATE ("mtime=2\0x=y\0size=1\0format=qcow2\0",
                "mtime=-5\0x=y\0size=1234567\0format=qcow2\0");
  /* Nothing is added. */
  CHECK_UPDATE ("size=1\0", "size=1234567\0");
  CHECK_UPDATE ("format=raw\0", "format=raw\0");
  /* What was hidden is not any more. */
  CHECK_UPDATE ("-ize=1\0-time=7\0", "size=1234567\0mtime=-5\0");
  /* What is no hint stays. */
  CHECK_UPDATE ("size=x\0size=0000000000000000000\0noequals\0",
                "size=x\0size=1234567\0noequals\0");
  CHECK_UPDATE ("x=y\0\0size=1\0", "x=y\0\0size=1\0");

  format_update_hints (&header, &no_mtime);
  CHECK_STR (header.backing_file + 2, "size=9");
  CHECK_STR (header.backing_file + 9, "mtime=2");

  /* At the end of the room: the name stays, and what has none goes. */
  memset (long_name, 'n', FORMAT_NAME_BYTES - 9);
  memset (&header, 0, sizeof header);
  memcpy (header.backing_file, long_name, sizeof long_name);
  strcpy (header.backing_file + FORMAT_NAME_BYTES - 8, "size=12");
  format_update_hints (&header, &no_mtime);
  CHECK_STR (header.backing_file, long_name);
  CHECK_STR (header.backing_file + FORMAT_NAME_BYTES - 8, "size=9");
  strcpy (header.backing_file + FORMAT_NAME_BYTES - 8, "size=12");
  format_update_hints (&header,
                       &(struct hints){ .has_size = true, .size_bytes = 123 });
  CHECK (memcmp (header.backing_file, long_name, sizeof long_name) == 0);
  /* Without an empty string behind them. */
  strcpy (header.backing_file + FORMAT_NAME_BYTES - 8, "size=12");
  format_update_hints (&header,
                       &(struct hints){ .has_size = true, .size_bytes = 34 });
  CHECK_STR (header.backing_file + FORMAT_NAME_BYTES - 8, "size=34");
}

/* The same in place. */
static void
check_in_place (const char *strings, size_t count, const char *hidden,
                const char *expected)
{
  static const struct hints now = {
    .has_size = true,
    .has_mtime = true,
    .size_bytes = 1234,
    .mtime_ns = -5,
  };
  struct header header = { .backing_file = "base" };

  memcpy (header.backing_file + 5, strings, count);
  format_hide_hints (&header);
  CHECK_STR (header.backing_file, "base");
  CHECK (memcmp (header.backing_file + 5, hidden, count) == 0);
  format_update_hints_in_place (&header, &now);
  CHECK (memcmp (header.backing_file + 5, expected, count) == 0);
  memcpy (header.backing_file + 5, strings, count);
  format_update_hints_in_place (&header, &now);
  CHECK_STR (header.backing_file, "base");
  CHECK (memcmp (header.backing_file + 5, expected, count) == 0);
}

#define CHECK_IN_PLACE(strings, hidden, expected) \
  check_in_place (strings, sizeof (strings), hidden, expected)

static void
test_in_place (void)
{
  CHECK_IN_PLACE ("", "", "");
  CHECK_IN_PLACE ("size=5678\0format=raw\0mtime=12\0",
                  "-ize=5678\0format=raw\0-time=12\0",
                  "size=1234\0format=raw\0mtime=-5\0");
  CHECK_IN_PLACE ("mtime=123456\0size=123456\0", "-time=123456\0-ize=123456\0",
                  "mtime=-00005\0size=001234\0");
  /* Too long. */
  CHECK_IN_PLACE ("mtime=1\0size=123\0", "-time=1\0-ize=123\0",
                  "-time=1\0-ize=123\0");
  /* No hints. */
  CHECK_IN_PLACE ("size=x234\0-ize=\0-time\0x=y\0\0size=5\0",
                  "size=x234\0-ize=\0-time\0x=y\0\0size=5\0",
                  "size=x234\0-ize=\0-time\0x=y\0\0size=5\0");
}

int
main (void)
{
  char *folder = scratch_folder ();

  path = scratch_path (folder, "file");
  test_file ();
  test_stat ();
  test_uri ();
  test_errors ();
  test_compare ();
  test_update ();
  test_in_place ();
  free (path);
  free (folder);
  return 0;
}

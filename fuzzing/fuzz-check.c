/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Looking for what is wrong with any metadata file, and mending it: see
 * disk-input.h for the input.
 *
 * Looking changes nothing.  What is mended is mended: another look finds
 * all else and nothing more; and each sector comes from where it came from.
 * Nothing is wrong with a file if and only if it can be opened.
 */

#include <config.h>

#include <errno.h>
#include <unistd.h>

#include "checker.h"
#include "common.h"
#include "disk-input.h"
#include "disk.h"
#include "format.h"
#include "fuzz.h"

/* So much of the file is compared. */
#define HEAD_BYTES 16384

/* The file as it was. */
static uint8_t before[HEAD_BYTES];
static size_t nr_before;

static void
remember (const struct disk_input *d)
{
  memset (before, 0, sizeof before);
  nr_before = MIN (d->length_bytes, sizeof before);
  CHECK (pread (d->fd, before, nr_before, 0) == (ssize_t) nr_before);
}

static void
is_unchanged (const struct disk_input *d)
{
  static uint8_t now[HEAD_BYTES];

  CHECK (lseek (d->fd, 0, SEEK_END) == (off_t) d->length_bytes);
  CHECK (pread (d->fd, now, nr_before, 0) == (ssize_t) nr_before);
  CHECK (memcmp (now, before, nr_before) == 0);
}

/* Returns what check_overlay does. */
static int
look (const struct disk_input *d, bool repair, struct check *check)
{
  const struct check_options options = {
    .repair = repair,
    .backing = { .timeout_seconds = 1 },
  };
  CLEANUP_FAILURE struct failure failure = { 0 };
  int r = check_overlay (check, d->path, &options, &failure);
  unsigned i;

  CHECK (check->nr_problems <= NR_CHECKS);
  if (r)
    CHECK (failure.err == r && failure.file_name);
  for (i = 0; i < check->nr_problems; i++) {
    CHECK (repair || !check->problems[i].fixed);
    CHECK (i == 0 || check->problems[i].what > check->problems[i - 1].what ||
           check->problems[i].what >= CHECK_IMAGE_MISSING);
  }
  return r;
}

/* Does NOW have what THEN has that was not fixed? */
static void
compare (const struct check *then, const struct check *now)
{
  unsigned i, n = 0;

  for (i = 0; i < then->nr_problems; i++)
    if (!then->problems[i].fixed) {
      CHECK (n < now->nr_problems);
      CHECK (now->problems[n].what == then->problems[i].what);
      n++;
    }
  CHECK (now->nr_problems == n);
}

/* Does each sector come from where it did, and is what is said of the backing
 * file what was said?
 */
static void
is_same_disk (const struct disk_input *d)
{
  static uint8_t now[HEAD_BYTES];
  struct header header, header_now;
  struct hints hints, hints_now;
  uint64_t s, nr_sectors;
  ssize_t n;

  n = pread (d->fd, now, sizeof now, 0);
  CHECK (n >= FORMAT_HEADER_BYTES);
  memset (now + n, 0, sizeof now - n);
  if (format_decode (before, &header))
    return;
  CHECK (format_decode (now, &header_now) == 0);
  CHECK (header.size_bytes == header_now.size_bytes);
  CHECK (strcmp (header.backing_file, header_now.backing_file) == 0);
  CHECK (strcmp (header.image_file, header_now.image_file) == 0);
  format_get_hints (&header, &hints);
  format_get_hints (&header_now, &hints_now);
  CHECK (strcmp (hints.format, hints_now.format) == 0);
  CHECK (hints.has_size == hints_now.has_size &&
         hints.has_mtime == hints_now.has_mtime);
  CHECK (!hints.has_size || hints.size_bytes == hints_now.size_bytes);
  CHECK (!hints.has_mtime || hints.mtime_ns == hints_now.mtime_ns);

  nr_sectors = MIN (header.size_bytes / 512,
                    (HEAD_BYTES - FORMAT_HEADER_BYTES) * 8);
  for (s = 0; s < nr_sectors; s++) {
    const size_t at = FORMAT_HEADER_BYTES + s / 8;

    CHECK (((before[at] ^ now[at]) & 1 << s % 8) == 0);
  }
}

static bool
has_only_harmless (const struct check *check)
{
  unsigned i;

  for (i = 0; i < check->nr_problems; i++)
    if (!check->problems[i].fixed &&
        check_is_corruption (check->problems[i].what))
      return false;
  return true;
}

/* Can it be opened, as CHECK says? */
static void
try_to_open (const struct disk_input *d, const struct check *check)
{
  const struct disk_options options = {
    .check_image = true,
    .backing = { .timeout_seconds = 1 },
  };
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk *disk = NULL;
  int r = disk_open (&disk, d->path, &options, &failure);

  CHECK ((r == 0) == has_only_harmless (check));
  disk_close (disk);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  __attribute__ ((cleanup (check_clear))) struct check first = CHECK_NONE;
  __attribute__ ((cleanup (check_clear))) struct check second = CHECK_NONE;
  __attribute__ ((cleanup (check_clear))) struct check third = CHECK_NONE;
  struct disk_input d;
  int r;

  disk_input_make (&d, data, size);
  remember (&d);
  r = look (&d, false, &first);
  is_unchanged (&d);
  if (r) {
    CHECK (look (&d, true, &second) == r);
    is_unchanged (&d);
    return 0;
  }
  r = look (&d, true, &second);
  /* The file system has no files as long as it would become. */
  if (r == EFBIG)
    return 0;
  CHECK (r == 0);
  CHECK (second.nr_problems == first.nr_problems);
  if (d.length_bytes >= FORMAT_HEADER_BYTES)
    is_same_disk (&d);
  else
    is_unchanged (&d);
  CHECK (look (&d, false, &third) == 0);
  compare (&second, &third);
  try_to_open (&d, &third);
  return 0;
}

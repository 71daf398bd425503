/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Apart from scratch.c, since not all tests that use that have the format.
 */

#include <config.h>

#include <unistd.h>

#include "check.h"
#include "format.h"
#include "scratch.h"

int
scratch_overlay (const char *path, uint64_t nr_sectors, const char *backing,
                 const struct hints *hints, const char *image)
{
  struct header header = { .size_bytes = nr_sectors * FORMAT_SECTOR_BYTES };
  uint8_t buf[FORMAT_HEADER_BYTES];
  int fd;

  CHECK_EQ (format_set_name (header.backing_file, backing), 0);
  CHECK_EQ (format_set_name (header.image_file, image), 0);
  if (hints)
    CHECK_EQ (format_set_hints (&header, hints), 0);
  format_encode (&header, buf);
  scratch_file (path, buf, sizeof buf);
  fd = scratch_open (path);
  CHECK_EQ (ftruncate (fd, format_file_bytes (header.size_bytes)), 0);
  return fd;
}

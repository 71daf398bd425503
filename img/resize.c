/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img resize: give the disk of an overlay another size.
 *
 * What is on disk at each moment is said in lib/resize.h: the old size or the
 * new one, and the content of the disk.  So this can be ended at any moment.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "disk.h"
#include "img.h"
#include "open-disk.h"
#include "resize.h"
#include "work.h"

struct resizing {
  const char *file_name;
  const char *size_text; /* as it was given */
  char sign;             /* before it: '+', '-' or 0 */
  uint64_t argument;     /* what is behind that */
  bool may_shrink;
  bool quiet;

  struct disk *disk;
  int image_fd;
  uint64_t new_size_bytes;
};

static void
cleanup_resizing (struct resizing *z)
{
  disk_close (z->disk);
  if (z->image_fd >= 0)
    close (z->image_fd);
}

static int
too_large_error (const struct resizing *z)
{
  img_error ("%s: too large for a disk", z->size_text);
  return EXIT_FAILURE;
}

static int
too_small_error (const struct resizing *z)
{
  img_error ("%s: New image size must not be negative", z->file_name);
  return EXIT_FAILURE;
}

static int
parse_size (struct resizing *z)
{
  const char *text = z->size_text;
  int r;

  if (text[0] == '+' || text[0] == '-')
    z->sign = *text++;
  r = size_parse (text, &z->argument);
  if (r == EINVAL)
    return img_usage_error ("resize", "'%s' is not a size", z->size_text);
  if (r == ERANGE)
    return z->sign == '-' ? too_small_error (z) : too_large_error (z);
  return r ? img_file_error (z->size_text, r) : EXIT_SUCCESS;
}

static int
find_new_size (struct resizing *z)
{
  const uint64_t old = z->disk->header.size_bytes;
  uint64_t size = z->argument;

  if (z->sign == '-' && size > old)
    return too_small_error (z);
  if (z->sign)
    size = z->sign == '+' ? old + size : old - size;
  size = DIV_ROUND_UP (size, FORMAT_SECTOR_BYTES) * FORMAT_SECTOR_BYTES;
  if (format_check_size (size))
    return too_large_error (z);
  z->new_size_bytes = size;
  if (size >= old || z->may_shrink)
    return EXIT_SUCCESS;
  img_error ("%s: Use the --shrink option to perform a shrink operation: it "
             "deletes all data past the new end",
             z->file_name);
  return EXIT_FAILURE;
}

/* How long the image is, and whether that can be changed, into *R. */
static int
look_at_image (const struct resizing *z, struct resize *r)
{
  const char *name = z->disk->image_location.name;
  struct stat st;
  int err;

  err = fd_size (z->image_fd, &r->image_bytes);
  if (err == 0 && fstat (z->image_fd, &st) == -1)
    err = errno;
  if (err)
    return img_file_error (name, err);
  r->image_is_fixed = !S_ISREG (st.st_mode);
  if (!r->image_is_fixed || r->image_bytes >= z->new_size_bytes)
    return EXIT_SUCCESS;
  img_error ("%s: is a block device of %" PRIu64 " bytes, too short for a "
             "disk of %" PRIu64,
             name, r->image_bytes, z->new_size_bytes);
  return EXIT_FAILURE;
}

static int
change_size (const struct resizing *z)
{
  struct disk *disk = z->disk;
  struct image_file image;
  struct resize r = {
    .metadata = &disk->metadata.image,
    .image = &image.image,
    .size_bytes = disk->header.size_bytes,
  };
  struct fault fault;

  image_file_init (&image, z->image_fd);
  if (look_at_image (z, &r) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  /* What is cut off needs no backing file, which may be far away. */
  if (z->new_size_bytes > r.size_bytes &&
      open_disk_backing (disk) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  r.backing = disk->backing;
  r.backing_is_missing = disk->backing_location.name && disk->backing == NULL;
  if (resize (&r, z->new_size_bytes, &fault) == -1)
    return disk_fault_error (disk, &fault);
  return EXIT_SUCCESS;
}

static int
run (struct resizing *z)
{
  work_keep_signals ();
  if (parse_size (z) != EXIT_SUCCESS ||
      open_disk_writable (z->file_name, true, &z->disk, &z->image_fd) !=
          EXIT_SUCCESS ||
      find_new_size (z) != EXIT_SUCCESS || change_size (z) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (!z->quiet)
    printf ("Image resized.\n");
  return img_close_stdout ();
}

/* A SIZE that begins with a minus looks like an option, but options do not
 * begin with a digit.  Take the first one out of ARGV, and return it or NULL.
 */
static const char *
take_negative_size (int *argc, char *argv[])
{
  const char *size;
  int i;

  for (i = 1; i < *argc && strcmp (argv[i], "--") != 0; i++)
    if (argv[i][0] == '-' && isdigit ((unsigned char) argv[i][1]))
      break;
  if (i >= *argc || argv[i][1] == '-')
    return NULL;
  size = argv[i];
  memmove (&argv[i], &argv[i + 1], (*argc - i) * sizeof argv[0]);
  --*argc;
  return size;
}

int
img_resize (int argc, char *argv[])
{
  enum { OPTION_SHRINK = 256 };
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "quiet", no_argument, NULL, 'q' },
    { "shrink", no_argument, NULL, OPTION_SHRINK },
    { NULL, 0, NULL, 0 },
  };
  __attribute__ ((cleanup (cleanup_resizing))) struct resizing z = {
    .image_fd = -1,
  };
  int opt;

  z.size_text = take_negative_size (&argc, argv);
  opterr = 0;
  while ((opt = getopt_long (argc, argv, ":hq", options, NULL)) != -1)
    switch (opt) {
    case 'h':
      return img_help ("resize");
    case 'q':
      z.quiet = true;
      break;
    case OPTION_SHRINK:
      z.may_shrink = true;
      break;
    default:
      return img_option_error ("resize", opt, argv);
    }
  if (argc - optind != (z.size_text ? 1 : 2))
    return img_usage_error ("resize", "exactly one FILE and one SIZE are "
                                      "needed");
  z.file_name = argv[optind];
  if (z.size_text == NULL)
    z.size_text = argv[optind + 1];
  if (z.file_name[0] == '\0')
    return img_usage_error ("resize", "FILE must not be empty");
  return run (&z);
}

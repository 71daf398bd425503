/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img create: a metadata file, and its image where it is missing.
 *
 * Everything is looked at before anything is made.  The image comes
 * first, so that there is never a metadata file without one; if the
 * metadata file then fails, an image that was made is removed again.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing.h"
#include "common.h"
#include "disk.h"
#include "hints.h"
#include "image-file.h"
#include "img.h"
#include "lock.h"
#include "metadata.h"
#include "names.h"
#include "new-file.h"

struct create {
  const char *file_name;
  char *backing;        /* as given, NULL: none */
  char *backing_format; /* as given, NULL: nobody said */
  char *image;          /* as given or by default */
  char *size;           /* as given, NULL: the backing's */
  bool force, quiet;

  char *path;                       /* of FILE, links followed */
  char *folder;                     /* that names are relative to */
  struct location backing_location; /* no name: none */
  char *image_path;                 /* NULL: none */
  struct header header;

  /* Locked until all is done, or -1: what is overwritten, and an image
   * that was there.
   */
  int old_fd;
  int image_fd;
};

static void
cleanup_create (struct create *c)
{
  if (c->old_fd >= 0)
    close (c->old_fd);
  if (c->image_fd >= 0)
    close (c->image_fd);
  free (c->backing);
  free (c->backing_format);
  free (c->image);
  free (c->size);
  free (c->path);
  free (c->folder);
  free (c->image_path);
  location_clear (&c->backing_location);
}

/*--- Arguments. -------------------------------------------------------*/

/* Set the argument *WHERE, which must not be set yet, to a copy. */
static int
set_once (char **where, const char *what, const char *value)
{
  if (*where)
    return img_usage_error ("create", "the %s is given more than once", what);
  *where = strdup (value);
  if (*where == NULL)
    return img_file_error (what, ENOMEM);
  return EXIT_SUCCESS;
}

static int
set_backing_format (struct create *c, const char *value)
{
  if (!format_is_hint (value))
    return img_usage_error ("create", "'%s' is not the name of a format",
                            value);
  return set_once (&c->backing_format, "format of the backing file", value);
}

static int
set_option (struct create *c, const char *key, const char *value)
{
  if (strcmp (key, "backing_file") == 0)
    return set_once (&c->backing, "backing file", value);
  if (strcmp (key, "backing_fmt") == 0)
    return set_backing_format (c, value);
  if (strcmp (key, "image_file") == 0)
    return set_once (&c->image, "image file", value);
  if (strcmp (key, "size") == 0)
    return set_once (&c->size, "size", value);
  return img_usage_error ("create", "-o: unknown key '%s'", key);
}

/* Copy one KEY=VALUE of *TEXT to PART, which has room for all, and go
 * behind it.  As for qemu-img, ",," is a comma that separates nothing.
 */
static void
next_option (const char **text, char *part)
{
  const char *p = *text;

  while (*p && (*p != ',' || p[1] == ',')) {
    if (*p == ',')
      p++;
    *part++ = *p++;
  }
  *part = '\0';
  *text = *p == ',' ? p + 1 : p;
}

static int
parse_options (struct create *c, const char *text)
{
  CLEANUP_FREE char *part = malloc (strlen (text) + 1);

  if (part == NULL)
    return img_file_error ("-o", ENOMEM);
  do {
    char *equals;

    next_option (&text, part);
    equals = strchr (part, '=');
    if (equals == NULL)
      return img_usage_error ("create", "-o: '%s' is not KEY=VALUE", part);
    *equals = '\0';
    if (set_option (c, part, equals + 1) != EXIT_SUCCESS)
      return EXIT_FAILURE;
  } while (*text);
  return EXIT_SUCCESS;
}

/* What getopt_long returned as C into *CREATE. */
static int
parse_option (struct create *create, int c, char *argv[])
{
  switch (c) {
  case 'b':
    return set_once (&create->backing, "backing file", optarg);
  case 'F':
    return set_backing_format (create, optarg);
  case 'i':
    return set_once (&create->image, "image file", optarg);
  case 'o':
    return parse_options (create, optarg);
  case 'f':
    create->force = true;
    return EXIT_SUCCESS;
  case 'q':
    create->quiet = true;
    return EXIT_SUCCESS;
  default:
    return img_option_error ("create", c, argv);
  }
}

/*--- Looking. ---------------------------------------------------------*/

/* FILE with its suffix, if it has one, replaced by .raw.  What is before
 * a colon would be taken for the scheme of a URI, or for "file:".
 */
static int
default_image (struct create *c)
{
  const char *base = name_basename (c->file_name);
  const char *dot = strrchr (base, '.');
  const int len = dot && dot != base ? dot - base : (int) strlen (base);
  const char *prefix = memchr (base, ':', len) ? "./" : "";

  if (asprintf (&c->image, "%s%.*s.raw", prefix, len, base) == -1) {
    c->image = NULL;
    return img_file_error (c->file_name, ENOMEM);
  }
  return EXIT_SUCCESS;
}

static bool
has_backing (const struct create *c)
{
  return c->backing && c->backing[0];
}

static int
resolve_backing (struct create *c)
{
  int r;

  if (!has_backing (c))
    return EXIT_SUCCESS;
  r = format_set_name (c->header.backing_file, c->backing);
  if (r == 0)
    r = location_find (&c->backing_location, c->folder, c->backing, NULL);
  return r ? img_file_error (c->backing, r) : EXIT_SUCCESS;
}

static int
resolve_image (struct create *c)
{
  int r;

  if (c->image[0] == '\0')
    return EXIT_SUCCESS;
  r = format_set_name (c->header.image_file, c->image);
  if (r == 0)
    r = name_resolve (c->folder, c->image, &c->image_path);
  return r ? img_file_error (c->image, r) : EXIT_SUCCESS;
}

static int
resolve_names (struct create *c)
{
  int r;

  if (c->file_name[0] == '\0')
    return img_usage_error ("create", "FILE must not be empty");
  if (c->backing_format && !has_backing (c))
    return img_usage_error ("create",
                            "there is no backing file that could "
                            "be of the format %s",
                            c->backing_format);
  if (c->image == NULL && default_image (c) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  r = name_folder (c->file_name, &c->folder);
  if (r)
    return img_file_error (c->file_name, r);
  /* A link to FILE stays one when FILE is overwritten. */
  c->path = realpath (c->file_name, NULL);
  if (c->path == NULL)
    c->path = strdup (c->file_name);
  if (c->path == NULL)
    return img_file_error (c->file_name, ENOMEM);

  if (resolve_backing (c) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return resolve_image (c);
}

static int
parse_size (struct create *c, bool *given)
{
  int r;

  *given = c->size != NULL;
  if (!*given)
    return EXIT_SUCCESS;
  r = size_parse (c->size, &c->header.size_bytes);
  if (r == EINVAL)
    return img_usage_error ("create", "'%s' is not a size", c->size);
  if (r == ERANGE) {
    img_error ("%s: too large for a disk", c->size);
    return EXIT_FAILURE;
  }
  return r ? img_file_error (c->size, r) : EXIT_SUCCESS;
}

/* Without a format there are no hints: whoever does not ask for them gets
 * the bytes that the format had from the beginning.
 */
static int
set_hints (struct create *c, const struct backing *backing)
{
  struct hints hints;
  int r;

  if (c->backing_format == NULL)
    return 0;
  r = hints_take (&hints, &c->backing_location, backing->size_bytes);
  if (r)
    return r;
  strcpy (hints.format, c->backing_format);
  return format_set_hints (&c->header, &hints);
}

static int
open_backing (struct create *c, bool take_size)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  const struct backing_options options = {
    .format = c->backing_format,
    .timeout_seconds = BACKING_TIMEOUT_SECONDS,
  };
  struct backing *backing;
  int r;

  if (backing_open (&backing, &c->backing_location, &options, &failure))
    return img_failure (&failure);
  if (take_size)
    c->header.size_bytes = backing->size_bytes;
  r = set_hints (c, backing);
  backing_close (backing);
  return r ? img_file_error (c->backing_location.name, r) : EXIT_SUCCESS;
}

/* Look at the backing file, and take its size if none is given. */
static int
check_size_and_backing (struct create *c)
{
  uint64_t size;
  bool given;
  int r;

  if (parse_size (c, &given) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (!given && !has_backing (c))
    return img_usage_error ("create", "without a backing file, SIZE is "
                                      "needed");
  if (has_backing (c) && open_backing (c, !given) != EXIT_SUCCESS)
    return EXIT_FAILURE;

  size = c->header.size_bytes;
  size = DIV_ROUND_UP (size, FORMAT_SECTOR_BYTES) * FORMAT_SECTOR_BYTES;
  c->header.size_bytes = size;
  r = format_check_size (size);
  return r ? img_file_error (c->file_name, EFBIG) : EXIT_SUCCESS;
}

/* Lock the FILE that will be replaced.  Should its name be another
 * file's by then, somebody else is just making that.
 */
static int
lock_old (struct create *c)
{
  struct stat locked, there;
  int r;

  r = metadata_open (c->path, true, &c->old_fd);
  if (r == 0)
    r = lock_metadata (c->old_fd, true);
  if (r)
    return r;
  if (fstat (c->old_fd, &locked) == -1 || stat (c->path, &there) == -1)
    return errno;
  return same_file (&locked, &there) ? 0 : ADDCOW_E_IN_USE;
}

/* FILE must not be there, or not be in use when it may be overwritten. */
static int
check_file (struct create *c)
{
  struct stat st;
  int r;

  if (lstat (c->path, &st) == -1)
    return errno == ENOENT ? EXIT_SUCCESS
                           : img_file_error (c->file_name, errno);
  if (!c->force) {
    img_error ("%s: exists already (-f overwrites it)", c->file_name);
    return EXIT_FAILURE;
  }
  r = lock_old (c);
  return r ? img_file_error (c->file_name, r) : EXIT_SUCCESS;
}

/* The path of what may not be there yet, its folder resolved. */
static char *
canonical (const char *path)
{
  CLEANUP_FREE char *folder = NULL;
  char *result = realpath (path, NULL);

  if (result || name_folder (path, &folder) != 0 ||
      asprintf (&result, "%s/%s", folder, name_basename (path)) == -1)
    return result;
  return result;
}

static bool
is_same (const char *a, const char *b)
{
  CLEANUP_FREE char *path_a = canonical (a);
  CLEANUP_FREE char *path_b = canonical (b);
  struct stat st_a, st_b;

  if (path_a && path_b && strcmp (path_a, path_b) == 0)
    return true;
  return stat (a, &st_a) == 0 && stat (b, &st_b) == 0 &&
         same_file (&st_a, &st_b);
}

static int
check_distinct (struct create *c)
{
  const char *backing_path = c->backing_location.path; /* NULL: a URI */

  if (c->image_path && is_same (c->image_path, c->path))
    return img_file_error (c->image_path, ADDCOW_E_IMAGE_IS_METADATA);
  if (backing_path && is_same (backing_path, c->path))
    return img_file_error (backing_path, ADDCOW_E_BACKING_IS_METADATA);
  if (c->image_path && backing_path && is_same (c->image_path, backing_path))
    return img_file_error (backing_path, ADDCOW_E_BACKING_IS_IMAGE);
  return EXIT_SUCCESS;
}

/* An image that is there is kept, if it can be one.  *MISSING: it is not
 * there, or none is wanted.
 */
static int
check_image (struct create *c, bool *missing)
{
  uint64_t size_bytes;
  struct stat st;
  int r;

  *missing = false;
  if (c->image_path == NULL)
    return EXIT_SUCCESS;
  r = fd_open_disk (c->image_path, &c->image_fd, &size_bytes);
  if (r == ENOENT && lstat (c->image_path, &st) == -1) {
    *missing = true;
    return EXIT_SUCCESS;
  }
  if (r == 0 && size_bytes < c->header.size_bytes)
    r = ADDCOW_E_IMAGE_SHORT;
  if (r == 0)
    r = lock_qemu (c->image_fd, true);
  return r ? img_file_error (c->image_path, r) : EXIT_SUCCESS;
}

/*--- Making. ----------------------------------------------------------*/

/* Locked before it has its name and while *FILE is open: what can still
 * be removed again, nobody else may take for an image of his.
 */
static int
make_image (struct create *c, struct new_file *file)
{
  int r;

  r = new_file_open (file, c->image_path);
  if (r == 0)
    r = lock_qemu (file->fd, true);
  if (r == 0 && ftruncate (file->fd, c->header.size_bytes) == -1)
    r = errno;
  if (r == 0)
    r = new_file_install (file, false);
  return r ? img_file_error (c->image_path, r) : EXIT_SUCCESS;
}

/* *INSTALLED: it is there, be it that syncing it failed. */
static int
make_metadata (struct create *c, bool *installed)
{
  __attribute__ ((
      cleanup (new_file_discard))) struct new_file file = NEW_FILE_NONE;
  uint8_t buf[FORMAT_HEADER_BYTES];
  int r;

  format_encode (&c->header, buf);
  r = new_file_open (&file, c->path);
  if (r == 0)
    r = fd_write (file.fd, buf, sizeof buf, 0);
  if (r == 0 &&
      ftruncate (file.fd, format_file_bytes (c->header.size_bytes)) == -1)
    r = errno;
  if (r == 0)
    r = new_file_install (&file, c->old_fd >= 0);
  *installed = file.installed;
  return r ? img_file_error (c->file_name, r) : EXIT_SUCCESS;
}

/* Signals wait while files are half made; a file that would be too large
 * is an error and no signal.
 */
static int
make_files (struct create *c, bool image_too)
{
  __attribute__ ((
      cleanup (new_file_discard))) struct new_file image = NEW_FILE_NONE;
  sigset_t wait, old;
  bool installed;
  int r = EXIT_SUCCESS;

  signal (SIGXFSZ, SIG_IGN);
  sigemptyset (&wait);
  sigaddset (&wait, SIGINT);
  sigaddset (&wait, SIGTERM);
  sigaddset (&wait, SIGHUP);
  sigprocmask (SIG_BLOCK, &wait, &old);
  if (image_too)
    r = make_image (c, &image);
  if (r == EXIT_SUCCESS) {
    r = make_metadata (c, &installed);
    if (!installed && image_too)
      new_file_remove (&image);
  }
  new_file_discard (&image);
  sigprocmask (SIG_SETMASK, &old, NULL);
  return r;
}

static void
print_result (const struct create *c)
{
  printf ("Formatting '");
  text_print (stdout, c->file_name);
  printf ("', fmt=add-cow size=%" PRIu64, c->header.size_bytes);
  if (has_backing (c)) {
    printf (" backing_file=");
    text_print (stdout, c->header.backing_file);
  }
  if (c->backing_format)
    printf (" backing_fmt=%s", c->backing_format);
  if (c->image_path) {
    printf (" image_file=");
    text_print (stdout, c->header.image_file);
  }
  printf ("\n");
}

static int
create (struct create *c)
{
  bool image_missing;

  if (resolve_names (c) != EXIT_SUCCESS || check_distinct (c) != EXIT_SUCCESS ||
      check_size_and_backing (c) != EXIT_SUCCESS ||
      check_file (c) != EXIT_SUCCESS ||
      check_image (c, &image_missing) != EXIT_SUCCESS ||
      make_files (c, image_missing) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (!c->quiet)
    print_result (c);
  return img_close_stdout ();
}

int
img_create (int argc, char *argv[])
{
  static const struct option options[] = {
    { "backing", required_argument, NULL, 'b' },
    { "backing-format", required_argument, NULL, 'F' },
    { "force", no_argument, NULL, 'f' },
    { "help", no_argument, NULL, 'h' },
    { "image", required_argument, NULL, 'i' },
    { "options", required_argument, NULL, 'o' },
    { "quiet", no_argument, NULL, 'q' },
    { NULL, 0, NULL, 0 },
  };
  __attribute__ ((cleanup (cleanup_create))) struct create c = {
    .backing_location = LOCATION_NONE,
    .old_fd = -1,
    .image_fd = -1,
  };
  int opt;

  opterr = 0;
  while ((opt = getopt_long (argc, argv, ":b:F:fhi:o:q", options, NULL)) !=
         -1) {
    if (opt == 'h')
      return img_help ("create");
    if (parse_option (&c, opt, argv) != EXIT_SUCCESS)
      return EXIT_FAILURE;
  }
  if (optind == argc || argc - optind > 2)
    return img_usage_error ("create", "FILE and at most a SIZE are needed");
  c.file_name = argv[optind];
  if (argc - optind == 2 &&
      set_once (&c.size, "size", argv[optind + 1]) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return create (&c);
}

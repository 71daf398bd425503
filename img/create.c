/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img create: a metadata file, and its image where it is missing.
 *
 * Everything is looked at before anything is made.  The image comes
 * first, and is durable, so that there is never a metadata file without one;
 * if the metadata file then fails, an image that was made is removed again.
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

#include "backing-arg.h"
#include "backing.h"
#include "common.h"
#include "disk.h"
#include "image-file.h"
#include "img.h"
#include "lock.h"
#include "names.h"
#include "new-file.h"

struct create {
  const char *file_name;
  struct backing_arg backing;
  char *image; /* as given or by default */
  char *size;  /* as given, NULL: the backing's */
  bool force, quiet;

  char *path;       /* of FILE, links followed */
  char *folder;     /* that names are relative to */
  char *image_path; /* NULL: none */
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
  backing_arg_clear (&c->backing);
  free (c->image);
  free (c->size);
  free (c->path);
  free (c->folder);
  free (c->image_path);
}

/*--- Arguments. -------------------------------------------------------*/

static int
set_option (struct create *c, const char *key, const char *value)
{
  if (strcmp (key, "backing_file") == 0)
    return backing_arg_set_name (&c->backing, value);
  if (strcmp (key, "backing_fmt") == 0)
    return backing_arg_set_format (&c->backing, value);
  if (strcmp (key, "image_file") == 0)
    return img_set_once ("create", &c->image, "image file", value);
  if (strcmp (key, "size") == 0)
    return img_set_once ("create", &c->size, "size", value);
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
    return backing_arg_set_name (&create->backing, optarg);
  case 'F':
    return backing_arg_set_format (&create->backing, optarg);
  case 'i':
    return img_set_once ("create", &create->image, "image file", optarg);
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
  if (backing_arg_check (&c->backing) != EXIT_SUCCESS)
    return EXIT_FAILURE;
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

  if (backing_arg_resolve (&c->backing, c->folder, &c->header) != EXIT_SUCCESS)
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

static int
open_backing (struct create *c, bool take_size)
{
  const struct backing_options options = {
    .timeout_seconds = BACKING_TIMEOUT_SECONDS,
  };
  struct backing *backing;
  int r;

  if (backing_arg_open (&c->backing, &options, &backing) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (take_size)
    c->header.size_bytes = backing->size_bytes;
  r = backing_arg_set_hints (&c->backing, backing->size_bytes, &c->header);
  backing_close (backing);
  return r;
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
  if (!given && !backing_arg_is_there (&c->backing))
    return img_usage_error ("create", "without a backing file, SIZE is "
                                      "needed");
  if (backing_arg_is_there (&c->backing) &&
      open_backing (c, !given) != EXIT_SUCCESS)
    return EXIT_FAILURE;

  size = c->header.size_bytes;
  size = DIV_ROUND_UP (size, FORMAT_SECTOR_BYTES) * FORMAT_SECTOR_BYTES;
  c->header.size_bytes = size;
  r = format_check_size (size);
  return r ? img_file_error (c->file_name, EFBIG) : EXIT_SUCCESS;
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
  r = lock_replaced (c->path, &c->old_fd);
  return r ? img_file_error (c->file_name, r) : EXIT_SUCCESS;
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

/* Whoever made the image that is there may not have synced it, and without it
 * the overlay is none.  The name of a device, and of what lies in a folder that
 * we may not read, is not ours to sync.
 */
static int
sync_image (const struct create *c)
{
  struct stat st;
  int r;

  if (c->image_fd == -1)
    return EXIT_SUCCESS;
  r = fd_sync_with_times (c->image_fd);
  if (r == 0 && fstat (c->image_fd, &st) == -1)
    r = errno;
  if (r == 0 && S_ISREG (st.st_mode))
    r = sync_folder (c->image_path);
  return r && r != EACCES ? img_file_error (c->image_path, r) : EXIT_SUCCESS;
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
  if (r == 0)
    r = fd_set_length (file->fd, c->header.size_bytes);
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
  if (r == 0)
    r = fd_set_length (file.fd, format_file_bytes (c->header.size_bytes));
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
  if (backing_arg_is_there (&c->backing)) {
    printf (" backing_file=");
    text_print (stdout, c->header.backing_file);
  }
  if (c->backing.format)
    printf (" backing_fmt=%s", c->backing.format);
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

  if (resolve_names (c) != EXIT_SUCCESS ||
      check_distinct_paths (c->path, c->image_path, c->backing.location.path) !=
          EXIT_SUCCESS ||
      check_size_and_backing (c) != EXIT_SUCCESS ||
      check_file (c) != EXIT_SUCCESS ||
      check_image (c, &image_missing) != EXIT_SUCCESS ||
      sync_image (c) != EXIT_SUCCESS ||
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
    .backing = BACKING_ARG_NONE ("create"),
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
  if (argc - optind == 2 && img_set_once ("create", &c.size, "size",
                                          argv[optind + 1]) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return create (&c);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img info: what a metadata file says, without opening the files
 * that it names; once, or as it fills.
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

#include "bitmap.h"
#include "blocks.h"
#include "common.h"
#include "hints.h"
#include "image-file.h"
#include "img.h"
#include "json.h"
#include "lock.h"
#include "metadata.h"
#include "names.h"
#include "progress.h"

struct info {
  const char *file_name;
  struct header header;
  uint64_t metadata_bytes_used; /* on disk */
  uint64_t image_bytes_used;    /* on disk, of a local image */
  bool have_image;              /* there is a local image to look at */
  uint64_t nr_allocated;        /* sectors */
  bool in_use;                  /* by somebody who may write */
  char *image_path;             /* NULL: none, or a URI */
  char *backing_path;           /* NULL: none, or a URI */
  struct hints hints;           /* about the backing file, */
  struct hints hints_now;       /* and what is so now; none: not known */
  struct blocks blocks;         /* none: not to be drawn */
};

static void
cleanup_info (struct info *info)
{
  free (info->image_path);
  free (info->backing_path);
}

#define BLOCK_BYTES 512 /* the unit of st_blocks */

static uint64_t
nr_sectors (const struct info *info)
{
  return info->header.size_bytes / FORMAT_SECTOR_BYTES;
}

static bool
is_complete (const struct info *info)
{
  return info->nr_allocated == nr_sectors (info);
}

static uint64_t
allocated_bytes (const struct info *info)
{
  return info->nr_allocated * FORMAT_SECTOR_BYTES;
}

static double
percent (const struct info *info)
{
  return progress_percent (info->nr_allocated, nr_sectors (info));
}

/* Resolve NAME to *PATH; a name that is empty or a URI has none. */
static int
resolve (const char *folder, const char *name, char **path)
{
  if (name[0] == '\0' || name_is_uri (name))
    return 0;
  return name_resolve (folder, name, path);
}

static int
collect_names (struct info *info)
{
  CLEANUP_FREE char *folder = NULL;
  struct stat st;
  int r;

  r = name_folder (info->file_name, &folder);
  if (r == 0)
    r = resolve (folder, info->header.backing_file, &info->backing_path);
  if (r == 0)
    r = resolve (folder, info->header.image_file, &info->image_path);
  if (r)
    return r;
  info->have_image = info->image_path && stat (info->image_path, &st) == 0 &&
                     S_ISREG (st.st_mode);
  if (info->have_image)
    info->image_bytes_used = (uint64_t) st.st_blocks * BLOCK_BYTES;
  format_get_hints (&info->header, &info->hints);
  if (info->backing_path && stat (info->backing_path, &st) == 0)
    hints_of_stat (&info->hints_now, &st);
  return 0;
}

/* All that changes while the overlay is served.  DRAW: also what is for people
 * alone.
 */
static int
look (struct info *info, int fd, bool draw)
{
  struct image_file metadata;
  int r;

  r = metadata_read_header (fd, &info->header);
  if (r)
    return r;
  info->in_use = lock_metadata_has_writer (fd);
  image_file_init (&metadata, fd);
  r = bitmap_count (&metadata.image, 0, nr_sectors (info), &info->nr_allocated);
  if (r == 0 && draw)
    r = blocks_look (&info->blocks, &metadata.image, info->header.size_bytes);
  return r;
}

static bool
was_resized (const struct info *info, int fd)
{
  struct header now;

  return metadata_read_header (fd, &now) == 0 &&
         now.size_bytes != info->header.size_bytes;
}

/* The bitmap may be cut off while it is read. */
static int
collect_state (struct info *info, int fd, bool draw)
{
  int r;

  do
    r = look (info, fd, draw);
  while (r && was_resized (info, fd));
  return r;
}

static int
collect (struct info *info, bool draw)
{
  CLEANUP_CLOSE int fd = -1;
  struct stat st;
  int r;

  r = metadata_open (info->file_name, false, &fd);
  if (r)
    return r;
  if (fstat (fd, &st) == -1)
    return errno;
  info->metadata_bytes_used = (uint64_t) st.st_blocks * BLOCK_BYTES;
  r = collect_state (info, fd, draw);
  return r ? r : collect_names (info);
}

static void
print_name (const char *what, const char *name, const char *path)
{
  if (name[0] == '\0')
    return;
  printf ("%s: ", what);
  text_print (stdout, name);
  if (path && strcmp (name, path) != 0) {
    printf (" (actual path: ");
    text_print (stdout, path);
    printf (")");
  }
  printf ("\n");
}

static void
print_hints (const struct info *info)
{
  char text[HINTS_TEXT_BYTES];

  if (info->hints.format[0])
    printf ("backing file format: %s\n", info->hints.format);
  if (hints_change_text (&info->hints, &info->hints_now, text)[0])
    printf ("backing file has changed: %s\n", text);
}

static void
print_state (const struct info *info)
{
  const uint64_t allocated = allocated_bytes (info);
  char text[SIZE_TEXT_BYTES];

  printf ("allocated: %s (%" PRIu64 " bytes, %.2f%%)\n",
          size_text (allocated, text), allocated, percent (info));
  printf ("complete: %s\n", is_complete (info) ? "true" : "false");
  printf ("in use: %s\n", info->in_use ? "true" : "false");
}

static void
print_human (const struct info *info)
{
  char text[SIZE_TEXT_BYTES];

  print_name ("image", info->file_name, NULL);
  printf ("file format: add-cow\n");
  printf ("virtual size: %s (%" PRIu64 " bytes)\n",
          size_text (info->header.size_bytes, text), info->header.size_bytes);
  printf ("disk size: %s\n", size_text (info->metadata_bytes_used, text));
  print_name ("backing file", info->header.backing_file, info->backing_path);
  print_hints (info);
  print_name ("image file", info->header.image_file, info->image_path);
  if (info->have_image)
    printf ("image file disk size: %s\n",
            size_text (info->image_bytes_used, text));
  print_state (info);
  blocks_print (&info->blocks);
}

static void
add_percent (json_object *object, const struct info *info)
{
  char text[sizeof "100.00"];

  snprintf (text, sizeof text, "%.2f", percent (info));
  json_object_object_add (object, "percent",
                          json_object_new_double_s (percent (info), text));
}

/* What the hints say, and what of it has changed, to DATA. */
static void
add_hints (json_object *data, const struct info *info)
{
  const struct hints_change change = hints_compare (&info->hints,
                                                    &info->hints_now);
  json_object *changed;

  if (info->hints.has_size)
    json_add_uint64 (data, "backing-size", info->hints.size_bytes);
  if (info->hints.has_mtime)
    json_add_int64 (data, "backing-mtime-ns", info->hints.mtime_ns);
  /* Of a file that can be compared, the length is known. */
  if (!info->hints_now.has_size ||
      !(info->hints.has_size || info->hints.has_mtime))
    return;
  changed = json_object_new_array ();
  if (change.size)
    json_object_array_add (changed, json_object_new_string ("size"));
  if (change.mtime)
    json_object_array_add (changed, json_object_new_string ("mtime"));
  json_object_object_add (data, "backing-changed", changed);
}

/* Field names are those of qemu-img info, where it has the field. */
static int
print_json (const struct info *info)
{
  json_object *top = json_object_new_object ();
  json_object *specific = json_object_new_object ();
  json_object *data = json_object_new_object ();

  json_add_uint64 (top, "virtual-size", info->header.size_bytes);
  json_add_string (top, "filename", info->file_name);
  json_add_string (top, "format", "add-cow");
  json_add_uint64 (top, "actual-size", info->metadata_bytes_used);
  json_add_string (top, "backing-filename", info->header.backing_file);
  json_add_string (top, "full-backing-filename", info->backing_path);
  json_add_string (top, "backing-filename-format", info->hints.format);
  json_add_string (specific, "type", "add-cow");
  json_add_string (data, "image-filename", info->header.image_file);
  json_add_string (data, "full-image-filename", info->image_path);
  if (info->have_image)
    json_add_uint64 (data, "image-actual-size", info->image_bytes_used);
  json_add_uint64 (data, "allocated-bytes", allocated_bytes (info));
  add_percent (data, info);
  add_hints (data, info);
  json_add_bool (data, "complete", is_complete (info));
  json_add_bool (data, "in-use", info->in_use);
  json_object_object_add (specific, "data", data);
  json_object_object_add (top, "format-specific", specific);

  return json_put (top, JSON_PRETTY);
}

/*--- Watching. --------------------------------------------------------*/

#define WATCH_SECONDS 1

struct watch {
  struct info *info;
  bool json;
  bool shown; /* and with these: */
  uint64_t shown_bytes;
  double shown_percent;
};

/* Here and not in struct watch: end_by_signal has to find it. */
static struct progress watch_progress;

/* Leave the line of the bar, then die of the signal, which does again what
 * it does by default and is not blocked here.
 */
static void
end_by_signal (int sig)
{
  if (watch_progress.drawn && write (STDOUT_FILENO, "\n", 1) == -1)
    _exit (EXIT_FAILURE);
  raise (sig);
}

/* One that is ignored, as by what was started in the background, stays so.
 */
static void
catch_signal (int sig)
{
  const struct sigaction catch = {
    .sa_handler = end_by_signal,
    .sa_flags = SA_RESETHAND | SA_NODEFER,
  };
  struct sigaction old;

  if (sigaction (sig, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
    sigaction (sig, &catch, NULL);
}

/* A line of JSON of its own. */
static int
print_json_line (const struct info *info)
{
  json_object *line = json_object_new_object ();

  json_add_uint64 (line, "allocated-bytes", allocated_bytes (info));
  add_percent (line, info);
  json_add_bool (line, "complete", is_complete (info));
  return json_put (line, JSON_C_TO_STRING_SPACED);
}

/* Show what has changed.  What is complete at once has no progress. */
static int
show_change (struct watch *w)
{
  const struct info *info = w->info;
  const uint64_t bytes = allocated_bytes (info);
  const bool percent_changed = !w->shown || w->shown_percent != percent (info);
  const bool changed = percent_changed || w->shown_bytes != bytes;
  int r = 0;

  if (w->json) {
    if (changed)
      r = print_json_line (info);
  }
  else if (w->shown || !is_complete (info)) {
    /* The disk may be resized meanwhile. */
    if (!w->shown || watch_progress.total_bytes != info->header.size_bytes)
      progress_begin (&watch_progress, info->header.size_bytes, bytes);
    progress_update (&watch_progress, stdout, bytes);
    if (percent_changed && !watch_progress.drawn)
      progress_print_line (&watch_progress, stdout);
  }
  w->shown = true;
  w->shown_bytes = bytes;
  w->shown_percent = percent (info);
  return r;
}

/* Is FD still what FILE_NAME names?  Returns 0 or an errno: ESTALE for
 * another file, as NFS has it.
 */
static int
compare_file (const char *file_name, int fd)
{
  struct stat named, opened;

  if (stat (file_name, &named) == -1 || fstat (fd, &opened) == -1)
    return errno;
  return named.st_dev == opened.st_dev && named.st_ino == opened.st_ino
             ? 0
             : ESTALE;
}

static int
watch_error (const char *file_name, int err)
{
  progress_end (&watch_progress, stdout);
  if (err != ESTALE)
    return img_file_error (file_name, err);
  img_error ("%s: replaced by another file", file_name);
  return EXIT_FAILURE;
}

/* Returns the exit status, when the overlay is complete or what is watched
 * is lost.  What becomes complete may be removed then: the name is looked
 * at before the bits, and counts only if some are missing.
 */
static int
watch (struct info *info, bool json)
{
  struct watch w = { .info = info, .json = json };
  CLEANUP_CLOSE int fd = -1;
  int r, name_error;

  r = metadata_open (info->file_name, false, &fd);
  if (r)
    return img_file_error (info->file_name, r);
  catch_signal (SIGINT);
  catch_signal (SIGTERM);
  for (;;) {
    name_error = compare_file (info->file_name, fd);
    r = collect_state (info, fd, false);
    if (r == 0)
      r = show_change (&w);
    if (r == 0 && !is_complete (info))
      r = name_error;
    if (r)
      return watch_error (info->file_name, r);
    if (img_close_stdout () != EXIT_SUCCESS)
      return EXIT_FAILURE;
    if (is_complete (info))
      break;
    sleep (WATCH_SECONDS);
  }
  progress_end (&watch_progress, stdout);
  if (!json)
    print_state (info);
  return img_close_stdout ();
}

int
img_info (int argc, char *argv[])
{
  enum { OPTION_OUTPUT = 256, OPTION_WATCH };
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "output", required_argument, NULL, OPTION_OUTPUT },
    { "watch", no_argument, NULL, OPTION_WATCH },
    { NULL, 0, NULL, 0 },
  };
  __attribute__ ((
      cleanup (cleanup_info))) struct info info = { .file_name = NULL };
  bool json = false, watching = false;
  int c, r;

  opterr = 0;
  while ((c = getopt_long (argc, argv, ":h", options, NULL)) != -1)
    switch (c) {
    case 'h':
      return img_help ("info");
    case OPTION_OUTPUT:
      json = strcmp (optarg, "json") == 0;
      if (!json && strcmp (optarg, "human") != 0)
        return img_usage_error ("info", "--output must be human or json");
      break;
    case OPTION_WATCH:
      watching = true;
      break;
    default:
      return img_option_error ("info", c, argv);
    }
  if (img_only_file ("info", argc, argv, &info.file_name) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (watching)
    return watch (&info, json);
  r = collect (&info, !json);
  if (r)
    return img_file_error (info.file_name, r);
  if (json && print_json (&info) != 0)
    return img_file_error (info.file_name, ENOMEM);
  if (!json)
    print_human (&info);
  return img_close_stdout ();
}

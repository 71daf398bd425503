/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img stream: fill the image of an overlay that nobody serves, until
 * it stands alone.
 *
 * The filler (lib/filler.h) does the work in threads.
 */

#include <config.h>

#include <getopt.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bitmap.h"
#include "common.h"
#include "disk.h"
#include "filler.h"
#include "image-file.h"
#include "img.h"
#include "open-disk.h"
#include "work.h"

struct stream {
  const char *file_name;
  bool quiet;
  uint64_t rate_bytes; /* a second; 0: any */

  struct work work;
  struct disk *disk;
  int image_fd;
  struct image_file image;
  bool attached;
  uint64_t nr_bytes_before; /* that were allocated */
  struct filler *filler;

  /* Written once by a worker, before the work is over. */
  struct fault fault;
  _Atomic bool claimed; /* by that worker */
  _Atomic bool complete;
  _Atomic bool failed;
};

static void
cleanup_stream (struct stream *s)
{
  disk_close (s->disk);
  if (s->image_fd >= 0)
    close (s->image_fd);
  work_clear (&s->work);
}

/*--- What the filler tells, in its threads. ---------------------------*/

static void
filling_is_complete (void *opaque)
{
  struct stream *s = opaque;

  s->complete = true;
  work_over (&s->work);
}

/* The first failure ends it. */
static void
filling_failed (void *opaque, const struct fault *fault)
{
  struct stream *s = opaque;

  if (atomic_exchange (&s->claimed, true))
    return;
  s->fault = *fault;
  s->failed = true;
  work_over (&s->work);
}

/*--- Opening. ---------------------------------------------------------*/

static int
open_disk (struct stream *s)
{
  int r;

  if (open_disk_writable (s->file_name, false, &s->disk, &s->image_fd) !=
      EXIT_SUCCESS)
    return EXIT_FAILURE;
  r = bitmap_count (&s->disk->metadata.image, 0,
                    s->disk->header.size_bytes / FORMAT_SECTOR_BYTES,
                    &s->nr_bytes_before);
  if (r)
    return img_file_error (s->file_name, r);
  s->nr_bytes_before *= FORMAT_SECTOR_BYTES;
  return EXIT_SUCCESS;
}

static uint64_t
done_bytes (void *opaque)
{
  const struct stream *s = opaque;

  return MIN (s->nr_bytes_before + filler_nr_bytes (s->filler),
              s->disk->header.size_bytes);
}

static int
start (struct stream *s)
{
  struct filler_options options;
  int r;

  image_file_init (&s->image, s->image_fd);
  overlay_attach (s->disk->overlay, &s->image.image);
  s->attached = true;
  progress_begin (&s->work.shown, s->disk->header.size_bytes,
                  s->nr_bytes_before);
  filler_options_init (&options, s->disk->overlay, &s->image.image,
                       s->disk->backing);
  options.rate_bytes = s->rate_bytes;
  options.image_fd = s->image_fd;
  options.complete = filling_is_complete;
  options.failed = filling_failed;
  options.opaque = s;
  r = filler_start (&s->filler, &options);
  return r ? img_file_error (s->file_name, r) : EXIT_SUCCESS;
}

/*--- Waiting for the end. ---------------------------------------------*/

/* Stop the threads, commit what they did. */
static int
stop (struct stream *s)
{
  struct fault fault;

  filler_stop (s->filler);
  work_end (&s->work);
  if (s->attached &&
      overlay_detach (s->disk->overlay, &s->image.image, &fault) == -1)
    return disk_fault_error (s->disk, s->failed ? &s->fault : &fault);
  return EXIT_SUCCESS;
}

static void
print_result (const struct stream *s)
{
  const struct disk *disk = s->disk;

  text_print (stdout, disk->header.image_file);
  printf (" stands alone: ");
  text_print (stdout, s->file_name);
  printf (" is no longer needed");
  if (disk->header.backing_file[0]) {
    printf (", nor is the backing file ");
    text_print (stdout, disk->header.backing_file);
    printf (" by this overlay");
  }
  printf ("\n");
}

static int
stream (struct stream *s)
{
  int r;

  work_keep_signals ();
  if (open_disk (s) != EXIT_SUCCESS ||
      work_take_signals (&s->work) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  r = start (s);
  if (r == EXIT_SUCCESS)
    r = work_wait (&s->work);
  if (stop (s) != EXIT_SUCCESS || r != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (s->failed)
    return disk_fault_error (s->disk, &s->fault);
  if (!s->complete)
    return work_interrupted_error (&s->work);
  if (!s->quiet)
    print_result (s);
  return img_close_stdout ();
}

static int
parse_rate (struct stream *s, const char *text)
{
  if (size_parse (text, &s->rate_bytes) == 0 && s->rate_bytes > 0)
    return EXIT_SUCCESS;
  return img_usage_error ("stream", "invalid rate '%s'", text);
}

int
img_stream (int argc, char *argv[])
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "progress", no_argument, NULL, 'p' },
    { "quiet", no_argument, NULL, 'q' },
    { "rate", required_argument, NULL, 'r' },
    { NULL, 0, NULL, 0 },
  };
  __attribute__ ((cleanup (cleanup_stream))) struct stream s = {
    .image_fd = -1,
    .work = WORK_NONE,
  };
  int opt;

  opterr = 0;
  while ((opt = getopt_long (argc, argv, ":hpq", options, NULL)) != -1)
    switch (opt) {
    case 'h':
      return img_help ("stream");
    case 'p':
      s.work.progress = true;
      break;
    case 'q':
      s.quiet = true;
      break;
    case 'r':
      if (parse_rate (&s, optarg) != EXIT_SUCCESS)
        return EXIT_FAILURE;
      break;
    default:
      return img_option_error ("stream", opt, argv);
    }
  if (img_only_file ("stream", argc, argv, &s.file_name) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  s.work.file_name = s.file_name;
  s.work.done_bytes = done_bytes;
  s.work.opaque = &s;
  return stream (&s);
}

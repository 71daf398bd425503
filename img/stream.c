/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img stream: fill the image of an overlay that nobody serves, until
 * it stands alone.
 *
 * The filler (lib/filler.h) does the work in threads; this one waits for its
 * end, for signals, and for the time to show how far it is.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common.h"
#include "disk.h"
#include "filler.h"
#include "image-file.h"
#include "img.h"
#include "map.h"
#include "progress.h"

/* How often to look how far it is. */
#define LOOK_MS 200

struct stream {
  const char *file_name;
  bool progress;
  bool quiet;
  uint64_t rate_bytes; /* a second; 0: any */

  struct disk *disk;
  int image_fd;
  struct image_file image;
  bool attached;
  uint64_t nr_bytes_before; /* that were allocated */
  struct filler *filler;
  struct progress shown;

  int over_fd;   /* an eventfd: complete, or failed */
  int signal_fd; /* of signals that are blocked */

  /* Written once by a worker, before it writes to over_fd. */
  struct fault fault;
  _Atomic bool claimed; /* by that worker */
  _Atomic bool complete;
  _Atomic bool failed;
  bool interrupted;
};

static void
cleanup_stream (struct stream *s)
{
  disk_close (s->disk);
  if (s->image_fd >= 0)
    close (s->image_fd);
  if (s->over_fd >= 0)
    close (s->over_fd);
  if (s->signal_fd >= 0)
    close (s->signal_fd);
}

/*--- Errors. ----------------------------------------------------------*/

static int
fault_error (const struct stream *s, const struct fault *fault)
{
  switch (fault->part) {
  case FAULT_IMAGE:
    return img_file_error (s->disk->image_location.name, fault->err);
  case FAULT_BACKING:
    return img_file_error (s->disk->backing_location.name, fault->err);
  default:
    return img_file_error (s->file_name, fault->err);
  }
}

/* Other than for create there is no option to say what the backing file is.
 */
static int
open_failure (const struct stream *s, const struct failure *failure)
{
  if (failure->err != ADDCOW_E_FOREIGN_FORMAT || failure->detail ||
      failure->file_name == NULL)
    return img_failure (failure);
  img_error ("%s: begins like a disk image of the format %s, and is read as "
             "raw only when %s says so: make that with addcow-img create -F "
             "%s, or -F raw to insist",
             failure->file_name, failure->format, s->file_name,
             failure->format);
  return EXIT_FAILURE;
}

/* Of a server that was lost; in a thread. */
static void
log_backing (void *opaque UNUSED, const char *name, const char *text)
{
  img_error ("%s: %s", name, text);
}

/*--- What the filler tells, in its threads. ---------------------------*/

static void
wake (const struct stream *s)
{
  const uint64_t one = 1;
  ssize_t r;

  do
    r = write (s->over_fd, &one, sizeof one);
  while (r == -1 && errno == EINTR);
}

static void
filling_is_complete (void *opaque)
{
  struct stream *s = opaque;

  s->complete = true;
  wake (s);
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
  wake (s);
}

/*--- Opening. ---------------------------------------------------------*/

/* SIGUSR1 may come early, and must not end the program. */
static void
keep_signals (void)
{
  sigset_t set;

  signal (SIGXFSZ, SIG_IGN);
  sigemptyset (&set);
  sigaddset (&set, SIGUSR1);
  pthread_sigmask (SIG_BLOCK, &set, NULL);
}

/* Signals are waited for, by this thread; those that are started from now
 * on do not get any.  What is done before can be ended by them.
 */
static int
take_signals (struct stream *s)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGTERM);
  sigaddset (&set, SIGHUP);
  sigaddset (&set, SIGQUIT);
  sigaddset (&set, SIGUSR1);
  pthread_sigmask (SIG_BLOCK, &set, NULL);
  s->signal_fd = signalfd (-1, &set, SFD_CLOEXEC);
  s->over_fd = eventfd (0, EFD_CLOEXEC);
  if (s->signal_fd == -1 || s->over_fd == -1)
    return img_file_error (s->file_name, errno);
  return EXIT_SUCCESS;
}

static int
open_disk (struct stream *s)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  const struct disk_options options = {
    .check_image = true,
    .backing = {
      .timeout_seconds = BACKING_TIMEOUT_SECONDS,
      .log = log_backing,
    },
  };
  int r;

  if (disk_open (&s->disk, s->file_name, &options, &failure))
    return open_failure (s, &failure);
  if (!s->disk->writable)
    return img_file_error (s->file_name,
                           access (s->file_name, W_OK) == -1 ? errno : EACCES);
  r = disk_open_image (s->disk, &s->image_fd);
  if (r == ADDCOW_E_NO_IMAGE) {
    img_error ("%s: names no image file", s->file_name);
    return EXIT_FAILURE;
  }
  if (r)
    return img_file_error (s->disk->image_location.name, r);
  r = map_count_allocated (&s->disk->metadata.image, s->disk->header.size_bytes,
                           &s->nr_bytes_before);
  if (r)
    return img_file_error (s->file_name, r);
  s->nr_bytes_before *= FORMAT_SECTOR_BYTES;
  return EXIT_SUCCESS;
}

static int
start (struct stream *s)
{
  struct filler_options options;
  int r;

  image_file_init (&s->image, s->image_fd);
  overlay_attach (s->disk->overlay, &s->image.image);
  s->attached = true;
  progress_begin (&s->shown, s->disk->header.size_bytes, s->nr_bytes_before);
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

static uint64_t
nr_bytes_done (const struct stream *s)
{
  return MIN (s->nr_bytes_before + filler_nr_bytes (s->filler),
              s->disk->header.size_bytes);
}

static void
take_signal (struct stream *s)
{
  struct signalfd_siginfo info;

  if (read (s->signal_fd, &info, sizeof info) != sizeof info)
    return;
  if (info.ssi_signo != SIGUSR1) {
    s->interrupted = true;
    return;
  }
  progress_print_line (&s->shown, stderr);
}

static int
wait_for_end (struct stream *s)
{
  struct pollfd fds[] = {
    { .fd = s->over_fd, .events = POLLIN },
    { .fd = s->signal_fd, .events = POLLIN },
  };

  while (!s->complete && !s->failed && !s->interrupted) {
    const int n = poll (fds, ARRAY_SIZE (fds), LOOK_MS);

    if (n == -1 && errno != EINTR)
      return img_file_error (s->file_name, errno);
    progress_update (&s->shown, s->progress ? stderr : NULL, nr_bytes_done (s));
    if (n > 0 && fds[1].revents)
      take_signal (s);
  }
  /* It may have come to its end since the last look. */
  progress_update (&s->shown, s->progress ? stderr : NULL, nr_bytes_done (s));
  return EXIT_SUCCESS;
}

/* Stop the threads, commit what they did. */
static int
stop (struct stream *s)
{
  struct fault fault;

  filler_stop (s->filler);
  progress_end (&s->shown, stderr);
  if (s->attached &&
      overlay_detach (s->disk->overlay, &s->image.image, &fault) == -1)
    return fault_error (s, s->failed ? &s->fault : &fault);
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

  keep_signals ();
  if (open_disk (s) != EXIT_SUCCESS || take_signals (s) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  r = start (s);
  if (r == EXIT_SUCCESS)
    r = wait_for_end (s);
  if (stop (s) != EXIT_SUCCESS || r != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (s->failed)
    return fault_error (s, &s->fault);
  if (!s->complete) {
    img_error ("%s: interrupted: run it again to go on", s->file_name);
    return EXIT_FAILURE;
  }
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
    .over_fd = -1,
    .signal_fd = -1,
  };
  int opt;

  opterr = 0;
  while ((opt = getopt_long (argc, argv, ":hpq", options, NULL)) != -1)
    switch (opt) {
    case 'h':
      return img_help ("stream");
    case 'p':
      s.progress = true;
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
  if (argc - optind != 1)
    return img_usage_error ("stream", "exactly one FILE is needed");
  s.file_name = argv[optind];
  if (s.file_name[0] == '\0')
    return img_usage_error ("stream", "FILE must not be empty");
  return stream (&s);
}

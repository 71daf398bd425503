/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img commit: write what the image of an overlay has to its backing
 * file, and empty the overlay.
 *
 * What is on disk at each moment is in lib/commit.h.  Before that a backing
 * file that is shorter than the disk is made as long, where that can be: what
 * is new is zeroes, as it was through the overlay.  At the end, also an early
 * one, the hints about the backing file are made true again, since it was we
 * who changed it; without that, as after a crash, they make for a warning.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing.h"
#include "bitmap.h"
#include "commit.h"
#include "common.h"
#include "disk.h"
#include "hints-write.h"
#include "hints.h"
#include "image-file.h"
#include "img.h"
#include "open-disk.h"
#include "target.h"
#include "work.h"

/* How long a signal leaves what is under way to come to its end: a server may
 * not answer any more.
 */
#define GRACE_MS 5000

struct commit_verb {
  const char *file_name;
  bool quiet;

  struct work work;
  struct disk *disk;
  int image_fd;
  struct image_file image;
  struct target *target;
  struct commit *commit;
  uint64_t nr_allocated; /* sectors, before */
  bool cut_short;        /* the target was interrupted */

  /* What came of it; the thread's until that has ended. */
  int r;
  bool complete;
  struct fault fault;
};

static void
cleanup_commit (struct commit_verb *c)
{
  target_close (c->target);
  commit_free (c->commit);
  disk_close (c->disk);
  if (c->image_fd >= 0)
    close (c->image_fd);
  work_clear (&c->work);
}

/*--- Opening. ---------------------------------------------------------*/

static int
open_target (struct commit_verb *c)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  const struct disk_options options = {
    .backing = {
      .timeout_seconds = BACKING_TIMEOUT_SECONDS,
      .log = log_backing,
    },
  };

  if (c->disk->backing_location.name == NULL) {
    img_error ("%s: has no backing file", c->file_name);
    return EXIT_FAILURE;
  }
  if (disk_open_target (c->disk, &options, &c->target, &failure))
    return open_disk_failure (c->file_name, &failure);
  return EXIT_SUCCESS;
}

static int
new_commit (struct commit_verb *c)
{
  struct commit_options options = {
    .metadata = &c->disk->metadata.image,
    .image = &c->image.image,
    .target = c->target->image,
    .image_fd = c->image_fd,
    .size_bytes = c->disk->header.size_bytes,
    .target_bytes = c->target->size_bytes,
    .round_bytes = COMMIT_ROUND_BYTES,
    .stop = &c->work.interrupted,
  };
  struct stat st;
  int r;

  image_file_init (&c->image, c->image_fd);
  /* A block device does not tell of its holes. */
  options.free_all = fstat (c->image_fd, &st) == 0 && S_ISREG (st.st_mode);
  if (target_can_grow (c->target))
    options.target_bytes = MAX (options.target_bytes, options.size_bytes);
  r = commit_new (&c->commit, &options);
  return r ? img_file_error (c->file_name, r) : EXIT_SUCCESS;
}

/* How the backing file is made longer, which is not done here: by another
 * program that reads its format.  The caller frees it.  Or NULL.
 */
static char *
how_to_resize (const struct commit_verb *c)
{
  const struct location *location = &c->disk->backing_location;
  const uint64_t size_bytes = c->disk->header.size_bytes;
  struct hints hints;
  char *how = NULL;
  int n;

  format_get_hints (&c->disk->header, &hints);
  if (location->path == NULL || hints.format[0] == '\0' ||
      strcmp (hints.format, "raw") == 0)
    return NULL;
  if (strcmp (hints.format, "add-cow") == 0)
    n = asprintf (&how, ": addcow-img resize %s %" PRIu64, location->name,
                  size_bytes);
  else
    n = asprintf (&how, ": qemu-img resize -f %s %s %" PRIu64, hints.format,
                  location->name, size_bytes);
  return n == -1 ? NULL : how;
}

static int
too_short (const struct commit_verb *c)
{
  CLEANUP_FREE char *how = how_to_resize (c);

  img_error ("%s: has %" PRIu64 " bytes, too few for what is to be written "
             "there: make it %" PRIu64 " bytes long before%s",
             c->disk->backing_location.name, c->target->size_bytes,
             c->disk->header.size_bytes, how ? how : "");
  return EXIT_FAILURE;
}

/* Let the target be long enough. */
static int
fit_target (struct commit_verb *c)
{
  const uint64_t size_bytes = c->disk->header.size_bytes;
  bool fits;
  int r;

  if (commit_fits (c->commit, &fits, &c->fault) == -1)
    return disk_fault_error (c->disk, &c->fault);
  if (!fits)
    return too_short (c);
  if (!target_can_grow (c->target) || c->target->size_bytes >= size_bytes)
    return EXIT_SUCCESS;
  r = target_grow (c->target, size_bytes);
  return r ? img_file_error (c->disk->backing_location.name, r) : EXIT_SUCCESS;
}

/* What a guest has in its first sector, such as the header of LUKS, must not
 * make the backing file one that is refused where nobody says that it is raw.
 */
static int
check_magic (const struct commit_verb *c)
{
  const struct header *header = &c->disk->header;
  char buf[BACKING_MAGIC_BYTES];
  const char *format;
  struct hints hints;
  uint64_t nr_set;
  int r;

  format_get_hints (header, &hints);
  if (hints.format[0] || header->size_bytes == 0)
    return EXIT_SUCCESS;
  r = bitmap_count (&c->disk->metadata.image, 0, 1, &nr_set);
  if (r)
    return img_file_error (c->file_name, r);
  if (nr_set == 0)
    return EXIT_SUCCESS;
  r = fd_read (c->image_fd, buf, sizeof buf, 0);
  if (r)
    return img_file_error (c->disk->image_location.name, r);
  format = backing_magic (buf, sizeof buf);
  if (format == NULL)
    return EXIT_SUCCESS;
  img_error ("%s: the disk begins like a disk image of the format %s, and so "
             "would %s, which would not be read as raw any more: say before "
             "that it is, with addcow-img rebase -u -b %s -F raw %s",
             c->file_name, format, c->disk->backing_location.name,
             header->backing_file, c->file_name);
  return EXIT_FAILURE;
}

/* All that can be known to be wrong is, before anything is written. */
static int
open_all (struct commit_verb *c)
{
  struct disk *disk = c->disk;
  int r;

  r = bitmap_count (&disk->metadata.image, 0,
                    disk->header.size_bytes / FORMAT_SECTOR_BYTES,
                    &c->nr_allocated);
  if (r)
    return img_file_error (c->file_name, r);
  if (open_target (c) != EXIT_SUCCESS || check_magic (c) != EXIT_SUCCESS ||
      new_commit (c) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return fit_target (c);
}

/*--- The work. --------------------------------------------------------*/

static void
run (void *opaque)
{
  struct commit_verb *c = opaque;

  c->r = commit_run (c->commit, &c->complete, &c->fault);
}

static uint64_t
done_bytes (void *opaque)
{
  const struct commit_verb *c = opaque;

  return commit_nr_bytes (c->commit);
}

static void
interrupt (void *opaque)
{
  struct commit_verb *c = opaque;
  struct pollfd pfd = { .fd = c->work.over_fd, .events = POLLIN };

  c->cut_short = poll (&pfd, 1, GRACE_MS) == 0;
  if (c->cut_short)
    target_interrupt (c->target);
}

/* Nothing more is written to the backing file.  If there are hints, let them
 * be true.  Returns 0, or an error number and whose it is.
 */
static int
update_hints (struct commit_verb *c, const char **whose)
{
  struct disk *disk = c->disk;
  struct hints now;
  int r;

  *whose = disk->backing_location.name;
  r = target_end (c->target);
  if (r == 0)
    r = hints_take (&now, &disk->backing_location, c->target->size_bytes);
  if (r)
    return r;
  *whose = c->file_name;
  return hints_update (disk->metadata_fd, &disk->header, &now);
}

/* One line says what went wrong first. */
static int
end (struct commit_verb *c)
{
  const char *whose;
  const int r = update_hints (c, &whose);

  if (c->r == -1 && c->cut_short && c->fault.part == FAULT_BACKING)
    return work_interrupted_error (&c->work);
  if (c->r == -1)
    return disk_fault_error (c->disk, &c->fault);
  if (r)
    return img_file_error (whose, r);
  if (!c->complete)
    return work_interrupted_error (&c->work);
  if (!c->quiet)
    printf ("Image committed.\n");
  return img_close_stdout ();
}

static int
commit (struct commit_verb *c)
{
  work_keep_signals ();
  if (open_disk_writable (c->file_name, true, &c->disk, &c->image_fd) !=
          EXIT_SUCCESS ||
      open_all (c) != EXIT_SUCCESS ||
      work_take_signals (&c->work) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  progress_begin (&c->work.shown, c->nr_allocated * FORMAT_SECTOR_BYTES, 0);
  if (work_run (&c->work, run, interrupt) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  work_end (&c->work);
  return end (c);
}

int
img_commit (int argc, char *argv[])
{
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "progress", no_argument, NULL, 'p' },
    { "quiet", no_argument, NULL, 'q' },
    { NULL, 0, NULL, 0 },
  };
  __attribute__ ((cleanup (cleanup_commit))) struct commit_verb c = {
    .image_fd = -1,
    .work = WORK_NONE,
  };
  int opt;

  opterr = 0;
  while ((opt = getopt_long (argc, argv, ":hpq", options, NULL)) != -1)
    switch (opt) {
    case 'h':
      return img_help ("commit");
    case 'p':
      c.work.progress = true;
      break;
    case 'q':
      c.quiet = true;
      break;
    default:
      return img_option_error ("commit", opt, argv);
    }
  if (img_only_file ("commit", argc, argv, &c.file_name) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  c.work.file_name = c.file_name;
  c.work.done_bytes = done_bytes;
  c.work.opaque = &c;
  return commit (&c);
}

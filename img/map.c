/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img map: which file each part of a disk is read from.
 *
 * Nothing is written.  The overlay may be in use; then no locks are taken.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blocks.h"
#include "common.h"
#include "disk-map.h"
#include "disk.h"
#include "img.h"
#include "open-disk.h"

/* So much is kept back, so that when something fails soon nothing is printed.
 */
#define HELD_BYTES (1024 * 1024)

struct map {
  const char *file_name;
  bool json;
  struct disk *disk;
  bool in_use;          /* by somebody who writes */
  struct blocks blocks; /* none: not to be drawn */

  FILE *fp;   /* where rows go: a stream over HELD, then stdout */
  char *held; /* valid when FP was flushed or closed */
  size_t held_bytes;
  uint64_t nr_rows;
  int err; /* of printing them */
};

static void
cleanup_map (struct map *m)
{
  if (m->fp && m->fp != stdout)
    fclose (m->fp);
  free (m->held);
  disk_close (m->disk);
}

/*--- Rows. ------------------------------------------------------------*/

static const char *
json_bool (bool value)
{
  return value ? "true" : "false";
}

/* To the byte as qemu-img does. */
static void
print_json_row (const struct map *m, const struct map_extent *e)
{
  fprintf (m->fp,
           "%s{ \"start\": %" PRIu64 ", \"length\": %" PRIu64
           ", \"depth\": %u, \"present\": %s, \"zero\": %s, \"data\": %s",
           m->nr_rows == 0 ? "[" : ",\n", e->offset, e->count, e->depth,
           json_bool (e->present), json_bool (e->zero), json_bool (e->data));
  if (e->in_place)
    fprintf (m->fp, ", \"offset\": %" PRIu64, e->offset);
  fputc ('}', m->fp);
}

static void
print_human_row (const struct map *m, const struct map_extent *e)
{
  fprintf (m->fp, "%#-16" PRIx64 "%#-16" PRIx64, e->offset, e->count);
  if (e->in_place)
    fprintf (m->fp, "%#-16" PRIx64, e->offset);
  else
    fprintf (m->fp, "%-16s", "-");
  text_print (m->fp, e->file_name);
  fputc ('\n', m->fp);
}

/* Let go of what is held, and hold nothing from now on. */
static void
release (struct map *m)
{
  FILE *fp = m->fp;

  m->fp = stdout;
  if (fclose (fp) == EOF)
    m->err = ENOMEM;
  else if (fwrite (m->held, 1, m->held_bytes, stdout) < m->held_bytes)
    m->err = errno;
}

/* A map_fn. */
static int
print_row (void *opaque, const struct map_extent *extent)
{
  struct map *m = opaque;

  if (m->json)
    print_json_row (m, extent);
  else if (extent->data && !extent->zero)
    print_human_row (m, extent);
  m->nr_rows++;
  if (m->fp != stdout && ftello (m->fp) > HELD_BYTES)
    release (m);
  else if (ferror (m->fp))
    m->err = m->fp == stdout ? errno : ENOMEM;
  return m->err ? EXTENT_STOP : 0;
}

/*--- The whole. -------------------------------------------------------*/

static int
print_map (struct map *m)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  int r;

  m->fp = open_memstream (&m->held, &m->held_bytes);
  if (m->fp == NULL)
    return img_file_error (m->file_name, ENOMEM);
  if (!m->json)
    fprintf (m->fp, "%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to",
             "File");
  r = disk_map (m->disk, print_row, m, &failure);
  if (r > 0)
    return open_disk_failure (m->file_name, &failure);
  if (m->json)
    fprintf (m->fp, "%s]\n", m->nr_rows == 0 ? "[" : "");
  if (m->fp != stdout)
    release (m);
  if (m->err == 0) {
    blocks_print (&m->blocks);
    return img_close_stdout ();
  }
  img_error ("standard output: %s", strerror (m->err));
  return EXIT_FAILURE;
}

static int
open_disk (struct map *m)
{
  struct disk *disk;
  int r;

  if (open_disk_readable (m->file_name, &m->disk, &m->in_use) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (m->json)
    return EXIT_SUCCESS;
  disk = m->disk;
  r = blocks_look (&m->blocks, &disk->metadata.image, disk->header.size_bytes);
  return r ? img_file_error (m->file_name, r) : EXIT_SUCCESS;
}

static int
map (struct map *m)
{
  if (open_disk (m) != EXIT_SUCCESS || print_map (m) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (m->in_use)
    img_error ("%s: in use: this is the map of a disk that is being changed",
               m->file_name);
  return EXIT_SUCCESS;
}

int
img_map (int argc, char *argv[])
{
  enum { OPTION_OUTPUT = 256 };
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "output", required_argument, NULL, OPTION_OUTPUT },
    { NULL, 0, NULL, 0 },
  };
  __attribute__ ((cleanup (cleanup_map))) struct map m = { .file_name = NULL };
  int opt;

  opterr = 0;
  while ((opt = getopt_long (argc, argv, ":h", options, NULL)) != -1)
    switch (opt) {
    case 'h':
      return img_help ("map");
    case OPTION_OUTPUT:
      m.json = strcmp (optarg, "json") == 0;
      if (!m.json && strcmp (optarg, "human") != 0)
        return img_usage_error ("map", "--output must be human or json");
      break;
    default:
      return img_option_error ("map", opt, argv);
    }
  if (img_only_file ("map", argc, argv, &m.file_name) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return map (&m);
}

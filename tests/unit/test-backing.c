/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Backing files: any range of any length, past the end too; what is
 * refused.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "backing.h"
#include "error.h"
#include "names.h"
#include "scratch.h"
#include "sim-image.h"
#include "common.h"

struct seen {
  struct {
    uint64_t count;
    unsigned type;
  } extents[16];
  unsigned n;
};

static int
see_extent (void *opaque, uint64_t count, unsigned type)
{
  struct seen *s = opaque;

  CHECK (s->n < 16);
  s->extents[s->n].count = count;
  s->extents[s->n++].type = type;
  return 0;
}

static int
stop (void *opaque UNUSED, uint64_t count UNUSED, unsigned type UNUSED)
{
  return EXTENT_STOP;
}

#define ODD 1700 /* three sectors and a part */
#define ALL_ZERO (EXTENT_HOLE | EXTENT_ZERO)

static void
test_past_the_end (void)
{
  struct sim_world world;
  struct sim_store store;
  struct sim_backing sim;
  struct backing *backing = &sim.backing;
  uint8_t bytes[ODD], buf[5000];
  size_t i;
  uint64_t offset, count;

  sim_world_init (&world);
  sim_store_init (&store, &world, ODD);
  sim_backing_init (&sim, &store);
  for (i = 0; i < ODD; i++)
    bytes[i] = i | 1;
  sim_store_put (&store, bytes, ODD, 0);

  for (offset = 0; offset < 2100; offset += 50)
    for (count = 1; count < 2100; count += 33) {
      memset (buf, 0xee, sizeof buf);
      CHECK_EQ (backing_read (backing, buf, count, offset), 0);
      for (i = 0; i < count; i++)
        CHECK_EQ (buf[i], offset + i < ODD ? bytes[offset + i] : 0);
      CHECK_EQ (buf[count], 0xee);
    }
  CHECK_EQ (backing_read (backing, buf, 10, UINT64_C (1) << 60), 0);

  /* Past the end nobody is asked. */
  sim_log_clear (&world);
  CHECK_EQ (backing_read (backing, buf, 512, ODD), 0);
  CHECK_EQ (backing_read (backing, buf, 512, ODD + 99), 0);
  CHECK_EQ (backing_cache (backing, 512, ODD), 0);
  CHECK_EQ (world.nr_events, 0);
  CHECK_EQ (backing_cache (backing, 1000, 1000), 0);
  CHECK_EQ (sim_log_get (&world, NULL, SIM_CACHE, 0).count, 700);

  sim_fail (&sim.port, SIM_READ, 1, EREMOTEIO, 0);
  CHECK_EQ (backing_read (backing, buf, 512, 1000), EREMOTEIO);
  sim_fail (&sim.port, SIM_CACHE, 1, EREMOTEIO, 0);
  CHECK_EQ (backing_cache (backing, 512, 1000), EREMOTEIO);

  backing_close (backing);
  CHECK (sim.closed);
  sim_store_clear (&store);
  sim_world_clear (&world);
}

static void
test_extents (void)
{
  struct sim_world world;
  struct sim_store store;
  struct sim_backing sim;
  struct seen s = { .n = 0 };

  sim_world_init (&world);
  sim_store_init (&store, &world, ODD);
  sim_backing_init (&sim, &store);
  sim_store_put (&store, "x", 1, 512);
  CHECK_EQ (backing_extents (&sim.backing, 5000, 0, see_extent, &s), 0);
  CHECK_EQ (s.n, 3);
  CHECK (s.extents[0].count == 512 && s.extents[0].type == ALL_ZERO);
  CHECK (s.extents[1].count == 512 && s.extents[1].type == 0);
  CHECK (s.extents[2].count == ODD - 1024 && s.extents[2].type == ALL_ZERO);

  s.n = 0;
  CHECK_EQ (backing_extents (&sim.backing, 5000, ODD, see_extent, &s), 0);
  CHECK_EQ (s.n, 1);
  CHECK (s.extents[0].count == 5000 && s.extents[0].type == ALL_ZERO);
  CHECK_EQ (backing_extents (&sim.backing, 5000, ODD, stop, NULL), EXTENT_STOP);
  CHECK_EQ (backing_extents (&sim.backing, 500, 0, stop, NULL), EXTENT_STOP);
  sim_fail (&sim.port, SIM_EXTENTS, 1, EIO, 0);
  CHECK_EQ (backing_extents (&sim.backing, 500, 0, see_extent, &s), EIO);
  sim_store_clear (&store);
  sim_world_clear (&world);
}

static void
test_none (void)
{
  struct seen s = { .n = 0 };
  char buf[100];
  size_t i;

  memset (buf, 1, sizeof buf);
  CHECK_EQ (backing_read (NULL, buf, sizeof buf, 12345), 0);
  for (i = 0; i < sizeof buf; i++)
    CHECK_EQ (buf[i], 0);
  CHECK_EQ (backing_extents (NULL, 77, 1, see_extent, &s), 0);
  CHECK (s.n == 1 && s.extents[0].count == 77 && s.extents[0].type == ALL_ZERO);
  CHECK_EQ (backing_cache (NULL, 1, 1), 0);
  backing_close (NULL);
}

/*--- Files. -----------------------------------------------------------*/

static const struct {
  const char *format;
  size_t offset, len;
  const char *magic;
} magics[] = {
  { "qcow2", 0, 4, "QFI\xfb" },
  { "qed", 0, 4, "QED\0" },
  { "vmdk", 0, 4, "KDMV" },
  { "vmdk", 0, 4, "COWD" },
  { "vmdk", 0, 21, "# Disk DescriptorFile" },
  { "vhdx", 0, 8, "vhdxfile" },
  { "vpc", 0, 8, "conectix" },
  { "vdi", 64, 4, "\x7f\x10\xda\xbe" },
  { "parallels", 0, 16, "WithoutFreeSpace" },
  { "parallels", 0, 16, "WithouFreSpacExt" },
  { "bochs", 0, 22, "Bochs Virtual HD Image" },
  { "luks", 0, 6, "LUKS\xba\xbe" },
  { "add-cow", 0, 8, "ADD_COW\xff" },
};
#define NR_MAGICS (sizeof magics / sizeof magics[0])

/* Open what is at PATH, of FORMAT or of NULL. */
static int
open_as (const char *path, const char *format, struct backing **backing)
{
  const struct backing_options options = {
    .format = format,
    .timeout_seconds = 1,
  };
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct location location;
  int r;

  CHECK_EQ (location_set (&location, path), 0);
  r = backing_open (backing, &location, &options, &failure);
  if (r) {
    CHECK_EQ (failure.err, r);
    CHECK_STR (failure.file_name, path);
    CHECK (failure_text (&failure) != NULL);
  }
  if (r == ADDCOW_E_FOREIGN_FORMAT)
    CHECK (failure.format != NULL);
  location_clear (&location);
  return r;
}

static void
test_magic (const char *path)
{
  size_t i, j;

  for (i = 0; i < NR_MAGICS; i++) {
    const size_t end = magics[i].offset + magics[i].len;
    uint8_t buf[BACKING_MAGIC_BYTES] = { 0 };
    struct backing *backing;

    memcpy (buf + magics[i].offset, magics[i].magic, magics[i].len);
    CHECK (backing_magic (buf, sizeof buf) != NULL);
    CHECK_STR (backing_magic (buf, sizeof buf), magics[i].format);
    CHECK_STR (backing_magic (buf, end), magics[i].format);
    CHECK (backing_magic (buf, end - 1) == NULL);
    CHECK (backing_magic (buf, 0) == NULL);
    scratch_file (path, buf, sizeof buf);
    CHECK_EQ (open_as (path, NULL, &backing), ADDCOW_E_FOREIGN_FORMAT);
    scratch_file (path, buf, end);
    CHECK_EQ (open_as (path, NULL, &backing), ADDCOW_E_FOREIGN_FORMAT);
    CHECK_EQ (open_as (path, "raw", &backing), 0); /* who insists */
    backing_close (backing);

    for (j = magics[i].offset; j < end; j++) {
      buf[j] ^= 0x80;
      CHECK (backing_magic (buf, sizeof buf) == NULL);
      buf[j] ^= 0x80;
    }
    memmove (buf + 1, buf, sizeof buf - 1);
    buf[0] = 0;
    CHECK (backing_magic (buf, sizeof buf) == NULL);
    scratch_file (path, buf, sizeof buf);
    CHECK_EQ (open_as (path, NULL, &backing), 0);
    backing_close (backing);
  }
}

static void
test_file (const char *folder, const char *path)
{
  char *fifo = scratch_path (folder, "fifo");
  char *missing = scratch_path (folder, "missing");
  struct backing *backing, *again;
  uint8_t bytes[ODD], buf[2048];
  struct seen s = { .n = 0 };
  struct flock fl = {
    .l_type = F_RDLCK,
    .l_whence = SEEK_SET,
    .l_start = 101,
    .l_len = 1,
  };
  uint64_t total = 0;
  unsigned i;
  int fd;

  memset (bytes, 'b', sizeof bytes);
  scratch_file (path, bytes, sizeof bytes);
  CHECK_EQ (open_as (path, NULL, &backing), 0);
  CHECK_EQ (backing->size_bytes, ODD);
  CHECK_EQ (open_as (path, NULL, &again), 0); /* shared */
  CHECK_EQ (backing_read (backing, buf, sizeof buf, 0), 0);
  CHECK (memcmp (buf, bytes, ODD) == 0);
  for (i = ODD; i < sizeof buf; i++)
    CHECK_EQ (buf[i], 0);
  CHECK_EQ (backing_extents (backing, 4096, 0, see_extent, &s), 0);
  for (i = 0; i < s.n; i++)
    total += s.extents[i].count;
  CHECK_EQ (total, ODD);
  CHECK_EQ (backing_cache (backing, 4096, 0), 0);

  /* A file that became shorter is an error, not zeroes. */
  CHECK_EQ (truncate (path, 600), 0);
  CHECK_EQ (backing_read (backing, buf, 512, 0), 0);
  CHECK_EQ (backing_read (backing, buf, 512, 512), EIO);
  backing_close (again);
  backing_close (backing);

  /* Somebody writes to it. */
  fd = scratch_open (path);
  CHECK_EQ (fcntl (fd, F_OFD_SETLK, &fl), 0);
  CHECK_EQ (open_as (path, NULL, &backing), ADDCOW_E_IN_USE);
  close (fd);
  CHECK_EQ (open_as (path, NULL, &backing), 0);
  backing_close (backing);

  /* An empty one is fine; what is no disk is not. */
  scratch_file (path, "", 0);
  CHECK_EQ (open_as (path, NULL, &backing), 0);
  CHECK_EQ (backing->size_bytes, 0);
  CHECK_EQ (backing_read (backing, buf, 512, 0), 0);
  backing_close (backing);
  CHECK_EQ (mkfifo (fifo, 0600), 0);
  CHECK_EQ (open_as (fifo, NULL, &backing), ADDCOW_E_NOT_DISK);
  CHECK_EQ (open_as (folder, NULL, &backing), ADDCOW_E_NOT_DISK);
  CHECK_EQ (open_as (missing, NULL, &backing), ENOENT);
  free (missing);
  free (fifo);
}

int
main (void)
{
  char *folder = scratch_folder ();
  char *path = scratch_path (folder, "file");

  check_watchdog (60);
  test_past_the_end ();
  test_extents ();
  test_none ();
  test_magic (path);
  test_file (folder, path);
  free (path);
  free (folder);
  return 0;
}

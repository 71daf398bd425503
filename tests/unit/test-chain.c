/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Overlays whose backing files are overlays: as many as there may be on the
 * stack of a thread, loops, files that change their names, extents.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>

#include "backing-addcow.h"
#include "check.h"
#include "common.h"
#include "disk.h"
#include "fake-nbd.h"
#include "scratch.h"

#define SECTOR 512

static char *folder;

static char *
file_in (const char *format, unsigned n)
{
  CLEANUP_FREE char *name = NULL;

  CHECK (asprintf (&name, format, n) >= 0);
  return scratch_path (folder, name);
}

/* The overlay number N, of NR_SECTORS, over BACKING ("" for none), with the
 * image IMAGE.  Its file is open for what else is to be written.
 */
static int
make_overlay (unsigned n, uint64_t nr_sectors, const char *backing,
              const char *image)
{
  const struct hints is_overlay = { .format = "add-cow" };
  CLEANUP_FREE char *path = file_in ("%u.add-cow", n);

  return scratch_overlay (
      path, nr_sectors, backing,
      backing[0] && !name_is_uri (backing) ? &is_overlay : NULL, image);
}

static void
set_bit (int fd, uint64_t sector)
{
  uint8_t byte;

  CHECK_EQ (pread (fd, &byte, 1, FORMAT_HEADER_BYTES + sector / 8), 1);
  byte |= 1 << sector % 8;
  CHECK_EQ (pwrite (fd, &byte, 1, FORMAT_HEADER_BYTES + sector / 8), 1);
}

/* A file whose sectors are full of BYTE. */
static void
make_image (const char *name, uint64_t nr_sectors, int byte)
{
  CLEANUP_FREE char *path = scratch_path (folder, name);
  CLEANUP_FREE char *buf = malloc (nr_sectors * SECTOR);

  CHECK (buf != NULL);
  memset (buf, byte, nr_sectors * SECTOR);
  scratch_file (path, buf, nr_sectors * SECTOR);
}

/* Overlays 0 to N - 1, each over the next one, share an image; number i has
 * sector i.
 */
static void
make_chain (unsigned n)
{
  const uint64_t nr_sectors = 2048;
  unsigned i;

  make_image ("chain.raw", nr_sectors, 'i');
  for (i = 0; i < n; i++) {
    char name[32] = "";
    int fd;

    if (i + 1 < n)
      snprintf (name, sizeof name, "%u.add-cow", i + 1);
    fd = make_overlay (i, nr_sectors, name, "chain.raw");
    set_bit (fd, i);
    close (fd);
  }
}

/* What the headers say is for those below the first one alone. */
static int
open_chain (struct disk **disk, unsigned n, struct failure *failure)
{
  CLEANUP_FREE char *path = file_in ("%u.add-cow", n);
  const struct disk_options options = {
    .read_only = true,
    .backing = { .format = "add-cow" },
  };

  return disk_open (disk, path, &options, failure);
}

/*--- Very long ones. --------------------------------------------------*/

static int
see_extent (void *opaque, uint64_t count, unsigned type)
{
  uint64_t *seen = opaque;

  CHECK_EQ (type, *seen < CHAIN_MAX * SECTOR ? 0 : EXTENT_HOLE | EXTENT_ZERO);
  *seen += count;
  return 0;
}

static void
check_content (struct disk *disk)
{
  CLEANUP_FREE char *buf = malloc (2048 * SECTOR);
  struct image_file image;
  struct fault fault;
  uint64_t seen = 0;
  size_t i;

  CHECK (buf != NULL);
  image_file_init (&image, disk->image_fd);
  overlay_attach (disk->overlay, &image.image);
  CHECK_EQ (
      overlay_read (disk->overlay, &image.image, buf, 2048 * SECTOR, 0, &fault),
      0);
  for (i = 0; i < 2048 * SECTOR; i++)
    CHECK_EQ (buf[i], i < CHAIN_MAX * SECTOR ? 'i' : 0);
  CHECK_EQ (
      overlay_cache (disk->overlay, &image.image, 2048 * SECTOR, 0, &fault), 0);
  CHECK_EQ (overlay_extents (disk->overlay, &image.image, 2048 * SECTOR, 0,
                             see_extent, &seen, &fault),
            0);
  CHECK_EQ (seen, 2048 * SECTOR);
  CHECK_EQ (overlay_detach (disk->overlay, &image.image, &fault), 0);
}

static void *
in_thread (void *opaque UNUSED)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk *disk;

  make_chain (CHAIN_MAX);
  CHECK_EQ (open_chain (&disk, 0, &failure), 0);
  check_content (disk);
  disk_close (disk);

  make_chain (CHAIN_MAX + 1);
  CHECK_EQ (open_chain (&disk, 0, &failure), ADDCOW_E_CHAIN_LONG);
  CHECK (strstr (failure.file_name, "/1024.add-cow") != NULL);
  return NULL;
}

/* A quarter of the stack that threads usually have. */
#define STACK_BYTES (2 << 20)

static void
test_long (void)
{
  struct rlimit limit;
  pthread_attr_t attr;
  pthread_t thread;

  CHECK_EQ (getrlimit (RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = MIN (limit.rlim_max, 8192);
  CHECK_EQ (setrlimit (RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_cur < 2 * CHAIN_MAX + 100) {
    printf ("not tested for want of descriptors: long chains\n");
    return;
  }
  CHECK_EQ (pthread_attr_init (&attr), 0);
  CHECK_EQ (pthread_attr_setstacksize (&attr, STACK_BYTES), 0);
  CHECK_EQ (pthread_create (&thread, &attr, in_thread, NULL), 0);
  CHECK_EQ (pthread_join (thread, NULL), 0);
  CHECK_EQ (pthread_attr_destroy (&attr), 0);
}

/*--- Loops. -----------------------------------------------------------*/

/* N overlays, whose last one has overlay TO as its backing file. */
static void
test_loop (unsigned n, unsigned to)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  CLEANUP_FREE char *path = file_in ("%u.add-cow", to);
  CLEANUP_FREE char *last = NULL;
  struct disk *disk;

  make_chain (n);
  CHECK (asprintf (&last, "%u.add-cow", to) >= 0);
  close (make_overlay (n - 1, 2048, last, "chain.raw"));
  CHECK_EQ (open_chain (&disk, 0, &failure), ADDCOW_E_CHAIN_LOOP);
  CHECK_STR (failure.file_name, path);
}

static void
test_loops (void)
{
  test_loop (2, 0);
  test_loop (3, 0);
  test_loop (3, 1);
  test_loop (9, 3);
}

/* An overlay may not write to the metadata of one below. */
static void
test_image_below (void)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk *disk;

  make_chain (3);
  close (make_overlay (0, 8, "1.add-cow", "2.add-cow"));
  CHECK_EQ (open_chain (&disk, 0, &failure), ADDCOW_E_IMAGE_IS_METADATA);
  CHECK (strstr (failure.file_name, "/2.add-cow") != NULL);
}

/* What a name led to, and not what has the name now. */
static void
test_pinned (void)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  CLEANUP_FREE char *path = file_in ("%u.add-cow", 0);
  CLEANUP_FREE char *away = file_in ("%u.add-cow", 1);
  const struct backing_options options = {
    .format = "add-cow",
    .confine = folder,
  };
  struct location location;
  struct backing *backing;
  char byte;
  int r;

  make_image ("old.raw", 8, 'o');
  make_image ("new.raw", 8, 'n');
  set_bit (make_overlay (0, 8, "", "old.raw"), 0);
  r = location_find (&location, folder, "0.add-cow", folder);
  if (r == ENOSYS)
    return; /* valgrind does not know the call that confines */
  CHECK_EQ (r, 0);
  CHECK_EQ (rename (path, away), 0);
  set_bit (make_overlay (0, 8, "", "new.raw"), 0);
  CHECK_EQ (backing_open (&backing, &location, &options, &failure), 0);
  location_clear (&location);
  CHECK_EQ (backing_read (backing, &byte, 1, 0), 0);
  CHECK_EQ (byte, 'o');
  backing_close (backing);
}

/*--- Extents. ---------------------------------------------------------*/

/* More of them than one call looks at. */
#define MANY UINT64_C (400000)

struct bounded {
  uint64_t seen;
  unsigned nr_told;
  unsigned stop_after;
};

static int
see_bounded (void *opaque, uint64_t count, unsigned type UNUSED)
{
  struct bounded *b = opaque;

  CHECK (count > 0);
  if (++b->nr_told == b->stop_after)
    return EXTENT_STOP;
  CHECK (b->stop_after == 0 || b->nr_told < b->stop_after);
  b->seen += count;
  return 0;
}

static uint64_t
extents_of (struct disk *disk, unsigned stop_after)
{
  struct bounded b = { .stop_after = stop_after };
  struct image_file image;
  struct fault fault;

  image_file_init (&image, disk->image_fd);
  overlay_attach (disk->overlay, &image.image);
  CHECK_EQ (overlay_extents (disk->overlay, &image.image, MANY * SECTOR, 0,
                             see_bounded, &b, &fault),
            0);
  CHECK_EQ (overlay_detach (disk->overlay, &image.image, &fault), 0);
  return b.seen;
}

/* The overlay in the middle has every second sector, and what lies between
 * is data like what it has, or is none.
 */
static void
test_extents (bool data)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk *disk;
  uint64_t i, seen;
  int fd;

  make_image ("many.raw", MANY, 'm');
  close (make_overlay (0, MANY, "1.add-cow", "many.raw"));
  fd = make_overlay (1, MANY, "2.add-cow", "many.raw");
  for (i = 0; i < MANY; i += 2)
    set_bit (fd, i);
  close (fd);
  fd = make_overlay (2, MANY, "", "many.raw");
  for (i = 0; data && i < MANY; i++)
    set_bit (fd, i);
  close (fd);

  CHECK_EQ (open_chain (&disk, 0, &failure), 0);
  seen = extents_of (disk, 0);
  CHECK (seen > 0 && seen < MANY * SECTOR / 2);
  CHECK_EQ (extents_of (disk, 1), 0);
  if (!data)
    CHECK_EQ (extents_of (disk, 3), 2 * SECTOR);
  disk_close (disk);
}

/*--- Interrupted. -----------------------------------------------------*/

struct waiter {
  struct disk *disk;
  struct image_file image;
  int r;
  struct fault fault;
};

static void *
read_a_sector (void *opaque)
{
  struct waiter *w = opaque;
  char buf[SECTOR];

  w->r = overlay_read (w->disk->overlay, &w->image.image, buf, sizeof buf, 0,
                       &w->fault);
  return NULL;
}

/* Who waits for a server below two overlays need not wait for long. */
static void
test_interrupt (void)
{
  const struct fake_nbd_how how = {
    .size_bytes = 8 * SECTOR,
    .extent_bytes = 65536,
    .max_sent = -1,
  };
  CLEANUP_FREE char *path = file_in ("%u.add-cow", 0);
  CLEANUP_FREE char *socket_path = scratch_path (folder, "sock");
  CLEANUP_FREE char *uri = NULL;
  CLEANUP_FAILURE struct failure failure = { 0 };
  const struct disk_options options = {
    .backing = { .format = "add-cow", .timeout_seconds = 60 },
  };
  const double began = seconds_now ();
  struct fake_nbd_how mute = how;
  struct fake_nbd server;
  struct waiter waiter = { .r = 0 };
  struct fault fault;
  pthread_t thread;

  mute.mute = true;
  make_image ("0.raw", 8, '0');
  make_image ("1.raw", 8, '1');
  CHECK (asprintf (&uri, "nbd+unix:///?socket=%s", socket_path) >= 0);
  close (make_overlay (0, 8, "1.add-cow", "0.raw"));
  close (make_overlay (1, 8, uri, "1.raw"));
  fake_nbd_start (&server, socket_path, 1, &how);
  CHECK_EQ (disk_open (&waiter.disk, path, &options, &failure), 0);
  fake_nbd_change (&server, &mute);
  image_file_init (&waiter.image, waiter.disk->image_fd);
  overlay_attach (waiter.disk->overlay, &waiter.image.image);

  CHECK_EQ (pthread_create (&thread, NULL, read_a_sector, &waiter), 0);
  while (server.nr_muted == 0)
    usleep (1000);
  overlay_interrupt (waiter.disk->overlay);
  CHECK_EQ (pthread_join (thread, NULL), 0);
  CHECK (waiter.r == -1 && waiter.fault.part == FAULT_BACKING);
  CHECK_EQ (waiter.fault.err, EIO);
  read_a_sector (&waiter);
  CHECK (waiter.r == -1 && waiter.fault.err == EIO);
  CHECK (seconds_now () - began < 30);

  /* There is nothing to interrupt where nothing is read any more. */
  CHECK (overlay_drop_backing (waiter.disk->overlay, false));
  disk_close_backing (waiter.disk);
  overlay_interrupt (waiter.disk->overlay);
  CHECK_EQ (overlay_detach (waiter.disk->overlay, &waiter.image.image, &fault),
            0);
  disk_close (waiter.disk);
  fake_nbd_stop (&server);
}

int
main (void)
{
  folder = scratch_folder ();
  test_long ();
  test_loops ();
  test_image_below ();
  test_pinned ();
  test_extents (true);
  test_extents (false);
  test_interrupt ();
  free (folder);
  return 0;
}

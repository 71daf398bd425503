/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A backing file over NBD, whose server does what it should not: every byte
 * is right or there is an error, and in time.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "backing.h"
#include "check.h"
#include "common.h"
#include "error.h"
#include "fake-nbd.h"
#include "names.h"
#include "scratch.h"

static char *socket_path; /* of the only server that there is at a time */

/*--- What happened is counted. ----------------------------------------*/

struct told {
  _Atomic unsigned nr_losses, nr_returns, nr_refusals, nr_failures;
  _Atomic unsigned nr; /* of all kinds */
};

static void
tell (void *opaque, const char *name UNUSED, const char *text)
{
  struct told *told = opaque;

  told->nr++;
  if (strncmp (text, "connection lost: ", 17) == 0)
    told->nr_losses++;
  else if (strcmp (text, "connected again") == 0)
    told->nr_returns++;
  else if (strstr (text, "the server is refused: "))
    told->nr_refusals++;
  else if (strncmp (text, "cannot connect: ", 16) == 0)
    told->nr_failures++;
}

/*--- One overlay's backing file. --------------------------------------*/

struct disk {
  struct fake_nbd server;
  struct fake_nbd_how how; /* as it was at first */
  struct backing *backing;
  struct told told;
};

static int
try_to_open (struct disk *disk, unsigned timeout_seconds, bool is_raw)
{
  const struct backing_options options = {
    .format = is_raw ? "raw" : NULL,
    .timeout_seconds = timeout_seconds,
    .log = tell,
    .log_opaque = &disk->told,
  };
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct location location = LOCATION_NONE;
  char *uri;
  int r;

  CHECK (asprintf (&uri, "nbd+unix:///?socket=%s", socket_path) >= 0);
  CHECK_EQ (location_set (&location, uri), 0);
  r = backing_open (&disk->backing, &location, &options, &failure);
  location_clear (&location);
  free (uri);
  return r;
}

static void
open_disk (struct disk *disk, uint64_t seed, const struct fake_nbd_how *how,
           unsigned timeout_seconds)
{
  memset (disk, 0, sizeof *disk);
  disk->how = *how;
  fake_nbd_start (&disk->server, socket_path, seed, how);
  CHECK_EQ (try_to_open (disk, timeout_seconds, false), 0);
  CHECK_EQ (disk->backing->size_bytes, how->size_bytes);
}

static void
close_disk (struct disk *disk)
{
  backing_close (disk->backing);
  fake_nbd_stop (&disk->server);
}

/* Read, and compare what was read.  Returns what reading returned. */
static int
read_disk (struct disk *disk, size_t count, uint64_t offset)
{
  CLEANUP_FREE char *buf = malloc (count), *expected = calloc (1, count);
  const uint64_t size = disk->how.size_bytes;
  const size_t n = MIN (count, size - offset);
  int r;

  CHECK (buf && expected);
  memset (buf, 0xee, count);
  r = backing_read (disk->backing, buf, count, offset);
  if (r)
    return r;
  fake_nbd_content (disk->server.seed, disk->how.extent_bytes, expected, n,
                    offset);
  CHECK (memcmp (buf, expected, count) == 0);
  return 0;
}

struct place {
  uint64_t offset;
  uint64_t end;
  uint64_t nr_zeroes;
};

static int
count_extent (void *opaque, uint64_t count, unsigned type)
{
  struct place *p = opaque;

  CHECK (count > 0);
  CHECK (count <= p->end - p->offset);
  p->offset += count;
  if (type & EXTENT_ZERO)
    p->nr_zeroes += count;
  return 0;
}

/*--- Many who read. ---------------------------------------------------*/

#define NR_READERS 4

struct reader {
  pthread_t thread;
  struct disk *disk;
  struct rng rng;
  unsigned nr_reads;
};

static void *
read_around (void *opaque)
{
  struct reader *rd = opaque;
  const uint64_t size = rd->disk->how.size_bytes;
  unsigned i;

  for (i = 0; i < rd->nr_reads; i++) {
    const size_t count = rng_range (
        &rd->rng, 1, rng_one_in (&rd->rng, 30) ? 3000000 : 70000);
    const uint64_t last = size > 3000000 && rng_one_in (&rd->rng, 3) ? 3000000
                                                                     : size;
    /* At the beginning and the end, too. */
    uint64_t offset = rng_below (&rd->rng, last);

    if (rng_one_in (&rd->rng, 2))
      offset = size - 1 - offset;
    CHECK_EQ (read_disk (rd->disk, count, offset), 0);
    if (rng_one_in (&rd->rng, 5))
      CHECK_EQ (backing_cache (rd->disk->backing, count, offset), 0);
  }
  return NULL;
}

static void
read_in_parallel (struct disk *disk, uint64_t seed, unsigned nr_reads)
{
  struct reader readers[NR_READERS];
  unsigned i;

  for (i = 0; i < NR_READERS; i++) {
    struct reader *rd = &readers[i];

    *rd = (struct reader){
      .disk = disk,
      .rng = { seed + i },
      .nr_reads = nr_reads,
    };
    CHECK_EQ (pthread_create (&rd->thread, NULL, read_around, rd), 0);
  }
  for (i = 0; i < NR_READERS; i++)
    pthread_join (readers[i].thread, NULL);
}

static const struct fake_nbd_how honest = {
  .size_bytes = 10000000,
  .extent_bytes = 65536,
  .max_sent = -1,
};

/*--- Tests. -----------------------------------------------------------*/

static void
test_reads (uint64_t seed)
{
  static const uint64_t sizes[] = { 1, 777, 10000000, 100000001, INT64_MAX };
  static const uint32_t limits[][2] = {
    { 0, 0 },       { 1, 0xffffffff },  { 1, 5000 },
    { 4096, 4096 }, { 65536, 1 << 25 },
  };
  struct rng rng = { seed };
  unsigned i;

  for (i = 0; i < 8; i++) {
    const unsigned limit = rng_below (&rng, ARRAY_SIZE (limits));
    const struct fake_nbd_how how = {
      .size_bytes = sizes[rng_below (&rng, ARRAY_SIZE (sizes))],
      .extent_bytes = rng_one_in (&rng, 2) ? 65536 : 50001,
      .minimum = limits[limit][0],
      .maximum = limits[limit][1],
      .simple = rng_one_in (&rng, 4),
      .shuffles = rng_one_in (&rng, 2),
      .max_sent = -1,
    };
    struct disk disk;

    open_disk (&disk, seed + i, &how, 30);
    read_in_parallel (&disk, rng_next (&rng), 40);
    close_disk (&disk);
    CHECK_EQ (disk.told.nr_losses, 0);
    CHECK_EQ (disk.server.nr_connections, 1);
  }
}

/* What is left at the end of a disk is read though it is no whole block. */
static void
test_tail (uint64_t seed)
{
  struct fake_nbd_how how = honest;
  struct disk disk;

  how.size_bytes = 65536 * 3 + 700;
  how.minimum = 65536;
  how.maximum = 1 << 20;
  open_disk (&disk, seed, &how, 30);
  CHECK_EQ (read_disk (&disk, how.size_bytes, 0), 0);
  CHECK_EQ (read_disk (&disk, 1, how.size_bytes - 1), 0);
  close_disk (&disk);
}

/* Whenever it closes the connection, a server that is not open is an error
 * and one that was is asked again.
 */
static void
test_closes (uint64_t seed)
{
  struct fake_nbd_how how = honest;
  struct rng rng = { seed };
  struct disk disk;
  unsigned i;

  for (how.max_sent = 0; how.max_sent < 200; how.max_sent += 3) {
    int r;

    memset (&disk, 0, sizeof disk);
    fake_nbd_start (&disk.server, socket_path, seed, &how);
    r = try_to_open (&disk, 30, true);
    if (r == 0)
      backing_close (disk.backing);
    fake_nbd_stop (&disk.server);
    CHECK (r >= 0 && r < 1000);
    if (how.max_sent < 100)
      CHECK (r > 0);
  }
  open_disk (&disk, seed, &honest, 30);
  for (i = 0; i < 3; i++) {
    how.max_sent = rng_below (&rng, 300000);
    fake_nbd_change (&disk.server, &how);
    read_in_parallel (&disk, rng_next (&rng), 10);
  }
  close_disk (&disk);
}

/* An error that the server sends is the reader's; one about extents is
 * nobody's.
 */
static void
test_errors (uint64_t seed)
{
  struct fake_nbd_how how = honest;
  struct place place = { .end = how.size_bytes };
  struct disk disk;

  how.extents_error = FAKE_NBD_EIO;
  open_disk (&disk, seed, &how, 30);
  CHECK_EQ (
      backing_extents (disk.backing, how.size_bytes, 0, count_extent, &place),
      0);
  CHECK_EQ (place.offset, how.size_bytes);
  CHECK_EQ (place.nr_zeroes, 0);
  read_in_parallel (&disk, seed, 10);
  how.read_error = FAKE_NBD_EIO;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (read_disk (&disk, 5000000, 0), EIO);
  how.read_error = 123456;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (read_disk (&disk, 5000000, 0), EINVAL);
  how.read_error = 0;
  fake_nbd_change (&disk.server, &how);
  read_in_parallel (&disk, seed, 10);
  close_disk (&disk);
}

/* An answer without all that was asked for is none, however much it is. */
static void
test_left_out (uint64_t seed)
{
  struct fake_nbd_how how = honest;
  struct disk disk;

  how.extents_error = FAKE_NBD_EIO;
  open_disk (&disk, seed, &how, 30);
  how.leaves_out = true;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (read_disk (&disk, 1, 5000), EIO);
  CHECK_EQ (read_disk (&disk, 5000, 70000), EIO);
  CHECK_EQ (read_disk (&disk, 5000000, 1), EIO);
  how.leaves_out = false;
  how.repeats = true;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (read_disk (&disk, 2, 5000), EIO);
  CHECK_EQ (read_disk (&disk, 5001, 70000), EIO);
  CHECK_EQ (read_disk (&disk, 5000000, 1), EIO);
  fake_nbd_change (&disk.server, &disk.how);
  read_in_parallel (&disk, seed, 10);
  close_disk (&disk);
}

/* However many extents it tells of, they take little memory. */
static void
test_crumbs (uint64_t seed)
{
  struct fake_nbd_how how = honest;
  struct place place = { .end = 1000000 };
  struct disk disk;

  how.minimum = 1;
  how.maximum = 1 << 20;
  how.crumbles = true;
  open_disk (&disk, seed, &how, 30);
  CHECK_EQ (backing_extents (disk.backing, place.end, 0, count_extent, &place),
            0);
  CHECK_EQ (place.offset, place.end);
  CHECK_EQ (place.nr_zeroes, 0);
  close_disk (&disk);
}

static void *
fail_to_read (void *opaque)
{
  struct reader *rd = opaque;

  CHECK_EQ (read_disk (rd->disk, 1, rd->nr_reads), EIO);
  return NULL;
}

/* However many wait for a server that does not answer, none of them waits
 * for the others' turns, and later it is asked again.
 */
static void
test_mute (uint64_t seed)
{
  enum { NR = 8 };
  struct fake_nbd_how how = honest;
  struct reader readers[NR];
  struct disk disk;
  double began;
  unsigned i;

  memset (&disk, 0, sizeof disk);
  disk.how = how;
  fake_nbd_start (&disk.server, socket_path, seed, &how);
  CHECK_EQ (try_to_open (&disk, 1, true), 0);
  how.mute = true;
  fake_nbd_change (&disk.server, &how);
  began = seconds_now ();
  for (i = 0; i < NR; i++) {
    readers[i] = (struct reader){ .disk = &disk, .nr_reads = i };
    CHECK_EQ (
        pthread_create (&readers[i].thread, NULL, fail_to_read, &readers[i]),
        0);
  }
  for (i = 0; i < NR; i++)
    pthread_join (readers[i].thread, NULL);
  CHECK (seconds_now () - began > 0.9);
  CHECK (seconds_now () - began < 4);
  fake_nbd_change (&disk.server, &disk.how);
  read_in_parallel (&disk, seed, 10);
  close_disk (&disk);
}

/* A server that connects but never answers a request is not asked again
 * and again without a pause.
 */
static void
test_useless (uint64_t seed)
{
  struct fake_nbd_how how = honest;
  struct disk disk;
  unsigned nr;

  memset (&disk, 0, sizeof disk);
  disk.how = how;
  fake_nbd_start (&disk.server, socket_path, seed, &how);
  CHECK_EQ (try_to_open (&disk, 2, true), 0);
  how.extents_error = how.read_error = FAKE_NBD_ESHUTDOWN;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (read_disk (&disk, 5000, 0), EIO);
  nr = disk.server.nr_connections;
  CHECK (nr >= 3);
  CHECK (nr <= 20);
  CHECK (disk.told.nr_losses <= nr);
  fake_nbd_change (&disk.server, &disk.how);
  CHECK_EQ (read_disk (&disk, 5000, 0), 0);
  close_disk (&disk);
}

/* Nobody waits for what is only asked for to be soon read: when it is lost,
 * it is not asked for again.
 */
static void
test_cache (uint64_t seed)
{
  struct fake_nbd_how how = honest;
  struct disk disk;

  open_disk (&disk, seed, &how, 30);
  how.hates_cache = true;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (read_disk (&disk, 5000000, 0), 0);
  CHECK_EQ (disk.server.nr_connections, 2);
  CHECK_EQ (backing_cache (disk.backing, 3000000, 0), 0);
  while (disk.told.nr_losses < 2)
    usleep (1000);
  usleep (300000);
  CHECK_EQ (disk.server.nr_connections, 2);
  CHECK_EQ (read_disk (&disk, 5000000, 0), 0);
  CHECK_EQ (disk.server.nr_connections, 3);
  CHECK_EQ (disk.server.nr_caches, 1);
  close_disk (&disk);
}

/* Another disk in the place of the first is not taken for it. */
static void
test_another (uint64_t seed)
{
  struct fake_nbd_how how = honest;
  struct disk disk;

  how.minimum = 4096;
  how.maximum = 1 << 20;
  how.extents_error = FAKE_NBD_EIO;
  memset (&disk, 0, sizeof disk);
  disk.how = how;
  fake_nbd_start (&disk.server, socket_path, seed, &how);
  CHECK_EQ (try_to_open (&disk, 1, true), 0);
  CHECK_EQ (read_disk (&disk, 5000, 0), 0);
  how.size_bytes++;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (read_disk (&disk, 5000, 0), EIO);
  CHECK_EQ (disk.told.nr_refusals, 1);
  how = disk.how;
  how.maximum = 1 << 19;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (read_disk (&disk, 5000, 0), EIO);
  how = disk.how;
  how.minimum = 8192;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (read_disk (&disk, 5000, 0), EIO);
  CHECK_EQ (disk.told.nr_returns, 0);
  how.minimum = 512;
  fake_nbd_change (&disk.server, &how);
  while (read_disk (&disk, 5000, 0) == EIO)
    ;
  CHECK_EQ (read_disk (&disk, 5000000, 0), 0);
  CHECK_EQ (disk.told.nr_returns, 1);
  close_disk (&disk);
}

/* Who opened ends, and his child goes on with the connection.  The server is
 * a process too, for who has threads does not fork.
 */
static pid_t
start_server_process (uint64_t seed)
{
  struct fake_nbd server;
  pid_t pid;

  fflush (stdout);
  pid = fork ();
  CHECK (pid >= 0);
  if (pid > 0)
    return pid;
  check_watchdog (100);
  fake_nbd_start (&server, socket_path, seed, &honest);
  for (;;)
    pause ();
}

static void
read_in_child (struct disk *disk)
{
  const pid_t pid = fork ();
  int status;

  CHECK (pid >= 0);
  if (pid == 0) {
    check_watchdog (100);
    read_in_parallel (disk, disk->server.seed, 20);
    CHECK_EQ (disk->told.nr_losses, 0);
    backing_close (disk->backing);
    _exit (EXIT_SUCCESS);
  }
  CHECK_EQ (waitpid (pid, &status, 0), pid);
  CHECK_EQ (status, 0);
}

static void
test_fork (uint64_t seed)
{
  struct disk disk = { .how = honest, .server.seed = seed };
  pid_t server;

  unlink (socket_path);
  server = start_server_process (seed);
  while (try_to_open (&disk, 30, false))
    usleep (10000);
  read_in_child (&disk);
  backing_close (disk.backing);
  kill (server, SIGKILL);
  waitpid (server, NULL, 0);
}

/* Closing waits for nothing that a server does. */
static void
test_close (uint64_t seed)
{
  struct fake_nbd_how how = honest;
  struct disk disk;
  const double began = seconds_now ();

  open_disk (&disk, seed, &how, 30);
  CHECK_EQ (read_disk (&disk, 1, 0), 0);
  how.mute = true;
  fake_nbd_change (&disk.server, &how);
  CHECK_EQ (backing_cache (disk.backing, 5000000, 0), 0);
  backing_close (disk.backing);
  fake_nbd_stop (&disk.server);
  CHECK (seconds_now () - began < 10);
}

/*--- Interrupted. -----------------------------------------------------*/

/* Somebody who waits for the server; each asks for another part. */
struct waiter {
  pthread_t thread;
  struct disk *disk;
  bool extents; /* else it reads */
  size_t count;
  uint64_t offset;
  int r;
};

static void *
ask (void *opaque)
{
  struct waiter *w = opaque;
  struct place place = { .offset = w->offset, .end = w->offset + w->count };

  if (w->extents)
    w->r = backing_extents (w->disk->backing, w->count, w->offset, count_extent,
                            &place);
  else
    w->r = read_disk (w->disk, w->count, w->offset);
  return NULL;
}

#define NR_WAITERS 4
#define MANY_SECONDS 60 /* before which nobody gives up */
#define AT_ONCE 10      /* seconds, on a machine that is busy */

static void
start_waiters (struct waiter *waiters, struct disk *disk, bool extents)
{
  unsigned i;

  for (i = 0; i < NR_WAITERS; i++) {
    waiters[i] = (struct waiter){
      .disk = disk,
      .extents = extents,
      .count = i ? 70000 : 3000000,
      .offset = i * 2000001,
      .r = -1,
    };
    CHECK_EQ (pthread_create (&waiters[i].thread, NULL, ask, &waiters[i]), 0);
  }
}

/* Interrupt the waiters: they fail at once, and so does what comes later;
 * nothing is told, and it can be closed.  CONNECTION, unless -1, is one that
 * is being made, and is given up.
 */
static void
check_interrupt (struct waiter *waiters, struct disk *disk, int connection)
{
  const double began = seconds_now ();
  const unsigned nr_told = disk->told.nr;
  struct waiter later = { .disk = disk, .count = 5000, .offset = 9000000 };
  unsigned i;
  char byte;

  backing_interrupt (disk->backing);
  for (i = 0; i < NR_WAITERS; i++) {
    pthread_join (waiters[i].thread, NULL);
    CHECK_EQ (waiters[i].r, EIO);
  }
  for (i = 0; i < 4; i++) {
    later.extents = i % 2;
    ask (&later);
    /* Where the server would not tell of them, extents are no request. */
    CHECK_EQ (later.r, later.extents && disk->how.simple ? 0 : EIO);
    CHECK_EQ (backing_cache (disk->backing, 5000000, 0), 0);
    backing_interrupt (disk->backing);
  }
  if (connection >= 0)
    CHECK_EQ (recv (connection, &byte, 1, 0), 0);
  backing_close (disk->backing);
  CHECK_EQ (disk->told.nr, nr_told);
  CHECK (seconds_now () - began < AT_ONCE);
}

/* The server does not answer: with SIMPLE, it is a read that it does not
 * answer, else what is asked is extents.
 */
static void
test_interrupt_mute (uint64_t seed, bool simple, bool extents)
{
  struct fake_nbd_how how = honest;
  struct waiter waiters[NR_WAITERS];
  struct disk disk;

  how.simple = simple;
  how.mute = true;
  memset (&disk, 0, sizeof disk);
  disk.how = how;
  fake_nbd_start (&disk.server, socket_path, seed, &how);
  CHECK_EQ (try_to_open (&disk, MANY_SECONDS, true), 0);
  start_waiters (waiters, &disk, extents);
  /* Who asks for what another one asked for waits for him. */
  while (disk.server.nr_muted < (simple ? NR_WAITERS : 1))
    usleep (1000);
  check_interrupt (waiters, &disk, -1);
  CHECK_EQ (disk.told.nr, 0);
  CHECK_EQ (disk.server.nr_connections, 1);
  fake_nbd_stop (&disk.server);
}

/* A socket to which one can connect, and that is all. */
static int
listen_only (void)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  CHECK (fd >= 0);
  CHECK (strlen (socket_path) < sizeof address.sun_path);
  strcpy (address.sun_path, socket_path);
  unlink (socket_path);
  CHECK_EQ (bind (fd, (struct sockaddr *) &address, sizeof address), 0);
  CHECK_EQ (listen (fd, 16), 0);
  return fd;
}

/* The server is gone, or is another one that says nothing at all. */
static void
test_interrupt_gone (uint64_t seed, bool another)
{
  struct waiter waiters[NR_WAITERS];
  int fd = -1, connection = -1;
  struct fake_nbd_how how = honest;
  struct disk disk;

  how.simple = true; /* no extents that are known already */
  open_disk (&disk, seed, &how, MANY_SECONDS);
  CHECK_EQ (read_disk (&disk, 5000, 0), 0);
  fake_nbd_stop (&disk.server);
  if (another)
    fd = listen_only ();
  start_waiters (waiters, &disk, false);
  if (another) {
    connection = accept4 (fd, NULL, NULL, SOCK_CLOEXEC);
    CHECK (connection >= 0);
  }
  while (disk.told.nr_losses < 1 || (!another && disk.told.nr_failures < 1))
    usleep (1000);
  check_interrupt (waiters, &disk, connection);
  if (another) {
    close (connection);
    close (fd);
  }
}

/* Before there was a request. */
static void
test_interrupt_first (uint64_t seed)
{
  struct disk disk;

  memset (&disk, 0, sizeof disk);
  disk.how = honest;
  fake_nbd_start (&disk.server, socket_path, seed, &honest);
  CHECK_EQ (try_to_open (&disk, MANY_SECONDS, true), 0);
  backing_interrupt (disk.backing);
  CHECK_EQ (read_disk (&disk, 5000, 0), EIO);
  backing_close (disk.backing);
  CHECK_EQ (disk.told.nr, 0);
  CHECK_EQ (disk.server.nr_reads, 0);
  fake_nbd_stop (&disk.server);
}

static void *
read_until_error (void *opaque)
{
  struct reader *rd = opaque;
  int r;

  do {
    const uint64_t offset = rng_below (&rd->rng, rd->disk->how.size_bytes - 1);

    r = read_disk (rd->disk, rng_range (&rd->rng, 1, 200000), offset);
    if (rng_one_in (&rd->rng, 5))
      CHECK_EQ (backing_cache (rd->disk->backing, 70000, offset), 0);
  } while (r == 0);
  CHECK_EQ (r, EIO);
  CHECK_EQ (read_disk (rd->disk, 5000000, 0), EIO);
  return NULL;
}

/* At any moment while many read: all that was read is right. */
static void
test_interrupt_any_time (uint64_t seed)
{
  struct rng rng = { seed };
  unsigned i, j;

  for (i = 0; i < 20; i++) {
    struct reader readers[NR_READERS];
    struct fake_nbd_how how = honest;
    struct disk disk;

    how.shuffles = rng_one_in (&rng, 2);
    how.simple = rng_one_in (&rng, 2);
    open_disk (&disk, seed, &how, MANY_SECONDS);
    for (j = 0; j < NR_READERS; j++) {
      readers[j] = (struct reader){
        .disk = &disk,
        .rng = { rng_next (&rng) },
      };
      CHECK_EQ (pthread_create (&readers[j].thread, NULL, read_until_error,
                                &readers[j]),
                0);
    }
    usleep (rng_below (&rng, 20000));
    backing_interrupt (disk.backing);
    for (j = 0; j < NR_READERS; j++)
      pthread_join (readers[j].thread, NULL);
    close_disk (&disk);
    CHECK_EQ (disk.told.nr, 0);
  }
}

int
main (int argc, char *argv[])
{
  const struct test_options o = test_options (argc, argv);
  char *folder = scratch_folder ();
  uint64_t i;

  check_watchdog (300);
  socket_path = scratch_path (folder, "sock");
  for (i = 0; i < MAX (o.iterations, 1); i++) {
    const uint64_t seed = o.seed + i;

    printf ("seed %" PRIu64 "\n", seed);
    test_reads (seed);
    test_tail (seed);
    test_closes (seed);
    test_errors (seed);
    test_left_out (seed);
    test_crumbs (seed);
    test_mute (seed);
    test_useless (seed);
    test_cache (seed);
    test_another (seed);
    test_fork (seed);
    test_close (seed);
    test_interrupt_mute (seed, true, false);
    test_interrupt_mute (seed, false, false);
    test_interrupt_mute (seed, false, true);
    test_interrupt_gone (seed, false);
    test_interrupt_gone (seed, true);
    test_interrupt_first (seed);
    test_interrupt_any_time (seed);
  }
  free (socket_path);
  free (folder);
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Filling in the background: what is filled when, and what is told.
 *
 * The threads of the filler are workers, and the time is the test's: it
 * goes on when all of them wait, to when the first of them wants to go on,
 * or as operations take it.  So hours pass in no time.
 */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>

#include "bitmap.h"
#include "common.h"
#include "filler.h"
#include "format.h"
#include "map.h"
#include "sim-image.h"
#include "wraps.h"

#define SECTOR 512
#define KIB 1024
#define MIB (1024 * KIB)
#define NR_WORKERS 4

/*--- Time. ------------------------------------------------------------*/

#define BEGIN_NS (1000 * SECOND)

static _Atomic int64_t now_ns;

/* Who waits until when. */
#define MAX_WAITERS 16
static struct {
  pthread_mutex_t lock; /* protects all that follows */
  struct waiter {
    pthread_cond_t *cond; /* NULL: nobody */
    int64_t until_ns;
  } waiters[MAX_WAITERS];
} waiting = { .lock = PTHREAD_MUTEX_INITIALIZER };

int
__wrap_clock_gettime (clockid_t clock, struct timespec *ts)
{
  tell_time (clock, ts, now_ns);
  return 0;
}

int
__wrap_pthread_cond_timedwait (pthread_cond_t *cond, pthread_mutex_t *mutex,
                               const struct timespec *until)
{
  const int64_t ns = ns_of (until);
  unsigned i;

  if (ns <= now_ns)
    return ETIMEDOUT;
  __real_pthread_mutex_lock (&waiting.lock);
  for (i = 0; waiting.waiters[i].cond; i++)
    CHECK (i < MAX_WAITERS - 1);
  waiting.waiters[i] = (struct waiter){ .cond = cond, .until_ns = ns };
  pthread_mutex_unlock (&waiting.lock);
  pthread_cond_wait (cond, mutex);
  __real_pthread_mutex_lock (&waiting.lock);
  waiting.waiters[i].cond = NULL;
  pthread_mutex_unlock (&waiting.lock);
  return ns <= now_ns ? ETIMEDOUT : 0;
}

/* All workers wait; let time go on until the first one has waited enough,
 * but not past UNTIL.  False: nobody wants to go on before.
 */
static bool
pass_time (int64_t until)
{
  pthread_cond_t *cond = NULL;
  int64_t ns = until;
  unsigned i;

  workers_settle ();
  __real_pthread_mutex_lock (&waiting.lock);
  for (i = 0; i < MAX_WAITERS; i++)
    if (waiting.waiters[i].cond && waiting.waiters[i].until_ns <= ns) {
      cond = waiting.waiters[i].cond;
      ns = waiting.waiters[i].until_ns;
    }
  pthread_mutex_unlock (&waiting.lock);
  if (now_ns < ns)
    now_ns = ns;
  if (cond)
    pthread_cond_broadcast (cond);
  workers_settle ();
  return cond != NULL;
}

/* Since the overlay was made. */
static int64_t
passed (void)
{
  return now_ns - BEGIN_NS;
}

static void
pass_until (int64_t ns)
{
  while (pass_time (BEGIN_NS + ns))
    ;
}

/*--- Threads that are workers. ----------------------------------------*/

static bool as_workers;
static struct worker threads[NR_WORKERS];
static struct start starts[NR_WORKERS];
static unsigned nr_threads;
static struct gate *open_when_stopping;

int
__wrap_pthread_create (pthread_t *thread, const pthread_attr_t *attr,
                       void *(*fn) (void *), void *opaque)
{
  if (!as_workers)
    return __real_pthread_create (thread, attr, fn, opaque);
  CHECK (nr_threads < NR_WORKERS);
  starts[nr_threads] = (struct start){ .fn = fn, .opaque = opaque };
  as_workers = false;
  worker_start (&threads[nr_threads], start_main, &starts[nr_threads]);
  as_workers = true;
  *thread = threads[nr_threads++].thread;
  return 0;
}

int
__wrap_pthread_join (pthread_t thread, void **ret)
{
  unsigned i;

  if (open_when_stopping)
    gate_open (open_when_stopping);
  open_when_stopping = NULL;
  for (i = 0; as_workers && i < nr_threads; i++)
    if (pthread_equal (threads[i].thread, thread)) {
      as_workers = false;
      worker_join (&threads[i]);
      as_workers = true;
      return 0;
    }
  return __real_pthread_join (thread, ret);
}

static unsigned
nr_in_state (enum worker_state state)
{
  unsigned i, n = 0;

  for (i = 0; i < nr_threads; i++)
    n += worker_state (&threads[i]) == state;
  return n;
}

/*--- Memory that ends. ------------------------------------------------*/

static bool no_memory;

void *
__wrap_malloc (size_t count)
{
  if (no_memory) {
    errno = ENOMEM;
    return NULL;
  }
  return __real_malloc (count);
}

/*--- Files that are written out. --------------------------------------*/

/* What was asked of the system, in MiB: "B4+2" that writing the 2 at 4 begins,
 * W that it is waited for, F that it is forgotten.
 */
static struct {
  pthread_mutex_t lock; /* protects all that follows */
  char log[10000];
  uint64_t nr_begun, nr_waited_for, nr_forgotten; /* bytes */
} written_out = { .lock = PTHREAD_MUTEX_INITIALIZER };
static int write_out_err; /* fails once, unless 0 */

static bool is_on_disk (uint64_t count, uint64_t offset);

static void
note_write_out (char call, uint64_t *sum, uint64_t count, uint64_t offset)
{
  size_t n;

  __real_pthread_mutex_lock (&written_out.lock);
  n = strlen (written_out.log);
  if (n < sizeof written_out.log - 100)
    snprintf (written_out.log + n, 100, "%s%c%" PRIu64 "+%" PRIu64,
              n ? " " : "", call, offset / MIB, count / MIB);
  *sum += count;
  pthread_mutex_unlock (&written_out.lock);
}

int
__wrap_fd_write_out (int fd, uint64_t count, uint64_t offset, bool wait)
{
  const int r = wait ? write_out_err : 0;

  CHECK_EQ (fd, IMAGE_FD);
  CHECK (count > 0);
  if (wait)
    note_write_out ('W', &written_out.nr_waited_for, count, offset);
  else
    note_write_out ('B', &written_out.nr_begun, count, offset);
  if (r)
    write_out_err = 0;
  return r;
}

/* What is not on disk may have to be written again. */
void
__wrap_fd_forget (int fd, uint64_t count, uint64_t offset)
{
  CHECK_EQ (fd, IMAGE_FD);
  CHECK (count > 0);
  CHECK (is_on_disk (count, offset));
  note_write_out ('F', &written_out.nr_forgotten, count, offset);
}

/*--- A filler of an overlay over simulated files. ---------------------*/

static struct sim_world world;
static struct sim_store image_store, metadata_store, backing_store;
static struct sim_image image, metadata;
static struct sim_backing backing;
static struct overlay *ov;
static struct filler *filler;
static uint64_t size_bytes;

/* What of the backing file cannot be read; how writing fails, unless 0; how
 * long reading takes.
 */
static uint64_t bad_begin, bad_end;
static _Atomic int write_err;
static _Atomic int64_t read_ns;

static _Atomic unsigned nr_bad_reads;
static _Atomic uint64_t nr_written;
static int64_t write_failed_ns[64]; /* when */
static _Atomic unsigned nr_writes_failed;

static struct backing_ops backing_ops;
static struct image_ops image_ops;
static const struct backing_ops *sim_backing_ops;
static const struct image_ops *sim_image_ops;

static int
read_backing (struct backing *b, void *buf, size_t count, uint64_t offset)
{
  now_ns += read_ns;
  if (offset < bad_end && bad_begin < offset + count) {
    nr_bad_reads++;
    return EREMOTEIO;
  }
  return sim_backing_ops->read (b, buf, count, offset);
}

static int
write_image (struct image *i, const void *buf, size_t count, uint64_t offset,
             unsigned flags)
{
  int r = write_err;

  if (r) {
    const unsigned n = nr_writes_failed++;

    CHECK (n < ARRAY_SIZE (write_failed_ns));
    write_failed_ns[n] = passed ();
    return r;
  }
  nr_written += count;
  return sim_image_ops->write (i, buf, count, offset, flags);
}

static _Atomic bool wanted;
static _Atomic unsigned nr_asked;
static unsigned nr_complete, nr_failed;
static struct fault last_fault;

static bool
is_wanted (void *opaque)
{
  CHECK (opaque == &world);
  nr_asked++;
  return wanted;
}

static void
note_complete (void *opaque)
{
  CHECK (opaque == &world);
  CHECK (overlay_stands_alone (ov));
  nr_complete++;
}

static void
note_failed (void *opaque, const struct fault *fault)
{
  CHECK (opaque == &world);
  last_fault = *fault;
  nr_failed++;
}

static uint8_t
base_byte (uint64_t offset)
{
  return (offset / SECTOR * 31 + offset * 7) | 0x80;
}

/* A disk of SIZE bytes over a backing file, of which the first DATA bytes
 * are data.
 */
static void
begin (uint64_t size, uint64_t data)
{
  uint8_t sector[SECTOR];
  uint64_t offset;
  unsigned i;

  size_bytes = size;
  now_ns = BEGIN_NS;
  bad_begin = bad_end = 0;
  write_err = 0;
  read_ns = 0;
  nr_bad_reads = nr_writes_failed = nr_asked = nr_complete = nr_failed = 0;
  nr_written = 0;
  wanted = true;
  written_out.log[0] = '\0';
  written_out.nr_begun = written_out.nr_waited_for = 0;
  written_out.nr_forgotten = 0;
  write_out_err = 0;

  sim_world_init (&world);
  sim_store_init (&image_store, &world, size);
  sim_store_init (&metadata_store, &world, format_file_bytes (size));
  sim_store_init (&backing_store, &world, size);
  for (offset = 0; offset < data; offset += SECTOR) {
    for (i = 0; i < SECTOR; i++)
      sector[i] = base_byte (offset + i);
    sim_store_put (&backing_store, sector, SECTOR, offset);
  }
  sim_image_init (&image, &image_store);
  sim_image_init (&metadata, &metadata_store);
  sim_backing_init (&backing, &backing_store);
  sim_backing_ops = backing.backing.ops;
  backing_ops = *sim_backing_ops;
  backing_ops.read = read_backing;
  backing.backing.ops = &backing_ops;
  sim_image_ops = image.image.ops;
  image_ops = *sim_image_ops;
  image_ops.write = write_image;
  image.image.ops = &image_ops;
  CHECK_EQ (
      overlay_open (&ov, &metadata.image, size, &backing.backing, NULL, NULL),
      0);
  overlay_attach (ov, &image.image);
}

/* Begin to fill; 4 workers, and 1 MiB at once, unless OPTIONS say so. */
static void
start (struct filler_options options)
{
  options.ov = ov;
  options.image = &image.image;
  if (options.nr_workers == 0)
    options.nr_workers = NR_WORKERS;
  if (options.request_bytes == 0)
    options.request_bytes = MIB;
  if (options.image_fd == 0)
    options.image_fd = -1;
  options.complete = note_complete;
  options.failed = note_failed;
  options.opaque = &world;
  nr_threads = 0;
  as_workers = true;
  CHECK_EQ (filler_start (&filler, &options), 0);
}
#define START(...) start ((struct filler_options){ __VA_ARGS__ })

static void
stop (void)
{
  filler_stop (filler);
  as_workers = false;
}

static void
end (void)
{
  struct fault fault;

  sim_no_gates (&image.port);
  sim_no_gates (&backing.port);
  CHECK_EQ (overlay_detach (ov, &image.image, &fault), 0);
  overlay_close (ov);
  sim_store_clear (&image_store);
  sim_store_clear (&metadata_store);
  sim_store_clear (&backing_store);
  sim_world_clear (&world);
}

static uint64_t
nr_on_disk (void)
{
  uint64_t n;

  CHECK_EQ (bitmap_count (&metadata.image, 0, size_bytes / SECTOR, &n), 0);
  return n * SECTOR;
}

static bool
is_on_disk (uint64_t count, uint64_t offset)
{
  uint64_t sector;

  for (sector = offset / SECTOR; sector < (offset + count) / SECTOR; sector++)
    if (!(sim_store_byte (&metadata_store, FORMAT_HEADER_BYTES + sector / 8) &
          1u << sector % 8))
      return false;
  return true;
}

/* How many of COUNT bytes at OFFSET are allocated; commits. */
static uint64_t
nr_filled (uint64_t offset, uint64_t count)
{
  uint64_t sector, n = 0;
  struct fault fault;

  CHECK_EQ (overlay_commit (ov, &fault), 0);
  for (sector = offset / SECTOR; sector < (offset + count) / SECTOR; sector++)
    if (sim_store_byte (&metadata_store, FORMAT_HEADER_BYTES + sector / 8) &
        1u << sector % 8)
      n += SECTOR;
  return n;
}

/* The image has at OFFSET what the backing file has there. */
static void
check_copied (uint64_t offset, uint64_t count)
{
  for (; count > 0; count--, offset++)
    if (sim_store_byte (&image_store, offset) !=
        sim_store_byte (&backing_store, offset)) {
      fprintf (stderr, "not copied: %" PRIu64 "\n", offset);
      check_end ();
    }
}

static size_t
nr_reads (void)
{
  return sim_log_count (&world, &backing.port, SIM_READ);
}

static uint64_t
read_at (size_t n)
{
  return sim_log_get (&world, &backing.port, SIM_READ, n).offset;
}

/* What was read of the backing file by a client. */
static bool
keep (uint64_t count, uint64_t offset)
{
  char *buf = __real_malloc (count);
  bool kept;

  CHECK (buf != NULL);
  sim_store_get (&backing_store, buf, count, offset);
  kept = filler_keep (filler, buf, count, offset);
  free (buf);
  return kept;
}

/* All is filled, on disk and told, once; and nothing is done any more. */
static void
check_complete (void)
{
  workers_settle ();
  CHECK_EQ (nr_in_state (WORKER_DONE), nr_threads);
  CHECK_EQ (nr_complete, 1);
  CHECK_EQ (nr_on_disk (), size_bytes);
  CHECK_EQ (filler_nr_bytes (filler), size_bytes);
  check_copied (0, MIN (size_bytes, 64 * KIB));
  check_copied (size_bytes - SECTOR, SECTOR);
  sim_log_clear (&world);
  CHECK (keep (SECTOR, 0));
  filler_hot (filler, SECTOR, 0);
  filler_client_begins (filler);
  filler_client_ends (filler);
  pass_until (passed () + 100 * SECOND);
  CHECK_EQ (world.nr_events, 0);
}

/*--- All of it. -------------------------------------------------------*/

static void
test_fills (unsigned nr_workers, size_t request_bytes)
{
  const uint64_t size = 9 * MIB + 3 * SECTOR;
  size_t i;

  begin (size, size);
  START (.nr_workers = nr_workers, .request_bytes = request_bytes);
  pass_until (100 * MS);
  CHECK_EQ (nr_written, size);
  for (i = 0; i < nr_reads (); i++)
    CHECK (nr_workers > 1 || read_at (i) == i * request_bytes);
  CHECK_EQ (nr_failed, 0);
  check_copied (0, size);
  check_complete ();
  stop ();
  end ();
}

/* Of what is there already nothing is done but to tell. */
static void
test_nothing_to_do (void)
{
  struct fault fault;

  begin (9 * MIB, 9 * MIB);
  CHECK_EQ (overlay_fill_range (ov, &image.image, size_bytes, 0, &fault), 0);
  nr_written = 0;
  sim_log_clear (&world);
  START (.wanted = NULL);
  pass_until (100 * MS);
  CHECK_EQ (nr_complete, 1);
  CHECK_EQ (nr_reads () + nr_written, 0);
  CHECK_EQ (filler_nr_bytes (filler), 0);
  stop ();
  end ();
}

/* A client's writes do as well. */
static void
test_clients_fill (void)
{
  struct fault fault;
  char buf[SECTOR] = { 1 };
  uint64_t offset;

  begin (MIB, MIB);
  bad_end = MIB;
  START (.wanted = NULL);
  pass_until (5 * SECOND);
  CHECK_EQ (nr_complete, 0);
  for (offset = 0; offset < MIB; offset += SECTOR)
    CHECK_EQ (overlay_write (ov, &image.image, buf, SECTOR, offset, 0, &fault),
              0);
  pass_until (70 * SECOND);
  CHECK_EQ (nr_complete, 1);
  CHECK_EQ (nr_on_disk (), MIB);
  stop ();
  end ();
}

static void
test_wanted (void)
{
  unsigned asked;
  uint64_t before;

  begin (8 * MIB, 8 * MIB);
  wanted = false;
  START (.wanted = is_wanted, .rate_bytes = MIB);
  pass_until (10 * SECOND);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_READ), 0);
  CHECK (nr_asked >= 10 && nr_asked <= 50);

  wanted = true;
  pass_until (11 * SECOND);
  CHECK (nr_written > 0);
  pass_until (12 * SECOND);
  wanted = false;
  pass_until (13 * SECOND);
  before = nr_written;
  asked = nr_asked;
  CHECK (before < size_bytes);
  pass_until (23 * SECOND);
  CHECK_EQ (nr_written, before);
  CHECK (nr_asked - asked >= 10 && nr_asked - asked <= 50);
  wanted = true;
  pass_until (40 * SECOND);
  check_complete ();
  stop ();
  end ();
}

/* What clients have just read, and what is behind it, goes first. */
static void
test_hot (void)
{
  static const uint64_t order[] = { 0, 5, 6, 4, 13, 14, 8, 9, 15, 1 };
  struct gate gate;
  size_t i;

  begin (16 * MIB, 16 * MIB);
  sim_hold (&backing.port, SIM_READ, 0, &gate);
  START (.nr_workers = 1);
  workers_settle ();
  filler_hot (filler, 4096, 15 * MIB + 512);
  filler_hot (filler, 4096, 8 * MIB + 77);
  filler_hot (filler, SECTOR, 14 * MIB - SECTOR);
  filler_hot (filler, SECTOR, 8 * MIB);
  filler_hot (filler, 2 * SECTOR, 5 * MIB - SECTOR);
  gate_open (&gate);
  pass_until (SECOND);
  for (i = 0; i < ARRAY_SIZE (order); i++)
    CHECK_EQ (read_at (i), order[i] * MIB);
  CHECK_EQ (nr_reads (), 16);
  check_complete ();
  stop ();
  end ();
}

/*--- Keeping. ---------------------------------------------------------*/

static void
test_keep (bool only_keep)
{
  struct gate gate;
  unsigned i;

  begin (16 * MIB, 16 * MIB);
  wanted = false;
  sim_hold (&image.port, SIM_WRITE, 0, &gate);
  START (.nr_workers = 1, .only_keep = only_keep, .wanted = is_wanted);
  CHECK (!keep (4 * MIB + SECTOR, 0));
  no_memory = true;
  CHECK (!keep (SECTOR, 0));
  no_memory = false;
  CHECK (keep (MIB, 0));
  workers_settle ();
  CHECK_EQ (nr_in_state (WORKER_HELD), 1);
  for (i = 1; i < 4; i++)
    CHECK (keep (MIB, 2 * i * MIB));
  CHECK (!keep (SECTOR, 15 * MIB));
  gate_open (&gate);
  pass_until (SECOND);
  CHECK_EQ (filler_nr_bytes (filler), 4 * MIB);
  CHECK_EQ (nr_written, 4 * MIB);
  CHECK_EQ (nr_reads (), 0);
  CHECK_EQ (nr_filled (0, 16 * MIB), 4 * MIB);
  CHECK_EQ (nr_filled (6 * MIB, MIB), MIB);
  check_copied (6 * MIB, MIB);

  CHECK (keep (4 * MIB, 8 * MIB));
  pass_until (2 * SECOND);
  CHECK_EQ (nr_filled (8 * MIB, 4 * MIB), 4 * MIB);
  CHECK_EQ (nr_failed, 0);
  stop ();
  end ();
}

/* When the image cannot be written what is queued is dropped, and what
 * comes is, until it is worth trying again.
 */
static void
test_keep_fails (void)
{
  struct gate gate;

  begin (4 * MIB, 4 * MIB);
  sim_hold (&image.port, SIM_WRITE, 0, &gate);
  START (.nr_workers = 2, .only_keep = true);
  CHECK (keep (SECTOR, 0));
  workers_settle ();
  write_err = ENOSPC;
  CHECK (keep (SECTOR, MIB));
  workers_settle ();
  CHECK_EQ (nr_writes_failed, 1);
  write_err = 0;
  CHECK_EQ (nr_failed, 1);
  CHECK (last_fault.part == FAULT_IMAGE && last_fault.err == ENOSPC);
  gate_open (&gate);
  workers_settle ();
  CHECK (keep (SECTOR, 2 * MIB));
  pass_until (900 * MS);
  CHECK_EQ (nr_filled (0, 4 * MIB), SECTOR);
  now_ns = BEGIN_NS + SECOND;
  CHECK (keep (SECTOR, 3 * MIB));
  workers_settle ();
  CHECK_EQ (nr_filled (3 * MIB, SECTOR), SECTOR);
  CHECK_EQ (nr_failed, 1);

  /* It has been well for long: that is told again. */
  now_ns += 1000 * SECOND;
  write_err = EIO;
  CHECK (keep (SECTOR, MIB));
  workers_settle ();
  CHECK_EQ (nr_failed, 2);
  CHECK_EQ (last_fault.err, EIO);
  stop ();
  end ();
}

static void
test_kept_is_dropped (void)
{
  struct gate gate;

  begin (4 * MIB, 4 * MIB);
  sim_fail (&image.port, SIM_WRITE, 1, EIO, 0);
  sim_hold (&image.port, SIM_WRITE, 0, &gate);
  START (.nr_workers = 1, .only_keep = true);
  CHECK (keep (SECTOR, 0));
  workers_settle ();
  CHECK (keep (MIB, MIB));
  CHECK (keep (MIB, 2 * MIB));
  gate_open (&gate);
  workers_settle ();
  CHECK_EQ (nr_failed, 1);
  CHECK_EQ (nr_filled (0, 4 * MIB), 0);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_WRITE), 1);
  CHECK_EQ (filler_nr_bytes (filler), 0);
  /* There is room for as much as ever. */
  now_ns += SECOND;
  CHECK (keep (4 * MIB, 0));
  workers_settle ();
  CHECK_EQ (nr_filled (0, 4 * MIB), 4 * MIB);
  stop ();
  end ();
}

/*--- Failures. --------------------------------------------------------*/

/* A part of the backing file cannot be read: the rest is filled, it is told
 * once and tried again, not too often.
 */
static void
test_bad_part (void)
{
  unsigned bad;

  begin (16 * MIB, 16 * MIB);
  bad_begin = 5 * MIB;
  bad_end = bad_begin + SECTOR;
  START (.wanted = NULL);
  pass_until (500 * MS);
  CHECK_EQ (nr_bad_reads, 3); /* in smaller and smaller steps */
  CHECK_EQ (nr_failed, 1);
  CHECK (last_fault.part == FAULT_BACKING && last_fault.err == EREMOTEIO);
  CHECK_EQ (filler_nr_bytes (filler), 16 * MIB - 4096);
  CHECK_EQ (nr_complete, 0);
  pass_until (1500 * MS);
  CHECK (nr_bad_reads >= 4 && nr_bad_reads <= 6);
  pass_until (300 * SECOND);
  CHECK (nr_bad_reads >= 10 && nr_bad_reads <= 30);
  bad = nr_bad_reads;
  pass_until (421 * SECOND);
  CHECK (nr_bad_reads >= bad + 2);
  CHECK_EQ (nr_failed, 1);
  CHECK_EQ (nr_complete, 0);
  bad_end = 0;
  pass_until (482 * SECOND);
  CHECK_EQ (nr_failed, 1);
  check_complete ();
  stop ();
  end ();
}

/* All of a large disk: nobody waits for each request to fail. */
static void
test_server_gone (void)
{
  begin (1024 * (uint64_t) MIB, 0);
  backing_store.knows_holes = false;
  bad_end = 1024 * (uint64_t) MIB;
  START (.wanted = NULL);
  pass_until (500 * MS);
  CHECK (nr_bad_reads >= 16 && nr_bad_reads <= 60);
  pass_until (300 * SECOND);
  CHECK (nr_bad_reads <= 12 * 60);
  CHECK_EQ (nr_failed, 1);
  CHECK_EQ (nr_complete, 0);
  bad_end = 0;
  image_store.discards = true;
  pass_until (500 * SECOND);
  CHECK_EQ (nr_complete, 1);
  CHECK_EQ (nr_on_disk (), size_bytes);
  CHECK_EQ (filler_nr_bytes (filler), size_bytes);
  stop ();
  end ();
}

/* While the image is full nobody tries but now and then, also when a pass
 * is over meanwhile.
 */
static void
test_no_space (unsigned nr_workers, uint64_t size)
{
  unsigned i, n;

  begin (size, size);
  write_err = ENOSPC;
  START (.nr_workers = nr_workers);
  pass_until (300 * SECOND);
  CHECK_EQ (nr_failed, 1);
  CHECK (last_fault.part == FAULT_IMAGE && last_fault.err == ENOSPC);
  n = nr_writes_failed;
  CHECK_EQ (nr_complete, 0);
  CHECK_EQ (filler_nr_bytes (filler), 0);
  for (i = 0; i < n; i++)
    if (i > 0 && write_failed_ns[i] - write_failed_ns[i - 1] > 61 * SECOND) {
      fprintf (stderr, "a pause of more than a minute\n");
      check_end ();
    }
  CHECK (n <= 10 * nr_workers);
  write_err = 0;
  pass_until (400 * SECOND);
  CHECK_EQ (nr_failed, 1);
  check_complete ();
  stop ();
  end ();
}

/* That all workers fail at once is no reason to wait for longer. */
static void
test_all_fail (void)
{
  struct gate gates[4];
  unsigned i;

  begin (16 * MIB, 16 * MIB);
  sim_fail (&image.port, SIM_WRITE, 1, ENOSPC, 3);
  for (i = 0; i < 4; i++)
    sim_hold (&image.port, SIM_WRITE, 4 * i * MIB, &gates[i]);
  START (.wanted = NULL);
  workers_settle ();
  CHECK_EQ (nr_in_state (WORKER_HELD), 4);
  for (i = 0; i < 4; i++)
    gate_open (&gates[i]);
  pass_until (999 * MS);
  CHECK_EQ (nr_failed, 1);
  CHECK_EQ (nr_reads (), 4);
  pass_until (1000 * MS);
  CHECK (nr_reads () > 4);
  pass_until (3 * SECOND);
  check_complete ();
  stop ();
  end ();
}

/* So it is when bits cannot be committed. */
static void
test_commit_fails (uint64_t commit_bytes)
{
  begin (8 * MIB, 8 * MIB);
  sim_fail (&metadata.port, SIM_FLUSH, 1, EDQUOT, 0);
  START (.commit_bytes = commit_bytes);
  pass_until (500 * MS);
  CHECK_EQ (nr_complete, 0);
  CHECK_EQ (nr_failed, 1);
  CHECK (last_fault.part == FAULT_METADATA && last_fault.err == EDQUOT);
  pass_until (70 * SECOND);
  CHECK_EQ (nr_failed, 1);
  check_complete ();
  stop ();
  end ();
}

/* Nor is the disk told to stand alone while it may not. */
static void
test_flush_fails (void)
{
  begin (8 * MIB, 8 * MIB);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  START (.wanted = NULL);
  pass_until (500 * MS);
  CHECK_EQ (nr_complete, 0);
  CHECK_EQ (nr_failed, 1);
  pass_until (70 * SECOND);
  check_complete ();
  stop ();
  CHECK_EQ (nr_failed, 1);
  end ();
}

/* A client's flush fails when all is filled, and no other one comes. */
static void
test_client_flush_fails (void)
{
  struct fault fault;

  begin (MIB, MIB);
  CHECK_EQ (overlay_fill_range (ov, &image.image, MIB, 0, &fault), 0);
  CHECK_EQ (overlay_flush (ov, &image.image, &fault), 0);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  CHECK_EQ (overlay_flush (ov, &image.image, &fault), -1);
  START (.wanted = NULL);
  pass_until (SECOND);
  CHECK_EQ (nr_complete, 1);
  stop ();
  end ();
}

/*--- How fast. --------------------------------------------------------*/

static void
test_rate (uint64_t rate, uint64_t data, uint64_t size)
{
  const uint64_t step = MAX (4096, MIN (MIB, rate / 8));
  const int64_t seconds = data / rate;
  int64_t until;

  begin (size, data);
  START (.rate_bytes = rate);
  do {
    CHECK (nr_written <= rate * (passed () / 1e9) + step);
    until = passed () + 10 * MS;
    pass_until (until);
  } while (nr_complete == 0 && passed () < 2 * seconds * SECOND + SECOND);
  CHECK (passed () >= (seconds - 1) * SECOND);
  CHECK (passed () <= (seconds + 1) * SECOND + seconds * SECOND / 10);
  check_complete ();
  stop ();
  end ();
}

/* While clients are busy one goes on, a quarter of the time. */
static void
test_busy (void)
{
  struct gate gates[4];
  unsigned i;

  begin (16 * MIB, 16 * MIB);
  for (i = 0; i < 4; i++)
    sim_hold (&backing.port, SIM_READ, 4 * i * MIB, &gates[i]);
  START (.wanted = NULL);
  workers_settle ();
  CHECK_EQ (nr_in_state (WORKER_HELD), 4);
  for (i = 0; i < 4; i++)
    gate_open (&gates[i]);
  pass_until (SECOND);
  check_complete ();
  stop ();
  end ();

  begin (16 * MIB, 16 * MIB);
  for (i = 0; i < 4; i++)
    sim_hold (&backing.port, SIM_READ, 4 * i * MIB, &gates[i]);
  wanted = false;
  START (.wanted = is_wanted);
  workers_settle ();
  filler_client_begins (filler);
  wanted = true;
  pass_until (5 * SECOND);
  CHECK_EQ (nr_in_state (WORKER_HELD), 1);
  CHECK_EQ (nr_reads (), 1);

  /* And when they are not any more all go on, after a little time. */
  filler_client_ends (filler);
  pass_until (5500 * MS);
  CHECK_EQ (nr_in_state (WORKER_HELD), 4);
  for (i = 0; i < 4; i++)
    gate_open (&gates[i]);
  pass_until (6 * SECOND);
  check_complete ();
  stop ();
  end ();

  begin (16 * MIB, 16 * MIB);
  read_ns = 10 * MS;
  wanted = false;
  START (.wanted = is_wanted);
  workers_settle ();
  filler_client_begins (filler);
  wanted = true;
  pass_until (499 * MS);
  CHECK_EQ (nr_reads (), 0); /* it is asked again then */
  pass_until (1000 * MS);
  CHECK (nr_reads () >= 10 && nr_reads () <= 14);
  pass_until (2 * SECOND);
  check_complete ();
  stop ();
  end ();
}

static void
test_commit_bytes (void)
{
  begin (8 * MIB, 8 * MIB);
  START (.commit_bytes = 2 * MIB, .nr_workers = 1);
  pass_until (SECOND);
  CHECK (sim_log_count (&world, &image.port, SIM_FLUSH) >= 4);
  CHECK (sim_log_count (&world, &image.port, SIM_FLUSH) <= 5);
  check_complete ();
  stop ();
  end ();

  begin (8 * MIB, 8 * MIB);
  START (.nr_workers = 1);
  pass_until (SECOND);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_FLUSH), 1);
  check_complete ();
  stop ();
  end ();
}

/*--- What is written out. ---------------------------------------------*/

/* That writing each span begins when it is filled; the one before is waited
 * for; a commit lets go of what it covers.
 */
static void
test_write_out (void)
{
  begin (16 * MIB, 16 * MIB);
  START (.nr_workers = 1, .commit_bytes = 8 * MIB, .image_fd = IMAGE_FD);
  pass_until (SECOND);
  CHECK_STR (written_out.log, "B0+4 F0+4 B4+4 W0+4 B8+4 W4+4 F4+4 F8+4 "
                              "B12+4 W8+4 F12+4");
  check_complete ();
  stop ();
  end ();

  /* Of what reads as zeroes there is nothing to write. */
  begin (20 * MIB, 6 * MIB);
  START (.nr_workers = 1, .image_fd = IMAGE_FD);
  pass_until (SECOND);
  CHECK_STR (written_out.log, "B0+4 B4+2 W0+4 F0+4 F4+2");
  check_complete ();
  stop ();
  end ();

  begin (16 * MIB, 16 * MIB);
  START (.commit_bytes = 8 * MIB);
  pass_until (SECOND);
  CHECK_STR (written_out.log, "");
  check_complete ();
  stop ();
  end ();
}

/* What is hot will be read. */
static void
test_write_out_hot (void)
{
  struct gate gate;

  begin (16 * MIB, 16 * MIB);
  sim_hold (&backing.port, SIM_READ, 3 * MIB, &gate);
  START (.nr_workers = 1, .image_fd = IMAGE_FD);
  workers_settle ();
  filler_hot (filler, SECTOR, 8 * MIB);
  filler_hot (filler, SECTOR, 14 * MIB);
  CHECK (keep (MIB, 4 * MIB));
  gate_open (&gate);
  pass_until (SECOND);
  CHECK_STR (written_out.log, "B0+4 B5+3 W0+4 B10+2 W5+3 B12+2 W10+2 "
                              "F0+4 F5+3 F10+2 F12+2");
  check_complete ();
  stop ();
  end ();
}

/* What could not be filled is no part of it, nor what is before that. */
static void
test_write_out_around (void)
{
  begin (4 * MIB, 4 * MIB);
  bad_begin = MIB;
  bad_end = MIB + SECTOR;
  START (.nr_workers = 1, .image_fd = IMAGE_FD);
  pass_until (500 * MS);
  CHECK_EQ (filler_nr_bytes (filler), 4 * MIB - 4096);
  CHECK_EQ (written_out.nr_begun, 3 * MIB - 4096);
  bad_end = 0;
  stop ();
  end ();
}

/* Not while another one commits: of the 12 MiB that are filled then two
 * spans at least are whole, and one at most was before.
 */
static void
test_write_out_in_commit (void)
{
  struct gate gate;

  begin (32 * MIB, 32 * MIB);
  sim_hold (&image.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  START (.nr_workers = 2, .commit_bytes = 6 * MIB, .image_fd = IMAGE_FD);
  workers_settle ();
  CHECK_EQ (nr_in_state (WORKER_HELD), 1);
  CHECK_EQ (nr_written, 12 * MIB);
  CHECK (written_out.nr_begun <= 4 * MIB);
  gate_open (&gate);
  pass_until (SECOND);
  check_complete ();
  stop ();
  end ();
}

static void
test_write_out_by_all (void)
{
  begin (32 * MIB, 32 * MIB);
  START (.commit_bytes = 8 * MIB, .image_fd = IMAGE_FD);
  pass_until (SECOND);
  CHECK (written_out.nr_begun <= 32 * MIB);
  CHECK (written_out.nr_waited_for < 32 * MIB);
  CHECK_EQ (written_out.nr_forgotten, 32 * MIB);
  check_complete ();
  stop ();
  end ();
}

/* There are bounds to what is remembered to be forgotten. */
static void
test_write_out_much (void)
{
  const uint64_t size = 1100 * (uint64_t) MIB;

  begin (size, 0);
  backing_store.knows_holes = false;
  image_store.discards = true;
  START (.image_fd = IMAGE_FD);
  pass_until (SECOND);
  CHECK_EQ (nr_complete, 1);
  CHECK_EQ (written_out.nr_begun, size);
  CHECK_EQ (written_out.nr_forgotten, 1024 * (uint64_t) MIB);
  stop ();
  end ();
}

/* When it fails, or a commit does, the system may have in its memory alone
 * what is to be written again.
 */
static void
test_write_out_fails (void)
{
  size_t n;

  begin (8 * MIB, 8 * MIB);
  write_out_err = EIO;
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  START (.nr_workers = 1, .commit_bytes = 6 * MIB, .image_fd = IMAGE_FD);
  pass_until (500 * MS);
  CHECK_EQ (write_out_err, EIO); /* not waited for yet */
  CHECK_STR (written_out.log, "B0+4");
  CHECK_EQ (nr_failed, 1);
  n = sim_log_count (&world, &image.port, SIM_READ);
  pass_until (70 * SECOND);
  CHECK_STR (written_out.log, "B0+4 B4+4 W0+4 F4+4");
  /* All was read and written again. */
  CHECK (sim_log_count (&world, &image.port, SIM_READ) > n);
  CHECK_EQ (nr_failed, 1);
  check_complete ();
  stop ();
  end ();
}

/*--- The end. ---------------------------------------------------------*/

static void
test_stop_at_once (void)
{
  begin (8 * MIB, 8 * MIB);
  START (.wanted = NULL);
  stop ();
  CHECK (nr_complete <= 1);
  end ();

  filler_stop (NULL);
}

/* In a step, with things to keep: these are written, and no more. */
static void
test_stop_in_step (bool only_keep)
{
  struct gate gate;

  begin (16 * MIB, 16 * MIB);
  sim_hold (only_keep ? &image.port : &backing.port,
            only_keep ? SIM_WRITE : SIM_READ, 0, &gate);
  START (.nr_workers = 1, .only_keep = only_keep);
  if (only_keep)
    CHECK (keep (SECTOR, 0));
  workers_settle ();
  CHECK_EQ (nr_in_state (WORKER_HELD), 1);
  CHECK (keep (MIB, 8 * MIB));
  CHECK (keep (MIB, 10 * MIB));
  open_when_stopping = &gate;
  stop ();
  CHECK_EQ (nr_filled (8 * MIB, MIB), MIB);
  CHECK_EQ (nr_filled (10 * MIB, MIB), MIB);
  CHECK_EQ (nr_filled (0, 16 * MIB), 2 * MIB + (only_keep ? SECTOR : MIB));
  CHECK_EQ (nr_complete, 0);
  end ();
}

/* While nobody does anything, for one reason or the other. */
static void
test_stop_in_pauses (void)
{
  unsigned i;

  for (i = 0; i < 5; i++) {
    begin (8 * MIB, 8 * MIB);
    wanted = i != 0;
    bad_end = i == 1 ? 8 * MIB : 0;
    write_err = i == 2 ? ENOSPC : 0;
    START (.wanted = is_wanted, .rate_bytes = i == 3 ? 4096 : 0,
           .only_keep = i == 4);
    pass_until (300 * MS);
    CHECK_EQ (nr_in_state (WORKER_WAITING), NR_WORKERS);
    CHECK (keep (SECTOR, 8 * MIB - SECTOR));
    stop ();
    CHECK_EQ (nr_complete, 0);
    /* Unless it would fail. */
    CHECK_EQ (nr_filled (8 * MIB - SECTOR, SECTOR), i == 2 ? 0 : SECTOR);
    end ();
  }
}

int
main (void)
{
  check_watchdog (300);
  test_fills (1, MIB);
  test_fills (4, MIB);
  test_fills (4, 64 * KIB);
  test_nothing_to_do ();
  test_clients_fill ();
  test_wanted ();
  test_hot ();
  test_keep (true);
  test_keep (false);
  test_keep_fails ();
  test_kept_is_dropped ();
  test_bad_part ();
  test_server_gone ();
  test_no_space (NR_WORKERS, 16 * MIB);
  test_no_space (1, 2 * MIB);
  test_all_fail ();
  test_commit_fails (0);
  test_commit_fails (2 * MIB);
  test_flush_fails ();
  test_client_flush_fails ();
  test_rate (MIB, 8 * MIB, 8 * MIB);
  test_rate (MIB, 2 * MIB, 200 * MIB);
  test_rate (100 * KIB, MIB, 2 * MIB);
  test_busy ();
  test_commit_bytes ();
  test_write_out ();
  test_write_out_hot ();
  test_write_out_around ();
  test_write_out_in_commit ();
  test_write_out_by_all ();
  test_write_out_much ();
  test_write_out_fails ();
  test_stop_at_once ();
  test_stop_in_step (false);
  test_stop_in_step (true);
  test_stop_in_pauses ();
  return 0;
}

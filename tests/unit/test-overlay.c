/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The overlay: where requests go, what they leave when they fail, the
 * order of a commit, and races on first touch and between flushes, each
 * made to happen by holding a thread inside an operation.
 */

#include <config.h>

#include <errno.h>

#include "common.h"
#include "format.h"
#include "map.h"
#include "overlay.h"
#include "sim-image.h"
#include "wraps.h"

#define SECTOR 512

/* Those of the first page of the map. */
#define PAGE_SECTORS ((4096 - FORMAT_HEADER_BYTES) * 8)

/*--- Memory that ends, and waits that do. -----------------------------*/

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

/* Holds the first worker that has looked something up in the map, before it
 * acts on that; or NULL.
 */
static struct gate *looked_up;

int
__wrap_map_run (struct map *map, uint64_t sector, uint64_t max_sectors,
                bool *allocated, uint64_t *run)
{
  int r = __real_map_run (map, sector, max_sectors, allocated, run);

  if (looked_up)
    gate_pass (looked_up);
  return r;
}

/* A commit that waits for company: how often, and never for long. */
#define MAX_WAIT_NS 2000000
static _Atomic unsigned nr_timed_waits;

int
__wrap_pthread_cond_timedwait (pthread_cond_t *cond, pthread_mutex_t *mutex,
                               const struct timespec *until)
{
  struct timespec now;

  nr_timed_waits++;
  clock_gettime (CLOCK_MONOTONIC, &now);
  CHECK (ns_of (until) - ns_of (&now) <= MAX_WAIT_NS);
  return __real_pthread_cond_timedwait (cond, mutex, until);
}

/*--- An overlay over simulated files. ---------------------------------*/

static struct sim_world world;
static struct sim_store image_store, metadata_store, backing_store;
static struct sim_image image, other, metadata;
static struct sim_backing backing;
static struct overlay *ov;
static unsigned nr_dirty;

/* The last read that was of the backing file, and how many there were. */
static struct {
  const struct image *image;
  uint64_t offset, count, total;
  uint8_t first_byte;
  unsigned nr;
} missed;

static void
note_dirty (void *opaque)
{
  CHECK (opaque == &nr_dirty);
  nr_dirty++;
}

static void
note_missed (void *opaque, struct image *i, const void *buf, size_t count,
             uint64_t offset)
{
  CHECK (opaque == &nr_dirty);
  CHECK (count > 0);
  missed.image = i;
  missed.offset = offset;
  missed.count = count;
  missed.total += count;
  missed.first_byte = *(const uint8_t *) buf;
  missed.nr++;
}

static const struct overlay_hooks hooks = {
  .dirty = note_dirty,
  .missed = note_missed,
  .opaque = &nr_dirty,
};

/* What the backing file has at OFFSET. */
static uint8_t
base_byte (uint64_t offset)
{
  if (offset >= backing_store.size_bytes)
    return 0;
  return (offset / SECTOR * 31 + offset * 7) | 0x80;
}

/* A disk of NR_SECTORS, over BACKING_BYTES of a backing file, none if that
 * is 0; two images.
 */
static void
begin (uint64_t nr_sectors, uint64_t backing_bytes)
{
  static uint8_t base[64 * SECTOR];
  uint64_t i;

  sim_world_init (&world);
  sim_store_init (&image_store, &world, nr_sectors * SECTOR);
  sim_store_init (&metadata_store, &world,
                  format_file_bytes (nr_sectors * SECTOR));
  sim_store_init (&backing_store, &world, backing_bytes);
  sim_image_init (&image, &image_store);
  sim_image_init (&other, &image_store);
  sim_image_init (&metadata, &metadata_store);
  sim_backing_init (&backing, &backing_store);
  for (i = 0; i < MIN (backing_bytes, sizeof base); i++)
    base[i] = base_byte (i);
  sim_store_put (&backing_store, base, i, 0);
  nr_dirty = 0;
  CHECK_EQ (overlay_open (&ov, &metadata.image, nr_sectors * SECTOR,
                          backing_bytes ? &backing.backing : NULL, NULL,
                          &hooks),
            0);
  CHECK_EQ (overlay_size_bytes (ov), nr_sectors * SECTOR);
  CHECK_EQ (world.nr_events, 0);
  overlay_attach (ov, &image.image);
  overlay_attach (ov, &other.image);
}

static void
end (void)
{
  struct fault fault;

  sim_no_gates (&image.port);
  sim_no_gates (&other.port);
  CHECK_EQ (overlay_detach (ov, &image.image, &fault), 0);
  CHECK_EQ (overlay_detach (ov, &other.image, &fault), 0);
  CHECK (!overlay_uncommitted (ov));
  overlay_close (ov);
  sim_store_clear (&image_store);
  sim_store_clear (&metadata_store);
  sim_store_clear (&backing_store);
  sim_world_clear (&world);
}

static bool
disk_bit (uint64_t sector)
{
  const uint64_t offset = FORMAT_HEADER_BYTES + sector / 8;

  return sim_store_byte (&metadata_store, offset) >> sector % 8 & 1;
}

/* What was last asked of the system to write out, and how often.  It fails
 * once with ERR, unless 0; GATE, unless NULL, holds the first who comes.
 */
static struct {
  struct gate *gate;
  int err;
  uint64_t offset, count;
  bool wait;
  unsigned nr;
} write_out;

/* The system takes what it could not write for written: as when a flush
 * failed.
 */
int
__wrap_fd_write_out (int fd, uint64_t count, uint64_t offset, bool wait)
{
  const int err = write_out.err;

  CHECK_EQ (fd, IMAGE_FD);
  write_out.count = count;
  write_out.offset = offset;
  write_out.wait = wait;
  write_out.nr++;
  if (write_out.gate)
    gate_pass (write_out.gate);
  if (err == 0)
    return 0;
  write_out.err = 0;
  sim_fail (&image.port, SIM_FLUSH, 1, err, 0);
  return image.image.ops->flush (&image.image);
}

/*--- Requests, here or in a worker. -----------------------------------*/

enum kind {
  READ,
  WRITE,
  ZERO,
  TRIM,
  FLUSH,
  COMMIT,
  DETACH,
  EXTENTS,
  CACHE,
  KEEP,       /* what the backing file has */
  KEEP_NOW,   /* the same, if nobody has to be waited for */
  FILL,       /* one step */
  FILL_RANGE, /* all steps */
  WRITE_OUT,  /* what is in memory; with flags, it is waited for */
  DROP,
};

struct request {
  enum kind kind;
  struct sim_image *through;
  uint64_t offset, count;
  unsigned flags;
  uint8_t byte;             /* that is written */
  uint8_t buf[64 * SECTOR]; /* that was read */
  struct filled filled;
  unsigned extent_type; /* of the last one */

  int r;
  struct fault fault;
  struct worker worker;
};

static int
note_extent (void *opaque, uint64_t count UNUSED, unsigned type)
{
  struct request *q = opaque;

  q->extent_type = type;
  return 0;
}

static int
keep (struct request *q)
{
  uint64_t i;

  CHECK (q->count <= sizeof q->buf);
  for (i = 0; i < q->count; i++)
    q->buf[i] = base_byte (q->offset + i);
  return overlay_keep (ov, &q->through->image, q->buf, q->count, q->offset,
                       q->kind == KEEP, &q->fault);
}

static void
run (void *opaque)
{
  struct request *q = opaque;
  struct image *i = &q->through->image;

  switch (q->kind) {
  case READ:
    CHECK (q->count <= sizeof q->buf);
    q->r = overlay_read (ov, i, q->buf, q->count, q->offset, &q->fault);
    break;
  case WRITE:
    CHECK (q->count <= sizeof q->buf);
    memset (q->buf, q->byte, q->count);
    q->r = overlay_write (ov, i, q->buf, q->count, q->offset, q->flags,
                          &q->fault);
    break;
  case ZERO:
    q->r = overlay_zero (ov, i, q->count, q->offset, q->flags, &q->fault);
    break;
  case TRIM:
    q->r = overlay_trim (ov, i, q->count, q->offset, q->flags, &q->fault);
    break;
  case FLUSH:
    q->r = overlay_flush (ov, i, &q->fault);
    break;
  case COMMIT:
    q->r = overlay_commit (ov, &q->fault);
    break;
  case DETACH:
    q->r = overlay_detach (ov, i, &q->fault);
    break;
  case EXTENTS:
    q->r = overlay_extents (ov, i, q->count, q->offset, note_extent, q,
                            &q->fault);
    break;
  case CACHE:
    q->r = overlay_cache (ov, i, q->count, q->offset, &q->fault);
    break;
  case KEEP:
  case KEEP_NOW:
    q->r = keep (q);
    break;
  case FILL:
    q->r = overlay_fill (ov, i, q->buf, sizeof q->buf, q->count, q->offset,
                         &q->filled, &q->fault);
    CHECK (q->filled.nr_bytes >= SECTOR && q->filled.nr_bytes <= q->count);
    CHECK_EQ (q->filled.nr_bytes % SECTOR, 0);
    break;
  case FILL_RANGE:
    q->r = overlay_fill_range (ov, i, q->count, q->offset, &q->fault);
    break;
  case WRITE_OUT:
    overlay_write_out (ov, IMAGE_FD, q->count, q->offset, q->flags);
    q->r = 0;
    break;
  case DROP:
    q->r = overlay_drop_backing (ov, true) ? 0 : -1;
    break;
  }
}

/* In the background; returns when no worker runs any more. */
static void
start (struct request *q)
{
  if (q->through == NULL)
    q->through = &image;
  worker_start (&q->worker, run, q);
  workers_settle ();
}

static void
finish (struct request *q)
{
  worker_join (&q->worker);
}

static bool
is (struct request *q, enum worker_state state)
{
  return worker_state (&q->worker) == state;
}

static void
must (struct request q)
{
  if (q.through == NULL)
    q.through = &image;
  run (&q);
  CHECK_EQ (q.r, 0);
}

static void
must_fail (struct request q, enum fault_part part, int err)
{
  if (q.through == NULL)
    q.through = &image;
  run (&q);
  CHECK_EQ (q.r, -1);
  CHECK_EQ (q.fault.part, part);
  CHECK_EQ (q.fault.err, err);
}

#define MUST(...) must ((struct request){ .kind = __VA_ARGS__ })
#define MUST_FAIL(part, err, ...) \
  must_fail ((struct request){ .kind = __VA_ARGS__ }, part, err)
#define REQUEST(...) ((struct request){ .kind = __VA_ARGS__ })

static void
write_to (uint64_t offset, uint64_t count, uint8_t byte)
{
  MUST (WRITE, .offset = offset, .count = count, .byte = byte);
}

static void
flush (void)
{
  MUST (FLUSH);
}

/* A range as a client reads it. */
static uint8_t *
read_range (uint64_t offset, uint64_t count)
{
  static uint8_t buf[64 * SECTOR];
  struct fault fault;

  CHECK (count <= sizeof buf);
  if (count > 0)
    CHECK_EQ (overlay_read (ov, &image.image, buf, count, offset, &fault), 0);
  return buf;
}

/* The range reads as BYTE. */
static void
check_bytes (uint64_t offset, uint64_t count, uint8_t byte)
{
  uint8_t *buf = read_range (offset, count);
  uint64_t i;

  for (i = 0; i < count; i++)
    CHECK_EQ (buf[i], byte);
}

/* The range reads as in the backing file. */
static void
check_base (uint64_t offset, uint64_t count)
{
  uint8_t *buf = read_range (offset, count);
  uint64_t i;

  for (i = 0; i < count; i++)
    CHECK_EQ (buf[i], base_byte (offset + i));
}

/* How many operations there were through the image, backing, metadata. */
static size_t
image_ops (enum sim_op op)
{
  return sim_log_count (&world, &image.port, op) +
         sim_log_count (&world, &other.port, op);
}

static size_t
backing_reads (void)
{
  return sim_log_count (&world, &backing.port, SIM_READ);
}

static uint64_t
bytes_written (void)
{
  const size_t nr = sim_log_count (&world, &image.port, SIM_WRITE);
  uint64_t n = 0;
  size_t i;

  for (i = 0; i < nr; i++)
    n += sim_log_get (&world, &image.port, SIM_WRITE, i).count;
  return n;
}

static size_t
metadata_ops (enum sim_op op)
{
  return sim_log_count (&world, &metadata.port, op);
}

/*--- Routing and completion, against a flat disk. ---------------------*/

#define FLAT_SECTORS 40
#define FLAT_BYTES (FLAT_SECTORS * SECTOR)

static uint8_t flat[FLAT_BYTES];
static bool allocated[FLAT_SECTORS];

static void
random_request (struct rng *rng)
{
  const enum kind kind = rng_below (rng, 4);
  const uint64_t offset = rng_one_in (rng, 3)
                              ? rng_below (rng, FLAT_SECTORS) * SECTOR
                              : rng_below (rng, FLAT_BYTES);
  const uint64_t most = rng_one_in (rng, 2) ? 700 : FLAT_BYTES;
  const uint64_t rest = FLAT_BYTES - offset;
  const uint64_t count = rng_range (rng, 1, MIN (rest, most));
  const uint64_t first = offset / SECTOR;
  const uint64_t last = (offset + count - 1) / SECTOR;
  struct request q = {
    .kind = kind,
    .offset = offset,
    .count = count,
    .through = &image,
    .flags = kind == READ          ? 0
             : rng_one_in (rng, 8) ? IMAGE_FUA
                                   : 0,
    .byte = rng_range (rng, 1, 0x7f),
  };
  bool all = true, head, tail;
  uint64_t s;

  if (kind == ZERO && rng_one_in (rng, 2))
    q.flags |= IMAGE_MAY_TRIM;
  for (s = first; s <= last; s++)
    all = all && allocated[s];
  head = offset % SECTOR || (first == last && (offset + count) % SECTOR);
  head = head && !allocated[first];
  tail = first != last && (offset + count) % SECTOR && !allocated[last];

  sim_log_clear (&world);
  run (&q);
  CHECK_EQ (q.r, 0);
  if (kind == READ) {
    CHECK (memcmp (q.buf, flat + offset, count) == 0);
    CHECK_EQ (sim_log_count_changes (&world, NULL), 0);
    return;
  }

  /* The backing file is read to complete a sector and for no more. */
  CHECK (backing_reads () <= (size_t) head + tail);
  for (s = 0; s < backing_reads (); s++)
    CHECK (sim_log_get (&world, &backing.port, SIM_READ, s).count <= SECTOR);
  if (all && kind == TRIM) {
    CHECK_EQ (image_ops (SIM_TRIM), 1);
    CHECK_EQ (image_ops (SIM_ZERO) + image_ops (SIM_WRITE), 0);
  }
  if (all)
    CHECK_EQ (
        image_ops (SIM_TRIM) + image_ops (SIM_ZERO) + image_ops (SIM_WRITE), 1);

  memset (flat + offset, kind == WRITE ? q.byte : 0, count);
  for (s = first; s <= last; s++)
    allocated[s] = true;
}

static void
test_flat (uint64_t backing_bytes, struct rng *rng)
{
  uint64_t i;

  begin (FLAT_SECTORS, backing_bytes);
  memset (allocated, 0, sizeof allocated);
  for (i = 0; i < FLAT_BYTES; i++)
    flat[i] = base_byte (i);
  /* Stale data in the image is not seen. */
  for (i = 0; i < FLAT_SECTORS; i++) {
    static uint8_t stale[SECTOR];

    memset (stale, 0xee, sizeof stale);
    sim_store_put (&image_store, stale, SECTOR, i * SECTOR);
  }

  for (i = 0; i < 60; i++)
    random_request (rng);
  flush ();
  for (i = 0; i < FLAT_SECTORS; i++)
    CHECK_EQ (disk_bit (i), allocated[i]);
  CHECK (memcmp (read_range (0, FLAT_BYTES), flat, FLAT_BYTES) == 0);
  end ();
}

static void
test_routing (void)
{
  struct rng rng = { 3 };
  unsigned i;

  for (i = 0; i < 40; i++) {
    test_flat (FLAT_BYTES, &rng);
    test_flat (0, &rng);
    test_flat (rng_range (&rng, 1, FLAT_BYTES + 5000), &rng);
  }
}

/* Each way a request can lie in its sectors, exactly. */
static void
test_completion (void)
{
  static const struct {
    uint64_t offset, count;
    unsigned reads; /* of the backing file */
  } cases[] = {
    { 10, 20, 1 }, /* within one sector */
    { 0, 511, 1 },
    { 511, 1, 1 },
    { 0, 512, 0 },
    { 512, 1024, 0 },
    { 10, 502, 1 }, /* head only */
    { 10, 1014, 1 },
    { 0, 513, 1 }, /* tail only */
    { 512, 1500, 1 },
    { 511, 2, 2 },    /* both, no whole sector between */
    { 100, 1800, 2 }, /* and with some */
    { 5 * SECTOR, 2 * SECTOR, 0 },
    { 5 * SECTOR + 1, 98, 1 }, /* the backing file ends there */
    { 5 * SECTOR + 99, 2, 1 },
    { 5 * SECTOR + 200, 100, 1 },
    { 4 * SECTOR + 1, SECTOR, 2 },
    { 6 * SECTOR + 1, 1, 0 }, /* and has nothing here */
    { 0, 7 * SECTOR - 1, 0 },
    { 1, 8 * SECTOR - 2, 1 },
  };
  size_t i, j;

  for (i = 0; i < ARRAY_SIZE (cases); i++)
    for (j = 0; j < 2; j++) {
      const uint64_t from = cases[i].offset;
      const uint64_t to = from + cases[i].count;

      begin (8, 5 * SECTOR + 100);
      MUST (j ? ZERO : WRITE, .offset = from, .count = cases[i].count,
            .byte = 0x11);
      CHECK_EQ (backing_reads (), cases[i].reads);
      /* Every sector is written, and once. */
      if (j == 0)
        CHECK_EQ (bytes_written (),
                  DIV_ROUND_UP (to, SECTOR) * SECTOR - from / SECTOR * SECTOR);
      check_base (0, from);
      check_bytes (from, cases[i].count, j ? 0 : 0x11);
      check_base (to, 8 * SECTOR - to);

      /* The whole sector is in the image now. */
      sim_log_clear (&world);
      check_base (from / SECTOR * SECTOR, from % SECTOR);
      CHECK_EQ (backing_reads (), 0);
      end ();
    }
}

/* Zeroes where nothing is allocated hide the backing file, as holes where
 * that may be; a trim of allocated sectors is the image's.
 */
static void
test_zero_trim (void)
{
  begin (16, 16 * SECTOR);
  MUST (ZERO, .offset = 0, .count = 2 * SECTOR);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_ZERO, 0).flags, 0);
  CHECK (sim_store_is_data (&image_store, 0));
  MUST (ZERO, .offset = 2 * SECTOR, .count = SECTOR, .flags = IMAGE_MAY_TRIM);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_ZERO, 1).flags,
            IMAGE_MAY_TRIM);
  MUST (TRIM, .offset = 3 * SECTOR, .count = SECTOR);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_ZERO, 2).flags,
            IMAGE_MAY_TRIM);
  CHECK (!sim_store_is_data (&image_store, 3 * SECTOR));
  CHECK_EQ (image_ops (SIM_TRIM), 0);
  CHECK_EQ (backing_reads (), 0);
  check_bytes (0, 4 * SECTOR, 0);
  check_base (4 * SECTOR, 12 * SECTOR);

  /* Even if the image ignores trims, and beside allocated sectors. */
  image.port.trim_keeps = true;
  write_to (5 * SECTOR, SECTOR, 0x22);
  MUST (TRIM, .offset = 4 * SECTOR + 100, .count = 3 * SECTOR);
  check_base (4 * SECTOR, 100);
  check_bytes (4 * SECTOR + 100, SECTOR - 100, 0);
  check_bytes (6 * SECTOR, SECTOR + 100, 0);
  check_base (7 * SECTOR + 100, SECTOR - 100);
  MUST (TRIM, .offset = 5 * SECTOR, .count = 10);
  CHECK_EQ (image_ops (SIM_TRIM), 1);

  /* Fast or not at all, and then nothing happened. */
  image.port.slow_zero = true;
  MUST_FAIL (FAULT_IMAGE, EOPNOTSUPP, ZERO, .offset = 8 * SECTOR,
             .count = SECTOR, .flags = IMAGE_FAST);
  MUST_FAIL (FAULT_IMAGE, EOPNOTSUPP, ZERO, .offset = 0, .count = SECTOR,
             .flags = IMAGE_FAST | IMAGE_MAY_TRIM);
  check_base (8 * SECTOR, SECTOR);
  MUST (ZERO, .offset = 8 * SECTOR, .count = SECTOR);
  check_bytes (8 * SECTOR, SECTOR, 0);
  end ();
}

static void
test_cache (void)
{
  struct fault fault;

  begin (16, 8 * SECTOR);
  write_to (2 * SECTOR, SECTOR, 1);
  write_to (10 * SECTOR, SECTOR, 1);
  sim_log_clear (&world);
  CHECK_EQ (overlay_cache (ov, &image.image, 15 * SECTOR, 100, &fault), 0);
  CHECK_EQ (image_ops (SIM_CACHE), 2);
  CHECK_EQ (sim_log_count (&world, &backing.port, SIM_CACHE), 2);
  CHECK_EQ (sim_log_get (&world, &backing.port, SIM_CACHE, 1).count,
            5 * SECTOR);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_CACHE, 1).offset,
            10 * SECTOR);
  CHECK_EQ (world.nr_events, 4);
  sim_fail (&image.port, SIM_CACHE, 1, EIO, 0);
  CHECK_EQ (overlay_cache (ov, &image.image, 15 * SECTOR, 0, &fault), -1);
  CHECK (fault.part == FAULT_IMAGE && fault.err == EIO);
  sim_fail (&backing.port, SIM_CACHE, 1, EREMOTEIO, 0);
  CHECK_EQ (overlay_cache (ov, &image.image, 15 * SECTOR, 0, &fault), -1);
  CHECK (fault.part == FAULT_BACKING && fault.err == EREMOTEIO);
  end ();
}

/*--- Errors. ----------------------------------------------------------*/

/* A request that fails says why, sets no bit, and can be repeated. */
static void
check_failure (struct sim_port *port, enum sim_op op, unsigned n, int err,
               enum fault_part part, int expected, struct request q)
{
  begin (8, 8 * SECTOR);
  q.through = &image;
  sim_fail (port, op, n, err, 0);
  must_fail (q, part, expected);
  CHECK (!overlay_uncommitted (ov));
  check_base (0, 8 * SECTOR);
  flush ();
  CHECK_EQ (metadata_ops (SIM_WRITE), 0);
  must (q);
  if (q.kind != READ) {
    check_base (0, q.offset);
    check_bytes (q.offset, q.count, q.kind == WRITE ? q.byte : 0);
    check_base (q.offset + q.count, 8 * SECTOR - q.offset - q.count);
  }
  end ();
}

static void
test_errors (void)
{
  static const int errs[] = { EIO, ENOSPC, EDQUOT, EREMOTEIO };
  const struct request odd = REQUEST (WRITE, .offset = SECTOR + 100,
                                      .count = 2 * SECTOR, .byte = 9);
  const struct request odd_zero = REQUEST (ZERO, .offset = SECTOR + 100,
                                           .count = 2 * SECTOR);
  const struct request odd_trim = REQUEST (TRIM, .offset = SECTOR + 100,
                                           .count = 2 * SECTOR);
  const struct request in_one = REQUEST (WRITE, .offset = SECTOR + 100,
                                         .count = 10, .byte = 9);
  const struct request whole = REQUEST (WRITE, .offset = SECTOR,
                                        .count = 2 * SECTOR, .byte = 9);
  const struct request reading = REQUEST (READ, .offset = 10,
                                          .count = 3 * SECTOR);
  size_t i;
  unsigned n;

  for (i = 0; i < ARRAY_SIZE (errs); i++) {
    const int err = errs[i];

    for (n = 1; n <= 3; n++)
      check_failure (&image.port, SIM_WRITE, n, err, FAULT_IMAGE, err, odd);
    for (n = 1; n <= 2; n++) {
      check_failure (&backing.port, SIM_READ, n, err, FAULT_BACKING, err, odd);
      check_failure (&backing.port, SIM_READ, n, err, FAULT_BACKING, err,
                     odd_zero);
      check_failure (&image.port, SIM_WRITE, n, err, FAULT_IMAGE, err,
                     odd_trim);
    }
    check_failure (&image.port, SIM_ZERO, 1, err, FAULT_IMAGE, err, odd_zero);
    check_failure (&image.port, SIM_ZERO, 1, err, FAULT_IMAGE, err, odd_trim);
    check_failure (&image.port, SIM_WRITE, 1, err, FAULT_IMAGE, err, whole);
    check_failure (&image.port, SIM_WRITE, 1, err, FAULT_IMAGE, err, in_one);
    check_failure (&backing.port, SIM_READ, 1, err, FAULT_BACKING, err, in_one);
    check_failure (&backing.port, SIM_READ, 1, err, FAULT_BACKING, err,
                   reading);
    check_failure (&metadata.port, SIM_EXTENTS, 1, err, FAULT_METADATA, err,
                   whole);
    check_failure (&metadata.port, SIM_EXTENTS, 1, err, FAULT_METADATA, err,
                   reading);
  }
  check_failure (&metadata.port, SIM_EXTENTS, 1, ENOMEM, FAULT_MEMORY, ENOMEM,
                 whole);
}

static void
test_errors_when_allocated (void)
{
  struct fault fault;

  begin (8, 8 * SECTOR);
  write_to (0, 8 * SECTOR, 1);
  flush ();
  sim_fail (&image.port, SIM_READ, 1, EUCLEAN, 0);
  MUST_FAIL (FAULT_IMAGE, EUCLEAN, READ, .offset = 0, .count = 1);
  sim_fail (&image.port, SIM_WRITE, 1, ENOSPC, 0);
  MUST_FAIL (FAULT_IMAGE, ENOSPC, WRITE, .offset = 0, .count = 1);
  sim_fail (&image.port, SIM_ZERO, 1, ENOSPC, 0);
  MUST_FAIL (FAULT_IMAGE, ENOSPC, ZERO, .offset = 0, .count = 1);
  sim_fail (&image.port, SIM_TRIM, 1, EDQUOT, 0);
  MUST_FAIL (FAULT_IMAGE, EDQUOT, TRIM, .offset = 0, .count = 1);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  sim_fail (&image.port, SIM_WRITE, 1, ENOMEM, 0);
  MUST_FAIL (FAULT_IMAGE, ENOMEM, WRITE, .offset = 0, .count = 1);
  CHECK_EQ (overlay_commit (ov, &fault), 0);
  check_bytes (0, 8 * SECTOR, 1);
  end ();
}

/*--- Extents. ---------------------------------------------------------*/

struct seen {
  uint64_t offset;
  unsigned types[FLAT_BYTES];
  unsigned last_type;
  unsigned n;
  unsigned stop_after;
  int stop_with;
};

static int
see_extent (void *opaque, uint64_t count, unsigned type)
{
  struct seen *s = opaque;

  CHECK (count > 0);
  CHECK (s->offset + count <= FLAT_BYTES);
  CHECK (s->n == 0 || type != s->last_type);
  s->last_type = type;
  s->n++;
  while (count-- > 0)
    s->types[s->offset++] = type;
  return s->n == s->stop_after ? s->stop_with : 0;
}

static void
test_extents_random (struct rng *rng)
{
  static struct seen s;
  const uint64_t backing_bytes = rng_below (rng, FLAT_BYTES + 999);
  unsigned types[FLAT_SECTORS];
  struct fault fault;
  uint64_t i;

  begin (FLAT_SECTORS, 0);
  sim_store_clear (&backing_store);
  sim_store_init (&backing_store, &world, backing_bytes);
  for (i = 0; i * SECTOR < backing_bytes; i++)
    if (rng_one_in (rng, 2))
      sim_store_put (&backing_store, "b", 1, i * SECTOR);
  overlay_close (ov);
  sim_backing_init (&backing, &backing_store);
  CHECK_EQ (overlay_open (&ov, &metadata.image, FLAT_BYTES, &backing.backing,
                          NULL, NULL),
            0);
  overlay_attach (ov, &image.image);
  overlay_attach (ov, &other.image);
  image.port.one_extent = rng_one_in (rng, 2);
  backing.port.one_extent = rng_one_in (rng, 2);
  metadata.port.one_extent = rng_one_in (rng, 2);

  for (i = 0; i < FLAT_SECTORS; i++) {
    const unsigned what = rng_below (rng, 3);

    if (what == 1)
      write_to (i * SECTOR, SECTOR, 1);
    else if (what == 2)
      MUST (TRIM, .offset = i * SECTOR, .count = SECTOR);
    if (what == 1)
      types[i] = 0;
    else if (what == 2)
      types[i] = EXTENT_HOLE | EXTENT_ZERO;
    else
      types[i] = i * SECTOR < backing_bytes &&
                         sim_store_is_data (&backing_store, i * SECTOR)
                     ? 0
                     : EXTENT_HOLE | EXTENT_ZERO;
  }

  for (i = 0; i < 20; i++) {
    const uint64_t offset = i ? rng_below (rng, FLAT_BYTES) : 0;
    const uint64_t count = i ? rng_range (rng, 1, FLAT_BYTES - offset)
                             : FLAT_BYTES;
    uint64_t at;

    memset (&s, 0, sizeof s);
    s.offset = offset;
    if (i % 4 == 3) {
      s.stop_after = 1 + rng_below (rng, 3);
      s.stop_with = EXTENT_STOP;
    }
    CHECK_EQ (overlay_extents (ov, &image.image, count, offset, see_extent, &s,
                               &fault),
              0);
    if (s.stop_after == 0 || s.n < s.stop_after)
      CHECK_EQ (s.offset, offset + count);
    else
      CHECK_EQ (s.n, s.stop_after);
    for (at = offset; at < s.offset; at++) {
      /* The last sector of the backing file is perhaps in part there. */
      const unsigned want = at >= backing_bytes &&
                                    !sim_store_is_data (&image_store, at)
                                ? EXTENT_HOLE | EXTENT_ZERO
                                : types[at / SECTOR];

      CHECK_EQ (s.types[at], want);
    }
  }
  end ();
}

static void
test_extents (void)
{
  static struct seen s;
  struct rng rng = { 4 };
  struct fault fault;
  unsigned i;

  for (i = 0; i < 100; i++)
    test_extents_random (&rng);

  /* All data, from both: one extent. */
  begin (FLAT_SECTORS, FLAT_BYTES);
  for (i = 0; i < FLAT_SECTORS; i += 2)
    write_to (i * SECTOR, SECTOR, 1);
  memset (&s, 0, sizeof s);
  CHECK_EQ (overlay_extents (ov, &image.image, FLAT_BYTES - 7, 3, see_extent,
                             &s, &fault),
            0);
  CHECK_EQ (s.n, 1);
  CHECK_EQ (s.offset, FLAT_BYTES - 7);

  sim_fail (&image.port, SIM_EXTENTS, 2, EUCLEAN, 0);
  CHECK_EQ (overlay_extents (ov, &image.image, FLAT_BYTES, 0, see_extent,
                             memset (&s, 0, sizeof s), &fault),
            -1);
  CHECK (fault.part == FAULT_IMAGE && fault.err == EUCLEAN);
  sim_fail (&backing.port, SIM_EXTENTS, 2, EREMOTEIO, 0);
  CHECK_EQ (overlay_extents (ov, &image.image, FLAT_BYTES, 0, see_extent,
                             memset (&s, 0, sizeof s), &fault),
            -1);
  CHECK (fault.part == FAULT_BACKING && fault.err == EREMOTEIO);

  /* What the caller could not do with an extent. */
  memset (&s, 0, sizeof s);
  s.stop_after = 1;
  s.stop_with = ENOMEM;
  CHECK_EQ (
      overlay_extents (ov, &image.image, FLAT_BYTES, 0, see_extent, &s, &fault),
      -1);
  CHECK_EQ (fault.err, ENOMEM);
  end ();
}

/*--- Flush, FUA and the order of a commit. ----------------------------*/

static void
test_commit_order (void)
{
  struct sim_event data, image_flush, bits, metadata_flush;

  begin (8, 8 * SECTOR);
  CHECK_EQ (nr_dirty, 0);
  write_to (SECTOR, SECTOR, 1);
  write_to (3 * SECTOR, SECTOR, 1);
  CHECK_EQ (nr_dirty, 1);
  CHECK (overlay_uncommitted (ov));
  CHECK_EQ (sim_log_count_changes (&world, &metadata.port), 0);
  CHECK_EQ (image_ops (SIM_FLUSH), 0);
  flush ();
  CHECK (!overlay_uncommitted (ov));
  CHECK (disk_bit (1) && disk_bit (3) && !disk_bit (2));

  data = sim_log_get (&world, &image.port, SIM_WRITE, 1);
  image_flush = sim_log_get (&world, &image.port, SIM_FLUSH, 0);
  bits = sim_log_get (&world, &metadata.port, SIM_WRITE, 0);
  metadata_flush = sim_log_get (&world, &metadata.port, SIM_FLUSH, 0);
  CHECK (data.end < image_flush.begin);
  CHECK (image_flush.end < bits.begin);
  CHECK (bits.end < metadata_flush.begin);
  CHECK_EQ (image_ops (SIM_FLUSH), 1);
  CHECK_EQ (sim_log_count_changes (&world, &metadata.port), 2);

  /* With nothing new: one flush of the image, the metadata not touched,
   * and it is the image of who asks.
   */
  write_to (SECTOR, SECTOR, 2);
  sim_log_clear (&world);
  flush ();
  CHECK_EQ (world.nr_events, 1);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_FLUSH), 1);
  MUST (FLUSH, .through = &other);
  CHECK_EQ (sim_log_count (&world, &other.port, SIM_FLUSH), 1);
  CHECK_EQ (world.nr_events, 2);
  MUST (COMMIT);
  CHECK_EQ (world.nr_events, 2);

  write_to (5 * SECTOR, SECTOR, 2);
  CHECK_EQ (nr_dirty, 2);
  MUST (COMMIT);
  CHECK (disk_bit (5));
  end ();
}

static void
test_fua (void)
{
  static const enum kind kinds[] = { WRITE, ZERO, TRIM };
  static const enum sim_op ops[] = { SIM_WRITE, SIM_ZERO, SIM_TRIM };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (kinds); i++) {
    begin (8, 8 * SECTOR);

    /* New sectors: written, then a commit. */
    MUST (kinds[i], .count = SECTOR, .flags = IMAGE_FUA);
    CHECK (disk_bit (0));
    CHECK_EQ (image_ops (SIM_FLUSH), 1);
    CHECK (!overlay_uncommitted (ov));
    CHECK_EQ (metadata_ops (SIM_FLUSH), 1);

    /* Nothing uncommitted: one operation of the image. */
    sim_log_clear (&world);
    MUST (kinds[i], .count = SECTOR, .flags = IMAGE_FUA);
    CHECK_EQ (world.nr_events, 1);
    CHECK_EQ (sim_log_get (&world, &image.port, ops[i], 0).flags, IMAGE_FUA);

    /* Allocated, but something is uncommitted: it may be this. */
    write_to (3 * SECTOR, SECTOR, 1);
    sim_log_clear (&world);
    MUST (kinds[i], .count = SECTOR, .flags = IMAGE_FUA);
    CHECK_EQ (sim_log_get (&world, &image.port, ops[i], 0).flags, 0);
    CHECK (sim_log_get (&world, &image.port, ops[i], 0).end <
           sim_log_get (&world, &image.port, SIM_FLUSH, 0).begin);
    CHECK_EQ (image_ops (SIM_FLUSH), 1);
    CHECK (disk_bit (3));
    CHECK (!overlay_uncommitted (ov));

    /* A commit that fails is a write that fails. */
    sim_fail (&metadata.port, SIM_FLUSH, 1, EIO, 0);
    MUST_FAIL (FAULT_METADATA, EIO, kinds[i], .offset = 5 * SECTOR,
               .count = SECTOR, .flags = IMAGE_FUA);
    CHECK (overlay_uncommitted (ov));
    end ();
  }
}

/* What a commit that fails leaves: the bits, to be written again. */
static void
test_failed_commit (void)
{
  static const struct {
    struct sim_image *file;
    enum sim_op op;
    enum fault_part part;
    int err;
  } cases[] = {
    { &image, SIM_FLUSH, FAULT_IMAGE, EDQUOT },
    { &metadata, SIM_WRITE, FAULT_METADATA, ENOSPC },
    { &metadata, SIM_FLUSH, FAULT_METADATA, EIO },
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (cases); i++) {
    begin (8, 8 * SECTOR);
    flush (); /* bits that were found are another matter */
    write_to (SECTOR, SECTOR, 1);
    sim_fail (&cases[i].file->port, cases[i].op, 1, cases[i].err, 1);
    MUST_FAIL (cases[i].part, cases[i].err, FLUSH);
    CHECK (overlay_uncommitted (ov));
    MUST_FAIL (cases[i].part, cases[i].err, FLUSH);
    if (cases[i].part == FAULT_IMAGE) {
      CHECK_EQ (metadata_ops (SIM_WRITE), 0);
      CHECK (!disk_bit (1));
    }
    check_bytes (SECTOR, SECTOR, 1);
    sim_log_clear (&world);
    flush ();
    CHECK_EQ (image_ops (SIM_FLUSH), 1);
    CHECK_EQ (metadata_ops (SIM_WRITE), 1);
    CHECK_EQ (metadata_ops (SIM_FLUSH), 1);
    CHECK (disk_bit (1));
    end ();
  }
}

/* The same when memory ends before it has begun. */
static void
test_no_memory (void)
{
  begin (8, 8 * SECTOR);
  write_to (SECTOR, SECTOR, 1);
  no_memory = true;
  MUST_FAIL (FAULT_MEMORY, ENOMEM, FLUSH);
  no_memory = false;
  CHECK (overlay_uncommitted (ov));
  CHECK (!disk_bit (1));
  flush ();
  CHECK (disk_bit (1));
  end ();
}

/* That flushing an image failed is told once to those who use each image,
 * with its errno, whoever asked for the flush.
 */
static void
test_failures_are_told (void)
{
  struct sim_image third;
  struct fault fault;

  /* A commit that no client asked for. */
  begin (8, 8 * SECTOR);
  write_to (0, SECTOR, 1);
  sim_fail (&other.port, SIM_FLUSH, 1, EDQUOT, 0);
  MUST_FAIL (FAULT_IMAGE, EDQUOT, COMMIT);
  MUST (COMMIT);
  CHECK (!overlay_uncommitted (ov));
  MUST_FAIL (FAULT_IMAGE, EDQUOT, FLUSH);
  flush ();
  /* A FUA write is about itself, and takes nothing from the flush. */
  MUST (WRITE, .count = SECTOR, .flags = IMAGE_FUA, .through = &other);
  MUST (WRITE, .offset = SECTOR, .count = SECTOR, .flags = IMAGE_FUA,
        .through = &other);
  MUST_FAIL (FAULT_IMAGE, EDQUOT, FLUSH, .through = &other);
  MUST (FLUSH, .through = &other);

  /* A flush without bits, and one that asked is told no second time. */
  sim_fail (&image.port, SIM_FLUSH, 1, ENOSPC, 0);
  MUST_FAIL (FAULT_IMAGE, ENOSPC, FLUSH);
  flush ();
  MUST_FAIL (FAULT_IMAGE, ENOSPC, FLUSH, .through = &other);
  MUST (FLUSH, .through = &other);

  /* A write with FUA has a flush in it. */
  sim_fail (&image.port, SIM_WRITE, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, WRITE, .count = SECTOR, .flags = IMAGE_FUA);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  flush ();
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &other);
  MUST (FLUSH, .through = &other);

  /* Who comes in the place of somebody who left and was not told, is; and
   * who comes beside somebody who was not told yet.
   */
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  CHECK_EQ (overlay_detach (ov, &other.image, &fault), 0);
  overlay_attach (ov, &other.image);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &other);
  MUST (FLUSH, .through = &other);
  CHECK_EQ (overlay_detach (ov, &other.image, &fault), 0);
  sim_image_init (&third, &image_store);
  write_to (2 * SECTOR, SECTOR, 1);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, COMMIT);
  overlay_attach (ov, &third.image);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &third);
  MUST (FLUSH, .through = &third);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  CHECK_EQ (overlay_detach (ov, &third.image, &fault), 0);
  /* All were told. */
  overlay_attach (ov, &other.image);
  MUST (FLUSH, .through = &other);

  /* Nobody can be told by way of what no client has: who comes later is not,
   * when somebody was.
   */
  CHECK_EQ (overlay_detach (ov, &other.image, &fault), 0);
  third.image.no_client = true;
  overlay_attach (ov, &third.image);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  overlay_attach (ov, &other.image);
  MUST (FLUSH, .through = &other);
  CHECK_EQ (overlay_detach (ov, &third.image, &fault), 0);
  end ();
}

/* FIRST is held in OP of PORT at the byte AT; SECOND comes meanwhile and
 * WAITS or goes through; then both end.
 */
static void
race (struct request *first, struct sim_port *port, enum sim_op op, uint64_t at,
      struct request *second, bool waits)
{
  struct gate gate;

  second->through = &other;
  sim_hold (port, op, at, &gate);
  start (first);
  CHECK (is (first, WORKER_HELD));
  start (second);
  CHECK_EQ (is (second, WORKER_WAITING), waits);
  CHECK_EQ (is (second, WORKER_DONE), !waits);
  gate_open (&gate);
  finish (first);
  finish (second);
  CHECK_EQ (first->r, 0);
  CHECK_EQ (second->r, 0);
  sim_no_gates (port);
}

/* Who commits after a failed flush may have an image that takes no writes:
 * what was lost is written again through another, and the commit fails as
 * long as there is none.
 */
static void
test_forgetful_image_read_only (void)
{
  struct fault fault;

  begin (8, 8 * SECTOR);
  other.image.read_only = true;
  write_to (SECTOR, SECTOR, 1);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  sim_log_clear (&world);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &other);
  CHECK_EQ (sim_log_count (&world, &other.port, SIM_WRITE), 0);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_WRITE), 1);
  CHECK (disk_bit (1));
  MUST (FLUSH, .through = &other);

  write_to (2 * SECTOR, SECTOR, 2);
  sim_fail (&image.port, SIM_FLUSH, 1, ENOSPC, 0);
  CHECK_EQ (overlay_detach (ov, &image.image, &fault), -1);
  CHECK_EQ (fault.err, ENOSPC);
  MUST_FAIL (FAULT_IMAGE, ENOSPC, FLUSH, .through = &other);
  MUST_FAIL (FAULT_IMAGE, ENOSPC, COMMIT);
  CHECK (!disk_bit (2));
  overlay_attach (ov, &image.image);
  sim_log_clear (&world);
  MUST (COMMIT);
  CHECK (disk_bit (2));
  CHECK_EQ (sim_log_count (&world, &other.port, SIM_WRITE), 0);
  end ();
}

/* Data that a failed flush lost in the image is written again before the
 * bits are: what a sector reads as after power failed is its old or its new
 * content.
 */
static void
test_forgetful_image (void)
{
  struct sim_world after_world;
  struct sim_store after;
  struct rng rng = { 7 };
  unsigned i, byte;

  begin (PAGE_SECTORS + 16, 64 * SECTOR);
  image_store.track = image_store.forgets = true;
  write_to (SECTOR, SECTOR, 1);
  flush ();
  write_to (2 * SECTOR + 5, 5, 2);
  write_to (4 * SECTOR, 2 * SECTOR, 3);
  MUST (ZERO, .offset = 8 * SECTOR, .count = SECTOR);
  write_to ((PAGE_SECTORS + 3) * SECTOR, SECTOR, 4);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  sim_log_clear (&world);
  flush ();
  CHECK (disk_bit (2) && disk_bit (4) && disk_bit (5) && disk_bit (8));
  CHECK (disk_bit (PAGE_SECTORS + 3));
  /* That and no more. */
  CHECK_EQ (bytes_written (), 5 * SECTOR);
  CHECK_EQ (backing_reads (), 0);
  for (i = 0; i < 20; i++) {
    sim_world_init (&after_world);
    sim_store_crash (&after, &after_world, &image_store, &rng);
    for (byte = 0; byte < SECTOR; byte++) {
      CHECK_EQ (sim_store_byte (&after, SECTOR + byte), 1);
      CHECK_EQ (sim_store_byte (&after, 2 * SECTOR + byte),
                byte >= 5 && byte < 10 ? 2 : base_byte (2 * SECTOR + byte));
      CHECK_EQ (sim_store_byte (&after, 4 * SECTOR + byte), 3);
      CHECK_EQ (sim_store_byte (&after, 5 * SECTOR + byte), 3);
      CHECK_EQ (sim_store_byte (&after, (PAGE_SECTORS + 3) * SECTOR + byte), 4);
    }
    sim_store_clear (&after);
    sim_world_clear (&after_world);
  }
  /* And it is over. */
  sim_log_clear (&world);
  write_to (6 * SECTOR, SECTOR, 5);
  flush ();
  CHECK_EQ (bytes_written (), SECTOR);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_READ), 0);

  /* The image or the metadata file cannot be read for it, or not be
   * written: the commit fails, and is as needed as before.
   */
  write_to (7 * SECTOR, SECTOR, 6);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  sim_fail (&image.port, SIM_READ, 1, EREMOTEIO, 0);
  MUST_FAIL (FAULT_IMAGE, EREMOTEIO, FLUSH);
  sim_fail (&image.port, SIM_WRITE, 1, ENOSPC, 0);
  MUST_FAIL (FAULT_IMAGE, ENOSPC, FLUSH);
  sim_fail (&metadata.port, SIM_READ, 1, EBADMSG, 0);
  MUST_FAIL (FAULT_METADATA, EBADMSG, FLUSH);
  CHECK (!disk_bit (7));
  sim_log_clear (&world);
  flush ();
  CHECK_EQ (bytes_written (), SECTOR);
  CHECK (disk_bit (7));
  end ();
}

/* Nothing that is newer is lost to that: a write that was under way is
 * waited for, one that comes waits.
 */
static void
test_forgetful_image_races (void)
{
  struct request a, b;
  struct gate gate;

  begin (16, 16 * SECTOR);
  write_to (SECTOR, SECTOR, 1);
  a = REQUEST (WRITE, .offset = SECTOR, .count = SECTOR, .byte = 2,
               .through = &other);
  sim_hold (&other.port, SIM_WRITE, SECTOR, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  b = REQUEST (FLUSH);
  start (&b);
  CHECK (is (&b, WORKER_WAITING));
  gate_open (&gate);
  finish (&a);
  finish (&b);
  CHECK (a.r == 0 && b.r == 0);
  sim_no_gates (&other.port);
  check_bytes (SECTOR, SECTOR, 2);

  write_to (2 * SECTOR, SECTOR, 1);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  sim_hold (&image.port, SIM_WRITE, 2 * SECTOR, &gate);
  b = REQUEST (FLUSH);
  start (&b); /* has read the sector */
  CHECK (is (&b, WORKER_HELD));
  a = REQUEST (WRITE, .offset = 2 * SECTOR + 7, .count = 9, .byte = 3,
               .through = &other);
  start (&a);
  CHECK (is (&a, WORKER_WAITING));
  gate_open (&gate);
  finish (&a);
  finish (&b);
  CHECK (a.r == 0 && b.r == 0);
  sim_no_gates (&image.port);
  check_bytes (2 * SECTOR, 7, 1);
  check_bytes (2 * SECTOR + 7, 9, 3);
  check_bytes (2 * SECTOR + 16, SECTOR - 16, 1);

  /* That is over with the next flush, though there was nothing to write
   * again: writers are in nobody's way.
   */
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &other);
  flush ();
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  flush ();
  a = REQUEST (WRITE, .offset = SECTOR, .count = SECTOR, .byte = 2);
  b = REQUEST (WRITE, .offset = SECTOR, .count = SECTOR, .byte = 2);
  race (&a, &image.port, SIM_WRITE, SECTOR, &b, false);

  /* A flush that is no commit fails while a commit flushes: its data may
   * have been that of the commit.
   */
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &other);
  MUST (FLUSH, .through = &other);
  sim_log_clear (&world);
  a = REQUEST (FLUSH, .through = &other);
  sim_fail (&other.port, SIM_FLUSH, 1, EIO, 0);
  sim_hold (&other.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  write_to (3 * SECTOR, SECTOR, 1);
  b = REQUEST (FLUSH);
  start (&b);
  CHECK (is (&b, WORKER_WAITING));
  CHECK (!disk_bit (3));
  gate_open (&gate);
  finish (&a);
  finish (&b);
  CHECK (a.r == -1 && b.r == -1 && b.fault.err == EIO);
  sim_no_gates (&other.port);
  /* The commit that follows for the first of them has written it again. */
  CHECK (disk_bit (3));
  CHECK_EQ (sim_log_count (&world, NULL, SIM_READ), 2);
  end ();
}

static void
test_detach (void)
{
  struct fault fault;

  begin (8, 8 * SECTOR);
  write_to (0, SECTOR, 1);
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  CHECK_EQ (overlay_detach (ov, &image.image, &fault), -1);
  CHECK (fault.part == FAULT_IMAGE && fault.err == EIO);
  CHECK (overlay_uncommitted (ov));
  overlay_attach (ov, &image.image);
  CHECK_EQ (overlay_detach (ov, &image.image, &fault), 0);
  CHECK (disk_bit (0));
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_FLUSH), 2);

  /* Nothing to commit, nothing done. */
  sim_log_clear (&world);
  overlay_attach (ov, &image.image);
  CHECK_EQ (overlay_detach (ov, &image.image, &fault), 0);
  CHECK_EQ (overlay_detach (ov, &other.image, &fault), 0);
  CHECK_EQ (world.nr_events, 0);
  CHECK_EQ (overlay_commit (ov, &fault), 0);
  overlay_attach (ov, &image.image);
  overlay_attach (ov, &other.image);
  end ();
}

/* Images whose flush is their own are all flushed by a commit; the flush
 * of one whose is not covers all.
 */
static void
test_multi_conn (void)
{
  struct sim_image third;
  struct fault fault;

  begin (8, 8 * SECTOR);
  sim_image_init (&third, &image_store);
  overlay_attach (ov, &third.image);
  write_to (0, SECTOR, 1);
  flush ();
  CHECK_EQ (sim_log_count (&world, NULL, SIM_FLUSH), 2);

  image.image.multi_conn = other.image.multi_conn = false;
  third.image.multi_conn = false;
  write_to (SECTOR, SECTOR, 1);
  MUST (WRITE, .offset = 2 * SECTOR, .count = SECTOR, .through = &other);
  sim_log_clear (&world);
  flush ();
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_FLUSH), 1);
  CHECK_EQ (sim_log_count (&world, &other.port, SIM_FLUSH), 1);
  CHECK_EQ (sim_log_count (&world, &third.port, SIM_FLUSH), 1);
  CHECK_EQ (sim_log_count (&world, &metadata.port, SIM_FLUSH), 1);
  CHECK (sim_log_get (&world, &image.port, SIM_FLUSH, 0).end <
         sim_log_get (&world, &metadata.port, SIM_WRITE, 0).begin);
  CHECK (sim_log_get (&world, &other.port, SIM_FLUSH, 0).end <
         sim_log_get (&world, &metadata.port, SIM_WRITE, 0).begin);

  /* With nothing new it is a matter of one image. */
  write_to (SECTOR, SECTOR, 1);
  sim_log_clear (&world);
  flush ();
  CHECK_EQ (world.nr_events, 1);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_FLUSH), 1);

  write_to (3 * SECTOR, SECTOR, 1);
  sim_log_clear (&world);
  MUST (COMMIT);
  CHECK_EQ (sim_log_count (&world, NULL, SIM_FLUSH), 4);

  /* One of them fails: so does the commit. */
  write_to (4 * SECTOR, SECTOR, 1);
  sim_fail (&other.port, SIM_FLUSH, 1, EDQUOT, 0);
  MUST_FAIL (FAULT_IMAGE, EDQUOT, FLUSH);
  CHECK (!disk_bit (4));
  flush ();
  CHECK (disk_bit (4));
  CHECK_EQ (overlay_detach (ov, &third.image, &fault), 0);
  end ();
}

/* What is uncommitted is bounded: the writer that goes over it commits. */
static void
test_many_pages (void)
{
  const uint64_t page = 4096 * 8 * UINT64_C (512);
  const unsigned nr = 4200;
  unsigned i, first = 0, nr_commits = 0;

  begin (nr * (page / SECTOR), 0);
  for (i = 0; i < nr; i++) {
    write_to (i * page, 1, 1);
    if (!overlay_uncommitted (ov)) {
      if (first == 0) {
        first = i;
        CHECK (disk_bit (i * (page / SECTOR)));
        CHECK_EQ (image_ops (SIM_FLUSH), 1);
        CHECK_EQ (metadata_ops (SIM_FLUSH), 1);
      }
      nr_commits++;
    }
  }
  CHECK_EQ (first, 2048);
  CHECK_EQ (nr_commits, 2);
  CHECK_EQ (metadata_ops (SIM_FLUSH), 2);

  /* When that commit fails the write says so. */
  flush ();
  sim_fail (&metadata.port, SIM_WRITE, 1, ENOSPC, 0);
  for (i = 0; i < nr; i++) {
    struct request q = REQUEST (WRITE, .offset = i * page + SECTOR, .count = 1,
                                .through = &image);

    run (&q);
    if (q.r == -1)
      break;
  }
  CHECK_EQ (i, 2048);
  end ();
}

/* The write that commits for it has no part in what was lost before: that
 * is the flush's to tell.
 */
static void
test_many_pages_tell_nothing (void)
{
  const uint64_t page = 4096 * 8 * UINT64_C (512);
  const unsigned nr = 2060;
  unsigned i;

  begin (nr * (page / SECTOR), 0);
  write_to (0, SECTOR, 1);
  sim_fail (&other.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, COMMIT);
  MUST (COMMIT);
  sim_log_clear (&world);
  for (i = 1; i < nr; i++)
    write_to (i * page, SECTOR, 1);
  CHECK_EQ (metadata_ops (SIM_FLUSH), 1);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  flush ();
  end ();
}

/* A server was killed between writing its bits and syncing them.  The
 * next one finds them in the file; what it acknowledges as durable must
 * not depend on bits that are not.
 */
static void
begin_after_a_killed_server (void)
{
  begin (8, 8 * SECTOR);
  metadata_store.track = image_store.track = true;
  sim_store_put (&metadata_store, "h", 1, 0);
  CHECK_EQ (metadata.image.ops->write (&metadata.image, "\6", 1,
                                       FORMAT_HEADER_BYTES, 0),
            0);
}

/* Whatever is on the disks, SECTOR has its bit, and all bytes VALUE. */
static void
check_durable (uint64_t sector, int value)
{
  unsigned i;

  for (i = 0; i < 20; i++) {
    struct rng rng = { i };
    struct sim_world after_world;
    struct sim_store image_after, metadata_after;

    sim_world_init (&after_world);
    sim_store_crash (&image_after, &after_world, &image_store, &rng);
    sim_store_crash (&metadata_after, &after_world, &metadata_store, &rng);
    CHECK_EQ (sim_store_byte (&image_after, sector * SECTOR), value);
    CHECK (sim_store_byte (&metadata_after, FORMAT_HEADER_BYTES) &
           1u << sector);
    sim_store_clear (&image_after);
    sim_store_clear (&metadata_after);
    sim_world_clear (&after_world);
  }
}

static void
test_bits_of_a_killed_server (bool fua, bool same_sector)
{
  const uint64_t sector = same_sector ? 1 : 2;

  begin_after_a_killed_server ();
  MUST (WRITE, .offset = sector * SECTOR, .count = SECTOR, .byte = 5,
        .flags = fua ? IMAGE_FUA : 0);
  if (!fua)
    flush ();
  check_durable (sector, 5);

  /* From then on they are known to be. */
  sim_log_clear (&world);
  write_to (sector * SECTOR, 1, 1);
  flush ();
  MUST (WRITE, .offset = SECTOR, .count = 1, .flags = IMAGE_FUA);
  CHECK_EQ (world.nr_events, 3);
  end ();
}

/* The same, but the first sync fails, and after it the system takes what it
 * did not write for written: also the bits that were found, which are in no
 * page that is uncommitted.
 */
static void
test_found_bits_are_forgotten (bool other_bits)
{
  begin_after_a_killed_server ();
  metadata_store.forgets = true;
  write_to (2 * SECTOR, SECTOR, 5);
  if (other_bits)
    write_to (4 * SECTOR, SECTOR, 6);
  sim_fail (&metadata.port, SIM_FLUSH, 1, EIO, 1);
  MUST_FAIL (FAULT_METADATA, EIO, FLUSH);
  MUST_FAIL (FAULT_METADATA, EIO, FLUSH);

  /* Nor is it enough to try: they must be written. */
  sim_fail (&metadata.port, SIM_WRITE, 1, ENOSPC, 0);
  MUST_FAIL (FAULT_METADATA, ENOSPC, FLUSH);
  sim_fail (&metadata.port, SIM_READ, 1, EIO, 0);
  MUST_FAIL (FAULT_METADATA, EIO, FLUSH);
  flush ();
  check_durable (2, 5);
  if (other_bits)
    check_durable (4, 6);
  CHECK_EQ (sim_store_byte (&metadata_store, 0), 'h');

  /* Once is enough. */
  sim_log_clear (&world);
  write_to (6 * SECTOR, SECTOR, 7);
  flush ();
  CHECK_EQ (sim_log_count (&world, &metadata.port, SIM_WRITE), 1);
  CHECK_EQ (sim_log_count (&world, &metadata.port, SIM_FLUSH), 1);
  check_durable (6, 7);
  end ();
}

/* They are in pages that nobody has asked for, too; and what is a hole, or
 * zero, is left as it is.
 */
static void
test_found_bits_far_away (void)
{
  const uint64_t far = FORMAT_HEADER_BYTES + 200 * 1024;

  begin (8 * 1024 * 1024, 8 * SECTOR);
  metadata_store.track = metadata_store.forgets = true;
  metadata_store.knows_holes = true;
  sim_store_put (&metadata_store, "h", 1, 0);
  CHECK_EQ (metadata.image.ops->write (&metadata.image, "\1", 1, far, 0), 0);
  sim_fail (&metadata.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_METADATA, EIO, FLUSH);
  sim_log_clear (&world);
  flush ();
  CHECK (sim_log_count (&world, &metadata.port, SIM_READ) <= 2);
  CHECK_EQ (sim_log_count (&world, &metadata.port, SIM_WRITE), 1);
  CHECK (sim_log_get (&world, &metadata.port, SIM_WRITE, 0).count <= 65536);
  CHECK (!sim_store_is_data (&metadata_store, FORMAT_HEADER_BYTES + 8192));
  {
    struct rng rng = { 1 };
    struct sim_world after_world;
    struct sim_store after;

    sim_world_init (&after_world);
    sim_store_crash (&after, &after_world, &metadata_store, &rng);
    CHECK_EQ (sim_store_byte (&after, far), 1);
    sim_store_clear (&after);
    sim_world_clear (&after_world);
  }
  end ();
}

/*--- Races on first touch. --------------------------------------------*/

static void
test_races (void)
{
  const struct request part = REQUEST (WRITE, .offset = 2 * SECTOR + 100,
                                       .count = 50, .byte = 1);
  const struct request whole = REQUEST (WRITE, .offset = 2 * SECTOR,
                                        .count = SECTOR, .byte = 2);
  struct request a, b;

  /* A partial write reads the backing file or writes the sector; a whole
   * write to it comes and is newer.
   */
  begin (16, 16 * SECTOR);
  a = part;
  b = whole;
  race (&a, &backing.port, SIM_READ, 2 * SECTOR, &b, true);
  check_bytes (2 * SECTOR, SECTOR, 2);
  end ();

  begin (16, 16 * SECTOR);
  a = part;
  b = whole;
  race (&a, &image.port, SIM_WRITE, 2 * SECTOR, &b, true);
  check_bytes (2 * SECTOR, SECTOR, 2);
  check_base (SECTOR, SECTOR);
  end ();

  /* The other way round: the part is newer, the rest the whole's. */
  begin (16, 16 * SECTOR);
  a = whole;
  b = part;
  race (&a, &image.port, SIM_WRITE, 2 * SECTOR, &b, true);
  CHECK_EQ (backing_reads (), 0);
  check_bytes (2 * SECTOR, 100, 2);
  check_bytes (2 * SECTOR + 100, 50, 1);
  check_bytes (2 * SECTOR + 150, SECTOR - 150, 2);
  end ();

  /* Two parts of a sector: both stay. */
  begin (16, 16 * SECTOR);
  a = part;
  b = REQUEST (WRITE, .offset = 2 * SECTOR + 300, .count = 5, .byte = 3);
  race (&a, &backing.port, SIM_READ, 2 * SECTOR, &b, true);
  CHECK_EQ (backing_reads (), 1);
  check_bytes (2 * SECTOR + 100, 50, 1);
  check_bytes (2 * SECTOR + 300, 5, 3);
  check_base (2 * SECTOR, 100);
  check_base (2 * SECTOR + 150, 150);
  end ();

  /* The head and the tail of a longer write, zeroes, a trim. */
  begin (16, 16 * SECTOR);
  a = REQUEST (WRITE, .offset = SECTOR + 9, .count = 4 * SECTOR, .byte = 1);
  b = REQUEST (WRITE, .offset = 5 * SECTOR, .count = SECTOR, .byte = 2);
  race (&a, &backing.port, SIM_READ, 5 * SECTOR, &b, true);
  check_bytes (5 * SECTOR, SECTOR, 2);
  check_bytes (SECTOR + 9, 4 * SECTOR - 9, 1);
  check_base (SECTOR, 9);
  end ();

  begin (16, 16 * SECTOR);
  a = REQUEST (ZERO, .offset = SECTOR + 9, .count = 4 * SECTOR);
  b = REQUEST (WRITE, .offset = SECTOR, .count = SECTOR, .byte = 2);
  race (&a, &image.port, SIM_WRITE, SECTOR, &b, true);
  check_bytes (SECTOR, SECTOR, 2);
  check_bytes (2 * SECTOR, 3 * SECTOR + 9, 0);
  end ();

  begin (16, 16 * SECTOR);
  a = REQUEST (TRIM, .offset = SECTOR, .count = 4 * SECTOR);
  b = REQUEST (WRITE, .offset = 2 * SECTOR, .count = SECTOR, .byte = 2);
  race (&a, &image.port, SIM_ZERO, SECTOR, &b, true);
  check_bytes (2 * SECTOR, SECTOR, 2);
  end ();

  begin (16, 16 * SECTOR);
  a = part;
  b = REQUEST (ZERO, .offset = SECTOR, .count = 4 * SECTOR);
  race (&a, &backing.port, SIM_READ, 2 * SECTOR, &b, true);
  check_bytes (SECTOR, 4 * SECTOR, 0);
  end ();

  begin (16, 16 * SECTOR);
  a = part;
  b = REQUEST (TRIM, .offset = SECTOR, .count = 4 * SECTOR);
  race (&a, &backing.port, SIM_READ, 2 * SECTOR, &b, true);
  check_bytes (SECTOR, SECTOR, 0);
  check_bytes (3 * SECTOR, 2 * SECTOR, 0);
  end ();
}

/* Who is not in the way does not wait. */
static void
test_no_needless_waits (void)
{
  const struct request part = REQUEST (WRITE, .offset = 2 * SECTOR + 100,
                                       .count = SECTOR, .byte = 1);
  struct request a, b;

  /* Allocated sectors, elsewhere and in the very range that is held. */
  begin (16, 16 * SECTOR);
  write_to (3 * SECTOR, SECTOR, 7);
  write_to (8 * SECTOR, SECTOR, 7);
  a = part;
  b = REQUEST (WRITE, .offset = 8 * SECTOR + 1, .count = 10, .byte = 2);
  race (&a, &backing.port, SIM_READ, 2 * SECTOR, &b, false);
  check_bytes (8 * SECTOR + 1, 10, 2);
  end ();

  begin (16, 16 * SECTOR);
  write_to (3 * SECTOR, SECTOR, 7);
  a = part;
  b = REQUEST (WRITE, .offset = 3 * SECTOR + 200, .count = 10, .byte = 2);
  race (&a, &backing.port, SIM_READ, 2 * SECTOR, &b, false);
  check_bytes (3 * SECTOR + 200, 10, 2);
  check_bytes (3 * SECTOR, 100, 1);
  check_bytes (3 * SECTOR + 100, 100, 7);
  end ();

  /* Another new sector, right beside. */
  begin (16, 16 * SECTOR);
  a = part;
  b = REQUEST (WRITE, .offset = 4 * SECTOR, .count = SECTOR, .byte = 2);
  race (&a, &backing.port, SIM_READ, 2 * SECTOR, &b, false);
  b = REQUEST (WRITE, .offset = SECTOR, .count = SECTOR, .byte = 2);
  a = REQUEST (WRITE, .offset = 6 * SECTOR, .count = 1, .byte = 2);
  race (&a, &image.port, SIM_WRITE, 6 * SECTOR, &b, false);
  end ();

  /* Readers, who see the old data; and flushes. */
  begin (16, 16 * SECTOR);
  a = part;
  b = REQUEST (READ, .offset = 2 * SECTOR, .count = 2 * SECTOR);
  race (&a, &image.port, SIM_WRITE, 3 * SECTOR, &b, false);
  CHECK_EQ (b.buf[100], base_byte (2 * SECTOR + 100));
  CHECK_EQ (b.buf[SECTOR], base_byte (3 * SECTOR));
  end ();

  begin (16, 16 * SECTOR);
  write_to (8 * SECTOR, SECTOR, 7);
  a = part;
  b = REQUEST (FLUSH);
  race (&a, &image.port, SIM_WRITE, 2 * SECTOR, &b, false);
  CHECK (!disk_bit (2) && !disk_bit (3) && disk_bit (8));
  end ();
}

/* Extents that alternate: a reply has an end, and what it tells is true. */
static unsigned nr_extents;
static uint64_t extents_end;

static int
count_alternating (void *opaque UNUSED, uint64_t count, unsigned type)
{
  CHECK_EQ (count, SECTOR);
  CHECK_EQ (type, nr_extents % 2 ? EXTENT_HOLE | EXTENT_ZERO : 0);
  nr_extents++;
  extents_end += count;
  return 0;
}

/* Of a map that alternates, or of an image that does. */
static void
test_many_extents (bool map_does)
{
  const uint64_t nr_sectors = 140000;
  struct fault fault;
  uint64_t i;

  begin (nr_sectors, 0);
  world.no_log = true;
  if (!map_does)
    MUST (ZERO, .count = nr_sectors * SECTOR, .flags = IMAGE_MAY_TRIM);
  for (i = 0; i < nr_sectors; i += 2)
    write_to (i * SECTOR, SECTOR, 1);
  nr_extents = 0;
  extents_end = 0;
  CHECK_EQ (overlay_extents (ov, &image.image, nr_sectors * SECTOR, 0,
                             count_alternating, NULL, &fault),
            0);
  CHECK_EQ (nr_extents, 65536);
  CHECK_EQ (extents_end, 65536 * SECTOR);
  end ();
}

static int
count_data (void *opaque UNUSED, uint64_t count, unsigned type)
{
  CHECK_EQ (type, 0);
  nr_extents++;
  extents_end += count;
  return 0;
}

/* A map that alternates, over files that are data all over: there is one
 * extent, but looking for its end has an end; and so have hints.
 */
static void
test_many_calls (void)
{
  const uint64_t nr_sectors = 140000;
  struct fault fault;
  uint64_t i;

  begin (nr_sectors, nr_sectors * SECTOR);
  image_store.knows_holes = false;
  backing_store.knows_holes = false;
  world.no_log = true;
  for (i = 0; i < nr_sectors; i += 2)
    write_to (i * SECTOR, SECTOR, 1);
  world.no_log = false;
  nr_extents = 0;
  extents_end = 0;
  CHECK_EQ (overlay_extents (ov, &image.image, nr_sectors * SECTOR, 0,
                             count_data, NULL, &fault),
            0);
  CHECK_EQ (nr_extents, 1);
  CHECK_EQ (extents_end, 65536 * SECTOR);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_EXTENTS), 65536 / 2);
  CHECK_EQ (sim_log_count (&world, &backing.port, SIM_EXTENTS), 65536 / 2);

  CHECK_EQ (overlay_cache (ov, &image.image, nr_sectors * SECTOR, 0, &fault),
            0);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_CACHE), 65536 / 2);
  CHECK_EQ (sim_log_count (&world, &backing.port, SIM_CACHE), 65536 / 2);
  end ();
}

static unsigned nr_one_sectors;

static int
one_sector (struct image *i UNUSED, uint64_t count UNUSED,
            uint64_t offset UNUSED, extent_fn *fn, void *opaque)
{
  nr_one_sectors++;
  return fn (opaque, SECTOR, 0);
}

/* The same of an image that tells of a little at a time. */
static void
test_many_small_extents (void)
{
  const uint64_t nr_sectors = 140000;
  const struct image_ops *sim_ops;
  struct image_ops ops;
  struct fault fault;

  begin (nr_sectors, 0);
  MUST (ZERO, .count = nr_sectors * SECTOR);
  sim_ops = image.image.ops;
  ops = *sim_ops;
  ops.extents = one_sector;
  image.image.ops = &ops;
  nr_extents = 0;
  extents_end = 0;
  CHECK_EQ (overlay_extents (ov, &image.image, nr_sectors * SECTOR, 0,
                             count_data, NULL, &fault),
            0);
  CHECK_EQ (nr_one_sectors, 65536);
  CHECK_EQ (nr_extents, 1);
  CHECK_EQ (extents_end, 65536 * SECTOR);
  image.image.ops = sim_ops;
  end ();
}

/*--- Races of commits. ------------------------------------------------*/

/* Bits that come while the image is flushed, or later, are not in that
 * commit: their data may be in no flush.
 */
static void
test_bits_during_commit (struct sim_image *file, enum sim_op op)
{
  struct request a = REQUEST (FLUSH);
  struct gate gate;

  begin (16, 16 * SECTOR);
  write_to (0, SECTOR, 1);
  sim_hold (&file->port, op, SIM_ANYWHERE, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  MUST (WRITE, .offset = SECTOR, .count = SECTOR, .through = &other);
  write_to (2 * SECTOR + 5, 5, 1);
  gate_open (&gate);
  finish (&a);
  CHECK_EQ (a.r, 0);
  sim_no_gates (&file->port);
  CHECK (disk_bit (0) && !disk_bit (1) && !disk_bit (2));
  CHECK (overlay_uncommitted (ov));
  sim_log_clear (&world);
  flush ();
  CHECK (disk_bit (0) && disk_bit (1) && disk_bit (2));
  CHECK_EQ (image_ops (SIM_FLUSH), 1);
  CHECK (!overlay_uncommitted (ov));
  end ();
}

/* One flush runs, held; two more come; they share the next commit. */
static void
test_shared_commit (struct sim_image *file, enum sim_op op, int err,
                    enum fault_part part)
{
  struct request a = REQUEST (FLUSH), b = a, c = a;
  struct gate gate;

  begin (16, 16 * SECTOR);
  write_to (0, SECTOR, 1);
  sim_hold (&image.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  write_to (SECTOR, SECTOR, 1);
  start (&b);
  start (&c);
  CHECK (is (&b, WORKER_WAITING));
  CHECK (is (&c, WORKER_WAITING));
  if (err)
    sim_fail (&file->port, op, file == &image ? 1 : 2, err, 0);
  gate_open (&gate);
  finish (&a);
  finish (&b);
  finish (&c);
  sim_no_gates (&image.port);
  CHECK_EQ (a.r, 0);
  CHECK_EQ (image_ops (SIM_FLUSH), 2);
  CHECK_EQ (b.r, err ? -1 : 0);
  CHECK_EQ (c.r, err ? -1 : 0);
  if (err) {
    CHECK (b.fault.part == part && b.fault.err == err);
    CHECK (c.fault.part == part && c.fault.err == err);
    CHECK (overlay_uncommitted (ov));
    sim_log_clear (&world);
    flush ();
    CHECK_EQ (metadata_ops (SIM_WRITE), 1);
  }
  else
    CHECK_EQ (metadata_ops (SIM_FLUSH), 2);
  CHECK (disk_bit (0) && disk_bit (1));
  CHECK (!overlay_uncommitted (ov));
  end ();
}

/* The same, but who shares a commit that fails wakes up late, when the
 * one after that has been good.  The image may have lost what was written
 * before the one that failed, so the flush has failed.
 */
static void
test_late_sharer (bool first_fails)
{
  struct request a = REQUEST (FLUSH), b = a, c = a;
  struct gate gate;

  begin (16, 16 * SECTOR);
  write_to (0, SECTOR, 1);
  sim_hold (&image.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  start (&a);
  write_to (SECTOR, SECTOR, 1);
  start (&b);
  start (&c);
  CHECK (is (&b, WORKER_WAITING) && is (&c, WORKER_WAITING));
  worker_park (&c.worker, true);
  sim_fail (&image.port, SIM_FLUSH, first_fails ? 1 : 2, EIO, 0);
  gate_open (&gate);
  finish (&a);
  finish (&b);
  CHECK_EQ (a.r, 0);
  CHECK_EQ (b.r, first_fails ? -1 : 0);
  workers_settle ();
  CHECK (is (&c, WORKER_PARKED));

  write_to (2 * SECTOR, SECTOR, 1);
  if (first_fails)
    flush ();
  else
    MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  worker_park (&c.worker, false);
  finish (&c);
  sim_no_gates (&image.port);
  CHECK_EQ (c.r, first_fails ? -1 : 0);
  if (first_fails)
    CHECK (c.fault.part == FAULT_IMAGE && c.fault.err == EIO);
  end ();
}

/* Who finds its commit over goes on, though another one has begun. */
static void
test_sharer_goes_on (void)
{
  struct request a = REQUEST (FLUSH), b = a, c = a, d = a;
  struct gate first, later;

  begin (16, 16 * SECTOR);
  write_to (0, SECTOR, 1);
  sim_hold (&image.port, SIM_FLUSH, SIM_ANYWHERE, &first);
  start (&a);
  start (&b);
  start (&c);
  CHECK (is (&b, WORKER_WAITING) && is (&c, WORKER_WAITING));
  worker_park (&c.worker, true);
  gate_open (&first);
  finish (&a);
  finish (&b);
  workers_settle ();

  write_to (SECTOR, SECTOR, 1);
  sim_hold (&image.port, SIM_FLUSH, SIM_ANYWHERE, &later);
  start (&d);
  CHECK (is (&d, WORKER_HELD));
  worker_park (&c.worker, false);
  workers_settle ();
  CHECK (is (&c, WORKER_DONE));
  CHECK (is (&d, WORKER_HELD));
  gate_open (&later);
  finish (&c);
  finish (&d);
  CHECK (c.r == 0 && d.r == 0);
  CHECK_EQ (image_ops (SIM_FLUSH), 3);
  end ();
}

/* A flush that comes when a commit has taken its bits is not content with
 * that one.
 */
static void
test_flush_during_commit (void)
{
  struct request a = REQUEST (FLUSH), b = a;
  struct gate gate;
  struct sim_event e;

  begin (16, 16 * SECTOR);
  write_to (0, SECTOR, 1);
  sim_hold (&metadata.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  write_to (0, SECTOR, 2); /* allocated: its bit is in that commit */
  start (&b);
  CHECK (is (&b, WORKER_WAITING));
  gate_open (&gate);
  finish (&a);
  finish (&b);
  sim_no_gates (&metadata.port);
  CHECK_EQ (b.r, 0);
  CHECK_EQ (image_ops (SIM_FLUSH), 2);
  e = sim_log_get (&world, &image.port, SIM_FLUSH, 1);
  CHECK (e.begin > sim_log_get (&world, &image.port, SIM_WRITE, 1).end);
  end ();
}

/* Who flushes again and again alone never waits for company, though there
 * was some once.
 */
static void
test_alone (void)
{
  struct request a = REQUEST (FLUSH), b = a, c = a;
  struct gate gate;
  double until;
  unsigned i;

  begin (16, 16 * SECTOR);
  write_to (0, SECTOR, 1);
  sim_hold (&image.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  start (&a);
  start (&b);
  start (&c);
  /* A commit that is slow makes no longer waits. */
  until = seconds_now () + 2.5 * MAX_WAIT_NS / 1e9;
  while (seconds_now () < until)
    ;
  gate_open (&gate);
  finish (&a);
  finish (&b);
  finish (&c);
  sim_no_gates (&image.port);
  write_to (SECTOR, SECTOR, 1);
  flush (); /* may wait for the other two, see MAX_WAIT_NS */
  nr_timed_waits = 0;
  for (i = 2; i < 16; i++) {
    write_to (i * SECTOR, SECTOR, 1);
    flush ();
  }
  CHECK_EQ (nr_timed_waits, 0);
  end ();
}

/* A, a commit, is over; B, which waited for it, runs the next one, which
 * has no bits to write, and is held while it flushes THROUGH.
 */
static void
hold_empty_commit (struct request *a, struct request *b,
                   struct sim_image *through, struct gate *gate)
{
  struct gate first;

  *a = *b = REQUEST (FLUSH);
  write_to (0, SECTOR, 1);
  sim_hold (&through->port, SIM_FLUSH, SIM_ANYWHERE, &first);
  start (a);
  CHECK (is (a, WORKER_HELD));
  start (b);
  CHECK (is (b, WORKER_WAITING));
  worker_park (&b->worker, true);
  gate_open (&first);
  finish (a);
  CHECK_EQ (a->r, 0);
  sim_no_gates (&through->port);
  CHECK (!overlay_uncommitted (ov));

  sim_hold (&through->port, SIM_FLUSH, SIM_ANYWHERE, gate);
  worker_park (&b->worker, false);
  workers_settle ();
  CHECK (is (b, WORKER_HELD));
}

/* The system's answer to a commit may be that data was lost.  A flush and
 * a FUA write that overlap it are not done before that is known.
 */
static void
test_overlapping_commit (void)
{
  struct request a, b, c;
  struct gate gate, write_gate;

  begin (16, 16 * SECTOR);
  hold_empty_commit (&a, &b, &image, &gate);
  c = REQUEST (FLUSH, .through = &other);
  start (&c);
  CHECK (is (&c, WORKER_WAITING));
  gate_open (&gate);
  finish (&b);
  finish (&c);
  CHECK (b.r == 0 && c.r == 0);
  sim_no_gates (&image.port);

  /* It begins while the image has the FUA write, and is not over after. */
  a = REQUEST (WRITE, .count = SECTOR, .flags = IMAGE_FUA, .byte = 2);
  b = REQUEST (FLUSH, .through = &other);
  sim_hold (&image.port, SIM_WRITE, 0, &write_gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  MUST (WRITE, .offset = SECTOR, .count = SECTOR, .through = &other);
  sim_fail (&other.port, SIM_FLUSH, 1, EIO, 0);
  sim_hold (&other.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  start (&b);
  CHECK (is (&b, WORKER_HELD));
  gate_open (&write_gate);
  workers_settle ();
  CHECK (is (&a, WORKER_WAITING));
  gate_open (&gate);
  finish (&a);
  finish (&b);
  CHECK (a.r == -1 && a.fault.part == FAULT_IMAGE && a.fault.err == EIO);
  CHECK (b.r == -1 && b.fault.part == FAULT_IMAGE && b.fault.err == EIO);
  end ();
}

/* An image that goes, with nothing to commit, waits for the commit that
 * is flushing it, and for no longer.
 */
static void
test_detach_during_walk (void)
{
  struct request a, b, d = REQUEST (DETACH, .through = &other);
  struct gate gate;

  begin (16, 16 * SECTOR);
  image.image.multi_conn = other.image.multi_conn = false;
  hold_empty_commit (&a, &b, &other, &gate);
  start (&d);
  CHECK (is (&d, WORKER_WAITING));
  gate_open (&gate);
  finish (&b);
  finish (&d);
  CHECK (b.r == 0 && d.r == 0);
  sim_no_gates (&other.port);
  overlay_attach (ov, &other.image);
  end ();
}

/* An image is let go of when no commit uses it any more. */
static void
test_detach_waits (void)
{
  struct request a = REQUEST (FLUSH, .through = &image);
  struct request b = REQUEST (COMMIT);
  struct request d = REQUEST (DETACH, .through = &other);
  struct gate gate;
  struct fault fault;

  /* "other" was attached last, so a commit through any takes that. */
  begin (16, 16 * SECTOR);
  write_to (0, SECTOR, 1);
  sim_hold (&metadata.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  start (&b); /* uses "other", waits its turn */
  CHECK (is (&b, WORKER_WAITING));
  start (&d);
  CHECK (is (&d, WORKER_WAITING));
  worker_park (&b.worker, true);
  gate_open (&gate);
  finish (&a);
  workers_settle ();
  /* All is committed, but the other commit has its hands on it. */
  CHECK (!overlay_uncommitted (ov));
  CHECK (is (&b, WORKER_PARKED));
  CHECK (is (&d, WORKER_WAITING));
  worker_park (&b.worker, false);
  finish (&b);
  finish (&d);
  CHECK (a.r == 0 && b.r == 0 && d.r == 0);
  sim_no_gates (&metadata.port);

  /* It is not used any more. */
  sim_log_clear (&world);
  image.image.multi_conn = false;
  write_to (SECTOR, SECTOR, 1);
  flush ();
  MUST (WRITE, .offset = 2 * SECTOR, .count = SECTOR);
  MUST (COMMIT);
  CHECK_EQ (sim_log_count (&world, &other.port, SIM_FLUSH), 0);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_FLUSH), 2);
  overlay_attach (ov, &other.image);
  end ();

  /* A commit that flushes all images, one of which is to go. */
  begin (16, 16 * SECTOR);
  image.image.multi_conn = other.image.multi_conn = false;
  MUST (WRITE, .offset = 0, .count = SECTOR, .through = &other);
  sim_hold (&other.port, SIM_FLUSH, SIM_ANYWHERE, &gate);
  a = REQUEST (FLUSH);
  d = REQUEST (DETACH, .through = &other);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  start (&d);
  CHECK (is (&d, WORKER_WAITING));
  gate_open (&gate);
  finish (&a);
  finish (&d);
  CHECK (a.r == 0 && d.r == 0);
  CHECK (disk_bit (0));
  CHECK_EQ (overlay_detach (ov, &image.image, &fault), 0);
  overlay_attach (ov, &image.image);
  overlay_attach (ov, &other.image);
  end ();
}

/* A write is under way, its first sector in the image, when a flush fails
 * and when the next one has made up for that: that sector was of those that
 * may be lost, though its bit was not set.
 */
static void
test_forgetful_image_during_touch (void)
{
  struct request a = REQUEST (WRITE, .offset = 100, .count = 2 * SECTOR,
                              .byte = 1);
  struct request b = REQUEST (FLUSH, .through = &other);
  struct sim_world after_world;
  struct sim_store after;
  struct rng rng = { 8 };
  struct gate gate;
  unsigned i;

  begin (16, 16 * SECTOR);
  image_store.track = image_store.forgets = true;
  sim_hold (&image.port, SIM_WRITE, 2 * SECTOR, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  sim_fail (&other.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &other);
  start (&b);
  CHECK (is (&b, WORKER_WAITING));
  gate_open (&gate);
  finish (&a);
  finish (&b);
  CHECK (a.r == 0 && b.r == 0);
  sim_no_gates (&image.port);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  flush ();
  CHECK (disk_bit (0) && disk_bit (1) && disk_bit (2));
  for (i = 0; i < 20; i++) {
    sim_world_init (&after_world);
    sim_store_crash (&after, &after_world, &image_store, &rng);
    CHECK_EQ (sim_store_byte (&after, 0), base_byte (0));
    CHECK_EQ (sim_store_byte (&after, 100), 1);
    CHECK_EQ (sim_store_byte (&after, 3 * SECTOR - 1),
              base_byte (3 * SECTOR - 1));
    sim_store_clear (&after);
    sim_world_clear (&after_world);
  }
  end ();
}

/*--- Filling. ---------------------------------------------------------*/

/* Is SECTOR allocated?  Reads it. */
static bool
is_allocated (uint64_t sector)
{
  const size_t nr = backing_reads ();

  read_range (sector * SECTOR, SECTOR);
  return backing_reads () == nr;
}

/* One step at OFFSET, of as much as COUNT: N bytes in one state. */
static void
fill_step (uint64_t count, uint64_t offset, uint64_t n, bool was_allocated,
           bool data)
{
  struct request q = REQUEST (FILL, .count = count, .offset = offset,
                              .through = &image);

  run (&q);
  CHECK_EQ (q.r, 0);
  CHECK_EQ (q.filled.nr_bytes, n);
  CHECK_EQ (q.filled.was_allocated, was_allocated);
  CHECK_EQ (q.filled.nr_copied, data ? n : 0);
}

static uint64_t
count_of (enum sim_op op, size_t n)
{
  return sim_log_get (&world, &image.port, op, n).count;
}

/* Make [SECTOR, SECTOR + N) of the backing file zeroes that are data. */
static void
blank (uint64_t sector, uint64_t n)
{
  static const uint8_t zeroes[SECTOR];

  for (; n > 0; n--, sector++)
    sim_store_put (&backing_store, zeroes, SECTOR, sector * SECTOR);
}

static void
test_missed (void)
{
  memset (&missed, 0, sizeof missed);
  begin (16, 16 * SECTOR);
  write_to (3 * SECTOR, SECTOR, 1);
  CHECK_EQ (missed.nr, 0);
  MUST (READ, .offset = 100, .count = 10, .through = &other);
  CHECK_EQ (missed.nr, 1);
  CHECK (missed.image == &other.image);
  CHECK_EQ (missed.offset, 100);
  CHECK_EQ (missed.count, 10);
  CHECK_EQ (missed.first_byte, base_byte (100));
  MUST (READ, .offset = 3 * SECTOR + 1, .count = 100);
  CHECK_EQ (missed.nr, 1);
  MUST (READ, .offset = 2 * SECTOR + 9, .count = 3 * SECTOR);
  CHECK_EQ (missed.nr, 3);
  CHECK (missed.image == &image.image);
  CHECK_EQ (missed.offset, 4 * SECTOR);
  CHECK_EQ (missed.count, SECTOR + 9);
  CHECK_EQ (missed.total, 10 + 2 * SECTOR);
  CHECK_EQ (missed.first_byte, base_byte (4 * SECTOR));
  sim_fail (&backing.port, SIM_READ, 1, EIO, 0);
  MUST_FAIL (FAULT_BACKING, EIO, READ, .offset = 0, .count = SECTOR);
  MUST (FILL_RANGE, .count = 16 * SECTOR);
  MUST (READ, .count = 16 * SECTOR);
  CHECK_EQ (missed.nr, 3);
  end ();
}

/* Each step is of one state, and what is there is left alone. */
static void
test_fill_steps (void)
{
  unsigned i;

  begin (32, 32 * SECTOR);
  write_to (4 * SECTOR, 2 * SECTOR, 1);
  nr_dirty = 0;
  flush ();
  sim_log_clear (&world);
  fill_step (32 * SECTOR, 0, 4 * SECTOR, false, true);
  CHECK_EQ (nr_dirty, 1);
  fill_step (28 * SECTOR, 4 * SECTOR, 2 * SECTOR, true, false);
  fill_step (3 * SECTOR, 6 * SECTOR, 3 * SECTOR, false, true);
  CHECK_EQ (bytes_written (), 7 * SECTOR);
  check_base (0, 4 * SECTOR);
  check_bytes (4 * SECTOR, 2 * SECTOR, 1);
  CHECK_EQ (backing_reads (), 2);
  check_base (6 * SECTOR, 26 * SECTOR);
  CHECK_EQ (backing_reads (), 3);

  /* All sectors that the range touches. */
  MUST (FILL_RANGE, .offset = 10 * SECTOR + 511, .count = SECTOR + 2);
  for (i = 0; i < 32; i++)
    CHECK_EQ (is_allocated (i), i < 9 || (i >= 10 && i < 13));
  sim_log_clear (&world);
  MUST (FILL_RANGE, .offset = 5 * SECTOR, .count = 4 * SECTOR - 1);
  MUST (KEEP, .offset = 0, .count = 9 * SECTOR);
  CHECK_EQ (world.nr_events, 0);
  MUST (KEEP, .offset = 8 * SECTOR, .count = 6 * SECTOR);
  CHECK_EQ (bytes_written (), 2 * SECTOR);
  CHECK (is_allocated (9) && is_allocated (13) && !is_allocated (14));
  MUST (KEEP_NOW, .offset = 20 * SECTOR, .count = SECTOR);
  CHECK (is_allocated (20));
  check_base (0, 4 * SECTOR);
  check_bytes (4 * SECTOR, 2 * SECTOR, 1);
  check_base (6 * SECTOR, 26 * SECTOR);
  flush ();
  CHECK (disk_bit (0) && disk_bit (13) && disk_bit (20) && !disk_bit (14));
  end ();

  /* What is read at once is bounded. */
  begin (256, 64 * SECTOR);
  for (i = 64; i < 256; i++)
    sim_store_put (&image_store, "stale", 5, i * SECTOR);
  fill_step (256 * SECTOR, 0, 64 * SECTOR, false, true);
  fill_step (192 * SECTOR, 64 * SECTOR, 192 * SECTOR, false, false);
  CHECK_EQ (count_of (SIM_ZERO, 0), 192 * SECTOR);
  CHECK_EQ (backing_reads (), 1);
  check_base (0, 64 * SECTOR);
  for (i = 64; i < 256; i += 64)
    check_bytes (i * SECTOR, 64 * SECTOR, 0);
  end ();
}

static void
test_fill_zeroes (void)
{
  const uint64_t mib = 1024 * 1024;
  const uint64_t begin_hole = 64 * SECTOR;

  /* Great pieces where that is fast, else small ones. */
  begin (84 * mib / SECTOR, 84 * mib);
  fill_step (84 * mib - begin_hole, begin_hole, 64 * mib, false, false);
  CHECK_EQ (image_ops (SIM_ZERO), 1);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_ZERO, 0).flags,
            IMAGE_MAY_TRIM | IMAGE_FAST);
  image.port.slow_zero = true;
  fill_step (20 * mib - begin_hole, 64 * mib + begin_hole, 16 * mib, false,
             false);
  CHECK_EQ (image_ops (SIM_ZERO), 3);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_ZERO, 1).flags,
            IMAGE_MAY_TRIM | IMAGE_FAST);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_ZERO, 2).flags,
            IMAGE_MAY_TRIM);
  CHECK_EQ (count_of (SIM_ZERO, 2), 16 * mib);
  CHECK_EQ (backing_reads (), 0);
  CHECK_EQ (image_ops (SIM_WRITE), 0);
  CHECK (!is_allocated ((80 * mib + begin_hole) / SECTOR));
  CHECK (is_allocated ((80 * mib + begin_hole) / SECTOR - 1));
  MUST (FILL_RANGE, .count = 84 * mib);
  flush ();
  CHECK (overlay_stands_alone (ov));
  end ();

  /* Whole blocks of zeroes become holes, wherever reading begins. */
  begin (64, 64 * SECTOR);
  blank (8, 9);
  blank (28, 4);
  MUST (KEEP, .offset = 0, .count = SECTOR);
  fill_step (63 * SECTOR, SECTOR, 63 * SECTOR, false, true);
  CHECK_EQ (image_ops (SIM_ZERO), 1);
  CHECK_EQ (count_of (SIM_ZERO, 0), 8 * SECTOR);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_ZERO, 0).offset, 8 * SECTOR);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_ZERO, 0).flags,
            IMAGE_MAY_TRIM);
  CHECK (!sim_store_is_data (&image_store, 8 * SECTOR));
  CHECK (sim_store_is_data (&image_store, 16 * SECTOR));
  CHECK (sim_store_is_data (&image_store, 28 * SECTOR));
  CHECK_EQ (bytes_written (), 56 * SECTOR);
  check_base (0, 8 * SECTOR);
  check_bytes (8 * SECTOR, 9 * SECTOR, 0);
  check_base (17 * SECTOR, 11 * SECTOR);
  check_bytes (28 * SECTOR, 4 * SECTOR, 0);
  check_base (32 * SECTOR, 32 * SECTOR);
  end ();

  /* In an image that had something there. */
  begin (16, 16 * SECTOR);
  blank (0, 16);
  sim_store_put (&image_store, "stale", 5, 0);
  sim_store_put (&image_store, "stale", 5, 12 * SECTOR);
  write_to (10 * SECTOR, SECTOR, 1);
  fill_step (16 * SECTOR, 0, 10 * SECTOR, false, true);
  fill_step (5 * SECTOR, 11 * SECTOR, 5 * SECTOR, false, true);
  check_bytes (0, 10 * SECTOR, 0);
  check_bytes (10 * SECTOR, SECTOR, 1);
  check_bytes (11 * SECTOR, 5 * SECTOR, 0);
  end ();
}

/* A backing file of DATA sectors, HOLE of none, and one more. */
static void
begin_with_hole (unsigned data, unsigned hole, bool one_extent)
{
  const uint64_t nr = data + hole + 1;

  begin (nr, 0);
  overlay_close (ov);
  sim_store_clear (&backing_store);
  sim_store_init (&backing_store, &world, nr * SECTOR);
  for (; data > 0; data--)
    sim_store_put (&backing_store, "b", 1, (data - 1) * SECTOR);
  sim_store_put (&backing_store, "e", 1, (nr - 1) * SECTOR);
  sim_backing_init (&backing, &backing_store);
  backing.port.one_extent = one_extent;
  CHECK_EQ (overlay_open (&ov, &metadata.image, nr * SECTOR, &backing.backing,
                          NULL, &hooks),
            0);
  overlay_attach (ov, &image.image);
  overlay_attach (ov, &other.image);
}

static void
test_fill_holes (void)
{
  unsigned i;

  for (i = 0; i < 2; i++) {
    /* Small: read with what is around it, but a hole in the image. */
    begin_with_hole (8, 40, i);
    fill_step (49 * SECTOR, 0, 49 * SECTOR, false, true);
    CHECK_EQ (backing_reads (), 1);
    CHECK_EQ (image_ops (SIM_ZERO), 1);
    CHECK_EQ (count_of (SIM_ZERO, 0), 40 * SECTOR);
    CHECK_EQ (read_range (0, SECTOR)[0], 'b');
    CHECK_EQ (read_range (48 * SECTOR, SECTOR)[0], 'e');
    check_bytes (8 * SECTOR, 40 * SECTOR, 0);
    end ();

    /* But not if nothing comes behind it. */
    begin_with_hole (8, 40, i);
    fill_step (48 * SECTOR, 0, 8 * SECTOR, false, true);
    fill_step (40 * SECTOR, 8 * SECTOR, 40 * SECTOR, false, false);
    CHECK_EQ (backing_reads (), 1);
    end ();

    /* What is read at once is what the caller has room for. */
    begin_with_hole (100, 128, i);
    fill_step (229 * SECTOR, 0, 64 * SECTOR, false, true);
    fill_step (165 * SECTOR, 64 * SECTOR, 36 * SECTOR, false, true);
    end ();

    /* Large: not read. */
    begin_with_hole (8, 128, i);
    fill_step (137 * SECTOR, 0, 8 * SECTOR, false, true);
    fill_step (129 * SECTOR, 8 * SECTOR, 128 * SECTOR, false, false);
    fill_step (SECTOR, 136 * SECTOR, SECTOR, false, true);
    CHECK_EQ (backing_reads (), 2);
    CHECK_EQ (read_range (136 * SECTOR, SECTOR)[0], 'e');
    end ();
  }
}

static int
odd_extents (struct backing *b UNUSED, uint64_t count, uint64_t offset,
             extent_fn *fn, void *opaque)
{
  const uint64_t hole_end = 65536 + SECTOR + 100;

  if (offset >= hole_end)
    return fn (opaque, count, 0);
  return fn (opaque, MIN (count, hole_end - offset), EXTENT_ZERO);
}

/* A hole ends within a sector. */
static void
test_fill_odd_hole (void)
{
  struct backing_ops ops;

  begin_with_hole (0, 200, false);
  sim_store_put (&backing_store, "x", 1, 65536 + SECTOR + 100);
  ops = *backing.backing.ops;
  ops.extents = odd_extents;
  backing.backing.ops = &ops;
  fill_step (201 * SECTOR, 0, 65536 + SECTOR, false, false);
  fill_step (SECTOR, 65536 + SECTOR, SECTOR, false, true);
  CHECK_EQ (read_range (65536 + SECTOR, SECTOR)[100], 'x');
  end ();
}

/* The backing file is as long as it is, or there is none. */
static void
test_fill_ends (void)
{
  unsigned i;

  for (i = 0; i < 4; i++) {
    begin (20, 10 * SECTOR + 100);
    backing.port.one_extent = i & 1;
    if (i & 2)
      sim_can_copy (&image, &backing);
    fill_step (20 * SECTOR, 0, 11 * SECTOR, false, true);
    fill_step (9 * SECTOR, 11 * SECTOR, 9 * SECTOR, false, false);
    CHECK_EQ (backing_reads (), 1);
    check_base (0, 20 * SECTOR);
    CHECK (is_allocated (10) && is_allocated (19));
    end ();
  }

  begin (20, 0);
  sim_can_copy (&image, &backing);
  sim_store_put (&image_store, "stale", 5, 0);
  fill_step (20 * SECTOR, 0, 20 * SECTOR, false, false);
  check_bytes (0, 20 * SECTOR, 0);
  flush ();
  CHECK (overlay_stands_alone (ov));
  MUST (DROP);
  check_bytes (0, 20 * SECTOR, 0);
  end ();
}

static void
test_fill_copies (void)
{
  begin (16, 16 * SECTOR);
  sim_can_copy (&image, &backing);
  write_to (4 * SECTOR, SECTOR, 1);
  sim_log_clear (&world);
  fill_step (16 * SECTOR, 0, 4 * SECTOR, false, true);
  CHECK_EQ (image_ops (SIM_COPY), 1);
  CHECK_EQ (count_of (SIM_COPY, 0), 4 * SECTOR);
  CHECK_EQ (image_ops (SIM_WRITE), 0);
  CHECK_EQ (backing_reads (), 0);

  /* Through an image that cannot. */
  MUST (FILL_RANGE, .offset = 5 * SECTOR, .count = SECTOR, .through = &other);
  CHECK_EQ (image_ops (SIM_COPY), 1);
  CHECK_EQ (sim_log_count (&world, &other.port, SIM_WRITE), 1);

  /* It may fail for reasons that reading and writing know nothing of. */
  sim_fail (&image.port, SIM_COPY, 1, EXDEV, 0);
  fill_step (4 * SECTOR, 6 * SECTOR, 4 * SECTOR, false, true);
  CHECK_EQ (image_ops (SIM_COPY), 2);
  CHECK_EQ (bytes_written (), 4 * SECTOR);

  /* Or for those that they know too. */
  sim_fail (&image.port, SIM_COPY, 1, EIO, 0);
  sim_fail (&backing.port, SIM_READ, 1, EUCLEAN, 0);
  MUST_FAIL (FAULT_BACKING, EUCLEAN, FILL, .count = 4 * SECTOR,
             .offset = 10 * SECTOR);
  sim_fail (&image.port, SIM_COPY, 1, EIO, 0);
  sim_fail (&image.port, SIM_WRITE, 1, ENOSPC, 0);
  MUST_FAIL (FAULT_IMAGE, ENOSPC, FILL, .count = 4 * SECTOR,
             .offset = 10 * SECTOR);
  CHECK (!is_allocated (10));
  MUST (FILL_RANGE, .count = 16 * SECTOR);
  check_base (0, 4 * SECTOR);
  check_bytes (4 * SECTOR, SECTOR, 1);
  check_base (5 * SECTOR, 11 * SECTOR);
  end ();
}

/* What was written before it failed is allocated, and nothing else is. */
static void
test_fill_errors (void)
{
  static const enum kind kinds[] = { FILL, FILL_RANGE, KEEP, KEEP_NOW };
  struct request a, b;
  struct gate gate;
  unsigned i, s;

  for (i = 0; i < ARRAY_SIZE (kinds); i++) {
    const enum kind kind = kinds[i];

    begin (16, 16 * SECTOR);
    sim_fail (&metadata.port, SIM_EXTENTS, 1, EUCLEAN, 0);
    MUST_FAIL (FAULT_METADATA, EUCLEAN, kind, .count = 16 * SECTOR);
    if (kind == FILL || kind == FILL_RANGE) {
      sim_fail (&backing.port, SIM_EXTENTS, 1, EREMOTEIO, 0);
      MUST_FAIL (FAULT_BACKING, EREMOTEIO, kind, .count = 16 * SECTOR);
      sim_fail (&backing.port, SIM_READ, 1, EIO, 0);
      MUST_FAIL (FAULT_BACKING, EIO, kind, .count = 16 * SECTOR);
    }
    sim_fail (&image.port, SIM_WRITE, 1, ENOSPC, 0);
    MUST_FAIL (FAULT_IMAGE, ENOSPC, kind, .count = 16 * SECTOR);
    blank (8, 8);
    sim_fail (&image.port, SIM_ZERO, 1, EDQUOT, 0);
    if (kind == FILL || kind == FILL_RANGE)
      MUST_FAIL (FAULT_IMAGE, EDQUOT, kind, .count = 16 * SECTOR);
    CHECK (!overlay_uncommitted (ov));
    CHECK_EQ (nr_dirty, 0);
    MUST (kind, .count = 16 * SECTOR);
    CHECK (is_allocated (0) && is_allocated (15));
    end ();
  }

  /* In the middle: while it is read, a sector of it is written. */
  begin (16, 16 * SECTOR);
  a = REQUEST (FILL, .count = 16 * SECTOR);
  b = REQUEST (WRITE, .offset = 7 * SECTOR, .count = SECTOR, .byte = 1,
               .through = &other);
  sim_hold (&backing.port, SIM_READ, 0, &gate);
  start (&a);
  run (&b);
  sim_fail (&image.port, SIM_WRITE, 2, ENOSPC, 0);
  gate_open (&gate);
  finish (&a);
  sim_no_gates (&backing.port);
  CHECK (a.r == -1 && a.fault.part == FAULT_IMAGE && a.fault.err == ENOSPC);
  CHECK_EQ (a.filled.nr_copied, 0);
  for (s = 0; s < 16; s++)
    CHECK_EQ (is_allocated (s), s < 8);
  check_base (0, 7 * SECTOR);
  check_bytes (7 * SECTOR, SECTOR, 1);
  check_base (8 * SECTOR, 8 * SECTOR);
  flush ();
  CHECK (disk_bit (0) && disk_bit (7) && !disk_bit (8));
  end ();

  begin (16, 16 * SECTOR);
  no_memory = true;
  MUST_FAIL (FAULT_MEMORY, ENOMEM, FILL_RANGE, .count = SECTOR);
  no_memory = false;
  end ();
}

static void
test_stands_alone (void)
{
  begin (16, 16 * SECTOR);
  sim_fail (&metadata.port, SIM_EXTENTS, 1, EIO, 0);
  CHECK (!overlay_stands_alone (ov));
  CHECK (!overlay_stands_alone (ov));
  MUST (FILL_RANGE, .count = 15 * SECTOR);
  flush ();
  CHECK (!overlay_stands_alone (ov));
  write_to (15 * SECTOR, SECTOR, 1);
  CHECK (!overlay_stands_alone (ov)); /* in memory alone */

  /* It may be lost in the image, or not have come to the disk. */
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  CHECK (!overlay_stands_alone (ov));
  sim_fail (&metadata.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_METADATA, EIO, COMMIT);
  CHECK (!overlay_stands_alone (ov));
  MUST (COMMIT);
  CHECK (overlay_stands_alone (ov));
  sim_log_clear (&world);
  CHECK (overlay_stands_alone (ov));
  CHECK_EQ (world.nr_events, 0);

  /* A flush that fails when all is on disk is made up for by a commit. */
  sim_fail (&image.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  CHECK (!overlay_stands_alone (ov));
  MUST (COMMIT);
  CHECK (overlay_stands_alone (ov));
  sim_log_clear (&world);
  MUST (COMMIT);
  CHECK_EQ (world.nr_events, 0);
  end ();

  /* All pages of the map are looked at. */
  begin (2 * PAGE_SECTORS, 0);
  MUST (FILL_RANGE, .count = (2 * PAGE_SECTORS - 1) * SECTOR);
  flush ();
  CHECK (!overlay_stands_alone (ov));
  MUST (FILL_RANGE, .count = SECTOR, .offset = (2 * PAGE_SECTORS - 1) * SECTOR);
  flush ();
  CHECK (overlay_stands_alone (ov));
  end ();
}

/* FILL of all is held in OP of PORT; Q comes meanwhile, and WAITS or not,
 * and wins.
 */
static void
fill_race (enum kind fill, struct sim_port *port, enum sim_op op,
           struct request q, bool waits)
{
  struct request a = REQUEST (fill, .count = 16 * SECTOR);
  const uint64_t to = q.offset + q.count;

  begin (16, 16 * SECTOR);
  if (op == SIM_COPY)
    sim_can_copy (&image, &backing);
  race (&a, port, op, 0, &q, waits);
  check_base (0, q.offset);
  check_base (to, 16 * SECTOR - to);
  if (q.kind == KEEP || q.kind == FILL)
    check_base (q.offset, q.count);
  else
    check_bytes (q.offset, q.count, q.kind == WRITE ? q.byte : 0);
  flush ();
  CHECK (overlay_stands_alone (ov));
  end ();
}

/* While the backing file is read nobody need wait; while the image is
 * written they must.
 */
static void
test_fill_races (void)
{
  static const struct {
    enum kind kind;
    uint64_t offset, count;
  } others[] = {
    { WRITE, 0, 16 * SECTOR },         { WRITE, 0, SECTOR },
    { WRITE, 3 * SECTOR, 2 * SECTOR }, { WRITE, 15 * SECTOR, SECTOR },
    { WRITE, 5 * SECTOR + 10, 100 },   { WRITE, 5 * SECTOR + 10, 3 * SECTOR },
    { ZERO, 100, 15 * SECTOR },        { ZERO, 8 * SECTOR, 8 * SECTOR },
    { TRIM, 2 * SECTOR, 3 * SECTOR },  { KEEP, 4 * SECTOR, 4 * SECTOR },
    { FILL, 0, 16 * SECTOR },
  };
  unsigned i;

  for (i = 0; i < ARRAY_SIZE (others); i++) {
    const struct request q = REQUEST (others[i].kind,
                                      .offset = others[i].offset,
                                      .count = others[i].count, .byte = 0x11);

    fill_race (FILL, &backing.port, SIM_READ, q, false);
    fill_race (FILL_RANGE, &backing.port, SIM_READ, q, false);
    fill_race (FILL, &backing.port, SIM_EXTENTS, q, false);
    fill_race (FILL, &image.port, SIM_WRITE, q, true);
    fill_race (FILL, &image.port, SIM_COPY, q, true);
    fill_race (KEEP, &image.port, SIM_WRITE, q, true);
  }
}

/* Two that fill the same do it once; elsewhere nobody waits. */
static void
test_fill_at_a_time (void)
{
  struct request a = REQUEST (FILL, .count = 8 * SECTOR);
  struct request b = a;

  begin (16, 16 * SECTOR);
  race (&a, &backing.port, SIM_READ, 0, &b, false);
  CHECK_EQ (sim_log_count (&world, &other.port, SIM_WRITE), 1);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_WRITE), 0);
  check_base (0, 16 * SECTOR);
  end ();

  begin (16, 16 * SECTOR);
  b = REQUEST (WRITE, .offset = 8 * SECTOR, .count = SECTOR);
  race (&a, &image.port, SIM_WRITE, 0, &b, false);
  end ();
}

/* Who is not to wait does nothing where others are at work. */
static void
test_keep_now (void)
{
  struct request a = REQUEST (WRITE, .offset = 7 * SECTOR, .count = SECTOR,
                              .byte = 1);
  struct request b = REQUEST (KEEP_NOW, .count = 8 * SECTOR);

  begin (16, 16 * SECTOR);
  race (&a, &image.port, SIM_WRITE, 7 * SECTOR, &b, false);
  CHECK_EQ (sim_log_count_changes (&world, &other.port), 0);
  CHECK (is_allocated (7) && !is_allocated (0) && !is_allocated (6));
  b = REQUEST (KEEP, .count = 8 * SECTOR);
  a.offset = 8 * SECTOR;
  a.count = 2 * SECTOR;
  race (&a, &image.port, SIM_WRITE, 9 * SECTOR, &b, false);
  check_base (0, 7 * SECTOR);
  check_bytes (7 * SECTOR, 3 * SECTOR, 1);
  CHECK (is_allocated (0) && is_allocated (6));
  end ();
}

/* All is filled and committed. */
static void
stand_alone (void)
{
  MUST (FILL_RANGE, .count = 16 * SECTOR, .through = &other);
  MUST (COMMIT);
  CHECK (overlay_stands_alone (ov));
}

/* A fill that fails has filled something before: that is to be committed. */
static void
test_failed_fill_is_dirty (void)
{
  begin (3, 3 * SECTOR);
  write_to (SECTOR, SECTOR, 1);
  flush ();
  nr_dirty = 0;
  sim_fail (&image.port, SIM_WRITE, 2, ENOSPC, 0);
  MUST_FAIL (FAULT_IMAGE, ENOSPC, KEEP, .count = 3 * SECTOR);
  CHECK_EQ (nr_dirty, 1);
  MUST (COMMIT);
  CHECK (disk_bit (0) && !disk_bit (2));
  end ();
}

/* A read that fails when nobody needs the backing file any more has what it
 * wants in the image.
 */
static void
test_dropped_in_reading (void)
{
  struct request a = REQUEST (READ, .count = SECTOR);
  struct request c = REQUEST (DROP);
  struct gate gate;

  begin (16, 16 * SECTOR);
  sim_hold (&backing.port, SIM_READ, 0, &gate);
  sim_fail (&backing.port, SIM_READ, 1, EIO, 0);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  stand_alone ();
  start (&c);
  CHECK (is (&c, WORKER_WAITING));
  gate_open (&gate);
  finish (&a);
  finish (&c);
  CHECK (a.r == 0 && c.r == 0);
  CHECK_EQ (a.buf[7], base_byte (7));
  end ();
}

/* Who is in the backing file is waited for; who comes is not in it. */
static void
test_drop_waits (void)
{
  struct request a = REQUEST (READ, .count = SECTOR);
  struct request b = REQUEST (READ, .offset = SECTOR, .count = 3 * SECTOR);
  struct request c = REQUEST (DROP);
  struct gate first, second;

  begin (16, 16 * SECTOR);
  sim_hold (&backing.port, SIM_READ, 0, &first);
  sim_hold (&backing.port, SIM_READ, SECTOR, &second);
  start (&a);
  start (&b);
  CHECK (is (&a, WORKER_HELD) && is (&b, WORKER_HELD));
  stand_alone ();
  CHECK (!overlay_drop_backing (ov, false));
  start (&c);
  CHECK (is (&c, WORKER_WAITING));
  check_base (0, 16 * SECTOR);
  gate_open (&second);
  workers_settle ();
  CHECK (is (&b, WORKER_DONE));
  CHECK (is (&c, WORKER_WAITING));
  check_base (0, 16 * SECTOR);
  gate_open (&first);
  finish (&a);
  finish (&b);
  finish (&c);
  CHECK (a.r == 0 && b.r == 0);
  CHECK_EQ (a.buf[7], base_byte (7));
  CHECK_EQ (b.buf[2 * SECTOR], base_byte (3 * SECTOR));
  sim_no_gates (&backing.port);

  backing_close (&backing.backing);
  check_base (0, 16 * SECTOR);
  MUST (KEEP, .count = 16 * SECTOR);
  write_to (SECTOR + 1, SECTOR, 1);
  MUST (FILL_RANGE, .count = 16 * SECTOR);
  MUST (EXTENTS, .count = 16 * SECTOR);
  MUST (CACHE, .count = 16 * SECTOR);
  check_base (0, SECTOR + 1);
  check_bytes (SECTOR + 1, SECTOR, 1);
  CHECK (overlay_stands_alone (ov));
  end ();
}

/* In whatever way. */
static void
test_drop_waits_for (enum kind kind, enum sim_op op)
{
  struct request a = REQUEST (kind, .count = 4 * SECTOR);
  struct request b = REQUEST (DROP);
  struct gate gate;

  begin (16, 16 * SECTOR);
  sim_hold (&backing.port, op, 0, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  stand_alone ();
  start (&b);
  CHECK (is (&b, WORKER_WAITING));
  gate_open (&gate);
  finish (&a);
  finish (&b);
  CHECK_EQ (a.r, 0);
  sim_no_gates (&backing.port);
  backing_close (&backing.backing);
  check_base (0, 16 * SECTOR);
  end ();
}

/* Who found a sector clear, and comes to the backing file when it is gone:
 * the sector is in the image.
 */
static void
test_dropped_meanwhile (void)
{
  static const enum kind kinds[] = { READ,  EXTENTS,    CACHE, FILL,
                                     WRITE, FILL_RANGE, KEEP };
  struct gate gate;
  unsigned i;

  for (i = 0; i < ARRAY_SIZE (kinds); i++) {
    struct request q = REQUEST (kinds[i], .count = 4 * SECTOR,
                                .offset = 2 * SECTOR, .byte = 1);

    if (q.kind == WRITE) {
      q.offset += 10;
      q.count = 20;
    }
    begin (16, 16 * SECTOR);
    gate = (struct gate){ .taken = false };
    looked_up = &gate;
    q.through = &image;
    if (q.kind == KEEP) /* looks when it has the range */
      gate.taken = gate.open = true;
    start (&q);
    CHECK_EQ (is (&q, WORKER_HELD), q.kind != KEEP);
    stand_alone ();
    MUST (DROP);
    backing_close (&backing.backing);
    gate_open (&gate);
    finish (&q);
    looked_up = NULL;
    CHECK_EQ (q.r, 0);
    if (q.kind == READ)
      CHECK_EQ (q.buf[SECTOR], base_byte (3 * SECTOR));
    if (q.kind == EXTENTS)
      CHECK_EQ (q.extent_type, 0);
    if (q.kind == CACHE)
      CHECK_EQ (image_ops (SIM_CACHE), 1);
    if (q.kind == FILL)
      CHECK (q.filled.was_allocated);
    if (q.kind == WRITE) {
      check_base (0, 2 * SECTOR + 10);
      check_bytes (2 * SECTOR + 10, 20, 1);
      check_base (2 * SECTOR + 30, SECTOR);
    }
    else
      check_base (0, 16 * SECTOR);
    end ();
  }
}

/* The same between one extent and the next. */
static void
test_dropped_during_extents (void)
{
  struct request a = REQUEST (EXTENTS, .count = 129 * SECTOR);
  struct request b = REQUEST (DROP);
  struct gate gate;

  begin_with_hole (0, 128, true);
  sim_hold (&backing.port, SIM_EXTENTS, 0, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  MUST (FILL_RANGE, .count = 129 * SECTOR, .through = &other);
  MUST (COMMIT);
  start (&b);
  CHECK (is (&b, WORKER_WAITING));
  gate_open (&gate);
  finish (&a);
  finish (&b);
  CHECK_EQ (a.r, 0);
  CHECK_EQ (a.extent_type, 0);
  CHECK_EQ (sim_log_count (&world, &image.port, SIM_EXTENTS), 1);
  sim_no_gates (&backing.port);
  end ();
}

/*--- What is written out as it is filled. -----------------------------*/

/* After power failed all of NR_SECTORS reads as in the backing file. */
static void
check_base_after_crash (uint64_t nr_sectors)
{
  struct rng rng = { 9 };
  unsigned i;

  for (i = 0; i < 20; i++) {
    struct sim_world after_world;
    struct sim_store after;
    uint64_t offset;

    sim_world_init (&after_world);
    sim_store_crash (&after, &after_world, &image_store, &rng);
    for (offset = 0; offset < nr_sectors * SECTOR; offset++)
      CHECK_EQ (sim_store_byte (&after, offset), base_byte (offset));
    sim_store_clear (&after);
    sim_world_clear (&after_world);
  }
}

/* It is no flush, and no commit. */
static void
test_write_out (void)
{
  begin (16, 16 * SECTOR);
  MUST (FILL_RANGE, .count = 8 * SECTOR);
  sim_log_clear (&world);
  write_out.nr = 0;
  MUST (WRITE_OUT, .offset = SECTOR, .count = 7 * SECTOR);
  CHECK_EQ (write_out.nr, 1);
  CHECK (write_out.offset == SECTOR && write_out.count == 7 * SECTOR);
  CHECK (!write_out.wait);
  MUST (WRITE_OUT, .offset = 3 * SECTOR, .count = SECTOR, .flags = true);
  CHECK_EQ (write_out.nr, 2);
  CHECK (write_out.offset == 3 * SECTOR && write_out.count == SECTOR);
  CHECK (write_out.wait);
  CHECK_EQ (world.nr_events, 0);
  CHECK (overlay_uncommitted (ov));
  flush ();
  CHECK_EQ (sim_log_count (&world, NULL, SIM_READ), 0);
  MUST (FLUSH, .through = &other);
  end ();
}

/* When it fails each client is told once, and what is not committed is read
 * and written again before it is.
 */
static void
test_write_out_fails (bool wait)
{
  begin (16, 16 * SECTOR);
  image_store.track = image_store.forgets = true;
  MUST (FILL_RANGE, .count = 4 * SECTOR);
  flush ();
  MUST (FILL_RANGE, .offset = 4 * SECTOR, .count = 4 * SECTOR);
  write_out.err = EDQUOT;
  MUST (WRITE_OUT, .count = 8 * SECTOR, .flags = wait);
  CHECK_EQ (write_out.err, 0);
  sim_log_clear (&world);
  /* Which goes through the other image. */
  sim_fail (&other.port, SIM_READ, 1, EREMOTEIO, 0);
  MUST_FAIL (FAULT_IMAGE, EREMOTEIO, COMMIT);
  CHECK (!disk_bit (4));
  CHECK_EQ (metadata_ops (SIM_WRITE), 0);
  MUST_FAIL (FAULT_IMAGE, EDQUOT, FLUSH);
  CHECK_EQ (bytes_written (), 4 * SECTOR);
  CHECK_EQ (sim_log_get (&world, &image.port, SIM_WRITE, 0).offset, 4 * SECTOR);
  CHECK (sim_log_get (&world, &image.port, SIM_WRITE, 0).end <
         sim_log_get (&world, &image.port, SIM_FLUSH, 0).begin);
  CHECK (sim_log_get (&world, &image.port, SIM_FLUSH, 0).end <
         sim_log_get (&world, &metadata.port, SIM_WRITE, 0).begin);
  CHECK (disk_bit (4) && disk_bit (7));
  check_base_after_crash (8);
  flush ();
  MUST_FAIL (FAULT_IMAGE, EDQUOT, FLUSH, .through = &other);
  MUST (FLUSH, .through = &other);

  /* All is on disk: that is known again after a commit. */
  MUST (FILL_RANGE, .count = 16 * SECTOR);
  flush ();
  CHECK (overlay_stands_alone (ov));
  write_out.err = EIO;
  MUST (WRITE_OUT, .count = 8 * SECTOR, .flags = wait);
  CHECK (!overlay_stands_alone (ov));
  MUST (COMMIT);
  CHECK (overlay_stands_alone (ov));
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  flush ();
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &other);
  end ();
}

/* The system's answer during a commit is the commit's. */
static void
test_write_out_during_commit (struct sim_image *file, enum sim_op op)
{
  struct request a = REQUEST (FLUSH);
  struct gate gate;

  begin (16, 16 * SECTOR);
  MUST (FILL_RANGE, .count = 8 * SECTOR);
  sim_hold (&file->port, op, SIM_ANYWHERE, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  write_out.nr = 0;
  MUST (WRITE_OUT, .count = 8 * SECTOR);
  MUST (WRITE_OUT, .count = 8 * SECTOR, .flags = true);
  CHECK_EQ (write_out.nr, 0);
  gate_open (&gate);
  finish (&a);
  CHECK_EQ (a.r, 0);
  sim_no_gates (&file->port);
  MUST (WRITE_OUT, .count = 8 * SECTOR);
  CHECK_EQ (write_out.nr, 1);
  end ();
}

/* Q comes while writing out is under way, which fails or not, and WAITS. */
static void
write_out_race (struct request *q, int err, bool waits)
{
  struct request a = REQUEST (WRITE_OUT, .count = 8 * SECTOR, .flags = true);
  struct gate gate = { .taken = false };

  write_out.err = err;
  write_out.gate = &gate;
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  write_out.gate = NULL;
  start (q);
  CHECK_EQ (is (q, WORKER_WAITING), waits);
  CHECK_EQ (is (q, WORKER_DONE), !waits);
  CHECK (!disk_bit (8));
  gate_open (&gate);
  finish (&a);
  finish (q);
}

/* And a commit that begins meanwhile may have lost its answer to that. */
static void
test_commit_during_write_out (enum kind kind)
{
  struct request q = REQUEST (kind, .count = SECTOR, .offset = 12 * SECTOR,
                              .flags = kind == WRITE ? IMAGE_FUA : 0);

  begin (16, 16 * SECTOR);
  image_store.track = image_store.forgets = true;
  MUST (FILL_RANGE, .count = 12 * SECTOR);
  write_out_race (&q, 0, true);
  CHECK_EQ (q.r, 0);
  CHECK (disk_bit (0) && disk_bit (8) && disk_bit (11));
  CHECK (!overlay_uncommitted (ov));
  end ();

  begin (16, 16 * SECTOR);
  image_store.track = image_store.forgets = true;
  MUST (FILL_RANGE, .count = 12 * SECTOR);
  write_out_race (&q, EIO, true);
  CHECK (q.r == -1 && q.fault.part == FAULT_IMAGE && q.fault.err == EIO);
  CHECK (!disk_bit (0) && !disk_bit (8) && !disk_bit (11));
  sim_log_clear (&world);
  MUST (COMMIT);
  CHECK_EQ (image_ops (SIM_READ), 1);
  CHECK (disk_bit (0) && disk_bit (8) && disk_bit (11));
  check_base_after_crash (12);
  if (kind == FLUSH) /* it was told */
    flush ();
  else
    MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &other);
  end ();
}

/* The same when a flush has failed before: what is written again is written
 * after that.
 */
static void
test_rewrite_during_write_out (void)
{
  struct request q = REQUEST (COMMIT);

  begin (16, 16 * SECTOR);
  image_store.track = image_store.forgets = true;
  MUST (FILL_RANGE, .count = 12 * SECTOR);
  sim_fail (&other.port, SIM_FLUSH, 1, EIO, 0);
  MUST_FAIL (FAULT_IMAGE, EIO, COMMIT);
  sim_log_clear (&world);
  write_out_race (&q, EIO, true);
  CHECK_EQ (q.r, 0);
  CHECK (disk_bit (0) && disk_bit (8) && disk_bit (11));
  CHECK_EQ (image_ops (SIM_WRITE), 1);
  /* The first flush is the one that stands for writing out. */
  CHECK (sim_log_get (&world, &image.port, SIM_FLUSH, 0).end <
         sim_log_get (&world, &other.port, SIM_READ, 0).begin);
  check_base_after_crash (12);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH);
  MUST_FAIL (FAULT_IMAGE, EIO, FLUSH, .through = &other);
  end ();
}

/* What needs no commit does not wait for it; but a FUA write to what is on
 * disk fails with it.
 */
static void
test_fua_during_write_out (void)
{
  struct request a = REQUEST (WRITE, .count = SECTOR, .flags = IMAGE_FUA);
  struct request q = REQUEST (FLUSH, .through = &other);
  struct gate gate;

  begin (16, 16 * SECTOR);
  MUST (FILL_RANGE, .count = 8 * SECTOR);
  flush ();
  write_out_race (&q, 0, false);
  CHECK_EQ (q.r, 0);

  sim_hold (&image.port, SIM_WRITE, 0, &gate);
  start (&a);
  CHECK (is (&a, WORKER_HELD));
  write_out.err = EIO;
  MUST (WRITE_OUT, .count = 8 * SECTOR);
  gate_open (&gate);
  finish (&a);
  CHECK (a.r == -1 && a.fault.part == FAULT_IMAGE && a.fault.err == EIO);
  sim_no_gates (&image.port);
  end ();
}

int
main (void)
{
  check_watchdog (300);
  test_routing ();
  test_completion ();
  test_zero_trim ();
  test_cache ();
  test_errors ();
  test_errors_when_allocated ();
  test_extents ();
  test_commit_order ();
  test_fua ();
  test_failed_commit ();
  test_no_memory ();
  test_failures_are_told ();
  test_forgetful_image ();
  test_forgetful_image_read_only ();
  test_forgetful_image_races ();
  test_forgetful_image_during_touch ();
  test_detach ();
  test_multi_conn ();
  test_missed ();
  test_fill_steps ();
  test_fill_zeroes ();
  test_fill_holes ();
  test_fill_odd_hole ();
  test_fill_ends ();
  test_fill_copies ();
  test_fill_errors ();
  test_stands_alone ();
  test_fill_races ();
  test_fill_at_a_time ();
  test_keep_now ();
  test_failed_fill_is_dirty ();
  test_dropped_in_reading ();
  test_drop_waits ();
  test_drop_waits_for (EXTENTS, SIM_EXTENTS);
  test_drop_waits_for (CACHE, SIM_CACHE);
  test_drop_waits_for (FILL, SIM_EXTENTS);
  test_drop_waits_for (FILL, SIM_READ);
  test_dropped_meanwhile ();
  test_dropped_during_extents ();
  test_write_out ();
  test_write_out_fails (false);
  test_write_out_fails (true);
  test_write_out_during_commit (&image, SIM_FLUSH);
  test_write_out_during_commit (&metadata, SIM_WRITE);
  test_write_out_during_commit (&metadata, SIM_FLUSH);
  test_commit_during_write_out (FLUSH);
  test_commit_during_write_out (COMMIT);
  test_commit_during_write_out (WRITE);
  test_rewrite_during_write_out ();
  test_fua_during_write_out ();
  test_many_pages ();
  test_many_pages_tell_nothing ();
  test_many_extents (true);
  test_many_extents (false);
  test_many_calls ();
  test_many_small_extents ();
  test_races ();
  test_no_needless_waits ();
  test_bits_during_commit (&image, SIM_FLUSH);
  test_bits_during_commit (&metadata, SIM_WRITE);
  test_bits_during_commit (&metadata, SIM_FLUSH);
  test_shared_commit (NULL, 0, 0, 0);
  test_shared_commit (&image, SIM_FLUSH, EIO, FAULT_IMAGE);
  test_shared_commit (&metadata, SIM_WRITE, ENOSPC, FAULT_METADATA);
  test_shared_commit (&metadata, SIM_FLUSH, EIO, FAULT_METADATA);
  test_sharer_goes_on ();
  test_alone ();
  test_overlapping_commit ();
  test_detach_during_walk ();
  test_flush_during_commit ();
  test_detach_waits ();
  test_late_sharer (false);
  test_late_sharer (true);
  test_bits_of_a_killed_server (false, true);
  test_bits_of_a_killed_server (false, false);
  test_bits_of_a_killed_server (true, true);
  test_bits_of_a_killed_server (true, false);
  test_found_bits_are_forgotten (false);
  test_found_bits_are_forgotten (true);
  test_found_bits_far_away ();
  return 0;
}

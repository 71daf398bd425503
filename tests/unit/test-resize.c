/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Growing and shrinking a disk: what it reads as and what is allocated
 * afterwards, when something fails, and when the power goes at any moment.
 *
 * The files of the disk are looked at byte by byte, as the format says; what
 * the disk must read as is in a model, which knows of no files.
 */

#include <config.h>

#include <errno.h>

#include "common.h"
#include "error.h"
#include "format.h"
#include "resize.h"
#include "sim-image.h"

#define SECTOR FORMAT_SECTOR_BYTES
#define MAX_SECTORS 400
#define MAX_BYTES (MAX_SECTORS * SECTOR)

/* Each sector of each file has a content of its own, never zeroes but where
 * it is a hole.
 */
struct files {
  struct sim_world world;
  struct sim_store metadata, image, base;
  struct sim_image metadata_file, image_file;
  struct sim_backing backing;
  bool has_backing, is_missing, is_fixed;
};

/* What a disk reads as. */
struct model {
  uint64_t size_bytes;
  uint8_t bytes[MAX_BYTES];
};

static uint8_t next_byte;

static uint8_t
some_byte (void)
{
  next_byte = next_byte % 255 + 1;
  return next_byte;
}

static void
put_sector (struct sim_store *store, uint64_t offset)
{
  uint8_t buf[SECTOR];
  const uint64_t n = MIN (store->size_bytes - offset, sizeof buf);

  memset (buf, some_byte (), sizeof buf);
  sim_store_put (store, buf, n, offset);
}

/* Data here and there; all of it, or little of it. */
static void
put_random (struct sim_store *store, struct rng *rng)
{
  const unsigned one_in = rng_one_in (rng, 3) ? 1 : rng_range (rng, 2, 5);
  uint64_t at;

  for (at = 0; at < store->size_bytes; at += SECTOR)
    if (rng_one_in (rng, one_in))
      put_sector (store, at);
}

/*--- Looking at the files of a disk. ----------------------------------*/

static uint64_t
header_size (struct sim_store *metadata)
{
  uint64_t size = 0;
  int i;

  for (i = 0; i < 8; i++)
    size = size << 8 | sim_store_byte (metadata, 2060 + i);
  return size;
}

static bool
is_set (struct sim_store *metadata, uint64_t sector)
{
  return sim_store_byte (metadata, 2068 + sector / 8) >> sector % 8 & 1;
}

static bool
is_allocated (struct files *f, uint64_t sector)
{
  return is_set (&f->metadata, sector);
}

/* Only where it has something. */
static void
get_base (struct files *f, uint8_t buf[SECTOR], uint64_t offset)
{
  memset (buf, 0, SECTOR);
  if (f->has_backing && offset < f->base.size_bytes)
    sim_store_get (&f->base, buf, MIN (SECTOR, f->base.size_bytes - offset),
                   offset);
}

static void
check_content (struct files *f, const struct model *m)
{
  uint64_t at;

  CHECK_EQ (header_size (&f->metadata), m->size_bytes);
  CHECK (f->metadata.size_bytes >= 2068 + (m->size_bytes + 4095) / 4096);
  CHECK (f->image.size_bytes >= m->size_bytes);
  for (at = 0; at < m->size_bytes; at += SECTOR) {
    uint8_t buf[SECTOR];

    if (is_allocated (f, at / SECTOR))
      sim_store_get (&f->image, buf, SECTOR, at);
    else {
      CHECK (!f->is_missing);
      get_base (f, buf, at);
    }
    CHECK (memcmp (buf, m->bytes + at, SECTOR) == 0);
  }
}

/* Nothing is left past the end. */
static void
check_clean (struct files *f)
{
  const uint64_t size = header_size (&f->metadata);
  uint64_t s;

  CHECK_EQ (f->metadata.size_bytes, 2068 + (size + 4095) / 4096);
  for (s = size / SECTOR; s % 8; s++)
    CHECK (!is_allocated (f, s));
}

static void
check_header (struct files *f, const uint8_t header[2060])
{
  uint8_t now[2060];

  sim_store_get (&f->metadata, now, sizeof now, 0);
  CHECK (memcmp (now, header, sizeof now) == 0);
}

/*--- Making them. -----------------------------------------------------*/

static void
use_stores (struct files *f)
{
  sim_image_init (&f->metadata_file, &f->metadata);
  sim_image_init (&f->image_file, &f->image);
  sim_backing_init (&f->backing, &f->base);
}

static void
put_header (struct files *f, uint64_t size_bytes)
{
  uint8_t buf[FORMAT_HEADER_BYTES];
  struct header header = { .size_bytes = size_bytes };

  format_set_name (header.backing_file, "base.img");
  format_set_name (header.image_file, "vm.raw");
  format_encode (&header, buf);
  memset (buf + 1000, 'h', 20); /* behind a name */
  sim_store_put (&f->metadata, buf, sizeof buf, 0);
}

/* Bits, also such as are no sector's, and bytes behind them. */
static void
put_bits (struct files *f, uint64_t nr_sectors, bool complete, struct rng *rng)
{
  const unsigned kind = rng_below (rng, 3);
  uint64_t at;

  for (at = 2068; at < f->metadata.size_bytes; at++) {
    const uint64_t first = (at - 2068) * 8;
    uint8_t byte = kind == 0   ? 0
                   : kind == 1 ? rng_next (rng)
                               : 0xff * rng_below (rng, 2);

    if (complete && first < nr_sectors)
      byte |= nr_sectors - first < 8 ? (1 << (nr_sectors - first)) - 1 : 0xff;
    sim_store_put (&f->metadata, &byte, 1, at);
  }
}

static uint64_t
random_size (struct rng *rng)
{
  return rng_below (rng, rng_one_in (rng, 2) ? 30 : MAX_SECTORS) * SECTOR;
}

static void
set_up (struct files *f, struct rng *rng)
{
  const uint64_t size = random_size (rng);
  const bool complete = rng_one_in (rng, 4);
  uint64_t metadata_bytes = 2068 + (size + 4095) / 4096;
  uint64_t image_bytes = size, base_bytes;

  memset (f, 0, sizeof *f);
  f->has_backing = !rng_one_in (rng, 4);
  f->is_fixed = rng_one_in (rng, 6);
  f->is_missing = f->has_backing && complete && rng_one_in (rng, 2);
  if (rng_one_in (rng, 3))
    metadata_bytes += rng_below (rng, 60);
  if (f->is_fixed)
    image_bytes = MAX_BYTES;
  else if (rng_one_in (rng, 3))
    image_bytes += rng_below (rng, 20 * SECTOR);
  base_bytes = rng_below (rng, MAX_BYTES);

  sim_world_init (&f->world);
  sim_store_init (&f->metadata, &f->world, metadata_bytes);
  sim_store_init (&f->image, &f->world, image_bytes);
  sim_store_init (&f->base, &f->world, f->has_backing ? base_bytes : 0);
  f->metadata.track = f->image.track = true;
  f->metadata.forgets = f->image.forgets = rng_one_in (rng, 2);
  f->metadata.knows_holes = !rng_one_in (rng, 5);
  f->image.knows_holes = !rng_one_in (rng, 5);
  f->base.knows_holes = !rng_one_in (rng, 5);
  put_header (f, size);
  put_bits (f, size / SECTOR, complete, rng);
  put_random (&f->image, rng);
  put_random (&f->base, rng);
  use_stores (f);
  f->metadata_file.port.one_extent = rng_one_in (rng, 2);
  f->image_file.port.one_extent = rng_one_in (rng, 2);
  f->backing.port.one_extent = rng_one_in (rng, 2);
}

static void
tear_down (struct files *f)
{
  sim_store_clear (&f->metadata);
  sim_store_clear (&f->image);
  sim_store_clear (&f->base);
  sim_world_clear (&f->world);
}

/* What the disk reads as. */
static void
take_model (struct files *f, struct model *m)
{
  uint64_t at;

  memset (m, 0, sizeof *m);
  m->size_bytes = header_size (&f->metadata);
  for (at = 0; at < m->size_bytes; at += SECTOR)
    if (is_allocated (f, at / SECTOR))
      sim_store_get (&f->image, m->bytes + at, SECTOR, at);
    else
      get_base (f, m->bytes + at, at);
}

/* What is cut off is forgotten. */
static void
resize_model (struct model *m, uint64_t size_bytes)
{
  if (size_bytes < m->size_bytes)
    memset (m->bytes + size_bytes, 0, m->size_bytes - size_bytes);
  m->size_bytes = size_bytes;
}

/* Make *COPY what is left of F when the power goes. */
static void
crash (struct files *copy, struct files *f, struct rng *rng)
{
  uint8_t buf[MAX_BYTES];
  uint64_t at;

  *copy = *f;
  sim_world_init (&copy->world);
  sim_store_crash (&copy->metadata, &copy->world, &f->metadata, rng);
  sim_store_crash (&copy->image, &copy->world, &f->image, rng);
  sim_store_init (&copy->base, &copy->world, f->base.size_bytes);
  copy->base.knows_holes = f->base.knows_holes;
  sim_store_get (&f->base, buf, f->base.size_bytes, 0);
  for (at = 0; at < f->base.size_bytes; at += SECTOR)
    if (sim_store_is_data (&f->base, at))
      sim_store_put (&copy->base, buf + at,
                     MIN (SECTOR, f->base.size_bytes - at), at);
  use_stores (copy);
}

/*--- Doing it. --------------------------------------------------------*/

static int
run (struct files *f, uint64_t size_bytes, struct fault *fault)
{
  const struct resize r = {
    .metadata = &f->metadata_file.image,
    .image = &f->image_file.image,
    .image_is_fixed = f->is_fixed,
    .image_bytes = f->image.size_bytes,
    .backing = f->has_backing && !f->is_missing ? &f->backing.backing : NULL,
    .backing_is_missing = f->is_missing,
    .size_bytes = header_size (&f->metadata),
  };

  return resize (&r, size_bytes, fault);
}

static void
get_bits (struct files *f, bool bits[MAX_SECTORS])
{
  const uint64_t n = header_size (&f->metadata) / SECTOR;
  uint64_t s;

  for (s = 0; s < n; s++)
    bits[s] = is_allocated (f, s);
}

static bool
all_set (const bool *bits, uint64_t n)
{
  uint64_t s;

  for (s = 0; s < n; s++)
    if (!bits[s])
      return false;
  return true;
}

/* Bits that were there are as they were; of those that are new no more are
 * set than must be.
 */
static void
check_bits (struct files *f, const bool *old, uint64_t nr_old)
{
  const bool complete = f->is_missing || (nr_old && all_set (old, nr_old));
  const uint64_t n = header_size (&f->metadata) / SECTOR;
  bool now[MAX_SECTORS];
  uint64_t s;

  get_bits (f, now);
  for (s = 0; s < n && s < nr_old; s++)
    CHECK_EQ (now[s], old[s]);
  for (; s < n; s++) {
    const uint64_t at = s * SECTOR;
    const bool data = f->has_backing && at < f->base.size_bytes &&
                      (!f->base.knows_holes ||
                       sim_store_is_data (&f->base, at));

    CHECK_EQ (now[s], complete || data);
  }
}

/* An image that is no longer than the disk stays so. */
static void
check_image_length (struct files *f, uint64_t old_size, uint64_t old_image)
{
  const uint64_t size = header_size (&f->metadata);

  if (size > old_size)
    CHECK_EQ (f->image.size_bytes, MAX (old_image, size));
  else if (old_image == old_size && !f->is_fixed)
    CHECK_EQ (f->image.size_bytes, size);
  else
    CHECK_EQ (f->image.size_bytes, old_image);
}

static void
check_done (struct files *f, const struct model *m, struct rng *rng)
{
  struct files after;

  check_content (f, m);
  check_clean (f);
  crash (&after, f, rng);
  check_content (&after, m);
  check_clean (&after);
  CHECK_EQ (after.image.size_bytes, f->image.size_bytes);
  tear_down (&after);
}

/* What an image did not have before is zeroes by itself. */
static void
check_zeroed (struct files *f, uint64_t old_image)
{
  const struct sim_port *port = &f->image_file.port;
  size_t i = sim_log_count (&f->world, port, SIM_ZERO);

  while (i > 0) {
    const struct sim_event e = sim_log_get (&f->world, port, SIM_ZERO, --i);

    CHECK (e.offset + e.count <= old_image);
  }
}

/* One size after the other; nothing comes back. */
static void
test_sizes (struct rng *rng)
{
  static struct model m;
  uint8_t header[2060];
  struct files f;
  int i;

  set_up (&f, rng);
  take_model (&f, &m);
  sim_store_get (&f.metadata, header, sizeof header, 0);
  for (i = 0; i < 6; i++) {
    const uint64_t old_size = m.size_bytes, old_image = f.image.size_bytes;
    const uint64_t size = random_size (rng);
    bool bits[MAX_SECTORS];
    struct fault fault;

    get_bits (&f, bits);
    sim_log_clear (&f.world);
    CHECK_EQ (run (&f, size, &fault), 0);
    if (size == old_size) {
      CHECK_EQ (f.world.nr_events, 0);
      continue;
    }
    resize_model (&m, size);
    check_done (&f, &m, rng);
    check_bits (&f, bits, old_size / SECTOR);
    check_image_length (&f, old_size, old_image);
    check_zeroed (&f, old_image);
    check_header (&f, header);
  }
  tear_down (&f);
}

/* The power goes at the N-th operation that changes or flushes something. */
struct killer {
  unsigned countdown;
  struct sim_world *world;
};

static void
kill_hook (struct sim_port *port UNUSED, enum sim_op op, uint64_t offset UNUSED,
           uint64_t count UNUSED, void *opaque)
{
  struct killer *k = opaque;

  if (op == SIM_READ || op == SIM_EXTENTS || k->countdown == 0)
    return;
  if (--k->countdown == 0)
    sim_world_kill (k->world);
}

static void
hook (struct files *f, struct killer *k)
{
  k->world = &f->world;
  f->metadata_file.port.hook = f->image_file.port.hook = kill_hook;
  f->metadata_file.port.opaque = f->image_file.port.opaque = k;
}

/* After power has failed: the one or the other, and it can be done again. */
static void
check_crashed (struct files *f, const struct model *old,
               const struct model *new, struct rng *rng)
{
  static struct model m;
  struct fault fault;
  struct files after;

  crash (&after, f, rng);
  m = header_size (&after.metadata) == old->size_bytes ? *old : *new;
  check_content (&after, &m);
  if (rng_one_in (rng, 2)) {
    const uint64_t size = rng_one_in (rng, 2) ? new->size_bytes
                                              : random_size (rng);

    if (size != m.size_bytes) {
      CHECK_EQ (run (&after, size, &fault), 0);
      resize_model (&m, size);
      check_done (&after, &m, rng);
    }
  }
  tear_down (&after);
}

static void
test_power (struct rng *rng)
{
  static struct model old, new;
  const uint64_t seed = rng_next (rng), size = random_size (rng);
  unsigned n;

  for (n = 1;; n++) {
    struct rng again = { seed };
    struct killer k = { .countdown = n };
    struct fault fault;
    struct files f;
    int i, r;

    set_up (&f, &again);
    take_model (&f, &old);
    new = old;
    resize_model (&new, size);
    hook (&f, &k);
    r = run (&f, size, &fault);
    CHECK_EQ (r, k.countdown ? 0 : -1);
    for (i = 0; k.countdown == 0 && i < 4; i++)
      check_crashed (&f, &old, &new, rng);
    tear_down (&f);
    if (k.countdown)
      break;
  }
}

/* Was it tried, be it that it failed? */
static bool
wrote_size (struct files *f)
{
  const struct sim_port *port = &f->metadata_file.port;
  size_t i = sim_log_count (&f->world, port, SIM_WRITE);

  while (i > 0)
    if (sim_log_get (&f->world, port, SIM_WRITE, --i).offset == 2060)
      return true;
  return false;
}

/* An operation failed.  Of growing nothing is left then, but when it came to
 * the header.
 */
static void
check_failed (struct files *f, const struct model *old, const struct model *new,
              uint64_t image_bytes)
{
  const bool is_old = header_size (&f->metadata) == old->size_bytes;

  check_content (f, is_old ? old : new);
  if (wrote_size (f))
    return;
  check_clean (f);
  CHECK_EQ (f->image.size_bytes, image_bytes);
}

/* Let the N-th operation OP on PORT fail.  Returns false if there is none. */
static bool
fails (uint64_t seed, uint64_t size, unsigned which, enum sim_op op, unsigned n)
{
  static const enum fault_part parts[] = { FAULT_METADATA, FAULT_IMAGE,
                                           FAULT_BACKING };
  static struct model old, new;
  struct rng rng = { seed };
  struct fault fault;
  uint64_t image_bytes;
  struct files f;
  int r;

  set_up (&f, &rng);
  take_model (&f, &old);
  new = old;
  resize_model (&new, size);
  image_bytes = f.image.size_bytes;
  sim_fail (which == 0   ? &f.metadata_file.port
            : which == 1 ? &f.image_file.port
                         : &f.backing.port,
            op, n, EDQUOT, 0);
  r = run (&f, size, &fault);
  if (r == -1) {
    CHECK_EQ (fault.err, EDQUOT);
    CHECK_EQ (fault.part, parts[which]);
    check_failed (&f, &old, &new, image_bytes);
    sim_store_remember (&f.metadata);
    sim_store_remember (&f.image);
    check_crashed (&f, &old, &new, &rng);
  }
  tear_down (&f);
  return r == -1;
}

static void
test_faults (struct rng *rng)
{
  const uint64_t seed = rng_next (rng), size = random_size (rng);
  unsigned which, op, n;

  for (which = 0; which < 3; which++)
    for (op = 0; op < SIM_NR_OPS; op++)
      for (n = 1; fails (seed, size, which, op, n); n++)
        ;
}

/* A block device that is too short. */
static void
test_fixed (void)
{
  struct rng rng = { 1 };
  static struct model m;
  struct fault fault;
  struct files f;

  do {
    set_up (&f, &rng);
    if (f.is_fixed)
      break;
    tear_down (&f);
  } while (1);
  take_model (&f, &m);
  CHECK_EQ (run (&f, MAX_BYTES + SECTOR, &fault), -1);
  CHECK_EQ (fault.part, FAULT_IMAGE);
  CHECK_EQ (fault.err, ADDCOW_E_IMAGE_SHORT);
  check_content (&f, &m);
  CHECK_EQ (sim_log_count (&f.world, &f.image_file.port, SIM_SET_LENGTH), 0);
  tear_down (&f);
}

int
main (int argc, char *argv[])
{
  const struct test_options options = test_options (argc, argv);
  const uint64_t n = options.iterations ? options.iterations : 60;
  struct rng rng = { options.seed };
  uint64_t i;

  check_watchdog (240);
  printf ("seed: %" PRIu64 "\n", options.seed);
  test_fixed ();
  for (i = 0; i < 10 * n; i++)
    test_sizes (&rng);
  for (i = 0; i < n; i++)
    test_power (&rng);
  for (i = 0; i < n; i++)
    test_faults (&rng);
  return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Several clients of one overlay do what a seed says, while operations
 * fail and in the end the power does, or the server is killed, or it
 * stops; then it is opened again.  Of each byte the model knows every
 * write to it and when that began and was acknowledged:
 *
 * - A read sees no write that another one had replaced, which began when
 *   the first was over and was acknowledged before the read began.
 * - After a crash the same, where the other one was durable: done with
 *   FUA, or followed by a flush that succeeded.  A sector that was only
 *   ever written whole is of one write.
 *
 * Clients also fill the image: sectors, everything, or what others read from
 * the backing file some time ago.  That is no change.  When the disk stands
 * alone the backing file is closed, at times, and never opened again.
 *
 * In most iterations the threads run one at a time and the seed decides
 * which, so that a failure can be repeated:
 *
 *     test-overlay-random [-s SEED] [-n ITERATIONS]
 *
 * Iteration i has the seed SEED + i.  Without -n it runs for about five
 * seconds.
 */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>

#include "common.h"
#include "format.h"
#include "map.h"
#include "overlay.h"
#include "sim-image.h"

#define SECTOR 512
#define SECONDS 4.5

/* The sectors that are used: at the begin, where the first page of the
 * map ends, at the end of the disk.
 */
#define CLUSTER 8
#define NR_CLUSTERS 3
#define NR_HOT (NR_CLUSTERS * CLUSTER)
#define PAGE_END ((4096 - FORMAT_HEADER_BYTES) * 8)
#define NR_SECTORS (PAGE_END + 20000)

static const uint64_t cluster_begin[NR_CLUSTERS] = {
  0,
  PAGE_END - CLUSTER / 2,
  NR_SECTORS - CLUSTER,
};

#define MAX_THREADS 4
#define MAX_OPS 50
#define MAX_ROUNDS 4
#define MAX_CHANGES (MAX_THREADS * MAX_OPS * MAX_ROUNDS)
#define MAX_KEPT 8

/*--- The model. -------------------------------------------------------*/

#define NEVER UINT64_MAX

struct change {
  unsigned id;
  bool zeroes;
  uint64_t offset, count;
  const struct sim_image *through;
  uint64_t begin, end; /* NEVER: it was not answered */
  bool failed;         /* it may have happened, or in part */
  bool maybe;          /* does not replace what was before */
  bool fua;
};

static struct {
  pthread_mutex_t lock; /* protects all that follows */
  uint64_t clock;
  uint8_t initial[NR_HOT][SECTOR];
  struct change changes[MAX_CHANGES];
  unsigned nr_changes;
  /* When the last flush that succeeded began, by image; the first is of
   * flushes that cover all of them.
   */
  uint64_t flushed[3];
  unsigned next_id;
} model;

/*--- The overlay. -----------------------------------------------------*/

static struct sim_world world;
static struct sim_store image_store, metadata_store, backing_store;
static struct sim_image images[2], metadata;
static struct sim_backing backing;
static struct overlay *ov;
static bool multi_conn, slow_zero, can_copy;
static uint64_t iteration_seed;

static struct rng fault_rng;
static unsigned fault_one_in; /* 0: none */
static pthread_mutex_t hook_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned nr_ops_to_live; /* protected by hook_lock; 0: for ever */

/* What was read from the backing file, to be kept later. */
static struct {
  pthread_mutex_t lock; /* protects all that follows */
  bool on;
  struct rng rng;
  unsigned nr;
  struct kept {
    uint64_t offset, count;
    uint8_t bytes[CLUSTER * SECTOR];
  } kept[MAX_KEPT];
} missed = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* Whether clients fill everything; whether that may end in dropping the
 * backing file, as it may not when bits of a killed server may not be on
 * disk; whether it did.
 */
static bool fill_all, may_drop, dropped;
static _Atomic bool dropping;

/* What somebody found in the map may be no longer so when he acts on it. */
int __real_map_run (struct map *, uint64_t, uint64_t, bool *, uint64_t *);
int __wrap_map_run (struct map *, uint64_t, uint64_t, bool *, uint64_t *);

int
__wrap_map_run (struct map *map, uint64_t sector, uint64_t max_sectors,
                bool *allocated, uint64_t *run)
{
  int r = __real_map_run (map, sector, max_sectors, allocated, run);

  worker_yield ();
  return r;
}

static void
fail (const char *what, uint64_t offset)
{
  unsigned i;

  fprintf (stderr,
           "%s: sector %" PRIu64 ", byte %" PRIu64 "; repeat with -s %" PRIu64
           " -n 1\n",
           what, offset / SECTOR, offset % SECTOR, iteration_seed);
  for (i = 0; i < model.nr_changes; i++) {
    const struct change *c = &model.changes[i];

    if (c->offset <= offset && offset < c->offset + c->count)
      fprintf (stderr,
               "  %u: %s sector %" PRIu64 " + %" PRIu64 ", %" PRIu64
               " bytes, image %d, %" PRIu64 " to %" PRIu64 "%s%s%s\n",
               c->id, c->zeroes ? "zero" : "write", c->offset / SECTOR,
               c->offset % SECTOR, c->count, (int) (c->through - images),
               c->begin, c->end, c->fua ? " FUA" : "",
               c->failed ? " failed" : "", c->maybe ? " maybe" : "");
  }
  fprintf (stderr, "  flushed: %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
           model.flushed[0], model.flushed[1], model.flushed[2]);
  check_end ();
}

static uint8_t
change_byte (const struct change *c, uint64_t offset)
{
  return c->zeroes ? 0 : (c->id * 37 + offset * 11 + offset / SECTOR) | 1;
}

static bool
covers (const struct change *c, uint64_t offset)
{
  return c->offset <= offset && offset < c->offset + c->count;
}

/* By flushes that began when FLUSHED says. */
static bool
is_durable_by (const struct change *c, const uint64_t flushed[3])
{
  if (c->failed || c->maybe || c->end == NEVER)
    return false;
  return c->fua || c->end < flushed[0] ||
         c->end < flushed[1 + (c->through - images)];
}

static bool
is_durable (const struct change *c)
{
  return is_durable_by (c, model.flushed);
}

/* When the last change began that replaced all before it. */
static uint64_t
replaced_at (uint64_t offset, uint64_t read_begin, bool crash)
{
  uint64_t last = 0;
  unsigned i;

  for (i = 0; i < model.nr_changes; i++) {
    const struct change *c = &model.changes[i];

    if (!covers (c, offset) || c->failed || c->maybe)
      continue;
    if (crash ? is_durable (c) : c->end < read_begin)
      last = MAX (last, c->begin);
  }
  return last;
}

/* May the byte at OFFSET, of hot sector HOT, be BYTE? */
static bool
may_be (unsigned hot, uint64_t offset, uint8_t byte, uint64_t read_begin,
        bool crash)
{
  const uint64_t replaced = replaced_at (offset, read_begin, crash);
  unsigned i;

  if (replaced == 0 && byte == model.initial[hot][offset % SECTOR])
    return true;
  for (i = model.nr_changes; i-- > 0;) {
    const struct change *c = &model.changes[i];

    if (covers (c, offset) && c->end >= replaced &&
        byte == change_byte (c, offset))
      return true;
  }
  return false;
}

/* If only whole sectors were written: is BYTES of one of them? */
static bool
is_of_one_change (unsigned hot, uint64_t sector, const uint8_t *bytes,
                  uint64_t read_begin, bool crash)
{
  const uint64_t from = sector * SECTOR;
  const uint64_t replaced = replaced_at (from, read_begin, crash);
  unsigned i, j;

  for (i = 0; i < model.nr_changes; i++) {
    const struct change *c = &model.changes[i];

    if (c->offset >= from + SECTOR || from >= c->offset + c->count)
      continue;
    if (c->offset > from || c->offset + c->count < from + SECTOR)
      return true;
  }
  if (replaced == 0 && memcmp (bytes, model.initial[hot], SECTOR) == 0)
    return true;
  for (i = 0; i < model.nr_changes; i++) {
    const struct change *c = &model.changes[i];

    if (!covers (c, from) || c->end < replaced)
      continue;
    for (j = 0; j < SECTOR; j++)
      if (bytes[j] != change_byte (c, from + j))
        break;
    if (j == SECTOR)
      return true;
  }
  return false;
}

static uint64_t
hot_sector (unsigned hot)
{
  return cluster_begin[hot / CLUSTER] + hot % CLUSTER;
}

/* Caller holds model.lock, or is alone. */
static void
check_range (unsigned cluster, uint64_t offset, const uint8_t *bytes,
             uint64_t count, uint64_t read_begin, bool crash)
{
  uint64_t i;

  for (i = 0; i < count; i++) {
    const uint64_t at = offset + i;
    const unsigned hot = cluster * CLUSTER +
                         (at / SECTOR - cluster_begin[cluster]);

    if (!may_be (hot, at, bytes[i], read_begin, crash))
      fail (crash ? "after a crash" : "read", at);
    if (at % SECTOR == 0 && i + SECTOR <= count &&
        !is_of_one_change (hot, at / SECTOR, bytes + i, read_begin, crash))
      fail ("torn", at);
  }
}

/*--- What clients do. -------------------------------------------------*/

static uint64_t
tick (void)
{
  uint64_t now;

  __real_pthread_mutex_lock (&model.lock);
  now = ++model.clock;
  pthread_mutex_unlock (&model.lock);
  return now;
}

static struct change *
change_begin (const struct change *c)
{
  struct change *new;

  __real_pthread_mutex_lock (&model.lock);
  CHECK (model.nr_changes < MAX_CHANGES);
  new = &model.changes[model.nr_changes++];
  *new = *c;
  new->id = ++model.next_id;
  new->begin = ++model.clock;
  new->end = NEVER;
  pthread_mutex_unlock (&model.lock);
  return new;
}

static void
change_end (struct change *c, int r)
{
  __real_pthread_mutex_lock (&model.lock);
  c->failed = r != 0;
  c->end = ++model.clock;
  pthread_mutex_unlock (&model.lock);
}

struct client {
  struct rng rng;
  unsigned nr_ops;
  struct sim_image *image;
  /* Of each sector, the bytes that it may write. */
  unsigned band_begin, band_end;
};

static int
do_change (struct client *c, struct change *m, unsigned kind)
{
  uint8_t buf[CLUSTER * SECTOR];
  struct fault fault = { .err = -1 };
  const unsigned flags = m->fua ? IMAGE_FUA : 0;
  uint64_t i;
  int r;

  switch (kind) {
  case 0:
    r = overlay_zero (ov, &c->image->image, m->count, m->offset,
                      flags | (m->id % 2 ? IMAGE_MAY_TRIM : 0), &fault);
    break;
  case 1:
    r = overlay_trim (ov, &c->image->image, m->count, m->offset, flags, &fault);
    break;
  default:
    for (i = 0; i < m->count; i++)
      buf[i] = change_byte (m, m->offset + i);
    r = overlay_write (ov, &c->image->image, buf, m->count, m->offset, flags,
                       &fault);
  }
  CHECK (r == 0 || (r == -1 && fault.err > 0 && fault.err < 4096));
  return r;
}

static void
random_change (struct client *c, uint64_t offset, uint64_t count)
{
  const unsigned kind = rng_below (&c->rng, 8);
  struct change *m;

  m = change_begin (&(struct change){
      .zeroes = kind < 2,
      .maybe = kind == 1,
      .offset = offset,
      .count = count,
      .through = c->image,
      .fua = rng_one_in (&c->rng, 8),
  });
  change_end (m, do_change (c, m, kind));
}

static void
random_read (struct client *c, unsigned cluster, uint64_t offset,
             uint64_t count)
{
  uint8_t buf[CLUSTER * SECTOR];
  const uint64_t begin = tick ();
  struct fault fault;

  if (overlay_read (ov, &c->image->image, buf, count, offset, &fault) == -1)
    return;
  __real_pthread_mutex_lock (&model.lock);
  check_range (cluster, offset, buf, count, begin, false);
  pthread_mutex_unlock (&model.lock);
}

/* What is not durable by FLUSHED may be lost, and that was told: no later
 * flush is for it.  So may be what is under way; if with FUA it will fail.
 */
static void
lose_undurable (const uint64_t flushed[3])
{
  unsigned i;

  for (i = 0; i < model.nr_changes; i++)
    if (!is_durable_by (&model.changes[i], flushed) &&
        !(model.changes[i].fua && model.changes[i].end == NEVER))
      model.changes[i].maybe = true;
}

static void
flush (struct client *c)
{
  const uint64_t begin = tick ();
  uint64_t *flushed = &model.flushed[multi_conn ? 0 : 1 + (c->image - images)];
  struct fault fault;

  uint64_t before[3];
  int r;

  __real_pthread_mutex_lock (&model.lock);
  memcpy (before, model.flushed, sizeof before);
  pthread_mutex_unlock (&model.lock);
  r = overlay_flush (ov, &c->image->image, &fault);

  __real_pthread_mutex_lock (&model.lock);
  if (r == 0)
    *flushed = MAX (*flushed, begin);
  else /* of flushes at a time one may have the answer for others */
    lose_undurable (before);
  pthread_mutex_unlock (&model.lock);
}

/*--- Filling. ---------------------------------------------------------*/

static void
check_fault (int r, const struct fault *fault)
{
  CHECK (r == 0 || (r == -1 && fault->err > 0 && fault->err < 4096));
}

static void
keep (struct image *image, const struct kept *k, bool wait)
{
  struct fault fault = { .err = -1 };
  int r;

  r = overlay_keep (ov, image, k->bytes, k->count, k->offset, wait, &fault);
  check_fault (r, &fault);
}

/* Of what was read, keep the whole sectors: now, or later, or not. */
static void
note_missed (void *opaque, struct image *image, const void *buf, size_t count,
             uint64_t offset)
{
  const uint64_t begin = DIV_ROUND_UP (offset, SECTOR) * SECTOR;
  const uint64_t end = (offset + count) / SECTOR * SECTOR;
  struct kept k;
  bool now, wait;

  CHECK (opaque == &missed);
  if (begin >= end)
    return;
  k.offset = begin;
  k.count = end - begin;
  CHECK (k.count <= sizeof k.bytes);
  memcpy (k.bytes, (const char *) buf + (begin - offset), k.count);

  __real_pthread_mutex_lock (&missed.lock);
  now = missed.on && rng_one_in (&missed.rng, 3);
  wait = rng_one_in (&missed.rng, 2);
  if (missed.on && !now && missed.nr < MAX_KEPT)
    missed.kept[missed.nr++] = k;
  pthread_mutex_unlock (&missed.lock);
  if (now)
    keep (image, &k, wait);
}

static const struct overlay_hooks hooks = {
  .missed = note_missed,
  .opaque = &missed,
};

/* Keep something that was read before. */
static void
keep_later (struct client *c)
{
  struct kept k = { .count = 0 };

  __real_pthread_mutex_lock (&missed.lock);
  if (missed.nr > 0) {
    const unsigned i = rng_below (&c->rng, missed.nr);

    k = missed.kept[i];
    missed.kept[i] = missed.kept[--missed.nr];
  }
  pthread_mutex_unlock (&missed.lock);
  if (k.count > 0)
    keep (&c->image->image, &k, rng_one_in (&c->rng, 2));
}

/* The whole sectors of the range; false when a step failed. */
static bool
fill_steps (struct client *c, uint64_t begin, uint64_t end)
{
  static const size_t buf_bytes = CLUSTER * SECTOR;
  uint8_t buf[CLUSTER * SECTOR];
  struct filled filled;

  while (begin < end && !sim_world_is_dead (&world)) {
    struct fault fault = { .err = -1 };
    int r;

    r = overlay_fill (ov, &c->image->image, buf, buf_bytes, end - begin, begin,
                      &filled, &fault);
    check_fault (r, &fault);
    CHECK (filled.nr_bytes >= SECTOR && filled.nr_bytes % SECTOR == 0);
    CHECK (filled.nr_bytes <= end - begin);
    CHECK (filled.nr_copied == 0 || filled.nr_copied == filled.nr_bytes);
    if (r == -1)
      return false;
    begin += filled.nr_bytes;
  }
  return begin >= end;
}

/* Fill all there is, and do without the backing file if that will do. */
static void
stand_alone (struct client *c)
{
  struct fault fault;

  if (!fill_steps (c, 0, (uint64_t) NR_SECTORS * SECTOR))
    return;
  overlay_commit (ov, &fault);
  if (!may_drop || !overlay_stands_alone (ov) || dropping)
    return;
  if (!atomic_exchange (&dropping, true)) {
    CHECK (overlay_drop_backing (ov, true));
    backing_close (&backing.backing);
    dropped = true;
  }
}

/*--- All that clients do. ---------------------------------------------*/

static int
ignore_extent (void *opaque UNUSED, uint64_t count UNUSED, unsigned type UNUSED)
{
  return 0;
}

static void
random_op (struct client *c)
{
  const unsigned cluster = rng_below (&c->rng, NR_CLUSTERS);
  const uint64_t begin = cluster_begin[cluster] * SECTOR;
  uint64_t from = rng_below (&c->rng, CLUSTER * SECTOR);
  uint64_t to = rng_range (&c->rng, from + 1, CLUSTER * SECTOR);
  const unsigned what = rng_below (&c->rng, 26);
  struct fault fault = { .err = -1 };
  int r;

  if (rng_one_in (&c->rng, 3)) { /* whole sectors */
    from -= from % SECTOR;
    to = DIV_ROUND_UP (to, SECTOR) * SECTOR;
  }
  if (rng_one_in (&c->rng, 2)) { /* few bytes or one sector */
    to = from % SECTOR ? from + rng_range (&c->rng, 1, 300) : from + SECTOR;
    to = MIN (to, CLUSTER * SECTOR);
  }

  if (what < 4)
    random_read (c, cluster, begin + from, to - from);
  else if (what == 4)
    flush (c);
  else if (what == 5)
    overlay_commit (ov, &fault);
  else if (what == 6)
    overlay_extents (ov, &c->image->image, to - from, begin + from,
                     ignore_extent, NULL, &fault);
  else if (what == 7)
    keep_later (c);
  else if (what == 8)
    fill_steps (c, begin + from / SECTOR * SECTOR,
                begin + DIV_ROUND_UP (to, SECTOR) * SECTOR);
  else if (what == 9) {
    r = overlay_fill_range (ov, &c->image->image, to - from, begin + from,
                            &fault);
    check_fault (r, &fault);
  }
  else if (what == 10 && fill_all)
    stand_alone (c);
  else {
    if (c->band_end - c->band_begin < SECTOR) {
      from += c->band_begin - from % SECTOR;
      to = from + c->band_end - c->band_begin;
    }
    random_change (c, begin + from, to - from);
  }
}

static void
client_main (void *opaque)
{
  struct client *c = opaque;
  unsigned i;

  for (i = 0; i < c->nr_ops && !sim_world_is_dead (&world); i++)
    random_op (c);
}

static void *
client_thread (void *opaque)
{
  client_main (opaque);
  return NULL;
}

/*--- Opening, crashing, opening again. --------------------------------*/

/* The power goes after so many operations. */
static void
count_down (struct sim_port *port UNUSED, enum sim_op op UNUSED,
            uint64_t offset UNUSED, uint64_t count UNUSED, void *opaque UNUSED)
{
  bool now;

  __real_pthread_mutex_lock (&hook_lock);
  now = nr_ops_to_live > 0 && --nr_ops_to_live == 0;
  pthread_mutex_unlock (&hook_lock);
  if (now)
    sim_world_kill (&world);
}

static void
set_up_port (struct sim_port *port)
{
  port->hook = count_down;
  port->random_faults = fault_one_in ? &fault_rng : NULL;
  port->one_in = fault_one_in;
}

static void
no_faults (void)
{
  images[0].port.random_faults = images[1].port.random_faults = NULL;
  metadata.port.random_faults = backing.port.random_faults = NULL;
}

static void
open_overlay (void)
{
  unsigned i;

  sim_image_init (&metadata, &metadata_store);
  sim_backing_init (&backing, &backing_store);
  backing.closed = dropped;
  missed.nr = 0;
  set_up_port (&metadata.port);
  set_up_port (&backing.port);
  CHECK_EQ (overlay_open (&ov, &metadata.image, (uint64_t) NR_SECTORS * SECTOR,
                          &backing.backing, &hooks),
            0);
  for (i = 0; i < 2; i++) {
    sim_image_init (&images[i], &image_store);
    images[i].image.multi_conn = multi_conn;
    images[i].port.slow_zero = slow_zero;
    if (can_copy)
      sim_can_copy (&images[i], &backing);
    set_up_port (&images[i].port);
    overlay_attach (ov, &images[i].image);
  }
}

/* Read everything and check it; KEEP makes it what all begins with. */
static void
check_all (bool crash, bool keep)
{
  unsigned i;

  nr_ops_to_live = 0;
  no_faults ();
  for (i = 0; i < NR_CLUSTERS; i++) {
    const uint64_t begin = cluster_begin[i] * SECTOR;
    uint8_t buf[CLUSTER * SECTOR];
    struct fault fault;

    CHECK_EQ (
        overlay_read (ov, &images[0].image, buf, sizeof buf, begin, &fault), 0);
    check_range (i, begin, buf, sizeof buf, NEVER, crash);
    if (keep)
      memcpy (model.initial[i * CLUSTER], buf, sizeof buf);
  }
  if (keep)
    model.nr_changes = 0;
}

/* The power goes: what is left is all there ever was. */
static void
crash (struct rng *rng)
{
  struct sim_store old_image = image_store;
  struct sim_store old_metadata = metadata_store;
  struct sim_store old_backing = backing_store;

  overlay_close (ov);
  no_faults ();
  sim_store_crash (&image_store, &world, &old_image, rng);
  sim_store_crash (&metadata_store, &world, &old_metadata, rng);
  sim_store_crash (&backing_store, &world, &old_backing, rng);
  sim_store_clear (&old_image);
  sim_store_clear (&old_metadata);
  sim_store_clear (&old_backing);
  world.dead = false;
  may_drop = true; /* what there is now is on disk */
  open_overlay ();
  check_all (true, true);
}

/* The server is killed, the machine lives.  If it had been told that its
 * bits could not be written, its successor cannot know, and is not asked
 * to.  It may sync them before it begins, as disk_open does.
 */
static void
kill_server (struct rng *rng)
{
  unsigned i;

  overlay_close (ov);
  sim_store_remember (&metadata_store);
  sim_store_remember (&image_store); /* its successor cannot know */
  no_faults ();
  nr_ops_to_live = 0;
  may_drop = rng_one_in (rng, 2);
  if (may_drop)
    CHECK_EQ (metadata.image.ops->flush (&metadata.image), 0);
  open_overlay ();
  check_all (true, false);
  for (i = 0; i < model.nr_changes; i++)
    if (!is_durable (&model.changes[i]))
      model.changes[i].maybe = true;
}

static void
stop_server (void)
{
  struct fault fault;
  unsigned i;

  no_faults ();
  for (i = 0; i < 2; i++)
    CHECK_EQ (overlay_detach (ov, &images[i].image, &fault), 0);
  CHECK (!overlay_uncommitted (ov));
  overlay_close (ov);
  /* Of flushes that failed, and that nobody asked about, only the log has
   * told.
   */
  if (fault_one_in)
    lose_undurable (model.flushed);
  open_overlay ();
  check_all (false, false);
}

static void
run_clients (struct rng *rng)
{
  const unsigned nr_threads = rng_range (rng, 1, MAX_THREADS);
  const bool disjoint = rng_one_in (rng, 2);
  const bool scheduled = !rng_one_in (rng, 4);
  struct client clients[MAX_THREADS];
  struct worker workers[MAX_THREADS];
  pthread_t threads[MAX_THREADS];
  unsigned i;

  for (i = 0; i < nr_threads; i++) {
    clients[i] = (struct client){
      .rng = { rng_next (rng) },
      .nr_ops = rng_range (rng, 1, MAX_OPS),
      .image = &images[i % 2],
      .band_begin = disjoint ? i * SECTOR / nr_threads : 0,
      .band_end = disjoint ? (i + 1) * SECTOR / nr_threads : SECTOR,
    };
    workers[i].fn = client_main;
    workers[i].opaque = &clients[i];
  }
  missed.on = rng_one_in (rng, 2);
  missed.rng.state = rng_next (rng);
  if (scheduled)
    workers_run_scheduled (workers, nr_threads, rng);
  else {
    for (i = 0; i < nr_threads; i++)
      CHECK_EQ (pthread_create (&threads[i], NULL, client_thread, &clients[i]),
                0);
    for (i = 0; i < nr_threads; i++)
      pthread_join (threads[i], NULL);
  }
  missed.on = false;
}

static void
make_backing (struct rng *rng)
{
  /* It ends inside a sector of the second or the last cluster. */
  const uint64_t size = cluster_begin[rng_range (rng, 1, 2)] * SECTOR +
                        rng_below (rng, CLUSTER * SECTOR);
  unsigned i;

  sim_store_init (&backing_store, &world, size);
  for (i = 0; i < NR_HOT; i++) {
    const uint64_t offset = hot_sector (i) * SECTOR;
    unsigned j;

    for (j = 0; j < SECTOR; j++)
      model.initial[i][j] = offset + j < size ? (i * 16 + j * 2) & 0xfe : 0;
    if (offset < size)
      sim_store_put (&backing_store, model.initial[i],
                     MIN (SECTOR, size - offset), offset);
  }
}

static void
iteration (uint64_t seed)
{
  struct rng rng = { seed };
  unsigned round, nr_rounds, i;

  iteration_seed = seed;
  sim_world_init (&world);
  world.no_log = true;
  model.clock = 0;
  model.nr_changes = 0;
  model.next_id = 0;
  memset (model.flushed, 0, sizeof model.flushed);
  fault_rng.state = rng_next (&rng);
  multi_conn = rng_one_in (&rng, 2);
  slow_zero = rng_one_in (&rng, 4);
  can_copy = rng_one_in (&rng, 2);
  sim_store_init (&image_store, &world, (uint64_t) NR_SECTORS * SECTOR);
  sim_store_init (&metadata_store, &world,
                  format_file_bytes ((uint64_t) NR_SECTORS * SECTOR));
  sim_store_put (&metadata_store, "header", 6, 0);
  make_backing (&rng);
  image_store.track = metadata_store.track = true;
  image_store.forgets = metadata_store.forgets = true;
  fill_all = rng_one_in (&rng, 4);
  may_drop = true;
  dropped = false;
  dropping = false;
  fault_one_in = 0;
  open_overlay ();

  nr_rounds = rng_range (&rng, 1, MAX_ROUNDS);
  for (round = 0; round < nr_rounds; round++) {
    fault_one_in = rng_one_in (&rng, 2) ? rng_range (&rng, 5, 60) : 0;
    for (i = 0; i < 2; i++)
      set_up_port (&images[i].port);
    set_up_port (&metadata.port);
    set_up_port (&backing.port);
    nr_ops_to_live = rng_one_in (&rng, 3) ? rng_range (&rng, 1, 150) : 0;

    run_clients (&rng);
    if (!sim_world_is_dead (&world))
      check_all (false, false);
    if (sim_world_is_dead (&world) || rng_one_in (&rng, 3))
      crash (&rng);
    else if (rng_one_in (&rng, 2))
      kill_server (&rng);
    else
      stop_server ();
  }

  overlay_close (ov);
  sim_store_clear (&image_store);
  sim_store_clear (&metadata_store);
  sim_store_clear (&backing_store);
  sim_world_clear (&world);
}

int
main (int argc, char *argv[])
{
  const struct test_options o = test_options (argc, argv);
  const double until = seconds_now () + SECONDS;
  uint64_t i;

  printf ("-s %" PRIu64 "\n", o.seed);
  fflush (stdout);
  pthread_mutex_init (&model.lock, NULL);
  for (i = 0; o.iterations ? i < o.iterations : seconds_now () < until; i++) {
    check_watchdog (60);
    iteration (o.seed + i);
  }
  printf ("%" PRIu64 " iterations\n", i);
  return 0;
}

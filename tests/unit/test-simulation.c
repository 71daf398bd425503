/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The whole engine in one process, on files that are simulated: clients of
 * several connections, copy-on-read, filling and commits in the background.
 * A seed decides who goes on, how long each operation takes and which fails,
 * when the power goes, or the server is killed or stops, and what is on disk
 * then.  After each such life the disk is checked against a model and opened
 * again; some worlds end with a disk that stands alone.
 *
 * What is checked
 * ---------------
 * Each sector that is used is cut into cells, whose ends requests share, so
 * that a cell is of one write.  The model has of each cell all writes that it
 * may still hold, and when they began and were acknowledged.
 *
 * - A read sees no write that another one had replaced, which began when
 *   the first was over and was acknowledged, or seen by somebody, before the
 *   read began.
 * - After a power failure the same, where the other one was durable: done
 *   with FUA, or followed by a flush that succeeded.
 * - After the server was killed or stopped, what is found is there to stay.
 *   Stopped without an error it is all that was acknowledged.
 * - The cells of a sector are those of one moment: no sector is torn.
 * - What is said to read as zeroes does.
 * - Nothing fails without a reason, or with another error than that.
 * - Once the disk stands alone the backing file is closed, for good.
 * - Maps do not take more memory than they may: mostly that is for a few pages,
 *   and perhaps another map wants its part.
 *
 * In most worlds the threads run one at a time and the seed decides which, so
 * that a failure can be repeated; in others (-t: in all) as they like, for
 * the sake of sanitizers.
 *
 *     test-simulation [-s SEED] [-n WORLDS] [-t]
 *
 * World i has the seed SEED + i.  ADDCOW_SEED is a seed too.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "common.h"
#include "filler.h"
#include "format.h"
#include "image-file.h"
#include "map.h"
#include "overlay.h"
#include "sim-image.h"
#include "wraps.h"

#define SECTOR 512

#define WORLDS 10000
#define WORLDS_WATCHED 100 /* with a sanitizer, or valgrind */
#define WORLDS_LONG 2000000

/* The sectors that are used: all of a small disk; or, of one whose bitmap has
 * two pages, those at the begin, where the pages meet, and at the end; or those
 * where each two of four pages meet.
 */
#define CLUSTER 8
#define MAX_CLUSTERS 3
#define MAX_HOT (MAX_CLUSTERS * CLUSTER)
#define PAGE_END ((4096 - FORMAT_HEADER_BYTES) * 8)
#define LARGE_SECTORS (PAGE_END + 20000)
#define PAGES_SECTORS (PAGE_END + 3 * 32768)

#define NR_CELLS 4
#define MIN_CELL 8
#define CLUSTER_CELLS (CLUSTER * NR_CELLS)

#define MANY_PAGES 1000

#define NR_IMAGES 3
#define MAX_CLIENTS 4
#define MAX_OPS 60
#define MAX_LIVES 6

static const struct geometry {
  uint64_t nr_sectors;
  unsigned nr_clusters;
  uint64_t cluster_begin[MAX_CLUSTERS];
} geometries[] = {
  { 2 * CLUSTER, 2, { 0, CLUSTER } },
  { 3 * CLUSTER, 3, { 0, CLUSTER, 2 * CLUSTER } },
  { LARGE_SECTORS, 3, { 0, PAGE_END - CLUSTER / 2, LARGE_SECTORS - CLUSTER } },
  { PAGES_SECTORS,
    3,
    { PAGE_END - 3, PAGE_END + 32768 - 2, PAGE_END + 2 * 32768 - 6 } },
};

/*--- What a seed decides about a world, and about a life. -------------*/

static struct {
  uint64_t seed;
  bool scheduled; /* else the threads run as they like */
  const struct geometry *geometry;
  unsigned cell_begin[NR_CELLS + 1]; /* in each sector */
  bool multi_conn, slow_zero, can_copy, trim_keeps, slow;
  unsigned cache_pages; /* in memory; MANY_PAGES: no bound */
  _Atomic bool dropped; /* the backing file is closed */
} world_is;

/* What is chosen for it by choose_life. */
static struct {
  bool keeps; /* copy-on-read */
  bool fills;
  bool may_fail;  /* operations */
  bool completes; /* lives until the disk stands alone */
  bool slow_flushes;
  bool only_writes; /* and no zeroes */
  bool stumbles;    /* threads stop for a while, anywhere */
  /* Where most requests go. */
  unsigned cluster, first_sector, nr_sectors;
  unsigned spared_ops; /* see sim-image.h */
  bool detach_failed;  /* what had been set only in memory is lost */
} life;

static struct {
  bool had_bit[MAX_HOT]; /* on disk when it began */
} life_before;

static struct sim_world world;
static struct sim_store image_store, metadata_store, backing_store;
static struct sim_image images[NR_IMAGES], filler_image, metadata;
static struct sim_backing backing;
static struct map_cache *map_cache;
static struct overlay *ov;
static struct filler *filler;

/* Of those whose order is no matter of a client. */
static struct {
  pthread_mutex_t lock; /* protects all that follows */
  struct rng rng;
  unsigned nr_to_live; /* operations; 0: for ever */
} io = { .lock = PTHREAD_MUTEX_INITIALIZER };

static uint64_t nr_worlds, nr_lives, nr_power, nr_kills, nr_stops, nr_alone;
static _Atomic uint64_t nr_reads, nr_changes_done, nr_flushes;

/*--- The model. -------------------------------------------------------*/

#define NEVER UINT64_MAX
#define BASE_VALUE UINT32_C (0x80000000)
#define OLD_VALUE UINT32_C (0x7fffffff) /* of an image that is no new file */

/* A change of some cells, or what was found in one. */
struct change {
  uint32_t id;
  uint32_t value;      /* what cells hold by it */
  int image;           /* -1: any flush that covers all */
  uint64_t begin, end; /* NEVER: it was not answered */
  bool failed;         /* it may have happened, or in part */
  bool lost;           /* a flush failed that was for it */
  bool fua;
};

#define MAX_CHANGES 4096
#define MAX_CELL_CHANGES 1024

struct cell {
  uint32_t initial; /* before all changes */
  unsigned nr;
  struct cell_change {
    struct change *of;
    uint64_t seen; /* here; NEVER: it was not */
  } changes[MAX_CELL_CHANGES];
};

static struct {
  pthread_mutex_t lock; /* protects all that follows */
  uint64_t clock;
  struct cell cells[MAX_HOT][NR_CELLS];
  struct change changes[MAX_CHANGES];
  unsigned nr_changes;
  uint32_t next_id;
  /* When the last flush that succeeded began, by image. */
  uint64_t flushed[NR_IMAGES];
} model = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void
model_acquire (void)
{
  __real_pthread_mutex_lock (&model.lock);
}

static void
model_release (void)
{
  pthread_mutex_unlock (&model.lock);
}

static uint64_t
tick (void)
{
  uint64_t now;

  model_acquire ();
  now = ++model.clock;
  model_release ();
  return now;
}

static void
print_change (const struct cell_change *cc)
{
  const struct change *c = cc->of;

  fprintf (stderr, "  %" PRIu32 ": value %" PRIx32 ", image %d, ", c->id,
           c->value, c->image);
  fprintf (stderr, "%" PRIu64 " to ", c->begin);
  fprintf (stderr, c->end == NEVER ? "never" : "%" PRIu64, c->end);
  if (cc->seen != NEVER)
    fprintf (stderr, ", seen %" PRIu64, cc->seen);
  fprintf (stderr, "%s%s%s\n", c->fua ? ", FUA" : "",
           c->failed ? ", failed" : "", c->lost ? ", lost" : "");
}

/* Say what is wrong with CELL of hot sector HOT, and end. */
static void
fail (const char *what, unsigned hot, unsigned cell, uint32_t value)
{
  const struct cell *c = &model.cells[hot][cell];
  unsigned i;

  fprintf (stderr, "%s: hot sector %u, cell %u: %" PRIx32 "\n", what, hot, cell,
           value);
  fprintf (stderr, "life %" PRIu64 ", turn %" PRIu64 ", tick %" PRIu64 "; ",
           nr_lives, workers_nr_turns (), model.clock);
  fprintf (stderr, "repeat with -s %" PRIu64 " -n 1%s\n", world_is.seed,
           world_is.scheduled ? "" : ", perhaps");
  fprintf (stderr, "  before: %" PRIx32 "\n", c->initial);
  for (i = 0; i < c->nr; i++)
    print_change (&c->changes[i]);
  for (i = 0; i < NR_IMAGES; i++)
    fprintf (stderr, "  image %u flushed: %" PRIu64 "\n", i, model.flushed[i]);
  check_end ();
}

/* When the last flush began that made durable what was written through
 * IMAGE, as FLUSHED says.
 */
static uint64_t
flushed_at (int image, const uint64_t flushed[NR_IMAGES])
{
  uint64_t at = image >= 0 ? flushed[image] : NEVER;
  unsigned i;

  if (world_is.multi_conn)
    for (i = 0, at = 0; i < NR_IMAGES; i++)
      at = MAX (at, flushed[i]);
  else if (image < 0)
    for (i = 0; i < NR_IMAGES; i++)
      at = MIN (at, flushed[i]);
  return at;
}

static bool
is_durable_by (const struct change *c, const uint64_t flushed[NR_IMAGES])
{
  if (c->failed || c->lost || c->end == NEVER)
    return false;
  return c->fua || c->end < flushed_at (c->image, flushed);
}

static bool
is_durable (const struct change *c)
{
  return is_durable_by (c, model.flushed);
}

/* Does C replace what was before, for who reads from READ_BEGIN on, or after
 * a power failure?
 */
static bool
replaces (const struct cell_change *c, uint64_t read_begin, bool power)
{
  if (power)
    return is_durable (c->of);
  return (c->of->end < read_begin && !c->of->failed) || c->seen < read_begin;
}

/* When the last change began that replaced all before it. */
static uint64_t
replaced_at (const struct cell *cell, uint64_t read_begin, bool power)
{
  uint64_t last = 0;
  unsigned i;

  for (i = 0; i < cell->nr; i++)
    if (cell->changes[i].of->begin > last &&
        replaces (&cell->changes[i], read_begin, power))
      last = cell->changes[i].of->begin;
  return last;
}

/* From when to when a cell can have held something. */
struct window {
  uint64_t from, to;
};

/* Something that was there from BEGIN to END, at least, is gone by then. */
static uint64_t
gone_by (const struct cell *cell, uint64_t end)
{
  uint64_t by = NEVER;
  unsigned i;

  for (i = 0; i < cell->nr; i++) {
    const struct change *c = cell->changes[i].of;

    if (c->begin > end && !c->failed)
      by = MIN (by, c->end);
  }
  return by;
}

static void
widen (struct window *w, uint64_t from, uint64_t to)
{
  w->from = MIN (w->from, from);
  w->to = MAX (w->to, to);
}

/* May CELL be VALUE?  *W is when it can have been.  *SEEN is the change that
 * it is of, if there is one only.
 */
static bool
may_be (struct cell *cell, uint32_t value, uint64_t read_begin, bool power,
        struct window *w, struct cell_change **seen)
{
  const uint64_t replaced = replaced_at (cell, read_begin, power);
  bool found = replaced == 0 && value == cell->initial;
  unsigned i, n = found;

  *w = (struct window){ NEVER, 0 };
  *seen = NULL;
  if (found)
    widen (w, 0, gone_by (cell, 0));
  for (i = cell->nr; i-- > 0;) {
    const struct change *c = cell->changes[i].of;

    if (c->value != value || c->end < replaced)
      continue;
    found = true;
    *seen = n++ == 0 ? &cell->changes[i] : NULL;
    widen (w, c->begin, gone_by (cell, c->end));
  }
  return found;
}

/*--- Bytes of cells. --------------------------------------------------*/

static unsigned
cell_bytes (unsigned cell)
{
  return world_is.cell_begin[cell + 1] - world_is.cell_begin[cell];
}

/* The same eight bytes again and again, where 0 is all zeroes. */
static void
put_value (uint8_t *bytes, unsigned hot, unsigned cell, uint32_t value)
{
  const uint64_t place = hot * NR_CELLS + cell + 1;
  const uint64_t word = value ? place << 32 | value : 0;
  const unsigned n = cell_bytes (cell);
  unsigned i;

  for (i = 0; i < n; i += sizeof word)
    memcpy (bytes + i, &word, MIN (n - i, sizeof word));
}

static uint32_t
get_value (const uint8_t *bytes, unsigned hot, unsigned cell)
{
  const unsigned n = cell_bytes (cell);
  uint64_t word;

  memcpy (&word, bytes, sizeof word);
  if (memcmp (bytes, bytes + sizeof word, n - sizeof word) != 0)
    fail ("mixed", hot, cell, word);
  if (word && word >> 32 != hot * NR_CELLS + cell + 1)
    fail ("of another place", hot, cell, word);
  return word;
}

/* Cells [FROM, TO) of a cluster. */
struct cells {
  unsigned cluster, from, to;
};

static unsigned
cell_offset (unsigned i)
{
  return i / NR_CELLS * SECTOR + world_is.cell_begin[i % NR_CELLS];
}

static uint64_t
cells_offset (const struct cells *cs)
{
  return world_is.geometry->cluster_begin[cs->cluster] * SECTOR +
         cell_offset (cs->from);
}

static uint64_t
cells_bytes (const struct cells *cs)
{
  return cell_offset (cs->to) - cell_offset (cs->from);
}

static unsigned
cells_hot (const struct cells *cs, unsigned i)
{
  return cs->cluster * CLUSTER + i / NR_CELLS;
}

static struct cell *
model_cell (const struct cells *cs, unsigned i)
{
  return &model.cells[cells_hot (cs, i)][i % NR_CELLS];
}

/* Check what was read of CS from READ_BEGIN on, or found after a POWER
 * failure.  Caller holds model.lock, or is alone.
 */
static void
check_cells (const struct cells *cs, const uint8_t *bytes, uint64_t read_begin,
             bool power)
{
  const uint64_t now = ++model.clock;
  struct window all = { 0, NEVER };
  unsigned i;

  for (i = cs->from; i < cs->to; i++) {
    const unsigned hot = cells_hot (cs, i), cell = i % NR_CELLS;
    const uint8_t *at = bytes + (cell_offset (i) - cell_offset (cs->from));
    const uint32_t value = get_value (at, hot, cell);
    struct cell_change *seen;
    struct window w;

    if (!may_be (model_cell (cs, i), value, read_begin, power, &w, &seen))
      fail (power ? "after a power failure" : "read", hot, cell, value);
    if (seen && !power)
      seen->seen = MIN (seen->seen, now);
    if (cell == 0)
      all = (struct window){ 0, NEVER };
    all.from = MAX (all.from, w.from);
    all.to = MIN (all.to, w.to);
    if (all.from > all.to)
      fail ("torn", hot, cell, value);
  }
}

/*--- Changes of the model. --------------------------------------------*/

static struct change *
new_change_locked (int image)
{
  struct change *c = &model.changes[model.nr_changes++];

  CHECK (model.nr_changes <= MAX_CHANGES);
  *c = (struct change){
    .id = ++model.next_id,
    .image = image,
    .begin = ++model.clock,
    .end = NEVER,
  };
  c->value = c->id;
  return c;
}

static void
add_change_locked (struct cell *cell, struct change *c)
{
  CHECK (cell->nr < MAX_CELL_CHANGES);
  cell->changes[cell->nr++] = (struct cell_change){ c, NEVER };
}

/* What is not durable by FLUSHED may be lost, and that is told: no later
 * flush is for it.  So may be what is under way; if with FUA it will fail.
 */
static void
lose_undurable_locked (const uint64_t flushed[NR_IMAGES])
{
  unsigned i;

  for (i = 0; i < model.nr_changes; i++) {
    struct change *c = &model.changes[i];

    if (!is_durable_by (c, flushed) && !(c->fua && c->end == NEVER))
      c->lost = true;
  }
}

/* VALUE was found in the cell when the disk was opened: it is there to stay,
 * unless it is LOST: a flush failed that was for it.  Of that perhaps only the
 * log has told, and nobody is told in a later life.
 */
static void
settle_cell (struct cell *cell, uint32_t value, bool lost)
{
  const uint64_t replaced = replaced_at (cell, 0, true);
  struct change *c;
  unsigned i, n = 0;

  for (i = 0; i < cell->nr && lost; i++)
    if (!is_durable (cell->changes[i].of))
      cell->changes[i].of->lost = true;

  /* What no power failure brings back any more need not be known. */
  for (i = 0; i < cell->nr; i++)
    if (cell->changes[i].of->end >= replaced)
      cell->changes[n++] = cell->changes[i];
  cell->nr = n;

  c = new_change_locked (-1);
  c->value = value;
  c->lost = lost;
  c->end = c->begin;
  add_change_locked (cell, c);
}

/* The same after a power failure: it was durable when it was found. */
static void
begin_with (struct cell *cell, uint32_t value)
{
  cell->initial = value;
  cell->nr = 0;
}

/*--- In place of what the engine calls. -------------------------------*/

/* Let others go on, perhaps for long. */
static void
stumble (void)
{
  int64_t ns = 0;

  worker_yield ();
  if (!life.stumbles || !world_is.scheduled)
    return;
  __real_pthread_mutex_lock (&io.lock);
  if (rng_one_in (&io.rng, 16))
    ns = rng_below (&io.rng, rng_one_in (&io.rng, 2) ? 200000 : 20 * MS);
  pthread_mutex_unlock (&io.lock);
  if (ns > 0)
    worker_sleep (ns);
}

/* What somebody found in the map, or is about to change, may be different
 * when he acts on it.
 */
bool __real_map_set (struct map *, uint64_t, uint64_t);
bool __wrap_map_set (struct map *, uint64_t, uint64_t);
int __real_map_freeze (struct map *);
int __wrap_map_freeze (struct map *);
bool __real_map_uncommitted (struct map *);
bool __wrap_map_uncommitted (struct map *);

int
__wrap_map_run (struct map *map, uint64_t sector, uint64_t max_sectors,
                bool *allocated, uint64_t *run)
{
  int r = __real_map_run (map, sector, max_sectors, allocated, run);

  stumble ();
  return r;
}

/* That, and two pages for each map. */
static void
check_memory (void)
{
  CHECK (map_cache_bytes (map_cache) <= (world_is.cache_pages + 4) * 4096);
}

bool
__wrap_map_set (struct map *map, uint64_t sector, uint64_t nr_sectors)
{
  bool first;

  stumble ();
  check_memory ();
  first = __real_map_set (map, sector, nr_sectors);
  stumble ();
  return first;
}

int
__wrap_map_freeze (struct map *map)
{
  int r;

  stumble ();
  r = __real_map_freeze (map);
  stumble ();
  return r;
}

bool
__wrap_map_uncommitted (struct map *map)
{
  bool uncommitted;

  stumble ();
  uncommitted = __real_map_uncommitted (map);
  stumble ();
  return uncommitted;
}

int
__wrap_clock_gettime (clockid_t clock, struct timespec *ts)
{
  if (!worker_is_scheduled ())
    return __real_clock_gettime (clock, ts);
  tell_time (clock, ts, workers_now_ns ());
  return 0;
}

int
__wrap_pthread_cond_timedwait (pthread_cond_t *cond, pthread_mutex_t *mutex,
                               const struct timespec *until)
{
  const int64_t ns = ns_of (until);

  if (!worker_is_scheduled ())
    return __real_pthread_cond_timedwait (cond, mutex, until);
  return worker_wait_until (cond, mutex, ns) ? 0 : ETIMEDOUT;
}

/* Threads are workers, and to who made them known as such. */
struct thread {
  struct start start;
  struct worker *worker;
};

int
__wrap_pthread_create (pthread_t *thread, const pthread_attr_t *attr,
                       void *(*fn) (void *), void *opaque)
{
  struct thread *t;

  if (!worker_is_scheduled ())
    return __real_pthread_create (thread, attr, fn, opaque);
  t = malloc (sizeof *t);
  CHECK (t != NULL);
  *t = (struct thread){ .start = { .fn = fn, .opaque = opaque } };
  t->worker = worker_add (start_main, &t->start);
  *thread = (pthread_t) t;
  return 0;
}

int
__wrap_pthread_join (pthread_t thread, void **ret)
{
  struct thread *t = (struct thread *) thread;

  if (!worker_is_scheduled ())
    return __real_pthread_join (thread, ret);
  worker_end (t->worker);
  free (t);
  return 0;
}

int
__wrap_fd_write_out (int fd, uint64_t count, uint64_t offset, bool wait)
{
  uint64_t before[NR_IMAGES];
  int r;

  CHECK_EQ (fd, IMAGE_FD);
  model_acquire ();
  memcpy (before, model.flushed, sizeof before);
  model_release ();
  r = sim_write_out (&filler_image, count, offset, wait);
  if (r == 0)
    return 0;
  /* It may have the answer for a flush at the same time. */
  model_acquire ();
  lose_undurable_locked (before);
  model_release ();
  return r;
}

void
__wrap_fd_forget (int fd, uint64_t count UNUSED, uint64_t offset UNUSED)
{
  CHECK_EQ (fd, IMAGE_FD);
}

/*--- Operations take time, fail, and are the last. --------------------*/

static int64_t
duration_locked (enum sim_op op)
{
  const unsigned what = rng_below (&io.rng, 100);

  if (!world_is.scheduled)
    return 0;
  if (life.slow_flushes && op == SIM_FLUSH)
    return rng_below (&io.rng, 30 * MS);
  if (what < (world_is.slow ? 20 : 70))
    return 0;
  if (what < 90)
    return rng_below (&io.rng, 200000);
  if (what < 99)
    return rng_below (&io.rng, 10 * MS);
  return rng_below (&io.rng, 2 * SECOND);
}

static void
operation_begins (struct sim_port *port UNUSED, enum sim_op op,
                  uint64_t offset UNUSED, uint64_t count UNUSED,
                  void *opaque UNUSED)
{
  int64_t ns;
  bool now;

  __real_pthread_mutex_lock (&io.lock);
  ns = duration_locked (op);
  now = io.nr_to_live > 0 && --io.nr_to_live == 0;
  pthread_mutex_unlock (&io.lock);
  if (ns > 0 && !sim_world_is_dead (&world))
    worker_sleep (ns);
  if (now)
    sim_world_kill (&world);
}

/* It was done, and who asked for it hears of that later. */
static void
operation_ends (enum sim_op op)
{
  int64_t ns = 0;

  __real_pthread_mutex_lock (&io.lock);
  if (op == SIM_FLUSH || rng_one_in (&io.rng, 4))
    ns = duration_locked (op);
  pthread_mutex_unlock (&io.lock);
  if (ns > 0 && !sim_world_is_dead (&world))
    worker_sleep (ns);
}

static struct rng fault_rng, split_rng, torn_rng;
static unsigned fault_one_in; /* 0: none */

static void
set_up_port (struct sim_port *port)
{
  port->hook = operation_begins;
  port->after = operation_ends;
  port->random_faults = fault_one_in ? &fault_rng : NULL;
  port->one_in = fault_one_in;
  port->splits = &split_rng;
  port->spared_ops = life.spared_ops;
}

static void
set_up_ports (void)
{
  unsigned i;

  for (i = 0; i < NR_IMAGES; i++)
    set_up_port (&images[i].port);
  set_up_port (&filler_image.port);
  set_up_port (&metadata.port);
  set_up_port (&backing.port);
}

/* Of what ended with R and *FAULT: is there a reason? */
static void
check_fault (int r, const struct fault *fault)
{
  const int err = fault->err;

  if (r == 0)
    return;
  CHECK_EQ (r, -1);
  CHECK (life.may_fail || sim_world_is_dead (&world));
  CHECK (err == EIO || err == ENOSPC || err == EDQUOT || err == EREMOTEIO);
}

/*--- What clients do. -------------------------------------------------*/

struct client {
  struct rng rng;
  unsigned nr_ops;
  unsigned image;
  bool owns_image; /* may leave, and come back */
};

static struct image *
client_image (struct client *c)
{
  return &images[c->image].image;
}

/* Many requests to few sectors. */
static struct cells
focused_cells (struct rng *rng)
{
  const unsigned from = life.first_sector * NR_CELLS;
  const unsigned to = from + life.nr_sectors * NR_CELLS;
  struct cells cs = {
    .cluster = life.cluster,
    .from = rng_range (rng, from, to - 1),
  };

  cs.to = rng_range (rng, cs.from + 1, to);
  if (rng_one_in (rng, 2)) { /* whole sectors */
    cs.from -= cs.from % NR_CELLS;
    cs.to = DIV_ROUND_UP (cs.to, NR_CELLS) * NR_CELLS;
  }
  return cs;
}

static struct cells
random_cells (struct rng *rng)
{
  struct cells cs = {
    .cluster = rng_below (rng, world_is.geometry->nr_clusters),
    .from = rng_below (rng, CLUSTER_CELLS),
  };

  cs.to = rng_range (rng, cs.from + 1, CLUSTER_CELLS);
  if (rng_one_in (rng, 2)) /* within a sector */
    cs.to = rng_range (rng, cs.from + 1,
                       cs.from - cs.from % NR_CELLS + NR_CELLS);
  if (rng_one_in (rng, 2)) { /* whole sectors */
    cs.from -= cs.from % NR_CELLS;
    cs.to = DIV_ROUND_UP (cs.to, NR_CELLS) * NR_CELLS;
  }
  return cs;
}

static void
put_cells (const struct cells *cs, uint8_t *bytes, uint32_t value)
{
  unsigned i;

  for (i = cs->from; i < cs->to; i++)
    put_value (bytes + (cell_offset (i) - cell_offset (cs->from)),
               cells_hot (cs, i), i % NR_CELLS, value);
}

enum kind { WRITE, ZERO, TRIM };

static int
do_change (struct client *c, const struct cells *cs, enum kind kind,
           const struct change *m, struct fault *fault)
{
  const uint64_t offset = cells_offset (cs), count = cells_bytes (cs);
  const unsigned flags = m->fua ? IMAGE_FUA : 0;
  uint8_t buf[CLUSTER * SECTOR];

  switch (kind) {
  case ZERO:
    return overlay_zero (ov, client_image (c), count, offset,
                         flags | (m->id % 2 ? IMAGE_MAY_TRIM : 0), fault);
  case TRIM:
    return overlay_trim (ov, client_image (c), count, offset, flags, fault);
  default:
    put_cells (cs, buf, m->value);
    return overlay_write (ov, client_image (c), buf, count, offset, flags,
                          fault);
  }
}

static void
random_change (struct client *c, const struct cells *cs)
{
  const unsigned what = life.only_writes ? 2 : rng_below (&c->rng, 8);
  const enum kind kind = what == 0 ? ZERO : what == 1 ? TRIM : WRITE;
  struct fault fault = { .err = -1 };
  struct change *m;
  unsigned i;
  int r;

  model_acquire ();
  m = new_change_locked (c->image);
  m->value = kind == WRITE ? m->id : 0;
  m->fua = rng_one_in (&c->rng, 8);
  for (i = cs->from; i < cs->to; i++)
    add_change_locked (model_cell (cs, i), m);
  model_release ();

  r = do_change (c, cs, kind, m, &fault);
  check_fault (r, &fault);
  nr_changes_done++;

  model_acquire ();
  /* A trim of what is allocated need not do anything. */
  m->failed = r != 0 || (kind == TRIM && world_is.trim_keeps);
  m->end = ++model.clock;
  model_release ();
}

static void
random_read (struct client *c, const struct cells *cs)
{
  uint8_t buf[CLUSTER * SECTOR];
  const uint64_t begin = tick ();
  struct fault fault = { .err = -1 };
  int r;

  r = overlay_read (ov, client_image (c), buf, cells_bytes (cs),
                    cells_offset (cs), &fault);
  check_fault (r, &fault);
  nr_reads++;
  if (r == -1)
    return;
  model_acquire ();
  check_cells (cs, buf, begin, false);
  model_release ();
}

static void
flush (struct client *c)
{
  uint64_t before[NR_IMAGES];
  struct fault fault = { .err = -1 };
  uint64_t begin;
  int r;

  model_acquire ();
  begin = ++model.clock;
  memcpy (before, model.flushed, sizeof before);
  model_release ();

  r = overlay_flush (ov, client_image (c), &fault);
  check_fault (r, &fault);
  nr_flushes++;

  model_acquire ();
  if (r == 0)
    model.flushed[c->image] = MAX (model.flushed[c->image], begin);
  else /* of flushes at a time one may have the answer for others */
    lose_undurable_locked (before);
  model_release ();
}

static int
ignore_extent (void *opaque UNUSED, uint64_t count UNUSED, unsigned type UNUSED)
{
  return 0;
}

/* The image has everything, and nobody said that before. */
static void
look_if_alone (bool wait)
{
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  bool was_dropped;

  if (world_is.dropped || !overlay_stands_alone (ov))
    return;
  if (!overlay_drop_backing (ov, wait)) {
    CHECK (!wait); /* nobody may ever look again */
    return;
  }
  __real_pthread_mutex_lock (&lock);
  was_dropped = world_is.dropped;
  world_is.dropped = true;
  pthread_mutex_unlock (&lock);
  if (was_dropped)
    return;
  backing_close (&backing.backing);
  nr_alone++;
}

/* The connection ends; another one takes its place. */
static void
reconnect (struct client *c)
{
  struct sim_image *image = &images[c->image];
  struct fault fault = { .err = -1 };
  int r;

  r = overlay_detach (ov, &image->image, &fault);
  check_fault (r, &fault);
  if (r == 0)
    look_if_alone (false);
  overlay_attach (ov, &image->image);
}

static void
fill (struct client *c, const struct cells *cs)
{
  struct fault fault = { .err = -1 };
  int r;

  r = overlay_fill_range (ov, client_image (c), cells_bytes (cs),
                          cells_offset (cs), &fault);
  check_fault (r, &fault);
}

static void
ask_for_extents (struct client *c, const struct cells *cs)
{
  struct fault fault = { .err = -1 };
  int r;

  r = overlay_extents (ov, client_image (c), cells_bytes (cs),
                       cells_offset (cs), ignore_extent, NULL, &fault);
  check_fault (r, &fault);
}

static void
cache (struct client *c, const struct cells *cs)
{
  struct fault fault = { .err = -1 };
  int r;

  r = overlay_cache (ov, client_image (c), cells_bytes (cs), cells_offset (cs),
                     &fault);
  check_fault (r, &fault);
}

static void
random_op (struct client *c)
{
  const struct cells cs = life.nr_sectors && !rng_one_in (&c->rng, 8)
                              ? focused_cells (&c->rng)
                              : random_cells (&c->rng);
  const unsigned what = rng_below (&c->rng, 32);
  struct fault fault = { .err = -1 };

  if (what < 8)
    random_read (c, &cs);
  else if (what < 11)
    flush (c);
  else if (what == 11)
    check_fault (overlay_commit (ov, &fault), &fault);
  else if (what == 12)
    ask_for_extents (c, &cs);
  else if (what == 13)
    fill (c, &cs);
  else if (what == 14)
    cache (c, &cs);
  else if (what == 15 && c->owns_image)
    reconnect (c);
  else
    random_change (c, &cs);
}

static void *
client_main (void *opaque)
{
  struct client *c = opaque;
  unsigned i;

  for (i = 0; i < c->nr_ops && !sim_world_is_dead (&world); i++) {
    if (filler)
      filler_client_begins (filler);
    random_op (c);
    if (filler)
      filler_client_ends (filler);
    if (world_is.scheduled && rng_one_in (&c->rng, 8))
      worker_sleep (rng_below (&c->rng, 50 * MS));
  }
  return NULL;
}

/*--- What goes on in the background. ----------------------------------*/

static void
keep_sector (struct image *image, uint64_t offset)
{
  struct fault fault;

  offset -= offset % SECTOR;
  if (filler == NULL || !filler_keep (filler, NULL, SECTOR, offset))
    overlay_fill_range (ov, image, 1, offset, &fault);
}

static void
keep_sectors (struct image *image, const uint8_t *buf, size_t count,
              uint64_t offset)
{
  struct fault fault;

  if (filler == NULL || !filler_keep (filler, buf, count, offset))
    overlay_keep (ov, image, buf, count, offset, false, &fault);
}

/* Somebody read this from the backing file: as the filter does. */
static void
note_missed (void *opaque UNUSED, struct image *image, const void *buf,
             size_t count, uint64_t offset)
{
  const uint64_t end = offset + count;
  const uint64_t first = DIV_ROUND_UP (offset, SECTOR) * SECTOR;
  const uint64_t last = end - end % SECTOR;

  if (filler)
    filler_hot (filler, count, offset);
  if (!life.keeps)
    return;
  if (first < last)
    keep_sectors (image, (const uint8_t *) buf + (first - offset), last - first,
                  first);
  if (first != offset)
    keep_sector (image, offset);
  if (last != end && last >= first)
    keep_sector (image, last);
}

static const struct overlay_hooks hooks = { .missed = note_missed };

static bool
is_wanted (void *opaque)
{
  struct rng *rng = opaque;
  bool wanted;

  __real_pthread_mutex_lock (&io.lock);
  wanted = life.completes || !rng_one_in (rng, 4);
  pthread_mutex_unlock (&io.lock);
  return wanted;
}

static void
is_complete (void *opaque UNUSED)
{
  look_if_alone (true);
}

static void
filling_failed (void *opaque UNUSED, const struct fault *fault)
{
  check_fault (-1, fault);
}

static void
start_filler (struct rng *rng)
{
  static struct rng wanted_rng;
  struct filler_options o;

  wanted_rng.state = rng_next (rng);
  filler_image.image.no_client = true;
  overlay_attach (ov, &filler_image.image);
  filler_options_init (&o, ov, &filler_image.image, &backing.backing);
  o.nr_workers = rng_range (rng, 1, 3);
  o.request_bytes = 4096 * rng_range (rng, 1, 2);
  o.commit_bytes = rng_below (rng, 5) * 2048;
  o.only_keep = !life.completes && rng_one_in (rng, 4);
  o.image_fd = rng_one_in (rng, 2) ? IMAGE_FD : -1;
  o.wanted = rng_one_in (rng, 2) ? is_wanted : NULL;
  o.complete = is_complete;
  o.failed = filling_failed;
  o.opaque = &wanted_rng;
  if (rng_one_in (rng, 4))
    o.rate_bytes = 4096 << rng_below (rng, 8);
  CHECK_EQ (filler_start (&filler, &o), 0);
}

static void
stop_filler (void)
{
  struct filler *f = filler;
  struct fault fault = { .err = -1 };
  int r;

  if (f == NULL)
    return;
  filler_stop (f);
  filler = NULL;
  r = overlay_detach (ov, &filler_image.image, &fault);
  check_fault (r, &fault);
  life.detach_failed |= r == -1;
}

/* Commits now and then, as the filter does. */
static struct {
  pthread_mutex_t lock; /* protects stop */
  pthread_cond_t wake;
  bool stop;
  int64_t interval_ns;
  pthread_t thread;
} committer = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void *
committer_main (void *opaque UNUSED)
{
  struct fault fault = { .err = -1 };
  struct timespec ts;
  int64_t ns;

  pthread_mutex_lock (&committer.lock);
  while (!committer.stop) {
    clock_gettime (CLOCK_MONOTONIC, &ts);
    ns = ts.tv_nsec + committer.interval_ns;
    ts.tv_sec += ns / SECOND;
    ts.tv_nsec = ns % SECOND;
    if (pthread_cond_timedwait (&committer.wake, &committer.lock, &ts) == 0)
      continue;
    pthread_mutex_unlock (&committer.lock);
    if (overlay_commit (ov, &fault) == 0)
      look_if_alone (true);
    pthread_mutex_lock (&committer.lock);
  }
  pthread_mutex_unlock (&committer.lock);
  return NULL;
}

static void
start_committer (struct rng *rng)
{
  pthread_condattr_t attr;

  committer.stop = false;
  committer.interval_ns = 0;
  if (rng_one_in (rng, 2))
    committer.interval_ns = rng_range (rng, 1, 50) * MS;
  if (committer.interval_ns == 0)
    return;
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&committer.wake, &attr);
  pthread_condattr_destroy (&attr);
  CHECK_EQ (pthread_create (&committer.thread, NULL, committer_main, NULL), 0);
}

static void
stop_committer (void)
{
  if (committer.interval_ns == 0)
    return;
  pthread_mutex_lock (&committer.lock);
  committer.stop = true;
  pthread_cond_signal (&committer.wake);
  pthread_mutex_unlock (&committer.lock);
  pthread_join (committer.thread, NULL);
  pthread_cond_destroy (&committer.wake);
}

/*--- Another map that wants memory, too. ------------------------------*/

/* It has a world of its own, in which nothing ends or fails, and somebody who
 * looks at its bits and sets some.
 */
#define NEIGHBOUR_SECTORS PAGES_SECTORS
#define NEIGHBOUR_BITS 64

static struct {
  bool is_there; /* in this world */
  struct sim_world world;
  struct sim_store store;
  struct sim_image metadata;
  struct map *map;
  pthread_mutex_t commit_lock; /* who commits */
  struct rng rng;
  unsigned nr_steps;
  pthread_t thread;
  bool is_set[NEIGHBOUR_BITS];
} neighbour = { .commit_lock = PTHREAD_MUTEX_INITIALIZER };

static uint64_t
neighbour_sector (unsigned bit)
{
  return NEIGHBOUR_SECTORS / NEIGHBOUR_BITS * bit;
}

static void
commit_neighbour (void *opaque UNUSED)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&neighbour.commit_lock);

  CHECK_EQ (map_freeze (neighbour.map), 0);
  CHECK_EQ (map_write_frozen (neighbour.map), 0);
  map_thaw (neighbour.map, true);
}

static void
neighbour_operation (struct sim_port *port UNUSED, enum sim_op op UNUSED,
                     uint64_t offset UNUSED, uint64_t count UNUSED,
                     void *opaque UNUSED)
{
  int64_t ns;

  if (!world_is.scheduled)
    return;
  __real_pthread_mutex_lock (&io.lock);
  ns = rng_below (&io.rng, MS);
  pthread_mutex_unlock (&io.lock);
  worker_sleep (ns);
}

static void
open_neighbour (void)
{
  if (!neighbour.is_there)
    return;
  sim_image_init (&neighbour.metadata, &neighbour.store);
  CHECK_EQ (map_open (&neighbour.map, &neighbour.metadata.image,
                      NEIGHBOUR_SECTORS * SECTOR, map_cache),
            0);
  map_commit_with (neighbour.map, commit_neighbour, NULL);
}

static void
check_neighbour (unsigned bit)
{
  bool allocated;
  uint64_t run;

  CHECK_EQ (
      map_run (neighbour.map, neighbour_sector (bit), 1, &allocated, &run), 0);
  CHECK_EQ (allocated, neighbour.is_set[bit]);
}

static void
close_neighbour (void)
{
  unsigned i;

  if (!neighbour.is_there)
    return;
  neighbour.metadata.port.hook = NULL;
  for (i = 0; i < NEIGHBOUR_BITS; i++)
    check_neighbour (i);
  commit_neighbour (NULL);
  map_close (neighbour.map);
}

static void
set_neighbour (unsigned bit)
{
  const uint64_t sector = neighbour_sector (bit);
  uint64_t n;
  int r;

  while ((r = map_prepare (neighbour.map, sector, 1, &n)) == MAP_FULL)
    if (map_commit_other (neighbour.map))
      continue;
    else if (map_uncommitted (neighbour.map))
      commit_neighbour (NULL);
    else
      map_wait_for_room (neighbour.map);
  CHECK_EQ (r, 0);
  map_set (neighbour.map, sector, 1);
  map_unprepare (neighbour.map, sector, 1);
  neighbour.is_set[bit] = true;
}

static void *
neighbour_main (void *opaque UNUSED)
{
  struct rng *rng = &neighbour.rng;
  unsigned i;

  for (i = 0; i < neighbour.nr_steps; i++) {
    const unsigned bit = rng_below (rng, NEIGHBOUR_BITS);

    check_neighbour (bit);
    if (rng_one_in (rng, 4))
      set_neighbour (bit);
    if (rng_one_in (rng, 32))
      commit_neighbour (NULL);
    if (world_is.scheduled && rng_one_in (rng, 8))
      worker_sleep (rng_below (rng, 20 * MS));
  }
  return NULL;
}

static void
start_neighbour (struct rng *rng)
{
  if (!neighbour.is_there)
    return;
  neighbour.rng.state = rng_next (rng);
  neighbour.nr_steps = rng_range (rng, 1, 2 * MAX_OPS);
  neighbour.metadata.port.hook = neighbour_operation;
  CHECK_EQ (pthread_create (&neighbour.thread, NULL, neighbour_main, NULL), 0);
}

static void
join_neighbour (void)
{
  if (neighbour.is_there)
    pthread_join (neighbour.thread, NULL);
}

static void
make_neighbour (struct rng *rng)
{
  neighbour.is_there = rng_one_in (rng, 4);
  if (!neighbour.is_there)
    return;
  memset (neighbour.is_set, 0, sizeof neighbour.is_set);
  sim_world_init (&neighbour.world);
  neighbour.world.no_log = true;
  sim_store_init (&neighbour.store, &neighbour.world,
                  format_file_bytes (NEIGHBOUR_SECTORS * SECTOR));
}

static void
clear_neighbour (void)
{
  if (!neighbour.is_there)
    return;
  sim_store_clear (&neighbour.store);
  sim_world_clear (&neighbour.world);
}

/*--- A life. ----------------------------------------------------------*/

static uint64_t
disk_bytes (void)
{
  return world_is.geometry->nr_sectors * SECTOR;
}

/* As disk_open does: what is in memory of the metadata file, and not on disk,
 * is forgotten.
 */
static void
open_metadata (struct rng *rng)
{
  sim_image_init (&metadata, &metadata_store);
  CHECK_EQ (metadata.image.ops->flush (&metadata.image), 0);
  sim_store_forget (&metadata_store, rng);
}

static void
open_overlay (struct rng *rng)
{
  unsigned i;

  open_metadata (rng);
  sim_backing_init (&backing, &backing_store);
  backing.closed = world_is.dropped;
  CHECK_EQ (map_cache_new (&map_cache, world_is.cache_pages * 4096), 0);
  CHECK_EQ (overlay_open (&ov, &metadata.image, disk_bytes (), &backing.backing,
                          map_cache, &hooks),
            0);
  open_neighbour ();
  for (i = 0; i < NR_IMAGES; i++) {
    sim_image_init (&images[i], &image_store);
    images[i].image.multi_conn = world_is.multi_conn;
    images[i].port.slow_zero = world_is.slow_zero;
    images[i].port.trim_keeps = world_is.trim_keeps;
    if (world_is.can_copy)
      sim_can_copy (&images[i], &backing);
    overlay_attach (ov, &images[i].image);
  }
  sim_image_init (&filler_image, &image_store);
  filler_image.image.multi_conn = world_is.multi_conn;
  filler_image.port.slow_zero = world_is.slow_zero;
  if (world_is.can_copy)
    sim_can_copy (&filler_image, &backing);
}

/* Notes which sectors of a cluster are said to be zero. */
struct zeroes {
  uint64_t at;
  bool is_zero[CLUSTER];
};

static int
note_zeroes (void *opaque, uint64_t count, unsigned type)
{
  struct zeroes *z = opaque;
  uint64_t i;

  for (i = z->at; i < z->at + count; i++)
    z->is_zero[i / SECTOR] = (type & EXTENT_ZERO) &&
                             (i % SECTOR == 0 || z->is_zero[i / SECTOR]);
  z->at += count;
  return 0;
}

static void
close_overlay (void)
{
  close_neighbour ();
  overlay_close (ov);
  CHECK_EQ (map_cache_bytes (map_cache), 0);
  map_cache_free (map_cache);
}

static void
check_extents (unsigned cluster, const uint8_t *bytes)
{
  static const uint8_t zeroes[SECTOR];
  const uint64_t offset = world_is.geometry->cluster_begin[cluster] * SECTOR;
  struct zeroes z = { .at = 0 };
  struct fault fault;
  unsigned i;

  CHECK_EQ (overlay_extents (ov, &images[0].image, CLUSTER * SECTOR, offset,
                             note_zeroes, &z, &fault),
            0);
  CHECK_EQ (z.at, CLUSTER * SECTOR);
  for (i = 0; i < CLUSTER; i++)
    if (z.is_zero[i] && memcmp (bytes + i * SECTOR, zeroes, SECTOR) != 0)
      fail ("no zeroes", cluster * CLUSTER + i, 0, 0);
}

enum end { STOP, KILL, POWER };

/* What is known from now on of what was read. */
static void
settle_cells (const struct cells *cs, const uint8_t *bytes, bool power)
{
  unsigned i;

  for (i = cs->from; i < cs->to; i++) {
    const uint32_t value = get_value (bytes + cell_offset (i),
                                      cells_hot (cs, i), i % NR_CELLS);
    const uint64_t offset = (world_is.geometry->cluster_begin[cs->cluster] +
                             i / NR_CELLS) *
                            SECTOR;

    if (power)
      begin_with (model_cell (cs, i), value);
    else
      settle_cell (model_cell (cs, i), value,
                   sim_store_is_lost (&image_store, offset));
  }
}

/* Is the sector of CS at I what could be lost with the server alone: was its
 * bit not on disk when the life before began?
 */
static bool
had_no_bit (const struct cells *cs, unsigned i)
{
  return !life_before.had_bit[cells_hot (cs, i)];
}

/* Read everything and check it, as it has to be after END.  What a server
 * that is killed has in memory alone is bits; the rest is with the system.
 */
static void
check_cluster (unsigned cluster, enum end end)
{
  const struct cells cs = { cluster, 0, CLUSTER_CELLS };
  uint8_t bytes[CLUSTER * SECTOR], in_image[CLUSTER * SECTOR];
  struct fault fault;
  unsigned i;

  CHECK_EQ (overlay_read (ov, &images[0].image, bytes, sizeof bytes,
                          cells_offset (&cs), &fault),
            0);
  for (i = 0; i < CLUSTER_CELLS; i += NR_CELLS) {
    const struct cells sector = { cluster, i, i + NR_CELLS };

    check_cells (&sector, bytes + cell_offset (i), NEVER,
                 end == POWER || (end == KILL && had_no_bit (&cs, i)));
  }
  check_extents (cluster, bytes);
  settle_cells (&cs, bytes, end == POWER);
  if (!world_is.dropped)
    return;
  sim_store_get (&image_store, in_image, sizeof in_image, cells_offset (&cs));
  CHECK (memcmp (in_image, bytes, sizeof bytes) == 0);
}

static void
check_disk (enum end end)
{
  unsigned i;

  for (i = 0; i < world_is.geometry->nr_clusters; i++)
    check_cluster (i, end);
  if (end == POWER)
    model.nr_changes = 0;
}

/* Which sectors have their bit on disk now. */
static void
note_bits (void)
{
  unsigned i;

  for (i = 0; i < world_is.geometry->nr_clusters * CLUSTER; i++) {
    const uint64_t sector = world_is.geometry->cluster_begin[i / CLUSTER] +
                            i % CLUSTER;
    const uint8_t byte = sim_store_byte (&metadata_store,
                                         FORMAT_HEADER_BYTES + sector / 8);

    life_before.had_bit[i] = byte & 1u << sector % 8;
  }
}

static void
run_clients (struct rng *rng)
{
  const unsigned n = rng_range (rng, 1, MAX_CLIENTS);
  const unsigned shared = rng_below (rng, NR_IMAGES);
  struct client clients[MAX_CLIENTS];
  pthread_t threads[MAX_CLIENTS];
  unsigned i;

  for (i = 0; i < n; i++) {
    clients[i] = (struct client){
      .rng = { rng_next (rng) },
      .nr_ops = rng_range (rng, 1, MAX_OPS),
      .image = i < NR_IMAGES ? i : shared,
      .owns_image = n <= NR_IMAGES || i != shared,
    };
    if (i >= NR_IMAGES)
      clients[i].owns_image = false;
  }
  for (i = 0; i < n; i++)
    CHECK_EQ (pthread_create (&threads[i], NULL, client_main, &clients[i]), 0);
  for (i = 0; i < n; i++)
    pthread_join (threads[i], NULL);
}

/* Until the disk stands alone. */
static void
await_completion (void)
{
  unsigned i;

  for (i = 0; !world_is.dropped && !sim_world_is_dead (&world); i++) {
    CHECK (i < 100000);
    worker_sleep (SECOND);
  }
}

static void
no_faults (void)
{
  fault_one_in = 0;
  life.may_fail = false;
  set_up_ports ();
}

/* The clients leave, and all ends in good order; if it is SAFE, without a
 * fault from now on.
 */
static void
detach_all (bool safe)
{
  struct fault fault = { .err = -1 };
  unsigned i;
  int r;

  stop_filler ();
  stop_committer ();
  if (safe)
    no_faults ();
  for (i = 0; i < NR_IMAGES; i++) {
    r = overlay_detach (ov, &images[i].image, &fault);
    check_fault (r, &fault);
    if (r == 0)
      look_if_alone (false);
    life.detach_failed |= r == -1;
  }
  look_if_alone (true);
  life.detach_failed &= overlay_uncommitted (ov);
}

static void
choose_life (struct rng *rng)
{
  life.keeps = rng_one_in (rng, 3);
  life.fills = world_is.multi_conn && rng_one_in (rng, 2);
  life.completes = life.fills && world_is.scheduled && rng_one_in (rng, 4);
  life.may_fail = !life.completes && rng_one_in (rng, 2);
  life.slow_flushes = rng_one_in (rng, 2);
  life.only_writes = rng_one_in (rng, 2);
  life.stumbles = rng_one_in (rng, 2);
  life.detach_failed = false;
  life.spared_ops = 0;
  if (rng_one_in (rng, 2)) /* only flushes fail */
    life.spared_ops = ~(1u << SIM_FLUSH);
  life.nr_sectors = rng_one_in (rng, 2) ? rng_range (rng, 1, 3) : 0;
  life.cluster = rng_below (rng, world_is.geometry->nr_clusters);
  life.first_sector = rng_range (rng, 0, CLUSTER - 3);
  fault_one_in = 0;
  if (life.may_fail)
    fault_one_in = rng_range (rng, 5, 80);
  if (life.may_fail && life.spared_ops && rng_one_in (rng, 2))
    fault_one_in = rng_range (rng, 2, 6);
  __real_pthread_mutex_lock (&io.lock);
  io.nr_to_live = rng_one_in (rng, 2) ? rng_range (rng, 1, 400) : 0;
  pthread_mutex_unlock (&io.lock);
  set_up_ports ();
}

/* Returns how it ended: by itself at the moment that was chosen, or when all
 * was done.
 */
static enum end
live (struct rng *rng)
{
  const bool power = rng_one_in (rng, 2), at_end = rng_one_in (rng, 2);

  choose_life (rng);
  note_bits ();
  if (life.fills)
    start_filler (rng);
  start_committer (rng);
  start_neighbour (rng);
  run_clients (rng);
  join_neighbour ();
  if (life.completes)
    await_completion ();
  if (at_end)
    sim_world_kill (&world);
  detach_all (!sim_world_is_dead (&world) && rng_one_in (rng, 2));
  if (sim_world_is_dead (&world))
    return power ? POWER : KILL;
  return life.detach_failed ? KILL : STOP;
}

static void
crash_store (struct sim_store *store, struct rng *rng)
{
  struct sim_store before = *store;

  sim_store_crash (store, &world, &before, rng);
  sim_store_clear (&before);
}

/* Live once more, and look what is left. */
static void
live_and_check (struct rng *rng)
{
  static uint64_t *const counts[] = { &nr_stops, &nr_kills, &nr_power };
  const enum end end = live (rng);

  nr_lives++;
  ++*counts[end];
  close_overlay ();
  io.nr_to_live = 0;
  world.dead = false;
  no_faults ();
  if (end == POWER) {
    crash_store (&image_store, rng);
    crash_store (&metadata_store, rng);
  }
  open_overlay (rng);
  check_disk (end);
}

/*--- A world. ---------------------------------------------------------*/

static void
choose_cells (struct rng *rng)
{
  unsigned i, end = SECTOR;

  world_is.cell_begin[0] = 0;
  world_is.cell_begin[NR_CELLS] = SECTOR;
  for (i = NR_CELLS - 1; i > 0; i--) {
    end = rng_one_in (rng, 4) ? end - MIN_CELL
                              : rng_range (rng, i * MIN_CELL, end - MIN_CELL);
    world_is.cell_begin[i] = end;
  }
}

/* Some sectors of it are zero, with a hole or without; it ends between two
 * cells.
 */
static void
make_backing (struct rng *rng)
{
  const struct geometry *g = world_is.geometry;
  const unsigned last = rng_range (rng, g->nr_clusters - 1, g->nr_clusters);
  uint64_t size = disk_bytes ();
  unsigned i, cell;

  if (last < g->nr_clusters)
    size = g->cluster_begin[last] * SECTOR +
           cell_offset (rng_below (rng, CLUSTER_CELLS));
  sim_store_init (&backing_store, &world, size);
  for (i = 0; i < g->nr_clusters * CLUSTER; i++) {
    const uint64_t begin = (g->cluster_begin[i / CLUSTER] + i % CLUSTER) *
                           SECTOR;
    const bool is_hole = rng_one_in (rng, 4), is_zero = rng_one_in (rng, 8);

    for (cell = 0; cell < NR_CELLS; cell++) {
      const uint64_t offset = begin + world_is.cell_begin[cell];
      uint32_t value = BASE_VALUE | (i * NR_CELLS + cell);
      uint8_t bytes[SECTOR];

      if (is_hole || is_zero || offset >= size)
        value = 0;
      begin_with (&model.cells[i][cell], value);
      put_value (bytes, i, cell, value);
      if (!is_hole && offset < size)
        sim_store_put (&backing_store, bytes, cell_bytes (cell), offset);
    }
  }
}

/* What is in it, where nobody has written to it. */
static void
make_image (struct rng *rng)
{
  const struct geometry *g = world_is.geometry;
  unsigned i, cell;

  sim_store_init (&image_store, &world, disk_bytes ());
  if (rng_one_in (rng, 3))
    return; /* all holes */
  for (i = 0; i < g->nr_clusters * CLUSTER; i++)
    for (cell = 0; cell < NR_CELLS; cell++) {
      const uint64_t begin = (g->cluster_begin[i / CLUSTER] + i % CLUSTER) *
                             SECTOR;
      uint8_t bytes[SECTOR];

      put_value (bytes, i, cell, OLD_VALUE);
      sim_store_put (&image_store, bytes, cell_bytes (cell),
                     begin + world_is.cell_begin[cell]);
    }
}

static void
choose_world (struct rng *rng)
{
  world_is.geometry = &geometries[rng_below (rng, ARRAY_SIZE (geometries))];
  world_is.multi_conn = !rng_one_in (rng, 4);
  world_is.slow_zero = rng_one_in (rng, 4);
  world_is.can_copy = rng_one_in (rng, 3);
  world_is.trim_keeps = rng_one_in (rng, 3);
  world_is.slow = rng_one_in (rng, 2);
  world_is.cache_pages = rng_one_in (rng, 4) ? MANY_PAGES : rng_below (rng, 9);
  world_is.dropped = false;
  io.rng.state = rng_next (rng);
  fault_rng.state = rng_next (rng);
  split_rng.state = rng_next (rng);
  torn_rng.state = rng_next (rng);
  fault_one_in = 0;
  io.nr_to_live = 0;
  life.may_fail = false;
  choose_cells (rng);
}

static void
make_world (struct rng *rng)
{
  sim_world_init (&world);
  world.no_log = true;
  world.torn = &torn_rng;
  model.clock = 0;
  model.nr_changes = 0;
  model.next_id = 0;
  memset (model.flushed, 0, sizeof model.flushed);
  choose_world (rng);
  make_image (rng);
  sim_store_init (&metadata_store, &world, format_file_bytes (disk_bytes ()));
  make_backing (rng);
  make_neighbour (rng);
  image_store.track = metadata_store.track = true;
  image_store.forgets = metadata_store.forgets = true;
}

static void
world_main (void *opaque)
{
  struct rng *rng = opaque;
  const unsigned n = rng_range (rng, 1, MAX_LIVES);
  unsigned i;

  make_world (rng);
  open_overlay (rng);
  set_up_ports ();
  for (i = 0; i < n; i++)
    live_and_check (rng);
  close_overlay ();
  sim_store_clear (&image_store);
  sim_store_clear (&metadata_store);
  sim_store_clear (&backing_store);
  clear_neighbour ();
  sim_world_clear (&world);
  nr_worlds++;
}

static void
run_world (uint64_t seed, bool threads)
{
  struct rng rng = { seed }, schedule = { rng_next (&rng) };
  struct worker worker = { .fn = world_main, .opaque = &rng };

  world_is.seed = seed;
  world_is.scheduled = !threads &&
                       !rng_one_in (&rng, workers_are_watched () ? 2 : 64);
  if (world_is.scheduled)
    workers_run_scheduled (&worker, 1, &schedule);
  else
    world_main (&rng);
}

static uint64_t
default_worlds (void)
{
  const char *is_long = getenv ("ADDCOW_LONG");

  if (is_long && *is_long)
    return WORLDS_LONG;
  return workers_are_watched () ? WORLDS_WATCHED : WORLDS;
}

int
main (int argc, char *argv[])
{
  const struct test_options o = test_options (argc, argv);
  const uint64_t n = o.iterations ? o.iterations : default_worlds ();
  uint64_t i;

  printf ("-s %" PRIu64 "\n", o.seed);
  fflush (stdout);
  for (i = 0; i < n; i++) {
    check_watchdog (300);
    run_world (o.seed + i, o.threads);
  }
  printf ("%" PRIu64 " worlds, seed %" PRIu64 ": %" PRIu64 " turns, %" PRIu64
          " reads, %" PRIu64 " changes, %" PRIu64 " flushes, ",
          nr_worlds, o.seed, workers_nr_turns (), nr_reads, nr_changes_done,
          nr_flushes);
  printf ("%" PRIu64 " power failures, %" PRIu64 " kills, %" PRIu64
          " stops, %" PRIu64 " stand alone: nothing lost\n",
          nr_power, nr_kills, nr_stops, nr_alone);
  return 0;
}

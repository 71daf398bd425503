/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>

#include "common.h"
#include "sim-image.h"

#define SECTOR 512
#define BLOCK_BYTES 4096
#define BLOCK_SECTORS (BLOCK_BYTES / SECTOR)
#define TABLE_BLOCKS 4096

/* What a sector was after a write. */
struct version {
  uint64_t clock;              /* of the write */
  const struct sim_port *port; /* that it came through */
  bool lost;                   /* a flush failed on it */
  uint8_t bytes[SECTOR];
  struct version *older;
};

/* How long a store was from then on. */
struct sim_length {
  uint64_t clock;
  uint64_t size_bytes;
  struct sim_length *older;
};

struct sim_block {
  uint8_t now[BLOCK_BYTES];
  uint8_t data; /* a bit for each sector: no hole */
  uint8_t durable[BLOCK_BYTES];
  struct version *versions[BLOCK_SECTORS]; /* the newest first */
  bool is_unsettled;                       /* in its store's list */
  struct sim_block *next_unsettled;
};

/*--- The world. -------------------------------------------------------*/

static void
acquire (struct sim_world *world)
{
  __real_pthread_mutex_lock (&world->lock);
}

static void
release (struct sim_world *world)
{
  pthread_mutex_unlock (&world->lock);
}

void
sim_world_init (struct sim_world *world)
{
  *world = (struct sim_world){ .clock = 0 };
  pthread_mutex_init (&world->lock, NULL);
}

void
sim_world_clear (struct sim_world *world)
{
  free (world->events);
  pthread_mutex_destroy (&world->lock);
}

void
sim_world_kill (struct sim_world *world)
{
  acquire (world);
  world->dead = true;
  world->died_at = ++world->clock;
  release (world);
}

bool
sim_world_is_dead (struct sim_world *world)
{
  bool dead;

  acquire (world);
  dead = world->dead;
  release (world);
  return dead;
}

void
sim_log_clear (struct sim_world *world)
{
  acquire (world);
  world->nr_events = 0;
  release (world);
}

static struct sim_event *
log_add_locked (struct sim_world *world)
{
  if (world->nr_events == world->max_events) {
    world->max_events = world->max_events * 2 + 64;
    world->events = realloc (world->events,
                             world->max_events * sizeof world->events[0]);
    CHECK (world->events != NULL);
  }
  return &world->events[world->nr_events++];
}

static bool
event_is (const struct sim_event *e, const struct sim_port *port,
          enum sim_op op)
{
  return e->op == op && (port == NULL || e->port == port);
}

size_t
sim_log_count (struct sim_world *world, const struct sim_port *port,
               enum sim_op op)
{
  size_t i, n = 0;

  acquire (world);
  for (i = 0; i < world->nr_events; i++)
    n += event_is (&world->events[i], port, op);
  release (world);
  return n;
}

struct sim_event
sim_log_get (struct sim_world *world, const struct sim_port *port,
             enum sim_op op, size_t n)
{
  struct sim_event e = { 0 };
  size_t i;

  acquire (world);
  for (i = 0; i < world->nr_events; i++)
    if (event_is (&world->events[i], port, op) && n-- == 0)
      break;
  CHECK (i < world->nr_events);
  e = world->events[i];
  release (world);
  return e;
}

size_t
sim_log_count_changes (struct sim_world *world, const struct sim_port *port)
{
  return sim_log_count (world, port, SIM_WRITE) +
         sim_log_count (world, port, SIM_ZERO) +
         sim_log_count (world, port, SIM_TRIM) +
         sim_log_count (world, port, SIM_COPY) +
         sim_log_count (world, port, SIM_SET_LENGTH) +
         sim_log_count (world, port, SIM_FLUSH);
}

/*--- Bytes.  The world's lock is held, but where a test calls. --------*/

void
sim_store_init (struct sim_store *store, struct sim_world *world,
                uint64_t size_bytes)
{
  const uint64_t nr_blocks = DIV_ROUND_UP (size_bytes, BLOCK_BYTES);

  *store = (struct sim_store){
    .world = world,
    .size_bytes = size_bytes,
    .durable_bytes = size_bytes,
    .knows_holes = true,
    .nr_block_tables = DIV_ROUND_UP (nr_blocks, TABLE_BLOCKS),
  };
  store->blocks = calloc (store->nr_block_tables + 1, sizeof store->blocks[0]);
  CHECK (store->blocks != NULL);
}

static struct sim_block *
find_block (const struct sim_store *store, uint64_t offset)
{
  const uint64_t i = offset / BLOCK_BYTES;
  struct sim_block **table = store->blocks[i / TABLE_BLOCKS];

  return table ? table[i % TABLE_BLOCKS] : NULL;
}

static struct sim_block *
make_block (struct sim_store *store, uint64_t offset)
{
  const uint64_t i = offset / BLOCK_BYTES;
  struct sim_block ***table = &store->blocks[i / TABLE_BLOCKS];
  struct sim_block **block;

  if (*table == NULL)
    *table = calloc (TABLE_BLOCKS, sizeof **table);
  CHECK (*table != NULL);
  block = &(*table)[i % TABLE_BLOCKS];
  if (*block == NULL)
    *block = calloc (1, sizeof **block);
  CHECK (*block != NULL);
  return *block;
}

static void
free_versions (struct version *v)
{
  while (v) {
    struct version *older = v->older;

    free (v);
    v = older;
  }
}

static void
free_lengths (struct sim_length *l)
{
  while (l) {
    struct sim_length *older = l->older;

    free (l);
    l = older;
  }
}

/* Call FN for each block there is. */
static void
for_each_block (struct sim_store *store,
                void (*fn) (struct sim_block *block, uint64_t offset,
                            void *opaque),
                void *opaque)
{
  uint64_t i, j;

  for (i = 0; i < store->nr_block_tables; i++)
    for (j = 0; store->blocks[i] && j < TABLE_BLOCKS; j++)
      if (store->blocks[i][j])
        fn (store->blocks[i][j], (i * TABLE_BLOCKS + j) * BLOCK_BYTES, opaque);
}

static void
free_block (struct sim_block *block, uint64_t offset UNUSED,
            void *opaque UNUSED)
{
  unsigned i;

  for (i = 0; i < BLOCK_SECTORS; i++)
    free_versions (block->versions[i]);
  free (block);
}

void
sim_store_clear (struct sim_store *store)
{
  uint64_t i;

  free_lengths (store->lengths);
  for_each_block (store, free_block, NULL);
  for (i = 0; i < store->nr_block_tables; i++)
    free (store->blocks[i]);
  free (store->blocks);
}

static void
add_version (struct sim_store *store, const struct sim_port *port,
             struct sim_block *block, unsigned i)
{
  struct version *v = malloc (sizeof *v);

  CHECK (v != NULL);
  v->clock = ++store->world->clock;
  v->port = port;
  v->lost = false;
  memcpy (v->bytes, &block->now[i * SECTOR], SECTOR);
  v->older = block->versions[i];
  block->versions[i] = v;
  if (block->is_unsettled)
    return;
  block->is_unsettled = true;
  block->next_unsettled = store->unsettled;
  store->unsettled = block;
}

/* Change [OFFSET, OFFSET + COUNT) of one sector; BUF NULL is zeroes. */
static void
change_sector (struct sim_store *store, const struct sim_port *port,
               const void *buf, unsigned count, uint64_t offset, bool make_hole)
{
  const unsigned i = offset % BLOCK_BYTES / SECTOR;
  struct sim_block *block;
  uint8_t *now;

  if (store->discards)
    return;
  if (buf == NULL && make_hole && count == SECTOR &&
      find_block (store, offset) == NULL)
    return; /* as it is */
  block = make_block (store, offset);
  now = &block->now[offset % BLOCK_BYTES];
  if (buf)
    memcpy (now, buf, count);
  else
    memset (now, 0, count);
  if (!make_hole)
    block->data |= 1u << i;
  else if (count == SECTOR)
    block->data &= ~(1u << i);

  if (port && store->track)
    add_version (store, port, block, i);
  else if (port == NULL)
    memcpy (&block->durable[i * SECTOR], &block->now[i * SECTOR], SECTOR);
}

/* The same of any range.  If some sectors are SPARED, RNG says which. */
static void
change_range (struct sim_store *store, const struct sim_port *port,
              const void *buf, uint64_t count, uint64_t offset, bool make_hole,
              struct rng *spared)
{
  while (count > 0) {
    const unsigned n = MIN (count, SECTOR - offset % SECTOR);

    if (spared == NULL || rng_one_in (spared, 2))
      change_sector (store, port, buf, n, offset, make_hole);
    if (buf)
      buf = (const char *) buf + n;
    count -= n;
    offset += n;
  }
}

/* Have room for the blocks of a longer store. */
static void
make_room (struct sim_store *store, uint64_t size_bytes)
{
  const uint64_t n = DIV_ROUND_UP (DIV_ROUND_UP (size_bytes, BLOCK_BYTES),
                                   TABLE_BLOCKS);

  if (n <= store->nr_block_tables)
    return;
  store->blocks = realloc (store->blocks, (n + 1) * sizeof store->blocks[0]);
  CHECK (store->blocks != NULL);
  memset (&store->blocks[store->nr_block_tables], 0,
          (n + 1 - store->nr_block_tables) * sizeof store->blocks[0]);
  store->nr_block_tables = n;
}

static void
change_length (struct sim_store *store, const struct sim_port *port,
               uint64_t size_bytes)
{
  struct sim_length *l;

  if (size_bytes < store->size_bytes)
    change_range (store, port, NULL, store->size_bytes - size_bytes, size_bytes,
                  true, NULL);
  make_room (store, size_bytes);
  store->size_bytes = size_bytes;
  if (!store->track) {
    store->durable_bytes = size_bytes;
    return;
  }
  l = malloc (sizeof *l);
  CHECK (l != NULL);
  *l = (struct sim_length){
    .clock = ++store->world->clock,
    .size_bytes = size_bytes,
    .older = store->lengths,
  };
  store->lengths = l;
}

static void
get_range (struct sim_store *store, void *buf, uint64_t count, uint64_t offset)
{
  while (count > 0) {
    const size_t n = MIN (count, BLOCK_BYTES - offset % BLOCK_BYTES);
    const struct sim_block *block = find_block (store, offset);

    if (block)
      memcpy (buf, &block->now[offset % BLOCK_BYTES], n);
    else
      memset (buf, 0, n);
    buf = (char *) buf + n;
    count -= n;
    offset += n;
  }
}

static bool
is_data (const struct sim_store *store, uint64_t offset)
{
  const struct sim_block *block = find_block (store, offset);

  return block && block->data & 1u << offset % BLOCK_BYTES / SECTOR;
}

void
sim_store_put (struct sim_store *store, const void *buf, size_t count,
               uint64_t offset)
{
  CHECK (offset + count <= store->size_bytes);
  change_range (store, NULL, buf, count, offset, false, NULL);
}

void
sim_store_get (struct sim_store *store, void *buf, size_t count,
               uint64_t offset)
{
  CHECK (offset + count <= store->size_bytes);
  get_range (store, buf, count, offset);
}

uint8_t
sim_store_byte (struct sim_store *store, uint64_t offset)
{
  uint8_t byte;

  sim_store_get (store, &byte, 1, offset);
  return byte;
}

bool
sim_store_is_data (struct sim_store *store, uint64_t offset)
{
  return is_data (store, offset);
}

/*--- What a flush makes durable, and what power failure leaves. -------*/

struct flush {
  const struct sim_port *port; /* NULL: through any */
  uint64_t mark;               /* what was written before */
  bool good;
  bool forgets;
};

/* Version V of BLOCK's sector I is durable, older ones are past. */
static void
settle_version (struct sim_block *block, unsigned i, struct version *v)
{
  memcpy (&block->durable[i * SECTOR], v->bytes, SECTOR);
  free_versions (v->older);
  v->older = NULL;
}

static void
flush_sector (struct sim_block *block, unsigned i, const struct flush *f)
{
  struct version *v;

  for (v = block->versions[i]; v; v = v->older) {
    if (v->clock > f->mark || (f->port && v->port != f->port) || v->lost)
      continue;
    if (!f->good) {
      v->lost = f->forgets;
      continue;
    }
    settle_version (block, i, v);
    break;
  }
}

static bool
has_versions (const struct sim_block *block)
{
  unsigned i;

  for (i = 0; i < BLOCK_SECTORS; i++)
    if (block->versions[i])
      return true;
  return false;
}

static void
flush_blocks (struct sim_store *store, const struct flush *f)
{
  struct sim_block **p = &store->unsettled;

  while (*p) {
    struct sim_block *block = *p;
    unsigned i;

    for (i = 0; i < BLOCK_SECTORS; i++)
      flush_sector (block, i, f);
    block->is_unsettled = has_versions (block);
    if (block->is_unsettled)
      p = &block->next_unsettled;
    else
      *p = block->next_unsettled;
  }
}

/* A flush that fails leaves open what length it is. */
static void
flush_length (struct sim_store *store, const struct flush *f)
{
  struct sim_length **l = &store->lengths;

  while (*l && (*l)->clock > f->mark)
    l = &(*l)->older;
  if (*l == NULL || !f->good)
    return;
  store->durable_bytes = (*l)->size_bytes;
  free_lengths (*l);
  *l = NULL;
}

/* A write with FUA: the newest version of each sector is durable. */
static void
settle_range (struct sim_store *store, uint64_t count, uint64_t offset)
{
  const uint64_t end = offset + count;

  for (offset -= offset % SECTOR; offset < end; offset += SECTOR) {
    struct sim_block *block = find_block (store, offset);
    const unsigned i = offset % BLOCK_BYTES / SECTOR;

    if (block && block->versions[i])
      settle_version (block, i, block->versions[i]);
  }
}

void
sim_store_remember (struct sim_store *store)
{
  struct sim_block *block;
  struct version *v;
  unsigned i;

  acquire (store->world);
  for (block = store->unsettled; block; block = block->next_unsettled)
    for (i = 0; i < BLOCK_SECTORS; i++)
      for (v = block->versions[i]; v; v = v->older)
        v->lost = false;
  release (store->world);
}

/* What is on disk of sector I, of which not all is in memory any more. */
static void
forget_sector (struct sim_block *block, unsigned i, struct rng *rng)
{
  uint8_t *durable = &block->durable[i * SECTOR];
  const struct version *v;
  unsigned n = 1;

  if (block->versions[i] == NULL || !block->versions[i]->lost)
    return;
  for (v = block->versions[i]; v; v = v->older)
    if (rng_one_in (rng, ++n))
      memcpy (durable, v->bytes, SECTOR);
  memcpy (&block->now[i * SECTOR], durable, SECTOR);
  free_versions (block->versions[i]);
  block->versions[i] = NULL;
}

void
sim_store_forget (struct sim_store *store, struct rng *rng)
{
  struct sim_block *block;
  unsigned i;

  acquire (store->world);
  for (block = store->unsettled; block; block = block->next_unsettled)
    for (i = 0; i < BLOCK_SECTORS; i++)
      forget_sector (block, i, rng);
  release (store->world);
}

bool
sim_store_is_lost (struct sim_store *store, uint64_t offset)
{
  const struct sim_block *block = find_block (store, offset);
  const struct version *v = block
                                ? block->versions[offset % BLOCK_BYTES / SECTOR]
                                : NULL;

  return v && v->lost;
}

struct crash {
  struct sim_store *after;
  struct rng *rng;
};

static bool
is_zero (const uint8_t bytes[SECTOR])
{
  return bytes[0] == 0 && memcmp (bytes, bytes + 1, SECTOR - 1) == 0;
}

/* What was made a hole and is so no more is data. */
static void
crash_block (struct sim_block *block, uint64_t offset, void *opaque)
{
  struct crash *c = opaque;
  unsigned i;

  for (i = 0; i < BLOCK_SECTORS; i++) {
    const uint8_t *bytes = &block->durable[i * SECTOR];
    const struct version *v;
    unsigned n = 1;

    for (v = block->versions[i]; v; v = v->older)
      if (rng_one_in (c->rng, ++n))
        bytes = v->bytes;
    if (offset + i * SECTOR < c->after->size_bytes)
      change_range (c->after, NULL, bytes,
                    MIN (SECTOR, c->after->size_bytes - (offset + i * SECTOR)),
                    offset + i * SECTOR,
                    !(block->data & 1u << i) && is_zero (bytes), NULL);
  }
}

static uint64_t
crash_length (const struct sim_store *store, struct rng *rng)
{
  uint64_t size_bytes = store->durable_bytes;
  const struct sim_length *l;
  unsigned n = 1;

  for (l = store->lengths; l; l = l->older)
    if (rng_one_in (rng, ++n))
      size_bytes = l->size_bytes;
  return size_bytes;
}

void
sim_store_crash (struct sim_store *after, struct sim_world *world,
                 struct sim_store *store, struct rng *rng)
{
  struct crash c = { .after = after, .rng = rng };

  sim_store_init (after, world, crash_length (store, rng));
  after->knows_holes = store->knows_holes;
  after->track = store->track;
  after->forgets = store->forgets;
  acquire (store->world);
  for_each_block (store, crash_block, &c);
  release (store->world);
}

/*--- Operations. ------------------------------------------------------*/

struct operation {
  struct sim_port *port;
  enum sim_op op;
  uint64_t offset, count;
  unsigned flags;
  uint64_t begin;
  size_t event;
  int err;
  bool torn; /* it was under way when the world died */
};

static int
fault_locked (struct sim_port *port, enum sim_op op)
{
  static const int errs[] = { EIO, ENOSPC, EDQUOT, EREMOTEIO };

  if (port->faults[op].countdown > 0 && --port->faults[op].countdown == 0) {
    if (port->faults[op].repeat > 0) {
      port->faults[op].repeat--;
      port->faults[op].countdown = 1;
    }
    return port->faults[op].err;
  }
  if (port->random_faults && !(port->spared_ops & 1u << op) &&
      rng_one_in (port->random_faults, port->one_in))
    return errs[rng_below (port->random_faults, ARRAY_SIZE (errs))];
  return 0;
}

/* Begin an operation; returns with the world locked. */
static void
begin (struct operation *o)
{
  struct sim_world *world = o->port->store->world;
  struct gate *gates[SIM_GATES];
  unsigned i, nr_gates = 0;

  CHECK (o->offset <= o->port->store->size_bytes);
  CHECK (o->count <= o->port->store->size_bytes - o->offset);
  worker_yield ();

  acquire (world);
  o->err = fault_locked (o->port, o->op);
  o->begin = ++world->clock;
  if (!world->no_log) {
    struct sim_event *e = log_add_locked (world);

    *e = (struct sim_event){
      .port = o->port,
      .op = o->op,
      .offset = o->offset,
      .count = o->count,
      .flags = o->flags,
      .err = o->err,
      .begin = o->begin,
    };
    o->event = e - world->events;
  }
  for (i = 0; i < SIM_GATES; i++) {
    const uint64_t at = o->port->gates[i].offset;

    if (o->port->gates[i].gate && o->port->gates[i].op == o->op &&
        (at == SIM_ANYWHERE || (o->offset <= at && at < o->offset + o->count)))
      gates[nr_gates++] = o->port->gates[i].gate;
  }
  release (world);

  if (o->port->hook)
    o->port->hook (o->port, o->op, o->offset, o->count, o->port->opaque);
  for (i = 0; i < nr_gates; i++)
    gate_pass (gates[i]);
  worker_yield ();

  acquire (world);
  if (world->dead) {
    o->err = EIO;
    o->torn = world->torn && o->begin < world->died_at;
  }
}

static int
end (struct operation *o)
{
  struct sim_world *world = o->port->store->world;

  ++world->clock;
  if (!world->no_log) {
    world->events[o->event].end = world->clock;
    world->events[o->event].err = o->err;
  }
  release (world);
  if (o->port->after)
    o->port->after (o->op);
  worker_yield ();
  return o->err;
}

static int
port_read (struct sim_port *port, void *buf, size_t count, uint64_t offset)
{
  struct operation o = {
    .port = port,
    .op = SIM_READ,
    .offset = offset,
    .count = count,
  };

  begin (&o);
  if (o.err == 0)
    get_range (port->store, buf, count, offset);
  return end (&o);
}

/* Who says which sectors are spared if the change fails; NULL: all are. */
static struct rng *
spares (const struct operation *o)
{
  if (o->port->store->world->dead)
    return o->torn ? o->port->store->world->torn : NULL;
  return o->port->random_faults;
}

/* Make a part of the change.  Returns its bytes. */
static uint64_t
change_first_part (struct operation *o, const void *buf, bool make_hole)
{
  struct sim_world *world = o->port->store->world;
  const uint64_t max = o->count / SECTOR;
  uint64_t n;

  if (o->port->splits == NULL || o->err || max == 0 ||
      !rng_one_in (o->port->splits, 2))
    return 0;
  n = rng_range (o->port->splits, 1, max) * SECTOR - o->offset % SECTOR;
  if (n == o->count)
    return 0;
  change_range (o->port->store, o->port, buf, n, o->offset, make_hole, NULL);
  release (world);
  worker_yield ();
  acquire (world);
  if (world->dead)
    o->err = EIO;
  return n;
}

/* Write BUF, or zeroes for NULL, perhaps as a hole. */
static void
port_change (struct operation *o, const void *buf, bool make_hole)
{
  struct sim_store *store = o->port->store;
  const uint64_t n = change_first_part (o, buf, make_hole);

  if (o->err && spares (o) == NULL)
    return;
  change_range (store, o->port, buf ? (const char *) buf + n : NULL,
                o->count - n, o->offset + n, make_hole,
                o->err ? spares (o) : NULL);
  if (o->err == 0 && o->flags & IMAGE_FUA)
    settle_range (store, o->count, o->offset);
}

static int
port_extents (struct sim_port *port, uint64_t count, uint64_t offset,
              extent_fn *fn, void *opaque)
{
  struct sim_store *store = port->store;
  const uint64_t limit = offset + count;
  struct operation o = {
    .port = port,
    .op = SIM_EXTENTS,
    .offset = offset,
    .count = count,
  };
  int r;

  begin (&o);
  while (o.err == 0 && offset < limit) {
    const bool hole = store->knows_holes && !is_data (store, offset);
    uint64_t to = offset;

    /* Past what is not there in great steps. */
    while (to < limit && hole == (store->knows_holes && !is_data (store, to))) {
      if (store->blocks[to / BLOCK_BYTES / TABLE_BLOCKS] == NULL)
        to += BLOCK_BYTES * TABLE_BLOCKS - to % (BLOCK_BYTES * TABLE_BLOCKS);
      else if (find_block (store, to) == NULL)
        to += BLOCK_BYTES - to % BLOCK_BYTES;
      else
        to += SECTOR - to % SECTOR;
    }
    to = MIN (to, limit);
    release (store->world);
    r = fn (opaque, to - offset, hole ? EXTENT_HOLE | EXTENT_ZERO : 0);
    acquire (store->world);
    if (r) {
      end (&o);
      return r;
    }
    offset = to;
    if (port->one_extent)
      break;
  }
  return end (&o);
}

static int
port_cache (struct sim_port *port, uint64_t count, uint64_t offset)
{
  struct operation o = {
    .port = port,
    .op = SIM_CACHE,
    .offset = offset,
    .count = count,
  };

  begin (&o);
  return end (&o);
}

/*--- As an image. -----------------------------------------------------*/

static struct sim_port *
image_port (struct image *image)
{
  return &container_of (image, struct sim_image, image)->port;
}

static int
sim_image_read (struct image *image, void *buf, size_t count, uint64_t offset)
{
  return port_read (image_port (image), buf, count, offset);
}

static int
sim_image_write (struct image *image, const void *buf, size_t count,
                 uint64_t offset, unsigned flags)
{
  struct operation o = {
    .port = image_port (image),
    .op = SIM_WRITE,
    .offset = offset,
    .count = count,
    .flags = flags,
  };

  CHECK ((flags & ~IMAGE_FUA) == 0);
  begin (&o);
  port_change (&o, buf, false);
  return end (&o);
}

static int
sim_image_zero (struct image *image, uint64_t count, uint64_t offset,
                unsigned flags)
{
  struct operation o = {
    .port = image_port (image),
    .op = SIM_ZERO,
    .offset = offset,
    .count = count,
    .flags = flags,
  };

  CHECK ((flags & ~(IMAGE_FUA | IMAGE_MAY_TRIM | IMAGE_FAST)) == 0);
  begin (&o);
  if (o.err == 0 && flags & IMAGE_FAST && o.port->slow_zero)
    o.err = EOPNOTSUPP;
  else
    port_change (&o, NULL, flags & IMAGE_MAY_TRIM);
  return end (&o);
}

static int
sim_image_trim (struct image *image, uint64_t count, uint64_t offset,
                unsigned flags)
{
  struct operation o = {
    .port = image_port (image),
    .op = SIM_TRIM,
    .offset = offset,
    .count = count,
    .flags = flags,
  };

  CHECK ((flags & ~IMAGE_FUA) == 0);
  begin (&o);
  if (!o.port->trim_keeps)
    port_change (&o, NULL, true);
  return end (&o);
}

static int
sim_image_flush (struct image *image)
{
  struct operation o = { .port = image_port (image), .op = SIM_FLUSH };
  struct flush f;

  begin (&o);
  f = (struct flush){
    .port = image->multi_conn ? NULL : o.port,
    .mark = o.begin,
    .good = o.err == 0,
    .forgets = o.port->store->forgets,
  };
  if (o.err && o.port->random_faults && rng_one_in (o.port->random_faults, 2))
    f.mark = o.port->store->world->clock;
  if (!o.port->store->world->dead && o.port->store->track) {
    flush_blocks (o.port->store, &f);
    flush_length (o.port->store, &f);
  }
  return end (&o);
}

/* What is written now and lies in the range may be lost. */
static void
lose_range (struct sim_store *store, uint64_t count, uint64_t offset)
{
  const uint64_t end = offset + count;

  for (offset -= offset % SECTOR; offset < end; offset += SECTOR) {
    const struct sim_block *block = find_block (store, offset);
    struct version *v;

    if (block == NULL)
      continue;
    for (v = block->versions[offset % BLOCK_BYTES / SECTOR]; v; v = v->older)
      v->lost = store->forgets;
  }
}

int
sim_write_out (struct sim_image *image, uint64_t count, uint64_t offset,
               bool wait)
{
  struct operation o = {
    .port = &image->port,
    .op = SIM_FLUSH,
    .offset = offset,
    .count = count,
  };

  begin (&o);
  if (!wait)
    o.err = 0;
  if (o.err && !o.port->store->world->dead)
    lose_range (o.port->store, count, offset);
  return end (&o);
}

static int
sim_image_set_length (struct image *image, uint64_t length_bytes)
{
  struct operation o = { .port = image_port (image), .op = SIM_SET_LENGTH };
  struct sim_store *store = o.port->store;

  begin (&o);
  if (!store->world->no_log)
    store->world->events[o.event].offset = length_bytes;
  if (o.err == 0 && length_bytes != store->size_bytes)
    change_length (store, o.port, length_bytes);
  return end (&o);
}

static int
sim_image_extents (struct image *image, uint64_t count, uint64_t offset,
                   extent_fn *fn, void *opaque)
{
  return port_extents (image_port (image), count, offset, fn, opaque);
}

static int
sim_image_cache (struct image *image, uint64_t count, uint64_t offset)
{
  return port_cache (image_port (image), count, offset);
}

static const struct image_ops sim_image_ops = {
  .read = sim_image_read,
  .write = sim_image_write,
  .zero = sim_image_zero,
  .trim = sim_image_trim,
  .flush = sim_image_flush,
  .extents = sim_image_extents,
  .cache = sim_image_cache,
  .set_length = sim_image_set_length,
};

void
sim_image_init (struct sim_image *image, struct sim_store *store)
{
  *image = (struct sim_image){
    .image = { .ops = &sim_image_ops, .multi_conn = true },
    .port = { .store = store },
  };
}

/*--- As a backing file. -----------------------------------------------*/

static struct sim_port *
backing_port (struct backing *backing)
{
  struct sim_backing *b = container_of (backing, struct sim_backing, backing);

  CHECK (!b->closed);
  return &b->port;
}

/* It is not closed while it is used either. */
static int
backing_used (struct backing *backing, int r)
{
  backing_port (backing);
  return r;
}

static int
sim_backing_read (struct backing *backing, void *buf, size_t count,
                  uint64_t offset)
{
  return backing_used (backing,
                       port_read (backing_port (backing), buf, count, offset));
}

static int
sim_backing_extents (struct backing *backing, uint64_t count, uint64_t offset,
                     extent_fn *fn, void *opaque)
{
  return backing_used (backing, port_extents (backing_port (backing), count,
                                              offset, fn, opaque));
}

static int
sim_backing_cache (struct backing *backing, uint64_t count, uint64_t offset)
{
  return backing_used (backing,
                       port_cache (backing_port (backing), count, offset));
}

static void
sim_backing_close (struct backing *backing)
{
  struct sim_backing *b = container_of (backing, struct sim_backing, backing);

  CHECK (!b->closed);
  b->closed = true;
}

static const struct backing_ops sim_backing_ops = {
  .read = sim_backing_read,
  .extents = sim_backing_extents,
  .cache = sim_backing_cache,
  .close = sim_backing_close,
};

void
sim_backing_init (struct sim_backing *backing, struct sim_store *store)
{
  *backing = (struct sim_backing){
    .backing = { .ops = &sim_backing_ops, .size_bytes = store->size_bytes },
    .port = { .store = store },
  };
}

/*--- Copies from the one to the other. --------------------------------*/

#define FAKE_FD 1234

static int
sim_image_copy (struct image *image, int fd, uint64_t count, uint64_t offset)
{
  struct sim_image *to = container_of (image, struct sim_image, image);
  struct operation o = {
    .port = &to->port,
    .op = SIM_COPY,
    .offset = offset,
    .count = count,
  };
  char *buf = malloc (count);

  CHECK (buf != NULL);
  CHECK_EQ (fd, FAKE_FD);
  CHECK (offset + count <= to->copies->backing.size_bytes);
  begin (&o);
  CHECK (!to->copies->closed);
  get_range (to->copies->port.store, buf, count, offset);
  port_change (&o, buf, false);
  free (buf);
  return end (&o);
}

static int
sim_backing_fd (struct backing *backing)
{
  backing_port (backing);
  return FAKE_FD;
}

void
sim_can_copy (struct sim_image *image, struct sim_backing *backing)
{
  static const struct image_ops image_ops = {
    .read = sim_image_read,
    .write = sim_image_write,
    .zero = sim_image_zero,
    .trim = sim_image_trim,
    .flush = sim_image_flush,
    .extents = sim_image_extents,
    .cache = sim_image_cache,
    .copy = sim_image_copy,
    .set_length = sim_image_set_length,
  };
  static const struct backing_ops backing_ops = {
    .read = sim_backing_read,
    .extents = sim_backing_extents,
    .cache = sim_backing_cache,
    .fd = sim_backing_fd,
    .close = sim_backing_close,
  };

  image->image.ops = &image_ops;
  image->copies = backing;
  backing->backing.ops = &backing_ops;
}

/*--- Faults and gates. ------------------------------------------------*/

void
sim_fail (struct sim_port *port, enum sim_op op, unsigned n, int err,
          unsigned more)
{
  acquire (port->store->world);
  port->faults[op].countdown = n;
  port->faults[op].repeat = more;
  port->faults[op].err = err;
  release (port->store->world);
}

void
sim_hold (struct sim_port *port, enum sim_op op, uint64_t offset,
          struct gate *gate)
{
  unsigned i;

  *gate = (struct gate){ .taken = false };
  acquire (port->store->world);
  for (i = 0; port->gates[i].gate; i++)
    CHECK (i < SIM_GATES - 1);
  port->gates[i].op = op;
  port->gates[i].offset = offset;
  port->gates[i].gate = gate;
  release (port->store->world);
}

void
sim_no_gates (struct sim_port *port)
{
  unsigned i;

  acquire (port->store->world);
  for (i = 0; i < SIM_GATES; i++)
    port->gates[i].gate = NULL;
  release (port->store->world);
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "history.h"

#define SECTOR 512
#define BASE_BLOCK 4096

/*--- What a byte holds. -----------------------------------------------*/

static unsigned
shift_of (uint64_t offset)
{
  struct rng rng = { .state = offset };

  return rng_below (&rng, HISTORY_MAX_ID + 1);
}

uint8_t
history_byte (unsigned id, uint64_t offset)
{
  if (id == HISTORY_ZERO)
    return 0;
  return (id + shift_of (offset)) % (HISTORY_MAX_ID + 1) + 1;
}

unsigned
history_id (uint8_t byte, uint64_t offset)
{
  if (byte == 0)
    return HISTORY_ZERO;
  return (byte - 1 + HISTORY_MAX_ID + 1 - shift_of (offset)) %
         (HISTORY_MAX_ID + 1);
}

void
history_fill (uint8_t *buf, unsigned id, uint64_t offset, size_t count)
{
  size_t i;

  for (i = 0; i < count; i++)
    buf[i] = history_byte (id, offset + i);
}

unsigned
history_base_id (uint64_t offset)
{
  return offset / BASE_BLOCK % 3 == 1 ? HISTORY_ZERO : 0;
}

/*--- One register. ----------------------------------------------------*/

/* A request begins or ends. */
struct event {
  uint64_t at;
  size_t op;
  bool ends;
};

/* A state that the register may be in. */
struct state {
  uint64_t done; /* the slots whose requests had their effect */
  unsigned value;
};

/* A set of states, in the order in which they were added. */
struct states {
  struct state *list;
  size_t n, max;
  size_t *table; /* of indices + 1, by hash; nr_slots is a power of 2 */
  size_t nr_slots;
};

/* A request that is under way. */
struct pending {
  size_t op;
  bool may_not_be; /* a change that has no end */
  unsigned value;  /* that it makes, or that it saw */
};

struct machine {
  struct pending slots[HISTORY_MAX_PENDING];
  uint64_t in_use, changes; /* of these */
  struct states states, seen;
};

static void *
must (void *p)
{
  CHECK (p != NULL);
  return p;
}

static size_t *
states_slot (struct states *s, const struct state *state)
{
  struct rng rng = { .state = state->done * 257 + state->value };
  size_t i = rng_next (&rng) & (s->nr_slots - 1);

  while (s->table[i]) {
    const struct state *other = &s->list[s->table[i] - 1];

    if (other->done == state->done && other->value == state->value)
      break;
    i = (i + 1) & (s->nr_slots - 1);
  }
  return &s->table[i];
}

static void
states_clear (struct states *s)
{
  if (s->n > 0)
    memset (s->table, 0, s->nr_slots * sizeof s->table[0]);
  s->n = 0;
}

static void
states_grow (struct states *s)
{
  size_t i;

  s->max = s->max ? s->max * 2 : 16;
  s->nr_slots = s->max * 4;
  s->list = must (realloc (s->list, s->max * sizeof s->list[0]));
  free (s->table);
  s->table = must (calloc (s->nr_slots, sizeof s->table[0]));
  for (i = 0; i < s->n; i++)
    *states_slot (s, &s->list[i]) = i + 1;
}

static void
states_add (struct states *s, struct state state)
{
  size_t *slot;

  if (s->n == s->max)
    states_grow (s);
  slot = states_slot (s, &state);
  if (*slot)
    return;
  s->list[s->n++] = state;
  *slot = s->n;
}

static void
states_free (struct states *s)
{
  free (s->list);
  free (s->table);
}

/* Let all reads see the value that saw it, for they change nothing. */
static void
let_read (const struct machine *m, struct state *state)
{
  uint64_t reads = m->in_use & ~m->changes & ~state->done;

  for (; reads; reads &= reads - 1) {
    const unsigned i = __builtin_ctzll (reads);

    if (m->slots[i].value == state->value)
      state->done |= UINT64_C (1) << i;
  }
}

static void
begins (struct machine *m, size_t op, const struct history_op *o,
        unsigned value)
{
  const bool changes = o->kind != HISTORY_READ;
  const unsigned i = __builtin_ctzll (~m->in_use);
  const uint64_t bit = UINT64_C (1) << i;
  size_t j;

  CHECK (m->in_use != UINT64_MAX);
  m->in_use |= bit;
  if (changes)
    m->changes |= bit;
  m->slots[i] = (struct pending){
    .op = op,
    .may_not_be = o->end == HISTORY_NO_END,
    .value = value,
  };
  if (changes)
    return;
  /* They stay different, as the bit follows from the value.  Their hashes
   * are made anew when something ends.
   */
  for (j = 0; j < m->states.n; j++)
    if (m->states.list[j].value == value)
      m->states.list[j].done |= bit;
}

static unsigned
slot_of (const struct machine *m, size_t op)
{
  unsigned i;

  for (i = 0; i < HISTORY_MAX_PENDING; i++)
    if (m->in_use >> i & 1 && m->slots[i].op == op)
      return i;
  abort ();
}

/* Does a read wait for VALUE, in STATE? */
static bool
is_awaited (const struct machine *m, const struct state *state, unsigned value)
{
  struct state after = { .done = state->done, .value = value };

  let_read (m, &after);
  return after.done != state->done;
}

/* Add to m->seen all states that STATE becomes by one more change. */
static void
let_change (struct machine *m, const struct state *state)
{
  uint64_t changes = m->changes & ~state->done;

  for (; changes; changes &= changes - 1) {
    const unsigned i = __builtin_ctzll (changes);
    struct state next = {
      .done = state->done | UINT64_C (1) << i,
      .value = m->slots[i].value,
    };

    /* What need not be, is only where it is seen: it can be later, too. */
    if (m->slots[i].may_not_be && !is_awaited (m, state, next.value))
      continue;
    let_read (m, &next);
    states_add (&m->seen, next);
  }
}

/* The request OP ends.  Is there a state left? */
static bool
ends (struct machine *m, size_t op)
{
  const unsigned slot = slot_of (m, op);
  const uint64_t bit = UINT64_C (1) << slot;
  struct states *from = &m->seen;
  size_t i;

  states_clear (from);
  for (i = 0; i < m->states.n; i++)
    states_add (from, m->states.list[i]);
  states_clear (&m->states);
  for (i = 0; i < from->n; i++) {
    struct state state = from->list[i];

    if (state.done & bit) {
      state.done &= ~bit;
      states_add (&m->states, state);
    }
    else
      let_change (m, &state);
  }
  m->in_use &= ~bit;
  m->changes &= ~bit;
  return m->states.n > 0;
}

/* The value that OP sees, or makes, at OFFSET. */
static unsigned
value_at (const struct history_op *op, uint64_t offset)
{
  switch (op->kind) {
  case HISTORY_READ:
    return history_id (op->data[offset - op->offset], offset);
  case HISTORY_WRITE:
    return op->id;
  case HISTORY_CLEAR:
    return HISTORY_ZERO;
  }
  abort ();
}

/* The EVENTS of the byte at OFFSET, which begins as INITIAL. */
static bool
check_register (const struct history *h, const struct event *events,
                size_t nr_events, uint64_t offset, unsigned initial, size_t *op)
{
  struct machine m = { .in_use = 0 };
  bool good = true;
  size_t i;

  states_add (&m.states, (struct state){ .value = initial });
  for (i = 0; i < nr_events && good; i++) {
    const struct event *e = &events[i];
    const struct history_op *o = &h->ops[e->op];

    if (!e->ends)
      begins (&m, e->op, o, value_at (o, offset));
    else
      good = ends (&m, e->op);
    *op = e->op;
  }
  states_free (&m.states);
  states_free (&m.seen);
  return good;
}

/*--- All of them. -----------------------------------------------------*/

static int
compare_begins (const void *a, const void *b)
{
  const struct history_op *p = a, *q = b;

  return (p->begin > q->begin) - (p->begin < q->begin);
}

static int
compare_events (const void *a, const void *b)
{
  const struct event *p = a, *q = b;

  return (p->at > q->at) - (p->at < q->at);
}

static bool
touches (const struct history_op *op, uint64_t offset, uint64_t count)
{
  return op->offset < offset + count && offset < op->offset + op->count;
}

/* The events of requests to COUNT bytes at OFFSET, into TO. */
static size_t
events_of (const struct history *h, const struct event *from, size_t n,
           uint64_t offset, uint64_t count, struct event *to)
{
  size_t i, nr_kept = 0;

  for (i = 0; i < n; i++)
    if (touches (&h->ops[from[i].op], offset, count))
      to[nr_kept++] = from[i];
  return nr_kept;
}

/* The history of a byte, to compare it with the next one's. */
struct past {
  unsigned initial;
  struct event *events;
  unsigned *values; /* that go with them */
  size_t n;
};

static bool
same_past (const struct past *a, const struct past *b)
{
  size_t i;

  if (a->initial != b->initial || a->n != b->n)
    return false;
  for (i = 0; i < a->n; i++)
    if (a->events[i].at != b->events[i].at || a->values[i] != b->values[i])
      return false;
  return true;
}

static void
past_init (struct past *past, size_t nr_events)
{
  *past = (struct past){
    .initial = UINT32_MAX,
    .events = must (malloc ((nr_events + 1) * sizeof past->events[0])),
    .values = must (malloc ((nr_events + 1) * sizeof past->values[0])),
  };
}

static void
past_clear (struct past *past)
{
  free (past->events);
  free (past->values);
}

/* Make PAST that of the byte at OFFSET, out of N EVENTS. */
static void
past_set (struct past *past, const struct history *h,
          const struct event *events, size_t n, uint64_t offset)
{
  size_t i;

  past->initial = history_base_id (offset);
  past->n = events_of (h, events, n, offset, 1, past->events);
  for (i = 0; i < past->n; i++)
    past->values[i] = value_at (&h->ops[past->events[i].op], offset);
}

/* The bytes [BEGIN, END), which are of one sector. */
static bool
check_sector (const struct history *h, const struct event *all, size_t nr_all,
              uint64_t begin, uint64_t end, struct history_fault *fault)
{
  struct event *events = must (malloc ((nr_all + 1) * sizeof events[0]));
  const size_t n = events_of (h, all, nr_all, begin, end - begin, events);
  struct past pasts[2];
  bool good = true;
  uint64_t at;

  past_init (&pasts[0], n);
  past_init (&pasts[1], n);
  for (at = begin; at < end && good; at++) {
    struct past *past = &pasts[at % 2];

    past_set (past, h, events, n, at);
    if (!same_past (past, &pasts[(at + 1) % 2]))
      good = check_register (h, past->events, past->n, at, past->initial,
                             &fault->op);
    fault->offset = at;
  }
  past_clear (&pasts[0]);
  past_clear (&pasts[1]);
  free (events);
  return good;
}

bool
history_check (struct history *h, struct history_fault *fault)
{
  struct event *events = must (malloc ((2 * h->nr_ops + 1) * sizeof *events));
  bool good = true;
  size_t i, n = 0;
  uint64_t at, end;

  qsort (h->ops, h->nr_ops, sizeof h->ops[0], compare_begins);
  for (i = 0; i < h->nr_ops; i++) {
    const bool ends = h->ops[i].end != HISTORY_NO_END;

    if (ends || h->ops[i].kind != HISTORY_READ)
      events[n++] = (struct event){ h->ops[i].begin, i, false };
    if (ends)
      events[n++] = (struct event){ h->ops[i].end, i, true };
  }
  qsort (events, n, sizeof events[0], compare_events);
  for (at = h->begin; at < h->end && good; at = end) {
    end = at - at % SECTOR + SECTOR;
    if (end > h->end)
      end = h->end;
    good = check_sector (h, events, n, at, end, fault);
  }
  free (events);
  return good;
}

/*--- Printing. --------------------------------------------------------*/

static const char *
id_text (unsigned id, char text[16])
{
  if (id == 0)
    return "base";
  if (id == HISTORY_ZERO)
    return "zero";
  snprintf (text, 16, "%u", id);
  return text;
}

void
history_print (const struct history *h, const struct history_fault *fault,
               FILE *f)
{
  static const char *const kinds[] = { "read", "write", "clear" };
  const struct history_op *bad = &h->ops[fault->op];
  char text[16];
  size_t i;

  fprintf (f, "byte %" PRIu64 " (sector %" PRIu64 "), %s at first\n",
           fault->offset, fault->offset / SECTOR,
           id_text (history_base_id (fault->offset), text));
  for (i = 0; i < h->nr_ops; i++) {
    const struct history_op *op = &h->ops[i];

    if (!touches (op, fault->offset, 1) || op->begin > bad->end ||
        (op->kind == HISTORY_READ && op->end == HISTORY_NO_END))
      continue;
    fprintf (f,
             "%10" PRIu64 " %10" PRId64 "  client %-3u %-5s %-4s  %" PRIu32
             " at %" PRIu64 "%s\n",
             op->begin, (int64_t) op->end, op->client, kinds[op->kind],
             id_text (value_at (op, fault->offset), text), op->count,
             op->offset, op == bad ? "  <- no order explains this" : "");
  }
}

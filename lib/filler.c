/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common.h"
#include "filler-share.h"
#include "filler.h"
#include "format.h"
#include "image-file.h"

#define SPAN_BYTES (4 * 1024 * 1024)
#define MAX_SPAN_BYTES (256 * 1024 * 1024) /* where there are no data */
#define MIN_STEP_BYTES 4096
#define AREA_BYTES (1024 * 1024)
#define NR_AREAS 64 /* that are remembered to be hot */
#define MAX_KEPT_BYTES (4 * 1024 * 1024)
#define MAX_WORKERS 16

/* More are of use where each waits for another machine; memory goes by the
 * product.
 */
#define NR_WORKERS_NEAR 4
#define NR_WORKERS_FAR 8
#define REQUEST_BYTES_NEAR (256 * 1024)
#define REQUEST_BYTES_FAR (1024 * 1024)

#define COMMIT_BYTES (64 * 1024 * 1024)
#define MAX_OUT 256 /* spans that the next commit lets be forgotten */

#define MS INT64_C (1000000)
#define SECOND (1000 * MS)
#define BUSY_NS (20 * MS)     /* clients are, for so long after a request */
#define MAX_REST_NS SECOND    /* while they are */
#define ASK_ON_NS (100 * MS)  /* how often to ask if filling is wanted, */
#define ASK_OFF_NS (500 * MS) /* and while it is not */
#define MIN_PAUSE_NS SECOND
#define MAX_PAUSE_NS (60 * SECOND)
#define QUIET_NS (600 * SECOND) /* without a failure: then it is told again */

/* So many failing steps in a row are bad sectors, more are a bad part. */
#define MAX_BAD_STEPS 16
#define MAX_SKIP_SHIFT 40 /* of the smallest steps */

/* The bytes [pos, end) that a worker is filling. */
struct span {
  uint64_t pos, end;
};

struct worker {
  struct filler *filler;
  pthread_t thread;
  struct span span, hot;
  struct span data;    /* of the span, what was written to the image */
  struct span written; /* of the one before: is being written */
  size_t step_bytes;   /* no more at once, as something failed */
  bool working;        /* on a step */
};

/* What a client read; or, WITHOUT it, a sector of which it read a part. */
struct kept {
  struct kept *next;
  uint64_t offset;
  size_t count;
  bool without;
  char buf[];
};

/* How failures of one kind are told of and what comes of them. */
struct trouble {
  int64_t last_ns; /* the last failure; 0: none */
  int64_t pause_ns;
};

struct filler {
  struct filler_options options;
  struct filler_share *own_share; /* where nobody gave one */
  uint64_t size_bytes;
  struct worker *workers;
  unsigned nr_started;

  _Atomic uint64_t nr_begun, nr_ended; /* requests of clients */
  _Atomic uint64_t nr_bytes;           /* that were filled */

  pthread_mutex_t lock; /* protects all that follows */
  pthread_cond_t wake;
  bool stop;
  bool complete;

  struct kept *first_kept, **last_kept;
  size_t nr_kept_bytes; /* queued, about to be, or being written */

  uint64_t areas[NR_AREAS]; /* where hot areas begin, the newest last */
  unsigned nr_areas;

  uint64_t cursor;       /* where the next span begins, */
  uint64_t span_bytes;   /* and how long it is */
  bool pass_failed;      /* something was left out */
  bool pass_filled;      /* something was filled */
  bool ending;           /* somebody looks if all is done */
  int64_t pass_ns;       /* not before that */
  int64_t pass_pause_ns; /* after the last one */
  unsigned nr_bad_steps; /* in a row */
  unsigned seed;

  struct trouble backing, image;
  int64_t pause_ns; /* not before that, as writing failed */

  int64_t share_ns; /* not before that, as the share says */

  uint64_t nr_seen;    /* requests of clients, that began */
  int64_t busy_ns;     /* they are busy until then */
  unsigned nr_working; /* workers on a step that is no keep */
  int64_t rest_ns;     /* not before that, as clients are busy */

  bool wanted;
  int64_t ask_ns; /* when to ask again */

  uint64_t nr_uncommitted; /* bytes of data since the last commit */

  struct span out[MAX_OUT]; /* filled since then, and written out */
  unsigned nr_out;
};

static int64_t
now_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * SECOND + ts.tv_nsec;
}

static void
wait_until_locked (struct filler *f, int64_t ns)
{
  const struct timespec until = {
    .tv_sec = ns / SECOND,
    .tv_nsec = ns % SECOND,
  };

  pthread_cond_timedwait (&f->wake, &f->lock, &until);
}

/*--- What clients do. -------------------------------------------------*/

void
filler_client_begins (struct filler *f)
{
  atomic_fetch_add_explicit (&f->nr_begun, 1, memory_order_relaxed);
}

void
filler_client_ends (struct filler *f)
{
  atomic_fetch_add_explicit (&f->nr_ended, 1, memory_order_relaxed);
}

static bool
clients_are_busy_locked (struct filler *f, int64_t now)
{
  const uint64_t nr_ended = atomic_load_explicit (&f->nr_ended,
                                                  memory_order_relaxed);
  const uint64_t nr_begun = atomic_load_explicit (&f->nr_begun,
                                                  memory_order_relaxed);

  if (nr_begun != nr_ended || nr_begun != f->nr_seen)
    f->busy_ns = now + BUSY_NS;
  f->nr_seen = nr_begun;
  return now < f->busy_ns;
}

/* Take the newest hot area, if there is one. */
static bool
take_area_locked (struct filler *f, uint64_t *offset)
{
  if (f->nr_areas == 0)
    return false;
  *offset = f->areas[--f->nr_areas];
  return true;
}

static void
add_area_locked (struct filler *f, uint64_t offset)
{
  unsigned i;

  for (i = f->nr_areas; i-- > 0;)
    if (f->areas[i] == offset)
      return;
  if (f->nr_areas == NR_AREAS) /* the oldest is the coldest */
    memmove (f->areas, f->areas + 1, --f->nr_areas * sizeof f->areas[0]);
  f->areas[f->nr_areas++] = offset;
}

void
filler_hot (struct filler *f, uint64_t count, uint64_t offset)
{
  const uint64_t first = offset - offset % AREA_BYTES;
  const uint64_t last = offset + count - 1;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  if (f->options.only_keep || f->complete)
    return;
  add_area_locked (f, first);
  if (last - first >= AREA_BYTES)
    add_area_locked (f, last - last % AREA_BYTES);
}

static void
forget_kept_locked (struct filler *f)
{
  while (f->first_kept) {
    struct kept *k = f->first_kept;

    f->first_kept = k->next;
    f->nr_kept_bytes -= k->count;
    free (k);
  }
  f->last_kept = &f->first_kept;
}

enum room { ROOM, NO_ROOM, NO_USE };

/* Make room for COUNT bytes more, unless to keep them is of no use. */
static enum room
make_room (struct filler *f, size_t count)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  if (f->complete || f->stop || now_ns () < f->pause_ns)
    return NO_USE;
  if (count > MAX_KEPT_BYTES - f->nr_kept_bytes)
    return NO_ROOM;
  f->nr_kept_bytes += count;
  return ROOM;
}

static void
give_up_room (struct filler *f, size_t count)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  f->nr_kept_bytes -= count;
}

static void
queue_kept (struct filler *f, struct kept *k)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  k->next = NULL;
  *f->last_kept = k;
  f->last_kept = &k->next;
  pthread_cond_signal (&f->wake);
}

bool
filler_keep (struct filler *f, const void *buf, size_t count, uint64_t offset)
{
  const enum room room = make_room (f, count);
  struct kept *k;

  if (room != ROOM)
    return room == NO_USE;
  k = malloc (sizeof *k + (buf ? count : 0));
  if (k == NULL) {
    give_up_room (f, count);
    return false;
  }
  k->offset = offset;
  k->count = count;
  k->without = buf == NULL;
  if (buf)
    memcpy (k->buf, buf, count);
  queue_kept (f, k);
  return true;
}

uint64_t
filler_nr_bytes (struct filler *f)
{
  return f->nr_bytes;
}

/*--- Failures. --------------------------------------------------------*/

/* Something failed.  Returns whether to tell. */
static bool
trouble_locked (struct trouble *t, int64_t now)
{
  const bool quiet = t->last_ns == 0 || now - t->last_ns > QUIET_NS;

  if (quiet)
    t->pause_ns = 0;
  t->last_ns = now;
  return quiet;
}

static int64_t
longer_pause (int64_t ns)
{
  return ns ? MIN (ns * 2, MAX_PAUSE_NS) : MIN_PAUSE_NS;
}

/* A step of W of COUNT bytes failed to read the backing file.  Where it can be
 * done in smaller ones true is returned, and these are next.
 */
static bool
narrow_locked (struct worker *w, size_t count)
{
  if (count <= MIN_STEP_BYTES)
    return false;
  w->step_bytes = MAX (count / 16 / MIN_STEP_BYTES, 1) * MIN_STEP_BYTES;
  return true;
}

static uint64_t
random_below_locked (struct filler *f, uint64_t n)
{
  const uint64_t high = rand_r (&f->seed);

  return (high << 31 | rand_r (&f->seed)) % n;
}

/* It failed on S in the smallest step, COUNT bytes: leave that out, and
 * perhaps more.
 */
static void
skip_locked (struct filler *f, struct worker *w, struct span *s, uint64_t count)
{
  uint64_t n;

  s->pos += MIN (count, s->end - s->pos);
  if (++f->nr_bad_steps <= MAX_BAD_STEPS)
    return;
  if (s == &w->hot) {
    s->pos = s->end;
    return;
  }
  n = UINT64_C (1) << MIN (f->nr_bad_steps - MAX_BAD_STEPS, MAX_SKIP_SHIFT);
  n = random_below_locked (f, n) * MIN_STEP_BYTES;
  if (n <= s->end - s->pos) {
    s->pos += n;
    return;
  }
  n -= s->end - s->pos;
  s->pos = s->end;
  f->cursor += MIN (n, f->size_bytes - f->cursor);
}

/* Tell the owner; caller holds lock, which is released meanwhile. */
static void
tell_locked (struct filler *f, const struct fault *fault)
{
  if (f->stop || f->options.failed == NULL)
    return;
  pthread_mutex_unlock (&f->lock);
  f->options.failed (f->options.opaque, fault);
  pthread_mutex_lock (&f->lock);
}

/* A step of W of COUNT bytes, which is on S, could not read the backing file.
 */
static void
reading_failed_locked (struct filler *f, struct worker *w, struct span *s,
                       size_t count, const struct fault *fault)
{
  const bool tell = trouble_locked (&f->backing, now_ns ());

  if (!narrow_locked (w, count)) {
    f->pass_failed = true;
    skip_locked (f, w, s, count);
  }
  if (tell)
    tell_locked (f, fault);
}

/* Something else failed: writing, or memory. */
static void
writing_failed_locked (struct filler *f, const struct fault *fault)
{
  const int64_t now = now_ns ();
  const bool tell = trouble_locked (&f->image, now);

  f->pass_failed = true;
  if (now >= f->pause_ns) { /* else others failed at the same time */
    f->image.pause_ns = longer_pause (f->image.pause_ns);
    f->pause_ns = now + f->image.pause_ns;
  }
  forget_kept_locked (f);
  if (tell)
    tell_locked (f, fault);
}

/*--- Commits. ---------------------------------------------------------*/

/* Commit, and then let the system forget what it covers and was written out.
 * Not before: what the system failed to write, and takes for written, is read
 * from its memory to be written again.
 */
static void
commit_locked (struct filler *f)
{
  struct span out[MAX_OUT];
  const unsigned nr_out = f->nr_out;
  struct fault fault;
  unsigned i;
  int r;

  memcpy (out, f->out, nr_out * sizeof out[0]);
  f->nr_out = 0;
  f->nr_uncommitted = 0;
  pthread_mutex_unlock (&f->lock);
  r = overlay_commit (f->options.ov, &fault);
  for (i = 0; r == 0 && i < nr_out; i++)
    fd_forget (f->options.image_fd, out[i].end - out[i].pos, out[i].pos);
  pthread_mutex_lock (&f->lock);
  if (r == -1)
    writing_failed_locked (f, &fault);
}

/* So much was brought to the image. */
static void
account_data_locked (struct filler *f, uint64_t nr_bytes)
{
  f->nr_uncommitted += nr_bytes;
  if (f->options.commit_bytes && f->nr_uncommitted >= f->options.commit_bytes)
    commit_locked (f);
}

/* A pass is over: if all is allocated, commit that, and be done; else let
 * the next one begin later.
 */
static void
end_pass_locked (struct filler *f)
{
  int64_t from_ns;
  bool alone;

  f->ending = true;
  if (!f->pass_failed)
    commit_locked (f);
  pthread_mutex_unlock (&f->lock);
  alone = overlay_stands_alone (f->options.ov);
  if (alone && f->options.complete)
    f->options.complete (f->options.opaque);
  pthread_mutex_lock (&f->lock);
  f->ending = false;
  f->complete = alone;
  f->cursor = 0;
  f->span_bytes = SPAN_BYTES;
  f->pass_pause_ns = f->pass_filled ? MIN_PAUSE_NS
                                    : longer_pause (f->pass_pause_ns);
  /* The pause after a failed write is a part of this one. */
  from_ns = f->pass_failed ? MAX (f->backing.last_ns, f->image.last_ns)
                           : now_ns ();
  f->pass_ns = from_ns + f->pass_pause_ns;
  f->pass_failed = f->pass_filled = false;
  f->nr_bad_steps = 0;
  pthread_cond_broadcast (&f->wake);
}

/*--- Steps. -----------------------------------------------------------*/

/* A step of W of COUNT bytes on S has ended with R. */
static void
account_locked (struct filler *f, struct worker *w, struct span *s,
                size_t count, int r, const struct filled *filled,
                const struct fault *fault)
{
  if (r == -1 && fault->part == FAULT_BACKING) {
    reading_failed_locked (f, w, s, MIN (count, filled->nr_bytes), fault);
    return;
  }
  s->pos += MIN (filled->nr_bytes, s->end - s->pos);
  if (r == -1) {
    writing_failed_locked (f, fault);
    return;
  }
  if (filled->was_allocated)
    return;
  f->pass_filled = true;
  f->nr_bytes += filled->nr_bytes;
  if (filled->nr_copied) {
    f->nr_bad_steps = 0;
    w->step_bytes = MIN (2 * w->step_bytes, f->options.request_bytes);
  }
  account_data_locked (f, filled->nr_copied);
}

/* Note what W has filled with data of its span; long spans have none yet.
 */
static void
note_data_locked (struct worker *w, uint64_t pos, const struct filled *filled)
{
  if (w->data.pos == w->data.end)
    w->data.pos = pos;
  w->data.end = pos + filled->nr_bytes;
}

/* Have what W has filled of its span written to the disk.  Caller holds lock,
 * which is released meanwhile.
 */
static void
write_out_locked (struct filler *f, struct worker *w)
{
  const struct span now = w->data, before = w->written;
  const int fd = f->options.image_fd;

  w->data = (struct span){ 0, 0 };
  if (fd == -1 || now.pos == now.end)
    return;
  w->written = now;
  if (f->nr_out < MAX_OUT)
    f->out[f->nr_out++] = now;
  w->working = true;
  pthread_mutex_unlock (&f->lock);
  overlay_write_out (f->options.ov, fd, now.end - now.pos, now.pos, false);
  if (before.pos < before.end)
    overlay_write_out (f->options.ov, fd, before.end - before.pos, before.pos,
                       true);
  pthread_mutex_lock (&f->lock);
  w->working = false;
}

/* What W is to fill now, which is not empty: from what is hot or its own. */
static struct span *
take_span_locked (struct filler *f, struct worker *w)
{
  uint64_t offset;

  if (w->hot.pos < w->hot.end)
    return &w->hot;
  if (take_area_locked (f, &offset)) {
    w->hot.pos = offset;
    w->hot.end = MIN (offset + 2 * AREA_BYTES, f->size_bytes);
    return &w->hot;
  }
  if (w->span.pos < w->span.end)
    return &w->span;
  if (f->cursor == f->size_bytes)
    return NULL;
  w->span.pos = f->cursor;
  w->span.end = f->cursor += MIN (f->span_bytes, f->size_bytes - f->cursor);
  return &w->span;
}

/* W has come to the end of its span.  Where there were no data the next ones
 * may be longer.
 */
static void
end_span_locked (struct filler *f, struct worker *w)
{
  if (w->data.pos < w->data.end || f->nr_bad_steps > 0)
    f->span_bytes = SPAN_BYTES;
  else
    f->span_bytes = MIN (2 * f->span_bytes, MAX_SPAN_BYTES);
  write_out_locked (f, w);
}

/* Make a step on S, which is not empty, unless the share has others make
 * theirs first.
 */
static void
fill_locked (struct filler *f, struct worker *w, struct span *s, bool busy)
{
  const int64_t begin = now_ns ();
  const size_t n = filler_share_step_bytes (f->options.share, w->step_bytes);
  void *buf = filler_share_begin (f->options.share, n, begin, &f->share_ns);
  const uint64_t pos = s->pos, count = s->end - s->pos;
  const bool had_span = w->span.pos < w->span.end; /* it may be given up */
  struct filled filled;
  struct fault fault;
  int r;

  if (buf == NULL)
    return;
  w->working = true;
  f->nr_working++;
  pthread_mutex_unlock (&f->lock);
  r = overlay_fill (f->options.ov, f->options.image, buf, n, count, pos,
                    &filled, &fault);
  filler_share_end (f->options.share, buf, n, filled.nr_copied);
  pthread_mutex_lock (&f->lock);
  f->nr_working--;
  if (busy && !filled.was_allocated) {
    const int64_t now = now_ns ();

    f->rest_ns = now + MIN (3 * (now - begin), MAX_REST_NS);
  }
  if (s == &w->span && filled.nr_copied)
    note_data_locked (w, pos, &filled);
  /* What is left out must not be forgotten with what is around it: a client
   * may write it, and have it committed later.
   */
  if (r == -1 && s == &w->span)
    w->data = (struct span){ 0, 0 };
  account_locked (f, w, s, n, r, &filled, &fault);
  w->working = false;
  if (had_span && w->span.pos == w->span.end)
    end_span_locked (f, w);
  else if (w->data.end - w->data.pos >= SPAN_BYTES)
    write_out_locked (f, w);
}

/* Bring K to the image.  Returns as the functions of the overlay. */
static int
write_kept (struct filler *f, const struct kept *k, struct fault *fault)
{
  struct overlay *ov = f->options.ov;

  if (k->without)
    return overlay_fill_range (ov, f->options.image, k->count, k->offset,
                               fault);
  return overlay_keep (ov, f->options.image, k->buf, k->count, k->offset, true,
                       fault);
}

static void
keep_locked (struct filler *f, struct worker *w)
{
  struct kept *k = f->first_kept;
  struct fault fault;
  int r;

  f->first_kept = k->next;
  if (f->first_kept == NULL)
    f->last_kept = &f->first_kept;
  w->working = true;
  pthread_mutex_unlock (&f->lock);
  r = write_kept (f, k, &fault);
  pthread_mutex_lock (&f->lock);
  f->nr_kept_bytes -= k->count;
  if (r == 0) {
    f->nr_bytes += k->count;
    account_data_locked (f, k->count);
  }
  else if (fault.part != FAULT_BACKING) /* what a client could read */
    writing_failed_locked (f, &fault);
  w->working = false;
  free (k);
}

/*--- Workers. ---------------------------------------------------------*/

/* Find out whether filling is wanted, if it is time to. */
static void
ask_locked (struct filler *f, int64_t now)
{
  bool wanted;

  if (f->options.wanted == NULL || now < f->ask_ns)
    return;
  f->ask_ns = INT64_MAX; /* nobody else need ask */
  pthread_mutex_unlock (&f->lock);
  wanted = f->options.wanted (f->options.opaque);
  pthread_mutex_lock (&f->lock);
  f->wanted = wanted;
  f->ask_ns = now + (wanted ? ASK_ON_NS : ASK_OFF_NS);
}

/* Is nobody filling any more? */
static bool
all_idle_locked (const struct filler *f)
{
  unsigned i;

  for (i = 0; i < f->options.nr_workers; i++) {
    const struct worker *w = &f->workers[i];

    if (w->working || w->span.pos < w->span.end || w->hot.pos < w->hot.end)
      return false;
  }
  return true;
}

/* Fill something, or wait for a reason to look again. */
static void
fill_or_wait_locked (struct filler *f, struct worker *w)
{
  const int64_t now = now_ns ();
  struct span *s;
  bool busy;

  if (!f->wanted) {
    wait_until_locked (f, MIN (f->ask_ns, now + ASK_OFF_NS));
    return;
  }
  if (MAX (f->pause_ns, f->share_ns) > now) {
    wait_until_locked (f,
                       MIN (MAX (f->pause_ns, f->share_ns), now + ASK_OFF_NS));
    return;
  }
  busy = clients_are_busy_locked (f, now);
  if (busy && (f->nr_working > 0 || f->rest_ns > now)) {
    wait_until_locked (f,
                       MAX (f->rest_ns, now + (f->nr_working ? BUSY_NS : 0)));
    return;
  }
  s = f->pass_ns > now && f->nr_areas == 0 && w->hot.pos == w->hot.end
          ? NULL
          : take_span_locked (f, w);
  if (s)
    fill_locked (f, w, s, busy);
  else if (f->pass_ns > now)
    wait_until_locked (f, MIN (f->pass_ns, now + ASK_OFF_NS));
  else if (!f->ending && all_idle_locked (f))
    end_pass_locked (f);
  else
    pthread_cond_wait (&f->wake, &f->lock);
  if (s && f->cursor == f->size_bytes)
    pthread_cond_broadcast (&f->wake); /* the pass may be over */
}

static void *
worker_main (void *opaque)
{
  struct worker *w = opaque;
  struct filler *f = w->filler;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  for (;;) {
    if (f->first_kept)
      keep_locked (f, w);
    else if (f->stop || f->complete)
      return NULL;
    else if (f->options.only_keep)
      pthread_cond_wait (&f->wake, &f->lock);
    else {
      ask_locked (f, now_ns ());
      fill_or_wait_locked (f, w);
    }
  }
}

/*--- Starting and stopping. -------------------------------------------*/

/* Have a share.  Returns 0 or ENOMEM. */
static int
set_share (struct filler *f)
{
  struct filler_options *o = &f->options;
  int r;

  if (o->share == NULL) {
    r = filler_share_new (&f->own_share, o->nr_workers, o->request_bytes,
                          o->rate_bytes);
    if (r)
      return r;
    o->share = f->own_share;
  }
  filler_share_join (o->share);
  return 0;
}

static struct filler *
new_filler (const struct filler_options *options)
{
  const unsigned n = options->nr_workers;
  struct filler *f = calloc (1, sizeof *f);
  pthread_condattr_t attr;
  unsigned i;

  assert (n >= 1 && n <= MAX_WORKERS);
  if (f == NULL)
    return NULL;
  f->workers = calloc (n, sizeof f->workers[0]);
  if (f->workers == NULL) {
    free (f);
    return NULL;
  }
  f->options = *options;
  if (set_share (f) != 0) {
    free (f->workers);
    free (f);
    return NULL;
  }
  f->size_bytes = overlay_size_bytes (options->ov);
  f->last_kept = &f->first_kept;
  f->wanted = options->wanted == NULL;
  f->span_bytes = SPAN_BYTES;
  f->seed = 1;
  pthread_mutex_init (&f->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&f->wake, &attr);
  pthread_condattr_destroy (&attr);
  for (i = 0; i < n; i++) {
    f->workers[i].filler = f;
    f->workers[i].step_bytes = options->request_bytes;
  }
  return f;
}

static int
start_worker (struct filler *f, struct worker *w)
{
  int r = pthread_create (&w->thread, NULL, worker_main, w);

  if (r == 0)
    f->nr_started++;
  return r;
}

void
filler_options_init (struct filler_options *options, struct overlay *ov,
                     struct image *image, const struct backing *backing)
{
  const bool is_far = backing && backing->ops->fd == NULL;

  *options = (struct filler_options){
    .ov = ov,
    .image = image,
    .nr_workers = is_far ? NR_WORKERS_FAR : NR_WORKERS_NEAR,
    .request_bytes = is_far ? REQUEST_BYTES_FAR : REQUEST_BYTES_NEAR,
    .commit_bytes = COMMIT_BYTES,
    .image_fd = -1,
  };
}

int
filler_start (struct filler **ret, const struct filler_options *options)
{
  struct filler *f = new_filler (options);
  unsigned i;
  int r;

  if (f == NULL)
    return ENOMEM;
  for (i = 0; i < options->nr_workers; i++) {
    r = start_worker (f, &f->workers[i]);
    if (r) {
      filler_stop (f);
      return r;
    }
  }
  *ret = f;
  return 0;
}

void
filler_stop (struct filler *f)
{
  unsigned i;

  if (f == NULL)
    return;
  pthread_mutex_lock (&f->lock);
  f->stop = true;
  pthread_cond_broadcast (&f->wake);
  pthread_mutex_unlock (&f->lock);
  overlay_interrupt (f->options.ov);
  for (i = 0; i < f->nr_started; i++)
    pthread_join (f->workers[i].thread, NULL);
  filler_share_leave (f->options.share);
  filler_share_free (f->own_share);
  forget_kept_locked (f);
  pthread_cond_destroy (&f->wake);
  pthread_mutex_destroy (&f->lock);
  free (f->workers);
  free (f);
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "common.h"
#include "nbd-client.h"

/* How long after a connection was lost or could not be made it is tried
 * again: at once, then after this, then twice as long each time, until one
 * serves a request or lasts as long as the longest pause.
 */
#define FIRST_PAUSE_MS 100
#define LONGEST_PAUSE_MS 5000

/* What is not told is small enough for any server, and large enough. */
#define DEFAULT_MINIMUM 512
#define LARGEST_MAXIMUM (1024 * 1024)

/* How many times over a request gets the timeout while the server answers
 * others; a flush gets it so often in any case, for which all may have to be
 * written that the server's host has.
 */
#define MAX_TIMEOUTS 4

/* How many cache requests there may be. */
#define MAX_CACHES 64

#define CONTEXT LIBNBD_CONTEXT_BASE_ALLOCATION

struct nbd_client {
  struct nbd_peer *peer;
  struct nbd_client_options options;
  uint64_t size_bytes;
  struct nbd_limits limits;
  int wake_fd; /* an eventfd: the thread has something to look at */

  pthread_mutex_t lock; /* protects all that follows */
  pthread_t thread;
  bool running;
  bool stop;
  bool interrupted; /* no request is to be answered any more */

  struct nbd_handle *nbd; /* NULL: not connected */
  bool unusable;          /* the thread shall close it */
  char *why_unusable;     /* or NULL: the server closed it */
  unsigned polled_for;    /* directions that the thread waits for */
  bool has_served;        /* a request, over this connection */
  int64_t heard_ms;       /* when the server last sent something */
  bool has_cache;

  struct nbd_request *queued, *in_flight;
  unsigned nr_caches;

  /* What shall be sent by who has the lock, see release; linked by next. */
  struct nbd_request *_Atomic incoming;
};

static int64_t
now_ms (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * INT64_C (1000) + ts.tv_nsec / 1000000;
}

static int64_t
timeout_ms (const struct nbd_client *c)
{
  return c->options.timeout_seconds * INT64_C (1000);
}

/* For poll: how long it is until WHEN, at least 0. */
static int
ms_until (int64_t when_ms)
{
  const int64_t ms = when_ms - now_ms ();

  return ms < 0 ? 0 : MIN (ms, INT32_MAX);
}

static void
wake (struct nbd_client *c)
{
  eventfd_write (c->wake_fd, 1);
}

static void
say (struct nbd_client *c, const char *text)
{
  if (c->options.log)
    c->options.log (c->options.opaque, text);
}

/* The text of libnbd's last error without the name of the function. */
static char *
libnbd_error (void)
{
  const char *text = nbd_get_error ();
  const char *colon;

  if (text == NULL)
    return strdup ("no reason known");
  colon = strstr (text, ": ");
  if (strncmp (text, "nbd_", 4) == 0 && colon)
    text = colon + 2;
  return strdup (text);
}

static int
libnbd_errno (void)
{
  const int err = nbd_get_errno ();

  return err ? err : EIO;
}

/*--- Requests. --------------------------------------------------------*/

static struct nbd_request **
list_of (struct nbd_request *r)
{
  return r->state == NBD_REQUEST_QUEUED ? &r->client->queued
                                        : &r->client->in_flight;
}

static void
link_locked (struct nbd_request *r, int state)
{
  struct nbd_request **head;

  r->state = state;
  head = list_of (r);
  r->prev = NULL;
  r->next = *head;
  if (*head)
    (*head)->prev = r;
  *head = r;
}

static void
unlink_locked (struct nbd_request *r)
{
  if (r->prev)
    r->prev->next = r->next;
  else
    *list_of (r) = r->next;
  if (r->next)
    r->next->prev = r->prev;
}

/* R, which is on no list, is over.  It is gone when this returns. */
static void
over_locked (struct nbd_request *r, int err)
{
  if (r->type == NBD_REQUEST_CACHE) {
    r->client->nr_caches--;
    free (r);
    return;
  }
  r->err = err;
  r->is_over = true;
  sem_post (&r->over);
}

/* Put R, which is on no list, in the queue.  What nobody waits for is not
 * worth another connection, which it may have cost this one.
 */
static void
queue_locked (struct nbd_request *r)
{
  if (r->type == NBD_REQUEST_CACHE)
    over_locked (r, EIO);
  else
    link_locked (r, NBD_REQUEST_QUEUED);
}

/* Does ERR say that there is no server, or soon will not be? */
static bool
is_loss (int err)
{
  return err == ENOTCONN || err == ESHUTDOWN;
}

/* A server may say that it has sent all, and leave something out. */
static int
missing_locked (const struct nbd_request *r)
{
  return r->type == NBD_REQUEST_READ && r->nr_seen != r->count ? EIO : 0;
}

/* Called by libnbd, by whoever called that with the lock held. */
static int
completed_locked (void *opaque, int *error)
{
  struct nbd_request *r = opaque;

  if (is_loss (*error)) {
    r->client->unusable = true;
    /* R is queued again by who closes the handle, which frees the command:
     * libnbd may be about to return its cookie.
     */
    return 0;
  }
  r->client->has_served = true;
  unlink_locked (r);
  over_locked (r, *error ? *error : missing_locked (r));
  return 1;
}

/* What comes in order is known by how much it is.  From the first chunk on
 * that is not in order, remember each byte: one that comes twice must not count
 * for another that does not come, in whose place there would be what was in
 * memory before.
 */
static int
see_out_of_order_locked (struct nbd_request *r, size_t begin, size_t count)
{
  size_t i;

  if (r->seen == NULL) {
    r->seen = calloc (r->count, sizeof r->seen[0]);
    if (r->seen == NULL)
      return ENOMEM;
    memset (r->seen, true, r->nr_seen);
  }
  for (i = begin; i < begin + count; i++) {
    r->nr_seen += !r->seen[i];
    r->seen[i] = true;
  }
  return 0;
}

/* libnbd counts too, but tells only who asks for a completed command.  It has
 * seen that the chunk lies within what was asked for.
 */
static int
chunk_locked (void *opaque, const void *data UNUSED, size_t count,
              uint64_t offset, unsigned status, int *error)
{
  struct nbd_request *r = opaque;
  const size_t begin = offset - r->offset;
  int err;

  if (status == LIBNBD_READ_ERROR)
    return 0;
  if (r->seen == NULL && begin == r->nr_seen) {
    r->nr_seen += count;
    return 0;
  }
  err = see_out_of_order_locked (r, begin, count);
  if (err)
    *error = err;
  return err ? -1 : 0;
}

static int
extents_locked (void *opaque, const char *context, uint64_t offset,
                uint32_t *entries, size_t nr_entries, int *error)
{
  struct nbd_request *r = opaque;

  if (strcmp (context, CONTEXT) != 0 || offset != r->offset || r->extents)
    return 0;
  r->extents = malloc (nr_entries * sizeof *entries);
  if (r->extents == NULL) {
    *error = ENOMEM;
    return -1;
  }
  memcpy (r->extents, entries, nr_entries * sizeof *entries);
  r->nr_extents = nr_entries;
  return 0;
}

static int64_t
send_locked (struct nbd_client *c, struct nbd_request *r)
{
  const nbd_completion_callback completed = {
    .callback = completed_locked,
    .user_data = r,
  };
  const nbd_chunk_callback chunk = {
    .callback = chunk_locked,
    .user_data = r,
  };
  const nbd_extent_callback extents = {
    .callback = extents_locked,
    .user_data = r,
  };

  switch (r->type) {
  case NBD_REQUEST_READ:
    r->nr_seen = 0;
    free (r->seen);
    r->seen = NULL;
    return nbd_aio_pread_structured (c->nbd, r->buf, r->count, r->offset, chunk,
                                     completed, 0);
  case NBD_REQUEST_EXTENTS:
    return nbd_aio_block_status (c->nbd, r->count, r->offset, extents,
                                 completed, 0);
  case NBD_REQUEST_CACHE:
    return nbd_aio_cache (c->nbd, r->count, r->offset, completed, 0);
  case NBD_REQUEST_WRITE:
    return nbd_aio_pwrite (c->nbd, r->buf, r->count, r->offset, completed,
                           r->flags);
  case NBD_REQUEST_ZERO:
    return nbd_aio_zero (c->nbd, r->count, r->offset, completed, r->flags);
  case NBD_REQUEST_FLUSH:
    return nbd_aio_flush (c->nbd, completed, 0);
  }
  abort ();
}

static bool
is_lost (struct nbd_handle *nbd)
{
  return nbd_aio_is_dead (nbd) || nbd_aio_is_closed (nbd);
}

/* The thread shall close the handle, because of WHY, which is the client's
 * then; the first reason is kept.
 */
static void
unusable_locked (struct nbd_client *c, char *why)
{
  c->unusable = true;
  if (c->why_unusable)
    free (why);
  else
    c->why_unusable = why;
}

/* Put R, which is on no list, in flight, or where that cannot be in the
 * queue.
 */
static void
issue_locked (struct nbd_client *c, struct nbd_request *r)
{
  unsigned direction;

  if (c->nbd == NULL || c->unusable) {
    queue_locked (r);
    wake (c);
    return;
  }
  link_locked (r, NBD_REQUEST_IN_FLIGHT);
  if (send_locked (c, r) == -1) {
    unlink_locked (r);
    if (!is_lost (c->nbd)) {
      over_locked (r, libnbd_errno ());
      return;
    }
    queue_locked (r);
  }
  if (is_lost (c->nbd))
    unusable_locked (c, libnbd_error ());
  direction = nbd_aio_get_direction (c->nbd);
  if (c->unusable || (direction & ~c->polled_for))
    wake (c);
}

static int start_locked (struct nbd_client *c);

static void
submit_locked (struct nbd_client *c, struct nbd_request *r)
{
  const int err = c->interrupted ? EIO : start_locked (c);

  r->lost = c->interrupted;
  if (err)
    over_locked (r, err);
  else
    issue_locked (c, r);
}

static void
take_incoming_locked (struct nbd_client *c)
{
  struct nbd_request *r, *next;

  for (r = atomic_exchange (&c->incoming, NULL); r; r = next) {
    next = r->next;
    submit_locked (c, r);
  }
}

/* Release lock, after all that came in meanwhile was sent.  Who comes later
 * than that finds the lock free, or is found by who has it.
 */
static void
release (struct nbd_client *c)
{
  do {
    take_incoming_locked (c);
    pthread_mutex_unlock (&c->lock);
    atomic_thread_fence (memory_order_seq_cst);
  } while (c->incoming && pthread_mutex_trylock (&c->lock) == 0);
}

/* Nobody waits here for the thread to take what the server sent: who has
 * the lock sends R too.
 */
static void
submit (struct nbd_client *c, struct nbd_request *r)
{
  struct nbd_request *first = c->incoming;

  do
    r->next = first;
  while (!atomic_compare_exchange_weak (&c->incoming, &first, r));
  atomic_thread_fence (memory_order_seq_cst);
  if (pthread_mutex_trylock (&c->lock) == 0)
    release (c);
}

static void
request_init (struct nbd_request *r, struct nbd_client *c,
              enum nbd_request_type type, size_t count, uint64_t offset)
{
  const int64_t now = now_ms ();

  *r = (struct nbd_request){
    .type = type,
    .client = c,
    .count = count,
    .offset = offset,
    .began_ms = now,
    .deadline_ms = now + timeout_ms (c),
  };
  sem_init (&r->over, 0, 0);
}

void
nbd_client_read (struct nbd_client *c, struct nbd_request *r, void *buf,
                 size_t count, uint64_t offset)
{
  request_init (r, c, NBD_REQUEST_READ, count, offset);
  r->buf = buf;
  submit (c, r);
}

void
nbd_client_extents (struct nbd_client *c, struct nbd_request *r, size_t count,
                    uint64_t offset)
{
  request_init (r, c, NBD_REQUEST_EXTENTS, count, offset);
  submit (c, r);
}

void
nbd_client_write (struct nbd_client *c, struct nbd_request *r, const void *buf,
                  size_t count, uint64_t offset, uint32_t flags)
{
  request_init (r, c, NBD_REQUEST_WRITE, count, offset);
  r->buf = (char *) buf;
  r->flags = flags;
  submit (c, r);
}

void
nbd_client_zero (struct nbd_client *c, struct nbd_request *r, size_t count,
                 uint64_t offset, uint32_t flags)
{
  request_init (r, c, NBD_REQUEST_ZERO, count, offset);
  r->flags = flags;
  submit (c, r);
}

void
nbd_client_flush (struct nbd_client *c, struct nbd_request *r)
{
  request_init (r, c, NBD_REQUEST_FLUSH, 0, 0);
  r->deadline_ms = r->began_ms + MAX_TIMEOUTS * timeout_ms (c);
  submit (c, r);
}

void
nbd_client_cache (struct nbd_client *c, uint64_t count, uint64_t offset)
{
  pthread_mutex_lock (&c->lock);
  while (count > 0 && c->nbd && c->has_cache && c->nr_caches < MAX_CACHES) {
    const size_t n = MIN (count, c->limits.maximum);
    struct nbd_request *r = malloc (sizeof *r);

    if (r == NULL)
      break;
    request_init (r, c, NBD_REQUEST_CACHE, n, offset);
    c->nr_caches++;
    submit_locked (c, r);
    count -= n;
    offset += n;
  }
  release (c);
}

/* R, which is on no list, is not to be asked any more. */
static void
give_up_locked (struct nbd_request *r)
{
  r->lost = true;
  over_locked (r, EIO);
}

static void
give_up_queued_locked (struct nbd_client *c)
{
  struct nbd_request *r;

  while ((r = c->queued) != NULL) {
    unlink_locked (r);
    give_up_locked (r);
  }
}

/* The deadline of R has passed: is it over, or will it be soon? */
static bool
expire_locked (struct nbd_client *c, struct nbd_request *r)
{
  int64_t more;

  if (r->is_over)
    return true;
  if (r->state == NBD_REQUEST_QUEUED) {
    unlink_locked (r);
    give_up_locked (r);
    return true;
  }
  /* In flight.  Is the server just slow? */
  more = c->heard_ms + timeout_ms (c);
  if (more > now_ms () && more <= r->began_ms + MAX_TIMEOUTS * timeout_ms (c)) {
    r->deadline_ms = more;
    return false;
  }
  r->expired = true;
  unusable_locked (c, strdup ("the server does not answer"));
  wake (c);
  return true;
}

static bool
expire (struct nbd_request *r)
{
  struct nbd_client *c = r->client;
  bool is_over;

  pthread_mutex_lock (&c->lock);
  take_incoming_locked (c);
  is_over = expire_locked (c, r);
  release (c);
  return is_over;
}

int
nbd_client_wait (struct nbd_request *r)
{
  bool timed = true;
  int status;

  do {
    const struct timespec deadline = {
      .tv_sec = r->deadline_ms / 1000,
      .tv_nsec = r->deadline_ms % 1000 * 1000000,
    };

    if (timed)
      status = sem_clockwait (&r->over, CLOCK_MONOTONIC, &deadline);
    else
      status = sem_wait (&r->over);
    if (status == -1 && errno == ETIMEDOUT)
      timed = !expire (r);
  } while (status == -1 || !r->is_over);
  sem_destroy (&r->over);
  free (r->seen);
  return r->err;
}

void
nbd_client_interrupt (struct nbd_client *c)
{
  struct nbd_request *r;

  pthread_mutex_lock (&c->lock);
  take_incoming_locked (c);
  c->interrupted = true;
  give_up_queued_locked (c);
  /* These may be written to until the handle is closed. */
  for (r = c->in_flight; r; r = r->next)
    r->expired = true;
  if (c->in_flight)
    unusable_locked (c, NULL);
  wake (c);
  release (c);
}

/*--- Connecting. ------------------------------------------------------*/

/* The end of a disk need not be that of a block: the server is asked for
 * it all the same, and may refuse.
 */
#define STRICT_MODE (LIBNBD_STRICT_MASK & ~LIBNBD_STRICT_ALIGN)

/* A new handle that asks for what is wanted here. */
static struct nbd_handle *
new_handle (void)
{
  struct nbd_handle *nbd = nbd_create ();

  if (nbd == NULL)
    return NULL;
  if (nbd_add_meta_context (nbd, CONTEXT) == 0 &&
      nbd_set_uri_allow_local_file (nbd, true) == 0 &&
      nbd_set_pread_initialize (nbd, false) == 0 &&
      nbd_set_strict_mode (nbd, STRICT_MODE) == 0)
    return nbd;
  nbd_close (nbd);
  return NULL;
}

static void
drain (int event_fd)
{
  eventfd_t ignored;

  eventfd_read (event_fd, &ignored);
}

/* Wait until something happens to NBD, the peer or wake_fd, or the time
 * is over; do what libnbd and the peer need for that.  Returns -1 if NBD
 * failed.  Caller holds lock if LOCKED, which is released for the wait.
 */
static int
wait_for_any (struct nbd_client *c, struct nbd_handle *nbd, int timeout,
              bool locked)
{
  const unsigned direction = nbd ? nbd_aio_get_direction (nbd) : 0;
  struct pollfd fds[] = {
    { .fd = nbd ? nbd_aio_get_fd (nbd) : -1,
      .events = (direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                (direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0) },
    { .fd = c->wake_fd, .events = POLLIN },
    { .fd = c->peer->fd, .events = POLLIN },
  };
  int r = 0;

  if (locked) {
    c->polled_for = direction;
    release (c);
  }
  if (poll (fds, ARRAY_SIZE (fds), timeout) == -1)
    fds[0].revents = fds[1].revents = fds[2].revents = 0;
  if (fds[2].revents)
    c->peer->ops->heard (c->peer);
  if (fds[1].revents)
    drain (c->wake_fd);
  if (locked)
    pthread_mutex_lock (&c->lock);

  if (fds[0].revents & (POLLIN | POLLHUP | POLLERR)) {
    if (locked)
      c->heard_ms = now_ms ();
    if (nbd_aio_get_direction (nbd) & LIBNBD_AIO_DIRECTION_READ)
      r = nbd_aio_notify_read (nbd);
    else
      r = nbd_aio_notify_write (nbd);
  }
  else if ((fds[0].revents & POLLOUT) &&
           (nbd_aio_get_direction (nbd) & LIBNBD_AIO_DIRECTION_WRITE))
    r = nbd_aio_notify_write (nbd);
  return r;
}

static bool
must_stop (struct nbd_client *c)
{
  bool stop;

  pthread_mutex_lock (&c->lock);
  stop = c->stop || c->interrupted;
  release (c);
  return stop;
}

/* Wait until NBD, which connects, is ready.  Returns 0, or an errno and
 * *WHY.
 */
static int
wait_until_ready (struct nbd_client *c, struct nbd_handle *nbd, char **why)
{
  const int64_t deadline = now_ms () + timeout_ms (c);

  while (!nbd_aio_is_ready (nbd)) {
    if (must_stop (c) || is_lost (nbd)) {
      *why = strdup ("the server closed the connection");
      return ECONNRESET;
    }
    if (now_ms () >= deadline) {
      if (asprintf (why, "no answer within %u seconds",
                    c->options.timeout_seconds) == -1)
        *why = NULL;
      return ETIMEDOUT;
    }
    if (wait_for_any (c, nbd, ms_until (deadline), false) == -1) {
      *why = libnbd_error ();
      return libnbd_errno ();
    }
  }
  return 0;
}

/* What the server said of itself. */
struct facts {
  uint64_t size_bytes;
  struct nbd_limits limits;
  bool has_cache;
};

/* Returns 0, or an errno and *WHY. */
static int
get_facts (struct nbd_handle *nbd, struct facts *facts, char **why)
{
  const int64_t size = nbd_get_size (nbd);
  const int64_t minimum = nbd_get_block_size (nbd, LIBNBD_SIZE_MINIMUM);
  int64_t maximum = nbd_get_block_size (nbd, LIBNBD_SIZE_MAXIMUM);

  /* libnbd passes on what the server says, and calls it no error. */
  if (size < 0) {
    *why = strdup ("it has more bytes than a disk can have");
    return EFBIG;
  }
  if (minimum == -1 || maximum == -1) {
    *why = libnbd_error ();
    return libnbd_errno ();
  }
  facts->size_bytes = size;
  facts->limits.minimum = minimum ? minimum : DEFAULT_MINIMUM;
  if (maximum == 0 || maximum > LARGEST_MAXIMUM)
    maximum = LARGEST_MAXIMUM;
  maximum -= maximum % facts->limits.minimum;
  facts->limits.maximum = MAX (maximum, facts->limits.minimum);
  facts->limits.has_extents = nbd_can_meta_context (nbd, CONTEXT) == 1;
  facts->limits.is_read_only = nbd_is_read_only (nbd) != 0;
  facts->limits.has_zero = nbd_can_zero (nbd) == 1;
  facts->limits.has_flush = nbd_can_flush (nbd) == 1;
  facts->limits.has_fua = nbd_can_fua (nbd) == 1;
  facts->has_cache = nbd_can_cache (nbd) == 1;
  return 0;
}

static void
close_handle (struct nbd_client *c, struct nbd_handle *nbd)
{
  if (c->peer->ops->disconnect)
    c->peer->ops->disconnect (c->peer, nbd);
  nbd_close (nbd);
}

/* Connect NBD to the server.  Returns 0, or an errno and *WHY. */
static int
try_to_connect (struct nbd_client *c, struct nbd_handle *nbd,
                struct facts *facts, char **why)
{
  int r;

  if (c->peer->ops->connect (c->peer, nbd) == -1) {
    *why = libnbd_error ();
    return libnbd_errno ();
  }
  r = wait_until_ready (c, nbd, why);
  if (r)
    return r;
  r = get_facts (nbd, facts, why);
  if (r)
    return r;
  if (c->peer->ops->connected)
    c->peer->ops->connected (c->peer, nbd);
  return 0;
}

/* Connect to the server.  Blocks, no longer than the timeout.  Returns 0 and
 * *NBD, or an errno and *WHY, which the caller frees.
 */
static int
connect_handle (struct nbd_client *c, struct nbd_handle **ret,
                struct facts *facts, char **why)
{
  struct nbd_handle *nbd = new_handle ();
  int r;

  *why = NULL;
  if (nbd == NULL) {
    *why = libnbd_error ();
    return libnbd_errno ();
  }
  r = try_to_connect (c, nbd, facts, why);
  if (r == 0) {
    *ret = nbd;
    return 0;
  }
  if (c->peer->ops->why && *why) {
    char *better = strdup (c->peer->ops->why (c->peer, *why));

    free (*why);
    *why = better;
  }
  close_handle (c, nbd);
  return r;
}

/* Is what a server says of itself not what was said before?  If so, in
 * words which the caller frees.  Requests are cut as was said before.
 */
static char *
compare_facts (const struct nbd_client *c, const struct facts *facts)
{
  char *text = NULL;
  int n = 0;

  if (facts->size_bytes != c->size_bytes)
    n = asprintf (&text,
                  "the server is refused: it has %" PRIu64 " bytes now, and "
                  "had %" PRIu64,
                  facts->size_bytes, c->size_bytes);
  else if (facts->limits.minimum > c->limits.minimum ||
           facts->limits.maximum < c->limits.maximum)
    n = asprintf (&text,
                  "the server is refused: it takes requests of %" PRIu32
                  " to %" PRIu32 " bytes now, and took %" PRIu32 " to %" PRIu32,
                  facts->limits.minimum, facts->limits.maximum,
                  c->limits.minimum, c->limits.maximum);
  return n == -1 ? strdup ("the server is refused") : text;
}

/* As connect_handle, for a client that was connected before: a server that
 * is another one is a failure too.
 */
static int
reconnect_handle (struct nbd_client *c, struct nbd_handle **nbd,
                  struct facts *facts, char **why)
{
  const int r = connect_handle (c, nbd, facts, why);

  if (r)
    return r;
  *why = compare_facts (c, facts);
  if (*why == NULL)
    return 0;
  close_handle (c, *nbd);
  return EIO;
}

/*--- The thread. ------------------------------------------------------*/

/* How it goes with connecting; the thread's. */
struct attempts {
  bool was_lost;        /* and that was said */
  int64_t next_ms;      /* not before */
  int64_t pause_ms;     /* before the one after that */
  int64_t connected_ms; /* when it was made, or the thread began */
  char *said;           /* why the last ones failed */
};

/* Before the next one is the pause, longer each time: also if connections
 * are made, but serve for nothing.
 */
static void
put_off (struct attempts *a)
{
  a->next_ms = now_ms () + a->pause_ms;
  a->pause_ms = MAX (FIRST_PAUSE_MS, MIN (a->pause_ms * 2, LONGEST_PAUSE_MS));
}

/* Say that no connection could be made, once for each reason. */
static void
say_failed (struct nbd_client *c, struct attempts *a, char *why)
{
  CLEANUP_FREE char *text = NULL;

  if (why && (a->said == NULL || strcmp (why, a->said) != 0) &&
      asprintf (&text, "cannot connect: %s", why) != -1)
    say (c, text);
  free (a->said);
  a->said = why;
}

static void
say_lost (struct nbd_client *c, const char *why)
{
  CLEANUP_FREE char *text = NULL;
  int n;

  if (c->options.writable)
    n = asprintf (&text, "connection lost: %s", why);
  else
    n = asprintf (&text,
                  "connection lost: %s; what is not allocated waits up to %u "
                  "seconds for it",
                  why, c->options.timeout_seconds);
  if (n == -1)
    text = NULL;
  if (text)
    say (c, text);
}

/* Close the handle.  What was in flight is queued, save what has waited
 * too long, and what may have been done in part.  Caller holds lock, which is
 * released meanwhile.
 */
static void
lose_connection_locked (struct nbd_client *c, struct attempts *a)
{
  struct nbd_handle *nbd = c->nbd;
  CLEANUP_FREE char *why = c->why_unusable;
  const bool interrupted = c->interrupted;
  struct nbd_request *r;

  c->why_unusable = NULL;
  c->nbd = NULL;
  c->interrupted |= c->options.writable;
  release (c);
  close_handle (c, nbd);
  if (!interrupted)
    say_lost (c, why ? why : "the server closed it");
  pthread_mutex_lock (&c->lock);

  /* Who waited too long meanwhile may have wanted the same. */
  free (c->why_unusable);
  c->why_unusable = NULL;
  c->unusable = false;
  while ((r = c->in_flight) != NULL) {
    unlink_locked (r);
    free (r->extents);
    r->extents = NULL;
    if (r->expired)
      give_up_locked (r);
    else
      queue_locked (r);
  }
  if (c->options.writable)
    give_up_queued_locked (c);
  a->was_lost = true;
  if (now_ms () - a->connected_ms >= LONGEST_PAUSE_MS)
    a->pause_ms = 0;
  else if (c->has_served)
    a->pause_ms = MIN (a->pause_ms, FIRST_PAUSE_MS);
  put_off (a);
}

static void
issue_queued_locked (struct nbd_client *c)
{
  struct nbd_request *r, *waiting = c->queued;

  c->queued = NULL;
  while ((r = waiting) != NULL) {
    waiting = r->next;
    issue_locked (c, r);
  }
}

/* Connect, and send what is queued.  Caller holds lock, which is released
 * meanwhile.
 */
static void
try_to_connect_locked (struct nbd_client *c, struct attempts *a)
{
  struct nbd_handle *nbd;
  struct facts facts;
  char *why;

  release (c);
  if (reconnect_handle (c, &nbd, &facts, &why)) {
    nbd = NULL;
    if (must_stop (c))
      free (why);
    else
      say_failed (c, a, why);
    put_off (a);
  }
  else {
    if (a->was_lost || a->said)
      say (c, "connected again");
    free (a->said);
    a->said = NULL;
    a->was_lost = false;
    a->connected_ms = now_ms ();
  }
  pthread_mutex_lock (&c->lock);
  if (nbd == NULL)
    return;
  c->nbd = nbd;
  c->heard_ms = now_ms ();
  c->has_served = false;
  c->polled_for = 0;
  c->has_cache = facts.has_cache;
  issue_queued_locked (c);
}

/* One turn of the thread.  Caller holds lock, which is released while
 * there is something to wait for.
 */
static void
turn_locked (struct nbd_client *c, struct attempts *a)
{
  if (c->nbd) {
    if (c->unusable || is_lost (c->nbd))
      lose_connection_locked (c, a);
    else if (wait_for_any (c, c->nbd, -1, true) == -1)
      unusable_locked (c, libnbd_error ());
  }
  else if (c->queued == NULL)
    wait_for_any (c, NULL, -1, true);
  else if (now_ms () < a->next_ms)
    wait_for_any (c, NULL, ms_until (a->next_ms), true);
  else
    try_to_connect_locked (c, a);
}

static void *
client_thread (void *opaque)
{
  struct nbd_client *c = opaque;
  struct attempts attempts = { .connected_ms = now_ms () };

  pthread_mutex_lock (&c->lock);
  while (!c->stop)
    turn_locked (c, &attempts);
  release (c);
  free (attempts.said);
  return NULL;
}

/* Start the thread unless it runs.  Returns 0 or an errno. */
static int
start_locked (struct nbd_client *c)
{
  sigset_t all, old;
  int r;

  if (c->running)
    return 0;
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &old);
  r = pthread_create (&c->thread, NULL, client_thread, c);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  c->running = r == 0;
  return r;
}

/*--- Opening and closing. ---------------------------------------------*/

static int
first_connection (struct nbd_client *c, char **why)
{
  struct nbd_handle *nbd;
  struct facts facts;
  int r = connect_handle (c, &nbd, &facts, why);

  if (r)
    return r;
  c->size_bytes = facts.size_bytes;
  c->limits = facts.limits;
  c->has_cache = facts.has_cache;
  c->nbd = nbd;
  return 0;
}

int
nbd_client_open (struct nbd_client **ret, struct nbd_peer *peer,
                 const struct nbd_client_options *options, uint64_t *size_bytes,
                 char **why)
{
  struct nbd_client *c = calloc (1, sizeof *c);
  int r;

  *why = NULL;
  if (c == NULL)
    return ENOMEM;
  c->peer = peer;
  c->options = *options;
  pthread_mutex_init (&c->lock, NULL);
  c->wake_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  r = c->wake_fd == -1 ? errno : first_connection (c, why);
  if (r) {
    if (c->wake_fd >= 0)
      close (c->wake_fd);
    pthread_mutex_destroy (&c->lock);
    free (c);
    return r;
  }
  *size_bytes = c->size_bytes;
  *ret = c;
  return 0;
}

static void
stop_thread (struct nbd_client *c)
{
  bool running;

  pthread_mutex_lock (&c->lock);
  c->stop = true;
  running = c->running;
  release (c);
  wake (c);
  if (running)
    pthread_join (c->thread, NULL);
}

/* Also at the end of what can be read. */
static bool
is_readable (int fd)
{
  struct pollfd pfd = { .fd = fd, .events = POLLIN };

  return poll (&pfd, 1, 0) != 0;
}

static void
disconnect (struct nbd_client *c)
{
  if (c->nbd == NULL)
    return;
  /* A child is killed anyway, and who closed the connection needs no
   * goodbye: where that cannot be sent libnbd would use what it has freed.
   */
  if (!c->peer->is_child && nbd_aio_is_ready (c->nbd) &&
      !is_readable (nbd_aio_get_fd (c->nbd)))
    nbd_aio_disconnect (c->nbd, 0);
  close_handle (c, c->nbd);
  c->nbd = NULL;
}

void
nbd_client_rest (struct nbd_client *c)
{
  stop_thread (c);
  c->stop = c->running = false;
  if (!c->peer->is_child)
    return;
  disconnect (c);
  free (c->why_unusable);
  c->why_unusable = NULL;
  c->unusable = false;
}

void
nbd_client_close (struct nbd_client *c)
{
  struct nbd_request *r;

  if (c == NULL)
    return;
  stop_thread (c);
  disconnect (c);
  while ((r = c->in_flight) != NULL || (r = c->queued) != NULL) {
    unlink_locked (r);
    over_locked (r, EIO); /* a cache request: all others were waited for */
  }
  free (c->why_unusable);
  c->peer->ops->close (c->peer);
  close (c->wake_fd);
  pthread_mutex_destroy (&c->lock);
  free (c);
}

struct nbd_limits
nbd_client_limits (const struct nbd_client *c)
{
  return c->limits;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A backing file over NBD whose server says anything.
 *
 *   byte  0   flags: 1 the format is known to be raw; 2, 4: how long the
 *             timeout is
 *         1   n, how often something is asked
 *    n * 9    what is asked: what, 4 bytes of offset, 4 of length
 *    the rest what the server does, a step each time when the client has sent
 *             something or the one before said so:
 *
 *   byte  0   0-3: what, see struct step; 4: the next one follows at once;
 *             5: the connection is closed after it; 6, 7: not used
 *
 * The client does not learn that there is no network: the other end of its
 * socket is served by the peer (see nbd-client.h) within its own thread.  Nor
 * that there is no time: when all wait the clock goes on to the first moment
 * that somebody waits for.  So nothing takes long, and how long it would have
 * taken can be told: no request may take longer than it may.
 *
 * The server sends no byte 0xaa.  A buffer is full of them before a read: if
 * it succeeds none must be left, else somebody would get what was in memory.
 */

#include <config.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "backing-nbd.h"
#include "common.h"
#include "fuzz.h"

#define NEVER 0xaa
#define MAX_ASKED 12
#define MAX_READ 200000 /* which the socket takes */

/*--- Time. ------------------------------------------------------------*/

int __wrap_clock_gettime (clockid_t clock, struct timespec *ts);
int __wrap_poll (struct pollfd *fds, nfds_t n, int timeout);
int __real_poll (struct pollfd *fds, nfds_t n, int timeout);
int __wrap_sem_clockwait (sem_t *sem, clockid_t clock,
                          const struct timespec *deadline);
int __wrap_sem_wait (sem_t *sem);
int __wrap_sem_post (sem_t *sem);
int __real_sem_post (sem_t *sem);

static struct {
  pthread_mutex_t lock; /* protects all below */
  pthread_cond_t changed;
  int64_t now_ms;
  int64_t deadline_ms; /* of who waits for a semaphore, */
  bool waits;          /* if somebody does */
} clock_ = {
  .lock = PTHREAD_MUTEX_INITIALIZER,
  .changed = PTHREAD_COND_INITIALIZER,
};

static pthread_t asker;  /* the thread that asks, and opens and closes */
static int kick_fd = -1; /* the client's thread is to look who waits */

static int64_t
now_ms (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&clock_.lock);

  return clock_.now_ms;
}

int
__wrap_clock_gettime (clockid_t clock UNUSED, struct timespec *ts)
{
  const int64_t ms = now_ms ();

  *ts = (struct timespec){
    .tv_sec = ms / 1000,
    .tv_nsec = ms % 1000 * 1000000,
  };
  return 0;
}

/* Nothing will happen, to who polls for TIMEOUT, but that time passes.  If
 * nobody waits for him, it cannot be said.  Returns whether his is over.
 */
static bool
pass_time (int timeout)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&clock_.lock);
  const int64_t end_ms = clock_.now_ms + timeout;
  const bool alone = pthread_equal (pthread_self (), asker);

  if (!alone && !clock_.waits)
    return false;
  CHECK (timeout >= 0 || !alone); /* for ever */
  if (timeout >= 0 && (alone || end_ms <= clock_.deadline_ms)) {
    clock_.now_ms = end_ms;
    return true;
  }
  CHECK (clock_.deadline_ms != INT64_MAX); /* for ever */
  clock_.now_ms = MAX (clock_.now_ms, clock_.deadline_ms);
  clock_.waits = false;
  pthread_cond_broadcast (&clock_.changed);
  return false;
}

int
__wrap_poll (struct pollfd *fds, nfds_t n, int timeout)
{
  struct pollfd all[8];
  const int kick = n;
  eventfd_t ignored;
  bool waits;
  int r;

  CHECK (n < ARRAY_SIZE (all));
  for (;;) {
    pthread_mutex_lock (&clock_.lock);
    waits = clock_.waits || pthread_equal (pthread_self (), asker);
    pthread_mutex_unlock (&clock_.lock);
    /* He who waits now has done all that he will. */
    r = __real_poll (fds, n, 0);
    if (r != 0 || timeout == 0 || (waits && pass_time (timeout)))
      return r;
    memcpy (all, fds, n * sizeof fds[0]);
    all[kick] = (struct pollfd){ .fd = kick_fd, .events = POLLIN };
    __real_poll (all, n + 1, -1);
    if (all[kick].revents)
      eventfd_read (kick_fd, &ignored);
  }
}

static int
wait_until (sem_t *sem, int64_t deadline_ms)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&clock_.lock);

  while (sem_trywait (sem) == -1) {
    if (clock_.now_ms >= deadline_ms) {
      errno = ETIMEDOUT;
      return -1;
    }
    clock_.deadline_ms = deadline_ms;
    clock_.waits = true;
    eventfd_write (kick_fd, 1);
    pthread_cond_wait (&clock_.changed, &clock_.lock);
  }
  clock_.waits = false;
  return 0;
}

int
__wrap_sem_clockwait (sem_t *sem, clockid_t clock UNUSED,
                      const struct timespec *deadline)
{
  return wait_until (sem, deadline->tv_sec * INT64_C (1000) +
                              deadline->tv_nsec / 1000000);
}

int
__wrap_sem_wait (sem_t *sem)
{
  return wait_until (sem, INT64_MAX);
}

int
__wrap_sem_post (sem_t *sem)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&clock_.lock);

  clock_.waits = false;
  pthread_cond_broadcast (&clock_.changed);
  return __real_sem_post (sem);
}

/*--- The server. ------------------------------------------------------*/

/* The option or request that was first sent and not answered. */
struct asked {
  uint32_t option;
  uint64_t cookie, offset;
  uint32_t count;
};

struct server {
  struct nbd_peer peer;
  struct input script;
  bool silent;        /* when the script is over; else it closes */
  struct asked asked; /* what is answered now */
  uint8_t got[65536];
  size_t nr_got;
};

/* The kinds of a step.  What it sends has the numbers that it needs to be
 * looked at, and else what the input has.
 */
enum {
  STEP_BYTES,      /* 2 bytes, a length, and those */
  STEP_GREETING,   /* newstyle; 2 bytes of flags */
  STEP_REP,        /* to an option: 1 byte, a length; 1, which kind; bytes */
  STEP_REP_EXPORT, /* 8 bytes of size, 2 of flags */
  STEP_REP_BLOCKS, /* 3 times 4 bytes */
  STEP_REP_META,   /* base:allocation; 4 bytes, its number */
  STEP_SIMPLE,     /* to a request: 1 byte of errno; data, as it wants them */
  STEP_SIMPLE_CUT, /* but fewer: 2 bytes, how many */
  STEP_CHUNK,      /* 2 bytes of flags, 2 of type, a length and bytes */
  STEP_DATA,       /* 1 byte of flags, 4 of offset from the request's, 4 of
                    * length: data */
  STEP_HOLE,       /* the same, as a hole */
  STEP_STATUS,     /* 1 byte of flags, 4 of a number, 1: how many extents of 4
                    * bytes of length and 1 of type */
  STEP_ERROR,      /* 1 byte of flags, 4 of errno, a length and bytes */
  STEP_NOTHING,
  NR_STEPS,
};

#define STEP_AT_ONCE (1 << 4)
#define STEP_CLOSE (1 << 5)

struct message {
  uint8_t bytes[4096];
  size_t n;
};

static void
add (struct message *m, unsigned nr_bytes, uint64_t value)
{
  CHECK (m->n + nr_bytes <= sizeof m->bytes);
  while (nr_bytes-- > 0)
    m->bytes[m->n++] = value >> nr_bytes * 8;
}

static void
add_input (struct message *m, struct input *in, size_t n)
{
  const uint8_t *p;

  n = take_bytes (in, &p, MIN (n, sizeof m->bytes - m->n));
  if (n > 0)
    memcpy (m->bytes + m->n, p, n);
  m->n += n;
}

static void
server_close (struct server *s)
{
  if (s->peer.fd >= 0)
    close (s->peer.fd);
  s->peer.fd = -1;
  s->nr_got = 0;
}

/* A client that takes no more is left alone. */
static bool
put (struct server *s, const void *buf, size_t count)
{
  const uint8_t *p = buf;
  uint8_t bytes[4096];
  size_t i;

  while (count > 0 && s->peer.fd >= 0) {
    const size_t n = MIN (count, sizeof bytes);

    for (i = 0; i < n; i++)
      bytes[i] = p[i] == NEVER ? 0 : p[i];
    if (send (s->peer.fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t) n)
      return false;
    p += n;
    count -= n;
  }
  return true;
}

static void
put_data (struct server *s, uint64_t count)
{
  static const uint8_t data[4096] = { [0 ... 4095] = 0x77 };

  for (count = MIN (count, 4 * 1024 * 1024); count > 0;) {
    const size_t n = MIN (count, sizeof data);

    if (!put (s, data, n))
      return;
    count -= n;
  }
}

static uint64_t
number (const uint8_t *p, unsigned nr_bytes)
{
  struct input in = { p, nr_bytes };

  return take (&in, nr_bytes);
}

static void
forget (struct server *s, size_t n)
{
  n = MIN (n, s->nr_got);
  memmove (s->got, s->got + n, s->nr_got - n);
  s->nr_got -= n;
}

#define OPTION_MAGIC UINT64_C (0x49484156454f5054)
#define REQUEST_MAGIC 0x25609513

/* What is asked next, if all of it has come; zeroes else. */
static struct asked
next_asked (struct server *s)
{
  struct asked a = { 0 };

  if (s->nr_got >= 8 && number (s->got, 8) != OPTION_MAGIC &&
      number (s->got, 4) != REQUEST_MAGIC)
    forget (s, 4); /* the client's flags */
  if (s->nr_got >= 16 && number (s->got, 8) == OPTION_MAGIC) {
    a.option = number (s->got + 8, 4);
    forget (s, 16 + number (s->got + 12, 4));
  }
  else if (s->nr_got >= 28 && number (s->got, 4) == REQUEST_MAGIC) {
    a.cookie = number (s->got + 8, 8);
    a.offset = number (s->got + 16, 8);
    a.count = number (s->got + 24, 4);
    forget (s, 28);
  }
  return a;
}

static void
put_message (struct server *s, const struct message *m)
{
  put (s, m->bytes, m->n);
}

#define STRUCTURED_MAGIC 0x668e33ef
#define SIMPLE_MAGIC 0x67446698

/* The head of an option's reply of LENGTH bytes. */
static void
add_rep (struct message *m, const struct asked *a, uint32_t type,
         uint32_t length)
{
  add (m, 8, UINT64_C (0x3e889045565a9));
  add (m, 4, a->option);
  add (m, 4, type);
  add (m, 4, length);
}

static void
add_chunk (struct message *m, const struct asked *a, unsigned flags,
           unsigned type, uint32_t length)
{
  add (m, 4, STRUCTURED_MAGIC);
  add (m, 2, flags);
  add (m, 2, type);
  add (m, 8, a->cookie);
  add (m, 4, length);
}

static uint32_t
option_reply_type (unsigned byte)
{
  return byte & 0x80 ? UINT32_C (0x80000000) + (byte & 0x7f) : byte;
}

static void
put_simple (struct server *s, const struct asked *a, unsigned err,
            uint64_t nr_bytes)
{
  struct message m = { .n = 0 };

  add (&m, 4, SIMPLE_MAGIC);
  add (&m, 4, err);
  add (&m, 8, a->cookie);
  put_message (s, &m);
  if (err == 0)
    put_data (s, nr_bytes);
}

static void
put_status (struct server *s, const struct asked *a, struct input *in)
{
  struct message m = { .n = 0 };
  const unsigned flags = take (in, 1);
  const uint32_t id = take (in, 4);
  const unsigned n = take (in, 1);
  unsigned i;

  add_chunk (&m, a, flags, 5, 4 + 8 * n);
  add (&m, 4, id);
  for (i = 0; i < n; i++) {
    add (&m, 4, take (in, 4));
    add (&m, 4, take (in, 1));
  }
  put_message (s, &m);
}

static void
put_data_chunk (struct server *s, const struct asked *a, struct input *in,
                bool hole)
{
  struct message m = { .n = 0 };
  const unsigned flags = take (in, 1);
  const uint64_t offset = a->offset + (int32_t) take (in, 4);
  const uint32_t count = take (in, 4);

  add_chunk (&m, a, flags, hole ? 2 : 1, hole ? 12 : 8 + count);
  add (&m, 8, offset);
  if (hole)
    add (&m, 4, count);
  put_message (s, &m);
  if (!hole)
    put_data (s, count);
}

static void
put_error (struct server *s, const struct asked *a, struct input *in)
{
  struct message m = { .n = 0 };
  const unsigned flags = take (in, 1);
  const uint32_t err = take (in, 4);
  const unsigned n = take (in, 1);

  add_chunk (&m, a, flags, 32769, 6 + n);
  add (&m, 4, err);
  add (&m, 2, n);
  add_input (&m, in, n);
  put_message (s, &m);
}

/* What fits into one message. */
static void
put_short (struct server *s, const struct asked *a, unsigned kind,
           struct input *in)
{
  struct message m = { .n = 0 };
  unsigned flags, n;

  switch (kind) {
  case STEP_BYTES:
    add_input (&m, in, take (in, 2));
    break;
  case STEP_GREETING:
    add (&m, 8, UINT64_C (0x4e42444d41474943));
    add (&m, 8, OPTION_MAGIC);
    add (&m, 2, take (in, 2));
    break;
  case STEP_REP:
    n = take (in, 1);
    add_rep (&m, a, option_reply_type (take (in, 1)), n);
    add_input (&m, in, n);
    break;
  case STEP_REP_EXPORT:
    add_rep (&m, a, 3, 12);
    add (&m, 2, 0);
    add (&m, 8, take (in, 8));
    add (&m, 2, take (in, 2));
    break;
  case STEP_REP_BLOCKS:
    add_rep (&m, a, 3, 14);
    add (&m, 2, 3);
    for (n = 0; n < 3; n++)
      add (&m, 4, take (in, 4));
    break;
  case STEP_REP_META:
    add_rep (&m, a, 4, 4 + 15);
    add (&m, 4, take (in, 4));
    memcpy (m.bytes + m.n, "base:allocation", 15);
    m.n += 15;
    break;
  case STEP_CHUNK:
    flags = take (in, 2);
    n = take (in, 2);
    add_chunk (&m, a, flags, n, in->left > 0 ? in->p[0] : 0);
    add_input (&m, in, take (in, 1));
    break;
  }
  put_message (s, &m);
}

/* Returns whether the next step follows at once. */
static bool
step (struct server *s)
{
  struct input *in = &s->script;
  const unsigned what = take (in, 1);
  const unsigned kind = what & 15;
  const struct asked a = s->asked;
  unsigned n;

  if (kind == STEP_SIMPLE) {
    n = take (in, 1);
    put_simple (s, &a, n, a.count);
  }
  else if (kind == STEP_SIMPLE_CUT)
    put_simple (s, &a, 0, take (in, 2));
  else if (kind == STEP_DATA || kind == STEP_HOLE)
    put_data_chunk (s, &a, in, kind == STEP_HOLE);
  else if (kind == STEP_STATUS)
    put_status (s, &a, in);
  else if (kind == STEP_ERROR)
    put_error (s, &a, in);
  else
    put_short (s, &a, kind, in);
  if (what & STEP_CLOSE)
    server_close (s);
  return (what & STEP_AT_ONCE) && s->peer.fd >= 0;
}

static void
steps (struct server *s)
{
  s->asked = next_asked (s);
  if (s->script.left == 0 && !s->silent)
    server_close (s);
  while (s->script.left > 0 && step (s))
    ;
}

/*--- The peer. --------------------------------------------------------*/

static struct server *
to_server (struct nbd_peer *peer)
{
  return container_of (peer, struct server, peer);
}

static int
peer_connect (struct nbd_peer *peer, struct nbd_handle *nbd)
{
  struct server *s = to_server (peer);
  int fds[2];

  server_close (s);
  CHECK (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  setsockopt (fds[0], SOL_SOCKET, SO_SNDBUF, &(int){ MAX_READ }, sizeof (int));
  peer->fd = fds[0];
  steps (s);
  return nbd_aio_connect_socket (nbd, fds[1]);
}

static void
peer_disconnect (struct nbd_peer *peer, struct nbd_handle *nbd UNUSED)
{
  server_close (to_server (peer));
}

static void
peer_heard (struct nbd_peer *peer)
{
  struct server *s = to_server (peer);
  const ssize_t n = recv (peer->fd, s->got + s->nr_got,
                          sizeof s->got - s->nr_got, MSG_DONTWAIT);
  size_t before;

  if (n <= 0) {
    server_close (s);
    return;
  }
  s->nr_got += n;
  do {
    before = s->nr_got;
    steps (s);
  } while (s->nr_got > 0 && s->nr_got < before);
}

static void
peer_close (struct nbd_peer *peer)
{
  server_close (to_server (peer));
}

static const struct nbd_peer_ops peer_ops = {
  .connect = peer_connect,
  .disconnect = peer_disconnect,
  .heard = peer_heard,
  .close = peer_close,
};

/*--- The client. ------------------------------------------------------*/

#define MAX_TIMEOUTS 4 /* of one request, see nbd-client.c */

int __wrap_nbd_client_wait (struct nbd_request *request);
int __real_nbd_client_wait (struct nbd_request *request);

static int64_t limit_ms;

int
__wrap_nbd_client_wait (struct nbd_request *request)
{
  const int64_t began_ms = request->began_ms;
  const int r = __real_nbd_client_wait (request);

  CHECK (now_ms () - began_ms <= limit_ms);
  return r;
}

static void
do_read (struct backing *b, size_t count, uint64_t offset)
{
  static uint8_t buf[MAX_READ];

  count = MIN (count, sizeof buf);
  memset (buf, NEVER, count);
  if (backing_read (b, buf, count, offset) == 0)
    CHECK (memchr (buf, NEVER, count) == NULL);
}

struct telling {
  uint64_t left;
};

static int
tell_extent (void *opaque, uint64_t count, unsigned type)
{
  struct telling *t = opaque;

  CHECK (count > 0 && count <= t->left);
  CHECK ((type & ~(EXTENT_HOLE | EXTENT_ZERO)) == 0);
  t->left -= count;
  return 0;
}

static void
do_extents (struct backing *b, uint64_t count, uint64_t offset)
{
  struct telling t = { count };
  int r = b->ops->extents (b, count, offset, tell_extent, &t);

  CHECK (r == 0 || r == EXTENT_STOP || r > 0);
  CHECK (r != 0 || t.left < count);
}

static void
ask (struct backing *b, struct input *in)
{
  const unsigned what = take (in, 1);
  const uint64_t offset = take (in, 4);
  const uint64_t count = take (in, 4);
  uint64_t at, n;

  if (b->size_bytes == 0)
    return;
  at = what & 0x80 ? b->size_bytes - 1 - offset % b->size_bytes
                   : offset % b->size_bytes;
  n = MAX (MIN (count, b->size_bytes - at), 1);
  switch (what & 3) {
  case 2:
    do_extents (b, n, at);
    break;
  case 3:
    CHECK (backing_cache (b, n, at) == 0);
    break;
  default:
    do_read (b, n, at);
  }
}

enum { IS_RAW = 1, INTERRUPT = 8, SILENT = 16 };

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  static struct server s;
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct input in = { data, size };
  const unsigned flags = take (&in, 1);
  unsigned i, n = take (&in, 1) % (MAX_ASKED + 1);
  const struct backing_options options = {
    .format = flags & IS_RAW ? "raw" : NULL,
    .timeout_seconds = 1 + (flags >> 1 & 3),
  };
  struct backing *backing;
  struct input asked = { in.p, 0 };
  int r;

  if (kick_fd == -1)
    kick_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  asker = pthread_self ();
  clock_.now_ms = 1000;
  limit_ms = MAX_TIMEOUTS * 1000 * options.timeout_seconds;
  asked.left = take_bytes (&in, &asked.p, n * 9);
  s = (struct server){
    .peer = { .ops = &peer_ops, .fd = -1 },
    .script = in,
    .silent = flags & SILENT,
  };
  r = backing_nbd_open_peer (&backing, &s.peer, "nbd", &options, &failure);
  if (r) {
    CHECK (failure.err == r && failure_text (&failure));
    return 0;
  }
  CHECK (backing->size_bytes <= INT64_MAX);
  for (i = 0; i < n; i++)
    ask (backing, &asked);
  if (flags & INTERRUPT)
    backing_interrupt (backing);
  if (n > 0)
    ask (backing, &asked);
  backing_close (backing);
  return 0;
}

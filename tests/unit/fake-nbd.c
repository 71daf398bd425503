/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "check.h"
#include "common.h"
#include "fake-nbd.h"

/*--- The disk. --------------------------------------------------------*/

static bool
is_hole (uint64_t seed, uint64_t extent_bytes, uint64_t offset)
{
  struct rng rng = { seed ^ (offset / extent_bytes) << 20 };

  return rng_one_in (&rng, 3);
}

void
fake_nbd_content (uint64_t seed, uint64_t extent_bytes, void *buf, size_t count,
                  uint64_t offset)
{
  uint8_t *bytes = buf;
  uint64_t word = 0;
  size_t i;

  for (i = 0; i < count; i++) {
    const uint64_t at = offset + i;

    if (i == 0 || at % 8 == 0) {
      struct rng rng = { seed + at / 8 };

      word = rng_next (&rng);
    }
    bytes[i] = is_hole (seed, extent_bytes, at) ? 0 : word >> at % 8 * 8;
  }
}

/*--- A connection. ----------------------------------------------------*/

struct connection {
  struct fake_nbd *server;
  struct fake_nbd_how how;
  struct rng rng;
  int fd;
  int64_t nr_sent;
};

/* Returns false when the connection is over. */
static bool
put (struct connection *c, const void *buf, size_t count)
{
  const int64_t max = c->how.max_sent;
  const size_t n = max >= 0 ? MIN (count, (size_t) (max - c->nr_sent)) : count;
  size_t done = 0;

  while (done < n) {
    const ssize_t r = send (c->fd, (const char *) buf + done, n - done,
                            MSG_NOSIGNAL);

    if (r == -1)
      return false;
    done += r;
  }
  c->nr_sent += n;
  return n == count;
}

static bool
has_input (struct connection *c, int timeout)
{
  struct pollfd fd = { .fd = c->fd, .events = POLLIN };

  return poll (&fd, 1, timeout) > 0;
}

static bool
get (struct connection *c, void *buf, size_t count)
{
  size_t done = 0;

  while (done < count) {
    const ssize_t r = recv (c->fd, (char *) buf + done, count - done, 0);

    if (r <= 0)
      return false;
    done += r;
  }
  return true;
}

/* What is sent as one: numbers, big-endian, behind each other. */
struct message {
  uint8_t bytes[64];
  size_t n;
};

static void
add (struct message *m, unsigned nr_bytes, uint64_t value)
{
  CHECK (m->n + nr_bytes <= sizeof m->bytes);
  while (nr_bytes-- > 0)
    m->bytes[m->n++] = value >> nr_bytes * 8;
}

static bool
put_message (struct connection *c, const struct message *m)
{
  return put (c, m->bytes, m->n);
}

/*--- Handshake. -------------------------------------------------------*/

enum { OPT_GO = 7, OPT_STRUCTURED_REPLY = 8, OPT_SET_META_CONTEXT = 10 };
enum { REP_ACK = 1, REP_INFO = 3, REP_META_CONTEXT = 4 };
#define REP_ERR_UNSUP 0x80000001
#define CONTEXT "base:allocation"
#define CONTEXT_ID 77

static bool
put_option_reply (struct connection *c, uint32_t option, uint32_t type,
                  const struct message *payload, const char *text)
{
  struct message m = { .n = 0 };

  add (&m, 8, UINT64_C (0x3e889045565a9));
  add (&m, 4, option);
  add (&m, 4, type);
  add (&m, 4, payload->n + strlen (text));
  return put_message (c, &m) && put_message (c, payload) &&
         put (c, text, strlen (text));
}

static bool
answer_go (struct connection *c)
{
  struct message export = { .n = 0 }, sizes = { .n = 0 }, none = { .n = 0 };

  add (&export, 2, 0);
  add (&export, 8, c->how.size_bytes);
  add (&export, 2, 1 | 1 << 1 | 1 << 10); /* read-only, takes cache */
  add (&sizes, 2, 3);
  add (&sizes, 4, c->how.minimum);
  add (&sizes, 4, MAX (4096, c->how.minimum));
  add (&sizes, 4, c->how.maximum);
  return put_option_reply (c, OPT_GO, REP_INFO, &export, "") &&
         (c->how.minimum == 0 ||
          put_option_reply (c, OPT_GO, REP_INFO, &sizes, "")) &&
         put_option_reply (c, OPT_GO, REP_ACK, &none, "");
}

static bool
answer_option (struct connection *c, uint32_t option)
{
  struct message none = { .n = 0 }, id = { .n = 0 };

  if (option == OPT_GO)
    return answer_go (c);
  if (c->how.simple ||
      (option != OPT_STRUCTURED_REPLY && option != OPT_SET_META_CONTEXT))
    return put_option_reply (c, option, REP_ERR_UNSUP, &none, "");
  add (&id, 4, CONTEXT_ID);
  if (option == OPT_SET_META_CONTEXT &&
      !put_option_reply (c, option, REP_META_CONTEXT, &id, CONTEXT))
    return false;
  return put_option_reply (c, option, REP_ACK, &none, "");
}

static bool
handshake (struct connection *c)
{
  uint8_t flags[4], option[16], payload[4096];
  struct message m = { .n = 0 };

  add (&m, 8, UINT64_C (0x4e42444d41474943));
  add (&m, 8, UINT64_C (0x49484156454f5054));
  add (&m, 2, 3);
  if (!put_message (c, &m) || !get (c, flags, sizeof flags))
    return false;
  for (;;) {
    uint32_t type, length;

    if (!get (c, option, sizeof option))
      return false;
    memcpy (&type, option + 8, sizeof type);
    memcpy (&length, option + 12, sizeof length);
    type = be32toh (type);
    length = be32toh (length);
    CHECK (length <= sizeof payload);
    if (!get (c, payload, length) || !answer_option (c, type))
      return false;
    if (type == OPT_GO)
      return true;
  }
}

/*--- Requests. --------------------------------------------------------*/

enum { CMD_READ = 0, CMD_DISC = 2, CMD_CACHE = 5, CMD_BLOCK_STATUS = 7 };
enum { CHUNK_NONE = 0, CHUNK_DATA = 1, CHUNK_STATUS = 5, CHUNK_ERROR = 32769 };

struct request {
  uint16_t type;
  uint64_t cookie;
  uint64_t offset;
  uint32_t count;
};

static bool
get_request (struct connection *c, struct request *r)
{
  uint8_t bytes[28];

  if (!get (c, bytes, sizeof bytes))
    return false;
  memcpy (&r->type, bytes + 6, sizeof r->type);
  memcpy (&r->cookie, bytes + 8, sizeof r->cookie);
  memcpy (&r->offset, bytes + 16, sizeof r->offset);
  memcpy (&r->count, bytes + 24, sizeof r->count);
  r->type = be16toh (r->type);
  r->offset = be64toh (r->offset);
  r->count = be32toh (r->count);
  return r->type != CMD_DISC;
}

static bool
put_simple (struct connection *c, const struct request *r, uint32_t error)
{
  struct message m = { .n = 0 };

  add (&m, 4, 0x67446698);
  add (&m, 4, error);
  add (&m, 8, be64toh (r->cookie));
  return put_message (c, &m);
}

/* The head of a chunk, whose PAYLOAD goes on for MORE bytes. */
static bool
put_chunk (struct connection *c, const struct request *r, bool is_last,
           unsigned type, const struct message *payload, uint32_t more)
{
  struct message m = { .n = 0 };

  add (&m, 4, 0x668e33ef);
  add (&m, 2, is_last);
  add (&m, 2, type);
  add (&m, 8, be64toh (r->cookie));
  add (&m, 4, payload->n + more);
  return put_message (c, &m) && put_message (c, payload);
}

static bool
put_error (struct connection *c, const struct request *r, uint32_t error)
{
  struct message payload = { .n = 0 };

  if (c->how.simple)
    return put_simple (c, r, error);
  add (&payload, 4, error);
  add (&payload, 2, 0);
  return put_chunk (c, r, true, CHUNK_ERROR, &payload, 0);
}

static bool
put_data (struct connection *c, const struct request *r, bool is_last,
          uint32_t count, uint64_t offset)
{
  CLEANUP_FREE char *buf = malloc (count);
  struct message payload = { .n = 0 };

  CHECK (buf != NULL);
  fake_nbd_content (c->server->seed, c->how.extent_bytes, buf, count, offset);
  add (&payload, 8, offset);
  return (c->how.simple
              ? put_simple (c, r, 0)
              : put_chunk (c, r, is_last, CHUNK_DATA, &payload, count)) &&
         put (c, buf, count);
}

static bool
answer_read (struct connection *c, const struct request *r)
{
  const struct message none = { .n = 0 };
  uint32_t half = r->count / 2;

  c->server->nr_reads++;
  CHECK (r->count > 0);
  CHECK (r->offset + r->count <= c->how.size_bytes);
  if (c->how.minimum) {
    CHECK_EQ (r->offset % c->how.minimum, 0);
    CHECK (r->count <= c->how.maximum);
    CHECK (r->count % c->how.minimum == 0 ||
           r->offset + r->count == c->how.size_bytes);
  }
  if (c->how.read_error)
    return put_error (c, r, c->how.read_error);
  if (c->how.leaves_out)
    return (r->count == 1 || put_data (c, r, false, r->count - 1, r->offset)) &&
           put_chunk (c, r, true, CHUNK_NONE, &none, 0);
  if (c->how.repeats)
    return put_data (c, r, false, r->count - half, r->offset) &&
           put_data (c, r, true, half, r->offset);
  if (!c->how.shuffles || c->how.simple || half == 0)
    return put_data (c, r, true, r->count, r->offset);
  return put_data (c, r, false, r->count - half, r->offset + half) &&
         put_data (c, r, true, half, r->offset);
}

/* As many extents as a client may be sent, of one byte each. */
static bool
answer_with_crumbs (struct connection *c, const struct request *r)
{
  const uint32_t n = MIN (r->count, 1000000);
  CLEANUP_FREE uint32_t *numbers = malloc (n * 2 * sizeof *numbers);
  struct message payload = { .n = 0 };
  uint32_t i;

  CHECK (numbers != NULL);
  for (i = 0; i < n; i++) {
    numbers[2 * i] = htobe32 (1);
    numbers[2 * i + 1] = htobe32 (i % 2 * 3);
  }
  add (&payload, 4, CONTEXT_ID);
  return put_chunk (c, r, true, CHUNK_STATUS, &payload, n * 8) &&
         put (c, numbers, n * 8);
}

/* A few extents; the last may reach past what was asked for. */
static bool
answer_extents (struct connection *c, const struct request *r)
{
  struct message payload = { .n = 0 };
  uint64_t offset = r->offset;
  unsigned i, n = rng_range (&c->rng, 1, 7);

  c->server->nr_extents++;
  CHECK (!c->how.simple);
  CHECK (r->offset + r->count <= c->how.size_bytes);
  if (c->how.extents_error)
    return put_error (c, r, c->how.extents_error);
  if (c->how.crumbles)
    return answer_with_crumbs (c, r);
  add (&payload, 4, CONTEXT_ID);
  for (i = 0; i < n && offset < r->offset + r->count; i++) {
    const uint64_t bytes = c->how.extent_bytes - offset % c->how.extent_bytes;

    add (&payload, 4, bytes);
    add (&payload, 4,
         is_hole (c->server->seed, c->how.extent_bytes, offset) ? 3 : 0);
    offset += bytes;
  }
  return put_chunk (c, r, true, CHUNK_STATUS, &payload, 0);
}

static bool
answer_cache (struct connection *c, const struct request *r)
{
  const struct message none = { .n = 0 };

  c->server->nr_caches++;
  if (c->how.hates_cache)
    return false;
  return c->how.simple ? put_simple (c, r, 0)
                       : put_chunk (c, r, true, CHUNK_NONE, &none, 0);
}

static bool
answer (struct connection *c, const struct request *r)
{
  if (c->how.mute) {
    c->server->nr_muted++;
    return true;
  }
  switch (r->type) {
  case CMD_READ:
    return answer_read (c, r);
  case CMD_BLOCK_STATUS:
    return answer_extents (c, r);
  case CMD_CACHE:
    return answer_cache (c, r);
  }
  CHECK (!"a request that was not expected");
  return false;
}

#define MAX_SHUFFLED 16

static void
serve (struct connection *c)
{
  struct request requests[MAX_SHUFFLED];
  unsigned n = 0;

  while (get_request (c, &requests[n++])) {
    if (c->how.shuffles && n < MAX_SHUFFLED && has_input (c, 1))
      continue;
    while (n > 0) {
      const unsigned i = c->how.shuffles ? rng_below (&c->rng, n) : 0;

      if (!answer (c, &requests[i]))
        return;
      requests[i] = requests[--n];
    }
  }
}

/*--- The server. ------------------------------------------------------*/

/* Let FD be what is shut down from outside.  Returns false if that is so
 * already.
 */
static bool
begin (struct connection *c)
{
  struct fake_nbd *server = c->server;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&server->lock);
  c->how = server->how;
  server->how.max_sent = -1;
  server->connection_fd = c->fd;
  return !server->stopped;
}

static void
end (struct connection *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->server->lock);
  c->server->connection_fd = -1;
}

static void *
server_thread (void *opaque)
{
  struct fake_nbd *server = opaque;
  int fd;

  while ((fd = accept4 (server->fd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
    struct connection c = {
      .server = server,
      .rng = { server->seed + ++server->nr_connections },
      .fd = fd,
    };

    if (begin (&c) && handshake (&c))
      serve (&c);
    end (&c);
    close (fd);
  }
  return NULL;
}

void
fake_nbd_start (struct fake_nbd *server, const char *path, uint64_t seed,
                const struct fake_nbd_how *how)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };

  memset (server, 0, sizeof *server);
  server->seed = seed;
  server->how = *how;
  server->connection_fd = -1;
  pthread_mutex_init (&server->lock, NULL);
  CHECK (strlen (path) < sizeof address.sun_path);
  strcpy (address.sun_path, path);
  unlink (path);
  server->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK (server->fd >= 0);
  CHECK_EQ (bind (server->fd, (struct sockaddr *) &address, sizeof address), 0);
  CHECK_EQ (listen (server->fd, 16), 0);
  CHECK_EQ (pthread_create (&server->thread, NULL, server_thread, server), 0);
}

static void
cut (struct fake_nbd *server)
{
  if (server->connection_fd >= 0)
    shutdown (server->connection_fd, SHUT_RDWR);
}

void
fake_nbd_change (struct fake_nbd *server, const struct fake_nbd_how *how)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&server->lock);
  server->how = *how;
  cut (server);
}

void
fake_nbd_stop (struct fake_nbd *server)
{
  pthread_mutex_lock (&server->lock);
  server->stopped = true;
  cut (server);
  pthread_mutex_unlock (&server->lock);
  shutdown (server->fd, SHUT_RDWR);
  pthread_join (server->thread, NULL);
  close (server->fd);
  pthread_mutex_destroy (&server->lock);
}

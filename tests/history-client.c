/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Many clients of one disk at the same time, and whether what they were told
 * can be: see history.h.
 *
 *   history-client selftest [-s SEED]
 *   history-client base FILE BYTES
 *       make a backing file
 *   history-client run [OPTION...] URI
 *       -s SEED       what the clients do, and where; not when
 *       -c CLIENTS    each with a connection of its own
 *       -r ROUNDS     one after the other, each in sectors of its own
 *       -n REQUESTS   in a round, of all clients
 *       -w SECTORS    that a round uses
 *       -p MICROSECONDS  how long a client pauses at most between two requests
 *       -d FILE       write there what the disk holds at the end
 *       -v N          instead of one request in N a client vanishes and comes
 *                     back: in the middle of a request or of the handshake,
 *                     or with answers under way
 *       -P PID        of the server, if clients vanish: before the end of a
 *                     round is read it must have let go of all of them
 *
 * The disk begins as "base" makes it.  A round is a history of its own: its
 * sectors begin as in the backing file, which is when races can be, and are
 * read at its end.  Windows are taken in an order that SEED decides.
 *
 * Exit status: 0; 1, something failed; 3, a history cannot be explained.
 */

#include <config.h>

#include <dirent.h>
#include <endian.h>
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <libnbd.h>

#include "check.h"
#include "common.h"
#include "history.h"

#define SECTOR 512
#define MAX_CLIENTS 32
#define MAX_SECTORS 8 /* of a request */
#define EXIT_HISTORY 3
#define PATIENCE_SECONDS 300 /* with a round */

/* What becomes of one request of a round, at most, in the history. */
#define MAX_OPS (MAX_AT_A_TIME * MAX_ZEROES)

#define MAX_AT_A_TIME 2 /* requests of a client */
#define MAX_ZEROES 8    /* ranges, of an answer about blocks */

/* Requests that one client leaves behind at once; all, in a round. */
#define MAX_LEFT_BEHIND 3
#define MAX_WITHOUT_END 30

/* Of those that never were whole; not to be seen, so there may be many. */
#define VANISHED_ID HISTORY_MAX_ID

struct options {
  uint64_t seed;
  unsigned nr_clients;
  uint64_t nr_rounds;
  unsigned nr_requests;
  unsigned nr_sectors;
  unsigned pause_us;
  const char *disk_file;
  unsigned vanish_one_in; /* 0: never */
  const char *server_pid;
  const char *uri;
};

/* A client is a thread. */
struct client {
  struct run *run;
  unsigned number;
  pthread_t thread;
  struct nbd_handle *nbd;
  bool can_trim, can_zero, can_fua, can_cache, can_tell_blocks;
  struct rng rng;
  struct history_op *ops; /* of this round; room for all */
  size_t nr_ops;
};

struct run {
  const struct options *options;
  struct client clients[MAX_CLIENTS];
  pthread_barrier_t barrier; /* clients and main */

  /* Of the round: changed between the barriers. */
  uint64_t begin, count; /* bytes */
  bool over;

  _Atomic uint64_t clock;
  _Atomic unsigned nr_left; /* requests, in the round */
  _Atomic unsigned last_id;
  _Atomic unsigned nr_without_end; /* changes */

  uint64_t nr_windows;
  uint64_t *windows; /* in the order in which they are used */
  uint8_t *disk;     /* as it was read last */
  uint64_t size_bytes;
  unsigned nr_sockets; /* that the server has, with all clients */
  uint64_t nr_ops;     /* in all rounds */
  _Atomic uint64_t nr_vanished;
};

/*--- Requests. --------------------------------------------------------*/

static _Noreturn void
fail (const struct client *c)
{
  errx (EXIT_FAILURE, "client %u: %s", c->number, nbd_get_error ());
}

/* A range in the window of the round: whole sectors mostly, any bytes else.
 * Half of them are in the first quarter.
 */
static void
choose_range (struct client *c, struct history_op *op)
{
  const uint64_t window = rng_one_in (&c->rng, 2) ? c->run->count
                                                  : c->run->count / 4;
  uint64_t offset, count;

  if (rng_one_in (&c->rng, 3)) {
    count = 1 + rng_below (&c->rng, UINT64_C (1) << rng_below (&c->rng, 13));
    offset = rng_below (&c->rng, window);
  }
  else {
    count = rng_range (&c->rng, 1, MAX_SECTORS) * SECTOR;
    offset = rng_below (&c->rng, window / SECTOR) * SECTOR;
  }
  op->offset = c->run->begin + offset;
  op->count = MIN (count, c->run->count - offset);
}

static uint32_t
choose_fua (struct client *c)
{
  return c->can_fua && rng_one_in (&c->rng, 6) ? LIBNBD_CMD_FLAG_FUA : 0;
}

/* One more request of C in this round, of KIND unless all ids of writes are
 * used up, which has not ended.
 */
static struct history_op *
new_op (struct client *c, enum history_kind kind)
{
  struct history_op *op = &c->ops[c->nr_ops++];

  *op = (struct history_op){
    .kind = kind,
    .client = c->number,
    .end = HISTORY_NO_END,
  };
  if (kind == HISTORY_WRITE) {
    op->id = ++c->run->last_id;
    if (op->id >= VANISHED_ID)
      op->kind = HISTORY_READ;
  }
  choose_range (c, op);
  op->data = malloc (op->count);
  CHECK (op->data != NULL);
  if (op->kind == HISTORY_WRITE)
    history_fill (op->data, op->id, op->offset, op->count);
  return op;
}

/* Send the request to zero or to trim. */
static int64_t
send_clear (struct client *c, const struct history_op *op)
{
  uint32_t flags = choose_fua (c);

  if (c->can_trim && rng_one_in (&c->rng, 2))
    return nbd_aio_trim (c->nbd, op->count, op->offset, NBD_NULL_COMPLETION,
                         flags);
  if (rng_one_in (&c->rng, 3))
    flags |= LIBNBD_CMD_FLAG_NO_HOLE;
  return nbd_aio_zero (c->nbd, op->count, op->offset, NBD_NULL_COMPLETION,
                       flags);
}

/* Send the request OP; returns what libnbd knows it by. */
static int64_t
send_op (struct client *c, struct history_op *op)
{
  int64_t cookie = -1;

  op->begin = ++c->run->clock;
  switch (op->kind) {
  case HISTORY_READ:
    cookie = nbd_aio_pread (c->nbd, op->data, op->count, op->offset,
                            NBD_NULL_COMPLETION, 0);
    break;
  case HISTORY_WRITE:
    cookie = nbd_aio_pwrite (c->nbd, op->data, op->count, op->offset,
                             NBD_NULL_COMPLETION, choose_fua (c));
    break;
  case HISTORY_CLEAR:
    cookie = send_clear (c, op);
    break;
  }
  if (cookie == -1)
    fail (c);
  return cookie;
}

/* The same for what is no change, and so not in the history. */
static int64_t
send_other (struct client *c)
{
  struct history_op op;
  int64_t cookie;

  choose_range (c, &op);
  if (c->can_cache && rng_one_in (&c->rng, 2))
    cookie = nbd_aio_cache (c->nbd, op.count, op.offset, NBD_NULL_COMPLETION,
                            0);
  else
    cookie = nbd_aio_flush (c->nbd, NBD_NULL_COMPLETION, 0);
  if (cookie == -1)
    fail (c);
  return cookie;
}

/* What the server says about blocks: of those that are zeroes this is as if
 * they had been read.
 */
struct blocks {
  struct range {
    uint64_t offset, count;
  } zeroes[MAX_ZEROES];
  unsigned n;
};

static int
keep_zeroes (void *opaque, const char *context UNUSED, uint64_t offset,
             uint32_t *entries, size_t n, int *error UNUSED)
{
  struct blocks *blocks = opaque;
  size_t i;

  for (i = 0; i + 1 < n; i += 2) {
    if (entries[i + 1] & LIBNBD_STATE_ZERO && blocks->n < MAX_ZEROES)
      blocks->zeroes[blocks->n++] = (struct range){ offset, entries[i] };
    offset += entries[i];
  }
  return 0;
}

/* A request that was sent. */
struct sent {
  int64_t cookie;
  struct history_op *op; /* NULL: it is not in the history */
  uint64_t begin;        /* of one about blocks */
  struct blocks blocks;
  bool over;
};

static void
send_block_status (struct client *c, struct sent *sent)
{
  const nbd_extent_callback callback = { .callback = keep_zeroes,
                                         .user_data = &sent->blocks };

  sent->begin = ++c->run->clock;
  sent->cookie = nbd_aio_block_status (c->nbd, c->run->count, c->run->begin,
                                       callback, NBD_NULL_COMPLETION, 0);
  if (sent->cookie == -1)
    fail (c);
}

static void
send_one (struct client *c, struct sent *sent)
{
  const unsigned dice = rng_below (&c->rng, 100);

  *sent = (struct sent){ .over = false };
  if (dice < 40)
    sent->op = new_op (c, HISTORY_READ);
  else if (dice < 75)
    sent->op = new_op (c, HISTORY_WRITE);
  else if (dice < 87 && c->can_zero)
    sent->op = new_op (c, HISTORY_CLEAR);
  else if (dice < 95 && c->can_tell_blocks) {
    send_block_status (c, sent);
    return;
  }
  sent->cookie = sent->op ? send_op (c, sent->op) : send_other (c);
}

/* Take the range for one that was read, when SENT was under way. */
static void
add_zeroes (struct client *c, const struct sent *sent,
            const struct range *zeroes)
{
  const uint64_t window_end = c->run->begin + c->run->count;
  struct history_op *op;

  if (zeroes->offset >= window_end)
    return;
  op = &c->ops[c->nr_ops++];
  *op = (struct history_op){
    .kind = HISTORY_READ,
    .client = c->number,
    .offset = zeroes->offset,
    .count = MIN (zeroes->count, window_end - zeroes->offset),
    .begin = sent->begin,
    .end = ++c->run->clock,
  };
  op->data = calloc (op->count, 1);
  CHECK (op->data != NULL);
}

/* Take note of an answer, if it is there. */
static void
look (struct client *c, struct sent *sent)
{
  const int r = nbd_aio_command_completed (c->nbd, sent->cookie);
  unsigned i;

  if (r == -1)
    fail (c);
  sent->over = r == 1;
  if (!sent->over)
    return;
  if (sent->op)
    sent->op->end = ++c->run->clock;
  for (i = 0; i < sent->blocks.n; i++)
    add_zeroes (c, sent, &sent->blocks.zeroes[i]);
}

/* Wait for the answers to all of the N that were sent. */
static void
wait_for_answers (struct client *c, struct sent *sent, unsigned n)
{
  unsigned nr_over, i;

  for (;;) {
    for (i = nr_over = 0; i < n; i++) {
      if (!sent[i].over)
        look (c, &sent[i]);
      nr_over += sent[i].over;
    }
    if (nr_over == n)
      return;
    if (nbd_poll (c->nbd, -1) == -1)
      fail (c);
  }
}

/* Send a request, or some at a time, and wait for the answers. */
static void
ask (struct client *c)
{
  struct sent sent[MAX_AT_A_TIME];
  const unsigned n = rng_range (&c->rng, 1, MAX_AT_A_TIME);
  unsigned i;

  for (i = 0; i < n; i++)
    send_one (c, &sent[i]);
  wait_for_answers (c, sent, n);
}

/*--- Vanishing. -------------------------------------------------------*/

/* Connect, as a client of which nothing is under way. */
static void
come_back (struct client *c)
{
  c->nbd = nbd_create ();
  if (c->nbd == NULL ||
      nbd_add_meta_context (c->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1)
    fail (c);
  if (nbd_connect_uri (c->nbd, c->run->options->uri) == -1)
    fail (c);
}

/* Send a read, or a change, and do not wait for the answer. */
static void
leave_behind (struct client *c)
{
  enum history_kind kind = HISTORY_READ;

  if (!rng_one_in (&c->rng, 3) && ++c->run->nr_without_end <= MAX_WITHOUT_END)
    kind = c->can_zero && rng_one_in (&c->rng, 3) ? HISTORY_CLEAR
                                                  : HISTORY_WRITE;
  send_op (c, new_op (c, kind));
}

/* Close the connection as one is closed whose process is killed. */
static void
leave_killed (struct client *c)
{
  const pid_t pid = fork ();

  if (pid == 0) {
    prctl (PR_SET_PDEATHSIG, SIGKILL);
    for (;;)
      pause ();
  }
  nbd_close (c->nbd); /* which the other one has still */
  if (pid == -1 || kill (pid, SIGKILL) == -1 || waitpid (pid, NULL, 0) == -1)
    err (EXIT_FAILURE, "fork, kill");
}

static void
leave (struct client *c)
{
  if (rng_one_in (&c->rng, 3))
    leave_killed (c);
  else
    nbd_close (c->nbd);
}

/* Vanish with requests under way. */
static void
vanish_waiting (struct client *c)
{
  unsigned i, n = rng_range (&c->rng, 1, MAX_LEFT_BEHIND);

  for (i = 0; i < n; i++)
    leave_behind (c);
  if (rng_one_in (&c->rng, 3))
    nbd_aio_disconnect (c->nbd, 0);
  else if (rng_one_in (&c->rng, 2))
    nbd_poll (c->nbd, 1);
  leave (c);
}

/* Vanish in the middle of a write, which so is none: before the end of its
 * header or of what is to be written.
 */
static void
vanish_sending (struct client *c)
{
  struct {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t count;
    uint8_t content[4 * SECTOR];
  } __attribute__ ((packed)) request = {
    .magic = htobe32 (0x25609513),
    .type = htobe16 (1),
    .offset = htobe64 (c->run->begin),
    .count = htobe32 (sizeof request.content),
  };
  const size_t n = rng_range (&c->rng, 1, sizeof request - 1);

  history_fill (request.content, VANISHED_ID, c->run->begin,
                sizeof request.content);
  if (send (nbd_aio_get_fd (c->nbd), &request, n, MSG_NOSIGNAL) != (ssize_t) n)
    err (EXIT_FAILURE, "send");
  leave (c);
}

/* Come once more, and vanish in the middle of the handshake. */
static void
vanish_coming (struct client *c)
{
  struct nbd_handle *nbd = nbd_create ();
  unsigned i, n = rng_below (&c->rng, 12);

  CHECK (nbd != NULL);
  if (nbd_aio_connect_uri (nbd, c->run->options->uri) == -1)
    fail (c);
  for (i = 0; i < n && nbd_aio_is_connecting (nbd); i++)
    if (nbd_poll (nbd, -1) == -1)
      fail (c);
  nbd_close (nbd);
}

static void
vanish (struct client *c)
{
  const unsigned dice = rng_below (&c->rng, 4);

  c->run->nr_vanished++;
  if (dice == 0) {
    vanish_coming (c);
    return;
  }
  if (dice == 1)
    vanish_sending (c);
  else
    vanish_waiting (c);
  come_back (c);
}

/* How many sockets the server has open. */
static unsigned
count_sockets (const struct options *o)
{
  char folder[64], name[400], link[64];
  struct dirent *d;
  unsigned n = 0;
  ssize_t len;
  DIR *dir;

  snprintf (folder, sizeof folder, "/proc/%s/fd", o->server_pid);
  dir = opendir (folder);
  if (dir == NULL)
    err (EXIT_FAILURE, "%s", folder);
  while ((d = readdir (dir)) != NULL) {
    snprintf (name, sizeof name, "%s/%s", folder, d->d_name);
    len = readlink (name, link, sizeof link);
    n += len > 7 && strncmp (link, "socket:", 7) == 0;
  }
  closedir (dir);
  return n;
}

/* Wait until nothing is under way any more of those who vanished; a server
 * that keeps them for ever is stopped by the watchdog.
 */
static void
wait_for_vanished (const struct run *run)
{
  if (run->options->server_pid)
    while (count_sockets (run->options) > run->nr_sockets)
      usleep (1000);
}

/*--- Rounds. ----------------------------------------------------------*/

static void
pause_at_times (struct client *c)
{
  const unsigned us = c->run->options->pause_us;

  if (us > 0 && rng_one_in (&c->rng, 4))
    usleep (rng_below (&c->rng, us));
}

/* One of the requests of the round, if any are left. */
static bool
do_something (struct client *c)
{
  const unsigned vanish_one_in = c->run->options->vanish_one_in;
  unsigned left = c->run->nr_left;

  do
    if (left == 0)
      return false;
  while (!atomic_compare_exchange_weak (&c->run->nr_left, &left, left - 1));

  pause_at_times (c);
  if (vanish_one_in > 0 && rng_one_in (&c->rng, vanish_one_in)) {
    vanish (c);
    return true;
  }
  ask (c);
  return true;
}

static void *
client_thread (void *opaque)
{
  struct client *c = opaque;

  for (;;) {
    pthread_barrier_wait (&c->run->barrier);
    if (c->run->over)
      return NULL;
    while (do_something (c))
      ;
    pthread_barrier_wait (&c->run->barrier);
  }
}

/* What the window holds when all is over, as a part of its history. */
static void
read_window (struct client *c)
{
  struct sent sent = { .op = new_op (c, HISTORY_READ), .over = false };
  struct history_op *op = sent.op;

  op->offset = c->run->begin;
  op->count = c->run->count;
  op->data = realloc (op->data, op->count);
  CHECK (op->data != NULL);
  sent.cookie = send_op (c, op);
  wait_for_answers (c, &sent, 1);
  memcpy (c->run->disk + op->offset, op->data, op->count);
}

/* Take the requests of all clients together. */
static struct history
gather (struct run *run)
{
  struct history h = { .begin = run->begin, .end = run->begin + run->count };
  unsigned i;

  for (i = 0; i < run->options->nr_clients; i++)
    h.nr_ops += run->clients[i].nr_ops;
  h.ops = malloc (h.nr_ops * sizeof h.ops[0]);
  CHECK (h.ops != NULL);
  h.nr_ops = 0;
  for (i = 0; i < run->options->nr_clients; i++) {
    struct client *c = &run->clients[i];

    memcpy (h.ops + h.nr_ops, c->ops, c->nr_ops * sizeof h.ops[0]);
    h.nr_ops += c->nr_ops;
    c->nr_ops = 0;
  }
  return h;
}

static void
check_round (struct run *run, uint64_t round)
{
  struct history h = gather (run);
  struct history_fault fault;
  size_t i;

  if (!history_check (&h, &fault)) {
    fprintf (stderr, "seed %" PRIu64 ", round %" PRIu64 ": ",
             run->options->seed, round);
    history_print (&h, &fault, stderr);
    exit (EXIT_HISTORY);
  }
  run->nr_ops += h.nr_ops;
  for (i = 0; i < h.nr_ops; i++)
    free (h.ops[i].data);
  free (h.ops);
}

static void
run_round (struct run *run, uint64_t round)
{
  const struct options *o = run->options;

  check_watchdog (PATIENCE_SECONDS);
  run->count = o->nr_sectors * SECTOR;
  run->begin = run->windows[round] * run->count;
  run->nr_left = o->nr_requests;
  run->last_id = 0;
  run->nr_without_end = 0;
  pthread_barrier_wait (&run->barrier);
  pthread_barrier_wait (&run->barrier);
  wait_for_vanished (run);
  read_window (&run->clients[round % o->nr_clients]);
  check_round (run, round);
}

/*--- Begin and end. ---------------------------------------------------*/

static void
shuffle_windows (struct run *run)
{
  struct rng rng = { .state = run->options->seed };
  uint64_t i, j;

  run->nr_windows = run->size_bytes / SECTOR / run->options->nr_sectors;
  CHECK (run->nr_windows >= run->options->nr_rounds);
  run->windows = malloc (run->nr_windows * sizeof run->windows[0]);
  CHECK (run->windows != NULL);
  for (i = 0; i < run->nr_windows; i++) {
    j = rng_below (&rng, i + 1);
    run->windows[i] = run->windows[j];
    run->windows[j] = i;
  }
}

static void
connect_client (struct client *c)
{
  const struct options *o = c->run->options;

  c->rng.state = o->seed * MAX_CLIENTS + c->number;
  c->ops = calloc (o->nr_requests * MAX_OPS + 1, sizeof c->ops[0]);
  CHECK (c->ops != NULL);
  come_back (c);
  c->can_trim = nbd_can_trim (c->nbd) == 1;
  c->can_zero = nbd_can_zero (c->nbd) == 1;
  c->can_fua = nbd_can_fua (c->nbd) == 1;
  c->can_cache = nbd_can_cache (c->nbd) == 1;
  c->can_tell_blocks = nbd_can_meta_context (
                           c->nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
}

static void
start (struct run *run, const struct options *o)
{
  unsigned i;

  *run = (struct run){ .options = o };
  pthread_barrier_init (&run->barrier, NULL, o->nr_clients + 1);
  for (i = 0; i < o->nr_clients; i++) {
    struct client *c = &run->clients[i];

    c->run = run;
    c->number = i;
    connect_client (c);
    CHECK_EQ (pthread_create (&c->thread, NULL, client_thread, c), 0);
  }
  if (o->server_pid)
    run->nr_sockets = count_sockets (o);
  run->size_bytes = nbd_get_size (run->clients[0].nbd);
  run->disk = malloc (run->size_bytes);
  CHECK (run->disk != NULL);
  shuffle_windows (run);
}

static void
write_file (const char *name, const uint8_t *buf, size_t count)
{
  FILE *f = fopen (name, "w");

  if (f == NULL || fwrite (buf, 1, count, f) != count || fclose (f) != 0)
    err (EXIT_FAILURE, "%s", name);
}

/* What no round used is in the file as the backing file has it. */
static void
fill_unused (struct run *run)
{
  const uint64_t window = run->options->nr_sectors * SECTOR;
  uint64_t at, i;

  for (i = run->options->nr_rounds; i < run->nr_windows; i++)
    for (at = 0; at < window; at++) {
      const uint64_t offset = run->windows[i] * window + at;

      run->disk[offset] = history_byte (history_base_id (offset), offset);
    }
  for (at = run->nr_windows * window; at < run->size_bytes; at++)
    run->disk[at] = history_byte (history_base_id (at), at);
}

static void
stop (struct run *run)
{
  const struct options *o = run->options;
  unsigned i;

  run->over = true;
  pthread_barrier_wait (&run->barrier);
  for (i = 0; i < o->nr_clients; i++) {
    struct client *c = &run->clients[i];

    CHECK_EQ (pthread_join (c->thread, NULL), 0);
    nbd_shutdown (c->nbd, 0);
    nbd_close (c->nbd);
    free (c->ops);
  }
  pthread_barrier_destroy (&run->barrier);
  if (o->disk_file) {
    fill_unused (run);
    write_file (o->disk_file, run->disk, run->size_bytes);
  }
  free (run->windows);
  free (run->disk);
}

/*--- The program. -----------------------------------------------------*/

static void
usage (void)
{
  fprintf (stderr, "usage: history-client selftest [-s SEED]\n"
                   "       history-client base FILE BYTES\n"
                   "       history-client run [-s SEED] [-c CLIENTS] "
                   "[-r ROUNDS] [-n REQUESTS]\n"
                   "           [-w SECTORS] [-p MICROSECONDS] [-d FILE] [-v N] "
                   "[-P PID] URI\n");
  exit (EXIT_FAILURE);
}

static struct options
parse (int argc, char *argv[])
{
  struct options o = {
    .seed = 1,
    .nr_clients = 12,
    .nr_rounds = 10,
    .nr_requests = 200,
    .nr_sectors = 32,
  };
  int c;

  while ((c = getopt (argc, argv, "s:c:r:n:w:p:d:v:P:")) != -1)
    switch (c) {
    case 's':
      o.seed = strtoull (optarg, NULL, 0);
      break;
    case 'c':
      o.nr_clients = strtoul (optarg, NULL, 0);
      break;
    case 'r':
      o.nr_rounds = strtoull (optarg, NULL, 0);
      break;
    case 'n':
      o.nr_requests = strtoul (optarg, NULL, 0);
      break;
    case 'w':
      o.nr_sectors = strtoul (optarg, NULL, 0);
      break;
    case 'p':
      o.pause_us = strtoul (optarg, NULL, 0);
      break;
    case 'd':
      o.disk_file = optarg;
      break;
    case 'v':
      o.vanish_one_in = strtoul (optarg, NULL, 0);
      break;
    case 'P':
      o.server_pid = optarg;
      break;
    default:
      usage ();
    }
  if (o.nr_clients < 1 || o.nr_clients > MAX_CLIENTS || o.nr_sectors < 4)
    usage ();
  o.uri = argv[optind];
  return o;
}

/* Zeroes are holes. */
static void
make_base (const char *name, uint64_t size_bytes)
{
  CLEANUP_CLOSE int fd = open (name, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  uint8_t block[4096];
  uint64_t at;

  if (fd == -1 || ftruncate (fd, size_bytes) == -1)
    err (EXIT_FAILURE, "%s", name);
  for (at = 0; at < size_bytes; at += sizeof block) {
    const size_t n = MIN (sizeof block, size_bytes - at);

    if (history_base_id (at) == HISTORY_ZERO)
      continue;
    history_fill (block, 0, at, n);
    if (pwrite (fd, block, n, at) != (ssize_t) n)
      err (EXIT_FAILURE, "%s", name);
  }
}

static void
run_all (const struct options *o)
{
  struct run run;
  uint64_t i;

  start (&run, o);
  for (i = 0; i < o->nr_rounds; i++)
    run_round (&run, i);
  stop (&run);
  printf ("%" PRIu64 " requests in %" PRIu64 " histories, %u clients, "
          "%" PRIu64 " times vanished, seed %" PRIu64 ": all explained\n",
          run.nr_ops, o->nr_rounds, o->nr_clients, run.nr_vanished, o->seed);
}

int
main (int argc, char *argv[])
{
  const char *verb = argc > 1 ? argv[1] : "";
  struct options o;

  if (strcmp (verb, "base") == 0 && argc == 4) {
    make_base (argv[2], strtoull (argv[3], NULL, 0));
    return EXIT_SUCCESS;
  }
  o = parse (argc - 1, argv + 1);
  /* Behind the verb. */
  if (strcmp (verb, "selftest") == 0)
    history_selftest (o.seed);
  else if (strcmp (verb, "run") == 0 && (o.uri = argv[1 + optind]) != NULL)
    run_all (&o);
  else
    usage ();
  return EXIT_SUCCESS;
}

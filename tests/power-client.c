/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Clients of a server whose power is going to fail: several connections
 * write, zero, trim, read, flush and use FUA at random, and log what they
 * ask for and what is acknowledged, see power-log.h.
 *
 *   power-client [-s SEED] [-n REQUESTS] [-c CONNECTIONS] [-k PID] [-l]
 *                [-t] [-u] [-w BYTES] LOG URI
 *
 * With -u there is no FUA; with -w all is within the first BYTES of the disk,
 * where soon every sector was written; with -t nothing is trimmed; with -l the
 * last request, when all others are over, is a flush.  With -k the process PID
 * is killed after that many requests, while others are under way, and the
 * clients end.  Else each request must succeed.
 *
 *   power-client -f LOG FILE...
 *
 * logs what the files, by their names without folders, are found to contain,
 * after a server was killed.
 *
 * No two requests that change the same sector are under way at a time, so
 * the log has an order of these.  Every write is of bytes that no other one
 * writes, down to 16 of them.
 */

#include <config.h>

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>

#include <libnbd.h>

#include "power-log.h"
#include "unit/check.h"

#define SECTOR 512
#define MAX_CONNECTIONS 32
#define MAX_SECTORS 48 /* of a request */

static int log_fd;
static const char *uri;
static uint64_t seed, nr_wanted = 1000;
static bool no_trim, no_fua, flush_last;
static pid_t victim; /* 0: nobody is killed */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t nr_begun, nr_done; /* requests, under the lock */
static uint8_t *changing;          /* by sector, under the lock */
static uint64_t disk_bytes;        /* so much of it is used */
static uint64_t window_bytes = UINT64_MAX;

struct request {
  enum power_op op;
  bool fua;
  uint64_t offset, count;
  uint8_t buf[MAX_SECTORS * SECTOR];
};

/*--- What is asked for. -----------------------------------------------*/

static enum power_op
draw_op (struct rng *rng)
{
  const uint64_t n = rng_below (rng, 100);

  return n < 50   ? POWER_OP_WRITE
         : n < 62 ? POWER_OP_ZERO
         : n < 72 ? no_trim ? POWER_OP_ZERO : POWER_OP_TRIM
         : n < 85 ? POWER_OP_READ
                  : POWER_OP_FLUSH;
}

/* Half of them are whole sectors, and most are short. */
static void
draw_range (struct rng *rng, struct request *rq)
{
  const uint64_t most = rng_one_in (rng, 8) ? MAX_SECTORS : 8;

  rq->offset = rng_below (rng, disk_bytes / SECTOR) * SECTOR;
  rq->count = rng_range (rng, 1, most) * SECTOR;
  if (rng_one_in (rng, 2)) {
    rq->offset += rng_below (rng, SECTOR);
    rq->count -= rng_below (rng, SECTOR);
  }
  if (rq->count > disk_bytes - rq->offset)
    rq->count = disk_bytes - rq->offset;
}

static void
draw (struct rng *rng, struct request *rq)
{
  uint64_t i, word = 0;

  rq->op = draw_op (rng);
  rq->fua = false;
  rq->offset = rq->count = 0;
  if (rq->op == POWER_OP_FLUSH)
    return;
  draw_range (rng, rq);
  if (rq->op == POWER_OP_READ)
    return;
  rq->fua = !no_fua && rng_one_in (rng, 8);
  if (rq->op == POWER_OP_WRITE)
    for (i = 0; i < rq->count; i++) {
      if (i % 8 == 0)
        word = rng_next (rng);
      rq->buf[i] = word >> i % 8 * 8;
    }
}

/*--- Who changes which sectors. ---------------------------------------*/

static bool
is_change (const struct request *rq)
{
  return rq->op != POWER_OP_READ && rq->op != POWER_OP_FLUSH;
}

static void
mark_locked (const struct request *rq, uint8_t value)
{
  const uint64_t first = rq->offset / SECTOR;
  const uint64_t last = (rq->offset + rq->count - 1) / SECTOR;

  memset (changing + first, value, last - first + 1);
}

/* Take the sectors of RQ, unless some are taken; and is there to be another
 * request at all?
 */
static bool
take (const struct request *rq, bool *enough)
{
  const uint64_t first = rq->offset / SECTOR;
  uint64_t last;
  bool free = true;

  pthread_mutex_lock (&lock);
  *enough = nr_begun == nr_wanted && victim == 0;
  if (is_change (rq)) {
    last = (rq->offset + rq->count - 1) / SECTOR;
    free = memchr (changing + first, 1, last - first + 1) == NULL;
  }
  if (!*enough && free) {
    nr_begun++;
    if (is_change (rq))
      mark_locked (rq, 1);
  }
  pthread_mutex_unlock (&lock);
  return free;
}

static void
give_back (const struct request *rq)
{
  pthread_mutex_lock (&lock);
  if (is_change (rq))
    mark_locked (rq, 0);
  if (++nr_done == nr_wanted && victim)
    CHECK (kill (victim, SIGKILL) == 0);
  pthread_mutex_unlock (&lock);
}

/*--- Requests. --------------------------------------------------------*/

static int
ask (struct nbd_handle *nbd, struct request *rq)
{
  const uint32_t fua = rq->fua ? LIBNBD_CMD_FLAG_FUA : 0;

  switch (rq->op) {
  case POWER_OP_READ:
    return nbd_pread (nbd, rq->buf, rq->count, rq->offset, 0);
  case POWER_OP_WRITE:
    return nbd_pwrite (nbd, rq->buf, rq->count, rq->offset, fua);
  case POWER_OP_ZERO:
    return nbd_zero (nbd, rq->count, rq->offset,
                     rq->count % 2 ? fua | LIBNBD_CMD_FLAG_NO_HOLE : fua);
  case POWER_OP_TRIM:
    return nbd_trim (nbd, rq->count, rq->offset, fua);
  case POWER_OP_FLUSH:
    return nbd_flush (nbd, 0);
  }
  abort ();
}

/* Of what gets no answer there is no second record. */
static bool
logged (struct nbd_handle *nbd, struct request *rq)
{
  struct power_record record = {
    .id = power_log_id (),
    .kind = POWER_REQUEST,
    .mode = rq->op,
    .fua = rq->fua,
    .offset = rq->offset,
    .count = rq->count,
  };

  power_log_put (log_fd, &record, NULL, NULL, rq->buf,
                 rq->op == POWER_OP_WRITE ? rq->count : 0);
  if (ask (nbd, rq) == -1) {
    if (victim == 0)
      fprintf (stderr, "request %d: %s\n", rq->op, nbd_get_error ());
    CHECK (victim);
    return false;
  }
  power_log_end (log_fd, record.id, 0, 0);
  return true;
}

static struct nbd_handle *
connect_to_server (void)
{
  struct nbd_handle *nbd = nbd_create ();

  CHECK (nbd);
  CHECK (nbd_set_strict_mode (nbd, 0) == 0);
  if (nbd_connect_uri (nbd, uri) == -1) {
    fprintf (stderr, "%s\n", nbd_get_error ());
    CHECK (victim);
  }
  return nbd;
}

/* The thread of a connection.  OPAQUE is its number. */
static void *
client (void *opaque)
{
  struct rng rng = { seed +
                     (uintptr_t) opaque * UINT64_C (0x1234567890abcdef) };
  struct nbd_handle *nbd = connect_to_server ();
  struct request rq;
  bool enough = false;

  for (;;) {
    draw (&rng, &rq);
    if (!take (&rq, &enough))
      continue;
    if (enough || !logged (nbd, &rq))
      break;
    give_back (&rq);
  }
  nbd_shutdown (nbd, 0);
  nbd_close (nbd);
  return NULL;
}

static void
flush_alone (void)
{
  struct request rq = { .op = POWER_OP_FLUSH };
  struct nbd_handle *nbd = connect_to_server ();

  logged (nbd, &rq);
  nbd_close (nbd);
}

static void
run (unsigned nr_connections)
{
  pthread_t threads[MAX_CONNECTIONS];
  struct nbd_handle *nbd = connect_to_server ();
  unsigned i;

  disk_bytes = nbd_get_size (nbd);
  if (disk_bytes > window_bytes)
    disk_bytes = window_bytes;
  nbd_close (nbd);
  changing = calloc (disk_bytes / SECTOR, 1);
  CHECK (changing);
  CHECK (nr_connections <= MAX_CONNECTIONS);
  for (i = 0; i < nr_connections; i++)
    CHECK (pthread_create (&threads[i], NULL, client, (void *) (uintptr_t) i) ==
           0);
  for (i = 0; i < nr_connections; i++)
    pthread_join (threads[i], NULL);
  CHECK (nr_done >= nr_wanted);
  if (flush_last && victim == 0)
    flush_alone ();
  free (changing);
}

/*--- What files are found to contain. ---------------------------------*/

#define PIECE (64 * 1024)

static void
log_content (const char *file)
{
  const char *slash = strrchr (file, '/');
  const int fd = open (file, O_RDONLY);
  uint8_t buf[PIECE];
  struct stat st;
  uint64_t offset = 0;
  ssize_t r;

  CHECK (fd != -1 && fstat (fd, &st) == 0);
  while ((r = pread (fd, buf, sizeof buf, offset)) > 0) {
    struct power_record record = {
      .kind = POWER_CONTENT,
      .file = st.st_ino,
      .offset = offset,
      .count = r,
    };

    power_log_put (log_fd, &record, slash ? slash + 1 : file, NULL, buf, r);
    offset += r;
  }
  CHECK (r == 0);
  close (fd);
}

static void
log_restart (char *files[])
{
  struct power_record restart = { .kind = POWER_RESTART };

  for (; *files; files++)
    log_content (*files);
  power_log_put (log_fd, &restart, NULL, NULL, NULL, 0);
}

static void
usage (void)
{
  fprintf (stderr, "usage: power-client [-s SEED] [-n REQUESTS] "
                   "[-c CONNECTIONS] [-k PID] [-l] [-t] [-u] [-w BYTES] "
                   "LOG URI\n"
                   "       power-client -f LOG FILE...\n");
  exit (EXIT_FAILURE);
}

int
main (int argc, char *argv[])
{
  unsigned nr_connections = 8;
  bool found = false;
  int c;

  while ((c = getopt (argc, argv, "c:fk:ln:s:tuw:")) != -1) {
    if (c == 'c')
      nr_connections = atoi (optarg);
    else if (c == 'f')
      found = true;
    else if (c == 'k')
      victim = atoi (optarg);
    else if (c == 'l')
      flush_last = true;
    else if (c == 'n')
      nr_wanted = strtoull (optarg, NULL, 0);
    else if (c == 's')
      seed = strtoull (optarg, NULL, 0);
    else if (c == 't')
      no_trim = true;
    else if (c == 'u')
      no_fua = true;
    else if (c == 'w')
      window_bytes = strtoull (optarg, NULL, 0);
    else
      usage ();
  }
  if (argc - optind < 2)
    usage ();
  check_watchdog (1800);
  log_fd = power_log_open (argv[optind]);
  CHECK (log_fd != -1);
  if (found)
    log_restart (argv + optind + 1);
  else {
    uri = argv[optind + 1];
    run (nr_connections);
  }
  close (log_fd);
  return EXIT_SUCCESS;
}

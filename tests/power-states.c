/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the power failure of a server may leave, from a log of what it did
 * and what its clients asked for (power-log.h), and whether anything is lost
 * then.
 *
 *   power-states [-s SEED] [-n STATES] [-p STATES] [-e EVERY -o FOLDER]
 *                LOG METADATA IMAGE [BACKING]
 *   power-states -d SECTOR LOG METADATA IMAGE
 *
 * The latter prints the records that have to do with a sector of the disk.
 *
 * METADATA and IMAGE are copies of what the two files were when the log
 * began, with their names.  All files are raw.
 *
 * A point is between two records of the log.  From each that is drawn, -p
 * states are built: each 512-byte sector of the two files is by itself at any
 * version since the last sync that covers it.  Among them are these: nothing
 * but what is certain; everything; all of the metadata and none of the data;
 * all data and no metadata; one sector that differs from one of these.
 *
 * The disk of each state is read as addcow(5) says: a sector whose bit is set
 * from the image, any other from the backing file, and zeroes behind its end.
 * It must have what was there at the last flush, or what was asked for
 * later.  When a server was killed, and the power stayed, that holds too; and
 * where the log ends, the last one has been stopped and nothing is lost at
 * all.  Where it has not, that is printed, and the exit status is 2.
 *
 * Every EVERY-th state is also written to FOLDER/N, N from 1: the two files,
 * and the disk as "disk".
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "power-disk.h"
#include "power-file.h"
#include "power-log.h"
#include "unit/check.h"

#define STATUS_LOST 2

/* From addcow(5), and not from lib/format.h, for that is what is tested. */
#define SIZE_AT 2060
#define BITMAP_AT 2068

#define MAX_OPEN 4096

enum file_number { METADATA, IMAGE, NR_FILES };

/* Something that has begun and not ended. */
struct open_record {
  const struct power_record *record;
  uint64_t position;
  struct power_file *file; /* NULL: a request */
  uint64_t number;         /* of the change or request, or what is covered */
};

struct world {
  struct power_file files[NR_FILES];
  const char *names[NR_FILES];
  struct power_disk disk;
  content_id *backing; /* by sector of the disk */
  struct open_record open[MAX_OPEN];
  unsigned nr_open;
};

/* A state: the content of each sector of the two files. */
struct state {
  content_id *contents[NR_FILES];
};

static struct world w;
static uint64_t seed = 1, nr_states = 1000, states_of_point = 10;
static uint64_t every; /* 0: none is written */
static const char *out_folder;

static uint64_t nr_done, nr_points, nr_choices, nr_written;

/*--- The log. ---------------------------------------------------------*/

static const struct power_record **records;
static uint64_t nr_records;

/* Is there the beginning of a record at AT? */
static bool
begins_at (const char *log, uint64_t size, uint64_t at)
{
  const struct power_record *record = (const struct power_record *) (log + at);

  return at <= size && size - at >= sizeof *record &&
         record->magic == POWER_MAGIC && record->total_bytes >= sizeof *record;
}

/* And one that is whole: behind it there is another one, or nothing. */
static bool
stands_at (const char *log, uint64_t size, uint64_t at)
{
  const struct power_record *record = (const struct power_record *) (log + at);

  return begins_at (log, size, at) && record->total_bytes <= size - at &&
         (at + record->total_bytes == size ||
          begins_at (log, size, at + record->total_bytes));
}

static void
read_log (const char *path)
{
  const int fd = open (path, O_RDONLY);
  uint64_t max = 0, at;
  struct stat st;
  const char *log;

  CHECK (fd != -1 && fstat (fd, &st) == 0 && st.st_size > 0);
  log = mmap (NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  CHECK (log != MAP_FAILED);
  close (fd);
  CHECK (begins_at (log, st.st_size, 0));
  for (at = 0; at < (uint64_t) st.st_size;)
    if (!stands_at (log, st.st_size, at))
      at += 8; /* it was cut short: look for the next */
    else {
      power_grow (&records, nr_records, &max, sizeof records[0]);
      records[nr_records] = (const struct power_record *) (log + at);
      at += records[nr_records++]->total_bytes;
    }
}

/* The file that RECORD is of; NULL: none of ours. */
static struct power_file *
file_of (const struct power_record *record)
{
  unsigned i;

  for (i = 0; i < NR_FILES; i++)
    if (strcmp (power_name (record), w.names[i]) == 0)
      return &w.files[i];
  return NULL;
}

static void
remember (const struct power_record *record, uint64_t position,
          struct power_file *file, uint64_t number)
{
  CHECK (w.nr_open < MAX_OPEN);
  w.open[w.nr_open++] = (struct open_record){ record, position, file, number };
}

/* The sectors of a request, and of what it makes of them, from here on. */
static void
begin_request (const struct power_record *r, uint64_t position)
{
  const uint8_t *buf = r->mode == POWER_OP_WRITE ? power_payload (r) : NULL;
  uint64_t number = 0;

  if (r->mode == POWER_OP_FLUSH)
    number = power_disk_flush (&w.disk);
  else if (r->mode != POWER_OP_READ)
    number = power_disk_change (&w.disk, buf, r->count, r->offset);
  remember (r, position, NULL, number);
}

/* What a fallocate of the server is: zeroes, and no other length. */
static void
check_mode (const struct power_record *r)
{
  const uint32_t mode = r->mode & ~FALLOC_FL_KEEP_SIZE;

  CHECK (mode == FALLOC_FL_PUNCH_HOLE || mode == FALLOC_FL_ZERO_RANGE);
}

static void
begin_of_file (const struct power_record *r, uint64_t position)
{
  struct power_file *file = file_of (r);
  uint64_t number = 0;

  if (file == NULL)
    return;
  if (r->kind == POWER_WRITE)
    number = power_file_change (file, power_payload (r), r->count, r->offset);
  else if (r->kind == POWER_ALLOCATE) {
    check_mode (r);
    number = power_file_change (file, NULL, r->count, r->offset);
  }
  remember (r, position, file, number);
}

static void
end_of_file (const struct open_record *o, int64_t result, uint64_t position)
{
  const struct power_record *r = o->record;

  switch (r->kind) {
  case POWER_WRITE:
    CHECK_EQ (result, r->count); /* nothing fails here */
    power_file_end (o->file, o->number, position);
    break;
  case POWER_ALLOCATE:
    if (result < 0)
      power_file_undo (o->file, o->number);
    else
      power_file_end (o->file, o->number, position);
    break;
  case POWER_SYNC:
    CHECK_EQ (result, 0);
    power_file_sync (o->file, o->position);
    break;
  default:
    break;
  }
}

static void
end_of_request (const struct open_record *o)
{
  const struct power_record *r = o->record;

  if (r->mode == POWER_OP_FLUSH)
    power_disk_flushed (&w.disk, o->number);
  else if (r->mode != POWER_OP_READ)
    power_disk_acknowledge (&w.disk, o->number, r->fua);
}

static void
end_of (const struct power_record *end, uint64_t position)
{
  unsigned i;

  for (i = 0; i < w.nr_open && w.open[i].record->id != end->id; i++)
    ;
  if (i == w.nr_open)
    return; /* of a file that is none of ours */
  if (w.open[i].file)
    end_of_file (&w.open[i], end->result, position);
  else
    end_of_request (&w.open[i]);
  w.open[i] = w.open[--w.nr_open];
}

/*--- Reading the disk. ------------------------------------------------*/

static bool
is_allocated (const content_id *metadata, uint64_t sector)
{
  const uint64_t at = BITMAP_AT + sector / 8;
  const uint8_t *bytes = content_bytes (metadata[at / POWER_SECTOR]);

  return bytes[at % POWER_SECTOR] >> sector % 8 & 1;
}

static content_id
read_sector (const struct state *state, uint64_t sector)
{
  return is_allocated (state->contents[METADATA], sector)
             ? state->contents[IMAGE][sector]
             : w.backing[sector];
}

/* The state in which the power fails at no time. */
static void
newest_state (struct state *state)
{
  uint64_t i;
  unsigned f;

  for (f = 0; f < NR_FILES; f++)
    for (i = 0; i < w.files[f].nr_sectors; i++)
      state->contents[f][i] = power_file_newest (&w.files[f], i);
}

static void
state_init (struct state *state)
{
  unsigned f;

  for (f = 0; f < NR_FILES; f++) {
    state->contents[f] = calloc (w.files[f].nr_sectors, sizeof (content_id));
    CHECK (state->contents[f]);
  }
}

static void
state_clear (struct state *state)
{
  unsigned f;

  for (f = 0; f < NR_FILES; f++)
    free (state->contents[f]);
}

static void
read_backing (const char *path)
{
  struct power_file file;
  uint64_t i;

  w.backing = calloc (w.disk.nr_sectors, sizeof w.backing[0]);
  CHECK (w.backing);
  if (path == NULL)
    return;
  power_file_init (&file, path);
  for (i = 0; i < file.nr_sectors && i < w.disk.nr_sectors; i++)
    w.backing[i] = file.sectors[i].durable;
  power_file_clear (&file);
}

static void
lost (const struct state *state, uint64_t sector, uint64_t position,
      const char *kind)
{
  const bool allocated = is_allocated (state->contents[METADATA], sector);
  const struct power_sector *s = &w.disk.sectors[sector];

  printf ("state %" PRIu64 " (%s), seed %" PRIu64 ", the power fails after "
          "record %" PRIu64 " of %" PRIu64 ": lost: sector %" PRIu64
          ", bit %d, %" PRIu32 " requests since its last flush, has %s\n",
          nr_done + 1, kind, seed, position, nr_records, sector, allocated,
          s->nr_later,
          read_sector (state, sector) == w.backing[sector]
              ? "what the backing file has"
              : "something else");
}

static void
check_state (const struct state *state, uint64_t position, const char *kind)
{
  unsigned nr_lost = 0;
  uint64_t i;

  for (i = 0; i < w.disk.nr_sectors && nr_lost < 5; i++)
    if (!power_disk_may (&w.disk, i, read_sector (state, i))) {
      lost (state, i, position, kind);
      nr_lost++;
    }
  if (nr_lost)
    exit (STATUS_LOST);
}

/*--- A server that was killed. ----------------------------------------*/

static void
restart (uint64_t position)
{
  struct state state;
  content_id *contents;
  uint64_t i;

  state_init (&state);
  newest_state (&state);
  check_state (&state, position, "killed");
  contents = calloc (w.disk.nr_sectors, sizeof contents[0]);
  CHECK (contents);
  for (i = 0; i < w.disk.nr_sectors; i++)
    contents[i] = read_sector (&state, i);
  power_disk_found (&w.disk, contents);
  free (contents);
  state_clear (&state);
  w.nr_open = 0;
}

static void
apply (const struct power_record *r, uint64_t position)
{
  struct power_file *file = file_of (r);

  switch (r->kind) {
  case POWER_END:
    end_of (r, position);
    break;
  case POWER_REQUEST:
    begin_request (r, position);
    break;
  case POWER_CONTENT:
    CHECK (file);
    power_file_found (file, power_payload (r), r->count, r->offset, position);
    break;
  case POWER_RESTART:
    restart (position);
    break;
  case POWER_WRITE:
  case POWER_ALLOCATE:
  case POWER_SYNC:
  case POWER_WRITE_OUT:
    begin_of_file (r, position);
    break;
  default:
    CHECK (file == NULL); /* a server does nothing else to them */
  }
}

/* The server was stopped after all that is in the log, and the power did not
 * fail: the disk has what was written last.
 */
static void
check_stopped (void)
{
  struct state state;
  uint64_t i;

  CHECK_EQ (w.nr_open, 0);
  state_init (&state);
  newest_state (&state);
  check_state (&state, nr_records, "stopped");
  for (i = 0; i < w.disk.nr_sectors; i++)
    if (read_sector (&state, i) != power_disk_newest (&w.disk, i)) {
      lost (&state, i, nr_records, "stopped");
      exit (STATUS_LOST);
    }
  state_clear (&state);
}

/*--- Building states. -------------------------------------------------*/

static content_id
version (const struct power_sector *s, uint32_t n)
{
  return n ? s->later[n - 1].content : s->durable;
}

enum choice { OLDEST, NEWEST, ANY };

/* Choose for all sectors of FILE that have a choice.  ANY is each by itself,
 * the newest with the probability OUT_OF_8 / 8 and else any.
 */
static void
choose (struct state *state, enum file_number f, enum choice choice,
        unsigned out_of_8, struct rng *rng)
{
  const struct power_file *file = &w.files[f];
  uint64_t i;

  for (i = 0; i < file->nr_dirty; i++) {
    const uint64_t sector = file->dirty[i];
    const struct power_sector *s = &file->sectors[sector];
    uint32_t n = 0;

    if (choice == NEWEST || (choice == ANY && rng_below (rng, 8) < out_of_8))
      n = s->nr_later;
    else if (choice == ANY)
      n = rng_below (rng, s->nr_later + 1);
    state->contents[f][sector] = version (s, n);
  }
}

/* One sector of FILE, if it has any with a choice, at any version. */
static void
change_one (struct state *state, enum file_number f, struct rng *rng)
{
  const struct power_file *file = &w.files[f];
  uint64_t sector;

  if (file->nr_dirty == 0)
    return;
  sector = file->dirty[rng_below (rng, file->nr_dirty)];
  state->contents[f][sector] = version (
      &file->sectors[sector],
      rng_below (rng, file->sectors[sector].nr_later + 1));
}

/* The N-th state of a point.  Returns what it is called. */
static const char *
build (struct state *state, uint64_t n, struct rng *rng)
{
  static const char *names[] = { "only what is certain", "everything",
                                 "all metadata", "all data" };
  const enum choice metadata = n % 2 ? NEWEST : OLDEST;
  const enum choice image = n == 1 || n == 3 ? NEWEST : OLDEST;

  if (n < 4) {
    choose (state, METADATA, n == 1 || n == 2 ? NEWEST : OLDEST, 0, rng);
    choose (state, IMAGE, image, 0, rng);
    return names[n];
  }
  if (n % 4 == 3) {
    const enum choice all = rng_one_in (rng, 2) ? NEWEST : OLDEST;

    choose (state, METADATA, metadata, 0, rng);
    choose (state, IMAGE, all, 0, rng);
    change_one (state, METADATA, rng);
    change_one (state, IMAGE, rng);
    return "one of each";
  }
  choose (state, METADATA, ANY, rng_below (rng, 8), rng);
  choose (state, IMAGE, ANY, rng_below (rng, 8), rng);
  return "at random";
}

/*--- Writing states. --------------------------------------------------*/

static void
write_contents (const char *path, const content_id *contents,
                uint64_t size_bytes)
{
  const int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  uint64_t at;

  if (fd == -1)
    perror (path);
  CHECK (fd != -1 && ftruncate (fd, size_bytes) == 0);
  for (at = 0; at < size_bytes; at += POWER_SECTOR) {
    const content_id id = contents[at / POWER_SECTOR];
    const uint64_t n = size_bytes - at;
    const size_t count = n < POWER_SECTOR ? n : POWER_SECTOR;

    if (id != CONTENT_ZERO)
      CHECK (pwrite (fd, content_bytes (id), count, at) == (ssize_t) count);
  }
  close (fd);
}

static void
write_state (const struct state *state)
{
  char path[4096];
  content_id *disk = calloc (w.disk.nr_sectors, sizeof disk[0]);
  uint64_t i;
  unsigned f;

  CHECK (disk);
  nr_written++;
  snprintf (path, sizeof path, "%s/%" PRIu64, out_folder, nr_written);
  CHECK (mkdir (path, 0777) == 0);
  for (f = 0; f < NR_FILES; f++) {
    snprintf (path, sizeof path, "%s/%" PRIu64 "/%s", out_folder, nr_written,
              w.names[f]);
    write_contents (path, state->contents[f], w.files[f].size_bytes);
  }
  for (i = 0; i < w.disk.nr_sectors; i++)
    disk[i] = read_sector (state, i);
  snprintf (path, sizeof path, "%s/%" PRIu64 "/disk", out_folder, nr_written);
  write_contents (path, disk, w.disk.nr_sectors * POWER_SECTOR);
  free (disk);
}

/*--- Points. ----------------------------------------------------------*/

/* The states of the point behind record POSITION - 1. */
static void
states_of (struct state *state, uint64_t position, struct rng *rng)
{
  uint64_t n;

  nr_points++;
  newest_state (state);
  for (n = 0; n < states_of_point && nr_done < nr_states; n++) {
    const char *kind = build (state, n, rng);

    check_state (state, position, kind);
    nr_choices += w.files[METADATA].nr_dirty + w.files[IMAGE].nr_dirty;
    nr_done++;
    if (every && nr_done % every == 0)
      write_state (state);
  }
}

/* Does the order of what is around RECORD matter most? */
static bool
is_hot (const struct power_record *r)
{
  return r->kind == POWER_SYNC ||
         (r->kind == POWER_WRITE && file_of (r) == &w.files[METADATA]);
}

static int
compare (const void *a, const void *b)
{
  const uint64_t *p = a, *q = b;

  return (*p > *q) - (*p < *q);
}

/* Draw NR points: half of them near syncs and writes of bits. */
static uint64_t *
draw_points (uint64_t nr, struct rng *rng)
{
  uint64_t *points = calloc (nr + 1, sizeof points[0]);
  uint64_t *hot = calloc (nr_records, sizeof hot[0]);
  uint64_t nr_hot = 0, i;

  CHECK (points && hot);
  for (i = 0; i < nr_records; i++)
    if (is_hot (records[i]))
      hot[nr_hot++] = i;
  for (i = 0; i < nr; i++) {
    points[i] = nr_hot && i % 2
                    ? hot[rng_below (rng, nr_hot)] + rng_below (rng, 8)
                    : rng_below (rng, nr_records) + 1;
    if (points[i] > nr_records)
      points[i] = nr_records;
  }
  qsort (points, nr, sizeof points[0], compare);
  points[nr] = UINT64_MAX;
  free (hot);
  return points;
}

static void
run (void)
{
  struct rng rng = { seed };
  uint64_t nr = (nr_states + states_of_point - 1) / states_of_point;
  uint64_t *points = draw_points (nr, &rng);
  struct state state;
  uint64_t i, next = 0;

  state_init (&state);
  for (i = 0; i <= nr_records; i++) {
    for (; points[next] == i; next++)
      states_of (&state, i, &rng);
    if (i < nr_records)
      apply (records[i], i + 1);
  }
  check_stopped ();
  state_clear (&state);
  free (points);
  CHECK_EQ (nr_done, nr_states);
}

/*--- What happened to a sector. ---------------------------------------*/

static const char *
word_for (const struct power_record *r)
{
  static const char *kinds[] = {
    [POWER_WRITE] = "write",     [POWER_ALLOCATE] = "fallocate",
    [POWER_SYNC] = "sync",       [POWER_CONTENT] = "found",
    [POWER_RESTART] = "restart", [POWER_WRITE_OUT] = "write out",
  };
  static const char *ops[] = {
    [POWER_OP_READ] = "asked: read",   [POWER_OP_WRITE] = "asked: write",
    [POWER_OP_ZERO] = "asked: zero",   [POWER_OP_TRIM] = "asked: trim",
    [POWER_OP_FLUSH] = "asked: flush",
  };

  if (r->kind == POWER_REQUEST)
    return ops[r->mode];
  return r->kind < sizeof kinds / sizeof kinds[0] && kinds[r->kind]
             ? kinds[r->kind]
             : "?";
}

/* All syncs and flushes, all of the metadata, and the sector itself. */
static bool
concerns (const struct power_record *r, uint64_t sector)
{
  if (r->kind == POWER_END || r->kind == POWER_WRITE_OUT)
    return false;
  if (r->kind == POWER_RESTART || r->count == 0 ||
      file_of (r) == &w.files[METADATA])
    return true;
  return r->offset / POWER_SECTOR <= sector &&
         sector <= (r->offset + r->count - 1) / POWER_SECTOR;
}

static void
tell (uint64_t sector)
{
  uint64_t i, j;

  for (i = 0; i < nr_records; i++) {
    const struct power_record *r = records[i];

    if (!concerns (r, sector))
      continue;
    for (j = i; j < nr_records; j++)
      if (records[j]->kind == POWER_END && records[j]->id == r->id)
        break;
    printf ("%" PRIu64 "-%" PRIu64 " %s%s %s %" PRIu64 " %" PRIu64 "\n", i + 1,
            j + 1, word_for (r), r->fua ? ", FUA" : "", power_name (r),
            r->offset, r->count);
  }
}

/*--- What there was when the log began. -------------------------------*/

static uint64_t
disk_bytes (void)
{
  const content_id id =
      w.files[METADATA].sectors[SIZE_AT / POWER_SECTOR].durable;
  const uint8_t *at = content_bytes (id) + SIZE_AT % POWER_SECTOR;
  uint64_t size = 0;
  unsigned i;

  for (i = 0; i < 8; i++)
    size = size << 8 | at[i];
  return size;
}

static const char *
base_name (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash ? slash + 1 : path;
}

static void
begin (char *files[], int nr)
{
  struct state state;
  uint64_t i;
  unsigned f;

  read_log (files[0]);
  for (f = 0; f < NR_FILES; f++) {
    power_file_init (&w.files[f], files[1 + f]);
    w.names[f] = base_name (files[1 + f]);
  }
  power_disk_init (&w.disk, disk_bytes () / POWER_SECTOR);
  CHECK (w.files[METADATA].size_bytes >= BITMAP_AT + w.disk.nr_sectors / 8);
  CHECK (w.files[IMAGE].nr_sectors >= w.disk.nr_sectors);
  read_backing (nr > 3 ? files[3] : NULL);
  state_init (&state);
  newest_state (&state);
  for (i = 0; i < w.disk.nr_sectors; i++)
    power_disk_set (&w.disk, i, read_sector (&state, i));
  state_clear (&state);
}

static void
usage (void)
{
  fprintf (stderr, "usage: power-states [-s SEED] [-n STATES] [-p STATES] "
                   "[-e EVERY -o FOLDER] LOG METADATA IMAGE [BACKING]\n"
                   "       power-states -d SECTOR LOG METADATA IMAGE\n");
  exit (EXIT_FAILURE);
}

int
main (int argc, char *argv[])
{
  int64_t told = -1;
  unsigned f;
  int c;

  while ((c = getopt (argc, argv, "d:e:n:o:p:s:")) != -1) {
    if (c == 'd')
      told = strtoll (optarg, NULL, 0);
    else if (c == 'e')
      every = strtoull (optarg, NULL, 0);
    else if (c == 'n')
      nr_states = strtoull (optarg, NULL, 0);
    else if (c == 'o')
      out_folder = optarg;
    else if (c == 'p')
      states_of_point = strtoull (optarg, NULL, 0);
    else if (c == 's')
      seed = strtoull (optarg, NULL, 0);
    else
      usage ();
  }
  if (argc - optind < 3 || argc - optind > 4 || states_of_point == 0 ||
      !every != !out_folder)
    usage ();
  begin (argv + optind, argc - optind);
  if (told >= 0) {
    tell (told);
    return EXIT_SUCCESS;
  }
  run ();
  printf ("%" PRIu64 " states at %" PRIu64 " points of %" PRIu64
          " records, seed %" PRIu64 ", %" PRIu64 " sectors to choose from in "
          "each: nothing lost\n",
          nr_done, nr_points, nr_records, seed,
          nr_done ? nr_choices / nr_done : 0);
  power_disk_clear (&w.disk);
  for (f = 0; f < NR_FILES; f++)
    power_file_clear (&w.files[f]);
  free (w.backing);
  free (records);
  return EXIT_SUCCESS;
}

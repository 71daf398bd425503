/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Hints that are written into a file, and the power that goes meanwhile: on
 * each disk that it may leave the hints say what they said, or what they will
 * say, or less of it, and the format is what it was.
 */

#include <config.h>

#include <errno.h>

#include "check.h"
#include "common.h"
#include "format.h"
#include "hints-write.h"

#define SECTOR FORMAT_SECTOR_BYTES
#define NR_SECTORS DIV_ROUND_UP (FORMAT_HEADER_BYTES, SECTOR)
#define MAX_VERSIONS 8

/* The file: what each sector was since the last sync. */
static struct {
  uint8_t versions[NR_SECTORS][MAX_VERSIONS][SECTOR];
  unsigned nr_versions[NR_SECTORS];
  unsigned nr_calls, fails_at; /* from 1; 0: none fails */
  uint64_t nr_states;
} disk;

/* What may be read at any moment. */
static struct hints before, after;
static bool has_values; /* that are not valid */

static bool
is_part (const struct hints *part, const struct hints *whole)
{
  return (!part->has_size ||
          (whole->has_size && part->size_bytes == whole->size_bytes)) &&
         (!part->has_mtime ||
          (whole->has_mtime && part->mtime_ns == whole->mtime_ns));
}

static void
check_state (const uint8_t *buf)
{
  struct header header;
  struct hints hints;

  CHECK_EQ (format_decode (buf, &header), 0);
  format_get_hints (&header, &hints);
  CHECK_STR (hints.format, before.format);
  CHECK (is_part (&hints, &before) || is_part (&hints, &after));
  CHECK (has_values || !(format_check_hints (&header) & FORMAT_HINT_VALUE));
  disk.nr_states++;
}

/* Each sector is any of its versions, whatever the others are. */
static void
check_states (void)
{
  unsigned chosen[NR_SECTORS] = { 0 };
  uint8_t buf[NR_SECTORS * SECTOR];
  unsigned s;

  do {
    for (s = 0; s < NR_SECTORS; s++)
      memcpy (buf + s * SECTOR, disk.versions[s][chosen[s]], SECTOR);
    check_state (buf);
    for (s = 0; s < NR_SECTORS; s++) {
      if (++chosen[s] < disk.nr_versions[s])
        break;
      chosen[s] = 0;
    }
  } while (s < NR_SECTORS);
}

static bool
fails (void)
{
  return ++disk.nr_calls == disk.fails_at;
}

int __wrap_fd_write (int fd, const void *buf, size_t count, uint64_t offset);
int __wrap_fd_sync (int fd);

int
__wrap_fd_write (int fd UNUSED, const void *buf, size_t count, uint64_t offset)
{
  const uint8_t *p = buf;
  uint64_t s, begin, end;

  CHECK (count > 0 && offset + count <= FORMAT_HEADER_BYTES);
  for (s = offset / SECTOR; s * SECTOR < offset + count; s++) {
    const unsigned n = disk.nr_versions[s]++;

    CHECK (n < MAX_VERSIONS);
    memcpy (disk.versions[s][n], disk.versions[s][n - 1], SECTOR);
    begin = MAX (offset, s * SECTOR);
    end = MIN (offset + count, (s + 1) * SECTOR);
    memcpy (disk.versions[s][n] + begin - s * SECTOR, p + begin - offset,
            end - begin);
  }
  check_states ();
  return fails () ? ENOSPC : 0;
}

int
__wrap_fd_sync (int fd UNUSED)
{
  unsigned s;

  if (fails ())
    return EIO;
  for (s = 0; s < NR_SECTORS; s++) {
    memcpy (disk.versions[s][0], disk.versions[s][disk.nr_versions[s] - 1],
            SECTOR);
    disk.nr_versions[s] = 1;
  }
  return 0;
}

static void
set_disk (const struct header *header)
{
  uint8_t buf[NR_SECTORS * SECTOR] = { 0 };
  unsigned s;

  format_encode (header, buf);
  for (s = 0; s < NR_SECTORS; s++) {
    memcpy (disk.versions[s][0], buf + s * SECTOR, SECTOR);
    disk.nr_versions[s] = 1;
  }
  disk.nr_calls = disk.fails_at = 0;
}

/* What is durable. */
static void
get_disk (struct header *header)
{
  uint8_t buf[NR_SECTORS * SECTOR];
  unsigned s;

  for (s = 0; s < NR_SECTORS; s++) {
    CHECK_EQ (disk.nr_versions[s], 1);
    memcpy (buf + s * SECTOR, disk.versions[s][0], SECTOR);
  }
  CHECK_EQ (format_decode (buf, header), 0);
}

/*--- Headers. ---------------------------------------------------------*/

/* A name that ends so that hints behind it may lie across a border. */
static size_t
name_length (struct rng *rng)
{
  static const size_t borders[] = {
    SECTOR - FORMAT_BACKING_OFFSET,
    2 * SECTOR - FORMAT_BACKING_OFFSET,
  };

  if (rng_one_in (rng, 8))
    return rng_range (rng, 1, FORMAT_NAME_BYTES - 1);
  return borders[rng_below (rng, 2)] - rng_range (rng, 1, 80);
}

static uint64_t
any_number (struct rng *rng)
{
  return rng_next (rng) >> rng_range (rng, 1, 63);
}

/* One string into BUF. */
static void
any_string (struct rng *rng, char buf[64])
{
  static const char *const others[] = {
    "x=y",
    "x",
    "=",
    "size=no",
    "mtime=--1",
    "format=",
    "-ize=",
    "-ize=77",
    "-time=-88",
    "key=a longer value, which nobody knows",
    "format=qcow2",
  };

  switch (rng_below (rng, 5)) {
  case 0:
    snprintf (buf, 64, "size=%" PRIu64, any_number (rng));
    break;
  case 1:
    snprintf (buf, 64, "mtime=%s%" PRIu64, rng_one_in (rng, 3) ? "-" : "",
              any_number (rng));
    break;
  case 2:
    strcpy (buf, "format=raw");
    break;
  default:
    strcpy (buf, others[rng_below (rng, ARRAY_SIZE (others))]);
  }
}

static void
any_header (struct rng *rng, struct header *header)
{
  size_t at = name_length (rng);
  unsigned n = rng_range (rng, 1, rng_one_in (rng, 4) ? 40 : 5);

  memset (header, 0, sizeof *header);
  memset (header->backing_file, 'n', at);
  for (at++; n > 0; n--) {
    char buf[64];

    any_string (rng, buf);
    if (at + strlen (buf) + 1 > FORMAT_NAME_BYTES)
      return;
    at = stpcpy (header->backing_file + at, buf) + 1 - header->backing_file;
  }
  if (rng_one_in (rng, 4))
    while (at < FORMAT_NAME_BYTES)
      header->backing_file[at++] = "\0x=1"[rng_below (rng, 4)];
}

/* As addcow-img writes them. */
static void
own_header (struct rng *rng, struct header *header)
{
  const struct hints hints = {
    .format = "raw",
    .has_size = !rng_one_in (rng, 4),
    .size_bytes = any_number (rng),
    .has_mtime = !rng_one_in (rng, 4),
    .mtime_ns = any_number (rng),
  };

  memset (header, 0, sizeof *header);
  memset (header->backing_file, 'n', name_length (rng));
  format_set_hints (header, &hints); /* or it has none */
}

/*--- Tests. -----------------------------------------------------------*/

static void
expect_same (const struct header *from)
{
  format_get_hints (from, &before);
  after = before;
  has_values = format_check_hints (from) & FORMAT_HINT_VALUE;
}

/* What may be said of size and mtime then: as in *NOW, or, where that does not
 * know it, as in *FROM.
 */
static void
expect (const struct header *from, const struct hints *now)
{
  expect_same (from);
  if (now->has_size) {
    after.has_size = true;
    after.size_bytes = now->size_bytes;
  }
  if (now->has_mtime) {
    after.has_mtime = true;
    after.mtime_ns = now->mtime_ns;
  }
}

static void
any_now (struct rng *rng, struct hints *now)
{
  *now = (struct hints){
    .has_size = !rng_one_in (rng, 8),
    .size_bytes = any_number (rng),
    .has_mtime = !rng_one_in (rng, 8),
    .mtime_ns = any_number (rng),
  };
}

/* Each call fails in turn; what is there then, and when it is done again. */
static void
try_failures (const struct header *from, const struct hints *now,
              unsigned nr_calls)
{
  struct header header;
  unsigned n;

  for (n = 1; n <= nr_calls; n++) {
    set_disk (from);
    disk.fails_at = n;
    CHECK (hints_update (0, from, now) != 0);
    CHECK_EQ (disk.nr_calls, n);
    check_states ();
    __wrap_fd_sync (0);
    get_disk (&header);
    expect (&header, now);
    CHECK_EQ (hints_update (0, &header, now), 0);
    get_disk (&header);
    expect (from, now);
  }
}

/* Returns whether all is as *NOW afterwards. */
static bool
try_update (const struct header *from, const struct hints *now)
{
  struct header header;
  struct hints hints;
  unsigned nr_calls;

  expect (from, now);
  set_disk (from);
  CHECK_EQ (hints_update (0, from, now), 0);
  nr_calls = disk.nr_calls;
  get_disk (&header);
  CHECK_STR (header.backing_file, from->backing_file);
  format_get_hints (&header, &hints);
  CHECK (is_part (&hints, &after));
  try_failures (from, now, nr_calls);
  return hints.has_size == after.has_size && hints.has_mtime == after.has_mtime;
}

static void
try_own (struct rng *rng)
{
  struct header from, to, header;
  struct hints now;

  own_header (rng, &from);
  any_now (rng, &now);
  to = from;
  format_update_hints (&to, &now);
  try_update (&from, &now);
  set_disk (&from);
  CHECK_EQ (hints_update (0, &from, &now), 0);
  get_disk (&header);
  /* With room for it nothing else will do. */
  CHECK (memcmp (&header, &to, sizeof to) == 0);
}

/* What is mended says the same at each moment, or cannot be. */
static bool
try_mending (struct rng *rng)
{
  struct header from, to, header;
  bool written;

  any_header (rng, &from);
  to = from;
  format_mend_hints (&to);
  expect_same (&from);
  set_disk (&from);
  CHECK_EQ (hints_write (0, &from, &to, &written), 0);
  get_disk (&header);
  CHECK (memcmp (&header, written ? &to : &from, sizeof to) == 0);
  return written;
}

/* What the sectors have in between is as hints-write.h says. */
static void
test_cases (void)
{
  static const struct hints now = { .has_size = true, .size_bytes = 1000 };
  struct header from = { .backing_file = "" }, header;
  char *const border = from.backing_file + SECTOR - FORMAT_BACKING_OFFSET;
  struct hints hints;

  /* The format moves across the border: what is before it is hidden. */
  memset (from.backing_file, 'n', SECTOR - FORMAT_BACKING_OFFSET - 14);
  memcpy (border - 13, "size=99\0format=raw", 19);
  CHECK (!try_update (&from, &now));
  get_disk (&header);
  CHECK (memcmp (header.backing_file + (border - 13 - from.backing_file),
                 "-ize=99\0format=raw", 19) == 0);

  /* There it is when it fits again. */
  try_update (&header, &(struct hints){ .has_size = true, .size_bytes = 5 });
  get_disk (&header);
  format_get_hints (&header, &hints);
  CHECK (hints.has_size && hints.size_bytes == 5);
  CHECK_STR (hints.format, "raw");
}

/* In one sector: one write, one sync; if nothing changes none. */
static void
test_one_sector (void)
{
  static const struct hints now = { .has_size = true, .size_bytes = 1000 };
  struct header from = { .backing_file = "b\0size=99\0format=raw" };

  expect (&from, &now);
  set_disk (&from);
  CHECK_EQ (hints_update (0, &from, &now), 0);
  CHECK_EQ (disk.nr_calls, 2);
  get_disk (&from);
  CHECK (memcmp (from.backing_file, "b\0size=1000\0format=raw", 23) == 0);
  disk.nr_calls = 0;
  CHECK_EQ (hints_update (0, &from, &now), 0);
  CHECK_EQ (disk.nr_calls, 0);
}

int
main (int argc, char *argv[])
{
  const struct test_options o = test_options (argc, argv);
  const uint64_t n = o.iterations ? o.iterations : 1000;
  struct rng rng = { o.seed };
  uint64_t i, nr_all = 0, nr_mended = 0;

  printf ("seed: %" PRIu64 "\n", o.seed);
  fflush (stdout);
  test_one_sector ();
  test_cases ();
  for (i = 0; i < n; i++) {
    struct header from;
    struct hints now;

    any_header (&rng, &from);
    any_now (&rng, &now);
    nr_all += try_update (&from, &now);
    try_own (&rng);
    nr_mended += try_mending (&rng);
  }
  printf ("%" PRIu64 " headers, seed %" PRIu64 ": %" PRIu64 " with all hints, "
          "%" PRIu64 " mended; %" PRIu64 " states, nothing lost\n",
          n, o.seed, nr_all, nr_mended, disk.nr_states);
  return 0;
}

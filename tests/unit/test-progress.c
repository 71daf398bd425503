/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is said of progress, at given times.
 */

#include <config.h>

#include "check.h"

/* The program has no other files of the tool. */
#include "progress.c"
#include "size.c"
#include "terminal.c"

#define MIB (UINT64_C (1) << 20)
#define GIB (UINT64_C (1) << 30)

#define MS UINT64_C (1000000)

/* The clock does not begin at 0. */
#define START (UINT64_C (1000000) * SECOND_NS)

/* As of SECONDS after it began with BEFORE_BYTES. */
static struct progress
after (uint64_t total_bytes, uint64_t before_bytes, uint64_t done_bytes,
       unsigned seconds)
{
  struct progress p;

  begin_at (&p, total_bytes, before_bytes, START);
  update_at (&p, done_bytes, START + seconds * SECOND_NS);
  return p;
}

static void
test_percent (void)
{
  static const struct {
    uint64_t done, total;
    const char *text;
  } cases[] = {
    { 0, 0, "100.00" },
    { 0, 1, "0.00" },
    { 1, 1, "100.00" },
    { 1, 3, "33.33" },
    { 2, 3, "66.66" },
    { 1, 10000, "0.01" },
    { 1, 10001, "0.00" },
    { 9999, 10000, "99.99" },
    { 99999, 100000, "99.99" },
    { 29, 100, "29.00" }, /* 28.999... as a binary fraction */
    { GIB * 1024 - 1, GIB * 1024, "99.99" },
    { (UINT64_C (1) << 62) - 1, UINT64_C (1) << 62, "99.99" },
    { INT64_MAX - 512, INT64_MAX - 511, "99.99" },
    { INT64_MAX - 511, INT64_MAX - 511, "100.00" },
    { 2, 1, "100.00" },
  };
  char buf[32];
  size_t i;

  for (i = 0; i < ARRAY_SIZE (cases); i++) {
    snprintf (buf, sizeof buf, "%.2f",
              progress_percent (cases[i].done, cases[i].total));
    CHECK_STR (buf, cases[i].text);
  }
}

static void
test_line (void)
{
  static const struct {
    uint64_t total, before, done;
    unsigned seconds;
    const char *text;
  } cases[] = {
    { 10 * GIB, 0, 0, 0,
      "    (0.00/100%) 0 B of 10 GiB, 0 B/s, time left unknown" },
    { 10 * GIB, 0, 0, 5,
      "    (0.00/100%) 0 B of 10 GiB, 0 B/s, time left unknown" },
    { 1000 * MIB, 0, 250 * MIB, 5,
      "    (25.00/100%) 250 MiB of 0.977 GiB, 50 MiB/s, 0:00:15 left" },
    /* Only what is done while it is looked counts for the rate. */
    { 1000 * MIB, 200 * MIB, 250 * MIB, 5,
      "    (25.00/100%) 250 MiB of 0.977 GiB, 10 MiB/s, 0:01:15 left" },
    /* A second that has begun is one. */
    { 101 * MIB, 0, 20 * MIB, 2,
      "    (19.80/100%) 20 MiB of 101 MiB, 10 MiB/s, 0:00:09 left" },
    { 100 * GIB, 0, 10 * MIB, 1,
      "    (0.00/100%) 10 MiB of 100 GiB, 10 MiB/s, 2:50:39 left" },
    { 4096, 0, 4096, 1,
      "    (100.00/100%) 4 KiB of 4 KiB, 4 KiB/s, 0:00:00 left" },
    { 4096, 4096, 4096, 0,
      "    (100.00/100%) 4 KiB of 4 KiB, 0 B/s, 0:00:00 left" },
    { 0, 0, 0, 0, "    (100.00/100%) 0 B of 0 B, 0 B/s, 0:00:00 left" },
    { GIB, 100 * MIB, 50 * MIB, 3,
      "    (4.88/100%) 50 MiB of 1 GiB, 0 B/s, time left unknown" },
    { (999 * 3600 + 1) * UINT64_C (4096), 0, 4096, 1,
      "    (0.00/100%) 4 KiB of 13.7 GiB, 4 KiB/s, 999:00:00 left" },
    { GIB << 32, 0, 4096, 1,
      "    (0.00/100%) 4 KiB of 4 EiB, 4 KiB/s, time left unknown" },
  };
  char buf[LINE_BYTES];
  size_t i;

  for (i = 0; i < ARRAY_SIZE (cases); i++) {
    const struct progress p = after (cases[i].total, cases[i].before,
                                     cases[i].done, cases[i].seconds);

    line_text (&p, START + cases[i].seconds * SECOND_NS, buf);
    CHECK_STR (buf, cases[i].text);
  }
}

/* A steady rate is said as it is, a new one after the window, and none
 * when nothing has been done for so long, whatever the updates are like.
 */
static void
test_rate (void)
{
  static const uint64_t steps_ms[] = { 1, 7, 100, 500, 501, 999, 1000, 5000 };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (steps_ms); i++) {
    const uint64_t step_ns = steps_ms[i] * MS;
    uint64_t t = START, done = 0, end = START + 60 * SECOND_NS;
    struct progress p;

    begin_at (&p, GIB, 0, t);
    CHECK_EQ (rate_at (&p, t), 0);
    for (; t < end; t += step_ns, done += steps_ms[i] * 1000) {
      update_at (&p, done, t);
      CHECK (p.nr_samples >= 1 && p.nr_samples <= PROGRESS_SAMPLES);
      CHECK (t - START < PROGRESS_SAMPLE_NS ||
             labs ((long) rate_at (&p, t) - 1000000) <= 1);
    }
    /* Ten times as much. */
    for (end = t + 16 * SECOND_NS; t < end;
         t += step_ns, done += steps_ms[i] * 10000)
      update_at (&p, done, t);
    CHECK (labs ((long) rate_at (&p, t - step_ns) - 10000000) <= 10);
    /* Nothing. */
    for (done = p.done_bytes, end = t + 16 * SECOND_NS; t < end; t += step_ns)
      update_at (&p, done, t);
    CHECK_EQ (rate_at (&p, t - step_ns), 0);
  }
}

/* In between it is what was done in the window. */
static void
test_window (void)
{
  struct progress p;
  unsigned s;

  begin_at (&p, GIB, 0, START);
  update_at (&p, 8 * MIB, START + 499 * MS);
  CHECK_EQ (rate_at (&p, START + 499 * MS), 0);
  CHECK_EQ (rate_at (&p, START + SECOND_NS), 8 * MIB);
  for (s = 1; s < 30; s++) {
    update_at (&p, 8 * MIB, START + s * SECOND_NS);
    CHECK_EQ (rate_at (&p, START + s * SECOND_NS), s <= 10 ? 8 * MIB / s : 0);
  }
  update_at (&p, 48 * MIB, START + s * SECOND_NS);
  CHECK_EQ (rate_at (&p, START + s * SECOND_NS), 4 * MIB);
  /* After a long time without any update. */
  update_at (&p, 148 * MIB, START + (s + 100) * SECOND_NS);
  CHECK_EQ (rate_at (&p, START + (s + 100) * SECOND_NS), MIB);
}

static void
check_bar (const struct progress *p, size_t columns, const char *want)
{
  char buf[LINE_BYTES];
  size_t length;

  bar_text (p, START + 2 * SECOND_NS, columns, buf);
  CHECK_EQ (strlen (buf), MIN (columns - 1, LINE_BYTES - 1));
  for (length = strlen (buf); length > 0 && buf[length - 1] == ' '; length--)
    ;
  buf[length] = '\0';
  CHECK_STR (buf, want);
}

static void
test_bar (void)
{
  const struct progress half = after (2 * GIB, 0, GIB, 2);
  const struct progress none = after (2 * GIB, 0, 0, 2);
  const struct progress some = after (2 * GIB, 0, 4096, 2);
  const struct progress most = after (2 * GIB, 0, 2 * GIB - 512, 2);
  const struct progress all = after (2 * GIB, 0, 2 * GIB, 2);
  const struct progress shrunk = after (GIB, 2 * GIB, 2 * GIB, 2);
  const struct progress nothing = after (0, 0, 0, 2);

  check_bar (&half, 80,
             "[==========>         ]  50.00%  1 GiB/2 GiB  512 MiB/s"
             "  0:00:02 left");
  check_bar (&none, 80,
             "[>                   ]   0.00%  0 B/2 GiB  0 B/s"
             "  time left unknown");
  check_bar (&some, 80,
             "[>                   ]   0.00%  4 KiB/2 GiB  2 KiB/s"
             "  291:16:14 left");
  check_bar (&most, 80,
             "[===================>]  99.99%  2 GiB/2 GiB  1 GiB/s"
             "  0:00:01 left");
  check_bar (&all, 80,
             "[====================] 100.00%  2 GiB/2 GiB  1 GiB/s"
             "  0:00:00 left");
  check_bar (&shrunk, 80,
             "[====================] 100.00%  2 GiB/1 GiB  0 B/s"
             "  0:00:00 left");
  check_bar (&nothing, 80,
             "[======================] 100.00%  0 B/0 B  0 B/s  0:00:00 left");

  /* As much as the line has room for. */
  check_bar (&half, 100,
             "[====================>                   ]  50.00%"
             "  1 GiB/2 GiB  512 MiB/s  0:00:02 left");
  check_bar (&half, 68,
             "[====>   ]  50.00%  1 GiB/2 GiB  512 MiB/s  0:00:02 left");
  check_bar (&half, 67,
             "[============================>"
             "                           ]  50.00%");
  check_bar (&half, 19, "[====>   ]  50.00%");
  check_bar (&half, 18, "50.00%");
  check_bar (&all, 18, "100.00%");
  check_bar (&none, 8, "0.00%");
  check_bar (&all, 8, "100.00%");
  check_bar (&all, 5, "100.");
  check_bar (&all, 1, "");
}

/* The line is never longer or shorter than it may be, and the bar ends in
 * the same column.
 */
static void
test_widths (void)
{
  size_t columns, end;

  for (columns = 1; columns < 2 * LINE_BYTES; columns++) {
    const size_t width = MIN (columns - 1, LINE_BYTES - 1);
    uint64_t done;

    end = 0;
    for (done = 0; done < 999 * MIB; done += done / 3 + 333) {
      const struct progress p = after (999 * MIB, 0, done, 2);
      char buf[LINE_BYTES];

      memset (buf, '#', sizeof buf);
      bar_text (&p, START + 2 * SECOND_NS, columns, buf);
      CHECK_EQ (strlen (buf), width);
      CHECK (done == 0 || strcspn (buf, "]") == end);
      end = strcspn (buf, "]");
    }
  }
}

/* On what is no terminal an update prints nothing. */
static void
test_printed (void)
{
  char *text = NULL;
  size_t length = 0;
  FILE *fp = open_memstream (&text, &length);
  FILE *file = tmpfile ();
  struct progress p;

  memset (&p, 0xff, sizeof p);
  progress_begin (&p, 4096, 0);
  progress_update (&p, file, 1024);
  progress_end (&p, file);
  CHECK_EQ (ftell (file), 0);
  progress_print_line (&p, fp);
  CHECK_STR (text,
             "    (25.00/100%) 1 KiB of 4 KiB, 0 B/s, time left unknown\n");
  progress_end (&p, fp);
  CHECK_EQ (length, strlen (text));
  fclose (file);
  fclose (fp);
  free (text);
}

int
main (void)
{
  test_percent ();
  test_line ();
  test_rate ();
  test_window ();
  test_bar ();
  test_widths ();
  test_printed ();
  return 0;
}

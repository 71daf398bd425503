/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Functions with a time do all but look at the clock and print: a test
 * gives them times.
 */

#include <config.h>

#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "img.h"
#include "progress.h"

#define SECOND_NS UINT64_C (1000000000)

/* The bar is redrawn once in this time. */
#define REDRAW_NS UINT64_C (100000000)

/* A terminal may be wider; its bar is not. */
#define LINE_BYTES 512

#define MAX_HOURS 999

static uint64_t
now_ns (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * SECOND_NS + ts.tv_nsec;
}

double
progress_percent (uint64_t done, uint64_t total)
{
  if (done >= total)
    return 100;
  /* Where a long double is no longer than a double, it may be rounded up. */
  return MIN ((unsigned) (10000.0L * done / total), 9999) / 100.0;
}

static void
begin_at (struct progress *p, uint64_t total_bytes, uint64_t done_bytes,
          uint64_t time_ns)
{
  *p = (struct progress){
    .total_bytes = total_bytes,
    .done_bytes = done_bytes,
    .samples = { { time_ns, done_bytes } },
    .nr_samples = 1,
  };
}

static void
update_at (struct progress *p, uint64_t done_bytes, uint64_t time_ns)
{
  size_t nr_old = 0;

  p->done_bytes = done_bytes;
  if (time_ns - p->samples[p->nr_samples - 1].time_ns < PROGRESS_SAMPLE_NS)
    return;
  /* The last one before the window begins stays: it is what the first in
   * the window is compared with.
   */
  while (nr_old + 1 < p->nr_samples &&
         time_ns - p->samples[nr_old + 1].time_ns >= PROGRESS_WINDOW_NS)
    nr_old++;
  p->nr_samples -= nr_old;
  memmove (p->samples, p->samples + nr_old,
           p->nr_samples * sizeof p->samples[0]);
  p->samples[p->nr_samples++] = (struct progress_sample){ time_ns, done_bytes };
}

/* Bytes a second.  0: nothing is done, or it is not known yet. */
static uint64_t
rate_at (const struct progress *p, uint64_t time_ns)
{
  const struct progress_sample *oldest = &p->samples[0];
  const uint64_t took_ns = time_ns - oldest->time_ns;

  if (took_ns < PROGRESS_SAMPLE_NS || p->done_bytes <= oldest->done_bytes)
    return 0;
  return (p->done_bytes - oldest->done_bytes) * ((double) SECOND_NS / took_ns);
}

#define TIME_LEFT_BYTES 32

/* "0:00:25 left".  What nobody waits for is as good as unknown. */
static const char *
time_left_text (const struct progress *p, uint64_t rate,
                char buf[TIME_LEFT_BYTES])
{
  const uint64_t left_bytes = p->total_bytes -
                              MIN (p->done_bytes, p->total_bytes);
  const uint64_t seconds = rate ? DIV_ROUND_UP (left_bytes, rate) : 0;

  if ((rate == 0 && left_bytes > 0) || seconds / 3600 > MAX_HOURS)
    return "time left unknown";
  snprintf (buf, TIME_LEFT_BYTES, "%" PRIu64 ":%02u:%02u left", seconds / 3600,
            (unsigned) (seconds / 60 % 60), (unsigned) (seconds % 60));
  return buf;
}

static void
line_text (const struct progress *p, uint64_t time_ns, char buf[LINE_BYTES])
{
  const uint64_t rate = rate_at (p, time_ns);
  char done_text[SIZE_TEXT_BYTES], total_text[SIZE_TEXT_BYTES];
  char rate_text[SIZE_TEXT_BYTES], left_text[TIME_LEFT_BYTES];

  snprintf (buf, LINE_BYTES, "    (%.2f/100%%) %s of %s, %s/s, %s",
            progress_percent (p->done_bytes, p->total_bytes),
            size_text (p->done_bytes, done_text),
            size_text (p->total_bytes, total_text), size_text (rate, rate_text),
            time_left_text (p, rate, left_text));
}

/* "[=====>    ]", of WIDTH characters. */
static void
draw_bar (const struct progress *p, size_t width, char *buf)
{
  const size_t inside = width - 2;
  size_t full = inside;

  if (p->done_bytes < p->total_bytes)
    full = (long double) p->done_bytes / p->total_bytes * inside;
  buf[0] = '[';
  memset (buf + 1, '=', full);
  memset (buf + 1 + full, ' ', inside - full);
  if (full < inside)
    buf[1 + full] = '>';
  buf[width - 1] = ']';
  buf[width] = '\0';
}

/* What is shown in a line of COLUMNS: all but the last, at which some
 * terminals begin a new line.  Where not all of it fits, it is the bar with
 * the per cent, or the per cent alone.  The bar is as wide as the longest
 * of the numbers lets it be, so that its end does not move.
 */
static void
bar_text (const struct progress *p, uint64_t time_ns, size_t columns,
          char buf[LINE_BYTES])
{
  enum {
    MIN_BAR = 10,
    PERCENT = sizeof " 100.00%" - 1,
    NUMBERS = sizeof "  0.977 KiB/  0.977 KiB/s  time left unknown" - 1,
  };
  const uint64_t rate = rate_at (p, time_ns);
  const size_t width = MIN (columns - 1, LINE_BYTES - 1);
  char done_text[SIZE_TEXT_BYTES], total_text[SIZE_TEXT_BYTES];
  char rate_text[SIZE_TEXT_BYTES], left_text[TIME_LEFT_BYTES];
  char percent[sizeof " 100.00%"], bar[LINE_BYTES] = "", numbers[128] = "";
  size_t others;

  snprintf (percent, sizeof percent, " %6.2f%%",
            progress_percent (p->done_bytes, p->total_bytes));
  size_text (p->total_bytes, total_text);
  others = PERCENT + NUMBERS + strlen (total_text);
  if (width >= others + MIN_BAR)
    snprintf (numbers, sizeof numbers, "  %s/%s  %s/s  %s",
              size_text (p->done_bytes, done_text), total_text,
              size_text (rate, rate_text), time_left_text (p, rate, left_text));
  else
    others = PERCENT;
  if (width >= others + MIN_BAR)
    draw_bar (p, width - others, bar);
  snprintf (buf, width + 1, "%s%s%s%*s", bar,
            percent + (bar[0] ? 0 : strspn (percent, " ")), numbers,
            (int) width, "");
}

void
progress_begin (struct progress *p, uint64_t total_bytes, uint64_t done_bytes)
{
  begin_at (p, total_bytes, done_bytes, now_ns ());
}

void
progress_update (struct progress *p, FILE *fp, uint64_t done_bytes)
{
  const uint64_t time_ns = now_ns ();
  char text[LINE_BYTES];

  update_at (p, done_bytes, time_ns);
  if (p->drawn && done_bytes < p->total_bytes &&
      time_ns - p->drawn_ns < REDRAW_NS)
    return;
  if (fp == NULL || !isatty (fileno (fp)))
    return;
  bar_text (p, time_ns, terminal_columns (fp), text);
  p->drawn = true;
  p->drawn_ns = time_ns;
  fprintf (fp, "\r%s", text);
  fflush (fp);
}

void
progress_print_line (struct progress *p, FILE *fp)
{
  char text[LINE_BYTES];

  if (isatty (fileno (fp)))
    progress_end (p, fp);
  line_text (p, now_ns (), text);
  fprintf (fp, "%s\n", text);
  fflush (fp);
}

void
progress_end (struct progress *p, FILE *fp)
{
  if (!p->drawn)
    return;
  p->drawn = false;
  fputc ('\n', fp);
  fflush (fp);
}

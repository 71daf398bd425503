/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How far long work has come, for people: a bar on a terminal, or lines.
 *
 * Nothing here is safe among threads: a progress belongs to one, or to
 * whoever holds its owner's lock.
 */

#ifndef ADDCOW_PROGRESS_H
#define ADDCOW_PROGRESS_H

#include <signal.h>
#include <stdint.h>
#include <stdio.h>

/* The rate is that of so many seconds. */
#define PROGRESS_WINDOW_NS UINT64_C (10000000000)
/* How far apart samples are; what was done in less tells nothing. */
#define PROGRESS_SAMPLE_NS UINT64_C (500000000)
/* All in the window, one before it, one being added. */
#define PROGRESS_SAMPLES (PROGRESS_WINDOW_NS / PROGRESS_SAMPLE_NS + 2)

struct progress_sample {
  uint64_t time_ns; /* CLOCK_MONOTONIC */
  uint64_t done_bytes;
};

struct progress {
  uint64_t total_bytes;
  uint64_t done_bytes;
  struct progress_sample samples[PROGRESS_SAMPLES]; /* the oldest first */
  size_t nr_samples;                                /* always one or more */
  uint64_t drawn_ns;                                /* the bar, last */
  volatile sig_atomic_t drawn; /* a line of the terminal has the bar: for
                                * handlers of signals, too */
};

/* Begin: TOTAL_BYTES in all, DONE_BYTES of them done already.  Nothing to
 * free.
 */
void progress_begin (struct progress *p, uint64_t total_bytes,
                     uint64_t done_bytes);

/* So much is done now: redraw the bar on FP, a terminal, in its line, and
 * flush it; on something that is no terminal, and if FP is NULL, print
 * nothing but keep the rate.  Can be called as often as one likes: the bar is
 * redrawn some times a second, and when all is done.
 */
void progress_update (struct progress *p, FILE *fp, uint64_t done_bytes);

/* Print, as of the last update, one whole line of text
 * "    (12.34/100%) 1.2 GiB of 10 GiB, 350 MiB/s, 0:00:25 left"
 * and flush it.  A bar on the terminal FP stays above it.
 */
void progress_print_line (struct progress *p, FILE *fp);

/* End the bar with a newline if one was drawn on FP, and flush that. */
void progress_end (struct progress *p, FILE *fp);

/* DONE of TOTAL in per cent, rounded down to hundredths, so that 100 is
 * said of nothing less; of nothing it is 100.
 */
double progress_percent (uint64_t done, uint64_t total);

#endif /* ADDCOW_PROGRESS_H */

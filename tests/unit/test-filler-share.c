/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What fillers share: buffers and the rate, at given times.
 */

#include <config.h>

#include <string.h>

#include "check.h"
#include "filler-share.h"

#define KIB UINT64_C (1024)
#define MIB (KIB * KIB)
#define SECOND INT64_C (1000000000)

static struct filler_share *
new_share (unsigned nr_steps, uint64_t rate_bytes, unsigned nr_fillers)
{
  struct filler_share *share;

  CHECK_EQ (filler_share_new (&share, nr_steps, MIB, rate_bytes), 0);
  while (nr_fillers-- > 0)
    filler_share_join (share);
  return share;
}

/* No more steps at a time than there are buffers, which come back. */
static void
test_buffers (void)
{
  struct filler_share *share = new_share (3, 0, 5);
  void *bufs[4];
  int64_t again = 0;
  int i, j;

  for (i = 0; i < 3; i++) {
    bufs[i] = filler_share_begin (share, MIB, SECOND, &again);
    CHECK (bufs[i]);
    memset (bufs[i], i, MIB);
    for (j = 0; j < i; j++)
      CHECK (bufs[i] != bufs[j]);
  }
  CHECK_EQ (again, 0);
  CHECK (filler_share_begin (share, MIB, SECOND, &again) == NULL);
  CHECK (again > SECOND && again < 2 * SECOND);
  filler_share_end (share, bufs[1], MIB, MIB);
  bufs[3] = filler_share_begin (share, MIB, again, &again);
  CHECK (bufs[3] == bufs[1]);
  CHECK (filler_share_begin (share, MIB, 3 * SECOND, &again) == NULL);
  CHECK (again > 3 * SECOND);
  for (i = 0; i < 4; i++)
    if (i != 1)
      filler_share_end (share, bufs[i], MIB, 0);
  filler_share_free (share);
}

/* A step is an eighth of a second, at least a page, at most what is asked. */
static void
test_step (void)
{
  static const struct {
    uint64_t rate;
    size_t max, step;
  } cases[] = {
    { 0, 256 * KIB, 256 * KIB },
    { 0, 2 * MIB, MIB },
    { 8 * MIB, 2 * MIB, MIB },
    { 64 * MIB, 256 * KIB, 256 * KIB },
    { MIB, MIB, 128 * KIB },
    { 100 * KIB, MIB, 12 * KIB },
    { 1, MIB, 4 * KIB },
    { 32 * KIB, MIB, 4 * KIB },
    { UINT64_MAX, 64 * KIB, 64 * KIB },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    struct filler_share *share = new_share (1, cases[i].rate, 1);

    CHECK_EQ (filler_share_step_bytes (share, cases[i].max), cases[i].step);
    filler_share_free (share);
  }
}

/* All together fill what the rate says, however many ask and whatever they
 * make of their steps: as much as they said, less, or nothing.
 */
static void
test_rate (unsigned nr_fillers, unsigned nr_steps, unsigned part)
{
  const uint64_t rate = 4 * MIB;
  const int64_t seconds = 100;
  struct filler_share *share = new_share (nr_steps, rate, nr_fillers);
  const size_t step = filler_share_step_bytes (share, MIB);
  int64_t *next = calloc (nr_fillers, sizeof next[0]);
  int64_t now = SECOND;
  uint64_t nr_bytes = 0;
  unsigned i;

  CHECK (next);
  while (now < (1 + seconds) * SECOND) {
    for (i = 0; i < nr_fillers; i++) {
      void *buf = NULL;

      if (next[i] <= now)
        buf = filler_share_begin (share, step, now, &next[i]);
      if (buf) {
        CHECK (nr_bytes <= rate * (now - SECOND) / SECOND + step);
        filler_share_end (share, buf, step, step / part);
        nr_bytes += step / part;
      }
      else
        CHECK (next[i] > now);
    }
    now += SECOND / 1000;
  }
  /* None is idle long because others ask: a tenth of the time here. */
  CHECK (nr_bytes <= rate * seconds + step);
  CHECK (nr_bytes >= rate * seconds * 9 / 10);
  free (next);
  filler_share_free (share);
}

/* What costs nothing, as it was zeroes, takes nothing of the rate. */
static void
test_nothing_copied (void)
{
  struct filler_share *share = new_share (1, MIB, 1);
  int64_t again = 0;
  void *buf;
  int i;

  for (i = 0; i < 1000; i++) {
    buf = filler_share_begin (share, 128 * KIB, SECOND, &again);
    CHECK (buf);
    filler_share_end (share, buf, 128 * KIB, 0);
  }
  buf = filler_share_begin (share, 128 * KIB, SECOND, &again);
  CHECK (buf);
  filler_share_end (share, buf, 128 * KIB, 128 * KIB);
  CHECK (filler_share_begin (share, 128 * KIB, SECOND, &again) == NULL);
  CHECK_EQ (again, SECOND + SECOND / 8);
  filler_share_leave (share);
  filler_share_free (share);
}

int
main (void)
{
  test_buffers ();
  test_step ();
  test_rate (1, 1, 1);
  test_rate (1, 4, 3);
  test_rate (50, 8, 1);
  test_rate (300, 8, 2);
  test_nothing_copied ();
  return 0;
}

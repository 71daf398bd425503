/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "common.h"
#include "hints.h"
#include "image-file.h"
#include "names.h"

#define NS_PER_SECOND INT64_C (1000000000)

/* Times that are too far away for a hint, before 1677 and after 2262, are
 * not known.
 */
void
hints_of_stat (struct hints *now, const struct stat *st)
{
  *now = (struct hints){ .has_size = false };
  if (!S_ISREG (st->st_mode))
    return;
  now->has_size = true;
  now->size_bytes = st->st_size;
  now->has_mtime = !__builtin_mul_overflow (st->st_mtim.tv_sec, NS_PER_SECOND,
                                            &now->mtime_ns) &&
                   !__builtin_add_overflow (now->mtime_ns, st->st_mtim.tv_nsec,
                                            &now->mtime_ns);
}

static int
block_device_size (const char *path, uint64_t *size_bytes)
{
  CLEANUP_CLOSE int fd = -1;

  return fd_open_disk (path, &fd, size_bytes);
}

int
hints_take (struct hints *now, const struct location *location,
            uint64_t size_bytes)
{
  struct stat st;
  int r = 0;

  if (location->path && stat (location->path, &st) == -1)
    return errno;
  if (location->path && S_ISREG (st.st_mode)) {
    hints_of_stat (now, &st);
    return 0;
  }
  if (location->path)
    r = block_device_size (location->path, &size_bytes);
  *now = (struct hints){ .has_size = true, .size_bytes = size_bytes };
  return r;
}

struct hints_change
hints_compare (const struct hints *then, const struct hints *now)
{
  return (struct hints_change){
    .size = then->has_size && now->has_size &&
            then->size_bytes != now->size_bytes,
    .mtime = then->has_mtime && now->has_mtime &&
             then->mtime_ns != now->mtime_ns,
  };
}

/* "2026-01-02 03:04:05.000000006"; the years of a hint have four digits. */
#define TIME_BYTES 48

static const char *
time_text (int64_t ns, char buf[TIME_BYTES])
{
  int64_t rest = ns % NS_PER_SECOND;
  time_t seconds = ns / NS_PER_SECOND;
  struct tm tm;
  size_t n;

  if (rest < 0) {
    rest += NS_PER_SECOND;
    seconds--;
  }
  gmtime_r (&seconds, &tm);
  n = strftime (buf, TIME_BYTES, "%Y-%m-%d %H:%M:%S", &tm);
  snprintf (buf + n, TIME_BYTES - n, ".%09" PRIi64, rest);
  return buf;
}

const char *
hints_change_text (const struct hints *then, const struct hints *now,
                   char buf[HINTS_TEXT_BYTES])
{
  const struct hints_change change = hints_compare (then, now);
  char time_now[TIME_BYTES], time_then[TIME_BYTES];
  int n = 0;

  buf[0] = '\0';
  if (change.size)
    n = snprintf (buf, HINTS_TEXT_BYTES,
                  "length %" PRIu64 " bytes, was %" PRIu64, now->size_bytes,
                  then->size_bytes);
  if (change.mtime)
    snprintf (buf + n, HINTS_TEXT_BYTES - n, "%smodified %s UTC, was %s UTC",
              change.size ? "; " : "", time_text (now->mtime_ns, time_now),
              time_text (then->mtime_ns, time_then));
  return buf;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Preloaded into addcow-img by tests, or into a server: the program ends at
 * once just before the n-th call that changes a file.
 *
 *   CRASH_AT      n, decimal, from 1; without it all calls are done
 *   CRASH_PART    optional, not empty: if the n-th call is a write, pwrite or
 *                 copy_file_range, it is done for half of its bytes first:
 *                 for whole sectors if that is more than one; if it is
 *                 "sectors", always up to where a sector of the file ends,
 *                 as when the program is killed
 *   CRASH_COUNT   optional: a file that gets the number of calls at the end,
 *                 the n-th included, a decimal line
 *   CRASH_PROGRAM optional: the name of the program, if not addcow-img
 *   CRASH_LAST    optional: a file that gets the call and the file that the
 *                 program ended at: "pwrite /tmp/vm.raw"
 *
 * What counts: writes of any kind, ftruncate, fallocate and copy_file_range
 * to regular files and block devices that are not stdout or stderr; fsync and
 * fdatasync of these and of folders; making a file and making it empty with
 * open or mkostemp and their like; rename, link and unlink of what is there
 * and no socket.  Calls that libc makes itself, for a FILE for instance, are
 * not seen.
 *
 * Nothing is counted in another program, such as valgrind on its way to
 * addcow-img, nor in a child.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "preload.h"

#define CRASH_STATUS 99
#define SECTOR_BYTES 512

/* Set before main, and by nobody after. */
static pid_t watched; /* 0: no process */
static unsigned long crash_at;
static bool crash_part, crash_part_sectors;
static const char *count_file, *last_file;

static _Atomic unsigned long nr_calls;

__attribute__ ((constructor)) static void
begin (void)
{
  const char *at = getenv ("CRASH_AT");
  const char *part = getenv ("CRASH_PART");
  const char *program = getenv ("CRASH_PROGRAM");

  if (strcmp (program_invocation_short_name,
              program ? program : "addcow-img") != 0)
    return;
  crash_at = at ? strtoul (at, NULL, 10) : 0;
  crash_part = part && part[0];
  crash_part_sectors = part && strcmp (part, "sectors") == 0;
  count_file = getenv ("CRASH_COUNT");
  last_file = getenv ("CRASH_LAST");
  watched = getpid ();
}

/*--- The end. ---------------------------------------------------------*/

/* A FILE is written past the calls below. */
static void
tell (const char *file, const char *line)
{
  FILE *fp;

  if (file == NULL)
    return;
  fp = fopen (file, "w");
  if (fp == NULL || fprintf (fp, "%s\n", line) < 0 || fclose (fp) == EOF)
    abort ();
}

static void
tell_count (unsigned long count)
{
  char line[32];

  snprintf (line, sizeof line, "%lu", count);
  tell (count_file, line);
}

__attribute__ ((destructor)) static void
end (void)
{
  if (watched == getpid ())
    tell_count (nr_calls);
}

/* The sanitizers have an _exit of their own that waits for threads. */
__attribute__ ((noreturn)) static void
crash (const char *call, const char *path)
{
  char line[4096 + 64];

  snprintf (line, sizeof line, "%s %s", call, path);
  tell (last_file, line);
  tell_count (crash_at);
  for (;;)
    syscall (SYS_exit_group, CRASH_STATUS);
}

__attribute__ ((noreturn)) static void
crash_on (const char *call, int fd)
{
  char path[4096];

  path_of_fd (fd, path, sizeof path);
  crash (call, path);
}

/*--- Counting. --------------------------------------------------------*/

/* Count a call.  Is it the n-th?  One that comes after that, while the
 * program ends, never returns.
 */
static bool
is_last (void)
{
  const unsigned long n = ++nr_calls;

  while (crash_at && n > crash_at)
    pause ();
  return n == crash_at;
}

static bool
is_watched (void)
{
  return watched && watched == getpid ();
}

static bool
is_disk (const struct stat *st)
{
  return S_ISREG (st->st_mode) || S_ISBLK (st->st_mode);
}

/* Does a change of FD count, and is it the n-th? */
static bool
is_last_on (int fd)
{
  struct stat st;

  return is_watched () && fd != STDOUT_FILENO && fd != STDERR_FILENO &&
         fstat (fd, &st) == 0 && is_disk (&st) && is_last ();
}

static void
before_change (const char *call, int fd)
{
  if (is_last_on (fd))
    crash_on (call, fd);
}

static void
before_sync (const char *call, int fd)
{
  struct stat st;

  if (is_watched () && fstat (fd, &st) == 0 &&
      (is_disk (&st) || S_ISDIR (st.st_mode)) && is_last ())
    crash_on (call, fd);
}

/* A file that is there gets, or loses, a name. */
static void
before_naming (const char *call, int folder, const char *path)
{
  struct stat st;

  if (is_watched () && fstatat (folder, path, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
      (is_disk (&st) || S_ISLNK (st.st_mode)) && is_last ())
    crash (call, path);
}

static void
before_open (const char *call, int folder, const char *path, int flags)
{
  struct stat st;
  bool changes;

  if (!is_watched () || !(flags & (O_CREAT | O_TRUNC)))
    return;
  if (fstatat (folder, path, &st, 0) == 0)
    changes = (flags & O_TRUNC) && !(flags & O_EXCL) && is_disk (&st);
  else
    changes = (flags & O_CREAT) && errno == ENOENT;
  if (changes && is_last ())
    crash (call, path);
}

static void
before_temporary (const char *call, const char *template)
{
  if (is_watched () && is_last ())
    crash (call, template);
}

/* The half of COUNT bytes: of more than a sector, whole ones.  With
 * crash_part_sectors, those of them at OFFSET that lie before a sector of the
 * file.
 */
static size_t
half (size_t count, off64_t offset)
{
  count /= 2;
  if (crash_part_sectors) {
    const size_t rest = (offset + count) % SECTOR_BYTES;

    return count > rest ? count - rest : 0;
  }
  return count > SECTOR_BYTES ? count / SECTOR_BYTES * SECTOR_BYTES : count;
}

/*--- The calls. -------------------------------------------------------*/

/* HALF_CALL, if that is wanted, and then the end.  Where it cannot be done
 * nothing is.
 */
#define CRASH_BY_HALF(call, fd, half_call) \
  do { \
    if (!crash_part || (half_call) >= -1) \
      crash_on (call, fd); \
  } while (0)

EXPORT ssize_t
write (int fd, const void *buf, size_t count)
{
  REAL (write);

  if (is_last_on (fd))
    CRASH_BY_HALF ("write", fd, real (fd, buf, half (count, 0)));
  return real (fd, buf, count);
}

EXPORT ssize_t
pwrite64 (int fd, const void *buf, size_t count, off64_t offset)
{
  REAL (pwrite64);

  if (is_last_on (fd))
    CRASH_BY_HALF ("pwrite", fd, real (fd, buf, half (count, offset), offset));
  return real (fd, buf, count, offset);
}

EXPORT ssize_t
copy_file_range (int in, off64_t *in_offset, int out, off64_t *out_offset,
                 size_t count, unsigned flags)
{
  REAL (copy_file_range);

  if (is_last_on (out))
    CRASH_BY_HALF ("copy_file_range", out,
                   real (in, in_offset, out, out_offset,
                         half (count, out_offset ? *out_offset : 0), flags));
  return real (in, in_offset, out, out_offset, count, flags);
}

EXPORT ssize_t
writev (int fd, const struct iovec *iov, int n)
{
  REAL (writev);

  before_change ("writev", fd);
  return real (fd, iov, n);
}

EXPORT ssize_t
pwritev64 (int fd, const struct iovec *iov, int n, off64_t offset)
{
  REAL (pwritev64);

  before_change ("pwritev", fd);
  return real (fd, iov, n, offset);
}

EXPORT ssize_t
pwritev64v2 (int fd, const struct iovec *iov, int n, off64_t offset, int flags)
{
  REAL (pwritev64v2);

  before_change ("pwritev2", fd);
  return real (fd, iov, n, offset, flags);
}

EXPORT int
ftruncate64 (int fd, off64_t size)
{
  REAL (ftruncate64);

  before_change ("ftruncate", fd);
  return real (fd, size);
}

EXPORT int
fallocate64 (int fd, int mode, off64_t offset, off64_t count)
{
  REAL (fallocate64);

  before_change ("fallocate", fd);
  return real (fd, mode, offset, count);
}

EXPORT int
fsync (int fd)
{
  REAL (fsync);

  before_sync ("fsync", fd);
  return real (fd);
}

EXPORT int
fdatasync (int fd)
{
  REAL (fdatasync);

  before_sync ("fdatasync", fd);
  return real (fd);
}

EXPORT int
rename (const char *from, const char *to)
{
  REAL (rename);

  before_naming ("rename", AT_FDCWD, from);
  return real (from, to);
}

EXPORT int
renameat (int from_folder, const char *from, int to_folder, const char *to)
{
  REAL (renameat);

  before_naming ("renameat", from_folder, from);
  return real (from_folder, from, to_folder, to);
}

EXPORT int
renameat2 (int from_folder, const char *from, int to_folder, const char *to,
           unsigned flags)
{
  REAL (renameat2);

  before_naming ("renameat2", from_folder, from);
  return real (from_folder, from, to_folder, to, flags);
}

EXPORT int
link (const char *from, const char *to)
{
  REAL (link);

  before_naming ("link", AT_FDCWD, from);
  return real (from, to);
}

EXPORT int
linkat (int from_folder, const char *from, int to_folder, const char *to,
        int flags)
{
  REAL (linkat);

  before_naming ("linkat", from_folder, from);
  return real (from_folder, from, to_folder, to, flags);
}

EXPORT int
unlink (const char *path)
{
  REAL (unlink);

  before_naming ("unlink", AT_FDCWD, path);
  return real (path);
}

EXPORT int
unlinkat (int folder, const char *path, int flags)
{
  REAL (unlinkat);

  before_naming ("unlinkat", folder, path);
  return real (folder, path, flags);
}

EXPORT int
open64 (const char *path, int flags, ...)
{
  mode_t mode = 0;
  REAL (open64);

  GET_MODE (mode, flags);
  before_open ("open", AT_FDCWD, path, flags);
  return real (path, flags, mode);
}

EXPORT int
openat64 (int folder, const char *path, int flags, ...)
{
  mode_t mode = 0;
  REAL (openat64);

  GET_MODE (mode, flags);
  before_open ("openat", folder, path, flags);
  return real (folder, path, flags, mode);
}

EXPORT int
mkstemp64 (char *template)
{
  REAL (mkstemp64);

  before_temporary ("mkstemp", template);
  return real (template);
}

EXPORT int
mkostemp64 (char *template, int flags)
{
  REAL (mkostemp64);

  before_temporary ("mkostemp", template);
  return real (template, flags);
}

ALSO_WITHOUT_64 (pwrite);
ALSO_WITHOUT_64 (pwritev);
ALSO_AS (pwritev2, pwritev64v2);
ALSO_WITHOUT_64 (ftruncate);
ALSO_WITHOUT_64 (fallocate);
ALSO_WITHOUT_64 (open);
ALSO_WITHOUT_64 (openat);
ALSO_WITHOUT_64 (mkstemp);
ALSO_WITHOUT_64 (mkostemp);

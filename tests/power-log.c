/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Preloaded into a server or the tool by tests: logs in one order, with
 * their data, all changes and syncs of files in a folder, and of the names
 * there.  The log, and the environment that is needed, are described in
 * power-log.h.
 *
 * Seen are writes of any kind, fallocate, ftruncate, copy_file_range (as the
 * write that it is), fsync and fdatasync of files and folders,
 * sync_file_range, making a file and making it empty with open or mkostemp
 * and their like, rename, link and unlink.  Calls that libc makes itself, for
 * a FILE for instance, are not, nor what is changed through mmap.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "power-log.h"
#include "preload.h"

/* How much one copy_file_range copies: its data goes into the log. */
#define COPY_BYTES (256 * 1024)

/* Set before main, and by nobody after. */
static int log_fd = -1;
static char folder[PATH_MAX];
static size_t folder_len;
static unsigned long sync_us;

__attribute__ ((constructor)) static void
begin (void)
{
  const char *log = getenv (POWER_LOG);
  const char *watched = getenv (POWER_FOLDER);
  const char *us = getenv (POWER_SYNC_US);

  sync_us = us ? strtoul (us, NULL, 10) : 0;
  if (log == NULL || watched == NULL)
    return;
  if (realpath (watched, folder) == NULL)
    abort ();
  folder_len = strlen (folder);
  log_fd = power_log_open (log);
  if (log_fd == -1)
    abort ();
}

/*--- Which file. ------------------------------------------------------*/

/* PATH, which is absolute and has no links in it, as a name in the log: NULL
 * if it is outside the folder.
 */
static const char *
relative (const char *path)
{
  if (strncmp (path, folder, folder_len) != 0)
    return NULL;
  if (path[folder_len] == '\0')
    return ".";
  return path[folder_len] == '/' ? path + folder_len + 1 : NULL;
}

/* NAME in the folder DIR_FD, as a path without links but the last. */
static void
path_at (int dir_fd, const char *name, char path[PATH_MAX])
{
  char whole[2 * PATH_MAX], dir[PATH_MAX] = ".";
  char *last;

  if (name[0] == '/')
    dir[0] = '\0';
  else if (dir_fd != AT_FDCWD)
    path_of_fd (dir_fd, dir, sizeof dir);
  snprintf (whole, sizeof whole, "%s/%s", dir, name);
  last = strrchr (whole, '/');
  *last++ = '\0';
  path[0] = '\0';
  if (realpath (whole[0] ? whole : "/", dir))
    snprintf (path, PATH_MAX, "%.*s/%.255s", PATH_MAX - 257, dir, last);
}

struct watched {
  const char *name;
  uint64_t file;
  bool folder;
  char path[PATH_MAX];
};

/* Is FD a file in the folder, or it or another one in it? */
static bool
is_watched (int fd, struct watched *w)
{
  struct stat st;

  if (log_fd == -1 || fstat (fd, &st) == -1 ||
      !(S_ISREG (st.st_mode) || S_ISDIR (st.st_mode)))
    return false;
  path_of_fd (fd, w->path, sizeof w->path);
  w->name = relative (w->path);
  w->file = st.st_ino;
  w->folder = S_ISDIR (st.st_mode);
  return w->name != NULL;
}

/*--- Records. ---------------------------------------------------------*/

/* The first record of what RECORD says, of the file W; PAYLOAD is what a
 * write writes.  Returns its ID.
 */
static uint64_t
log_begin (const struct watched *w, struct power_record record,
           const void *payload)
{
  const int saved_errno = errno;

  record.id = power_log_id ();
  record.file = w->file;
  record.folder = w->folder;
  power_log_put (log_fd, &record, w->name, NULL, payload,
                 record.kind == POWER_WRITE ? record.count : 0);
  errno = saved_errno;
  return record.id;
}

/* The second one, of what returned R. */
static void
log_end (uint64_t id, uint64_t file, int64_t r)
{
  const int saved_errno = errno;

  power_log_end (log_fd, id, file, r == -1 ? -saved_errno : r);
  errno = saved_errno;
}

/* CALL, which is what RECORD says, of FD. */
#define LOGGED(fd, record, payload, call) \
  do { \
    struct watched w; \
    uint64_t id; \
    int64_t r; \
\
    if (!is_watched (fd, &w)) \
      return call; \
    id = log_begin (&w, record, payload); \
    r = call; \
    log_end (id, w.file, r); \
    return r; \
  } while (0)

#define RECORD(...) ((struct power_record){ __VA_ARGS__ })

/*--- Bytes. -----------------------------------------------------------*/

/* Where a write without an offset goes. */
static uint64_t
position (int fd)
{
  const int flags = fcntl (fd, F_GETFL);
  const bool append = flags != -1 && flags & O_APPEND;
  const int saved_errno = errno;
  const off64_t offset = lseek64 (fd, 0, SEEK_CUR);
  struct stat st;

  errno = saved_errno;
  if (append && fstat (fd, &st) == 0)
    return st.st_size;
  return offset == -1 ? 0 : offset;
}

EXPORT ssize_t
write (int fd, const void *buf, size_t count)
{
  REAL (write);

  LOGGED (fd,
          RECORD (.kind = POWER_WRITE, .offset = position (fd), .count = count),
          buf, real (fd, buf, count));
}

EXPORT ssize_t
pwrite64 (int fd, const void *buf, size_t count, off64_t offset)
{
  REAL (pwrite64);

  LOGGED (fd, RECORD (.kind = POWER_WRITE, .offset = offset, .count = count),
          buf, real (fd, buf, count, offset));
}

/* What N pieces hold, which the caller frees, and its length. */
static void *
joined (const struct iovec *iov, int n, size_t *count)
{
  char *buf;
  int i;

  *count = 0;
  for (i = 0; i < n; i++)
    *count += iov[i].iov_len;
  buf = malloc (*count + 1);
  if (buf == NULL)
    abort ();
  *count = 0;
  for (i = 0; i < n; i++) {
    if (iov[i].iov_len)
      memcpy (buf + *count, iov[i].iov_base, iov[i].iov_len);
    *count += iov[i].iov_len;
  }
  return buf;
}

EXPORT ssize_t
writev (int fd, const struct iovec *iov, int n)
{
  struct watched w;
  size_t count;
  ssize_t r;
  void *buf;
  REAL (writev);

  if (!is_watched (fd, &w))
    return real (fd, iov, n);
  buf = joined (iov, n, &count);
  r = write (fd, buf, count);
  free (buf);
  return r;
}

EXPORT ssize_t
pwritev64 (int fd, const struct iovec *iov, int n, off64_t offset)
{
  struct watched w;
  size_t count;
  ssize_t r;
  void *buf;
  REAL (pwritev64);

  if (!is_watched (fd, &w))
    return real (fd, iov, n, offset);
  buf = joined (iov, n, &count);
  r = pwrite64 (fd, buf, count, offset);
  free (buf);
  return r;
}

/* With an offset of -1 it is at the file's position. */
EXPORT ssize_t
pwritev64v2 (int fd, const struct iovec *iov, int n, off64_t offset, int flags)
{
  struct watched w;
  REAL (pwritev64v2);

  if (!is_watched (fd, &w))
    return real (fd, iov, n, offset, flags);
  if (flags)
    abort (); /* RWF_DSYNC is a sync: nobody uses it */
  return offset == -1 ? writev (fd, iov, n) : pwritev64 (fd, iov, n, offset);
}

/* It is logged as a write of what is read beforehand. */
EXPORT ssize_t
copy_file_range (int in, off64_t *in_offset, int out, off64_t *out_offset,
                 size_t count, unsigned flags)
{
  struct watched w;
  ssize_t r;
  char *buf;
  uint64_t id;
  REAL (copy_file_range);

  if (!is_watched (out, &w))
    return real (in, in_offset, out, out_offset, count, flags);
  count = count < COPY_BYTES ? count : COPY_BYTES;
  buf = malloc (count + 1);
  if (buf == NULL)
    abort ();
  r = pread64 (in, buf, count,
               in_offset ? *in_offset : (off64_t) position (in));
  if (r == -1) {
    free (buf);
    return -1;
  }
  count = r;
  id = log_begin (
      &w,
      RECORD (.kind = POWER_WRITE, .count = count,
              .offset = out_offset ? *out_offset : (off64_t) position (out)),
      buf);
  free (buf);
  r = real (in, in_offset, out, out_offset, count, flags);
  log_end (id, w.file, r);
  return r;
}

EXPORT int
ftruncate64 (int fd, off64_t size)
{
  REAL (ftruncate64);

  LOGGED (fd, RECORD (.kind = POWER_LENGTH, .offset = size), NULL,
          real (fd, size));
}

EXPORT int
fallocate64 (int fd, int mode, off64_t offset, off64_t count)
{
  REAL (fallocate64);

  LOGGED (fd,
          RECORD (.kind = POWER_ALLOCATE, .mode = mode, .offset = offset,
                  .count = count),
          NULL, real (fd, mode, offset, count));
}

static int
slow_sync (int (*real) (int), int fd)
{
  if (sync_us)
    usleep (sync_us);
  return real (fd);
}

EXPORT int
fsync (int fd)
{
  REAL (fsync);

  LOGGED (fd, RECORD (.kind = POWER_SYNC), NULL, slow_sync (real, fd));
}

EXPORT int
fdatasync (int fd)
{
  REAL (fdatasync);

  LOGGED (fd, RECORD (.kind = POWER_SYNC), NULL, slow_sync (real, fd));
}

EXPORT int
sync_file_range (int fd, off64_t offset, off64_t count, unsigned flags)
{
  REAL (sync_file_range);

  LOGGED (fd,
          RECORD (.kind = POWER_WRITE_OUT, .mode = flags, .offset = offset,
                  .count = count),
          NULL, real (fd, offset, count, flags));
}

/*--- Names. -----------------------------------------------------------*/

/* The first record of a change of names KIND of the file NAME in DIR_FD,
 * looked at with AT_FLAGS, to NEW_NAME in NEW_DIR_FD, if that is not NULL.
 * Returns its ID, or 0 when neither is in the folder or there is no file.
 */
static uint64_t
log_names (struct power_record record, int dir_fd, const char *name,
           int at_flags, int new_dir_fd, const char *new_name)
{
  const int saved_errno = errno;
  char path[PATH_MAX], new_path[PATH_MAX] = "";
  const char *shown, *new_shown;
  struct stat st;

  if (log_fd == -1)
    return 0;
  path_at (dir_fd, name, path);
  if (new_name)
    path_at (new_dir_fd, new_name, new_path);
  shown = relative (path);
  new_shown = relative (new_path);
  if ((shown == NULL && new_shown == NULL) ||
      fstatat (dir_fd, name, &st, at_flags) == -1) {
    errno = saved_errno;
    return 0;
  }
  record.id = power_log_id ();
  record.file = st.st_ino;
  power_log_put (log_fd, &record, shown, new_shown, NULL, 0);
  errno = saved_errno;
  return record.id;
}

#define LOGGED_NAMES(id, call) \
  do { \
    const uint64_t id_ = id; \
    const int64_t r = call; \
\
    if (id_) \
      log_end (id_, 0, r); \
    return r; \
  } while (0)

EXPORT int
renameat2 (int from_dir, const char *from, int to_dir, const char *to,
           unsigned flags)
{
  REAL (renameat2);

  LOGGED_NAMES (log_names (RECORD (.kind = POWER_RENAME, .mode = flags),
                           from_dir, from, AT_SYMLINK_NOFOLLOW, to_dir, to),
                real (from_dir, from, to_dir, to, flags));
}

EXPORT int
renameat (int from_dir, const char *from, int to_dir, const char *to)
{
  return renameat2 (from_dir, from, to_dir, to, 0);
}

EXPORT int
rename (const char *from, const char *to)
{
  return renameat2 (AT_FDCWD, from, AT_FDCWD, to, 0);
}

EXPORT int
linkat (int from_dir, const char *from, int to_dir, const char *to, int flags)
{
  REAL (linkat);

  LOGGED_NAMES (log_names (RECORD (.kind = POWER_LINK), from_dir, from,
                           flags & AT_SYMLINK_FOLLOW ? 0 : AT_SYMLINK_NOFOLLOW,
                           to_dir, to),
                real (from_dir, from, to_dir, to, flags));
}

EXPORT int
link (const char *from, const char *to)
{
  return linkat (AT_FDCWD, from, AT_FDCWD, to, 0);
}

EXPORT int
unlinkat (int dir_fd, const char *name, int flags)
{
  REAL (unlinkat);

  LOGGED_NAMES (log_names (RECORD (.kind = POWER_UNLINK), dir_fd, name,
                           AT_SYMLINK_NOFOLLOW, AT_FDCWD, NULL),
                real (dir_fd, name, flags));
}

EXPORT int
unlink (const char *name)
{
  return unlinkat (AT_FDCWD, name, 0);
}

/*--- New files. -------------------------------------------------------*/

/* The first record of making the file NAME in DIR_FD with FLAGS, or of
 * making it empty; *FILE is its inode if it is there.  Returns its ID, or 0
 * when nothing is changed in the folder.
 */
static uint64_t
log_open (int dir_fd, const char *name, int flags, uint64_t *file)
{
  struct watched w;
  struct stat st;

  if (log_fd == -1 || !(flags & (O_CREAT | O_TRUNC)))
    return 0;
  path_at (dir_fd, name, w.path);
  w.name = relative (w.path);
  w.folder = false;
  if (w.name == NULL)
    return 0;
  if (fstatat (dir_fd, name, &st, 0) == -1) {
    w.file = *file = 0;
    return flags & O_CREAT ? log_begin (&w, RECORD (.kind = POWER_CREATE), NULL)
                           : 0;
  }
  if (!(flags & O_TRUNC) || !S_ISREG (st.st_mode))
    return 0;
  w.file = *file = st.st_ino;
  return log_begin (&w, RECORD (.kind = POWER_LENGTH), NULL);
}

/* Opening it gave FD, -1 if it failed. */
static int
log_opened (uint64_t id, uint64_t file, int fd)
{
  struct stat st;

  if (id == 0)
    return fd;
  if (file == 0 && fd != -1 && fstat (fd, &st) == 0)
    file = st.st_ino;
  log_end (id, file, fd == -1 ? -1 : 0);
  return fd;
}

static int
logged_open (typeof (openat) *real, int dir_fd, const char *name, int flags,
             mode_t mode)
{
  uint64_t file = 0;
  const uint64_t id = log_open (dir_fd, name, flags, &file);

  return log_opened (id, file, real (dir_fd, name, flags, mode));
}

EXPORT int
openat64 (int dir_fd, const char *name, int flags, ...)
{
  mode_t mode = 0;
  REAL (openat64);

  GET_MODE (mode, flags);
  return logged_open (real, dir_fd, name, flags, mode);
}

EXPORT int
open64 (const char *name, int flags, ...)
{
  mode_t mode = 0;

  GET_MODE (mode, flags);
  return openat64 (AT_FDCWD, name, flags, mode);
}

/* The name is known afterwards: nothing is done to it before the file is
 * there, so both records stand behind.
 */
static int
log_temporary (const char *name, int fd)
{
  struct watched w;

  if (log_fd == -1 || fd == -1)
    return fd;
  path_at (AT_FDCWD, name, w.path);
  w.name = relative (w.path);
  w.file = 0;
  w.folder = false;
  if (w.name == NULL)
    return fd;
  return log_opened (log_begin (&w, RECORD (.kind = POWER_CREATE), NULL), 0,
                     fd);
}

EXPORT int
mkostemp64 (char *template, int flags)
{
  REAL (mkostemp64);

  return log_temporary (template, real (template, flags));
}

EXPORT int
mkstemp64 (char *template)
{
  return mkostemp64 (template, 0);
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

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Preloaded into nbdkit and addcow-img by tests: counts system calls by file
 * and kind, lets chosen ones fail or do only a part, and keeps what the
 * disks would have if the power went.
 *
 *   FAULTS_FOLDER   the folder of the files, an absolute path
 *   FAULTS_CONTROL  a file of struct control, which is mapped: who made it
 *                   reads the counts in it and sets faults, at any time
 *   FAULTS_MEDIUM   a folder with a copy of each file that is tracked:
 *                   what is durable of it
 *
 * All other files are left alone, and so is every program in which one of
 * the three is missing.
 *
 * What is durable
 * ---------------
 * Of a tracked file each sector of 512 bytes is clean, that is as in the
 * copy; dirty, written since; or forgotten: no longer dirty, and not in the
 * copy either.  A sync copies what is dirty, and is no sync of the real
 * file.  A sync that fails forgets it, as Linux does: the file has it still,
 * and no later sync brings it to the disk.  Where control->reaches is set it
 * copies about half of that before.  EINTR does nothing at all.  When the
 * system is told that a range is not needed soon what was forgotten in it
 * is as in the copy.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/falloc.h>

#include "preload.h"

#define SECTOR 512
#define MAX_SECTORS 32768

/* The kinds of files, by the name without its folder. */
enum file {
  METADATA, /* vm.add-cow */
  IMAGE,    /* vm.raw */
  BACKING,  /* base*, base.img of which is tracked */
  OTHER,    /* all else in the folder, and the folder itself */
  NR_FILES,
};
#define NR_TRACKED 3
static const char *const tracked_names[] = { "vm.add-cow", "vm.raw",
                                             "base.img" };

enum call {
  PREAD,
  PWRITE,
  FALLOCATE,
  FDATASYNC,
  FSYNC,
  SYNC_RANGE,
  LSEEK,
  COPY, /* into the file */
  OPEN,
  FTRUNCATE,
  RENAME, /* to the name */
  UNLINK,
  NR_CALLS,
};

/* Calls FIRST to LAST, from 1, of CALL on FILE fail with ERR, or if that is
 * 0 do about half of what they should: no sector is written in part.
 */
struct fault {
  uint32_t file, call;
  uint64_t first, last;
  uint32_t err, unused;
  uint64_t nr_hit;
};
#define NR_FAULTS 4

/* In the order of bytes of the machine, without gaps; see faults.py. */
struct control {
  uint32_t on; /* else no fault is */
  uint32_t reaches;
  uint64_t nr_calls[NR_FILES][NR_CALLS];
  uint64_t nr_failed_syncs[NR_FILES]; /* that forgot */
  struct fault faults[NR_FAULTS];
  uint8_t state[NR_TRACKED][MAX_SECTORS];
};
enum state { CLEAN, DIRTY, FORGOTTEN };

/* Set before main, and by nobody after. */
static struct control *control; /* or NULL: nothing is done */
static char folder[PATH_MAX];
static int medium[NR_TRACKED];

/* Held over all that changes files and their state. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__ ((constructor)) static void
begin (void)
{
  const char *name = getenv ("FAULTS_CONTROL");
  const char *where = getenv ("FAULTS_FOLDER");
  const char *media = getenv ("FAULTS_MEDIUM");
  char path[2 * PATH_MAX];
  void *p;
  int fd, i;

  if (!name || !where || !media)
    return;
  snprintf (folder, sizeof folder, "%s", where);
  for (i = 0; i < NR_TRACKED; i++) {
    snprintf (path, sizeof path, "%s/%s", media, tracked_names[i]);
    medium[i] = syscall (SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
  }
  fd = syscall (SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC);
  if (fd == -1)
    abort ();
  p = mmap (NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED)
    abort ();
  close (fd);
  control = p;
}

/*--- Which file. ------------------------------------------------------*/

static bool
is_in_folder (const char *path)
{
  const size_t n = strlen (folder);

  return strncmp (path, folder, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

/* The kind of the file PATH, relative to the folder if it is; NR_FILES: it
 * is none of ours.
 */
static enum file
file_of_path (const char *path)
{
  const char *slash = strrchr (path, '/');
  const char *name = slash ? slash + 1 : path;

  if (path[0] == '/' && !is_in_folder (path))
    return NR_FILES;
  if (strcmp (name, tracked_names[METADATA]) == 0)
    return METADATA;
  if (strcmp (name, tracked_names[IMAGE]) == 0)
    return IMAGE;
  return strncmp (name, "base", 4) == 0 ? BACKING : OTHER;
}

static enum file
file_of_fd (int fd)
{
  const int saved_errno = errno;
  char path[PATH_MAX];

  if (control == NULL)
    return NR_FILES;
  path_of_fd (fd, path, sizeof path);
  errno = saved_errno;
  return path[0] == '/' ? file_of_path (path) : NR_FILES;
}

/* The tracked file that FD is, or NR_TRACKED. */
static unsigned
tracked_of_fd (int fd)
{
  char path[PATH_MAX];
  const char *slash;
  unsigned i;

  if (control == NULL)
    return NR_TRACKED;
  path_of_fd (fd, path, sizeof path);
  slash = strrchr (path, '/');
  for (i = 0; i < NR_TRACKED; i++)
    if (slash && is_in_folder (path) && medium[i] >= 0 &&
        strcmp (slash + 1, tracked_names[i]) == 0)
      break;
  return i;
}

/*--- Faults. ----------------------------------------------------------*/

/* Count CALL on FILE.  Should it fail?  Then errno is set; or be *SHORT? */
static bool
fails (enum file file, enum call call, bool *is_short)
{
  struct fault *f;
  uint64_t n;

  *is_short = false;
  if (control == NULL || file == NR_FILES)
    return false;
  n = __atomic_add_fetch (&control->nr_calls[file][call], 1, __ATOMIC_SEQ_CST);
  if (!__atomic_load_n (&control->on, __ATOMIC_SEQ_CST))
    return false;
  for (f = control->faults; f < control->faults + NR_FAULTS; f++) {
    if (f->first == 0 || f->file != file || f->call != call || n < f->first ||
        n > f->last)
      continue;
    __atomic_add_fetch (&f->nr_hit, 1, __ATOMIC_SEQ_CST);
    *is_short = f->err == 0;
    errno = f->err;
    return f->err != 0;
  }
  return false;
}

static bool
fails_wholly (enum file file, enum call call)
{
  bool is_short;

  return fails (file, call, &is_short);
}

/* Half of COUNT bytes at OFFSET, up to the end of a sector; all, where that
 * would be nothing.
 */
static size_t
half (size_t count, off64_t offset)
{
  const off64_t end = (offset + count / 2) / SECTOR * SECTOR;

  return end > offset ? (size_t) (end - offset) : count;
}

/*--- What is durable. -------------------------------------------------*/

static void
mark (unsigned file, uint64_t count, uint64_t offset)
{
  const uint64_t end = (offset + count + SECTOR - 1) / SECTOR;
  uint64_t s;

  if (file == NR_TRACKED || count == 0)
    return;
  for (s = offset / SECTOR; s < end && s < MAX_SECTORS; s++)
    control->state[file][s] = DIRTY;
}

/* Copy a sector, or what there is of it. */
static void
copy_sector (int from, int to, uint64_t sector)
{
  char buf[SECTOR];
  const ssize_t n = syscall (SYS_pread64, from, buf, sizeof buf,
                             sector * SECTOR);

  if (n < 0 || syscall (SYS_pwrite64, to, buf, n, sector * SECTOR) != n)
    abort ();
}

static void
sync_length (unsigned file, int fd)
{
  struct stat now, then;

  if (fstat (fd, &now) == -1 || fstat (medium[file], &then) == -1 ||
      (now.st_size != then.st_size &&
       syscall (SYS_ftruncate, medium[file], now.st_size) == -1))
    abort ();
}

static void
sync_all (unsigned file, int fd)
{
  uint64_t s;

  sync_length (file, fd);
  for (s = 0; s < MAX_SECTORS; s++)
    if (control->state[file][s] == DIRTY) {
      copy_sector (fd, medium[file], s);
      control->state[file][s] = CLEAN;
    }
}

/* A sync of COUNT bytes at OFFSET has failed. */
static void
forget (unsigned file, int fd, uint64_t count, uint64_t offset)
{
  const uint64_t end = (offset + count + SECTOR - 1) / SECTOR;
  uint64_t s;

  for (s = offset / SECTOR; s < end && s < MAX_SECTORS; s++) {
    if (control->state[file][s] != DIRTY)
      continue;
    if (control->reaches && (s * 2654435761U + control->reaches) >> 7 & 1)
      copy_sector (fd, medium[file], s);
    control->state[file][s] = FORGOTTEN;
  }
}

/* FD may be open for reading alone. */
static void
evict (unsigned file, int fd, uint64_t count, uint64_t offset)
{
  const uint64_t end = count ? (offset + count) / SECTOR : MAX_SECTORS;
  char link[64];
  int writable;
  uint64_t s;

  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  writable = syscall (SYS_openat, AT_FDCWD, link, O_RDWR | O_CLOEXEC);
  if (writable == -1)
    abort ();
  for (s = (offset + SECTOR - 1) / SECTOR; s < end && s < MAX_SECTORS; s++)
    if (control->state[file][s] == FORGOTTEN) {
      copy_sector (medium[file], writable, s);
      control->state[file][s] = CLEAN;
    }
  close (writable);
}

/* A sync of FD, by CALL, that fails if FAILED and has errno set then. */
static int
end_of_sync (int fd, enum file file, bool failed, uint64_t count,
             uint64_t offset)
{
  const unsigned tracked = tracked_of_fd (fd);
  const int err = errno;

  if (failed && err != EINTR)
    __atomic_add_fetch (&control->nr_failed_syncs[file], 1, __ATOMIC_SEQ_CST);
  if (tracked < NR_TRACKED) {
    pthread_mutex_lock (&lock);
    if (!failed)
      sync_all (tracked, fd);
    else if (err != EINTR)
      forget (tracked, fd, count, offset);
    pthread_mutex_unlock (&lock);
  }
  errno = err;
  return failed ? -1 : 0;
}

/*--- The calls. -------------------------------------------------------*/

EXPORT ssize_t
pread64 (int fd, void *buf, size_t count, off64_t offset)
{
  bool is_short;
  REAL (pread64);

  if (fails (file_of_fd (fd), PREAD, &is_short))
    return -1;
  return real (fd, buf, is_short ? half (count, offset) : count, offset);
}

EXPORT ssize_t
pwrite64 (int fd, const void *buf, size_t count, off64_t offset)
{
  const unsigned tracked = tracked_of_fd (fd);
  bool is_short;
  ssize_t r;
  REAL (pwrite64);

  if (fails (file_of_fd (fd), PWRITE, &is_short))
    return -1;
  if (tracked == NR_TRACKED)
    return real (fd, buf, is_short ? half (count, offset) : count, offset);
  pthread_mutex_lock (&lock);
  r = real (fd, buf, is_short ? half (count, offset) : count, offset);
  if (r > 0)
    mark (tracked, r, offset);
  pthread_mutex_unlock (&lock);
  return r;
}

EXPORT int
fallocate64 (int fd, int mode, off64_t offset, off64_t count)
{
  const unsigned tracked = tracked_of_fd (fd);
  int r;
  REAL (fallocate64);

  if (fails_wholly (file_of_fd (fd), FALLOCATE))
    return -1;
  pthread_mutex_lock (&lock);
  r = real (fd, mode, offset, count);
  if (r == 0 && mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
    mark (tracked, count, offset);
  pthread_mutex_unlock (&lock);
  return r;
}

EXPORT ssize_t
copy_file_range (int in, off64_t *in_offset, int out, off64_t *out_offset,
                 size_t count, unsigned flags)
{
  const unsigned tracked = tracked_of_fd (out);
  const off64_t offset = out_offset ? *out_offset : 0;
  bool is_short;
  ssize_t r;
  REAL (copy_file_range);

  if (fails (file_of_fd (out), COPY, &is_short))
    return -1;
  pthread_mutex_lock (&lock);
  r = real (in, in_offset, out, out_offset,
            is_short ? half (count, offset) : count, flags);
  if (r > 0)
    mark (tracked, r, offset);
  pthread_mutex_unlock (&lock);
  return r;
}

EXPORT int
ftruncate64 (int fd, off64_t length)
{
  const unsigned tracked = tracked_of_fd (fd);
  struct stat before;
  int r;
  REAL (ftruncate64);

  if (fails_wholly (file_of_fd (fd), FTRUNCATE))
    return -1;
  if (tracked == NR_TRACKED || fstat (fd, &before) == -1)
    return real (fd, length);
  pthread_mutex_lock (&lock);
  r = real (fd, length);
  if (r == 0 && length < before.st_size)
    mark (tracked, before.st_size - length, length);
  pthread_mutex_unlock (&lock);
  return r;
}

EXPORT int
fdatasync (int fd)
{
  const enum file file = file_of_fd (fd);
  REAL (fdatasync);

  if (file == NR_FILES)
    return real (fd);
  return end_of_sync (fd, file, fails_wholly (file, FDATASYNC), INT64_MAX / 2,
                      0);
}

EXPORT int
fsync (int fd)
{
  const enum file file = file_of_fd (fd);
  REAL (fsync);

  if (file == NR_FILES)
    return real (fd);
  return end_of_sync (fd, file, fails_wholly (file, FSYNC), INT64_MAX / 2, 0);
}

/* No more than a hint, when it does not fail. */
EXPORT int
sync_file_range (int fd, off64_t offset, off64_t count, unsigned flags)
{
  const enum file file = file_of_fd (fd);
  REAL (sync_file_range);

  if (file == NR_FILES)
    return real (fd, offset, count, flags);
  if (fails_wholly (file, SYNC_RANGE))
    return end_of_sync (fd, file, true, count, offset);
  return 0;
}

EXPORT int
posix_fadvise64 (int fd, off64_t offset, off64_t count, int advice)
{
  const unsigned tracked = tracked_of_fd (fd);
  REAL (posix_fadvise64);

  if (tracked < NR_TRACKED && advice == POSIX_FADV_DONTNEED) {
    pthread_mutex_lock (&lock);
    evict (tracked, fd, count, offset);
    pthread_mutex_unlock (&lock);
  }
  return real (fd, offset, count, advice);
}

EXPORT off64_t
lseek64 (int fd, off64_t offset, int whence)
{
  REAL (lseek64);

  if ((whence == SEEK_DATA || whence == SEEK_HOLE) &&
      fails_wholly (file_of_fd (fd), LSEEK))
    return -1;
  return real (fd, offset, whence);
}

EXPORT int
renameat2 (int old_folder, const char *old_name, int new_folder,
           const char *new_name, unsigned flags)
{
  REAL (renameat2);

  if (control && fails_wholly (file_of_path (new_name), RENAME))
    return -1;
  return real (old_folder, old_name, new_folder, new_name, flags);
}

EXPORT int
unlink (const char *path)
{
  REAL (unlink);

  if (control && fails_wholly (file_of_path (path), UNLINK))
    return -1;
  return real (path);
}

/* Should opening PATH fail? */
static bool
open_fails (const char *path)
{
  enum file file;

  if (control == NULL)
    return false;
  if (strncmp (path, "/proc/self/fd/", strlen ("/proc/self/fd/")) == 0)
    file = file_of_fd (atoi (path + strlen ("/proc/self/fd/")));
  else
    file = file_of_path (path);
  return fails_wholly (file, OPEN);
}

EXPORT int
open64 (const char *path, int flags, ...)
{
  mode_t mode = 0;
  REAL (open64);

  GET_MODE (mode, flags);
  return open_fails (path) ? -1 : real (path, flags, mode);
}

EXPORT int
openat64 (int where, const char *path, int flags, ...)
{
  mode_t mode = 0;
  REAL (openat64);

  GET_MODE (mode, flags);
  return open_fails (path) ? -1 : real (where, path, flags, mode);
}

EXPORT int
mkostemp64 (char *template, int flags)
{
  REAL (mkostemp64);

  return open_fails (template) ? -1 : real (template, flags);
}

ALSO_WITHOUT_64 (pread);
ALSO_WITHOUT_64 (pwrite);
ALSO_WITHOUT_64 (fallocate);
ALSO_WITHOUT_64 (ftruncate);
ALSO_WITHOUT_64 (posix_fadvise);
ALSO_WITHOUT_64 (lseek);
ALSO_WITHOUT_64 (open);
ALSO_WITHOUT_64 (openat);
ALSO_WITHOUT_64 (mkostemp);

/* What a program that was built with checks calls without a mode. */
int __open_2 (const char *path, int flags);
int __open64_2 (const char *path, int flags);
int __openat_2 (int where, const char *path, int flags);
int __openat64_2 (int where, const char *path, int flags);

EXPORT int
__open_2 (const char *path, int flags)
{
  return open64 (path, flags);
}

EXPORT int
__open64_2 (const char *path, int flags)
{
  return open64 (path, flags);
}

EXPORT int
__openat_2 (int where, const char *path, int flags)
{
  return openat64 (where, path, flags);
}

EXPORT int
__openat64_2 (int where, const char *path, int flags)
{
  return openat64 (where, path, flags);
}

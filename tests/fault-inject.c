/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Preloaded into a server or the tool by tests: makes system calls on
 * chosen files fail, while a trigger file exists.
 *
 *   FAULT_CALL    pread, pwrite, fallocate, fdatasync, fsync or renameat2
 *   FAULT_FILE    the end of the path of the files that it is to fail on
 *   FAULT_ERRNO   the errno, a number
 *   FAULT_TRIGGER the path of the trigger file
 *   FAULT_ONCE    optional: what fails removes the trigger file
 *   FAULT_LOG     optional: a file that gets a line for each pwrite,
 *                 fallocate, fdatasync and fsync, with the name of the file
 *                 without its folder: "pwrite vm.raw 4096 512"; for each
 *                 renameat2 with the new name: "renameat2 vm.raw 0 FLAGS";
 *                 with "failed" in front where it was made to fail
 *   FAULT_MAKE    optional: a renameat2 to the end of this path finds that
 *                 it was made just before
 *   FAULT_SIGNAL  optional: a signal, a number, that each renameat2 raises
 *   FAULT_UNLINK  optional: how many unlinks fail, with EIO, before others
 *                 do not
 *   FAULT_RUN     optional: a shell command that is run once, just before
 *                 the call FAULT_RUN_CALL, renameat2, fcntl, fsync or
 *                 pread, on a file whose path, for renameat2 the new one,
 *                 ends with FAULT_RUN_FILE
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload.h"

static int
ends_with (const char *path, const char *end)
{
  const size_t path_len = strlen (path), end_len = strlen (end);

  return path_len >= end_len && strcmp (path + path_len - end_len, end) == 0;
}

static void write_line (const char *call, const char *path, int64_t offset,
                        uint64_t count);

/* Should CALL on the file PATH fail?  Then errno is set. */
static int
fails_on (const char *call, const char *path)
{
  const char *wanted = getenv ("FAULT_CALL");
  const char *file = getenv ("FAULT_FILE");
  const char *trigger = getenv ("FAULT_TRIGGER");
  const char *number = getenv ("FAULT_ERRNO");

  if (!wanted || !file || !trigger || !number || strcmp (wanted, call) != 0)
    return 0;
  if (access (trigger, F_OK) == -1)
    return 0;
  if (!ends_with (path, file))
    return 0;
  if (getenv ("FAULT_ONCE") &&
      syscall (SYS_unlinkat, AT_FDCWD, trigger, 0) == -1)
    return 0;
  errno = atoi (number);
  return 1;
}

/* The same for FD. */
static int
fails (const char *call, int fd)
{
  char path[4096], failed[64];

  path_of_fd (fd, path, sizeof path);
  if (!fails_on (call, path))
    return 0;
  snprintf (failed, sizeof failed, "failed %s", call);
  write_line (failed, path, 0, 0);
  return 1;
}

static void
write_log (const char *call, int fd, int64_t offset, uint64_t count)
{
  char path[4096];

  path_of_fd (fd, path, sizeof path);
  write_line (call, path, offset, count);
}

static void
write_line (const char *call, const char *path, int64_t offset, uint64_t count)
{
  const char *log = getenv ("FAULT_LOG");
  const int saved_errno = errno;
  const char *slash = strrchr (path, '/');
  char line[4096 + 128];
  int log_fd, n;

  if (log == NULL)
    return;
  n = snprintf (line, sizeof line, "%s %s %" PRIi64 " %" PRIu64 "\n", call,
                slash ? slash + 1 : path, offset, count);
  log_fd = open (log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (log_fd >= 0) {
    if (write (log_fd, line, n) != n)
      abort ();
    close (log_fd);
  }
  errno = saved_errno;
}

/* Somebody else does something, right now. */
static void
run_once (const char *call, const char *path)
{
  const char *wanted = getenv ("FAULT_RUN_CALL");
  const char *file = getenv ("FAULT_RUN_FILE");
  char *command = getenv ("FAULT_RUN");

  if (!command || !wanted || !file || strcmp (wanted, call) != 0 ||
      !ends_with (path, file))
    return;
  command = strdup (command);
  if (command == NULL || unsetenv ("FAULT_RUN") == -1 || system (command) == -1)
    abort ();
  free (command);
}

static void
run_on (const char *call, int fd)
{
  char path[4096];

  path_of_fd (fd, path, sizeof path);
  run_once (call, path);
}

EXPORT ssize_t
pread64 (int fd, void *buf, size_t count, off64_t offset)
{
  REAL (pread64);
  run_on ("pread", fd);
  return fails ("pread", fd) ? -1 : real (fd, buf, count, offset);
}

EXPORT ssize_t
pwrite64 (int fd, const void *buf, size_t count, off64_t offset)
{
  REAL (pwrite64);
  if (fails ("pwrite", fd))
    return -1;
  write_log ("pwrite", fd, offset, count);
  return real (fd, buf, count, offset);
}

EXPORT int
fallocate64 (int fd, int mode, off64_t offset, off64_t count)
{
  REAL (fallocate64);
  if (fails ("fallocate", fd))
    return -1;
  write_log ("fallocate", fd, offset, count);
  return real (fd, mode, offset, count);
}

EXPORT int
fdatasync (int fd)
{
  int r;
  REAL (fdatasync);

  if (fails ("fdatasync", fd))
    return -1;
  r = real (fd);
  write_log ("fdatasync", fd, 0, 0);
  return r;
}

EXPORT int
fsync (int fd)
{
  int r;
  REAL (fsync);

  run_on ("fsync", fd);
  if (fails ("fsync", fd))
    return -1;
  r = real (fd);
  write_log ("fsync", fd, 0, 0);
  return r;
}

/* Somebody else makes PATH, right now. */
static void
make (const char *path)
{
  const char *wanted = getenv ("FAULT_MAKE");
  int fd;

  if (wanted == NULL || !ends_with (path, wanted))
    return;
  fd = open (path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (fd == -1 || write (fd, "mine\n", 5) != 5)
    abort ();
  close (fd);
}

EXPORT int
renameat2 (int old_dir, const char *old_name, int new_dir, const char *new_name,
           unsigned flags)
{
  const char *number = getenv ("FAULT_SIGNAL");
  REAL (renameat2);

  make (new_name);
  run_once ("renameat2", new_name);
  if (number)
    raise (atoi (number));
  if (fails_on ("renameat2", new_name)) {
    write_line ("failed renameat2", new_name, 0, flags);
    return -1;
  }
  write_line ("renameat2", new_name, 0, flags);
  return real (old_dir, old_name, new_dir, new_name, flags);
}

EXPORT int
unlink (const char *path)
{
  static int nr_failed;
  const char *number = getenv ("FAULT_UNLINK");
  REAL (unlink);

  if (number && nr_failed < atoi (number)) {
    nr_failed++;
    errno = EIO;
    return -1;
  }
  return real (path);
}

/* What is given to it is a number or a pointer, which both fit here. */
EXPORT int
fcntl64 (int fd, int command, ...)
{
  char path[4096];
  va_list args;
  void *arg;
  REAL (fcntl64);

  va_start (args, command);
  arg = va_arg (args, void *);
  va_end (args);
  path_of_fd (fd, path, sizeof path);
  run_once ("fcntl", path);
  return real (fd, command, arg);
}

ALSO_WITHOUT_64 (pread);
ALSO_WITHOUT_64 (pwrite);
ALSO_WITHOUT_64 (fallocate);
ALSO_WITHOUT_64 (fcntl);

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Locks between open file descriptions, which is how processes meet.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

#include "check.h"
#include "error.h"
#include "lock.h"
#include "scratch.h"

#define NR 3

static char *path;
static int fds[NR];

static void
open_all (void)
{
  int i;

  for (i = 0; i < NR; i++)
    fds[i] = scratch_open (path);
}

static void
close_all (void)
{
  int i;

  for (i = 0; i < NR; i++)
    if (fds[i] >= 0)
      close (fds[i]);
}

static void
close_one (int i)
{
  close (fds[i]);
  fds[i] = -1;
}

/* What would stand against a lock for writing on BYTE by FD. */
static int
lock_on (int fd, off_t byte)
{
  struct flock fl = {
    .l_type = F_WRLCK,
    .l_whence = SEEK_SET,
    .l_start = byte,
    .l_len = 1,
  };

  CHECK_EQ (fcntl (fd, F_OFD_GETLK, &fl), 0);
  return fl.l_type;
}

static void
place (int fd, off_t byte, short type)
{
  struct flock fl = {
    .l_type = type,
    .l_whence = SEEK_SET,
    .l_start = byte,
    .l_len = 1,
  };

  CHECK_EQ (fcntl (fd, F_OFD_SETLK, &fl), 0);
}

static void
test_metadata (void)
{
  int read_only;

  open_all ();
  CHECK (!lock_metadata_has_writer (fds[2]));

  /* One writer. */
  CHECK_EQ (lock_metadata (fds[0], true), 0);
  CHECK_EQ (lock_metadata (fds[0], true), 0);
  CHECK_EQ (lock_metadata (fds[1], true), ADDCOW_E_IN_USE);
  CHECK_EQ (lock_metadata (fds[1], false), ADDCOW_E_IN_USE);
  CHECK (lock_metadata_has_writer (fds[2]));
  CHECK (!lock_metadata_has_writer (fds[0])); /* that is itself */
  CHECK_EQ (lock_on (fds[2], 0), F_WRLCK);
  CHECK_EQ (lock_on (fds[2], 1 << 20), F_WRLCK);

  /* Writer to reader: others may read, nobody may write. */
  CHECK_EQ (lock_metadata (fds[0], false), 0);
  CHECK (!lock_metadata_has_writer (fds[2]));
  CHECK_EQ (lock_metadata (fds[1], false), 0);
  CHECK_EQ (lock_metadata (fds[2], true), ADDCOW_E_IN_USE);

  /* Reader to writer: not beside another reader; and where that fails
   * one is a reader still.
   */
  CHECK_EQ (lock_metadata (fds[0], true), ADDCOW_E_IN_USE);
  close_one (1);
  CHECK_EQ (lock_on (fds[2], 0), F_RDLCK);
  CHECK_EQ (lock_metadata (fds[2], true), ADDCOW_E_IN_USE);
  CHECK_EQ (lock_metadata (fds[0], true), 0);
  CHECK (lock_metadata_has_writer (fds[2]));

  /* Another descriptor of the file does not take the lock with it. */
  close (scratch_open (path));
  CHECK (lock_metadata_has_writer (fds[2]));
  close_one (0);
  CHECK (!lock_metadata_has_writer (fds[2]));
  CHECK_EQ (lock_metadata (fds[2], true), 0);
  close_all ();

  read_only = open (path, O_RDONLY | O_CLOEXEC);
  CHECK (read_only >= 0);
  CHECK_EQ (lock_metadata (read_only, false), 0);
  CHECK (lock_metadata (read_only, true) != 0);
  close (read_only);
}

/* Which of QEMU's bytes are locked, as two strings of digits. */
static void
check_bytes (int fd, const char *perms, const char *unshared)
{
  off_t i;

  for (i = 0; i < 20; i++) {
    const char digit = '0' + i;

    CHECK_EQ (lock_on (fd, 100 + i),
              i < 10 && strchr (perms, digit) ? F_RDLCK : F_UNLCK);
    CHECK_EQ (lock_on (fd, 200 + i),
              i < 10 && strchr (unshared, digit) ? F_RDLCK : F_UNLCK);
  }
  CHECK_EQ (lock_on (fd, 0), F_UNLCK);
  CHECK_EQ (lock_on (fd, 99), F_UNLCK);
}

static void
test_qemu (void)
{
  /* Nobody else writes or resizes; we read, a writer writes. */
  open_all ();
  CHECK_EQ (lock_qemu (fds[0], true), 0);
  check_bytes (fds[2], "01", "13");
  CHECK_EQ (lock_qemu (fds[1], true), ADDCOW_E_IN_USE);
  close_one (1);
  CHECK_EQ (lock_qemu (fds[2], false), ADDCOW_E_IN_USE);
  close_all ();

  open_all ();
  CHECK_EQ (lock_qemu (fds[0], false), 0);
  check_bytes (fds[2], "0", "13");
  CHECK_EQ (lock_qemu (fds[1], false), 0);
  CHECK_EQ (lock_qemu (fds[2], true), ADDCOW_E_IN_USE);
  close_one (2);
  /* A reader that becomes the writer, once it is alone. */
  CHECK_EQ (lock_qemu (fds[0], true), ADDCOW_E_IN_USE);
  close_one (1);
  CHECK_EQ (lock_qemu (fds[0], true), 0);
  close_all ();
}

static void
test_against_qemu (void)
{
  static const struct {
    off_t byte;
    short type;
    bool reader_refused, writer_refused;
  } cases[] = {
    { 100, F_RDLCK, false, false }, /* somebody reads */
    { 101, F_RDLCK, true, true },   /* writes */
    { 102, F_RDLCK, false, false }, /* writes what was there */
    { 103, F_RDLCK, true, true },   /* resizes */
    { 200, F_RDLCK, true, true },   /* lets nobody read */
    { 201, F_RDLCK, false, true },  /* lets nobody write */
    { 203, F_RDLCK, false, false }, /* lets nobody resize */
    { 100, F_WRLCK, true, true },   { 101, F_WRLCK, true, true },
    { 201, F_WRLCK, true, true },   { 0, F_WRLCK, false, false },
  };
  size_t i;
  int writer;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++)
    for (writer = 0; writer < 2; writer++) {
      const bool refused = writer ? cases[i].writer_refused
                                  : cases[i].reader_refused;

      open_all ();
      place (fds[0], cases[i].byte, cases[i].type);
      CHECK_EQ (lock_qemu (fds[1], writer), refused ? ADDCOW_E_IN_USE : 0);
      close_all ();
    }
}

/* A file system without locks: QEMU goes on there, and so do we; but not
 * after any other error.
 */
static int fcntl_err; /* of OFD locks; 0: none */

int __real_fcntl64 (int fd, int cmd, ...);
int __wrap_fcntl64 (int fd, int cmd, ...);
int __real_fcntl (int fd, int cmd, ...);
int __wrap_fcntl (int fd, int cmd, ...);

static bool
fails (int cmd)
{
  errno = fcntl_err;
  return fcntl_err && (cmd == F_OFD_SETLK || cmd == F_OFD_GETLK);
}

/* The third argument is as wide as a pointer, whatever it is. */
#define WRAP(name) \
  int __wrap_##name (int fd, int cmd, ...) \
  { \
    va_list args; \
    void *arg; \
\
    va_start (args, cmd); \
    arg = va_arg (args, void *); \
    va_end (args); \
    return fails (cmd) ? -1 : __real_##name (fd, cmd, arg); \
  }
WRAP (fcntl)
WRAP (fcntl64)

static void
test_no_locks (void)
{
  static const struct {
    int err, result;
  } cases[] = {
    { ENOLCK, 0 }, { EINVAL, 0 }, { EOPNOTSUPP, 0 },
    { ENOSYS, 0 }, { EIO, EIO },  { EAGAIN, ADDCOW_E_IN_USE },
  };
  size_t i;

  open_all ();
  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    fcntl_err = cases[i].err;
    CHECK_EQ (lock_qemu (fds[0], true), cases[i].result);
  }
  fcntl_err = ENOLCK;
  CHECK_EQ (lock_metadata (fds[0], true), ENOLCK);
  CHECK (!lock_metadata_has_writer (fds[0]));
  fcntl_err = 0;
  close_all ();
}

int
main (void)
{
  char *folder = scratch_folder ();

  path = scratch_path (folder, "file");
  scratch_file (path, "", 0);
  test_metadata ();
  test_qemu ();
  test_against_qemu ();
  test_no_locks ();
  free (path);
  free (folder);
  return 0;
}

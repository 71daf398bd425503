/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "common.h"
#include "error.h"
#include "lock.h"

static struct flock
whole_file (short type)
{
  return (struct flock){ .l_type = type, .l_whence = SEEK_SET };
}

int
lock_metadata (int fd, bool exclusive)
{
  struct flock fl = whole_file (exclusive ? F_WRLCK : F_RDLCK);

  if (fcntl (fd, F_OFD_SETLK, &fl) == 0)
    return 0;
  return errno == EAGAIN || errno == EACCES ? ADDCOW_E_IN_USE : errno;
}

bool
lock_metadata_has_writer (int fd)
{
  struct flock fl = whole_file (F_RDLCK);

  return fcntl (fd, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK;
}

/* QEMU's permissions, as bits and as offsets of bytes. */
enum {
  PERM_CONSISTENT_READ = 0,
  PERM_WRITE = 1,
  PERM_RESIZE = 3,
  NR_PERMS = 4,
};
#define QEMU_PERM_BASE 100
#define QEMU_UNSHARED_BASE 200

static struct flock
one_byte (off_t byte, short type)
{
  return (struct flock){
    .l_type = type,
    .l_whence = SEEK_SET,
    .l_start = byte,
    .l_len = 1,
  };
}

static int
place_shared (int fd, off_t byte)
{
  struct flock fl = one_byte (byte, F_RDLCK);

  return fcntl (fd, F_OFD_SETLK, &fl) == 0 ? 0 : errno;
}

static int
check_nobody_holds (int fd, off_t byte)
{
  struct flock fl = one_byte (byte, F_WRLCK);

  if (fcntl (fd, F_OFD_GETLK, &fl) == -1)
    return errno;
  return fl.l_type == F_UNLCK ? 0 : ADDCOW_E_IN_USE;
}

static int
for_each_perm (int fd, unsigned perms, off_t base,
               int (*fn) (int fd, off_t byte))
{
  int i, r;

  for (i = 0; i < NR_PERMS; i++) {
    if (!(perms & (1u << i)))
      continue;
    r = fn (fd, base + i);
    if (r)
      return r;
  }
  return 0;
}

int
lock_qemu (int fd, bool writer)
{
  const unsigned have = 1u << PERM_CONSISTENT_READ |
                        (writer ? 1u << PERM_WRITE : 0);
  const unsigned unshared = 1u << PERM_WRITE | 1u << PERM_RESIZE;
  int r;

  r = for_each_perm (fd, have, QEMU_PERM_BASE, place_shared);
  if (r == ENOLCK || r == EINVAL || r == EOPNOTSUPP || r == ENOSYS)
    return 0;
  if (r == 0)
    r = for_each_perm (fd, unshared, QEMU_UNSHARED_BASE, place_shared);
  if (r == EAGAIN || r == EACCES)
    r = ADDCOW_E_IN_USE;
  if (r == 0)
    r = for_each_perm (fd, have, QEMU_UNSHARED_BASE, check_nobody_holds);
  if (r == 0)
    r = for_each_perm (fd, unshared, QEMU_PERM_BASE, check_nobody_holds);
  return r;
}

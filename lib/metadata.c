/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "error.h"
#include "image-file.h"
#include "metadata.h"

int
metadata_open (const char *file_name, bool writable, int *fd)
{
  CLEANUP_CLOSE int new_fd = -1;
  struct stat st;
  int r;

  /* Looked at before it is opened: a device may do things when opened,
   * and O_NONBLOCK is for what takes its place in between.
   */
  if (stat (file_name, &st) == -1)
    return errno;
  if (!S_ISREG (st.st_mode))
    return S_ISDIR (st.st_mode) ? EISDIR : ADDCOW_E_NOT_REGULAR;
  r = fd_open (file_name,
               (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY |
                   O_NONBLOCK,
               &new_fd);
  if (r)
    return r;
  *fd = new_fd;
  new_fd = -1;
  return 0;
}

int
metadata_read_header (int fd, struct header *header)
{
  uint8_t buf[FORMAT_HEADER_BYTES] = { 0 };
  uint64_t length;
  int r;

  r = fd_size (fd, &length);
  if (r)
    return r;
  r = fd_read (fd, buf, MIN (length, sizeof buf), 0);
  if (r)
    return r;
  if (length < sizeof buf)
    return length >= FORMAT_MAGIC_BYTES &&
                   memcmp (buf, FORMAT_MAGIC, FORMAT_MAGIC_BYTES) == 0
               ? ADDCOW_E_TRUNCATED
               : ADDCOW_E_MAGIC;

  r = format_decode (buf, header);
  /* Who makes the disk larger makes the file longer first. */
  if (r == 0)
    r = fd_size (fd, &length);
  if (r)
    return r;
  return length < format_file_bytes (header->size_bytes) ? ADDCOW_E_TRUNCATED
                                                         : 0;
}

int
metadata_forget_cached (int fd)
{
  const int r = fd_sync (fd);

  if (r == 0)
    posix_fadvise (fd, 0, 0, POSIX_FADV_DONTNEED);
  return r;
}

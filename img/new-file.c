/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "disk.h"
#include "image-file.h"
#include "lock.h"
#include "metadata.h"
#include "names.h"
#include "new-file.h"

int
lock_replaced (const char *path, int *fd)
{
  struct stat locked, there;
  int r;

  r = metadata_open (path, true, fd);
  if (r == 0)
    r = lock_metadata (*fd, true);
  if (r)
    return r;
  if (fstat (*fd, &locked) == -1 || stat (path, &there) == -1)
    return errno;
  return same_file (&locked, &there) ? 0 : ADDCOW_E_IN_USE;
}

int
new_file_open (struct new_file *file, const char *path)
{
  const char *base = name_basename (path);
  mode_t mask;

  file->path = strdup (path);
  /* Not made of the name: that may be as long as a name can be. */
  if (asprintf (&file->temporary, "%.*s.addcow-XXXXXX", (int) (base - path),
                path) == -1)
    file->temporary = NULL;
  if (file->path == NULL || file->temporary == NULL)
    return ENOMEM;
  do
    file->fd = mkostemp (file->temporary, O_CLOEXEC);
  while (file->fd == -1 && errno == EINTR);
  if (file->fd == -1) {
    const int err = errno;

    free (file->temporary);
    file->temporary = NULL;
    return err;
  }
  mask = umask (0);
  umask (mask);
  return fchmod (file->fd, 0666 & ~mask) == -1 ? errno : 0;
}

/* For file systems that cannot rename without replacing.  Where neither
 * name can be removed, the file has its own, which is what was wanted.
 */
static int
link_and_unlink (const char *from, const char *to)
{
  int err;

  if (link (from, to) == -1)
    return errno;
  if (unlink (from) == 0)
    return 0;
  err = errno;
  return unlink (to) == -1 ? 0 : err;
}

static int
give_name (const struct new_file *file, bool replace)
{
  if (renameat2 (AT_FDCWD, file->temporary, AT_FDCWD, file->path,
                 replace ? 0 : RENAME_NOREPLACE) == 0)
    return 0;
  if (errno == EINVAL && !replace)
    return link_and_unlink (file->temporary, file->path);
  return errno;
}

int
sync_folder (const char *path)
{
  CLEANUP_FREE char *folder = NULL;
  CLEANUP_CLOSE int fd = -1;
  int r;

  r = name_folder (path, &folder);
  if (r)
    return r;
  r = fd_open (folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC, &fd);
  return r ? r : fd_sync_with_times (fd);
}

int
new_file_install (struct new_file *file, bool replace)
{
  int r;

  r = fd_sync_with_times (file->fd);
  if (r)
    return r;
  r = give_name (file, replace);
  if (r)
    return r;
  free (file->temporary);
  file->temporary = NULL;
  file->installed = true;
  r = sync_folder (file->path);
  if (r && !replace)
    new_file_remove (file);
  return r;
}

void
new_file_remove (struct new_file *file)
{
  struct stat ours, there;

  if (fstat (file->fd, &ours) == 0 && lstat (file->path, &there) == 0 &&
      same_file (&ours, &there) && unlink (file->path) == -1)
    return;
  file->installed = false;
}

void
new_file_discard (struct new_file *file)
{
  if (file->fd >= 0)
    close (file->fd);
  if (file->temporary)
    unlink (file->temporary);
  free (file->temporary);
  free (file->path);
  *file = (struct new_file) NEW_FILE_NONE;
}

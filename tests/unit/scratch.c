/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "scratch.h"
#include "common.h"

static char *to_remove;

static int
remove_one (const char *path, const struct stat *st UNUSED, int type UNUSED,
            struct FTW *ftw UNUSED)
{
  return remove (path);
}

static void
remove_folder (void)
{
  nftw (to_remove, remove_one, 8, FTW_DEPTH | FTW_PHYS);
  free (to_remove);
}

char *
scratch_folder (void)
{
  char name[] = "unit-XXXXXX";
  char *path;

  CHECK (mkdtemp (name) != NULL);
  path = realpath (name, NULL);
  CHECK (path != NULL);
  to_remove = strdup (path);
  CHECK (to_remove != NULL);
  atexit (remove_folder);
  return path;
}

char *
scratch_path (const char *folder, const char *name)
{
  char *path;

  CHECK (asprintf (&path, "%s/%s", folder, name) >= 0);
  return path;
}

int
scratch_open (const char *path)
{
  int fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

  CHECK (fd >= 0);
  return fd;
}

void
scratch_file (const char *path, const void *buf, size_t count)
{
  int fd = scratch_open (path);

  CHECK_EQ (ftruncate (fd, 0), 0);
  CHECK_EQ (write (fd, buf, count), (ssize_t) count);
  close (fd);
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"
#include "error.h"
#include "image-file.h"
#include "names.h"

#define SCHEME_FIRST \
  "abcdefghijklmnopqrstuvwxyz" \
  "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#define SCHEME_REST SCHEME_FIRST "0123456789+-."

#define FILE_SCHEME "file:"

bool
name_is_uri (const char *name)
{
  if (strncmp (name, FILE_SCHEME, strlen (FILE_SCHEME)) == 0)
    return false;
  return strspn (name, SCHEME_FIRST) > 0 &&
         name[strspn (name, SCHEME_REST)] == ':';
}

const char *
name_basename (const char *path)
{
  const char *slash = strrchr (path, '/');

  return slash ? slash + 1 : path;
}

/* The folder part of PATH, for a PATH that may not exist. */
static char *
folder_of (const char *path)
{
  const char *base = name_basename (path);

  if (base == path)
    return strdup (".");
  if (base == path + 1)
    return strdup ("/");
  return strndup (path, base - path - 1);
}

int
name_folder (const char *metadata, char **folder)
{
  CLEANUP_FREE char *file = realpath (metadata, NULL);
  CLEANUP_FREE char *part = NULL;

  if (file == NULL && errno != ENOENT)
    return errno;
  part = folder_of (file ? file : metadata);
  if (part == NULL)
    return ENOMEM;
  *folder = realpath (part, NULL);
  return *folder ? 0 : errno;
}

int
name_resolve (const char *folder, const char *name, char **path)
{
  if (name_is_uri (name))
    return ADDCOW_E_URI;
  if (strncmp (name, FILE_SCHEME, strlen (FILE_SCHEME)) == 0)
    name += strlen (FILE_SCHEME);

  if (name[0] == '/')
    *path = strdup (name);
  else if (asprintf (path, "%s/%s", strcmp (folder, "/") ? folder : "", name) ==
           -1)
    *path = NULL;
  return *path ? 0 : ENOMEM;
}

/*--- Locations. -------------------------------------------------------*/

#define FD_PATH "/proc/self/fd/%d"
#define FD_PATH_BYTES 32

/* The path of what FD is now, all links followed. */
static int
path_of_fd (int fd, char path[PATH_MAX])
{
  char link[FD_PATH_BYTES];
  ssize_t n;

  snprintf (link, sizeof link, FD_PATH, fd);
  n = readlink (link, path, PATH_MAX - 1);
  if (n == -1)
    return errno;
  path[n] = '\0';
  return 0;
}

/* Where PATH, that has no links in it, goes on below FOLDER, that has none
 * either; or NULL.
 */
static const char *
below (const char *folder, const char *path)
{
  const size_t len = strcmp (folder, "/") == 0 ? 0 : strlen (folder);

  if (strncmp (folder, path, len) != 0 || path[len] != '/')
    return NULL;
  return path + len + 1;
}

/* Open FILE with O_PATH, if it lies under FOLDER, which is open too.
 *
 * A name may lead there by way of links, from outside and over "..", so
 * where it leads is seen first.  That is only a guess: it is the kernel that
 * walks from FOLDER to what is opened, and neither leaves it nor follows a
 * link.  If something is renamed meanwhile this fails.
 */
static int
open_under (int folder, int file, int *fd)
{
  const struct open_how how = {
    .flags = O_PATH | O_CLOEXEC,
    .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
  };
  char folder_path[PATH_MAX], file_path[PATH_MAX];
  const char *rest;
  int r;

  r = path_of_fd (folder, folder_path);
  if (r == 0)
    r = path_of_fd (file, file_path);
  if (r)
    return r;
  rest = below (folder_path, file_path);
  if (rest == NULL)
    return ADDCOW_E_OUTSIDE;
  *fd = syscall (SYS_openat2, folder, rest, &how, sizeof how);
  return *fd >= 0 ? 0 : errno == ELOOP || errno == EXDEV ? EAGAIN : errno;
}

static int
open_confine (const char *confine, int *fd)
{
  return fd_open (confine, O_PATH | O_DIRECTORY | O_CLOEXEC, fd);
}

int
confine_check (const char *confine)
{
  CLEANUP_CLOSE int folder = -1;

  return open_confine (confine, &folder);
}

static int
confine_location (struct location *location, const char *confine)
{
  CLEANUP_CLOSE int folder = -1;
  CLEANUP_CLOSE int file = -1;
  int r;

  if (location->path == NULL)
    return ADDCOW_E_OUTSIDE;
  r = open_confine (confine, &folder);
  if (r)
    return r;
  r = fd_open (location->path, O_PATH | O_CLOEXEC, &file);
  if (r)
    return r;
  r = open_under (folder, file, &location->fd);
  if (r)
    return r;
  free (location->path);
  if (asprintf (&location->path, FD_PATH, location->fd) == -1)
    location->path = NULL;
  return location->path ? 0 : ENOMEM;
}

int
location_set (struct location *location, const char *name)
{
  *location = (struct location) LOCATION_NONE;
  location->name = strdup (name);
  if (location->name == NULL)
    return ENOMEM;
  if (name_is_uri (name))
    return 0;
  location->path = strdup (name);
  if (location->path)
    return 0;
  location_clear (location);
  return ENOMEM;
}

int
location_find (struct location *location, const char *folder, const char *name,
               const char *confine)
{
  CLEANUP_FREE char *path = NULL;
  int r = 0;

  *location = (struct location) LOCATION_NONE;
  if (!name_is_uri (name))
    r = name_resolve (folder, name, &path);
  if (r == 0)
    r = location_set (location, path ? path : name);
  if (r == 0 && confine) {
    r = confine_location (location, confine);
    if (r)
      location_clear (location);
  }
  return r;
}

void
location_clear (struct location *location)
{
  free (location->name);
  free (location->path);
  if (location->fd >= 0)
    close (location->fd);
  *location = (struct location) LOCATION_NONE;
}

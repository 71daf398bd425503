/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "error.h"
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

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backing-arg.h"
#include "common.h"
#include "disk.h"
#include "hints.h"
#include "img.h"

void
backing_arg_clear (struct backing_arg *b)
{
  free (b->name);
  free (b->format);
  location_clear (&b->location);
}

int
backing_arg_set_name (struct backing_arg *b, const char *value)
{
  return img_set_once (b->verb, &b->name, "backing file", value);
}

int
backing_arg_set_format (struct backing_arg *b, const char *value)
{
  if (!format_is_hint (value))
    return img_usage_error (b->verb, "'%s' is not the name of a format", value);
  return img_set_once (b->verb, &b->format, "format of the backing file",
                       value);
}

bool
backing_arg_is_there (const struct backing_arg *b)
{
  return b->name && b->name[0];
}

int
backing_arg_check (const struct backing_arg *b)
{
  if (b->format == NULL || backing_arg_is_there (b))
    return EXIT_SUCCESS;
  return img_usage_error (b->verb,
                          "there is no backing file that could "
                          "be of the format %s",
                          b->format);
}

int
backing_arg_resolve (struct backing_arg *b, const char *folder,
                     struct header *header)
{
  int r;

  r = format_set_name (header->backing_file, b->name ? b->name : "");
  if (r == 0 && backing_arg_is_there (b))
    r = location_find (&b->location, folder, b->name, NULL);
  return r ? img_file_error (b->name, r) : EXIT_SUCCESS;
}

int
backing_arg_open (const struct backing_arg *b,
                  const struct backing_options *options,
                  struct backing **backing)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct backing_options with_format = *options;

  with_format.format = b->format;
  if (backing_open (backing, &b->location, &with_format, &failure))
    return img_failure (&failure);
  return EXIT_SUCCESS;
}

int
backing_arg_set_hints (const struct backing_arg *b, uint64_t size_bytes,
                       struct header *header)
{
  struct hints hints;
  int r;

  if (b->format == NULL)
    return EXIT_SUCCESS;
  r = hints_take (&hints, &b->location, size_bytes);
  if (r == 0) {
    strcpy (hints.format, b->format);
    r = format_set_hints (header, &hints);
  }
  return r ? img_file_error (b->location.name, r) : EXIT_SUCCESS;
}

/* The path of what may not be there yet, its folder resolved. */
static char *
canonical (const char *path)
{
  CLEANUP_FREE char *folder = NULL;
  char *result = realpath (path, NULL);

  if (result || name_folder (path, &folder) != 0 ||
      asprintf (&result, "%s/%s", folder, name_basename (path)) == -1)
    return result;
  return result;
}

static bool
is_same (const char *a, const char *b)
{
  CLEANUP_FREE char *path_a = canonical (a);
  CLEANUP_FREE char *path_b = canonical (b);
  struct stat st_a, st_b;

  if (path_a && path_b && strcmp (path_a, path_b) == 0)
    return true;
  return stat (a, &st_a) == 0 && stat (b, &st_b) == 0 &&
         same_file (&st_a, &st_b);
}

int
check_distinct_paths (const char *path, const char *image_path,
                      const char *backing_path)
{
  if (image_path && is_same (image_path, path))
    return img_file_error (image_path, ADDCOW_E_IMAGE_IS_METADATA);
  if (backing_path && is_same (backing_path, path))
    return img_file_error (backing_path, ADDCOW_E_BACKING_IS_METADATA);
  if (image_path && backing_path && is_same (image_path, backing_path))
    return img_file_error (backing_path, ADDCOW_E_BACKING_IS_IMAGE);
  return EXIT_SUCCESS;
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "error.h"

static const struct {
  const char *text;
  int as_errno;
} errors[] = {
#define E(code, text, as_errno) [code - ADDCOW_E_MAGIC] = { text, as_errno }
  E (ADDCOW_E_MAGIC, "not an add-cow file", EINVAL),
  E (ADDCOW_E_VERSION, "unknown add-cow version (only version 1 is known)",
     EINVAL),
  E (ADDCOW_E_BACKING_NAME, "corrupt header: the backing file name has no end",
     EINVAL),
  E (ADDCOW_E_IMAGE_NAME, "corrupt header: the image file name has no end",
     EINVAL),
  E (ADDCOW_E_SIZE_SECTORS,
     "corrupt header: the disk size is not a multiple of 512", EINVAL),
  E (ADDCOW_E_SIZE_LARGE, "corrupt header: the disk size is 2^63 or more",
     EFBIG),
  E (ADDCOW_E_TRUNCATED, "truncated: shorter than its header and bitmap",
     EINVAL),
  E (ADDCOW_E_NAME_LONG,
     "name is longer than the 1023 bytes the header has room for",
     ENAMETOOLONG),
  E (ADDCOW_E_NOT_REGULAR, "not a regular file", EINVAL),
  E (ADDCOW_E_NOT_DISK, "neither a regular file nor a block device", EINVAL),
  E (ADDCOW_E_URI, "is a URI, a local file is needed here", ENOTSUP),
  E (ADDCOW_E_IMAGE_SHORT, "image file is shorter than the virtual disk",
     EINVAL),
  E (ADDCOW_E_NO_IMAGE, "names no image file and so cannot be a backing file",
     EINVAL),
  E (ADDCOW_E_IMAGE_IS_METADATA,
     "image file and metadata file are the same file", EINVAL),
  E (ADDCOW_E_BACKING_IS_METADATA,
     "backing file and metadata file are the same file", EINVAL),
  E (ADDCOW_E_BACKING_IS_IMAGE, "backing file and image file are the same file",
     EINVAL),
  E (ADDCOW_E_FOREIGN_FORMAT,
     "begins like a disk image of another format and is not "
     "read as raw unless told to",
     EINVAL),
  E (ADDCOW_E_IN_USE, "in use by another process", EBUSY),
  E (ADDCOW_E_OUTSIDE, "is not under the folder that names are confined to",
     EACCES),
  E (ADDCOW_E_CHAIN_LOOP, "is a backing file of itself", ELOOP),
  E (ADDCOW_E_CHAIN_LONG, "is one backing file too many in a row", ELOOP),
  E (ADDCOW_E_HINTS_LONG,
     "name is so long that the header has no room for hints behind it",
     ENAMETOOLONG),
#undef E
};

static int
table_index (int err)
{
  int i = err - ADDCOW_E_MAGIC;

  return i >= 0 && i < (int) ARRAY_SIZE (errors) ? i : -1;
}

const char *
addcow_strerror (int err)
{
  int i = table_index (err);
  const char *text;

  if (i >= 0)
    return errors[i].text;
  text = strerrordesc_np (err);
  return text ? text : "unknown error";
}

int
addcow_errno (int err)
{
  int i = table_index (err);

  return i >= 0 ? errors[i].as_errno : err;
}

int
failure_set_detail (struct failure *f, const char *file_name, int err,
                    const char *detail)
{
  char *name_copy = strdup (file_name);
  char *detail_copy = detail ? strdup (detail) : NULL;

  failure_clear (f);
  f->file_name = name_copy;
  f->detail = detail_copy;
  f->err = err;
  return err;
}

int
failure_set (struct failure *f, const char *file_name, int err)
{
  return failure_set_detail (f, file_name, err, NULL);
}

int
failure_copy (struct failure *f, const struct failure *from)
{
  char *name = from->file_name ? strdup (from->file_name) : NULL;
  char *detail = from->detail ? strdup (from->detail) : NULL;

  failure_clear (f);
  *f = (struct failure){
    .err = from->err,
    .file_name = name,
    .detail = detail,
    .format = from->format,
  };
  return f->err;
}

const char *
failure_text (const struct failure *f)
{
  return f->detail ? f->detail : addcow_strerror (f->err);
}

void
failure_clear (struct failure *f)
{
  free (f->file_name);
  free (f->detail);
  *f = (struct failure){ .err = 0 };
}

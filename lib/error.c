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
  E (ADDCOW_E_URI,
     "is a URI, only local raw files and block devices can be used", ENOTSUP),
  E (ADDCOW_E_IMAGE_SHORT, "image file is shorter than the virtual disk",
     EINVAL),
  E (ADDCOW_E_IMAGE_IS_METADATA,
     "image file and metadata file are the same file", EINVAL),
  E (ADDCOW_E_BACKING_IS_METADATA,
     "backing file and metadata file are the same file", EINVAL),
  E (ADDCOW_E_BACKING_IS_IMAGE, "backing file and image file are the same file",
     EINVAL),
  E (ADDCOW_E_FOREIGN_FORMAT,
     "backing file begins like a disk image of another format and is not "
     "read as raw, convert it first (qemu-img convert -O raw)",
     EINVAL),
  E (ADDCOW_E_IN_USE, "in use by another process", EBUSY),
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
failure_set (struct failure *f, const char *file_name, int err)
{
  char *copy = strdup (file_name);

  free (f->file_name);
  f->file_name = copy;
  f->err = err;
  return err;
}

void
failure_clear (struct failure *f)
{
  free (f->file_name);
  f->file_name = NULL;
  f->err = 0;
}

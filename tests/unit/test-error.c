/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Every error of the engine has words of its own, and an errno.
 */

#include <config.h>

#include <errno.h>

#include "check.h"
#include "error.h"

#define FIRST ADDCOW_E_MAGIC
#define LAST ADDCOW_E_HINTS_LONG

static bool
is_known (int err)
{
  return strcmp (addcow_strerror (err), "unknown error") != 0;
}

static void
test_texts (void)
{
  int i, j;

  for (i = FIRST; i <= LAST; i++) {
    const char *text = addcow_strerror (i);

    CHECK (text != NULL);
    CHECK (text[0] != '\0' && text[strlen (text) - 1] != '\n');
    CHECK (is_known (i));
    for (j = FIRST; j < i; j++)
      CHECK (strcmp (text, addcow_strerror (j)) != 0);
  }
  CHECK (!is_known (FIRST - 1));
  CHECK (!is_known (FIRST + 1000));
  CHECK (!is_known (-1));
  CHECK_STR (addcow_strerror (ADDCOW_E_MAGIC), "not an add-cow file");
  CHECK_STR (addcow_strerror (ADDCOW_E_IN_USE), "in use by another process");

  CHECK_STR (addcow_strerror (ENOSPC), strerrordesc_np (ENOSPC));
  CHECK_STR (addcow_strerror (EIO), "Input/output error");
}

static void
test_errnos (void)
{
  static const struct {
    int err, as_errno;
  } cases[] = {
    { ADDCOW_E_MAGIC, EINVAL },
    { ADDCOW_E_VERSION, EINVAL },
    { ADDCOW_E_SIZE_LARGE, EFBIG },
    { ADDCOW_E_TRUNCATED, EINVAL },
    { ADDCOW_E_NAME_LONG, ENAMETOOLONG },
    { ADDCOW_E_IN_USE, EBUSY },
    { ADDCOW_E_HINTS_LONG, ENAMETOOLONG },
    { 0, 0 },
    { ENOSPC, ENOSPC },
    { EIO, EIO },
    { EDQUOT, EDQUOT },
    { EOPNOTSUPP, EOPNOTSUPP },
  };
  size_t i;
  int err;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++)
    CHECK_EQ (addcow_errno (cases[i].err), cases[i].as_errno);
  for (err = FIRST; err <= LAST; err++)
    CHECK (strerrorname_np (addcow_errno (err)) != NULL);
}

static void
test_failure (void)
{
  struct failure f = { 0 };
  char name[] = "a file";

  failure_clear (&f);
  CHECK_EQ (failure_set (&f, name, ENOENT), ENOENT);
  CHECK_EQ (f.err, ENOENT);
  CHECK_STR (f.file_name, "a file");
  CHECK (f.file_name != name);
  name[0] = 'A';
  CHECK_STR (f.file_name, "a file");

  CHECK_EQ (failure_set (&f, "another", ADDCOW_E_URI), ADDCOW_E_URI);
  CHECK_EQ (f.err, ADDCOW_E_URI);
  CHECK_STR (f.file_name, "another");

  failure_clear (&f);
  CHECK (f.file_name == NULL);
  CHECK_EQ (f.err, 0);
  failure_clear (&f);
}

static void
test_copy (void)
{
  CLEANUP_FAILURE struct failure to = { 0 };
  struct failure from = { .err = ENOMEM };

  CHECK_EQ (failure_set (&to, "old", EIO), EIO);
  CHECK_EQ (failure_copy (&to, &from), ENOMEM);
  CHECK (to.err == ENOMEM && to.file_name == NULL && to.detail == NULL);

  failure_set_detail (&from, "a file", ADDCOW_E_FOREIGN_FORMAT, "a detail");
  from.format = "qcow2";
  CHECK_EQ (failure_copy (&to, &from), ADDCOW_E_FOREIGN_FORMAT);
  failure_clear (&from);
  CHECK_STR (to.file_name, "a file");
  CHECK_STR (to.detail, "a detail");
  CHECK_STR (to.format, "qcow2");
}

int
main (void)
{
  test_texts ();
  test_errnos ();
  test_failure ();
  test_copy ();
  return 0;
}

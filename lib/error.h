/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The errors of the engine.
 *
 * Functions of lib/ that can fail return 0 or an error number.  It is
 * either an errno or one of the numbers below, which begin where no
 * errno is.  Nothing in lib/ prints: the caller words the error, and
 * says which file it happened to.
 */

#ifndef ADDCOW_ERROR_H
#define ADDCOW_ERROR_H

enum addcow_error {
  ADDCOW_E_MAGIC = 10000,     /* not an add-cow file */
  ADDCOW_E_VERSION,           /* an add-cow file of another version */
  ADDCOW_E_BACKING_NAME,      /* backing_file without a NUL */
  ADDCOW_E_IMAGE_NAME,        /* image_file without a NUL */
  ADDCOW_E_SIZE_SECTORS,      /* size is not whole sectors */
  ADDCOW_E_SIZE_LARGE,        /* size is 2^63 or more */
  ADDCOW_E_TRUNCATED,         /* shorter than header and bitmap */
  ADDCOW_E_NAME_LONG,         /* a name does not fit into the header */
  ADDCOW_E_NOT_REGULAR,       /* neither a regular file nor allowed */
  ADDCOW_E_NOT_DISK,          /* neither regular file nor block device */
  ADDCOW_E_URI,               /* a URI where a local file is needed */
  ADDCOW_E_IMAGE_SHORT,       /* image shorter than the virtual disk */
  ADDCOW_E_NO_IMAGE,          /* a header names none, where it must */
  ADDCOW_E_IMAGE_IS_METADATA, /* two names of one file */
  ADDCOW_E_BACKING_IS_METADATA,
  ADDCOW_E_BACKING_IS_IMAGE,
  ADDCOW_E_FOREIGN_FORMAT, /* raw backing with a format's magic */
  ADDCOW_E_IN_USE,         /* locked by another process */
  ADDCOW_E_OUTSIDE,        /* a name leads out of where it is confined to */
  ADDCOW_E_CHAIN_LOOP,     /* a backing file that is its own */
  ADDCOW_E_CHAIN_LONG,     /* more backing files than there may be */
  ADDCOW_E_HINTS_LONG,     /* hints do not fit into the header */
};

/* An error and the file it happened to, for the caller to word.
 * The strings are owned by the failure: release it with failure_clear.
 */
struct failure {
  int err;
  char *file_name;    /* may be NULL, when memory is short */
  char *detail;       /* more than ERR tells, instead of it; or NULL */
  const char *format; /* with ADDCOW_E_FOREIGN_FORMAT: which, static */
};

/* Fill *F.  A copy of FILE_NAME is taken.  Returns ERR, so that
 * "return failure_set (f, name, err)" is the way out of a function.
 */
int failure_set (struct failure *f, const char *file_name, int err);

/* The same with a DETAIL, of which a copy is taken. */
int failure_set_detail (struct failure *f, const char *file_name, int err,
                        const char *detail);

/* Make *F a copy of *FROM.  Returns FROM's error number. */
int failure_copy (struct failure *f, const struct failure *from);

/* What failed, in words that fit after "FILE: ". */
const char *failure_text (const struct failure *f);

/* Free what *F owns and make it empty.  Also for an empty one. */
void failure_clear (struct failure *f);

#define CLEANUP_FAILURE __attribute__ ((cleanup (failure_clear)))

/* What the error number ERR means, in words that fit after "FILE: ".
 * The string is static or, for an errno, as of strerrordesc_np(3).
 */
const char *addcow_strerror (int err);

/* The errno that is nearest to ERR, for callers that must give one. */
int addcow_errno (int err);

#endif /* ADDCOW_ERROR_H */

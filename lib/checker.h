/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What is wrong with an overlay, and mending what can be mended without
 * guessing.
 *
 * Looked at are the metadata file, whether the image can be used, and
 * whether the backing file can; neither of these is read, but for the first
 * bytes of a backing file, and neither is ever written.  Time goes by what is
 * data in the metadata file, memory is bounded.
 */

#ifndef ADDCOW_CHECKER_H
#define ADDCOW_CHECKER_H

#include <stdbool.h>
#include <stdint.h>

#include "backing.h"
#include "error.h"
#include "hints.h"

/* In the order in which they are looked for. */
enum check_what {
  /* Of the header: nothing can mend it, and nothing else is looked at. */
  CHECK_HEADER_TRUNCATED, /* the file ends in it */
  CHECK_BACKING_NAME,     /* backing_file without a NUL */
  CHECK_IMAGE_NAME,       /* image_file without a NUL */
  CHECK_SIZE_SECTORS,     /* size is not whole sectors */
  CHECK_SIZE_LARGE,       /* size is 2^63 or more */

  /* Can be mended. */
  CHECK_BITMAP_TRUNCATED, /* the file ends in the bitmap */
  CHECK_STRAY_BITS,       /* bits past the last sector are set */
  CHECK_STRAY_BYTES,      /* bytes past the bitmap are not zero */
  CHECK_HINT_NO_KEY,      /* see format_check_hints */
  CHECK_HINT_VALUE,
  CHECK_HINT_TWICE,
  CHECK_HINT_NO_END,
  CHECK_HINT_TRAILING,

  /* Of the other files. */
  CHECK_IMAGE_MISSING,
  CHECK_IMAGE_SHORT,
  CHECK_IMAGE_UNUSABLE,
  CHECK_BACKING_MISSING, /* it, or what it needs itself */
  CHECK_BACKING_FORMAT,  /* begins like a format that nobody said it is */
  CHECK_BACKING_LOOP,    /* is a backing file of itself */
  CHECK_BACKING_UNUSABLE,
  CHECK_BACKING_CHANGED, /* is not as the hints say */

  NR_CHECKS
};

struct check_problem {
  enum check_what what;
  bool fixed; /* has been mended */

  /* CHECK_HEADER_TRUNCATED: how long the file is; CHECK_BITMAP_TRUNCATED:
   * how many bytes of the bitmap are not there.
   */
  uint64_t nr_bytes;

  /* CHECK_BITMAP_TRUNCATED: the byte of the disk from which on it is not
   * known what is allocated.
   */
  uint64_t disk_offset;

  struct failure failure;        /* of image or backing file: which, why */
  char change[HINTS_TEXT_BYTES]; /* CHECK_BACKING_CHANGED: in words */
};

struct check {
  unsigned nr_problems; /* each at most once */
  struct check_problem problems[NR_CHECKS];
};

#define CHECK_NONE \
  { \
    .nr_problems = 0 \
  }

struct check_options {
  bool repair;

  /* How the backing file is opened; the format and the chain are set here,
   * and log is told of nothing that is a problem.
   */
  struct backing_options backing;
};

/* Look at the overlay whose metadata file is FILE_NAME, under a shared lock,
 * and if repair is wanted mend what can be, under an exclusive one, after all
 * has been looked at.  What is mended is durable; a crash meanwhile leaves
 * what was wrong, or less of it.
 *
 * The backing file of an overlay whose sectors are all allocated is not
 * opened and need not be there.
 *
 * Returns 0, and in *CHECK, which was CHECK_NONE, what is wrong; it is cleared
 * by the caller.  Or why that cannot be said, and *FAILURE: ADDCOW_E_MAGIC and
 * ADDCOW_E_VERSION if FILE_NAME is no file to be looked at, ADDCOW_E_IN_USE,
 * or whatever keeps files from being opened or mended that says nothing about
 * them; *CHECK is of no use then.  May block in the file system, and on a
 * server as long as the timeout.
 */
int check_overlay (struct check *check, const char *file_name,
                   const struct check_options *options,
                   struct failure *failure);

/* Does that keep the overlay from being used, or has it lost some of its
 * content?  Otherwise it is harmless, or only suspicious.
 */
bool check_is_corruption (enum check_what what);

/* Free what *CHECK owns and make it CHECK_NONE. */
void check_clear (struct check *check);

#endif /* ADDCOW_CHECKER_H */

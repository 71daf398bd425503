/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The backing file that a verb is given for an overlay, and the names of the
 * three files of that.
 *
 * Functions that return EXIT_SUCCESS return EXIT_FAILURE when they fail, and
 * have said why.
 */

#ifndef ADDCOW_BACKING_ARG_H
#define ADDCOW_BACKING_ARG_H

#include <stdbool.h>

#include "backing.h"
#include "format.h"
#include "names.h"

struct backing_arg {
  const char *verb;         /* for messages */
  char *name;               /* as given; "": none; NULL: nothing was given */
  char *format;             /* as given, or NULL */
  struct location location; /* no name: none */
};

#define BACKING_ARG_NONE(VERB) \
  { \
    .verb = (VERB), .location = LOCATION_NONE \
  }

/* Free what B owns; also of BACKING_ARG_NONE. */
void backing_arg_clear (struct backing_arg *b);

/* Take VALUE for its name or format, each once. */
int backing_arg_set_name (struct backing_arg *b, const char *value);
int backing_arg_set_format (struct backing_arg *b, const char *value);

/* Was a backing file named? */
bool backing_arg_is_there (const struct backing_arg *b);

/* Is there no format without a backing file? */
int backing_arg_check (const struct backing_arg *b);

/* Let HEADER name it, without hints, and find where it is for a metadata file
 * in FOLDER.
 */
int backing_arg_resolve (struct backing_arg *b, const char *folder,
                         struct header *header);

/* Open it.  OPTIONS say all but its format.  *BACKING is the caller's.  May
 * block.
 */
int backing_arg_open (const struct backing_arg *b,
                      const struct backing_options *options,
                      struct backing **backing);

/* Let HEADER, in which it is resolved, have hints about it as it is now, whose
 * disk has SIZE_BYTES.  Without a format there are none: whoever does not ask
 * for them gets the bytes that add-cow files had from the beginning.  May
 * block.
 */
int backing_arg_set_hints (const struct backing_arg *b, uint64_t size_bytes,
                           struct header *header);

/* Are the metadata file at PATH, the image and the backing file three files?
 * Those two may be NULL, and none has to be there.
 */
int check_distinct_paths (const char *path, const char *image_path,
                          const char *backing_path);

#endif /* ADDCOW_BACKING_ARG_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Parameters that are a boolean, or a path: then they are on while there is
 * something at that path.
 */

#ifndef ADDCOW_SWITCH_H
#define ADDCOW_SWITCH_H

#include <stdbool.h>

struct switch_ {
  bool on;
  char *path; /* NULL: none; else ON is not looked at */
};

/* Set *S to the VALUE of a parameter.  Returns 0, or -1 and has said why. */
int switch_parse (struct switch_ *s, const char *value);

/* Can it ever be on? */
bool switch_may_be_on (const struct switch_ *s);

/* Is it on now?  May look into the file system. */
bool switch_is_on (const struct switch_ *s);

void switch_clear (struct switch_ *s);

#endif /* ADDCOW_SWITCH_H */

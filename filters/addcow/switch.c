/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "switch.h"

int
switch_parse (struct switch_ *s, const char *value)
{
  char *path = NULL;
  int on = 0;

  if (value[0] == '/') {
    path = nbdkit_absolute_path (value);
    if (path == NULL)
      return -1;
  }
  else {
    on = nbdkit_parse_bool (value);
    if (on == -1)
      return -1;
  }
  switch_clear (s);
  *s = (struct switch_){ .on = on, .path = path };
  return 0;
}

bool
switch_may_be_on (const struct switch_ *s)
{
  return s->on || s->path;
}

bool
switch_is_on (const struct switch_ *s)
{
  return s->path ? access (s->path, F_OK) == 0 : s->on;
}

void
switch_clear (struct switch_ *s)
{
  free (s->path);
  *s = (struct switch_){ .on = false };
}

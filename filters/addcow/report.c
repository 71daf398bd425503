/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "common.h"
#include "report.h"
#include "text.h"

void
report_error (const char *format, ...)
{
  CLEANUP_FREE char *text = NULL;
  CLEANUP_FREE char *printable = NULL;
  va_list args;
  int r;

  va_start (args, format);
  r = vasprintf (&text, format, args);
  va_end (args);
  if (r == -1)
    text = NULL;
  else
    printable = text_printable (text);
  nbdkit_error ("%s", printable ? printable : "out of memory");
}

void
report_failure (const struct failure *f, const char *overlay)
{
  const char *name = f->file_name ? f->file_name : "?";
  const bool add = overlay && strcmp (overlay, name) != 0;
  const char *of = add ? overlay : "", *colon = add ? ": " : "";

  if (f->err == ADDCOW_E_IN_USE)
    report_error ("%s%s%s is in use by another process", of, colon, name);
  else if (f->err == ADDCOW_E_FOREIGN_FORMAT && f->detail == NULL)
    report_error ("%s%s%s: begins like a disk image of the format %s, and is "
                  "read as raw only when told to: give "
                  "addcow-backing-format=%s, or addcow-backing-format=raw "
                  "to insist",
                  of, colon, name, f->format, f->format);
  else
    report_error ("%s%s%s: %s", of, colon, name, failure_text (f));
}

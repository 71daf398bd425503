/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>
#include <sys/ioctl.h>

#include "img.h"

#define DEFAULT_COLUMNS 80

/* How many bytes at P are a control character, or the backslash that
 * stands for one; 0: it is something else.  Those from U+0080 to U+009F
 * have two.
 */
static size_t
special (const unsigned char *p)
{
  if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] <= 0x9f)
    return 2;
  return p[0] < ' ' || p[0] == 0x7f || p[0] == '\\';
}

void
text_print (FILE *fp, const char *text)
{
  const unsigned char *p = (const unsigned char *) text;

  while (*p) {
    const unsigned char *begin = p;
    size_t n;

    while (*p && special (p) == 0)
      p++;
    fwrite (begin, 1, p - begin, fp);
    for (n = *p ? special (p) : 0; n > 0; n--, p++)
      if (*p == '\\')
        fputs ("\\\\", fp);
      else
        fprintf (fp, "\\%03o", *p);
  }
}

size_t
terminal_columns (FILE *fp)
{
  struct winsize size;

  if (ioctl (fileno (fp), TIOCGWINSZ, &size) == -1 || size.ws_col == 0)
    return DEFAULT_COLUMNS;
  return size.ws_col;
}

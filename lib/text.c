/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <iconv.h>
#include <stdlib.h>
#include <string.h>

#include "text.h"

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

/* The system knows what UTF-8 is. */
static bool
is_utf8 (const char *text)
{
  char in[TEXT_LINE_BYTES], out[TEXT_LINE_BYTES * 4];
  char *from = in, *to = out;
  size_t nr_in = strlen (text), nr_out = sizeof out;
  iconv_t conversion;
  bool valid;

  if (nr_in > sizeof in)
    return false;
  memcpy (in, text, nr_in);
  conversion = iconv_open ("UCS-4", "UTF-8");
  if (conversion == (iconv_t) -1)
    return false;
  valid = iconv (conversion, &from, &nr_in, &to, &nr_out) != (size_t) -1;
  iconv_close (conversion);
  return valid;
}

bool
text_is_line (const char *text)
{
  const unsigned char *p;

  for (p = (const unsigned char *) text; *p; p++)
    if (*p != '\\' && special (p))
      return false;
  return is_utf8 (text);
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

char *
text_printable (const char *text)
{
  char *printable = NULL;
  size_t size;
  FILE *fp = open_memstream (&printable, &size);

  if (fp == NULL)
    return NULL;
  text_print (fp, text);
  if (fclose (fp) == 0)
    return printable;
  free (printable);
  return NULL;
}

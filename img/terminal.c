/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>
#include <sys/ioctl.h>

#include "img.h"

#define DEFAULT_COLUMNS 80

size_t
terminal_columns (FILE *fp)
{
  struct winsize size;

  if (ioctl (fileno (fp), TIOCGWINSZ, &size) == -1 || size.ws_col == 0)
    return DEFAULT_COLUMNS;
  return size.ws_col;
}

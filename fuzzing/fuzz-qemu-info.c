/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What qemu-img prints about an image: JSON with strings from that image.
 */

#include <config.h>

#include <errno.h>

#include "common.h"
#include "fuzz.h"
#include "qemu-info.h"

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct input in = { data, size };
  CLEANUP_FREE char *text = take_string (&in);
  bool names = false;
  int r = qemu_info_parse (text, &names);

  CHECK (r == 0 || r == EIO);
  /* What is read for "needs no other file" says so in some way. */
  if (r == 0 && !names)
    CHECK (strchr (text, '{'));
  return 0;
}

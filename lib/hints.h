/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a header says about its backing file, and whether that is still so.
 *
 * What hints are is in format.h.  Nothing here keeps state or takes a lock.
 */

#ifndef ADDCOW_HINTS_H
#define ADDCOW_HINTS_H

#include <stdbool.h>
#include <stdint.h>

#include "format.h"

struct location;
struct stat;

/* The size and mtime of what *ST is about, into *NOW, which has no other
 * hints then.  Only of a regular file: what else there is has none.
 */
void hints_of_stat (struct hints *now, const struct stat *st);

/* The size and mtime of what is at LOCATION, likewise.  Of a block device,
 * which is opened for it, the size is its length, and of a URI SIZE_BYTES,
 * the length of the disk there; neither has an mtime.  Returns 0,
 * ADDCOW_E_NOT_DISK or an errno, and then *NOW is undefined.  May block in
 * the file system, but not on a server.
 */
int hints_take (struct hints *now, const struct location *location,
                uint64_t size_bytes);

/* What differs between THEN and NOW.  What one of them does not know does
 * not.
 */
struct hints_change {
  bool size, mtime;
};
struct hints_change hints_compare (const struct hints *then,
                                   const struct hints *now);

/* What differs, in words, into BUF, which is returned: "length 4096 bytes,
 * was 512; modified 2026-01-02 03:04:05.000000006 UTC, was ...".  Empty if
 * nothing does.
 */
#define HINTS_TEXT_BYTES 192
const char *hints_change_text (const struct hints *then,
                               const struct hints *now,
                               char buf[HINTS_TEXT_BYTES]);

#endif /* ADDCOW_HINTS_H */

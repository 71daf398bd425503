/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writing hints into a metadata file, so that the power may go at any moment.
 *
 * What is on disk at each moment
 * ------------------------------
 * A sector of the file is written as a whole or not at all, and the field of
 * the backing file lies in three.  So they are written one after the other,
 * each durable before the next.  At each moment
 *
 * - the format is the one that the hints had and will have: a wrong one, or
 *   none, may have the disk read as something that it is not;
 * - of size and mtime there is what was there before, or less of it, or what
 *   will be there, or less of it;
 * - there is no value that is not valid, if there was none.
 *
 * Whether that is so depends on where the strings lie, and is found out before
 * anything is written.
 *
 * The caller has the file to itself.  Nothing here keeps state.
 */

#ifndef ADDCOW_HINTS_WRITE_H
#define ADDCOW_HINTS_WRITE_H

#include <stdbool.h>

#include "format.h"

/* Make the hints of *FROM, the header of FD, those of *TO, in which nothing
 * else differs.  *WRITTEN: it is done, and durable; else there is no order of
 * sectors for it, and nothing was written.  Returns 0 or an errno.  May block.
 */
int hints_write (int fd, const struct header *from, const struct header *to,
                 bool *written);

/* As format_update_hints with *NOW, in the file FD, the header of which is
 * *FROM.  Where there is no other way a number has zeroes before it
 * afterwards, or a hint that has become longer is hidden.  Durable when it
 * returns 0, else an errno.  May block.
 */
int hints_update (int fd, const struct header *from, const struct hints *now);

#endif /* ADDCOW_HINTS_WRITE_H */

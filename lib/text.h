/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Text with names in it that others have made up, for people to read.
 */

#ifndef ADDCOW_TEXT_H
#define ADDCOW_TEXT_H

#include <stdbool.h>
#include <stdio.h>

/* Is TEXT, of TEXT_LINE_BYTES at most, UTF-8 without control characters?
 * Allocates and may block for what iconv needs.
 */
#define TEXT_LINE_BYTES 4096
bool text_is_line (const char *text);

/* Write TEXT, such as the name of a file, to FP, so that it stays in its line
 * and does nothing to a terminal: control characters as a backslash and three
 * octal digits for each byte, a backslash as two.
 */
void text_print (FILE *fp, const char *text);

/* The same as a string, which the caller frees; NULL where memory is short. */
char *text_printable (const char *text);

#endif /* ADDCOW_TEXT_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img: what its files have in common.
 *
 * Each verb is a function that gets its own arguments, its name first,
 * and returns the exit status.  Whatever fails is said with img_error, one
 * line on stderr, and nothing but progress is written to stdout then: a
 * verb prints when all it does has been done.
 */

#ifndef ADDCOW_IMG_H
#define ADDCOW_IMG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "error.h"
#include "text.h"

/* main.c */

/* Print "addcow-img: FORMAT...", as text_print does. */
void img_error (const char *format, ...)
    __attribute__ ((format (printf, 1, 2)));

/* Print "addcow-img: FILE: reason" for the error number ERR, or for
 * *FAILURE.  Return EXIT_FAILURE.
 */
int img_file_error (const char *file_name, int err);
int img_failure (const struct failure *failure);

/* Print how VERB, or with NULL the program, is used: to stdout and
 * return EXIT_SUCCESS.
 */
int img_help (const char *verb);

/* Say that the arguments of VERB (or NULL) are wrong, and where help is.
 * Returns EXIT_FAILURE.
 */
int img_usage_error (const char *verb, const char *format, ...)
    __attribute__ ((format (printf, 2, 3)));

/* Word what getopt_long, called for VERB with opterr 0 and a leading ':',
 * returned as C, ':' or '?'.  Returns EXIT_FAILURE.
 */
int img_option_error (const char *verb, int c, char *argv[]);

/* Set the argument *WHERE of VERB, which is called WHAT and must be given only
 * once, to a copy of VALUE.  Returns EXIT_SUCCESS, or EXIT_FAILURE and has said
 * why.
 */
int img_set_once (const char *verb, char **where, const char *what,
                  const char *value);

/* What is left of the arguments of VERB behind its options is to be one FILE,
 * which goes to *FILE_NAME.  Returns EXIT_SUCCESS, or EXIT_FAILURE and has said
 * why.
 */
int img_only_file (const char *verb, int argc, char *argv[],
                   const char **file_name);

/* Flush stdout.  Returns EXIT_SUCCESS, or EXIT_FAILURE and has said why.
 */
int img_close_stdout (void);

/* size.c */

/* Parse TEXT, a number of bytes with an optional suffix b, k, K, M, G, T,
 * P or E (powers of 1024) and, with a suffix, perhaps a decimal point.
 * Returns 0, EINVAL, or ERANGE for 2^63 or more.
 */
int size_parse (const char *text, uint64_t *size_bytes);

/* SIZE_BYTES for people: "10 GiB", "1.5 MiB", "512 B". */
#define SIZE_TEXT_BYTES 32
const char *size_text (uint64_t size_bytes, char buf[SIZE_TEXT_BYTES]);

/* terminal.c */

/* How wide the terminal FP is; of one that does not tell, as usual. */
size_t terminal_columns (FILE *fp);

/* check.c, commit.c, create.c, info.c, map.c, rebase.c, resize.c,
 * stream.c
 */
int img_check (int argc, char *argv[]);
int img_commit (int argc, char *argv[]);
int img_create (int argc, char *argv[]);
int img_info (int argc, char *argv[]);
int img_map (int argc, char *argv[]);
int img_rebase (int argc, char *argv[]);
int img_resize (int argc, char *argv[]);
int img_stream (int argc, char *argv[]);

#endif /* ADDCOW_IMG_H */

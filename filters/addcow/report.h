/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Errors on their way to nbdkit.
 */

#ifndef ADDCOW_REPORT_H
#define ADDCOW_REPORT_H

#include "error.h"

/* As nbdkit_error, but control characters, which names that clients and
 * metadata files made up may have, are printed as text_print does.
 */
void report_error (const char *format, ...)
    __attribute__ ((format (printf, 1, 2)));

/* What is wrong with the files of an overlay.  OVERLAY, where there are many,
 * says of which if the failure does not; or NULL.
 */
void report_failure (const struct failure *failure, const char *overlay);

#endif /* ADDCOW_REPORT_H */

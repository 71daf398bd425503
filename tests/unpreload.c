/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Preloaded into a server after a sanitizer's runtime: keeps both from the
 * programs that the server starts, which were not built for it.  A shell
 * with libtsan in it crashes.
 *
 * And keeps the server from hanging in exit: a library of TLS frees its
 * locale there, for which it waits for a lock that is held for ever when
 * a text for an errno was wanted before.
 */

#include <config.h>

#include <locale.h>
#include <stdlib.h>

__attribute__ ((constructor)) static void
unpreload (void)
{
  unsetenv ("LD_PRELOAD");
}

void
freelocale (locale_t locale)
{
  (void) locale; /* the program ends */
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Preloaded into a server after a sanitizer's runtime: keeps both from the
 * programs that the server starts, which were not built for it.  A shell
 * with libtsan in it crashes.
 */

#include <config.h>

#include <stdlib.h>

__attribute__ ((constructor)) static void
unpreload (void)
{
  unsetenv ("LD_PRELOAD");
}

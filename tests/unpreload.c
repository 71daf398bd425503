/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Preloaded into a server after a sanitizer's runtime: keeps both from the
 * programs that the server starts, which were not built for it.  A shell
 * with libtsan in it crashes.
 *
 * And keeps the server from hanging: with a runtime preloaded, glibc's lock
 * of locales can be held for ever once a text for an errno was wanted.
 * Libraries make and free locales where they parse and when the program
 * ends, and wait for it.  The tests know one locale, so there is nothing to
 * be made.
 */

#include <config.h>

#include <locale.h>
#include <stdlib.h>

__attribute__ ((constructor)) static void
unpreload (void)
{
  unsetenv ("LD_PRELOAD");
}

locale_t
newlocale (int mask, const char *name, locale_t base)
{
  (void) mask;
  (void) name;
  return base ? base : LC_GLOBAL_LOCALE;
}

locale_t
duplocale (locale_t locale)
{
  return locale;
}

void
freelocale (locale_t locale)
{
  (void) locale;
}

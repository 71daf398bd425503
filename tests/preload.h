/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the libraries share that tests preload into programs.
 *
 * They are without a sanitizer, also where what they are preloaded into has
 * one, and may come before or after its functions.
 */

#ifndef ADDCOW_PRELOAD_H
#define ADDCOW_PRELOAD_H

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define EXPORT __attribute__ ((visibility ("default")))

/* In the function NAME of a library: the one that it stands before, as real.
 * Many threads may look for it at a time.
 */
#define REAL(name) \
  static typeof (name) *found; \
  typeof (name) *real = __atomic_load_n (&found, __ATOMIC_RELAXED); \
  if (real == NULL) \
    real = (typeof (name) *) dlsym (RTLD_NEXT, #name); \
  __atomic_store_n (&found, real, __ATOMIC_RELAXED)

/* NAME is the same as the library's NAME64.  Without that a program that was
 * built without large files, or where the two are one, goes past it.
 */
#define ALSO_AS(name, name64) \
  extern typeof (name) name EXPORT __attribute__ ((alias (#name64)))
#define ALSO_WITHOUT_64(name) ALSO_AS (name, name##64)

/* In a function like open: the mode, where there is one. */
#define GET_MODE(mode, flags) \
  do { \
    va_list args; \
\
    va_start (args, flags); \
    if ((flags) & (O_CREAT | O_TMPFILE)) \
      mode = va_arg (args, mode_t); \
    va_end (args); \
  } while (0)

/* The path of FD into PATH, of SIZE bytes, or an empty string.  May change
 * errno; allocates nothing.
 */
static inline void
path_of_fd (int fd, char *path, size_t size)
{
  char link[64];
  ssize_t n;

  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  n = readlink (link, path, size - 1);
  path[n > 0 ? n : 0] = '\0';
}

#endif /* ADDCOW_PRELOAD_H */

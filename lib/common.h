/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Small macros that every file of the engine may use.
 */

#ifndef ADDCOW_COMMON_H
#define ADDCOW_COMMON_H

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define DIV_ROUND_UP(n, d) ((n) / (d) + ((n) % (d) != 0))
#define ARRAY_SIZE(a) (sizeof (a) / sizeof ((a)[0]))

#define container_of(p, type, member) \
  ((type *) ((char *) (p) -offsetof (type, member)))

/* A parameter that an interface has and this function does not need. */
#define UNUSED __attribute__ ((unused))

/* What a scope owns is released when the scope ends. */
#define CLEANUP_FREE __attribute__ ((cleanup (cleanup_free)))
#define CLEANUP_CLOSE __attribute__ ((cleanup (cleanup_close)))

static inline void
cleanup_free (void *p)
{
  free (*(void **) p);
}

static inline void
cleanup_close (int *fd)
{
  if (*fd >= 0)
    close (*fd);
}

/* Hold a mutex until the end of the enclosing scope. */
#define ACQUIRE_LOCK_FOR_CURRENT_SCOPE(mutex) \
  __attribute__ ((cleanup (cleanup_unlock), unused)) \
  pthread_mutex_t *scope_lock_ = (mutex); \
  pthread_mutex_lock (scope_lock_)

static inline void
cleanup_unlock (pthread_mutex_t **mutex)
{
  pthread_mutex_unlock (*mutex);
}

#endif /* ADDCOW_COMMON_H */

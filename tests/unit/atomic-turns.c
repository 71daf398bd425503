/* SPDX-License-Identifier: BSD-3-Clause
 *
 * In place of ThreadSanitizer: what is compiled for that calls these, and at
 * each access to an atomic variable another worker may go on.  So a schedule
 * also decides in what order those are; all of them see the same order.
 *
 * See ../test-simulation-atomics.sh.
 */

#include <config.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "workers.h"

static void
turn (void)
{
  worker_yield ();
}

/* No header has the prototypes, and nobody else needs them. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#pragma GCC diagnostic ignored "-Wmissing-declarations"

#define ATOMICS(BITS) \
  uint##BITS##_t __tsan_atomic##BITS##_load (const uint##BITS##_t *a, int o) \
  { \
    (void) o; \
    turn (); \
    return __atomic_load_n (a, __ATOMIC_SEQ_CST); \
  } \
  void __tsan_atomic##BITS##_store (uint##BITS##_t *a, uint##BITS##_t v, \
                                    int o) \
  { \
    (void) o; \
    turn (); \
    __atomic_store_n (a, v, __ATOMIC_SEQ_CST); \
    turn (); \
  } \
  OPERATION (BITS, exchange, exchange_n) \
  OPERATION (BITS, fetch_add, fetch_add) \
  OPERATION (BITS, fetch_sub, fetch_sub) \
  OPERATION (BITS, fetch_or, fetch_or) \
  OPERATION (BITS, fetch_and, fetch_and) \
  COMPARE (BITS, strong) \
  COMPARE (BITS, weak)

#define OPERATION(BITS, NAME, BUILTIN) \
  uint##BITS##_t __tsan_atomic##BITS##_##NAME (uint##BITS##_t *a, \
                                               uint##BITS##_t v, int o) \
  { \
    uint##BITS##_t r; \
\
    (void) o; \
    turn (); \
    r = __atomic_##BUILTIN (a, v, __ATOMIC_SEQ_CST); \
    turn (); \
    return r; \
  }

#define COMPARE(BITS, KIND) \
  int __tsan_atomic##BITS##_compare_exchange_##KIND ( \
      uint##BITS##_t *a, uint##BITS##_t *c, uint##BITS##_t v, int o, \
      int failed_o) \
  { \
    bool r; \
\
    (void) o; \
    (void) failed_o; \
    turn (); \
    r = __atomic_compare_exchange_n (a, c, v, false, __ATOMIC_SEQ_CST, \
                                     __ATOMIC_SEQ_CST); \
    turn (); \
    return r; \
  }

ATOMICS (8)
ATOMICS (16)
ATOMICS (32)
ATOMICS (64)

/* What is not atomic is another test's. */
#define ACCESS(NAME) \
  void __tsan_##NAME (void *p) { (void) p; }
#define ACCESSES(BYTES) \
  ACCESS (read##BYTES) \
  ACCESS (write##BYTES) \
  ACCESS (unaligned_read##BYTES) \
  ACCESS (unaligned_write##BYTES) \
  ACCESS (volatile_read##BYTES) \
  ACCESS (volatile_write##BYTES)

ACCESSES (1)
ACCESSES (2)
ACCESSES (4)
ACCESSES (8)
ACCESSES (16)
ACCESS (func_entry)

void
__tsan_func_exit (void)
{
}

void
__tsan_init (void)
{
}

void
__tsan_read_range (void *p, uint64_t n)
{
  (void) p;
  (void) n;
}

void
__tsan_write_range (void *p, uint64_t n)
{
  (void) p;
  (void) n;
}

/* clang has these, too. */
void *
__tsan_memcpy (void *to, const void *from, size_t n)
{
  return memcpy (to, from, n);
}

void *
__tsan_memmove (void *to, const void *from, size_t n)
{
  return memmove (to, from, n);
}

void *
__tsan_memset (void *p, int c, size_t n)
{
  return memset (p, c, n);
}

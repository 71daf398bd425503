/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What every target uses: the function that libFuzzer calls, checks that
 * abort, which is what a fuzzer takes for a finding, and taking an input
 * apart.
 */

#ifndef ADDCOW_FUZZ_H
#define ADDCOW_FUZZ_H

#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Try one input.  Called again and again, by libFuzzer or by once.c: keeps
 * nothing from one call to the next.  Returns 0.
 */
int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

#define CHECK(expr) \
  do { \
    if (!(expr)) { \
      dprintf (2, "%s:%d: failed: %s\n", __FILE__, __LINE__, #expr); \
      abort (); \
    } \
  } while (0)

/* What is left of an input.  Where nothing is left zeroes are taken. */
struct input {
  const uint8_t *p;
  size_t left;
};

static inline uint64_t
take (struct input *in, unsigned nr_bytes)
{
  uint64_t n = 0;

  for (; nr_bytes > 0; nr_bytes--) {
    n <<= 8;
    if (in->left > 0) {
      n |= *in->p++;
      in->left--;
    }
  }
  return n;
}

/* At most N bytes, as they are.  Returns how many, and *P is where. */
static inline size_t
take_bytes (struct input *in, const uint8_t **p, size_t n)
{
  if (n > in->left)
    n = in->left;
  *p = in->p;
  in->p += n;
  in->left -= n;
  return n;
}

/* What goes up to the next zero byte, or the end, as a string that the caller
 * frees.
 */
static inline char *
take_string (struct input *in)
{
  const size_t n = strnlen ((const char *) in->p, in->left);
  char *text = malloc (n + 1);

  CHECK (text != NULL);
  if (n > 0)
    memcpy (text, in->p, n);
  text[n] = '\0';
  in->p += n;
  in->left -= n;
  if (in->left > 0)
    take (in, 1);
  return text;
}

#endif /* ADDCOW_FUZZ_H */

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Objects of JSON as they are printed.
 */

#ifndef ADDCOW_JSON_H
#define ADDCOW_JSON_H

#include <stdbool.h>
#include <stdint.h>

#include <json-c/json.h>

/* Add a field to OBJECT.  A string becomes UTF-8, which JSON is: a byte that
 * is not becomes U+FFFD.  One that is NULL or empty is left out, and so is
 * one for which memory is short.
 */
void json_add_string (json_object *object, const char *key, const char *value);
void json_add_uint64 (json_object *object, const char *key, uint64_t value);
void json_add_int64 (json_object *object, const char *key, int64_t value);
void json_add_bool (json_object *object, const char *key, bool value);

/* Print OBJECT and a newline, with the FLAGS of json-c, and release it.
 * Returns 0 or ENOMEM.
 */
int json_put (json_object *object, int flags);
#define JSON_PRETTY \
  (JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED | \
   JSON_C_TO_STRING_NOSLASHESCAPE)

#endif /* ADDCOW_JSON_H */

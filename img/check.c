/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img check: what is wrong with an overlay, in words, and mending
 * what can be mended (lib/checker.h).
 *
 * On disk nothing changes without --repair.  With it, what is wrong with the
 * metadata file is mended when all has been looked at, and what is mended is
 * on disk when it is printed.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checker.h"
#include "common.h"
#include "img.h"
#include "json.h"
#include "open-disk.h"

/* As qemu-img check has them, besides EXIT_SUCCESS and EXIT_FAILURE. */
#define EXIT_CORRUPTION 2
#define EXIT_LEAKS 3
#define EXIT_NOT_SUPPORTED 63

struct result {
  const char *file_name;
  struct check check;

  /* What is left, and what was mended. */
  unsigned corruptions, leaks;
  unsigned corruptions_fixed, leaks_fixed;
};

static void
cleanup_result (struct result *r)
{
  check_clear (&r->check);
}

static void
count (struct result *r)
{
  unsigned i;

  for (i = 0; i < r->check.nr_problems; i++) {
    const struct check_problem *p = &r->check.problems[i];

    if (check_is_corruption (p->what))
      ++*(p->fixed ? &r->corruptions_fixed : &r->corruptions);
    else
      ++*(p->fixed ? &r->leaks_fixed : &r->leaks);
  }
}

static int
exit_status (const struct result *r)
{
  if (r->corruptions > 0)
    return EXIT_CORRUPTION;
  return r->leaks > 0 ? EXIT_LEAKS : EXIT_SUCCESS;
}

/*--- Words. -----------------------------------------------------------*/

static const struct {
  const char *keyword; /* for programs, for ever */
  const char *text;    /* NULL: see problem_text */
  const char *mended;  /* how, or NULL */
} words[] = {
  [CHECK_HEADER_TRUNCATED] = { "header-truncated", NULL, NULL },
  [CHECK_BACKING_NAME] = { "backing-name",
                           "the name of the backing file has no end", NULL },
  [CHECK_IMAGE_NAME] = { "image-name", "the name of the image file has no end",
                         NULL },
  [CHECK_SIZE_SECTORS] = { "size", "the disk size is not a multiple of 512",
                           NULL },
  [CHECK_SIZE_LARGE] = { "size", "the disk size is 2^63 or more", NULL },
  [CHECK_BITMAP_TRUNCATED] = { "bitmap-truncated", NULL, NULL },
  [CHECK_STRAY_BITS] = { "stray-bits", "bits past the last sector are set",
                         "they were cleared" },
  [CHECK_STRAY_BYTES] = { "stray-bytes", "bytes past the bitmap are not zero",
                          "they were cut off" },
  [CHECK_HINT_NO_KEY] = { "hint-no-key",
                          "a hint about the backing file is not KEY=VALUE",
                          "it was removed" },
  [CHECK_HINT_VALUE] = { "hint-value",
                         "a hint about the backing file has no valid value",
                         "it was removed" },
  [CHECK_HINT_TWICE] = { "hint-twice",
                         "a hint about the backing file comes again",
                         "the first was kept" },
  [CHECK_HINT_NO_END] = { "hint-no-end",
                          "the last hint about the backing file has no end",
                          "it was removed" },
  [CHECK_HINT_TRAILING] = { "hint-trailing",
                            "bytes behind the hints about the backing file are "
                            "not zero",
                            "they were cleared" },
  [CHECK_IMAGE_MISSING] = { "image-missing", NULL, NULL },
  [CHECK_IMAGE_SHORT] = { "image-short", NULL, NULL },
  [CHECK_IMAGE_UNUSABLE] = { "image-unusable", NULL, NULL },
  [CHECK_BACKING_MISSING] = { "backing-missing", NULL, NULL },
  [CHECK_BACKING_FORMAT] = { "backing-format", NULL, NULL },
  [CHECK_BACKING_LOOP] = { "backing-loop", NULL, NULL },
  [CHECK_BACKING_UNUSABLE] = { "backing-unusable", NULL, NULL },
  [CHECK_BACKING_CHANGED] = { "backing-changed", NULL, NULL },
};

static int
file_text (char **text, const char *which, const struct failure *f)
{
  return asprintf (text, "the %s cannot be used: %s: %s", which,
                   f->file_name ? f->file_name : "?", failure_text (f));
}

static int
bitmap_text (char **text, const struct check_problem *p)
{
  if (p->fixed)
    return asprintf (text,
                     "the last %" PRIu64 " bytes of the bitmap are missing; "
                     "zeroes were put there, so that the disk is read from the "
                     "backing file from byte %" PRIu64 " on",
                     p->nr_bytes, p->disk_offset);
  return asprintf (text, "the last %" PRIu64 " bytes of the bitmap are missing",
                   p->nr_bytes);
}

static int
format_text (char **text, const char *file_name, const struct failure *f)
{
  if (f->detail)
    return file_text (text, "backing file", f);
  return asprintf (text,
                   "the backing file %s begins like a disk image of the format "
                   "%s, and is read as raw only when %s says so",
                   f->file_name ? f->file_name : "?", f->format, file_name);
}

static int
other_text (char **text, const char *file_name, const struct check_problem *p)
{
  switch (p->what) {
  case CHECK_HEADER_TRUNCATED:
    return asprintf (text,
                     "the file ends after %" PRIu64 " bytes, in the header",
                     p->nr_bytes);
  case CHECK_BITMAP_TRUNCATED:
    return bitmap_text (text, p);
  case CHECK_BACKING_CHANGED:
    return asprintf (text,
                     "the backing file %s has changed since the overlay was "
                     "made (%s): sectors that are not allocated may not be "
                     "what they were",
                     p->failure.file_name ? p->failure.file_name : "?",
                     p->change);
  case CHECK_BACKING_FORMAT:
    return format_text (text, file_name, &p->failure);
  case CHECK_IMAGE_MISSING:
  case CHECK_IMAGE_SHORT:
  case CHECK_IMAGE_UNUSABLE:
    return file_text (text, "image file", &p->failure);
  default:
    return file_text (text, "backing file", &p->failure);
  }
}

/* What is wrong, and how it was mended if it was, on one line, which is the
 * caller's.  NULL when memory is short.
 */
static char *
problem_text (const char *file_name, const struct check_problem *p)
{
  char *text;
  int n;

  if (words[p->what].text == NULL)
    n = other_text (&text, file_name, p);
  else
    n = asprintf (&text, "%s%s%s", words[p->what].text, p->fixed ? "; " : "",
                  p->fixed ? words[p->what].mended : "");
  return n == -1 ? NULL : text;
}

/*--- Output. ----------------------------------------------------------*/

static int
print_problems (const struct result *r)
{
  unsigned i;

  for (i = 0; i < r->check.nr_problems; i++) {
    const struct check_problem *p = &r->check.problems[i];
    CLEANUP_FREE char *text = problem_text (r->file_name, p);

    if (text == NULL)
      return ENOMEM;
    printf ("%s%s: ", check_is_corruption (p->what) ? "ERROR" : "WARNING",
            p->fixed ? " (repaired)" : "");
    text_print (stdout, text);
    printf ("\n");
  }
  return 0;
}

static void
print_summary (const struct result *r)
{
  if (r->corruptions_fixed > 0 || r->leaks_fixed > 0)
    printf ("\nThe following inconsistencies were found and repaired:\n\n"
            "    %u warnings\n"
            "    %u corruptions\n\n",
            r->leaks_fixed, r->corruptions_fixed);
  if (r->corruptions == 0 && r->leaks == 0)
    printf ("No errors were found on the image.\n");
  if (r->corruptions > 0)
    printf ("\n%u errors were found on the image.\n"
            "It cannot be used, or some of its data is lost.\n",
            r->corruptions);
  if (r->leaks > 0)
    printf ("\n%u warnings were found on the image.\n"
            "The metadata and the image file are sound.\n",
            r->leaks);
}

static int
print_human (const struct result *r, bool quiet)
{
  int err = print_problems (r);

  if (err == 0 && !quiet)
    print_summary (r);
  return err;
}

static int
add_problems (json_object *problems, const struct result *r)
{
  unsigned i;

  for (i = 0; i < r->check.nr_problems; i++) {
    const struct check_problem *p = &r->check.problems[i];
    CLEANUP_FREE char *text = problem_text (r->file_name, p);
    json_object *problem = json_object_new_object ();

    if (text == NULL)
      return ENOMEM;
    json_add_string (problem, "what", words[p->what].keyword);
    json_add_string (problem, "severity",
                     check_is_corruption (p->what) ? "corruption" : "leak");
    json_add_bool (problem, "fixed", p->fixed);
    json_add_string (problem, "text", text);
    json_object_array_add (problems, problem);
  }
  return 0;
}

/* Those that qemu-img check has, and as there those that are 0 are not
 * there, but for the first.
 */
static void
add_counts (json_object *top, const struct result *r)
{
  json_add_uint64 (top, "check-errors", 0);
  if (r->corruptions > 0)
    json_add_uint64 (top, "corruptions", r->corruptions);
  if (r->leaks > 0)
    json_add_uint64 (top, "leaks", r->leaks);
  if (r->corruptions_fixed > 0)
    json_add_uint64 (top, "corruptions-fixed", r->corruptions_fixed);
  if (r->leaks_fixed > 0)
    json_add_uint64 (top, "leaks-fixed", r->leaks_fixed);
}

static int
print_json (const struct result *r)
{
  json_object *top = json_object_new_object ();
  json_object *problems = json_object_new_array ();
  int err = add_problems (problems, r);

  json_add_string (top, "filename", r->file_name);
  json_add_string (top, "format", "add-cow");
  add_counts (top, r);
  json_object_object_add (top, "problems", problems);
  if (err) {
    json_object_put (top);
    return err;
  }
  return json_put (top, JSON_PRETTY);
}

/* Why there is nothing to print. */
static int
check_error (const char *file_name, const struct failure *failure)
{
  open_disk_failure (file_name, failure);
  return failure->err == ADDCOW_E_MAGIC || failure->err == ADDCOW_E_VERSION
             ? EXIT_NOT_SUPPORTED
             : EXIT_FAILURE;
}

static int
check (const char *file_name, bool repair, bool json, bool quiet)
{
  __attribute__ ((cleanup (cleanup_result))) struct result result = {
    .file_name = file_name,
    .check = CHECK_NONE,
  };
  CLEANUP_FAILURE struct failure failure = { 0 };
  const struct check_options options = {
    .repair = repair,
    .backing = {
      .timeout_seconds = BACKING_TIMEOUT_SECONDS,
      .log = log_backing,
    },
  };
  int r;

  signal (SIGXFSZ, SIG_IGN);
  if (check_overlay (&result.check, file_name, &options, &failure))
    return check_error (file_name, &failure);
  count (&result);
  r = json ? print_json (&result) : print_human (&result, quiet);
  if (r)
    return img_file_error (file_name, r);
  r = img_close_stdout ();
  return r == EXIT_SUCCESS ? exit_status (&result) : r;
}

int
img_check (int argc, char *argv[])
{
  enum { OPTION_OUTPUT = 256 };
  static const struct option options[] = {
    { "help", no_argument, NULL, 'h' },
    { "output", required_argument, NULL, OPTION_OUTPUT },
    { "quiet", no_argument, NULL, 'q' },
    { "repair", no_argument, NULL, 'r' },
    { NULL, 0, NULL, 0 },
  };
  const char *file_name;
  bool repair = false, json = false, quiet = false;
  int c;

  opterr = 0;
  while ((c = getopt_long (argc, argv, ":hqr", options, NULL)) != -1)
    switch (c) {
    case 'h':
      return img_help ("check");
    case OPTION_OUTPUT:
      json = strcmp (optarg, "json") == 0;
      if (!json && strcmp (optarg, "human") != 0)
        return img_usage_error ("check", "--output must be human or json");
      break;
    case 'q':
      quiet = true;
      break;
    case 'r':
      repair = true;
      break;
    default:
      return img_option_error ("check", c, argv);
    }
  if (img_only_file ("check", argc, argv, &file_name) != EXIT_SUCCESS)
    return EXIT_FAILURE;
  return check (file_name, repair, json, quiet);
}

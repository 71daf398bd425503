/* SPDX-License-Identifier: BSD-3-Clause
 *
 * In the place of libFuzzer: try each input once.
 *
 *   fuzz-TARGET [FILE|FOLDER...]
 *
 * Without arguments, what is in corpora/fuzz-TARGET of the source.  afl-fuzz
 * can run this too: see README.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common.h"
#include "fuzz.h"

static unsigned nr_inputs;

static _Noreturn void
fail (const char *name)
{
  fprintf (stderr, "%s: %s\n", name, strerror (errno));
  exit (EXIT_FAILURE);
}

static void
try_file (const char *name)
{
  CLEANUP_FREE uint8_t *data = NULL;
  FILE *fp = fopen (name, "re");
  struct stat st;

  if (fp == NULL || fstat (fileno (fp), &st) == -1)
    fail (name);
  data = malloc (st.st_size + 1);
  if (data == NULL || fread (data, 1, st.st_size, fp) != (size_t) st.st_size)
    fail (name);
  fclose (fp);
  nr_inputs++;
  LLVMFuzzerTestOneInput (data, st.st_size);
}

static void
try_folder (const char *name)
{
  struct dirent **entries;
  int i, n = scandir (name, &entries, NULL, alphasort);

  if (n == -1)
    fail (name);
  for (i = 0; i < n; i++) {
    CLEANUP_FREE char *path = NULL;

    if (entries[i]->d_name[0] != '.') {
      if (asprintf (&path, "%s/%s", name, entries[i]->d_name) == -1)
        exit (EXIT_FAILURE);
      try_file (path);
    }
    free (entries[i]);
  }
  free (entries);
}

static void
try_any (const char *name)
{
  struct stat st;

  if (stat (name, &st) == -1)
    fail (name);
  if (S_ISDIR (st.st_mode))
    try_folder (name);
  else
    try_file (name);
}

static void
try_corpus (const char *program)
{
  const char *srcdir = getenv ("srcdir");
  const char *slash = strrchr (program, '/');
  CLEANUP_FREE char *folder = NULL;

  if (asprintf (&folder, "%s/corpora/%s", srcdir ? srcdir : ".",
                slash ? slash + 1 : program) == -1)
    exit (EXIT_FAILURE);
  try_folder (folder);
  if (nr_inputs > 0)
    return;
  fprintf (stderr, "%s: there are no inputs\n", folder);
  exit (EXIT_FAILURE);
}

int
main (int argc, char *argv[])
{
  int i;

  if (argc == 1)
    try_corpus (program_invocation_short_name);
  for (i = 1; i < argc; i++)
    try_any (argv[i]);
  printf ("%s: %u inputs\n", program_invocation_short_name, nr_inputs);
  return 0;
}

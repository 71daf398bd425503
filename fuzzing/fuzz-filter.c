/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The parameters of the filter, and the server's command line.
 *
 * The input is strings, each up to a NUL: the arguments of a server.  What has
 * a "=" in it is a parameter too.
 *
 * No file is opened: here it is looked at what is asked for.  What is a folder
 * is so for the filter, too.
 */

#include <config.h>

#include <limits.h>
#include <stdarg.h>

/* Of which the state must be forgotten, and static functions called. */
/* clang-format off */
#include "server-args.h"
void real_server_args_get (struct server_args *args, const char *filter);
#define server_args_get real_server_args_get
#include "server-args.c"
#undef server_args_get
#include "addcow.c"
/* clang-format on */

#include "fuzz.h"

/*--- What nbdkit has for filters. -------------------------------------*/

static unsigned nr_errors; /* that were told */

void
nbdkit_error (const char *format, ...)
{
  va_list args;
  char *text;

  va_start (args, format);
  CHECK (vasprintf (&text, format, args) >= 0);
  va_end (args);
  CHECK (text[0] && strlen (text) < 10000);
  free (text);
  nr_errors++;
}

int
nbdkit_parse_bool (const char *value)
{
  if (strcmp (value, "1") == 0 || strcmp (value, "true") == 0)
    return 1;
  if (strcmp (value, "0") == 0 || strcmp (value, "false") == 0)
    return 0;
  nbdkit_error ("not a boolean");
  return -1;
}

int64_t
nbdkit_parse_size (const char *value)
{
  char *end;
  const long long n = strtoll (value, &end, 10);

  if (*value && *end == '\0' && n >= 0)
    return n;
  nbdkit_error ("not a size");
  return -1;
}

int
nbdkit_parse_unsigned (const char *what, const char *value, unsigned *n)
{
  char *end;
  const unsigned long m = strtoul (value, &end, 0);

  CHECK (what);
  if (*value && *end == '\0' && m <= UINT_MAX) {
    *n = m;
    return 0;
  }
  nbdkit_error ("not a number");
  return -1;
}

void
nbdkit_debug (const char *format UNUSED, ...)
{
}

char *
nbdkit_absolute_path (const char *path)
{
  return strdup (path);
}

char *
nbdkit_realpath (const char *path)
{
  char *real = realpath (path, NULL);

  if (real == NULL)
    nbdkit_error ("realpath: %m");
  return real;
}

int
nbdkit_nanosleep (unsigned seconds UNUSED, unsigned ns UNUSED)
{
  return 0;
}

int
nbdkit_add_extent (struct nbdkit_extents *extents UNUSED,
                   uint64_t offset UNUSED, uint64_t count UNUSED,
                   uint32_t type UNUSED)
{
  return 0;
}

/* Nobody gets as far as these. */
const char *
nbdkit_strdup_intern (const char *string UNUSED)
{
  abort ();
}

int
nbdkit_add_export (struct nbdkit_exports *exports UNUSED,
                   const char *name UNUSED, const char *description UNUSED)
{
  abort ();
}

size_t
nbdkit_exports_count (const struct nbdkit_exports *exports UNUSED)
{
  abort ();
}

struct nbdkit_extents *
nbdkit_extents_new (uint64_t start UNUSED, uint64_t end UNUSED)
{
  abort ();
}

void
nbdkit_extents_free (struct nbdkit_extents *extents UNUSED)
{
  abort ();
}

size_t
nbdkit_extents_count (const struct nbdkit_extents *extents UNUSED)
{
  abort ();
}

struct nbdkit_extent
nbdkit_get_extent (const struct nbdkit_extents *extents UNUSED, size_t i UNUSED)
{
  abort ();
}

nbdkit_next *
nbdkit_next_context_open (nbdkit_backend *backend UNUSED, int readonly UNUSED,
                          const char *exportname UNUSED, int shared UNUSED)
{
  abort ();
}

void
nbdkit_next_context_close (nbdkit_next *next UNUSED)
{
  abort ();
}

/*--- What the filter does. --------------------------------------------*/

int __wrap_disk_open (struct disk **disk, const char *file_name,
                      const struct disk_options *options,
                      struct failure *failure);

int
__wrap_disk_open (struct disk **ret UNUSED, const char *file_name,
                  const struct disk_options *options, struct failure *failure)
{
  CHECK (file_name && file_name[0]);
  CHECK (options->backing.timeout_seconds >= 1 &&
         options->backing.timeout_seconds <= MAX_TIMEOUT_SECONDS);
  CHECK (options->backing.format == NULL || options->backing.format[0]);
  CHECK (options->backing.confine == NULL || options->backing.confine[0]);
  CHECK (!options->without_backing && !options->unlocked);
  CHECK (options->hooks && options->backing.log);
  return failure_set (failure, file_name, ADDCOW_E_MAGIC);
}

static int
next_config_of_plugin (nbdkit_backend *nxdata UNUSED, const char *key,
                       const char *value)
{
  CHECK (key[0] && value);
  CHECK (strncmp (key, "addcow", 6) != 0 || key[6] != '-');
  return 0;
}

/* The command line of the input. */
static struct server_args cmdline_args;

void
server_args_get (struct server_args *args, const char *name UNUSED)
{
  *args = cmdline_args;
}

static int
next_complete (nbdkit_backend *nxdata UNUSED)
{
  CHECK (only == NULL); /* no disk was opened */
  CHECK (folder && folder_path[0] == '/');
  CHECK (settings.args.file_plugin_is_next && dir_parameter == NULL);
  CHECK (settings.file_parameter == NULL);
  return 0;
}

static void
forget_parameters (void)
{
  addcow_unload ();
  metadata_name = dir_parameter = NULL;
  folder = NULL;
  folder_path = made_confine = made_backing = NULL;
  unconfined = false;
  cache_size = MAP_CACHE_BYTES;
  settings = (struct settings){
    .backing_timeout_seconds = BACKING_TIMEOUT_SECONDS,
    .commit_interval_seconds = 5,
  };
}

/* One argument; nbdkit refuses a key that is empty. */
static bool
try_parameter (char *argument)
{
  char *equals = strchr (argument, '=');
  const unsigned before = nr_errors;
  int r;

  if (equals == NULL || equals == argument)
    return true;
  *equals = '\0';
  r = addcow_config (next_config_of_plugin, NULL, argument, equals + 1);
  CHECK (r == 0 || r == -1);
  CHECK ((r == -1) == (nr_errors > before));
  return r == 0;
}

static void
try_parameters (struct input in)
{
  unsigned before;
  bool good = true;
  char *arguments[64];
  size_t i, n;
  int r;

  for (n = 0; good && in.left > 0 && n < ARRAY_SIZE (arguments); n++) {
    arguments[n] = take_string (&in);
    good = try_parameter (arguments[n]);
  }
  before = nr_errors;
  if (good) {
    r = addcow_config_complete (next_complete, NULL);
    CHECK (r == 0 || r == -1);
    CHECK (nr_errors == before - (unsigned) r);
  }
  forget_parameters ();
  for (i = 0; i < n; i++)
    free (arguments[i]);
}

static void
try_cmdline (struct input in)
{
  CLEANUP_FREE char *cmdline = malloc (in.left + 1);
  CLEANUP_FREE char **argv = NULL;
  struct server_args args = { .read_only = false };
  int argc;

  CHECK (cmdline != NULL);
  if (in.left > 0)
    memcpy (cmdline, in.p, in.left);
  cmdline[in.left] = '\0';
  /* As getdelim reads it, what has no end is the last. */
  argv = split_cmdline (cmdline, in.left + (in.left > 0), &argc);
  CHECK (argv && argv[argc] == NULL);
  optind = 0;
  opterr = 0;
  parse (&args, argc, argv, "addcow");
  CHECK (!args.file_plugin_is_next || args.file_plugin);
  cmdline_args = args;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  const struct input in = { data, size };

  nr_errors = 0;
  try_cmdline (in);
  try_parameters (in);
  return 0;
}

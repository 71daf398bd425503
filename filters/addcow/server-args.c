/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "server-args.h"

#define OPTION_FILTER 256
#define OPTION_OTHER 257

static const char short_options[] = "46D:e:fg:i:nop:P:rst:u:U:vV";

static const struct option long_options[] = {
#define FLAG(name) \
  { \
    name, no_argument, NULL, OPTION_OTHER \
  }
#define VALUE(name) \
  { \
    name, required_argument, NULL, OPTION_OTHER \
  }
  { "filter", required_argument, NULL, OPTION_FILTER },
  { "read-only", no_argument, NULL, 'r' },
  { "readonly", no_argument, NULL, 'r' },
  VALUE ("debug"),
  FLAG ("dump-config"),
  FLAG ("dump-plugin"),
  FLAG ("exit-with-parent"),
  VALUE ("export"),
  VALUE ("export-name"),
  VALUE ("exportname"),
  FLAG ("foreground"),
  VALUE ("group"),
  FLAG ("help"),
  VALUE ("ip-addr"),
  VALUE ("ipaddr"),
  FLAG ("ipv4-only"),
  FLAG ("ipv6-only"),
  VALUE ("log"),
  FLAG ("long-options"),
  VALUE ("mask-handshake"),
  FLAG ("new-style"),
  FLAG ("newstyle"),
  FLAG ("no-fork"),
  FLAG ("no-sr"),
  FLAG ("old-style"),
  FLAG ("oldstyle"),
  VALUE ("pid-file"),
  VALUE ("pidfile"),
  VALUE ("port"),
  VALUE ("run"),
  VALUE ("selinux-label"),
  FLAG ("short-options"),
  FLAG ("single"),
  FLAG ("stdin"),
  FLAG ("swap"),
  VALUE ("threads"),
  VALUE ("tls"),
  VALUE ("tls-certificates"),
  VALUE ("tls-psk"),
  FLAG ("tls-verify-peer"),
  VALUE ("unix"),
  VALUE ("user"),
  FLAG ("verbose"),
  FLAG ("version"),
  FLAG ("vsock"),
  { NULL, 0, NULL, 0 },
#undef FLAG
#undef VALUE
};

/* The whole of /proc/self/cmdline, its length to *LEN; or NULL. */
static char *
read_cmdline (size_t *len)
{
  char *buf = NULL;
  size_t size = 0;
  ssize_t n;
  FILE *fp = fopen ("/proc/self/cmdline", "re");

  if (fp == NULL)
    return NULL;
  *len = 0;
  /* Lines have no meaning here: what getdelim reads is an argument, and
   * all of them are put behind each other.
   */
  for (;;) {
    CLEANUP_FREE char *arg = NULL;
    size_t arg_size = 0;
    char *new_buf;

    n = getdelim (&arg, &arg_size, 0, fp);
    if (n <= 0)
      break;
    new_buf = realloc (buf, size + n);
    if (new_buf == NULL)
      break;
    buf = new_buf;
    memcpy (buf + size, arg, n);
    size += n;
  }
  fclose (fp);
  *len = size;
  return buf;
}

/* The strings of CMDLINE as a NULL-terminated vector, or NULL. */
static char **
split_cmdline (char *cmdline, size_t len, int *argc)
{
  char **argv;
  size_t i, n = 0;

  for (i = 0; i < len; i++)
    n += cmdline[i] == 0;
  argv = calloc (n + 1, sizeof argv[0]);
  if (argv == NULL)
    return NULL;
  *argc = n;
  for (n = 0; n < (size_t) *argc; n++) {
    argv[n] = cmdline;
    cmdline += strlen (cmdline) + 1;
  }
  return argv;
}

/* Does NAME, as nbdkit takes it, mean the filter or plugin SHORT_NAME? */
static bool
is_named (const char *name, const char *short_name, const char *kind)
{
  CLEANUP_FREE char *file = NULL;
  const char *slash = strrchr (name, '/');

  if (strcmp (name, short_name) == 0)
    return true;
  if (asprintf (&file, "nbdkit-%s-%s.so", short_name, kind) == -1) {
    file = NULL;
    return false;
  }
  return strcmp (slash ? slash + 1 : name, file) == 0;
}

static void
parse (struct server_args *args, int argc, char **argv, const char *filter)
{
  const char *last_filter = NULL;
  int c;

  while ((c = getopt_long (argc, argv, short_options, long_options, NULL)) !=
         -1) {
    if (c == 'r')
      args->read_only = true;
    else if (c == OPTION_FILTER)
      last_filter = optarg;
  }
  /* The last filter is the one next to the plugin. */
  args->file_plugin = optind < argc &&
                      is_named (argv[optind], "file", "plugin");
  args->file_plugin_is_next = args->file_plugin && last_filter &&
                              is_named (last_filter, filter, "filter");
}

void
server_args_get (struct server_args *args, const char *filter)
{
  const int saved_optind = optind, saved_opterr = opterr;
  CLEANUP_FREE char *cmdline = NULL;
  CLEANUP_FREE char **argv = NULL;
  size_t len;
  int argc;

  *args = (struct server_args){ .read_only = false };
  cmdline = read_cmdline (&len);
  if (cmdline == NULL)
    return;
  argv = split_cmdline (cmdline, len, &argc);
  if (argv == NULL)
    return;

  /* nbdkit's own parsing is over, but for where it got to. */
  optind = 0;
  opterr = 0;
  parse (args, argc, argv, filter);
  optind = saved_optind;
  opterr = saved_opterr;
}

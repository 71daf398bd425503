/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the server was asked for on its command line, as far as a filter
 * has to know it before the first client comes and nbdkit's interface
 * does not tell: whether it only reads (so that the lock taken at start
 * is the right one) and whether the filter stands directly on the file
 * plugin (so that a bad image file is an error at start).
 *
 * Read from /proc/self/cmdline, parsed as nbdkit(1) documents it.  Where
 * that cannot be had, or has options this does not know, the answers are
 * the cautious ones: not read-only, not the file plugin.  The read-only
 * flag that comes with each connection is obeyed whatever was found here.
 */

#ifndef ADDCOW_SERVER_ARGS_H
#define ADDCOW_SERVER_ARGS_H

#include <stdbool.h>

struct server_args {
  bool read_only;
  bool file_plugin;         /* the plugin is nbdkit-file-plugin */
  bool file_plugin_is_next; /* and next to the filter named FILTER */
};

/* Fill *ARGS.  Single-threaded use only, as it calls getopt. */
void server_args_get (struct server_args *args, const char *filter);

#endif /* ADDCOW_SERVER_ARGS_H */

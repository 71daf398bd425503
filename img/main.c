/* SPDX-License-Identifier: BSD-3-Clause
 *
 * addcow-img: the verbs, their help, and how errors are said.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "img.h"

static const struct verb {
  const char *name;
  int (*run) (int argc, char *argv[]);
  const char *summary;
  const char *help;
  /* clang-format off */
} verbs[] = {
  {
    "check", img_check, "find what is wrong with an overlay, mend it",
    "addcow-img check [--output=human|json] [-r] [-q] FILE\n"
    "\n"
    "Tell whether the overlay FILE, which is not in use, is sound.  The exit\n"
    "status is 0 if nothing is wrong, 1 if that cannot be said, 2 if the\n"
    "overlay cannot be used or has lost content, 3 if what is wrong is\n"
    "harmless or suspicious, 63 if FILE is not an add-cow file.\n"
    "\n"
    "      --output=human|json        how (default: human)\n"
    "  -r, --repair                   mend what can be mended in FILE\n"
    "  -q, --quiet                    print only what is wrong\n"
    "  -h, --help                     print this\n",
  },
  {
    "commit", img_commit, "write the changes to the backing file",
    "addcow-img commit [-p] [-q] FILE\n"
    "\n"
    "Write what the image of the overlay FILE, which nobody serves, has to its\n"
    "backing file, and empty the overlay.  Interrupted, it can be run again\n"
    "and goes on from there.\n"
    "\n"
    "  -p, --progress                 show how far it is; SIGUSR1 does once\n"
    "  -q, --quiet                    print nothing at the end\n"
    "  -h, --help                     print this\n",
  },
  {
    "create", img_create, "make a new overlay",
    "addcow-img create [-b BACKING [-F FMT]] [-i IMAGE] [-o KEY=VALUE,...]\n"
    "                  [-f] [-q] FILE [SIZE]\n"
    "\n"
    "Make FILE, the metadata file of a new overlay, and its image file.\n"
    "\n"
    "  -b BACKING, --backing=BACKING  read what is not written from here: a\n"
    "                                 file, or a URI (nbd://... and others)\n"
    "  -F FMT, --backing-format=FMT   what that is: raw, qcow2, ...; it is\n"
    "                                 noted, with size and mtime, in FILE\n"
    "  -i IMAGE, --image=IMAGE        write to here (default: FILE with the\n"
    "                                 suffix .raw); '': nothing is made\n"
    "  -o KEY=VALUE,..., --options=KEY=VALUE,...\n"
    "                                 backing_file=, backing_fmt=,\n"
    "                                 image_file=, size=\n"
    "  -f, --force                    overwrite FILE if it exists\n"
    "  -q, --quiet                    print nothing\n"
    "  -h, --help                     print this\n"
    "\n"
    "Relative names are relative to the folder of FILE.  SIZE is in bytes,\n"
    "or with a suffix b, k, K, M, G, T, P or E (powers of 1024); without\n"
    "it the disk is as large as the backing file, rounded up to 512.\n",
  },
  {
    "info", img_info, "describe an overlay",
    "addcow-img info [--output=human|json] [--watch] FILE\n"
    "\n"
    "Describe the overlay whose metadata file is FILE, in use or not.\n"
    "\n"
    "      --output=human|json        how (default: human)\n"
    "      --watch                    show how it fills, until it is complete\n"
    "  -h, --help                     print this\n",
  },
  {
    "map", img_map, "tell which file each part is read from",
    "addcow-img map [--output=human|json] FILE\n"
    "\n"
    "Tell where the disk of the overlay FILE is: in the image, the backing\n"
    "file, or those below that; in use or not.\n"
    "\n"
    "      --output=human|json        how (default: human)\n"
    "  -h, --help                     print this\n",
  },
  {
    "rebase", img_rebase, "give an overlay another backing file",
    "addcow-img rebase [-p] [-q] [-u] -b BACKING [-F FMT] FILE\n"
    "\n"
    "Let the overlay FILE, which nobody serves, have another backing file and\n"
    "the same content.  Interrupted, it can be run again and goes on.\n"
    "\n"
    "  -b BACKING, --backing=BACKING  the new one, relative to the folder of\n"
    "                                 FILE; '': none\n"
    "  -F FMT, --backing-format=FMT   what that is: raw, qcow2, ...; it is\n"
    "                                 noted, with size and mtime, in FILE\n"
    "  -u, --unsafe                   change only what FILE says: the content\n"
    "                                 is that of the new backing file then\n"
    "  -p, --progress                 show how far it is; SIGUSR1 does once\n"
    "  -q, --quiet                    print nothing but errors\n"
    "  -h, --help                     print this\n",
  },
  {
    "resize", img_resize, "change the size of an overlay",
    "addcow-img resize [--shrink] [-q] FILE [+|-]SIZE\n"
    "\n"
    "Change the size of the disk of the overlay FILE, which nobody serves, to\n"
    "SIZE, or by SIZE with + or -.  What is added reads as zeroes.\n"
    "\n"
    "      --shrink                   what is past the new end may be deleted\n"
    "  -q, --quiet                    print nothing at the end\n"
    "  -h, --help                     print this\n"
    "\n"
    "SIZE is as for create.\n",
  },
  {
    "stream", img_stream, "fill the image until it stands alone",
    "addcow-img stream [-p] [-q] [--rate=SIZE] FILE\n"
    "\n"
    "Bring to the image of the overlay FILE, which nobody serves, what it has\n"
    "not got yet.  Interrupted, it can be run again and goes on from there.\n"
    "\n"
    "  -p, --progress                 show how far it is; SIGUSR1 does once\n"
    "  -q, --quiet                    print nothing at the end\n"
    "      --rate=SIZE                read at most so much in a second\n"
    "  -h, --help                     print this\n",
  },
};
/* clang-format on */

static void
print_message (const char *format, va_list args)
{
  CLEANUP_FREE char *text = NULL;

  if (vasprintf (&text, format, args) == -1)
    text = NULL;
  text_print (stderr, text ? text : addcow_strerror (ENOMEM));
}

void
img_error (const char *format, ...)
{
  va_list args;

  fprintf (stderr, "addcow-img: ");
  va_start (args, format);
  print_message (format, args);
  va_end (args);
  fprintf (stderr, "\n");
}

int
img_file_error (const char *file_name, int err)
{
  img_error ("%s: %s", file_name, addcow_strerror (err));
  return EXIT_FAILURE;
}

int
img_failure (const struct failure *failure)
{
  const char *name = failure->file_name ? failure->file_name : "?";

  if (failure->err == ADDCOW_E_FOREIGN_FORMAT && failure->detail == NULL)
    img_error ("%s: begins like a disk image of the format %s, and is read "
               "as raw only when told to: give -F %s, or -F raw to insist",
               name, failure->format, failure->format);
  else
    img_error ("%s: %s", name, failure_text (failure));
  return EXIT_FAILURE;
}

static const struct verb *
find_verb (const char *name)
{
  size_t i;

  for (i = 0; i < ARRAY_SIZE (verbs); i++)
    if (strcmp (verbs[i].name, name) == 0)
      return &verbs[i];
  return NULL;
}

static void
print_program_help (void)
{
  size_t i;

  printf ("addcow-img: make, describe, check and change add-cow overlays\n"
          "\n"
          "addcow-img VERB [OPTIONS] FILE ...\n"
          "addcow-img VERB --help\n"
          "addcow-img -h | --help | -V | --version\n"
          "\n"
          "Verbs:\n");
  for (i = 0; i < ARRAY_SIZE (verbs); i++)
    printf ("  %-8s %s\n", verbs[i].name, verbs[i].summary);
  printf ("\n"
          "See addcow-img(1), and nbdkit-addcow-filter(1) for how to serve "
          "them.\n");
}

int
img_close_stdout (void)
{
  if (fflush (stdout) == 0 && !ferror (stdout))
    return EXIT_SUCCESS;
  img_error ("standard output: %s", strerror (errno));
  return EXIT_FAILURE;
}

int
img_help (const char *verb)
{
  if (verb)
    fputs (find_verb (verb)->help, stdout);
  else
    print_program_help ();
  return img_close_stdout ();
}

int
img_usage_error (const char *verb, const char *format, ...)
{
  va_list args;

  fprintf (stderr, "addcow-img: ");
  if (verb)
    fprintf (stderr, "%s: ", verb);
  va_start (args, format);
  print_message (format, args);
  va_end (args);
  fprintf (stderr, " (see addcow-img %s%s--help)\n", verb ? verb : "",
           verb ? " " : "");
  return EXIT_FAILURE;
}

int
img_option_error (const char *verb, int c, char *argv[])
{
  const char *what = c == ':' ? "a value is missing after" : "unknown option";

  if (strncmp (argv[optind - 1], "--", 2) != 0)
    return img_usage_error (verb, "%s '-%c'", what, optopt);
  return img_usage_error (verb, "%s '%s'", what, argv[optind - 1]);
}

/* Who starts us may have closed stdin, stdout or stderr.  Then the next file
 * that is opened would have its number, and what is printed would be written
 * to a metadata file or an image.  So something is put there that cannot be
 * written to: to print is an error, as if it were closed still.
 */
static int
take_standard_fds (void)
{
  int fd;

  do
    fd = open ("/dev/null", O_RDONLY);
  while (fd >= 0 && fd <= STDERR_FILENO);
  if (fd == -1)
    return img_file_error ("/dev/null", errno);
  close (fd);
  return EXIT_SUCCESS;
}

int
img_set_once (const char *verb, char **where, const char *what,
              const char *value)
{
  if (*where)
    return img_usage_error (verb, "the %s is given more than once", what);
  *where = strdup (value);
  return *where ? EXIT_SUCCESS : img_file_error (what, ENOMEM);
}

int
img_only_file (const char *verb, int argc, char *argv[], const char **file_name)
{
  if (argc - optind != 1)
    return img_usage_error (verb, "exactly one FILE is needed");
  *file_name = argv[optind];
  if (**file_name == '\0')
    return img_usage_error (verb, "FILE must not be empty");
  return EXIT_SUCCESS;
}

int
main (int argc, char *argv[])
{
  const struct verb *verb;

  if (take_standard_fds () != EXIT_SUCCESS)
    return EXIT_FAILURE;
  if (argc < 2)
    return img_usage_error (NULL, "a verb is missing");
  if (strcmp (argv[1], "--help") == 0 || strcmp (argv[1], "-h") == 0)
    return img_help (NULL);
  if (strcmp (argv[1], "--version") == 0 || strcmp (argv[1], "-V") == 0) {
    printf ("addcow-img %s\n", PACKAGE_VERSION);
    return img_close_stdout ();
  }
  verb = find_verb (argv[1]);
  if (verb == NULL)
    return img_usage_error (NULL, "unknown %s '%s'",
                            argv[1][0] == '-' ? "option" : "verb", argv[1]);
  return verb->run (argc - 1, argv + 1);
}

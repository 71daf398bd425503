/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Names in a header and the files they mean.
 */

#include <config.h>

#include <errno.h>
#include <sys/stat.h>

#include "check.h"
#include "error.h"
#include "names.h"
#include "scratch.h"

static void
test_is_uri (void)
{
  static const char *const uris[] = {
    "nbd:host:10809",
    "nbd://host/export",
    "nbd+unix:///?socket=s",
    "https://host/a.img",
    "rbd:pool/image",
    "json:{}",
    "a:",
    "A1+-.:x",
    "vm:disk.raw",
    "files:x",
    "File:x",
    "fil:e",
  };
  static const char *const files[] = {
    "",
    "base.img",
    "/base.img",
    "./a:b.raw",
    "dir/a:b.raw",
    "/a:b",
    ":x",
    "1a:x",
    "+a:x",
    "-a:x",
    ".a:x",
    "a_b:x",
    "a b:x",
    "a",
    "../a:b",
    "file:a",
    "file:/a",
    "file:a:b",
    "file:nbd://x",
    "a/nbd://host",
    "\xc3\xa4:x",
  };
  size_t i;

  for (i = 0; i < sizeof uris / sizeof uris[0]; i++)
    if (!name_is_uri (uris[i])) {
      fprintf (stderr, "%s is a URI\n", uris[i]);
      CHECK (false);
    }
  for (i = 0; i < sizeof files / sizeof files[0]; i++)
    if (name_is_uri (files[i])) {
      fprintf (stderr, "%s is no URI\n", files[i]);
      CHECK (false);
    }
}

static void
test_resolve (void)
{
  static const struct {
    const char *folder, *name, *path;
  } cases[] = {
    { "/vms", "base.img", "/vms/base.img" },
    { "/vms", "/base.img", "/base.img" },
    { "/vms", "../base.img", "/vms/../base.img" },
    { "/vms", "sub/base.img", "/vms/sub/base.img" },
    { "/vms", "./a:b.raw", "/vms/./a:b.raw" },
    { "/vms", "file:base.img", "/vms/base.img" },
    { "/vms", "file:/base.img", "/base.img" },
    { "/vms", "file:a:b", "/vms/a:b" },
    { "/vms", "file:file:a", "/vms/file:a" },
    { "/", "base.img", "/base.img" },
    { "/", "/base.img", "/base.img" },
    { "/vms", "nbd://host", NULL },
    { "/vms", "a:b.raw", NULL },
  };
  size_t i;

  for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
    char *path = NULL;
    int r = name_resolve (cases[i].folder, cases[i].name, &path);

    if (cases[i].path == NULL)
      CHECK_EQ (r, ADDCOW_E_URI);
    else {
      CHECK_EQ (r, 0);
      CHECK_STR (path, cases[i].path);
      free (path);
    }
  }
}

static void
test_basename (void)
{
  const char *path = "/a/b.c";

  CHECK (name_basename (path) == path + 3);
  CHECK_STR (name_basename ("b.c"), "b.c");
  CHECK_STR (name_basename ("/b"), "b");
  CHECK_STR (name_basename ("a/"), "");
  CHECK_STR (name_basename (""), "");
}

static void
check_folder (const char *metadata, const char *want)
{
  char *folder = NULL;

  CHECK_EQ (name_folder (metadata, &folder), 0);
  CHECK_STR (folder, want);
  free (folder);
}

static void
test_folder (void)
{
  char *top = scratch_folder ();
  char *a = scratch_path (top, "a");
  char *b = scratch_path (top, "b");
  char *file = scratch_path (a, "vm.add-cow");
  char *link_to_file = scratch_path (b, "link.add-cow");
  char *link_to_link = scratch_path (top, "link2.add-cow");
  char *link_to_folder = scratch_path (top, "c");
  char *through = scratch_path (link_to_folder, "vm.add-cow");
  char *missing = scratch_path (link_to_folder, "new.add-cow");
  char *nowhere = scratch_path (top, "none/new.add-cow");
  char *under_file = scratch_path (file, "x");
  char *was, *folder;

  CHECK_EQ (mkdir (a, 0700), 0);
  CHECK_EQ (mkdir (b, 0700), 0);
  scratch_file (file, "x", 1);
  CHECK_EQ (symlink ("../a/vm.add-cow", link_to_file), 0);
  CHECK_EQ (symlink ("b/link.add-cow", link_to_link), 0);
  CHECK_EQ (symlink ("a", link_to_folder), 0);

  check_folder (file, a);
  check_folder (link_to_file, a);
  check_folder (link_to_link, a);
  check_folder (through, a);
  check_folder (missing, a); /* not there: only its folder */
  check_folder ("/", "/");
  check_folder ("/none-of-that-name", "/");
  CHECK_EQ (name_folder (nowhere, &folder), ENOENT);
  CHECK_EQ (name_folder (under_file, &folder), ENOTDIR);

  /* A relative name is one of the working folder, what comes out not. */
  was = getcwd (NULL, 0);
  CHECK (was != NULL);
  CHECK_EQ (chdir (b), 0);
  check_folder ("link.add-cow", a);
  check_folder ("missing.add-cow", b);
  check_folder ("./missing.add-cow", b);
  check_folder ("../missing.add-cow", top);
  CHECK_EQ (chdir (was), 0);

  free (was);
  free (under_file);
  free (nowhere);
  free (missing);
  free (through);
  free (link_to_folder);
  free (link_to_link);
  free (link_to_file);
  free (file);
  free (b);
  free (a);
  free (top);
}

int
main (void)
{
  test_is_uri ();
  test_resolve ();
  test_basename ();
  test_folder ();
  return 0;
}

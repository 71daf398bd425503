/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Names in a header and the files they mean.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

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

static char *top; /* the folder of all files */

static void
test_folder (void)
{
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
}

/*--- Locations. -------------------------------------------------------*/

static void
check_location (const char *name, const char *want_name, const char *want_path)
{
  struct location location;

  CHECK_EQ (location_find (&location, "/vms", name, NULL), 0);
  CHECK_STR (location.name, want_name);
  if (want_path)
    CHECK_STR (location.path, want_path);
  else
    CHECK (location.path == NULL);
  CHECK_EQ (location.fd, -1);
  location_clear (&location);
  CHECK (location.name == NULL && location.path == NULL);
  location_clear (&location);
}

static void
test_locations (void)
{
  struct location location = LOCATION_NONE;

  location_clear (&location);
  check_location ("a.img", "/vms/a.img", "/vms/a.img");
  check_location ("/a.img", "/a.img", "/a.img");
  check_location ("file:a.img", "/vms/a.img", "/vms/a.img");
  check_location ("nbd://host", "nbd://host", NULL);
  check_location ("a:b", "a:b", NULL);

  /* As it stands. */
  CHECK_EQ (location_set (&location, "a.img"), 0);
  CHECK_STR (location.name, "a.img");
  CHECK_STR (location.path, "a.img");
  CHECK_EQ (location.fd, -1);
  location_clear (&location);
  CHECK_EQ (location_set (&location, "nbd://host"), 0);
  CHECK_STR (location.name, "nbd://host");
  CHECK (location.path == NULL);
  location_clear (&location);
}

/* The first byte of what is at PATH. */
static char
first_byte (const char *path)
{
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  char byte;

  CHECK (fd >= 0);
  CHECK_EQ (read (fd, &byte, 1), 1);
  close (fd);
  return byte;
}

/* NAME in a metadata file in TOP/CONF, confined to CONFINE in TOP, is a file
 * that has BYTE; or what went wrong.
 */
static void
check_confined (const char *name, const char *confine, int want, char byte)
{
  char *folder = scratch_path (top, "conf");
  char *confine_path = scratch_path (top, confine);
  const int before = dup (0);
  struct location location;
  char *real;

  close (before);
  CHECK_EQ (location_find (&location, folder, name, confine_path), want);
  if (want) {
    CHECK (location.name == NULL && location.path == NULL);
    CHECK_EQ (location.fd, -1);
  }
  else {
    CHECK (location.fd >= 0);
    CHECK_EQ (fcntl (location.fd, F_GETFD), FD_CLOEXEC);
    /* The name is for people, and not that by which it is opened. */
    CHECK (strstr (location.name, "/proc/") == NULL);
    CHECK_EQ (first_byte (location.path), byte);
    real = realpath (location.path, NULL);
    CHECK (real != NULL);
    CHECK (strncmp (real, top, strlen (top)) == 0);
    free (real);
    location_clear (&location);
  }
  /* Nothing is left open. */
  CHECK_EQ (dup (0), before);
  close (before);
  free (confine_path);
  free (folder);
}

static void
make_byte (const char *name, char byte)
{
  char *path = scratch_path (top, name);

  scratch_file (path, &byte, 1);
  free (path);
}

static void
make_link (const char *to, const char *name)
{
  char *path = scratch_path (top, name);

  CHECK_EQ (symlink (to, path), 0);
  free (path);
}

static void
make_folder (const char *name)
{
  char *path = scratch_path (top, name);

  CHECK_EQ (mkdir (path, 0700), 0);
  free (path);
}

/* What happens to a name does not happen to what it was found to mean. */
static void
test_pinned (void)
{
  char *folder = scratch_path (top, "conf");
  char *path = scratch_path (top, "conf/pinned");
  char *away = scratch_path (top, "conf/away");
  struct location location;

  make_byte ("conf/pinned", 'p');
  CHECK_EQ (location_find (&location, folder, "pinned", folder), 0);
  CHECK_EQ (rename (path, away), 0);
  CHECK_EQ (symlink ("../out", path), 0);
  CHECK_EQ (first_byte (location.path), 'p');
  CHECK_EQ (unlink (away), 0);
  CHECK_EQ (first_byte (location.path), 'p');
  location_clear (&location);
  CHECK_EQ (location_find (&location, folder, "pinned", folder),
            ADDCOW_E_OUTSIDE);

  free (away);
  free (path);
  free (folder);
}

static void
test_confined (void)
{
  char *file;

  make_folder ("conf");
  make_folder ("conf/sub");
  make_folder ("conf-evil");
  make_byte ("conf/in", 'i');
  make_byte ("conf/sub/in", 's');
  make_byte ("conf-evil/in", 'e');
  make_byte ("out", 'o');
  make_link ("in", "conf/link");
  make_link ("../out", "conf/leaves");
  make_link ("..", "conf/up");
  make_link ("conf", "way-in");
  make_link ("loop", "conf/loop");
  make_link ("none", "conf/dangling");

  check_confined ("in", "conf", 0, 'i');
  check_confined ("file:in", "conf", 0, 'i');
  check_confined ("link", "conf", 0, 'i');
  check_confined ("sub/in", "conf", 0, 's');
  check_confined ("sub/../in", "conf", 0, 'i');
  check_confined ("../conf/in", "conf", 0, 'i');
  check_confined ("up/conf/up/way-in/link", "conf", 0, 'i');
  check_confined ("in", "conf/", 0, 'i');
  check_confined ("in", "way-in", 0, 'i');
  check_confined ("in", "conf/sub/..", 0, 'i');
  check_confined ("../out", "", 0, 'o');
  check_confined ("leaves", "conf/up", 0, 'o');
  check_confined ("../conf-evil/in", "conf-evil", 0, 'e');

  check_confined ("leaves", "conf", ADDCOW_E_OUTSIDE, 0);
  check_confined ("../out", "conf", ADDCOW_E_OUTSIDE, 0);
  check_confined ("up/out", "conf", ADDCOW_E_OUTSIDE, 0);
  check_confined ("../conf-evil/in", "conf", ADDCOW_E_OUTSIDE, 0);
  check_confined ("in", "conf-evil", ADDCOW_E_OUTSIDE, 0);
  check_confined ("in", "conf/sub", ADDCOW_E_OUTSIDE, 0);
  check_confined ("/", "conf", ADDCOW_E_OUTSIDE, 0);
  check_confined (".", "conf", ADDCOW_E_OUTSIDE, 0);
  check_confined ("..", "conf", ADDCOW_E_OUTSIDE, 0);
  check_confined ("/proc/self/exe", "conf", ADDCOW_E_OUTSIDE, 0);
  check_confined ("nbd://host", "conf", ADDCOW_E_OUTSIDE, 0);
  check_confined ("none", "conf", ENOENT, 0);
  check_confined ("dangling", "conf", ENOENT, 0);
  check_confined ("loop", "conf", ELOOP, 0);
  check_confined ("in/x", "conf", ENOTDIR, 0);

  check_confined ("in", "none", ENOENT, 0);
  check_confined ("in", "out", ENOTDIR, 0);
  file = scratch_path (top, "out");
  CHECK_EQ (confine_check (file), ENOTDIR);
  CHECK_EQ (confine_check (top), 0);
  CHECK_EQ (confine_check ("/"), 0);
  free (file);
  test_pinned ();
}

/* valgrind does not know the call that confines. */
static bool
can_confine (void)
{
  const struct open_how how = { .flags = O_PATH };
  const int fd = syscall (SYS_openat2, AT_FDCWD, "/", &how, sizeof how);

  if (fd >= 0)
    close (fd);
  return fd >= 0;
}

int
main (void)
{
  top = scratch_folder ();
  test_is_uri ();
  test_resolve ();
  test_basename ();
  test_folder ();
  test_locations ();
  if (can_confine ())
    test_confined ();
  free (top);
  return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common.h"
#include "folder.h"
#include "metadata.h"
#include "names.h"
#include "report.h"
#include "text.h"

#define SUFFIX ".add-cow"

/* As of a file. */
#define MAX_NAME_BYTES 255

/* nbdkit takes no more, and then there would be no list. */
#define MAX_LISTED 10000

/* An overlay that somebody uses or waits for, or that could not be committed
 * when the last one left, which is KEPT then.  The fields are protected by the
 * folder's lock, and who is opening or closing it owns served.
 */
struct shared {
  enum { OPENING, OPEN, CLOSING, KEPT, FAILED } state;
  unsigned nr_users; /* also who waits for the end of OPENING */
  bool was_kept;
  struct folder *folder;
  struct served *served;
  char file_name[]; /* in the folder */
};

struct folder {
  struct settings *settings;
  const char *path;

  pthread_mutex_t lock;
  pthread_cond_t changed; /* the state of an entry, or it is gone */
  void *entries;          /* tsearch, by file_name */
  unsigned nr_moving;     /* that are OPENING or CLOSING */
  bool stopped;
};

static int
compare_names (const void *a, const void *b)
{
  const struct shared *x = a, *y = b;

  return strcmp (x->file_name, y->file_name);
}

int
folder_new (struct folder **ret, struct settings *settings, const char *path)
{
  struct folder *f = calloc (1, sizeof *f);

  if (f == NULL) {
    nbdkit_error ("calloc: %m");
    return -1;
  }
  f->settings = settings;
  f->path = path;
  pthread_mutex_init (&f->lock, NULL);
  pthread_cond_init (&f->changed, NULL);
  *ret = f;
  return 0;
}

static void
report_committed (const struct shared *e)
{
  report_error ("%s/%s: what could not be committed is committed",
                e->folder->path, e->file_name);
}

static void
close_left (void *opaque)
{
  struct shared *e = opaque;

  if (served_stop (e->served) && e->was_kept)
    report_committed (e);
  served_close (e->served);
  free (e);
}

void
folder_stop (struct folder *f)
{
  pthread_mutex_lock (&f->lock);
  f->stopped = true;
  while (f->nr_moving > 0)
    pthread_cond_wait (&f->changed, &f->lock);
  pthread_mutex_unlock (&f->lock);
  tdestroy (f->entries, close_left);
  f->entries = NULL;
}

void
folder_free (struct folder *f)
{
  if (f == NULL)
    return;
  pthread_cond_destroy (&f->changed);
  pthread_mutex_destroy (&f->lock);
  free (f);
}

/*--- Names. -----------------------------------------------------------*/

static bool
has_suffix (const char *name)
{
  const size_t len = strlen (name);

  return len > strlen (SUFFIX) &&
         strcmp (name + len - strlen (SUFFIX), SUFFIX) == 0;
}

/* Is NAME one that an export can have?  NBD has names in UTF-8. */
static bool
is_name (const char *name)
{
  return strchr (name, '/') == NULL && text_is_line (name);
}

/* An entry for the metadata file of the export NAME, to be freed by the
 * caller; or NULL, and the error was reported.
 */
static struct shared *
new_shared (const struct folder *f, const char *name)
{
  const size_t len = strlen (name) + (has_suffix (name) ? 0 : strlen (SUFFIX));
  struct shared *e;

  if (name[0] == '\0') {
    report_error ("there is no default export: choose one of those that "
                  "nbdinfo --list shows, the overlays in %s",
                  f->path);
    return NULL;
  }
  if (len > MAX_NAME_BYTES || !is_name (name)) {
    report_error ("an export name that no overlay in %s can have: %.*s%s",
                  f->path, MAX_NAME_BYTES, name,
                  strlen (name) > MAX_NAME_BYTES ? "..." : "");
    return NULL;
  }
  e = calloc (1, sizeof *e + len + 1);
  if (e == NULL) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  strcpy (e->file_name, name);
  if (!has_suffix (name))
    strcat (e->file_name, SUFFIX);
  return e;
}

/* Where the metadata file FILE_NAME is.  It is confined as names in it are.
 */
static int
find_metadata (const struct folder *f, const char *file_name,
               struct location *location)
{
  CLEANUP_FREE char *path = NULL;

  /* Absolute, as it might look like a URI. */
  if (asprintf (&path, "%s/%s", f->path, file_name) == -1) {
    path = NULL;
    return ENOMEM;
  }
  return location_find (location, f->path, path, f->settings->confine);
}

/*--- Opening and closing. ---------------------------------------------*/

#define CLEANUP_LOCATION __attribute__ ((cleanup (location_clear)))

/* Is what was opened for E the file that has the name?  Where names are
 * confined it was pinned before it was locked.  Returns 0 or an errno.
 */
static int
look_at_metadata (const struct folder *f, const struct shared *e, bool *same)
{
  CLEANUP_LOCATION struct location location = LOCATION_NONE;
  struct stat named, locked;
  int r = find_metadata (f, e->file_name, &location);

  if (r)
    return r;
  if (stat (location.path, &named) == -1 ||
      fstat (e->served->disk->metadata_fd, &locked) == -1)
    return errno;
  *same = same_file (&named, &locked);
  return 0;
}

static int
start_shared (const struct folder *f, struct shared *e)
{
  bool same = false;
  int r = look_at_metadata (f, e, &same);

  if (r == 0 && same)
    return served_start (e->served, NULL);
  report_error ("%s/%s: %s", f->path, e->file_name,
                r ? addcow_strerror (r) : "was replaced while it was opened");
  return -1;
}

/* Open the overlay of E, and start it. */
static int
open_shared (struct folder *f, struct shared *e)
{
  CLEANUP_LOCATION struct location location = LOCATION_NONE;
  struct served_files files = {
    .confine = f->settings->confine,
    .image_folder = f->path,
  };
  int r = find_metadata (f, e->file_name, &location);

  if (r) {
    report_error ("%s/%s: %s", f->path, e->file_name, addcow_strerror (r));
    return -1;
  }
  files.name = location.name;
  files.path = location.path;
  if (served_open (&e->served, f->settings, &files) == -1)
    return -1;
  e->served->owner = e;
  if (start_shared (f, e) == 0)
    return 0;
  served_stop (e->served);
  served_close (e->served);
  e->served = NULL;
  return -1;
}

/* A user of E leaves, which FAILED. */
static void
leave_failed_locked (struct shared *e)
{
  if (--e->nr_users == 0)
    free (e);
}

/* Add E, and open it, for one user.  Caller holds f->lock, which is released
 * meanwhile.  Returns 0, ENOMEM, or -1: E is consumed and that was reported.
 */
static int
add_locked (struct folder *f, struct shared *e)
{
  int r;

  if (tsearch (e, &f->entries, compare_names) == NULL)
    return ENOMEM;
  e->state = OPENING;
  e->nr_users = 1;
  e->folder = f;
  f->nr_moving++;
  pthread_mutex_unlock (&f->lock);
  r = open_shared (f, e);
  pthread_mutex_lock (&f->lock);
  f->nr_moving--;
  pthread_cond_broadcast (&f->changed);
  if (r == 0) {
    e->state = OPEN;
    return 0;
  }
  /* Those who wait are told so, and who comes now finds nothing. */
  e->state = FAILED;
  tdelete (e, &f->entries, compare_names);
  leave_failed_locked (e);
  return -1;
}

/* Be one more user of E, which somebody else opens or has opened.  Returns 0,
 * or EIO if that failed.
 */
static int
join_locked (struct folder *f, struct shared *e)
{
  e->nr_users++;
  while (e->state == OPENING)
    pthread_cond_wait (&f->changed, &f->lock);
  if (e->state == OPEN)
    return 0;
  leave_failed_locked (e);
  return EIO;
}

/*--- What cannot be committed. ----------------------------------------*/

static void over (void *opaque);

/* What was kept was tried to commit: is it to be closed now? */
static bool
is_over (void *opaque)
{
  struct served *s = opaque;
  struct shared *e = s->owner;
  struct folder *f = e->folder;

  if (!served_is_committed (s))
    return false;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  /* Somebody else may be about to close it, and waits for this thread. */
  if (f->stopped || e->state != KEPT)
    return false;
  e->state = CLOSING;
  f->nr_moving++;
  return true;
}

/* Caller has made E CLOSING: let it be that no more. */
static void
keep_locked (struct folder *f, struct shared *e)
{
  e->state = KEPT;
  e->was_kept = true;
  f->nr_moving--;
  pthread_cond_broadcast (&f->changed);
  /* At last, as whoever finds it kept may stop that. */
  served_keep (e->served, is_over, over);
}

static void
forget_locked (struct folder *f, struct shared *e)
{
  f->nr_moving--;
  tdelete (e, &f->entries, compare_names);
  pthread_cond_broadcast (&f->changed);
  free (e);
}

/* Close E, or keep it if it cannot be committed.  Caller has made it CLOSING,
 * and holds no lock.  Returns whether it is closed.
 */
static bool
close_or_keep (struct folder *f, struct shared *e)
{
  const bool committed = served_stop (e->served);

  if (committed) {
    if (e->was_kept)
      report_committed (e);
    served_close (e->served);
  }
  else if (!e->was_kept)
    report_error ("%s/%s: is kept open until it can be committed", f->path,
                  e->file_name);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  if (committed)
    forget_locked (f, e);
  else
    keep_locked (f, e);
  return committed;
}

static void
over (void *opaque)
{
  const struct served *s = opaque;
  struct shared *e = s->owner;

  close_or_keep (e->folder, e);
}

/* Close E, which was kept, for who wants to open NEW, the same, instead.
 * Caller holds f->lock, which is released meanwhile.  Returns 0, or -1: it
 * cannot be committed still, and that was reported.
 */
static int
close_kept_locked (struct folder *f, struct shared *e, const struct shared *new)
{
  bool closed;

  e->state = CLOSING;
  f->nr_moving++;
  pthread_mutex_unlock (&f->lock);
  closed = close_or_keep (f, e);
  /* By now E is anybody's, and may be gone. */
  if (!closed)
    report_error ("%s/%s: cannot be opened before what was written to it is "
                  "committed",
                  f->path, new->file_name);
  pthread_mutex_lock (&f->lock);
  return closed ? 0 : -1;
}

/*--- Users. ------------------------------------------------------------*/

/* The entry for the file of KEY, or NULL: there is none. */
static struct shared *
find_locked (struct folder *f, const struct shared *key)
{
  struct shared **found;

  while ((found = tfind (key, &f->entries, compare_names)) != NULL &&
         (*found)->state == CLOSING)
    pthread_cond_wait (&f->changed, &f->lock);
  return found ? *found : NULL;
}

/* Be a user of the overlay of NEW, which is consumed if *E is the same.
 * Returns 0, an errno, or -1: that was reported.
 */
static int
get_locked (struct folder *f, struct shared *new, struct shared **e)
{
  while ((*e = find_locked (f, new)) != NULL && (*e)->state == KEPT &&
         !f->stopped)
    if (close_kept_locked (f, *e, new) == -1)
      return -1;
  if (f->stopped)
    return ESHUTDOWN;
  if (*e)
    return join_locked (f, *e);
  *e = new;
  return add_locked (f, new);
}

/* Has E, of which caller is a user, still its name?  It may be another one's:
 * that would be written to instead.  Returns 0, or -1 and that was reported.
 */
static int
check_name (const struct folder *f, const struct shared *e)
{
  bool same = false;
  int r = look_at_metadata (f, e, &same);

  if (r == 0 && same)
    return 0;
  if (r)
    report_error ("%s/%s: %s", f->path, e->file_name, addcow_strerror (r));
  else
    report_error ("%s/%s: is another file by now than the one that is served",
                  f->path, e->file_name);
  return -1;
}

int
folder_get (struct folder *f, const char *export_name, struct served **ret)
{
  struct shared *new = new_shared (f, export_name);
  struct shared *e;
  bool joined;
  int r;

  if (new == NULL)
    return -1;
  pthread_mutex_lock (&f->lock);
  r = get_locked (f, new, &e);
  pthread_mutex_unlock (&f->lock);
  joined = e != new;
  if (r > 0)
    report_error ("%s/%s: cannot be opened: %s", f->path, new->file_name,
                  r == EIO ? "it could not be for somebody else"
                           : addcow_strerror (r));
  if (r > 0 || joined)
    free (new);
  if (r)
    return -1;
  if (joined && check_name (f, e) == -1) {
    folder_put (f, e->served);
    return -1;
  }
  *ret = e->served;
  return 0;
}

void
folder_put (struct folder *f, struct served *s)
{
  struct shared *e = s->owner;

  pthread_mutex_lock (&f->lock);
  if (--e->nr_users > 0) {
    pthread_mutex_unlock (&f->lock);
    return;
  }
  e->state = CLOSING;
  f->nr_moving++;
  pthread_mutex_unlock (&f->lock);
  close_or_keep (f, e);
}

/*--- Listing. ---------------------------------------------------------*/

char *
folder_describe (const struct header *header)
{
  const char *name = header->backing_file;
  char *text;

  if (name[0] == '\0')
    return strdup ("overlay without a backing file");
  /* Not where it lies, nor what else a URI has in it. */
  if (name_is_uri (name))
    return strdup ("overlay of a disk of another server");
  /* NBD has descriptions in UTF-8, and of some length. */
  name = name_basename (name);
  if (!text_is_line (name))
    return strdup ("overlay of a file");
  if (asprintf (&text, "overlay of %s", name) == -1)
    return NULL;
  return text;
}

/* The same of a file; or what is wrong with it. */
static char *
file_description (const struct folder *f, const char *file_name)
{
  CLEANUP_LOCATION struct location location = LOCATION_NONE;
  CLEANUP_CLOSE int fd = -1;
  struct header header;
  int r;

  r = find_metadata (f, file_name, &location);
  if (r == 0)
    r = metadata_open (location.path, false, &fd);
  if (r == 0)
    r = metadata_read_header (fd, &header);
  return r ? strdup (addcow_strerror (r)) : folder_describe (&header);
}

static int
add_export (const struct folder *f, const char *file_name,
            struct nbdkit_exports *exports)
{
  const size_t len = strlen (file_name) - strlen (SUFFIX);
  CLEANUP_FREE char *description = file_description (f, file_name);
  CLEANUP_FREE char *name = strndup (file_name, len);

  if (name == NULL || description == NULL) {
    nbdkit_error ("strdup: %m");
    return -1;
  }
  /* NAME alone would be another file. */
  return nbdkit_add_export (exports, has_suffix (name) ? file_name : name,
                            description);
}

static int
is_listed (const struct dirent *entry)
{
  return entry->d_name[0] != '.' && has_suffix (entry->d_name) &&
         is_name (entry->d_name);
}

int
folder_list (struct folder *f, struct nbdkit_exports *exports)
{
  struct dirent **entries;
  int i, n, r = 0;

  n = scandir (f->path, &entries, is_listed, alphasort);
  if (n == -1) {
    report_error ("%s: %s", f->path, addcow_strerror (errno));
    return -1;
  }
  for (i = 0; i < n; i++) {
    if (r == 0 && nbdkit_exports_count (exports) < MAX_LISTED)
      r = add_export (f, entries[i]->d_name, exports);
    free (entries[i]);
  }
  free (entries);
  return r;
}

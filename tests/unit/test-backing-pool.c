/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Backing files that overlays have in common: what is one, who waits for
 * whom, what one user does to others, chains.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "backing-addcow.h"
#include "backing-kinds.h"
#include "backing-pool.h"
#include "check.h"
#include "common.h"
#include "disk.h"
#include "fake-nbd.h"
#include "scratch.h"
#include "workers.h"

#define SECTOR 512
#define NR_SECTORS 8
#define SIZE_BYTES (NR_SECTORS * SECTOR)

/* Longer than the watchdog waits. */
#define TIMEOUT_SECONDS 1000

static char *folder;
static struct backing_pool *pool;
static _Atomic unsigned nr_logged; /* by the pool */

static void
log_of_pool (void *opaque, const char *name UNUSED, const char *text UNUSED)
{
  CHECK (opaque == &nr_logged);
  nr_logged++;
}

/*--- Somebody is held where he opens or closes. -----------------------*/

/* A file by whose name something happens. */
static struct spot {
  const char *name; /* or NULL */
  bool holds;       /* the first who opens it */
  struct gate gate;
  int err; /* that opening it fails with; 0: it does not */
  void (*before) (void);
} spots[4];

static _Atomic unsigned nr_opened; /* really, with all that failed */

static struct spot *
spot_of (const char *name)
{
  size_t i;

  for (i = 0; i < ARRAY_SIZE (spots); i++)
    if (spots[i].name && strcmp (spots[i].name, name_basename (name)) == 0)
      return &spots[i];
  return NULL;
}

static struct spot *
set_spot (unsigned n, const char *name, bool holds, int err)
{
  spots[n] = (struct spot){ .name = name, .holds = holds, .err = err };
  return &spots[n];
}

static void
clear_spots (void)
{
  memset (spots, 0, sizeof spots);
}

backing_open_fn __real_backing_open_kind;
backing_open_fn __wrap_backing_open_kind;

int
__wrap_backing_open_kind (struct backing **backing,
                          const struct location *location,
                          const struct backing_options *options,
                          struct failure *failure)
{
  struct spot *spot = spot_of (location->name);

  nr_opened++;
  if (worker_is_scheduled ())
    worker_yield ();
  if (spot && spot->holds)
    gate_pass (&spot->gate);
  if (spot && spot->err)
    return failure_set_detail (failure, location->name, spot->err, "a detail");
  if (spot && spot->before)
    spot->before ();
  return __real_backing_open_kind (backing, location, options, failure);
}

/* What users share is closed while the last of them is. */
static __thread unsigned close_depth;
static bool closing_holds;
static struct gate close_gate;

void __real_backing_close (struct backing *backing);
void __wrap_backing_close (struct backing *backing);

void
__wrap_backing_close (struct backing *backing)
{
  if (worker_is_scheduled ())
    worker_yield ();
  else if (closing_holds && ++close_depth == 2)
    gate_pass (&close_gate);
  __real_backing_close (backing);
}

/*--- Files. -----------------------------------------------------------*/

/* A file of NR_SECTORS that are full of BYTE, in place of what was there. */
static void
make_raw (const char *name, int byte)
{
  CLEANUP_FREE char *path = scratch_path (folder, name);
  char buf[SIZE_BYTES];

  memset (buf, byte, sizeof buf);
  unlink (path);
  scratch_file (path, buf, sizeof buf);
}

static bool
is_overlay_name (const char *name)
{
  return strstr (name, ".add-cow") != NULL;
}

/* An overlay that has the sector NAME[0] - 'a' of its image, which is full of
 * NAME[0], over BACKING.
 */
static void
make_overlay (const char *name, const char *backing)
{
  const struct hints is_overlay = { .format = "add-cow" };
  const struct hints is_raw = { .format = "raw" };
  const char image[] = { name[0], '.', 'r', 'a', 'w', '\0' };
  const uint8_t bits = 1 << (name[0] - 'a');
  CLEANUP_FREE char *path = scratch_path (folder, name);
  int fd;

  make_raw (image, name[0]);
  fd = scratch_overlay (path, NR_SECTORS, backing,
                        is_overlay_name (backing) ? &is_overlay : &is_raw,
                        image);
  CHECK_EQ (pwrite (fd, &bits, 1, FORMAT_HEADER_BYTES), 1);
  close (fd);
}

/* How many descriptors there are of the file NAME, or of all files. */
static unsigned
count_fds (const char *name)
{
  CLEANUP_FREE char *path = name ? scratch_path (folder, name) : NULL;
  DIR *dir = opendir ("/proc/self/fd");
  struct dirent *entry;
  unsigned n = 0;

  CHECK (dir != NULL);
  while ((entry = readdir (dir)) != NULL) {
    char to[PATH_MAX];
    ssize_t len = readlinkat (dirfd (dir), entry->d_name, to, sizeof to - 1);

    if (len == -1)
      continue;
    to[len] = '\0';
    n += path == NULL || strcmp (to, path) == 0;
  }
  closedir (dir);
  return n;
}

/*--- Opening. ---------------------------------------------------------*/

static struct backing_options
options_for (const char *name)
{
  return (struct backing_options){
    .format = is_overlay_name (name) ? "add-cow" : "raw",
    .timeout_seconds = TIMEOUT_SECONDS,
    .pool = pool,
  };
}

/* NAME is that of a file in the folder, or a URI. */
static int
open_with (struct backing **backing, const char *name,
           const struct backing_options *options, struct failure *failure)
{
  CLEANUP_FREE char *path = scratch_path (folder, name);
  struct location location;
  int r;

  CHECK_EQ (location_set (&location, name_is_uri (name) ? name : path), 0);
  r = backing_open (backing, &location, options, failure);
  location_clear (&location);
  return r;
}

static int
try_to_open (struct backing **backing, const char *name,
             struct failure *failure)
{
  const struct backing_options options = options_for (name);

  return open_with (backing, name, &options, failure);
}

static struct backing *
open_one (const char *name)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct backing *backing;

  CHECK_EQ (try_to_open (&backing, name, &failure), 0);
  CHECK_EQ (backing->size_bytes, SIZE_BYTES);
  return backing;
}

static bool without_locks;
static char *backing_name; /* instead of what its header says; or NULL */

static int
try_to_open_disk (struct disk **disk, const char *name, bool read_only,
                  struct failure *failure)
{
  CLEANUP_FREE char *path = scratch_path (folder, name);
  const struct disk_options options = {
    .read_only = read_only,
    .unlocked = without_locks,
    .backing_name = backing_name,
    .backing = {
      .format = backing_name ? "add-cow" : NULL,
      .timeout_seconds = TIMEOUT_SECONDS,
      .pool = pool,
    },
  };

  return disk_open (disk, path, &options, failure);
}

/* The sector N is full of BYTE. */
static void
check_sector (struct backing *backing, unsigned n, int byte)
{
  char buf[SECTOR];
  size_t i;

  CHECK_EQ (backing_read (backing, buf, SECTOR, n * SECTOR), 0);
  for (i = 0; i < SECTOR; i++)
    CHECK_EQ (buf[i], byte);
}

/* Somebody who opens, and perhaps closes, on his own. */
struct opener {
  struct worker worker;
  const char *name;
  bool is_disk;
  struct backing *backing;
  struct disk *disk;
  int r;
  struct failure failure;
};

static void
opener_open (void *opaque)
{
  struct opener *o = opaque;

  o->r = o->is_disk ? try_to_open_disk (&o->disk, o->name, true, &o->failure)
                    : try_to_open (&o->backing, o->name, &o->failure);
}

static void
opener_close (void *opaque)
{
  struct opener *o = opaque;

  backing_close (o->backing);
}

static void
start (struct opener *o, const char *name, bool is_disk)
{
  *o = (struct opener){ .name = name, .is_disk = is_disk };
  worker_start (&o->worker, opener_open, o);
  workers_settle ();
}

/* Wait for him, and close what he opened. */
static int
finish (struct opener *o)
{
  worker_join (&o->worker);
  failure_clear (&o->failure);
  if (o->r == 0 && o->is_disk)
    disk_close (o->disk);
  else if (o->r == 0)
    backing_close (o->backing);
  return o->r;
}

/*--- What is one file. ------------------------------------------------*/

#define MANY 100

static void
test_many (void)
{
  struct backing *users[MANY];
  unsigned i, before;

  make_raw ("base.raw", 'B');
  before = count_fds (NULL);
  nr_opened = 0;
  for (i = 0; i < MANY; i++)
    users[i] = open_one ("base.raw");
  CHECK_EQ (nr_opened, 1);
  CHECK_EQ (count_fds (NULL), before + 1);
  for (i = 0; i < MANY; i++) {
    check_sector (users[i], 3, 'B');
    CHECK (users[i]->raw && users[i]->disk == NULL);
    CHECK (users[i]->ops->map == NULL && users[i]->ops->interrupt == NULL);
    CHECK_EQ (users[i]->ops->fd (users[i]), users[0]->ops->fd (users[0]));
    CHECK_EQ (backing_cache (users[i], SIZE_BYTES, 0), 0);
  }
  for (i = 1; i < MANY; i++)
    backing_close (users[i]);
  check_sector (users[0], 7, 'B');
  CHECK_EQ (count_fds ("base.raw"), 1);
  backing_close (users[0]);
  CHECK_EQ (count_fds (NULL), before);
}

/* Does opening NAME with OPTIONS give what is open already? */
static bool
is_shared (const char *name, const struct backing_options *options)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  const unsigned before = count_fds (NULL);
  struct backing *backing;
  unsigned after;

  CHECK_EQ (open_with (&backing, name, options, &failure), 0);
  check_sector (backing, 0, 'B');
  after = count_fds (NULL);
  backing_close (backing);
  CHECK (after == before || after == before + 1);
  return after == before;
}

static bool
is_shared_confined (const char *name)
{
  const struct backing_options options = options_for (name);
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct location location;
  struct backing *backing;
  int r = location_find (&location, folder, name, folder);

  if (r == ENOSYS)
    return true; /* valgrind does not know the call that confines */
  CHECK_EQ (r, 0);
  nr_opened = 0;
  CHECK_EQ (backing_open (&backing, &location, &options, &failure), 0);
  location_clear (&location);
  backing_close (backing);
  return nr_opened == 0;
}

static void
test_same (void)
{
  CLEANUP_FREE char *path = scratch_path (folder, "base.raw");
  CLEANUP_FREE char *link_path = scratch_path (folder, "link.raw");
  CLEANUP_FREE char *hard_path = scratch_path (folder, "hard.raw");
  struct backing_options options = options_for ("base.raw");
  struct backing *user;

  make_raw ("base.raw", 'B');
  make_raw ("like.raw", 'B');
  CHECK_EQ (symlink (path, link_path), 0);
  CHECK_EQ (link (path, hard_path), 0);
  user = open_one ("base.raw");
  CHECK (is_shared ("base.raw", &options));
  CHECK (is_shared ("link.raw", &options));
  CHECK (is_shared ("hard.raw", &options));
  CHECK (is_shared_confined ("base.raw"));
  CHECK (!is_shared ("like.raw", &options));
  options.format = NULL;
  CHECK (!is_shared ("base.raw", &options));
  options = options_for ("base.raw");
  options.unlocked = true;
  CHECK (!is_shared ("base.raw", &options));
  options = options_for ("base.raw");
  options.timeout_seconds++;
  CHECK (!is_shared ("base.raw", &options));
  options = options_for ("base.raw");
  options.pool = NULL;
  CHECK (!is_shared ("base.raw", &options));
  backing_close (user);
  CHECK_EQ (unlink (link_path), 0);
  CHECK_EQ (unlink (hard_path), 0);
}

/* An overlay's own names lead elsewhere from another folder. */
static void
test_folders (void)
{
  CLEANUP_FREE char *other = scratch_path (folder, "other");
  CLEANUP_FREE char *path = scratch_path (folder, "a.add-cow");
  CLEANUP_FREE char *hard_path = scratch_path (other, "a.add-cow");
  CLEANUP_FREE char *link_path = scratch_path (other, "l.add-cow");
  struct backing *user, *hard, *linked;

  CHECK_EQ (mkdir (other, 0700), 0);
  make_raw ("base.raw", 'B');
  make_raw ("other/base.raw", 'O');
  make_raw ("other/a.raw", 'A');
  make_overlay ("a.add-cow", "base.raw");
  CHECK_EQ (link (path, hard_path), 0);
  CHECK_EQ (symlink (path, link_path), 0);
  user = open_one ("a.add-cow");
  hard = open_one ("other/a.add-cow");
  nr_opened = 0;
  linked = open_one ("other/l.add-cow");
  CHECK_EQ (nr_opened, 0);
  check_sector (user, 0, 'a');
  check_sector (user, 1, 'B');
  check_sector (hard, 0, 'A');
  check_sector (hard, 1, 'O');
  check_sector (linked, 1, 'B');
  backing_close (user);
  backing_close (hard);
  check_sector (linked, 0, 'a');
  backing_close (linked);
  CHECK_EQ (unlink (hard_path), 0);
}

static void
test_replaced (void)
{
  CLEANUP_FREE char *path = scratch_path (folder, "base.raw");
  CLEANUP_FREE char *new_path = scratch_path (folder, "new.raw");
  struct backing *old, *new, *again;

  make_raw ("base.raw", 'B');
  old = open_one ("base.raw");
  make_raw ("new.raw", 'N');
  CHECK_EQ (rename (new_path, path), 0);
  new = open_one ("base.raw");
  again = open_one ("base.raw");
  check_sector (old, 0, 'B');
  check_sector (new, 0, 'N');
  check_sector (again, 0, 'N');
  CHECK_EQ (count_fds ("base.raw"), 1);
  backing_close (new);
  backing_close (old);
  check_sector (again, 1, 'N');
  backing_close (again);
}

static unsigned nr_replacements;

static void
replace_base (void)
{
  CLEANUP_FREE char *path = scratch_path (folder, "base.raw");
  CLEANUP_FREE char *new_path = scratch_path (folder, "new.raw");

  if (nr_replacements == 0)
    return;
  make_raw ("new.raw", 'A' + --nr_replacements);
  CHECK_EQ (rename (new_path, path), 0);
}

/* Another file gets the name between looking at it and opening it. */
static void
test_replaced_meanwhile (unsigned n)
{
  CLEANUP_FREE char *away = scratch_path (folder, "away.raw");
  CLEANUP_FREE char *path = scratch_path (folder, "base.raw");
  struct backing *user, *old;

  make_raw ("base.raw", 'Z');
  CHECK_EQ (link (path, away), 0);
  set_spot (0, "base.raw", false, 0)->before = replace_base;
  nr_replacements = n;
  user = open_one ("base.raw");
  clear_spots ();
  check_sector (user, 0, 'A' + nr_replacements);
  /* The first one is still what it was. */
  old = open_one ("away.raw");
  check_sector (old, 0, 'Z');
  backing_close (old);
  backing_close (user);
  CHECK_EQ (unlink (away), 0);
}

/*--- Who waits for whom. ----------------------------------------------*/

static void
test_wait (void)
{
  struct opener first, others[3];
  struct backing *else_;
  struct spot *spot;
  unsigned i;

  make_raw ("base.raw", 'B');
  make_raw ("else.raw", 'E');
  spot = set_spot (0, "base.raw", true, 0);
  nr_opened = 0;
  start (&first, "base.raw", false);
  CHECK_EQ (worker_state (&first.worker), WORKER_HELD);
  for (i = 0; i < 3; i++) {
    start (&others[i], "base.raw", false);
    CHECK_EQ (worker_state (&others[i].worker), WORKER_WAITING);
  }
  else_ = open_one ("else.raw");
  check_sector (else_, 0, 'E');
  backing_close (else_);
  gate_open (&spot->gate);
  CHECK_EQ (finish (&first), 0);
  CHECK_EQ (count_fds ("base.raw"), 1);
  for (i = 0; i < 3; i++)
    CHECK_EQ (finish (&others[i]), 0);
  CHECK_EQ (nr_opened, 2);
  CHECK_EQ (count_fds ("base.raw"), 0);
  clear_spots ();
}

/* Who waited has the same failure; who comes later tries himself. */
static void
test_fail (void)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct opener openers[3];
  struct backing *backing;
  struct spot *spot;
  unsigned i;

  make_raw ("base.raw", 'B');
  spot = set_spot (0, "base.raw", true, ETIMEDOUT);
  nr_opened = 0;
  for (i = 0; i < 3; i++)
    start (&openers[i], "base.raw", false);
  gate_open (&spot->gate);
  workers_settle ();
  for (i = 0; i < 3; i++) {
    CLEANUP_FREE char *path = scratch_path (folder, "base.raw");

    CHECK_EQ (openers[i].failure.err, ETIMEDOUT);
    CHECK_STR (openers[i].failure.file_name, path);
    CHECK_STR (openers[i].failure.detail, "a detail");
    CHECK_EQ (finish (&openers[i]), ETIMEDOUT);
  }
  CHECK_EQ (nr_opened, 1);
  CHECK_EQ (try_to_open (&backing, "base.raw", &failure), ETIMEDOUT);
  CHECK_EQ (nr_opened, 2);
  clear_spots ();
  backing_close (open_one ("base.raw"));
}

/* What is wrong with an overlay above is no failure of those who wait. */
static void
test_fail_above (void)
{
  CLEANUP_FREE char *path = scratch_path (folder, "a.add-cow");
  CLEANUP_FREE char *below = scratch_path (folder, "d.add-cow");
  const struct hints is_overlay = { .format = "add-cow" };
  struct opener bad, good;
  struct spot *spot;

  make_overlay ("d.add-cow", "base.raw");
  make_overlay ("b.add-cow", "d.add-cow");
  make_overlay ("c.add-cow", "b.add-cow");
  /* It would write to what it reads from. */
  close (scratch_overlay (path, NR_SECTORS, "b.add-cow", &is_overlay,
                          "d.add-cow"));
  spot = set_spot (0, "d.add-cow", true, 0);
  start (&bad, "a.add-cow", true);
  start (&good, "c.add-cow", true);
  CHECK_EQ (worker_state (&bad.worker), WORKER_HELD);
  CHECK_EQ (worker_state (&good.worker), WORKER_WAITING);
  gate_open (&spot->gate);
  workers_settle ();
  CHECK_STR (bad.failure.file_name, below);
  CHECK_EQ (finish (&bad), ADDCOW_E_IMAGE_IS_METADATA);
  workers_settle ();
  CHECK_EQ (good.r, 0);
  check_sector (good.disk->backing, 1, 'b');
  clear_spots ();

  /* What is open already is refused just so.  Locks would do that before. */
  CHECK_EQ (finish (&good), 0);
  without_locks = true;
  start (&good, "c.add-cow", true);
  start (&bad, "a.add-cow", true);
  CHECK_STR (bad.failure.file_name, below);
  CHECK_EQ (finish (&bad), ADDCOW_E_IMAGE_IS_METADATA);
  check_sector (good.disk->backing, 3, 'd');
  CHECK_EQ (finish (&good), 0);
  without_locks = false;
  CHECK_EQ (count_fds ("b.add-cow"), 0);
}

/* A loop that is there only because of what the first was told. */
static void
test_fail_loop (void)
{
  struct opener bad, good;
  struct spot *spot;

  make_overlay ("a.add-cow", "base.raw");
  make_overlay ("b.add-cow", "a.add-cow");
  make_overlay ("c.add-cow", "b.add-cow");
  spot = set_spot (0, "b.add-cow", true, 0);
  backing_name = scratch_path (folder, "b.add-cow");
  start (&bad, "a.add-cow", true);
  free (backing_name);
  backing_name = NULL;
  start (&good, "c.add-cow", true);
  CHECK_EQ (worker_state (&good.worker), WORKER_WAITING);
  gate_open (&spot->gate);
  CHECK_EQ (finish (&bad), ADDCOW_E_CHAIN_LOOP);
  workers_settle ();
  CHECK_EQ (good.r, 0);
  check_sector (good.disk->backing, 0, 'a');
  CHECK_EQ (finish (&good), 0);
  clear_spots ();
}

/* One who opens what is being closed waits for that, and gets another. */
static void
test_close (void)
{
  struct opener closer = { .backing = NULL }, opener;

  make_raw ("base.raw", 'B');
  make_raw ("else.raw", 'E');
  closer.backing = open_one ("base.raw");
  closing_holds = true;
  close_gate = (struct gate){ .taken = false };
  worker_start (&closer.worker, opener_close, &closer);
  workers_settle ();
  CHECK_EQ (worker_state (&closer.worker), WORKER_HELD);
  nr_opened = 0;
  start (&opener, "base.raw", false);
  CHECK_EQ (worker_state (&opener.worker), WORKER_WAITING);
  CHECK_EQ (nr_opened, 0);
  backing_close (open_one ("else.raw"));
  gate_open (&close_gate);
  worker_join (&closer.worker);
  workers_settle ();
  CHECK_EQ (worker_state (&opener.worker), WORKER_DONE);
  closing_holds = false;
  CHECK_EQ (nr_opened, 2);
  check_sector (opener.backing, 0, 'B');
  CHECK_EQ (finish (&opener), 0);
}

/*--- Chains. ----------------------------------------------------------*/

static void
test_chain (void)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk *disks[3];
  struct backing *backing;
  unsigned i;

  make_raw ("base.raw", 'B');
  make_overlay ("c.add-cow", "base.raw");
  make_overlay ("b.add-cow", "c.add-cow");
  make_overlay ("a.add-cow", "b.add-cow");
  nr_opened = 0;
  for (i = 0; i < 3; i++)
    CHECK_EQ (try_to_open_disk (&disks[i], "a.add-cow", true, &failure), 0);
  CHECK_EQ (nr_opened, 3);
  backing = open_one ("c.add-cow");
  CHECK_EQ (nr_opened, 3);
  CHECK_EQ (count_fds ("b.add-cow"), 1);
  CHECK_EQ (count_fds ("b.raw"), 1);
  CHECK_EQ (count_fds ("base.raw"), 1);
  for (i = 0; i < 3; i++) {
    struct backing *below = disks[i]->backing;

    CHECK (below->ops->map && below->ops->interrupt && !below->ops->fd);
    CHECK (!below->raw && below->disk);
    check_sector (below, 0, 'B');
    check_sector (below, 1, 'b');
    check_sector (below, 2, 'c');
    disk_close (disks[i]);
  }
  CHECK_EQ (count_fds ("b.add-cow"), 0);
  check_sector (backing, 2, 'c');
  check_sector (backing, 1, 'B');
  backing_close (backing);
  CHECK_EQ (count_fds ("base.raw"), 0);
}

static struct spot *
hold (unsigned n, const char *name)
{
  return set_spot (n, name, true, 0);
}

/* Overlays that are backing files of each other, each opened by somebody: N
 * of them, none of which sees the loop above himself.
 */
static void
test_loop (unsigned n)
{
  static const char *const names[] = { "a.add-cow", "b.add-cow", "c.add-cow" };
  struct opener openers[3];
  struct spot *spot[3];
  unsigned i;

  for (i = 0; i < n; i++)
    make_overlay (names[i], names[(i + 1) % n]);
  for (i = 0; i < n; i++)
    spot[i] = hold (i, names[i]);
  for (i = 0; i < n; i++) {
    start (&openers[i], names[i], true);
    CHECK_EQ (worker_state (&openers[i].worker), WORKER_HELD);
  }
  /* The one after the last finds that he would wait for himself. */
  for (i = 0; i < n; i++) {
    gate_open (&spot[(i + 1) % n]->gate);
    workers_settle ();
    CHECK_EQ (worker_state (&openers[i].worker),
              i + 1 < n ? WORKER_WAITING : WORKER_DONE);
  }
  for (i = 0; i < n; i++) {
    workers_settle ();
    CHECK_EQ (worker_state (&openers[i].worker), WORKER_DONE);
    CHECK (is_overlay_name (openers[i].failure.file_name));
    CHECK_EQ (finish (&openers[i]), ADDCOW_E_CHAIN_LOOP);
  }
  clear_spots ();
}

/* Both are opened as backing files, and are all that there is. */
static void
test_loop_below (void)
{
  struct opener one, two;
  struct spot *spot;

  make_overlay ("a.add-cow", "b.add-cow");
  make_overlay ("b.add-cow", "a.add-cow");
  spot = hold (0, "b.add-cow");
  start (&one, "a.add-cow", false);
  CHECK_EQ (worker_state (&one.worker), WORKER_HELD);
  start (&two, "b.add-cow", false);
  CHECK_EQ (worker_state (&two.worker), WORKER_WAITING);
  gate_open (&spot->gate);
  CHECK_EQ (finish (&one), ADDCOW_E_CHAIN_LOOP);
  CHECK_EQ (finish (&two), ADDCOW_E_CHAIN_LOOP);
  clear_spots ();
}

/* Who writes to it, and who reads from it, keep each other out as they do in
 * two processes.
 */
static void
test_in_use (void)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk *writer, *reader;
  struct backing *backing;

  make_raw ("base.raw", 'B');
  make_overlay ("b.add-cow", "base.raw");
  make_overlay ("a.add-cow", "b.add-cow");
  CHECK_EQ (try_to_open_disk (&writer, "b.add-cow", false, &failure), 0);
  CHECK_EQ (try_to_open_disk (&reader, "a.add-cow", false, &failure),
            ADDCOW_E_IN_USE);
  /* The image of one is no backing file of another. */
  CHECK_EQ (try_to_open (&backing, "b.raw", &failure), ADDCOW_E_IN_USE);
  disk_close (writer);
  CHECK_EQ (try_to_open_disk (&reader, "a.add-cow", false, &failure), 0);
  CHECK_EQ (try_to_open_disk (&writer, "b.add-cow", false, &failure),
            ADDCOW_E_IN_USE);
  disk_close (reader);
  CHECK_EQ (try_to_open_disk (&writer, "b.add-cow", false, &failure), 0);
  disk_close (writer);
}

/* Overlays 0 to N - 1, each over the next. */
static void
make_long_chain (unsigned n)
{
  const struct hints is_overlay = { .format = "add-cow" };
  unsigned i;

  make_raw ("long.raw", 'l');
  for (i = 0; i < n; i++) {
    char name[32], backing[32] = "";
    CLEANUP_FREE char *path = NULL;

    snprintf (name, sizeof name, "%u.add-cow", i);
    if (i + 1 < n)
      snprintf (backing, sizeof backing, "%u.add-cow", i + 1);
    path = scratch_path (folder, name);
    close (scratch_overlay (path, NR_SECTORS, backing,
                            backing[0] ? &is_overlay : NULL, "long.raw"));
  }
}

static void *
open_long_chains (void *opaque UNUSED)
{
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct disk *disk, *other;
  struct backing *backing;

  make_long_chain (CHAIN_MAX + 1);
  CHECK_EQ (try_to_open_disk (&disk, "1.add-cow", true, &failure), 0);
  check_sector (disk->backing, 0, 0);
  /* All of it that is shared is one too many for this one. */
  nr_opened = 0;
  CHECK_EQ (try_to_open_disk (&other, "0.add-cow", true, &failure),
            ADDCOW_E_CHAIN_LONG);
  CHECK (strstr (failure.file_name, "/1024.add-cow") != NULL);
  CHECK_EQ (try_to_open (&backing, "0.add-cow", &failure), ADDCOW_E_CHAIN_LONG);
  CHECK (strstr (failure.file_name, "/1024.add-cow") != NULL);
  nr_opened = 0;
  CHECK_EQ (try_to_open (&backing, "1.add-cow", &failure), 0);
  CHECK_EQ (nr_opened, 1);
  backing_close (backing);
  disk_close (disk);
  return NULL;
}

/* A quarter of the stack that threads usually have. */
#define STACK_BYTES (2 << 20)

static void
test_long_chain (void)
{
  struct rlimit limit;
  pthread_attr_t attr;
  pthread_t thread;

  CHECK_EQ (getrlimit (RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = MIN (limit.rlim_max, 8192);
  CHECK_EQ (setrlimit (RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_cur < 4 * CHAIN_MAX + 100) {
    printf ("not tested for want of descriptors: long chains\n");
    return;
  }
  CHECK_EQ (pthread_attr_init (&attr), 0);
  CHECK_EQ (pthread_attr_setstacksize (&attr, STACK_BYTES), 0);
  CHECK_EQ (pthread_create (&thread, &attr, open_long_chains, NULL), 0);
  CHECK_EQ (pthread_join (thread, NULL), 0);
  CHECK_EQ (pthread_attr_destroy (&attr), 0);
}

/*--- Hints. -----------------------------------------------------------*/

static void
count_log (void *opaque, const char *name UNUSED, const char *text)
{
  unsigned *n = opaque;

  CHECK (strstr (text, "length 4096 bytes, was 512") != NULL);
  ++*n;
}

/* Of each overlay what its header says is compared with what is there. */
static void
test_hints (void)
{
  const struct hints hints = {
    .format = "raw",
    .has_size = true,
    .size_bytes = 512,
  };
  CLEANUP_FREE char *path = scratch_path (folder, "a.add-cow");
  CLEANUP_FAILURE struct failure failure = { 0 };
  unsigned nr_told[2] = { 0 }, i;
  struct disk *disks[2];

  make_raw ("base.raw", 'B');
  close (scratch_overlay (path, NR_SECTORS, "base.raw", &hints, ""));
  for (i = 0; i < 2; i++) {
    const struct disk_options options = {
      .read_only = true,
      .backing = { .timeout_seconds = TIMEOUT_SECONDS,
                   .log = count_log,
                   .log_opaque = &nr_told[i],
                   .pool = pool },
    };

    CHECK_EQ (disk_open (&disks[i], path, &options, &failure), 0);
    CHECK_EQ (nr_told[i], 1);
  }
  CHECK_EQ (count_fds ("base.raw"), 1);
  for (i = 0; i < 2; i++)
    disk_close (disks[i]);
}

/*--- Over NBD. --------------------------------------------------------*/

static char *socket_path, *uri;

static const struct fake_nbd_how honest = {
  .size_bytes = SIZE_BYTES,
  .extent_bytes = 65536,
  .simple = true,
  .max_sent = -1,
};

static void
check_nbd (struct backing *backing, const struct fake_nbd *server)
{
  char buf[SIZE_BYTES], expected[SIZE_BYTES] = { 0 };

  CHECK_EQ (backing_read (backing, buf, sizeof buf, 0), 0);
  fake_nbd_content (server->seed, honest.extent_bytes, expected,
                    sizeof expected, 0);
  CHECK (memcmp (buf, expected, sizeof buf) == 0);
}

/* One connection, which can be lost. */
static void
test_nbd (uint64_t seed)
{
  struct backing *users[10];
  struct fake_nbd server;
  unsigned i;

  nr_logged = 0;
  fake_nbd_start (&server, socket_path, seed, &honest);
  for (i = 0; i < 10; i++)
    users[i] = open_one (uri);
  for (i = 0; i < 10; i++)
    check_nbd (users[i], &server);
  CHECK_EQ (server.nr_connections, 1);
  CHECK_EQ (nr_logged, 0);
  fake_nbd_change (&server, &honest);
  for (i = 0; i < 9; i++) {
    check_nbd (users[i], &server);
    backing_close (users[i]);
  }
  CHECK_EQ (server.nr_connections, 2);
  check_nbd (users[9], &server);
  backing_close (users[9]);
  CHECK_EQ (nr_logged, 2);
  fake_nbd_stop (&server);
}

struct reader {
  pthread_t thread;
  struct backing *backing;
  int r;
};

static void *
reader_read (void *opaque)
{
  struct reader *reader = opaque;
  char byte;

  reader->r = backing_read (reader->backing, &byte, 1, 0);
  return NULL;
}

static void
reader_start (struct reader *reader, struct backing *backing)
{
  reader->backing = backing;
  CHECK_EQ (pthread_create (&reader->thread, NULL, reader_read, reader), 0);
}

static int
reader_join (struct reader *reader)
{
  CHECK_EQ (pthread_join (reader->thread, NULL), 0);
  return reader->r;
}

static void
wait_for_muted (const struct fake_nbd *server, unsigned n)
{
  while (server->nr_muted < n)
    usleep (1000);
}

static void
check_interrupted (struct backing *backing)
{
  char byte;

  CHECK_EQ (backing_read (backing, &byte, 1, 0), EIO);
}

static struct fake_nbd_how
mute (void)
{
  struct fake_nbd_how how = honest;

  how.mute = true;
  return how;
}

/* One who is interrupted waits for nothing any more, and others still do. */
static void
test_interrupt (uint64_t seed)
{
  const struct fake_nbd_how muted = mute ();
  struct backing *one, *two;
  struct fake_nbd server;
  struct reader reader;

  fake_nbd_start (&server, socket_path, seed, &muted);
  one = open_one (uri);
  two = open_one (uri);
  reader_start (&reader, two);
  wait_for_muted (&server, 1);
  backing_interrupt (one);
  backing_interrupt (one);
  check_interrupted (one);
  fake_nbd_change (&server, &honest);
  CHECK_EQ (reader_join (&reader), 0);
  check_interrupted (one);
  check_nbd (two, &server);
  backing_close (one);
  check_nbd (two, &server);
  backing_interrupt (two);
  check_interrupted (two);
  backing_close (two);
  fake_nbd_stop (&server);
}

/* When nobody wants anything of it any more, all who wait get away: the other
 * one is INTERRUPTED too, or closed.  Who comes then gets another one.
 */
static void
test_interrupt_all (uint64_t seed, bool interrupted)
{
  const struct fake_nbd_how muted = mute ();
  struct backing *one, *two, *three;
  struct fake_nbd server;
  struct reader reader;

  fake_nbd_start (&server, socket_path, seed, &muted);
  one = open_one (uri);
  two = open_one (uri);
  reader_start (&reader, one);
  wait_for_muted (&server, 1);
  backing_interrupt (one);
  if (interrupted)
    backing_interrupt (two);
  else
    backing_close (two);
  CHECK_EQ (reader_join (&reader), EIO);

  fake_nbd_change (&server, &honest);
  nr_opened = 0;
  three = open_one (uri);
  CHECK_EQ (nr_opened, 1);
  check_nbd (three, &server);
  check_interrupted (one);
  backing_close (one);
  if (interrupted)
    backing_close (two);
  check_nbd (three, &server);
  backing_close (three);
  fake_nbd_stop (&server);
}

/* The same where it is two overlays down, and another overlay reads it too. */
static void
test_interrupt_chain (uint64_t seed)
{
  const struct fake_nbd_how muted = mute ();
  struct backing *one, *two, *beside;
  struct fake_nbd server;
  struct reader reader;

  make_overlay ("c.add-cow", uri);
  make_overlay ("d.add-cow", "c.add-cow");
  make_overlay ("e.add-cow", uri);
  fake_nbd_start (&server, socket_path, seed, &honest);
  one = open_one ("d.add-cow");
  two = open_one ("d.add-cow");
  beside = open_one ("e.add-cow");
  check_sector (one, 2, 'c');
  CHECK_EQ (server.nr_connections, 1);
  backing_interrupt (one);
  check_interrupted (one);
  reader_start (&reader, two);
  CHECK_EQ (reader_join (&reader), 0);
  fake_nbd_change (&server, &muted);
  backing_interrupt (two);
  check_interrupted (two);
  reader_start (&reader, beside);
  wait_for_muted (&server, 1);
  backing_close (one);
  backing_close (two);
  fake_nbd_change (&server, &honest);
  CHECK_EQ (reader_join (&reader), 0);
  fake_nbd_change (&server, &muted);
  reader_start (&reader, beside);
  wait_for_muted (&server, 2);
  backing_interrupt (beside);
  CHECK_EQ (reader_join (&reader), EIO);
  backing_close (beside);
  fake_nbd_stop (&server);
}

/*--- Read by QEMU. ----------------------------------------------------*/

static bool
is_qemu_child (const char *pid)
{
  CLEANUP_FREE char *path = NULL;
  char name[64], state;
  int parent;
  FILE *fp;
  bool is;

  CHECK (asprintf (&path, "/proc/%s/stat", pid) >= 0);
  fp = fopen (path, "r");
  if (fp == NULL)
    return false;
  is = fscanf (fp, "%*d (%63[^)]) %c %d", name, &state, &parent) == 3 &&
       parent == getpid () && state != 'Z' && strcmp (name, "qemu-nbd") == 0;
  fclose (fp);
  return is;
}

static unsigned
count_qemu_children (void)
{
  DIR *dir = opendir ("/proc");
  struct dirent *entry;
  unsigned n = 0;

  CHECK (dir != NULL);
  while ((entry = readdir (dir)) != NULL)
    n += is_qemu_child (entry->d_name);
  closedir (dir);
  return n;
}

static bool
make_qcow2 (void)
{
  CLEANUP_FREE char *command = NULL;

  make_raw ("base.raw", 'B');
  CHECK (asprintf (&command,
                   "qemu-nbd --version >/dev/null 2>&1 && "
                   "setpriv --version >/dev/null 2>&1 && cd '%s' && "
                   "qemu-img convert -O qcow2 base.raw base.qcow2",
                   folder) >= 0);
  return system (command) == 0;
}

static void
test_qemu (void)
{
  struct backing_options options = options_for ("base.qcow2");
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct backing *users[5];
  unsigned i;

  if (!make_qcow2 ()) {
    printf ("not tested for want of qemu: one qemu-nbd for all\n");
    return;
  }
  options.format = "qcow2";
  for (i = 0; i < 5; i++)
    CHECK_EQ (open_with (&users[i], "base.qcow2", &options, &failure), 0);
  for (i = 0; i < 5; i++)
    check_sector (users[i], i, 'B');
  CHECK_EQ (count_qemu_children (), 1);
  for (i = 1; i < 5; i++)
    backing_close (users[i]);
  check_sector (users[0], 7, 'B');
  CHECK_EQ (count_qemu_children (), 1);
  backing_close (users[0]);
  CHECK_EQ (count_qemu_children (), 0);
}

/*--- All at once. -----------------------------------------------------*/

/* What there is to be opened, and how that may end. */
static const struct thing {
  const char *name; /* NULL: the URI */
  enum { BELOW, READER, WRITER } as;
  int r[2];
} things[] = {
  { "base.raw", BELOW, { 0 } },
  { "b.add-cow", BELOW, { 0 } },
  { "c.add-cow", BELOW, { 0 } },
  { "c.add-cow", READER, { 0 } },
  { "d.add-cow", BELOW, { 0, ADDCOW_E_IN_USE } },
  { "d.add-cow", WRITER, { 0, ADDCOW_E_IN_USE } },
  { "missing.raw", BELOW, { ENOENT } },
  /* Its image is the metadata file of one below. */
  { "a.add-cow", READER, { ADDCOW_E_IN_USE, ADDCOW_E_IMAGE_IS_METADATA } },
  { "e.add-cow", BELOW, { ADDCOW_E_CHAIN_LOOP } }, /* over f */
  { "f.add-cow", BELOW, { ADDCOW_E_CHAIN_LOOP } }, /* over g */
  { "g.add-cow", BELOW, { ADDCOW_E_CHAIN_LOOP } }, /* over e */
  { "e.add-cow", READER, { ADDCOW_E_CHAIN_LOOP } },
  { "f.add-cow", READER, { ADDCOW_E_CHAIN_LOOP } },
  { NULL, BELOW, { 0 } },
};

/* Without the last, which has a thread that is under no schedule. */
#define NR_FILES (ARRAY_SIZE (things) - 1)

static void
make_things (void)
{
  CLEANUP_FREE char *path = scratch_path (folder, "a.add-cow");
  const struct hints is_overlay = { .format = "add-cow" };

  make_raw ("base.raw", 'B');
  close (scratch_overlay (path, NR_SECTORS, "c.add-cow", &is_overlay,
                          "b.add-cow"));
  make_overlay ("b.add-cow", "base.raw");
  make_overlay ("c.add-cow", "b.add-cow");
  make_overlay ("d.add-cow", "b.add-cow");
  make_overlay ("e.add-cow", "f.add-cow");
  make_overlay ("f.add-cow", "g.add-cow");
  make_overlay ("g.add-cow", "e.add-cow");
}

/* One who opens, uses and closes things. */
struct chaos {
  pthread_t thread;
  struct worker worker;
  struct rng rng;
  unsigned nr_things; /* he opens one of so many */
  uint64_t nr_rounds;
  unsigned nr_opened, nr_refused;
};

static void
use_once (struct chaos *c, struct backing *backing, bool is_file)
{
  char buf[SECTOR];
  uint64_t i;

  for (i = rng_below (&c->rng, 4); i > 0; i--) {
    CHECK_EQ (backing_read (backing, buf, sizeof buf, 0), 0);
    CHECK (!is_file || buf[i] == 'B');
  }
  if (rng_one_in (&c->rng, 2))
    return;
  backing_interrupt (backing);
  CHECK_EQ (backing_read (backing, buf, sizeof buf, 0),
            backing->ops->interrupt ? EIO : 0);
}

static int
open_thing (const struct thing *thing, struct backing **backing,
            struct disk **disk, struct failure *failure)
{
  *disk = NULL;
  if (thing->as == BELOW)
    return try_to_open (backing, thing->name ? thing->name : uri, failure);
  return try_to_open_disk (disk, thing->name, thing->as == READER, failure);
}

static void
chaos_round (struct chaos *c)
{
  const struct thing *thing = &things[rng_below (&c->rng, c->nr_things)];
  CLEANUP_FAILURE struct failure failure = { 0 };
  struct backing *backing;
  struct disk *disk;
  int r = open_thing (thing, &backing, &disk, &failure);

  CHECK_EQ (failure.err, r);
  if (r != thing->r[0])
    CHECK_EQ (r, thing->r[1]);
  if (r) {
    c->nr_refused++;
    return;
  }
  c->nr_opened++;
  use_once (c, disk ? disk->backing : backing, thing->name);
  if (disk)
    disk_close (disk);
  else
    backing_close (backing);
}

static void
chaos_run (void *opaque)
{
  struct chaos *c = opaque;
  uint64_t i;

  for (i = 0; i < c->nr_rounds; i++)
    chaos_round (c);
}

static void *
chaos_main (void *opaque)
{
  chaos_run (opaque);
  return NULL;
}

#define NR_THREADS 6

static void
test_threads (uint64_t seed, uint64_t nr_rounds)
{
  const unsigned before = count_fds (NULL);
  struct chaos threads[NR_THREADS];
  unsigned i, opened = 0, refused = 0;
  struct fake_nbd server;

  make_things ();
  fake_nbd_start (&server, socket_path, seed, &honest);
  nr_opened = 0;
  for (i = 0; i < NR_THREADS; i++) {
    struct chaos *c = &threads[i];

    *c = (struct chaos){
      .rng = { seed + i },
      .nr_things = ARRAY_SIZE (things),
      .nr_rounds = nr_rounds,
    };
    CHECK_EQ (pthread_create (&c->thread, NULL, chaos_main, c), 0);
  }
  for (i = 0; i < NR_THREADS; i++) {
    CHECK_EQ (pthread_join (threads[i].thread, NULL), 0);
    opened += threads[i].nr_opened;
    refused += threads[i].nr_refused;
  }
  fake_nbd_stop (&server);
  CHECK_EQ (count_fds (NULL), before);
  printf ("seed %" PRIu64 ", threads: %u opened, %u refused, %u attempts\n",
          seed, opened, refused, (unsigned) nr_opened);
}

#define NR_WORKERS 5

/* The same under schedules, which can be repeated. */
static void
test_schedules (uint64_t seed, uint64_t nr_schedules)
{
  const unsigned before = count_fds (NULL);
  unsigned opened = 0, refused = 0, i;
  uint64_t n;

  make_things ();
  nr_opened = 0;
  for (n = 0; n < nr_schedules; n++) {
    struct chaos chaos[NR_WORKERS];
    struct worker workers[NR_WORKERS];
    struct rng rng = { seed + n };

    for (i = 0; i < NR_WORKERS; i++) {
      chaos[i] = (struct chaos){
        .rng = { rng_next (&rng) },
        .nr_things = NR_FILES,
        .nr_rounds = 3,
      };
      workers[i] = (struct worker){ .fn = chaos_run, .opaque = &chaos[i] };
    }
    workers_run_scheduled (workers, NR_WORKERS, &rng);
    for (i = 0; i < NR_WORKERS; i++) {
      opened += chaos[i].nr_opened;
      refused += chaos[i].nr_refused;
    }
  }
  CHECK_EQ (count_fds (NULL), before);
  printf ("seed %" PRIu64 ", %" PRIu64 " schedules: %u opened, %u refused, "
          "%u attempts\n",
          seed, nr_schedules, opened, refused, (unsigned) nr_opened);
}

int
main (int argc, char *argv[])
{
  const struct test_options o = test_options (argc, argv);
  const uint64_t nr_schedules = workers_are_watched () ? 50 : 300;

  check_watchdog (300);
  folder = scratch_folder ();
  socket_path = scratch_path (folder, "sock");
  CHECK (asprintf (&uri, "nbd+unix:///?socket=%s", socket_path) >= 0);
  CHECK_EQ (backing_pool_new (&pool, log_of_pool, &nr_logged), 0);

  test_many ();
  test_same ();
  test_folders ();
  test_replaced ();
  test_replaced_meanwhile (1);
  test_replaced_meanwhile (5);
  test_replaced_meanwhile (20);
  test_wait ();
  test_fail ();
  test_fail_above ();
  test_fail_loop ();
  test_close ();
  test_chain ();
  test_loop (2);
  test_loop (3);
  test_loop_below ();
  test_in_use ();
  test_long_chain ();
  test_hints ();
  test_nbd (o.seed);
  test_interrupt (o.seed);
  test_interrupt_all (o.seed, true);
  test_interrupt_all (o.seed, false);
  test_interrupt_chain (o.seed);
  test_qemu ();
  test_threads (o.seed, 200);
  test_schedules (o.seed, o.iterations ? o.iterations : nr_schedules);

  backing_pool_free (pool);
  free (uri);
  free (socket_path);
  free (folder);
  return EXIT_SUCCESS;
}

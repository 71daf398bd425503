/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backing-addcow.h"
#include "backing-kinds.h"
#include "backing-pool.h"
#include "common.h"
#include "disk.h"
#include "image-file.h"

/* What is opened, and how: equal for those who share it. */
struct key {
  enum backing_kind kind;
  bool is_local;
  struct stat st;   /* of a local file */
  char *name;       /* what else it is told by, or NULL */
  char *format;     /* or NULL */
  char *confine;    /* where it matters; or NULL */
  bool is_confined; /* found under a folder */
  bool unlocked;
  unsigned timeout_seconds;
};

struct shared_backing {
  struct backing_pool *pool;
  struct key key;
  int pin_fd; /* keeps st that of one file while nothing else does, or -1 */

  /* Set when it is open. */
  struct backing *backing;

  /* Protected by pool->lock. */
  struct shared_backing *next; /* in the pool */
  enum shared_state {
    SHARED_OPENING, /* its users wait for that */
    SHARED_OPEN,
    SHARED_FAILED, /* not in the pool; freed by the last who waited */
    SHARED_CLOSING,
  } state;
  bool interrupted; /* or about to be: nobody is to join */
  unsigned nr_users, nr_interrupted;

  pthread_cond_t opened; /* with it: no longer SHARED_OPENING */

  /* While it is opened: what is waited for, or opened, to be its backing
   * file; or NULL.
   */
  struct shared_backing *needs;

  /* When it failed. */
  struct failure failure;
  bool says_nothing; /* about others than who tried */
};

struct backing_pool {
  void (*log) (void *opaque, const char *name, const char *text);
  void *log_opaque;

  pthread_mutex_t lock;
  struct shared_backing *all; /* protected by lock */
  pthread_cond_t closed;      /* with it: something left the list */
};

/* Begin anew: not an error number, nor what a callback returns. */
#define TRY_AGAIN (-2)

/* How often, before it is opened for one alone. */
#define MAX_TRIES 10

/*--- Keys. ------------------------------------------------------------*/

static void
key_clear (struct key *key)
{
  free (key->name);
  free (key->format);
  free (key->confine);
}

static int
copy_string (char **to, const char *from)
{
  *to = from ? strdup (from) : NULL;
  return from && *to == NULL ? ENOMEM : 0;
}

/* The same file may have names in two folders, and what it names relative to
 * itself be different from there.  addcow finds that folder through links,
 * QEMU does not; and what is confined QEMU may not let name anything.
 */
static int
set_name (struct key *key, const struct location *location)
{
  if (location->path == NULL)
    return copy_string (&key->name, location->name);
  if (key->kind == BACKING_QEMU && !key->is_confined)
    return copy_string (&key->name, location->path);
  if (key->kind != BACKING_ADDCOW)
    return 0;
  key->name = realpath (location->path, NULL);
  return key->name ? 0 : copy_string (&key->name, location->path);
}

/* All of it but st. */
static int
key_init (struct key *key, const struct location *location,
          const struct backing_options *options)
{
  int r;

  *key = (struct key){
    .kind = backing_kind (location, options->format),
    .is_local = location->path != NULL,
    .unlocked = options->unlocked,
    .timeout_seconds = options->timeout_seconds,
  };
  key->is_confined = key->kind == BACKING_QEMU && location->fd >= 0;
  r = set_name (key, location);
  if (r == 0)
    r = copy_string (&key->format, options->format);
  if (r == 0 && key->kind == BACKING_ADDCOW)
    r = copy_string (&key->confine, options->confine);
  return r;
}

static bool
is_equal (const char *a, const char *b)
{
  return a == b || (a && b && strcmp (a, b) == 0);
}

static bool
key_is_equal (const struct key *a, const struct key *b)
{
  return a->kind == b->kind && a->is_local == b->is_local &&
         (!a->is_local || same_file (&a->st, &b->st)) &&
         (a->kind != BACKING_FILE || a->st.st_size == b->st.st_size) &&
         is_equal (a->name, b->name) && is_equal (a->format, b->format) &&
         is_equal (a->confine, b->confine) &&
         a->is_confined == b->is_confined && a->unlocked == b->unlocked &&
         a->timeout_seconds == b->timeout_seconds;
}

/*--- What is shared. --------------------------------------------------*/

static void
shared_free (struct shared_backing *s)
{
  key_clear (&s->key);
  if (s->pin_fd >= 0)
    close (s->pin_fd);
  failure_clear (&s->failure);
  pthread_cond_destroy (&s->opened);
  free (s);
}

/* The file that LOCATION leads to now. */
static int
pin (struct shared_backing *s, const struct location *location)
{
  int r = fd_open (location->path, O_PATH | O_CLOEXEC, &s->pin_fd);

  if (r)
    return r;
  return fstat (s->pin_fd, &s->key.st) == -1 ? errno : 0;
}

/* One that is not in the pool yet.  Returns 0 or an errno. */
static int
shared_new (struct shared_backing **ret, const struct location *location,
            const struct backing_options *options)
{
  struct shared_backing *s = calloc (1, sizeof *s);
  int r;

  if (s == NULL)
    return ENOMEM;
  s->pool = options->pool;
  s->pin_fd = -1;
  pthread_cond_init (&s->opened, NULL);
  r = key_init (&s->key, location, options);
  if (r == 0 && s->key.is_local)
    r = pin (s, location);
  if (r)
    shared_free (s);
  else
    *ret = s;
  return r;
}

static void
remove_locked (struct shared_backing *s)
{
  struct shared_backing **p = &s->pool->all;

  while (*p != s)
    p = &(*p)->next;
  *p = s->next;
}

/* What is equal to KEY, or NULL.  Of what was interrupted another can be opened
 * beside it, but who closes is waited for: a server may have room for one
 * client alone.
 */
static struct shared_backing *
find_locked (struct backing_pool *pool, const struct key *key)
{
  struct shared_backing *s, *closing = NULL;

  for (s = pool->all; s; s = s->next) {
    if (!key_is_equal (&s->key, key))
      continue;
    if (s->state == SHARED_CLOSING)
      closing = s;
    else if (!s->interrupted)
      return s;
  }
  return closing;
}

/* Does S wait for OPENING, or would when it comes to that?  Nothing waits for
 * what is NULL.
 */
static bool
leads_to_locked (const struct shared_backing *s,
                 const struct shared_backing *opening)
{
  while (s && s != opening)
    s = s->needs;
  return s != NULL;
}

/* What is equal to FRESH, which is taken into the pool if there is none: then
 * *FIRST, and the caller opens it.  The caller, who is about to open OPENING or
 * NULL, is a user of it.  NULL: it would wait for the caller.
 */
static struct shared_backing *
join (struct shared_backing *fresh, struct shared_backing *opening, bool *first)
{
  struct backing_pool *pool = fresh->pool;
  struct shared_backing *s;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&pool->lock);
  while ((s = find_locked (pool, &fresh->key)) && s->state == SHARED_CLOSING)
    pthread_cond_wait (&pool->closed, &pool->lock);
  *first = s == NULL;
  if (s == NULL) {
    s = fresh;
    s->next = pool->all;
    pool->all = s;
  }
  if (s->state == SHARED_OPENING && opening) {
    if (leads_to_locked (s, opening))
      return NULL;
    opening->needs = s;
  }
  s->nr_users++;
  return s;
}

/* The caller is a user of S no more.  WAS_INTERRUPTED: he was one that wanted
 * nothing of it.
 */
static void
leave (struct shared_backing *s, bool was_interrupted)
{
  struct backing_pool *pool = s->pool;

  pthread_mutex_lock (&pool->lock);
  if (!was_interrupted && s->nr_users > 1 &&
      s->nr_interrupted == s->nr_users - 1) {
    /* It is not closed meanwhile: the caller is a user still. */
    s->interrupted = true;
    pthread_mutex_unlock (&pool->lock);
    backing_interrupt (s->backing);
    pthread_mutex_lock (&pool->lock);
  }
  s->nr_interrupted -= was_interrupted;
  if (--s->nr_users > 0) {
    pthread_mutex_unlock (&pool->lock);
    return;
  }
  s->state = SHARED_CLOSING;
  pthread_mutex_unlock (&pool->lock);
  backing_close (s->backing);

  pthread_mutex_lock (&pool->lock);
  remove_locked (s);
  pthread_cond_broadcast (&pool->closed);
  pthread_mutex_unlock (&pool->lock);
  shared_free (s);
}

/*--- Users. -----------------------------------------------------------*/

struct backing_user {
  struct backing backing;
  struct backing_ops ops;
  struct backing *below; /* of shared */
  struct shared_backing *shared;

  /* Written with pool->lock. */
  _Atomic bool interrupted;
};

static struct backing_user *
user_of (struct backing *backing)
{
  return container_of (backing, struct backing_user, backing);
}

/* Who begins to read at that very moment is like one who was reading. */
static bool
is_interrupted (struct backing_user *user)
{
  return atomic_load_explicit (&user->interrupted, memory_order_relaxed);
}

static int
user_read (struct backing *backing, void *buf, size_t count, uint64_t offset)
{
  struct backing_user *user = user_of (backing);

  if (is_interrupted (user))
    return EIO;
  return user->below->ops->read (user->below, buf, count, offset);
}

static int
user_extents (struct backing *backing, uint64_t count, uint64_t offset,
              extent_fn *fn, void *opaque)
{
  struct backing_user *user = user_of (backing);

  if (is_interrupted (user))
    return EIO;
  return user->below->ops->extents (user->below, count, offset, fn, opaque);
}

static int
user_cache (struct backing *backing, uint64_t count, uint64_t offset)
{
  struct backing_user *user = user_of (backing);

  if (is_interrupted (user))
    return EIO;
  return user->below->ops->cache (user->below, count, offset);
}

static int
user_fd (struct backing *backing)
{
  struct backing *below = user_of (backing)->below;

  return below->ops->fd (below);
}

static int
user_map (struct backing *backing, uint64_t count, uint64_t offset,
          unsigned depth, map_fn *fn, void *opaque, struct failure *failure)
{
  struct backing *below = user_of (backing)->below;

  return below->ops->map (below, count, offset, depth, fn, opaque, failure);
}

static void
user_interrupt (struct backing *backing)
{
  struct backing_user *user = user_of (backing);
  struct shared_backing *s = user->shared;
  bool all;

  pthread_mutex_lock (&s->pool->lock);
  s->nr_interrupted += !user->interrupted;
  user->interrupted = true;
  all = !s->interrupted && s->nr_interrupted == s->nr_users;
  s->interrupted |= all;
  pthread_mutex_unlock (&s->pool->lock);
  if (all)
    backing_interrupt (s->backing);
}

static void
user_close (struct backing *backing)
{
  struct backing_user *user = user_of (backing);

  leave (user->shared, user->interrupted);
  free (user);
}

/* Callers ask which operations there are. */
static struct backing_ops
ops_over (const struct backing_ops *below)
{
  return (struct backing_ops){
    .read = user_read,
    .extents = user_extents,
    .cache = user_cache,
    .fd = below->fd ? user_fd : NULL,
    .map = below->map ? user_map : NULL,
    .interrupt = below->interrupt ? user_interrupt : NULL,
    .close = user_close,
  };
}

static struct backing_user *
user_new (struct shared_backing *s)
{
  struct backing_user *user = malloc (sizeof *user);

  if (user == NULL)
    return NULL;
  *user = (struct backing_user){
    .backing = *s->backing,
    .ops = ops_over (s->backing->ops),
    .below = s->backing,
    .shared = s,
  };
  user->backing.ops = &user->ops;
  return user;
}

/*--- Opening. ---------------------------------------------------------*/

/* Errors that are those of who tried: of what is above it, or of what is
 * locked then.
 */
static bool
is_of_who_tried (int err)
{
  return err == ADDCOW_E_CHAIN_LOOP || err == ADDCOW_E_CHAIN_LONG ||
         err == ADDCOW_E_IMAGE_IS_METADATA || err == ADDCOW_E_IN_USE;
}

/* As if there were no pool, on all levels. */
static int
open_unshared (struct backing **backing, const struct location *location,
               const struct backing_options *options, struct failure *failure)
{
  struct backing_options alone = *options;

  alone.pool = NULL;
  alone.opening = NULL;
  return backing_open_kind (backing, location, &alone, failure);
}

/* Is what is at LOCATION still what S was found by? */
static bool
is_there_still (const struct shared_backing *s, const struct location *location)
{
  struct stat st;

  return !s->key.is_local ||
         (stat (location->path, &st) == 0 && same_file (&st, &s->key.st));
}

/* These have the file open themselves, QEMU need not. */
static void
unpin (struct shared_backing *s)
{
  if (s->key.kind == BACKING_QEMU || s->pin_fd == -1)
    return;
  close (s->pin_fd);
  s->pin_fd = -1;
}

/* Say to those who wait what it came to: R, or TRY_AGAIN. */
static void
tell_users (struct shared_backing *s, struct shared_backing *opening, int r,
            const struct failure *failure)
{
  struct backing_pool *pool = s->pool;
  bool unused = false;

  pthread_mutex_lock (&pool->lock);
  if (opening)
    opening->needs = NULL;
  s->state = r ? SHARED_FAILED : SHARED_OPEN;
  if (r) {
    s->says_nothing = r == TRY_AGAIN || is_of_who_tried (r);
    if (!s->says_nothing)
      failure_copy (&s->failure, failure);
    remove_locked (s);
    unused = --s->nr_users == 0;
  }
  pthread_cond_broadcast (&s->opened);
  pthread_mutex_unlock (&pool->lock);
  if (unused)
    shared_free (s);
}

/* Open S, which the caller was first to want.  If that fails he is no user of
 * it any more.
 */
static int
open_first (struct shared_backing *s, const struct location *location,
            const struct backing_options *options, struct failure *failure)
{
  struct backing_options own = *options;
  int r;

  own.opening = s;
  own.log = s->pool->log;
  own.log_opaque = s->pool->log_opaque;
  r = backing_open_kind (&s->backing, location, &own, failure);
  if (r == 0 && !is_there_still (s, location)) {
    backing_close (s->backing);
    r = TRY_AGAIN;
  }
  if (r == 0)
    unpin (s);
  tell_users (s, options->opening, r, failure);
  return r;
}

/* Wait until S is open.  If that fails the caller is no user of it any more. */
static int
wait_for_first (struct shared_backing *s, struct shared_backing *opening,
                struct failure *failure)
{
  struct backing_pool *pool = s->pool;
  bool unused;
  int r;

  pthread_mutex_lock (&pool->lock);
  while (s->state == SHARED_OPENING)
    pthread_cond_wait (&s->opened, &pool->lock);
  if (opening)
    opening->needs = NULL;
  if (s->state != SHARED_FAILED) {
    pthread_mutex_unlock (&pool->lock);
    return 0;
  }
  r = s->says_nothing ? TRY_AGAIN : failure_copy (failure, &s->failure);
  unused = --s->nr_users == 0;
  pthread_mutex_unlock (&pool->lock);
  if (unused)
    shared_free (s);
  return r;
}

/* Give the caller, who is counted as a user of S, which is open, what he reads
 * through.  If that fails he is no user any more.
 */
static int
use (struct backing **backing, struct shared_backing *s,
     struct failure *failure, const char *name)
{
  struct backing_user *user = user_new (s);

  if (user == NULL) {
    leave (s, false);
    return failure_set (failure, name, ENOMEM);
  }
  *backing = &user->backing;
  return 0;
}

static int
try_to_open (struct backing **backing, const struct location *location,
             const struct backing_options *options, struct failure *failure)
{
  struct shared_backing *fresh, *s;
  bool first;
  int r;

  r = shared_new (&fresh, location, options);
  if (r == ENOMEM)
    return failure_set (failure, location->name, r);
  /* Each kind has its own word for what is not there. */
  if (r)
    return open_unshared (backing, location, options, failure);
  s = join (fresh, options->opening, &first);
  if (s != fresh)
    shared_free (fresh);
  if (s == NULL)
    return open_unshared (backing, location, options, failure);

  r = first ? open_first (s, location, options, failure)
            : wait_for_first (s, options->opening, failure);
  if (r)
    return r;
  if (first || chain_check_below (options->chain, s->backing) == 0)
    return use (backing, s, failure, location->name);
  /* It finds which file it is that must not be there. */
  leave (s, false);
  return open_unshared (backing, location, options, failure);
}

int
backing_pool_open (struct backing **backing, const struct location *location,
                   const struct backing_options *options,
                   struct failure *failure)
{
  unsigned i;
  int r;

  for (i = 0; i < MAX_TRIES; i++) {
    r = try_to_open (backing, location, options, failure);
    if (r != TRY_AGAIN)
      return r;
  }
  return open_unshared (backing, location, options, failure);
}

/*--- Pools. -----------------------------------------------------------*/

int
backing_pool_new (struct backing_pool **ret,
                  void (*log) (void *opaque, const char *name,
                               const char *text),
                  void *log_opaque)
{
  struct backing_pool *pool = calloc (1, sizeof *pool);

  if (pool == NULL)
    return ENOMEM;
  pool->log = log;
  pool->log_opaque = log_opaque;
  pthread_mutex_init (&pool->lock, NULL);
  pthread_cond_init (&pool->closed, NULL);
  *ret = pool;
  return 0;
}

void
backing_pool_free (struct backing_pool *pool)
{
  if (pool == NULL)
    return;
  pthread_cond_destroy (&pool->closed);
  pthread_mutex_destroy (&pool->lock);
  free (pool);
}

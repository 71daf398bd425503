/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A raw disk that an NBD server has as a backing file.
 *
 * What the server tells of its extents is asked for once and kept (the
 * backing file never changes): what reads as zeroes is never read.  A
 * server that cannot tell, or fails to, has data everywhere.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backing-kinds.h"
#include "backing-nbd.h"
#include "common.h"
#include "extent-cache.h"
#include "nbd-client.h"
#include "nbd-peers.h"

/* How much memory is used to know where the zeroes are. */
#define MAX_CACHE_BYTES (16 * 1024 * 1024)

struct backing_nbd {
  struct backing backing;
  struct nbd_client *client;
  struct extent_cache *extents;
  char *name;
  void (*log) (void *opaque, const char *name, const char *text);
  void *log_opaque;
};

static struct backing_nbd *
to_nbd (struct backing *backing)
{
  return container_of (backing, struct backing_nbd, backing);
}

/*--- Extents. ---------------------------------------------------------*/

/* What is smaller than a sector is not worth memory: there are data. */
#define SMALLEST_EXTENT 512

/* Tell FN of the pairs of length and type that the server sent, as far as
 * they make sense within COUNT bytes.  A block in which one of them ends has
 * data.
 */
static int
tell_extents (const struct nbd_request *request, uint64_t count, uint32_t block,
              extent_fn *fn, void *opaque)
{
  uint64_t at = 0, told = 0;
  size_t i;
  int r;

  for (i = 0; i + 1 < request->nr_extents && at < count; i += 2) {
    const uint64_t end = at + MIN (request->extents[i], count - at);
    const uint64_t whole = end == count ? end : end - end % block;
    const uint32_t type = request->extents[i + 1];

    if (end == at)
      break;
    if (told < at && told < whole) {
      const uint64_t n = MIN (block, count - told);

      r = fn (opaque, n, 0);
      if (r)
        return r;
      told += n;
    }
    if (told < whole) {
      r = fn (opaque, whole - told, type & (EXTENT_HOLE | EXTENT_ZERO));
      if (r)
        return r;
      told = whole;
    }
    at = end;
  }
  if (told > 0)
    return 0;
  return fn (opaque, at > 0 ? MIN (block, count) : count, 0);
}

/* An extent_fetch_fn. */
static int
fetch_extents (void *opaque, uint64_t count, uint64_t offset, extent_fn *fn,
               void *fn_opaque)
{
  struct backing_nbd *nbd = opaque;
  const struct nbd_limits limits = nbd_client_limits (nbd->client);
  const uint64_t whole = count - count % limits.minimum;
  const uint64_t before = offset % limits.minimum;
  struct nbd_request request;
  int r;

  if (!limits.has_extents || whole == 0)
    return fn (fn_opaque, count, 0);
  /* An extent ended within a block of the server's. */
  if (before)
    return fn (fn_opaque, MIN (count, limits.minimum - before), 0);
  nbd_client_extents (nbd->client, &request, whole, offset);
  r = nbd_client_wait (&request);
  if (r == 0)
    r = tell_extents (&request, whole, SMALLEST_EXTENT, fn, fn_opaque);
  else if (!request.lost)
    r = fn (fn_opaque, count, 0);
  free (request.extents);
  return r;
}

static int
backing_nbd_extents (struct backing *backing, uint64_t count, uint64_t offset,
                     extent_fn *fn, void *opaque)
{
  struct backing_nbd *nbd = to_nbd (backing);

  while (count > 0) {
    unsigned type;
    uint64_t n;
    int r = extent_cache_look (nbd->extents, offset, &type, &n);

    if (r)
      return r;
    n = MIN (n, count);
    r = fn (opaque, n, type);
    if (r)
      return r;
    offset += n;
    count -= n;
  }
  return 0;
}

/*--- Reading. ---------------------------------------------------------*/

/* How many requests one read makes at a time. */
#define MAX_PIECES 16

/* A part of a read that is asked for as one request: rounded out to what the
 * server takes, into a buffer of its own, where that is more.
 */
struct piece {
  struct nbd_request request;
  char *bounce; /* NULL: read into place */
  char *buf;
  size_t count;
  size_t skip; /* in bounce */
};

struct reader {
  struct backing_nbd *nbd;
  struct nbd_limits limits;
  unsigned n;
  struct piece pieces[MAX_PIECES];
};

/* Wait for all that was asked for.  Returns the first error. */
static int
reader_wait (struct reader *rd)
{
  unsigned i;
  int r = 0;

  for (i = 0; i < rd->n; i++) {
    struct piece *p = &rd->pieces[i];
    const int err = nbd_client_wait (&p->request);

    if (p->bounce && err == 0)
      memcpy (p->buf, p->bounce + p->skip, p->count);
    free (p->bounce);
    r = r ? r : err;
  }
  rd->n = 0;
  return r;
}

/* Ask for a range that is no longer than a piece may be. */
static int
reader_ask (struct reader *rd, char *buf, size_t count, uint64_t offset)
{
  const uint64_t size_bytes = rd->nbd->backing.size_bytes;
  const uint64_t mask = rd->limits.minimum - 1;
  const uint64_t begin = offset & ~mask;
  const uint64_t end = MIN ((offset + count + mask) & ~mask, size_bytes);
  struct piece *p;
  int r;

  if (rd->n == MAX_PIECES) {
    r = reader_wait (rd);
    if (r)
      return r;
  }
  p = &rd->pieces[rd->n];
  p->bounce = NULL;
  p->buf = buf;
  p->count = count;
  p->skip = offset - begin;
  if (end - begin != count) {
    p->bounce = calloc (1, end - begin);
    if (p->bounce == NULL)
      return ENOMEM;
  }
  rd->n++;
  nbd_client_read (rd->nbd->client, &p->request, p->bounce ? p->bounce : buf,
                   end - begin, begin);
  return 0;
}

/* Ask for a range of data. */
static int
reader_ask_all (struct reader *rd, char *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    /* Pieces end where a request may. */
    const size_t room = rd->limits.maximum - offset % rd->limits.minimum;
    const size_t n = MIN (count, room);
    int r = reader_ask (rd, buf, n, offset);

    if (r)
      return r;
    buf += n;
    count -= n;
    offset += n;
  }
  return 0;
}

static int
reader_read (struct reader *rd, char *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    unsigned type;
    uint64_t n;
    int r = extent_cache_look (rd->nbd->extents, offset, &type, &n);

    if (r)
      return r;
    n = MIN (n, count);
    if (type & EXTENT_ZERO)
      memset (buf, 0, n);
    else {
      r = reader_ask_all (rd, buf, n, offset);
      if (r)
        return r;
    }
    buf += n;
    count -= n;
    offset += n;
  }
  return 0;
}

static int
backing_nbd_read (struct backing *backing, void *buf, size_t count,
                  uint64_t offset)
{
  struct backing_nbd *nbd = to_nbd (backing);
  struct reader rd;
  int r, err;

  rd.nbd = nbd;
  rd.limits = nbd_client_limits (nbd->client);
  rd.n = 0;
  r = reader_read (&rd, buf, count, offset);
  err = reader_wait (&rd); /* in any case: they write into BUF */
  return r ? r : err;
}

static int
backing_nbd_cache (struct backing *backing, uint64_t count, uint64_t offset)
{
  struct backing_nbd *nbd = to_nbd (backing);
  const uint64_t mask = nbd_client_limits (nbd->client).minimum - 1;
  const uint64_t begin = offset & ~mask;
  const uint64_t end = MIN ((offset + count + mask) & ~mask,
                            backing->size_bytes);

  nbd_client_cache (nbd->client, end - begin, begin);
  return 0;
}

/*--- Opening and closing. ---------------------------------------------*/

static void
backing_nbd_interrupt (struct backing *backing)
{
  nbd_client_interrupt (to_nbd (backing)->client);
}

static void
backing_nbd_close (struct backing *backing)
{
  struct backing_nbd *nbd = to_nbd (backing);

  nbd_client_close (nbd->client);
  extent_cache_free (nbd->extents);
  free (nbd->name);
  free (nbd);
}

static const struct backing_ops backing_nbd_ops = {
  .read = backing_nbd_read,
  .extents = backing_nbd_extents,
  .cache = backing_nbd_cache,
  .interrupt = backing_nbd_interrupt,
  .close = backing_nbd_close,
};

static void
log_client (void *opaque, const char *text)
{
  const struct backing_nbd *nbd = opaque;

  if (nbd->log)
    nbd->log (nbd->log_opaque, nbd->name, text);
}

static int
connect_client (struct backing_nbd *nbd, struct nbd_peer *peer,
                unsigned timeout_seconds, struct failure *failure)
{
  const struct nbd_client_options options = {
    .timeout_seconds = timeout_seconds,
    .log = log_client,
    .opaque = nbd,
  };
  CLEANUP_FREE char *why = NULL;
  int r;

  r = nbd_client_open (&nbd->client, peer, &options, &nbd->backing.size_bytes,
                       &why);
  return r ? failure_set_detail (failure, nbd->name, r, why) : 0;
}

/* Connect, look, and rest: the process may be about to fork. */
static int
open_peer (struct backing_nbd *nbd, struct nbd_peer *peer,
           const struct backing_options *options, struct failure *failure)
{
  int r = connect_client (nbd, peer, options->timeout_seconds, failure);

  if (r) {
    peer->ops->close (peer);
    return r;
  }
  nbd->extents = extent_cache_new (nbd->backing.size_bytes, MAX_CACHE_BYTES,
                                   fetch_extents, nbd);
  if (nbd->extents == NULL)
    return failure_set (failure, nbd->name, ENOMEM);
  r = backing_check_raw (&nbd->backing, nbd->name, options, failure);
  nbd_client_rest (nbd->client);
  return r;
}

int
backing_nbd_open_peer (struct backing **backing, struct nbd_peer *peer,
                       const char *name, const struct backing_options *options,
                       struct failure *failure)
{
  struct backing_nbd *nbd = calloc (1, sizeof *nbd);
  int r;

  if (nbd)
    nbd->name = strdup (name);
  if (nbd == NULL || nbd->name == NULL) {
    free (nbd);
    peer->ops->close (peer);
    return failure_set (failure, name, ENOMEM);
  }
  nbd->backing.ops = &backing_nbd_ops;
  nbd->log = options->log;
  nbd->log_opaque = options->log_opaque;
  r = open_peer (nbd, peer, options, failure);
  if (r) {
    backing_nbd_close (&nbd->backing);
    return r;
  }
  *backing = &nbd->backing;
  return 0;
}

/*--- A server that has a name. ----------------------------------------*/

struct uri_peer {
  struct nbd_peer peer;
  char *uri;
  bool unchecked; /* not connected to, as it could not be checked */
};

/* The part of an old name behind WHAT, if it begins so. */
static const char *
behind (const char *text, const char *what)
{
  const size_t len = strlen (what);

  return strncmp (text, what, len) == 0 ? text + len : NULL;
}

#define EXPORTNAME ":exportname="

/* nbd:unix:PATH[:exportname=NAME] or nbd:HOST:PORT[:exportname=NAME], a
 * HOST with colons in brackets, as QEMU took them before there were URIs.
 * ADDRESS is what is between.
 */
static int
connect_address (struct nbd_handle *nbd, char *address)
{
  const char *path = behind (address, "unix:");
  char *host = address;
  char *port = strrchr (address, ':');

  if (path)
    return nbd_aio_connect_unix (nbd, path);
  if (port == NULL)
    return nbd_aio_connect_tcp (nbd, host, "10809");
  *port++ = '\0';
  if (host[0] == '[' && port - host >= 3 && port[-2] == ']') {
    host++;
    port[-2] = '\0';
  }
  return nbd_aio_connect_tcp (nbd, host, port);
}

static int
connect_old_name (struct nbd_handle *nbd, const char *name)
{
  const char *export = strstr (name, EXPORTNAME);
  CLEANUP_FREE char *address = NULL;

  if (export && nbd_set_export_name (nbd, export + strlen (EXPORTNAME)) == -1)
    return -1;
  address = export ? strndup (name, export - name) : strdup (name);
  return address ? connect_address (nbd, address) : -1;
}

#define CERTIFICATES "tls-certificates="
#define CA_CERTIFICATE "/ca-cert.pem"

/* The folder that the query of URI names, or NULL.  The caller frees it. */
static char *
certificates_folder (const char *uri)
{
  const char *from = strstr (uri, CERTIFICATES);
  char *folder, *to;
  unsigned byte;

  if (from == NULL || (from[-1] != '?' && from[-1] != '&'))
    return NULL;
  from += strlen (CERTIFICATES);
  folder = to = strndup (from, strcspn (from, "&#"));
  if (folder == NULL)
    return NULL;
  for (from = folder; *from; to++)
    if (from[0] == '%' && isxdigit ((unsigned char) from[1]) &&
        isxdigit ((unsigned char) from[2])) {
      sscanf (from + 1, "%2x", &byte);
      *to = byte;
      from += 3;
    }
    else
      *to = *from++;
  *to = '\0';
  return folder;
}

/* libnbd takes certificates that it cannot read for none, and then does
 * not check who the server is.  That may begin when the server of the
 * overlay changes its user.
 */
static bool
can_check_server (const char *uri)
{
  CLEANUP_FREE char *folder = certificates_folder (uri);
  CLEANUP_FREE char *file = NULL;

  if (folder == NULL)
    return true;
  if (asprintf (&file, "%s" CA_CERTIFICATE, folder) == -1)
    file = NULL;
  return file && access (file, R_OK) == 0;
}

static int
uri_peer_connect (struct nbd_peer *peer, struct nbd_handle *nbd)
{
  struct uri_peer *p = container_of (peer, struct uri_peer, peer);
  const char *old = behind (p->uri, "nbd:");

  if (old && strncmp (old, "//", 2) != 0)
    return connect_old_name (nbd, old);
  p->unchecked = !can_check_server (p->uri);
  return p->unchecked ? -1 : nbd_aio_connect_uri (nbd, p->uri);
}

static const char *
uri_peer_why (struct nbd_peer *peer, const char *why)
{
  if (!container_of (peer, struct uri_peer, peer)->unchecked)
    return why;
  return "the server cannot be checked: there is no ca-cert.pem that can be "
         "read in the folder of tls-certificates";
}

static void
uri_peer_close (struct nbd_peer *peer)
{
  struct uri_peer *p = container_of (peer, struct uri_peer, peer);

  free (p->uri);
  free (p);
}

static const struct nbd_peer_ops uri_peer_ops = {
  .connect = uri_peer_connect,
  .why = uri_peer_why,
  .close = uri_peer_close,
};

bool
backing_nbd_takes (const char *name)
{
  static const char *const schemes[] = {
    "nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:", "nbds+vsock:",
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (schemes); i++)
    if (behind (name, schemes[i]))
      return true;
  return false;
}

int
nbd_peer_of_uri (struct nbd_peer **peer, const struct location *location,
                 struct failure *failure)
{
  struct uri_peer *p = calloc (1, sizeof *p);

  if (p)
    p->uri = strdup (location->name);
  if (p == NULL || p->uri == NULL) {
    free (p);
    return failure_set (failure, location->name, ENOMEM);
  }
  p->peer = (struct nbd_peer){ .ops = &uri_peer_ops, .fd = -1 };
  *peer = &p->peer;
  return 0;
}

int
backing_nbd_open (struct backing **backing, const struct location *location,
                  const struct backing_options *options,
                  struct failure *failure)
{
  struct nbd_peer *peer;
  int r = nbd_peer_of_uri (&peer, location, failure);

  if (r)
    return r;
  return backing_nbd_open_peer (backing, peer, location->name, options,
                                failure);
}

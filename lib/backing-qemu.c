/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A backing file of any format, at any place, that QEMU can read: a child
 * process qemu-nbd reads it, and is read over NBD.
 *
 * The child
 * ---------
 * libnbd starts it, with the socket that it serves and to which nobody but
 * us connects.  It ends when its one client does, and is told to by the
 * kernel when the thread that started it ends, so that it outlives no
 * server however that ends.  A child that ends by itself is a connection
 * that was lost, and connecting again starts another one.  One that writes,
 * for a target (target-nbd.c), is told to end and given the time to.
 *
 * What the child writes to its stderr comes to us through a pipe.  Until it
 * serves that is why it does not; after that, it is for the log.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "backing-kinds.h"
#include "backing-nbd.h"
#include "common.h"
#include "image-file.h"
#include "lock.h"
#include "nbd-peers.h"
#include "qemu-info.h"

#define PROGRAM "qemu-nbd"

/* How much of what a child says before it serves is kept, and how long a
 * line in the log is.
 */
#define MAX_SAID_BYTES 1024

struct qemu_peer {
  struct nbd_peer peer; /* fd: the pipe that the child says things to */
  char *name;           /* for messages */
  char *file_name;      /* for QEMU */
  char *format_option;  /* NULL: QEMU finds it in file_name */
  int fd;               /* the file, if confined; else -1 */
  int lock_fd;          /* has the locks of a file that is read, or -1 */
  bool writable;
  unsigned timeout_seconds; /* for its end, if writable */

  bool serves;
  char said[MAX_SAID_BYTES + 1]; /* lines, or one that has no end yet */
  size_t nr_said;

  void (*log) (void *opaque, const char *name, const char *text);
  void *log_opaque;
};

static struct qemu_peer *
to_qemu (struct nbd_peer *peer)
{
  return container_of (peer, struct qemu_peer, peer);
}

/*--- What the child says. ---------------------------------------------*/

static void
log_line (struct qemu_peer *q, const char *line)
{
  CLEANUP_FREE char *text = NULL;

  if (q->log == NULL || line[0] == '\0')
    return;
  if (strncmp (line, PROGRAM, strlen (PROGRAM)) == 0)
    q->log (q->log_opaque, q->name, line);
  else if (asprintf (&text, "%s: %s", PROGRAM, line) != -1)
    q->log (q->log_opaque, q->name, text);
}

/* Log what lines were said, and keep the part of one. */
static void
log_said (struct qemu_peer *q)
{
  char *line = q->said, *end;

  while ((end = strchr (line, '\n')) != NULL) {
    *end = '\0';
    log_line (q, line);
    line = end + 1;
  }
  if (line == q->said && q->nr_said == MAX_SAID_BYTES) {
    log_line (q, line);
    line += q->nr_said;
  }
  q->nr_said -= line - q->said;
  memmove (q->said, line, q->nr_said + 1);
}

static void
close_pipe (struct qemu_peer *q)
{
  if (q->peer.fd >= 0)
    close (q->peer.fd);
  q->peer.fd = -1;
}

/* Of a child that says more than there is room for before it serves, the
 * first is what is kept.
 */
static void
qemu_peer_heard (struct nbd_peer *peer)
{
  struct qemu_peer *q = to_qemu (peer);

  while (q->peer.fd >= 0) {
    char buf[512];
    const ssize_t n = read (q->peer.fd, buf, sizeof buf);
    const size_t room = MAX_SAID_BYTES - q->nr_said;
    size_t taken;

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1 && errno == EAGAIN)
      return;
    if (n <= 0) {
      close_pipe (q);
      return;
    }
    taken = MIN ((size_t) n, room);
    memcpy (q->said + q->nr_said, buf, taken);
    q->nr_said += taken;
    q->said[q->nr_said] = '\0';
    if (q->serves)
      log_said (q);
  }
}

/* The lines that were said as one, in place. */
static const char *
qemu_peer_why (struct nbd_peer *peer, const char *why)
{
  struct qemu_peer *q = to_qemu (peer);
  char *p;

  qemu_peer_heard (peer);
  while (q->nr_said > 0 && q->said[q->nr_said - 1] == '\n')
    q->said[--q->nr_said] = '\0';
  for (p = q->said; *p; p++)
    if (*p == '\n')
      *p = ' ';
  return q->nr_said > 0 ? q->said : why;
}

/*--- Starting the child. ----------------------------------------------*/

/* Let the child, but no other one, have FD. */
static void
set_inherited (int fd, bool inherited)
{
  if (fd >= 0)
    fcntl (fd, F_SETFD, inherited ? 0 : FD_CLOEXEC);
}

/* The pipe belongs to who runs now, and not to who opened the backing file:
 * the child opens it by name, and the server may have changed its user.
 */
static int
open_pipe (struct qemu_peer *q, int *write_fd)
{
  int fds[2];

  if (pipe2 (fds, O_CLOEXEC) == -1)
    return -1;
  fcntl (fds[0], F_SETFL, O_NONBLOCK);
  q->peer.fd = fds[0];
  /* Not where libnbd puts the socket. */
  *write_fd = fcntl (fds[1], F_DUPFD_CLOEXEC, 10);
  close (fds[1]);
  return *write_fd == -1 ? -1 : 0;
}

/* stdin and stdout may be a client's connection (nbdkit -s).
 *
 * Who was orphaned before he asked to be told of it ends by himself.
 */
#define SCRIPT \
  "test \"$PPID\" = \"$1\" || exit 1; " \
  "exec </dev/null >\"/proc/self/fd/$2\" 2>&1; " \
  "shift 2; " \
  "exec \"$@\""

static int
start_child (struct qemu_peer *q, struct nbd_handle *nbd, int write_fd)
{
  char parent[16], fd[16];
  char *argv[] = {
    (char *) "setpriv",
    (char *) "--pdeathsig",
    (char *) "KILL",
    (char *) "--",
    /* A Ctrl-C is for the server, which may need the child to stop. */
    (char *) "setsid",
    (char *) "sh",
    (char *) "-c",
    (char *) SCRIPT,
    (char *) "sh",
    parent,
    fd,
    (char *) PROGRAM,
    (char *) (q->writable ? "--discard=unmap" : "--read-only"),
    q->file_name,
    q->format_option,
    NULL,
  };
  sigset_t none, old;
  int r;

  snprintf (parent, sizeof parent, "%d", (int) getpid ());
  snprintf (fd, sizeof fd, "%d", write_fd);
  /* The child has the signals that its parent blocks blocked too. */
  sigemptyset (&none);
  pthread_sigmask (SIG_SETMASK, &none, &old);
  set_inherited (write_fd, true);
  set_inherited (q->fd, true);
  r = nbd_aio_connect_systemd_socket_activation (nbd, argv);
  set_inherited (write_fd, false);
  set_inherited (q->fd, false);
  pthread_sigmask (SIG_SETMASK, &old, NULL);
  return r;
}

static int
qemu_peer_connect (struct nbd_peer *peer, struct nbd_handle *nbd)
{
  struct qemu_peer *q = to_qemu (peer);
  CLEANUP_CLOSE int write_fd = -1;

  q->serves = false;
  q->nr_said = 0;
  q->said[0] = '\0';
  if (open_pipe (q, &write_fd) == -1)
    return -1;
  return start_child (q, nbd, write_fd);
}

/* Nobody else needs the name of the socket, and it would be left behind if
 * we were killed.
 */
static void
remove_socket (struct nbd_handle *nbd)
{
  struct sockaddr_un address = { .sun_family = AF_UNSPEC };
  socklen_t len = sizeof address - 1;
  char *slash;

  if (getpeername (nbd_aio_get_fd (nbd), (struct sockaddr *) &address, &len) ==
          -1 ||
      address.sun_family != AF_UNIX)
    return;
  slash = strrchr (address.sun_path, '/');
  if (slash == NULL)
    return;
  unlink (address.sun_path);
  *slash = '\0';
  rmdir (address.sun_path);
}

static void
qemu_peer_connected (struct nbd_peer *peer, struct nbd_handle *nbd)
{
  struct qemu_peer *q = to_qemu (peer);

  remove_socket (nbd);
  q->serves = true;
  log_said (q);
}

/* Let the child, which writes, close its image.  The pipe ends when it has
 * ended.  What was flushed is safe if it does not in time.
 */
static void
end_writer (struct qemu_peer *q, struct nbd_handle *nbd)
{
  unsigned left_ms = q->timeout_seconds * 1000;

  nbd_kill_subprocess (nbd, SIGTERM);
  while (q->peer.fd >= 0 && left_ms > 0) {
    struct pollfd pfd = { .fd = q->peer.fd, .events = POLLIN };
    const unsigned ms = MIN (left_ms, 100);

    if (poll (&pfd, 1, ms) == 0)
      left_ms -= ms;
    qemu_peer_heard (&q->peer);
  }
}

/* One that only reads has nothing to bring to an end. */
static void
qemu_peer_disconnect (struct nbd_peer *peer, struct nbd_handle *nbd)
{
  struct qemu_peer *q = to_qemu (peer);

  if (q->writable)
    end_writer (q, nbd);
  nbd_kill_subprocess (nbd, SIGKILL);
  qemu_peer_heard (peer);
  close_pipe (q);
}

static void
qemu_peer_close (struct nbd_peer *peer)
{
  struct qemu_peer *q = to_qemu (peer);

  close_pipe (q);
  if (q->fd >= 0)
    close (q->fd);
  if (q->lock_fd >= 0)
    close (q->lock_fd);
  free (q->name);
  free (q->file_name);
  free (q->format_option);
  free (q);
}

static const struct nbd_peer_ops qemu_peer_ops = {
  .connect = qemu_peer_connect,
  .connected = qemu_peer_connected,
  .disconnect = qemu_peer_disconnect,
  .heard = qemu_peer_heard,
  .why = qemu_peer_why,
  .close = qemu_peer_close,
};

/*--- Is it there? -----------------------------------------------------*/

/* Would PROGRAM be found? */
static bool
is_installed (const char *program)
{
  const char *path = getenv ("PATH");

  while (path && *path) {
    const size_t len = strcspn (path, ":");
    CLEANUP_FREE char *file = NULL;

    if (asprintf (&file, "%.*s/%s", (int) len, path, program) == -1)
      file = NULL;
    if (file && access (file, X_OK) == 0)
      return true;
    path += len + (path[len] == ':');
  }
  return false;
}

/* A program that a child is started by is missed as soon as the one that it
 * becomes.
 */
static int
check_installed (const char *name, struct failure *failure)
{
  static const struct {
    const char *program, *package;
  } needed[] = {
    { PROGRAM, "qemu-utils" },
    { "setpriv", "util-linux" },
    { "setsid", "util-linux" },
  };
  CLEANUP_FREE char *detail = NULL;
  size_t i;

  for (i = 0; i < ARRAY_SIZE (needed); i++)
    if (!is_installed (needed[i].program))
      break;
  if (i == ARRAY_SIZE (needed))
    return 0;
  if (asprintf (&detail,
                "%s is needed to read it, and is not installed (Debian: "
                "apt-get install %s)",
                needed[i].program, needed[i].package) == -1)
    detail = NULL;
  return failure_set_detail (failure, name, ENOENT, detail);
}

/*--- Confinement. -----------------------------------------------------*/

/* Formats that may be confined: an image is one file, or QEMU tells of the
 * others.
 */
static const struct {
  const char *format;
  bool may_name_files;
} confinable[] = {
  { "qcow2", true }, { "qcow", true },  { "qed", true },
  { "vdi", false },  { "vhdx", false }, { "vpc", false },
};

static bool
is_block_device (const char *path)
{
  struct stat st;

  return stat (path, &st) == 0 && S_ISBLK (st.st_mode);
}

/* Let the name for QEMU be the file that was found, whatever happens to its
 * name, and let no other file be opened for it.
 */
static int
confine_names (struct qemu_peer *q, const struct location *location,
               const char *format)
{
  q->fd = fcntl (location->fd, F_DUPFD_CLOEXEC, 10);
  if (q->fd == -1)
    return errno;
  free (q->file_name);
  if (asprintf (&q->file_name,
                "json:{\"driver\": \"%s\", \"backing\": null, \"file\": "
                "{\"driver\": \"%s\", \"filename\": \"/proc/self/fd/%d\"}}",
                format,
                is_block_device (location->path) ? "host_device" : "file",
                q->fd) == -1)
    q->file_name = NULL;
  free (q->format_option);
  q->format_option = NULL;
  return q->file_name ? 0 : ENOMEM;
}

/* What was found under the folder that names are confined to is an image
 * that may name files itself.  Refuse it then: QEMU would open them.
 */
static int
confine (struct qemu_peer *q, const struct location *location,
         const char *format, struct failure *failure)
{
  bool names = false;
  size_t i;
  int r;

  for (i = 0; i < ARRAY_SIZE (confinable); i++)
    if (strcmp (confinable[i].format, format) == 0)
      break;
  if (i == ARRAY_SIZE (confinable))
    return failure_set_detail (failure, location->name, EACCES,
                               "images of this format may name other files, "
                               "and names are confined");
  r = confine_names (q, location, format);
  if (r == 0 && confinable[i].may_name_files)
    r = qemu_info_names_files (q->file_name, q->fd, &names);
  if (r)
    return failure_set_detail (failure, location->name, r,
                               "qemu-img cannot tell whether it names other "
                               "files, and names are confined");
  if (names)
    return failure_set_detail (failure, location->name, EACCES,
                               "the image names other files, and names are "
                               "confined");
  return 0;
}

/*--- Opening. ---------------------------------------------------------*/

static struct qemu_peer *
new_peer (const struct location *location,
          const struct backing_options *options)
{
  struct qemu_peer *q = calloc (1, sizeof *q);

  if (q == NULL)
    return NULL;
  q->peer = (struct nbd_peer){
    .ops = &qemu_peer_ops,
    .fd = -1,
    .is_child = true,
  };
  q->fd = q->lock_fd = -1;
  q->timeout_seconds = options->timeout_seconds;
  q->log = options->log;
  q->log_opaque = options->log_opaque;
  q->name = strdup (location->name);
  q->file_name = strdup (location->path ? location->path : location->name);
  if (asprintf (&q->format_option, "--format=%s",
                options->format ? options->format : "raw") == -1)
    q->format_option = NULL;
  if (q->name && q->file_name && q->format_option)
    return q;
  qemu_peer_close (&q->peer);
  return NULL;
}

/* The child would wait until somebody opens it for writing. */
static bool
is_fifo (const struct location *location)
{
  struct stat st;

  return location->path && stat (location->path, &st) == 0 &&
         S_ISFIFO (st.st_mode);
}

/* The child has locks as well, but comes and goes.  What is wrong with the file
 * it can say better.
 */
static int
lock_file (struct qemu_peer *q, const struct location *location)
{
  uint64_t size_bytes;

  if (location->path == NULL ||
      fd_open_disk (location->path, &q->lock_fd, &size_bytes))
    return 0;
  return lock_qemu (q->lock_fd, false);
}

int
nbd_peer_of_qemu (struct nbd_peer **peer, const struct location *location,
                  const struct backing_options *options, bool writable,
                  struct failure *failure)
{
  struct qemu_peer *q;
  int r;

  if (is_fifo (location))
    return failure_set (failure, location->name, ADDCOW_E_NOT_DISK);
  r = check_installed (location->name, failure);
  if (r)
    return r;
  q = new_peer (location, options);
  if (q == NULL)
    return failure_set (failure, location->name, ENOMEM);
  q->writable = writable;
  if (!writable && !options->unlocked) {
    r = lock_file (q, location);
    if (r)
      failure_set (failure, location->name, r);
  }
  if (r == 0 && location->fd >= 0)
    r = confine (q, location, options->format, failure);
  if (r) {
    qemu_peer_close (&q->peer);
    return r;
  }
  *peer = &q->peer;
  return 0;
}

int
backing_qemu_open (struct backing **backing, const struct location *location,
                   const struct backing_options *options,
                   struct failure *failure)
{
  struct nbd_peer *peer;
  int r = nbd_peer_of_qemu (&peer, location, options, false, failure);

  if (r)
    return r;
  return backing_nbd_open_peer (backing, peer, location->name, options,
                                failure);
}

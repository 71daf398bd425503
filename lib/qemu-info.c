/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <json-c/json.h>

#include "common.h"
#include "qemu-info.h"

/* It is told little about an image, and more is not read. */
#define MAX_OUTPUT_BYTES (1024 * 1024)

/* Start qemu-img.  *OUT_FD is what it prints. */
static int
start_qemu_img (const char *name, int fd, pid_t *pid, int *out_fd)
{
  char *argv[] = {
    (char *) "qemu-img",      (char *) "info", (char *) "--output=json",
    (char *) "--force-share", (char *) name,   NULL,
  };
  posix_spawn_file_actions_t actions;
  int fds[2], r;

  if (pipe2 (fds, O_CLOEXEC) == -1)
    return errno;
  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_adddup2 (&actions, fds[1], STDOUT_FILENO);
  /* Onto itself: it is inherited. */
  posix_spawn_file_actions_adddup2 (&actions, fd, fd);
  r = posix_spawnp (pid, argv[0], &actions, NULL, argv, environ);
  posix_spawn_file_actions_destroy (&actions);
  close (fds[1]);
  if (r)
    close (fds[0]);
  else
    *out_fd = fds[0];
  return r;
}

/* All that FD has to its end as a string, or NULL. */
static char *
read_all (int fd)
{
  char *text = malloc (MAX_OUTPUT_BYTES + 1);
  size_t len = 0;
  ssize_t n;

  if (text == NULL)
    return NULL;
  do {
    n = read (fd, text + len, MAX_OUTPUT_BYTES - len);
    if (n > 0)
      len += n;
  } while (n > 0 || (n == -1 && errno == EINTR));
  text[len] = '\0';
  return text;
}

/* Wait for the end of PID.  Did it succeed? */
static bool
succeeded (pid_t pid)
{
  int status;

  while (waitpid (pid, &status, 0) == -1)
    if (errno != EINTR)
      return false;
  return WIFEXITED (status) && WEXITSTATUS (status) == 0;
}

static bool
has_key (json_object *object, const char *key)
{
  return json_object_object_get_ex (object, key, NULL);
}

int
qemu_info_parse (const char *text, bool *names)
{
  json_object *top = json_tokener_parse (text);
  json_object *specific, *data;
  int r = 0;

  if (!json_object_is_type (top, json_type_object))
    r = EIO;
  else {
    *names = has_key (top, "backing-filename");
    if (json_object_object_get_ex (top, "format-specific", &specific) &&
        json_object_object_get_ex (specific, "data", &data))
      *names = *names || has_key (data, "data-file");
  }
  json_object_put (top);
  return r;
}

int
qemu_info_names_files (const char *name, int fd, bool *names)
{
  CLEANUP_FREE char *text = NULL;
  CLEANUP_CLOSE int out_fd = -1;
  pid_t pid;
  int r;

  r = start_qemu_img (name, fd, &pid, &out_fd);
  if (r)
    return r;
  text = read_all (out_fd);
  if (!succeeded (pid))
    return EIO;
  return text ? qemu_info_parse (text, names) : ENOMEM;
}

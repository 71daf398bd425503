/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common.h"
#include "img.h"
#include "work.h"

/* How often to look how far it is. */
#define LOOK_MS 200

void
work_keep_signals (void)
{
  sigset_t set;

  signal (SIGXFSZ, SIG_IGN);
  sigemptyset (&set);
  sigaddset (&set, SIGUSR1);
  pthread_sigmask (SIG_BLOCK, &set, NULL);
}

int
work_take_signals (struct work *w)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGTERM);
  sigaddset (&set, SIGHUP);
  sigaddset (&set, SIGQUIT);
  sigaddset (&set, SIGUSR1);
  pthread_sigmask (SIG_BLOCK, &set, NULL);
  w->signal_fd = signalfd (-1, &set, SFD_CLOEXEC);
  w->over_fd = eventfd (0, EFD_CLOEXEC);
  if (w->signal_fd == -1 || w->over_fd == -1)
    return img_file_error (w->file_name, errno);
  return EXIT_SUCCESS;
}

void
work_over (struct work *w)
{
  const uint64_t one = 1;
  ssize_t r;

  w->over = true;
  do
    r = write (w->over_fd, &one, sizeof one);
  while (r == -1 && errno == EINTR);
}

static void
take_signal (struct work *w)
{
  struct signalfd_siginfo info;

  if (read (w->signal_fd, &info, sizeof info) != sizeof info)
    return;
  if (info.ssi_signo == SIGUSR1)
    progress_print_line (&w->shown, stderr);
  else
    w->interrupted = true;
}

static void
show (struct work *w)
{
  progress_update (&w->shown, w->progress ? stderr : NULL,
                   w->done_bytes (w->opaque));
}

int
work_wait (struct work *w)
{
  struct pollfd fds[] = {
    { .fd = w->over_fd, .events = POLLIN },
    { .fd = w->signal_fd, .events = POLLIN },
  };

  while (!w->over && !w->interrupted) {
    const int n = poll (fds, ARRAY_SIZE (fds), LOOK_MS);

    if (n == -1 && errno != EINTR)
      return img_file_error (w->file_name, errno);
    show (w);
    if (n > 0 && fds[1].revents)
      take_signal (w);
  }
  /* It may have come to its end since the last look. */
  show (w);
  return EXIT_SUCCESS;
}

struct runner {
  struct work *work;
  void (*fn) (void *opaque);
};

static void *
runner_main (void *opaque)
{
  const struct runner *r = opaque;

  r->fn (r->work->opaque);
  work_over (r->work);
  return NULL;
}

int
work_run (struct work *w, void (*fn) (void *opaque),
          void (*interrupt) (void *opaque))
{
  struct runner runner = { .work = w, .fn = fn };
  pthread_t thread;
  int r;

  r = pthread_create (&thread, NULL, runner_main, &runner);
  if (r)
    return img_file_error (w->file_name, r);
  /* Where waiting fails the thread is waited for all the same. */
  if (work_wait (w) != EXIT_SUCCESS)
    w->interrupted = true;
  if (!w->over && interrupt)
    interrupt (w->opaque);
  pthread_join (thread, NULL);
  show (w);
  return EXIT_SUCCESS;
}

void
work_end (struct work *w)
{
  progress_end (&w->shown, stderr);
}

int
work_interrupted_error (const struct work *w)
{
  img_error ("%s: interrupted: run it again to go on", w->file_name);
  return EXIT_FAILURE;
}

void
work_clear (struct work *w)
{
  if (w->over_fd >= 0)
    close (w->over_fd);
  if (w->signal_fd >= 0)
    close (w->signal_fd);
}

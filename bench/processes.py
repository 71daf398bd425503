# SPDX-License-Identifier: BSD-3-Clause
"""Files and processes."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time

MIB = 1024 * 1024


class Failure(Exception):
    """What the user is told when something could not be run."""


def run(*command):
    """Run COMMAND to its end; return what it printed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, check=False)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}: exit status {done.returncode}\n"
                      f"{done.stderr or done.stdout}".rstrip())
    return done.stdout


def make_sparse(path, size):
    with open(path, "wb") as f:
        f.truncate(size)


def make_random(path, size):
    with open(path, "wb") as f:
        for offset in range(0, size, MIB):
            f.write(os.urandom(min(MIB, size - offset)))
        os.fsync(f.fileno())


def read_into_cache(path):
    buf = bytearray(MIB)
    with open(path, "rb", buffering=0) as f:
        while f.readinto(buf):
            pass


def remove(*paths):
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def cpu_seconds(pid):
    """The CPU time of a process and all its threads, those gone included."""
    libc = ctypes.CDLL(None, use_errno=True)
    clock = ctypes.c_int()
    r = libc.clock_getcpuclockid(ctypes.c_int(pid), ctypes.byref(clock))
    if r != 0:
        raise Failure(f"clock_getcpuclockid: {os.strerror(r)}")
    return time.clock_gettime(clock.value)


@contextlib.contextmanager
def serving(command, socket, pid_file, log_file, tmpdir):
    """Run the server COMMAND, which writes PID_FILE when it is ready."""
    remove(socket, pid_file)
    with open(log_file, "w+", encoding="utf-8", errors="replace") as log:
        # pylint: disable=consider-using-with
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                  stdout=log, stderr=log,
                                  env=dict(os.environ, TMPDIR=tmpdir))
        try:
            give_up = time.monotonic() + 60
            while not (os.path.exists(pid_file) and
                       os.path.getsize(pid_file)):
                if server.poll() is not None or time.monotonic() > give_up:
                    log.seek(0)
                    raise Failure(f"{' '.join(command)}: did not start\n"
                                  f"{log.read()}".rstrip())
                time.sleep(0.01)
            yield server
            if server.poll() is not None:
                log.seek(0)
                raise Failure(f"{' '.join(command)}: ended by itself\n"
                              f"{log.read()}".rstrip())
        finally:
            stop(server)
    if server.returncode not in (0, -signal.SIGTERM):
        raise Failure(f"{' '.join(command)}: exit status "
                      f"{server.returncode}")


def stop(server):
    server.terminate()
    try:
        server.wait(120)        # it may have much to write
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()

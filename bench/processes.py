# SPDX-License-Identifier: BSD-3-Clause
"""Files and processes."""

import contextlib
import ctypes
import mmap
import os
import random
import resource
import signal
import subprocess
import time

MIB = 1024 * 1024
GIB = 1024 * MIB
TIB = 1024 * GIB


class Failure(Exception):
    """What the user is told when something could not be run."""


def run(*command, folder=None):
    """Run COMMAND to its end; return what it printed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, text=True,
                          capture_output=True, check=False, cwd=folder)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}: exit status {done.returncode}\n"
                      f"{done.stderr or done.stdout}".rstrip())
    return done.stdout


def run_timed(*commands):
    """Run COMMANDS one after the other; return the seconds that took, and
    those of CPU time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    for command in commands:
        run(*command)
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, (after.ru_utime + after.ru_stime -
                     before.ru_utime - before.ru_stime)


def make_sparse(path, size):
    with open(path, "wb") as f:
        f.truncate(size)


def make_random(path, size, pieces=None):
    """Make a file with random data in PIECES, (offset, length) in whole
    MiB, or everywhere; the rest are holes."""
    with open(path, "wb") as f:
        f.truncate(size)
        for offset, length in [(0, size)] if pieces is None else pieces:
            f.seek(offset)
            for _ in range(0, length, MIB):
                f.write(os.urandom(MIB))
        os.fsync(f.fileno())


def half(size):
    """Pieces for make_random: data and holes in turn, each 1 to 8 MiB."""
    draw = random.Random(size)  # the same in all rounds and runs
    offset = 0
    while offset < size:
        length = min(draw.randint(1, 8) * MIB, size - offset)
        yield offset, length
        offset += length + draw.randint(1, 8) * MIB


def hole(_size):
    """Pieces for make_random: none."""
    return []


def scattered(size):
    """Pieces for make_random: 64 of 4 MiB, far apart."""
    for offset in range(0, size, size // 64):
        yield offset, 4 * MIB


def data_pieces(fd):
    """What of an open file is no hole: (offset, end) of each piece."""
    end = 0
    with contextlib.suppress(OSError):          # ENXIO: no more data
        while True:
            offset = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, offset, os.SEEK_HOLE)
            yield offset, end


def data_size(path):
    with open(path, "rb", buffering=0) as f:
        return sum(end - offset for offset, end in data_pieces(f.fileno()))


def read_into_cache(path):
    buf = bytearray(MIB)
    with open(path, "rb", buffering=0) as f:
        for offset, end in data_pieces(f.fileno()):
            f.seek(offset)
            while f.tell() < end and f.readinto(buf):
                pass


def touch_memory(size):
    """Have memory that is free and was in use just now.

    A page that was never used, or not for long, may have to come from a
    hypervisor first, which can take longer than filling it.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, size, flags=flags).close()


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


def peak_memory(pid):
    """The most that a process ever had in memory, in bytes."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return next(int(line.split()[1]) * 1024 for line in f
                    if line.startswith("VmHWM:"))


def pss(pid):
    """The memory of a process, in bytes; what it shares, in part."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="utf-8") as f:
        return next(int(line.split()[1]) * 1024 for line in f
                    if line.startswith("Pss:"))


def io_counters(pid):
    """What /proc/PID/io has: bytes of read and write calls, their numbers,
    bytes from and to the disk."""
    with open(f"/proc/{pid}/io", encoding="utf-8") as f:
        return {key: int(value) for key, value in
                (line.split(":") for line in f)}


def drop_from_cache(path):
    """What is not dirty of it."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def logged(log_file, text):
    with open(log_file, encoding="utf-8", errors="replace") as f:
        return text in f.read()


def wait_for_log(server, log_file, text, seconds):
    """Wait until SERVER, which is running, has logged TEXT."""
    give_up = time.monotonic() + seconds
    while not logged(log_file, text):
        if server.poll() is not None or time.monotonic() > give_up:
            with open(log_file, encoding="utf-8", errors="replace") as f:
                raise Failure(f"{' '.join(server.args)}: did not log "
                              f"\"{text}\"\n{f.read()}".rstrip())
        time.sleep(0.005)


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

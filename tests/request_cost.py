# SPDX-License-Identifier: BSD-3-Clause
"""What a request of 4096 bytes costs a server: instructions, calls that
allocate memory, system calls.

A server is run twice, with some requests and with N more, under callgrind
and then under strace; what lies between the two, divided by N, is the cost
of a request, without that of starting and connecting.
"""

import os
import random
import re
import signal
import subprocess
import time

import nbd

BLOCK = 4096
WARM_UP = 50                    # of each kind, not measured
START_SECONDS = 300             # when to give up, not what is expected

ALLOCATORS = {"aligned_alloc", "calloc", "malloc", "memalign", "mmap",
              "posix_memalign", "pvalloc", "realloc", "reallocarray",
              "valloc"}


class Costs:
    """Of a whole run, or of one request."""

    def __init__(self, instructions, allocations, syscalls):
        self.instructions = instructions
        self.allocations = allocations
        self.syscalls = syscalls

    def minus(self, other, nr=1):
        """What is more than OTHER, for each of NR requests."""
        return Costs((self.instructions - other.instructions) / nr,
                     (self.allocations - other.allocations) / nr,
                     (self.syscalls - other.syscalls) / nr)

    def __str__(self):
        return (f"{self.instructions:.0f} instructions, "
                f"{self.allocations:.2f} allocations, "
                f"{self.syscalls:.2f} system calls")


def read(h, block):
    h.pread(BLOCK, block * BLOCK)


def write(h, block):
    h.pwrite(b"again   " * (BLOCK // 8), block * BLOCK)


class Load:
    """Requests to blocks that lots choose among BLOCKS."""

    def __init__(self, name, request, blocks):
        self.name = name
        self.request = request
        self.blocks = blocks

    def send(self, h, seed, nr):
        draw = random.Random(seed)
        for _ in range(nr):
            self.request(h, draw.choice(self.blocks))


def wait_for(server, pid_file):
    give_up = time.monotonic() + START_SECONDS
    while not (os.path.exists(pid_file) and os.path.getsize(pid_file)):
        assert server.poll() is None, "the server did not start"
        assert time.monotonic() < give_up, "the server does not start"
        time.sleep(0.02)


def serve(wrapper, arguments, folder, use):
    """Run nbdkit, call USE with a connection, stop it."""
    pid_file, sock = (os.path.join(folder, x) for x in ("pid", "sock"))
    for path in pid_file, sock:
        if os.path.exists(path):
            os.unlink(path)
    # One thread: nothing depends on who comes first.
    with subprocess.Popen([*wrapper, "nbdkit", "-f", "-t", "1", "-P",
                           pid_file, "-U", sock, *arguments]) as server:
        try:
            wait_for(server, pid_file)
            h = nbd.NBD()
            h.connect_unix(sock)
            use(h)
            h.shutdown()
            # Not the wrapper's, which may not pass it on.
            with open(pid_file, encoding="ascii") as f:
                os.kill(int(f.read()), signal.SIGTERM)
            assert server.wait() == 0, f"exit status {server.returncode}"
        finally:
            if server.poll() is None:
                server.kill()


def parse_callgrind(path):
    """The instructions, and the calls of ALLOCATORS."""
    names, callee, instructions, calls = {}, None, 0, 0
    with open(path, encoding="utf-8", errors="replace") as f:
        for line in f:
            m = re.match(r"c?fn=\((\d+)\)(?: (.*))?", line)
            if m:
                # A name is given once; a recursion has '2 behind it.
                name = names.setdefault(m[1], m[2]).split("'")[0]
                if line.startswith("c"):
                    callee = name
            elif line.startswith("calls=") and callee in ALLOCATORS:
                calls += int(line[len("calls="):].split()[0])
            elif line.startswith("totals:"):
                instructions = int(line.split()[1])
    assert instructions > 0, f"{path} has no totals"
    assert calls > 0, f"{path} has no calls of malloc"
    return instructions, calls


def count_lines(path):
    with open(path, encoding="utf-8", errors="replace") as f:
        # strace cuts a call in two where another thread comes between.
        return sum("resumed>" not in line and "+++" not in line and
                   "---" not in line for line in f)


def run_costs(arguments, folder, use):
    calls, trace = (os.path.join(folder, x) for x in ("callgrind", "strace"))
    serve(["valgrind", "-q", "--vgdb=no", "--tool=callgrind",
           f"--callgrind-out-file={calls}"], arguments, folder, use)
    serve(["strace", "-f", "-o", trace], arguments, folder, use)
    return Costs(*parse_callgrind(calls), count_lines(trace))


def costs(arguments, folder, loads, seed, nr):
    """{name of a load: Costs of one request}"""
    def warm_up(h):
        for load in loads:
            load.send(h, seed, WARM_UP)

    nothing = run_costs(arguments, folder, warm_up)
    result = {}
    for load in loads:
        def use(h, load=load):
            warm_up(h)
            load.send(h, seed + 1, nr)
        result[load.name] = run_costs(arguments, folder, use).minus(nothing,
                                                                    nr)
    return result

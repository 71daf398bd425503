# SPDX-License-Identifier: BSD-3-Clause
"""Clients: fio, and libnbd."""

import json
import os
import time

import nbd

from processes import Failure, run

# Of one request; it has to be whole sectors.
MAX_COUNT = (1 << 32) - 512


def fio(socket, folder, **args):
    """Let fio run on SOCKET with FOLDER for its files; return its only job,
    or what all clients did together."""
    output = os.path.join(folder, "fio")
    command = ["fio", "--name=job", "--ioengine=nbd", "--thread",
               f"--uri=nbd+unix:///?socket={socket}",
               "--group_reporting", "--output-format=json",
               f"--output={output}"]
    command += [f"--{key}={value}" for key, value in args.items()]
    run(*command, folder=folder)
    with open(output, encoding="utf-8") as f:
        text = f.read()
    # Messages may stand before the report.
    job = json.loads(text[text.index("{"):])["jobs"][0]
    if job["error"]:
        raise Failure(f"{' '.join(command)}: {text[:text.index('{')]}"
                      f"error {job['error']}")
    return job


def requests(job):
    """How many requests a job of fio was, and how many a second."""
    sides = [job[x] for x in ("read", "write")]
    return (sum(x["total_ios"] for x in sides),
            sum(x["iops"] for x in sides))


def fio_timed(socket, folder, seconds, **args):
    """The same for so many seconds; longer where that was too short for a
    single request."""
    for _ in range(4):
        job = fio(socket, folder, time_based=1,
                  runtime=f"{int(seconds * 1000)}ms", **args)
        if min(requests(job)) > 0:
            return job
        seconds *= 4
    raise Failure(f"fio: no request in {seconds / 4:g} seconds")


def connect(socket, export="", extents=False):
    h = nbd.NBD()
    h.set_export_name(export)
    if extents:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_unix(socket)
    return h


def map_whole(h):
    """Ask for the block status of the whole disk; return the number of
    extents that came."""
    size = h.get_size()
    offset = extents = 0

    def add(_context, start, entries, _error):
        nonlocal offset, extents
        offset = start + sum(entries[::2])
        extents += len(entries) // 2
        return 0

    while offset < size:
        before = offset
        h.block_status(min(size - offset, MAX_COUNT), offset, add)
        if offset <= before:
            raise Failure(f"block status at {offset} gets nowhere")
    return extents


def map_for(socket, seconds):
    """Ask for all of the block status again and again; return how often,
    and the seconds that took."""
    h = connect(socket, extents=True)
    map_whole(h)
    start = time.monotonic()
    n, end = 0, start
    while n == 0 or end - start < seconds:
        map_whole(h)
        n, end = n + 1, time.monotonic()
    h.shutdown()
    return n, end - start

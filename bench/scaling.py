# SPDX-License-Identifier: BSD-3-Clause
"""What bench/scale measures.

A part is a function that takes a Host and returns rows: dicts, one for each
line of its table.  Bytes are bytes and times seconds there.
"""

import math
import os
import random
import statistics
import time

import nbd

from clients import connect, fio, fio_timed, map_whole, requests
from machine import progress
from processes import (GIB, MIB, cpu_seconds, drop_from_cache, io_counters,
                       peak_memory, pss, read_into_cache, remove)

BLOCK = 4096
THREADS = 16                    # of nbdkit, for a connection
DEFAULT_CACHE = 32 * MIB        # of addcow-cache-size


def percentile(values, percent):
    """The smallest of VALUES that as many are not above."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def close_all(handles):
    for h in handles:
        h.shutdown()
    handles.clear()


# --- Many overlays in one server. ------------------------------------------

def open_one(host, export):
    """Connect and read once; return the handle and how long that took."""
    start = time.monotonic()
    h = connect(host.socket, export)
    h.pread(BLOCK, 0)
    return h, time.monotonic() - start


def write_once(handles):
    for h in handles:
        h.pwrite(b"written!" * (BLOCK // 8), MIB)
        h.flush()


def connect_all(host, command, threads, exports):
    """Open all of EXPORTS and keep them, then write to each; return what
    memory one needs, and how long each took to open."""
    handles, times = [], []
    n = len(exports)
    with host.serve(command, threads) as server:
        # What is taken once, by whoever comes first.
        open_one(host, exports[0])[0].shutdown()
        empty = pss(server.pid)
        for export in exports:
            h, seconds = open_one(host, export)
            handles.append(h)
            times.append(seconds)
        opened = (pss(server.pid) - empty) / n
        write_once(handles)
        written = (pss(server.pid) - empty) / n
        close_all(handles)
    return opened, written, times


def connect_round(host, folder, threads, names):
    """{server: what connect_all returns}"""
    return {
        "addcow": connect_all(host, host.addcow(folder), threads, names),
        # Written to by the one before, and of the same kind.
        "file": connect_all(host, ["file", f"dir={folder}"], threads,
                            [f"{x}.raw" for x in names]),
    }


def overlays_row(n, threads, rounds):
    row = {"overlays": n, "threads": threads}
    for server in "addcow", "file":
        opened, written, times = zip(*(r[server] for r in rounds))
        times = [t for of_round in times for t in of_round]
        row |= {f"{server}_pss": statistics.median(opened),
                f"{server}_pss_written": statistics.median(written),
                f"{server}_open_p50": percentile(times, 50),
                f"{server}_open_p99": percentile(times, 99)}
    for suffix in "pss", "pss_written":
        row[f"more_{suffix}"] = row[f"addcow_{suffix}"] - \
            row[f"file_{suffix}"]
    return row


def overlays(host):
    rows = []
    for n in host.options.overlays:
        names = [f"vm{i:04}" for i in range(n)]
        for threads in THREADS, 1:
            rounds = []
            for number in range(host.options.rounds):
                progress(f"{n} overlays, {threads} threads, round "
                         f"{number + 1}")
                with host.new_folder() as folder:
                    host.create_many(folder, names)
                    rounds.append(connect_round(host, folder, threads,
                                                names))
            rows.append(overlays_row(n, threads, rounds))
    return rows


# --- One base that many read. ----------------------------------------------

def read_from_disk(host, folder, names, size):
    """All of NAMES read all SIZE bytes of their base, each a step behind the
    one before; return how many bytes the server had the disk read."""
    base = os.path.join(folder, "base.img")
    drop_from_cache(base)
    with host.serve(host.addcow(folder), 1) as server:
        handles = [connect(host.socket, x) for x in names]
        before = io_counters(server.pid)["read_bytes"]
        for offset in range(0, size, MIB):
            for h in handles:
                h.pread(MIB, offset)
        read = io_counters(server.pid)["read_bytes"] - before
        close_all(handles)
    return read


def boot(host):
    """What is read by calls (rchar) would not tell: it is what came from
    the disk that must be there once."""
    size = host.options.boot_size
    rows = []
    for n in host.options.overlays:
        progress(f"{n} overlays read {size // MIB} MiB of their base")
        names = [f"vm{i:04}" for i in range(n)]
        # All of it, so that nothing is read ahead for nobody.
        with host.new_folder(size) as folder:
            host.create_many(folder, names, size)
            rows.append({"overlays": n, "size": size,
                         "asked": size * n,
                         "from_disk": read_from_disk(host, folder, names,
                                                     size)})
    return rows


# --- The size of a disk. ---------------------------------------------------

def start_one(command):
    """Start a server of one disk and read; return how long that took."""
    h = nbd.NBD()
    start = time.monotonic()
    h.connect_systemd_socket_activation(["nbdkit", *command])
    h.pread(BLOCK, 0)
    seconds = time.monotonic() - start
    h.shutdown()
    return seconds


def open_times(host, folder, names):
    """In a folder, of overlays that no client had open before."""
    times = []
    with host.serve(host.addcow(folder)):
        # What a server does once.
        open_one(host, names[0])[0].shutdown()
        for name in names[1:]:
            h, seconds = open_one(host, name)
            h.shutdown()
            times.append(seconds)
    return times


def sizes(host):
    rows = []
    for size in host.options.sizes:
        progress(f"opening {size // GIB} GiB")
        with host.new_folder() as folder:
            n = host.options.opens
            names = [f"vm{i}" for i in range(n + 1)]
            host.create_many(folder, names, size)
            path = os.path.join(folder, names[0])
            row = {
                "size": size,
                "addcow_start": statistics.median(
                    start_one(host.addcow(f"{path}.add-cow"))
                    for _ in range(n)),
                "file_start": statistics.median(
                    start_one(["file", f"{path}.raw"]) for _ in range(n)),
            }
            row["addcow_open"] = statistics.median(
                open_times(host, folder, names))
            rows.append(row)
    return rows


# --- Memory. ---------------------------------------------------------------

def scatter(h, draw, size, count, where=0):
    """Write COUNT blocks here and there in SIZE bytes at WHERE."""
    for _ in range(count):
        h.pwrite(b"scatter!" * (BLOCK // 8),
                 where + draw.randrange(size // BLOCK) * BLOCK)


def zero_all(h, size):
    """Have all of the first SIZE bytes allocated, but no data for them."""
    for offset in range(0, size, GIB):
        h.trim(min(GIB, size - offset), offset)
    h.flush()


def memory_rows(host, command, label, bound, counts, size):
    """What a server takes after so many writes in all, everywhere."""
    draw = random.Random(host.options.seed)
    rows, done = [], 0
    with host.serve(command) as server:
        h = connect(host.socket)
        h.pread(BLOCK, 0)
        before, peak_before = pss(server.pid), peak_memory(server.pid)
        for count in counts:
            scatter(h, draw, size, count - done)
            done = count
            h.flush()
            rows.append({"server": label, "bound": bound, "size": size,
                         "writes": count,
                         "memory": pss(server.pid) - before,
                         "peak": peak_memory(server.pid) - peak_before})
        h.shutdown()
    return rows


def cache_sizes(host):
    """[(label, bound in bytes, parameters)]"""
    return [("addcow", DEFAULT_CACHE, [])] + \
        [(f"addcow, {x} MiB", x * MIB, [f"addcow-cache-size={x}M"])
         for x in host.options.cache_sizes]


def memory(host):
    size, counts = host.options.sizes[-1], host.options.writes
    rows = []
    for label, bound, more in cache_sizes(host):
        progress(f"memory: {label}")
        with host.new_folder() as folder:
            host.create(folder, "vm", size)
            path = os.path.join(folder, "vm")
            rows += memory_rows(host, host.addcow(f"{path}.add-cow", *more),
                                label, bound, counts, size)
    progress("memory: file")
    # What is left is a plain image that was written to.
    with host.new_folder() as folder:
        host.create(folder, "vm", size)
        rows += memory_rows(host, ["file", os.path.join(folder, "vm.raw")],
                            "file", 0, counts, size)
    return rows


def all_allocated(host):
    """After all of a disk was discarded, which allocates it: pages of ones
    take no memory once they are on disk."""
    size = host.options.allocated
    progress(f"all of {size // GIB} GiB allocated")
    with host.new_folder() as folder:
        host.create(folder, "vm", size)
        path = os.path.join(folder, "vm.add-cow")
        with host.serve(host.addcow(path)) as server:
            h = connect(host.socket)
            h.pread(BLOCK, 0)
            before = pss(server.pid)
            zero_all(h, size)
            after = pss(server.pid)
            h.shutdown()
    return [{"size": size, "memory": after - before}]


# --- Commits. --------------------------------------------------------------

def commit_once(h, server, draw, size, count):
    """Write to COUNT blocks, then flush: how long the flush took, and what
    was written besides the blocks.  That includes commits which the server
    does meanwhile, for it keeps no more than some thousand pages."""
    io, cpu = io_counters(server.pid), cpu_seconds(server.pid)
    scatter(h, draw, size, count)
    start = time.monotonic()
    h.flush()
    seconds = time.monotonic() - start
    after = io_counters(server.pid)
    return {"seconds": seconds, "cpu": cpu_seconds(server.pid) - cpu,
            "calls": after["syscw"] - io["syscw"] - count,
            "bytes": after["wchar"] - io["wchar"] - count * BLOCK}


def commit_rows(host, command, label, within, size):
    """WITHIN: the part of the disk that is written to."""
    draw = random.Random(host.options.seed)
    rows = []
    with host.serve(command) as server:
        h = connect(host.socket)
        for count in host.options.changes:
            runs = [commit_once(h, server, draw, within, count)
                    for _ in range(host.options.rounds)]
            rows.append({"server": label, "size": size, "within": within,
                         "changes": count,
                         **{key: statistics.median(r[key] for r in runs)
                            for key in runs[0]}})
        h.shutdown()
    return rows


def commit(host):
    """File's rows are what the flush of the same writes costs alone."""
    small, large = host.options.sizes[0], host.options.sizes[-1]
    rows = []
    for size, within in (small, small), (large, small), (large, large):
        progress(f"commits, {size // GIB} GiB")
        with host.new_folder() as folder:
            host.create(folder, "vm", size)
            path = os.path.join(folder, "vm")
            # Nothing is committed but by the flushes that are timed.
            rows += commit_rows(
                host, host.addcow(f"{path}.add-cow",
                                  "addcow-commit-interval=0"),
                "addcow", within, size)
            remove(f"{path}.raw", f"{path}.add-cow")
            host.create(folder, "vm", size)
            rows += commit_rows(host, ["file", f"{path}.raw"], "file",
                                within, size)
    return rows


# --- Block status. ---------------------------------------------------------

def timed_map(h, server):
    """Block status of all: extents, seconds, and the server's CPU time."""
    cpu, start = cpu_seconds(server.pid), time.monotonic()
    extents = map_whole(h)
    return extents, time.monotonic() - start, cpu_seconds(server.pid) - cpu


def map_twice(host, command):
    """At first the bitmap has to be read, if there is one."""
    with host.serve(command) as server:
        h = connect(host.socket, extents=True)
        _, first, first_cpu = timed_map(h, server)
        extents, seconds, cpu = timed_map(h, server)
        h.shutdown()
    return {"extents": extents, "first": first, "first_cpu": first_cpu,
            "seconds": seconds, "cpu": cpu}


def map_rows(host, folder, state, size):
    path = os.path.join(folder, "vm")
    return [{"state": state, "size": size, "server": label,
             **map_twice(host, command)}
            for label, command in (
                ("addcow", host.addcow(f"{path}.add-cow")),
                ("file", ["file", f"{path}.raw"]))]


def blockstatus(host):
    size, writes = host.options.sizes[-1], host.options.map_writes
    allocated = host.options.allocated
    rows = []
    with host.new_folder() as folder:
        host.create(folder, "vm", size)
        command = host.addcow(os.path.join(folder, "vm.add-cow"))
        progress("block status")
        rows += map_rows(host, folder, "nothing written", size)
        with host.serve(command):
            h = connect(host.socket)
            scatter(h, random.Random(host.options.seed), size, writes)
            h.flush()
            h.shutdown()
        rows += map_rows(host, folder, f"{writes:,} writes", size)
        with host.serve(command):
            h = connect(host.socket)
            zero_all(h, min(allocated, size))
            h.shutdown()
        rows += map_rows(host, folder,
                         f"and {allocated // GIB:,} GiB allocated", size)
        with host.serve(command):
            h = connect(host.socket)
            zero_all(h, size)
            h.shutdown()
        # 2 GiB of bitmap, which a server that opens it reads from the disk.
        rows += map_rows(host, folder, "all allocated", size)
    return rows


# --- Many clients of one overlay. ------------------------------------------

class Clients:
    """Servers of a disk that was written from end to end, and their load."""

    def __init__(self, host, folder):
        self.host = host
        self.size = host.options.clients_size
        self.servers = {}
        for name in "addcow", "file", "control":
            host.create(folder, name, self.size)
            path = os.path.join(folder, name)
            # All three images are of the same kind, filled in the same way.
            self.servers[name] = host.addcow(f"{path}.add-cow")
            with host.serve(self.servers[name]):
                fio(host.socket, host.run_folder, rw="write", bs=MIB,
                    iodepth=4, size=self.size, end_fsync=1)
            if name != "addcow":
                self.servers[name] = ["file", f"{path}.raw"]
            read_into_cache(f"{path}.raw")
        os.sync()

    def rate(self, name, rw, clients, seed):
        """Requests a second of CLIENTS, each in its own part of the disk."""
        part = self.size // clients // BLOCK * BLOCK
        # What the one before wrote is not this one's to wait for.
        os.sync()
        with self.host.serve(self.servers[name]):
            job = fio_timed(self.host.socket, self.host.run_folder,
                            self.host.options.seconds, rw=rw, bs=BLOCK,
                            iodepth=4, size=part, numjobs=clients,
                            offset_increment=part, randseed=seed)
        return requests(job)[1]

    def round(self, rw, clients, number):
        """The order moves on each round."""
        names = list(self.servers)
        rates = {}
        for i in range(len(names)):
            name = names[(i + number) % len(names)]
            rates[name] = self.rate(name, rw, clients, number + 1)
        return rates


def clients_row(rw, clients, rounds):
    def ratios(of):
        return [r[of] / r["file"] for r in rounds]
    return {"job": rw, "clients": clients,
            "ratio": statistics.median(ratios("addcow")),
            "low": min(ratios("addcow")), "high": max(ratios("addcow")),
            "control": statistics.median(ratios("control")),
            "noise": statistics.median(abs(x - 1)
                                       for x in ratios("control")),
            "addcow": statistics.median(r["addcow"] for r in rounds),
            "file": statistics.median(r["file"] for r in rounds)}


def clients(host):
    rows = []
    with host.new_folder() as folder:
        load = Clients(host, folder)
        for rw in "randread", "randwrite":
            for n in host.options.clients:
                progress(f"{rw}, {n} clients")
                rows.append(clients_row(
                    rw, n, [load.round(rw, n, number)
                            for number in range(host.options.client_rounds)]))
    return rows


PARTS = {
    "overlays": overlays,
    "boot": boot,
    "sizes": sizes,
    "memory": memory,
    "allocated": all_allocated,
    "commit": commit,
    "blockstatus": blockstatus,
    "clients": clients,
}


def measure(host, part):
    return {"rows": PARTS[part](host)}

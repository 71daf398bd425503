# SPDX-License-Identifier: BSD-3-Clause
"""What fills an image, and commands that copy a disk without an overlay."""

import os
import time

from processes import (MIB, Failure, cpu_seconds, data_size, logged,
                       peak_memory, read_into_cache, remove, run, run_timed,
                       touch_memory, wait_for_log)
from report import Copied, Latency, Memory
from servers import Addcow, AddcowNbd, BaseServer, Server

HYDRATE = "addcow-hydrate=true"
STANDS_ALONE = "stands alone"

# Filling that is slower than this has stopped.
SLOWEST = 10 * MIB

# How much a client reads where the server's memory is measured.
CLIENT_READS = 256 * MIB


def wait_until_alone(bench, disk, process):
    seconds = 60 + data_size(bench.base_file(disk)) / SLOWEST
    wait_for_log(process, bench.log_file, STANDS_ALONE, seconds)


# --- Copies: how long until all of it is in a file. ------------------------

def measure_copy(server, job):
    """What server.copy takes, which copies once and returns the seconds
    that took, and those of CPU time."""
    bench = server.bench
    bench.prepare_disk(server, job.disk)
    size = data_size(bench.base_file(job.disk))
    touch_memory(size + size // 8)
    seconds, cpu = server.copy(job.disk)
    # The next one is not to find this one's data on the way to the disk.
    remove(*server.files(job.disk))
    os.sync()
    return Copied(seconds, size / MIB / seconds, cpu)


class Copying(Server):
    """Commands that copy a disk to a new file; not a server."""

    def __init__(self, name, bench, *commands):
        super().__init__(name, bench)
        self.commands = commands

    def files(self, disk):
        return [self.file(disk, ".copy")]

    def make_disk(self, disk):
        pass

    def command(self, disk):
        raise Failure(f"{self.name} is not a server")

    def words(self, disk):
        """What stands for {WORD} in the commands."""
        return {"base": self.bench.base_file(disk),
                "copy": self.file(disk, ".copy")}

    def copy(self, disk):
        words = self.words(disk)
        with self.behind(disk):
            return run_timed(*[[arg.format(**words) for arg in command]
                               for command in self.commands])

    def measure(self, job, seed):
        return measure_copy(self, job)


class CopyingNbd(BaseServer, Copying):
    def words(self, disk):
        return {**super().words(disk), "uri": self.base_uri()}


class Streaming(Addcow):
    def copy(self, disk):
        return run_timed([self.img, "stream", "-q",
                          self.file(disk, ".add-cow")])

    def measure(self, job, seed):
        return measure_copy(self, job)


class Hydrating(Addcow):
    def copy(self, disk):
        with self.behind(disk):
            start = time.monotonic()
            with self.bench.serve(self, disk, HYDRATE) as process:
                wait_until_alone(self.bench, disk, process)
                seconds = time.monotonic() - start
                return seconds, cpu_seconds(process.pid)

    def measure(self, job, seed):
        return measure_copy(self, job)


class HydratingNbd(Hydrating, AddcowNbd):
    pass


# --- What filling does to a server and its clients. ------------------------

class Reading(Addcow):
    """How long a client waits while an overlay is filled, or is not."""

    def __init__(self, name, bench, build, hydrate):
        super().__init__(name, bench, build)
        self.hydrate = hydrate
        self.switch = os.path.join(bench.run_folder, "hydrate")

    def measure(self, job, seed):
        b = self.bench
        b.prepare_disk(self, job.disk)
        if job.disk == "long-written":
            with b.serve(self, job.disk):
                b.write_all(job.disk)
            os.sync()
        # Filled from when the client begins, or it might be over by then;
        # what is measured comes after, for it may begin a second late.
        more = {"ramp_time": 1}
        if self.hydrate:
            more["exec_prerun"] = f"touch {self.switch}"
        with b.serve(self, job.disk, f"addcow-hydrate={self.switch}"):
            side = b.load(job, seed, **more)["read"]
            if logged(b.log_file, STANDS_ALONE):
                raise Failure(f"{job.name}: filled before reading was over, "
                              "see --fill-size")
        remove(self.switch, *self.files(job.disk))
        os.sync()
        times = side["clat_ns"]["percentile"]
        return Latency(side["total_ios"], times["50.000000"] / 1000,
                       times["99.000000"] / 1000)


class Remembering(Addcow):
    """How much memory a server has at most, that fills or does not."""

    def __init__(self, name, bench, build, hydrate):
        super().__init__(name, bench, build)
        self.hydrate = [HYDRATE] if hydrate else []

    def measure(self, job, seed):
        b = self.bench
        b.prepare_disk(self, job.disk)
        with b.serve(self, job.disk, *self.hydrate) as process:
            size = min(CLIENT_READS, b.part(job.disk)[1])
            b.fio(rw="read", bs=256 * 1024, iodepth=8, size=size)
            if self.hydrate:
                wait_until_alone(b, job.disk, process)
            peak = peak_memory(process.pid)
        remove(*self.files(job.disk))
        os.sync()
        return Memory(peak / MIB)


# --- An image that stands alone. -------------------------------------------

class StandAlone(Addcow):
    """A server that filled the image before it is loaded.

    The image is kept and filled again, in place: the servers that it is
    compared with have the very same file.
    """
    def files(self, disk):
        return [self.file(disk, ".add-cow")]

    def make_disk(self, disk):
        run(self.img, "create", "-q", "-b", self.bench.base_file(disk), "-i",
            self.bench.alone, self.file(disk, ".add-cow"))

    def command(self, disk):
        return [*super().command(disk), HYDRATE]

    def ready(self, disk, process):
        wait_until_alone(self.bench, disk, process)
        # What fills an image has it written out and dropped.
        read_into_cache(self.bench.alone)


class Alone(Server):
    """nbdkit without an overlay on the same image."""

    def __init__(self, name, bench, *filters):
        super().__init__(name, bench)
        self.filters = filters

    def files(self, disk):
        return []

    def make_disk(self, disk):
        pass

    def command(self, disk):
        return self.nbdkit(*self.filters, "file", self.bench.alone)

# SPDX-License-Identifier: BSD-3-Clause
"""The servers, and how they are started on a disk."""

import contextlib
import os

from processes import Failure, cpu_seconds, make_sparse, remove, run, serving
from report import Requests


class Server:
    """A server under test: its disks, and how it is started on one.

    A disk is named by its state; its files begin with the server's name
    and that of the disk.
    """
    keeps_disk = True           # across a restart

    def __init__(self, name, bench):
        self.name = name
        self.bench = bench

    def file(self, disk, suffix):
        return os.path.join(self.bench.folder, f"{self.name}.{disk}{suffix}")

    def files(self, disk):
        """All that make_disk makes."""
        raise NotImplementedError

    def make_disk(self, disk):
        """Make a disk to which nothing was written."""
        raise NotImplementedError

    def command(self, disk):
        raise NotImplementedError

    def behind(self, _disk):
        """What must run while this server does: a context."""
        return contextlib.nullcontext()

    def ready(self, disk, process):
        """Called when the server is up, before the load."""

    def measure(self, job, seed):
        """One of the results in report.py."""
        b = self.bench
        b.prepare_disk(self, job.disk)
        with self.behind(job.disk), b.serve(self, job.disk) as process:
            self.ready(job.disk, process)
            before = cpu_seconds(process.pid)
            n, rate = b.requests(job, seed)
            cpu = cpu_seconds(process.pid) - before
        if job.disk not in b.written:
            remove(*self.files(job.disk))
        return Requests(n, rate, cpu / n)

    def nbdkit(self, *args):
        return ["nbdkit", "--foreground", "--pidfile", self.bench.pid_file,
                "--unix", self.bench.socket, *args]


class Limit(Server):
    """The file plugin on the same data, behind FILTERS that do nothing."""

    def __init__(self, name, bench, *filters):
        super().__init__(name, bench)
        self.filters = filters

    def serves_base(self, disk):
        """Nothing was written to an overlay that looks like this."""
        return disk in ("base", "half")

    def files(self, disk):
        return [] if self.serves_base(disk) else [self.file(disk, ".raw")]

    def make_disk(self, disk):
        for path in self.files(disk):
            make_sparse(path, self.bench.size)

    def command(self, disk):
        if self.serves_base(disk):
            return self.nbdkit(*self.filters, "--readonly", "file",
                               self.bench.base_file(disk))
        return self.nbdkit(*self.filters, "file", self.file(disk, ".raw"))


class Addcow(Server):
    def __init__(self, name, bench, build):
        super().__init__(name, bench)
        self.filter = os.path.join(build, "filters", "addcow", ".libs",
                                   "nbdkit-addcow-filter.so")
        self.img = os.path.join(build, "img", "addcow-img")
        for path in self.filter, self.img:
            if not os.path.exists(path):
                raise Failure(f"{path} is missing: build first, or see "
                              "--build")

    def files(self, disk):
        return [self.file(disk, ".add-cow"), self.file(disk, ".raw")]

    def make_disk(self, disk):
        run(self.img, "create", "-q", "-b", self.bench.base_file(disk),
            self.file(disk, ".add-cow"))

    def command(self, disk):
        return self.nbdkit(f"--filter={self.filter}", "file",
                           f"addcow={self.file(disk, '.add-cow')}")


class Chain(Addcow):
    """Overlays in a row, the first one over the backing file."""

    def __init__(self, name, bench, build, length):
        super().__init__(name, bench, build)
        self.length = length

    def files(self, disk):
        # The one that is served comes last.
        return [self.file(disk, f"{i}.{suffix}")
                for i in range(self.length) for suffix in ("raw", "add-cow")]

    def make_disk(self, disk):
        below, kind = self.bench.base_file(disk), "raw"
        for path in self.files(disk)[1::2]:
            run(self.img, "create", "-q", "-b", below, "-F", kind, path)
            below, kind = path, "add-cow"

    def command(self, disk):
        return self.nbdkit(f"--filter={self.filter}", "file",
                           f"addcow={self.files(disk)[-1]}")


class BaseServer:
    """Mixed in: the backing file comes from another NBD server."""

    def base_uri(self):
        return f"nbd+unix:///?socket={self.bench.base_socket}"

    def behind(self, disk):
        b = self.bench
        return serving(["nbdkit", "--foreground", "--pidfile",
                        b.base_pid_file, "--unix", b.base_socket,
                        "--readonly", "file", b.base_file(disk)],
                       b.base_socket, b.base_pid_file, b.base_log_file,
                       b.folder)


class AddcowNbd(BaseServer, Addcow):
    def command(self, disk):
        return [*super().command(disk), f"addcow-backing={self.base_uri()}"]


class NbdPlugin(BaseServer, Server):
    """nbdkit's own NBD client, with no overlay."""

    def files(self, disk):
        return []

    def make_disk(self, disk):
        pass

    def command(self, disk):
        return self.nbdkit("--readonly", "nbd", self.base_uri())


class Cow(Server):
    keeps_disk = False          # a file under TMPDIR that has no name

    def files(self, disk):
        return []

    def make_disk(self, disk):
        pass

    def command(self, disk):
        return self.nbdkit("--filter=cow", "file",
                           self.bench.base_file(disk))

    def ready(self, disk, process):
        if disk in self.bench.written:
            self.bench.written[disk](disk)
            os.sync()


class Qcow2(Server):
    def __init__(self, name, bench, data_file):
        super().__init__(name, bench)
        self.data_file = data_file

    def files(self, disk):
        data = [self.file(disk, ".data")] if self.data_file else []
        return [self.file(disk, ".qcow2"), *data]

    def make_disk(self, disk):
        options = []
        if self.data_file:
            options = ["-o", f"data_file={self.file(disk, '.data')}"]
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b",
            self.bench.base_file(disk), "-F", "raw", *options,
            self.file(disk, ".qcow2"))

    def command(self, disk):
        return ["qemu-nbd", "--persistent", "--shared=0", "--format=qcow2",
                f"--pid-file={self.bench.pid_file}",
                f"--socket={self.bench.socket}", self.file(disk, ".qcow2")]

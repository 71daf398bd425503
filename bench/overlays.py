# SPDX-License-Identifier: BSD-3-Clause
"""Overlays by the thousand, and one server for them or for one."""

import contextlib
import os
import resource
import tempfile

from processes import MIB, Failure, make_random, make_sparse, run, serving

HEADER_BYTES = 2068
IMAGE_FILE = 1036               # where it is in the header
NAME_BYTES = 1024

BASE_SIZE = 64 * MIB


def raise_limits():
    """As many open files as may be."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Host:
    """Folders with overlays, and servers; all is removed at the end."""

    def __init__(self, options, folder, run_folder):
        self.options = options
        self.folder = folder
        self.run_folder = run_folder
        # The path of a socket must be short.
        self.socket = os.path.join(run_folder, "sock")
        self.filter = os.path.join(options.build, "filters", "addcow",
                                   ".libs", "nbdkit-addcow-filter.so")
        self.img = os.path.join(options.build, "img", "addcow-img")
        for path in self.filter, self.img:
            if not os.path.exists(path):
                raise Failure(f"{path} is missing: build first, or see "
                              "--build")

    @contextlib.contextmanager
    def new_folder(self, base_size=BASE_SIZE):
        """A folder that has base.img, random data, and is removed."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            make_random(os.path.join(folder, "base.img"), base_size)
            yield folder

    def create(self, folder, name, size):
        """NAME.add-cow and NAME.raw of SIZE on base.img, both sparse."""
        run(self.img, "create", "-q", "-b", "base.img",
            os.path.join(folder, f"{name}.add-cow"), str(size))

    def create_many(self, folder, names, size=BASE_SIZE):
        """The same for many, by copying the first and changing the name of
        the image: addcow-img has each synced, which takes long."""
        first, *others = names
        self.create(folder, first, size)
        with open(os.path.join(folder, f"{first}.add-cow"), "rb") as f:
            header = bytearray(f.read(HEADER_BYTES))
            length = os.fstat(f.fileno()).st_size
        for name in others:
            image = f"{name}.raw"
            header[IMAGE_FILE:IMAGE_FILE + NAME_BYTES] = \
                image.encode().ljust(NAME_BYTES, b"\0")
            make_sparse(os.path.join(folder, image), size)
            with open(os.path.join(folder, f"{name}.add-cow"), "wb") as f:
                f.write(header)
                f.truncate(length)

    def serve(self, command, threads=0):
        """Run nbdkit with COMMAND: a context that has the process."""
        pid_file, log_file = (os.path.join(self.run_folder, x)
                              for x in ("pid", "log"))
        many = ["--threads", str(threads)] if threads else []
        return serving(["nbdkit", "--foreground", "--pidfile", pid_file,
                        "--unix", self.socket, *many, *command], self.socket,
                       pid_file, log_file, self.folder)

    def addcow(self, what, *more):
        """The command that serves a metadata file, or a folder."""
        return [f"--filter={self.filter}", "file", f"addcow={what}", *more]

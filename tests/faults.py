# SPDX-License-Identifier: BSD-3-Clause
"""Faults of system calls, by means of fault-nth.c: the control file, and
what the power leaves of the files."""

import errno
import mmap
import os
import random
import struct

from addcow_format import BITMAP_AT, SECTOR, Metadata

METADATA, IMAGE, BACKING, OTHER = range(4)
FILES = ["metadata", "image", "backing", "other"]
CALLS = ["pread", "pwrite", "fallocate", "fdatasync", "fsync",
         "sync_file_range", "lseek", "copy_file_range", "open", "ftruncate",
         "rename", "unlink"]
TRACKED = ["vm.add-cow", "vm.raw", "base.img"]
MAX_SECTORS = 32768
NR_FAULTS = 4
CLEAN, DIRTY, FORGOTTEN = range(3)

SHORT = 0
FOREVER = (1 << 64) - 1

# What each call may end with.
WRITING = (errno.EIO, errno.ENOSPC)
ERRORS = {
    "pread": (errno.EIO, errno.EINTR, SHORT),
    "pwrite": WRITING + (errno.EINTR, SHORT),
    "fallocate": WRITING + (errno.EINTR, errno.EOPNOTSUPP),
    "fdatasync": WRITING + (errno.EINTR,),
    "fsync": WRITING + (errno.EINTR,),
    "sync_file_range": WRITING + (errno.EINTR,),
    "lseek": (errno.EIO,),
    "copy_file_range": WRITING + (errno.EINTR, errno.EXDEV, SHORT),
    "open": (errno.EIO, errno.EINTR, errno.EMFILE),
    "ftruncate": WRITING + (errno.EINTR,),
    "rename": WRITING,
    "unlink": (errno.EIO,),
}
# With these nothing may fail.
HARMLESS = (SHORT, errno.EINTR, errno.EOPNOTSUPP, errno.EXDEV)


class Fault:
    def __init__(self, file, call, number, err, for_ever):
        self.file, self.call, self.number = file, call, number
        self.err, self.for_ever = err, for_ever

    def __str__(self):
        return "%s %d%s of %s: %s" % (
            CALLS[self.call], self.number, " and on" if self.for_ever else "",
            FILES[self.file], errno.errorcode.get(self.err, "short"))

    def is_harmless(self):
        return self.err in HARMLESS


def parse(text):
    """What is told of a life that failed: its number, what else is told of
    it, and the faults."""
    number, what, *rest = text.replace(": ", "; ", 1).split("; ")
    wanted = []
    for f in filter(None, rest):
        where, err = f.split(": ")
        call, n, *words = where.split()
        wanted.append(Fault(FILES.index(words[-1]), CALLS.index(call), int(n),
                            SHORT if err == "short" else getattr(errno, err),
                            words[0] == "and"))
    return int(number), what, wanted


class Control:
    """The control file, and the media.  All is in FOLDER, the files that are
    tracked and have faults in FOLDER/files."""

    head = struct.Struct("=II")
    counts = struct.Struct("=%dQ" % (len(FILES) * len(CALLS)))
    failed = struct.Struct("=%dQ" % len(FILES))
    fault = struct.Struct("=IIQQIIQ")

    def __init__(self, folder):
        self.folder = os.path.join(folder, "files")
        self.medium = os.path.join(folder, "medium")
        self.name = os.path.join(folder, "control")
        self.counts_at = self.head.size
        self.failed_at = self.counts_at + self.counts.size
        self.faults_at = self.failed_at + self.failed.size
        self.state_at = self.faults_at + NR_FAULTS * self.fault.size
        self.size = self.state_at + len(TRACKED) * MAX_SECTORS
        for name in self.folder, self.medium:
            os.mkdir(name)
        with open(self.name, "wb") as f:
            f.truncate(self.size)
        with open(self.name, "r+b") as f:
            self.map = mmap.mmap(f.fileno(), self.size)

    def environment(self):
        return {"FAULTS_FOLDER": self.folder, "FAULTS_CONTROL": self.name,
                "FAULTS_MEDIUM": self.medium}

    def path(self, name):
        return os.path.join(self.folder, name)

    def reset(self, faults=(), reaches=0, tracked=TRACKED):
        """All of the files is durable, and nothing was counted."""
        self.map[:] = bytes(self.size)
        for name in os.listdir(self.medium):
            os.unlink(os.path.join(self.medium, name))
        for name in tracked:
            copy(self.path(name), os.path.join(self.medium, name))
        for i, f in enumerate(faults):
            self.fault.pack_into(
                self.map, self.faults_at + i * self.fault.size, f.file,
                f.call, f.number, FOREVER if f.for_ever else f.number, f.err,
                0, 0)
        self.faults = list(faults)
        self.head.pack_into(self.map, 0, 1, reaches)

    def switch(self, on):
        self.map[0] = on

    def nr_calls(self):
        """{(file, call): how many}, where there were any."""
        n = self.counts.unpack_from(self.map, self.counts_at)
        return {divmod(i, len(CALLS)): c for i, c in enumerate(n) if c}

    def nr_failed_syncs(self):
        return self.failed.unpack_from(self.map, self.failed_at)

    def nr_hit(self):
        return [self.fault.unpack_from(
            self.map, self.faults_at + i * self.fault.size)[-1]
            for i in range(len(self.faults))]

    def hit(self):
        """The faults that there were."""
        return [f for f, n in zip(self.faults, self.nr_hit()) if n]

    # --- The power goes. ---------------------------------------------------

    def left(self, i, choose):
        """What is on the disk of tracked file I: where the file and the
        medium may differ CHOOSE (sector) tells whether it is as in the
        file."""
        at = self.state_at + i * MAX_SECTORS
        now = read(self.path(TRACKED[i]))
        then = bytearray(read(os.path.join(self.medium, TRACKED[i])))
        if len(now) != len(then):
            # Its length is one or the other; the longer has zeroes there.
            n = len(now) if choose(-1) else len(then)
            then = then[:n] + bytes(max(0, n - len(then)))
        for s in self.unsure(at):
            if choose(s):
                piece = now[s * SECTOR:(s + 1) * SECTOR]
                piece = piece[:max(0, len(then) - s * SECTOR)]
                then[s * SECTOR:s * SECTOR + len(piece)] = piece
        return bytes(then)

    def unsure(self, at):
        state = self.map[at:at + MAX_SECTORS]
        s = -1
        result = []
        for s, kind in enumerate(state.rstrip(b"\0")):
            if kind:
                result.append(s)
        return result

    def losses(self, r):
        """Ways to lose power: {tracked file: choose}."""
        def no(sector):
            return False

        def yes(sector):
            return True

        def lots(sector):
            return r.random() < 0.5
        return [{METADATA: no, IMAGE: no, BACKING: no},
                {METADATA: yes, IMAGE: no, BACKING: no},
                {METADATA: no, IMAGE: yes, BACKING: yes},
                {METADATA: lots, IMAGE: lots, BACKING: lots}]


def read(name):
    with open(name, "rb") as f:
        return f.read()


def copy(source, target):
    """With its holes."""
    with open(source, "rb") as s, open(target, "wb") as t:
        size = os.fstat(s.fileno()).st_size
        at = 0
        while at < size:
            try:
                at = os.lseek(s.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(s.fileno(), at, os.SEEK_HOLE)
            s.seek(at)
            t.seek(at)
            t.write(s.read(end - at))
            at = end
        t.truncate(size)


def disk(metadata, image, base):
    """What the contents of three files are together."""
    m = Metadata.decode(metadata)
    assert len(image) >= m.size
    out = bytearray(base[:m.size])
    out += bytes(m.size - len(out))
    for i, byte in enumerate(m.bitmap):
        if byte == 0:
            continue
        if byte == 0xff:
            out[i * 4096:(i + 1) * 4096] = \
                image[i * 4096:min((i + 1) * 4096, m.size)]
            continue
        for s in range(i * 8, min(i * 8 + 8, m.sectors())):
            if byte >> s % 8 & 1:
                out[s * SECTOR:(s + 1) * SECTOR] = \
                    image[s * SECTOR:(s + 1) * SECTOR]
    return bytes(out)


def make_base(name, size, seed):
    """Data, zeroes and holes."""
    r = random.Random(seed)
    with open(name, "wb") as f:
        while f.tell() < size:
            n = min(int(2 ** r.uniform(9, 18)), size - f.tell())
            kind = r.choice(["data", "data", "zeroes", "hole"])
            if kind == "hole":
                f.seek(n, 1)
            else:
                f.write(r.randbytes(n) if kind == "data" else bytes(n))
        f.truncate(size)


def all_faults(counts, wanted=lambda file, call: True):
    """[Fault, ...]: each of the calls that were counted, with each error,
    once and from then on."""
    faults = []
    for (file, call), n in sorted(counts.items()):
        if not wanted(file, call):
            continue
        for number in range(1, n + 1):
            for err in ERRORS[CALLS[call]]:
                for for_ever in False, True:
                    # Who is interrupted for ever never ends.
                    if for_ever and err == errno.EINTR:
                        continue
                    faults.append(Fault(file, call, number, err, for_ever))
    return faults

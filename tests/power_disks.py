# SPDX-License-Identifier: BSD-3-Clause
"""From a log of power-log.c, the disks that a power failure may leave.

Each sector of 512 bytes of each file is by itself what it was at any moment
since the last sync of the file that covers it, and so is the length of each
file.  So is each name in a folder: it is of the file, or of none, that it was
of at any moment since the last sync of the folder.
"""

import collections
import os
import struct

SECTOR = 512

# See power-log.h.
RECORD = struct.Struct("=8xQQIIIIQQQqIIQ")
(END, WRITE, ALLOCATE, LENGTH, SYNC, WRITE_OUT,
 CREATE, RENAME, LINK, UNLINK) = range(1, 11)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16

Record = collections.namedtuple(
    "Record", "id kind mode folder file offset count result name new_name "
    "payload")

# What something was from record BEGIN on, or from END on for certain.
Version = collections.namedtuple("Version", "begin end value")

FIRST = -1
NEVER = float("inf")


def records_of(path):
    records = []
    with open(path, "rb") as f:
        log = f.read()
    at = 0
    while at < len(log):
        (total, id_, kind, mode, _, folder, file, offset, count, result,
         name_bytes, new_name_bytes, payload_bytes) = \
            RECORD.unpack_from(log, at)
        p = at + RECORD.size
        name = log[p:p + name_bytes].rstrip(b"\0").decode()
        p += name_bytes
        new_name = log[p:p + new_name_bytes].rstrip(b"\0").decode()
        p += new_name_bytes
        records.append(Record(id_, kind, mode, folder, file, offset, count,
                              result, name, new_name,
                              log[p:p + payload_bytes]))
        at += total
    return records


class Versions:
    """Of one thing, in their order."""

    def __init__(self, value):
        self.all = [Version(FIRST, FIRST, value)]

    def add(self, begin, end, value):
        self.all.append(Version(begin, end, value))

    def last(self):
        return self.all[-1].value

    def at(self, moment, synced):
        """The values that it may have when the power goes before record
        MOMENT.  What had ended before record SYNCED is there."""
        values = []
        for v in self.all:
            if v.begin >= moment:
                break
            if v.end < synced:
                values.clear()
            values.append(v.value)
        return values


class Syncs:
    """Of one file or folder."""

    def __init__(self):
        self.all = []               # (begin, end)

    def synced(self, moment):
        """What had ended before this record is durable at MOMENT."""
        return max((begin for begin, end in self.all if end < moment),
                   default=0)


class File:
    """CONTENT is what it has to begin with."""

    def __init__(self, content):
        self.first = content
        self.cached = bytearray(content)
        self.lengths = Versions(len(content))
        self.sectors = {}           # number: Versions
        self.syncs = Syncs()

    def touch(self, begin, end, first, last):
        """The bytes from FIRST to LAST have changed in self.cached."""
        for s in range(first // SECTOR, -(-last // SECTOR)):
            at = slice(s * SECTOR, (s + 1) * SECTOR)
            value = bytes(self.cached[at]).ljust(SECTOR, b"\0")
            if s not in self.sectors:
                self.sectors[s] = Versions(
                    bytes(self.first[at]).ljust(SECTOR, b"\0"))
            self.sectors[s].add(begin, end, value)

    def set_length(self, begin, end, length):
        old = len(self.cached)
        if length < old:
            del self.cached[length:]
            self.touch(begin, end, length, old)
        self.cached.extend(bytes(length - len(self.cached)))
        if length != old:
            self.lengths.add(begin, end, length)

    def write(self, begin, end, offset, data):
        if data:
            length = max(len(self.cached), offset + len(data))
            self.set_length(begin, end, length)
            self.cached[offset:offset + len(data)] = data
            self.touch(begin, end, offset, offset + len(data))

    def allocate(self, begin, end, mode, offset, count):
        if not mode & KEEP_SIZE:
            self.set_length(begin, end, max(len(self.cached), offset + count))
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            last = min(offset + count, len(self.cached))
            if offset < last:
                self.cached[offset:last] = bytes(last - offset)
                self.touch(begin, end, offset, last)

    def found(self, moment, content):
        """It has CONTENT at that moment, whoever wrote it: those who had
        begun to are gone."""
        if content != self.cached:
            last = max(len(content), len(self.cached))
            self.set_length(moment, moment, len(content))
            self.cached[:] = content
            self.touch(moment, moment, 0, last)

    def is_metadata(self):
        return self.cached[:8] == b"ADD_COW\xff"

    def build(self, moment, choose):
        synced = self.syncs.synced(moment)
        length = choose(self, self.lengths.at(moment, synced))
        out = bytearray(self.first[:length])
        out += bytes(length - len(out))
        for s, versions in self.sectors.items():
            if s * SECTOR < length:
                out[s * SECTOR:(s + 1) * SECTOR] = \
                    choose(self, versions.at(moment, synced))
        return bytes(out[:length])


class Disks:
    """LOG begins with FILES, {path: bytes}, durable in FOLDER, with the
    inodes INODES, {path: number}.  FOUND are pairs: what there was, like
    FILES, when that many records were written and nobody did anything."""

    def __init__(self, log, files, inodes, found):
        self.records = records_of(log)
        self.names = {}             # path: Versions of a File or None
        self.folders = {}           # path: Syncs
        self.by_inode = {}
        for path, content in files.items():
            self.by_inode[inodes[path]] = file = File(content)
            self.names[path] = Versions(file)
        self.ends = {r.id: (i, r) for i, r in enumerate(self.records)
                     if r.kind == END}
        self.open = 0               # what had begun and has not ended
        found = dict(found)
        for i, record in enumerate(self.records):
            if i in found:
                self.find(i, found[i])
            self.replay(i, record)
        if len(self.records) in found:
            self.find(len(self.records), found[len(self.records)])

    def replay(self, i, record):
        if record.kind in (END, WRITE_OUT):
            return
        end, result = NEVER, None
        if record.id in self.ends:
            end, r = self.ends[record.id]
            result = r.result
        if result is not None and result < 0:
            return
        if result is None and record.kind != SYNC:
            self.open += 1
        if record.kind in (CREATE, RENAME, LINK, UNLINK):
            self.rename(i, end, record)
        elif record.kind == SYNC:
            self.sync(i, end, record)
        else:
            self.change(i, end, result, record)

    def change(self, i, end, result, record):
        file = self.by_inode[record.file]
        if record.kind == WRITE:
            data = record.payload
            file.write(i, end, record.offset,
                       data if result is None else data[:result])
        elif record.kind == ALLOCATE:
            file.allocate(i, end, record.mode, record.offset, record.count)
        elif record.kind == LENGTH:
            file.set_length(i, end, record.offset)
        else:
            raise ValueError(record)

    def sync(self, i, end, record):
        if end == NEVER:
            return
        if record.folder:
            self.folders.setdefault(record.name, Syncs()).all.append((i, end))
        else:
            self.by_inode[record.file].syncs.all.append((i, end))

    def name(self, i, end, path, file):
        self.names.setdefault(path, Versions(None)).add(i, end, file)

    def rename(self, i, end, record):
        if record.kind == CREATE:
            file = File(b"")
            if end != NEVER:
                self.by_inode[self.records[end].file] = file
            self.name(i, end, record.name, file)
            return
        file = self.by_inode[record.file]
        if record.kind != LINK and record.name:
            self.name(i, end, record.name, None)
        if record.kind != UNLINK and record.new_name:
            self.name(i, end, record.new_name, file)

    def find(self, moment, found):
        """A log that is whole says the same."""
        now = {path: v.last() for path, v in self.names.items() if v.last()}
        if self.open == 0:
            cached = {path: bytes(file.cached) for path, file in now.items()}
            for path in cached.keys() | found.keys():
                if cached.get(path) != found.get(path):
                    raise ValueError("%s was not logged" % path)
        self.open = 0
        for path in now.keys() - found.keys():
            self.name(moment, moment, path, None)
        for path, content in found.items():
            if path not in now:
                self.name(moment, moment, path, self.unknown(path))
            self.names[path].last().found(moment, content)

    def unknown(self, path):
        """Whose making had not ended."""
        return next((v.value for v in reversed(self.names[path].all)
                     if v.value), None)

    # --- Disks. -----------------------------------------------------------

    def build(self, moment, choose):
        """The files when the power goes before record MOMENT.  CHOOSE takes
        the file that it is about, None for a name, and the values that it can
        have; it returns one of them."""
        files = {}
        for path, versions in self.names.items():
            folder = os.path.dirname(path) or "."
            synced = self.folders.get(folder, Syncs()).synced(moment)
            file = choose(None, versions.at(moment, synced))
            if file:
                files[path] = file.build(moment, choose)
        return files

    def draw(self, r):
        """A moment, in words what the disk has, and its files."""
        n = len(self.records)
        moment = n if r.random() < 0.15 else r.randrange(n + 1)
        how = r.choice(list(WAYS))
        return moment, how, self.build(moment, WAYS[how](r))


def oldest(_, values):
    return values[0]


def newest(_, values):
    return values[-1]


def of_metadata(there, other):
    """Names and metadata files are by THERE, all else by OTHER."""
    return lambda file, values: \
        (there if file is None or file.is_metadata() else other)(file, values)


def of_names(there, other):
    return lambda file, values: \
        (there if file is None else other)(file, values)


def mostly(r, usual):
    return lambda file, values: \
        r.choice(values) if r.random() < 0.05 else usual(file, values)


def by_file(r):
    """Of each file more or less is there."""
    shares = {}
    return lambda file, values: values[-1] if r.random() < shares.setdefault(
        file, r.choice((0, r.random(), 1))) else r.choice(values[:2])


WAYS = {
    "what was synced": lambda r: oldest,
    "everything": lambda r: newest,
    "all metadata, no data": lambda r: of_metadata(newest, oldest),
    "all data, no metadata": lambda r: of_metadata(oldest, newest),
    "all names, no bytes": lambda r: of_names(newest, oldest),
    "all bytes, no names": lambda r: of_names(oldest, newest),
    "any sector": lambda r: lambda file, values: r.choice(values),
    "most": lambda r: mostly(r, newest),
    "little": lambda r: mostly(r, oldest),
    "some of each file": by_file,
}

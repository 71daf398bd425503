# SPDX-License-Identifier: BSD-3-Clause
"""The files of verbs_model.py, and what must be in them.

A Base is a backing file that is no overlay, an Overlay a metadata file with
its image.  Each has content(), what its disk must be by the model, and
look(), which compares the files with that.
"""

import os
import subprocess
import time

from addcow_format import BACKING_AT, IMAGE_AT, Metadata, SECTOR


def read(path):
    with open(path, "rb") as f:
        return f.read()


def nr_sectors(nr_bytes):
    return (nr_bytes + SECTOR - 1) // SECTOR


def rounded_up(nr_bytes):
    return nr_sectors(nr_bytes) * SECTOR


def padded(data, size):
    """DATA with zeroes behind it, or cut, so that it is SIZE bytes."""
    return bytes(data[:size]) + bytes(max(0, size - len(data)))


def runs(bits):
    """Where BITS, a byte each, are set: slices of bytes of a disk."""
    end = 0
    while True:
        start = bits.find(b"\1", end)
        if start < 0:
            return
        end = bits.find(b"\0", start)
        if end < 0:
            end = len(bits)
        yield slice(start * SECTOR, end * SECTOR)


def sector(data, s):
    return data[s * SECTOR:(s + 1) * SECTOR]


def differing(a, b):
    """A bit for each sector, in a byte: are disks of one length other
    there?"""
    return bytearray(sector(a, s) != sector(b, s)
                     for s in range(nr_sectors(len(a))))


def either(got, before, after, what):
    """Every byte of GOT is that of BEFORE or of AFTER: a crash can leave the
    half of a sector."""
    for s in range(nr_sectors(len(got))):
        g, b, a = sector(got, s), sector(before, s), sector(after, s)
        assert g in (b, a) or all(x in y for x, y in zip(g, zip(b, a))), \
            "%s: sector %d is neither the old nor the new one" % (what, s)


class Base:
    """Kinds: raw, qcow2; nbd, a raw file that is served at URI."""

    def __init__(self, path, kind, uri=None, read_only=False):
        self.path, self.kind, self.uri = path, kind, uri
        self.read_only = read_only
        self.format = "qcow2" if kind == "qcow2" else "raw"
        self.must_have_format = kind == "qcow2"
        self.backing = None
        self.disk = self.real()

    def __str__(self):
        return self.uri or self.path

    def name(self, folder, absolute):
        if self.uri:
            return self.uri
        return os.path.abspath(self.path) if absolute else \
            os.path.relpath(self.path, folder or ".")

    def chain(self):
        return [self]

    def length(self):
        return len(self.disk)

    def content(self):
        return self.disk

    def real(self):
        """What the disk is."""
        self.file = read(self.path)
        return self.converted() if self.kind == "qcow2" else self.file

    def converted(self):
        copy = self.path + ".copy"
        command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw",
                   self.path, copy]
        # After a crash of who writes it, qemu-nbd goes a bit later.
        end = time.monotonic() + 60
        while subprocess.run(command, capture_output=True).returncode:
            assert time.monotonic() < end, " ".join(command) + " fails"
            time.sleep(0.05)
        self.file = read(self.path)
        disk = read(copy)
        os.unlink(copy)
        return disk

    def look(self):
        if read(self.path) != self.file:
            assert self.real() == self.disk, "%s is not the model" % self

    def adopt(self, before, after):
        """After a crash, take for the model what is there."""
        self.disk = self.real()
        n = len(self.disk)
        assert n in (len(before), len(after)), \
            "%s has %d bytes" % (self, n)
        either(self.disk, padded(before, n), padded(after, n), self)


class Overlay:
    format = "add-cow"
    must_have_format = True
    kind = "add-cow"

    def __init__(self, path, image, backing, size):
        self.path = path
        self.folder = os.path.dirname(path)
        self.image = os.path.normpath(os.path.join(self.folder, image))
        self.image_name = image
        self.size = size
        self.own = bytearray(size)
        self.bits = bytearray(size // SECTOR)
        self.set_backing(backing, "", None)

    def set_backing(self, backing, name, fmt):
        self.backing = backing
        self.backing_name = name
        self.backing_format = fmt

    def __str__(self):
        return self.path

    def name(self, folder, absolute):
        return os.path.abspath(self.path) if absolute else \
            os.path.relpath(self.path, folder or ".")

    def chain(self):
        return [self] + (self.backing.chain() if self.backing else [])

    def length(self):
        return self.size

    def is_complete(self):
        return 0 not in self.bits

    def below(self, backing=None):
        """The part of the backing file that the disk covers."""
        return padded((backing or self.backing).content(), self.size) \
            if backing or self.backing else bytes(self.size)

    def content(self):
        disk = bytearray(self.below())
        for part in runs(self.bits):
            disk[part] = self.own[part]
        return bytes(disk)

    def resize(self, size):
        """What is allocated is to be adopted then."""
        self.size = size
        self.bits = bytearray(size // SECTOR)

    def header(self):
        return Metadata.decode(read(self.path))

    def real_bits(self):
        return bytearray(self.header().allocated())

    def look(self):
        m = self.header()
        assert m.size == self.size, "%s: size %d" % (self, m.size)
        assert m.backing.decode() == self.backing_name, \
            "%s: backing file %s" % (self, m.backing)
        assert m.image.decode() == self.image_name, \
            "%s: image %s" % (self, m.image)
        hint = self.hints()[0].get("format")
        assert hint == self.backing_format, \
            "%s: format %s" % (self, hint)
        bits = bytearray(m.allocated())
        assert bits == self.bits, "%s: bits differ: %s" % (
            self, [(s, new) for s, (old, new) in
                   enumerate(zip(self.bits, bits)) if old != new][:10])
        self.look_at_image()

    def look_at_image(self):
        image = read(self.image)
        assert len(image) >= self.size, "%s is too short" % self.image
        for part in runs(self.bits):
            assert image[part] == self.own[part], \
                "%s is not the model in %s" % (self.image, part)

    def adopt(self, disk, must=None, may=None):
        """Take for the model which bits are set.  The disk is DISK then; MUST
        are set, and MAY, a superset, can be."""
        bits = self.real_bits()
        n = len(bits)
        assert self.header().size == self.size == len(disk)
        if must is not None:
            assert all(b or not m for b, m in zip(bits, must)), \
                "%s: a bit was lost" % self
        if may is not None:
            assert all(m or not b for b, m in zip(bits, may)), \
                "%s: bits are set: %s" % (
                    self, [s for s in range(n) if bits[s] and not may[s]][:10])
        self.bits = bits
        self.own = bytearray(padded(read(self.image), self.size))
        got = self.content()
        assert got == disk, "%s: other content in sectors %s" % (
            self, [s for s in range(n) if sector(got, s) != sector(disk, s)]
            [:10])

    def field(self):
        """What follows the name of the backing file in its field."""
        field = read(self.path)[BACKING_AT:IMAGE_AT]
        return field[field.index(b"\0") + 1:]

    def hints(self):
        """{key: value}, and whether anything of that is broken."""
        found, broken = {}, False
        field = self.field()
        while field and field[0]:
            end = field.find(b"\0")
            key, equals, value = field[:max(end, 0)].partition(b"=")
            if not equals or key.decode("latin-1") in found:
                broken = True
            else:
                found[key.decode("latin-1")] = value.decode("latin-1")
            field = field[end + 1:] if end >= 0 else b""
        return found, broken or any(field)

    def changed(self):
        """What differs from the hints: size, mtime."""
        if not self.backing or self.backing.kind == "nbd" or \
                not os.path.exists(self.backing.path) or \
                not os.path.exists(self.path):
            return []
        hints = self.hints()[0]
        st = os.stat(self.backing.path)
        now = {"size": st.st_size, "mtime": st.st_mtime_ns}
        return [key for key in now
                if key in hints and int(hints[key]) != now[key]]

    def strays(self):
        """Is anything set past the last bit?"""
        m = self.header()
        return any(m.after) or \
            bool(m.bitmap and m.bitmap[-1] & m.stray_mask())


def expected_row(node, s, depth=0):
    """What a map must say of sector S: its depth, whether it is present and
    whether it is zero; None if that may be either."""
    if isinstance(node, Base):
        return depth, None if node.kind == "qcow2" else True, None
    if node.bits[s]:
        return depth, True, None
    if node.backing is None or s * SECTOR >= node.backing.length():
        return depth, False, True
    return expected_row(node.backing, s, depth + 1)


def look_at_map(overlay, rows):
    """Are ROWS, from JSON, the map of OVERLAY?"""
    disk, at, last = overlay.content(), 0, None
    chain = overlay.chain()
    files = [None if n.kind in ("qcow2", "nbd") else
             read(n.image if isinstance(n, Overlay) else n.path)
             for n in chain]
    expected = [expected_row(overlay, s) for s in range(len(overlay.bits))]
    for row in rows:
        assert row["start"] == at and row["length"] > 0, \
            "map: %s does not begin at %d" % (row, at)
        at += row["length"]
        look_at_row(row, disk, expected, files)
        assert not last or not same_row(last, row), \
            "map: %s and %s are one" % (last, row)
        last = row
    assert at == overlay.size, "map ends at %d" % at


def look_at_row(row, disk, expected, files):
    start, end = row["start"], row["start"] + row["length"]
    for s in range(start // SECTOR, nr_sectors(end)):
        # Only a base that ends within a sector is cut finer.
        fields = row["depth"], row["present"], row["zero"]
        assert s * SECTOR < start or all(
            want is None or want == got
            for want, got in zip(expected[s], fields)), \
            "map: %s, sector %d must be %s" % (row, s, expected[s])
    assert row["data"] and row["present"] or row["zero"], "map: %s" % row
    if row["zero"]:
        assert not any(disk[start:end]), "map: %s is no zeroes" % row
    file = files[row["depth"]]
    if "offset" in row and row["data"] and file is not None:
        got = padded(file[row["offset"]:], row["length"])
        assert got == disk[start:end], "map: %s is not there" % row
    assert row["zero"] or file is None or "offset" in row, \
        "map: %s has no offset" % row


def same_row(a, b):
    fields = "depth", "present", "zero", "data"
    if any(a[f] != b[f] for f in fields) or ("offset" in a) != ("offset" in b):
        return False
    return "offset" not in a or a["offset"] + a["length"] == b["offset"]


def look_at_table(overlay, rows, text):
    """Is TEXT, for people, what of ROWS is data?"""
    head, *lines = text.splitlines()
    assert head.split() == ["Offset", "Length", "Mapped", "to", "File"], head
    rows = [row for row in rows if row["data"] and not row["zero"]]
    for row, line in zip(rows, lines, strict=True):
        start, length, offset, name = line.split(None, 3)
        assert int(start, 0) == row["start"], line
        assert int(length, 0) == row["length"], line
        assert offset == "-" if "offset" not in row else \
            int(offset, 0) == row["offset"], line
        node = overlay.chain()[row["depth"]]
        assert name == node.uri if node.kind == "nbd" else os.path.samefile(
            name, node.image if isinstance(node, Overlay) else node.path), line

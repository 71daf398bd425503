# SPDX-License-Identifier: BSD-3-Clause
"""Overlays over raw backing files, written and read as files: no server, and
nothing of lib/ is needed for it."""

import os
import random

from addcow_format import BITMAP_AT, SECTOR, Metadata


def read(name):
    with open(name, "rb") as f:
        return f.read()


def write(name, data):
    with open(name, "wb") as f:
        f.write(data)


def fill(name, disk, seed, kinds=("data", "data", "zeroes", "hole"),
         image="vm.raw", most=40):
    """Allocate sectors of the overlay NAME, with data, zeroes that are
    written, and what is a hole already, in its image and in the bytearray
    DISK.  Returns the sectors."""
    r = random.Random(seed)
    data = bytearray(read(name))
    m = Metadata.decode(bytes(data))
    with open(image, "r+b") as f:
        s = r.randrange(min(most, m.sectors()))
        while s < m.sectors():
            n = min(r.randrange(1, most), m.sectors() - s)
            what = r.choice(kinds)
            piece = r.randbytes(n * SECTOR) if what == "data" else \
                bytes(n * SECTOR)
            if what != "hole":
                f.seek(s * SECTOR)
                f.write(piece)
            disk[s * SECTOR:(s + n) * SECTOR] = piece
            for i in range(s, s + n):
                m.set(i)
            s += n + r.randrange(most)
    data[BITMAP_AT:BITMAP_AT + len(m.bitmap)] = m.bitmap
    write(name, data)
    return [i for i, set_ in enumerate(m.allocated()) if set_]


def content(name, base, image="vm.raw"):
    """What the disk is over the bytes BASE."""
    m = Metadata.decode(read(name))
    out = bytearray(base[:m.size])
    out += bytes(m.size - len(out))
    bits = m.allocated()
    with open(image, "rb") as f:
        assert os.fstat(f.fileno()).st_size >= m.size
        for s in (i for i, set_ in enumerate(bits) if set_):
            f.seek(s * SECTOR)
            out[s * SECTOR:(s + 1) * SECTOR] = f.read(SECTOR)
    return bytes(out)


def data_blocks(name):
    """The blocks of 4096 bytes of a file that are no holes."""
    blocks = set()
    with open(name, "rb") as f:
        end = os.fstat(f.fileno()).st_size
        at = 0
        while at < end:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            hole = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            blocks.update(range(at // 4096, -(-hole // 4096)))
            at = hole
    return blocks

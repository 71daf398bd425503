# SPDX-License-Identifier: BSD-3-Clause
"""Add-cow metadata files, version 1, written and read by themselves.

This was written from the description of the format and shares nothing
with lib/: what the two think of a file is compared.
"""

MAGIC = b"ADD_COW\xff"
VERSION_AT = 8
BACKING_AT = 12
IMAGE_AT = 12 + 1024
SIZE_AT = 12 + 1024 + 1024
BITMAP_AT = 12 + 1024 + 1024 + 8
SECTOR = 512


def bitmap_length(size):
    """One bit for each 512 bytes, in whole bytes."""
    sectors = (size + 511) // 512
    return (sectors + 7) // 8


class Metadata:
    def __init__(self, size, backing=b"", image=b"", bitmap=b"", after=b""):
        self.size = size
        self.backing = backing
        self.image = image
        # Shorter than it has to be: the rest is zeroes.
        self.bitmap = bytearray(bitmap)
        self.bitmap += bytes(bitmap_length(size) - len(self.bitmap))
        self.after = after

    def encode(self):
        out = bytearray()
        out += MAGIC
        out += (1).to_bytes(4, "big")
        for name in self.backing, self.image:
            assert len(name) <= 1023 and b"\0" not in name
            out += name + bytes(1024 - len(name))
        out += self.size.to_bytes(8, "big")
        assert len(out) == BITMAP_AT
        return bytes(out) + bytes(self.bitmap) + self.after

    @classmethod
    def decode(cls, data):
        """Read what is a good file; anything else is an AssertionError."""
        assert data[:8] == MAGIC
        assert int.from_bytes(data[8:12], "big") == 1
        names = data[12:1036], data[1036:2060]
        assert all(b"\0" in name for name in names)
        backing, image = (name[: name.index(b"\0")] for name in names)
        size = int.from_bytes(data[2060:2068], "big")
        assert size < 2**63 and size % 512 == 0
        end = 2068 + bitmap_length(size)
        assert len(data) >= end
        return cls(size, backing, image, data[2068:end], data[end:])

    def sectors(self):
        return self.size // 512

    def get(self, sector):
        return bool(self.bitmap[sector // 8] & (1 << (sector % 8)))

    def set(self, sector):
        self.bitmap[sector // 8] |= 1 << (sector % 8)

    def allocated(self):
        return [self.get(s) for s in range(self.sectors())]

    def stray_mask(self):
        """Of the last byte of the bitmap, the bits that are no sector's."""
        used = self.sectors() % 8
        return 0 if used == 0 else 0xFF & ~((1 << used) - 1)

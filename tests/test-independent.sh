#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Files of a format that somebody else writes and reads (addcow_format.py):
# of all kinds of sizes, bitmaps and backing files, served read-only and
# then written to.  The disk is what the files say, and after the writes the
# files say what was written, to the bit.

source ./functions.sh
set -e
set -x

requires_nbdsh
source "$abs_srcdir/bad-input.sh"

cat > "$tmp/independent.py" <<'PY'
import os
import random
import signal
import subprocess
import sys
import time

import nbd
from addcow_format import *

seed, command = int(sys.argv[1]), sys.argv[2:]
print("seed", seed)
rng = random.Random(seed)


class Server:
    def __init__(self, *args):
        for name in "sock", "pid":
            if os.path.exists(name):
                os.unlink(name)
        self.process = subprocess.Popen(
            [*command, "-f", "-U", "sock", "-P", "pid"]
            + ["--filter=" + os.environ["addcow"], "file", *args]
        )
        while not os.path.exists("pid") or os.path.getsize("pid") == 0:
            assert self.process.poll() is None
            time.sleep(0.005)

    def __enter__(self):
        self.h = nbd.NBD()
        self.h.set_strict_mode(0)
        self.h.connect_uri("nbd+unix:///?socket=sock")
        return self.h

    def __exit__(self, *exception):
        self.h.shutdown()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait() == 0


def contents(name):
    with open(name, "rb") as f:
        return f.read()


def put(name, data):
    with open(name, "wb") as f:
        f.write(data)


# Bitmaps, with whatever the bits past the last sector happen to be.
bitmaps = {
    "zeroes": lambda n: bytes(n),
    "ones": lambda n: b"\xff" * n,
    "even": lambda n: b"\x55" * n,
    "odd": lambda n: b"\xaa" * n,
    "bytes": lambda n: (b"\x00\xff" * n)[:n],
    "random": lambda n: rng.randbytes(n),
    "sparse": lambda n: bytes(
        rng.choice([0] * 50 + [1, 0x80, 0xFF]) for _ in range(n)
    ),
    "first": lambda n: b"\x01" + bytes(n - 1),
    "last": lambda n: bytes(n - 1) + b"\x80",
    "but-last": lambda n: b"\xff" * (n - 1) + b"\x7f",
    "but-first": lambda n: b"\xfe" + b"\xff" * (n - 1),
}
backings = {
    "none": lambda size: None,
    "empty": lambda size: 0,
    "same": lambda size: size,
    "byte": lambda size: 1,
    "shorter": lambda size: size // 2 & ~511,
    "less one": lambda size: size - 1,
    "odd": lambda size: rng.randrange(size),
    "longer": lambda size: size + 100000,
    "one more": lambda size: size + 1,
}


def read_all(h, size):
    step = 8 << 20
    return b"".join(
        bytes(h.pread(min(step, size - at), at))
        for at in range(0, size, step)
    )


def some_range(size):
    """Anywhere, with a liking for sectors' and pages' ends."""
    count = min(size, rng.choice([1, 511, 512, 513, 4096, 65536]))
    if rng.random() < 0.3:
        count = rng.randint(1, min(size, 1 << 20))
    at = rng.randint(0, size - count)
    edges = [0, size - count]
    edges += [e * 512 for e in (16224, 48992, 81760) if e * 512 < size]
    if rng.random() < 0.5:
        at = rng.choice(edges) - rng.randint(0, count)
    if rng.random() < 0.5:
        at &= ~511
    return max(0, min(at, size - count)), count


def case(size, bitmap_kind, backing_kind, after):
    print(size, bitmap_kind, backing_kind, len(after), flush=True)
    bits = bitmaps[bitmap_kind](bitmap_length(size))
    length = backings[backing_kind](size)
    meta = Metadata(
        size, b"" if length is None else b"base.img", b"vm.raw", bits, after
    )
    before = bytearray(meta.encode())
    # What follows a name in its field is no name.
    for at, name in (BACKING_AT, meta.backing), (IMAGE_AT, meta.image):
        rest = 1024 - len(name) - 1
        if rng.random() < 0.5:
            before[at + 1024 - rest : at + 1024] = rng.randbytes(rest)
    before = bytes(before)
    image = rng.randbytes(size)
    backing = rng.randbytes(length or 0)
    put("vm.add-cow", before)
    put("vm.raw", image)
    put("base.img", backing)

    # What the disk is, sector by sector.
    padded = backing[:size] + bytes(max(0, size - len(backing)))
    disk = bytearray(padded)
    allocated = meta.allocated()
    for s, bit in enumerate(allocated):
        if bit:
            disk[s * 512 : s * 512 + 512] = image[s * 512 : s * 512 + 512]

    with Server("-r", "addcow=vm.add-cow") as h:
        assert h.is_read_only()
        assert h.get_size() == size
        assert read_all(h, size) == disk
        # In pieces that are no sectors.
        for _ in range(10):
            at, count = some_range(size)
            assert h.pread(count, at) == disk[at : at + count]
    assert contents("vm.add-cow") == before
    assert contents("vm.raw") == image

    with Server("addcow=vm.add-cow") as h:
        assert not h.is_read_only()
        assert read_all(h, size) == disk
        h.flush()
        assert contents("vm.add-cow") == before
        for _ in range(30):
            at, count = some_range(size)
            end = at + count
            kind = rng.choice(["write", "write", "zero", "trim"])
            if kind == "write":
                data = rng.randbytes(count)
                h.pwrite(data, at)
            else:
                data = bytes(count)
            if kind == "zero":
                h.zero(count, at, rng.choice([0, nbd.CMD_FLAG_NO_HOLE]))
            if kind == "trim":
                # Only where it is sure what it does.
                at, end = at & ~511, (end + 511) & ~511
                if any(allocated[at // 512 : end // 512]):
                    continue
                data = bytes(end - at)
                h.trim(end - at, at)
            disk[at:end] = data
            for s in range(at // 512, (end + 511) // 512):
                allocated[s] = True
        assert read_all(h, size) == disk

    now = contents("vm.add-cow")
    assert len(now) == len(before)
    assert now[:BITMAP_AT] == before[:BITMAP_AT]
    got = Metadata.decode(now)
    wrong = [s for s, b in enumerate(got.allocated()) if b != allocated[s]]
    assert not wrong, wrong[:20]
    # What means nothing is as it was, or is zero.
    mask = got.stray_mask()
    if mask:
        assert got.bitmap[-1] & mask & ~bits[-1] == 0
    for old, new in zip(after, got.after):
        assert new == old or new == 0
    # The base is untouched, and the image has what the bits say.
    assert contents("base.img") == backing
    image = contents("vm.raw")
    assert len(image) == size
    for s, bit in enumerate(allocated):
        if bit:
            at = s * 512
            assert image[at : at + 512] == disk[at : at + 512], s

    # And that is a disk which the next server takes for the same.
    with Server("-r", "addcow=vm.add-cow") as h:
        assert read_all(h, size) == disk


def far():
    """A disk of more than 8 GiB, of which nothing but 20 MiB around there
    is in any file."""
    size = 9 << 30
    middle = (512 * 4096 - BITMAP_AT) * 8
    first, n = middle - 20000, 40000
    bits = rng.randbytes(n // 8)
    image, backing = rng.randbytes(n * 512), rng.randbytes(n * 512)
    for name, at, data, length in (
        ("vm.add-cow", 0, Metadata(0, b"base.img", b"vm.raw").encode(), 0),
        ("vm.add-cow", SIZE_AT, size.to_bytes(8, "big"), 0),
        ("vm.add-cow", BITMAP_AT + first // 8, bits,
         BITMAP_AT + bitmap_length(size)),
        ("vm.raw", first * 512, image, size),
        ("base.img", first * 512, backing, size),
    ):
        with open(name, "wb" if at == 0 or length == size else "r+b") as f:
            f.seek(at)
            f.write(data)
            if length:
                f.truncate(length)
    disk = bytearray(backing)
    for s in range(n):
        if bits[s // 8] >> s % 8 & 1:
            disk[s * 512 : s * 512 + 512] = image[s * 512 : s * 512 + 512]

    # Entered from below and from above, and in the middle.
    for order in [0, 1], [1, 0], [0.45, 0], [0.55, 0]:
        with Server("addcow=vm.add-cow") as h:
            for where in order:
                at = int(where * (n - 1)) * 512
                assert h.pread(512, first * 512 + at) == disk[at : at + 512]
            assert h.pread(len(disk), first * 512) == disk
            at = rng.randrange(n) * 512
            data = rng.randbytes(512)
            h.pwrite(data, first * 512 + at)
            disk[at : at + 512] = data
            bits = bytearray(bits)
            bits[at // 4096] |= 1 << at // 512 % 8
        with open("vm.add-cow", "rb") as f:
            f.seek(BITMAP_AT + first // 8)
            assert f.read(len(bits)) == bits


afters = [b"", b"\xff", b"\xff" * 100, bytes(5000), b"\xaa" * 5000]


def pick(n, sizes):
    """Cases of SIZES, in which each kind comes up at least every so often."""
    kinds = [list(bitmaps), list(backings), afters]
    for k in kinds:
        rng.shuffle(k)
    for i in range(n):
        yield sizes[i % len(sizes)] * 512, *(k[i % len(k)] for k in kinds)


small = [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 4095, 4096, 4097]
first_page = [16223, 16224, 16225]
more_pages = [48991, 48992, 48993, 81761]
for sizes, n in (small, 28), (first_page, 6), (more_pages, 4):
    if os.environ.get("ADDCOW_VALGRIND"):
        n = n // 4 + 1
    for c in pick(n, sizes):
        case(*c)
far()
PY

PYTHONPATH=$abs_srcdir /usr/bin/python3 "$tmp/independent.py" \
    "${ADDCOW_SEED:-$RANDOM}" env ${_preload:+LD_PRELOAD="$_preload"} \
    "${VG[@]}" "$(type -P nbdkit)"

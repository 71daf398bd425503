# SPDX-License-Identifier: BSD-3-Clause
"""addcow-img check on metadata files at random, against what is wrong with
them by the description of the format.

check_model.py SEED COUNT COMMAND...: COMMAND is addcow-img, in a folder with
base.img and vm.raw.  Whatever a file has, the command must end by itself,
change nothing without -r, find what is wrong with it, and with -r make of it
just what it is to be.
"""

import json
import os
import random
import re
import subprocess
import sys

from addcow_format import (
    BACKING_AT, BITMAP_AT, IMAGE_AT, MAGIC, Metadata, SECTOR, SIZE_AT,
    bitmap_length,
)

seed, count, command = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
rng = random.Random(seed)
SIZE = os.stat("vm.raw").st_size
FILE = "x.add-cow"

KNOWN = {
    b"format": rb"[A-Za-z0-9_-]{1,31}\Z",
    b"size": rb"[0-9]+\Z",
    b"mtime": rb"-?[0-9]+\Z",
}


def valid(key, value):
    if not re.match(KNOWN[key], value):
        return False
    return key == b"format" or -(2**63) <= int(value) < 2**63


def check_hints(field):
    """The keywords, and the field as it is to be."""
    end = field.index(b"\0") + 1
    name, rest = field[:end], field[end:]
    if name == b"\0":
        return set(), field
    found, kept, seen = set(), [], set()
    while rest and rest[0] != 0:
        string, nul, rest = rest.partition(b"\0")
        if not nul:
            found.add("hint-no-end")
            break
        key, equals, value = string.partition(b"=")
        if not equals or not key:
            found.add("hint-no-key")
        elif key in KNOWN and not valid(key, value):
            found.add("hint-value")
        elif key in KNOWN and key in seen:
            found.add("hint-twice")
        else:
            kept.append(string + b"\0")
            seen.add(key)
    if rest.strip(b"\0"):
        found.add("hint-trailing")
    mended = name + b"".join(kept)
    return found, mended + bytes(1024 - len(mended))


def expect(data):
    """What is wrong with the file itself, and how it is mended; or None and
    the exit status."""
    if data[:8] != MAGIC:
        return None, 63
    if len(data) >= 12 and data[8:12] != b"\0\0\0\1":
        return None, 63
    if len(data) < BITMAP_AT:
        return {"header-truncated"}, data
    backing, image = data[BACKING_AT:IMAGE_AT], data[IMAGE_AT:SIZE_AT]
    size = int.from_bytes(data[SIZE_AT:BITMAP_AT], "big")
    found = set()
    if b"\0" not in backing:
        found.add("backing-name")
    if b"\0" not in image:
        found.add("image-name")
    if size >= 2**63 or size % SECTOR:
        found.add("size")
    if found:
        return found, data
    hints, backing = check_hints(backing)
    end = BITMAP_AT + bitmap_length(size)
    if len(data) < end:
        found.add("bitmap-truncated")
        # What is too long to be made is not compared.
        bits = data[BITMAP_AT:] + bytes(min(end - len(data), 1 << 24))
    else:
        m = Metadata(size, bitmap=data[BITMAP_AT:end])
        if size and m.bitmap[-1] & m.stray_mask():
            found.add("stray-bits")
            m.bitmap[-1] &= ~m.stray_mask()
        bits = bytes(m.bitmap)
        if data[end:].strip(b"\0"):
            found.add("stray-bytes")
        elif not found:
            bits += data[end:]
    mended = data[:BACKING_AT] + backing + data[IMAGE_AT:BITMAP_AT] + bits
    return found | hints, mended


def some_hint():
    key = rng.choice([b"format", b"size", b"mtime", b"x", b"", b"Size", b"a-b"])
    value = rng.choice([
        b"raw", b"", b"0", b"-1", b"%d" % rng.randrange(-(2**64), 2**64),
        b"qcow 2", b"1 ", b"+1", bytes(rng.choices(range(1, 256), k=5)),
        b"r" * rng.randrange(40),
    ])
    return key + rng.choice([b"=", b"=", b"=", b"=", b"", b":"]) + value


def some_file():
    sectors = rng.choice([0, 1, 7, 8, 9, rng.randrange(SIZE // SECTOR)])
    name = rng.choice([b"base.img", b"", b"./" * rng.randrange(500) +
                       b"base.img"])
    m = Metadata(sectors * SECTOR, name, rng.choice([b"vm.raw", b""]))
    for s in range(rng.randrange(20) if sectors else 0):
        m.set(rng.randrange(sectors))
    data = bytearray(m.encode())
    if rng.random() < 0.6:
        strings = b"\0".join(some_hint() for _ in range(rng.randrange(1, 6)))
        strings += rng.choice([b"", b"\0", b"\0\0", b"\0\0x",
                               b"\0" + b"y" * 999])
        at = BACKING_AT + len(name) + 1
        end = min(at + len(strings), IMAGE_AT)
        data[at:end] = strings[:end - at]
    if rng.random() < 0.2 and sectors % 8:
        data[-1] |= rng.randrange(256)
    if rng.random() < 0.3:
        data += rng.choice([bytes(70000), b"\1", bytes(5000) + b"\1" +
                            bytes(3)])
    if rng.random() < 0.3:
        del data[rng.choice([rng.randrange(len(data)), BITMAP_AT +
                             rng.randrange(20)]):]
    for _ in range(rng.choice([0, 0, 0, 1, 1, 10, 1000])):
        # Anywhere, or in the fields of the header.
        at = rng.choice([rng.randrange(2100), rng.randrange(12),
                         rng.randrange(SIZE_AT, BITMAP_AT)])
        if at < len(data):
            data[at] = rng.choice([0, 1, 255, rng.randrange(256)])
    return bytes(data)


def read():
    with open(FILE, "rb") as f:
        return f.read()


def run(*args):
    """The exit status, and the problems of the file itself that were found,
    each with whether it was mended."""
    r = subprocess.run(command + ["check", "--output=json", *args, FILE],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE)
    if r.returncode in (1, 63):
        assert not r.stdout and r.stderr.count(b"\n") == 1, r
        return r.returncode, None
    assert r.returncode in (0, 2, 3) and not r.stderr, r
    problems = json.loads(r.stdout)["problems"]
    left = {p["severity"] for p in problems if not p["fixed"]}
    assert r.returncode == (2 if "corruption" in left else
                            3 if "leak" in left else 0), r
    found = {p["what"]: p["fixed"] for p in problems
             if not re.match("image-[^n]|backing-[^n]", p["what"])}
    return r.returncode, found


def others():
    return [(name, os.stat(name).st_mtime_ns, os.stat(name).st_size)
            for name in sorted(os.listdir(".")) if name != FILE]


def check(data):
    want, mended = expect(data)
    with open(FILE, "wb") as f:
        f.write(data)
    before = os.stat(FILE)
    status, found = run()
    after = os.stat(FILE)
    assert read() == data and before.st_mtime_ns == after.st_mtime_ns
    if want is None:
        assert status == mended, (status, mended)
        return
    # What the header says of other files may be of no use at all.
    if status != 1:
        assert set(found) == want, (found, want)
        assert not any(found.values())
    status, found = run("-r")
    if status == 1:
        return
    assert set(found) == want, (found, want)
    hints = {what for what in want if what.startswith("hint-")}
    if any(not found[what] for what in hints):
        # Only where they lie in more than one sector.
        assert not any(found[what] for what in hints)
        assert data[BACKING_AT:512] != mended[BACKING_AT:512] or \
            data[512:1024] != mended[512:1024]
        mended = mended[:BACKING_AT] + data[BACKING_AT:IMAGE_AT] + \
            mended[IMAGE_AT:]
    with open(FILE, "rb") as f:
        assert f.read(len(mended)) == mended
        if len(mended) < BITMAP_AT + (1 << 24):
            assert not f.read(1)
    status, found = run("-r")
    assert not any(found.values()), found


before = others()
for i in range(count):
    data = some_file()
    try:
        check(data)
    except AssertionError:
        with open(FILE, "wb") as f:
            f.write(data)
        print("file %d of seed %d" % (i, seed), flush=True)
        raise
assert others() == before

# SPDX-License-Identifier: BSD-3-Clause
"""What clients of the tests of filling share."""

import os
import time

from nbd_client import *

SECTOR = 512
PATIENCE = int(os.environ.get("patience", 60))


def wait_for(condition):
    """Until it is true, but not for ever."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def touch(name):
    open(name, "w").close()


def sectors(*ranges):
    """Those that the ranges (offset, count) touch."""
    return sorted({s for at, n in ranges
                   for s in range(at // SECTOR, (at + n - 1) // SECTOR + 1)})


def bits_become(h, want, metadata="vm.add-cow"):
    """Wait until WANT are the sectors that are allocated, and no others."""
    def there():
        h.flush()
        return set(want) <= set(bits(metadata))
    wait_for(there)
    got = bits(metadata)
    assert got == sorted(want), sorted(set(got) ^ set(want))[:20]


def data(name):
    """[(offset, end), ...] where the file has data."""
    result = []
    with open(name, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        at = 0
        while at < size:
            try:
                start = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
            result.append((start, at))
    return result


def hole(name, at, count):
    """There are no data in the range."""
    return all(end <= at or start >= at + count for start, end in data(name))


def file_bytes(name, size=None):
    """Its first SIZE bytes, with zeroes where it is shorter."""
    with open(name, "rb") as f:
        content = f.read()
    if size is not None:
        content = (content + bytes(size))[:size]
    return content


def check_image(disk, base, metadata="vm.add-cow", image="vm.raw"):
    """What the files of a disk that is not served make together is DISK."""
    raw = file_bytes(image, len(disk))
    base = (bytes(base) + bytes(len(disk)))[:len(disk)]
    allocated = set(bits(metadata))
    for sector in range(len(disk) // SECTOR):
        at = slice(sector * SECTOR, (sector + 1) * SECTOR)
        there = raw if sector in allocated else base
        assert there[at] == disk[at], (sector, sector in allocated)


# --- Requests that wait. ----------------------------------------------------

def start(h, command):
    """Send COMMAND, a function of H.aio_*; the server has it when this
    returns."""
    cookie = command(h)
    while h.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
        h.poll(-1)
    return cookie


def finished(h, cookies):
    """Are all of COOKIES done?  Those that are go from it."""
    h.poll(0)
    cookies[:] = [c for c in cookies if not h.aio_command_completed(c)]
    return not cookies


def finish(h, cookie):
    cookies = [cookie]
    wait_for(lambda: finished(h, cookies))


def buffer(content):
    return nbd.Buffer.from_bytearray(bytearray(content))


def held():
    """The requests that wait in gate.sh: [(offset, count), ...]."""
    try:
        with open("held") as f:
            lines = f.read().splitlines()
    except FileNotFoundError:
        return []
    return [tuple(map(int, line.split())) for line in lines]

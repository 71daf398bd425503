# SPDX-License-Identifier: BSD-3-Clause
"""What clients of the tests with backing servers share."""

import errno
import random
import threading

import nbd

DATA, HOLE = 0, nbd.STATE_HOLE | nbd.STATE_ZERO
PIECE = 1 << 20


def connect(uri):
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    return h


def content(h):
    size = h.get_size()
    return b"".join(h.pread(min(PIECE, size - at), at)
                    for at in range(0, size, PIECE))


def extents(h, count=None, offset=0):
    """[(length, type), ...], equal neighbours joined.  All are data where
    the server does not tell."""
    end = h.get_size() if count is None else offset + count
    if not h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION):
        return [(end - offset, DATA)]
    all_of_them = []
    while offset < end:
        got = []

        def add(context, start, entries, err):
            assert start == offset
            got.extend(zip(entries[::2], entries[1::2]))
            return 0
        h.block_status(end - offset, offset, add)
        assert got
        for n, kind in got:
            n = min(n, end - offset)
            offset += n
            if n and all_of_them and all_of_them[-1][1] == kind:
                all_of_them[-1] = (all_of_them[-1][0] + n, kind)
            elif n:
                all_of_them.append((n, kind))
    return all_of_them


def resized(what, size, skip=0):
    """The extents WHAT without SKIP bytes, cut to SIZE or with a hole up to
    it."""
    result = []
    for n, kind in what + [(1 << 63, HOLE)]:
        skipped = min(n, skip)
        skip -= skipped
        n -= skipped
        n = min(n, size)
        size -= n
        if n and result and result[-1][1] == kind:
            result[-1] = (result[-1][0] + n, kind)
        elif n:
            result.append((n, kind))
    return result


def fails(number, operation):
    """OPERATION fails with this errno, or one of these."""
    numbers = number if isinstance(number, tuple) else (number,)
    try:
        operation()
    except nbd.Error as ex:
        assert ex.errnum in numbers, ex
        return
    raise AssertionError("did not fail with " +
                         ", ".join(errno.errorcode[n] for n in numbers))


def bits(metadata):
    """The sectors that are allocated."""
    with open(metadata, "rb") as f:
        b = f.read()[2068:]
    return [n for n in range(len(b) * 8) if b[n // 8] >> n % 8 & 1]


def try_writes(h, disk, seed, count=200, longest=9000):
    """Write at random, on the model DISK too, and read all again."""
    r = random.Random(seed)
    for _ in range(count):
        length = min(int(2 ** r.uniform(0, 14)), longest, len(disk))
        offset = r.randrange(len(disk) - length + 1)
        kind = r.choice(["write", "write", "zero", "trim", "read"])
        if kind == "read":
            assert h.pread(length, offset) == disk[offset:offset + length]
            continue
        data = r.randbytes(length) if kind == "write" else bytes(length)
        if kind == "write":
            h.pwrite(data, offset)
        elif kind == "zero":
            h.zero(length, offset)
        else:
            h.trim(length, offset)
        disk[offset:offset + length] = data
    h.flush()
    assert content(h) == disk


def in_parallel(functions):
    """Run them, each in a thread; raise what one of them raised."""
    raised = []

    def run(function):
        try:
            function()
        except BaseException as ex:
            raised.append(ex)
    threads = [threading.Thread(target=run, args=(f,)) for f in functions]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if raised:
        raise raised[0]

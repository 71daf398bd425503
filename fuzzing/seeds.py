#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Write the inputs that fuzzing begins with to corpora/TARGET.

They reach the parts of each target, so that a fuzzer need not guess its way
there.  What is in the corpora under other names was found by one.
"""

import os

HERE = os.path.dirname(os.path.abspath(__file__))
KIB = 1024
MIB = 1024 * KIB


def write(target, name, *parts):
    folder = os.path.join(HERE, "corpora", target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(b"".join(parts))


def n(count, *values):
    """Numbers of so many bytes each."""
    return b"".join((v % (1 << count * 8)).to_bytes(count, "big") for v in values)


def field(name, *hints):
    """backing_file as it is on disk, without what is zero at its end."""
    out = name + b"\0" + b"".join(h + b"\0" for h in hints)
    return out + b"\0" if hints else out


def header(backing=b"", image=b"", size=MIB):
    return b"".join(
        (
            b"ADD_COW\xff",
            n(4, 1),
            backing.ljust(1024, b"\0"),
            image.ljust(1024, b"\0"),
            n(8, size),
        )
    )


# A header.

FULL = field(b"base.img", b"format=raw", b"size=65536", b"mtime=-1")


def header_parts(name, backing, image, size, *now):
    write(
        "fuzz-header",
        name,
        n(1, 1),
        n(2, len(backing)),
        backing,
        image + b"\0",
        n(8, size),
        *now,
    )


write("fuzz-header", "whole", n(1, 0), header(FULL, b"vm.raw"))
header_parts("hints", FULL, b"vm.raw", MIB, n(1, 1), n(8, 99), n(1, 1), n(8, -5))
header_parts("links", b"l", b"d/../f", 512)
header_parts("ways-out", b"../c/u/o", b"r/../x/e", 0)
header_parts("proc", b"p/etc/passwd", b"/proc/self/fd/0", 2**62)
header_parts("uri", field(b"nbd+unix://?socket=s", b"format=raw"), b"file:./a:b", 512)
header_parts(
    "hints-wrong",
    field(b"f", b"x", b"=y", b"size=-1", b"size=1", b"size=2", b"k=v", b"format=")
    + b"rest",
    b"",
    512,
)
header_parts("hints-no-end", b"f\0format=qcow2\0".ljust(1024, b"k"), b"v", 512)
header_parts("hints-longest", field(b"f", b"format=" + b"q" * 31), b"v", 512)
header_parts(
    "hints-full",
    field(b"f", b"size=1", b"k=" + b"v" * 1004, b"m="),
    b"v",
    512,
    n(1, 1),
    n(8, 2**62),
)
header_parts("name-long", b"n" * 1024, b"i" * 1024, 511)
header_parts("size-large", b"", b"", 2**63)

# Metadata files.


def disk(targets, name, flags, ops, backing, image, size, more=0, *pieces):
    for target in targets:
        write(
            target,
            name,
            n(1, flags),
            n(1, len(ops)),
            ops,
            n(1, 1),
            n(8, size),
            n(1, more),
            n(2, len(backing)),
            backing,
            image + b"\0",
            *pieces,
        )


def piece(offset, data):
    return n(8, offset) + n(1, len(data)) + data


def op(what, offset, count, value=1):
    return n(1, what) + n(8, offset) + n(4, count) + n(1, value)


READ, EXTENTS, CACHE, MAP, ALONE, WRITE, ZERO, TRIM, FILL, FLUSH = range(10)
BOTH = "fuzz-metadata", "fuzz-check"
ALL = (
    op(WRITE, 1000, 700, 8)
    + op(READ, 0, 9000)
    + op(FILL, 5000, 3000)
    + op(ZERO, 512, 4096)
    + op(TRIM, 20000, 5000)
    + op(FLUSH, 0, 0)
    + op(EXTENTS, 0, 65536)
    + op(MAP, 0, 0, 16)
    + op(READ, 0, 40000)
    + op(ALONE, 0, 0)
)
BITS = piece(0, b"\x0f\xff\x00\x81") + piece(12, b"\xff\x01")
disk(BOTH, "small", 4, ALL, FULL, b"vm.raw", 65536, 0, BITS)
disk(BOTH, "real", 0x84, ALL, FULL, b"vm.raw", 65536, 0, BITS)
disk(
    BOTH,
    "chain",
    0x80,
    ALL,
    field(b"mid.add-cow", b"format=add-cow"),
    b"vm.raw",
    100 * KIB,
    3,
    BITS,
)
disk(
    BOTH,
    "loop",
    0x80,
    b"",
    field(b"loop.add-cow", b"format=add-cow"),
    b"vm.raw",
    65536,
)
disk(BOTH, "read-only", 1, ALL, field(b"base.img"), b"", 3 * 512, 5, b"\xff" * 20)
for name, size in ("huge", 2**62), ("large", 2**46):
    disk(
        BOTH,
        name,
        0,
        op(EXTENTS, size // 2, 2**31)
        + op(WRITE, size - 5000, 5000)
        + op(READ, size // 4096, 20000)
        + op(MAP, 0, 0, 0),
        field(b"base.img"),
        b"vm.raw",
        size,
        0,
        piece(size // 2**17, b"\xaa\x55"),
    )
disk(BOTH, "odd", 2, ALL, b"", b"vm.raw", 1000 * 512 + 512, -1, piece(125, b"\xff"))
disk(BOTH, "truncated", 0, b"", FULL, b"vm.raw", MIB, -100)
disk(
    BOTH,
    "hints-wrong",
    4,
    b"",
    field(b"base.img", b"x", b"size=1", b"size=2", b"mtime=x") + b"rest",
    b"vm.raw",
    4096 + 512,
    9,
    piece(0, b"\xff" * 11),
)
disk(BOTH, "outside", 4, ALL, field(b"up/base.img"), b"root/etc/passwd", 65536)
disk(BOTH, "alone", 4, ALL, field(b"missing"), b"vm.raw", 16384, 0, piece(0, b"\xff" * 4))
for target in BOTH:
    write(target, "whole", n(1, 4, 0, 0), header(FULL, b"vm.raw", 8192), b"\x10\x80")

# An NBD server.

AT_ONCE, CLOSE = 16, 32
(BYTES, GREETING, REP, EXPORT, BLOCKS, META) = range(6)
(SIMPLE, SIMPLE_CUT, CHUNK, DATA, HOLE, STATUS, ERROR, NOTHING) = range(6, 14)
ACK, UNSUPPORTED = 1, 0x81
DONE = 1


def greet(flags=3):
    return n(1, GREETING) + n(2, flags)


def rep(kind, text=b"", more=0):
    return n(1, REP | more, len(text), kind) + text


def go(size, blocks=None, flags=0x403):
    out = n(1, EXPORT | AT_ONCE) + n(8, size) + n(2, flags)
    if blocks:
        out += n(1, BLOCKS | AT_ONCE) + n(4, *blocks)
    return out + rep(ACK)


def meta(context=7):
    return rep(ACK) + n(1, META | AT_ONCE) + n(4, context) + rep(ACK)


def data(count, offset=0, flags=DONE, more=0, kind=DATA):
    return n(1, kind | more, flags) + n(4, offset, count)


def status(*extents, context=7, flags=DONE):
    out = n(1, STATUS, flags) + n(4, context) + n(1, len(extents))
    return out + b"".join(n(4, length) + n(1, kind) for length, kind in extents)


def simple(err=0, more=0):
    return n(1, SIMPLE | more, err)


def ask(*what):
    return b"".join(n(1, kind) + n(4, offset, count) for kind, offset, count in what)


def server(name, flags, asked, *script):
    write("fuzz-nbd", name, n(1, flags, len(asked) // 9), asked, *script)


R, E, C = 0, 2, 3
OLD = greet(), rep(UNSUPPORTED), rep(UNSUPPORTED)
NEW = greet(), meta()
SIZE = 100000
server(
    "simple", 1, ask((R, 0, 5000), (R, 99000, 4000)), *OLD, go(SIZE), simple(), simple()
)
server(
    "structured",
    0,
    ask((R, 0, 4096), (E, 0, SIZE), (C, 0, 9), (R, 90000, 10000)),
    *NEW,
    go(SIZE),
    status((4096, 0), (50000, 3), (45904, 0)),
    data(512),
    data(2048, flags=0, more=AT_ONCE) + data(2048, 2048),
    status((45904, 0)),
    data(10000, kind=HOLE),
)
server(
    "pieces",
    1,
    ask((R, 0, 70000), (R, 1, 1)),
    *NEW,
    go(2**40, (512, 4096, 8192)),
    status((2**31, 0)),
    *[data(8192) for i in range(12)],
)
server(
    "large-blocks",
    1,
    ask((R, 0, 70000), (R, 1, 1), (E, 100, 200000)),
    *NEW,
    go(2**40 + 100, (65536, 65536, 2**25)),
    status((65536, 0), (65536, 3)),
    *[data(65536) for i in range(3)],
)
server(
    "lost",
    1,
    ask((R, 0, 5000), (R, 20000, 600)),
    *OLD,
    go(SIZE),
    n(1, NOTHING | CLOSE),
    *OLD,
    go(SIZE),
    simple(108, CLOSE),
    *OLD,
    go(SIZE),
    simple(),
    n(1, NOTHING),
)
server("silent", 16 + 2, ask((R, 0, 5000), (R, 0, 5000)), *OLD, go(SIZE), simple())
server("other-size", 1, ask((R, 0, 5000)), *OLD, go(SIZE, None), n(1, CLOSE), *OLD, go(9))
server(
    "errors",
    1,
    ask((R, 0, 5000), (E, 0, 9), (R, 9, 9)),
    *NEW,
    go(SIZE),
    n(1, ERROR, DONE) + n(4, 22) + n(1, 4) + b"oops",
    n(1, ERROR, DONE) + n(4, 5) + n(1, 0),
    status((0, 0)),
    simple(5),
)
server(
    "same-chunk-twice",
    1,
    ask((R, 0, 4096)),
    *NEW,
    go(SIZE),
    status((SIZE, 0)),
    data(2048, flags=0, more=AT_ONCE) + data(2048),
)
server("size-large", 1, b"", *OLD, go(2**63))
server("interrupt", 1 + 8 + 16, ask((R, 0, 5000)), *OLD, go(SIZE), n(1, NOTHING))
server("garbage", 0, b"", n(1, BYTES), n(2, 20), b"NBDMAGIC" + b"x" * 12)

# What qemu-img says.

INFO = b'{"virtual-size": 65536, "filename": "a.qcow2", "format": "qcow2"'
write("fuzz-qemu-info", "plain", INFO, b"}")
write("fuzz-qemu-info", "backing", INFO, b', "backing-filename": "b"}')
write(
    "fuzz-qemu-info",
    "data-file",
    INFO,
    b', "format-specific": {"type": "qcow2", "data": {"data-file": "d"}}}',
)
write("fuzz-qemu-info", "no-data", INFO, b', "format-specific": {"data": null}}')
write("fuzz-qemu-info", "no-object", b'[{"format-specific": 1}]')
write("fuzz-qemu-info", "specific-text", b'{"format-specific": "data"}')
write("fuzz-qemu-info", "deep", b"[" * 100)
write("fuzz-qemu-info", "cut", INFO)

# Command lines.


def img(name, flags, size, *arguments):
    write("fuzz-img", name, n(1, flags), n(8, size), *[a + b"\0" for a in arguments])


img("create", 0, MIB, b"create", b"-b", b"base", b"-F", b"raw", b"x.add-cow", b"+1.5M")
img("create-size", 0, 0, b"create", b"-q", b"a:b", b"1.5M")
img(
    "create-options",
    2,
    MIB,
    b"create",
    b"-f",
    b"-o",
    b"backing_file=a,,b,image_file=c,backing_fmt=qcow2",
    b"-osize=10k",
    b"x",
)
img("create-largest", 0, 0, b"create", b"x", b"7." + b"9" * 20 + b"E")
img("create-uri", 4, MIB, b"create", b"--backing=nbd://h", b"-i", b"i\n", b"x")
img("resize", 0, MIB, b"resize", b"x", b"-512k", b"--shrink")
img("resize-more", 0, 2**62, b"resize", b"-q", b"x", b"+3E")
img("check", 0, 0, b"check", b"--output=json", b"-r", b"x")
img("rebase", 0, MIB, b"rebase", b"-u", b"-p", b"-b", b"", b"x")
img("stream", 0, 0, b"stream", b"--rate=1.5k", b"--", b"-x")
img("map", 0, 0, b"map", b"--output", b"human", b"x")
img("info", 0, 0, b"info", b"--wat", b"x")
img("commit-help", 0, 0, b"commit", b"-ph")
img("help", 0, 0, b"--help")


def filter_(name, *arguments):
    write("fuzz-filter", name, *[a + b"\0" for a in arguments])


filter_(
    "all",
    b"nbdkit",
    b"-r",
    b"--filter=addcow",
    b"file",
    b"addcow=x",
    b"addcow-backing=none",
    b"addcow-backing-format=raw",
    b"addcow-backing-timeout=5",
    b"addcow-commit-interval=0",
    b"addcow-confine=/f",
)
filter_(
    "switches",
    b"nbdkit",
    b"--filter",
    b"log",
    b"--filter=/a/nbdkit-addcow-filter.so",
    b"nbdkit-file-plugin.so",
    b"addcow=x",
    b"addcow-on-read=/p",
    b"addcow-on-cache=true",
    b"addcow-hydrate=1",
    b"addcow-hydrate-rate=1000",
    b"file=i",
)
filter_("twice", b"nbdkit", b"x", b"addcow=a", b"addcow=b")
filter_("unknown", b"nbdkit", b"x", b"addcow-nothing=1")
filter_("many", b"nbdkit", b"--filter=addcow", b"file", b"addcow=/",
        b"addcow-hydrate=1", b"addcow-confine=none", b"addcow-backing=x")
filter_("many-confined", b"nbdkit", b"--filter=addcow", b"file", b"addcow=.",
        b"addcow-confine=/", b"addcow-hydrate-rate=1")
filter_("folder", b"nbdkit", b"--filter=addcow", b"file", b"dir=.", b"addcow=x")
filter_("timeout", b"nbdkit", b"null", b"addcow=x", b"addcow-backing-timeout=0")
filter_("options", b"nbdkit", b"-U-", b"-vf", b"--port", b"--run", b"x", b"null")

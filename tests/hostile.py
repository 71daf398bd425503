# SPDX-License-Identifier: BSD-3-Clause
"""Serve metadata files that somebody made who means no good.

hostile.py SEED COUNT FILTER ADDCOW-IMG LIMIT-KIB COMMAND...

Servers are run by COMMAND.  Works in the current folder: makes conf, which
names are confined to, and outside, what must not be read.  Each file in turn
has a server of its own, which a client uses if it starts, and is looked at
with addcow-img.

  - a server refuses the file, and ends with status 1; or it serves it, and
    ends with 0 when its client is gone.  Either soon.  So does addcow-img.
  - a client that reads all it can gets nothing of what is outside.
  - memory goes by what is used, if LIMIT-KIB is not 0: by no more than that
    much more than with a file that is good.
"""

import os
import random
import socket
import subprocess
import sys

import nbd

from addcow_format import BACKING_AT, IMAGE_AT, MAGIC, SIZE_AT, bitmap_length

KIB = 1024
MIB = KIB * KIB
SIZE = 256 * KIB
SECONDS = 120  # what hangs, hangs; nothing here takes long
SECRET = b"OUTSIDE!" * 64  # in each sector of what is outside

GOOD_NAMES = [
    b"base.img",
    b"sub/base.img",
    b"short.img",
    b"empty.img",
    b"",
    b"mid.add-cow",
]

NAMES = [
    # Loops.
    b"loop.add-cow",
    b"self.add-cow",
    b"x.add-cow",
    # Ways out.
    b"../outside/secret.img",
    b"../conf/../outside/secret.img",
    b"sub/../../outside/secret.img",
    b"link-out.img",
    b"folder-out/secret.img",
    b"root-link/@/outside/secret.img",
    b"file:../outside/secret.img",
    b"file:@/outside/secret.img",
    b"@/outside/secret.img",
    b"@/conf-evil/secret.img",
    b"../conf-evil/secret.img",
    b"hop.add-cow",
    b"hop-format.add-cow",
    # What is no disk, or not a file at all.
    b"fifo",
    b"socket",
    b".",
    b"..",
    b"/",
    b"//",
    b"sub",
    b"missing",
    b"base.img/",
    b"base.img/x",
    b"link-loop",
    b"/dev/zero",
    b"/dev/stdin",
    b"/dev/tty",
    b"/dev/fd/0",
    b"/proc/self/mem",
    b"/proc/self/maps",
    b"/proc/self/environ",
    b"/proc/self/fd/0",
    b"/proc/self/cwd/conf/base.img",
    b"/proc/self/root/etc/passwd",
    b"/proc/kmsg",
    b"/sys/kernel/notes",
    b"/etc/passwd",
    # Somebody else.
    b"nbd://127.0.0.1:1/",
    b"nbd+unix:///?socket=@/outside/socket",
    b"nbds://127.0.0.1:1/?tls-certificates=/",
    b"http://127.0.0.1:1/x",
    b"json:{}",
    b'json:{"driver":"raw","file.filename":"@/outside/secret.img"}',
    b"fat:@/outside",
    b"data:x",
    b"a:b",
    b":",
    b"file:",
    b"file:file:base.img",
    # Odd ones.
    b" ",
    b"\n",
    b"base.img\n",
    b"%s%n%s%n",
    b"\x1b[2J",
    b"\xff\xfe\x80",
    b"-",
    b"--help",
    b"n" * 255,
    b"n" * 256,
    b"d/" * 511 + b"x",
    b"./" * 500 + b"base.img",
    b"/" * 1000 + b"x",
    b"../" * 340 + b"etc",
]

FORMATS = [
    b"",
    b"raw",
    b"add-cow",
    b"ADD-COW",
    b"../raw",
    b"x" * 31,
    b"x" * 32,
    b"-help",
]

SIZES = [
    0,
    512,
    SIZE - 512,
    SIZE + 512,
    511,
    1,
    4096 * 8,
    1 << 32,
    1 << 36,
    (1 << 40) + 512,
    1 << 41,
    1 << 42,
    1 << 55,
    1 << 62,
    (1 << 63) - 512,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 512,
    (1 << 64) - 1,
]


class Failed(Exception):
    pass


def write(name, data, length=None):
    with open(name, "wb") as f:
        f.write(data)
        if length is not None:
            f.truncate(length)


def header(size, backing, image):
    out = bytearray(SIZE_AT + 8)
    out[:12] = MAGIC + (1).to_bytes(4, "big")
    out[BACKING_AT : BACKING_AT + len(backing)] = backing
    out[IMAGE_AT : IMAGE_AT + len(image)] = image
    out[SIZE_AT:] = (size % (1 << 64)).to_bytes(8, "big")
    return out


def overlay(name, backing, image):
    write(name, header(SIZE, backing, image), SIZE_AT + 8 + bitmap_length(SIZE))


def make_image(name):
    """As long as the file system has files, nearly, and empty."""
    length = 1 << 62
    while True:
        try:
            return write(name, b"", length)
        except OSError:
            length //= 2


def make_folders():
    for name in "conf/sub", "outside", "conf-evil":
        os.makedirs(name)
    for name in "outside/secret.img", "conf-evil/secret.img":
        write(name, SECRET * (SIZE // 512))
    for name in "conf/base.img", "conf/sub/base.img":
        write(name, b"inside.." * (SIZE // 8))
    write("conf/short.img", b"s" * 700)
    write("conf/empty.img", b"")
    for name in "mid", "loop", "hop":
        write("conf/%s.raw" % name, b"", SIZE)
    make_image("conf/vm.raw")
    os.mkfifo("conf/fifo")
    socket.socket(socket.AF_UNIX).bind("conf/socket")
    os.symlink("../outside/secret.img", "conf/link-out.img")
    os.symlink("../outside", "conf/folder-out")
    os.symlink("/", "conf/root-link")
    os.symlink("link-loop", "conf/link-loop")
    os.symlink("x.add-cow", "conf/self.add-cow")
    overlay("conf/mid.add-cow", b"base.img\0format=raw", b"mid.raw")
    overlay("conf/loop.add-cow", b"x.add-cow\0format=add-cow", b"loop.raw")
    overlay("conf/hop.add-cow", b"../outside/secret.img", b"hop.raw")
    overlay("conf/hop-format.add-cow", b"hop.add-cow\0format=add-cow", b"hop.raw")


def real(name):
    return name.replace(b"@", os.fsencode(os.path.dirname(os.getcwd())))[:1024]


def backing_field(rng, name):
    """NAME and what may follow it."""
    out = real(name)
    is_overlay = out.endswith(b".add-cow")
    if rng.random() < (0.9 if is_overlay else 0.5):
        known = b"add-cow" if is_overlay else b"raw"
        kind = known if rng.random() < 0.8 else rng.choice(FORMATS)
        out += b"\0format=" + kind
    out += b"\0"
    if rng.random() < 0.2:
        out += b"size=%d\0" % rng.choice(SIZES)
    if rng.random() < 0.1:
        out += rng.randbytes(1024)
    return out[:1024]


def bitmap(rng, length):
    kind = rng.randrange(4)
    length = min(length, 5000)
    if kind == 0:
        return b""
    if kind == 1:
        return b"\xff" * length
    return rng.randbytes(length)


def length_of(rng, size):
    """Mostly as long as it has to be; never longer than files can be."""
    right = SIZE_AT + 8 + bitmap_length(size if size < 1 << 63 else 0)
    kind = rng.randrange(20)
    if kind == 0:
        return rng.randrange(SIZE_AT + 100)
    if kind == 1:
        return max(right - 1, 0)
    if kind == 2:
        return right + rng.randrange(10000)
    return right


def turn(what, i):
    return what[i % len(what)]


def make_metadata(rng, name, i):
    """Write the file I: all names and sizes have their turns, and the rest is
    good more often than not.  Returns what it is in words."""
    size, backing, image = SIZE, rng.choice(GOOD_NAMES), b"vm.raw"
    if i % 3 == 0:
        backing = turn(NAMES, i // 3)
    elif i % 3 == 1:
        image = turn(NAMES, i // 3)
    else:
        size = turn(SIZES, i // 3)
    backing, image = backing_field(rng, backing), real(image)
    data = header(size, backing, image)
    length = length_of(rng, size)
    data += bitmap(rng, max(length - len(data), 0))
    for _ in range(rng.choice([0] * 8 + [1, 3])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        write(name, data[:length], length)
    except OSError:  # too long for this file system
        write(name, data[:length])
    return "size %d, length %d, backing %r, image %r" % (size, length, backing, image)


def look_for_secret(data, what):
    if b"OUTSIDE!" in data:
        raise Failed("a client read what is outside: " + what)


def use(h, rng):
    size = h.get_size()
    if size == 0:
        return
    places = {0, max(size - SIZE, 0)} | {rng.randrange(size) for _ in range(4)}
    for offset in places:
        count = min(SIZE, size - offset)
        try:
            look_for_secret(h.pread(count, offset), "reading")
            h.block_status(count, offset, lambda *args: 0)
        except nbd.Error:
            pass  # of the image or the backing file: the server goes on
    if not h.is_read_only():
        offset = rng.randrange(size)
        count = min(rng.randrange(1, 5000), size - offset)
        data = rng.randbytes(count)
        try:
            h.pwrite(data, offset)
            h.flush()
            if h.pread(count, offset) != data:
                raise Failed("what was written is not there")
        except nbd.Error:
            pass
    if h.get_size() != size or not h.aio_is_ready():
        raise Failed("the connection is not as it was")


def run(command, socket_=None):
    """Start it, with a time limit; what it says goes to log."""
    with open("log", "wb") as out:
        process = subprocess.Popen(
            ["timeout", "-s", "KILL", str(SECONDS), *command],
            stdin=socket_ or subprocess.DEVNULL,
            stdout=socket_ or out,
            stderr=out,
        )
    if socket_:
        socket_.close()
    return process


def end(process):
    """Its status, and how much memory it took at most, in KiB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss


def serve(command, rng):
    """One server and one client.  Returns if it served, and its memory."""
    ours, its = socket.socketpair()
    process = run(command, its)
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    try:
        h.connect_socket(ours.detach())
        served = True
    except nbd.Error:
        served = False
    if served:
        use(h, rng)
        h.shutdown()
    del h
    status, memory = end(process)
    if status != (0 if served else 1):
        raise Failed("the server ended with status %d" % status)
    if not served and os.path.getsize("log") == 0:
        raise Failed("the server did not say what was wrong")
    return served, memory


def look(command, name, rng):
    """The verbs that change nothing but what they mend."""
    verb = rng.choice([["info"], ["check"], ["map"], ["check", "-r"]])
    output = rng.choice(["--output=human", "--output=json"])
    process = run([*command, *verb, output, name])
    status, memory = end(process)
    if status not in (0, 1, 2, 3, 63):
        raise Failed("addcow-img %s ended with status %d" % (verb[0], status))
    return memory


def is_contained(name):
    """Can addcow-img, which confines no names, be let loose on it?"""
    with open(name, "rb") as f:
        data = f.read(SIZE_AT)
    names = data[BACKING_AT:IMAGE_AT], data[IMAGE_AT:]
    bad = b":", b"/dev", b"/proc", b"/sys", b"format="
    return not any(b in n for n in names for b in bad)


class Test:
    def __init__(self, argv):
        self.seed, self.count = int(argv[0]), int(argv[1])
        plugin, img, self.limit, before = argv[2], argv[3], int(argv[4]), argv[5:]
        self.server = [*before, "nbdkit", "-s", "--filter=" + plugin, "file"]
        self.server += ["addcow=x.add-cow", "addcow-confine=."]
        self.img = [img]
        self.rng = random.Random(self.seed)
        self.nr_served = self.nr_looked_at = 0

    def measure(self):
        """The memory that a good file takes, and a sure refusal."""
        overlay("x.add-cow", b"base.img", b"vm.raw")
        served, self.server_memory = serve(self.server, self.rng)
        if not served:
            raise Failed("a file that is good is not served")
        overlay("x.add-cow", b"../outside/secret.img", b"vm.raw")
        if serve(self.server, self.rng)[0]:
            raise Failed("a name that leads outside is served")
        self.img_memory = max(look(self.img, "x.add-cow", self.rng) for i in range(4))

    def check_memory(self, memory, usual):
        if self.limit and memory > usual + self.limit:
            raise Failed("it took %d KiB, and not about %d" % (memory, usual))

    def one(self):
        rng = self.rng
        command = self.server + rng.choice(
            [[], [], ["addcow-on-read=1"], ["addcow-on-cache=1"], ["-r"]]
        )
        served, memory = serve(command, rng)
        self.nr_served += served
        self.check_memory(memory, self.server_memory)
        if is_contained("x.add-cow"):
            self.nr_looked_at += 1
            memory = look(self.img, "x.add-cow", rng)
            self.check_memory(memory, self.img_memory)

    def all(self):
        make_folders()
        os.chdir("conf")
        try:
            self.measure()
        except Failed as e:
            print("to begin with: %s" % e)
            return 1
        for i in range(self.count):
            what = make_metadata(self.rng, "x.add-cow", i)
            try:
                self.one()
            except Failed as e:
                print("seed %d, file %d: %s: %s" % (self.seed, i, what, e))
                with open("log", errors="replace") as f:
                    print(f.read())
                return 1
        print(
            "%d files, seed %d: %d served, %d looked at, nothing read that must "
            "not be" % (self.count, self.seed, self.nr_served, self.nr_looked_at)
        )
        return 0


sys.exit(Test(sys.argv[1:]).all())

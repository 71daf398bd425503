#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Random verbs of addcow-img, and writes through nbdkit, against a model in
memory.

A life is a folder with a few bases, raw and qcow2 and served ones, and the
overlays that are made on them and on each other.  After each verb all files
are compared with the model: what is allocated, what is in images and bases,
what the headers say.  Some verbs crash at a random call (crash-at.c); what
is there then must be a disk with the same content, and the same verb again
must complete.  What a life is follows from its seed alone, save what threads
and the clock decide.

verbs_model.py [OPTION...] SEED LIVES -- IMG... -- SERVER...

Each of the LIVES has a seed, from SEED on, and as many steps as --steps=N
says.  IMG is the command addcow-img, SERVER that of nbdkit with the filter, to
which the rest is added; --nbdkit=PATH serves bases.  --crash-lib=LIST is what
is preloaded for a crash; --crash-option=OPTION, which can be repeated, goes
behind the first word of IMG then.
"""

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile

import nbd

from addcow_format import BITMAP_AT, SECTOR, bitmap_length
from model import Server
from verbs_files import (Base, Overlay, differing, either, look_at_map,
                         look_at_table, nr_sectors, padded, read, rounded_up,
                         sector)

CRASHED = 99
PATIENCE = 300
LONGEST = 1 << 20
MOST_OVERLAYS = 5
DEEPEST = 5


def random_size(r):
    """In bytes, mostly small, seldom a multiple of anything."""
    smallest, largest = r.choices([(9, 12), (12, 18), (18, 20)], [1, 6, 2])[0]
    size = int(2 ** r.uniform(smallest, largest))
    if r.random() < 0.3:
        size &= ~4095
    return max(size, SECTOR)


def random_disk(r, size):
    """Pieces of data and zeroes."""
    disk = bytearray()
    while len(disk) < size:
        n = min(int(2 ** r.uniform(7, 16)), size - len(disk))
        disk += r.randbytes(n) if r.random() < 0.6 else bytes(n)
    return disk


def write_sparse(r, path, disk):
    """Some zeroes become holes, others are written."""
    with open(path, "wb") as f:
        for at in range(0, len(disk), 4096):
            piece = disk[at:at + 4096]
            if any(piece) or r.random() < 0.3:
                f.seek(at)
                f.write(piece)
        f.truncate(len(disk))


@contextlib.contextmanager
def hidden(node):
    """Meanwhile the file of NODE, or with None no file, is not there."""
    if node is None:
        yield
        return
    os.rename(node.path, node.path + ".hidden")
    try:
        yield
    finally:
        os.rename(node.path + ".hidden", node.path)


def warns(*nodes):
    """May it be told, where these are opened, that a file has changed?"""
    return any(o.changed() for node in nodes if node
               for o in node.chain() if isinstance(o, Overlay))


class Ran:
    """A command that has ended."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err
        self.crashed = status == CRASHED


class Life:
    def __init__(self, args, seed, folder):
        self.args = args
        self.r = random.Random(seed)
        self.folder = folder
        self.server = Server(args.server, folder)
        self.number = 0
        self.counts = {}
        self.left_files = set()     # that a crash has left
        self.has_crashed = False    # in this step
        self.nodes = []
        # Copies of one disk with differences, so that rebasing finds both.
        self.golden = random_disk(self.r, LONGEST)
        self.base_servers = []
        os.mkdir("sub")

    # --- Running. ---------------------------------------------------------

    def log(self, *words):
        print("+", shlex.join(str(w) for w in words), flush=True)

    def run(self, *words, crash=None):
        """CRASH: at which call, and whether that is done by half."""
        command, env = self.args.img, dict(os.environ)
        if crash:
            command = command[:1] + self.args.crash_option + command[1:]
            env.update(LD_PRELOAD=self.args.crash_lib, CRASH_AT=str(crash[0]),
                       CRASH_PART=crash[1])
            self.log("CRASH_AT=%d" % crash[0], "CRASH_PART=" + crash[1],
                     "addcow-img", *words)
        else:
            self.log("addcow-img", *words)
        p = subprocess.run(command + [str(w) for w in words], env=env,
                           stdin=subprocess.DEVNULL, capture_output=True,
                           timeout=PATIENCE)
        p = Ran(p.returncode, p.stdout.decode(), p.stderr.decode())
        if p.crashed:
            print("  crashed", flush=True)
            self.has_crashed = True
        return p

    def does(self, *words, opens=(), crash=None, status=(0,), out=None):
        """Succeeds, and warns of nothing but changes of backing files of what
        it opens; or crashes, if it may."""
        may_warn = warns(*opens)
        p = self.run(*words, crash=crash)
        assert p.status in status or (crash and p.crashed), \
            "exit status %d: %s%s" % (p.status, p.out, p.err)
        for line in p.err.splitlines():
            assert may_warn and "has changed since" in line, line
        assert out is None or p.crashed or p.out == out, "prints: " + p.out
        return p

    def fails(self, *words):
        """Fails with a line that says why, and changes nothing."""
        before = self.all_files()
        p = self.run(*words)
        assert p.status == 1, "exit status %d" % p.status
        assert p.out == "", "prints: " + p.out
        lines = [line for line in p.err.splitlines()
                 if "has changed since" not in line]
        assert len(lines) == 1 and lines[0].startswith("addcow-img: ") and \
            "--help" not in lines[0], p.err
        print(" ", lines[0], flush=True)
        assert self.all_files() == before, "a verb that fails changes files"

    def all_files(self):
        files = {}
        for folder, _, names in os.walk("."):
            for name in names:
                path = os.path.join(folder, name)
                if not name.startswith("model."):
                    files[path] = read(path) if os.path.isfile(path) else None
        return files

    def random_crash(self):
        if self.r.random() < 0.5:
            return None
        return int(2 ** self.r.uniform(0, 4.5)), self.r.choice(["", "1"])

    def until_done(self, verb, overlay, *args):
        """With crashes, after some of which it is not done again."""
        while verb(overlay, *args, self.random_crash()):
            self.count("crash of " + verb.__name__)
            self.look()
            if overlay not in self.nodes:
                continue
            self.check_overlay(overlay)
            if self.r.random() < 0.15:
                return

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    def maybe(self, *words):
        return list(words) if self.r.random() < 0.5 else []

    # --- Files. -----------------------------------------------------------

    def overlays(self):
        return [n for n in self.nodes if isinstance(n, Overlay)]

    def overlay(self):
        return self.r.choice(self.overlays())

    def is_used(self, node):
        return any(o.backing is node for o in self.overlays())

    def new_name(self, suffix):
        self.number += 1
        return "%s%d%s" % (self.r.choice(["", "sub/"]), self.number, suffix)

    def new_base(self):
        kind = self.r.choice(["raw", "raw", "qcow2", "nbd"])
        disk = self.golden[:random_size(self.r)]
        for _ in range(self.r.randrange(8)):
            n = min(int(2 ** self.r.uniform(0, 14)), len(disk))
            at = self.r.randrange(len(disk) - n + 1)
            disk[at:at + n] = self.r.choice([self.r.randbytes, bytes])(n)
        path = self.new_name("." + kind)
        write_sparse(self.r, path, disk)
        uri = None
        read_only = kind == "nbd" and self.r.random() < 0.3
        if kind == "qcow2":
            self.make_qcow2(path)
        if kind == "nbd":
            uri = self.serve_base(path, read_only)
        self.nodes.append(Base(path, kind, uri, read_only))

    def make_qcow2(self, path):
        os.rename(path, "raw.tmp")
        options = ["-o", "cluster_size=%d" % self.r.choice([512, 4096, 65536])]
        subprocess.run(
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"] + options +
            self.r.choice([[], ["-c"]]) + ["raw.tmp", path], check=True)
        os.unlink("raw.tmp")

    def serve_base(self, path, read_only):
        """Without what preloads or watches, as it is not what is tested."""
        folder = os.path.join(self.folder, "base%d" % self.number)
        os.mkdir(folder)
        command = [self.args.nbdkit] + (["-r"] if read_only else [])
        s = Server(command + ["file", os.path.abspath(path)], folder)
        s.start()
        self.base_servers.append(s)
        return "nbd+unix:///?socket=" + s.sock

    def end(self):
        for s in self.base_servers + [self.server]:
            if hasattr(s, "process"):
                s.process.kill()
                s.process.wait()

    def forget(self):
        """Have fewer of what nobody needs."""
        for o in self.overlays()[:-MOST_OVERLAYS]:
            if not self.is_used(o):
                self.nodes.remove(o)
                os.unlink(o.path)
                os.unlink(o.image)

    def look(self):
        for node in self.nodes:
            node.look()

    def look_at_names(self):
        """Only a crash leaves a temporary file."""
        temporary = {path for path in self.all_files() if "/.addcow-" in path}
        assert self.has_crashed or temporary <= self.left_files, temporary
        self.left_files = temporary
        self.has_crashed = False

    def backing_arguments(self, backing, folder):
        """How to say what the new backing file is: [words], name, format."""
        if backing is None:
            return ["-b", ""], "", None
        name = backing.name(folder, self.r.random() < 0.3)
        fmt = backing.format \
            if backing.must_have_format or self.r.random() < 0.5 else None
        return ["-b", name] + (["-F", fmt] if fmt else []), name, fmt

    # --- Create. ----------------------------------------------------------

    def step_create(self):
        old = None
        free = [o for o in self.overlays() if not self.is_used(o)]
        if free and self.r.random() < 0.3:
            old = self.r.choice(free)
        candidates = [n for n in self.nodes
                      if n is not old and len(n.chain()) < DEEPEST]
        o = self.new_overlay(self.r.choice(candidates + [None]), old)
        how, name, fmt = self.backing_arguments(o.backing, o.folder)
        o.set_backing(o.backing, name, fmt)
        words = how + self.image_arguments(o) + [o.path] + self.size_argument
        if not old and self.r.random() < 0.4:
            self.old_image(o)
        if os.path.exists(o.image) and os.path.getsize(o.image) < o.size:
            self.fails("create", *(["-f"] if old else []), *words)
            return
        self.until_done(self.create, o, old, words)

    def new_overlay(self, backing, old):
        """What is to be made, in place of OLD maybe."""
        size = None
        self.size_argument = []
        if not backing or self.r.random() < 0.5:
            size = random_size(self.r)
            self.size_argument = [size]
        path = old.path if old else self.new_name(".add-cow")
        image = self.default_image(path)
        if old:
            image = old.image_name
        elif self.r.random() < 0.3:
            image = os.path.relpath(self.new_name(".image"),
                                    os.path.dirname(path) or ".")
        return Overlay(path, image, backing, rounded_up(
            backing.length() if size is None else size))

    def default_image(self, path):
        return os.path.basename(path)[:-len("add-cow")] + "raw"

    def image_arguments(self, o):
        if o.image_name == self.default_image(o.path):
            return self.maybe("-i", o.image_name)
        return ["-i", o.image_name]

    def old_image(self, o):
        """What was in an image before means nothing."""
        n = max(o.size + self.r.choice([-512, 0, 0, 1, 5000, 100000]), 0)
        write_sparse(self.r, o.image, random_disk(self.r, n))

    def create(self, o, old, words, crash):
        before = read(o.path) if os.path.exists(o.path) else None
        force = [] if before is None else ["-f"]
        p = self.does("create", *force, *self.maybe("-q"), *words,
                      opens=[o.backing], crash=crash)
        now = read(o.path) if os.path.exists(o.path) else None
        if not p.crashed or now != before:
            # No half of it.
            self.nodes = [n for n in self.nodes if n not in (o, old)] + [o]
        if os.path.exists(o.image):
            assert old or os.path.getsize(o.image) >= o.size, \
                "%s is a part of an image" % o.image
        return p.crashed

    # --- Writes through the filter. ---------------------------------------

    def step_write(self):
        o = self.overlay()
        if o.size == 0:
            return
        # Not often, as what is complete is of little use here.
        parameters = self.r.choices(
            [[], ["addcow-on-read=true"], ["addcow-hydrate=true"]],
            [20, 4, 1])[0]
        self.log("nbdkit", "file", "addcow=" + o.path, *parameters)
        self.server.command = self.args.server + [
            "file", "addcow=" + o.path] + parameters
        disk = bytearray(o.content())
        must, may = bytearray(o.bits), bytearray(o.bits)
        if parameters:
            may = bytearray(b"\1" * len(may))
        self.server.start()
        h = self.server.connect()
        if not parameters and self.r.random() < 0.2:
            self.refuse(o)
        for _ in range(self.r.randrange(12)):
            self.request(h, disk, must, may)
        sig = self.r.choice([signal.SIGTERM, signal.SIGKILL])
        if sig == signal.SIGKILL:
            h.flush()
        else:
            h.shutdown()
        self.server.stop(sig)
        o.adopt(bytes(disk), must, may)

    def refuse(self, o):
        """What changes files that a server of O uses."""
        words = [("stream", o.path), ("commit", o.path),
                 ("resize", o.path, o.size + SECTOR), ("check", o.path),
                 ("check", "-r", o.path), ("rebase", "-b", "", o.path),
                 ("rebase", "-u", "-b", "", o.path),
                 ("create", "-f", o.path, o.size)]
        for other in self.overlays():
            b = other.backing
            # That of a server is for nobody alone, and qemu-nbd is not there
            # before it is needed.
            if b and b.kind in ("raw", "add-cow") and self.leads(o, b):
                words.append(("commit", other.path))
        self.count("refused")
        self.fails(*self.r.choice(words[-4:] + words))

    def request(self, h, disk, must, may):
        length = min(int(2 ** self.r.uniform(0, 16)), len(disk))
        offset = self.r.randrange(len(disk) - length + 1)
        if self.r.random() < 0.3:
            offset = offset // 4096 * 4096
        kind = self.r.choice(["write", "write", "zero", "trim", "read"])
        print("  %s [%d, +%d)" % (kind, offset, length), flush=True)
        if kind == "read":
            got = h.pread(length, offset)
            assert got == disk[offset:offset + length], "reads other data"
            return
        data = self.r.randbytes(length) if kind == "write" else bytes(length)
        if kind == "write":
            h.pwrite(data, offset)
        elif kind == "zero":
            h.zero(length, offset)
        else:
            h.trim(length, offset)
        disk[offset:offset + length] = data
        for s in range(offset // SECTOR, nr_sectors(offset + length)):
            may[s] = 1
            must[s] |= kind == "write"

    # --- Looking. ---------------------------------------------------------

    def step_read(self):
        """As a server has it."""
        o = self.overlay()
        if o.size == 0:
            return
        self.log("nbdkit", "-r", "file", "addcow=" + o.path)
        self.server.command = self.args.server + [
            "-r", "file", "addcow=" + o.path]
        self.server.start()
        h = self.server.connect()
        assert h.get_size() == o.size
        got = h.pread(o.size, 0)
        self.look_at_extents(h, got)
        h.shutdown()
        self.server.stop(signal.SIGTERM)
        assert got == o.content(), "%s: a server reads %s" % (
            o, [s for s, other in enumerate(differing(got, o.content()))
                if other][:10])

    def look_at_extents(self, h, disk):
        def extents(context, start, entries, err):
            for n, kind in zip(entries[::2], entries[1::2]):
                assert not kind & nbd.STATE_ZERO or \
                    not any(disk[start:start + n]), "extents"
                start += n
            return 0
        h.block_status(len(disk), 0, extents)

    def step_info(self):
        o = self.overlay()
        self.does("info", o.path)
        with hidden(self.not_needed(o)):
            p = self.does("info", "--output=json", o.path)
        info = json.loads(p.out)
        data = info["format-specific"]["data"]
        assert info["virtual-size"] == o.size, info
        assert info.get("backing-filename", "") == o.backing_name, info
        assert info.get("backing-filename-format") == o.backing_format, info
        assert data["image-filename"] == o.image_name, info
        assert data["allocated-bytes"] == sum(o.bits) * SECTOR, info
        assert data["complete"] == o.is_complete(), info
        assert not data["in-use"], info
        if "backing-changed" in data:
            assert set(data["backing-changed"]) == set(o.changed()), info

    def step_map(self):
        o = self.overlay()
        p = self.does("map", "--output=json", o.path, opens=[o])
        rows = json.loads(p.out)
        look_at_map(o, rows)
        p = self.does("map", o.path, opens=[o])
        look_at_table(o, rows, p.out)

    def step_check(self):
        self.check_overlay(self.overlay())

    def expected_check(self, o):
        """The exit statuses that are right."""
        if o.strays() or o.hints()[1]:
            return (3,)
        return (3,) if o.changed() and not o.is_complete() else (0,)

    def check_overlay(self, o):
        if self.r.random() < 0.5:
            self.repair(o)
            return
        self.count("check")
        with hidden(self.not_needed(o)):
            before = self.all_files()
            p = self.does("check", "--output=json", o.path, opens=[o],
                          status=self.expected_check(o))
            assert self.all_files() == before, "check changes files"
        self.look_at_check(p, o)

    def repair(self, o):
        self.count("check -r")
        crash = self.random_crash()
        p = self.does("check", "-r", "--output=json", o.path, opens=[o],
                      status=(0, 3), crash=crash)
        if p.crashed:
            self.count("crash of check -r")
            o.look()
            p = self.does("check", "-r", "--output=json", o.path, opens=[o],
                          status=(0, 3))
        self.look_at_check(p, o)
        assert not o.strays() and not o.hints()[1], "not mended"
        assert p.status in self.expected_check(o), p.out
        self.does("check", o.path, status=self.expected_check(o), opens=[o])

    def look_at_check(self, p, o):
        found = json.loads(p.out)
        assert found["filename"] == o.path and found["format"] == "add-cow"
        assert found["check-errors"] == 0, p.out
        assert "corruptions" not in found, p.out
        left = [x for x in found["problems"] if not x["fixed"]]
        assert bool(left) == (p.status == 3), p.out
        assert found.get("leaks", 0) == len(left), p.out
        assert found.get("leaks-fixed", 0) == \
            len(found["problems"]) - len(left), p.out

    def not_needed(self, o):
        """The backing file of a disk that is complete, sometimes."""
        can = o.backing and o.is_complete() and self.r.random() < 0.5
        return o.backing if can else None

    # --- Damage. ----------------------------------------------------------

    def step_damage(self):
        o = self.overlay()
        kind = self.r.choice(["bits", "bytes", "zeroes", "cut"])
        self.log("damage", kind, o.path)
        self.count("damage: " + kind)
        if kind == "cut" and o.size:
            self.cut(o)
            return
        with open(o.path, "r+b") as f:
            if kind == "bits":
                m = o.header()
                if m.bitmap:
                    f.seek(BITMAP_AT + len(m.bitmap) - 1)
                    f.write(bytes([m.bitmap[-1] | m.stray_mask() &
                                   self.r.randrange(256)]))
            else:
                n = self.r.randrange(1, 9000)
                f.seek(0, os.SEEK_END)
                f.write(self.r.randbytes(n) if kind == "bytes" else bytes(n))

    def cut(self, o):
        """Sectors whose bits are lost are the backing file's again."""
        left = self.r.randrange(bitmap_length(o.size))
        os.truncate(o.path, BITMAP_AT + left)
        self.fails(self.r.choice(["stream", "map"]), o.path)
        self.fails("resize", o.path, o.size + SECTOR)
        p = self.run("check", o.path)
        assert p.status == 2, p.out + p.err
        crash = self.random_crash()
        p = self.does("check", "-r", o.path, opens=[o], status=(0, 3),
                      crash=crash)
        if p.crashed:
            p = self.does("check", "-r", o.path, opens=[o], status=(0, 3))
        o.bits[left * 8:] = bytes(len(o.bits[left * 8:]))
        assert p.status in self.expected_check(o), p.out

    # --- Stream. ----------------------------------------------------------

    def step_stream(self):
        self.until_done(self.stream, self.overlay())

    def stream(self, o, crash):
        disk, must = o.content(), bytearray(o.bits)
        with hidden(self.not_needed(o)):
            p = self.does("stream", *self.maybe("-p"), o.path, opens=[o],
                          crash=crash)
        o.adopt(disk, must)
        if not p.crashed:
            assert o.is_complete(), "not all is allocated"
            assert "stands alone" in p.out, p.out
        return p.crashed

    # --- Resize. ----------------------------------------------------------

    def step_resize(self):
        o = self.overlay()
        if self.r.random() < 0.1:
            if o.size:
                self.fails("resize", o.path, self.r.randrange(
                    o.size - SECTOR + 1))
            return
        size = self.r.choice([
            random_size(self.r),
            o.size + self.r.randrange(1, 20000),
            max(o.size - self.r.randrange(20000), 0),
            o.backing.length() if o.backing else o.size])
        size = min(size, LONGEST)
        if size == 0 and self.r.random() < 0.8:
            size = 1
        if self.r.random() < 0.3 and size != o.size:
            # What a crash did it would do again.
            self.resize(o, rounded_up(size), "%+d" % (size - o.size), None)
        else:
            self.until_done(self.resize, o, rounded_up(size), str(size))

    def resize(self, o, size, text, crash):
        old_size, disk, image = o.size, o.content(), os.path.getsize(o.image)
        must, may = self.resized_bits(o, size)
        shrink = ["--shrink"] if size < o.size or self.r.random() < 0.3 else []
        quiet = self.maybe("-q")
        with hidden(self.not_needed(o)):
            p = self.does("resize", *shrink, *quiet, o.path, text, opens=[o],
                          crash=crash)
        if p.crashed and o.header().size == old_size:
            o.adopt(disk, o.bits, o.bits)
            return True
        o.resize(size)
        o.adopt(padded(disk, size), must, may)
        if not p.crashed:
            assert p.out == ("" if quiet else "Image resized.\n"), p.out
            self.look_at_length(o, image, old_size)
        return p.crashed

    def resized_bits(self, o, size):
        """Which must and which may be set: what is in the backing file past
        the old end must not be seen; what is complete stays it."""
        n = size // SECTOR
        must, may = bytearray(o.bits[:n]), bytearray(o.bits[:n])
        below = padded(o.backing.content() if o.backing else b"", size)
        end = nr_sectors(o.backing.length()) if o.backing else 0
        # Is it complete that has no sectors?
        for s in range(len(may), n):
            must.append(any(sector(below, s)) or
                        o.size > 0 and o.is_complete())
            may.append(s < end or o.is_complete())
        return must, may

    def look_at_length(self, o, before, old_size):
        n = os.path.getsize(o.image)
        if o.size > old_size:
            assert n == max(before, o.size), "the image has %d bytes" % n
        elif o.size < old_size:
            assert n == (o.size if before == old_size else before), \
                "the image has %d bytes, had %d" % (n, before)

    # --- Commit. ----------------------------------------------------------

    def step_commit(self):
        o = self.overlay()
        if self.cannot_commit(o):
            self.fails("commit", o.path)
            return
        self.until_done(self.commit, o)

    def cannot_commit(self, o):
        b = o.backing
        if b is None:
            return True
        # Zeroes past its end need no place.
        return b.kind == "nbd" and b.read_only or \
            b.kind != "raw" and any(o.content()[b.length():])

    def commit(self, o, crash):
        b, disk = o.backing, o.content()
        before = bytes(b.content())
        after, written = self.committed(o, before), any(o.bits)
        b_bits = bytearray(b.bits) if isinstance(b, Overlay) else None
        p = self.does("commit", *self.maybe("-p"), o.path, opens=[o],
                      crash=crash)
        if p.crashed:
            self.adopt_base(b, before, after, b_bits)
            o.adopt(disk, may=o.bits)
            return True
        assert p.out == "Image committed.\n", p.out
        if isinstance(b, Overlay):
            n = min(len(b.bits), len(o.bits))
            must = bytearray(x | y for x, y in zip(b.bits[:n], o.bits[:n]))
            must += b.bits[n:]
            b.adopt(after, must, must)
        else:
            b.adopt(before, after)
            assert b.disk == after or not written and b.disk == before, \
                "%s is not what was committed" % b
        self.look_at_holes(o)
        o.adopt(disk, may=bytes(len(o.bits)))
        # Who writes nothing does not know whose change that is.
        assert not written or not o.changed(), "the hints are old"
        return False

    def committed(self, o, before):
        """What the backing file will be."""
        grows = isinstance(o.backing, Base) and o.backing.kind == "raw"
        n = max(len(before), o.size) if grows else len(before)
        after = bytearray(padded(before, n))
        after[:o.size] = o.content()[:n]
        return bytes(after)

    def adopt_base(self, b, before, after, bits):
        if isinstance(b, Base):
            b.adopt(before, after)
            return
        b.bits = b.real_bits()
        b.own = bytearray(padded(read(b.image), b.size))
        assert all(new or not old for old, new in zip(bits, b.bits)), \
            "%s: a bit was lost" % b
        either(b.content(), before, after, b)

    def look_at_holes(self, o):
        image = read(o.image)
        for s, bit in enumerate(o.bits):
            assert not bit or not any(sector(image, s)), \
                "%s: sector %d is left" % (o.image, s)

    # --- Rebase. ----------------------------------------------------------

    def step_rebase(self):
        o = self.overlay()
        unsafe = self.r.random() < 0.2
        looping = [n for n in self.overlays() if o in n.chain()]
        if self.r.random() < 0.1:
            loop = self.r.choice([n for n in self.overlays()
                                  if self.leads(n, o)])
            name = loop.name(o.folder, self.r.random() < 0.5)
            self.fails("rebase", *(["-u"] if unsafe and loop is o else []),
                       "-b", name, "-F", "add-cow", o.path)
            return
        candidates = [n for n in self.nodes
                      if n not in looping and len(n.chain()) < DEEPEST]
        backing = self.r.choice(candidates + o.chain()[1:] + [None])
        self.until_done(self.rebase, o, unsafe, backing,
                        self.backing_arguments(backing, o.folder))

    def leads(self, node, o):
        """Is O opened when NODE is?  What is complete needs no others."""
        chain = node.chain()
        return o in chain and \
            not any(n.is_complete() for n in chain[:chain.index(o)])

    def rebase(self, o, unsafe, backing, how, crash):
        words, name, fmt = how
        old = o.backing, o.backing_name, o.backing_format
        disk, bits = o.content(), bytearray(o.bits)
        must, may = bytearray(bits), bytearray(bits)
        if not unsafe:
            other = differing(o.below(), padded(
                backing.content() if backing else b"", o.size))
            may = bytearray(x | y for x, y in zip(bits, other))
        needed = o.backing and not unsafe and not o.is_complete() and \
            o.backing.kind != "nbd"
        if needed and self.r.random() < 0.05:
            with hidden(o.backing):
                self.fails("rebase", *words, o.path)
        p = self.does("rebase", *self.maybe("-p"), *(["-u"] if unsafe else []),
                      *words, o.path, opens=[o, backing], crash=crash, out="")
        if self.is_rebased(o, name, fmt, p):
            o.set_backing(backing, name, fmt)
            if unsafe:
                disk = o.content()
            o.adopt(disk, may, may)
        else:
            o.set_backing(*old)
            o.adopt(disk, must, may)
        if fmt and not p.crashed and backing.kind != "nbd":
            assert not o.changed() and "size" in o.hints()[0], "no hints"
        return p.crashed

    def is_rebased(self, o, name, fmt, p):
        if not p.crashed:
            return True
        return o.header().backing.decode() == name and \
            o.hints()[0].get("format") == fmt

    # --- All. -------------------------------------------------------------

    weights = {"create": 3, "write": 8, "read": 3, "info": 1, "map": 2,
               "check": 2, "damage": 1, "stream": 1, "resize": 4, "commit": 3,
               "rebase": 4}

    def live(self, steps):
        for _ in range(self.r.randrange(2, 5)):
            self.new_base()
        while len(self.overlays()) < 3:
            self.step_create()
        for _ in range(steps):
            kind, = self.r.choices(list(self.weights),
                                   list(self.weights.values()))
            self.count(kind)
            getattr(self, "step_" + kind)()
            self.look()
            self.look_at_names()
            self.forget()


def parsed():
    p = argparse.ArgumentParser()
    p.add_argument("--crash-lib")
    p.add_argument("--crash-option", action="append", default=[])
    p.add_argument("--nbdkit", default="nbdkit")
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("seed", type=int)
    p.add_argument("lives", type=int)
    end = sys.argv.index("--")
    args = p.parse_args(sys.argv[1:end])
    words = sys.argv[end + 1:]
    end = words.index("--")
    args.img, args.server = words[:end], words[end + 1:]
    return args


def main():
    args = parsed()
    counts = {}
    for seed in range(args.seed, args.seed + args.lives):
        print("seed:", seed, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            life = Life(args, seed, folder)
            try:
                life.live(args.steps)
            finally:
                life.end()
                os.chdir("/")
        for what, n in life.counts.items():
            counts[what] = counts.get(what, 0) + n
    for what in sorted(counts):
        print("%6d %s" % (counts[what], what))


if __name__ == "__main__":
    main()

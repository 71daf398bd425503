#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What a power failure leaves of an overlay while a verb of addcow-img runs.

A life is a folder with an overlay that is made at random, and a verb that is
run there once or twice, the first time perhaps up to a random call only
(crash-at.c).  What it does to the files is logged (power-log.c).  From the
log disks are built as a power failure may leave them (power_disks.py).  On
each the disk of the overlay must be what that verb promises; addcow-img check
must find nothing that it should not; and the verb, run again, must come to its
end.  One of the disks is what the next round begins with.

power_verbs.py [OPTION...] SEED LIVES -- IMG...

Each of the LIVES has a seed, from SEED on; what a life is follows from it
alone, save what threads do.  IMG is the command addcow-img; --log-lib=LIST is
what is preloaded for logging and --crash-lib=LIST for a crash too.
"""

import argparse
import functools
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback

import power_disks
from addcow_format import BACKING_AT, IMAGE_AT, SECTOR, Metadata
from overlay_files import read

CRASHED = 99
PATIENCE = 120
FILE = "vm.add-cow"
FORMAT = "format="
LARGE = 4096 * SECTOR
BLOCK = bytes(4096)


# --- Overlays, of files that are in a dictionary {path: bytes}. -----------

def padded(data, size):
    return bytes(data[:size]).ljust(size, b"\0")


def part(sector):
    return slice(sector * SECTOR, (sector + 1) * SECTOR)


def hints_of(data):
    """All strings behind the name of the backing file, as they are."""
    field = data[BACKING_AT:IMAGE_AT]
    return field[field.index(b"\0") + 1:]


def known_hints(data):
    """What they say: {key: value}."""
    known = {}
    for hint in hints_of(data).split(b"\0"):
        if not hint:
            break
        key, _, value = hint.partition(b"=")
        if key in (b"size", b"mtime"):
            # A number may have zeroes before it.
            known.setdefault(key.decode(), int(value))
        elif key + b"=" == FORMAT.encode():
            known.setdefault("format", value.decode())
    return known


def format_of(data):
    """What the hints say that the backing file is, or None."""
    return known_hints(data).get("format")


def beside(path, name):
    return os.path.normpath(os.path.join(os.path.dirname(path), name))


def image_of(files, path):
    """Its bytes; they are enough for the disk."""
    m = Metadata.decode(files[path])
    name = beside(path, m.image.decode())
    assert name in files, "there is no %s" % name
    assert len(files[name]) >= m.size, "%s is too short" % name
    return files[name]


def disk_of(files, path=FILE):
    m = Metadata.decode(files[path])
    disk = bytearray(m.size)
    if m.backing:
        below = beside(path, m.backing.decode())
        disk[:] = padded(disk_of(files, below)
                         if format_of(files[path]) == "add-cow" else
                         files[below], m.size)
    image = image_of(files, path)
    for s, allocated in enumerate(m.allocated()):
        if allocated:
            disk[part(s)] = image[part(s)]
    return bytes(disk)


def same(got, want, what):
    assert len(got) == len(want), \
        "%s has %d bytes, not %d" % (what, len(got), len(want))
    if got != want:
        bad = [s for s in range((len(want) + SECTOR - 1) // SECTOR)
               if got[part(s)] != want[part(s)]]
        assert False, "%s differs in sectors %s" % (what, bad[:20])


def header(size, backing, image, hints=()):
    """The metadata file of an overlay that has nothing allocated."""
    data = bytearray(Metadata(size, backing.encode(), image.encode()).encode())
    field = b"".join(hint.encode() + b"\0" for hint in hints)
    at = BACKING_AT + len(backing) + 1
    assert at + len(field) <= IMAGE_AT
    data[at:at + len(field)] = field
    return data


def random_data(r, size):
    """Pieces of data and zeroes."""
    data = bytearray()
    while len(data) < size:
        if r.random() < 0.5:
            data += r.randbytes(int(2 ** r.uniform(8, 14)))
        else:
            data += bytes(int(2 ** r.uniform(8, 14)) * sparseness(size))
    return bytes(data[:size])


def sparseness(size):
    """What is large is mostly holes, so that it takes no longer."""
    return size // LARGE * 10 + 1


def random_size(r):
    """Mostly small; or so large that the bitmap goes on behind the sector that
    has the end of the header."""
    if r.random() < 0.25:
        return LARGE + r.randrange(1024) * SECTOR
    return int(2 ** r.uniform(9, 17.5)) // SECTOR * SECTOR


def fill(r, files, path, share=0.5):
    """Allocate some sectors, of data and zeroes."""
    m = Metadata.decode(bytes(files[path]))
    name = beside(path, m.image.decode())
    image = bytearray(files[name])
    s = 0
    while s < m.sectors():
        n = r.randrange(1, 40)
        allocates = r.random() < share
        if not allocates or share == 1:
            n *= sparseness(m.size)
        n = min(n, m.sectors() - s)
        if allocates:
            image[s * SECTOR:(s + n) * SECTOR] = \
                r.choice((r.randbytes, r.randbytes, bytes))(n * SECTOR)
            for i in range(s, s + n):
                m.set(i)
        s += n
    data = bytearray(files[path])
    data[-len(m.bitmap):] = m.bitmap
    files[path], files[name] = bytes(data), bytes(image)


def hints_for(r, data, fmt="raw"):
    """As create makes them, perhaps, or none."""
    hints = [FORMAT + fmt]
    if r.random() < 0.7:
        hints += ["size=%d" % len(data)]
    return hints if fmt != "raw" or r.random() < 0.8 else []


def overlay(r, files, size=None, base="base.img", path=FILE, image="vm.raw",
            share=0.5):
    """An overlay, and its backing file BASE where there is none."""
    size = size or random_size(r)
    if base and base not in files:
        files[base] = random_data(r, r.choice(
            (size, size, r.randrange(size), size + r.randrange(5000))))
    fmt = "add-cow" if base.endswith(".add-cow") else "raw"
    files[path] = header(size, base, image,
                         hints_for(r, files[base], fmt) if base else ())
    files[image] = bytes(size)
    fill(r, files, path, share)


def base_or_chain(r, files, size):
    """What an overlay of that size is on: its name."""
    if r.random() < 0.7:
        return "base.img"
    overlay(r, files, r.choice((size, size, random_size(r))), "base.img",
            "mid.add-cow", "mid.raw")
    return "mid.add-cow"


def unchanged(files, before, *names):
    for name in names:
        if name in before:
            assert name in files, "%s is gone" % name
            same(files[name], before[name], name)


# --- The verbs. ----------------------------------------------------------

class Verb:
    """What a verb promises.  FILES is what there is to begin with, and
    becomes what a round begins with.  Each of while_ and after returns a
    function that looks at the files that a power failure leaves."""

    # What addcow-img check may say, besides nothing.
    leaks = set()

    def __init__(self, r):
        self.r = r
        self.files = {}
        self.make()
        self.begin(self.files)

    def begin(self, files):
        self.files = files
        self.disk = disk_of(files)

    def prepare(self, files):
        """A command that comes before, which is no verb; or None."""
        return None

    def args(self, files):
        """Of the next run, where FILES are there."""
        raise NotImplementedError

    def while_(self, args):
        return functools.partial(self.look, done=False)

    def after(self, args, status, files):
        return functools.partial(self.look, done=status == 0)

    def look(self, files, done):
        raise NotImplementedError

    def look_again(self, args, left, files):
        """ARGS were run on what was LEFT, and there are FILES."""
        self.look(files, True)

    def leaks_in(self, files, done):
        """What check may say of them."""
        return self.leaks


class Create(Verb):
    """There is no FILE, or all of the old one, or of the new one."""

    def make(self):
        r = self.r
        self.size = random_size(r)
        self.base = r.choice(("base.img", "base.img", ""))
        self.image = r.choice(("vm.raw", "new.raw", "sub/new.raw"))
        self.image_is_made = self.image != "vm.raw" and r.random() < 0.4
        if r.random() < 0.5:
            overlay(r, self.files, r.choice((self.size, random_size(r))),
                    r.choice(("base.img", "")))
            if len(self.files["vm.raw"]) < self.size and \
                    self.image == "vm.raw":
                self.image = "new.raw"
        self.files.setdefault("base.img", random_data(r, random_size(r)))
        self.files["sub/other"] = b"other"

    def begin(self, files):
        self.files = files
        self.old = disk_of(files) if FILE in files else None

    def prepare(self, files):
        if self.image_is_made and len(files.get(self.image, "")) < self.size:
            return ["truncate", "-s", str(self.size), self.image]
        return None

    def args(self, files):
        words = ["create", "-q", "-i", self.image]
        words += ["-b", self.base, "-F", "raw"] if self.base else []
        words += ["-f"] if FILE in files else []
        return words + [FILE, str(self.size)]

    def is_new(self, files):
        m = Metadata.decode(files[FILE])
        return (m.size, m.backing.decode(), m.image.decode()) == \
            (self.size, self.base, self.image) and not any(m.bitmap)

    def look(self, files, done):
        unchanged(files, self.files, "base.img", "vm.raw", "sub/other")
        if FILE not in files:
            assert self.old is None and not done, "there is no overlay"
        elif self.is_new(files):
            same(disk_of(files),
                 padded(files[self.base] if self.base else b"", self.size),
                 "the new disk")
        else:
            assert not done, "it is not the new one"
            assert self.old is not None, "it is none of both"
            same(files[FILE], self.files[FILE], FILE)
            same(disk_of(files), self.old, "the old disk")


class Resize(Verb):
    """The disk has either size and its content, and what is new is zeroes."""

    leaks = {"stray-bits", "stray-bytes"}

    def make(self):
        r = self.r
        self.sizes = [random_size(r) for _ in range(3)]
        size = self.sizes.pop()
        base = base_or_chain(r, self.files, size)
        if base == "base.img" and r.random() < 0.7:
            self.files[base] = random_data(r, max(self.sizes))
        overlay(r, self.files, size, base, share=r.choice((0.2, 0.5, 1)))
        if r.random() < 0.4:
            self.files["vm.raw"] += r.randbytes(r.randrange(2 * size))
        if r.random() < 0.4:
            self.stray()

    def stray(self):
        """What is past the end is not zero."""
        m = Metadata.decode(self.files[FILE])
        data = bytearray(self.files[FILE])
        data[-1] |= m.stray_mask()
        self.files[FILE] = bytes(data) + b"\xff" * self.r.randrange(900)

    def begin(self, files):
        self.files = files
        self.disks = {disk_of(files)}

    def args(self, files):
        size = str(self.r.choice(self.sizes))
        return ["resize", "-q", "--shrink", FILE, size]

    def resized(self, args):
        return {padded(disk, int(args[-1])) for disk in self.disks}

    def while_(self, args):
        return functools.partial(self.look_for,
                                 self.disks | self.resized(args))

    def after(self, args, status, files):
        disks = self.resized(args)
        self.disks = disks if status == 0 else disks | self.disks
        return functools.partial(self.look_for, self.disks)

    def look_for(self, disks, files):
        unchanged(files, self.files, "base.img", "mid.raw", "mid.add-cow")
        disk = disk_of(files)
        sizes = {len(d): d for d in disks}
        assert len(disk) in sizes, "the disk has %d bytes" % len(disk)
        if disk not in disks:
            same(disk, sizes[len(disk)], "the disk")

    def look_again(self, args, left, files):
        self.look_for({padded(disk_of(left), int(args[-1]))}, files)


class Commit(Verb):
    """The disk is the same, and then nothing is allocated."""

    hints_are_torn = False

    def make(self):
        r = self.r
        size = random_size(r)
        if r.random() < 0.3:
            # Hints that do not lie in one sector, in any order, and change.
            self.hints_are_torn = True
            name = "./" * r.choice((r.randrange(220, 246),
                                    r.randrange(465, 480))) + "base.img"
            self.files["base.img"] = data = random_data(r, r.randrange(size))
            hints = [FORMAT + "raw", "size=%d" % len(data),
                     "mtime=1234567890123456789"]
            r.shuffle(hints)
            self.files[FILE] = header(size, name, "vm.raw", hints)
            self.files["vm.raw"] = bytes(size)
            fill(r, self.files, FILE)
            return
        base = base_or_chain(r, self.files, size)
        if base == "mid.add-cow":
            size = min(size, len(disk_of(self.files, base)))
        overlay(r, self.files, size, base)

    def begin(self, files):
        super().begin(files)
        m = Metadata.decode(files[FILE])
        self.base = beside(FILE, m.backing.decode())
        self.format = format_of(files[FILE])
        self.hints = []
        self.add_hints(files)
        self.below = self.base_in(files)
        self.bits = m.allocated()

    def base_in(self, files):
        return disk_of(files, self.base) if self.format == "add-cow" else \
            files[self.base]

    def args(self, files):
        return ["commit", "-q", FILE]

    def add_hints(self, files):
        self.hints += known_hints(files[FILE]).items()

    def after(self, args, status, files):
        self.add_hints(files)
        return super().after(args, status, files)

    def look_again(self, args, left, files):
        """It may have become longer once more, and is newer."""
        before = self.hints
        self.hints = before + list(known_hints(files[FILE]).items())
        super().look_again(args, left, files)
        self.hints = before

    def look(self, files, done):
        if self.format == "add-cow":
            unchanged(files, self.files, "base.img")
        same(disk_of(files), self.disk, "the disk")
        assert format_of(files[FILE]) == self.format, "the format is lost"
        for hint in known_hints(files[FILE]).items():
            assert hint in self.hints, "nobody wrote the hint %s=%s" % hint
        m = Metadata.decode(files[FILE])
        assert all(old or not new
                   for old, new in zip(self.bits, m.allocated())), \
            "bits are set"
        below, size = self.base_in(files), len(self.disk)
        same(below[size:], self.below[size:], "what is behind the disk")
        assert len(below) in (len(self.below), max(len(self.below), size)), \
            "%s has %d bytes" % (self.base, len(below))
        if done:
            assert not any(m.bitmap), "something is allocated"
            same(padded(below, size), self.disk, self.base)

    def leaks_in(self, files, done):
        leaks = set() if done else {"backing-changed"}
        # Of hints in two sectors one can be old, and what is no hint stays.
        if self.hints_are_torn and not done:
            leaks |= {"hint-no-key", "hint-trailing", "hint-twice"}
        return leaks


class Rebase(Verb):
    """The disk is the same, on either backing file."""

    def make(self):
        r = self.r
        size = random_size(r)
        base = r.choice((base_or_chain(r, self.files, size), "base.img", ""))
        overlay(r, self.files, size, base)
        below = self.below(base)
        self.unsafe = bool(base) and r.random() < 0.2
        self.to = r.choice(("other.img", "other.img", "new.add-cow", ""))
        if self.unsafe:
            self.files["other.img"], self.to = below, "other.img"
        elif self.to == "new.add-cow":
            overlay(r, self.files, r.choice((size, random_size(r))),
                    base if base == "base.img" else "other.img", self.to,
                    "new.raw")
        elif self.to:
            self.files[self.to] = self.changed(below)

    def below(self, base):
        if not base:
            return b""
        return disk_of(self.files, base) if base.endswith(".add-cow") else \
            self.files[base]

    def changed(self, below):
        r = self.r
        other = bytearray(below + r.randbytes(r.randrange(2000)))
        for _ in range(r.randrange(1, 20)):
            n = r.randrange(1, 3000)
            at = r.randrange(len(other) or 1)
            other[at:at + n] = r.choice((r.randbytes, bytes))(n)
        return bytes(other)

    def begin(self, files):
        super().begin(files)
        self.old = Metadata.decode(files[FILE])
        self.old_hints = hints_of(files[FILE])

    def args(self, files):
        words = ["rebase", "-q", "-b", self.to]
        if self.to:
            words += ["-F", "add-cow" if self.to.endswith(".add-cow")
                      else "raw"]
        return words + (["-u"] if self.unsafe else []) + [FILE]

    def look(self, files, done):
        unchanged(files, self.files,
                  *(name for name in self.files
                    if name not in (FILE, "vm.raw")))
        same(disk_of(files), self.disk, "the disk")
        m = Metadata.decode(files[FILE])
        assert all(new or not old for old, new in
                   zip(self.old.allocated(), m.allocated())), "a bit is lost"
        if m.backing.decode() == self.to:
            fmt = format_of(files[FILE])
            assert fmt == self.args(files)[5] if self.to else fmt is None, \
                "its format is %s" % fmt
            return
        assert not done, "it is on %s still" % m.backing
        assert m.backing == self.old.backing, "it is on %s" % m.backing
        same(hints_of(files[FILE]), self.old_hints, "the hints")


class Stream(Verb):
    """The disk is the same, and then the image is."""

    def make(self):
        r = self.r
        size = random_size(r)
        base = base_or_chain(r, self.files, size)
        overlay(r, self.files, size, base, share=r.choice((0, 0.3, 0.9)))

    def begin(self, files):
        super().begin(files)
        self.bits = Metadata.decode(files[FILE]).allocated()

    def args(self, files):
        return ["stream", "-q", FILE]

    def look(self, files, done):
        unchanged(files, self.files, "base.img", "mid.raw", "mid.add-cow")
        same(disk_of(files), self.disk, "the disk")
        bits = Metadata.decode(files[FILE]).allocated()
        assert all(new or not old for old, new in zip(self.bits, bits)), \
            "a bit is lost"
        if done:
            assert all(bits), "not all is allocated"
            same(image_of(files, FILE)[:len(self.disk)], self.disk,
                 "the image")


VERBS = {"create": Create, "resize": Resize, "commit": Commit,
         "rebase": Rebase, "stream": Stream}


class Broken(Exception):
    """What went wrong has nothing to do with power failures."""


# --- Lives. --------------------------------------------------------------

def tree(folder):
    """The files below FOLDER."""
    return {os.path.relpath(os.path.join(top, name), folder):
            read(os.path.join(top, name))
            for top, _, names in os.walk(folder) for name in names}


def write_sparse(r, path, data):
    """Some zeroes become holes, others are written."""
    share = r.choice((0, 0.3, 1))
    with open(path, "wb") as f:
        for at in range(0, len(data), 4096):
            piece = data[at:at + 4096]
            if piece != BLOCK or r.random() < share:
                f.seek(at)
                f.write(piece)
        f.truncate(len(data))


class Life:
    def __init__(self, args, verb, seed, folder):
        self.args = args
        self.name = verb
        self.seed = seed
        self.r = random.Random("%s %d" % (verb, seed))
        self.verb = VERBS[verb](self.r)
        self.disk = os.path.join(folder, "disk")
        self.left = os.path.join(folder, "left")
        self.log = os.path.join(folder, "log")
        self.where = "in the beginning"
        self.ran = []
        self.times = {}             # when files were modified, where known

    def __str__(self):
        return "%s, seed %d, %s; ran %s" % (
            self.name, self.seed, self.where, "; ".join(self.ran))

    def lay(self, folder, files):
        """FILES into FOLDER, as they were when they were modified last."""
        shutil.rmtree(folder, ignore_errors=True)
        for path, data in files.items():
            path = os.path.join(folder, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_sparse(self.r, path, data)
        for path in files.keys() & self.times.keys():
            when = self.times[path]
            os.utime(os.path.join(folder, path), ns=(when, when))
        os.makedirs(os.path.join(folder, "sub"), exist_ok=True)

    # --- Running. ---------------------------------------------------------

    def run(self, folder, command, **env):
        env = dict(os.environ, **env)
        return subprocess.run(command, env=env, cwd=folder, timeout=PATIENCE,
                              stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)

    def logged(self, command, crash_at=None):
        """Returns its status; or CRASHED, if that was asked for."""
        env = {"POWER_LOG": self.log, "POWER_FOLDER": self.disk,
               "POWER_SYNC_US": str(self.r.choice((0, 2000))),
               "LD_PRELOAD": self.args.log_lib}
        if crash_at:
            env.update(LD_PRELOAD=self.args.crash_lib, CRASH_AT=str(crash_at))
        p = self.run(self.disk, command, **env)
        self.ran.append("%s%s" % ("CRASH_AT=%d " % crash_at if crash_at else
                                  "", shlex.join(command)))
        if p.returncode != (CRASHED if crash_at else 0) and p.returncode != 0:
            raise Broken("%s: status %d: %s" % (shlex.join(command),
                                                p.returncode, p.stdout))
        self.found.append((len(power_disks.records_of(self.log)),
                           tree(self.disk)))
        return p.returncode

    def logged_verb(self, crash_at=None):
        """Run it.  What must hold from which record on is in self.looks."""
        args = self.verb.args(tree(self.disk))
        self.looks.append((self.found[-1][0], self.verb.while_(args), False))
        status = self.logged(self.args.img + args, crash_at)
        self.looks.append((self.found[-1][0], self.verb.after(
            args, status, self.found[-1][1]), status == 0))

    # --- A round. ---------------------------------------------------------

    def round(self):
        """Returns the disks that a power failure leaves."""
        self.looks = []
        self.found = [(0, self.verb.files)]
        self.lay(self.disk, self.verb.files)
        inodes = {path: os.stat(os.path.join(self.disk, path)).st_ino
                  for path in self.verb.files}
        if os.path.exists(self.log):
            os.unlink(self.log)
        command = self.verb.prepare(self.verb.files)
        if command:
            self.looks.append((0, self.verb.while_(None), False))
            self.logged(command)
        if self.r.random() < 0.5:
            self.logged_verb(self.r.randrange(1, 30))
        self.logged_verb()
        self.times = {path: os.stat(os.path.join(self.disk, path)).st_mtime_ns
                      for path in tree(self.disk)}
        disks = power_disks.Disks(self.log, self.verb.files, inodes,
                                  self.found)
        for _ in range(self.args.states):
            at, how, files = disks.draw(self.r)
            self.where = "round %d, %d of %d records, %s" % (
                self.rounds, at, len(disks.records), how)
            self.look(at, files)
        return files

    def look(self, at, files):
        look, done = [x[1:] for x in self.looks if x[0] <= at][-1]
        look(files)
        self.lay(self.left, files)
        if FILE in files:
            self.check(self.verb.leaks_in(files, done))
        self.again(files)

    def check(self, leaks):
        p = self.run(self.left, self.args.img +
                     ["check", "--output=json", FILE])
        assert p.returncode in (0, 3), "check: " + p.stdout
        found = {x["what"] for x in json.loads(p.stdout)["problems"]}
        assert found <= leaks, "check finds %s" % found

    def again(self, left):
        """It comes to its end, and keeps its promise."""
        command = self.verb.prepare(left)
        if command and self.run(self.left, command).returncode != 0:
            raise Broken(shlex.join(command))
        args = self.verb.args(left)
        p = self.run(self.left, self.args.img + args)
        assert p.returncode == 0, "%s: %s" % (shlex.join(args), p.stdout)
        files = tree(self.left)
        self.verb.look_again(args, left, files)
        self.check(self.verb.leaks_in(files, True))

    def live(self):
        for self.rounds in range(self.args.rounds):
            files = self.round()
            self.verb.begin(files)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--log-lib", required=True)
    parser.add_argument("--crash-lib", required=True)
    parser.add_argument("--states", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--verb", action="append")
    parser.add_argument("seed", type=int)
    parser.add_argument("lives", type=int)
    parser.add_argument("img", nargs="+")
    args = parser.parse_args()
    for verb in args.verb or VERBS:
        for seed in range(args.seed, args.seed + args.lives):
            with tempfile.TemporaryDirectory() as folder:
                live(Life(args, verb, seed, os.path.realpath(folder)))
        print("%d states of %s, seed %d: nothing lost" % (
            args.lives * args.rounds * args.states, verb, args.seed),
            flush=True)


def live(life):
    """Ends the program with status 2 when something is lost."""
    try:
        life.live()
    except AssertionError as e:
        traceback.print_exc()
        print("lost: %s: %s" % (life, e))
        sys.exit(2)
    except Exception:
        print(life, file=sys.stderr)
        raise


main()

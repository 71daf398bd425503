#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Verbs of addcow-img in which system calls fail.

Each verb is run without a fault first, which counts its calls on each of the
files, and then with a call that fails, see fault-nth.c.  It must be done
when it says so; else it must say why in one line, and what it worked on must
be what it was, also when the power goes then; run again it must be done.

fault_verbs.py SEED RUNS FOLDER IMG...

RUNS is a number, or "all": each call, each error.  IMG is the command
addcow-img, PRELOAD in the environment what is preloaded.
"""

import errno
import os
import random
import subprocess
import sys

import faults
import overlay_files
from faults import CALLS, METADATA, SECTOR, TRACKED, Fault
from overlay_files import read, write

SIZE = 700 * SECTOR
GROWN = 64 * 1024
PATIENCE = 60


def padded(data, size):
    return (data + bytes(max(0, size - len(data))))[:size]


class Verb:
    """On an overlay with some sectors allocated, over a base that is longer
    than the disk.  Files that are replaced cannot be tracked."""
    args = []
    tracked = TRACKED

    def __init__(self, runs):
        self.runs = runs
        self.path = runs.control.path

    def prepare(self):
        for name, content in self.runs.files.items():
            write(self.path(name), content)

    def again(self):
        return self.args

    # What must hold, of the contents of three files.

    def is_same(self, metadata, image, base):
        """What it worked on is what it was."""
        disk = faults.disk(metadata, image, base)
        assert disk == self.runs.disk, "the disk is not what it was"

    def is_done(self, metadata, image, base):
        self.is_same(metadata, image, base)


class Stream(Verb):
    args = ["stream", "vm.add-cow"]

    def is_done(self, metadata, image, base):
        self.is_same(metadata, image, base)
        assert image[:SIZE] == self.runs.disk, "the image is not the disk"
        assert all(faults.Metadata.decode(metadata).allocated())


class Commit(Verb):
    args = ["commit", "vm.add-cow"]

    def is_done(self, metadata, image, base):
        self.is_same(metadata, image, base)
        assert base[:SIZE] == self.runs.disk, "the base is not the disk"


class Grow(Verb):
    args = ["resize", "vm.add-cow", str(SIZE + GROWN)]

    def is_same(self, metadata, image, base):
        disk = faults.disk(metadata, image, base)
        assert disk in (self.runs.disk, self.runs.disk + bytes(GROWN))

    def is_done(self, metadata, image, base):
        disk = faults.disk(metadata, image, base)
        assert disk == self.runs.disk + bytes(GROWN)


class Shrink(Verb):
    args = ["resize", "--shrink", "vm.add-cow", str(SIZE - GROWN)]

    def is_same(self, metadata, image, base):
        disk = faults.disk(metadata, image, base)
        assert disk in (self.runs.disk, self.runs.disk[:SIZE - GROWN])

    def is_done(self, metadata, image, base):
        disk = faults.disk(metadata, image, base)
        assert disk == self.runs.disk[:SIZE - GROWN]


class Rebase(Verb):
    args = ["rebase", "-b", "base2.img", "vm.add-cow"]
    tracked = []

    def backing(self, metadata):
        name = faults.Metadata.decode(metadata).backing
        return read(self.path(os.path.basename(name.decode())))

    def is_same(self, metadata, image, base):
        super().is_same(metadata, image, self.backing(metadata))

    def is_done(self, metadata, image, base):
        self.is_same(metadata, image, base)
        assert faults.Metadata.decode(metadata).backing == b"base2.img"


class Create(Verb):
    """Beside nothing."""
    args = ["create", "-q", "-b", "base.img", "vm.add-cow", str(SIZE)]
    tracked = []

    def prepare(self):
        super().prepare()
        for name in "vm.add-cow", "vm.raw":
            os.unlink(self.path(name))

    def again(self):
        """What is there may have to be replaced."""
        assert self.args[1] == "-q"
        return ["create", "-q", "-f"] + self.args[2:]

    def is_same(self, metadata, image, base):
        if metadata is not None:
            self.is_done(metadata, image, base)

    def is_done(self, metadata, image, base):
        disk = faults.disk(metadata, image, base)
        assert disk == padded(base, SIZE)
        assert not any(faults.Metadata.decode(metadata).allocated())


class Replace(Create):
    """In place of another one, whose image is kept."""
    args = ["create", "-q", "-f", "-b", "base.img", "vm.add-cow", str(SIZE)]

    def prepare(self):
        Verb.prepare(self)

    def again(self):
        return self.args

    def is_same(self, metadata, image, base):
        disk = faults.disk(metadata, image, base)
        assert disk in (self.runs.disk, padded(base, SIZE))


class Check(Verb):
    """Of a file with bits past the last sector, and bytes behind them."""
    args = ["check", "-r", "vm.add-cow"]

    def prepare(self):
        super().prepare()
        data = bytearray(self.runs.files["vm.add-cow"])
        data[-1] |= 0xf0
        write(self.path("vm.add-cow"), bytes(data) + b"behind it")

    def is_done(self, metadata, image, base):
        self.is_same(metadata, image, base)
        assert metadata == self.runs.files["vm.add-cow"]


class Map(Verb):
    """Only reads."""
    args = ["map", "vm.add-cow"]


class Info(Verb):
    args = ["info", "vm.add-cow"]


VERBS = [Stream, Commit, Grow, Shrink, Rebase, Create, Replace, Check, Map,
         Info]


# These have failed: run again, the verb found what it had not made durable.
ALWAYS = [(kind, Fault(METADATA, CALLS.index("fdatasync"), number, errno.EIO,
                       False))
          for kind, number in ((Grow, 3), (Shrink, 2), (Check, 2))]


class Runs:
    def __init__(self, seed, folder, img):
        self.seed = seed
        self.random = random.Random(seed)
        self.control = faults.Control(folder)
        self.img = img
        self.env = dict(os.environ, **self.control.environment())
        self.number = 0
        self.make_files()
        self.preload = os.environ["PRELOAD"]

    def command(self, args, **more):
        return subprocess.run(self.img + args, cwd=self.control.folder,
                              env=self.env, stdin=subprocess.DEVNULL,
                              timeout=PATIENCE, **more)

    def make_files(self):
        os.chdir(self.control.folder)
        faults.make_base("base.img", SIZE + GROWN, self.seed)
        base = read("base.img")
        # Here and there something else.
        other = bytearray(base)
        for at in range(0, SIZE, 9 * 4096):
            other[at:at + 700] = self.random.randbytes(700)
        write("base2.img", other)
        self.command(["create", "-q", "-b", "base.img", "vm.add-cow",
                      str(SIZE)], check=True)
        disk = bytearray(base[:SIZE])
        overlay_files.fill("vm.add-cow", disk, self.seed)
        self.disk = bytes(disk)
        self.files = {name: read(name) for name in
                      ["base.img", "base2.img", "vm.add-cow", "vm.raw"]}

    def contents(self, choose=None):
        """Of the files as they are, or as they may be left."""
        found = []
        for i, name in enumerate(TRACKED):
            if not os.path.exists(self.control.path(name)):
                found.append(None)
            elif choose is None:
                found.append(read(self.control.path(name)))
            else:
                found.append(self.control.left(i, choose[i]))
        return found

    def one(self, kind, wanted):
        """Run the verb; does it do what it should?"""
        verb = kind(self)
        for name in os.listdir("."):
            if name not in ("base.img", "base2.img"):
                os.unlink(name)
        verb.prepare()
        self.control.reset(wanted, self.random.choice([0, 0, 1, 12345]),
                           verb.tracked)
        self.env["LD_PRELOAD"] = self.preload
        self.output = self.command(verb.args, capture_output=True)
        hit = self.control.hit()
        counts = self.control.nr_calls()
        holds = verb.is_done
        if self.output.returncode:
            self.look_at_failure(hit)
            holds = verb.is_same
        self.look(verb, holds)
        if self.output.returncode:
            self.run_again(verb)
        return bool(hit), counts

    def look_at_failure(self, hit):
        status, lines = self.output.returncode, self.output.stderr.splitlines()
        assert any(not f.is_harmless() for f in hit), "it failed for nothing"
        assert status == 1, "status %d" % status
        assert len(lines) == 1 and lines[0].startswith(b"addcow-img: ")
        assert not self.output.stdout

    def run_again(self, verb):
        self.control.switch(False)
        args = verb.again() if os.path.exists("vm.add-cow") else verb.args
        self.output = self.command(args, capture_output=True)
        assert self.output.returncode == 0, "it fails when run again"
        self.look(verb, verb.is_done)

    def look(self, verb, holds):
        """Now, and when the power goes now."""
        holds(*self.contents())
        for choose in self.control.losses(self.random) if verb.tracked else []:
            holds(*self.contents(choose))

    def try_one(self, kind, wanted):
        self.number += 1
        # So that it can be repeated.
        self.random = random.Random("%s %d" % (self.seed, self.number))
        try:
            return self.one(kind, wanted)
        except BaseException:
            print("ADDCOW_SEED=%s ADDCOW_RUN='%d: %s; %s'" % (
                self.seed, self.number, kind.__name__,
                "; ".join(map(str, wanted))))
            print(self.output)
            print({(faults.FILES[f], CALLS[c]): n for (f, c), n
                   in self.control.nr_calls().items()})
            raise

    def run(self, how_many):
        if "ADDCOW_RUN" in os.environ:
            number, name, wanted = faults.parse(os.environ["ADDCOW_RUN"])
            self.number = number - 1
            self.try_one(globals()[name], wanted)
            return
        everything = []
        for kind in VERBS:
            _, counts = self.try_one(kind, [])
            found = faults.all_faults(counts)
            print(kind.__name__, {(faults.FILES[f], CALLS[c]): n
                                  for (f, c), n in sorted(counts.items())})
            assert found
            everything += [(kind, f) for f in found]
        chosen = everything if how_many == "all" else \
            self.sample(everything, int(how_many))
        nr_hit = 0
        for kind, fault in ALWAYS + chosen:
            hit, _ = self.try_one(kind, [fault])
            nr_hit += hit
        print("%d runs of %d, %d with a fault, seed %s: nothing lost" % (
            len(ALWAYS + chosen), len(everything), nr_hit, self.seed))

    def sample(self, everything, n):
        """Of each kind alike, be there many such calls or few."""
        r = random.Random(self.seed)
        kinds = {}
        for e in everything:
            kinds.setdefault((e[0], e[1].file, e[1].call), []).append(e)
        chosen = []
        while len(chosen) < n:
            for of_kind in r.sample(list(kinds.values()), len(kinds)):
                chosen.append(r.choice(of_kind))
        return chosen[:n]


def main():
    seed, runs, folder = sys.argv[1:4]
    print("seed:", seed, flush=True)
    Runs(seed, folder, sys.argv[4:]).run(runs)


if __name__ == "__main__":
    main()

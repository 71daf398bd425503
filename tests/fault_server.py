#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Lives of a server in which system calls fail, against a model.

In each life a script of requests is run by two clients.  First it is run
without a fault, which counts the calls on each of the files; then each life
has a call that fails, or a few, see fault-nth.c.  The clients must get the
errno of the fault and no other; what was acknowledged must be there; when
the fault is gone all must work again; what was flushed must be there
when the power goes, in whatever way, and what a sync that failed may have
dropped is written again.

fault_server.py SEED LIVES FOLDER IMG... -- SERVER...

LIVES is a number, or "all": each call, each error.  IMG and SERVER are the
commands addcow-img and nbdkit with the filter, PRELOAD in the environment
what is preloaded into the latter.
"""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time

import nbd

import faults
from faults import BACKING, CALLS, IMAGE, METADATA, OTHER, SECTOR, Fault

# Where requests go to: one area has its bits in two sectors of the metadata
# file.  The base ends before the disk and in a sector.
SIZE = 4107 * SECTOR
BASE_SIZE = SIZE - 20 * SECTOR - 100
BITS_END = (2560 - 2068) * 8
AREA = 28
AREAS = [0, 2000, BITS_END - 12, SIZE // SECTOR - AREA]
PATIENCE = 30 if os.environ.get("SANITIZER") else 60

# What NBD has for an errno.
NBD_ERRNO = {errno.EMFILE: errno.EINVAL}

SCENARIOS = {
    "plain": [],
    "on-read": ["addcow-on-read=true", "addcow-on-cache=true"],
    "hydrate": ["addcow-hydrate=true", "addcow-on-read=true"],
    "chain": [],
}


# Interrupted, these have failed.
ALWAYS = [("plain", METADATA, "open", 1), ("plain", METADATA, "fdatasync", 2),
          ("plain", IMAGE, "open", 1), ("plain", IMAGE, "fdatasync", 2),
          ("plain", IMAGE, "pwrite", 2), ("plain", IMAGE, "fallocate", 2),
          ("plain", BACKING, "open", 1)]

# What comes after the interruption was taken for another one, for ever.
ALWAYS_AGAIN = [("plain", IMAGE, call, 2) for call in
                ("pread", "pwrite", "fallocate", "fdatasync")]


class Model:
    """What each sector may be: read now, and when the power has gone.

    A sector is dirty when it was written since a flush, and suspect when its
    bit was in the metadata file and a sync failed after it was written: then
    the system may have dropped what was written, and the client was told.
    Nothing of the kind may happen to a sector whose bit is not there yet.
    """

    def __init__(self, base, fills):
        self.base = (base + bytes(SIZE))[:SIZE]
        self.fills = fills      # sectors get allocated by themselves
        self.now = {}           # sector: {content, ...}
        self.then = {}
        self.dirty = set()
        self.allocated = set()  # by a client
        self.suspect = set()

    def get(self, sector):
        return self.now.get(sector) or {self.original(sector)}

    def may_be_now(self, sector):
        """Who fills lets the system forget what it could not write."""
        if self.fills and sector in self.suspect:
            return self.get(sector) | self.may_be_then(sector)
        return self.get(sector)

    def original(self, sector):
        return self.base[sector * SECTOR:(sector + 1) * SECTOR]

    def may_be_then(self, sector):
        return self.then.get(sector) or {self.original(sector)}

    @staticmethod
    def sectors(offset, count):
        return range(offset // SECTOR, (offset + count - 1) // SECTOR + 1)

    def patched(self, sector, offset, data):
        begin = max(offset, sector * SECTOR)
        end = min(offset + len(data), (sector + 1) * SECTOR)
        piece = data[begin - offset:end - offset]
        at = begin - sector * SECTOR
        return {c[:at] + piece + c[at + len(piece):]
                for c in self.may_be_now(sector)}

    def write(self, offset, data, done, fua, keeps=False):
        """DONE: it was acknowledged.  KEEPS: or nothing at all was done."""
        for s in self.sectors(offset, len(data)):
            new = self.patched(s, offset, data)
            if keeps and (s in self.allocated or self.fills):
                new |= self.get(s)
            if done:
                self.now[s] = new
                self.allocated.add(s)
                if not keeps:
                    self.suspect.discard(s)
            elif s in self.allocated or fua or self.fills:
                self.now[s] = self.get(s) | new
            else:
                continue        # nothing of it may be seen, ever
            if fua:
                self.allocated.add(s)   # if only its flush failed
            self.then[s] = self.may_be_then(s) | new
            self.dirty.add(s)
            # What a trim left alone may be what a sync dropped before.
            if done and fua and s not in self.suspect:
                self.then[s] = set(self.now[s])
                self.dirty.discard(s)

    def flushed(self):
        for s in list(self.dirty):
            if s in self.suspect:
                continue
            self.then[s] = set(self.now[s])
            self.dirty.discard(s)

    def sync_failed(self, bits):
        """BITS says of each sector whether its bit is in the file."""
        for s in self.dirty:
            if bits[s] or s not in self.allocated or self.fills:
                self.suspect.add(s)

    def read(self, offset, data):
        for s in self.sectors(offset, len(data)):
            begin = max(offset, s * SECTOR)
            end = min(offset + len(data), (s + 1) * SECTOR)
            got = data[begin - offset:end - offset]
            at = slice(begin - s * SECTOR, end - s * SECTOR)
            may = self.may_be_now(s)
            assert got in {c[at] for c in may}, "sector %d reads wrong" % s
            if s in self.now and not self.fills:
                self.now[s] = {c for c in self.now[s] if c[at] == got}

    def check(self, disk, what, *of):
        """Each sector of DISK is one of those in OF."""
        want = bytearray(self.base)
        for s in set().union(*of):
            got = disk[s * SECTOR:(s + 1) * SECTOR]
            may = set().union(*(o.get(s) or {self.original(s)} for o in of))
            assert got in may, "%s: sector %d is lost (%s%s%s)" % (
                what, s, "dirty " * (s in self.dirty),
                "allocated " * (s in self.allocated),
                "suspect " * (s in self.suspect))
            want[s * SECTOR:(s + 1) * SECTOR] = got
        assert disk == want, "%s: what nobody wrote has changed" % what

    def check_now(self, disk, what):
        of = [self.now]
        if self.fills:
            of.append({s: self.may_be_then(s) for s in self.suspect})
        self.check(disk, what, *of)

    def check_then(self, disk, what):
        self.check(disk, what, self.then)

    def check_either(self, disk, what):
        self.check(disk, what, self.now, self.then)


def script(r):
    """The requests: (kind, client, offset, count, flags)."""
    steps = []

    def place(longest):
        area = r.choice(AREAS) * SECTOR
        count = r.randrange(1, longest * SECTOR)
        offset = area + r.randrange(AREA * SECTOR - count)
        if r.random() < 0.6:
            offset -= offset % SECTOR
            count += -count % SECTOR
        return offset, min(count, SIZE - offset)

    def add(kind, longest=6, flags=0, client=0):
        steps.append((kind, client, *place(longest), flags))
    fua = nbd.CMD_FLAG_FUA
    kinds = [("write", 0), ("write", 0), ("write", fua), ("zero", 0),
             ("zero", nbd.CMD_FLAG_NO_HOLE), ("zero", fua), ("trim", 0),
             ("trim", fua), ("read", 0), ("read", 0), ("cache", 0),
             ("status", 0), ("flush", 0), ("flush", 0)]
    for _ in range(2):
        order = kinds * 2
        r.shuffle(order)
        for kind, flags in order:
            add(kind, 6, flags)
        # Another client comes, writes, and leaves without a flush.
        add("write", 6, 0, 1)
        add("write", 6, 0, 1)
        steps.append(("leave", 1, 0, 0, 0))
        add("flush")
    return steps


class Ended(Exception):
    """The server did not start, or let no client in."""


class Life:
    def __init__(self, lives, number, what, steps, wanted):
        self.lives, self.steps = lives, steps
        self.control = lives.control
        self.what = what
        self.random = random.Random("%s %d" % (lives.seed, number))
        self.fills = what in ("on-read", "hydrate")
        self.wanted = wanted
        self.off_at = None
        self.may_fail_flushes = 0

    # --- The server. -------------------------------------------------------

    def start(self, options):
        for name in self.lives.sock, self.lives.pidfile:
            if os.path.exists(name):
                os.unlink(name)
        self.log = open(self.lives.log, "wb")
        self.process = subprocess.Popen(
            self.lives.server + ["-f", "-t", "4", "-U", self.lives.sock,
                                 "-P", self.lives.pidfile, "file",
                                 "addcow=vm.add-cow",
                                 "addcow-commit-interval=0"] + options,
            cwd=self.control.folder, stderr=self.log, env=self.lives.env)
        end = time.monotonic() + PATIENCE
        while not (os.path.exists(self.lives.pidfile) and
                   os.path.getsize(self.lives.pidfile)):
            status = self.process.poll()
            if status is None and time.monotonic() > end:
                status = self.hangs(1)
            if status is not None:
                self.ended()
                assert status == 1, "the server ended with %d" % status
                raise Ended
            time.sleep(0.002)

    def stop(self, sig):
        # Who waits for requests would keep the server from ending.
        for h in self.clients if sig == signal.SIGTERM else []:
            if h:
                h.shutdown()
        self.clients = [None, None]
        with open(self.lives.pidfile) as f:
            os.kill(int(f.read()), sig)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            status = self.hangs(0)
        self.ended()
        # It may not have come so far.
        if status == 1 and not self.was_connected and self.control.hit():
            return
        assert sig == signal.SIGKILL or status == 0, \
            "the server ended with %d" % status

    def does_not_answer(self, process):
        """So that the clients hear of it."""
        print("the server does not answer")
        process.kill()

    def hangs(self, status):
        """It should have ended with STATUS.  With a sanitizer preloaded nbdkit
        may hang in exit, see functions.sh."""
        self.process.kill()
        self.process.wait()
        assert os.environ.get("SANITIZER"), "the server does not end"
        return status

    def killed(self):
        """Something is wrong: it may have ended."""
        try:
            print("the server has ended with", self.process.wait(1))
        except subprocess.TimeoutExpired:
            self.process.kill()

    def ended(self):
        self.log.close()
        self.process = None

    def connect(self):
        h = nbd.NBD()
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        try:
            h.connect_uri("nbd+unix:///?socket=" + self.lives.sock)
        except nbd.Error:
            return None
        # The file plugin does what it can.
        if h.is_read_only():
            try:
                h.flush()
            except nbd.Error as ex:
                self.expect("flush", ex.errnum)
            h.shutdown()
            return None
        self.was_connected = True
        return h

    # --- Requests. ---------------------------------------------------------

    def run_step(self, kind, h, offset, count, flags):
        """Returns the errno that it failed with, or 0."""
        data = bytes(count)
        if kind == "write":
            data = self.random.randbytes(count)
        try:
            if kind == "read":
                self.model.read(offset, bytes(h.pread(count, offset)))
            elif kind == "cache":
                h.cache(count, offset)
            elif kind == "status":
                h.block_status(count, offset, lambda *args: 0)
            elif kind == "flush":
                h.flush()
            elif kind == "write":
                h.pwrite(data, offset, flags)
            elif kind == "zero":
                h.zero(count, offset, flags)
            else:
                h.trim(count, offset, flags)
            err = 0
        except nbd.Error as ex:
            err = ex.errnum
        if kind in ("write", "zero", "trim"):
            self.model.write(offset, data, err == 0, flags & nbd.CMD_FLAG_FUA,
                             kind == "trim")
        return err

    def expect(self, kind, err):
        """Could it fail with ERR?"""
        may = {NBD_ERRNO.get(f.err, f.err) for f in self.control.hit()
               if not f.is_harmless()}
        assert err in may, "%s failed with %s" % (kind, errno.errorcode[err])
        if self.off_at is not None:
            assert kind == "flush" and self.may_fail_flushes > 0, \
                "%s failed when the fault was gone" % kind
            self.may_fail_flushes -= 1

    def step(self, kind, client, offset, count, flags):
        if kind == "leave":
            if self.clients[client]:
                self.clients[client].shutdown()
            self.clients[client] = None
            return self.look_at_syncs()
        if self.clients[client] is None:
            self.clients[client] = self.connect()
            if self.clients[client] is None:
                return self.not_connected()
        told = self.failed[IMAGE] if self.untold else None
        err = self.run_step(kind, self.clients[client], offset, count, flags)
        if err:
            self.expect(kind, err)
        if kind == "flush" and client == 0:
            assert err or not told, "a failed sync was told to nobody"
            self.untold = False
        # Of two syncs at a time one may have the answer for both, and filling
        # writes out in its own time.
        another = self.fills and self.control.nr_failed_syncs() != self.failed
        if kind == "flush" and err == 0 and not another:
            self.model.flushed()
        return self.look_at_syncs()

    def not_connected(self):
        """It is because of a fault, perhaps as the server did not come so far
        as to let clients in."""
        assert self.control.hit(), "cannot connect"
        if self.off_at is not None and not self.was_connected:
            try:
                status = self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                status = self.hangs(1)
            self.ended()
            assert status == 1, "the server ended with %d" % status
            raise Ended
        assert self.off_at is None, "cannot connect when the fault is gone"

    def look_at_syncs(self):
        failed = self.control.nr_failed_syncs()
        if failed != self.failed:
            self.model.sync_failed(faults.Metadata.decode(faults.read(
                self.control.path("vm.add-cow"))).allocated())
            self.failed = failed

    # --- A life. -----------------------------------------------------------

    def run_script(self):
        for i, step in enumerate(self.steps):
            if i == self.switch_at:
                self.switch_off()
            before = self.failed[IMAGE]
            kind, client = step[0], step[1]
            self.step(*step)
            # What failed during a flush it has told.
            if self.failed[IMAGE] != before and \
                    not (kind == "flush" and client == 0):
                self.untold = True

    def switch_off(self):
        self.control.switch(False)
        self.off_at = True
        self.may_fail_flushes = 2 if self.what == "hydrate" else 1

    def flush_at_last(self):
        """Until it succeeds, which is soon."""
        if self.off_at is None:
            self.switch_off()
        for _ in range(3):
            before = self.may_fail_flushes
            self.step("flush", 0, 0, 0, 0)
            assert self.clients[0]
            if self.may_fail_flushes == before:
                return
        raise AssertionError("flushes fail when the fault is gone")

    def read_all(self):
        h = self.clients[0]
        disk = b"".join(bytes(h.pread(min(1 << 20, SIZE - at), at))
                        for at in range(0, SIZE, 1 << 20))
        self.model.check_now(disk, "read at the end")
        return disk

    def disk_on_file(self, choose=None):
        parts = [faults.read(self.control.path(name))
                 if choose is None else self.control.left(i, choose[i])
                 for i, name in enumerate(faults.TRACKED[:2])]
        return faults.disk(*parts, self.lives.base)

    def lose_power(self):
        for number, choose in enumerate(self.control.losses(self.random)):
            self.model.check_then(self.disk_on_file(choose),
                                  "power failure %d" % number)

    def end(self):
        how = self.random.choice(["flush", "flush", "kill", "stop",
                                  "stop with faults"])
        if self.clients[0] is None:
            how = "stop with faults"
        if how == "flush":
            self.flush_at_last()
            self.read_all()
            self.complete()
            self.stop(signal.SIGTERM)
            self.model.check_now(self.disk_on_file(), how)
        elif how == "kill":
            self.stop(signal.SIGKILL)
            self.model.check_either(self.disk_on_file(), how)
        elif how == "stop":
            if self.off_at is None:
                self.switch_off()
            self.stop(signal.SIGTERM)
            self.model.check_now(self.disk_on_file(), how)
        else:
            self.stop(signal.SIGTERM)
            self.model.check_either(self.disk_on_file(), how)
        self.look_at_syncs()
        self.lose_power()

    def complete(self):
        """Sometimes, wait until the image has all."""
        if self.what != "hydrate" or self.random.random() < 0.5:
            return
        end = time.monotonic() + PATIENCE
        while not all(faults.Metadata.decode(faults.read(
                self.control.path("vm.add-cow"))).allocated()):
            assert time.monotonic() < end, "never filled"
            time.sleep(0.05)
        self.flush_at_last()

    def go_on(self):
        """Another server, without faults, sees what is on the disk and
        works."""
        self.control.switch(False)
        self.start([])
        try:
            # It has let the system forget bits that are in memory alone.
            before = self.disk_on_file()
            self.model.check_either(before, "another server")
            h = self.connect()
            assert h, "cannot connect"
            for at in range(0, SIZE, 1 << 20):
                n = min(1 << 20, SIZE - at)
                assert bytes(h.pread(n, at)) == before[at:at + n], \
                    "another server reads something else"
            h.pwrite(b"x" * 700, 100)
            h.flush()
            self.clients[0] = h
            self.stop(signal.SIGTERM)
        except BaseException:
            self.process.kill()
            raise
        want = before[:100] + b"x" * 700 + before[800:]
        assert self.disk_on_file() == want

    def prepare(self):
        self.lives.fresh(self.what)
        self.control.reset(self.wanted, self.random.choice([0, 0, 1, 12345]),
                           faults.TRACKED[:2])
        self.model = Model(self.lives.base, self.fills)
        self.failed = self.control.nr_failed_syncs()
        self.untold = False
        self.clients = [None, None]
        self.was_connected = False
        self.switch_at = self.random.randrange(2 * len(self.steps))

    def run(self):
        self.prepare()
        try:
            self.start(SCENARIOS[self.what])
            watch = threading.Timer(5 * PATIENCE, self.does_not_answer,
                                    [self.process])
            watch.start()
            try:
                self.run_script()
                self.end()
            finally:
                watch.cancel()
        except Ended:
            assert any(not f.is_harmless() for f in self.control.hit()), \
                "the server does not start"
            assert self.disk_on_file() == self.model.base
            return
        except BaseException:
            if self.process:
                self.killed()
            raise
        if self.random.random() < 0.2:
            self.go_on()

    def __str__(self):
        return "%s; %s" % (self.what, "; ".join(map(str, self.wanted)))


class Lives:
    def __init__(self, seed, folder, img, server):
        self.seed = seed
        self.control = faults.Control(folder)
        self.img, self.server = img, server
        self.sock = os.path.join(folder, "sock")
        self.pidfile = os.path.join(folder, "pid")
        self.log = os.path.join(folder, "log")
        self.env = dict(os.environ, **self.control.environment())
        self.env["LD_PRELOAD"] = self.env["PRELOAD"]
        self.number = 0
        self.only = os.environ.get("ADDCOW_LIFE")
        faults.make_base(self.control.path("base.img"), BASE_SIZE, seed)
        self.base = faults.read(self.control.path("base.img"))
        self.make_chain()
        self.make_metadata()
        self.backing = self.backing_files()

    def run_img(self, *args):
        subprocess.run(self.img + list(args), cwd=self.control.folder,
                       check=True)

    def make_chain(self):
        """An overlay that has every other 4096 bytes of the base, over
        another file that has the others."""
        image = bytearray(self.base) + bytes(-len(self.base) % SECTOR)
        other = bytearray(self.base)
        n = len(self.base) // 4096
        for at in range(0, n * 4096, 8192):
            other[at:at + 4096] = bytes(4096)
            image[at + 4096:at + 8192] = bytes(4096)
        for name, content in ("base.raw", image), ("base-low.img", other):
            with open(self.control.path(name), "wb") as f:
                f.write(content)
        self.run_img("create", "-q", "-b", "base-low.img", "-i", "base.raw",
                     "base.add-cow")
        with open(self.control.path("base.add-cow"), "r+b") as f:
            for i in range(0, n, 2):
                f.seek(faults.BITMAP_AT + i)
                f.write(b"\xff")

    def make_metadata(self):
        """{scenario: a new overlay}"""
        self.metadata = {}
        for what in SCENARIOS:
            base = ["base.add-cow", "-F", "add-cow"] if what == "chain" \
                else ["base.img"]
            self.run_img("create", "-q", "-f", "-b", *base, "vm.add-cow",
                         str(SIZE))
            self.metadata[what] = faults.read(
                self.control.path("vm.add-cow"))

    def fresh(self, what):
        """A new overlay, with rubbish in the image."""
        with open(self.control.path("vm.add-cow"), "wb") as f:
            f.write(self.metadata[what])
        with open(self.control.path("vm.raw"), "wb") as f:
            f.truncate(SIZE)
            for area in AREAS:
                f.seek(area * SECTOR)
                f.write(b"\xee" * (AREA * SECTOR))

    def backing_files(self):
        return [faults.read(self.control.path(name)) for name in (
            "base.img", "base-low.img", "base.raw", "base.add-cow")]

    def live(self, what, steps, wanted):
        self.number += 1
        life = Life(self, self.number, what, steps, wanted)
        try:
            life.run()
        except BaseException:
            print("ADDCOW_SEED=%s ADDCOW_LIFE='%d: %s'" % (
                self.seed, self.number, life))
            print("".join("%d %s\n" % s for s in enumerate(steps)))
            with open(self.log, errors="replace") as f:
                print(f.read(20000))
            raise
        return bool(self.control.hit())

    def wanted(self, file, call):
        """The plugin opens the image, and tells nobody to do it again; and
        what is made beside the files is not ours."""
        return file != OTHER

    def run(self, how_many):
        r = random.Random(self.seed)
        scripts = {what: script(r) for what in SCENARIOS}
        if self.only:
            number, what, wanted = faults.parse(self.only)
            self.number = number - 1
            self.live(what, scripts[what], wanted)
            return
        everything = []
        for what, steps in scripts.items():
            self.live(what, steps, [])
            counts = self.control.nr_calls()
            print(what, {(faults.FILES[f], CALLS[c]): n
                         for (f, c), n in sorted(counts.items())})
            everything += [(what, steps, f) for f in
                           faults.all_faults(counts, self.wanted)
                           if not (f.file == IMAGE and
                                   CALLS[f.call] == "open" and
                                   f.err == errno.EINTR)]
        for what, file, call, n in ALWAYS:
            self.live(what, scripts[what],
                      [Fault(file, CALLS.index(call), n, errno.EINTR, False)])
        for what, file, call, n in ALWAYS_AGAIN:
            self.live(what, scripts[what],
                      [Fault(file, CALLS.index(call), n, errno.EINTR, False),
                       Fault(file, CALLS.index(call), n + 1, errno.EIO, True)])
        chosen = everything if how_many == "all" else \
            self.sample(r, everything, int(how_many))
        hit = 0
        for what, steps, fault in chosen:
            of_two = [fault]
            if r.random() < 0.25:
                of_two.append(r.choice([f for w, _, f in everything
                                        if w == what]))
            hit += self.live(what, steps, of_two)
        assert self.backing_files() == self.backing
        print("%d lives of %d, %d with a fault, seed %s: nothing lost" % (
            len(chosen), len(everything), hit, self.seed))

    @staticmethod
    def sample(r, everything, n):
        """Of each kind alike, be there many such calls or few."""
        kinds = {}
        for e in everything:
            what, steps, f = e
            kinds.setdefault((what, f.file, f.call), []).append(e)
        chosen = []
        while len(chosen) < n:
            for of_kind in r.sample(list(kinds.values()), len(kinds)):
                chosen.append(r.choice(of_kind))
        return chosen[:n]


def main():
    seed, lives, folder = sys.argv[1:4]
    commands = sys.argv[4:]
    i = commands.index("--")
    print("seed:", seed, flush=True)
    Lives(seed, folder, commands[:i], commands[i + 1:]).run(lives)


if __name__ == "__main__":
    main()

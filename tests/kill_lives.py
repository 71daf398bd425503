# SPDX-License-Identifier: BSD-3-Clause
"""A server that is killed again and again, and what is left each time.

Several connections, each with several requests under way, write, zero, trim,
read, cache and flush one disk, while it is filled.  In the middle of that the
server is ended, and the files are looked at without it.

The system goes on, so a killed server loses nothing but what is in its
memory: bits.  A sector whose bit is not on disk reads as the backing file, and
may unless a flush, a FUA write or an earlier life had made it durable.  In any
other one each cell, a part of a sector, has what was acknowledged last, or
what was not acknowledged yet.  Of requests that overlapped, either may be the
last.  A server that was told to stop, and one whose clients have left, loses
no bits either.

kill_lives.py OPTION... -- SERVER...    in a folder with base.img,
                                        vm.add-cow, vm.raw

SERVER is the command that serves vm.add-cow; parameters are added.
"""

import argparse
import errno
import os
import random
import select
import signal
import subprocess

from addcow_format import BITMAP_AT, SECTOR, Metadata
from fill_client import PATIENCE, wait_for
from model import Server
from overlay_files import content, read
import nbd

CLIENTS = 4
DEPTH = 4
CRASH_STATUS = 99       # of tests/crash-at.c
LONGEST = 1 << 16

# Why a request fails, if it does, when the server was told to stop.
GONE = 0, errno.ESHUTDOWN, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE


class Change:
    """A write, zero or trim of the cells FIRST to END - 1."""

    def __init__(self, first, end, offset, data, fua):
        self.first, self.end = first, end
        self.offset, self.data, self.fua = offset, data, fua
        self.sent = self.acked = None

    def of(self, at, end):
        """What it has given to the bytes from AT to END."""
        return self.data[at - self.offset:end - self.offset]


class Disk:
    """What may be there.  Times are the numbers of events."""

    def __init__(self, size, r):
        self.size = size
        self.edges = []         # where cells begin, and the end
        self.cell_of = []       # of each sector its first one, and the end
        for at in range(0, size, SECTOR):
            self.cell_of.append(len(self.edges))
            cuts = r.sample(range(1, SECTOR), r.choice([0, 0, 0, 1, 3]))
            self.edges += [at] + [at + cut for cut in sorted(cuts)]
        self.cell_of.append(len(self.edges))
        self.edges.append(size)
        self.time = 0

    def begin(self, content, bits):
        """A life begins with CONTENT, and BITS on disk."""
        self.start = Change(0, len(self.edges) - 1, 0, content, False)
        self.start.sent = self.start.acked = self.time
        # Of each cell, the changes that can be what is there.
        self.last = [[self.start] for _ in self.edges[1:]]
        self.bits = list(bits)  # what must be on disk
        self.waiting = {}       # {sector: when its change was acknowledged}

    def tick(self):
        self.time += 1
        return self.time

    def sectors(self, change):
        end = self.edges[change.end]
        return range(change.offset // SECTOR, -(-end // SECTOR))

    def sent(self, change):
        change.sent = self.tick()
        for cell in range(change.first, change.end):
            self.last[cell].append(change)

    def acked(self, change):
        change.acked = self.tick()
        for cell in range(change.first, change.end):
            self.last[cell] = [
                c for c in self.last[cell]
                if c.acked is None or c.acked > change.sent or c is change]
        for sector in self.sectors(change):
            if change.fua:
                self.bits[sector] = True
            elif not self.bits[sector]:
                self.waiting.setdefault(sector, change.acked)

    def flushed(self, sent):
        """A flush that was sent at that time is acknowledged."""
        for sector, acked in list(self.waiting.items()):
            if acked < sent:
                self.bits[sector] = True
                del self.waiting[sector]

    def none_waits(self):
        self.flushed(self.tick())

    def expect(self, got, bits, end):
        """After END, the bytes GOT are there, and BITS on disk."""
        for sector, bit in enumerate(bits):
            assert bit or not self.bits[sector], \
                "%s: the bit of sector %d is lost" % (end, sector)
            # Without a bit it is what the backing file has, see look().
            if bit:
                for cell in range(*self.cell_of[sector:sector + 2]):
                    self.expect_cell(cell, got, end)

    def expect_cell(self, cell, got, end):
        at = self.edges[cell:cell + 2]
        assert any(got[slice(*at)] == c.of(*at) for c in self.last[cell]), \
            "%s: wrong data at [%d, %d), in sector %d" % (
                end, *at, at[0] // SECTOR)


class Read:
    def __init__(self, disk, first, end):
        self.first, self.end = first, end
        self.begin, self.stop = disk.edges[first], disk.edges[end]
        self.may = [list(l) for l in disk.last[first:end]]

    def see(self, change):
        """CHANGE is sent while this is under way."""
        for cell in range(max(self.first, change.first),
                          min(self.end, change.end)):
            self.may[cell - self.first].append(change)

    def expect(self, got, disk):
        for cell, may in enumerate(self.may, self.first):
            # One under way may be there by half.
            if any(c.acked is None or c.acked > self.sent for c in may):
                continue
            at, end = disk.edges[cell:cell + 2]
            assert any(got[at - self.begin:end - self.begin] == c.of(at, end)
                       for c in may), \
                "wrong data read at [%d, %d)" % (at, end)


class Life:
    """The load on a server, from its start to its end."""

    def __init__(self, disk, server, r, end):
        self.disk, self.server, self.random = disk, server, r
        self.end = end          # an End
        self.reads = set()
        self.nr_acked = 0
        self.completed = []     # (error, what is to be done)
        self.failed = 0
        self.flush_share = r.choice([0, 0.01, 0.1])
        self.locality = r.choice([None, r.randrange(disk.size)])
        self.handles = []

    # Requests.

    def cells(self):
        """A range of cells: many small ones, some long, half of them near
        each other."""
        n = len(self.disk.edges) - 1
        at = self.random.randrange(self.disk.size)
        if self.locality is not None and self.random.random() < 0.5:
            at = (self.locality + at % 20000) % self.disk.size
        first = self.disk.cell_of[at // SECTOR]
        first += self.random.randrange(
            self.disk.cell_of[at // SECTOR + 1] - first)
        length = int(2 ** self.random.uniform(0, 7.5))
        end = min(first + length, n)
        while self.disk.edges[end] - self.disk.edges[first] > LONGEST:
            end -= 1
        return first, end

    def send(self, h):
        if self.random.random() < self.flush_share:
            self.flush(h)
            return
        kind = self.random.choices(
            ["write", "zero", "trim", "read", "cache"],
            [10, 2, 2, 4, 0.5])[0]
        first, end = self.cells()
        if kind == "read":
            self.read(h, first, end)
        elif kind == "cache":
            at = self.disk.edges[first]
            h.aio_cache(self.disk.edges[end] - at, at,
                        completion=self.done(lambda: None))
        else:
            self.change(h, kind, first, end)

    def done(self, then):
        """A completion for which THEN is called, soon."""
        def completion(err):
            self.completed.append((err.value, then))
            return 1
        return completion

    def look_at_completed(self):
        for err, then in self.completed:
            if err:
                if not self.failed:
                    self.failed = err
            else:
                self.nr_acked += 1
                then()
        self.completed.clear()

    def flush(self, h):
        sent = self.disk.tick()
        h.aio_flush(completion=self.done(lambda: self.disk.flushed(sent)))

    def read(self, h, first, end):
        r = Read(self.disk, first, end)
        r.sent = self.disk.tick()
        buf = nbd.Buffer(r.stop - r.begin)

        def then():
            self.reads.discard(r)
            r.expect(bytes(buf.to_bytearray()), self.disk)
        self.reads.add(r)
        h.aio_pread(buf, r.begin, completion=self.done(then))

    def change(self, h, kind, first, end):
        at = self.disk.edges[first]
        n = self.disk.edges[end] - at
        data = self.random.randbytes(n) if kind == "write" else bytes(n)
        fua = self.random.random() < 0.03
        c = Change(first, end, at, data, fua)
        self.disk.sent(c)
        for r in self.reads:
            r.see(c)
        flags = nbd.CMD_FLAG_FUA if fua else 0
        completion = self.done(lambda: self.disk.acked(c))
        if kind == "write":
            h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at,
                         completion=completion, flags=flags)
        elif kind == "zero":
            if self.random.random() < 0.5:
                flags |= nbd.CMD_FLAG_NO_HOLE
            h.aio_zero(n, at, completion=completion, flags=flags)
        else:
            h.aio_trim(n, at, completion=completion, flags=flags)

    # The loop.

    def run(self):
        """Until it is time for the end, or the server ends by itself."""
        self.handles = []
        try:
            while len(self.handles) < CLIENTS:
                self.handles.append(self.server.connect())
            while self.nr_acked < self.end.acks and not self.failed:
                self.send_all()
                self.receive()
            self.end.send_last(self)
        except nbd.Error as ex:
            self.failed = ex.errnum
        if self.failed and not self.end.inside:
            raise AssertionError("a request fails: " +
                                 os.strerror(self.failed))

    def take_the_rest(self):
        """What a server still answers that was told to stop.  It would wait
        for ever for one who does not read."""
        for h in self.handles:
            try:
                while h.aio_in_flight():
                    assert h.poll(PATIENCE * 1000) == 1, "no answer"
            except nbd.Error as ex:
                self.failed = self.failed or ex.errnum
            self.look_at_completed()
        assert self.failed in GONE, os.strerror(self.failed)
        self.handles = []

    def send_all(self):
        for h in self.handles:
            while h.aio_in_flight() < DEPTH:
                self.send(h)

    def receive(self):
        poll = select.poll()
        for h in self.handles:
            direction = h.aio_get_direction()
            poll.register(
                h.aio_get_fd(),
                select.POLLIN * bool(direction & nbd.AIO_DIRECTION_READ) |
                select.POLLOUT * bool(direction & nbd.AIO_DIRECTION_WRITE))
        of = {h.aio_get_fd(): h for h in self.handles}
        ready = poll.poll(PATIENCE * 1000)
        assert ready, "no answer"
        for fd, events in ready:
            # One that is gone is seen by reading.
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                of[fd].aio_notify_read()
            elif events & select.POLLOUT:
                of[fd].aio_notify_write()
        self.look_at_completed()


class End:
    """How a life ends."""

    def __init__(self, r, how):
        self.how = how
        self.inside = how == "crash"
        # When so many requests were acknowledged, and this was sent.
        self.acks = int(2 ** r.uniform(0, 9))
        self.last = r.choice(["nothing", "some", "flush"])
        if self.inside:
            # In all likelihood it is over before.
            self.acks = 1000
            os.environ["CRASH_AT"] = str(int(2 ** r.uniform(0, 9)))
            os.environ["CRASH_PART"] = r.choice(["", "sectors"])
        else:
            os.environ.pop("CRASH_AT", None)

    def send_last(self, life):
        if self.last == "some":
            life.send_all()
        elif self.last == "flush":
            life.flush(life.random.choice(life.handles))

    def __str__(self):
        if self.inside:
            return "a crash at call %s%s" % (
                os.environ["CRASH_AT"], " by half" * bool(
                    os.environ["CRASH_PART"]))
        return "%s after %d" % (self.how, self.acks)


class Lives:
    ORDERLY = {"term": signal.SIGTERM, "int": signal.SIGINT}
    MOST_OF_AN_OVERLAY = 10

    def __init__(self, args):
        self.args = args
        self.random = random.Random(args.seed)
        self.base = read("base.img")
        self.disk = Disk(Metadata.decode(read("vm.add-cow")).size,
                         self.random)
        self.server = None
        self.nr_kills = self.nr_inside = self.nr_orderly = 0
        self.nr_overlays = self.nr_requests = self.nr_lost = 0

    def look(self):
        """Bits and content that the files have."""
        return (Metadata.decode(read("vm.add-cow")).allocated(),
                content("vm.add-cow", self.base))

    def new_overlay(self):
        """Clear the bits, and leave in the image what is there."""
        with open("vm.add-cow", "r+b") as f:
            f.seek(BITMAP_AT)
            f.write(bytes((self.disk.size + 4095) // 4096))
        bits, there = self.look()
        self.disk.begin(there, bits)
        self.nr_overlays += 1

    def parameters(self, how):
        yes = self.random.random
        # With an interval of 0 only clients have something committed.
        interval = 0 if how == "gone" or yes() < 0.7 else 1
        return ["addcow-commit-interval=%d" % interval,
                "addcow-on-read=%d" % (yes() < 0.3),
                "addcow-on-cache=%d" % (yes() < 0.5),
                "addcow-hydrate=%d" % (yes() < 0.5),
                "addcow-hydrate-rate=%s" % self.random.choice(["1M", "8M"])]

    def start(self, how, end):
        """Is it there?  It may end before, when it is meant to crash."""
        parameters = self.parameters(how)
        if "addcow-hydrate=0" in parameters:
            parameters.pop()
        # nbdkit with threads fails an assertion now and then when a client
        # left with requests.
        if how == "gone":
            parameters.append("--threads=1")
        self.server = Server(self.args.server + parameters, ".")
        with open("log", "w") as log:
            try:
                self.server.start(log)
            except AssertionError:
                if not end.inside:
                    raise
                return False
        return True

    def life(self, how):
        end = End(self.random, how)
        life = Life(self.disk, None, self.random, end)
        if self.start(how, end):
            life.server = self.server
            life.run()
        if how in self.ORDERLY:
            self.server.process.send_signal(self.ORDERLY[how])
            life.take_the_rest()
            status = self.server.process.wait()
            assert status == 0, "the server ended with %d" % status
            self.disk.none_waits()
            self.nr_orderly += 1
        elif how == "gone":
            self.leave(life)
        else:
            self.kill(end)
        self.nr_requests += life.nr_acked
        self.ended("%s, life %d" % (end, self.nr_lives()))

    def nr_lives(self):
        return self.nr_kills + self.nr_orderly

    def kill(self, end):
        status = self.ends(signal.SIGKILL)
        assert status == -signal.SIGKILL or \
            end.inside and status == CRASH_STATUS, \
            "the server ended with %d" % status
        self.nr_kills += 1
        self.nr_inside += status == CRASH_STATUS

    def ends(self, sig):
        if self.server.process.poll() is None:
            self.server.process.send_signal(sig)
        return self.server.process.wait()

    def leave(self, life):
        """The clients go without a word, and then the server is killed."""
        life.handles = []
        self.disk.none_waits()
        wait_for(lambda: all(
            there or not bit
            for there, bit in zip(self.look()[0], self.disk.bits)))
        self.ends(signal.SIGKILL)
        self.nr_kills += 1

    def ended(self, end):
        print(end, flush=True)
        bits, there = self.look()
        self.disk.expect(there, bits, end)
        self.nr_lost += len(self.disk.waiting) - sum(
            bits[s] for s in self.disk.waiting)
        p = subprocess.run([*self.args.check, "vm.add-cow"],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
        assert p.returncode == 0, p
        if self.random.random() < 0.2:
            self.serve_again(there)
        self.disk.begin(there, bits)

    def serve_again(self, there):
        """A server has what the files say."""
        os.environ.pop("CRASH_AT", None)
        server = Server(self.args.server + ["-r"], ".")
        server.start()
        h = server.connect()
        assert h.pread(self.disk.size, 0) == there
        h.shutdown()
        server.stop(signal.SIGTERM)

    def run(self):
        try:
            self.run_all()
        finally:
            # Of a life that did not end well.
            if self.server and self.server.process.poll() is None:
                self.server.process.kill()
                self.server.process.wait()

    def run_all(self):
        left = 0
        while self.nr_kills < self.args.kills:
            if not left or all(self.disk.bits):
                self.new_overlay()
                left = self.random.randrange(1, self.MOST_OF_AN_OVERLAY + 1)
            left -= 1
            self.life(self.random.choices(
                ["kill", "crash", "gone", "term", "int"],
                [4, 4, 1, 1, 1])[0])
        print("%d kills, %d of them inside a call, %d other ends, "
              "%d overlays, %d requests acknowledged, of which the bits of "
              "%d sectors were not durable; seed %d: nothing lost" %
              (self.nr_kills, self.nr_inside, self.nr_orderly,
               self.nr_overlays, self.nr_requests, self.nr_lost,
               self.args.seed))


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, required=True)
    p.add_argument("--kills", type=int, required=True)
    p.add_argument("--check", action="append", required=True,
                   help="a word of a command that checks an overlay")
    p.add_argument("server", nargs="+")
    args = p.parse_args()
    print("seed:", args.seed, flush=True)
    Lives(args).run()

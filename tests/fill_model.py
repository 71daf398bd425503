# SPDX-License-Identifier: BSD-3-Clause
"""Random requests against the model of model.py while the disk is filled.

The model's clients work on a disk of which parts are nobody's, so that only
filling gives them to the image.  Meanwhile the server is stopped and killed
again and again, and then the disk is what the files say, which is looked at
without the server.  At last filling is waited for: then the image is the
disk.  This is done in several cycles, each with all bits clear and in the
image whatever was there.

fill_model.py [OPTION...] BASE OVERLAY IMAGE SERVER...

BASE, OVERLAY and IMAGE are the backing file, the metadata file of a fresh
overlay, and its image; SERVER is the command that serves it with filling on.
"""

import argparse
import os
import signal
import time

import addcow_format
import model
import nbd
from model import SECTOR

ALONE = b"stands alone"


class Client(model.Client):
    """One that also reads and caches across ranges of others."""

    def __init__(self, *args):
        super().__init__(*args)
        self.to_be_filled = []  # (first sector, last + 1)

    def widely(self):
        length = min(int(2 ** self.random.uniform(9, 16)), len(self.disk))
        return self.random.randrange(len(self.disk) - length + 1), length

    def read(self, offset, length):
        if self.random.random() < 0.95:
            super().read(offset, length)
        else:
            offset, length = self.widely()
            got = self.h.pread(length, offset)
            for at, n in self.ranges:
                begin, end = max(at, offset), min(at + n, offset + length)
                if begin < end:
                    self.expect(got[begin - offset:end - offset], begin)
        if self.keeps_reads:
            self.to_be_filled.append((-(-offset // SECTOR),
                                      (offset + length) // SECTOR))

    def cache(self, offset, length):
        if self.random.random() < 0.5:
            offset, length = self.widely()
        super().cache(offset, length)
        self.to_be_filled.append((offset // SECTOR,
                                  -(-(offset + length) // SECTOR)))


class Model(model.Model):
    client = Client
    longest_life = 0.3

    def __init__(self, options):
        self.options = options
        size = addcow_format.Metadata.decode(contents(options.overlay)).size
        super().__init__([0, options.seed, size, options.base,
                          options.overlay, *options.server])
        self.log = options.overlay + ".log"
        for c in self.clients:
            c.keeps_reads = options.keeps_reads

    def make_ranges(self):
        """Small ranges, most of them, in zones of which some are
        nobody's."""
        offset = 0
        while offset < self.size:
            zone = min(self.size, offset + self.random.randrange(1, 1 << 17))
            if self.random.random() < 0.5:
                offset = zone
            longest = self.random.choice([8, 11, 14])
            while offset < zone:
                n = min(int(2 ** self.random.uniform(2, longest)),
                        zone - offset)
                self.random.choice(self.clients).ranges.append((offset, n))
                offset += n

    # What the files say.

    def look(self):
        """The bits and the disk."""
        metadata = addcow_format.Metadata.decode(contents(self.overlay))
        self.bits = metadata.allocated()
        image = contents(self.options.image)
        disk = bytearray(self.base)
        for s, bit in enumerate(self.bits):
            if bit:
                at = slice(s * SECTOR, (s + 1) * SECTOR)
                disk[at] = image[at]
        return disk

    def is_complete(self):
        self.look()
        return all(self.bits)

    def is_alone(self):
        return ALONE in contents(self.log)

    # Lives of the server.

    def start(self):
        for path in self.options.switch:
            self.turn(path)
        self.was_complete = self.is_complete()
        for c in self.clients:
            c.to_be_filled = []
        with open(self.log, "wb") as log:
            self.server.start(log)

    def turn(self, path, on=None):
        if self.random.random() < 0.7 if on is None else on:
            open(path, "w").close()
        elif os.path.exists(path):
            os.unlink(path)

    def ended(self):
        told = contents(self.log).count(ALONE)
        assert told <= 1
        assert not told or all(self.bits)

    def look_filled(self):
        """After an orderly end: what had to be filled is."""
        for c in self.clients:
            for first, end in c.to_be_filled:
                assert all(self.bits[first:end]), \
                    "not all of [%d, %d) was filled" % (first, end)

    def stop(self):
        self.server.stop(signal.SIGTERM)
        assert self.look() == self.disk, "what is on disk is not the model"
        self.ended()
        self.check_bits()
        self.look_filled()

    def allowed(self, client):
        """After an orderly end each byte is what was acknowledged last, or
        what was not yet."""
        values = super().allowed(client)
        if self.orderly:
            for ch in client.changes:
                if ch.done and ch.offset is not None:
                    for i, value in enumerate(ch.data, ch.offset):
                        values[i] = [value]
            last = client.changes[-1] if client.changes else None
            if last and not last.done and last.offset is not None:
                for i, value in enumerate(last.data, last.offset):
                    values[i].append(value)
        return values

    def end_meanwhile(self, sig):
        self.round(10000, sig)
        self.orderly = sig == signal.SIGTERM
        self.after_kill(self.look())
        self.ended()
        if self.orderly:
            self.look_filled()

    def filled(self):
        """How much is allocated, for people."""
        return "%d%%" % (100 * sum(self.bits) // len(self.bits))

    # What is done to it.

    def some_round(self):
        what = self.random.choice(["go on", "flush", "stop", "stop meanwhile",
                                   "kill", "kill"])
        if what == "kill":
            self.end_meanwhile(signal.SIGKILL)
        elif what == "stop meanwhile":
            self.end_meanwhile(signal.SIGTERM)
        else:
            self.round(self.random.randrange(5, 40))
        if what == "flush":
            h = self.server.connect()
            h.flush()
            h.shutdown()
        elif what == "stop":
            self.stop()
        print(what, flush=True)
        if what not in ("go on", "flush"):
            print("at", self.filled(), flush=True)
            self.start()
        if what != "go on":
            self.all_durable()
        for path in self.options.switch:
            self.turn(path)

    def read_all(self):
        h = self.server.connect()
        for offset in range(0, self.size, 1 << 16):
            h.pread(min(1 << 16, self.size - offset), offset)
        h.flush()
        h.shutdown()

    def wait_until_complete(self, busy):
        for path in self.options.switch:
            self.turn(path, True)
        if self.options.read_all:
            self.read_all()
        end = time.monotonic() + self.options.patience
        while not (self.is_complete() and
                   (self.was_complete or self.is_alone())):
            assert time.monotonic() < end, "filled no more than " + \
                self.filled()
            if busy:
                self.round(self.random.randrange(5, 50))
            else:
                time.sleep(0.02)

    def cycle(self):
        """Until the disk is complete, with a part of the rounds or all."""
        self.start()
        while self.rounds_left and not self.is_complete():
            self.rounds_left -= 1
            self.some_round()
        self.wait_until_complete(self.random.random() < 0.5)
        print("complete", flush=True)
        if self.options.base_pid and not self.rounds_left:
            os.kill(self.options.base_pid, signal.SIGKILL)
        self.round(50)
        self.stop()
        assert all(self.bits)
        assert contents(self.options.image)[:self.size] == self.disk, \
            "the image is not the disk"

    def run(self):
        self.rounds_left = self.options.rounds
        try:
            self.all_durable()
            self.cycle()
            while self.rounds_left:
                self.reset()
                self.all_durable()
                self.cycle()
        finally:
            self.server.process.kill()


def contents(name):
    with open(name, "rb") as f:
        return f.read()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--patience", type=int, default=60)
    parser.add_argument("--keeps-reads", action="store_true",
                        help="what is read is allocated after a stop")
    parser.add_argument("--switch", action="append", default=[],
                        help="a path to make and remove meanwhile")
    parser.add_argument("--read-all", action="store_true",
                        help="at last read all, as nothing else fills it")
    parser.add_argument("--base-pid", type=int,
                        help="to kill when the disk is complete at last")
    for name in "base", "overlay", "image":
        parser.add_argument(name)
    parser.add_argument("server", nargs=argparse.REMAINDER)
    Model(parser.parse_args()).run()


if __name__ == "__main__":
    main()

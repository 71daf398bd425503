#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Random requests against a model in memory.

Several connections write, zero, trim and read byte ranges of one disk at
the same time.  Each byte belongs to one connection, which alone writes it,
so the model knows what every byte must be; but the connections' ranges are
as small as a few bytes, so that most sectors are shared.  Between rounds
the server is left alone, flushed, stopped or killed; after a kill each
byte must be what it was at the last flush, or something written later.

model.py SECONDS SEED SIZE BASE OVERLAY SERVER...

BASE and OVERLAY are the backing file ("-" for none) and the metadata file
of a fresh overlay, SERVER the command that serves it, to which "-U SOCKET
-P PIDFILE" is added.
"""

import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time

import nbd

SECTOR = 512
CLIENTS = 4


class Server:
    def __init__(self, command, folder):
        self.command = command
        self.sock = os.path.join(folder, "model.sock")
        self.pidfile = os.path.join(folder, "model.pid")

    def start(self, stderr=None):
        for name in self.sock, self.pidfile:
            if os.path.exists(name):
                os.unlink(name)
        self.process = subprocess.Popen(
            self.command + ["-f", "-U", self.sock, "-P", self.pidfile],
            stderr=stderr)
        while not (os.path.exists(self.pidfile) and
                   os.path.getsize(self.pidfile)):
            assert self.process.poll() is None, "the server did not start"
            time.sleep(0.02)
        self.pid = int(open(self.pidfile).read())

    def stop(self, sig):
        os.kill(self.pid, sig)
        status = self.process.wait()
        assert sig == signal.SIGKILL or status == 0, \
            "the server ended with %d" % status

    def connect(self):
        h = nbd.NBD()
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        h.connect_uri("nbd+unix:///?socket=" + self.sock)
        return h


class Change:
    """What a client wrote, or with no offset a flush."""

    def __init__(self, offset, data, fua):
        self.offset, self.data, self.fua = offset, data, fua
        self.done = False       # it was acknowledged


class Client:
    def __init__(self, server, number, seed, disk):
        self.number = number
        self.random = random.Random(seed)
        self.disk = disk        # the model, whole
        self.ranges = []        # (offset, length) that are its own
        self.changes = []       # since all was durable
        self.server = server
        self.error = None

    def round(self, count):
        try:
            self.h = self.server.connect()
            for _ in range(count):
                self.step()
            self.h.shutdown()
        except nbd.Error as ex:
            # With its frames the connection would stay.
            self.error = ex.with_traceback(None)
        except BaseException as ex:     # the main thread raises it
            self.error = ex
            self.bug = ex
        self.h = None

    def change(self, kind, offset, length):
        fua = self.random.random() < 0.01
        flags = nbd.CMD_FLAG_FUA if fua else 0
        data = self.random.randbytes(length) if kind == "write" \
            else bytes(length)
        c = Change(offset, data, fua)
        self.changes.append(c)
        if kind == "write":
            self.h.pwrite(data, offset, flags)
        elif kind == "zero":
            if self.random.random() < 0.5:
                flags |= nbd.CMD_FLAG_NO_HOLE
            self.h.zero(length, offset, flags)
        else:
            self.h.trim(length, offset, flags)
        c.done = True
        self.disk[offset:offset + length] = data

    def step(self):
        offset, length = self.random.choice(self.ranges)
        if self.random.random() < 0.7:
            skip = self.random.randrange(length)
            offset += skip
            length = self.random.randrange(1, length - skip + 1)
        kind = self.random.choices(
            ["read", "write", "zero", "trim", "flush", "status", "cache"],
            [6, 10, 2, 2, 0.1, 1, 0.5])[0]
        if kind == "read":
            self.read(offset, length)
        elif kind == "flush":
            c = Change(None, None, False)
            self.changes.append(c)
            self.h.flush()
            c.done = True
        elif kind == "status":
            self.status(offset, length)
        elif kind == "cache":
            self.cache(offset, length)
        else:
            self.change(kind, offset, length)

    def expect(self, got, offset):
        """GOT was read at OFFSET, in a range of its own."""
        assert got == self.disk[offset:offset + len(got)], \
            "client %d reads wrong data in [%d, +%d)" % (
                self.number, offset, len(got))

    def read(self, offset, length):
        self.expect(self.h.pread(length, offset), offset)

    def cache(self, offset, length):
        self.h.cache(length, offset)

    def status(self, offset, length):
        """What is said to be zero is zero."""
        def extents(context, start, entries, err):
            for i in range(0, len(entries), 2):
                n = entries[i]
                end = min(start + n, offset + length)
                if entries[i + 1] & nbd.STATE_ZERO and end > start:
                    assert not any(self.disk[start:end]), \
                        "client %d: [%d, %d) is no zeroes" % (
                            self.number, start, end)
                start += n
            return 0
        self.h.block_status(length, offset, extents)


class Model:
    client = Client
    longest_life = 0.1          # of a server that is ended in a round

    def __init__(self, args):
        seconds, seed, size, base, overlay = args[:5]
        self.seconds = float(seconds)
        self.seed = int(seed)
        self.random = random.Random(self.seed)
        self.size = int(size)
        self.overlay = overlay
        self.base = b"" if base == "-" else open(base, "rb").read()
        self.base = (self.base + bytes(self.size))[:self.size]
        self.disk = bytearray(self.base)
        self.durable = bytes(self.disk)
        self.server = Server(args[5:], os.environ.get("tmp", "/tmp"))
        self.clients = [
            self.client(self.server, i, self.random.random(), self.disk)
            for i in range(CLIENTS)]
        self.make_ranges()

    def make_ranges(self):
        offset = 0
        while offset < self.size:
            n = int(2 ** self.random.uniform(2, 13))
            n = min(n, self.size - offset)
            self.random.choice(self.clients).ranges.append((offset, n))
            offset += n

    def all_durable(self):
        self.durable = bytes(self.disk)
        for c in self.clients:
            c.changes = []

    def check(self):
        h = self.server.connect()
        got = b"".join(
            h.pread(min(1 << 20, self.size - at), at)
            for at in range(0, self.size, 1 << 20))
        h.shutdown()
        return got

    def allowed(self, client):
        """What the client's bytes that it wrote since may be after a kill,
        oldest first: {byte: [value, ...]}."""
        values = {}
        for ch in client.changes:
            if ch.offset is None:
                if ch.done:
                    for v in values.values():
                        del v[:-1]
                continue
            for i, value in enumerate(ch.data, ch.offset):
                v = values.setdefault(i, [self.durable[i]])
                v.append(value)
                if ch.fua and ch.done:
                    del v[:-1]
        return values

    def after_kill(self, got):
        want = bytearray(self.durable)
        for c in self.clients:
            for byte, values in self.allowed(c).items():
                assert got[byte] in values, \
                    "byte %d is lost after a kill" % byte
                want[byte] = got[byte]
        assert got == want, "what nobody wrote has changed after a kill"
        self.disk[:] = got

    def check_bits(self):
        """What was changed is allocated: read by nobody's code but this."""
        with open(self.overlay, "rb") as f:
            f.seek(2060)
            assert struct.unpack(">Q", f.read(8))[0] == self.size
            bits = f.read()
        for sector in range(self.size // SECTOR):
            at = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if self.disk[at] != self.base[at]:
                assert bits[sector // 8] >> sector % 8 & 1, \
                    "sector %d is not allocated" % sector

    def reset(self):
        """A fresh overlay, for soon every sector is allocated: clear the
        bits, and leave in the image what is there."""
        with open(self.overlay, "r+b") as f:
            f.seek(2068)
            f.write(bytes((self.size + 4095) // 4096))
        self.disk[:] = self.base

    def round(self, count, sig=None):
        """With SIG, the server is ended by it meanwhile."""
        threads = [threading.Thread(target=c.round, args=(count,))
                   for c in self.clients]
        for t in threads:
            t.start()
        if sig:
            time.sleep(self.random.uniform(0.001, self.longest_life))
            self.server.stop(sig)
        for t in threads:
            t.join()
        for c in self.clients:
            if c.error and (not sig or hasattr(c, "bug")):
                raise c.error
            c.error = None

    def run(self):
        end = time.monotonic() + self.seconds
        counts = {}
        self.server.start()
        while time.monotonic() < end:
            what = self.random.choice(["nothing", "flush", "stop", "kill"])
            counts[what] = counts.get(what, 0) + 1
            self.round(self.random.randrange(5, 200),
                       signal.SIGKILL if what == "kill" else None)
            if what == "kill":
                self.server.start()
                self.after_kill(self.check())
                # What is there now was read back: make it the start.
                h = self.server.connect()
                h.flush()
                h.shutdown()
                self.all_durable()
                continue
            if what == "flush":
                h = self.server.connect()
                h.flush()
                h.shutdown()
            elif what == "stop":
                self.server.stop(signal.SIGTERM)
                self.check_bits()
                if self.random.random() < 0.5:
                    self.reset()
                self.server.start()
            # Whoever left has committed, as every round ends with leaving.
            self.all_durable()
            assert self.check() == self.disk, "the disk is not the model"
        self.server.stop(signal.SIGTERM)
        self.check_bits()
        print("rounds:", counts)


if __name__ == "__main__":
    print("seed:", sys.argv[2], flush=True)
    Model(sys.argv[1:]).run()

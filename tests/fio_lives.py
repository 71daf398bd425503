# SPDX-License-Identifier: BSD-3-Clause
"""fio on overlays, for a long time.

The disk is cut into zones.  Each has what a run of fio with some seed has
written there: at first the backing file, later the disk.  In a round one zone
is written again with a new seed, and verified by the same fio, while another
fio verifies a zone and a third one reads at random.  A life of the server has
many rounds; the next one begins with verifying zones.  After some lives the
rest is filled, the image is verified without a server, and there is a new
overlay.

A second server stays all the time, and is used by one client after another.

fio_lives.py OPTION... -- SERVER...     in a folder of its own

SERVER is a command to which "addcow=FILE" is added.
"""

import argparse
import os
import random
import signal
import subprocess
import time

from fill_client import wait_for
from model import Server

ALONE = "stands alone"

# By how many KiB a server may grow after its first clients.
MOST_GROWTH = 32768


def size(text):
    return int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]]


def run(*command):
    p = subprocess.run(command, stdin=subprocess.DEVNULL,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert p.returncode == 0, \
        "%s: status %d\n%s" % (" ".join(command), p.returncode,
                               p.stdout.decode())


# --- fio. -------------------------------------------------------------------

def fio(name, where, *options):
    """The command, on the file or URI WHERE."""
    if where.startswith("nbd"):
        target = ["--ioengine=nbd", "--uri=" + where, "--iodepth=16"]
    else:
        target = ["--ioengine=psync", "--filename=" + where]
    return ["fio", "--name=" + name, *target, "--minimal",
            "--verify_state_save=0", *options]


class Zones:
    """Parts of a disk, and the seeds of what is there."""

    def __init__(self, count, length, r):
        self.length = length
        self.random = r
        # Off the sectors, so that both ends of each are in a sector of two.
        self.offsets = [i * length + r.randrange(1, 500) if i else 0
                        for i in range(count)]
        self.seeds = [self.seed() for _ in range(count)]
        self.blocks = [self.some_blocks() for _ in range(count)]

    def seed(self):
        return self.random.randrange(1 << 31)

    def some_blocks(self):
        """What they are cut into.  The size of a zone is a multiple of the
        first number, or fio draws other lengths each time at the end."""
        return "%d-%d" % (512 << self.random.randrange(4),
                          self.random.randrange(4096, 300000))

    def copy(self):
        z = Zones.__new__(Zones)
        z.__dict__.update(self.__dict__)
        z.seeds, z.blocks = list(self.seeds), list(self.blocks)
        return z

    def job(self, where, zone, *options):
        return fio("zone%d" % zone, where, "--rw=randwrite",
                   "--bsrange=" + self.blocks[zone], "--bs_unaligned",
                   "--offset=%d" % self.offsets[zone],
                   "--size=%d" % (self.length - 4096),
                   "--verify=crc32c", "--randseed=%d" % self.seeds[zone],
                   *options)

    def fill(self, name):
        """A new file of what is in all of them."""
        with open(name, "wb") as f:
            f.truncate(len(self.seeds) * self.length)
        for zone in range(len(self.seeds)):
            run(*self.job(name, zone, "--do_verify=0"))

    def write(self, where, zone, *options):
        self.seeds[zone] = self.seed()
        self.blocks[zone] = self.some_blocks()
        return self.job(where, zone, *options)

    def verify(self, where, zone):
        return self.job(where, zone, "--verify_only")


def together(*commands):
    """Run them at the same time; all must succeed."""
    running = [(c, subprocess.Popen(c, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE,
                                    stderr=subprocess.STDOUT))
               for c in commands]
    failed = []
    for command, p in running:
        out = p.communicate()[0].decode()
        if p.returncode:
            failed.append("%s: status %d\n%s" % (" ".join(command),
                                                 p.returncode, out))
    assert not failed, "\n".join(failed)


# --- What a process has. ----------------------------------------------------

class Usage:
    def __init__(self, pid):
        proc = "/proc/%d/" % pid
        self.descriptors = len(os.listdir(proc + "fd"))
        threads = os.listdir(proc + "task")
        self.threads = len(threads)
        self.children = sum(
            len(open(proc + "task/%s/children" % t).read().split())
            for t in threads)
        with open(proc + "status") as f:
            self.memory = next(int(line.split()[1]) for line in f
                               if line.startswith("VmRSS:"))

    def __str__(self):
        return "%d KiB, %d descriptors, %d threads, %d children" % (
            self.memory, self.descriptors, self.threads, self.children)


def settled(pid, first):
    """Wait until the server PID has no more than it had at FIRST: who has
    left goes in its own time."""
    got = []

    def no_more():
        try:
            got[:] = [Usage(pid)]
        except FileNotFoundError:       # a thread that is gone
            return False
        return first is None or (
            got[0].descriptors <= first.descriptors and
            got[0].threads <= first.threads and
            got[0].children <= first.children)
    try:
        wait_for(no_more)
    except AssertionError:
        raise AssertionError("the server keeps: %s; had: %s" %
                             (got[0], first))
    return got[0]


# --- The lives. -------------------------------------------------------------

class Run:
    def __init__(self, args):
        self.args = args
        self.random = random.Random(args.seed)
        self.uri = "nbd+unix:///?socket=" + os.path.abspath("model.sock")
        self.begin = time.monotonic()
        self.nr_lives = self.nr_rounds = self.nr_kills = 0
        self.nr_filled = self.grown = 0
        self.base = Zones(args.zones, args.zone_size, self.random)
        self.base.fill("base.img")
        self.server = None
        self.stays = Stays(self)

    def say(self, *what):
        print("%6d s:" % (time.monotonic() - self.begin), *what, flush=True)

    def create(self, *arguments):
        run(self.args.create, "create", "-q", "-f", *arguments)

    def over(self):
        if self.args.seconds:
            return time.monotonic() - self.begin > self.args.seconds
        return self.nr_lives >= self.args.lives

    def start(self):
        self.log = open("log", "a")
        self.server = Server(
            self.args.server + ["addcow=vm.add-cow", "addcow-on-read=true",
                                "addcow-hydrate=true",
                                "addcow-hydrate-rate=%d" % self.args.rate,
                                "addcow-commit-interval=1"], ".")
        self.server.start(self.log)

    def stop(self):
        """In one of two ways, of which one needs a flush before."""
        sig = self.random.choice([signal.SIGTERM, signal.SIGKILL])
        if sig == signal.SIGKILL:
            h = self.server.connect()
            h.flush()
            h.shutdown()
            self.nr_kills += 1
        self.server.stop(sig)
        self.log.close()

    def round(self):
        write, verify = self.random.sample(range(self.args.zones), 2)
        together(
            self.disk.write(self.uri, write),
            self.disk.verify(self.uri, verify),
            fio("reader", self.uri, "--rw=randread", "--bsrange=1-100000",
                "--bs_unaligned", "--number_ios=%d" % self.args.reads,
                "--size=%d" % (self.args.zones * self.args.zone_size),
                "--randseed=%d" % self.random.randrange(1 << 31)))
        self.written.add(write)
        self.nr_rounds += 1

    def life(self):
        began = time.monotonic()
        self.start()
        for zone in sorted(self.written):
            run(*self.disk.verify(self.uri, zone))
        self.written.clear()
        rounds = 0
        first = None
        while True:
            self.round()
            rounds += 1
            # Not before everything has been used once.
            if rounds == 2:
                first = settled(self.server.pid, None)
            if self.args.seconds_each:
                if time.monotonic() - began > self.args.seconds_each:
                    break
            elif rounds == self.args.rounds:
                break
            self.stays.round()
        self.stays.check()
        last = settled(self.server.pid, first)
        self.compare(first, last)
        self.nr_lives += 1
        self.say("life %d, %d rounds: %s" % (self.nr_lives, rounds, last))

    def compare(self, first, last):
        if first is None or self.args.any_memory:
            return
        self.grown = max(self.grown, last.memory - first.memory)
        assert last.memory - first.memory <= MOST_GROWTH, \
            "the server has grown: %s; had: %s" % (last, first)

    def generation(self):
        """One overlay, until it stands alone."""
        for name in "vm.add-cow", "vm.raw", "log":
            if os.path.exists(name):
                os.unlink(name)
        self.create("-F", "raw", "-b", "base.img", "vm.add-cow")
        self.disk = self.base.copy()
        self.written = set()
        for i in range(self.args.lives_each):
            if i:
                self.stop()
            self.life()
            if self.over():
                break
        wait_for(lambda: ALONE in open("log").read())
        self.server.stop(signal.SIGTERM)
        self.log.close()
        self.nr_filled += 1
        log = [line for line in open("log") if ALONE not in line]
        assert not log, "".join(log)
        for zone in range(self.args.zones):
            run(*self.disk.verify("vm.raw", zone))
        for zone in range(self.args.zones):
            run(*self.base.verify("base.img", zone))

    def run(self):
        try:
            self.run_all()
        finally:
            # When something was wrong.
            for server in self.server, self.stays.server:
                if server and server.process.poll() is None:
                    server.process.kill()
                    server.process.wait()

    def run_all(self):
        while not self.over():
            self.generation()
        self.stays.stop()
        print("%d s, %d lives, %d of them killed, %d rounds, "
              "%d images filled; growth at most %d KiB, of the server that "
              "stayed %d KiB in %d rounds; seed %d: no error" %
              (time.monotonic() - self.begin, self.nr_lives, self.nr_kills,
               self.nr_rounds, self.nr_filled, self.grown, self.stays.grown,
               self.stays.nr_rounds, self.args.seed))


class Stays:
    """The server that is never ended, on a qcow2 file."""

    ZONES = 4

    def __init__(self, run_):
        self.run = run_
        self.random = run_.random
        self.zones = Zones(self.ZONES, 1 << 20, self.random)
        self.nr_rounds = self.grown = 0
        os.mkdir("stays")
        self.zones.fill("stays/raw")
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2",
            "stays/raw", "stays/base.qcow2")
        # Never filled, so that the backing file is needed to the end.
        run_.create("-F", "qcow2", "-b", "base.qcow2", "stays/vm.add-cow",
                    "1G")
        self.server = Server(
            run_.args.server + ["addcow=stays/vm.add-cow",
                                "addcow-on-read=true",
                                "addcow-commit-interval=1"], "stays")
        self.log = open("stays/log", "w")
        self.server.start(self.log)
        self.uri = "nbd+unix:///?socket=" + os.path.abspath(self.server.sock)
        self.first = None       # when everything had been used once

    def round(self):
        zone = self.random.randrange(self.ZONES)
        run(*self.zones.verify(self.uri, zone))
        run(*self.zones.write(self.uri, zone))
        self.nr_rounds += 1
        if self.nr_rounds == 3:
            self.first = settled(self.server.pid, None)

    def check(self):
        """Who has left leaves nothing."""
        last = settled(self.server.pid, self.first)
        if self.first and not self.run.args.any_memory:
            self.grown = last.memory - self.first.memory
            assert self.grown <= MOST_GROWTH, \
                "the server that stays has grown: %s; had: %s" % (
                    last, self.first)
        self.run.say("stays:", last)

    def stop(self):
        self.check()
        self.server.stop(signal.SIGTERM)
        self.log.close()
        log = open("stays/log").read()
        assert not log, log


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    for number in "seed", "zones", "lives", "lives-each", "rounds", \
            "reads", "seconds", "seconds-each":
        p.add_argument("--" + number, type=int, default=0)
    p.add_argument("--zone-size", type=size)
    p.add_argument("--rate", type=size)
    p.add_argument("--create")
    p.add_argument("--any-memory", action="store_true")
    p.add_argument("server", nargs="+")
    args = p.parse_args()
    print("seed:", args.seed, flush=True)
    Run(args).run()

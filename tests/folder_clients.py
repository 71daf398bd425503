# SPDX-License-Identifier: BSD-3-Clause
"""Clients of the overlays of a folder, who come, write, read and leave:

    folder_clients.py SEED SOCKET BASE CLIENTS ROUNDS NAME...

Each overlay has a model, which begins with NAME.want if that is there, else
with BASE; what of it a client writes is its own, by sectors, so that many can
at a time.  At the end each overlay's content is compared with it, by way of
the server, and written to NAME.want.
"""

import os
import random
import sys
import threading

import nbd
from nbd_client import content

SECTOR = 512

seed, sock, base_name, nr_clients, nr_rounds, *names = sys.argv[1:]
nr_clients, nr_rounds = int(nr_clients), int(nr_rounds)
base = open(base_name, "rb").read()
want = {}
for name in names:
    before = name + ".want"
    with open(before if os.path.exists(before) else base_name, "rb") as f:
        want[name] = bytearray(f.read())
failures = []


def connect(name):
    h = nbd.NBD()
    h.connect_uri("nbd+unix:///%s?socket=%s" % (name, sock))
    return h


def my_ranges(rng, number):
    """Byte ranges within sectors of client NUMBER."""
    for _ in range(rng.randrange(1, 12)):
        sector = rng.randrange(len(base) // SECTOR // nr_clients)
        begin = rng.randrange(SECTOR)
        yield ((sector * nr_clients + number) * SECTOR + begin,
               rng.randrange(1, SECTOR - begin + 1))


def visit(rng, number, name):
    disk = want[name]
    h = connect(name)
    for offset, count in my_ranges(rng, number):
        what = rng.randrange(6)
        assert h.pread(count, offset) == disk[offset:offset + count], \
            (name, offset, count)
        if what == 0:
            h.zero(count, offset)
            disk[offset:offset + count] = bytes(count)
        elif what == 1:
            h.flush()
        else:
            data = rng.randbytes(count)
            h.pwrite(data, offset, nbd.CMD_FLAG_FUA if what == 2 else 0)
            disk[offset:offset + count] = data
    if rng.randrange(2):
        h.shutdown()
    # Else it vanishes: what was acknowledged is there.


def client(number):
    rng = random.Random(int(seed) * 1000 + number)
    try:
        for _ in range(nr_rounds):
            visit(rng, number, rng.choice(names))
    except Exception as e:      # a thread's own is not seen
        failures.append((number, repr(e)))


threads = [threading.Thread(target=client, args=(i,))
           for i in range(nr_clients)]
for t in threads:
    t.start()
for t in threads:
    t.join()
assert not failures, failures
for name in names:
    assert content(connect(name)) == want[name], name
    with open(name + ".want", "wb") as f:
        f.write(want[name])

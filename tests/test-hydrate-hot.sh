#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Hydration fills first where guests read: far from where it is, what follows
# a guest's read of the backing file is read soon after it, and then it goes on
# where it was.

source ./functions.sh
set -e
set -x

requires_plugin pattern
requires_filter log
requires_filter delay
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/filling.sh"

# Slow enough for a guest to be in time, with more of it than will be filled.
start_serial base.sock -r --filter=log --filter=delay pattern 1G \
    logfile=base.log rdelay=150ms
addcow-img create -q -b "$base_uri" -F raw vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-hydrate=true addcow-commit-interval=1

cat > hot.py <<'PY'
import re, sys
from fill_client import *

MIB = 1 << 20
# So many requests may be under way, or about to be, when a guest reads.
SOON = 32

def asked():
    """The reads of the backing file: [(offset, count), ...]."""
    with open("base.log") as f:
        return [(int(at, 16), int(n, 16)) for at, n in re.findall(
            r" Read id=\d+ offset=0x(\w+) count=0x(\w+)", f.read())]

h = connect(sys.argv[1])
wait_for(lambda: len(asked()) >= 10)
before = len(asked())
for at in 900 * MIB + 71680, 700 * MIB + 307200:
    assert max(offset for offset, _ in asked()[:before]) < 600 * MIB
    h.pread(4096, at)
    mine = at, 4096
    assert asked().count(mine) == 1, (mine, asked()[-20:])
    # All of this MiB, and of the next.
    area = range(at // MIB * MIB, at // MIB * MIB + 2 * MIB)
    todo = set(range(area.start // 4096, area.stop // 4096))
    wait_for(lambda: len(asked()) > asked().index(mine) + SOON)
    soon = asked()[asked().index(mine):][:SOON]
    for offset, n in soon:
        todo -= set(range(offset // 4096, (offset + n) // 4096))
    assert len(todo) <= 1, (at, soon, sorted(todo))

# It is in the image: nobody has to wait for it any more.
def kept():
    h.flush()
    return set(sectors((area.start, len(area)))) <= set(bits("vm.add-cow"))
wait_for(kept)
count = asked().count(mine)
h.pread(4096, at)
assert asked().count(mine) == count

# On it goes from the front.
seen = len(asked())
wait_for(lambda: len(asked()) > seen + SOON)
last = [offset for offset, _ in asked()[seen:]]
assert max(last) < 600 * MIB, last
h.shutdown()
PY
python hot.py "$uri"
stop_nbdkit "$pid"

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# For a request of 4096 bytes the filter costs no system call, no allocation
# and fewer than 1,000 instructions more than the file plugin alone; nbdkit's
# own, of calling any filter, are among them: see the line of nofilter.  What
# is counted does not depend on how fast the machine is.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_filter nofilter
requires valgrind --version
requires strace -V

seed=${ADDCOW_SEED:-$RANDOM}
nr=${ADDCOW_REQUESTS:-1000}
size=$((16 * 1024 * 1024))

random_file "$tmp/base.img" $size
cp "$tmp/base.img" "$tmp/plain.raw"
for vm in fresh mixed full; do
    # Not under valgrind, which the servers are run under here.
    unwatched addcow-img create -q -b base.img "$tmp/$vm.add-cow"
done

# mixed: every second block of 4096 is in the image, so that its bitmap is
# in memory; full: all are, so that no bitmap is.
cat > "$tmp/client.py" <<'EOF'
import os
import sys

sys.path.insert(0, sys.argv[1])
from request_cost import BLOCK, Load, costs, read, serve, write

tmp, addcow = os.environ["tmp"], os.environ["addcow"]
seed, nr, size = (int(x) for x in sys.argv[2:])
blocks = range(0, size // BLOCK)
even, odd = blocks[::2], blocks[1::2]


def overlay(name):
    return [f"--filter={addcow}", "file", f"addcow={tmp}/{name}.add-cow"]


def fill(h):
    for block in blocks:
        write(h, block)


def fill_even(h):
    for block in even:
        write(h, block)


def too_much(name, c):
    """One call more in each request is 1; a few are by chance, of threads
    that wake up."""
    return [f"{name}: {c}"] if (c.instructions >= 1000 or
                                c.allocations > 0.1 or
                                c.syscalls > 0.1) else []


serve([], overlay("full"), tmp, fill)
serve([], overlay("mixed"), tmp, fill_even)

plain = [Load("read", read, blocks), Load("write", write, blocks)]
alone = costs(["file", f"{tmp}/plain.raw"], tmp, plain, seed, nr)
nofilter = costs(["--filter=nofilter", "file", f"{tmp}/plain.raw"], tmp,
                 plain, seed, nr)
for name, c in alone.items():
    print(f"file plugin alone, {name}: {c}")
    print(f"nofilter adds, {name}: {nofilter[name].minus(c)}")

failures = []
nr_measured = 0
for disk, loads in {
        "fresh": [Load("read unallocated", read, blocks)],
        "mixed": [Load("read unallocated", read, odd),
                  Load("read allocated", read, even),
                  Load("write allocated", write, even)],
        "full": [Load("read allocated", read, blocks),
                 Load("write allocated", write, blocks)],
}.items():
    for name, c in costs(overlay(disk), tmp, loads, seed, nr).items():
        added = c.minus(alone[name.split()[0]])
        print(f"addcow adds, {disk}, {name}: {added}")
        failures += too_much(f"{disk}, {name}", added)
        nr_measured += 1
assert not failures, failures
print(f"{nr_measured} kinds of {nr} requests, seed {seed}: within bounds")
EOF
/usr/bin/python3 "$tmp/client.py" "$abs_srcdir" "$seed" $nr $size

# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# What the tests of addcow-img rebase share, after functions.sh, bad-input.sh
# and nbd-backing.sh.  The overlay is vm.add-cow, its image vm.raw, and "disk"
# is what the disk must be.

cat > rebase.py <<'PY'
"""The files of an overlay, by themselves: its backing file is raw or none.

make SIZE SEED [BACKING]: vm.add-cow and vm.raw, of SIZE bytes, with some
sectors written; and what the two below write.
disk: write what the disk is to the file "disk".
same [ALL]: the disk is "disk"; and with ALL it is so in vm.raw.
bits: keep the bits in the file "bits".
grown OTHER: of the bits, those are set that were in "bits", and those of the
sectors in which "disk" differs from OTHER, and no more.
subset OTHER: the former and perhaps some of the latter.
kept OTHER: same and grown.
"""
import random, sys
from addcow_format import *

def load(name):
    with open(name, "rb") as f:
        return f.read()

def save(name, data):
    with open(name, "wb") as f:
        f.write(data)

def metadata():
    return Metadata.decode(load("vm.add-cow"))

def padded(data, size):
    return bytearray((data + bytes(size))[:size])

def read():
    m = metadata()
    disk = padded(load(m.backing) if m.backing else b"", m.size)
    image = load("vm.raw")
    for s in range(m.sectors()):
        if m.get(s):
            disk[s * 512:s * 512 + 512] = image[s * 512:s * 512 + 512]
    return disk

def make(size, seed, backing=""):
    r = random.Random(int(seed))
    m = Metadata(int(size), backing=backing.encode(), image=b"vm.raw")
    image = bytearray(m.size)
    for _ in range(20):
        at = r.randrange(m.sectors())
        n = min(r.randint(1, 30), m.sectors() - at)
        for s in range(at, at + n):
            m.set(s)
        if r.randrange(3):
            image[at * 512:(at + n) * 512] = r.randbytes(n * 512)
    save("vm.add-cow", m.encode())
    save("vm.raw", image)
    disk()
    bits()

def disk():
    save("disk", read())

def same(all_of_it=""):
    got = load("vm.raw") if all_of_it else read()
    want = load("disk")
    bad = [s for s in range(len(want) // 512)
           if got[s * 512:s * 512 + 512] != want[s * 512:s * 512 + 512]]
    assert not bad, bad[:20]

def bits():
    save("bits", bytes(metadata().allocated()))

def grown(name, some=False):
    m = metadata()
    disk, other = load("disk"), padded(load(name), m.size)
    before = load("bits")
    for s in range(m.sectors()):
        at = slice(s * 512, s * 512 + 512)
        want = before[s] or disk[at] != other[at]
        assert m.get(s) == want or (some and want and not before[s]), s

def subset(name):
    grown(name, True)

def kept(name):
    same()
    grown(name)

globals()[sys.argv[1]](*sys.argv[2:])
PY

rebase_py ()
{
    python rebase.py "$@"
}

# served: what a server says that the disk is.
served ()
{
    rm -f served sock
    # shellcheck disable=SC2016 # it is nbdkit's $uri
    nbdkit -r -U sock --filter="$addcow" file addcow=vm.add-cow \
        --run 'nbdcopy "$uri" served'
    cmp served disk
}

# rebase ARGUMENT...: it succeeds and prints nothing.
rebase ()
{
    addcow-img rebase "$@" vm.add-cow >out 2>err || { cat out err; return 1; }
    cat out err
    [ ! -s out ] && [ ! -s err ]
}

# hints: what info says of the format, length and time of the backing file.
hints ()
{
    addcow-img info --output=json vm.add-cow | python -c '
import json, sys
info = json.load(sys.stdin)
data = info["format-specific"]["data"]
print(info.get("backing-filename"), info.get("backing-filename-format"),
      data.get("backing-size"), data.get("backing-mtime-ns"),
      data.get("backing-changed"))'
}

# mtime FILE: as a hint has it.
mtime ()
{
    python -c 'import os, sys; print(os.stat(sys.argv[1]).st_mtime_ns)' "$1"
}

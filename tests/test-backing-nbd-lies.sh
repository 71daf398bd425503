#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A server with the backing file that breaks the protocol, lies about its
# extents or answers in any order: data are right or an error, and right
# again when the server is.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"

size=$((3 * 1024 * 1024 + 512))
random_file base.img $size

# lying LIE [COUNT]: a server that lies, and an overlay of it.  The first
# connection is that of addcow-img.
disk_size=
lying ()
{
    rm -f base.sock vm.* log
    /usr/bin/python3 "$abs_srcdir/lying_server.py" base.sock base.img "$@" &
    base_pid=$!
    cleanup_fn "end $base_pid"
    wait_for test -S base.sock
    addcow-img create -q -F raw -b "nbd+unix:///?socket=$tmp/base.sock" \
        vm.add-cow ${disk_size:+"$disk_size"}
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-backing-timeout="$seconds" 2>log
}

over ()
{
    stop_nbdkit "$pid"
    end "$base_pid"
}

cat > compare.py <<'PY'
import random, sys
from nbd_client import *

base = open("base.img", "rb").read()

def client(seed):
    r = random.Random(seed)
    h = connect(sys.argv[1])
    for _ in range(50):
        n = r.choice([1, 512, 4096, 300000])
        at = r.randrange(len(base) - n)
        assert h.pread(n, at) == base[at:at + n], (at, n)
    h.shutdown()

in_parallel([lambda i=i: client(i) for i in range(4)])
h = connect(sys.argv[1])
assert content(h) == base
h.pwrite(b"a" * 100, 5000)
assert h.pread(512, 4608 + 512) == base[5120:5632]
assert h.pread(512, 4608) == base[4608:5000] + b"a" * 100 + base[5100:5120]
kinds = {kind for _, kind in extents(h, 65536, 65536)}
assert kinds == {DATA}, kinds
h.shutdown()
PY

# What is false about extents makes no difference: unless it says in so
# many words that there are zeroes, there are data.
seconds=$patience
for lie in none reverse no-extents empty-extent strange-types status-error \
           status-memory; do
    lying $lie
    python compare.py "$uri"
    [ ! -s log ]
    over
done

# Zeroes past the end are nobody's.
lying long-extents
python - "$uri" <<'PY'
import sys
from nbd_client import *
h = connect(sys.argv[1])
base = open("base.img", "rb").read()
assert content(h) == base
assert sum(n for n, _ in extents(h)) == len(base)
PY
over

# What breaks the connection is asked again over the next.
for lie in close half garbage cookie elsewhere shutdown; do
    lying $lie 4
    python compare.py "$uri"
    wait_for grep -F "connection lost: " log
    wait_for grep -F "connected again" log
    over
done

# For ever, or without a lost connection: an error, in time, and the rest
# goes on.
seconds=1
for lie in close half garbage cookie elsewhere shutdown left-out nothing; do
    lying $lie
    python - "$uri" <<'PY'
import sys
from errno import EIO
from nbd_client import *
h = connect(sys.argv[1])
h.pwrite(b"a" * 4096, 4096)
for at in 0, 1 << 20:
    try:
        h.pread(8192, at)
        assert False
    except nbd.Error as e:
        assert e.errnum == EIO, e
assert h.pread(4096, 4096) == b"a" * 4096
h.shutdown()
PY
    # Connections that serve for nothing are not made all the time.
    [ "$(grep -c "connected again" log)" -lt 30 ]
    over
done

# More than a disk can have: its end is not seen, and nothing is kept for
# what is not looked at.
seconds=$patience
disk_size=1T
lying huge
nbdsh -u "$uri" -c '
assert h.get_size() == 1 << 40
assert h.pread(4096, 0) == open("base.img", "rb").read(4096)
assert h.pread(4096, (1 << 40) - 4096) == bytes(4096)'
over
disk_size=
# refused_for LIE TEXT
refused_for ()
{
    rm -f base.sock
    /usr/bin/python3 "$abs_srcdir/lying_server.py" base.sock base.img "$1" &
    base_pid=$!
    cleanup_fn "end $base_pid"
    wait_for test -S base.sock
    fails_with "$2" addcow-img create -F raw \
        -b "nbd+unix:///?socket=$tmp/base.sock" x.add-cow
    end "$base_pid"
}
refused_for huge "File too large"
refused_for too-huge "it has more bytes than a disk can have"

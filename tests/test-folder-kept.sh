#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow=FOLDER: clients of one overlay come and go while its commits fail and
# succeed, so that it is kept and closed again and again, by who comes, who may
# be refused, and by who commits when the interval is over.  When the server
# has stopped, nothing that was acknowledged is lost.
#
# ADDCOW_SEED=SEED: with what it is tried.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
export patience # to Python
VG=() # as unwatched does

size=$((8 * 1024 * 1024))
random_file base.img $size
mkdir vms
addcow-img create -q -F raw -b ../base.img vms/one.add-cow

cat > clients.py <<'PY'
import os, random, sys, threading, time
import nbd
from fill_client import PATIENCE, wait_for
from nbd_client import connect, in_parallel

size, sock, seed = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
uri = "nbd+unix:///one?socket=" + sock
CLIENTS = 4
ROUNDS = 150
TOGETHER = 50
SECTORS = size // 512
written = [{} for _ in range(CLIENTS)]
done = threading.Event()
together = threading.Barrier(CLIENTS)


def come():
    """Those who come while it cannot be committed are refused."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return connect(uri)
        except nbd.Error:
            assert time.monotonic() < end


def client(number):
    """Its sectors are every CLIENTS-th; writes some and leaves."""
    draw = random.Random(seed * CLIENTS + number)
    for i in range(ROUNDS):
        h = come()
        for _ in range(draw.randrange(4)):
            sector = draw.randrange(SECTORS // CLIENTS) * CLIENTS + number
            data = bytes([draw.randrange(256)]) * 512
            h.pwrite(data, sector * 512)
            written[number][sector] = data
        for sector in draw.sample(sorted(written[number]),
                                  min(4, len(written[number]))):
            assert h.pread(512, sector * 512) == written[number][sector]
        h.shutdown()
        if i % TOGETHER == TOGETHER - 1:
            # All come again when the interval, of a second, is over.
            together.wait(PATIENCE)
            time.sleep(0.9 + draw.random() / 5)


def disk():
    """Cannot be written to, now and then."""
    draw = random.Random(seed)
    while not done.is_set():
        open("trigger", "w").close()
        done.wait(draw.random() / 20)
        os.unlink("trigger")
        done.wait(draw.random() / 20)


def be_kept():
    """Once for certain, whatever the others' turns are."""
    h = connect(uri)
    open("trigger", "w").close()
    written[0][0] = b"kept" * 128
    h.pwrite(written[0][0], 0)
    h.shutdown()
    wait_for(lambda: "is kept open" in open("log").read())
    os.unlink("trigger")


be_kept()
t = threading.Thread(target=disk)
t.start()
try:
    in_parallel([lambda n=n: client(n) for n in range(CLIENTS)])
finally:
    done.set()
    t.join()
with open("want", "wb") as f:
    f.write(open("base.img", "rb").read())
    for sectors in written:
        for sector, data in sectors.items():
            f.seek(sector * 512)
            f.write(data)
PY

seed=${ADDCOW_SEED:-$RANDOM}
echo "seed $seed"
preload=$fault_inject
export FAULT_TRIGGER=$tmp/trigger FAULT_CALL=pwrite FAULT_FILE=one.add-cow \
    FAULT_ERRNO=28
start_nbdkit sock --filter="$addcow" file addcow=vms addcow-confine=none \
    addcow-commit-interval=1 2>log
/usr/bin/python3 clients.py $size "$tmp/sock" $seed
stop_nbdkit "$pid"
preload=
grep -F 'one.add-cow: is kept open until it can be committed' log
if grep -F 'since the last commit is lost' log; then exit 1; fi

start_nbdkit sock --filter="$addcow" file addcow=vms addcow-confine=none
nbdsh -u "nbd+unix:///one?socket=$tmp/sock" \
    -c "assert h.pread($size, 0) == open('want', 'rb').read()"
stop_nbdkit "$pid"

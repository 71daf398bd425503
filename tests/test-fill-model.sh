#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Random requests from several connections while the image is filled in
# every way there is, with restarts and kills, against a model in memory
# (fill_model.py): over a backing file that is slow, so that filling goes on
# all the time, and images that are slow or not parallel.  -s SEED repeats.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
requires_filter delay
requires_filter noparallel
requires_filter multi-conn
requires_filter fua

seed=$RANDOM$RANDOM
if [ "$1" = -s ]; then seed=$2; fi
echo "seed: $seed"

# Not a multiple of 8 sectors.
size=$((8195 * 512)) rounds=10
if [ -n "$SANITIZER" ]; then size=$((2051 * 512)) rounds=6; fi
if [ -n "$ADDCOW_VALGRIND" ]; then size=$((1027 * 512)) rounds=3; fi

# A base of data, zeroes and holes.
cat > make-base.py <<'PY'
import random, sys

seed, length = map(int, sys.argv[2:])
r = random.Random(seed)
with open(sys.argv[1], "wb") as f:
    while f.tell() < length:
        n = min(int(2 ** r.uniform(7, 17)), length - f.tell())
        kind = r.choice(["data", "data", "data", "zeroes", "hole"])
        if kind == "hole":
            f.seek(n, 1)
        else:
            f.write(r.randbytes(n) if kind == "data" else bytes(n))
    f.truncate(length)
PY

# The command of functions.sh's nbdkit, for a program to run.
server=(env)
if [ -n "$_preload" ]; then server+=("LD_PRELOAD=$_preload"); fi
server+=("${VG[@]}" "$(type -P nbdkit)" --filter="$addcow")

# new_base [BYTES]
new_base ()
{
    rm -f base.*
    python make-base.py base.img $seed "${1:-$size}"
    cp base.img base.copy
}

# try [MODEL-OPTION...] -- [FILTER...] -- [PARAMETER...]: on $backing.
try ()
{
    local options=() filters=()
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    while [ "$1" != -- ]; do filters+=("$1"); shift; done
    shift
    seed=$((seed + 1))
    rm -f vm.*
    addcow-img create -q -b "${backing[@]}" vm.add-cow $size
    # What was in an image before means nothing.
    random_file vm.raw $size
    env tmp="$tmp" /usr/bin/python3 "$abs_srcdir/fill_model.py" \
        --seed $seed --rounds $rounds --patience $patience \
        "${options[@]}" base.img vm.add-cow vm.raw \
        "${server[@]}" "${filters[@]}" file addcow=vm.add-cow \
        addcow-commit-interval=1 addcow-on-cache=true "$@" ||
        { cat vm.add-cow.log; exit 1; }
    cmp base.img base.copy
}
always=(addcow-on-read=true addcow-hydrate=true)

# slow_base: serve it, slowly.
slow_base ()
{
    # nbdkit with threads can crash when a client left with requests.
    start_base base.sock -r -t 1 --filter=delay file base.img rdelay=2ms
    backing=("$base_uri" -F raw)
}

# It would wait for clients that were killed.
stop_base ()
{
    stop_nbdkit "$base_pid" KILL
}

# Over a server that is slow; when all is done it is not needed.
new_base
slow_base
try --keeps-reads --base-pid "$base_pid" -- -- \
    "${always[@]}" addcow-hydrate-rate=1M
stop_base

# The base ends before the disk, the image is slow; as that filter fails what
# waits when the server ends, not all that was read is kept then.
new_base $((size / 3 * 2 + 77))
slow_base
try -- --filter=delay -- "${always[@]}" wdelay=3ms delay-zero=3ms
stop_base

# A local file; filling and keeping are switched while it runs.
new_base
backing=(base.img)
try --switch "$tmp/hydrate" --switch "$tmp/on-read" -- -- \
    addcow-on-read="$tmp/on-read" addcow-hydrate="$tmp/hydrate" \
    addcow-hydrate-rate=2M

# Plugins that take one request at a time, and connections that need not see
# what others do: there, clients keep what they read by themselves.  That is
# not kept then to which somebody writes just now.
new_base
slow_base
try --keeps-reads -- --filter=noparallel -- "${always[@]}" serialize=requests
try --keeps-reads --read-all -- --filter=noparallel -- \
    addcow-on-read=true serialize=all-requests
try --read-all -- --filter=multi-conn --filter=fua -- \
    addcow-on-read=true multi-conn-mode=disable fuamode=emulate
stop_base

# Another overlay, whose image is the base.
new_base
python - $size <<'PY'
import sys
from addcow_format import Metadata

n = int(sys.argv[1]) // 4096
bits = bytearray(b"\xff" * n + b"\xff")
with open("base.add-cow", "wb") as f:
    f.write(Metadata(int(sys.argv[1]), b"", b"base.img", bits).encode())
PY
backing=(base.add-cow -F add-cow)
try --keeps-reads -- -- "${always[@]}" addcow-hydrate-rate=2M

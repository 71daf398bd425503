#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow=FOLDER: many overlays in one server, which clients choose by name.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"
requires nbdinfo --version
VG=() # as unwatched does

size=$((1024 * 1024))
mkdir vms
random_file vms/base.img $size
cp vms/base.img base.copy
for name in one two last.add-cow; do
    addcow-img create -q -F raw -b base.img vms/"${name%.add-cow}".add-cow
done
addcow-img create -q vms/empty.add-cow $size
addcow-img create -q -F raw -b base.img vms/odd.add-cow.add-cow
# Not to be found, or to be opened.
echo text > vms/bad.add-cow
echo text > vms/other.txt
addcow-img create -q -F raw -b base.img vms/lost.add-cow
rm vms/lost.raw

# From a folder of its own, as nbdkit leaves it.
start_nbdkit sock --filter="$addcow" file addcow=vms \
    addcow-commit-interval=1 2>log
server=$pid

# There is room for the files of many: to make it later takes long.
most=$(ulimit -Hn)
[ "$most" != unlimited ] && [ "$most" -lt 16384 ] || most=16384
[ "$(awk '/^FDSize:/ { print $2 }' "/proc/$server/status")" -ge "$most" ]

#--- What there is.

# nbdinfo looks at all of them, and says which ones are bad.
nbdinfo --list "$uri" > list 2>list.err || :
cat list list.err
grep -A1 '^export=' list | grep -v '^--' > names
diff -u names - <<'END'
export="empty":
	description: overlay without a backing file
export="last":
	description: overlay of base.img
export="odd.add-cow.add-cow":
	description: overlay of base.img
export="one":
	description: overlay of base.img
export="two":
	description: overlay of base.img
END
/usr/bin/python3 - "$uri" <<'PY'
import sys, nbd
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
seen = []
h.opt_list(lambda name, description: seen.append((name, description)))
h.opt_abort()
assert [n for n, _ in seen] == ["bad", "empty", "last", "lost",
                                "odd.add-cow.add-cow", "one", "two"], seen
assert dict(seen)["bad"] == "not an add-cow file"
PY

nbdinfo "nbd+unix:///one?socket=$tmp/sock" |
    grep -F 'description: overlay of base.img'

# There is no default, and who asks for it is told where to look.
nbdinfo "$uri" && exit 1
grep -F "there is no default export: choose one of those that nbdinfo --list" \
    log

#--- One and two are two disks, and each is one for all its clients.

cat > clients.py <<'PY'
import os, sys, time, nbd
from addcow_format import Metadata
from nbd_client import connect, content

sock, pid = sys.argv[1:]
base = open("base.copy", "rb").read()


def overlay(name):
    return connect("nbd+unix:///%s?socket=%s" % (name, sock))


def refused(name):
    try:
        overlay(name)
    except nbd.Error as e:
        return e
    assert False, name


def bits(name):
    with open("vms/%s.add-cow" % name, "rb") as f:
        return Metadata.decode(f.read()).bitmap


def eventually(holds):
    """Clients that leave do not wait for what the server does then."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def descriptors():
    return len(os.listdir("/proc/%s/fd" % pid))


nobody = descriptors()
one, again, two = overlay("one"), overlay("one.add-cow"), overlay("two")
empty, odd = overlay("empty"), overlay("odd.add-cow.add-cow")
for h in one, again, two, odd:
    assert content(h) == base
    assert h.get_size() == len(base) and not h.is_read_only()
    assert h.can_multi_conn()
assert content(empty) == bytes(len(base))

# Partial sectors, too.
one.pwrite(b"1" * 5000, 300)
two.pwrite(b"2" * 70000, 65536 + 7)
want = {"one": bytearray(base), "two": bytearray(base)}
want["one"][300:5300] = b"1" * 5000
want["two"][65543:135543] = b"2" * 70000
assert content(one) == content(again) == want["one"]
assert content(two) == want["two"]
assert content(odd) == base

# Who leaves last has it committed, flushed by nobody; the first does not.
again.shutdown()
assert content(one) == want["one"]
one.shutdown()
two.shutdown()
one = overlay("one")
assert content(one) == want["one"]
eventually(lambda: bits("one")[0:2] == b"\xff\x07")
one.shutdown()

# Those that are bad are so for who asks for them.
for name in "bad", "lost", "nobody", "other.txt", "odd", "one.raw":
    refused(name)
assert content(odd) == base

# Nothing of what was opened is left.
odd.shutdown()
empty.shutdown()
for i in range(3):
    h = overlay("two")
    assert content(h) == want["two"]
    if i == 0:
        eventually(lambda: descriptors() <= nobody + 9)
        some = descriptors()
    eventually(lambda: descriptors() == some)
    h.shutdown()
eventually(lambda: descriptors() == nobody)
PY
/usr/bin/python3 clients.py "$tmp/sock" "$server"
cmp vms/base.img base.copy
grep -F "vms/bad.add-cow: not an add-cow file" log
grep -F "vms/lost.add-cow: lost.raw: No such file or directory" log
grep -F "vms/nobody.add-cow: No such file or directory" log
addcow-img check vms/one.add-cow
addcow-img check vms/two.add-cow

#--- What has a client is in use, what has none is not.

# hold NAME: a client that stays until its pipe is closed.
cat > hold.py <<'PY'
import sys
from nbd_client import connect
h = connect("nbd+unix:///%s?socket=%s" % tuple(sys.argv[1:]))
h.pwrite(b"held", 512 * 40)
print("there", flush=True)
sys.stdin.read()
h.shutdown()
print("gone", flush=True)
PY
coproc HOLD { exec /usr/bin/python3 hold.py one "$tmp/sock"; }
hold_pid=$HOLD_PID
read -r line <&"${HOLD[0]}"
[ "$line" = there ]
fails_with "vms/one.add-cow" addcow-img resize vms/one.add-cow +1M
fails_with "in use by another process" \
    nbdkit -U - --filter="$addcow" file addcow=vms/one.add-cow --run true
wait_for addcow-img resize -q vms/two.add-cow +1M
[ "$(nbdinfo --size "nbd+unix:///two?socket=$tmp/sock")" -eq $((2 * size)) ]

# What it has written is committed while it stays, without a flush.
committed ()
{
    /usr/bin/python3 -c '
import sys
from addcow_format import Metadata
with open("vms/one.add-cow", "rb") as f:
    sys.exit(not Metadata.decode(f.read()).bitmap[5] & 1)'
}
wait_for committed

# The image of what is served must not become another file.
mv vms/one.raw vms/away.raw
truncate -s $size vms/one.raw
nbdinfo --size "nbd+unix:///one?socket=$tmp/sock" && exit 1
grep -F "vms/one.raw: is another file by now than the one that is served" log
rm vms/one.raw
ln -s away.raw vms/one.raw
nbdinfo --size "nbd+unix:///one?socket=$tmp/sock" && exit 1
rm vms/one.raw
mkfifo vms/one.raw
timeout 60 nbdinfo --size "nbd+unix:///one?socket=$tmp/sock" && exit 1
rm vms/one.raw
mv vms/away.raw vms/one.raw
[ "$(nbdinfo --size "nbd+unix:///one?socket=$tmp/sock")" -eq $size ]

hold_in=${HOLD[1]}
exec {hold_in}>&-
read -r line <&"${HOLD[0]}"
[ "$line" = gone ]
wait "$hold_pid"

#--- Overlays come and go.

addcow-img create -q -F raw -b base.img vms/new.add-cow
nbdinfo --list "$uri" 2>/dev/null | grep -xF 'export="new":'
[ "$(nbdinfo --size "nbd+unix:///new?socket=$tmp/sock")" -eq $size ]
rm vms/new.*
nbdinfo --size "nbd+unix:///new?socket=$tmp/sock" && exit 1
nbdinfo --list "$uri" 2>/dev/null | grep -F 'export="new"' && exit 1
addcow-img create -q vms/new.add-cow 2M
has_size ()
{
    [ "$(nbdinfo --size "nbd+unix:///$1?socket=$tmp/sock")" -eq "$2" ]
}
wait_for has_size new $((2 * size))

stop_nbdkit "$server"

#--- A stop at the moment when clients leave loses nothing.

for ((i = 0; i < 25; i++)); do
    start_nbdkit sock$i --filter="$addcow" file addcow=vms \
        addcow-commit-interval=0
    nbdsh -c "
import os
hs = [nbd.NBD() for name in ('one', 'two')]
for h, name in zip(hs, ('one', 'two')):
    h.connect_uri('nbd+unix:///%s?socket=$tmp/sock$i' % name)
    h.pwrite(b'stop', 512 * (100 + $i))
if $i % 2:
    hs[0].shutdown()
os.kill($pid, $((i % 3 ? 15 : 2)))
"
    stop_nbdkit "$pid"
done
/usr/bin/python3 - <<'PY'
from addcow_format import Metadata
for name in "one", "two":
    with open("vms/%s.add-cow" % name, "rb") as f:
        bits = Metadata.decode(f.read()).bitmap
    with open("vms/%s.raw" % name, "rb") as f:
        image = f.read()
    for n in range(100, 125):
        assert bits[n // 8] & 1 << n % 8, (name, n)
        assert image[512 * n:512 * n + 4] == b"stop", (name, n)
PY

#--- Read-only: two servers can.

start_nbdkit ro1 -r --filter="$addcow" file addcow=vms
start_nbdkit ro2 -r --filter="$addcow" file addcow=vms
for sock in ro1 ro2; do
    nbdinfo --json "nbd+unix:///one?socket=$tmp/$sock" |
        grep -F '"is_read_only": true'
done
[ "$(nbdsh -u "nbd+unix:///one?socket=$tmp/ro1" \
    -c 'print(h.pread(4, 512 * 40))')" = "bytearray(b'held')" ]

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img info --watch: what it says while bits are set by a server or by
# somebody else, on a terminal and elsewhere, and how it ends.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires test -r /proc/self/io
source "$abs_srcdir/bad-input.sh"

export PYTHONPATH=$abs_srcdir

# make_overlay FILE SECTORS: of 1 MiB, the first so many sectors of which are
# allocated.
make_overlay ()
{
    metadata "$1" size=1048576 image=vm.raw
    set_bits "$1" "$2"
}

# set_bits FILE SECTORS: that many are allocated now.
set_bits ()
{
    /usr/bin/python3 - "$@" <<'PY'
import sys
from addcow_format import *

name, sectors = sys.argv[1], int(sys.argv[2])
with open(name, "r+b") as f:
    m = Metadata.decode(f.read())
    for s in range(sectors):
        m.set(s)
    f.seek(BITMAP_AT)
    f.write(m.bitmap)
PY
}

# watch ARGUMENT...: in the background, as $watcher, to the files out and err.
watch ()
{
    rm -f out err
    touch out err
    "${VG[@]}" "$addcow_img" info --watch "$@" >out 2>err &
    watcher=$!
}
watcher=
# shellcheck disable=SC2016 # the one there is at the end
cleanup_fn '[ -z "$watcher" ] || kill -KILL "$watcher" || :'

# shows TEXT: wait until a line of out has it.
shows ()
{
    local i
    for ((i = 0; i < 600; i++)); do
        if grep -qF -- "$1" out; then return 0; fi
        kill -0 "$watcher" || break
        sleep 0.1
    done
    cat out err
    return 1
}

reads ()
{
    sed -n 's/^syscr: //p' "/proc/$watcher/io"
}

# looks_again: wait until it has looked at the file some more times; each
# time it reads the header and perhaps something of the bitmap.
looks_again ()
{
    local i before
    before=$(reads)
    for ((i = 0; i < 600; i++)); do
        if [ "$(reads)" -ge $((before + 5)) ]; then return 0; fi
        sleep 0.1
    done
    return 1
}

# ends STATUS: it ends, with that exit status.
ends ()
{
    local i status=0
    for ((i = 0; i < 600; i++)); do
        if ! kill -0 "$watcher" 2>/dev/null; then
            wait "$watcher" || status=$?
            watcher=
            cat out err
            [ $status -eq "$1" ]
            return
        fi
        sleep 0.1
    done
    return 1
}

# ends_with TEXT: it ends with an error, in the usual form.
ends_with ()
{
    ends 1
    echo "addcow-img: vm.add-cow: $1" | diff err -
}

### What is complete at once.

make_overlay full.add-cow 2048
cat > complete <<TEXT
allocated: 1 MiB (1048576 bytes, 100.00%)
complete: true
in use: false
TEXT
in_time addcow-img info --watch full.add-cow | diff - complete
[ "$(in_time addcow-img info --watch --output=json full.add-cow)" = \
    '{ "allocated-bytes": 1048576, "percent": 100.00, "complete": true }' ]
metadata empty.add-cow size=0
in_time addcow-img info --watch empty.add-cow | grep -x "complete: true"

### What cannot be watched.

fails_in_time "addcow-img: missing: No such file or directory" \
    addcow-img info --watch missing
fails_in_time "addcow-img: .: Is a directory" addcow-img info --watch .
fails_in_time "addcow-img: complete: not an add-cow file" \
    addcow-img info --watch complete
fails_in_time "exactly one FILE" addcow-img info --watch
make_overlay vm.add-cow 1
in_time addcow-img info --watch vm.add-cow >/dev/full 2>err || [ $? -eq 1 ]
echo "addcow-img: standard output: No space left on device" | diff err -

### A server fills it; the watcher is there first and takes no lock.

truncate -s 1M vm.raw
make_overlay vm.add-cow 0
watch vm.add-cow
shows "    (0.00/100%) 0 B of 1 MiB, 0 B/s, time left unknown"
looks_again
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
/usr/bin/python3 - <<PY
import nbd

h = nbd.NBD()
h.connect_uri("$uri")
h.pwrite(b"x" * 524288, 0)
h.flush()
PY
shows "    (50.00/100%) 512 KiB of 1 MiB, "
# What has not changed is not said again.
looks_again
/usr/bin/python3 - <<PY
import nbd

h = nbd.NBD()
h.connect_uri("$uri")
h.pwrite(b"x" * 524288, 524288)
h.flush()
PY
ends 0
[ ! -s err ]
[ "$(wc -l < out)" -eq 6 ]
grep -qE '^    \(50\.00/100%\) .*, [0-9.]+ KiB/s, 0:00:[0-9]{2} left$' out
grep -qE '^    \(100\.00/100%\) 1 MiB of 1 MiB, .*, 0:00:00 left$' out
# The server has it.
tail -n 3 out | diff - <(sed 's/^in use: .*/in use: true/' complete)
stop_nbdkit "$pid"

### JSON: every change, also those that the per cent figure does not show.

size=$((1 << 30))
metadata vm.add-cow size=$size
watch --output=json vm.add-cow
shows '{ "allocated-bytes": 0, "percent": 0.00, "complete": false }'
looks_again
set_bits vm.add-cow 3
shows '{ "allocated-bytes": 1536, "percent": 0.00, "complete": false }'
set_bits vm.add-cow $((size / 512 - 1))
shows '{ "allocated-bytes": 1073741312, "percent": 99.99, "complete": false }'
set_bits vm.add-cow $((size / 512))
ends 0
[ ! -s err ]
/usr/bin/python3 - <<'PY'
import json

got = [json.loads(line) for line in open("out")]
assert [(g["allocated-bytes"], g["percent"], g["complete"]) for g in got] == [
    (0, 0, False),
    (1536, 0, False),
    ((1 << 30) - 512, 99.99, False),
    (1 << 30, 100, True),
], got
PY

# To people, one that the figure does not show is none.
metadata vm.add-cow size=$size
watch vm.add-cow
shows "(0.00/100%)"
set_bits vm.add-cow 3
looks_again
set_bits vm.add-cow $((size / 512))
ends 0
[ "$(grep -c "/100%" out)" -eq 2 ]

### A disk that grows.

make_overlay vm.add-cow 1024
watch vm.add-cow
shows "(50.00/100%) 512 KiB of 1 MiB,"
/usr/bin/python3 - <<'PY'
from addcow_format import *

with open("vm.add-cow", "r+b") as f:
    f.truncate(BITMAP_AT + bitmap_length(2 << 20))
    f.seek(SIZE_AT)
    f.write((2 << 20).to_bytes(8, "big"))
PY
shows "(25.00/100%) 512 KiB of 2 MiB,"
set_bits vm.add-cow 4096
ends 0
tail -n 3 out | grep -x "allocated: 2 MiB (2097152 bytes, 100.00%)"

### A file that is removed, replaced or broken.

make_overlay vm.add-cow 1024
watch vm.add-cow
shows "(50.00/100%)"
rm vm.add-cow
ends_with "No such file or directory"

make_overlay vm.add-cow 1024
watch vm.add-cow
shows "(50.00/100%)"
mv full.add-cow vm.add-cow
ends_with "replaced by another file"

make_overlay vm.add-cow 1024
watch --output=json vm.add-cow
shows "50.00"
truncate -s 2100 vm.add-cow
ends_with "truncated: shorter than its header and bitmap"

# The one that is watched being complete is what counts.
for how in "rm vm.add-cow" "mv other.add-cow vm.add-cow"; do
    make_overlay vm.add-cow 1024
    make_overlay other.add-cow 0
    watch vm.add-cow
    shows "(50.00/100%)"
    kill -STOP "$watcher"
    set_bits vm.add-cow 2048
    $how
    kill -CONT "$watcher"
    ends 0
    tail -n 3 out | diff - complete
done

### On a terminal.

cat > terminal.py <<'PY'
import fcntl, os, pty, re, select, signal, struct, subprocess, sys, termios
import time
from addcow_format import *

command = sys.argv[1:] + ["info", "--watch", "vm.add-cow"]


def sectors(n):
    """So many of the 2048 are allocated now."""
    m = Metadata(1 << 20, b"", b"vm.raw")
    for s in range(n):
        m.set(s)
    fd = os.open("vm.add-cow", os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(fd, m.encode(), 0)
    os.close(fd)


class Watcher:
    """On a terminal of its own, of so many columns; 0: it does not say."""

    def __init__(self, columns=0, arguments=()):
        self.out = b""
        self.eof = False
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            self.columns(columns, 1)
            os.execvp(command[0], command + list(arguments))

    def columns(self, n, fd=None):
        size = struct.pack("HHHH", 24 if n else 0, n, 0, 0)
        fcntl.ioctl(self.fd if fd is None else fd, termios.TIOCSWINSZ, size)

    def read(self):
        """Some more; nothing comes after all was closed."""
        assert select.select([self.fd], [], [], 60)[0], self.out
        try:
            more = os.read(self.fd, 4096)
        except OSError:
            more = b""
        self.eof = more == b""
        self.out += more
        return more

    def shows(self, pattern):
        """Wait until it does, from now on."""
        seen = b""
        while not re.search(pattern, seen):
            assert not self.eof, self.out
            seen += self.read()

    def ends(self):
        """Wait for the end; all that was printed, and what wait returns."""
        while not self.eof:
            self.read()
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.fd)
        # A newline is two characters on a terminal.
        return self.out.replace(b"\r\n", b"\n").decode(), status


def bars(text):
    """What was in the line of the bar, one after the other."""
    assert text[0] == "\r" and text.count("\n") == 1 and text[-1] == "\n", text
    return text[1:-1].split("\r")


# Bars of a line of 80 columns, then the end.
end = (
    "allocated: 1 MiB (1048576 bytes, 100.00%)\n"
    "complete: true\nin use: false\n"
)
sectors(0)
w = Watcher()
w.shows(rb"\[> +\]   0\.00%  0 B/1 MiB  0 B/s  time left unknown +$")
sectors(512)
w.shows(rb"\[=+> +\]  25\.00%  256 KiB/1 MiB  \S+ KiB/s  0:00:\d\d left +$")
sectors(1024)
w.shows(rb"\[=+> +\]  50\.00%  512 KiB/1 MiB  \S+ KiB/s  0:00:\d\d left +$")
sectors(2048)
text, status = w.ends()
assert status == 0 and text.endswith("\n" + end), (text, status)
seen = bars(text[: -len(end)])
assert all(len(bar) == 79 for bar in seen), seen
assert re.match(r"\[=+\] 100\.00%  1 MiB/1 MiB .* 0:00:00 left +$", seen[-1])

# The bar fits, also when the width changes.
sectors(1024)
w = Watcher(120)
w.shows(rb"\r\[=+> +\]  50\.00%  512 KiB/1 MiB  0 B/s  time left unknown +$")
w.columns(40)
w.shows(rb"\r\[=+> +\]  50\.00%$")
w.columns(12)
w.shows(rb"\r50\.00%     $")
w.columns(80)
w.shows(rb"\r\[=+> +\]  50\.00%  512 KiB/1 MiB  0 B/s  time left unknown +$")
sectors(2048)
text, status = w.ends()
assert status == 0 and text.endswith("\n" + end), (text, status)
seen = [len(bar) for bar in bars(text[: -len(end)])]
assert set(seen) == {119, 39, 11, 79}, seen

# What is complete at once has no bar; JSON never has.
w = Watcher(80)
assert w.ends() == (end, 0), w.out
sectors(0)
w = Watcher(80, ["--output=json"])
w.shows(rb"0\.00.*\n")
sectors(2048)
text, status = w.ends()
assert status == 0
assert re.fullmatch(r"\{ .*\"percent\": 0\.00,.* \}\n\{ .* \}\n", text), text

# A signal, or an error, leaves the line of the bar.
for sig in signal.SIGINT, signal.SIGTERM:
    sectors(1024)
    w = Watcher(80)
    w.shows(rb"50\.00%.*\S +$")
    if sig == signal.SIGINT:
        os.write(w.fd, b"\x03")
    else:
        os.kill(w.pid, sig)
    text, status = w.ends()
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == sig, status
    text = text.replace("^C", "")
    assert len(bars(text)) >= 1, text

sectors(1024)
w = Watcher(80)
w.shows(rb"50\.00%.*\S +$")
os.unlink("vm.add-cow")
text, status = w.ends()
assert os.waitstatus_to_exitcode(status) == 1, status
error = "addcow-img: vm.add-cow: No such file or directory\n"
assert text.endswith("\n" + error), text
bars(text[: -len(error)])

# One that is to ignore a signal does.
sectors(1024)
signal.signal(signal.SIGINT, signal.SIG_IGN)
w = Watcher(80)
w.shows(rb"50\.00%.*\S +$")
os.kill(w.pid, signal.SIGINT)
w.shows(rb"50\.00%.*\S +$")
sectors(2048)
text, status = w.ends()
assert status == 0, (text, status)
PY
timeout 300 /usr/bin/python3 terminal.py "${VG[@]}" "$addcow_img"

### A signal elsewhere: nothing is printed, and it is seen to have died so.

make_overlay vm.add-cow 1024
watch vm.add-cow
shows "(50.00/100%)"
kill -TERM "$watcher"
ends $((128 + 15))
[ "$(wc -l < out)" -eq 1 ]
[ ! -s err ]

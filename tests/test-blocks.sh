#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# On a terminal, addcow-img info and map draw the disk as a line of blocks.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"
export PYTHONPATH=$abs_srcdir

cat > draw.py <<'PY'
import fcntl, os, pty, random, struct, subprocess, sys, termios
from addcow_format import Metadata, SIZE_AT, bitmap_length

command = sys.argv[1:]


def on_terminal(arguments, columns, locale):
    pid, fd = pty.fork()
    if pid == 0:
        size = struct.pack("HHHH", 24, columns, 0, 0)
        fcntl.ioctl(1, termios.TIOCSWINSZ, size)
        os.environ["LC_ALL"] = locale
        os.execvp(command[0], command + arguments)
    out = b""
    while True:
        try:
            more = os.read(fd, 4096)
        except OSError:
            more = b""
        if not more:
            break
        out += more
    assert os.waitpid(pid, 0)[1] == 0, out
    os.close(fd)
    # A newline is two characters on a terminal.
    return out.decode().replace("\r\n", "\n")


def elsewhere(arguments):
    return subprocess.run(
        command + arguments, stdout=subprocess.PIPE, check=True, text=True
    ).stdout


def drawn(verb, columns=80, locale="C.UTF-8"):
    """The lines that a terminal has more; they are the last ones."""
    arguments = [verb, "vm.add-cow"]
    other = elsewhere(arguments)
    text = on_terminal(arguments, columns, locale)
    assert text.startswith(other), (text, other)
    return text[len(other):]


def make(size, bits=b"", name="vm"):
    with open(name + ".add-cow", "wb") as f:
        f.write(Metadata(0, b"", b"vm.raw").encode())
        f.seek(SIZE_AT)
        f.write(size.to_bytes(8, "big") + bits)
        f.truncate(2068 + bitmap_length(size))
    with open("vm.raw", "wb") as f:
        f.truncate(size)


def line(bits, columns, texts):
    n = len(bits)
    count = min(max(columns - 3, 0), 78, n)
    result = ""
    for i in range(count):
        part = bits[n * i // count : n * (i + 1) // count]
        if not any(part):
            result += texts[0]
        elif all(part):
            result += texts[4]
        else:
            result += texts[1 + sum(part) * 3 // len(part)]
    return result


UTF8, ASCII = " ░▒▓█", " .:+#"

# Literally, and what each part is.
make(15 * 512, b"\x55\x7f")
caption = "allocated, a block for each %s:\n"
assert drawn("info") == caption % "512 B" + "[█ █ █ █ ███████]\n"
assert drawn("map", locale="C") == caption % "512 B" + "[# # # # #######]\n"
make(77 * 3 * 512 * 1024, b"")
assert drawn("map") == caption % "1.5 MiB" + "[" + " " * 77 + "]\n"
make(77 * 3 * 512, b"\xff" * 100)
assert drawn("info") == caption % "1.5 KiB" + "[" + "█" * 77 + "]\n"
# Of parts that differ, what the largest are.
make(100 * 512)
assert drawn("info") == caption % "1 KiB" + "[" + " " * 77 + "]\n"
# Eight sectors in each of 5: none, 1, 3, 7, all.
make(40 * 512, b"\x00\x01\x07\x7f\xff")
assert drawn("info", 8) == caption % "4 KiB" + "[ ░▒▓█]\n"
assert drawn("map", 8, "C") == caption % "4 KiB" + "[ .:+#]\n"
# Not to be seen but for being said: one sector, and all but one.
make(1 << 40, b"\x01")
assert drawn("info", 8) == caption % "205 GiB" + "[░    ]\n"
assert drawn("map", 8, "C") == caption % "205 GiB" + "[.    ]\n"
make(5 << 24, b"\xff" * 3 + b"\xfe" + b"\xff" * 20476)
assert drawn("info", 8) == caption % "16 MiB" + "[▓████]\n"

# Of any size, width and bits; a locale that is not there is as C.
rng = random.Random(11)
for i in range(4 if os.environ.get("ADDCOW_VALGRIND") else 40):
    sectors = rng.choice([1, 2, 77, 78, 79, rng.randrange(1, 100000)])
    bits = [False] * sectors
    for _ in range(rng.randrange(8)):
        at = rng.randrange(sectors)
        n = rng.choice([1, rng.randrange(1, sectors - at + 1)])
        bits[at : at + n] = [rng.random() < 0.8] * n
    m = Metadata(sectors * 512, b"", b"vm.raw", b"")
    for s in range(sectors):
        if bits[s]:
            m.set(s)
    make(sectors * 512, bytes(m.bitmap))
    columns = rng.choice([4, 5, 20, 79, 80, 81, 200, rng.randrange(4, 90)])
    locale, texts = rng.choice(
        [("C.UTF-8", UTF8), ("C", ASCII), ("xx_XX.UTF-8", ASCII)])
    text = drawn(rng.choice(["info", "map"]), columns, locale)
    want = "[" + line(bits, columns, texts) + "]"
    assert text.split("\n")[1:] == [want, ""], (text, want)
    assert text.startswith("allocated, a block for each ")
    assert len(want) < columns

# Where it does not say how wide it is, and where there is no place.
assert drawn("info", 0).count("\n") == 2
for columns in 1, 2, 3:
    assert drawn("info", columns) == drawn("map", columns) == ""
make(0)
assert drawn("info") == drawn("map") == ""

# Not in JSON, and not of what is watched.
make(8 << 20, b"\xff" * 2048)
for arguments in (["info", "--output=json"], ["map", "--output=json"],
                  ["info", "--watch"]):
    arguments.append("vm.add-cow")
    assert on_terminal(arguments, 80, "C.UTF-8") == elsewhere(arguments)

# A large one with a bit at either end.
make(8 << 40, b"\x01")
with open("vm.add-cow", "r+b") as f:
    f.seek(-1, os.SEEK_END)
    f.write(b"\x80")
for verb in "info", "map":
    assert drawn(verb).endswith("[░" + " " * 75 + "░]\n")
PY
timeout 300 /usr/bin/python3 draw.py "${VG[@]}" "$addcow_img"

# An error is all that is said on a terminal.
head -c 2068 vm.add-cow > short.add-cow
for verb in info map; do
    /usr/bin/python3 - "${VG[@]}" "$addcow_img" $verb short.add-cow <<'PY'
import os, pty, sys

pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
out = b""
try:
    while more := os.read(fd, 4096):
        out += more
except OSError:
    pass
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
assert out == b"addcow-img: short.add-cow: truncated: shorter than its " \
    b"header and bitmap\r\n", out
PY
done

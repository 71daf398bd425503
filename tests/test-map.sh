#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img map: it says of a chain of overlays what qemu-img says of qcow2
# images with the same sectors over the same base, and the rest of what there
# is to say.

source ./functions.sh
set -e
set -x

requires qemu-img --version
requires qemu-io --version
requires qemu-nbd --version
requires_plugin sh
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"

### As qemu-img has it.

cat > compare.py <<'PY'
import json, os, random, subprocess, sys
from addcow_format import Metadata

BLOCK = 4096
seed, addcow_img = int(sys.argv[1]), sys.argv[2:]
rng = random.Random(seed)


def run(command, **kwargs):
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, text=True, **kwargs
    )
    return done.stdout


def qemu_map(name, *arguments):
    return run(["qemu-img", "map", *arguments, name])


def addcow_map(name, *arguments):
    return run([*addcow_img, "map", *arguments, name])


def make_base():
    length = rng.choice([0, 1, 5000, 65536, rng.randrange(200000)])
    with open("base.img", "wb") as f:
        f.truncate(length)
        for _ in range(rng.randrange(6)):
            at = rng.randrange(length + 1) // BLOCK * BLOCK
            f.seek(at)
            f.write(rng.randbytes(min(rng.randrange(20000), length - at)))


def choose(size):
    """What is allocated: "d" data, "z" a hole, "-" not.  A block of the
    image that has a hole has nothing else."""
    per_block = BLOCK // 512
    sectors = []
    while len(sectors) < size // 512:
        kind = rng.choice("zd-?")
        n = rng.choice([1, 1, 2, 5])
        for _ in range(n * per_block):
            sectors.append(rng.choice("d-") if kind == "?" else kind)
    return "".join(sectors)[: size // 512]


def runs(sectors):
    begin = 0
    for i in range(1, len(sectors) + 1):
        if i == len(sectors) or sectors[i] != sectors[begin]:
            yield begin * 512, (i - begin) * 512, sectors[begin]
            begin = i


def make_overlay(name, below, size):
    """NAME.add-cow and NAME.qcow2, over BELOW or nothing."""
    sectors = choose(size)
    format = "raw" if below == "base" else "add-cow"
    addcow = below and (below + (".img" if below == "base" else ".add-cow"))
    qcow = below and (below + (".img" if below == "base" else ".qcow2"))
    backing = ["-b", addcow, "-F", format] if below else []
    run([*addcow_img, "create", "-q", *backing, name + ".add-cow", str(size)])
    if below:
        qformat = "raw" if below == "base" else "qcow2"
        backing = ["-b", qcow, "-F", qformat]
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512"]
        + backing + [name + ".qcow2", str(size)])
    with open(name + ".add-cow", "rb") as f:
        header = f.read()
    m = Metadata(size, b"", b"", b"")
    commands = []
    with open(name + ".raw", "r+b") as f:
        for at, n, kind in runs(sectors):
            if kind == "-":
                continue
            for s in range(at // 512, (at + n) // 512):
                m.set(s)
            if kind == "d":
                f.seek(at)
                f.write(rng.randbytes(n))
            option = "-z" if kind == "z" else "-P 1"
            commands.append("write %s %d %d" % (option, at, n))
    with open(name + ".add-cow", "r+b") as f:
        f.seek(2068)
        f.write(m.bitmap)
    run(["qemu-io", "-f", "qcow2", name + ".qcow2"],
        input="\n".join(commands) + "\n")
    # What is a hole is known when it is on disk.
    run(["sync", name + ".raw", "base.img"])


def joined(rows):
    """As map joins them, but for where qcow2 has what it has, by name or
    depth."""
    result = []
    for row in rows:
        row = dict(row)
        if row["depth"] != base_depth:
            row.pop("offset", None)
        last = result[-1] if result else None
        same = last and all(
            last.get(k) == row.get(k)
            for k in ("depth", "present", "zero", "data")
        )
        if same and last.get("offset", 0) + (
            last["length"] if "offset" in last else 0
        ) == row.get("offset", 0):
            last["length"] += row["length"]
        else:
            result.append(row)
    return result


def check_rows(rows, size):
    at = 0
    for row in rows:
        assert list(row) == [
            "start", "length", "depth", "present", "zero", "data"
        ] + (["offset"] if row["present"] else []), row
        assert row["start"] == at and row["length"] > 0, row
        assert row.get("offset", at) == at, row
        at += row["length"]
    assert at == size
    equal = ["depth", "present", "zero", "data"]
    for a, b in zip(rows, rows[1:]):
        assert [a[k] for k in equal] != [b[k] for k in equal], (a, b)


def check_human(name, rows, files):
    lines = addcow_map(name + ".add-cow").splitlines()
    assert lines[0] == "Offset          Length          Mapped to       File"
    want = [
        "%-16s%-16s%-16s%s" % (
            *(hex(n) if n else "0" for n in
              (row["start"], row["length"], row["offset"])),
            files[row["depth"]])
        for row in rows if row["data"] and not row["zero"]
    ]
    assert lines[1:] == want, (lines, want)
    # Of the base, to the byte what qemu-img has; but for its folder.
    folder = os.getcwd() + "/"
    ours = [l for l in lines if l.endswith("/base.img")]
    theirs = [l for l in qemu_map(name + ".qcow2").splitlines()
              if l.endswith("base.img")]
    assert [l.replace(folder, "") for l in ours] == theirs, (ours, theirs)


make_base()
levels, files = [], []
below = rng.choice(["base", "base", "base", None])
if below:
    files = [os.getcwd() + "/base.img"]
for name in ["low", "mid", "top"][: rng.choice([1, 2, 2, 3])]:
    size = 512 * rng.choice([1, 3, 128, rng.randrange(1, 500)])
    make_overlay(name, below, size)
    files.insert(0, "%s/%s.raw" % (os.getcwd(), name))
    levels.append(name)
    base_depth = len(levels)
    below = name
    text = addcow_map(name + ".add-cow", "--output=json")
    got = json.loads(text)
    want = json.loads(qemu_map(name + ".qcow2", "--output=json"))
    check_rows(got, size)
    assert joined(got) == joined(want), (joined(got), joined(want))
    check_human(name, got, files)
    # The text is qemu-img's too.
    lines = text.splitlines()
    assert len(lines) == len(got)
    for i, (line, row) in enumerate(zip(lines, got)):
        begin = "[" if i == 0 else ""
        end = "]" if i == len(got) - 1 else ","
        body = json.dumps(row)[1:-1]
        assert line == begin + "{ " + body + "}" + end, line
for name in levels:
    for end in ".add-cow", ".raw", ".qcow2":
        os.unlink(name + end)
PY

n=40
[ -z "$ADDCOW_VALGRIND$SANITIZER" ] || n=5
seed=$((RANDOM * 1000))
echo "seed: $seed"
for ((i = 0; i < n; i++)); do
    /usr/bin/python3 compare.py $((seed + i)) "${VG[@]}" "$addcow_img"
done

# rows FILE: the JSON, whose text was looked at above, in short.
cat > rows.py <<'PY'
import json, sys

for r in json.load(sys.stdin):
    print(
        r["start"], r["length"], r["depth"],
        "present" if r["present"] else "absent",
        "zero" if r["zero"] else "-",
        "data" if r["data"] else "-",
        r.get("offset", "-"))
PY
rows ()
{
    addcow-img map --output=json "$1" > json
    /usr/bin/python3 rows.py < json
}

### Servers, and what is not raw.

K=1024
rm -f base.img
truncate -s $((300 * K)) base.img
random_file x $((64 * K))
dd if=x of=base.img conv=notrunc status=none
dd if=x of=base.img bs=64K seek=3 conv=notrunc status=none
sync base.img
addcow-img create -q -b base.img -F raw vm.add-cow 400K
rows vm.add-cow > out
cat > want <<'ROWS'
0 65536 1 present - data 0
65536 131072 1 present zero - 65536
196608 65536 1 present - data 196608
262144 45056 1 present zero - 262144
307200 102400 0 absent zero - -
ROWS
diff out want

start_base base file base.img
addcow-img create -q -b "$base_uri" -F raw nbd.add-cow 400K
rows nbd.add-cow | diff want -
addcow-img map nbd.add-cow > out
diff out - <<TEXT
Offset          Length          Mapped to       File
0               0x10000         0               $base_uri
0x30000         0x10000         0x30000         $base_uri
TEXT
stop_nbdkit "$base_pid"

# Zeroes that take space, and holes that are no zeroes.
cat > plugin.sh <<'SH'
#!/bin/sh
case $1 in
    get_size) echo 256K ;;
    can_extents) ;;
    pread) head -c "$3" /dev/zero ;;
    extents) echo "0 64K 0"; echo "64K 64K hole"; echo "128K 64K zero"
             echo "192K 64K hole,zero" ;;
    *) exit 2 ;;
esac
SH
chmod +x plugin.sh
start_base base sh "$PWD/plugin.sh"
addcow-img create -q -f -b "$base_uri" -F raw nbd.add-cow
rows nbd.add-cow > out
diff out - <<'ROWS'
0 131072 1 present - data 0
131072 65536 1 present zero data 131072
196608 65536 1 present zero - 196608
ROWS
addcow-img map nbd.add-cow > out
diff out - <<TEXT
Offset          Length          Mapped to       File
0               0x20000         0               $base_uri
TEXT
stop_nbdkit "$base_pid"

# Where in a qcow2 image something is, is not said.
qemu-img convert -f raw -O qcow2 base.img base.qcow2
addcow-img create -q -b base.qcow2 -F qcow2 low.add-cow
addcow-img create -q -b low.add-cow -F add-cow qcow.add-cow 400K
rows qcow.add-cow > out
diff out - <<'ROWS'
0 65536 2 present - data -
65536 131072 2 absent zero - -
196608 65536 2 present - data -
262144 45056 2 absent zero - -
307200 102400 0 absent zero - -
ROWS
addcow-img map qcow.add-cow > out
diff out - <<TEXT
Offset          Length          Mapped to       File
0               0x10000         -               $PWD/base.qcow2
0x30000         0x10000         -               $PWD/base.qcow2
TEXT

### Ends.

empty="Offset          Length          Mapped to       File"
addcow-img create -q none.add-cow 0
[ "$(addcow-img map --output=json none.add-cow)" = "[]" ]
[ "$(addcow-img map none.add-cow)" = "$empty" ]
rm none.*
addcow-img create -q none.add-cow 8T
[ "$(in_time rows none.add-cow)" = "0 8796093022208 0 absent zero - -" ]
[ "$(in_time addcow-img map --output=human none.add-cow)" = "$empty" ]
truncate -s 8T huge.img
addcow-img create -q -b huge.img huge.add-cow
[ "$(in_time rows huge.add-cow)" = "0 8796093022208 1 present zero - 0" ]
rm huge.* none.*

# A disk that stands alone needs nothing that is below.  Its name is printed
# so that it stays in its line.
name=$'a\tb\n\\.raw'
addcow-img create -q -i "$name" -b base.img alone.add-cow 16K
head -c 16384 x > "$name"
printf '\377\377\377\377' |
    dd of=alone.add-cow bs=1 seek=2068 conv=notrunc status=none
mv base.img away
[ "$(rows alone.add-cow)" = "0 16384 0 present - data 0" ]
addcow-img map alone.add-cow > out
diff out - <<TEXT
$empty
0               0x4000          0               $PWD/a\\011b\\012\\\\.raw
TEXT
mv away base.img

### Many runs, at two depths.

/usr/bin/python3 - <<'PY'
import random
from addcow_format import Metadata

random.seed(3)
size = 16 << 20
open("many.img", "wb").truncate(size)
want = bytearray(b"\2" * (size // 512))
for depth, name, backing in (1, "low", b"many.img"), (0, "top", b"low.add-cow"):
    m = Metadata(size, backing, name.encode() + b".raw", b"")
    for s in range(m.sectors()):
        if random.randrange(3) == 0 or 5000 < s < 6000:
            m.set(s)
            want[s] = depth
    data = bytearray(m.encode())
    if depth == 0:
        at = 12 + len(backing) + 1
        data[at : at + 16] = b"format=add-cow\0\0"
    open(name + ".add-cow", "wb").write(data)
    open(name + ".raw", "wb").truncate(size)
open("depths", "wb").write(want)
PY
addcow-img map --output=json top.add-cow > out
/usr/bin/python3 - <<'PY'
import json

rows = json.load(open("out"))
assert all(a["depth"] != b["depth"] for a, b in zip(rows, rows[1:]))
got = b"".join(bytes([r["depth"]]) * (r["length"] // 512) for r in rows)
assert len(rows) > 1000 and got == open("depths", "rb").read()
PY

### In use.

addcow-img create -q -b vm.add-cow -F add-cow over.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
nbdsh -u "$uri" -c 'h.pwrite(b"x" * 65536, 65536)' -c 'h.flush()'
warning="addcow-img: vm.add-cow: in use: this is the map of a disk that is"
warning+=" being changed"
keep
addcow-img map --output=json vm.add-cow > "$tmp/json" 2> "$tmp/err"
addcow-img map vm.add-cow > "$tmp/human" 2> "$tmp/err2"
kept
[ "$(cat "$tmp/err")" = "$warning" ]
[ "$(cat "$tmp/err2")" = "$warning" ]
/usr/bin/python3 rows.py < "$tmp/json" > "$tmp/out"
diff "$tmp/out" - <<'ROWS'
0 65536 1 present - data 0
65536 65536 0 present - data 65536
131072 65536 1 present zero - 131072
196608 65536 1 present - data 196608
262144 45056 1 present zero - 262144
307200 102400 0 absent zero - -
ROWS
diff "$tmp/human" - <<TEXT
Offset          Length          Mapped to       File
0               0x10000         0               $PWD/base.img
0x10000         0x10000         0x10000         $PWD/vm.raw
0x30000         0x10000         0x30000         $PWD/base.img
TEXT
# It has to be the disk itself.
refused "vm.add-cow: in use by another process" addcow-img map over.add-cow
stop_nbdkit "$pid"

start_nbdkit reader -r --filter="$addcow" file addcow=vm.add-cow
addcow-img map vm.add-cow > "$tmp/out" 2> "$tmp/err"
[ ! -s "$tmp/err" ]
stop_nbdkit "$pid"

### What a client is told of the same disk, who sees one layer.

rm -f served.*
random_file served.img 500000
fallocate -p -o 128K -l 128K served.img
addcow-img create -q -b served.img served.add-cow 1M
start_nbdkit sock --filter="$addcow" file addcow=served.add-cow
nbdsh -u "$uri" -c '
h.pwrite(b"x" * 65536, 65536 * 3)
h.pwrite(b"x" * 512, 65536 * 9)
h.zero(65536, 0)'
stop_nbdkit "$pid"
start_nbdkit sock -r --filter="$addcow" file addcow=served.add-cow
qemu-img map -f raw --output=json "$uri" > theirs
stop_nbdkit "$pid"
addcow-img map --output=json served.add-cow > ours
python - <<'PY'
import json

def rows(name):
    """Those that a client can tell from each other."""
    out = []
    for row in json.load(open(name)):
        what = row["zero"], row["data"]
        if out and out[-1][2] == what:
            out[-1][1] += row["length"]
        else:
            out.append([row["start"], row["length"], what])
    return out

assert rows("ours") == rows("theirs"), (rows("ours"), rows("theirs"))
assert len(rows("ours")) >= 6
PY

#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# bench/run, bench/scale and bench/page work: on the smallest disks, and what
# they measure is not looked at.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_filter nofilter
requires fio --enghelp=nbd
requires nbdcopy --version
requires qemu-nbd --version
requires qemu-img --version
requires truncate -s 8T "$tmp/large"
rm "$tmp/large"

bench=$abs_top_srcdir/bench
cd "$tmp"

# In its own build folder, where no disk is made.
what=(--quick --dir "$tmp" --build "$abs_top_builddir")
"$bench/run" "${what[@]}" --rounds 1 --seconds 0.1 --size 64M \
    --fill-size 64M --peers file,qcow2 \
    --jobs mixed4k-again,blockstatus-unallocated,hydrate-memory \
    --json run.json --svg run.svg > run.out
"$bench/scale" "${what[@]}" --overlays 1,2 --json scale.json \
    --svg scale > scale.out
cat run.out scale.out

# What they leave is what they were told to.
rm run.out scale.out
ls
[ "$(find . -mindepth 1 -maxdepth 1 -type d | wc -l)" -eq 0 ]

cat > look.py <<'EOF'
import glob
import json
import sys
import xml.etree.ElementTree as xml


def load(name):
    with open(name) as f:
        measured = json.load(f)
    assert measured["about"]["date"] and measured["about"]["cpu"]
    return measured


def look_at_run(m):
    jobs = ["mixed4k-again", "blockstatus-unallocated", "hydrate-memory"]
    assert list(m["results"]) == jobs
    servers = {"limit", "addcow", "control", "file", "qcow2"}
    for job in jobs[:2]:
        [of_round] = m["results"][job]
        assert set(of_round) == servers, of_round
        assert all(r["requests"] > 0 and r["rate"] > 0
                   for r in of_round.values()), of_round
    rows = {(r["job"], r["of"], r["to"]): r for r in m["summary"]}
    for job in jobs[:2]:
        for peer in "limit", "file", "qcow2":
            r = rows.pop((job, "addcow", peer))
            assert r["kind"] == "ratio" and r["low"] <= r["median"], r
            assert (r["reachable"] is None) == (peer == "limit"), r
    r = rows.pop(("hydrate-memory", "hydrating", "idle"))
    assert r["kind"] == "difference", r
    assert not rows, rows


def look_at_scale(m):
    results = m["results"]
    assert set(results) == {"overlays", "boot", "sizes", "memory",
                            "allocated", "commit", "blockstatus", "clients"}
    for part, result in results.items():
        assert result["rows"], (part, result)
    ours = [r for r in results["commit"]["rows"] if r["server"] == "addcow"]
    assert all(r["bytes"] > 0 for r in ours), ours
    files = [r for r in results["commit"]["rows"] if r["server"] == "file"]
    assert all(r["bytes"] == 0 for r in files), files
    assert m["goals"]
    assert all({"part", "what", "measured", "goal", "ok"} <= set(g)
               for g in m["goals"])


def look_at_chart(name, least):
    root = xml.parse(name).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg", root.tag
    text = " ".join(e.text or "" for e in root.iter())
    assert "Linux" in text, text
    assert len(list(root.iter("{http://www.w3.org/2000/svg}title")) +
               list(root.iter("{http://www.w3.org/2000/svg}circle"))) >= least


look_at_run(load("run.json"))
look_at_scale(load("scale.json"))
look_at_chart("run.svg", 6)
charts = glob.glob("scale-*.svg")
assert {"scale-sizes.svg", "scale-memory.svg", "scale-commit.svg",
        "scale-clients.svg"} <= set(charts), charts
for chart in charts:
    look_at_chart(chart, 2)
print(f"bench: {len(charts) + 1} charts")
EOF
/usr/bin/python3 look.py

# A page that refers to what is there, and is complete.
cp "$abs_top_srcdir/docs/performance/README.md" .
chmod u+w README.md
echo "addcow adds, fresh, read: 1 instructions, 0.00 allocations" > costs.log
"$bench/page" --run run.json --scale scale.json --costs costs.log \
    --folder "$tmp"
grep -F 'mixed4k-again' README.md
grep -F '8 TiB' README.md
grep -F 'addcow adds, fresh, read: 1 instructions' README.md
for chart in $(sed -n 's/.*](\(.*\.svg\))$/\1/p' README.md); do
    test -s "$chart"
done

# What is wrong is said in one line.
fails_with "missing: build first" "$bench/scale" --quick --build /nowhere \
    --dir "$tmp" --parts sizes
fails_with "no figures of bench/run" "$bench/page" --run scale.json \
    --folder "$tmp"
if "$bench/scale" --parts nothing 2>err; then exit 1; fi
grep -F 'no part nothing' err

# SPDX-License-Identifier: BSD-3-Clause
"""The charts of what bench/run and bench/scale write as JSON."""

from goals import KIB, LEAST_OF_FILE, MOST_OPEN_SECONDS, in_bytes
from machine import chart_notes
from processes import MIB
from svg import lines, ratio_bars


OTHER = "what stands behind the name"


def peers(path, measured):
    """Of bench/run.  Differences, and where less is better, would be read
    in the wrong way between the others: they are in the tables."""
    drawn = [r for r in measured["summary"]
             if r["kind"] == "ratio" and r["more_is_better"]]
    of_all = {r["job"] for r in drawn if r["to"] == "limit"}
    rows = {}
    for r in drawn:
        # One of a pair has its own peers.
        label, name = (r["job"], r["to"]) if r["job"] in of_all else \
            (f"{r['job']} / {r['to']}", OTHER)
        rows.setdefault(label, {})[name] = r["median"]
    names = list(dict.fromkeys(n for bars in rows.values() for n in bars))
    ratio_bars(path, "addcow to its limit and its peers",
               "ratio of requests a second, or speed; to", list(rows.items()),
               names, chart_notes(measured["about"]))


# --- Of bench/scale. -------------------------------------------------------

def by(rows, keys, x, y, factor=1.0):
    """{the values of KEYS, joined: [(x, y), ...]}"""
    series = {}
    for r in rows:
        name = ", ".join(str(r[k]) for k in keys)
        series.setdefault(name, []).append((r[x], r[y] * factor))
    return series


def columns(rows, x, names, factor):
    """{name: [(x, y), ...]} of NAMES, {key: name}; those that are there."""
    return {name: [(r[x], r[key] * factor) for r in rows]
            for key, name in names.items() if key in rows[0]}


def size_names(rows, key="size"):
    return {r[key]: in_bytes(r[key]) for r in rows}


def overlays(path, rows, notes):
    series = {f"{name}, {t} threads": points for t in (16, 1)
              for name, points in columns(
                  [r for r in rows if r["threads"] == t], "overlays",
                  {"addcow_pss": "addcow", "file_pss": "file"},
                  1 / KIB).items()}
    lines(path, "Memory for each connection", series, notes,
          "overlays in one server, all connected", "KiB", log_x=True)


def opening(path, rows, notes):
    series = {f"{name}, {t} threads": points for t in (16, 1)
              for name, points in columns(
                  [r for r in rows if r["threads"] == t], "overlays",
                  {"addcow_open_p50": "p50", "addcow_open_p99": "p99"},
                  1e3).items()}
    lines(path, "Opening an overlay", series, notes,
          "overlays in one server, all connected", "ms", log_x=True,
          goal=(MOST_OPEN_SECONDS * 1e3, "goal for p99"))


def boot(path, rows, notes):
    series = columns(rows, "overlays", {"asked": "read by all",
                                        "from_disk": "from the disk"},
                     1 / MIB)
    lines(path, "One base that many overlays read", series, notes,
          "overlays in one server", "MiB", log_x=True, log_y=True)


def sizes(path, rows, notes):
    series = columns(rows, "size",
                     {"addcow_open": "addcow, opening",
                      "addcow_start": "addcow, starting a server",
                      "file_start": "file, starting a server"}, 1e3)
    lines(path, "Opening against the size of the disk", series, notes,
          "size of the disk", "ms", names=size_names(rows), log_x=True)


def memory(path, rows, notes):
    lines(path, f"Memory after writes here and there in "
          f"{in_bytes(rows[0]['size'])}",
          by(rows, ["server"], "writes", "memory", 1 / MIB), notes,
          "writes of 4 KiB", "MiB", log_x=True)


def commit(path, rows, notes):
    ours = [{**r, "where": f"{in_bytes(r['size'])}"
             if r["size"] == r["within"] else
             f"{in_bytes(r['size'])}, in one part of it"}
            for r in rows if r["server"] == "addcow"]
    lines(path, "Metadata that commits write", by(ours, ["where"], "changes",
                                                  "bytes", 1 / KIB),
          notes, "writes since the last commit", "KiB", log_x=True,
          log_y=True)


def clients(path, rows, notes):
    series = by(rows, ["job"], "clients", "ratio")
    series |= {f"{name}, control": points for name, points in
               by(rows, ["job"], "clients", "control").items()}
    lines(path, "Clients of one overlay, requests a second to nbdkit file",
          series, notes, "clients", "ratio", log_x=True,
          goal=(LEAST_OF_FILE, "goal"))


# {name of the chart: (part, function)}
SCALE = {
    "overlays": ("overlays", overlays),
    "opening": ("overlays", opening),
    "boot": ("boot", boot),
    "sizes": ("sizes", sizes),
    "memory": ("memory", memory),
    "commit": ("commit", commit),
    "clients": ("clients", clients),
}


def scale(prefix, measured):
    """Draw PREFIX-NAME.svg of what was measured; return the names."""
    drawn = []
    for name, (part, draw) in SCALE.items():
        rows = measured["results"].get(part, {}).get("rows")
        if rows:
            draw(f"{prefix}-{name}.svg", rows,
                 chart_notes(measured["about"]))
            drawn.append(name)
    return drawn

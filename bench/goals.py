# SPDX-License-Identifier: BSD-3-Clause
"""What the figures of bench/scale should be, and tables of them."""

from processes import GIB, MIB, TIB

KIB = 1024

MOST_FOR_OVERLAY = 32 * KIB     # more than the file plugin takes
FEW_OVERLAYS = 100              # less have no goal for memory
MOST_OPEN_SECONDS = 0.005       # p99
MOST_READ = 1.1                 # of a base, from the disk
MOST_FLAT = 1.25                # of the largest disk, to the smallest
MOST_SCATTERED = 64 * MIB       # after 10,000 writes
MOST_BEYOND_CACHE = 4 * MIB     # of memory that is no page of a bitmap
MOST_ALLOCATED = 4 * MIB        # after all of a TiB
MOST_MAP_SECONDS = 2
LEAST_OF_FILE = 0.95            # requests a second


# --- Words for values. -----------------------------------------------------

def in_bytes(n):
    for unit, name in (TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"):
        if abs(n) >= unit:
            return f"{n / unit:.3g} {name}" if abs(n) < 1000 * unit else \
                f"{n / unit:,.0f} {name}"
    return f"{n:.0f} B"


def in_seconds(n):
    for unit, name in (1, "s"), (1e-3, "ms"):
        if abs(n) >= unit:
            return f"{n / unit:.3g} {name}"
    return f"{n * 1e6:.3g} us"


def number(n):
    return f"{n:,}" if isinstance(n, int) else f"{n:,.0f}"


def ratio(n):
    return f"{n:.3f}"


# --- Tables. ---------------------------------------------------------------

# {part: (title, [(key, heading, words)])}
TABLES = {
    "overlays": ("Many overlays in one server: memory for each connection", [
        ("overlays", "overlays", number),
        ("threads", "threads", number),
        ("addcow_pss", "addcow", in_bytes),
        ("file_pss", "file", in_bytes),
        ("more_pss", "more", in_bytes),
        ("more_pss_written", "more, after a write", in_bytes),
        ("addcow_open_p50", "open, p50", in_seconds),
        ("addcow_open_p99", "open, p99", in_seconds),
        ("file_open_p50", "file, p50", in_seconds),
        ("file_open_p99", "file, p99", in_seconds)]),
    "boot": ("One base that many overlays read", [
        ("overlays", "overlays", number),
        ("size", "each reads", in_bytes),
        ("asked", "all read", in_bytes),
        ("from_disk", "from the disk", in_bytes)]),
    "sizes": ("Opening a disk", [
        ("size", "size", in_bytes),
        ("addcow_open", "opening", in_seconds),
        ("addcow_start", "server started", in_seconds),
        ("file_start", "file, started", in_seconds)]),
    "memory": ("Memory after writes to a large disk", [
        ("server", "server", str),
        ("size", "size", in_bytes),
        ("writes", "writes", number),
        ("memory", "memory", in_bytes),
        ("peak", "peak", in_bytes)]),
    "allocated": ("Memory after all of a disk was allocated", [
        ("size", "size", in_bytes),
        ("memory", "memory", in_bytes)]),
    "commit": ("What a commit costs", [
        ("server", "server", str),
        ("size", "size", in_bytes),
        ("within", "written within", in_bytes),
        ("changes", "writes", number),
        ("seconds", "flush", in_seconds),
        ("cpu", "CPU, writes too", in_seconds),
        ("calls", "calls", number),
        ("bytes", "metadata written", in_bytes)]),
    "blockstatus": ("Block status of a whole disk", [
        ("state", "state", str),
        ("size", "size", in_bytes),
        ("server", "server", str),
        ("extents", "extents", number),
        ("first", "first time", in_seconds),
        ("first_cpu", "CPU", in_seconds),
        ("seconds", "again", in_seconds),
        ("cpu", "CPU", in_seconds)]),
    "clients": ("Clients of one overlay: requests a second, to file", [
        ("job", "job", str),
        ("clients", "clients", number),
        ("ratio", "addcow/file", ratio),
        ("low", "lowest", ratio),
        ("high", "highest", ratio),
        ("control", "control", ratio),
        ("addcow", "addcow", number),
        ("file", "file", number)]),
}


def cells(part, rows):
    """The table of a part: lists of words, the first are headings."""
    columns = [c for c in TABLES[part][1] if any(c[0] in r for r in rows)]
    return [[heading for _, heading, _ in columns]] + \
        [[words(r[key]) if key in r else "" for key, _, words in columns]
         for r in rows]


# --- Goals. ----------------------------------------------------------------

def goal(what, value, at_most, words, control=0):
    """CONTROL: what the file plugin took where that should be nothing to
    speak of."""
    return {"what": what, "value": value, "measured": words(value),
            "goal": f"<= {words(at_most)}", "ok": value <= at_most,
            "noisy": control > at_most / 2}


def overlays_goals(rows):
    for row in rows:
        where = f"{row['overlays']:,} overlays, {row['threads']} threads"
        # What a server takes once is much for each of a few.
        if row["overlays"] >= FEW_OVERLAYS:
            yield goal(f"{where}: memory of each, more than file's",
                       row["more_pss"], MOST_FOR_OVERLAY, in_bytes)
        yield goal(f"{where}: opening one, p99", row["addcow_open_p99"],
                   MOST_OPEN_SECONDS, in_seconds, row["file_open_p99"])


def boot_goals(rows):
    for row in rows:
        times = row["from_disk"] / row["size"]
        g = goal(f"{row['overlays']:,} overlays read their base: from the "
                 "disk, times what one reads", times, MOST_READ, ratio)
        # Less cannot be: it was in the page cache before, as on tmpfs.
        yield g | {"ok": g["ok"] and times >= 0.99}


def sizes_goals(rows):
    key = "addcow_open" if "addcow_open" in rows[0] else "addcow_start"
    yield goal(f"opening {in_bytes(rows[-1]['size'])}, to "
               f"{in_bytes(rows[0]['size'])}",
               rows[-1][key] / rows[0][key], MOST_FLAT, ratio)


def memory_goals(rows):
    of_file = {r["writes"]: r["memory"] for r in rows
               if r["server"] == "file"}
    for r in rows:
        what = f"{r['server']}: memory after {r['writes']:,} writes, more " \
               "than file's"
        more = r["memory"] - of_file[r["writes"]]
        if r["bound"]:
            yield goal(what, more, r["bound"] + MOST_BEYOND_CACHE, in_bytes)
        elif r["server"] != "file" and r["writes"] == 10000:
            yield goal(what, more, MOST_SCATTERED, in_bytes)


def allocated_goals(rows):
    for row in rows:
        yield goal(f"memory after all of {in_bytes(row['size'])} is "
                   "allocated", row["memory"], MOST_ALLOCATED, in_bytes)


def commit_goals(rows):
    """The same writes make the same commits, whatever the size."""
    ours = [r for r in rows if r["server"] == "addcow"]
    small = {r["changes"]: r["bytes"] for r in ours
             if r["size"] == r["within"] == ours[0]["size"]}
    for r in ours:
        if r["size"] > r["within"]:
            yield goal(f"metadata for {r['changes']:,} writes, "
                       f"{in_bytes(r['size'])} to {in_bytes(r['within'])}",
                       r["bytes"] / small[r["changes"]], 1.1, ratio)


def blockstatus_goals(rows):
    for r in rows:
        if r["server"] == "addcow":
            yield goal(f"block status of {in_bytes(r['size'])}, "
                       f"{r['state']}", max(r["first"], r["seconds"]),
                       MOST_MAP_SECONDS, in_seconds)


def clients_goals(rows):
    for r in rows:
        yield {"what": f"{r['job']}, {r['clients']} clients, to file",
               "value": r["ratio"], "measured": ratio(r["ratio"]),
               "goal": f">= {LEAST_OF_FILE}",
               "ok": r["ratio"] >= LEAST_OF_FILE,
               "noisy": LEAST_OF_FILE - r["ratio"] <= r["noise"]}


GOALS = {
    "overlays": overlays_goals,
    "boot": boot_goals,
    "sizes": sizes_goals,
    "memory": memory_goals,
    "allocated": allocated_goals,
    "commit": commit_goals,
    "blockstatus": blockstatus_goals,
    "clients": clients_goals,
}


def verdict(of):
    """As bench/run has it; ? when the control strays as far."""
    if of["ok"]:
        return "ok"
    return "SHORT?" if of["noisy"] else "SHORT"


def goals(results):
    """RESULTS: {part: what measure of scaling.py returned}."""
    return [{"part": part, **g} for part, result in results.items()
            for g in GOALS[part](result["rows"])]

# SPDX-License-Identifier: BSD-3-Clause
"""The report: ratios within a round, and goals."""

import statistics
from dataclasses import dataclass


# --- Results of one server in one round. -----------------------------------
#
# "compared" are the values that are compared with those of another server,
# the first of them to the goal; "differs": by their difference, not ratio.

@dataclass
class Requests:
    requests: int
    rate: float                 # requests a second
    cpu: float                  # seconds of the server for a request

    title = ("Requests a second, to the other of two servers (more is "
             "better)")
    compared = ("rate",)
    differs = False

    def __str__(self):
        return f"{self.rate:.0f}/s {self.cpu * 1e6:.1f}us"


@dataclass
class Copied:
    seconds: float
    rate: float                 # MiB of data, without holes, a second
    cpu: float                  # seconds of CPU time for all

    title = "Speed of filling, to that of copying (more is better)"
    compared = ("rate",)
    differs = False

    def __str__(self):
        return f"{self.rate:.0f}MiB/s {self.cpu:.2f}s"


@dataclass
class Latency:
    requests: int
    p50: float                  # us
    p99: float

    title = ("Latency while the image is filled, to that without (less is "
             "better)")
    compared = ("p50", "p99")
    differs = False

    def __str__(self):
        return f"{self.p50:.1f}us {self.p99:.1f}us"


@dataclass
class Memory:
    peak: float                 # MiB

    title = ("Server's memory when the image was filled, less that without, "
             "in MiB (less is better)")
    compared = ("peak",)
    differs = True

    def __str__(self):
        return f"{self.peak:.1f}MiB"


# --- Comparisons. ----------------------------------------------------------

@dataclass
class Ratios:
    median: float
    low: float
    high: float
    stray: float                # median of the distances from no difference

    def __str__(self):
        return f"{self.median:.3f} [{self.low:.3f} {self.high:.3f}]"


def spread(values, nothing):
    """NOTHING is the value of no difference."""
    return Ratios(statistics.median(values), min(values), max(values),
                  statistics.median(abs(x - nothing) for x in values))


def ratios(rounds, of, to, value):
    return spread([getattr(x[of], value) / getattr(x[to], value)
                   for x in rounds], 1)


def differences(rounds, of, to, value):
    return spread([getattr(x[of], value) - getattr(x[to], value)
                   for x in rounds], 0)


def verdict(r, noise, at_least=0.0, at_most=0.0):
    """ok, SHORT, or SHORT? when the control strays as far, too."""
    if not at_least and not at_most:
        return ""
    goal = f">= {at_least:.3g}" if at_least else f"<= {at_most:.3g}"
    missing = max(at_least - r.median if at_least else r.median - at_most, 0)
    if missing == 0:
        return f"{goal} ok"
    return f"{goal} SHORT{'?' if missing <= noise.stray else ''}"


def table(rows):
    """Columns of the width that they need; the first row is a header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in
                               zip(row, widths)).rstrip() for row in rows)


def limit_table(jobs, results, value):
    rows = [["", "control/limit", "addcow/limit", "goal"]]
    for job in jobs:
        rounds = results[job.name]
        noise = ratios(rounds, "control", "limit", value)
        r = ratios(rounds, "addcow", "limit", value)
        goal = verdict(r, noise, at_least=job.limit) if value == "rate" \
            else verdict(r, noise, at_most=job.cpu)
        rows.append([job.name, str(noise), str(r), goal])
    return table(rows)


def pair_rows(job, rounds, servers):
    one, other, control, *more = servers
    kind = type(rounds[0][one])
    compare = differences if kind.differs else ratios
    for value in kind.compared:
        noise = compare(rounds, control, other, value)
        label = f"{job.name} {value}" if kind.compared[1:] else job.name
        r = compare(rounds, one, other, value)
        goal = verdict(r, noise, at_least=job.other, at_most=job.most) \
            if value == kind.compared[0] else ""
        yield [label, str(noise), f"{one}/{other}", str(r), goal]
        for peer in more:
            r = compare(rounds, one, peer, value)
            yield [label, "", f"{one}/{peer}", str(r), ""]


def pair_report(jobs, results, pairs):
    """PAIRS: the names of servers of each; see Bench.pairs."""
    kinds = {}
    for job in jobs:
        kind = type(results[job.name][0][pairs[job.pair][0]])
        kinds.setdefault(kind, []).append(job)
    parts = []
    for kind, those in kinds.items():
        rows = [["", "control/other", "pair", "", "goal"]]
        for job in those:
            rows += pair_rows(job, results[job.name], pairs[job.pair])
        parts += [kind.title, table(rows)]
        for pair in sorted({job.pair for job in those}):
            parts.append(absolute_table([j for j in those if j.pair == pair],
                                        results, pairs[pair]))
    return parts


def peer_table(jobs, results, peers):
    rows = [["", "peer", "addcow/peer", "goal", "limit/peer",
             "CPU addcow/peer"]]
    for job in jobs:
        rounds = results[job.name]
        noise = ratios(rounds, "control", "limit", "rate")
        for peer in peers:
            r = ratios(rounds, "addcow", peer, "rate")
            at_least = {"cow": job.cow, "qcow2": job.qemu,
                        "qcow2-data": job.qemu}.get(peer, 0)
            rows.append([job.name, peer, str(r),
                         verdict(r, noise, at_least=at_least),
                         f"{ratios(rounds, 'limit', peer, 'rate').median:.2f}",
                         str(ratios(rounds, "addcow", peer, "cpu"))])
    return table(rows)


def medians(results):
    """A result that has the medians of the values of RESULTS."""
    kind = type(results[0])
    return kind(**{name: statistics.median(getattr(r, name) for r in results)
                   for name in vars(results[0])})


def absolute_table(jobs, results, servers):
    rows = [["", *servers]]
    for job in jobs:
        rows.append([job.name, *(str(medians([x[s] for x in
                                              results[job.name]]))
                                 for s in servers)])
    return table(rows)


def report(jobs, results, pairs):
    in_pairs = [job for job in jobs if job.pair]
    others = [job for job in jobs if not job.pair]
    parts = ["Medians of the ratios within a round, [lowest highest]."]
    if others:
        parts += limit_report(others, results)
    if in_pairs:
        parts += pair_report(in_pairs, results, pairs)
    return "\n\n".join(parts)


def limit_report(jobs, results):
    servers = list(results[jobs[0].name][0])
    servers.sort(key=["limit", "control", "addcow", "against", "file",
                      "cow", "qcow2", "qcow2-data"].index)
    peers = servers[3:]
    parts = [
        "Requests a second, to the limit (more is better)",
        limit_table(jobs, results, "rate"),
        "Server's CPU time for a request, to the limit (less is better)",
        limit_table(jobs, results, "cpu"),
    ]
    if peers:
        parts += ["Requests a second, to the peers (more is better)",
                  peer_table(jobs, results, peers)]
    parts += ["Medians: requests a second, server's CPU time for one",
              absolute_table(jobs, results, servers)]
    return parts


# --- For other programs, and charts. ---------------------------------------

def summary_row(job, rounds, names, one, other):
    """ONE of NAMES to OTHER, by the first value that is compared."""
    kind = type(rounds[0][one])
    compare = differences if kind.differs else ratios
    r = compare(rounds, one, other, kind.compared[0])
    noise = compare(rounds, "control", names[1], kind.compared[0])
    at_least, at_most, reachable = 0, 0, None
    if other == names[1]:
        at_least, at_most = job.other or job.limit, job.most
    elif not job.pair:
        at_least = {"cow": job.cow, "qcow2": job.qemu,
                    "qcow2-data": job.qemu}.get(other, 0)
        reachable = compare(rounds, "limit", other, "rate").median
    return {
        "job": job.name,
        "of": one,
        "to": other,
        "value": kind.compared[0],
        "kind": "difference" if kind.differs else "ratio",
        "more_is_better": not job.most,
        "median": r.median, "low": r.low, "high": r.high,
        "reachable": reachable,
        "noise": noise.stray,
        "verdict": verdict(r, noise, at_least, at_most),
    }


def summary(jobs, results, pairs):
    """The ratios of the tables, as a list of rows that are dicts."""
    rows = []
    for job in jobs:
        rounds = results[job.name]
        names = pairs[job.pair] if job.pair else \
            ["addcow", *(n for n in rounds[0] if n != "addcow")]
        rows += [summary_row(job, rounds, names, names[0], other)
                 for other in names[1:] if other != "control"]
    return rows

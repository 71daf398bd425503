# SPDX-License-Identifier: BSD-3-Clause
"""The report: ratios within a round, and goals."""

import statistics
from dataclasses import dataclass

# Names of servers: which is compared to which.
PAIRS = {
    "chain": ("chain-of-4", "chain-of-1"),
    "nbd": ("addcow-nbd", "nbdkit-nbd"),
}


@dataclass
class Ratios:
    median: float
    low: float
    high: float
    stray: float                # the median of the distances from 1

    def __str__(self):
        return f"{self.median:.3f} [{self.low:.3f} {self.high:.3f}]"


def ratios(rounds, of, to, value):
    r = [getattr(x[of], value) / getattr(x[to], value) for x in rounds]
    return Ratios(statistics.median(r), min(r), max(r),
                  statistics.median(abs(x - 1) for x in r))


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


def pair_table(jobs, results):
    rows = [["", "control/other", "pair", "", "goal"]]
    for job in jobs:
        rounds = results[job.name]
        one, other = PAIRS[job.pair]
        noise = ratios(rounds, "control", other, "rate")
        r = ratios(rounds, one, other, "rate")
        rows.append([job.name, str(noise), f"{one}/{other}", str(r),
                     verdict(r, noise, at_least=job.other)])
    return table(rows)


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


def absolute_table(jobs, results, servers):
    rows = [["", *servers]]
    for job in jobs:
        cells = []
        for s in servers:
            rate = statistics.median(x[s].rate for x in results[job.name])
            cpu = statistics.median(x[s].cpu for x in results[job.name])
            cells.append(f"{rate:.0f}/s {cpu * 1e6:.1f}us")
        rows.append([job.name, *cells])
    return table(rows)


def report(jobs, results):
    in_pairs = [job for job in jobs if job.pair]
    others = [job for job in jobs if not job.pair]
    parts = ["Medians of the ratios within a round, [lowest highest]."]
    if others:
        parts += limit_report(others, results)
    if in_pairs:
        parts += ["Requests a second, to the other of two servers (more is "
                  "better)", pair_table(in_pairs, results)]
    for pair in sorted({job.pair for job in in_pairs}):
        parts.append(absolute_table([j for j in in_pairs if j.pair == pair],
                                    results, [*PAIRS[pair], "control"]))
    return "\n\n".join(parts)


def limit_report(jobs, results):
    servers = list(results[jobs[0].name][0])
    servers.sort(key=["limit", "control", "addcow", "against", "cow",
                      "qcow2", "qcow2-data"].index)
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

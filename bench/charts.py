# SPDX-License-Identifier: BSD-3-Clause
"""The charts of what bench/run and bench/scale write as JSON."""

import os

from machine import chart_notes
from svg import ratio_bars


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

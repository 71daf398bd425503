# SPDX-License-Identifier: BSD-3-Clause
"""Charts as SVG: bars of ratios, and lines."""

import math
from xml.sax.saxutils import escape, quoteattr

COLOURS = ["#3465a4", "#cc6600", "#4e9a06", "#8f5902", "#75507b", "#a40000",
           "#555753"]
FONT = 12
SMALL = 10
LINE = 16                       # height of a line of text
CHAR = 6.6                      # width of a character, about


class Drawing:
    """A white sheet with a title, and what it was measured on below."""

    def __init__(self, width, height, title, notes):
        self.width = width
        self.parts = []
        self.text(width / 2, 22, title, size=15, anchor="middle", bold=True)
        for i, note in enumerate(notes):
            self.text(10, height + LINE * (i + 1), note, size=SMALL,
                      colour="#555753")
        self.height = height + LINE * (len(notes) + 1)

    def text(self, x, y, text, size=FONT, anchor="start", colour="#000000",
             bold=False, turn=0):
        more = ' font-weight="bold"' if bold else ""
        if turn:
            more += f' transform="rotate({turn} {x:.1f} {y:.1f})"'
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" '
            f'text-anchor="{anchor}" fill="{colour}"{more}>'
            f'{escape(text)}</text>')

    def line(self, x1, y1, x2, y2, colour="#d3d7cf", width=1):
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke="{colour}" stroke-width="{width}"/>')

    def bar(self, x, y, width, height, colour, tip=""):
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" fill="{colour}">'
            f'<title>{escape(tip)}</title></rect>')

    def path(self, points, colour):
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{at}" fill="none" '
                          f'stroke="{colour}" stroke-width="2"/>')
        for x, y in points:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" '
                              f'fill="{colour}"/>')

    def legend(self, x, y, names, colours):
        """In a row."""
        for name, colour in zip(names, colours):
            self.bar(x, y - 9, 10, 10, colour)
            self.text(x + 14, y, name)
            x += 14 + CHAR * len(name) + 18

    def save(self, path):
        with open(path, "w", encoding="utf-8") as f:
            f.write(f'<svg xmlns="http://www.w3.org/2000/svg" '
                    f'width="{self.width}" height="{self.height}" '
                    f'font-family={quoteattr("sans-serif")}>\n'
                    '<rect width="100%" height="100%" fill="#ffffff"/>\n' +
                    "\n".join(self.parts) + "\n</svg>\n")


class Axis:
    """From values to places between START and END, perhaps logarithmic."""

    def __init__(self, low, high, start, end, log=False):
        self.log = log
        self.low, self.high = low, high
        self.start, self.end = start, end

    def __call__(self, value):
        value = min(max(value, self.low), self.high)
        if self.log:
            part = (math.log(value / self.low) /
                    math.log(self.high / self.low))
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)


def powers(base, low, high):
    """Those powers of BASE that are between LOW and HIGH or just around."""
    first = math.floor(math.log(low, base) + 1e-9)
    last = max(math.ceil(math.log(high, base) - 1e-9), first + 1)
    return [base ** i for i in range(first, last + 1)]


def steps(high):
    """About five round steps from 0 to HIGH or just above."""
    high = high if high > 0 else 1
    size = 10 ** math.floor(math.log10(high))
    step = next(size * x for x in (0.1, 0.2, 0.5, 1, 2)
                if high / (size * x) <= 6)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def short(value):
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


# --- Ratios. ---------------------------------------------------------------

BAR = 11
LABEL = 250                     # where the names of the rows end


def ratio_bars(path, title, unit, rows, names, notes):
    """ROWS are (label, {name: ratio}).  A bar goes from 1 to the right where
    the ratio is above 1, else to the left; by powers of two."""
    colours = dict(zip(names, COLOURS * len(names)))
    values = [r for _, bars in rows for r in bars.values()] or [1]
    # Longer bars are cut, their numbers are not.
    ticks = powers(2, max(min([*values, 0.5]), 1 / 16),
                   min(max([*values, 2]), 32))
    top, width = 88, 860
    height = top + sum(8 + BAR * len(bars) for _, bars in rows) + 16
    d = Drawing(width, height, title, notes)
    axis = Axis(ticks[0], ticks[-1], LABEL + 10, width - 50, log=True)
    d.legend(LABEL + 10, 46, names, colours.values())
    for tick in ticks:
        d.line(axis(tick), top - 8, axis(tick), height - 8)
        d.text(axis(tick), top - 12, short(tick), SMALL, "middle")
    d.text(10, 46, unit, SMALL, colour="#555753")
    y = top
    for label, bars in rows:
        d.text(LABEL, y + (BAR * len(bars) + BAR) / 2, label, FONT, "end")
        for name, ratio in bars.items():
            left, right = sorted((axis(1), axis(ratio)))
            d.bar(left, y, max(right - left, 1), BAR - 1, colours[name],
                  f"{label}, to {name}: {ratio:.3f}")
            d.text(max(right, axis(1)) + 3, y + BAR - 2, short(ratio), 9)
            y += BAR
        y += 8
    d.line(axis(1), top - 8, axis(1), height - 8, "#000000")
    d.save(path)


# --- Lines. ----------------------------------------------------------------

def lines(path, title, series, notes, x_label, y_label, names=None,
          log_x=False, log_y=False, goal=None):
    """SERIES is {name: [(x, y), ...]}; NAMES, {x: text}, are the marks of
    the x axis; GOAL, (y, text), is a line across."""
    points = [p for s in series.values() for p in s]
    xs = sorted({x for x, _ in points})
    ys = [y for _, y in points] + ([goal[0]] if goal else [])
    width, height = 640, 400
    left, right, top, bottom = 80, width - 30, 76, height - 50
    d = Drawing(width, height, title, notes)
    if log_y:
        marks = powers(10, min(y for y in ys if y > 0), max(ys))
    else:
        marks = steps(max(ys))
    y_axis = Axis(marks[0], marks[-1], bottom, top, log_y)
    x_high = xs[-1] if xs[-1] > xs[0] else xs[0] + 1
    x_axis = Axis(xs[0], x_high, left + 15, right - 15, log_x)
    for mark in marks:
        d.line(left, y_axis(mark), right, y_axis(mark))
        d.text(left - 6, y_axis(mark) + 4, short(mark), SMALL, "end")
    for x in xs:
        d.line(x_axis(x), bottom, x_axis(x), bottom + 4, "#000000")
        d.text(x_axis(x), bottom + 17, (names or {}).get(x, short(x)),
               SMALL, "middle")
    d.line(left, bottom, right, bottom, "#000000")
    d.text((left + right) / 2, height - 14, x_label, FONT, "middle")
    d.text(18, (top + bottom) / 2, y_label, FONT, "middle", turn=-90)
    if goal:
        d.line(left, y_axis(goal[0]), right, y_axis(goal[0]), "#a40000")
        d.text(right, y_axis(goal[0]) - 4, goal[1], SMALL, "end", "#a40000")
    for colour, of in zip(COLOURS * len(series), series.values()):
        d.path([(x_axis(x), y_axis(y)) for x, y in of], colour)
    d.legend(left, 48, series, COLOURS * len(series))
    d.save(path)

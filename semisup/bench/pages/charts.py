"""Where things stand in the report's charts: axes, lines, bands and labels, in the units of an SVG's view box.

Geometry only, on plain numbers; `report.html.j2` draws it, so that colors follow the reader's light or dark theme,
text stays text, and whatever a user wrote is escaped in one place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "Chart",
    "Label",
    "Mark",
    "Series",
    "Tick",
    "efficiency_chart",
    "interval_strip",
    "percent_ticks",
    "reliability_chart",
    "spread",
    "time_chart",
]

LEFT, RIGHT, TOP, BOTTOM = 58.0, 196.0, 14.0, 58.0  # margins; the right one holds the curves' names
WIDTH = 920.0
LINE = 15.0  # height of a line of text
TIMES = (
    *((seconds, f"{seconds:g} s") for seconds in (0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30)),
    *((60 * minutes, f"{minutes} min") for minutes in (1, 2, 5, 10, 20, 30)),
    *((3600 * hours, f"{hours} h") for hours in (1, 2, 5, 10)),
    *((86400 * days, f"{days} d") for days in (1, 2, 5, 10, 20, 50, 100)),
)
"""Marks of an axis of time: seconds and how people write them."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, at `at`; `note` is a second, fainter line."""

    at: float
    text: str
    note: str = ""


@dataclass(frozen=True)
class Mark:
    """One measured cell: where it stands, its interval's ends if it has one, and what its tooltip tells."""

    x: float
    y: float
    cell: Mapping[str, Any]
    low: float | None = None
    high: float | None = None
    size: float = 1.0
    seconds: float | None = None
    hollow: bool = False


@dataclass(frozen=True)
class Label:
    """A name in the right margin at height `y`, and the point its leader comes from."""

    y: float
    x_from: float
    y_from: float


@dataclass
class Series:
    """All of one entry in one chart. `bands` are SVG point lists; `level` is a height that holds for every x."""

    entry: str
    marks: list[Mark] = field(default_factory=list)
    bands: list[str] = field(default_factory=list)
    whiskers: list[Mark] = field(default_factory=list)
    label: Label | None = None
    level: Mark | None = None

    @property
    def line(self) -> str:
        """The marks as an SVG point list."""
        return points((mark.x, mark.y) for mark in self.marks)


@dataclass(frozen=True)
class Chart:
    """A plot area inside `width` x `height`, with its ticks and series."""

    compute: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    series: list[Series]


def points(pairs: Any) -> str:
    """Return (x, y) pairs as an SVG point list, to a tenth of a unit."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbors are `gap` apart, with the least sum of squared moves.

    With `z_i = y_i - i gap` over the sorted positions that is isotonic regression: runs that are out of order become
    their mean. The result lies in [low, high] if that has room for all, else it runs over `high`.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # mean of z, members
    for place, i in enumerate(order):
        mean, count = wanted[i] - place * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, members = blocks.pop()
            mean = (mean * count + before * members) / (count + members)
            count += members
        blocks.append((mean, count))
    z = [mean for mean, count in blocks for _ in range(count)]
    placed = [0.0] * len(wanted)
    for place, i in enumerate(order):
        placed[i] = max(low, min(z[place], high - (len(wanted) - 1) * gap)) + place * gap
    return placed


def percent_ticks(low: float, high: float) -> tuple[list[float], int]:
    """Return round fractions inside [low, high], four to eight of them where it can, and the decimals of a percent."""
    for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < 8:
            break
    return [step * i for i in range(first, last + 1)], 1 if step < 0.01 else 0


def accuracy_range(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the accuracies to show: all draws, and the intervals of three draws or more, with a little air.

    An interval of two draws is 12.7 standard errors to each side and would flatten everything else; it is cut.
    """
    shown = []
    for cell in cells:
        accuracy = cell["accuracy"]
        shown += [accuracy["mean"], *accuracy["values"].values()]
        if accuracy["low"] is not None and accuracy["n"] >= 3:
            shown += [accuracy["low"], accuracy["high"]]
    air = max(0.04 * (max(shown) - min(shown)), 0.005)
    return max(min(shown) - air, 0.0), min(max(shown) + air, 1.0)


def log_scale(low: float, high: float, left: float, right: float) -> Any:
    """Return a function from [low, high], both > 0, to [left, right] that is linear in the logarithm."""
    span = math.log(high / low)
    return lambda value: left + (right - left) * math.log(value / low) / span


def frame(compute: str, cells: Sequence[Mapping[str, Any]], entries: int) -> tuple[dict[str, Any], Any]:
    """Return what all charts share (size, plot area, y ticks), and the scale of accuracy."""
    height = TOP + BOTTOM + max(388.0, LINE * entries)
    low, high = accuracy_range(cells)
    bottom = height - BOTTOM

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * (value - low) / (high - low)

    values, decimals = percent_ticks(low, high)
    area = {
        "compute": compute,
        "width": WIDTH,
        "height": height,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": bottom,
        "y_ticks": [Tick(y(value), f"{100 * value:.{decimals}f}") for value in values],
    }
    return area, y


def efficiency_chart(cells: Sequence[Mapping[str, Any]], compute: str) -> Chart | None:
    """Accuracy over log labels: a curve with a 95% band per entry; an entry measured with all labels only is a level.

    Args:
        cells: the cells of one compute that have a mean accuracy, entries together and in order.
        compute: its name.

    Returns:
        None if fewer than two budgets are left once the levels are out: there is no curve.
    """
    by_entry: dict[str, list[Mapping[str, Any]]] = {}
    for cell in sorted(cells, key=lambda cell: cell["n_labels"]):
        by_entry.setdefault(cell["entry"], []).append(cell)
    levels = {name for name, own in by_entry.items() if {cell["labels"] for cell in own} == {"all"}}
    curves = [cell for name, own in by_entry.items() if name not in levels for cell in own]
    budgets = sorted({cell["n_labels"] for cell in curves})
    if len(budgets) < 2:
        return None
    area, y = frame(compute, cells, len(by_entry))
    x = log_scale(budgets[0], budgets[-1], LEFT + 16, area["right"] - 16)
    names: dict[int, str] = {}  # how the suite wrote a number of labels, where that is not the number itself
    for cell in curves:
        if cell["labels"] != str(cell["n_labels"]):
            names[cell["n_labels"]] = cell["labels"]
    ticks: list[Tick] = []
    for budget in budgets:
        if not ticks or x(budget) - ticks[-1].at > 40:  # no room: the gridline is missed, the points are not
            ticks.append(Tick(x(budget), f"{budget:,}", names.get(budget, "")))

    series = []
    for name in dict.fromkeys(cell["entry"] for cell in cells):
        own = Series(name)
        marks = []
        for cell in by_entry[name]:
            accuracy = cell["accuracy"]
            low, high = (None if accuracy[end] is None else y(accuracy[end]) for end in ("low", "high"))
            at = area["right"] if name in levels else x(cell["n_labels"])
            marks.append(Mark(at, y(accuracy["mean"]), cell, low, high))
        if name in levels:
            own.level = marks[0]
        else:
            own.marks = marks
            own.bands, own.whiskers = bands(marks)
        series.append(own)
    place_labels(series, area)
    return Chart(**area, x_ticks=ticks, series=series)


def bands(marks: Sequence[Mark]) -> tuple[list[str], list[Mark]]:
    """Return outlines around neighboring marks that have an interval, and the marks that stand alone with theirs."""
    runs: list[list[Mark]] = [[]]
    for mark in marks:
        if mark.low is None:
            runs.append([])
        else:
            runs[-1].append(mark)
    outlines = []
    for run in runs:
        if len(run) > 1:
            upper = [(mark.x, mark.high) for mark in run]
            lower = [(mark.x, mark.low) for mark in reversed(run)]
            outlines.append(points(upper + lower))
    return outlines, [run[0] for run in runs if len(run) == 1]


def place_labels(series: Sequence[Series], area: Mapping[str, Any]) -> None:
    """Give each series a name in the right margin, as near to the height of its last mark as the others allow."""
    ends = [own.level or own.marks[-1] for own in series]
    heights = spread([mark.y for mark in ends], LINE, area["top"] + 4, area["bottom"])
    for own, mark, height in zip(series, ends, heights, strict=True):
        own.label = Label(height, mark.x, mark.y)


def time_chart(cells: Sequence[Mapping[str, Any]], compute: str) -> Chart | None:
    """Accuracy over log seconds of training: a mark per entry and budget, larger with more labels, joined by entry.

    A time measured alone (`calibrated_seconds`) stands for itself; where a cell has only its wall clock, the mark is
    hollow. A time of less than a millisecond is shown as one.

    Args:
        cells: the cells of one compute that have a mean accuracy, entries together and in order.
        compute: its name.

    Returns:
        None if no cell has a time.
    """
    timed = [cell for cell in cells if cell["calibrated_seconds"] or cell["seconds"]]
    if not timed:
        return None
    seconds = [max((cell["calibrated_seconds"] or cell["seconds"])["mean"], 1e-3) for cell in timed]
    low, high = min(seconds), max(seconds)
    if high < 4 * low:  # equal seconds: leave the axis some width
        low, high = low / 2, high * 2
    budgets = sorted({cell["n_labels"] for cell in timed})
    area, y = frame(compute, timed, len({cell["entry"] for cell in timed}))
    area["right"] = WIDTH - 24  # no names: the legend above has them
    x = log_scale(low, high, LEFT + 22, area["right"] - 22)
    ticks: list[Tick] = []
    for value, text in TIMES:
        if LEFT <= x(value) <= area["right"] and (not ticks or x(value) - ticks[-1].at > 48):
            ticks.append(Tick(x(value), text))
    series: dict[str, Series] = {}
    for cell, value in sorted(zip(timed, seconds, strict=True), key=lambda pair: pair[0]["n_labels"]):
        size = 1.5 if len(budgets) == 1 else 0.75 + 0.75 * budgets.index(cell["n_labels"]) / (len(budgets) - 1)
        at = x(value), y(cell["accuracy"]["mean"])
        mark = Mark(*at, cell, size=size, seconds=value, hollow=cell["calibrated_seconds"] is None)
        series.setdefault(cell["entry"], Series(cell["entry"])).marks.append(mark)
    order = dict.fromkeys(cell["entry"] for cell in timed)
    return Chart(**area, x_ticks=ticks, series=[series[name] for name in order])


def reliability_chart(
    bins: Sequence[Sequence[float]], side: float
) -> list[tuple[float, float, float, Sequence[float]]]:
    """Return (x, y, radius, bin) of every filled bin in a square: confidence to the right, accuracy upwards.

    Args:
        bins: [count, mean confidence, accuracy] each.
        side: of the square, in units of the view box.
    """
    total = sum(bin_[0] for bin_ in bins)
    return [
        (side * bin_[1], side * (1 - bin_[2]), 1.6 + 5.0 * math.sqrt(bin_[0] / total), bin_)  # area tells the count
        for bin_ in bins
        if bin_[0] > 0
    ]


def interval_strip(accuracy: Mapping[str, Any], shown: tuple[float, float], width: float) -> dict[str, Any]:
    """Return where mean, interval and draws lie along a strip of `width` that spans the accuracies `shown`."""

    def x(value: float) -> float:
        return min(max(width * (value - shown[0]) / (shown[1] - shown[0]), 0.0), width)

    return {
        "mean": x(accuracy["mean"]),
        "low": None if accuracy["low"] is None else x(accuracy["low"]),
        "high": None if accuracy["high"] is None else x(accuracy["high"]),
        "draws": [x(value) for value in accuracy["values"].values()],
    }

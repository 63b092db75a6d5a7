"""What the tables of a suite hold: `leaderboard.md` and `report.html` both show these columns and this text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semisup.bench.suites.computes import compute_name
from semisup.columns import COLUMNS
from semisup.text import budget, count, interval, mean_std, number, p_value, percent, signed

__all__ = [
    "HOLM_LEVEL",
    "PageColumn",
    "Table",
    "accuracy_text",
    "best_first",
    "difference_text",
    "first_of",
    "mark",
    "metric_name",
    "needed_table",
    "place_columns",
    "result_columns",
    "table",
]

Cell = Mapping[str, Any]
Value = tuple[float | str | None, str]
"""What to sort by, None where nothing was measured, and the text."""
HOLM_LEVEL = 0.05
"""Of the family-wise error that Holm's p values are held against."""


@dataclass(frozen=True)
class PageColumn:
    """A column of a page's table."""

    title: str
    help: str
    """For a tooltip."""
    read: Callable[[Cell], Value]
    """Of a row's item."""
    first: str = "ascending"
    """Order after the first press on its header."""
    number: bool = True
    """Whether it holds numbers; else it holds a suite's own words, which a page must escape."""


@dataclass(frozen=True)
class Table:
    """Columns, and the rows under them."""

    columns: list[PageColumn]
    rows: list[list[Value]]


def table(columns: Sequence[PageColumn], items: Sequence[Cell]) -> Table:
    """Read the items, and leave out every column without a value."""
    rows = [[column.read(item) for column in columns] for item in items]
    kept = [i for i in range(len(columns)) if any(row[i][0] is not None for row in rows)]
    return Table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def place_columns(summary: Mapping[str, Any]) -> list[PageColumn]:
    """Return the columns that say which cell a row is about; the compute only in a suite that names one."""
    computes = [
        PageColumn(
            "compute", "what each run was given", lambda cell: (compute_name(cell["compute"]),) * 2, number=False
        )
    ]
    return [
        PageColumn("entry", "row of the suite", lambda cell: (cell["entry"],) * 2, number=False),
        PageColumn(
            "labels",
            "training and validation labels",
            lambda cell: (cell["n_labels"], budget(cell["labels"], cell["n_labels"])),
        ),
        *(computes if summary["computes"] != [""] else []),
    ]


def result_columns(summary: Mapping[str, Any]) -> list[PageColumn]:
    """Return everything that was found out about a cell: how it compares, then every metric of `semisup.columns`."""
    entries = {entry["entry"]: entry for entry in summary["entries"]}
    (evaluated,) = (column for column in COLUMNS if column.name == "accuracy")
    high = "descending"

    def spread(name: str, write: Callable[[float], str]) -> Callable[[Cell], Value]:
        def read(cell: Cell) -> Value:
            found = cell.get(name)  # older summaries have fewer metrics
            return None if found is None else found["mean"], mean_std(found, write)

        return read

    def parameters(cell: Cell) -> Value:
        value = entries[cell["entry"]]["parameters"] or None
        return value, number(value, 0)

    def counted(name: str) -> Callable[[Cell], Value]:
        return lambda cell: (cell[name] or None, f"{cell[name]} of {cell['runs']}" if cell[name] else "")

    def method(cell: Cell) -> Value:
        name = entries[cell["entry"]]["method"]
        return (None, "") if name == cell["entry"] else (name, name)

    return [
        PageColumn("draws", "label draws with a result", lambda cell: (cell["draws"], str(cell["draws"])), high),
        PageColumn(evaluated.title, f"{evaluated.help}: mean ± standard deviation over draws", _accuracy, high),
        PageColumn("95% interval", "of the mean: t interval over draws, cut to 0 to 100", _accuracy_interval, high),
        *_comparison(summary),
        PageColumn("rank", "mean over draws among the entries with this budget; 1 is best", _rank),
        *(
            PageColumn(
                column.title,
                column.help,
                spread(column.name, column.write),
                high if column.better == "higher" else "ascending",
            )
            for column in COLUMNS
            if column is not evaluated
        ),
        PageColumn("parameters", "of the evaluated network", parameters),
        PageColumn("failed", "runs without a result", counted("failed"), high),
        PageColumn("collapsed", "runs that predict hardly more than one class", counted("collapsed"), high),
        PageColumn("method", "of the evaluated stage, where the entry is not called like it", method, number=False),
    ]


def _comparison(summary: Mapping[str, Any]) -> list[PageColumn]:
    """Return the columns about the difference to the baseline."""
    baselines = summary["baselines"]
    several = [PageColumn("baseline", "the better of the baselines on this budget", _compared, number=False)]
    return [
        *(several if len(baselines) > 1 else []),
        PageColumn(
            f"minus {baselines[0]}" if len(baselines) == 1 else "minus baseline",
            "percentage points, paired by draw, with 95% interval",
            lambda cell: (_of_difference(cell, "mean"), difference_text(cell)),
            "descending",
        ),
        PageColumn("own t interval", "of the difference, from this entry's draws alone", _own_interval, "descending"),
        PageColumn("p (Holm)", "two-sided, adjusted for all differences of the compute", _p_holm),
    ]


def mark(cell: Cell) -> str:
    """Return `*` unless the interval of the difference lies above 0, `†` if it does and Holm's p is below 0.05 too.

    Nothing where nothing is compared.
    """
    difference = cell["difference"]
    if not difference:
        return ""
    if difference["low"] is None or difference["low"] <= 0:
        return "*"
    return "†" if difference["p_holm"] is not None and difference["p_holm"] < HOLM_LEVEL else ""


def first_of(summary: Mapping[str, Any]) -> str:
    """Return the metric that a summary's entries are compared, ranked and sorted by; those of old have accuracy."""
    return str(summary.get("headline", "accuracy"))


def metric_name(summary: Mapping[str, Any]) -> str:
    """Return `first_of` in words: balanced accuracy."""
    return first_of(summary).replace("_", " ")


def best_first(summary: Mapping[str, Any], cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells sorted by the metric that comes first; of equals, and without a result, in their order."""
    name = first_of(summary)
    return sorted(cells, key=lambda cell: -((cell.get(name) or {}).get("mean") or 0))


def accuracy_text(cell: Cell | None, name: str = "accuracy") -> str:
    """Write a cell's accuracy (or another metric) with its mark, or room for one; `failed` where every run did."""
    if cell is None:
        return ""
    if not cell["draws"]:
        return "failed  "
    text = mean_std(cell[name], percent)
    return f"{text} {mark(cell) or ' '}" if text else ""


def difference_text(cell: Cell) -> str:
    """Write a difference with its interval and mark, `+5.3 [2.1, 8.5] †`, or room for a mark."""
    difference = cell["difference"]
    if difference is None:
        return ""
    bounds = interval(difference["low"], difference["high"])
    return f"{signed(difference['mean'])}{' ' * bool(bounds)}{bounds} {mark(cell) or ' '}"


def _accuracy(cell: Cell) -> Value:
    return None if cell["accuracy"] is None else cell["accuracy"]["mean"], accuracy_text(cell)


def _accuracy_interval(cell: Cell) -> Value:
    accuracy = cell["accuracy"]
    return accuracy["low"], interval(accuracy["low"], accuracy["high"])


def _of_difference(cell: Cell, name: str) -> Any:
    return None if cell["difference"] is None else cell["difference"][name]


def _compared(cell: Cell) -> Value:
    name = _of_difference(cell, "to")
    return name, name or ""


def _own_interval(cell: Cell) -> Value:
    if not _of_difference(cell, "pooled"):
        return None, ""  # it is the interval already shown
    own = _of_difference(cell, "t")
    return own["low"], interval(own["low"], own["high"])


def _p_holm(cell: Cell) -> Value:
    value = _of_difference(cell, "p_holm")
    return value, p_value(value)


def _rank(cell: Cell) -> Value:
    return cell["rank"], number(cell["rank"], 1)


def needed_table(summary: Mapping[str, Any], computes: Sequence[str]) -> Table:
    """Return the labels that each entry needs for each target accuracy; one row per entry and compute."""
    found: dict[tuple[str, str], dict[float, Cell]] = {}
    for item in summary["labels_needed"]:
        if item["compute"] in computes and item["draws"]:
            found.setdefault((item["entry"], item["compute"]), {})[item["target"]] = item
    rows = [{"entry": key[0], "compute": key[1], "targets": targets} for key, targets in found.items()]

    def target_column(target: float) -> PageColumn:
        def read(row: Cell) -> Value:
            item = row["targets"].get(target)
            return (None, "") if item is None else (item["labels"], _needed(item))

        name = f"{100 * target:g}%"
        return PageColumn(f"for {name}", f"labels for {name} test accuracy", read)

    several = len(computes) > 1
    columns = [c for c in place_columns(summary) if c.title == "entry" or (several and c.title == "compute")]
    columns += [target_column(target) for target in dict.fromkeys(item["target"] for item in summary["labels_needed"])]
    return Table(columns, [[column.read(row) for column in columns] for row in rows])


def _needed(item: Cell) -> str:
    """Write one entry's labels for one target."""
    if item["labels"] is None:
        return f"{item['reached']} of {item['draws']} draws" if item["reached"] else "not reached"
    if item["at_most"]:
        return f"≤ {count(round(item['labels']))}"
    bounds = "" if item["low"] is None else f" [{count(round(item['low']))}, {count(round(item['high']))}]"
    return count(round(item["labels"])) + bounds

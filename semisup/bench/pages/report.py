"""A suite's summary as one web page that needs nothing else: no network, no fonts or scripts from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from semisup.bench.pages import charts
from semisup.bench.pages.legend import legend
from semisup.bench.pages.tables import (
    best_first,
    difference_text,
    mark,
    metric_name,
    needed_table,
    place_columns,
    result_columns,
    table,
)
from semisup.bench.suites.computes import compute_name
from semisup.text import budget, duration, interval, percent

__all__ = ["report_html"]

COLORS = 7  # --c0 ... --c6 in the template
MARKERS = (
    "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z",  # circle
    "M-4,-4H4V4H-4z",  # square
    "M0,-5.6L5.6,0L0,5.6L-5.6,0z",  # diamond
    "M0,-5.2L5,4H-5z",  # triangle
    "M0,5.2L5,-4H-5z",  # triangle, down
)  # with seven colors, 35 entries before a pair comes again
DASHES = ("none", "7 3", "2 3", "9 3 2 3")
MISSING = "–"
STRIP = 120.0  # width of the interval drawn in the leaderboard


@dataclass(frozen=True)
class Style:
    """How an entry looks in every chart; the first baseline is the one in the color of the text."""

    color: str
    marker: str
    dash: str


def report_html(summary: Mapping[str, Any]) -> str:
    """Return the page of a suite's summary (the content of leaderboard.json), the same text for the same summary.

    Everything a suite's author wrote is escaped. What was not measured is left out or shown as a dash.
    """
    files = FileSystemLoader(Path(__file__).parent)
    page = Environment(
        loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")
    order = {entry["entry"]: place for place, entry in enumerate(summary["entries"])}
    cells = sorted(
        (cell for cell in summary["cells"] if has_result(cell)),
        key=lambda cell: (summary["computes"].index(cell["compute"]), cell["n_labels"], order[cell["entry"]]),
    )
    by_compute = {
        compute: sorted((cell for cell in cells if cell["compute"] == compute), key=lambda cell: order[cell["entry"]])
        for compute in summary["computes"]
    }
    by_compute = {compute: own for compute, own in by_compute.items() if own}
    named = summary["computes"] != [""]
    ranked = [cell for own in by_compute.values() for group in ranking(summary, own) for cell in group]
    shown = charts.accuracy_range(cells) if cells else (0.0, 1.0)
    return page.render(
        summary=summary,
        styles=styles(summary),
        named_computes=named,
        answers=[
            (compute, answer_line(summary, own, named), ranking(summary, own)) for compute, own in by_compute.items()
        ],
        curves=[(compute, charts.efficiency_chart(own, compute)) for compute, own in by_compute.items()],
        times=[chart for compute, own in by_compute.items() if (chart := charts.time_chart(own, compute))],
        ranked=ranked,
        leaderboard=table([*place_columns(summary), *result_columns(summary)], ranked),
        strips=[charts.interval_strip(cell["accuracy"], shown, STRIP) for cell in ranked],
        strip_width=STRIP,
        strip_range=shown,
        how_to_read=legend(summary),
        labels_needed=needed_table(summary, summary["computes"]),
        calibration=groups(cells, "reliability"),
        per_class=groups([cell for cell in cells if any(known(v) for v in cell["per_class"])], "per_class"),
        heat_low=min((v for cell in cells for v in cell["per_class"] if known(v)), default=0.0),
        reliability_chart=charts.reliability_chart,
        troubled=[cell for cell in summary["cells"] if cell["failed"] or cell["collapsed"]],
        saved=saved_text(summary["saved"]),
        mark=mark,
        difference_text=difference_text,
        interval=interval,
        percent=percent,
        spoken=spoken,
        budget=budget,
        compute_name=compute_name,
        duration=duration,
        missing=MISSING,
    )


def has_result(cell: Mapping[str, Any]) -> bool:
    """Whether any run of the cell finished."""
    return cell["accuracy"] is not None and cell["accuracy"]["mean"] is not None


def known(value: float | None) -> bool:
    """Whether a number was measured; not-a-number is what a class without test images gives."""
    return value is not None and value == value


def styles(summary: Mapping[str, Any]) -> dict[str, Style]:
    """Return each entry's look, by its place in the suite."""
    looks = {}
    (baseline,) = summary["baselines"][:1] or (None,)
    others = [entry["entry"] for entry in summary["entries"] if entry["entry"] != baseline]
    for place, name in enumerate(others):
        looks[name] = Style(
            f"var(--c{place % COLORS})", MARKERS[place % len(MARKERS)], DASHES[place // COLORS % len(DASHES)]
        )
    if baseline is not None:
        looks[baseline] = Style("var(--text)", MARKERS[0], "none")
    return looks


def spoken(cell: Mapping[str, Any]) -> str:
    """Return a cell as one line: the tooltip of its mark."""
    accuracy = cell["accuracy"]
    bounds = interval(accuracy["low"], accuracy["high"])
    draws = "1 draw" if accuracy["n"] == 1 else f"{accuracy['n']} draws"
    labels = budget(cell["labels"], cell["n_labels"])
    return f"{cell['entry']}, {labels} labels: {percent(accuracy['mean'])}%{' ' * bool(bounds)}{bounds}, {draws}"


# The answer on top


def ranking(summary: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return one compute's cells by budget, fewest labels first, best mean first; of equals, the suite's order."""
    budgets: dict[str, list[Mapping[str, Any]]] = {}
    for cell in sorted(best_first(summary, cells), key=lambda cell: cell["n_labels"]):
        budgets.setdefault(cell["labels"], []).append(cell)
    return list(budgets.values())


def answer_line(summary: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], named: bool) -> list[tuple[str, bool]]:
    """Return the page's first sentence on one compute, in pieces (text, whether it is an entry's name)."""
    metric = metric_name(summary)
    wins: dict[str, list[str]] = {}
    for group in ranking(summary, cells):
        best = group[0]
        note = "" if best["labels"] == str(best["n_labels"]) else f" ({best['labels']})"
        wins.setdefault(best["entry"], []).append(f"{best['n_labels']:,}{note}")
    pieces = [
        (f"Best mean {metric}, {compute_name(cells[0]['compute'])}: " if named else f"Best mean {metric}: ", False)
    ]
    for place, (entry, budgets) in enumerate(wins.items()):
        listed = " and ".join(filter(None, [", ".join(budgets[:-1]), budgets[-1]]))
        pieces += [(entry, True), (f" with {listed} labels{'.' if place == len(wins) - 1 else '; '}", False)]
    return pieces


def saved_text(saved: Mapping[str, Any] | None) -> str:
    """Write what the stage cache saved: `stages` were trained where runs on their own need `stages_needed`."""
    if not saved:
        return ""
    stages, needed = saved["stages"], saved["stages_needed"]
    return (
        f"{stages:,} stages were trained for runs that would train {needed:,} if each trained its own: "
        f"{duration(saved['seconds'])} of training instead of {duration(saved['seconds_needed'])}."
    )


def groups(cells: Sequence[Mapping[str, Any]], key: str) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Return (first cell, cells) of every compute and budget with a non-empty `key`, in order."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell[key]:
            found.setdefault((cell["compute"], cell["labels"]), []).append(cell)
    return [(own[0], own) for own in found.values()]

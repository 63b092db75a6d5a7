"""Summary -> leaderboard.md, and the short table of the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semisup.bench.pages.tables import duration, interval, markdown_table, mean_std, number, one_line, percent, signed
from semisup.bench.suites.computes import compute_name, compute_unit
from semisup.errors import SemisupError, nearest

__all__ = ["leaderboard_markdown", "readme_table"]

Summary = Mapping[str, Any]
Cell = Mapping[str, Any]


def leaderboard_markdown(summary: Summary) -> str:
    """The whole page; `summary` is what semisup.bench.results.summary makes, or its JSON read back."""
    parts = [f"# {summary['suite']}", _how_to_read(summary), summary["settings"]]
    for compute in summary["computes"]:
        here = {cell["entry"] for cell in summary["cells"] if cell["compute"] == compute}
        entries = [entry for entry in summary["entries"] if entry["entry"] in here]
        parts += [f"## Accuracy, {compute_name(compute)}", _overview(summary, entries, compute)]
        for budget in summary["budgets"]:
            if cells := _cells(summary, compute, budget["labels"]):
                parts += [f"### {_budget(budget)} labels, {compute_name(compute)}", _details(summary, cells)]
    parts += _labels_needed(summary)
    parts += _equal_compute(summary)
    parts += _saved(summary["saved"])
    if summary["failures"]:
        parts += ["## Failed runs", "\n".join(map(_failure, summary["failures"]))]
    if summary["notes"]:
        parts += ["## Notes", "\n".join(f"- {note}" for note in summary["notes"])]
    parts += ["## Provenance", "\n".join([f"- command: `{summary['command']}`", *_provenance(summary["provenance"])])]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme_table(summary: Summary, entries: Sequence[str] | None = None, compute: str | None = None) -> str:
    """Entries x budgets: mean ± standard deviation in percent, starred where not better than the baseline.

    Args:
        summary: as for :func:`leaderboard_markdown`.
        entries: which, in this order; None for all.
        compute: which; None for the suite's first.

    Raises:
        SemisupError: an entry or a compute that the summary does not have.
    """
    known = {entry["entry"]: entry for entry in summary["entries"]}
    for entry in entries or ():
        if entry not in known:
            raise SemisupError(f"{summary['suite']} has no entry {entry!r}{nearest(entry, known)}")
    if compute is None:
        compute = summary["computes"][0] if summary["computes"] else ""
    elif compute not in summary["computes"]:
        valid = ", ".join(map(repr, summary["computes"]))
        raise SemisupError(f"{summary['suite']} has no compute {compute!r}; valid: {valid}")
    return _overview(summary, [known[entry] for entry in (known if entries is None else entries)], compute) + "\n"


def _how_to_read(summary: Summary) -> str:
    """The one paragraph above all tables."""
    draws, baseline = summary["draws"], summary["baseline"]
    seeds = f" (seeds {', '.join(map(str, draws))})" if draws else ""
    text = [
        f"Test accuracy in percent on {summary['num_test']:,} images: mean ± standard deviation over {len(draws)} "
        f"label {'draw' if len(draws) == 1 else 'draws'}{seeds}. The weights judged are the last, EMA where the recipe "
        "has one; none were selected on the test set. Budgets count the validation labels too. Brackets hold the 95% t "
        "interval of a mean over draws."
    ]
    if baseline is not None:
        text.append(
            f"Differences are paired with {baseline}: same labels, draw by draw. A star (*) marks an entry that is not "
            "shown to be better: the interval of its difference does not lie above 0. p is two-sided and adjusted for "
            "all the differences tested (Holm). Rank is the mean over draws, 1 the best."
        )
    text.append(
        "ECE, coverage (the share of unlabeled images whose pseudo-label is kept) and the accuracy of those kept are "
        "in percent too, NLL in nats. Seconds are wall clock of all stages of a run, shared ones included; calibrated "
        "seconds are its steps times the step time measured alone."
    )
    if any(cell["oracle"] for cell in summary["cells"]):
        text.append("The oracle column is selected on the test set: an upper bound, not a result.")
    return " ".join(text)


def _budget(budget: Mapping[str, Any]) -> str:
    """The budget as written, with its number of labels where that says more."""
    labels, n_labels = budget["labels"], budget["n_labels"]
    return labels if labels == str(n_labels) else f"{labels} ({n_labels:,})"


def _cells(summary: Summary, compute: str, labels: str) -> list[Cell]:
    return [cell for cell in summary["cells"] if (cell["compute"], cell["labels"]) == (compute, labels)]


def _accuracy(cell: Cell | None) -> str:
    """Accuracy of a cell with its star, or room for one."""
    if cell is None:
        return ""
    if not cell["draws"]:
        return "failed  "
    text = mean_std(cell["accuracy"])
    return f"{text} {_star(cell) or ' '}" if text else ""


def _star(cell: Cell) -> str:
    """A star unless the interval of the difference lies above 0; none where nothing is compared."""
    difference = cell["difference"]
    return "*" if difference and (difference["low"] is None or difference["low"] <= 0) else ""


def _overview(summary: Summary, entries: Sequence[Mapping[str, Any]], compute: str) -> str:
    """Entries x budgets of one compute."""
    found = {(cell["entry"], cell["labels"]): cell for cell in summary["cells"] if cell["compute"] == compute}
    lines = [
        [one_line(entry["entry"]), *(_accuracy(found.get((entry["entry"], b["labels"]))) for b in summary["budgets"])]
        for entry in entries
    ]
    return markdown_table(["labels", *(_budget(budget) for budget in summary["budgets"])], lines)


def _details(summary: Summary, cells: Sequence[Cell]) -> str:
    """Everything about one budget and compute, one line per entry."""
    parameters = {entry["entry"]: entry["parameters"] for entry in summary["entries"]}
    lines = []
    for cell in cells:
        columns = {
            "entry": one_line(cell["entry"]),
            "draws": str(cell["draws"]),
            "accuracy": _accuracy(cell),
            "95% interval": interval(cell["accuracy"]["low"], cell["accuracy"]["high"]),
            f"minus {one_line(summary['baseline'] or '')}": _difference(cell),
            "p (Holm)": _p_value(cell),
            "rank": number(cell["rank"], 1),
            "ECE": _mean(cell["ece"], 1, 100),
            "NLL": _mean(cell["nll"], 2),
            "coverage": _mean(cell["coverage"], 1, 100),
            "accuracy of kept": _mean(cell["kept_accuracy"], 1, 100),
            "kNN": _mean(cell["knn"], 1, 100),
            "probe": _mean(cell["probe"], 1, 100),
            "seconds": _mean(cell["seconds"], 1),
            "calibrated seconds": _mean(cell["calibrated_seconds"], 1),
            "steps": _mean(cell["steps"], 0),
            "parameters": number(parameters[cell["entry"]] or None, 0),
            "failed": f"{cell['failed']} of {cell['runs']}" if cell["failed"] else "",
            "collapsed": f"{cell['collapsed']} of {cell['runs']}" if cell["collapsed"] else "",
            "oracle: best on test, selected on test": mean_std(cell["oracle"]),
        }
        lines.append(columns)
    return markdown_table(list(lines[0]), [list(columns.values()) for columns in lines])


def _difference(cell: Cell) -> str:
    """``+5.3 [2.1, 8.5]`` and its star, or room for one."""
    difference = cell["difference"]
    if difference is None:
        return ""
    bounds = interval(difference["low"], difference["high"])
    return f"{signed(difference['mean'])}{' ' * bool(bounds)}{bounds} {_star(cell) or ' '}"


def _p_value(cell: Cell) -> str:
    p = cell["difference"] and cell["difference"]["p_holm"]
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _mean(found: Mapping[str, Any] | None, digits: int, scale: float = 1) -> str:
    return "" if found is None else number(scale * found["mean"], digits)


def _labels_needed(summary: Summary) -> list[str]:
    """Entries x targets, one table per compute."""
    targets = list(dict.fromkeys(found["target"] for found in summary["labels_needed"]))
    if not targets:
        return []
    parts = [
        "## Labels needed for an accuracy",
        "Where the curve of accuracy over log10(labels), straight between the measured budgets, first reaches the "
        "target: geometric mean over draws, with its 95% interval. ≤: a draw is there at the smallest budget already, "
        'so this is a bound. "2 of 5 draws": the others do not get there, and nothing is extrapolated.',
    ]
    header = ["entry", *(f"for {percent(target)}%" for target in targets)]
    for compute in summary["computes"]:
        lines: dict[str, list[str]] = {}
        for found in summary["labels_needed"]:
            if found["compute"] == compute:
                lines.setdefault(found["entry"], [one_line(found["entry"])]).append(_needed(found))
        if len(summary["computes"]) > 1:
            parts.append(f"### Labels needed, {compute_name(compute)}")
        parts.append(markdown_table(header, [line for line in lines.values() if any(line[1:])]))
    return parts


def _needed(found: Mapping[str, Any]) -> str:
    """One entry's labels for one target."""
    if not found["draws"]:
        return ""
    if found["labels"] is None:
        return f"{found['reached']} of {found['draws']} draws" if found["reached"] else "not reached"
    if found["at_most"]:
        return f"≤ {number(found['labels'], 0)}"
    bounds = "" if found["low"] is None else f" [{number(found['low'], 0)}, {number(found['high'], 0)}]"
    return number(found["labels"], 0) + bounds


def _equal_compute(summary: Summary) -> list[str]:
    """Equal steps beside equal seconds, where the suite has both."""
    computes = [compute for compute in summary["computes"] if compute_unit(compute)]
    if {compute_unit(compute) for compute in computes} != {"steps", "s"}:
        return []
    found = {(cell["entry"], cell["labels"], cell["compute"]): cell for cell in summary["cells"]}
    lines = []
    for budget in summary["budgets"]:
        for entry in summary["entries"]:
            cells = [found.get((entry["entry"], budget["labels"], compute)) for compute in computes]
            if any(cells):
                lines.append([_budget(budget), one_line(entry["entry"]), *map(_accuracy, cells)])
    title = "## Accuracy at equal steps and at equal seconds"
    return [title, markdown_table(["labels", "entry", *computes], lines, left=2)]


def _saved(saved: Mapping[str, Any]) -> list[str]:
    """What the stage cache saved, if the lead counted it."""
    if not saved:
        return []
    share = 1 - saved["seconds"] / saved["seconds_needed"] if saved["seconds_needed"] else 0.0
    return [
        "## What the stage cache saved",
        f"{saved['stages']:,} stages were trained where the runs need {saved['stages_needed']:,}: "
        f"{duration(saved['seconds'])} of training instead of {duration(saved['seconds_needed'])} "
        f"({percent(share)}% saved). Stages that several runs share are trained once.",
    ]


def _failure(failure: Mapping[str, str]) -> str:
    """One bullet; the error as code, since it may hold what Markdown or HTML would take for its own."""
    error = " ".join(failure["error"].split()).replace("`", "'")
    return f"- {failure['run']}: `{error}`"


def _provenance(provenance: Mapping[str, Any]) -> list[str]:
    """One bullet per fact."""
    return [f"- {name}: {value if isinstance(value, str) else ', '.join(value)}" for name, value in provenance.items()]

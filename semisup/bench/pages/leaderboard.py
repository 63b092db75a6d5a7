"""Summary -> leaderboard.md, and the short table of the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semisup.bench.pages.advice import advice
from semisup.bench.pages.legend import legend
from semisup.bench.pages.tables import (
    Table,
    accuracy_text,
    best_first,
    first_of,
    metric_name,
    needed_table,
    place_columns,
    result_columns,
    table,
)
from semisup.bench.suites.computes import compute_name, compute_unit
from semisup.errors import SemisupError, nearest
from semisup.text import budget, duration, harmless, markdown_table, markdown_text, percent

__all__ = ["leaderboard_markdown", "readme_table"]

Summary = Mapping[str, Any]


def leaderboard_markdown(summary: Summary) -> str:
    """Return the whole page; whatever a suite's author or an error wrote is shown as text, never as markup.

    Args:
        summary: what semisup.bench.results.summary makes, or its JSON read back.
    """
    how = markdown_text(" ".join(legend(summary))).replace(r"(\*)", "(*)")  # our own star, which starts no emphasis
    parts = [f"# {markdown_text(summary['suite'])}", how, markdown_text(summary["settings"])]
    for compute in summary["computes"]:
        here = {cell["entry"] for cell in summary["cells"] if cell["compute"] == compute}
        entries = [entry for entry in summary["entries"] if entry["entry"] in here]
        parts += [f"## {_title(summary)}, {compute_name(compute)}", _overview(summary, entries, compute)]
        for place in summary["budgets"]:
            cells = [c for c in summary["cells"] if (c["compute"], c["labels"]) == (compute, place["labels"])]
            if cells:
                cells = cells if first_of(summary) == "accuracy" else best_first(summary, cells)
                columns = [place_columns(summary)[0], *result_columns(summary)]
                parts += [f"### {_budget(place)} labels, {compute_name(compute)}", _markdown(table(columns, cells))]
    parts += _labels_needed(summary)
    parts += _equal_compute(summary)
    parts += _saved(summary["saved"])
    if todo := advice(summary):
        parts += ["## What to do", markdown_text(todo)]
    if summary["failures"]:
        parts += ["## Failed runs", "\n".join(map(_failure, summary["failures"]))]
    if summary["notes"]:
        parts += ["## Notes", "\n".join(f"- {markdown_text(note)}" for note in summary["notes"])]
    parts += ["## Provenance", "\n".join([f"- command: `{_code(summary['command'])}`", *_facts(summary["provenance"])])]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme_table(summary: Summary, entries: Sequence[str] | None = None, compute: str | None = None) -> str:
    """Return entries x budgets: mean ± standard deviation in percent, with the marks of the leaderboard.

    Args:
        summary: as for `leaderboard_markdown`.
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


def _title(summary: Summary) -> str:
    return metric_name(summary).capitalize()


def _budget(place: Mapping[str, Any]) -> str:
    return markdown_text(budget(place["labels"], place["n_labels"]))


def _markdown(found: Table) -> str:
    """Return a page's table in Markdown; its first column is text."""
    lines = [
        [text if column.number else markdown_text(text) for column, (_, text) in zip(found.columns, row, strict=True)]
        for row in found.rows
    ]
    return markdown_table([markdown_text(column.title) for column in found.columns], lines)


def _overview(summary: Summary, entries: Sequence[Mapping[str, Any]], compute: str) -> str:
    """Entries x budgets of one compute."""
    found = {(cell["entry"], cell["labels"]): cell for cell in summary["cells"] if cell["compute"] == compute}
    lines = [
        [
            markdown_text(entry["entry"]),
            *(
                accuracy_text(found.get((entry["entry"], place["labels"])), first_of(summary))
                for place in summary["budgets"]
            ),
        ]
        for entry in entries
    ]
    return markdown_table(["labels", *map(_budget, summary["budgets"])], lines)


def _labels_needed(summary: Summary) -> list[str]:
    """Entries x targets, one table per compute."""
    if not summary["labels_needed"]:
        return []
    parts = [
        "## Labels needed for an accuracy",
        "Where the curve of accuracy over log10(labels), straight between the measured budgets, first reaches the "
        "target: geometric mean over draws, with its 95% interval. ≤: a draw is there at the smallest budget already, "
        'so this is a bound. "2 of 5 draws": the others do not get there, and nothing is extrapolated.',
    ]
    for compute in summary["computes"]:
        if len(summary["computes"]) > 1:
            parts.append(f"### Labels needed, {compute_name(compute)}")
        parts.append(_markdown(needed_table(summary, [compute])))
    return parts


def _equal_compute(summary: Summary) -> list[str]:
    """Equal steps next to equal seconds, where the suite has both."""
    computes = [compute for compute in summary["computes"] if compute_unit(compute)]
    if {compute_unit(compute) for compute in computes} != {"steps", "s"}:
        return []
    found = {(cell["entry"], cell["labels"], cell["compute"]): cell for cell in summary["cells"]}
    lines = []
    for place in summary["budgets"]:
        for entry in summary["entries"]:
            cells = [found.get((entry["entry"], place["labels"], compute)) for compute in computes]
            if any(cells):
                lines.append([_budget(place), markdown_text(entry["entry"]), *map(accuracy_text, cells)])
    title = "## Accuracy at equal steps and at equal seconds"
    return [title, markdown_table(["labels", "entry", *computes], lines, left=2)]


def _saved(saved: Mapping[str, Any]) -> list[str]:
    """Return what the stage cache saved, if it was counted."""
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
    return f"- {markdown_text(failure['run'])}: `{_code(failure['error'])}`"


def _code(text: str) -> str:
    """Text between backticks, on one line."""
    return harmless(" ".join(text.split())).replace("`", "'")


def _facts(provenance: Mapping[str, Any]) -> list[str]:
    """One bullet per fact."""
    return [
        f"- {markdown_text(name)}: {markdown_text(value if isinstance(value, str) else ', '.join(value))}"
        for name, value in provenance.items()
    ]

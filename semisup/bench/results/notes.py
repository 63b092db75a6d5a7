"""What a reader must know about a summary's numbers, said only where it applies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from semisup.bench.results.blocks import FEW_DRAWS
from semisup.bench.results.rows import Row
from semisup.bench.suites.computes import compute_name

__all__ = ["notes"]


def notes(
    summary: Mapping[str, Any], rows: Sequence[Row], entries: Sequence[str], ceilings: Sequence[str]
) -> list[str]:
    """Return one or two sentences each.

    Args:
        summary: as semisup.bench.results.summary makes it, without its notes.
        rows: those that it summarizes.
        entries: the suite's.
        ceilings: entries with all labels only.
    """
    cells = summary["cells"]
    several = len(summary["computes"]) > 1

    def named(text: str, compute: str) -> str:
        return f"{text} ({compute_name(compute)})" if several else text

    def listed(found: Sequence[dict[str, Any]], count: str = "", of: str = "") -> str:
        """Return the cells by name, with two of their counts if asked for."""
        return "; ".join(
            named(f"{cell['entry']} at {cell['labels']}", cell["compute"])
            + (f": {cell[count]} of {cell[of]}" if count else "")
            for cell in found
        )

    found = []
    against = " or ".join(summary["baselines"])
    for compute in summary["computes"]:
        of_compute = [cell["difference"] for cell in cells if cell["compute"] == compute and cell["difference"]]
        tests = sum(difference["p"] is not None for difference in of_compute)
        if tests:
            found.append(
                f"{named('Multiple comparisons', compute)}: {tests} differences to {against} were tested. "
                f"If nothing differed, about {0.05 * tests:.1f} of them would have p < 0.05 by chance; the p values "
                "shown are Holm-adjusted over all of them. Intervals and stars are not adjusted; a dagger is."
            )
    if not summary["baselines"]:
        found.append("The suite names no baseline: there are no differences.")
    elif missing := _without_baseline(summary, ceilings):
        where = "; ".join(named(labels, compute) for compute, labels in missing)
        found.append(f"No differences where the baseline {against} has no result: {where}.")
    found += _pooling(summary, named)
    if ceilings:
        found.append(f"With all labels only, so neither paired nor ranked: {'; '.join(ceilings)}.")
    if len(summary["draws"]) == 1:
        found.append("One label draw only: no spread, interval or test; a difference may be the luck of the draw.")
    if len(summary["inits"]) > 1:
        found.append(f"{len(summary['inits'])} initial weights per draw are averaged within the draw first.")
    suite = {"of": len(summary["draws"])}
    if fewer := [cell | suite for cell in cells if cell["draws"] < len(summary["draws"])]:
        draws = listed(fewer, "draws", "of")
        found.append(f"Fewer draws than the suite has; means and ranks are over the draws there are: {draws}.")
    if summary["failures"]:
        found.append(f"{len(summary['failures'])} of {len(rows)} runs failed; no mean contains them.")
    if collapsed := [cell for cell in cells if cell["collapsed"]]:
        runs = listed(collapsed, "collapsed", "runs")
        found.append(f"Runs that collapsed (hardly more than one class is predicted) stay in every mean: {runs}.")
    if constant := [cell for cell in cells if cell["difference"] and _constant(cell["difference"])]:
        found.append(
            "The same difference on every draw, so that the t test has no variance to divide by "
            f"(p is set to 1 if the difference is 0, else to 0): {listed(constant)}."
        )
    if mixed := _mixed_splits(rows):
        found.append(f"WARNING: the entries did not all get the same split of the data: {'; '.join(mixed)}.")
    if absent := [entry for entry in entries if all(row.entry != entry for row in rows)]:
        found.append(f"Without any run yet: {'; '.join(absent)}.")
    return found


def _constant(difference: Mapping[str, Any]) -> bool:
    return difference["std"] == 0 and not difference["pooled"]


def _pooling(summary: Mapping[str, Any], named: Callable[[str, str], str]) -> list[str]:
    """Which intervals have a budget's pooled spread, and which entries and budgets have not."""
    places = summary["compared_with"]
    pooled = [place for place in places if place["pooled"]]
    if not pooled:
        return []
    found = [
        f"With {FEW_DRAWS} draws or fewer the intervals of differences take their spread from all entries of a budget "
        "(randomized complete blocks, draws as blocks); the entry's own paired t interval stands next to them."
    ]
    apart = [f"{entry} at {named(p['labels'], p['compute'])}" for p in pooled for entry in p["apart"]]
    if apart:
        found.append(f"Set apart, since their spread is another (own t interval only): {'; '.join(apart)}.")
    if own := [named(place["labels"], place["compute"]) for place in places if not place["pooled"]]:
        found.append(f"Nothing pooled, own t intervals only: {'; '.join(own)}.")
    return found


def _without_baseline(summary: Mapping[str, Any], ceilings: Sequence[str]) -> list[tuple[str, str]]:
    """(compute, labels) of the cells whose entry would be compared with a baseline that has no result there."""
    there = [cell for cell in summary["cells"] if cell["accuracy"]["n"]]
    compared = [(cell["compute"], cell["labels"]) for cell in there if cell["entry"] not in ceilings]
    known = {(place["compute"], place["labels"]) for place in summary["compared_with"]}
    return [place for place in dict.fromkeys(compared) if place not in known]


def _mixed_splits(rows: Sequence[Row]) -> list[str]:
    """Budgets and draws whose finished runs have more than one split hash."""
    hashes: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        if row.status == "done":
            hashes.setdefault((row.labels, row.draw), set()).add(row.split_hash)
    return [f"labels {labels}, draw {draw}" for (labels, draw), found in hashes.items() if len(found) > 1]

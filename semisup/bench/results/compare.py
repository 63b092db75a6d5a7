"""Two results of a suite, or of two suites: what changed from A to B, run by run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from semisup.bench.results.facts import FACTS, SuiteFacts, read_facts
from semisup.bench.results.rows import Row, read_rows
from semisup.bench.results.statistics import estimate
from semisup.bench.suites.computes import compute_name, ordered_computes
from semisup.errors import SemisupError
from semisup.text import aligned, harmless, interval, percent, signed

__all__ = ["compare_suites"]

RunKey = tuple[str, str, str, int, int]  # compute, labels, entry, draw, init


@dataclass(frozen=True)
class Side:
    """One result folder: its runs, and its suite's facts (None without suite.json)."""

    runs: Mapping[RunKey, Row]
    facts: SuiteFacts | None

    def accuracy(self, run: RunKey) -> float | None:
        """Accuracy of a run; None if it was not made, failed, or was not evaluated by it."""
        return self.runs[run].accuracy if run in self.runs else None


def compare_suites(a: Path, b: Path) -> str:
    """Text: accuracy of B minus A in points, paired where entry, labels, compute, draw and init are the same.

    Initial weights are averaged within a draw, so the n of an interval counts label draws. Tables are preceded by
    warnings where the two did not learn from the same data or splits: their differences mix that in.

    Args:
        a: folder with `runs.csv` and, for the data hash and the classes, `suite.json`.
        b: another.

    Raises:
        SemisupError: a file that is missing or not readable, or the same run twice.
    """
    left, right = _side(a), _side(b)
    parts = [f"A: {a}\nB: {b}\nAccuracy in percent, B - A in points over paired label draws, [95% t interval]."]
    parts += [f"WARNING: {warning}" for warning in _warnings(left, right)]
    for compute in ordered_computes(run[0] for run in (*left.runs, *right.runs)):
        lines = _lines(left, right, compute)
        if lines:
            header = ["entry", "labels", "A", "B", "B - A", "interval", "n", "split"]
            table = "\n".join("  ".join(line).rstrip() for line in aligned(header, lines, left=2))
            parts.append(f"{compute_name(compute)}:\n{table}")
        else:
            parts.append(f"{compute_name(compute)}: nothing to pair.")
    for name, one, other in (("A", left, right), ("B", right, left)):
        if alone := _only_in(one, other):
            parts.append(f"Only in {name}:\n" + "\n".join(f"  {line}" for line in alone))
    return harmless("\n\n".join(parts)) + "\n"


def _side(folder: Path) -> Side:
    rows = read_rows(folder / "runs.csv")
    runs = {(row.compute, row.labels, row.entry, row.draw, row.init): row for row in rows}
    if len(runs) < len(rows):
        raise SemisupError(f"{folder / 'runs.csv'}: the same run twice")
    return Side(runs, read_facts(folder) if (folder / FACTS).exists() else None)


def _warnings(a: Side, b: Side) -> list[str]:
    """Return what makes A and B results of different questions."""
    found = []
    hashes = [side.facts and side.facts.provenance.get("data hash") for side in (a, b)]
    if None in hashes:
        sides = " and ".join(name for name, known in zip("AB", hashes, strict=True) if known is None)
        found.append(f"the data hash of {sides} is not known; the two may not be of the same data.")
    elif hashes[0] != hashes[1]:
        found.append(f"different data: hash {hashes[0]} in A, {hashes[1]} in B.")
    if a.facts and b.facts:
        for name, one, two in (
            ("classes", a.facts.classes, b.facts.classes),
            ("numbers of test images", a.facts.num_test, b.facts.num_test),
        ):
            if one != two:
                found.append(f"different {name}: {one} in A, {two} in B.")
    both = [(a.runs[run], b.runs[run]) for run in a.runs if run in b.runs]
    done = [(one, two) for one, two in both if one.status == two.status == "done"]
    different = [one for one, two in done if one.split_hash != two.split_hash]
    if different:
        places = dict.fromkeys(f"labels {row.labels}, draw {row.draw}" for row in different)
        shown = "; ".join(list(places)[:5]) + ("; ..." if len(places) > 5 else "")
        found.append(
            f"different splits in {len(different)} of {len(done)} pairs of runs ({shown}): other labels under the same "
            "seed, so their differences hold the luck of the draw. Marked ! below."
        )
    return found


def _lines(a: Side, b: Side, compute: str) -> list[list[str]]:
    """One line per entry and budget that has pairs."""
    lines = []
    for labels, entry in _places(a, b, compute):
        pairs: dict[int, list[tuple[float, float]]] = {}
        mark = ""
        for run, row in a.runs.items():
            before, after = row.accuracy, b.accuracy(run)
            if run[:3] == (compute, labels, entry) and before is not None and after is not None:
                pairs.setdefault(row.draw, []).append((before, after))
                mark = mark or ("" if row.split_hash == b.runs[run].split_hash else "!")
        if pairs:
            old, new = ([fmean(pair[side] for pair in draw) for draw in pairs.values()] for side in (0, 1))
            found = estimate([after - before for before, after in zip(old, new, strict=True)])
            means = [percent(estimate(old).mean), percent(estimate(new).mean), signed(found.mean)]
            lines.append([entry, labels, *means, interval(found.low, found.high), str(found.n), mark])
    return lines


def _places(a: Side, b: Side, compute: str) -> list[tuple[str, str]]:
    """(labels, entry) of a compute: entries as they come in A, budgets by their number of labels."""
    rows = [row for row in (*a.runs.values(), *b.runs.values()) if row.compute == compute]
    entries = list(dict.fromkeys(row.entry for row in rows))
    rows.sort(key=lambda row: (entries.index(row.entry), row.n_labels))
    return list(dict.fromkeys((row.labels, row.entry) for row in rows))


def _only_in(one: Side, other: Side) -> list[str]:
    """Return what `one` has a result of and `other` has not: whole entries, whole cells, or how many runs of a cell."""
    mine, theirs = ({run for run, row in side.runs.items() if row.status == "done"} for side in (one, other))
    lines: dict[str, None] = {}
    for compute, labels, entry, _, _ in sorted(mine - theirs):
        cell = (compute, labels, entry)
        at = f"{entry} at {labels}, {compute_name(compute)}"
        if all(run[2] != entry for run in theirs):
            lines[entry] = None
        elif all(run[:3] != cell for run in theirs):
            lines[at] = None
        else:
            lines[f"{at}: {sum(run[:3] == cell for run in mine - theirs)} runs"] = None
    return list(lines)

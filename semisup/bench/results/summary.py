"""Rows -> summary: the plain dictionary that `leaderboard.json` holds and every table and plot is drawn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from semisup.bench.results.blocks import FEW_DRAWS, Pool, pool, pooled_interval
from semisup.bench.results.notes import notes
from semisup.bench.results.rows import BINS, Row
from semisup.bench.results.statistics import estimate, holm, labels_needed, mean_ranks, paired_difference, within
from semisup.bench.suites.computes import ordered_computes
from semisup.columns import COLUMNS, headline
from semisup.errors import nearest, raise_all
from semisup.evaluate.metrics import predictions_collapsed

__all__ = ["summarize"]

Key = tuple[str, str, str]  # compute, labels, entry
ByDraw = Mapping[int, float]


def summarize(
    rows: Sequence[Row],
    *,
    suite: str,
    command: str,
    baselines: Sequence[str],
    entries: Sequence[str],
    targets: Sequence[float],
    classes: Sequence[str],
    num_test: int,
    class_ratio: float = 1.0,
    provenance: Mapping[str, Any],
    settings: str,
    saved: Mapping[str, Any],
) -> dict[str, Any]:
    """Summarize a suite's runs; the result is plain JSON, the same for the same rows in any order.

    The draw is the unit: initial weights are averaged within a draw first. A failed run is counted, never a number. A
    collapsed one (`semisup.evaluate.metrics.predictions_collapsed`) is counted and stays in every mean. An entry
    with the budget "all" only is a ceiling, neither paired nor ranked. On each budget the others are compared with that
    one of the baselines which has the best mean accuracy there.

    Args:
        rows: one per run.
        suite: its name.
        command: what made the rows.
        baselines: entries that the others are compared with; none: nothing is compared.
        entries: the suite's, in its order.
        targets: accuracies in (0, 1] whose labels needed are asked for.
        classes: names of the classes, at least two.
        num_test: images in the test set.
        class_ratio: of the largest class to the smallest; where it is large, `semisup.columns.headline` names another
            metric than accuracy, by which entries are then compared and ranked.
        provenance: passed through.
        settings: passed through.
        saved: what the stage cache saved; passed through.

    Raises:
        SemisupError: entries, targets or classes that do not fit the rows, the same run twice, or one budget with two
            numbers of labels.
    """
    raise_all(_problems(rows, baselines, entries, targets, classes), f"suite {suite}")
    order = {entry: i for i, entry in enumerate(entries)}
    rows = sorted(rows, key=lambda row: (order[row.entry], row.compute, row.n_labels, row.labels, row.draw, row.init))
    n_labels = {labels: max(sizes) for labels, sizes in _sizes(rows).items()}
    budgets = sorted(n_labels, key=lambda labels: (n_labels[labels], labels))
    computes = ordered_computes(row.compute for row in rows)
    present = [entry for entry in entries if any(row.entry == entry for row in rows)]
    ceilings = [e for e in present if {row.labels for row in rows if row.entry == e} == {"all"}]

    runs = _by_cell(rows)
    first = headline(class_ratio).name
    values = {key: _by_draw(of_cell, first) for key, of_cell in runs.items()}

    anywhere = _of_no_steps(rows, baselines)
    cells: list[dict[str, Any]] = []
    places = []
    for compute in computes:
        for labels in budgets:
            here = {e: values[compute, labels, e] for e in present if (compute, labels, e) in values}
            compared = {entry: by_draw for entry, by_draw in here.items() if entry not in ceilings}
            against = {e: values[at, labels, e] for e, at in anywhere.items() if (at, labels, e) in values} | compared
            base = _better(baselines, against)
            shared = _pool(against, base)
            differences = {} if base is None else _differences(against, base, shared)
            ranks = mean_ranks(compared)
            for entry in here:
                cell = {"entry": entry, "labels": labels, "n_labels": n_labels[labels], "compute": compute}
                cell |= _cell(runs[compute, labels, entry], first)
                cells.append(cell | {"difference": differences.get(entry), "rank": ranks.get(entry)})
            if base is not None:
                places.append({"compute": compute, "labels": labels, "entry": base} | _shared(shared))
    _adjust(cells, computes)
    summary: dict[str, Any] = {
        "suite": suite,
        "command": command,
        "baselines": list(baselines),
        "compared_with": places,
        "classes": list(classes),
        "num_test": num_test,
        "headline": first,
        "provenance": dict(provenance),
        "settings": settings,
        "computes": computes,
        "budgets": [{"labels": labels, "n_labels": n_labels[labels]} for labels in budgets],
        "entries": [_entry(entry, [row for row in rows if row.entry == entry]) for entry in present],
        "draws": sorted({row.draw for row in rows}),
        "inits": sorted({row.init for row in rows}),
        "cells": cells,
        "labels_needed": [
            {"entry": entry, "compute": compute, "target": target}
            | dataclasses.asdict(labels_needed(_curves(values, compute, entry, n_labels), target))
            for compute in computes
            for entry in present
            if entry not in ceilings
            for target in targets
        ],
        "saved": dict(saved),
        "failures": [{"run": _name(row), "error": row.error} for row in rows if row.status == "failed"],
    }
    return summary | {"notes": notes(summary, rows, entries, ceilings)}


def _shared(shared: Pool | None) -> dict[str, Any]:
    """Return what is told of the spread that a budget's differences share."""
    return {"pooled": shared is not None, "apart": [] if shared is None else list(shared.apart)}


def _of_no_steps(rows: Sequence[Row], baselines: Sequence[str]) -> dict[str, str]:
    """Return the baselines that take no steps, which are run at one length alone, and that length.

    They are what they are at every other.
    """
    done = {entry: [row for row in rows if row.entry == entry and row.status == "done"] for entry in baselines}
    return {e: found[0].compute for e, found in done.items() if {row.metrics["steps"] for row in found} == {0}}


def _better(baselines: Sequence[str], values: Mapping[str, ByDraw]) -> str | None:
    """Return the baseline with the best mean accuracy; of equals the first, None if none has a result."""
    there = [entry for entry in baselines if values.get(entry)]
    return max(there, key=lambda entry: fmean(values[entry].values()), default=None)


def _pool(values: Mapping[str, ByDraw], base: str | None) -> Pool | None:
    """Return the spread that the entries of a budget share, where draws are few and the baseline is one of them."""
    draws = sorted(values[base]) if base is not None else []
    if base is None or not 2 <= len(draws) <= FEW_DRAWS:
        return None
    found = pool(values, draws)
    return found if found is not None and base in found.entries else None


def _differences(values: Mapping[str, ByDraw], base: str, shared: Pool | None) -> dict[str, dict[str, Any]]:
    """Return every entry's difference to the baseline; its interval is the pooled one where there is one.

    `t` is always the interval and p value of the entry's own paired t test.
    """
    found = {}
    for entry, by_draw in values.items():
        own = paired_difference(by_draw, values[base])
        if entry == base or not own.n or own.mean is None:
            continue
        pooled = shared is not None and entry in shared.entries
        low, high, p = own.low, own.high, own.p
        if shared is not None and pooled:
            low, high, p = pooled_interval(own.mean, shared)
        one, other = (
            within(dataclasses.replace(own, low=a, high=b), -1, 1) for a, b in ((low, high), (own.low, own.high))
        )
        found[entry] = {
            "to": base,
            "mean": own.mean,
            "std": own.std,
            "n": own.n,
            "low": one.low,
            "high": one.high,
            "p": p,
            "pooled": pooled,
            "t": {"low": other.low, "high": other.high, "p": own.p},
        }
    return found


def _problems(
    rows: Sequence[Row],
    baselines: Sequence[str],
    entries: Sequence[str],
    targets: Sequence[float],
    classes: Sequence[str],
) -> list[str]:
    problems = [
        f"unknown entry {entry!r} in the rows{nearest(entry, entries)}"
        for entry in sorted({row.entry for row in rows} - set(entries))
    ]
    problems += [
        f"baseline {baseline!r} is not an entry{nearest(baseline, entries)}"
        for baseline in baselines
        if baseline not in entries
    ]
    problems += [f"targets must be accuracies in (0, 1], got {target}" for target in targets if not 0 < target <= 1]
    if len(classes) < 2:
        problems.append(f"classes must name at least two, got {list(classes)}")
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        run = (row.entry, row.labels, row.compute, row.draw, row.init)
        if run in seen:
            problems.append(f"the same run twice: {_name(row)}")
        seen.add(run)
        if row.per_class and len(row.per_class) != len(classes):
            problems.append(f"{_name(row)}: per_class has {len(row.per_class)} numbers for {len(classes)} classes")
    problems += [
        f"labels {labels} charge {' or '.join(map(str, sorted(sizes)))} labels; every entry must get the same number"
        for draw in dict.fromkeys(row.draw for row in rows)
        for labels, sizes in _sizes([row for row in rows if row.draw == draw]).items()
        if len(sizes) > 1
    ]
    return problems


def _sizes(rows: Sequence[Row]) -> dict[str, set[int]]:
    """Budget -> numbers of labels that its runs were charged; a failed run tells only where none has finished.

    Draws may differ a little where each leaves out other images to test.
    """
    sizes: dict[str, set[int]] = {}
    for row in sorted(rows, key=lambda row: row.status):  # "done" before "failed"
        known = sizes.setdefault(row.labels, set())
        if row.status == "done" or not known:
            known.add(row.n_labels)
    return sizes


def _name(row: Row) -> str:
    """One run, for people."""
    compute = f", {row.compute}" if row.compute else ""
    return f"{row.entry}, labels {row.labels}{compute}, draw {row.draw}, init {row.init}"


def _by_cell(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    cells: dict[Key, list[Row]] = {}
    for row in rows:
        cells.setdefault((row.compute, row.labels, row.entry), []).append(row)
    return cells


def _by_draw(rows: Sequence[Row], name: str) -> dict[int, float]:
    """Return a column by draw, averaged over the initial weights; what was not measured is left out."""
    found: dict[int, list[float]] = {}
    for row in rows:
        value = row.metrics.get(name)
        if row.status == "done" and value is not None:
            found.setdefault(row.draw, []).append(float(value))
    return {draw: fmean(found[draw]) for draw in sorted(found)}


def _spread(rows: Sequence[Row], name: str) -> dict[str, Any] | None:
    """Mean, standard deviation and n over draws of a column; None if it was never measured."""
    found = estimate(list(_by_draw(rows, name).values()))
    return {"mean": found.mean, "std": found.std, "n": found.n} if found.n else None


def _cell(rows: Sequence[Row], first: str) -> dict[str, Any]:
    """Return what the runs of one entry at one budget and compute say by themselves.

    Of accuracy and of the metric that comes first there are interval and values too.
    """
    done = [row for row in rows if row.status == "done"]
    return {
        "draws": len({row.draw for row in done}),
        "runs": len(rows),
        "failed": len(rows) - len(done),
        "collapsed": sum(_collapsed(row) for row in done),
        **{column.name: _spread(rows, column.name) for column in COLUMNS},
        **{name: _estimate(_by_draw(rows, name)) for name in ("accuracy", first)},
        "per_class": _per_class([row.per_class for row in done if row.per_class]),
        "reliability": _pooled([row.reliability for row in done if row.reliability]),
    }


def _estimate(found: ByDraw) -> dict[str, Any]:
    values = {str(draw): value for draw, value in found.items()}  # JSON's keys are text
    return dataclasses.asdict(within(estimate(list(found.values())), 0, 1)) | {"values": values}


def _collapsed(row: Row) -> bool:
    return predictions_collapsed(row.per_class, row.metrics.get("most_frequent"), row.metrics.get("majority_rate"))


def _per_class(runs: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Mean over runs by class; None for a class that no run has a test image of."""
    columns = [[value for value in column if value is not None] for column in zip(*runs, strict=True)]
    return [fmean(column) if column else None for column in columns]


def _pooled(runs: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Reliability bins of all predictions of all runs together."""
    if not runs:
        return []
    pooled = []
    for i in range(BINS):
        count = sum(bins[i][0] for bins in runs)
        weighted = [sum(bins[i][0] * bins[i][column] for bins in runs) for column in (1, 2)]
        pooled.append([float(count), *(total / count if count else 0.0 for total in weighted)])
    return pooled


def _adjust(cells: Sequence[dict[str, Any]], computes: Sequence[str]) -> None:
    """Write `p_holm` into every difference: Holm over all entries and budgets of a compute."""
    for compute in computes:
        found = [cell["difference"] for cell in cells if cell["compute"] == compute and cell["difference"]]
        tested = [difference for difference in found if difference["p"] is not None]
        for difference in found:
            difference["p_holm"] = None
        for difference, p in zip(tested, holm([difference["p"] for difference in tested]), strict=True):
            difference["p_holm"] = p


def _entry(entry: str, rows: Sequence[Row]) -> dict[str, Any]:
    return {"entry": entry, "method": rows[0].method, "parameters": max(row.parameters for row in rows)}


def _curves(
    values: Mapping[Key, Mapping[int, float]], compute: str, entry: str, n_labels: Mapping[str, int]
) -> list[list[tuple[int, float]]]:
    """(labels, accuracy) at the budgets that a draw has, for every draw that has any."""
    curves: dict[int, list[tuple[int, float]]] = {}
    for (of_compute, labels, of_entry), by_draw in values.items():
        if (of_compute, of_entry) == (compute, entry):
            for draw, accuracy in by_draw.items():
                curves.setdefault(draw, []).append((n_labels[labels], accuracy))
    return list(curves.values())

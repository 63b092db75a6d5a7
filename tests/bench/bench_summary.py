"""A summary as `semisup bench` writes one, made up: a curve per entry, draws around it, and the rest from them."""

from __future__ import annotations

import math
import random
import statistics
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = (
    "supervised", "fixmatch", "mean teacher", "noisy student", "meta pseudo labels", "simclr probe", "simclr fine-tune",
    "chain student", "distilled", "label spreading", "self-training (pixels)", "logistic regression", "flexmatch",
    "mixmatch", "pi-model", "temporal ensembling", "ict", "vat", "uda", "remixmatch",
)  # fmt: skip
BUDGETS = (("10", 10), ("20", 20), ("4/class", 40), ("100", 100), ("10%", 144))
T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5% points of Student's t by number of draws."""
CLASSES = [str(digit) for digit in range(10)]


def spread_of(values: Mapping[int, float]) -> dict[str, Any]:
    """{mean, std, low, high, n, values} of one cell's draws."""
    n, mean = len(values), statistics.fmean(values.values())
    std = statistics.stdev(values.values()) if n > 1 else None
    half = T[n] * std / math.sqrt(n) if std is not None else None
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {"mean": mean, "std": std, "low": low, "high": high, "n": n, "values": dict(values)}


def measured(value: float, n: int, noise: float = 0.05) -> dict[str, Any]:
    return {"mean": value, "std": abs(value) * noise if n > 1 else None, "n": n}


def failed_cell(entry: str, labels: str, n_labels: int, compute: str = "", runs: int = 5) -> dict[str, Any]:
    """A cell none of whose runs has a result."""
    nothing = {"mean": None, "std": None, "low": None, "high": None, "n": 0, "values": {}}
    none = ("difference", "rank", "raw_accuracy", "nll", "ece", "brier", "coverage", "kept_accuracy", "knn", "probe")
    none += ("seconds", "calibrated_seconds", "steps", "oracle_accuracy")
    names = {"entry": entry, "labels": labels, "n_labels": n_labels, "compute": compute}
    counts = {"draws": 0, "runs": runs, "failed": runs, "collapsed": 0}
    return {**names, **counts, "accuracy": nothing, "per_class": [], "reliability": [], **dict.fromkeys(none)}


def cell_of(
    values: Mapping[int, float], base: Mapping[int, float] | None, to: str | None, rng: random.Random, **names: Any
) -> dict[str, Any]:
    accuracy = spread_of(values)
    mean, n = accuracy["mean"], accuracy["n"]
    difference = None
    if base is not None:
        difference = spread_of({draw: values[draw] - base[draw] for draw in values})
        del difference["values"]
        p = (
            None
            if n < 2
            else min(1.0, math.exp(-abs(difference["mean"]) * math.sqrt(n) / max(difference["std"], 1e-9)))
        )
        difference |= {"p": p, "p_holm": None if p is None else min(1.0, 40 * p), "to": to, "pooled": False}
        difference["t"] = {"low": difference["low"], "high": difference["high"], "p": p}
    confidence = [(i + 0.5) / 15 for i in range(15)]
    return {
        **names,
        "draws": n,
        "runs": n,
        "failed": 0,
        "collapsed": 0,
        "accuracy": accuracy,
        "difference": difference,
        "rank": 1.0,
        "raw_accuracy": measured(mean - 0.004, n),
        "nll": measured(2.3 * (1 - mean), n),
        "ece": measured(0.3 * (1 - mean), n),
        "brier": measured(1.4 * (1 - mean), n),
        "coverage": measured(mean**2, n),
        "kept_accuracy": measured(min(mean + 0.03, 1.0), n, 0.01),
        "knn": None,
        "probe": None,
        "seconds": measured(
            30
            + 900 * (zlib.crc32(names["entry"].encode()) % 100 / 100) ** 2
            + 0.4 * names["n_labels"]
            + 9 * rng.random(),
            n,
        ),
        "calibrated_seconds": None,
        "steps": measured(4000, n, 0.0),
        "oracle_accuracy": None,
        "per_class": [min(1.0, max(0.0, mean + rng.gauss(0, 0.05))) for _ in CLASSES],
        "reliability": [
            [0, 0, 0] if c < 0.2 else [int(900 * c**3), c, max(0, c - 0.4 * (1 - mean) * c)] for c in confidence
        ],
    }


def fake_summary(
    entries: Sequence[str] = NAMES[:12],
    budgets: Sequence[tuple[str, int]] = BUDGETS,
    computes: Sequence[str] = ("",),
    draws: int = 5,
    baseline: str | None = "supervised",
    fully: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Every entry at every budget and compute, and "fully supervised" with all labels; deterministic."""
    rng = random.Random(seed)
    cells, computed = [], list(computes)
    for compute in computes:
        runs: dict[tuple[str, str], dict[int, float]] = {}
        for place, entry in enumerate(entries):
            start, slope = 0.42 + 0.3 * rng.random() * (place > 0), 0.1 + 0.04 * rng.random()
            for labels, n_labels in budgets:
                level = 1 - (1 - start) * math.exp(-slope * 2.4 * math.log(n_labels / 5))
                runs[entry, labels] = {d: min(level + rng.gauss(0, 0.07 * (1 - level)), 0.995) for d in range(draws)}
        for labels, n_labels in budgets:
            group = []
            for entry in entries:
                base = runs.get((baseline or "", labels)) if entry != baseline else None
                names = {"entry": entry, "labels": labels, "n_labels": n_labels, "compute": compute}
                group.append(cell_of(runs[entry, labels], base, baseline, rng, **names))
                if "regression" not in entry and "spreading" not in entry:
                    group[-1]["calibrated_seconds"] = measured(group[-1]["seconds"]["mean"] * 0.8, draws)
                else:
                    group[-1] |= {"raw_accuracy": None, "steps": None, "coverage": None, "kept_accuracy": None}
            for rank, cell in enumerate(sorted(group, key=lambda cell: -cell["accuracy"]["mean"]), 1):
                cell["rank"] = float(rank)
            cells += group
        if fully:
            values = {d: 0.985 + rng.gauss(0, 0.002) for d in range(draws)}
            cells.append(
                cell_of(values, None, None, rng, entry="fully supervised", labels="all", n_labels=1437, compute=compute)
            )
    shown = [*entries, *(["fully supervised"] if fully else [])]
    written = [*budgets, *([("all", 1437)] if fully else [])]
    needed = []
    for compute in computes:
        for place, entry in enumerate(entries):
            easy = (10.0, 10.0, 10.0) if place == 1 else (20.0 + place, 15.0 + place, 31.0 + place)
            hard = (60.0 + place, 40.0 + place, 95.5 + place) if place % 2 else (None, None, None)
            rows = ((0.8, easy, draws), (0.9, hard, draws if place % 2 else 2), (0.95, (None, None, None), 0))
            for target, ends, reached in rows:
                row = {"entry": entry, "compute": compute, "target": target, "reached": reached, "draws": draws}
                row["at_most"] = int(ends[0] == 10.0)
                needed.append({**row, **dict(zip(("labels", "low", "high"), ends, strict=True))})
    return {
        "suite": "digits",
        "command": "semisup bench digits --out benchmarks/results/digits",
        "baselines": [] if baseline is None else [baseline],
        "compared_with": [],
        "classes": CLASSES,
        "num_test": 360,
        "provenance": {
            "semisup": "0.1.0 (aa31b81)",
            "versions": ["python 3.11.7", "torch 2.14.1+cpu", "numpy 2.3.4"],
            "machine": "2 x Intel Xeon, 24 GiB, no GPU",
            "data": "digits, sha256 5e1f0c1fd0a7f2a3b2f60d9ff1b2b0d7e05c1ab3a41a5b8d62a8d2c9f3f0c7aa",
            "date": "2026-11-20",
        },
        "settings": "Digits (8 x 8, gray), small CNN. Every method uses its recipe's settings; nothing was searched.",
        "computes": computed,
        "budgets": [{"labels": labels, "n_labels": n_labels} for labels, n_labels in written],
        "entries": [
            {"entry": entry, "method": entry.split()[0], "parameters": 0 if "regr" in entry else 94_410}
            for entry in shown
        ],
        "draws": list(range(draws)),
        "inits": [0],
        "cells": cells,
        "labels_needed": needed,
        "saved": {"stages": 212, "stages_needed": 280, "seconds": 15_300.0, "seconds_needed": 24_120.0},
        "failures": [],
        "notes": [f"{len(cells)} comparisons were made; about 3 would be significant at 5% by chance."],
    }

"""What to do after a suite of a person's own images: the best entry, how sure that is, what more labels bring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from semisup.bench.pages.tables import best_first, first_of
from semisup.evaluate.metrics import wilson
from semisup.text import count, interval, percent

__all__ = ["advice"]

OWN = "folder:"
"""What the provenance's data begin with where the images are a person's own."""


def advice(summary: Mapping[str, Any]) -> str:
    """Return a sentence or two to act on; empty where the images are not a person's own, or nothing was measured.

    The best entry is that with the highest mean accuracy at the largest budget; whether another is as good is told by
    its interval. What more labels bring is read off the best entry's curve: as much for each doubling as between
    its last budgets.

    Args:
        summary: what `semisup.bench.results.summary` makes.
    """
    if not str(summary["provenance"].get("data", "")).startswith(OWN):
        return ""
    cells = [cell for cell in summary["cells"] if cell["compute"] == summary["computes"][0] and cell["accuracy"]["n"]]
    if not cells:
        return ""
    most = max(cell["n_labels"] for cell in cells)
    name = first_of(summary)
    ranked = best_first(summary, [cell for cell in cells if cell["n_labels"] == most])
    best, found = ranked[0], ranked[0][name]
    sure = _interval(found, summary["num_test"])
    what = "" if name == "accuracy" else " (mean over classes)"
    right = f"{percent(found['mean'])}% of {summary['num_test']:,} test images{what}"
    sentence = f"Take {best['entry']}: {right} with {count(most)} labels{sure}."
    return " ".join(part for part in (sentence, _second(ranked, name), _more(cells, best, name)) if part)


def _interval(found: Mapping[str, Any], num_test: int) -> str:
    """Write the interval over draws; of a single draw, as of all labels, that of a share of so many test images.

    For the mean over unequal classes that is a rough one.
    """
    if found["low"] is not None:
        return f", 95% interval {interval(found['low'], found['high'])}"
    share = wilson(round(found["mean"] * num_test) / num_test, num_test)
    return f", one draw, 95% interval {interval(*share)} by the number of test images alone"


def _second(ranked: list[Mapping[str, Any]], name: str) -> str:
    """Name the runner-up where the best one's interval does not rule it out."""
    if len(ranked) < 2:
        return ""
    best, second = ranked[0][name], ranked[1][name]
    text = f"{ranked[1]['entry']} has {percent(second['mean'])}%"
    if best["low"] is not None and second["mean"] < best["low"]:
        return f"{text}, which is less."
    return f"{text}, which may be as good."


def _more(cells: list[Mapping[str, Any]], best: Mapping[str, Any], name: str) -> str:
    """Say what the next 100 labels would bring, by the best entry's last two budgets on a log scale."""
    curve = sorted((c["n_labels"], c[name]["mean"]) for c in cells if c["entry"] == best["entry"])
    if len(curve) < 2 or curve[-1][0] <= curve[-2][0]:
        return ""
    (before, low), (now, high) = curve[-2:]
    slope = (high - low) / math.log2(now / before)
    gain = min(slope * math.log2((now + 100) / now), 1 - high)
    if gain <= 0.005:
        return (
            f"From {before:,} to {now:,} labels it gained {percent(high - low)} points: more labels will bring little."
        )
    return (
        f"The next 100 labels would bring about {percent(gain)} points if its curve goes on as from {before:,} to "
        f"{now:,} labels; semisup label says which images."
    )

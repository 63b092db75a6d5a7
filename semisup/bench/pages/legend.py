"""How a suite's tables are to be read, in one paragraph for every page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semisup.columns import COLUMNS

__all__ = ["legend"]


def legend(summary: Mapping[str, Any]) -> list[str]:
    """Return sentences about the numbers of a summary: what a mean, an interval, a mark and a column are."""
    draws = summary["draws"]
    seeds = f" (seeds {', '.join(map(str, draws))})" if draws else ""
    text = [
        f"Test accuracy in percent on {summary['num_test']:,} images: mean ± standard deviation over {len(draws)} "
        f"label {'draw' if len(draws) == 1 else 'draws'}{seeds}. The weights evaluated are the last, EMA where the "
        "recipe has one; none were selected on the test set. Budgets count the validation labels too. Brackets hold "
        "95% intervals, cut to what is possible; that of a mean is the t interval over draws."
    ]
    if summary.get("headline", "accuracy") != "accuracy":
        text.append(
            "Class sizes differ by more than 3 times: entries are sorted, ranked and compared by balanced accuracy, "
            "the mean over classes, and labels needed are of it."
        )
    if summary["baselines"]:
        text += _comparisons(summary)
    shown = [c for c in COLUMNS if c.name != "accuracy" and any(cell.get(c.name) for cell in summary["cells"])]
    text.append(" ".join(f"{column.title[0].upper()}{column.title[1:]}: {column.help}." for column in shown))
    return [part for part in text if part]


def _comparisons(summary: Mapping[str, Any]) -> list[str]:
    baselines: Sequence[str] = summary["baselines"]
    against = baselines[0]
    text = []
    if len(baselines) > 1:
        against = "it"
        names = f"{', '.join(baselines[:-1])} and {baselines[-1]}"
        text.append(
            f"Every entry is compared with the better of {names} on each budget, chosen by the mean accuracies shown "
            "here, which flatters the baseline a little."
        )
    text.append(
        f"Differences are paired with {against}: same labels, draw by draw. A star (*) marks an entry that is not "
        "shown to be better: the interval of its difference, which is not adjusted for the number of comparisons, does "
        "not lie above 0. A dagger (†) marks one that is, also after that adjustment (Holm, p < 0.05). p is two-sided "
        "and adjusted for all the differences tested. Rank is the mean over draws, 1 the best."
    )
    if any(cell["difference"] and cell["difference"]["pooled"] for cell in summary["cells"]):
        text.append(
            "With this few draws the interval of a difference takes its spread from all entries of the budget "
            "(randomized complete blocks: draws are the blocks), where their spreads are alike; the entry's own t "
            "interval stands next to it."
        )
    return text

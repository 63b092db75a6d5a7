from __future__ import annotations

import json
import random
import statistics

import pytest
from scipy import stats

from semisup.bench.pages.advice import advice
from semisup.bench.pages.leaderboard import leaderboard_markdown
from semisup.bench.pages.legend import legend
from semisup.bench.pages.report import report_html
from semisup.bench.suites.computes import compute_name, ordered_computes
from semisup.errors import SemisupError
from tests.bench.bench_rows import cell, row, runs, summary


def suite_rows():
    """Two entries and a baseline, two budgets and computes, three draws, and a fully supervised ceiling."""
    rows = []
    for compute, gain in (("", 0.0), ("20 s", 0.01)):
        for labels, level in ((40, 0.5), (250, 0.7)):
            rows += runs("supervised", labels, [level, level + 0.02, level + 0.05], compute=compute)
            rows += runs("fixmatch", labels, [level + 0.1 + gain, level + 0.11, level + 0.16], compute=compute)
            rows += runs("pseudo", labels, [level - 0.01, level + 0.04, level + 0.05], compute=compute)
    return rows + runs("ceiling", "all", [0.9, 0.91, 0.92])


def test_the_summary_is_plain_json_and_the_same_for_rows_in_any_order():
    rows = suite_rows()
    entries = ["supervised", "pseudo", "fixmatch", "ceiling"]
    made = summary(rows, entries=entries, targets=[0.6])
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    random.Random(0).shuffle(rows)
    assert summary(rows, entries=entries, targets=[0.6]) == made
    assert [entry["entry"] for entry in made["entries"]] == entries
    assert made["budgets"] == [
        {"labels": "40", "n_labels": 40},
        {"labels": "250", "n_labels": 250},
        {"labels": "all", "n_labels": 1000},
    ]
    assert (made["computes"], made["draws"], made["inits"]) == (["", "20 s"], [0, 1, 2], [0])
    assert len(made["cells"]) == 2 * 2 * 3 + 1


def test_what_the_lead_gives_passes_through():
    provenance, saved = {"torch": "2.14", "hashes": ["a", "b"]}, {"stages": 3, "stages_needed": 5}
    made = summary(runs("supervised", 40, [0.5]), provenance=provenance, saved=saved, settings="found by hand")
    assert (made["provenance"], made["saved"], made["settings"]) == (provenance, saved, "found by hand")
    assert (made["suite"], made["command"], made["num_test"]) == ("small", "semisup bench small", 500)


def test_accuracy_and_difference_are_over_draws():
    made = summary(suite_rows())
    found = cell(made, "fixmatch")
    a, b = [0.6, 0.61, 0.66], [0.5, 0.52, 0.55]
    assert found["accuracy"]["values"] == {"0": 0.6, "1": 0.61, "2": 0.66}
    assert found["accuracy"]["mean"] == pytest.approx(statistics.mean(a))
    assert found["accuracy"]["std"] == pytest.approx(statistics.stdev(a))
    test = stats.ttest_rel(a, b)
    own = found["difference"]["t"]
    assert own["p"] == pytest.approx(test.pvalue)
    assert own["low"] == pytest.approx(test.confidence_interval().low)
    assert found["difference"]["n"] == 3
    assert cell(made, "supervised")["difference"] is None


def test_differences_stay_within_their_budget_and_compute():
    rows = runs("supervised", 40, [0.5, 0.6]) + runs("a", 40, [0.6, 0.8])
    rows += runs("supervised", 250, [0.8, 0.7]) + runs("a", 250, [0.81, 0.73])
    rows += runs("supervised", 40, [0.1, 0.3], compute="9 steps") + runs("a", 40, [0.5, 0.8], compute="9 steps")
    made = summary(rows)
    means = [cell(made, "a", *at)["difference"]["mean"] for at in [(40, ""), (250, ""), (40, "9 steps")]]
    assert means == pytest.approx([0.15, 0.02, 0.45])


def test_holm_is_over_all_budgets_and_entries_of_one_compute():
    made = summary(suite_rows())
    for compute in made["computes"]:
        found = [c["difference"] for c in made["cells"] if c["compute"] == compute and c["difference"]]
        p = sorted(difference["p"] for difference in found)
        assert len(p) == 4
        by_hand = [min(1, max((4 - j) * p[j] for j in range(i + 1))) for i in range(4)]
        assert sorted(difference["p_holm"] for difference in found) == pytest.approx(by_hand)
    note = made["notes"][0]
    assert "4 differences to supervised were tested" in note
    assert "about 0.2 of them" in note


def test_initial_weights_are_averaged_within_a_draw_first():
    rows = [row("a", draw=0, init=i, accuracy=v, ece=v, seconds=s) for i, v, s in [(0, 0.2, 1.0), (1, 0.6, 3.0)]]
    rows += [row("a", draw=1, init=0, accuracy=0.8, ece=None, seconds=6.0)]
    rows += runs("supervised", 40, [0.3, 0.5])
    made = summary(rows)
    found = cell(made, "a")
    assert found["accuracy"]["values"] == pytest.approx({"0": 0.4, "1": 0.8})
    assert (found["draws"], found["runs"], found["accuracy"]["n"]) == (2, 3, 2)
    assert found["accuracy"]["mean"] == pytest.approx(0.6)  # of runs it would be 0.533
    assert found["difference"]["mean"] == pytest.approx(0.2)
    assert found["ece"] == {"mean": pytest.approx(0.4), "std": None, "n": 1}
    assert found["seconds"] == {"mean": pytest.approx(4.0), "std": pytest.approx(8**0.5), "n": 2}
    assert any("2 initial weights per draw are averaged" in note for note in made["notes"])


def test_failed_runs_are_counted_and_never_numbers():
    rows = [*runs("supervised", 40, [0.5, 0.6]), row("a", draw=0, accuracy=0.7, seconds=10.0)]
    rows.append(row("a", draw=1, status="failed", seconds=1.0, steps=0, n_labels=0))
    made = summary(rows)
    found = cell(made, "a")
    assert (found["runs"], found["failed"], found["draws"], found["accuracy"]["n"]) == (2, 1, 1, 1)
    assert found["accuracy"]["mean"] == 0.7
    assert found["seconds"]["mean"] == 10.0
    assert found["difference"]["n"] == 1
    assert made["failures"] == [{"run": "a, labels 40, draw 1, init 0", "error": "RuntimeError: diverged"}]
    assert any("a at 40: 1 of 2" in note and "Fewer draws" in note for note in made["notes"])
    assert any("1 of 4 runs failed" in note for note in made["notes"])


def test_an_entry_whose_runs_all_failed_keeps_its_row():
    rows = runs("supervised", 40, [0.5, 0.6]) + [row("a", draw=d, status="failed") for d in (0, 1)]
    found = cell(summary(rows), "a")
    assert (found["failed"], found["draws"], found["difference"], found["rank"]) == (2, 0, None, None)
    assert found["accuracy"] == {"mean": None, "std": None, "low": None, "high": None, "n": 0, "values": {}}
    assert found["seconds"] is None


def test_a_budget_whose_runs_all_failed_has_the_labels_they_say():
    rows = [row("supervised", status="failed", labels="7%", n_labels=70, draw=d) for d in (0, 1)]
    assert summary(rows)["budgets"] == [{"labels": "7%", "n_labels": 70}]


def test_collapsed_runs_stay_in_the_mean():
    one = {"most_frequent": 1.0, "majority_rate": 0.1, "per_class": [0.0] * 9 + [1.0]}
    weak = {"most_frequent": 0.3, "majority_rate": 0.1, "per_class": [0.1] * 10}
    rows = [row("supervised", accuracy=0.1, **one), row("supervised", draw=1, accuracy=0.1, **weak)]
    made = summary(rows)
    found = cell(made, "supervised")
    assert found["collapsed"] == 1, "an accuracy of guessing alone is no collapse"
    assert found["accuracy"]["mean"] == pytest.approx(0.1)
    assert any("collapsed" in note and "supervised at 40: 1 of 2" in note for note in made["notes"])


def test_ranks_share_ties_and_leave_the_ceiling_out():
    rows = runs("supervised", "all", [0.5, 0.5]) + runs("a", "all", [0.6, 0.5]) + runs("ceiling", "all", [0.9, 0.9])
    rows += runs("supervised", 40, [0.4, 0.4]) + runs("a", 40, [0.4, 0.3])
    made = summary(rows)
    assert (cell(made, "a", "all")["rank"], cell(made, "supervised", "all")["rank"]) == (1.25, 1.75)
    assert (cell(made, "a")["rank"], cell(made, "supervised")["rank"]) == (1.75, 1.25)
    assert cell(made, "ceiling", "all")["rank"] is None
    assert cell(made, "ceiling", "all")["difference"] is None
    assert cell(made, "a", "all")["difference"] is not None
    assert any("neither paired nor ranked: ceiling." in note for note in made["notes"])


def test_a_budget_without_the_baseline_has_no_differences():
    rows = runs("supervised", 40, [0.5, 0.6]) + runs("a", 40, [0.6, 0.8]) + runs("a", 250, [0.8, 0.9])
    rows += [row("supervised", labels="250", n_labels=250, draw=d, status="failed") for d in (0, 1)]
    made = summary(rows)
    assert cell(made, "a")["difference"] is not None
    assert cell(made, "a", 250)["difference"] is None
    assert any("No differences where the baseline supervised has no result: 250." in note for note in made["notes"])


def test_no_baseline_and_no_rows():
    made = summary(runs("a", 40, [0.5, 0.6]), baselines=[])
    assert cell(made, "a")["difference"] is None
    assert any("names no baseline" in note for note in made["notes"])
    empty = summary([], entries=["supervised"])
    assert (empty["cells"], empty["budgets"], empty["labels_needed"]) == ([], [], [])
    assert "Without any run yet: supervised." in empty["notes"]


def test_one_draw_has_no_test():
    made = summary(runs("supervised", 40, [0.5]) + runs("a", 40, [0.6]))
    found = cell(made, "a")
    assert found["difference"]["mean"] == pytest.approx(0.1)
    assert [found["difference"][name] for name in ("std", "low", "high", "p", "p_holm")] == [None] * 5
    assert found["accuracy"]["std"] is None
    assert any("One label draw only" in note for note in made["notes"])
    assert not any("Multiple comparisons" in note for note in made["notes"])


def test_identical_differences_are_told():
    made = summary(runs("supervised", 40, [0.5, 0.6]) + runs("a", 40, [0.6, 0.7]) + runs("b", 40, [0.5, 0.6]))
    assert (cell(made, "a")["difference"]["p"], cell(made, "a")["difference"]["p_holm"]) == (0.0, 0.0)
    assert cell(made, "b")["difference"]["p_holm"] == 1.0
    assert any("same difference on every draw" in note and "a at 40; b at 40" in note for note in made["notes"])


def test_per_class_and_reliability_over_runs():
    empty = [[0.0, 0.0, 0.0]] * 14
    rows = [
        row("supervised", draw=0, per_class=[0.2, None, None], reliability=[[1.0, 0.5, 1.0], *empty]),
        row("supervised", draw=1, per_class=[0.4, 1.0, None], reliability=[[3.0, 0.7, 0.0], *empty]),
        row("supervised", draw=2),
    ]
    found = cell(summary(rows, classes=["a", "b", "c"]), "supervised")
    assert found["per_class"] == [pytest.approx(0.3), 1.0, None]
    assert found["reliability"] == [[4.0, pytest.approx(0.65), pytest.approx(0.25)], *empty]
    assert cell(summary(runs("supervised", 40, [0.5])), "supervised")["reliability"] == []


def test_labels_needed_by_draw():
    rows = runs("supervised", 10, [0.4, 0.5]) + runs("supervised", 1000, [0.8, 0.7])
    rows += runs("ceiling", "all", [0.9, 0.9])
    at, beyond, below = summary(rows, targets=[0.6, 0.75, 0.3])["labels_needed"]
    assert (at["entry"], at["target"], at["labels"], at["reached"]) == ("supervised", 0.6, pytest.approx(100), 2)
    assert (at["low"], at["high"]) == (pytest.approx(100), pytest.approx(100))
    assert (beyond["labels"], beyond["reached"], beyond["draws"]) == (None, 1, 2)
    assert (below["labels"], below["low"], below["at_most"]) == (pytest.approx(10), None, 2)


def test_labels_needed_of_a_draw_that_lacks_a_budget():
    rows = [*runs("supervised", 10, [0.4, 0.4]), *runs("supervised", 1000, [0.8, 0.8])]
    rows += [row("supervised", labels="100", n_labels=100, draw=0, accuracy=0.4)]
    rows += [row("supervised", labels="100", n_labels=100, draw=1, status="failed")]
    (found,) = summary(rows, targets=[0.6])["labels_needed"]
    assert found["labels"] == pytest.approx(10 ** ((2.5 + 2) / 2))


def test_splits_that_differ_are_told():
    rows = runs("supervised", 40, [0.5, 0.6]) + runs("a", 40, [0.6, 0.8], split_hash="other")
    assert any("labels 40, draw 0; labels 40, draw 1" in note for note in summary(rows)["notes"])
    assert not any("WARNING" in note for note in summary(suite_rows())["notes"])


def test_mistakes_are_collected():
    rows = [*runs("supervised", 40, [0.5]), *runs("supervised", 40, [0.6]), row("fixmach", n_labels=41)]
    with pytest.raises(SemisupError) as caught:
        summary(rows, entries=["supervised", "fixmatch"], baselines=["supervise"], targets=[60], classes=["a"])
    for part in (
        "unknown entry 'fixmach' in the rows; did you mean 'fixmatch'?",
        "baseline 'supervise' is not an entry; did you mean 'supervised'?",
        "targets must be accuracies in (0, 1], got 60",
        "classes must name at least two",
        "the same run twice: supervised, labels 40, draw 0, init 0",
        "labels 40 charge 40 or 41 labels",
    ):
        assert part in str(caught.value)
    with pytest.raises(SemisupError, match="targets must be accuracies"):
        summary([], entries=["supervised"], targets=[float("nan")])
    with pytest.raises(SemisupError, match="per_class has 2 numbers for 10 classes"):
        summary([row("supervised", per_class=[0.5, 0.5])])


def test_computes_are_ordered_and_named():
    given = ["100 s", "20 s", "1000 steps", "", "400 steps", "20 s"]
    assert ordered_computes(given) == ["", "400 steps", "1000 steps", "20 s", "100 s"]
    assert [compute_name(compute) for compute in ("", "20 s")] == ["as the recipe says", "20 s"]


def test_every_entry_is_compared_with_the_better_baseline_of_its_budget():
    rows = runs("weak", 40, [0.5, 0.6]) + runs("strong", 40, [0.4, 0.6]) + runs("a", 40, [0.6, 0.6])
    rows += runs("weak", 250, [0.7, 0.7]) + runs("strong", 250, [0.8, 0.7]) + runs("a", 250, [0.7, 0.9])
    made = summary(rows, baselines=["weak", "strong"])
    assert [(p["labels"], p["entry"]) for p in made["compared_with"]] == [("40", "weak"), ("250", "strong")]
    assert cell(made, "a")["difference"]["mean"] == pytest.approx(0.05)
    assert cell(made, "a", 250)["difference"]["mean"] == pytest.approx(0.05)
    assert cell(made, "strong")["difference"]["to"] == "weak" and cell(made, "weak")["difference"] is None
    assert cell(made, "weak", 250)["difference"]["mean"] == pytest.approx(-0.05)
    text = " ".join(legend(made))
    assert "better of weak and strong on each budget" in text and "flatters the baseline" in text


def test_a_baseline_of_no_steps_is_compared_with_at_every_length():
    rows = runs("pixels", 40, [0.7, 0.6], steps=0.0) + runs("a", 40, [0.6, 0.6]) + runs("weak", 40, [0.5, 0.6])
    rows += runs("a", 40, [0.8, 0.9], compute="400 steps") + runs("weak", 40, [0.5, 0.6], compute="400 steps")
    made = summary(rows, baselines=["weak", "pixels"])
    assert [(place["compute"], place["entry"]) for place in made["compared_with"]] == [
        ("", "pixels"),
        ("400 steps", "pixels"),
    ]
    assert cell(made, "a", compute="400 steps")["difference"]["mean"] == pytest.approx(0.2)
    assert cell(made, "weak", compute="400 steps")["difference"]["to"] == "pixels"
    assert {c["entry"] for c in made["cells"] if c["compute"] == "400 steps"} == {"a", "weak"}


def test_intervals_are_cut_to_what_is_possible():
    made = summary(runs("supervised", 40, [0.1, 0.98]) + runs("a", 40, [0.9, 0.2]))
    found = cell(made, "a")
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (0, 1)
    assert (found["difference"]["low"], found["difference"]["high"]) == (-1, 1)


def test_few_draws_share_their_spread_and_a_large_gain_over_three_draws_is_seen():
    """24 points over three draws: nothing to the entry's own t interval, and plain next to the budget's others."""
    levels = {
        "supervised": [0.50, 0.55, 0.60],
        "a": [0.55, 0.53, 0.63],
        "b": [0.52, 0.64, 0.62],
        "c": [0.58, 0.58, 0.58],
        "d": [0.44, 0.57, 0.61],
        "good": [0.68, 0.73, 0.96],
    }
    rows = [r for entry, values in levels.items() for r in runs(entry, 40, values)]
    made = summary(rows)
    found = cell(made, "good")["difference"]
    assert found["mean"] == pytest.approx(0.24)
    assert found["t"]["low"] < 0 < found["low"] and found["pooled"]
    assert cell(made, "a")["difference"]["low"] < 0
    assert any("randomized complete blocks" in note for note in made["notes"])
    many = summary([r for entry in levels for r in runs(entry, 40, [0.5, 0.6, 0.7, 0.55, 0.65, 0.6])])
    assert not any(cell_["difference"] and cell_["difference"]["pooled"] for cell_ in many["cells"])


def test_an_entry_of_another_spread_keeps_its_own_interval():
    base = [0.50, 0.55, 0.60]
    rows = [
        r for i in range(8) for r in runs(f"e{i}", 40, [v + 0.002 * ((7 * i + 3 * d) % 5) for d, v in enumerate(base)])
    ]
    rows += runs("wild", 40, [0.3, 0.9, 0.5])
    made = summary(rows, baselines=["e0"])
    wild = cell(made, "wild")["difference"]
    assert not wild["pooled"] and (wild["low"], wild["high"]) == (wild["t"]["low"], wild["t"]["high"])
    assert cell(made, "e1")["difference"]["pooled"]
    assert any("Set apart" in note and "wild at 40" in note for note in made["notes"])


def test_unequal_classes_are_compared_ranked_and_sorted_by_balanced_accuracy():
    rows = [
        row(entry, draw=draw, accuracy=accuracy, balanced_accuracy=balanced + draw / 100)
        for entry, accuracy, balanced in (("supervised", 0.9, 0.5), ("adjusted", 0.8, 0.7))
        for draw in range(3)
    ]
    equal, unequal = summary(rows, class_ratio=3.0), summary(rows, class_ratio=3.1)
    assert (equal["headline"], unequal["headline"]) == ("accuracy", "balanced_accuracy")
    assert cell(equal, "adjusted")["rank"] == 2 and cell(unequal, "adjusted")["rank"] == 1
    assert cell(equal, "adjusted")["difference"]["mean"] == pytest.approx(-0.1)
    assert cell(unequal, "adjusted")["difference"]["mean"] == pytest.approx(0.2)
    assert not any("balanced accuracy" in part for part in legend(equal))
    assert any("compared by balanced accuracy" in part for part in legend(unequal))
    page = leaderboard_markdown(unequal)
    table = page[page.index("### 40 labels") :]
    assert "## Balanced accuracy" in page and table.index("adjusted") < table.index("| supervised")
    assert "Best mean balanced accuracy: " in report_html(unequal)
    own = unequal | {"provenance": {"data": "folder: 400"}}
    assert advice(own).startswith("Take adjusted: 71.0% of 500 test images (mean over classes) with 40 labels")

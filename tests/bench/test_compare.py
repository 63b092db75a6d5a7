from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from semisup.bench.results.compare import compare_suites
from semisup.bench.results.rows import Row, write_rows
from semisup.errors import SemisupError
from tests.bench.bench_rows import facts, row, runs


def folder(path: Path, rows: Sequence[Row], **changed: object) -> Path:
    """A result folder as `semisup bench` leaves it."""
    path.mkdir()
    write_rows(path / "runs.csv", rows)
    made = facts(rows, **({"provenance": {"data hash": "d"}, "baselines": []} | changed))
    (path / "suite.json").write_text(json.dumps(made), encoding="utf-8")
    return path


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_differences_are_paired_by_draw(tmp_path):
    a = folder(tmp_path / "a", runs("supervised", 40, [0.5, 0.6, 0.7]) + runs("fixmatch", 250, [0.8, 0.9]))
    b = folder(
        tmp_path / "b", [*runs("fixmatch", 250, [0.8, 0.9]), *reversed(runs("supervised", 40, [0.53, 0.6, 0.72]))]
    )
    text = compare_suites(a, b)
    differences = [0.03, 0.0, 0.02]
    low, high = stats.t.interval(0.95, 2, np.mean(differences), stats.sem(differences))
    expected = ["supervised", "40", "60.0", "61.7", "+1.7", f"[{100 * low:.1f},", f"{100 * high:.1f}]", "3"]
    assert expected in lines(text)
    assert ["fixmatch", "250", "85.0", "85.0", "0.0", "[0.0,", "0.0]", "2"] in lines(text)
    assert "as the recipe says:" in text
    assert "WARNING" not in text
    assert "Only in" not in text


def test_a_minus_is_a_minus(tmp_path):
    a = folder(tmp_path / "a", runs("supervised", 40, [0.5, 0.6]))
    b = folder(tmp_path / "b", runs("supervised", 40, [0.4, 0.5]))
    assert ["supervised", "40", "55.0", "45.0", "-10.0", "[-10.0,", "-10.0]", "2"] in lines(compare_suites(a, b))


def test_initial_weights_are_paired_and_averaged_within_their_draw(tmp_path):
    a = [row("x", draw=0, init=i, accuracy=v) for i, v in enumerate([0.1, 0.3, 0.9])]
    b = [row("x", draw=0, init=i, accuracy=v) for i, v in enumerate([0.2, 0.6])]
    a += [row("x", draw=1, accuracy=0.5)]
    b += [row("x", draw=1, accuracy=0.6), row("x", draw=2, accuracy=0.6)]
    text = compare_suites(folder(tmp_path / "a", a), folder(tmp_path / "b", b))
    # Draw 0: 0.4 - 0.2, its third weights have no partner; draw 1: 0.6 - 0.5. Of runs, the mean would be 16.7.
    assert ["x", "40", "35.0", "50.0", "+15.0", "[-48.5,", "78.5]", "2"] in lines(text)
    assert "Only in A:\n  x at 40, as the recipe says: 1 runs\n" in text
    assert "Only in B:\n  x at 40, as the recipe says: 1 runs\n" in text


def test_computes_and_budgets_apart(tmp_path):
    def rows(shift: float) -> list[Row]:
        return [
            r
            for compute, level in (("20 s", 0.3), ("400 steps", 0.6))
            for labels in (250, 40)
            for r in runs("x", labels, [level + shift * labels / 100], compute=compute)
        ]

    text = compare_suites(folder(tmp_path / "a", rows(0.0)), folder(tmp_path / "b", rows(0.1)))
    steps, seconds = text.split("\n\n")[1:]
    assert steps.startswith("400 steps:\n")
    assert seconds.startswith("20 s:\n")
    assert lines(steps)[2:] == [["x", "40", "60.0", "64.0", "+4.0", "1"], ["x", "250", "60.0", "85.0", "+25.0", "1"]]
    assert lines(seconds)[2:] == [["x", "40", "30.0", "34.0", "+4.0", "1"], ["x", "250", "30.0", "55.0", "+25.0", "1"]]


def test_what_only_one_has(tmp_path):
    both = runs("supervised", 40, [0.5, 0.6])
    a = folder(
        tmp_path / "a", [*both, *runs("mixmatch", 40, [0.5]), *runs("supervised", 250, [0.7], compute="9 steps")]
    )
    b = folder(tmp_path / "b", [*both[:1], row("supervised", draw=1, status="failed"), *runs("flexmatch", 40, [0.5])])
    text = compare_suites(a, b)
    alone = text.partition("Only in A:\n")[2].splitlines()
    assert set(alone[:3]) == {
        "  mixmatch",
        "  supervised at 250, 9 steps",
        "  supervised at 40, as the recipe says: 1 runs",
    }
    assert text.endswith("Only in B:\n  flexmatch\n")
    assert "9 steps: nothing to pair." in text


def test_nothing_in_common(tmp_path):
    text = compare_suites(folder(tmp_path / "a", runs("x", 40, [0.5])), folder(tmp_path / "b", runs("y", 40, [0.5])))
    assert "as the recipe says: nothing to pair.\n\nOnly in A:\n  x\n\nOnly in B:\n  y\n" in text


def test_other_splits_are_warned_of(tmp_path):
    a = runs("x", 40, [0.5, 0.6]) + runs("x", 250, [0.5, 0.6])
    other, same = runs("x", 250, [0.5, 0.6], split_hash="t")[0], runs("x", 250, [0.5, 0.6])[1]
    b = [*runs("x", 40, [0.5, 0.6]), other, same]
    text = compare_suites(folder(tmp_path / "a", a), folder(tmp_path / "b", b))
    assert "WARNING: different splits in 1 of 4 pairs of runs (labels 250, draw 0): other labels" in text
    assert [line[-1] for line in lines(text) if line[:1] == ["x"]] == ["2", "!"]


def test_other_data_and_classes_are_warned_of(tmp_path):
    rows = runs("x", 40, [0.5, 0.6])
    a = folder(tmp_path / "a", rows)
    b = folder(tmp_path / "b", rows, provenance={"data hash": "e"}, classes=["cat", "dog"], num_test=7)
    text = compare_suites(a, b)
    assert "WARNING: different data: hash d in A, e in B." in text
    assert "WARNING: different classes: ['0', '1'," in text
    assert "in A, ['cat', 'dog'] in B." in text
    assert "WARNING: different numbers of test images: 500 in A, 7 in B." in text


def test_without_a_leaderboard_the_data_are_not_known(tmp_path):
    rows = runs("x", 40, [0.5, 0.6])
    a, b = folder(tmp_path / "a", rows), folder(tmp_path / "b", rows)
    (b / "suite.json").unlink()
    assert "WARNING: the data hash of B is not known" in compare_suites(a, b)
    (a / "suite.json").unlink()
    text = compare_suites(a, b)
    assert "WARNING: the data hash of A and B is not known" in text
    assert "different" not in text


def test_a_received_folder_tells_the_terminal_nothing(tmp_path):
    a = folder(tmp_path / "a", [row("x\x1b[2J\u202ey", draw=0, accuracy=0.5)])
    text = compare_suites(a, a)
    assert "x\\x1b[2J\\u202ey" in text
    assert all(line.isprintable() for line in text.split("\n"))


def test_folders_that_are_no_results(tmp_path):
    good = folder(tmp_path / "a", runs("x", 40, [0.5]))
    with pytest.raises(SemisupError, match=r"nowhere/runs\.csv: no such file"):
        compare_suites(good, tmp_path / "nowhere")
    bad = folder(tmp_path / "b", runs("x", 40, [0.5]))
    for text, message in (("{", "damaged"), ("[]", "does not hold a suite's facts")):
        (bad / "suite.json").write_text(text)
        with pytest.raises(SemisupError, match=rf"suite\.json: {message}"):
            compare_suites(good, bad)
    write_rows(bad / "runs.csv", runs("x", 40, [0.5]) * 2)
    with pytest.raises(SemisupError, match="the same run twice"):
        compare_suites(good, bad)

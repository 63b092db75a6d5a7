from __future__ import annotations

import json
import re

import pytest

from semisup.bench.pages.leaderboard import leaderboard_markdown, readme_table
from semisup.errors import SemisupError
from tests.bench.bench_rows import row, runs, summary


def table(text: str, after: str = "") -> list[dict[str, str]]:
    """The first Markdown table after a line, as header -> cell of each of its lines."""
    lines = text.splitlines()
    start = lines.index(after) if after else 0
    first = next(i for i in range(start, len(lines)) if lines[i].startswith("|"))
    cells = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def sections(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#")]


def full_rows():
    """Everything that a suite can have: two computes, a ceiling, a failed, a collapsed run, an oracle."""
    rows = []
    for compute in ("400 steps", "20 s"):
        for labels, level in ((40, 0.5), (250, 0.7)):
            more = {"compute": compute, "ece": 0.101, "nll": 1.234, "parameters": 77562, "calibrated_seconds": 8.0}
            rows += runs("supervised", labels, [level, level + 0.02, level + 0.05], **more)
            more |= {"coverage": 0.8, "kept_accuracy": 0.905}
            rows += runs("fixmatch", labels, [level + 0.1, level + 0.115, level + 0.16], **more)
            one = {"most_frequent": 1.0, "majority_rate": 0.1, "per_class": [1.0] + [0.0] * 9}
            here = {"labels": str(labels), "n_labels": labels, "compute": compute, "oracle_accuracy": 0.8}
            rows += [row("pseudo", accuracy=0.15, **one, **here), row("pseudo", draw=1, accuracy=level + 0.05, **here)]
            error = "RuntimeError: <nan> at | step `3`"
            at = {"labels": str(labels), "n_labels": labels, "draw": 2, "compute": compute}
            rows.append(row("pseudo", status="failed", error=error, **at))
    return rows + runs("ceiling", "all", [0.9, 0.91, 0.92], compute="400 steps")


SAVED = {"stages": 12, "stages_needed": 60, "seconds": 700.0, "seconds_needed": 9000.0}


@pytest.fixture(scope="module")
def page() -> str:
    made = summary(
        full_rows(), targets=[0.6, 0.99], saved=SAVED, settings="Digits, a small network.",
        provenance={"torch": "2.14", "data hash": ["a", "b"]},
    )  # fmt: skip
    return leaderboard_markdown(json.loads(json.dumps(made)))  # as read back from leaderboard.json


def test_the_parts_come_in_order(page):
    assert sections(page) == [
        "# small",
        "## Accuracy, 400 steps",
        "### 40 labels, 400 steps",
        "### 250 labels, 400 steps",
        "### all (1,000) labels, 400 steps",
        "## Accuracy, 20 s",
        "### 40 labels, 20 s",
        "### 250 labels, 20 s",
        "## Labels needed for an accuracy",
        "### Labels needed, 400 steps",
        "### Labels needed, 20 s",
        "## Accuracy at equal steps and at equal seconds",
        "## What the stage cache saved",
        "## Failed runs",
        "## Notes",
        "## Provenance",
    ]
    paragraphs = page.split("\n\n")
    for words in ("500 images", "3 label draws (seeds 0, 1, 2)", "95% intervals", "star (*)", "none were selected on"):
        assert words in paragraphs[1]
    assert "Oracle: selected on the test set: no result." in paragraphs[1]
    assert "dagger (†)" in paragraphs[1] and "Seconds alone: " in paragraphs[1]
    assert paragraphs[2] == "Digits, a small network."
    assert "- command: `semisup bench small`\n- torch: 2.14\n- data hash: a, b\n" in page


def test_the_overview_is_entries_by_budgets(page):
    lines = table(page, "## Accuracy, 400 steps")
    assert list(lines[0]) == ["labels", "40", "250", "all (1,000)"]
    assert [line["labels"] for line in lines] == ["supervised", "fixmatch", "pseudo", "ceiling"]
    assert [line["40"] for line in lines] == ["52.3 ± 2.5", "62.5 ± 3.1 †", "35.0 ± 28.3 *", ""]
    assert lines[3]["all (1,000)"] == "91.0 ± 1.0"
    assert "ceiling" not in [line["labels"] for line in table(page, "## Accuracy, 20 s")]


def test_the_details_of_a_budget(page):
    supervised, fixmatch, pseudo = table(page, "### 40 labels, 400 steps")
    # Differences 0.1, 0.095, 0.11: mean 0.10167, s 0.00764, half the interval 4.3027 s / sqrt(3) = 0.01897, t = 23.056,
    # p = 1 - 1 / sqrt(1 + 2 / t^2) = 0.001876; times 4, the number of differences of the compute, 0.0075.
    assert {title: text for title, text in fixmatch.items() if text} == {
        "entry": "fixmatch", "draws": "3", "accuracy": "62.5 ± 3.1 †", "95% interval": "[54.7, 70.3]",
        "minus supervised": "+10.2 [8.3, 12.1] †", "p (Holm)": "0.008", "rank": "1.0", "ECE": "10.1 ± 0.0",
        "NLL": "1.234 ± 0.000", "coverage": "80.0 ± 0.0", "accuracy of kept": "90.5 ± 0.0", "seconds": "10.0 ± 0.0",
        "seconds alone": "8.0 ± 0.0", "steps": "100 ± 0", "parameters": "77,562",
    }  # fmt: skip
    assert (supervised["minus supervised"], supervised["p (Holm)"]) == ("", "")
    assert (pseudo["draws"], pseudo["failed"], pseudo["collapsed"]) == ("2", "1 of 3", "1 of 3")
    assert pseudo["minus supervised"].endswith(" *")
    assert pseudo["oracle"] == "80.0 ± 0.0"


def test_columns_with_nothing_in_them_are_left_out(page):
    (ceiling,) = table(page, "### all (1,000) labels, 400 steps")
    assert list(ceiling) == ["entry", "draws", "accuracy", "95% interval", "steps", "seconds", "parameters", "method"]
    plain = leaderboard_markdown(summary(runs("supervised", 40, [0.5, 0.6])))
    assert "oracle" not in plain
    assert sections(plain) == ["# small", "## Accuracy, as the recipe says", "### 40 labels, as the recipe says",
                               "## Provenance"]  # fmt: skip


def test_columns_line_up_in_the_source(page):
    blocks = [block for block in page.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2 + 5 + 2 + 1
    for block in blocks:
        assert len({len(line) for line in block.splitlines()}) == 1


def test_equal_steps_stand_next_to_equal_seconds(page):
    lines = table(page, "## Accuracy at equal steps and at equal seconds")
    assert lines[1] == {"labels": "40", "entry": "fixmatch", "400 steps": "62.5 ± 3.1 †", "20 s": "62.5 ± 3.1 †"}
    assert [line["entry"] for line in lines] == ["supervised", "fixmatch", "pseudo"] * 2 + ["ceiling"]


@pytest.mark.parametrize("computes", [("",), ("400 steps", "800 steps"), ("", "20 s")])
def test_no_such_table_without_both_kinds(computes):
    rows = [r for compute in computes for r in runs("supervised", 40, [0.5, 0.6], compute=compute)]
    assert "equal seconds" not in leaderboard_markdown(summary(rows))


def test_labels_needed():
    rows = runs("supervised", 10, [0.4, 0.5]) + runs("supervised", 1000, [0.8, 0.7])
    rows += runs("a", 10, [0.65, 0.4]) + runs("a", 1000, [0.8, 0.8])
    rows += runs("b", 10, [0.4, 0.45]) + runs("b", 1000, [0.8, 0.9])
    rows += runs("one", 10, [0.4]) + runs("one", 1000, [0.8])
    rows.append(row("none", labels="10", n_labels=10, status="failed"))
    rows += runs("ceiling", "all", [0.9, 0.9])
    # log10 of a's crossings at 0.75: 1 + 2 (0.75 - 0.65) / 0.15 = 2.333 and 1 + 2 (0.35 / 0.4) = 2.75; 10^2.542 = 348,
    # interval 2.542 ± 12.706 x 0.2083. Of b's at 0.6: 2 and 1.667; 10^1.833 = 68, interval 1.833 ± 12.706 x 0.1667.
    lines = table(leaderboard_markdown(summary(rows, targets=[0.6, 0.75])), "## Labels needed for an accuracy")
    assert lines == [
        {"entry": "supervised", "for 60%": "100 [100, 100]", "for 75%": "1 of 2 draws"},
        {"entry": "a", "for 60%": "≤ 32", "for 75%": "348 [10, 1,000]"},
        {"entry": "b", "for 60%": "68 [10, 1,000]", "for 75%": "348 [10, 1,000]"},
        {"entry": "one", "for 60%": "100", "for 75%": "562"},
    ]
    never = leaderboard_markdown(summary(rows, targets=[0.99]))
    assert table(never, "## Labels needed for an accuracy")[0]["for 99%"] == "not reached"


def test_the_stage_cache_and_the_failures(page):
    assert "12 stages were trained where the runs need 60: 12 min of training instead of 2 h 30 min (92.2%" in page
    assert "- pseudo, labels 40, 400 steps, draw 2, init 0: `RuntimeError: <nan> at | step '3'`\n" in page
    assert "stay in every mean: pseudo at 40 (400 steps): 1 of 3;" in page


def test_nothing_saved_is_no_division_by_zero():
    saved = {"stages": 0, "stages_needed": 0, "seconds": 0.0, "seconds_needed": 0.0}
    assert "(0.0% saved)" in leaderboard_markdown(summary(runs("supervised", 40, [0.5]), saved=saved))


def test_a_star_where_one_draw_shows_nothing_and_where_all_runs_failed_the_word():
    rows = runs("supervised", 40, [0.5]) + runs("a", 40, [0.9]) + [row("b", status="failed")]
    lines = table(readme_table(summary(rows)))
    assert [line["40"] for line in lines] == ["50.0", "90.0 *", "failed"]


def test_a_star_where_the_interval_touches_zero():
    rows = runs("supervised", 40, [0.5, 0.6]) + runs("same", 40, [0.5, 0.6]) + runs("better", 40, [0.6, 0.7])
    lines = table(readme_table(summary(rows)))
    assert [line["40"].endswith("*") for line in lines] == [False, True, False]


def test_no_baseline_and_no_runs():
    page = leaderboard_markdown(summary(runs("a", 40, [0.5, 0.6]), baselines=[]))
    assert "minus" not in page
    assert "star" not in page
    empty = leaderboard_markdown(summary([], entries=["supervised"]))
    assert sections(empty) == ["# small", "## Notes", "## Provenance"]


def test_an_entry_evaluated_by_knn_only_has_no_accuracy_and_did_not_fail():
    rows = runs("supervised", 40, [0.5, 0.6]) + [row("simclr", draw=d, accuracy=None, knn=0.7) for d in (0, 1)]
    page = leaderboard_markdown(summary(rows))
    assert table(page, "## Accuracy, as the recipe says")[1] == {"labels": "simclr", "40": ""}
    assert table(page, "### 40 labels, as the recipe says")[1]["kNN"] == "70.0 ± 0.0"


def test_the_readme_shows_what_is_asked_for():
    made = summary(full_rows())
    assert table(readme_table(made)) == table(leaderboard_markdown(made))
    lines = table(readme_table(made, ["fixmatch", "supervised"], "20 s"))
    assert [list(line.values()) for line in lines] == [
        ["fixmatch", "62.5 ± 3.1 †", "82.5 ± 3.1 †"],
        ["supervised", "52.3 ± 2.5", "72.3 ± 2.5"],
    ]
    assert readme_table(made).endswith("|\n")
    with pytest.raises(SemisupError, match="small has no entry 'fixmach'; did you mean 'fixmatch'"):
        readme_table(made, ["fixmach"])
    with pytest.raises(SemisupError, match="small has no compute '21 s'; valid: '400 steps', '20 s'"):
        readme_table(made, compute="21 s")


NASTY = "<script>alert(1)</script> | ![x](http://a/b) *b* `c`"


def test_whatever_a_suite_or_an_error_says_is_no_markup():
    failed = row("supervised", status="failed", error=NASTY)
    page = leaderboard_markdown(summary([failed, row("supervised", draw=1)], settings=NASTY, provenance={NASTY: NASTY}))
    text = re.sub(r"`[^`\n]*`", "", page)  # code is shown as it is
    assert "<script" not in text and "![x](" not in text
    assert text.count("&lt;script&gt;") == 3 and "\\*b\\*" in text

"""One place writes numbers, and makes foreign text harmless."""

from __future__ import annotations

import math

import pytest

from semisup.errors import nearest
from semisup.text import (
    budget,
    count,
    csv_text,
    duration,
    from_csv_text,
    interval,
    markdown_table,
    markdown_text,
    mean_std,
    number,
    p_value,
    percent,
    signed,
)


def test_numbers() -> None:
    assert [number(x, 1) for x in (None, -0.04, 1234.56, math.nan)] == ["", "0.0", "1,234.6", ""]
    assert [count(x) for x in (None, 3, 34.56, 99.4, 1234.5)] == ["", "3", "34.6", "99.4", "1,234"]
    assert [percent(x) for x in (None, 0.1234, 1.0)] == ["", "12.3", "100.0"]
    assert [signed(x) for x in (None, 0.05, -0.05, 0.0, 1e-9, -1e-9)] == ["", "+5.0", "-5.0", "0.0", "0.0", "0.0"]
    assert [p_value(x) for x in (None, 0.0004, 0.0496)] == ["", "<0.001", "0.050"]
    assert mean_std({"mean": 0.5, "std": None}, percent) == "50.0"
    assert mean_std({"mean": 0.5, "std": 0.01}, percent) == "50.0 ± 1.0"
    assert mean_std(None, percent) == mean_std({"mean": None, "std": None}, percent) == ""
    assert (interval(0.1, 0.2), interval(None, 0.2)) == ("[10.0, 20.0]", "")
    assert (budget("40", 40), budget("4/class", 40), budget("all", 60_000)) == ("40", "4/class (40)", "all (60,000)")


def test_durations_have_the_units_that_matter() -> None:
    seconds = [0.04, 9.94, 12.4, 119, 700, 9000, 86_400, 360_000]
    shown = ["0.0 s", "9.9 s", "12 s", "119 s", "12 min", "2 h 30 min", "1 d", "4 d 4 h"]
    assert [duration(s) for s in seconds] == shown


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'quoted'", "plain", ""]
)
def test_no_text_is_a_formula_and_all_of_it_comes_back(text: str) -> None:
    cell = csv_text(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert from_csv_text(cell) == text


def test_text_is_no_markup() -> None:
    nasty = "<img src=x onerror=alert(1)> | ![x](http://a/b) *b* `c` &amp;\nnext"
    shown = markdown_text(nasty)
    assert "\n" not in shown and "<" not in shown and ">" not in shown
    for letter in "|`*[]":
        assert shown.count(letter) == shown.count(f"\\{letter}") == nasty.count(letter)
    assert "&amp;amp;" in shown
    assert markdown_text("mean_teacher at 4/class") == "mean_teacher at 4/class"


def test_a_table_without_lines() -> None:
    assert markdown_table(["entry", "x"], []) == "| entry |\n| ----- |"


def test_of_very_many_names_some_are_listed() -> None:
    names = [f"name{i:04}" for i in range(1300)]
    assert nearest("zzz", names).endswith("name0007 and 1,292 more")
    assert nearest("name12", names[:3]).startswith("; did you mean")

"""The last lines of a suite on a person's own images: what to take, how sure that is, what more labels bring."""

from __future__ import annotations

from typing import Any

from semisup.bench.pages.advice import advice


def cell(entry: str, labels: int, mean: float, half: float | None) -> dict[str, Any]:
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {
        "entry": entry,
        "n_labels": labels,
        "compute": "",
        "accuracy": {"mean": mean, "low": low, "high": high, "n": 3},
    }


def summary(*cells: dict[str, Any], data: str = "folder: 400 training images") -> dict[str, Any]:
    return {"provenance": {"data": data}, "computes": [""], "cells": list(cells), "num_test": 200}


def test_the_best_and_what_more_labels_bring() -> None:
    text = advice(summary(cell("a", 50, 0.6, 0.02), cell("a", 100, 0.7, 0.02), cell("b", 100, 0.65, 0.02)))
    assert text == (
        "Take a: 70.0% of 200 test images with 100 labels, 95% interval [68.0, 72.0]. b has 65.0%, which is less. "
        "The next 100 labels would bring about 10.0 points if its curve goes on as from 50 to 100 labels; "
        "semisup label says which images."
    )


def test_what_is_not_sure() -> None:
    text = advice(summary(cell("a", 50, 0.7, None), cell("a", 100, 0.7, None), cell("b", 100, 0.69, None)))
    assert "one draw, 95% interval [63.3, 75.9] by the number of test images alone" in text  # Wilson, of 140 of 200
    assert (
        "one draw" in text and "b has 69.0%, which may be as good" in text and "more labels will bring little" in text
    )


def test_only_of_own_images() -> None:
    assert advice(summary(cell("a", 100, 0.7, 0.1), data="digits: 1,438 training images")) == ""
    assert advice(summary()) == ""

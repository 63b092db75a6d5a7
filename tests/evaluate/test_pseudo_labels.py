from __future__ import annotations

import math

import pytest
import torch

from semisup.errors import SemisupError
from semisup.evaluate import pseudo_label_quality


def numbers(labels, mask, hidden) -> dict[str, float]:
    quality = pseudo_label_quality(torch.tensor(labels), torch.tensor(mask), torch.tensor(hidden))
    assert all(value.shape == () and value.dtype == torch.float32 for value in quality.values())
    return {name: float(value) for name, value in quality.items()}


def test_three_of_four_kept_two_of_them_right():
    result = numbers([0, 1, 2, 0], [True, True, True, False], [0, 1, 0, 0])
    assert result == pytest.approx({"coverage": 0.75, "kept_accuracy": 2 / 3, "accuracy": 0.75})


def test_unknown_truth_counts_nowhere():
    known = numbers([0, 1, 2, 0], [True, True, True, False], [0, 1, 0, 0])
    # Two more: one kept and one not, both with a pseudo-label that could pass for right or wrong.
    assert numbers([0, 1, 2, 0, -1, 3], [True, True, True, False, True, False], [0, 1, 0, 0, -1, -1]) == known


def test_none_kept_is_undefined_and_not_zero():
    result = numbers([0, 1], [False, False], [0, 0])
    assert result["coverage"] == 0.0
    assert math.isnan(result["kept_accuracy"])
    assert result["accuracy"] == 0.5


def test_nothing_known_is_undefined():
    assert all(math.isnan(value) for value in numbers([0, 1], [True, False], [-1, -1]).values())


def test_float_weights():
    result = numbers([0, 1], [1.0, 0.5], [0, 0])
    assert result == pytest.approx({"coverage": 0.75, "kept_accuracy": 1 / 1.5, "accuracy": 0.5})


def test_runs_without_reading_a_value_on_the_host():
    labels = torch.zeros(4, dtype=torch.long, device="meta")
    quality = pseudo_label_quality(labels, labels.bool(), labels)
    assert {value.device.type for value in quality.values()} == {"meta"}


def test_mistakes_are_named():
    with pytest.raises(SemisupError, match=r"the same shape, got \(3,\), \(3, 1\), \(3,\)"):
        pseudo_label_quality(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3))

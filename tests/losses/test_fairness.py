from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from semisup.errors import SemisupError
from semisup.losses import self_adaptive_fairness
from tests.losses.losses_reference import check, gradient, normal, softmax

EXPECTED = np.array([0.4, 0.3, 0.2, 0.1])
HISTOGRAM = np.array([0.25, 0.4, 0.15, 0.2])
LOGITS = normal(9, 4, scale=2.0)
MASK = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0])


def sum_norm(values):
    return [value / sum(values) for value in values]


def reference(z, mask=MASK, expected=EXPECTED, histogram=HISTOGRAM):
    """L_f of the paper with means over the kept rows; classes nobody answers have no part in it."""
    kept = [row for row, m in zip(softmax(z), mask, strict=True) if m]
    classes = range(z.shape[1])
    p = [sum(row[c] for row in kept) / len(kept) for c in classes]
    h = [sum(1 for row in kept if max(row) == row[c]) / len(kept) for c in classes]
    a = sum_norm([e / g for e, g in zip(expected, histogram, strict=True)])
    b = sum_norm([p[c] / h[c] if h[c] else 0.0 for c in classes])
    return sum(a[c] * math.log(b[c]) for c in classes if h[c])


def loss(z, mask=MASK, expected=EXPECTED, histogram=HISTOGRAM):
    return self_adaptive_fairness(
        z, torch.tensor(mask), torch.tensor(expected).to(z.dtype), torch.tensor(histogram).to(z.dtype)
    )


def code(z, mask=MASK):
    """The authors' arithmetic, for its gradient: an absent class counts as a logarithm of 1e-12."""
    probs = torch.softmax(z[torch.tensor(mask, dtype=torch.bool)], 1)
    counts = torch.bincount(probs.argmax(1), minlength=4)
    scale = torch.nan_to_num(len(probs) / counts, posinf=0.0)
    a, b = torch.tensor(EXPECTED / HISTOGRAM), probs.mean(0) * scale
    return (a / a.sum() * torch.log(b / b.sum() + 1e-12)).sum()


@pytest.mark.parametrize("dtype", [np.int64, np.float64, np.bool_])
def test_matches_loops(dtype):
    check(lambda z: loss(z, MASK.astype(dtype)), reference, LOGITS)


def test_an_absent_class_is_left_out():
    z = LOGITS.copy()
    z[:, 2] -= 9
    check(loss, reference, z)
    # The authors' code has the same gradient and another constant: a_2 log 1e-12.
    z = torch.tensor(z)
    torch.testing.assert_close(gradient(loss, z), gradient(code, z))
    a = sum_norm(list(EXPECTED / HISTOGRAM))
    torch.testing.assert_close(float(code(z)), float(loss(z)) + a[2] * math.log(1e-12))


def test_one_row():
    check(lambda z: loss(z, [1]), lambda z: reference(z, [1]), LOGITS[:1])


def test_a_class_without_a_histogram_has_no_part():
    histogram = HISTOGRAM * [1, 1, 0, 1]
    a = sum_norm([0.4 / 0.25, 0.3 / 0.4, 0.0, 0.1 / 0.2])
    z = torch.eye(4, dtype=torch.float64) * 3  # every class once, all alike
    value = loss(z, [1, 1, 1, 1], EXPECTED, histogram)
    torch.testing.assert_close(float(value), sum(a) * math.log(1 / 4))


def test_nothing_kept_is_exactly_0():
    z = torch.tensor(LOGITS)
    assert float(loss(z, [0] * 9)) == 0
    assert torch.equal(gradient(lambda z: loss(z, [0] * 9), z), torch.zeros_like(z))


def test_by_hand():
    """methods.md 3.13: with a uniform it is log .5 = -.693 where the kept answers are balanced, and less elsewhere."""
    uniform = np.array([0.5, 0.5])
    balanced = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).log()
    torch.testing.assert_close(float(loss(balanced, [1, 1], uniform, uniform)), math.log(0.5))
    # Ratios .9 + .4 and .1 + .6: b = (.65, .35).
    tilted = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64).log()
    expected = (math.log(0.65) + math.log(0.35)) / 2
    torch.testing.assert_close(float(loss(tilted, [1, 1], uniform, uniform)), expected)
    assert expected < math.log(0.5), "minimizing moves away from equal shares"


def test_mistakes_are_named():
    z = torch.tensor(LOGITS)
    good, mask = torch.tensor(EXPECTED), torch.tensor(MASK)
    with pytest.raises(SemisupError, match=r"mask must have shape \(9,\), one per row, got \(9, 1\)"):
        self_adaptive_fairness(z, mask[:, None], good, good)
    with pytest.raises(SemisupError, match=r"expected must have shape \(4,\), one per class, got \(3,\)"):
        self_adaptive_fairness(z, mask, good[:3], good)
    with pytest.raises(SemisupError, match=r"histogram must have shape \(4,\), one per class, got \(9, 4\)"):
        self_adaptive_fairness(z, mask, good, z)

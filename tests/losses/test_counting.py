"""The loss of learning to count, against its equation in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semisup.errors import SemisupError
from semisup.losses import counting
from tests.losses.losses_reference import Array, check, gradient, normal

N, P, D = 5, 4, 3


def reference(whole: Array, parts: Array, other: Array, margin: float) -> float:
    total = 0.0
    for n in range(len(whole)):
        same = different = 0.0
        for d in range(whole.shape[1]):
            count = sum(parts[n, p, d] for p in range(parts.shape[1]))
            same += (whole[n, d] - count) ** 2
            different += (other[n, d] - count) ** 2
        total += same + max(0.0, margin - different)
    return total / len(whole)


@pytest.mark.parametrize("margin", [0.0, 4.0, 30.0])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_value_and_gradient(which: int, margin: float) -> None:
    given = [normal(N, D, seed=1), normal(N, P, D, seed=2, scale=0.5), normal(N, D, seed=3)]
    check(
        lambda x: counting(*(x if i == which else torch.tensor(y, dtype=x.dtype) for i, y in enumerate(given)), margin),
        lambda x: reference(*(x if i == which else y for i, y in enumerate(given)), margin),
        given[which],
    )


def test_no_counts_cost_the_margin() -> None:
    zero = torch.zeros(N, D)
    assert float(counting(zero, torch.zeros(N, P, D), zero, 10.0)) == 10.0


def test_counts_that_add_up_and_differ_cost_nothing_and_have_no_gradient() -> None:
    parts = torch.rand(N, P, D)
    whole = parts.sum(1)
    far = whole + 10**0.5
    assert float(counting(whole, parts, far, 10.0)) == pytest.approx(0, abs=1e-4)
    assert not gradient(lambda x: counting(whole, parts, x, 10.0), far + 1).any()
    assert gradient(lambda x: counting(whole, parts, x, 10.0), whole + 1).any()


def test_the_margin_is_of_the_whole_vector() -> None:
    """Element by element, differences of 2 would each be within a margin of 10, and cost 6 apiece."""
    parts, whole = torch.zeros(1, P, 100), torch.zeros(1, 100)
    assert float(counting(whole, parts, whole + 2, 10.0)) == 0.0


def test_mistakes_are_named() -> None:
    whole = torch.zeros(N, D)
    with pytest.raises(SemisupError, match=r"whole and other must both be \(N, D\)"):
        counting(whole, torch.zeros(N, P, D), torch.zeros(N, 1), 1.0)
    with pytest.raises(SemisupError, match=r"parts must be \(5, P, 3\), got shape \(5, 4, 2\)"):
        counting(whole, torch.zeros(N, P, 2), whole, 1.0)
    with pytest.raises(SemisupError, match="margin must be at least 0, got -1"):
        counting(whole, torch.zeros(N, P, D), whole, -1)
    assert np.isfinite(float(counting(whole[:1], torch.zeros(1, P, D), whole[:1], 1.0)))

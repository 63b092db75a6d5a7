"""Masked mean squared error, place by place."""

from __future__ import annotations

import pytest
import torch

from semisup.errors import SemisupError
from semisup.losses import masked_mse
from tests.losses.losses_reference import Array, check, gradient, normal

N, T, D = 3, 4, 5
TARGET = normal(N, T, D, seed=1)
MASK = [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]


def reference(prediction: Array) -> float:
    errors = []
    for n in range(N):
        for t in range(T):
            if MASK[n][t]:
                errors.append(sum((prediction[n, t, d] - TARGET[n, t, d]) ** 2 for d in range(D)) / D)
    return sum(errors) / len(errors)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_equation(dtype: torch.dtype) -> None:
    mask = torch.tensor(MASK, dtype=dtype)
    check(lambda z: masked_mse(z, torch.tensor(TARGET, dtype=z.dtype), mask), reference, normal(N, T, D))


def test_what_is_in_sight_counts_nothing() -> None:
    prediction, target, mask = torch.tensor(normal(N, T, D)), torch.tensor(TARGET), torch.tensor(MASK).bool()
    other = torch.where(mask[:, :, None], prediction, 100.0)
    assert torch.equal(masked_mse(other, target, mask), masked_mse(prediction, target, mask))
    slope = gradient(lambda z: masked_mse(z, target, mask), prediction)
    assert torch.equal(slope.any(2), mask)


def test_nothing_hidden_one_place_and_no_error() -> None:
    prediction, target = torch.tensor(normal(N, T, D)), torch.tensor(TARGET)
    nothing = torch.zeros(N, T)
    assert float(masked_mse(prediction, target, nothing)) == 0
    assert not gradient(lambda z: masked_mse(z, target, nothing), prediction).any()
    one = masked_mse(prediction[:1, :1], target[:1, :1], torch.ones(1, 1))
    torch.testing.assert_close(one, (prediction[0, 0] - target[0, 0]).square().mean())
    assert float(masked_mse(target, target, torch.tensor(MASK))) == 0


def test_shapes_are_checked() -> None:
    x = torch.zeros(N, T, D)
    with pytest.raises(
        SemisupError, match=r"target must have the shape of the prediction \(3, 4, 5\), got \(3, 4, 1\)"
    ):
        masked_mse(x, x[:, :, :1], torch.ones(N, T))
    with pytest.raises(SemisupError, match=r"mask must have shape \(3, 4\), got \(3, 4, 1\)"):
        masked_mse(x, x, torch.ones(N, T, 1))

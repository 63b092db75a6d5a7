"""The non-negative risk of positive and unlabeled examples, against its equation in loops."""

from __future__ import annotations

import math

import pytest
import torch

from semisup.errors import SemisupError
from semisup.losses import positive_unlabeled
from tests.losses.losses_reference import Array, check, gradient, normal


def reference(positive: Array, unlabeled: Array, prior: float) -> float:
    def mean(values: Array, sign: float) -> float:
        return sum(math.log1p(math.exp(-sign * z)) for z in values) / len(values)

    return prior * mean(positive, 1) + max(0.0, mean(unlabeled, -1) - prior * mean(positive, -1))


@pytest.mark.parametrize("prior", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shift", [0.0, 4.0])
@pytest.mark.parametrize("which", [0, 1])
def test_value_and_gradient(which: int, shift: float, prior: float) -> None:
    """With a shift of 4 and a large prior the second term is at its bound."""
    given = [normal(4, seed=1) + shift, normal(7, seed=2) - shift]
    check(
        lambda x: positive_unlabeled(
            *(x if i == which else torch.tensor(y, dtype=x.dtype) for i, y in enumerate(given)), prior
        ),
        lambda x: reference(*(x if i == which else y for i, y in enumerate(given)), prior),
        given[which],
    )


def test_unlabeled_examples_have_no_gradient_beyond_the_bound() -> None:
    positive, unlabeled = torch.full((3,), 2.0), torch.full((5,), -6.0)
    assert not gradient(lambda u: positive_unlabeled(positive, u, 0.5), unlabeled).any()
    assert gradient(lambda u: positive_unlabeled(positive, u, 0.5), unlabeled + 8).any()


def test_logits_of_zero() -> None:
    """prior log 2 + (1 - prior) log 2."""
    assert float(positive_unlabeled(torch.zeros(2), torch.zeros(3), 0.3)) == pytest.approx(math.log(2))


def test_the_best_logit_is_that_of_the_posterior() -> None:
    """Everything looks alike: the probability of being positive is the prior."""
    z = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([z], lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        positive_unlabeled(z, z, 0.2).backward()
        optimizer.step()
    assert float(z.detach().sigmoid()) == pytest.approx(0.2, abs=1e-3)


def test_mistakes_are_named() -> None:
    with pytest.raises(SemisupError, match="positive must be a vector of one logit or more"):
        positive_unlabeled(torch.zeros(0), torch.zeros(2), 0.1)
    with pytest.raises(SemisupError, match="unlabeled must be a vector"):
        positive_unlabeled(torch.zeros(1), torch.zeros(2, 1), 0.1)
    with pytest.raises(SemisupError, match=r"prior must lie in \[0, 1\], got 1.5"):
        positive_unlabeled(torch.zeros(1), torch.zeros(2), 1.5)

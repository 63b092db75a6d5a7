"""Barlow Twins against equations 1 and 2, feature by feature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.methods import Batch, Progress, Update
from semisup.methods.barlow_twins import BarlowTwins
from semisup.models import Encoder
from tests.methods import methods_reference as ref


def given(n: int = 5) -> Batch:
    return ref.batch(unlabeled={"first": ref.images(n, 1, 2.0), "second": ref.images(n, 2)})


def build(cls: type[BarlowTwins], **options: Any) -> BarlowTwins:
    """The method with linear maps for encoder and projector."""
    method = cls(ref.linear_encoder(), **options)
    method.project = nn.Linear(6, 3)  # type: ignore[assignment]
    return method


def embed(learned: list[ref.Array], images: Tensor) -> ref.Array:
    w1, b1, w2, b2 = learned
    return np.array([w2 @ (w1 @ x + b1) + b2 for x in images.double().flatten(1).numpy()])


def barlow(first: ref.Array, second: ref.Array, weight: float) -> float:
    n, d = first.shape
    total = 0.0
    for i in range(d):
        for j in range(d):
            a, b = first[:, i] - ref.mean(list(first[:, i])), second[:, j] - ref.mean(list(second[:, j]))
            variances = [sum(x * x) / n + 1e-5 for x in (a, b)]
            c = sum(a * b) / n / math.sqrt(variances[0] * variances[1])
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


def check_equation(cls: type[BarlowTwins], **options: Any) -> None:
    method, batch = build(cls, **options), given()
    parameters = method.groups()["main"]
    learned = [p.detach().double().numpy() for p in parameters]

    def loss(w: ref.Array, at: int) -> float:
        changed = [*learned[:at], w, *learned[at + 1 :]]
        z = [embed(changed, batch.unlabeled[view]) for view in ("first", "second")]
        return options.get("scale", 1.0) * barlow(*z, options.get("redundancy_weight", 0.0051))

    update = ref.first(method, batch)
    ref.close(update.loss, loss(learned[0], 0))
    ref.close(update.log["correlation"], loss(learned[0], 0))
    slopes = torch.autograd.grad(update.loss, parameters)
    for at in (0, 2):  # the matrices; shifts cost nothing
        expected = ref.numeric_gradient(lambda w, at=at: loss(w, at), learned[at])
        ref.close(slopes[at], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"redundancy_weight": 0.7, "scale": 0.1}])
def test_equation(options: dict[str, Any]) -> None:
    check_equation(BarlowTwins, **options)


def test_each_view_has_batch_statistics_of_its_own() -> None:
    method = BarlowTwins(ref.linear_encoder(), hidden=7, out_features=5).train()
    batch = given()
    linear = method.project.get_submodule("0.0.0")
    first, second = (linear(method.encoder(view)).detach().double() for view in batch.unlabeled.views.values())
    ref.run(method, batch)
    norm = method.project.get_submodule("0.0.1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    ref.close(norm.running_mean, (0.9 * 0.1 * first + 0.1 * second).mean(0).numpy(), rtol=1e-4)


def test_one_image_has_nothing_to_correlate() -> None:
    ref.close(ref.first(build(BarlowTwins), given(1)).loss, 3.0)


def test_projector() -> None:
    method = BarlowTwins(ref.linear_encoder(num_features=6))
    kinds = [type(m) for m in method.project.modules() if not isinstance(m, nn.Sequential)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    linears = [m for m in method.project.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features, m.bias) for m in linears] == [
        (6, 2048, None),
        (2048, 2048, None),
        (2048, 2048, None),
    ]
    assert method.predictor() is method.encoder
    assert isinstance(method.encoder, Encoder)


# --- sabotage --------------------------------------------------------------------------------------------------------


def changed(loss: Callable[[Tensor, Tensor], Tensor]) -> type[BarlowTwins]:
    """A Barlow Twins with another loss of the two views' embeddings."""

    class Changed(BarlowTwins):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            value = loss(*(self.project(self.encoder(batch.unlabeled[view])) for view in ("first", "second")))
            yield Update(value, log={"correlation": value})

    return Changed


def of(correlation: Tensor) -> Tensor:
    same = correlation.diagonal()
    return (1 - same).square().sum() + 0.0051 * (correlation.square().sum() - same.square().sum())


def standardize(z: Tensor) -> Tensor:
    return F.batch_norm(z, None, None, training=True)


def right(first: Tensor, second: Tensor) -> Tensor:
    return of(standardize(first).T @ standardize(second) / len(first))


def unbiased(first: Tensor, second: Tensor) -> Tensor:
    a, b = ((z - z.mean(0)) / z.std(0) for z in (first, second))
    return of(a.T @ b / len(a))


def means(first: Tensor, second: Tensor) -> Tensor:
    return right(first, second) / first.shape[1]


def undivided(first: Tensor, second: Tensor) -> Tensor:
    return of(standardize(first).T @ standardize(second))


def own_correlation(first: Tensor, second: Tensor) -> Tensor:
    return of(standardize(first).T @ standardize(first) / len(first))


def uncentered(first: Tensor, second: Tensor) -> Tensor:
    return of(F.normalize(first, dim=0).T @ F.normalize(second, dim=0))


def over_images(first: Tensor, second: Tensor) -> Tensor:
    """The correlation of images instead of features."""
    return of(standardize(first) @ standardize(second).T / first.shape[1])


def one_sided(first: Tensor, second: Tensor) -> Tensor:
    """The second view without gradient."""
    return right(first, second.detach())


def test_the_planted_losses_start_from_the_right_one() -> None:
    check_equation(changed(right))


@pytest.mark.parametrize("loss", [unbiased, means, undivided, own_correlation, uncentered, over_images, one_sided])
def test_equation_finds(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(changed(loss))

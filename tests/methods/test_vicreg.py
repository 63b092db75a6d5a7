"""VICReg against its equations, in the authors' code's form, feature by feature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.losses import covariance_penalty, variance_hinge
from semisup.methods import Batch, Progress, Update
from semisup.methods.vicreg import VICReg
from semisup.models import Encoder
from tests.methods import methods_reference as ref


def given(n: int = 5) -> Batch:
    return ref.batch(unlabeled={"first": ref.images(n, 1, 2.0), "second": ref.images(n, 2)})


def build(cls: type[VICReg], **options: Any) -> VICReg:
    """The method with linear maps for encoder and expander."""
    method = cls(ref.linear_encoder(), **options)
    method.expand = nn.Linear(6, 3)  # type: ignore[assignment]
    return method


def embed(learned: list[ref.Array], images: Tensor) -> ref.Array:
    w1, b1, w2, b2 = learned
    return np.array([w2 @ (w1 @ x + b1) + b2 for x in images.double().flatten(1).numpy()])


def terms(first: ref.Array, second: ref.Array) -> dict[str, float]:
    n, d = first.shape
    invariance = sum((a - b) ** 2 for a, b in zip(first.flatten(), second.flatten(), strict=True)) / (n * d)
    hinge = covariance = 0.0
    for z in (first, second):
        centered = [z[:, i] - ref.mean(list(z[:, i])) for i in range(d)]
        for i in range(d):
            hinge += max(0.0, 1 - math.sqrt(sum(centered[i] ** 2) / (n - 1) + 1e-4)) / d / 2
            covariance += sum((sum(centered[i] * centered[j]) / (n - 1)) ** 2 for j in range(d) if j != i) / d
    return {"invariance": invariance, "variance": hinge, "covariance": covariance}


def check_equation(cls: type[VICReg], **options: Any) -> None:
    method, batch = build(cls, **options), given()
    parameters = method.groups()["main"]
    learned = [p.detach().double().numpy() for p in parameters]
    weight = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}
    weight |= {name: options.get(f"{name}_weight", default) for name, default in weight.items()}

    def parts(w: ref.Array, at: int) -> dict[str, float]:
        changed = [*learned[:at], w, *learned[at + 1 :]]
        return terms(*(embed(changed, batch.unlabeled[view]) for view in ("first", "second")))

    def loss(w: ref.Array, at: int) -> float:
        return sum(weight[name] * value for name, value in parts(w, at).items())

    update = ref.first(method, batch)
    assert update.log.keys() == weight.keys()
    for name, value in parts(learned[0], 0).items():
        assert value > 0
        ref.close(update.log[name], value)
    ref.close(update.loss, loss(learned[0], 0))
    slopes = torch.autograd.grad(update.loss, parameters)
    for at in (0, 2):  # the matrices; shifts of both views cost nothing
        expected = ref.numeric_gradient(lambda w, at=at: loss(w, at), learned[at])
        ref.close(slopes[at], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"invariance_weight": 3.0, "variance_weight": 7.0, "covariance_weight": 0.5}])
def test_equation(options: dict[str, Any]) -> None:
    check_equation(VICReg, **options)


def test_collapse_costs_most_of_the_variance_weight() -> None:
    """methods.md gives no number: 1 - sqrt(1e-4), 25 times, of either view."""
    method = build(VICReg)
    nn.init.zeros_(method.expand.weight)  # type: ignore[arg-type]
    update = ref.first(method, given())
    ref.close(update.loss, 25 * 0.99, rtol=1e-4)
    ref.close(update.log["invariance"], 0.0)


def test_each_view_has_batch_statistics_of_its_own() -> None:
    method = VICReg(ref.linear_encoder(), hidden=7, out_features=5).train()
    batch = given()
    linear = method.expand.get_submodule("0.0.0")
    first, second = (linear(method.encoder(view)).detach().double() for view in batch.unlabeled.views.values())
    ref.run(method, batch)
    norm = method.expand.get_submodule("0.0.1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    ref.close(norm.running_mean, (0.9 * 0.1 * first + 0.1 * second).mean(0).numpy(), rtol=1e-4)


def test_expander() -> None:
    method = VICReg(ref.linear_encoder(num_features=6))
    kinds = [type(m) for m in method.expand.modules() if not isinstance(m, nn.Sequential)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear]
    linears = [m for m in method.expand.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features, m.bias) for m in linears] == [
        (6, 2048, None),
        (2048, 2048, None),
        (2048, 2048, None),
    ]
    assert method.predictor() is method.encoder
    assert isinstance(method.encoder, Encoder)


# --- sabotage --------------------------------------------------------------------------------------------------------


def changed(measure: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> type[VICReg]:
    """A VICReg with other terms of the two views' embeddings."""

    class Changed(VICReg):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            log = measure(*(self.expand(self.encoder(batch.unlabeled[view])) for view in ("first", "second")))
            yield Update(25 * log["invariance"] + 25 * log["variance"] + log["covariance"], log=log)

    return Changed


def right(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    return {
        "invariance": F.mse_loss(first, second),
        "variance": (variance_hinge(first) + variance_hinge(second)) / 2,
        "covariance": covariance_penalty(first) + covariance_penalty(second),
    }


def summed_features(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    return right(first, second) | {"invariance": (first - second).square().sum(1).mean()}


def summed_hinges(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    return right(first, second) | {"variance": variance_hinge(first) + variance_hinge(second)}


def of_variance(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """The hinge on the variance, which vanishes with its gradient where it is most needed."""
    return right(first, second) | {"variance": sum(F.relu(1 - z.var(0)).mean() for z in (first, second)) / 2}


def biased(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    part = 1 - 1 / len(first)
    return right(first, second) | {"covariance": part**2 * right(first, second)["covariance"]}


def with_diagonal(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    return right(first, second) | {
        "covariance": sum(z.T.cov().square().sum() / z.shape[1] for z in (first, second))  # type: ignore[dict-item]
    }


def one_view(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Only the first view is kept from collapse."""
    return right(first, second) | {"covariance": 2 * covariance_penalty(first), "variance": variance_hinge(first)}


def normalized(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    return right(F.normalize(first, dim=1), F.normalize(second, dim=1))


def stopped(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """A target that stands still."""
    return right(first, second) | {"invariance": F.mse_loss(first, second.detach())}


def test_the_planted_terms_start_from_the_right_ones() -> None:
    check_equation(changed(right))


@pytest.mark.parametrize(
    "measure",
    [summed_features, summed_hinges, of_variance, biased, with_diagonal, one_view, normalized, stopped],
)
def test_equation_finds(measure: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(changed(measure))

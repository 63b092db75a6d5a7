"""SimSiam against its equations: two linear maps and a predictor, value and gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semisup.losses import negative_cosine
from semisup.methods import Batch, Progress, Update
from semisup.methods.simsiam import SimSiam
from semisup.models import Encoder, ProjectionHead
from tests.methods import methods_reference as ref


def given(n: int = 4) -> Batch:
    return ref.batch(unlabeled={"first": ref.images(n, 1), "second": ref.images(n, 2)})


def build(cls: type[SimSiam], **options: Any) -> SimSiam:
    """The method with linear maps for encoder, projector and predictor."""
    method = cls(ref.linear_encoder(), **options)
    method.encoder.projector = nn.Linear(6, 5)
    method.predict = nn.Linear(5, 5)  # type: ignore[assignment]
    return method


def chain(parameters: list[ref.Array], images: Tensor) -> list[ref.Array]:
    """Linear maps W, b, W, b, ... one after the other."""
    rows = list(images.double().flatten(1).numpy())
    for w, b in zip(parameters[::2], parameters[1::2], strict=True):
        rows = [w @ row + b for row in rows]
    return rows


def similarity(predictions: list[ref.Array], targets: list[ref.Array]) -> float:
    cosines = []
    for p, z in zip(predictions, targets, strict=True):
        cosines.append(sum(p * z) / math.sqrt(sum(p * p) * sum(z * z)))
    return ref.mean(cosines)


def check_equation(cls: type[SimSiam]) -> None:
    """The gradient is that of predictions alone: targets are numbers."""
    method, batch = build(cls), given()
    first, second = batch.unlabeled["first"], batch.unlabeled["second"]
    parameters = method.groups()["main"]
    learned = [p.detach().double().numpy() for p in parameters]
    targets = chain(learned[:4], first), chain(learned[:4], second)

    def loss(w: ref.Array, at: int) -> float:
        changed = [*learned[:at], w, *learned[at + 1 :]]
        forth = similarity(chain(changed, first), targets[1])
        back = similarity(chain(changed, second), targets[0])
        return -forth / 2 - back / 2

    update = ref.first(method, batch)
    ref.close(update.loss, loss(learned[0], 0))
    ref.close(update.log["prediction"], loss(learned[0], 0))
    slopes = torch.autograd.grad(update.loss, parameters, allow_unused=True, materialize_grads=True)
    for at in range(6):  # matrices and biases of encoder, projector and predictor
        expected = ref.numeric_gradient(lambda w, at=at: loss(w, at), learned[at])
        ref.close(slopes[at], expected, rtol=1e-3, atol=1e-5)


def test_equation() -> None:
    check_equation(SimSiam)


def test_closed_forms() -> None:
    """Equal views -1, orthogonal ones 0, opposite ones 1; lengths do not matter."""
    method = SimSiam(Encoder(ref.Flat(8)))
    method.encoder.projector, method.predict = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    eye = torch.eye(8).view(8, 1, 2, 4)
    for second, value in ((eye[:4], -1.0), (eye[4:], 0.0), (-eye[:4], 1.0), (3 * eye[:4], -1.0)):
        ref.close(ref.first(method, ref.batch(unlabeled={"first": eye[:4], "second": second})).loss, value)


def test_views_are_interchangeable() -> None:
    method, batch = build(SimSiam), given()
    swapped = ref.batch(unlabeled={"first": batch.unlabeled["second"], "second": batch.unlabeled["first"]})
    torch.testing.assert_close(ref.first(method, swapped).loss, ref.first(method, batch).loss)


def test_each_view_has_batch_statistics_of_its_own() -> None:
    method = SimSiam(ref.linear_encoder(), hidden=7, out_features=5).train()
    batch = given()
    linear = method.encoder.get_submodule("projector.layers.0.0")
    first, second = (linear(method.encoder(view)).detach().double() for view in batch.unlabeled.views.values())
    ref.run(method, batch)
    norm = method.encoder.get_submodule("projector.layers.0.1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    ref.close(norm.running_mean, (0.9 * 0.1 * first + 0.1 * second).mean(0).numpy(), rtol=1e-4)


def test_heads() -> None:
    method = SimSiam(ref.linear_encoder(num_features=6))
    assert isinstance(method.encoder.projector, ProjectionHead)
    widths = [(m.in_features, m.out_features) for m in method.encoder.projector.modules() if isinstance(m, nn.Linear)]
    assert widths == [(6, 2048), (2048, 2048), (2048, 2048)]
    assert isinstance(method.encoder.projector.layers[-1][-1], nn.BatchNorm1d)
    kinds = [type(m) for m in method.predict.modules() if not isinstance(m, nn.Sequential)]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    linears = [m for m in method.predict.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features, m.bias is not None) for m in linears] == [
        (2048, 512, False),
        (512, 2048, True),
    ]
    assert method.predictor() is method.encoder


# --- sabotage --------------------------------------------------------------------------------------------------------


def changed(combine: Callable[[SimSiam, Tensor, Tensor], Tensor]) -> type[SimSiam]:
    """A SimSiam whose loss is `combine(method, z of the first view, z of the second)`."""

    class Changed(SimSiam):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            first, second = (self.encoder.project(batch.unlabeled[view]) for view in ("first", "second"))
            loss = combine(self, first, second)
            yield Update(loss, log={"prediction": loss})

    return Changed


def right(method: SimSiam, first: Tensor, second: Tensor) -> Tensor:
    forth, back = (method.predict(z) for z in (first, second))
    return (negative_cosine(forth, second.detach()) + negative_cosine(back, first.detach())) / 2


def no_stop(method: SimSiam, first: Tensor, second: Tensor) -> Tensor:
    """Targets learn too."""
    return (negative_cosine(method.predict(first), second) + negative_cosine(method.predict(second), first)) / 2


def wrong_stop(method: SimSiam, first: Tensor, second: Tensor) -> Tensor:
    """The predictions stand still, the targets learn."""
    forth, back = (method.predict(z).detach() for z in (first, second))
    return (negative_cosine(forth, second) + negative_cosine(back, first)) / 2


def no_predictor(method: SimSiam, first: Tensor, second: Tensor) -> Tensor:
    return (negative_cosine(first, second.detach()) + negative_cosine(second, first.detach())) / 2


def both_predicted(method: SimSiam, first: Tensor, second: Tensor) -> Tensor:
    """Predictions are compared with predictions."""
    forth, back = (method.predict(z) for z in (first, second))
    return (negative_cosine(forth, back.detach()) + negative_cosine(back, forth.detach())) / 2


def own_view(method: SimSiam, first: Tensor, second: Tensor) -> Tensor:
    forth, back = (method.predict(z) for z in (first, second))
    return (negative_cosine(forth, first.detach()) + negative_cosine(back, second.detach())) / 2


def summed(method: SimSiam, first: Tensor, second: Tensor) -> Tensor:
    return 2 * right(method, first, second)


def one_sided(method: SimSiam, first: Tensor, second: Tensor) -> Tensor:
    return negative_cosine(method.predict(first), second.detach())


def test_the_planted_losses_start_from_the_right_one() -> None:
    check_equation(changed(right))


@pytest.mark.parametrize("combine", [no_stop, wrong_stop, no_predictor, both_predicted, own_view, summed, one_sided])
def test_equation_finds(combine: Callable[[SimSiam, Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(changed(combine))

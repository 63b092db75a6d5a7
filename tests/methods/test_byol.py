"""BYOL against equation 2, with the target's weights followed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.losses import negative_cosine
from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.byol import BYOL
from semisup.models import EMA, Encoder
from tests.methods import methods_reference as ref

STEPS = 5


def given(step: int = 0, n: int = 4) -> Batch:
    return ref.batch(unlabeled={"first": ref.images(n, 10 + step), "second": ref.images(n, 20 + step)})


def build(cls: type[BYOL], **options: Any) -> BYOL:
    """The method with linear maps for encoder, projector and predictor."""
    method = cls(ref.linear_encoder(), **options)
    method.online = nn.Sequential(method.online[0], nn.Linear(6, 5))
    method.predict = nn.Linear(5, 5)  # type: ignore[assignment]
    method.target = EMA(method.online, method.momentum, own_buffers=True, warm=method.target.warm)
    return method


def weights(network: nn.Module) -> list[ref.Array]:
    return [p.detach().double().numpy().copy() for p in network.parameters()]


def chain(parameters: list[ref.Array], images: Tensor) -> list[ref.Array]:
    """Linear maps W, b, W, b, ... one after the other."""
    rows = list(images.double().flatten(1).numpy())
    for w, b in zip(parameters[::2], parameters[1::2], strict=True):
        rows = [w @ row + b for row in rows]
    return rows


def distances(predictions: list[ref.Array], targets: list[ref.Array]) -> float:
    """Squared distances of unit vectors, number by number."""
    total = []
    for p, z in zip(predictions, targets, strict=True):
        p, z = p / math.sqrt(sum(p * p)), z / math.sqrt(sum(z * z))
        total.append(sum((a - b) ** 2 for a, b in zip(p, z, strict=True)))
    return ref.mean(total)


def check_steps(cls: type[BYOL]) -> None:
    """Loss, gradient and target of a few steps. tau rises along a cosine, from 0.6 here."""
    method = build(cls, momentum=0.6)
    theta = weights(method.target.module)
    for step in range(STEPS):
        batch = given(step)
        first, second = batch.unlabeled["first"], batch.unlabeled["second"]
        targets = chain(theta, first), chain(theta, second)
        learned = [*weights(method.online), *weights(method.predict)]

        def loss(
            w: ref.Array,
            at: int,
            learned: list[ref.Array] = learned,
            views: tuple[Tensor, Tensor] = (first, second),
            targets: tuple[list[ref.Array], list[ref.Array]] = targets,
        ) -> float:
            changed = [*learned[:at], w, *learned[at + 1 :]]
            return distances(chain(changed, views[0]), targets[1]) + distances(chain(changed, views[1]), targets[0])

        updates = method.step(batch, Progress(step, STEPS))
        update = next(updates)
        ref.close(update.loss, loss(learned[0], 0))
        ref.close(update.log["prediction"], loss(learned[0], 0))
        parameters = method.groups()["main"]
        slopes = torch.autograd.grad(update.loss, parameters, allow_unused=True, materialize_grads=True)
        for at in (0, 2, 4):  # the matrices of encoder, projector and predictor
            expected = ref.numeric_gradient(lambda w, at=at, f=loss: f(w, at), learned[at])
            ref.close(slopes[at], expected, rtol=1e-3, atol=1e-5)
        for mine, expected in zip(weights(method.target.module), theta, strict=True):
            ref.close(mine, expected)  # nothing has moved yet
        with torch.no_grad():
            for p, slope in zip(parameters, slopes, strict=True):
                p.sub_(0.5 * slope)
        assert next(updates, None) is None
        tau = 1 - (1 - 0.6) * (math.cos(math.pi * step / STEPS) + 1) / 2
        online = weights(method.online)
        theta = [tau * mine + (1 - tau) * theirs for mine, theirs in zip(theta, online, strict=True)]
        for mine, expected in zip(weights(method.target.module), theta, strict=True):
            ref.close(mine, expected)


def check_no_gradient_into_the_target(cls: type[BYOL]) -> None:
    method = build(cls)
    ref.first(method, given()).loss.backward()
    trained = [p for p in method.target.parameters() if p.requires_grad or p.grad is not None]
    assert not trained, "gradient into the target"
    assert all(p.grad is not None for p in method.groups()["main"])


def check_the_predictor_is_not_skipped(cls: type[BYOL]) -> None:
    """Without one the two networks meet at a constant. A predictor of minus one turns agreement into disagreement."""
    method = build(cls)
    batch = given()
    batch.unlabeled.views["second"] = batch.unlabeled.views["first"]
    method.predict = nn.Identity()  # type: ignore[assignment]
    ref.close(ref.first(method, batch).loss, 0.0, atol=1e-5)
    method.predict = nn.Linear(5, 5, bias=False)  # type: ignore[assignment]
    nn.init.eye_(method.predict.weight)  # type: ignore[arg-type]
    method.predict.weight.data.neg_()  # type: ignore[operator, union-attr]
    ref.close(ref.first(method, batch).loss, 8.0, atol=1e-5)


def test_steps() -> None:
    check_steps(BYOL)


def test_no_gradient_into_the_target() -> None:
    check_no_gradient_into_the_target(BYOL)


def test_the_predictor_is_not_skipped() -> None:
    check_the_predictor_is_not_skipped(BYOL)


def test_closed_forms() -> None:
    """methods.md 2.7: 0, 2 and 4 for each of the two directions; lengths do not matter."""
    method = BYOL(Encoder(ref.Flat(8)))
    method.online, method.predict = nn.Sequential(method.online[0]), nn.Identity()  # type: ignore[assignment]
    method.target = EMA(method.online)
    eye = torch.eye(8).view(8, 1, 2, 4)
    for second, value in ((eye[:4], 0.0), (eye[4:], 4.0), (-eye[:4], 8.0), (3 * eye[:4], 0.0)):
        ref.close(ref.first(method, ref.batch(unlabeled={"first": eye[:4], "second": second})).loss, value, atol=1e-5)


def test_momentum_rises_to_1_along_a_cosine() -> None:
    method = BYOL(ref.linear_encoder(), momentum=0.996)
    for step, tau in ((0, 0.996), (500, 0.998), (250, 1 - 0.004 * (1 + math.sqrt(0.5)) / 2)):
        assert method.tau(Progress(step, 1000)) == pytest.approx(tau, abs=1e-12)
    assert 0.9999999 < method.tau(Progress(999, 1000)) < 1
    assert BYOL(ref.linear_encoder(), momentum=1.0).tau(Progress(0, 10)) == 1


def test_target_has_batch_statistics_of_its_own() -> None:
    """Those of both views, one after the other, under its own weights; each view has a forward of its own."""
    method = BYOL(ref.linear_encoder(), hidden=7, momentum=0.5).train()
    batch = given()
    before = [p.clone() for p in method.target.module.parameters()]
    ref.run(method, batch, lr=1.0)
    assert not torch.equal(before[0], next(method.target.module.parameters()))
    norms = [network.get_submodule("1.0.0.1") for network in (method.online, method.target.module)]
    w1, b1, w2 = (p.double() for p in before[:3])
    hidden = [(view.flatten(1).double() @ w1.T + b1) @ w2.T for view in batch.unlabeled.views.values()]
    first, second = (h.mean(0).detach().numpy() for h in hidden)
    for norm in norms:
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.training
        assert int(norm.num_batches_tracked) == 2  # type: ignore[arg-type]
    ref.close(norms[0].running_mean, 0.9 * 0.1 * first + 0.1 * second, rtol=1e-4)  # type: ignore[arg-type]
    ref.close(norms[1].running_mean, 0.9 * 0.1 * first + 0.1 * second, rtol=1e-4)  # type: ignore[arg-type]
    # Later the weights differ, and so do the statistics.
    ref.run(method, given(1))
    assert not torch.allclose(norms[0].running_mean, norms[1].running_mean, rtol=1e-3)  # type: ignore[arg-type]


def test_networks() -> None:
    method = BYOL(ref.linear_encoder(num_features=6))
    for head, first in ((method.online[1], 6), (method.predict, 256)):
        kinds = [type(m) for m in head.modules() if not isinstance(m, nn.Sequential)]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        linears = [m for m in head.modules() if isinstance(m, nn.Linear)]
        assert [(m.in_features, m.out_features, m.bias) for m in linears] == [(first, 4096, None), (4096, 256, None)]
    assert method.predictor() is method.online[0]
    assert isinstance(method.predictor(), Encoder)
    for mine, theirs in zip(weights(method.online), weights(method.target.module), strict=True):
        assert np.array_equal(mine, theirs)


# --- sabotage --------------------------------------------------------------------------------------------------------


class NoPredictor(BYOL):
    """The projection itself is compared."""

    def distance(self, z: Tensor, target: Tensor) -> Tensor:
        return 2 + 2 * negative_cosine(z, target)


class IntoTarget(BYOL):
    """No stop-gradient."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        first, second = batch.unlabeled["first"], batch.unlabeled["second"]
        self.target.requires_grad_(True)
        loss = self.distance(self.online(first), self.target(second)) + self.distance(
            self.online(second), self.target(first)
        )
        yield Update(loss, log={"prediction": loss})


class OwnBranch(BYOL):
    """The target is the online network, with stop-gradient: SimSiam."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        first, second = batch.unlabeled["first"], batch.unlabeled["second"]
        with torch.no_grad():
            targets = self.online(first), self.online(second)
        loss = self.distance(self.online(first), targets[1]) + self.distance(self.online(second), targets[0])
        yield Update(loss, log={"prediction": loss})
        self.target.decay = self.tau(progress)
        self.target.update(self.online)


class OneDirection(BYOL):
    """The first view predicts the second, not the other way round."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        with torch.no_grad():
            target = self.target(batch.unlabeled["second"])
        loss = 2 * self.distance(self.online(batch.unlabeled["first"]), target)
        yield Update(loss, log={"prediction": loss})


class SameView(BYOL):
    """Each view predicts itself."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        first, second = batch.unlabeled["first"], batch.unlabeled["second"]
        with torch.no_grad():
            targets = self.target(first), self.target(second)
        loss = self.distance(self.online(first), targets[0]) + self.distance(self.online(second), targets[1])
        yield Update(loss, log={"prediction": loss})


class Halved(BYOL):
    """The mean of the two directions."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            yield Update(update.loss / 2, log={"prediction": update.loss / 2})


class EarlyAverage(BYOL):
    """The average is taken before the update, when there is nothing new."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.target.decay = self.tau(progress)
        self.target.update(self.online)
        yield next(iter(super().step(batch, progress)))


class ConstantMomentum(BYOL):
    """tau stays where it starts."""

    def tau(self, progress: Progress) -> float:
        return self.momentum


class WarmStart(BYOL):
    """The target as the plain mean of the first weights."""

    def __init__(self, model: Encoder, **options: Any) -> None:
        super().__init__(model, **options)
        self.target.warm = True


class Joined(BYOL):
    """Both views of an image in one forward of the target, in the wrong order afterwards."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        flipped = Unlabeled({"first": u["first"], "second": u["second"].flip(0)}, u.index)
        return super().step(Batch(batch.labeled, flipped), progress)


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (NoPredictor, check_steps),
        (NoPredictor, check_the_predictor_is_not_skipped),
        (IntoTarget, check_no_gradient_into_the_target),
        (OwnBranch, check_steps),
        (OneDirection, check_steps),
        (SameView, check_steps),
        (Halved, check_steps),
        (EarlyAverage, check_steps),
        (ConstantMomentum, check_steps),
        (WarmStart, check_steps),
        (Joined, check_steps),
    ],
)
def test_check_finds(cls: type[BYOL], check: Callable[[type[BYOL]], None]) -> None:
    with pytest.raises(AssertionError, match=r"Not equal|gradient into"):
        check(cls)

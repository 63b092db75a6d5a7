"""Temporal ensembling against algorithm 2 of Laine and Aila, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.methods import Batch, Labeled, Progress, Unlabeled, Update
from semisup.methods.temporal_ensembling import TemporalEnsembling
from tests.methods import methods_reference as ref

X = ref.images(5, 1)
Y = torch.tensor([0, 1, 2, 0, 1])
IMAGES, SIZE, EPOCHS = 12, 4, 4
LATE = Progress(9, 10)


def batch_of(rows: Tensor, u: Tensor) -> Batch:
    return Batch(Labeled({"weak": X.clone()}, Y), Unlabeled({"weak": u.clone()}, rows))


def build(cls: type[TemporalEnsembling], model: Any = None, **options: Any) -> TemporalEnsembling:
    return cls(
        ref.regression() if model is None else model, IMAGES, **{"consistency": 20.0, "ramp": 0.0, **options}
    ).train()


def check_algorithm(cls: type[TemporalEnsembling], momentum: float = 0.6) -> None:
    """Loss, term and gradient of every step: Z is updated at the end of each epoch, with that epoch's predictions."""
    method = build(cls, momentum=momentum)
    model = method.model
    z = np.zeros((IMAGES, ref.CLASSES))
    targets = np.zeros_like(z)
    draw = torch.Generator().manual_seed(3)
    for epoch in range(1, EPOCHS + 1):
        predictions = np.zeros_like(z)
        order = torch.randperm(IMAGES, generator=draw)
        for at in range(0, IMAGES, SIZE):
            rows, u = order[at : at + SIZE], torch.randn(SIZE, 1, 2, 2, generator=draw)
            predictions[rows] = ref.softmax(ref.logits(ref.weights(model), u))
            weight = 20.0 if epoch > 1 else 0.0

            def consistency(w: ref.Array, u: Tensor = u, target: ref.Array = targets[rows]) -> float:
                return float(((ref.softmax(ref.logits(w, u)) - target) ** 2).sum() / SIZE / ref.CLASSES)

            def total(w: ref.Array, weight: float = weight, term: Callable[[ref.Array], float] = consistency) -> float:
                return ref.labeled_loss(w, X, Y) + weight * term(w)

            updates = method.step(batch_of(rows, u), LATE)
            update = next(updates)
            ref.check_value_and_gradient(update.loss, model, total)
            if epoch == 1:
                assert float(update.log["consistency"].detach()) == 0.0
                assert not ref.gradient(update.log["consistency"], model).any()
            else:
                ref.check_value_and_gradient(update.log["consistency"], model, consistency)
            with torch.no_grad():  # so that the next step is another
                model.head.weight.add_(0.3 * torch.randn(model.head.weight.shape, generator=draw))
            assert next(updates, None) is None
        z = momentum * z + (1 - momentum) * predictions
        targets = z / (1 - momentum**epoch)
        ref.close(targets.sum(1), np.ones(IMAGES))
    ref.close(method.ensemble, z)
    assert method.seen.tolist() == [EPOCHS] * IMAGES


def check_new_images(cls: type[TemporalEnsembling]) -> None:
    """An image that was never seen adds 0; the mean runs over all images all the same."""
    method = build(cls)
    u = ref.images(4, 5)
    list(method.step(batch_of(torch.tensor([3, 8]), ref.images(2, 6)), LATE))
    old = ref.softmax(ref.logits(ref.weights(method.model), ref.images(2, 6)))

    def consistency(w: ref.Array) -> float:
        now = ref.softmax(ref.logits(w, u))
        return float((((now[1] - old[1]) ** 2).sum() + ((now[3] - old[0]) ** 2).sum()) / 4 / ref.CLASSES)

    term = ref.first(method, batch_of(torch.tensor([0, 8, 11, 3]), u), LATE).log["consistency"]
    ref.check_value_and_gradient(term, method.model, consistency)


@pytest.mark.parametrize("momentum", [0.6, 0.0, 0.9])
def test_algorithm(momentum: float) -> None:
    check_algorithm(TemporalEnsembling, momentum)


def test_new_images() -> None:
    check_new_images(TemporalEnsembling)


def test_a_constant_prediction_is_its_own_target_in_every_epoch() -> None:
    method = build(TemporalEnsembling)
    batch = batch_of(torch.tensor([2, 5]), ref.images(2, 4))
    for _ in range(6):
        ref.close(ref.first(method, batch, LATE).log["consistency"], 0.0, atol=1e-12)


def test_ramp() -> None:
    method = build(TemporalEnsembling, consistency=7.0, ramp=0.4)
    batch = batch_of(torch.tensor([2, 5]), ref.images(2, 4))
    ref.first(method, batch)
    batch.unlabeled.views["weak"] = ref.images(2, 9)
    for step, factor in ((0, 0.0067379), (20, 0.2865048), (40, 1.0)):
        update = ref.first(method, batch, Progress(step, 100))
        ref.close(update.loss - update.log["supervised"], 7.0 * factor * float(update.log["consistency"].detach()))


def test_an_image_twice_in_a_batch_counts_once() -> None:
    """As it may where two epochs meet."""
    method = build(TemporalEnsembling)
    u = ref.images(3, 4)
    ref.first(method, batch_of(torch.tensor([7, 1, 7]), u), LATE)
    assert method.seen.tolist() == [int(row in (1, 7)) for row in range(IMAGES)]
    predictions = 0.4 * ref.softmax(ref.logits(ref.weights(method.model), u))
    row = method.ensemble[7].double().numpy()
    assert min(np.abs(row - predictions[0]).max(), np.abs(row - predictions[2]).max()) < 1e-6


def test_one_joint_forward_in_train_mode() -> None:
    model = ref.regression()
    norm = nn.BatchNorm1d(ref.PIXELS)
    model.neck.append(norm)
    method = build(TemporalEnsembling, model)
    u = ref.images(2, 4)
    ref.first(method, batch_of(torch.tensor([0, 1]), u), LATE)
    assert norm.num_batches_tracked == 1
    together = torch.cat([X, u]).flatten(1)
    normed = (together - together.mean(0)) / (together.var(0, unbiased=False) + norm.eps).sqrt()
    ref.close(method.ensemble[:2], 0.4 * model.head(normed)[5:].softmax(1).detach().double().numpy(), rtol=1e-4)


# --- sabotage --------------------------------------------------------------------------------------------------------


class Uncorrected(TemporalEnsembling):
    """Z itself is the target: after one epoch its rows sum to 0.4."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        seen = self.seen.clone()
        self.seen *= 1000
        yield from super().step(batch, progress)
        self.seen.copy_(seen)
        self.seen[batch.unlabeled.index] += 1


class Early(TemporalEnsembling):
    """Z takes in the new predictions before it is used."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u, rows = batch.unlabeled["weak"], batch.unlabeled.index
        probs = self.model(u).softmax(1).detach()
        before = self.ensemble.clone()
        self.ensemble[rows] = torch.lerp(probs, before[rows], self.momentum)
        self.seen[rows] += 1
        for update in super().step(batch, progress):
            self.ensemble.copy_(before)
            self.ensemble[rows] = torch.lerp(probs, before[rows], self.momentum)
            self.seen[rows] -= 1
            yield update


class ByPosition(TemporalEnsembling):
    """Rows are positions in the batch."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        return super().step(Batch(batch.labeled, Unlabeled(u.views, torch.arange(len(u.index)), u.target)), progress)


class ZeroTargets(TemporalEnsembling):
    """The first epoch has full weight, with the zeros that Z starts from as targets."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.seen[batch.unlabeled.index] = self.seen[batch.unlabeled.index].clamp(min=1)
        return super().step(batch, progress)


class SumOverClasses(TemporalEnsembling):
    """C times too strong."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            term = ref.CLASSES * update.log["consistency"]
            yield replace(
                update,
                loss=update.log["supervised"] + self.consistency * term,
                log={**update.log, "consistency": term},
            )


class SeenOnly(TemporalEnsembling):
    """The mean runs over images with a target only."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        share = (self.seen[batch.unlabeled.index] > 0).float().mean().clamp(min=1e-6)
        for update in super().step(batch, progress):
            yield replace(update, log={**update.log, "consistency": update.log["consistency"] / share})


class SwappedMomentum(TemporalEnsembling):
    """momentum and 1 - momentum are exchanged."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.momentum = 1 - self.momentum


@pytest.mark.parametrize(
    ("cls", "check"),
    [
        (Uncorrected, check_algorithm),
        (Early, check_algorithm),
        (ByPosition, check_algorithm),
        (ZeroTargets, check_algorithm),
        (SumOverClasses, check_algorithm),
        (SwappedMomentum, check_algorithm),
        (SeenOnly, check_new_images),
        (ZeroTargets, check_new_images),
    ],
)
def test_check_finds(cls: type[TemporalEnsembling], check: Callable[[type[TemporalEnsembling]], None]) -> None:
    with pytest.raises(AssertionError):
        check(cls)

"""AdaMatch against the paper's equations: BatchNorm, interpolation, alignment and threshold by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.methods import Batch, Progress, Update
from semisup.methods.adamatch import AdaMatch
from tests.methods import methods_reference as ref

B, U = 5, 9
Y = [0, 1, 2, 0, 1]
CLASSES = range(ref.CLASSES)
EARLY = Progress(1, 10)


def given(seed: int = 0) -> Batch:
    views = {name: ref.images(B, seed + k) for k, name in ((1, "weak"), (2, "strong"))}
    unlabeled = {name: ref.images(U, seed + k, scale=1.5) + 0.5 for k, name in ((3, "weak"), (4, "strong"))}
    return ref.batch(views, unlabeled, y=Y)


def build(cls: type[AdaMatch], **options: Any) -> AdaMatch:
    """A softmax regression on features that BatchNorm makes depend on what else is in a forward."""
    model = ref.regression(scale=1.5)
    model.neck.append(nn.BatchNorm1d(ref.PIXELS, affine=False))
    return cls(model, **options).train()


def step(method: AdaMatch, batch: Batch, progress: Progress = EARLY) -> Update:
    torch.manual_seed(7)
    return ref.first(method, batch, progress)


def normed(parts: list[Tensor]) -> list[Tensor]:
    """The parts as BatchNorm passes them on in one forward."""
    rows = torch.cat(parts).double().flatten(1)
    out = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    return list(out.split([len(part) for part in parts]))


def check_equation(cls: type[AdaMatch], progress: Progress = EARLY, steps: int = 3, **options: Any) -> list[float]:
    """Loss, terms, guesses and gradient of some steps; returns the share of images kept at each."""
    method = build(cls, **options)
    model = method.model
    tau, momentum = options.get("threshold", 0.9), options.get("momentum", 0.99)
    ramp = options.get("ramp", 0.5)
    up = (1 - math.cos(math.pi * min(progress.fraction / ramp, 1))) / 2 * options.get("unlabeled_weight", 1.0)
    wanted: list[float] = []
    usual: list[float] = []
    kept = []
    for count in range(steps):
        batch = given(10 * count)
        x, u = batch.labeled, batch.unlabeled
        weak_j, strong_j, u_weak, u_strong = normed([x["weak"], x["strong"], u["weak"], u["strong"]])
        weak_o, strong_o = normed([x["weak"], x["strong"]])
        torch.manual_seed(7)
        shares = torch.rand(2 * B, ref.CLASSES).double().numpy()

        def mixed(w: ref.Array, joint: Tensor, own: Tensor, share: ref.Array) -> ref.Array:
            return share * ref.logits(w, joint) + (1 - share) * ref.logits(w, own)

        def supervised(w: ref.Array, j: Tensor = weak_j, o: Tensor = weak_o, s: ref.Array = shares[:B]) -> float:
            return ref.mean(ref.cross_entropy(ref.one_hot(Y), ref.softmax(mixed(w, j, o, s))))

        def strong(w: ref.Array, j: Tensor = strong_j, o: Tensor = strong_o, s: ref.Array = shares[B:]) -> float:
            return ref.mean(ref.cross_entropy(ref.one_hot(Y), ref.softmax(mixed(w, j, o, s))))

        w0 = ref.weights(model)
        labeled = ref.softmax(mixed(w0, weak_j, weak_o, shares[:B]))
        probs = ref.softmax(ref.logits(w0, u_weak))
        now = [[ref.mean([row[c] for row in rows]) for c in CLASSES] for rows in (labeled, probs)]
        m = momentum if count else 0.0
        wanted = [m * old + (1 - m) * new for old, new in zip(wanted or now[0], now[0], strict=True)]
        usual = [m * old + (1 - m) * new for old, new in zip(usual or now[1], now[1], strict=True)]
        scaled = [[row[c] * (wanted[c] + 1e-6) / (usual[c] + 1e-6) for c in CLASSES] for row in probs]
        q = np.array([[p / sum(row) for p in row] for row in scaled])
        least = tau * ref.mean([max(row) for row in labeled])
        mask = [float(max(row) >= least) for row in q]

        def unlabeled(w: ref.Array, q: ref.Array = q, mask: Any = mask, u: Tensor = u_strong) -> float:
            losses = ref.cross_entropy(q, ref.softmax(ref.logits(w, u)))
            return ref.mean([keep * loss for keep, loss in zip(mask, losses, strict=True)])

        update = step(method, batch, progress)
        for name, term in (("supervised", supervised), ("supervised_strong", strong), ("unlabeled", unlabeled)):
            ref.check_value_and_gradient(update.log[name], model, term)

        def total(w: ref.Array, a: Any = supervised, b: Any = strong, c: Any = unlabeled) -> float:
            return float(a(w) + b(w) + up * c(w))

        ref.check_value_and_gradient(update.loss, model, total)
        ref.close(update.log["kept"], ref.mean(mask))
        assert update.pseudo_labels is not None
        assert update.pseudo_labels.labels.tolist() == ref.likeliest(q)
        assert update.pseudo_labels.mask.tolist() == mask
        with torch.no_grad():
            model.head.bias.add_(torch.tensor([0.5, 0.0, -0.4]))  # so that the next step is another
        kept.append(ref.mean(mask))
    return kept


@pytest.mark.parametrize(
    "options", [{}, {"threshold": 0.8, "unlabeled_weight": 3.0, "ramp": 0.15}, {"momentum": 0.5, "ramp": 1.0}]
)
def test_equation(options: dict[str, Any]) -> None:
    assert any(0 < kept < 1 for kept in check_equation(AdaMatch, **options)), "the mask is trivial"


@pytest.mark.parametrize(("at", "weight"), [(0, 0.0), (25, 0.5), (50, 1.0), (99, 1.0)])
def test_the_weight_reaches_1_half_way(at: int, weight: float) -> None:
    update = step(build(AdaMatch, threshold=0.0), given(), Progress(at, 100))
    log = update.log
    expected = log["supervised"] + log["supervised_strong"] + weight * log["unlabeled"]
    torch.testing.assert_close(update.loss, expected)


def test_the_second_forward_leaves_the_running_statistics_alone() -> None:
    method = build(AdaMatch)
    norm = method.model.neck[0]
    assert isinstance(norm, nn.BatchNorm1d)
    sizes: list[int] = []
    norm.register_forward_hook(lambda module, inputs, _: sizes.append(len(inputs[0])))
    step(method, given())
    assert sizes == [2 * B + 2 * U, 2 * B]
    assert norm.num_batches_tracked == 1


def test_the_threshold_is_relative_to_the_labeled_images() -> None:
    """A network that is sure of nothing keeps guesses as sure as it is of its labels."""
    method = build(AdaMatch)
    with torch.no_grad():
        method.model.head.weight.mul_(0.01)
        method.model.head.bias.zero_()
    assert float(step(method, given()).log["kept"]) == 1


def test_one_image_each() -> None:
    views = {"weak": ref.images(1, 4), "strong": ref.images(1, 5)}
    unlabeled = {"weak": ref.images(1, 6), "strong": ref.images(1, 7)}
    assert bool(step(AdaMatch(ref.regression()), ref.batch(views, unlabeled, y=[1])).loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


class NoInterpolation(AdaMatch):
    """Labeled logits come from the joint forward alone."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x, u = batch.labeled, batch.unlabeled
        for update in super().step(batch, progress):
            logits = self.model(torch.cat([x["weak"], x["strong"], u["weak"], u["strong"]]))[:B]
            loss = F.cross_entropy(logits, x.y)
            yield replace(update, loss=update.loss - update.log["supervised"] + loss)


class AbsoluteThreshold(AdaMatch):
    """FixMatch's."""

    def guess(self, logits_labeled: Tensor, logits_weak: Tensor) -> tuple[Tensor, Tensor]:
        guesses, _ = super().guess(logits_labeled, logits_weak)
        return guesses, (guesses.amax(1) >= self.threshold).float()


class Unaligned(AdaMatch):
    """No distribution alignment."""

    def guess(self, logits_labeled: Tensor, logits_weak: Tensor) -> tuple[Tensor, Tensor]:
        super().guess(logits_labeled, logits_weak)
        least = self.threshold * logits_labeled.softmax(1).amax(1).mean()
        probs = logits_weak.softmax(1)
        return probs, (probs.amax(1) >= least).float()


class HardGuesses(AdaMatch):
    """The likeliest class in place of the prediction."""

    def guess(self, logits_labeled: Tensor, logits_weak: Tensor) -> tuple[Tensor, Tensor]:
        guesses, mask = super().guess(logits_labeled, logits_weak)
        return F.one_hot(guesses.argmax(1), ref.CLASSES).float(), mask


class LinearRamp(AdaMatch):
    """The weight rises along a line."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            line = min(progress.fraction / self.ramp, 1) * self.unlabeled_weight
            log = update.log
            yield replace(update, loss=log["supervised"] + log["supervised_strong"] + line * log["unlabeled"])


@pytest.mark.parametrize("cls", [NoInterpolation, AbsoluteThreshold, Unaligned, HardGuesses, LinearRamp])
def test_equation_finds(cls: type[AdaMatch]) -> None:
    with pytest.raises(AssertionError, match=r"Not equal|At index"):
        check_equation(cls)

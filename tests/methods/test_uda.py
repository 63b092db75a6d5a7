"""UDA: consistency with a sharpened, masked target, and training signal annealing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.methods import Batch, Progress, Update
from semisup.methods.fixmatch import FixMatch
from semisup.methods.uda import UDA, Schedule, tsa_threshold
from tests.methods import methods_reference as ref

X = {"weak": ref.images(8, 1)}
U = {"weak": ref.images(9, 2), "strong": ref.images(9, 3)}
HALF = Progress(5, 10)


def given() -> Batch:
    return ref.batch({name: view.clone() for name, view in X.items()}, {name: view.clone() for name, view in U.items()})


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("none", (1.0, 1.0, 1.0)),
        ("linear", (0.1, 0.55, 1.0)),
        ("exp", (0.1061, 0.1739, 1.0)),
        ("log", (0.1, 0.9261, 0.9939)),
    ],
)
def test_annealing_table(schedule: Schedule, values: tuple[float, ...]) -> None:
    """Ten classes, at the start, half-way and at the end."""
    got = [tsa_threshold(schedule, Progress(step, 2), 10) for step in (0, 1, 2)]
    np.testing.assert_allclose(got, values, atol=5e-5)


def check_equation(
    cls: type[UDA], tsa: Schedule = "linear", progress: Progress = HALF, threshold: float = 0.7
) -> tuple[float, float]:
    """Loss, terms, guesses and gradient; returns the shares of unlabeled and of labeled images used."""
    model = ref.regression()
    method = cls(model, threshold=threshold, temperature=0.4, unlabeled_weight=3.0, tsa=tsa)
    w0 = ref.weights(model)
    weak = ref.logits(w0, U["weak"])
    target, probs = ref.softmax(weak, 0.4), ref.softmax(weak)
    mask = [float(max(row) >= threshold) for row in probs]
    rise = {"none": 1.0, "linear": progress.fraction, "log": 1 - math.exp(-5 * progress.fraction)}[tsa]
    most = rise * 2 / 3 + 1 / 3
    y = given().labeled.y.tolist()
    learned = [row[c] <= most for row, c in zip(ref.softmax(ref.logits(w0, X["weak"])), y, strict=True)]

    def supervised(w: ref.Array) -> float:
        losses = ref.cross_entropy(ref.one_hot(y), ref.softmax(ref.logits(w, X["weak"])))
        return ref.mean([loss for loss, kept in zip(losses, learned, strict=True) if kept])

    def unlabeled(w: ref.Array) -> float:
        losses = ref.cross_entropy(target, ref.softmax(ref.logits(w, U["strong"])))
        return ref.mean([m * loss for m, loss in zip(mask, losses, strict=True)])

    def divergence(w: ref.Array) -> float:
        """The paper's KL(target || p), whose gradient is the same."""
        return unlabeled(w) - ref.mean([m * h for m, h in zip(mask, ref.cross_entropy(target, target), strict=True)])

    update = ref.first(method, given(), progress)
    ref.check_value_and_gradient(update.log["supervised"], model, supervised)
    ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
    ref.close(ref.gradient(update.log["unlabeled"], model), ref.numeric_gradient(divergence, w0), rtol=1e-3, atol=1e-5)
    ref.check_value_and_gradient(update.loss, model, lambda w: supervised(w) + 3.0 * unlabeled(w))
    ref.close(update.log["kept"], ref.mean(mask))
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.labels.tolist() == probs.argmax(1).tolist()
    assert update.pseudo_labels.mask.tolist() == mask
    return ref.mean(mask), ref.mean([float(kept) for kept in learned])


@pytest.mark.parametrize(("tsa", "step"), [("none", 0), ("linear", 3), ("linear", 5), ("log", 1)])
def test_equation(tsa: Schedule, step: int) -> None:
    kept, learned = check_equation(UDA, tsa, Progress(step, 10))
    assert 0 < kept < 1, "the mask is trivial"
    assert learned == 1 if tsa == "none" else 0 < learned < 1, "the annealing is trivial"


def test_towards_temperature_0_it_is_fixmatch() -> None:
    model = ref.regression()
    one = ref.first(UDA(model, threshold=0.7, temperature=1e-3), given())
    other = ref.first(FixMatch(model, threshold=0.7), given())
    ref.close(one.loss, float(other.loss.detach()))
    ref.close(ref.gradient(one.loss, model), ref.gradient(other.loss, model))


def test_nothing_kept_is_exactly_0() -> None:
    model = ref.regression()
    update = ref.first(UDA(model, threshold=1.0), given())
    assert float(update.log["unlabeled"].detach()) == 0.0 == float(update.log["kept"])
    assert not ref.gradient(update.log["unlabeled"], model).any()
    assert torch.equal(update.loss, update.log["supervised"])


def test_no_gradient_into_the_weak_view() -> None:
    ref.check_no_gradient_into(UDA(ref.regression(), threshold=0.5), given(), "unlabeled", "weak")


def test_weak_view_runs_first_and_without_a_graph() -> None:
    model = ref.regression()
    forwards: list[tuple[int, bool]] = []
    model.register_forward_pre_hook(lambda module, inputs: forwards.append((len(inputs[0]), torch.is_grad_enabled())))
    ref.run(UDA(model), given())
    assert forwards == [(9, False), (8 + 9, True)]


def test_one_image_each() -> None:
    model = ref.regression()
    one = ref.batch({"weak": ref.images(1, 4)}, {"weak": ref.images(1, 5), "strong": ref.images(1, 6)}, y=[1])
    update = ref.first(UDA(model, threshold=0.0, temperature=0.5), one)
    w = ref.weights(model)
    target = ref.softmax(ref.logits(w, one.unlabeled["weak"]), 0.5)
    (unlabeled,) = ref.cross_entropy(target, ref.softmax(ref.logits(w, one.unlabeled["strong"])))
    ref.close(update.loss, ref.labeled_loss(w, one.labeled["weak"], [1]) + unlabeled)


# --- sabotage --------------------------------------------------------------------------------------------------------


class Other(UDA):
    """UDA with other terms."""

    def labeled(self, logits: Tensor, y: Tensor, progress: Progress) -> Tensor | None:
        return None

    def unlabeled(self, strong: Tensor, weak: Tensor, mask: Tensor) -> Tensor | None:
        return None

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        for update in super().step(batch, progress):
            assert update.pseudo_labels is not None
            terms = dict(update.log)
            own = self.labeled(self.model(batch.labeled["weak"]), batch.labeled.y, progress)
            terms["supervised"] = terms["supervised"] if own is None else own
            own = self.unlabeled(self.model(u["strong"]), self.model(u["weak"]), update.pseudo_labels.mask)
            terms["unlabeled"] = terms["unlabeled"] if own is None else own
            yield replace(update, loss=terms["supervised"] + self.unlabeled_weight * terms["unlabeled"], log=terms)


def soft(strong: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return (F.cross_entropy(strong, target, reduction="none") * mask).mean()


class Unsharpened(Other):
    """USB: the temperature is ignored."""

    def unlabeled(self, strong: Tensor, weak: Tensor, mask: Tensor) -> Tensor:
        return soft(strong, weak.softmax(1).detach(), mask)


class SharpenedMask(Other):
    """The mask looks at the sharpened target and keeps too much."""

    def unlabeled(self, strong: Tensor, weak: Tensor, mask: Tensor) -> Tensor:
        target = (weak / self.temperature).softmax(1).detach()
        return soft(strong, target, (target.amax(1) >= self.threshold).float())


class KeptOnly(Other):
    """The mean runs over kept images only."""

    def unlabeled(self, strong: Tensor, weak: Tensor, mask: Tensor) -> Tensor:
        return soft(strong, (weak / self.temperature).softmax(1).detach(), mask) / mask.mean()


class LiveTarget(Other):
    """Gradient into the target."""

    def unlabeled(self, strong: Tensor, weak: Tensor, mask: Tensor) -> Tensor:
        return soft(strong, (weak / self.temperature).softmax(1), mask)


class Reversed(Other):
    """KL(p || target)."""

    def unlabeled(self, strong: Tensor, weak: Tensor, mask: Tensor) -> Tensor:
        return soft((weak / self.temperature).detach(), strong.softmax(1), mask)


class DividedByAll(Other):
    """USB: what annealing leaves is divided by the whole batch."""

    def labeled(self, logits: Tensor, y: Tensor, progress: Progress) -> Tensor:
        losses = F.cross_entropy(logits, y, reduction="none")
        return (losses * ((-losses).exp() <= tsa_threshold(self.tsa, progress, ref.CLASSES)).float()).mean()


class LargestProbability(Other):
    """USB: annealing goes by the largest probability, right or wrong."""

    def labeled(self, logits: Tensor, y: Tensor, progress: Progress) -> Tensor:
        losses = F.cross_entropy(logits, y, reduction="none")
        kept = (logits.softmax(1).amax(1) <= tsa_threshold(self.tsa, progress, ref.CLASSES)).float()
        return (losses * kept).sum() / kept.sum().clamp(min=1)


class KnownOnly(Other):
    """Annealing leaves out what is not known yet."""

    def labeled(self, logits: Tensor, y: Tensor, progress: Progress) -> Tensor:
        losses = F.cross_entropy(logits, y, reduction="none")
        kept = ((-losses).exp() > tsa_threshold(self.tsa, progress, ref.CLASSES)).float()
        return (losses * kept).sum() / kept.sum().clamp(min=1)


@pytest.mark.parametrize(
    "cls",
    [
        Unsharpened,
        SharpenedMask,
        KeptOnly,
        LiveTarget,
        Reversed,
        DividedByAll,
        LargestProbability,
        KnownOnly,
    ],
)
def test_equation_finds(cls: type[UDA]) -> None:
    check_equation(Other)
    with pytest.raises(AssertionError, match=r"Not equal|At index"):
        check_equation(cls)


def test_gradient_check_finds_gradient_into_the_weak_view() -> None:
    with pytest.raises(AssertionError, match="gradient into"):
        ref.check_no_gradient_into(LiveTarget(ref.regression(), threshold=0.5), given(), "unlabeled", "weak")

"""MixMatch against algorithm 1 of the paper, mixing by hand what `draw_mixing` drew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semisup.augment import draw_mixing, mix
from semisup.losses import mse_consistency, sharpen, soft_cross_entropy
from semisup.methods import Batch, Progress, Update
from semisup.methods.mixmatch import MixMatch
from tests.methods import methods_reference as ref

B, U = 5, 4
HALF = Progress(5, 10)


def given() -> Batch:
    return ref.batch({"weak": ref.images(B, 1)}, {"first": ref.images(U, 2), "second": ref.images(U, 3)})


def step(method: MixMatch, batch: Batch, progress: Progress = HALF) -> Update:
    torch.manual_seed(7)
    return ref.first(method, batch, progress)


def sharpened(rows: ref.Array, temperature: float) -> ref.Array:
    out = np.array([[p ** (1 / temperature) for p in row] for row in rows])
    return np.array([row / sum(row) for row in out])


def check_equation(cls: type[MixMatch], progress: Progress = HALF, **options: Any) -> None:
    """Loss, terms, guesses and gradient of a step half-way through the run."""
    model = ref.regression()
    method = cls(model, **options)
    batch = given()
    first, second = batch.unlabeled["first"], batch.unlabeled["second"]
    answers = [ref.softmax(ref.logits(ref.weights(model), view)) for view in (first, second)]
    q = sharpened((answers[0] + answers[1]) / 2, options.get("temperature", 0.5))

    torch.manual_seed(7)
    partners, shares = draw_mixing(B + 2 * U, options.get("alpha", 0.75), torch.device("cpu"))
    assert float(shares.min()) >= 0.5
    images = [*batch.labeled["weak"], *first, *second]
    targets = [*ref.one_hot(batch.labeled.y), *q, *q]
    pairs = [(i, int(j), float(shares[i])) for i, j in enumerate(partners)]
    mixed = torch.stack([share * images[i] + (1 - share) * images[j] for i, j, share in pairs])
    mixed_targets = np.array([share * targets[i] + (1 - share) * targets[j] for i, j, share in pairs])

    def supervised(w: ref.Array) -> float:
        return ref.mean(ref.cross_entropy(mixed_targets[:B], ref.softmax(ref.logits(w, mixed[:B]))))

    def unlabeled(w: ref.Array) -> float:
        probs = ref.softmax(ref.logits(w, mixed[B:]))
        squares = [float((p - t) ** 2) for p, t in zip(probs.ravel(), mixed_targets[B:].ravel(), strict=True)]
        return sum(squares) / (2 * U * ref.CLASSES)

    ramp = options.get("ramp", 1 / 64)
    weight = options.get("unlabeled_weight", 75.0) * (min(progress.fraction / ramp, 1) if ramp else 1)
    update = step(method, batch, progress)
    ref.check_value_and_gradient(update.log["supervised"], model, supervised)
    ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
    ref.check_value_and_gradient(update.loss, model, lambda w: supervised(w) + weight * unlabeled(w))
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.labels.tolist() == ref.likeliest(q)
    assert update.pseudo_labels.mask.tolist() == [1] * U


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "alpha": 0.2, "unlabeled_weight": 3.0},
        {"ramp": 0.8},
        {"ramp": 0.0},
    ],
)
def test_equation(options: dict[str, Any]) -> None:
    check_equation(MixMatch, **options)


def test_the_ramp_starts_at_0_and_is_linear() -> None:
    for at, weight in ((0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0), (9, 1.0)):
        update = step(MixMatch(ref.regression(), ramp=0.4, unlabeled_weight=8.0), given(), Progress(at, 10))
        expected = update.log["supervised"] + weight * 8 * update.log["unlabeled"]
        torch.testing.assert_close(update.loss, expected)


def test_without_mixing_it_is_cross_entropy_and_brier() -> None:
    model = ref.regression()
    batch = given()
    update = step(MixMatch(model, alpha=0.0), batch)
    w = ref.weights(model)
    ref.close(update.log["supervised"], ref.labeled_loss(w, batch.labeled["weak"], batch.labeled.y))
    first, second = (ref.softmax(ref.logits(w, batch.unlabeled[view])) for view in ("first", "second"))
    q = sharpened((first + second) / 2, 0.5)
    ref.close(update.log["unlabeled"], float(((np.concatenate([first, second]) - np.concatenate([q, q])) ** 2).mean()))


def test_sharpening_by_hand() -> None:
    """methods.md 3.9: (.5, .3, .2) at T = .5 is (.6579, .2368, .1053)."""
    model = ref.regression(scale=0.0)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    update = step(MixMatch(model, alpha=0.0), given())
    errors = [(0.5 - 0.6579) ** 2, (0.3 - 0.2368) ** 2, (0.2 - 0.1053) ** 2]
    ref.close(update.log["unlabeled"], sum(errors) / 3, rtol=1e-3)


def test_labeled_and_unlabeled_images_meet() -> None:
    """Noise in an unlabeled view changes the labeled term: partners come from all images."""
    model = ref.regression()
    before = step(MixMatch(model), given()).log["supervised"]
    other = given()
    other.unlabeled.views["first"] = ref.images(U, 77)
    assert not torch.equal(step(MixMatch(model), other).log["supervised"], before)


def test_guesses_are_made_in_one_forward_without_a_graph() -> None:
    model = ref.regression()
    forwards: list[tuple[int, bool]] = []
    model.register_forward_pre_hook(lambda module, inputs: forwards.append((len(inputs[0]), torch.is_grad_enabled())))
    step(MixMatch(model), given())
    assert forwards == [(2 * U, False), (B + 2 * U, True)]


def test_one_image_each() -> None:
    batch = ref.batch({"weak": ref.images(1, 4)}, {"first": ref.images(1, 5), "second": ref.images(1, 6)}, y=[1])
    update = step(MixMatch(ref.regression()), batch)
    assert bool(update.loss.isfinite())
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.labels.shape == (1,)


# --- sabotage --------------------------------------------------------------------------------------------------------


class Rebuilt(MixMatch):
    """The step once more, in parts that a mistake can be planted in."""

    def guess(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            probs = (self.model(first).softmax(1) + self.model(second).softmax(1)) / 2
            return sharpen(probs, self.temperature)

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return draw_mixing(count, self.alpha, torch.device("cpu"))

    def mix_targets(self, targets: torch.Tensor, partners: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        return mix(targets, partners, shares)

    def brier(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return mse_consistency(logits, targets)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x, first, second = batch.labeled["weak"], batch.unlabeled["first"], batch.unlabeled["second"]
        q = self.guess(first, second)
        images, targets = torch.cat([x, first, second]), torch.cat([F.one_hot(batch.labeled.y, 3).float(), q, q])
        partners, shares = self.draw(len(images))
        logits, targets = self.model(mix(images, partners, shares)), self.mix_targets(targets, partners, shares)
        supervised = soft_cross_entropy(logits[: len(x)], targets[: len(x)])
        unlabeled = self.brier(logits[len(x) :], targets[len(x) :])
        torch.manual_seed(7)
        for update in super().step(batch, progress):
            log = {"supervised": supervised, "unlabeled": unlabeled}
            yield replace(update, loss=supervised + self.unlabeled_weight * unlabeled, log=log)


class SharpenFirst(Rebuilt):
    """Each view's answer is sharpened before the mean."""

    def guess(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            views = [sharpen(self.model(view).softmax(1), self.temperature) for view in (first, second)]
            return (views[0] + views[1]) / 2


class GradientIntoGuesses(Rebuilt):
    """The guesses are trained as well."""

    def guess(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        probs = (self.model(first).softmax(1) + self.model(second).softmax(1)) / 2
        return sharpen(probs, self.temperature)


class SmallerPart(Rebuilt):
    """lambda instead of lambda': an image can be the smaller part of its mixture."""

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        partners, shares = super().draw(count)
        return partners, 1 - shares


class OneShare(Rebuilt):
    """One lambda for the whole batch, as in USB."""

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        partners, shares = super().draw(count)
        return partners, shares[:1].expand(count)


class UnmixedTargets(Rebuilt):
    """Images are mixed, targets not."""

    def mix_targets(self, targets: torch.Tensor, partners: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        return targets


class SumOverClasses(Rebuilt):
    """Summing over classes is C times too strong."""

    def brier(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return mse_consistency(logits, targets) * ref.CLASSES


def test_rebuilding_alone_changes_nothing() -> None:
    check_equation(Rebuilt, ramp=0.0)


@pytest.mark.parametrize(
    "cls", [SharpenFirst, GradientIntoGuesses, SmallerPart, OneShare, UnmixedTargets, SumOverClasses]
)
def test_equation_finds(cls: type[MixMatch]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, ramp=0.0)

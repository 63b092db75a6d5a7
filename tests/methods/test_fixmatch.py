"""FixMatch against equations 3 and 4 of the paper, and ReMixMatch's alignment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.methods import Batch, Progress, Update
from semisup.methods.fixmatch import FixMatch
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
U = {"weak": ref.images(9, 2), "strong": ref.images(9, 3)}


def given() -> Batch:
    return ref.batch({name: view.clone() for name, view in X.items()}, {name: view.clone() for name, view in U.items()})


def guesses(model: Any, running: ref.Array | None, momentum: float) -> tuple[ref.Array, ref.Array | None]:
    """Probabilities on the weak views, aligned if there is a running mean, and the new running mean."""
    probs = ref.softmax(ref.logits(ref.weights(model), U["weak"]))
    if running is None:
        return probs, None
    running = momentum * running + (1 - momentum) * np_mean(probs)
    for row in probs:
        row *= 1 / ref.CLASSES / running
        row /= sum(row)
    return probs, running


def np_mean(probs: ref.Array) -> ref.Array:
    out: ref.Array = sum(probs) / len(probs)
    return out


def check_equation(cls: type[FixMatch], steps: int = 2, **options: Any) -> list[float]:
    """Loss, terms, guesses and gradient of some steps; returns the share of images kept at each."""
    model = ref.regression()
    method = cls(model, **options)
    threshold: float = options.get("threshold", 0.95)
    weight: float = options.get("unlabeled_weight", 1.0)
    momentum = options.get("align_momentum", 0.99)
    running = guesses(model, None, 0)[0][0] * 0 + 1 / ref.CLASSES if options.get("align") else None
    kept = []
    for _ in range(steps):
        probs, running = guesses(model, running, momentum)
        labels = [max(range(ref.CLASSES), key=lambda c, row=row: row[c]) for row in probs]  # type: ignore[misc]
        mask = [float(max(row) >= threshold) for row in probs]

        def unlabeled(w: ref.Array, labels: list[int] = labels, mask: list[float] = mask) -> float:
            losses = ref.cross_entropy(ref.one_hot(labels), ref.softmax(ref.logits(w, U["strong"])))
            return ref.mean([m * loss for m, loss in zip(mask, losses, strict=True)])

        def total(w: ref.Array, unlabeled: Callable[[ref.Array], float] = unlabeled) -> float:
            return ref.labeled_loss(w, X["weak"], given().labeled.y) + weight * unlabeled(w)

        update = ref.first(method, given())
        ref.check_value_and_gradient(update.loss, model, total)
        ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
        ref.close(update.log["supervised"], ref.labeled_loss(ref.weights(model), X["weak"], given().labeled.y))
        ref.close(update.log["kept"], ref.mean(mask))
        assert update.pseudo_labels is not None
        assert update.pseudo_labels.labels.tolist() == labels
        assert update.pseudo_labels.mask.tolist() == mask
        if running is not None:
            assert method.alignment is not None
            ref.close(method.alignment.average.value, running)
        with torch.no_grad():
            model.head.bias.add_(torch.tensor([0.3, 0.0, -0.2]))  # so that the next step is another
        kept.append(ref.mean(mask))
    return kept


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.7},
        {"threshold": 0.7, "unlabeled_weight": 3.0},
        {"threshold": 0.7, "align": True, "align_momentum": 0.5, "prior": "uniform"},
    ],
)
def test_equation(options: dict[str, Any]) -> None:
    assert all(0 < kept < 1 for kept in check_equation(FixMatch, **options)), "the mask is trivial"


def test_threshold_0_keeps_all() -> None:
    assert check_equation(FixMatch, threshold=0.0) == [1, 1]


@pytest.mark.parametrize(("threshold", "kept"), [(0.44, 1.0), (0.46, 0.0)])
def test_alignment_by_hand(threshold: float, kept: float) -> None:
    """(.5, .3, .2) / (.6, .2, .2) is (.83, 1.5, 1): the guess becomes class 1, with probability 1.5 / 3.33 = .45."""
    model = ref.regression(scale=0.0)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    method = FixMatch(model, threshold=threshold, align=True, align_momentum=0.9999999, prior="uniform")
    assert method.alignment is not None
    method.alignment.average.value.copy_(torch.tensor([0.6, 0.2, 0.2]))
    update = ref.first(method, given())
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.labels.tolist() == [1] * 9
    assert float(update.log["kept"]) == kept


def test_above_threshold_1_the_unlabeled_term_is_exactly_0() -> None:
    model = ref.regression()
    update = ref.first(FixMatch(model, threshold=1.01), given())
    unlabeled = update.log["unlabeled"]
    assert float(unlabeled.detach()) == 0.0
    slopes = torch.autograd.grad(unlabeled, [model.head.weight, model.head.bias], retain_graph=True)
    assert all(torch.equal(slope, torch.zeros_like(slope)) for slope in slopes)
    assert torch.equal(update.loss, update.log["supervised"])
    assert float(update.log["kept"]) == 0.0


def test_larger_logits_keep_more() -> None:
    quiet, loud = (FixMatch(ref.regression(scale=scale)) for scale in (0.01, 100.0))
    assert float(ref.first(quiet, given()).log["kept"]) == 0
    assert float(ref.first(loud, given()).log["kept"]) == 1


def check_labels_come_from_the_weak_view(cls: type[FixMatch]) -> None:
    method = cls(ref.regression(), threshold=0.7)
    one, two = given(), given()
    two.unlabeled.views["strong"] = ref.images(9, 77)
    first, second = (ref.first(method, batch).pseudo_labels for batch in (one, two))
    assert first is not None
    assert second is not None
    assert torch.equal(first.labels, second.labels), "labels depend on the strong view"
    assert torch.equal(first.mask, second.mask), "the mask depends on the strong view"


def test_labels_come_from_the_weak_view() -> None:
    check_labels_come_from_the_weak_view(FixMatch)


def test_weak_view_runs_first_and_without_a_graph() -> None:
    """What is detached anyway would cost memory and, in one forward with the rest, time."""
    model = ref.regression()
    forwards: list[tuple[int, bool]] = []
    model.register_forward_pre_hook(lambda module, inputs: forwards.append((len(inputs[0]), torch.is_grad_enabled())))
    ref.run(FixMatch(model), given())
    assert forwards == [(9, False), (5 + 9, True)]


def test_no_gradient_into_the_weak_view() -> None:
    ref.check_no_gradient_into(FixMatch(ref.regression(), threshold=0.5), given(), "unlabeled", "weak")


def test_one_image_each() -> None:
    model = ref.regression()
    one = ref.batch({"weak": ref.images(1, 4)}, {"weak": ref.images(1, 5), "strong": ref.images(1, 6)}, y=[1])
    update = ref.first(FixMatch(model, threshold=0.0), one)
    w = ref.weights(model)
    label = int(ref.logits(w, one.unlabeled["weak"])[0].argmax())
    expected = ref.labeled_loss(w, one.labeled["weak"], [1]) + ref.labeled_loss(w, one.unlabeled["strong"], [label])
    ref.close(update.loss, expected)


def test_weak_views_have_batch_statistics_of_their_own() -> None:
    model = ref.regression()
    norm = nn.BatchNorm1d(ref.PIXELS)
    model.neck.append(norm)
    batch = given()
    method = FixMatch(model, threshold=0.0).train()
    update = ref.first(method, batch)
    assert norm.num_batches_tracked == 2
    assert update.pseudo_labels is not None
    weak = batch.unlabeled["weak"].flatten(1)
    normed = (weak - weak.mean(0)) / (weak.var(0, unbiased=False) + norm.eps).sqrt()
    assert torch.equal(update.pseudo_labels.labels, model.head(normed).argmax(1))


# --- sabotage --------------------------------------------------------------------------------------------------------


class KeptOnly(FixMatch):
    """The mean runs over kept images only."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            share = update.log["kept"].clamp(min=1e-6)
            unlabeled = update.log["unlabeled"] / share
            loss = update.log["supervised"] + self.unlabeled_weight * unlabeled
            yield replace(update, loss=loss, log={**update.log, "unlabeled": unlabeled})


class GradientIntoWeak(FixMatch):
    """Guesses weigh by a confidence that is not detached."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            confidence = self.model(batch.unlabeled["weak"]).softmax(1).amax(1)
            assert update.pseudo_labels is not None
            losses = F.cross_entropy(
                self.model(batch.unlabeled["strong"]), update.pseudo_labels.labels, reduction="none"
            )
            # The value stays what it was: only the gradient gives the mistake away.
            weights = update.pseudo_labels.mask * confidence / confidence.detach()
            unlabeled = (weights * losses).mean()
            loss = update.log["supervised"] + self.unlabeled_weight * unlabeled
            yield replace(update, loss=loss, log={**update.log, "unlabeled": unlabeled})


class StrictThreshold(FixMatch):
    """Keeps what it should drop."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            assert update.pseudo_labels is not None
            yield replace(update, pseudo_labels=replace(update.pseudo_labels, mask=1 - update.pseudo_labels.mask))


@pytest.mark.parametrize("cls", [KeptOnly, GradientIntoWeak, StrictThreshold])
def test_equation_finds(cls: type[FixMatch]) -> None:
    with pytest.raises(AssertionError, match=r"Not equal|At index"):
        check_equation(cls, threshold=0.7)


def test_equation_finds_alignment_after_the_threshold_or_none() -> None:
    class Unaligned(FixMatch):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            self.alignment = None
            return super().step(batch, progress)

    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(Unaligned, threshold=0.7, align=True, align_momentum=0.5, prior="uniform")


def test_gradient_check_finds_gradient_into_the_weak_view() -> None:
    with pytest.raises(AssertionError, match="gradient into"):
        ref.check_no_gradient_into(GradientIntoWeak(ref.regression(), threshold=0.5), given(), "unlabeled", "weak")

"""Pseudo-label against equations 15 and 16 of Lee's paper, with and without a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.methods import Batch, Progress, Update
from semisup.methods.pseudo_label import PseudoLabel
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
U = {"weak": ref.images(9, 2)}
AT_350 = Progress(350, 1000)


def given() -> Batch:
    return ref.batch({name: view.clone() for name, view in X.items()}, {name: view.clone() for name, view in U.items()})


def check_equation(cls: type[PseudoLabel], threshold: float = 0.0, progress: Progress = AT_350) -> float:
    """Loss, terms, guesses and gradient with Lee's constants; returns the share of images kept."""
    model = ref.regression()
    method = cls(model, threshold=threshold, unlabeled_weight=3.0, start=0.1, ramp=0.5)
    guesses = ref.softmax(ref.logits(ref.weights(model), U["weak"]))
    labels = [max(range(ref.CLASSES), key=lambda c, row=row: row[c]) for row in guesses]  # type: ignore[misc]
    mask = [float(max(row) >= threshold) for row in guesses]
    weight = {50: 0.0, 350: 1.5, 700: 3.0}[progress.step]

    def unlabeled(w: ref.Array) -> float:
        losses = ref.cross_entropy(ref.one_hot(labels), ref.softmax(ref.logits(w, U["weak"])))
        return ref.mean([m * loss for m, loss in zip(mask, losses, strict=True)])

    def total(w: ref.Array) -> float:
        return ref.labeled_loss(w, X["weak"], given().labeled.y) + weight * unlabeled(w)

    update = ref.first(method, given(), progress)
    ref.check_value_and_gradient(update.loss, model, total)
    ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
    ref.close(update.log["supervised"], ref.labeled_loss(ref.weights(model), X["weak"], given().labeled.y))
    ref.close(update.log["kept"], ref.mean(mask))
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.labels.tolist() == labels
    assert update.pseudo_labels.mask.tolist() == mask
    return ref.mean(mask)


@pytest.mark.parametrize("step", [50, 350, 700])
@pytest.mark.parametrize("threshold", [0.0, 0.7])
def test_equation(threshold: float, step: int) -> None:
    kept = check_equation(PseudoLabel, threshold, Progress(step, 1000))
    assert kept == 1 if threshold == 0 else 0 < kept < 1


def test_without_a_threshold_the_term_is_minus_log_of_the_confidence() -> None:
    model = ref.regression()
    probs = ref.softmax(ref.logits(ref.weights(model), U["weak"]))
    unlabeled = ref.first(PseudoLabel(model, threshold=0.0), given()).log["unlabeled"]
    ref.close(unlabeled, ref.mean([-math.log(max(row)) for row in probs]))


def test_nothing_kept_is_exactly_0() -> None:
    model = ref.regression()
    update = ref.first(PseudoLabel(model, threshold=1.0, ramp=0.0), given())
    assert float(update.log["unlabeled"].detach()) == 0.0 == float(update.log["kept"])
    assert torch.equal(update.loss, update.log["supervised"])
    assert not ref.gradient(update.log["unlabeled"], model).any()


def test_one_image_each() -> None:
    model = ref.regression()
    one = ref.batch({"weak": ref.images(1, 4)}, {"weak": ref.images(1, 5)}, y=[1])
    update = ref.first(PseudoLabel(model, threshold=0.0, ramp=0.0), one)
    w = ref.weights(model)
    label = int(ref.logits(w, one.unlabeled["weak"])[0].argmax())
    expected = ref.labeled_loss(w, one.labeled["weak"], [1]) + ref.labeled_loss(w, one.unlabeled["weak"], [label])
    ref.close(update.loss, expected)


def test_one_joint_forward() -> None:
    model = ref.regression()
    norm = nn.BatchNorm1d(ref.PIXELS)
    model.neck.append(norm)
    ref.run(PseudoLabel(model), given())
    assert norm.num_batches_tracked == 1


# --- sabotage --------------------------------------------------------------------------------------------------------


def unlabeled_term(term: Callable[[PseudoLabel, Batch, Update], torch.Tensor], *, weight: float = 1.5) -> Any:
    """A Pseudo-label whose unlabeled term is another one."""

    class Other(PseudoLabel):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            for update in super().step(batch, progress):
                unlabeled = term(self, batch, update)
                loss = update.log["supervised"] + weight * unlabeled
                yield replace(update, loss=loss, log={**update.log, "unlabeled": unlabeled})

    return Other


def losses(method: PseudoLabel, batch: Batch, update: Update) -> torch.Tensor:
    assert update.pseudo_labels is not None
    return F.cross_entropy(method.model(batch.unlabeled["weak"]), update.pseudo_labels.labels, reduction="none")


def broadcast(method: PseudoLabel, batch: Batch, update: Update) -> torch.Tensor:
    """google-research/fixmatch: losses (B,) times a mask (B, 1) is (B, B), its mean is mean(loss) * mean(mask)."""
    assert update.pseudo_labels is not None
    return (losses(method, batch, update) * update.pseudo_labels.mask[:, None]).mean()


def kept_only(method: PseudoLabel, batch: Batch, update: Update) -> torch.Tensor:
    """The mean runs over kept images only."""
    return update.log["unlabeled"] / update.log["kept"]


def soft_labels(method: PseudoLabel, batch: Batch, update: Update) -> torch.Tensor:
    """Soft labels without a stop-gradient: this is entropy minimization."""
    assert update.pseudo_labels is not None
    logits = method.model(batch.unlabeled["weak"])
    return (-(logits.softmax(1) * logits.log_softmax(1)).sum(1) * update.pseudo_labels.mask).mean()


def unmasked(method: PseudoLabel, batch: Batch, update: Update) -> torch.Tensor:
    """The threshold is reported and not used."""
    return losses(method, batch, update).mean()


@pytest.mark.parametrize("term", [broadcast, kept_only, soft_labels, unmasked])
def test_equation_finds(term: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(unlabeled_term(term), threshold=0.7)


@pytest.mark.parametrize("step", [50, 350])
def test_equation_finds_full_weight_from_the_start(step: int) -> None:
    eager = unlabeled_term(lambda method, batch, update: update.log["unlabeled"], weight=3.0)
    check_equation(eager, 0.7, Progress(700, 1000))
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(eager, 0.7, Progress(step, 1000))

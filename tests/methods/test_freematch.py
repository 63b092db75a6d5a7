"""FreeMatch against algorithm 1 of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from semisup.losses import pseudo_label_cross_entropy, self_adaptive_fairness
from semisup.methods import Batch, Progress, Update
from semisup.methods.freematch import FreeMatch
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
CLASSES = range(ref.CLASSES)


def given(seed: int = 2, n: int = 9) -> Batch:
    return ref.batch(
        {name: view.clone() for name, view in X.items()},
        {"weak": ref.images(n, seed, scale=0.7), "strong": ref.images(n, seed + 1)},
    )


def running(old: float, new: float, momentum: float) -> float:
    return momentum * old + (1 - momentum) * new


def sum_norm(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]


def fairness(w: ref.Array, strong: torch.Tensor, mask: list[float], p: list[float], h: list[float]) -> float:
    """L_f with means over the whole batch, as the paper has it; SumNorm makes them those over the kept part."""
    probs = ref.softmax(ref.logits(w, strong)).tolist()
    guesses = ref.likeliest(ref.softmax(ref.logits(w, strong)))
    mean_p = [ref.mean([m * row[c] for m, row in zip(mask, probs, strict=True)]) for c in CLASSES]
    mean_h = [ref.mean([m * (g == c) for m, g in zip(mask, guesses, strict=True)]) for c in CLASSES]
    a = sum_norm([p[c] / h[c] for c in CLASSES])
    b = sum_norm([mean_p[c] / mean_h[c] if mean_h[c] else 0.0 for c in CLASSES])
    return sum(a[c] * math.log(b[c]) for c in CLASSES if mean_h[c])


def check_equation(cls: type[FreeMatch], steps: int = 3, **options: Any) -> list[float]:
    """Loss, terms, guesses, gradient and state of some steps; returns the share of images kept at each."""
    model = ref.regression(scale=1.5)
    method = cls(model, **options)
    momentum: float = options.get("momentum", 0.999)
    weight: float = options.get("unlabeled_weight", 1.0)
    fair: float = options.get("fairness_weight", 0.001)
    tau, p, h = 1 / 3, [1 / 3] * 3, [1 / 3] * 3
    kept = []
    for step in range(steps):
        batch = given(2 * step + 2)
        probs = ref.softmax(ref.logits(ref.weights(model), batch.unlabeled["weak"]))
        labels = ref.likeliest(probs)
        tau = running(tau, ref.mean([max(row) for row in probs]), momentum)
        p = [running(p[c], ref.mean([row[c] for row in probs]), momentum) for c in CLASSES]
        h = [running(h[c], ref.mean([float(label == c) for label in labels]), momentum) for c in CLASSES]
        thresholds = [tau * p[c] / max(p) for c in CLASSES]
        mask = [float(max(row) >= thresholds[c]) for row, c in zip(probs, labels, strict=True)]

        def unlabeled(w: ref.Array, b: Batch = batch, labels: list[int] = labels, mask: list[float] = mask) -> float:
            return ref.kept_loss(w, b.unlabeled["strong"], labels, mask)

        def fairness_of(w: ref.Array, b: Batch = batch, m: list[float] = mask, p: Any = p, h: Any = h) -> float:
            return fairness(w, b.unlabeled["strong"], m, p, h)

        def total(
            w: ref.Array,
            unlabeled: Callable[[ref.Array], float] = unlabeled,
            fairness_of: Callable[[ref.Array], float] = fairness_of,
            b: Batch = batch,
        ) -> float:
            return ref.labeled_loss(w, X["weak"], b.labeled.y) + weight * unlabeled(w) + fair * fairness_of(w)

        update = ref.first(method, batch)
        ref.check_value_and_gradient(update.loss, model, total)
        ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
        ref.check_value_and_gradient(update.log["fairness"], model, fairness_of)
        ref.close(update.log["kept"], ref.mean(mask))
        ref.close(update.log["threshold"], ref.mean(thresholds))
        ref.close(method.confidence, tau)
        ref.close(method.expected, np.array(p))
        ref.close(method.histogram, np.array(h))
        assert update.pseudo_labels is not None
        assert update.pseudo_labels.labels.tolist() == labels
        assert update.pseudo_labels.mask.tolist() == mask
        with torch.no_grad():
            model.head.bias.add_(torch.tensor([0.5, 0.0, -0.4]))  # so that the next step is another
        kept.append(ref.mean(mask))
    return kept


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.5},
        {"momentum": 0.5, "unlabeled_weight": 3.0, "fairness_weight": 0.2},
        {"momentum": 0.0, "fairness_weight": 0.0},
    ],
)
def test_equation(options: dict[str, Any]) -> None:
    assert any(0 < kept < 1 for kept in check_equation(FreeMatch, **options)), "the mask is trivial"


def test_the_paper_s_momentum_keeps_all_at_first() -> None:
    assert check_equation(FreeMatch) == [1, 1, 1]


def test_first_threshold_by_hand() -> None:
    """methods.md 3.13, for 3 classes: the mean confidence .6 moves tau from .3333 to .3336."""
    model = ref.regression(scale=0.0)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.6, 0.3, 0.1]).log())
    method = FreeMatch(model)
    update = ref.first(method, given())
    ref.close(method.confidence, 0.999 / 3 + 0.001 * 0.6)
    tau, p = 0.999 / 3 + 0.0006, [0.333 + 0.001 * share for share in (0.6, 0.3, 0.1)]
    ref.close(update.log["threshold"], tau * sum(p) / max(p) / 3)


def test_the_largest_threshold_is_tau() -> None:
    method = FreeMatch(ref.regression(), momentum=0.5)
    ref.first(method, given())
    method.expected.copy_(torch.tensor([0.2, 0.7, 0.1]))
    thresholds = method.confidence * method.expected / method.expected.max()
    assert torch.equal(thresholds.max(), method.confidence)
    assert int(thresholds.argmax()) == 1


def test_one_image_each() -> None:
    model = ref.regression()
    one = ref.batch({"weak": ref.images(1, 4)}, {"weak": ref.images(1, 5), "strong": ref.images(1, 6)}, y=[1])
    update = ref.first(FreeMatch(model), one)
    w = ref.weights(model)
    label = int(ref.logits(w, one.unlabeled["weak"])[0].argmax())
    ref.close(update.log["unlabeled"], ref.labeled_loss(w, one.unlabeled["strong"], [label]))
    ref.close(update.log["fairness"], 0.0)  # one answer: b is 1


def test_nothing_kept() -> None:
    """A threshold above every answer leaves the labeled term alone."""
    model = ref.regression()
    method = FreeMatch(model)
    method.confidence.fill_(9.0)
    update = ref.first(method, given())
    assert float(update.log["kept"]) == 0
    assert torch.equal(update.loss, update.log["supervised"])
    assert not ref.gradient(update.log["fairness"], model).any()


def test_no_gradient_into_the_weak_view() -> None:
    ref.check_no_gradient_into(FreeMatch(ref.regression(), fairness_weight=1.0), given(), "unlabeled", "weak")


# --- sabotage --------------------------------------------------------------------------------------------------------


def altered(change: Callable[[FreeMatch, Batch, Update], Update]) -> type[FreeMatch]:
    """A FreeMatch whose updates are altered before they are handed out."""

    class Altered(FreeMatch):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            for update in super().step(batch, progress):
                yield change(self, batch, update)

    return Altered


def _other_sign(method: FreeMatch, batch: Batch, update: Update) -> Update:
    return replace(update, loss=update.loss - 2 * method.fairness_weight * update.log["fairness"])


def _fairness_of_all(method: FreeMatch, batch: Batch, update: Update) -> Update:
    logits = method.model(batch.unlabeled["strong"])
    fairness = self_adaptive_fairness(logits, torch.ones(len(logits)), method.expected, method.histogram)
    return replace(update, loss=update.loss + method.fairness_weight * (fairness - update.log["fairness"]))


def _histogram_forgotten(method: FreeMatch, batch: Batch, update: Update) -> Update:
    assert update.pseudo_labels is not None
    logits, mask = method.model(batch.unlabeled["strong"]), update.pseudo_labels.mask
    fairness = self_adaptive_fairness(logits, mask, method.expected, torch.ones(ref.CLASSES))
    return replace(update, loss=update.loss + method.fairness_weight * (fairness - update.log["fairness"]))


def _global_threshold(method: FreeMatch, batch: Batch, update: Update) -> Update:
    confidence, labels = method.model(batch.unlabeled["weak"]).softmax(1).max(1)
    mask = (confidence >= method.confidence).float()
    unlabeled = pseudo_label_cross_entropy(method.model(batch.unlabeled["strong"]), labels, mask)
    return replace(update, loss=update.loss + method.unlabeled_weight * (unlabeled - update.log["unlabeled"]))


def _kept_only(method: FreeMatch, batch: Batch, update: Update) -> Update:
    unlabeled = update.log["unlabeled"] / update.log["kept"].clamp(min=1e-6)
    return replace(update, loss=update.loss + method.unlabeled_weight * (unlabeled - update.log["unlabeled"]))


@pytest.mark.parametrize("change", [_other_sign, _fairness_of_all, _histogram_forgotten, _global_threshold, _kept_only])
def test_equation_finds(change: Callable[[FreeMatch, Batch, Update], Update]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(altered(change), momentum=0.5, fairness_weight=0.2)


def test_equation_finds_a_threshold_before_the_guesses_are_taken_in() -> None:
    class Late(FreeMatch):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            stale = {name: buffer.clone() for name, buffer in self.named_buffers(recurse=False)}
            for update in super().step(batch, progress):
                thresholds = stale["confidence"] * stale["expected"] / stale["expected"].max()
                yield replace(update, log={**update.log, "threshold": thresholds.mean()})

    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(Late, momentum=0.5)

"""FlexMatch against algorithm 1 of the paper, counting in python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from semisup.losses import pseudo_label_cross_entropy
from semisup.methods import Batch, Progress, Unlabeled, Update
from semisup.methods.flexmatch import FlexMatch, learning_status
from tests.methods import methods_reference as ref

X = {"weak": ref.images(5, 1)}
N = 80
"""Images in the data set; batches hold rows 50 to 58."""


def given(seed: int = 2) -> Batch:
    return ref.batch(
        {name: view.clone() for name, view in X.items()},
        {"weak": ref.images(9, seed, scale=0.7), "strong": ref.images(9, seed + 1)},
    )


def status(latest: list[int], warmup: bool) -> list[float]:
    """beta, from the paper's definition of sigma."""
    sigma = [sum(1 for c in latest if c == k) for k in range(ref.CLASSES)]
    unused = len(latest) - sum(sigma)
    most = max(*sigma, unused) if warmup else max(*sigma, 1)
    return [s / most for s in sigma]


def check_equation(cls: type[FlexMatch], steps: int = 4, **options: Any) -> list[float]:
    """Loss, terms, guesses, gradient and memory of some steps; returns the share of images kept at each."""
    model = ref.regression(scale=1.5)
    method = cls(model, N, N, **options)
    threshold: float = options.get("threshold", 0.95)
    weight: float = options.get("unlabeled_weight", 1.0)
    latest = [-1] * N
    kept = []
    for step in range(steps):
        batch = given(2 * step)
        # The second half of the batch is new, the first seen again: guesses must be able to change their minds.
        batch.unlabeled.index[5:] += 9 * step % 20
        rows = batch.unlabeled.index.tolist()
        probs = ref.softmax(ref.logits(ref.weights(model), batch.unlabeled["weak"]))
        labels = ref.likeliest(probs)
        beta = status(latest, options.get("warmup", True))
        thresholds = [threshold * b / (2 - b) for b in beta]
        mask = [float(max(row) >= thresholds[c]) for row, c in zip(probs, labels, strict=True)]
        for row, c, p in zip(rows, labels, probs, strict=True):
            if max(p) >= threshold:
                latest[row] = c

        def unlabeled(w: ref.Array, b: Batch = batch, labels: list[int] = labels, mask: list[float] = mask) -> float:
            return ref.kept_loss(w, b.unlabeled["strong"], labels, mask)

        def total(w: ref.Array, unlabeled: Callable[[ref.Array], float] = unlabeled, b: Batch = batch) -> float:
            return ref.labeled_loss(w, X["weak"], b.labeled.y) + weight * unlabeled(w)

        update = ref.first(method, batch)
        ref.check_value_and_gradient(update.loss, model, total)
        ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
        ref.close(update.log["kept"], ref.mean(mask))
        ref.close(update.log["threshold"], ref.mean(thresholds))
        assert update.pseudo_labels is not None
        assert update.pseudo_labels.labels.tolist() == labels
        assert update.pseudo_labels.mask.tolist() == mask
        assert method.latest.tolist() == latest
        with torch.no_grad():
            model.head.bias.add_(torch.tensor([0.5, 0.0, -0.4]))  # so that the next step is another
        kept.append(ref.mean(mask))
    return kept


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.9, "warmup": False},
        {"threshold": 0.9, "warmup": False, "unlabeled_weight": 3.0},
    ],
)
def test_equation(options: dict[str, Any]) -> None:
    kept = check_equation(FlexMatch, **options)
    assert kept[0] == 1, "before the first confident guess every image is used"
    assert any(0 < share < 1 for share in kept), "the mask is trivial"


def test_warmup_keeps_the_first_thresholds_low() -> None:
    """A handful of 80 images has been guessed, so beta is at most 9 / 71 and hardly anything falls below."""
    assert check_equation(FlexMatch, threshold=0.9) == [1, 1, 1, 1]


def test_threshold_0_keeps_all() -> None:
    assert check_equation(FlexMatch, threshold=0.0) == [1, 1, 1, 1]


def test_learning_status_by_hand() -> None:
    """methods.md 3.12: sigma (50, 10, 0, 5) of 1,000 images."""
    latest = torch.full((1000,), -1)
    latest[:50], latest[50:60], latest[60:65] = 0, 1, 3
    torch.testing.assert_close(learning_status(latest, 4, 1000), torch.tensor([50, 10, 0, 5]) / 935)
    torch.testing.assert_close(learning_status(latest, 4, 0), torch.tensor([1, 0.2, 0, 0.1]))


@pytest.mark.parametrize("warmup", [True, False])
def test_learning_status_of_nothing_and_of_everything(warmup: bool) -> None:
    assert learning_status(torch.full((7,), -1), 3, 7 * warmup).tolist() == [0, 0, 0]
    assert learning_status(torch.full((7,), 2), 3, 7 * warmup).tolist() == [0, 0, 1]
    assert learning_status(torch.tensor([1]), 2, int(warmup)).tolist() == [0, 1]


def test_images_that_no_batch_shows_do_not_keep_thresholds_low() -> None:
    """`batch.pool` and `pool.keep` leave images out, which would be without a guess until the end of the run."""
    method = FlexMatch(ref.regression(), N, 9, threshold=0.8)
    method.latest[50:59] = torch.tensor([0] * 6 + [1] * 2 + [2])
    update = ref.first(method, given())
    ref.close(update.log["threshold"], 0.8 * (1 + (1 / 3) / (2 - 1 / 3) + (1 / 6) / (2 - 1 / 6)) / 3)


@pytest.mark.parametrize(
    ("others", "mapped"),
    [(0, 0.0), (1, 1 / 7), (2, 1 / 3), (3, 0.6), (4, 1.0)],
)
def test_convex_mapping_by_hand(others: int, mapped: float) -> None:
    """M(0, .25, .5, .75, 1) = (0, .1429, .3333, .6, 1): the second class has 0 to 4 images to the first one's 4."""
    method = FlexMatch(ref.regression(), 8, 8, threshold=0.8)
    method.latest.copy_(torch.tensor([0] * 4 + [1] * others + [-1] * (4 - others)))
    batch = given()
    batch.unlabeled.index = torch.arange(8).roll(1).repeat(2)[:9]
    update = ref.first(method, batch)
    ref.close(update.log["threshold"], 0.8 * (1 + mapped + 0) / 3)


def test_one_image_each() -> None:
    model = ref.regression()
    one = ref.batch({"weak": ref.images(1, 4)}, {"weak": ref.images(1, 5), "strong": ref.images(1, 6)}, y=[1])
    update = ref.first(FlexMatch(model, N, N), one)
    w = ref.weights(model)
    label = int(ref.logits(w, one.unlabeled["weak"])[0].argmax())
    expected = ref.labeled_loss(w, one.labeled["weak"], [1]) + ref.labeled_loss(w, one.unlabeled["strong"], [label])
    ref.close(update.loss, expected)


def test_no_gradient_into_the_weak_view() -> None:
    ref.check_no_gradient_into(FlexMatch(ref.regression(), N, N), given(), "unlabeled", "weak")


# --- sabotage --------------------------------------------------------------------------------------------------------


class BatchRows(FlexMatch):
    """The memory is indexed by the place in the batch instead of the row in the data set."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled
        yield from super().step(Batch(batch.labeled, Unlabeled(u.views, torch.arange(len(u.index)))), progress)


class MovingBar(FlexMatch):
    """Confident is what passes the class's own, lower threshold."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        before = self.latest.clone()
        for update in super().step(batch, progress):
            assert update.pseudo_labels is not None
            index, labels, mask = update.pseudo_labels.index, update.pseudo_labels.labels, update.pseudo_labels.mask
            self.latest.copy_(before.index_copy(0, index, torch.where(mask.bool(), labels, before[index])))
            yield update


class Forgetful(FlexMatch):
    """Only the batch's own guesses count: an image that is confident no longer is forgotten."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        self.latest.index_fill_(0, batch.unlabeled.index, -1)
        yield from super().step(batch, progress)


class KeptOnly(FlexMatch):
    """The mean runs over kept images only."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            unlabeled = update.log["unlabeled"] / update.log["kept"].clamp(min=1e-6)
            yield replace(update, loss=update.log["supervised"] + self.unlabeled_weight * unlabeled)


class OneThreshold(FlexMatch):
    """FixMatch: the same threshold for all classes."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            confidence, labels = self.model(batch.unlabeled["weak"]).softmax(1).max(1)
            mask = (confidence >= self.threshold).float()
            unlabeled = pseudo_label_cross_entropy(self.model(batch.unlabeled["strong"]), labels, mask)
            yield replace(update, loss=update.log["supervised"] + self.unlabeled_weight * unlabeled)


@pytest.mark.parametrize("cls", [BatchRows, MovingBar, Forgetful, KeptOnly, OneThreshold])
def test_equation_finds(cls: type[FlexMatch]) -> None:
    with pytest.raises(AssertionError, match=r"Not equal|At index"):
        check_equation(cls, threshold=0.9, warmup=False)

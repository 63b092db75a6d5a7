"""SimMatch against the paper's equations: the bank is a dictionary, similarities are loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import neighbor_predictions, similarity, soft_cross_entropy, unfold_classes
from semisup.methods import Batch, Labeled, Progress, Update
from semisup.methods.simmatch import SimMatch
from tests.methods import methods_reference as ref

U = 6
N = 80
"""Images in the data set."""
LABEL_OF = {71: 0, 20: 1, 43: 2, 5: 0, 66: 1}
"""The labeled images."""
SHOWN = [[43, 71, 20], [71, 5, 71], [66, 43, 43], [20, 66, 5], [5, 5, 5]]
"""Which of them each step shows, some twice: all are known after the third."""
CLASSES = range(ref.CLASSES)


def given(step: int) -> Batch:
    rows, seed = SHOWN[step], 10 * step
    x = Labeled({"weak": ref.images(3, seed)}, torch.tensor([LABEL_OF[row] for row in rows]), torch.tensor(rows))
    u = {"weak": ref.images(U, seed + 1, scale=0.7), "strong": ref.images(U, seed + 2)}
    return Batch(x, ref.batch(None, u).unlabeled)


def build(cls: type[SimMatch] = SimMatch, **options: Any) -> SimMatch:
    return cls(ref.regression(scale=1.2), N, len(LABEL_OF), **{"embedding": 5, "prior": "uniform", **options})


def unit(z: ref.Array) -> ref.Array:
    return z / math.sqrt(sum(value * value for value in z))


def embed(layers: list[ref.Array], images: Tensor) -> list[ref.Array]:
    """Unit vectors, image by image; the features of the regression are the pixels."""
    out = []
    for pixels in images.detach().double().flatten(1).numpy():
        hidden = np.array([max(value, 0.0) for value in layers[0] @ pixels + layers[1]])
        out.append(unit(layers[2] @ hidden + layers[3]))
    return out


def shares(z: ref.Array, bank: dict[int, ref.Array], temperature: float) -> dict[int, float]:
    powers = {row: math.exp(float(z @ other) / temperature) for row, other in bank.items()}
    return {row: power / sum(powers.values()) for row, power in powers.items()}


def check_equation(cls: type[SimMatch], **options: Any) -> list[float]:
    """Loss, terms, guesses, gradients and bank of five steps; returns the share of images kept at each."""
    method = build(cls, **options)
    model = method.model
    threshold, momentum = options.get("threshold", 0.95), options.get("bank_momentum", 0.7)
    alpha, temperature = options.get("smoothing", 0.9), options.get("temperature", 0.1)
    l_u, l_i = options.get("unlabeled_weight", 1.0), options.get("instance_weight", 1.0)
    recent: list[list[float]] = []
    bank: dict[int, ref.Array] = {}
    kept = []
    for step in range(len(SHOWN)):
        batch = given(step)
        layers = [p.detach().double().numpy() for p in method.embed.parameters()]
        x, u, y = batch.labeled["weak"], batch.unlabeled, batch.labeled.y.tolist()
        probs = ref.softmax(ref.logits(ref.weights(model), u["weak"]))
        recent.append([ref.mean([row[c] for row in probs]) for c in CLASSES])
        usual = [ref.mean([row[c] for row in recent]) for c in CLASSES]
        scaled = [[row[c] * (1 / 3 + 1e-6) / (usual[c] + 1e-6) for c in CLASSES] for row in probs]
        aligned = [[p / sum(row) for p in row] for row in (scaled if options.get("align", True) else probs)]
        q, r = aligned, [dict.fromkeys(bank, 0.0)] * U
        known = len(bank) == len(LABEL_OF)
        if known:
            q, r = [], []
            for row, z in zip(aligned, embed(layers, u["weak"]), strict=True):
                near = shares(z, bank, temperature)
                by_class = [sum(s for i, s in near.items() if LABEL_OF[i] == c) for c in CLASSES]
                q.append([alpha * row[c] + (1 - alpha) * by_class[c] for c in CLASSES])
                weighed = {i: s * row[LABEL_OF[i]] for i, s in near.items()}
                r.append({i: value / sum(weighed.values()) for i, value in weighed.items()})
        labels = ref.likeliest(np.array(q))
        mask = [float(max(row) >= threshold) for row in q]

        def unlabeled(w: ref.Array, q: Any = q, mask: list[float] = mask, u: Any = u) -> float:
            losses = ref.cross_entropy(np.array(q), ref.softmax(ref.logits(w, u["strong"])))
            return ref.mean([m * loss for m, loss in zip(mask, losses, strict=True)])

        def instance(last_layer: ref.Array, r: Any = r, u: Any = u, layers: Any = layers, bank: Any = bank) -> float:
            strong = [shares(z, bank, temperature) for z in embed([*layers[:2], last_layer, layers[3]], u["strong"])]
            return ref.mean([-sum(t[i] * math.log(s[i]) for i in s) for t, s in zip(r, strong, strict=True)])

        def total(
            w: ref.Array,
            unlabeled: Callable[[ref.Array], float] = unlabeled,
            x: Tensor = x,
            y: list[int] = y,
            c: float = l_i * instance(layers[2]),
        ) -> float:
            return ref.labeled_loss(w, x, y) + l_u * unlabeled(w) + c

        update = ref.first(method, batch)
        ref.check_value_and_gradient(update.log["unlabeled"], model, unlabeled)
        ref.close(update.log["instance"], instance(layers[2]))
        ref.check_value_and_gradient(update.loss, model, total)
        last_layer = method.embed[2]
        assert isinstance(last_layer, nn.Linear)
        (slope,) = torch.autograd.grad(update.loss, last_layer.weight)
        ref.close(slope, l_i * ref.numeric_gradient(instance, layers[2]), rtol=1e-3, atol=1e-4)
        ref.close(update.log["kept"], ref.mean(mask))
        assert update.pseudo_labels is not None
        assert update.pseudo_labels.labels.tolist() == labels
        assert update.pseudo_labels.mask.tolist() == mask
        z_labeled = embed(layers, x)
        for row in dict.fromkeys(SHOWN[step]):
            mean = unit(np.sum([z for z, i in zip(z_labeled, SHOWN[step], strict=True) if i == row], axis=0))
            bank[row] = unit(momentum * bank[row] + (1 - momentum) * mean) if row in bank else mean
        for row, z in bank.items():
            at = int(method.row_in_bank[row])
            ref.close(method.bank[at], z)
            assert int(method.bank_labels[at]) == LABEL_OF[row]
        with torch.no_grad():
            model.head.bias.add_(torch.tensor([0.5, 0.0, -0.4]))  # so that the next step is another
            last_layer.weight.mul_(-0.7)
        kept.append(ref.mean(mask))
    return kept


OPTIONS = {"threshold": 0.6, "smoothing": 0.6}


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        {**OPTIONS, "unlabeled_weight": 3.0, "instance_weight": 0.5, "temperature": 0.3, "bank_momentum": 0.0},
        {**OPTIONS, "align": False},
    ],
)
def test_equation(options: dict[str, Any]) -> None:
    kept = check_equation(SimMatch, **options)
    assert any(0 < share < 1 for share in kept), "the mask is trivial"


def test_smoothing_of_1_leaves_the_predictions_as_they_are() -> None:
    assert check_equation(SimMatch, threshold=0.6, smoothing=1.0)


def test_every_labeled_image_gets_a_row_of_its_own_and_keeps_it() -> None:
    method = build()
    seen: dict[int, int] = {}
    for rows in SHOWN:
        method.remember(torch.randn(3, 5), torch.tensor([LABEL_OF[row] for row in rows]), torch.tensor(rows))
        for row in rows:
            assert seen.setdefault(row, int(method.row_in_bank[row])) == int(method.row_in_bank[row])
    assert sorted(seen.values()) == [0, 1, 2, 3, 4]
    assert int((method.row_in_bank >= 0).sum()) == len(LABEL_OF)
    torch.testing.assert_close(method.bank.norm(dim=1), torch.ones(5))


def test_nothing_is_compared_before_every_labeled_image_is_known() -> None:
    method = build()
    instances = [float(ref.first(method, given(step)).log["instance"].detach()) for step in range(4)]
    assert instances[:3] == [0, 0, 0]
    assert instances[3] > 0


def test_neighbors_decide_alone_without_smoothing() -> None:
    """The bank has one image of class 2 where all embeddings are, and the others opposite."""
    method = build(smoothing=0.0, threshold=0.9)
    with torch.no_grad():
        for p in method.embed.parameters():
            p.zero_()
        list(method.embed.parameters())[-1].copy_(torch.eye(5)[0])  # the last bias
    method.bank[:, 0] = torch.tensor([-1.0, -1.0, 1.0, -1.0, -1.0])
    method.bank_labels.copy_(torch.tensor([0, 1, 2, 0, 1]))
    method.row_in_bank[list(LABEL_OF)] = torch.arange(5)
    update = ref.first(method, given(0))
    assert update.pseudo_labels is not None
    assert update.pseudo_labels.labels.tolist() == [2] * U
    assert update.pseudo_labels.mask.tolist() == [1] * U


def test_no_gradient_into_the_weak_view() -> None:
    method = build()
    for step in range(3):
        ref.first(method, given(step))
    ref.check_no_gradient_into(method, given(3), "unlabeled", "weak")


def test_labeled_batch_without_index_is_refused() -> None:
    batch = given(0)
    batch.labeled.index = None
    with pytest.raises(SemisupError, match="simmatch: the labeled batch has no index"):
        ref.first(build(), batch)


def test_one_image_each() -> None:
    views = {"weak": ref.images(1, 5), "strong": ref.images(1, 6)}
    batch = ref.batch({"weak": ref.images(1, 4)}, views, y=[1])
    method = SimMatch(ref.regression(), N, 1, threshold=0.0)
    for _ in range(2):
        update = ref.first(method, batch)
        assert float(update.log["instance"].detach()) == 0  # there is nobody to confuse it with
        assert bool(update.loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


class BatchRows(SimMatch):
    """The bank is indexed by the place in the batch instead of the row in the data set."""

    def remember(self, z: Tensor, labels: Tensor, index: Tensor) -> None:
        self.bank[: len(z)] = F.normalize(z, dim=1)
        self.bank_labels[: len(z)] = labels


class UnlabeledRows(SimMatch):
    """The bank is indexed by the rows of the unlabeled images."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x = Labeled(batch.labeled.views, batch.labeled.y, batch.unlabeled.index[:3] % 5)
        yield from super().step(Batch(x, batch.unlabeled), progress)


class UsbBank(SimMatch):
    """USB: normalizes every feature over the batch, not every embedding."""

    def remember(self, z: Tensor, labels: Tensor, index: Tensor) -> None:
        super().remember(z, labels, index)
        rows = self.row_in_bank[index]
        self.bank[rows] = F.normalize(self.bank[rows], dim=0)


class RandomStart(SimMatch):
    """USB: the first embedding is averaged with the random numbers that the bank began with."""

    def remember(self, z: Tensor, labels: Tensor, index: Tensor) -> None:
        if int(self.bank_labels.max()) < 0:
            self.bank.normal_()
        self.bank_labels.clamp_(min=0)
        super().remember(z, labels, index)


class NewestOnly(SimMatch):
    """The bank forgets at once."""

    def remember(self, z: Tensor, labels: Tensor, index: Tensor) -> None:
        before, self.bank_momentum = self.bank_momentum, 0.0
        super().remember(z, labels, index)
        self.bank_momentum = before


class Uncalibrated(SimMatch):
    """The classifier has no say in the target of the similarities."""

    def correct(self, probs: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        guesses, _ = super().correct(probs, z)
        return guesses, similarity(z, self.bank, self.temperature).softmax(1)


class UnfoldedGuesses(SimMatch):
    """Similarities are corrected first and then correct the guesses, which thereby count twice."""

    def correct(self, probs: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        _, neighbors = super().correct(probs, z)
        answers = neighbor_predictions(neighbors, F.one_hot(self.bank_labels.clamp(min=0), probs.shape[1]))
        return torch.lerp(answers, probs, self.smoothing), neighbors


class SmoothedTarget(SimMatch):
    """The target is unfolded with guesses that neighbors have corrected already."""

    def correct(self, probs: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        guesses, _ = super().correct(probs, z)
        shares = similarity(z, self.bank, self.temperature).softmax(1)
        return guesses, unfold_classes(shares, guesses, self.bank_labels.clamp(min=0))


class GradientIntoTarget(SimMatch):
    """The weak view learns to be resembled."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        before = self.bank.clone()
        for update in super().step(batch, progress):
            weak, strong = (
                similarity(self.embed(self.model.features(batch.unlabeled[view])), before, self.temperature)
                for view in ("weak", "strong")
            )
            extra = soft_cross_entropy(strong.detach(), weak.softmax(1))
            yield replace(update, loss=update.loss + extra - extra.detach())


@pytest.mark.parametrize(
    "cls",
    [
        BatchRows,
        UnlabeledRows,
        UsbBank,
        RandomStart,
        NewestOnly,
        Uncalibrated,
        UnfoldedGuesses,
        SmoothedTarget,
        GradientIntoTarget,
    ],
)
def test_equation_finds(cls: type[SimMatch]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, **OPTIONS)

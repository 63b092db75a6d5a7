"""ReMixMatch against algorithm 1 of the paper, mixing by hand what `draw_mixing` drew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.augment import draw_mixing
from semisup.losses import align_distribution, sharpen
from semisup.methods import Batch, Progress, Update
from semisup.methods.remixmatch import ReMixMatch
from tests.methods import methods_reference as ref

B, U = 5, 6
HALF = Progress(5, 10)
CLASSES = range(ref.CLASSES)


def given(strong_views: int = 2, seed: int = 10) -> Batch:
    views = {"weak": ref.images(U, seed)} | {f"strong_{k}": ref.images(U, seed + k) for k in range(1, strong_views + 1)}
    return ref.batch({"strong": ref.images(B, 1)}, views, y=[0, 1, 0, 2, 0])


def step(method: ReMixMatch, batch: Batch, progress: Progress = HALF) -> Update:
    torch.manual_seed(7)
    return ref.first(method, batch, progress)


def turned(image: Tensor, quarters: int) -> Tensor:
    """(1, 2, 2) turned counter-clockwise: the right column becomes the top row."""
    for _ in range(quarters):
        (a, b), (c, d) = image[0].tolist()
        image = torch.tensor([[[b, d], [a, c]]])
    return image


def rotation_loss(method: ReMixMatch, images: Tensor) -> float:
    """Cross-entropy of telling image i's i mod 4 quarter turns; the features of the regression are the pixels."""
    head = np.concatenate(
        [method.rotation_head.weight.detach().double().numpy(), method.rotation_head.bias.detach()[:, None].numpy()], 1
    )
    losses = []
    for i, image in enumerate(images):
        pixels = turned(image, i % 4).flatten().tolist()
        z = [sum(w * p for w, p in zip(row[:-1], pixels, strict=True)) + row[-1] for row in head]
        losses.append(math.log(sum(math.exp(value) for value in z)) - z[i % 4])
    return ref.mean(losses)


def check_equation(cls: type[ReMixMatch], steps: int = 3, progress: Progress = HALF, **options: Any) -> None:
    """Loss, terms, guesses, gradient and memory of some steps."""
    model = ref.regression()
    strong_views = options.get("strong_views", 2)
    method = cls(model, **options)
    recent = [[1 / 3] * 3] * 128
    counts_of_labels = [1.0] * 3
    for count in range(steps):
        batch = given(strong_views, seed=10 * (count + 1))
        u = batch.unlabeled
        strong = [u[f"strong_{k}"] for k in range(1, strong_views + 1)]
        probs = ref.softmax(ref.logits(ref.weights(model), u["weak"]))
        expected = [ref.mean([row[c] for row in recent]) for c in CLASSES]
        counts_of_labels = [old + new for old, new in zip(counts_of_labels, [3, 1, 1], strict=True)]  # of y
        shares_of_labels = [count / sum(counts_of_labels) for count in counts_of_labels]
        rows = [[row[c] * (shares_of_labels[c] + 1e-6) / (expected[c] + 1e-6) for c in CLASSES] for row in probs]
        rows = [[p / sum(row) for p in row] for row in rows]
        rows = [[p ** (1 / options.get("temperature", 0.5)) for p in row] for row in rows]
        q = np.array([[p / sum(row) for p in row] for row in rows])
        recent = [*recent[1:], [ref.mean([row[c] for row in probs]) for c in CLASSES]]

        torch.manual_seed(7)
        partners, shares = draw_mixing(B + (1 + strong_views) * U, options.get("alpha", 0.75), torch.device("cpu"))
        images = [image for view in (batch.labeled["strong"], u["weak"], *strong) for image in view]
        targets = [*ref.one_hot(batch.labeled.y), *[row for _ in range(1 + strong_views) for row in q]]
        pairs = [(i, int(j), float(shares[i])) for i, j in enumerate(partners)]
        mixed = torch.stack([share * images[i] + (1 - share) * images[j] for i, j, share in pairs])
        mixed_targets = np.array([share * targets[i] + (1 - share) * targets[j] for i, j, share in pairs])

        def h(w: ref.Array, target: ref.Array, images: Tensor) -> float:
            return ref.mean(ref.cross_entropy(target, ref.softmax(ref.logits(w, images))))

        terms: dict[str, Any] = {
            "supervised": lambda w, t=mixed_targets, x=mixed, h=h: h(w, t[:B], x[:B]),
            "unlabeled": lambda w, t=mixed_targets, x=mixed, h=h: h(w, t[B:], x[B:]),
            "strong": lambda w, q=q, x=strong[0], h=h: h(w, q, x),
        }
        rotation = rotation_loss(method, strong[0])
        ramp = options.get("ramp", 1 / 64)
        up = min(progress.fraction / ramp, 1) if ramp else 1
        l_u, l_s = (up * options.get(f"{name}_weight", w) for name, w in (("unlabeled", 1.5), ("strong", 0.5)))
        constant = options.get("rotation_weight", 0.5) * rotation

        def total(w: ref.Array, terms: Any = terms, l_u: float = l_u, l_s: float = l_s, c: float = constant) -> float:
            return float(terms["supervised"](w) + l_u * terms["unlabeled"](w) + l_s * terms["strong"](w) + c)

        update = step(method, batch, progress)
        for name, term in terms.items():
            ref.check_value_and_gradient(update.log[name], model, term)
        ref.close(update.log["rotation"], rotation)
        ref.check_value_and_gradient(update.loss, model, total)
        ref.close(method.alignment.recent, np.array(recent))
        ref.close(method.alignment.prior.counts, np.array(counts_of_labels))
        assert update.pseudo_labels is not None
        assert update.pseudo_labels.labels.tolist() == ref.likeliest(q)
        with torch.no_grad():
            model.head.bias.add_(torch.tensor([0.5, 0.0, -0.4]))  # so that the next step is another


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strong_views": 1, "temperature": 0.9, "alpha": 0.2, "unlabeled_weight": 3.0},
        {"strong_views": 3, "strong_weight": 2.0, "rotation_weight": 4.0, "ramp": 0.8},
    ],
)
def test_equation(options: dict[str, Any]) -> None:
    check_equation(ReMixMatch, **options)


def test_rotation_at_chance_is_log_4_and_does_not_ramp() -> None:
    method = ReMixMatch(ref.regression(), rotation_weight=2.0)
    torch.nn.init.zeros_(method.rotation_head.weight)
    torch.nn.init.zeros_(method.rotation_head.bias)
    update = step(method, given(), Progress(0, 10))
    ref.close(update.log["rotation"], math.log(4))
    torch.testing.assert_close(update.loss, update.log["supervised"] + 2 * update.log["rotation"])


def test_rotation_trains_the_network_and_its_own_head() -> None:
    torch.manual_seed(0)
    model = ref.regression()
    model.neck.append(torch.nn.Linear(ref.PIXELS, ref.PIXELS))
    method = ReMixMatch(model)
    rotation = step(method, given()).log["rotation"]
    weights = [model.neck[0].weight, method.rotation_head.weight, method.rotation_head.bias]
    assert all(bool(slope.any()) for slope in torch.autograd.grad(rotation, weights))


def test_the_memory_forgets_after_128_batches() -> None:
    model = ref.regression(scale=0.0)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    method = ReMixMatch(model, alpha=0.0)
    labels, recent = torch.tensor([0, 1, 2]), method.alignment.recent
    mine = torch.tensor([0.5, 0.3, 0.2])
    for count in range(128):
        torch.testing.assert_close(recent.mean(0), (count * mine + (128 - count) / 3) / 128)
        method.guess(given().unlabeled["weak"], labels)
    torch.testing.assert_close(recent.mean(0), mine)
    # What the model always says is now worth nothing: aligned to the labels' shares, which are equal.
    ref.close(method.guess(given().unlabeled["weak"], labels), np.full((U, 3), 1 / 3), rtol=1e-4)


def test_the_first_guesses_are_not_aligned() -> None:
    model = ref.regression()
    weak = given().unlabeled["weak"]
    probs = torch.tensor(ref.softmax(ref.logits(ref.weights(model), weak)))
    got = ReMixMatch(model).guess(weak, torch.tensor([0, 1, 2]))
    ref.close(got, sharpen(probs, 0.5).numpy())


def test_labels_come_from_the_weak_view_alone() -> None:
    one, two = given(), given()
    two.unlabeled.views["strong_1"] = ref.images(U, 77)
    first, second = (step(ReMixMatch(ref.regression()), batch).pseudo_labels for batch in (one, two))
    assert first is not None
    assert second is not None
    assert torch.equal(first.labels, second.labels)


def check_forwards(cls: type[ReMixMatch]) -> None:
    """The guesses without a graph, the mixed images, the strong view, its turns; BatchNorm remembers the first two."""
    model = ref.regression()
    norm = torch.nn.BatchNorm1d(ref.PIXELS)
    model.neck.append(norm)
    forwards: list[tuple[int, bool, int]] = []
    norm.register_forward_hook(
        lambda module, inputs, _: forwards.append(
            (len(inputs[0]), torch.is_grad_enabled(), int(module.num_batches_tracked))
        )
    )
    step(cls(model).train(), given())
    assert forwards == [(U, False, 1), (B + 3 * U, True, 2), (U, True, 2), (U, True, 2)]


def test_strong_views_and_turns_have_forwards_and_statistics_of_their_own() -> None:
    check_forwards(ReMixMatch)


def test_forwards_find_remembered_turns() -> None:
    class Remembered(ReMixMatch):
        def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
            self.model(batch.unlabeled["strong_1"])
            yield from super().step(batch, progress)

    with pytest.raises(AssertionError):
        check_forwards(Remembered)


def test_one_image_each() -> None:
    views = {"weak": ref.images(1, 5), "strong_1": ref.images(1, 6)}
    batch = ref.batch({"strong": ref.images(1, 4)}, views, y=[1])
    update = step(ReMixMatch(ref.regression(), strong_views=1), batch)
    assert bool(update.loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


def shares(method: ReMixMatch) -> Tensor:
    counts = method.alignment.prior.counts
    return counts / counts.sum()


class SlowLabels(ReMixMatch):
    """The reference code: class shares of the labels that begin uniform and forget over 1,000 steps."""

    def guess(self, weak: Tensor, labels: Tensor) -> Tensor:
        self.alignment.prior.counts.fill_(300.0)
        return super().guess(weak, labels)


class SharpenFirst(ReMixMatch):
    """Sharpen, then align: the wrong order."""

    def guess(self, weak: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            before = self.alignment.recent.mean(0)
            super().guess(weak, labels)
            return align_distribution(sharpen(self.model(weak).softmax(1), self.temperature), shares(self), before)


class Unaligned(ReMixMatch):
    """No distribution alignment."""

    def guess(self, weak: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            super().guess(weak, labels)
            return sharpen(self.model(weak).softmax(1), self.temperature)


class AlignedMemory(ReMixMatch):
    """Remembers what it made of the answers instead of the answers."""

    def guess(self, weak: Tensor, labels: Tensor) -> Tensor:
        guesses = super().guess(weak, labels)
        self.alignment.recent[-1] = guesses.mean(0)
        return guesses


class GradientIntoGuesses(ReMixMatch):
    """The guesses are trained as well."""

    def guess(self, weak: Tensor, labels: Tensor) -> Tensor:
        before = self.alignment.recent.mean(0)
        super().guess(weak, labels)
        return sharpen(align_distribution(self.model(weak).softmax(1), shares(self), before), self.temperature)


class RampedRotation(ReMixMatch):
    """Everything but the labeled term rises."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        for update in super().step(batch, progress):
            off = (1 - min(progress.fraction / self.ramp, 1)) * self.rotation_weight
            yield replace(update, loss=update.loss - off * update.log["rotation"])


class MixedAnchor(ReMixMatch):
    """The fourth term takes another strong view than the first."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        u = batch.unlabeled.views
        for update in super().step(batch, progress):
            assert update.pseudo_labels is not None
            strong = F.cross_entropy(self.model(u["strong_2"]), update.pseudo_labels.labels)
            yield replace(update, log={**update.log, "strong": strong})


@pytest.mark.parametrize(
    "cls", [SlowLabels, SharpenFirst, Unaligned, AlignedMemory, GradientIntoGuesses, RampedRotation, MixedAnchor]
)
def test_equation_finds(cls: type[ReMixMatch]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, ramp=0.8)

"""Learning to count against the paper's equation, on images halved with the same draws."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.augment import halve
from semisup.errors import SemisupError
from semisup.losses import counting
from semisup.methods import Batch, Progress, Update
from semisup.methods.counting import Counting
from tests.methods import methods_reference as ref
from tests.methods import pretext_reference as pretext

N, SIDE, COUNTS = 4, 8, 5
U = pretext.images(N, SIDE)


def build(cls: type[Counting], view: Tensor = U, margin: float = 10.0) -> Counting:
    return cls(pretext.encoder((SIDE // 2) ** 2, view.shape[1]), counts=COUNTS, margin=margin)


def step(method: Counting, view: Tensor = U) -> Update:
    torch.manual_seed(7)
    return ref.first(method, pretext.given(view))


def check_equation(cls: type[Counting], margin: float = 10.0) -> None:
    torch.manual_seed(7)
    halves = pretext.double(halve(U))
    pieces = U.double().numpy()[:, 0]

    def reference(w: list[ref.Array]) -> float:
        """Of weight and bias of the encoder and of the counts."""

        def count(pixels: ref.Array) -> ref.Array:
            raw: ref.Array = w[2] @ (w[0] @ pixels.flatten() + w[1]) + w[3]
            return np.maximum(raw, 0)

        losses = []
        for n in range(N):
            total = sum(count(pieces[n, i : i + 4, j : j + 4]) for i in (0, 4) for j in (0, 4))
            same = float(((count(halves[n]) - total) ** 2).sum())
            different = float(((count(halves[n - 1]) - total) ** 2).sum())
            losses.append(same + max(0.0, margin - different))
        return ref.mean(losses)

    method = build(cls, margin=margin)
    update = step(method)
    assert update.log["counting"] is update.loss
    pretext.check(update.loss, pretext.linear(pretext.encoding(method.encoder), method.task.head[0]), reference)


@pytest.mark.parametrize("margin", [0.0, 1.0, 10.0, 100.0])
def test_equation(margin: float) -> None:
    check_equation(Counting, margin)


def test_counting_nothing_costs_the_margin() -> None:
    method = build(Counting)
    for p in method.task.head.parameters():
        nn.init.zeros_(p)
    assert float(step(method).loss.detach()) == 10.0


def test_counts_are_never_negative() -> None:
    method = build(Counting)
    assert float(method.task.head(torch.randn(50, pretext.FEATURES)).min().detach()) == 0.0


def test_an_image_is_never_its_own_other() -> None:
    with pytest.raises(SemisupError, match=r"two images or more; raise batch\.unlabeled"):
        step(build(Counting), U[:1])
    assert bool(step(build(Counting), U[:2]).loss.isfinite())


def test_all_five_images_in_one_forward() -> None:
    method = build(Counting)
    sizes: list[torch.Size] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape))
    step(method)
    assert sizes == [torch.Size([5 * N, 1, SIDE // 2, SIDE // 2])]


@pytest.mark.parametrize(("side", "half"), [(9, 4), (6, 4), (28, 14)])
def test_odd_and_tiny_images(side: int, half: int) -> None:
    method = Counting(pretext.encoder(half**2), counts=COUNTS)
    assert bool(step(method, pretext.images(N, side)).loss.isfinite())


def test_some_color_images_lose_their_color() -> None:
    view = pretext.images(200, SIDE, channels=3)
    method = build(Counting, view)
    seen: list[Tensor] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    step(method, view)
    whole, parts = seen[0].split([200, 800])
    gray = [(x[:, 0] == x[:, 2]).flatten(1).all(1) for x in (whole, *parts.view(200, 4, 3, 4, 4).unbind(1))]
    assert 40 < int(gray[0].sum()) < 80
    assert all(torch.equal(gray[0], other) for other in gray)


# --- sabotage --------------------------------------------------------------------------------------------------------


class Planted(Counting):
    """The method in pieces, so that each mistake is a line."""

    def others(self, whole: Tensor) -> Tensor:
        return whole.roll(1, 0)

    def loss(self, whole: Tensor, parts: Tensor) -> Tensor:
        return counting(whole, parts, self.others(whole), self.task.margin)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        x = batch.unlabeled["weak"]
        whole = self.task.head(self.encoder(halve(x)))
        parts = [self.task.head(self.encoder(x[..., i : i + 4, j : j + 4])) for i in (0, 4) for j in (0, 4)]
        loss = self.loss(whole, torch.stack(parts, 1))
        yield Update(loss, log={"counting": loss})


class Itself(Planted):
    """y = x."""

    def others(self, whole: Tensor) -> Tensor:
        return whole


class Elementwise(Planted):
    """The hinge of every count by itself."""

    def loss(self, whole: Tensor, parts: Tensor) -> Tensor:
        total = parts.sum(1)
        hinge = (self.task.margin - (self.others(whole) - total).square()).clamp(min=0)
        return ((whole - total).square() + hinge).mean()


class NoHinge(Planted):
    """Counting nothing is perfect."""

    def loss(self, whole: Tensor, parts: Tensor) -> Tensor:
        return (whole - parts.sum(1)).square().sum(1).mean()


class MeanOfQuarters(Planted):
    """Quarters hold on average what the image holds."""

    def loss(self, whole: Tensor, parts: Tensor) -> Tensor:
        return super().loss(whole, parts / 4)


class DetachedQuarters(Planted):
    """Only the halved image has a gradient. No value gives it away."""

    def loss(self, whole: Tensor, parts: Tensor) -> Tensor:
        return super().loss(whole, parts.detach())


class DetachedOther(Planted):
    """The other image has none."""

    def others(self, whole: Tensor) -> Tensor:
        return super().others(whole).detach()


def test_the_pieces_without_a_mistake_pass() -> None:
    check_equation(Planted)


@pytest.mark.parametrize("cls", [Itself, Elementwise, NoHinge, MeanOfQuarters, DetachedQuarters, DetachedOther])
def test_equation_finds(cls: type[Counting]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)

"""RotNet against the paper's equations: rotation by hand, losses in loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import four_rotations
from semisup.methods import Batch, Progress, Update
from semisup.methods.rotation import Rotation
from tests.methods import methods_reference as ref
from tests.methods import pretext_reference as pretext

U = ref.images(5, 2)


def four(images: Tensor) -> ref.Array:
    """(4N, 4) pixels: a 2x2 image [a b; c d] turned anticlockwise is [b d; a c]."""
    rows = []
    for a, b, c, d in images.double().flatten(1).tolist():
        rows += [[a, b, c, d], [b, d, a, c], [d, c, b, a], [c, a, d, b]]
    return np.array(rows)


def reference(w: list[ref.Array]) -> float:
    """Of weight and bias of the encoder and of the head."""
    logits = (four(U) @ w[0].T + w[1]) @ w[2].T + w[3]
    return ref.mean(pretext.cross_entropies(logits, [0, 1, 2, 3] * len(U)))


def check_equation(cls: type[Rotation]) -> None:
    method = cls(pretext.encoder(4))
    update = ref.first(method, pretext.given(U))
    assert update.log["rotation"] is update.loss
    pretext.check(update.loss, pretext.linear(pretext.encoding(method.encoder), method.task.head), reference)


def test_equation() -> None:
    check_equation(Rotation)


def test_chance_level() -> None:
    method = Rotation(pretext.encoder(4))
    for p in method.task.head.parameters():
        nn.init.zeros_(p)
    ref.close(ref.first(method, pretext.given(U)).loss, 1.386294)  # log 4


def test_constant_images_cannot_beat_chance() -> None:
    method = Rotation(pretext.encoder(4))
    flat = pretext.given(torch.ones(3, 1, 2, 2))
    for _ in range(200):
        ref.run(method, flat, lr=0.5)
    ref.close(ref.first(method, flat).loss, math.log(4), atol=1e-4)


def test_one_forward_of_all_rotations() -> None:
    method = Rotation(pretext.encoder(4))
    sizes: list[int] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    ref.run(method, pretext.given(U))
    assert sizes == [20]


def test_one_image() -> None:
    assert bool(ref.first(Rotation(pretext.encoder(4)), pretext.given(U[:1])).loss.isfinite())


def test_the_predictor_has_no_head() -> None:
    model = pretext.encoder(4)
    method = Rotation(model)
    assert method.predictor() is model
    assert model.projector is None


# --- sabotage --------------------------------------------------------------------------------------------------------


class Planted(Rotation):
    """The method in pieces, so that each mistake is a line."""

    def rotate(self, images: Tensor) -> Tensor:
        return four_rotations(images)[0]

    def labels(self, n: int) -> Tensor:
        return torch.arange(4).repeat(n)

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.encoder(images)
        return features

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        images = batch.unlabeled["weak"]
        loss = F.cross_entropy(self.task.head(self.features(self.rotate(images))), self.labels(len(images)))
        yield Update(loss, log={"rotation": loss})


class BlockedLabels(Planted):
    """Copies side by side, labels in blocks."""

    def labels(self, n: int) -> Tensor:
        return torch.arange(4).repeat_interleave(n)


class WrongAxes(Planted):
    """Mirrors in place of turns."""

    def rotate(self, images: Tensor) -> Tensor:
        return torch.stack([images, images.flip(2), images.flip(3), images.flip(2, 3)], 1).flatten(0, 1)


class Clockwise(Planted):
    """Turns the other way round."""

    def rotate(self, images: Tensor) -> Tensor:
        return torch.stack([torch.rot90(images, -k, (2, 3)) for k in range(4)], 1).flatten(0, 1)


class DetachedFeatures(Planted):
    """Only the head learns. No value gives it away."""

    def features(self, images: Tensor) -> Tensor:
        return super().features(images).detach()


def test_the_pieces_without_a_mistake_pass() -> None:
    check_equation(Planted)


@pytest.mark.parametrize("cls", [BlockedLabels, WrongAxes, Clockwise, DetachedFeatures])
def test_equation_finds(cls: type[Rotation]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)

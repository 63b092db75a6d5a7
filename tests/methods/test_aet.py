"""AET against the paper's equation, on the transformations that the step drew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.augment.pretext.transformations import (
    COEFFICIENT_MEAN,
    COEFFICIENT_STD,
    draw_affine,
    draw_projective,
    warp,
)
from semisup.methods import Batch, Progress, Update
from semisup.methods.aet import AET
from tests.methods import methods_reference as ref
from tests.methods import pretext_reference as pretext

Kind = Literal["affine", "projective"]
N, SIDE = 5, 4
NUMBERS: dict[Kind, int] = {"affine": 6, "projective": 8}
U = pretext.images(N, SIDE)
CPU = torch.device("cpu")
both = pytest.mark.parametrize("kind", NUMBERS)


def draw(kind: Kind) -> tuple[Tensor, Tensor]:
    torch.manual_seed(7)
    return draw_affine(N, CPU, scale=True, shear=True) if kind == "affine" else draw_projective(N, CPU)


def build(cls: type[AET], kind: Kind) -> AET:
    return cls(pretext.encoder(SIDE**2), transformation=kind)


def step(method: AET, view: Tensor = U) -> Update:
    torch.manual_seed(7)
    return ref.first(method, pretext.given(view))


def check_equation(cls: type[AET], kind: Kind) -> None:
    matrices, targets = draw(kind)
    plain, changed, wanted = pretext.double(U), pretext.double(warp(U, matrices)), pretext.double(targets)

    def reference(w: list[ref.Array]) -> float:
        """Of weight and bias of the encoder and of the decoder."""
        errors = []
        for n in range(N):
            pair = np.concatenate([w[0] @ plain[n] + w[1], w[0] @ changed[n] + w[1]])
            errors += [(float(w[2][k] @ pair + w[3][k]) - wanted[n, k]) ** 2 for k in range(NUMBERS[kind])]
        return ref.mean(errors)

    method = build(cls, kind)
    update = step(method)
    assert update.log["transformation"] is update.loss
    pretext.check(update.loss, pretext.linear(pretext.encoding(method.encoder), method.task.decoder), reference)


@both
def test_equation(kind: Kind) -> None:
    check_equation(AET, kind)


def test_projective_is_the_default() -> None:
    assert AET(pretext.encoder(SIDE**2)).task.decoder.out_features == 8


@both
def test_every_image_is_transformed_in_its_own_way_and_next_to_the_plain_ones(kind: Kind) -> None:
    method = build(AET, kind)
    seen: list[Tensor] = []
    method.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    same = U[:1].expand(N, -1, -1, -1)
    step(method, same)
    (images,) = seen
    assert torch.equal(images[:N], same)
    assert len({tuple(image.flatten().tolist()) for image in images[N:]}) == N


@both
def test_both_images_teach_the_encoder(kind: Kind) -> None:
    """Either half of the decoder, set to 0, leaves a gradient through the other."""
    for half in (slice(0, pretext.FEATURES), slice(pretext.FEATURES, None)):
        method = build(AET, kind)
        with torch.no_grad():
            method.task.decoder.weight[:, half] = 0
        (slope,) = torch.autograd.grad(step(method).loss, pretext.encoding(method.encoder).weight)
        assert bool(slope.any())


@both
def test_one_image(kind: Kind) -> None:
    assert bool(step(build(AET, kind), U[:1]).loss.isfinite())


# --- sabotage --------------------------------------------------------------------------------------------------------


class Planted(AET):
    """The method in pieces, so that each mistake is a line."""

    def targets(self, targets: Tensor) -> Tensor:
        return targets

    def features(self, images: Tensor, changed: Tensor) -> list[Tensor]:
        return [self.encoder(images), self.encoder(changed)]

    def matrices(self, matrices: Tensor) -> Tensor:
        return matrices

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        images = batch.unlabeled["weak"]
        matrices, targets = draw(self.task.transformation)
        changed = warp(images, self.matrices(matrices))
        loss = F.mse_loss(self.task.decoder(torch.cat(self.features(images, changed), 1)), self.targets(targets))
        yield Update(loss, log={"transformation": loss})


class RawNumbers(Planted):
    """Coefficients in pixels; an angle in place of its cosine and sine."""

    def targets(self, targets: Tensor) -> Tensor:
        if self.task.transformation == "projective":
            return targets * torch.tensor(COEFFICIENT_STD) + torch.tensor(COEFFICIENT_MEAN)
        angle = torch.atan2(targets[:, 1], targets[:, 0]) / math.pi
        return torch.cat([angle[:, None], torch.zeros(N, 1), targets[:, 2:]], 1)


class Swapped(Planted):
    """The transformed image first."""

    def features(self, images: Tensor, changed: Tensor) -> list[Tensor]:
        return super().features(images, changed)[::-1]


class OneImage(Planted):
    """Sees the transformed image alone."""

    def features(self, images: Tensor, changed: Tensor) -> list[Tensor]:
        return super().features(changed, changed)


class DetachedPlain(Planted):
    """The plain image's branch does not learn. No value gives it away."""

    def features(self, images: Tensor, changed: Tensor) -> list[Tensor]:
        plain, transformed = super().features(images, changed)
        return [plain.detach(), transformed]


class Inverse(Planted):
    """The matrix leads from the image to the result."""

    def matrices(self, matrices: Tensor) -> Tensor:
        inverse: Tensor = torch.linalg.inv(matrices)
        return inverse


@both
def test_the_pieces_without_a_mistake_pass(kind: Kind) -> None:
    check_equation(Planted, kind)


@both
@pytest.mark.parametrize("cls", [RawNumbers, Swapped, OneImage, DetachedPlain, Inverse])
def test_equation_finds(cls: type[AET], kind: Kind) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls, kind)

"""MaskFeat against section 2 of the paper, on the patches that `hide_blocks` drew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semisup.augment.kernels.hog import hog
from semisup.augment.pretext.patches import hide_blocks
from semisup.errors import SemisupError
from semisup.losses import masked_mse
from semisup.methods import Batch, Progress, Update
from semisup.methods.maskfeat import MaskFeat
from semisup.models import Encoder
from semisup.models.vit import VisionTransformer, require_vit, sincos_positions
from tests.methods import methods_reference as ref

COUNT, SIDE, PATCH, CHANNELS, T = 3, 12, 4, 2, 9
HIDDEN, SMALLEST = 4, 1  # 40 % of 9 patches, and 15 / 196 of them


def build(cls: type[MaskFeat] = MaskFeat, **options: Any) -> MaskFeat:
    torch.manual_seed(0)
    method = cls(Encoder(VisionTransformer(PATCH, 8, 3, 2, in_channels=CHANNELS)), **options).double()
    with torch.no_grad():
        method.mask_token.mul_(30)
    return method


def pictures(count: int = COUNT, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, CHANNELS, SIDE, SIDE, generator=draw, dtype=torch.float64)


def first(method: MaskFeat, images: Tensor) -> Update:
    torch.manual_seed(7)
    return ref.first(method, ref.batch(unlabeled={"image": images}))


def drawn(count: int = COUNT) -> Tensor:
    torch.manual_seed(7)
    return hide_blocks(count, 3, 3, HIDDEN, SMALLEST, torch.device("cpu"))


def slow_loss(method: MaskFeat, images: Tensor, cell: int) -> float:
    """The loss, with the network's layers as given."""
    vit = require_vit(method.encoder.backbone, "test")
    place = sincos_positions(3, 3, 8, images.device).double()
    cells = PATCH // cell
    errors = []
    for image, mask in zip(images, drawn(len(images)).tolist(), strict=True):
        tokens = []
        for t in range(T):
            i, j = 4 * (t // 3), 4 * (t % 3)
            patch = vit.patch_embed.proj(image[None, :, i : i + 4, j : j + 4]).flatten()
            tokens.append((method.mask_token if mask[t] else patch) + place[t])
        guesses = method.predict(vit.encode(torch.stack(tokens)[None]))[0].detach()
        histograms = hog(image[None], cell, PATCH)[0]
        for t in range(T):
            if not mask[t]:
                continue
            i, j = t // 3, t % 3
            numbers = [
                float(histograms[c, b, i * cells + y, j * cells + x])
                for c in range(CHANNELS)
                for b in range(9)
                for y in range(cells)
                for x in range(cells)
            ]
            errors.append(ref.mean([(float(g) - v) ** 2 for g, v in zip(guesses[t], numbers, strict=True)]))
    return ref.mean(errors)


def check_equation(cls: type[MaskFeat], cell: int = 2) -> None:
    method, images = build(cls, cell=cell), pictures()
    update = first(method, images)
    ref.close(update.loss, slow_loss(method, images, cell), rtol=1e-6)
    assert torch.equal(update.loss, update.log["hog"])
    vit = require_vit(method.encoder.backbone, "test")
    variables = [method.mask_token, method.predict.bias, vit.patch_embed.proj.bias]
    for variable, slope in zip(variables, torch.autograd.grad(update.loss, variables), strict=True):
        start = variable.detach().clone()

        def at(w: ref.Array, variable: Any = variable) -> float:
            with torch.no_grad():
                variable.copy_(torch.tensor(w))
                return slow_loss(method, images, cell)

        few = start[:6].numpy()  # the first entries: each costs two slow losses
        expected = ref.numeric_gradient(lambda w, s=start: at(torch.cat([torch.tensor(w), s[6:]]).numpy()), few)
        with torch.no_grad():
            variable.copy_(start)
        ref.close(slope[:6], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("cell", [2, 4])
def test_equation(cell: int) -> None:
    check_equation(MaskFeat, cell)


def test_zero_prediction_costs_a_ninth() -> None:
    method = build()
    nn.init.zeros_(method.predict.weight)
    nn.init.zeros_(method.predict.bias)
    assert float(first(method, pictures()).loss.detach()) == pytest.approx(1 / 9)


def test_hidden_pixels_reach_nothing_but_the_target() -> None:
    method, images, mask = build(), pictures(), drawn()
    shown = ~mask.view(COUNT, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
    guesses = method.guess(images, mask)
    assert torch.equal(method.guess(torch.where(shown, images, 9.0), mask), guesses)
    assert not torch.allclose(method.guess(images + shown, mask), guesses)


def test_contrast_and_brightness_of_the_target_do_not_matter() -> None:
    method, images = build(), pictures()
    torch.testing.assert_close(method.target(2 - 3 * images), method.target(images))


def test_the_encoder_gets_all_places() -> None:
    method = build()
    sizes: list[torch.Size] = []
    vit = require_vit(method.encoder.backbone, "test")
    vit.blocks[0].register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape))
    first(method, pictures())
    assert sizes == [(COUNT, T, 8)]


def test_one_image_of_one_patch() -> None:
    assert bool(first(build(), pictures(1)[:, :, :4, :4]).loss.isfinite())


def test_mistakes_are_named() -> None:
    with pytest.raises(SemisupError, match="model: method 'maskfeat' hides patches, for which it needs the backbone"):
        MaskFeat(ref.linear_encoder())
    with pytest.raises(SemisupError, match=r"method\.cell: must divide the patch of the model, 4, got 3"):
        build(cell=3)


# --- sabotage --------------------------------------------------------------------------------------------------------


class AllPlaces(MaskFeat):
    """The loss counts what is in sight too."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        images = batch.unlabeled["image"]
        mask = hide_blocks(len(images), 3, 3, HIDDEN, SMALLEST, images.device)
        loss = masked_mse(self.guess(images, mask), self.target(images), torch.ones_like(mask))
        yield Update(loss, log={"hog": loss})


class NothingHidden(MaskFeat):
    """The network sees what it should guess."""

    def guess(self, images: Tensor, mask: Tensor) -> Tensor:
        return super().guess(images, torch.zeros_like(mask))


class OtherHidden(MaskFeat):
    """Tokens are replaced where they should stay."""

    def guess(self, images: Tensor, mask: Tensor) -> Tensor:
        return super().guess(images, ~mask)


class MaskedTarget(MaskFeat):
    """Histograms of the image after the masking: blocks have edges of their own."""

    def target(self, images: Tensor) -> Tensor:
        shown = ~drawn(len(images)).view(-1, 1, 3, 3).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return super().target(images * shown)


class CellsFirst(MaskFeat):
    """Columns for rows."""

    def target(self, images: Tensor) -> Tensor:
        return super().target(images.transpose(2, 3))


class PlacelessTokens(MaskFeat):
    """The mask token replaces the position too."""

    def guess(self, images: Tensor, mask: Tensor) -> Tensor:
        vit = require_vit(self.encoder.backbone, "maskfeat")
        tokens = vit.patches(images) + vit.positions(images)
        guesses: Tensor = self.predict(vit.encode(torch.where(mask[:, :, None], self.mask_token, tokens)))
        return guesses


@pytest.mark.parametrize("cls", [AllPlaces, NothingHidden, OtherHidden, MaskedTarget, CellsFirst, PlacelessTokens])
def test_equation_finds(cls: type[MaskFeat]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)

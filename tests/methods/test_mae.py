"""MAE against section 3 of the paper: image by image, patch by patch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semisup.augment.pretext.patches import join_patches, random_order, split_patches
from semisup.errors import SemisupError
from semisup.losses import masked_mse
from semisup.methods import Batch, Progress, Update
from semisup.methods.mae import MAE
from semisup.models import Encoder
from semisup.models.vit import VisionTransformer, require_vit, sincos_positions
from semisup.options import check_options
from tests.methods import methods_reference as ref

COUNT, SIDE, PATCH, CHANNELS = 3, 6, 2, 2
T, D = 9, 8
"""Patches of an image, numbers in a patch."""


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(VisionTransformer(PATCH, 8, 3, 2, in_channels=CHANNELS))


def build(cls: type[MAE] = MAE, **options: Any) -> MAE:
    method = cls(encoder(), decoder_width=8, decoder_depth=1, decoder_heads=2, **options).double()
    with torch.no_grad():
        method.mask_token.mul_(30)
    return method


def pictures(count: int = COUNT, seed: int = 1) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, CHANNELS, SIDE, SIDE, generator=draw, dtype=torch.float64)


def first(method: MAE, images: Tensor) -> Update:
    torch.manual_seed(7)
    return ref.first(method, ref.batch(unlabeled={"image": images}))


def drawn(count: int = COUNT) -> list[list[int]]:
    """For each image its patches in the order that the step of `first` draws; the leading ones stay in sight."""
    torch.manual_seed(7)
    return random_order(count, T, torch.device("cpu")).tolist()


def slow_loss(method: MAE, images: Tensor, ratio: float, norm_pix: bool) -> float:
    """The loss, with the network's layers as given."""
    vit = require_vit(method.encoder.backbone, "test")
    kept = T - round(T * ratio)
    place = sincos_positions(3, 3, 8, images.device).double()
    errors = []
    for image, order in zip(images, drawn(len(images)), strict=True):
        patches = [image[:, i : i + 2, j : j + 2] for i in (0, 2, 4) for j in (0, 2, 4)]
        seen = torch.stack([vit.patch_embed.proj(patches[t][None]).flatten() + place[t] for t in order[:kept]])
        codes = method.enter(vit.encode(seen[None]))[0]
        tokens = [method.mask_token + place[t] for t in range(T)]
        for code, t in zip(codes, order[:kept], strict=True):
            tokens[t] = code + place[t]
        guesses = method.paint(method.decoder(torch.stack(tokens)[None]))[0]
        for t in order[kept:]:
            pixels = [float(patches[t][c, a, b]) for a in range(2) for b in range(2) for c in range(CHANNELS)]
            if norm_pix:
                mean = sum(pixels) / D
                variance = sum((p - mean) ** 2 for p in pixels) / (D - 1)
                pixels = [(p - mean) / (variance + 1e-6) ** 0.5 for p in pixels]
            errors.append(sum((float(g) - p) ** 2 for g, p in zip(guesses[t].detach(), pixels, strict=True)) / D)
    return ref.mean(errors)


def check_equation(cls: type[MAE], ratio: float = 0.75, norm_pix: bool = True) -> None:
    method, images = build(cls, mask_ratio=ratio, norm_pix=norm_pix), pictures()
    update = first(method, images)
    ref.close(update.loss, slow_loss(method, images, ratio, norm_pix), rtol=1e-6)
    assert torch.equal(update.loss, update.log["reconstruction"])
    vit = require_vit(method.encoder.backbone, "test")
    variables = [method.mask_token, method.enter.bias, method.paint.bias, vit.patch_embed.proj.bias, vit.norm.weight]
    for variable, slope in zip(variables, torch.autograd.grad(update.loss, variables), strict=True):
        start = variable.detach().clone()

        def at(w: ref.Array, variable: Any = variable) -> float:
            with torch.no_grad():
                variable.copy_(torch.tensor(w))
                return slow_loss(method, images, ratio, norm_pix)

        expected = ref.numeric_gradient(at, start.numpy())
        with torch.no_grad():
            variable.copy_(start)
        ref.close(slope, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("ratio", "norm_pix"), [(0.75, True), (0.4, False)])
def test_equation(ratio: float, norm_pix: bool) -> None:
    check_equation(MAE, ratio, norm_pix)


@pytest.mark.parametrize(("total", "side", "ratio", "hidden"), [(49, 28, 0.75, 37), (64, 32, 0.75, 48), (4, 8, 0.5, 2)])
def test_every_image_hides_as_many_patches(total: int, side: int, ratio: float, hidden: int) -> None:
    torch.manual_seed(0)
    method = MAE(Encoder(VisionTransformer(4, 8, 3, 2, in_channels=1)), mask_ratio=ratio)
    painted, mask = method.fill_in(torch.randn(20, 1, side, side))
    assert painted.shape == (20, total, 16)
    assert (mask.sum(1) == hidden).all()
    assert len({tuple(row) for row in mask.tolist()}) > 1


def test_zero_prediction_costs_what_is_known() -> None:
    """(n - 1) / n for n values in a patch, because the std divides by n - 1: 0.9375 for n = 16."""
    method = MAE(Encoder(VisionTransformer(4, 8, 3, 2, in_channels=1))).double()
    nn.init.zeros_(method.paint.weight)
    nn.init.zeros_(method.paint.bias)
    loss = first(method, torch.randn(5, 1, 12, 12, dtype=torch.float64)).loss
    assert float(loss.detach()) == pytest.approx(0.9375, abs=1e-5)


def test_hidden_pixels_reach_nothing_but_the_target() -> None:
    method, images = build(), pictures()
    torch.manual_seed(7)
    painted, mask = method.fill_in(images)
    noise = join_patches(torch.randn(COUNT, T, D).double() * mask[:, :, None], 3, 3, CHANNELS)
    torch.manual_seed(7)
    assert torch.equal(method.fill_in(images + noise)[0], painted)
    assert not torch.equal(first(method, images).loss, first(method, images + noise).loss)
    visible = join_patches(torch.randn(COUNT, T, D).double() * ~mask[:, :, None], 3, 3, CHANNELS)
    torch.manual_seed(7)
    assert not torch.allclose(method.fill_in(images + visible)[0], painted)


def test_the_encoder_sees_the_patches_in_sight_alone() -> None:
    method = build()
    sizes: list[torch.Size] = []
    vit = require_vit(method.encoder.backbone, "test")
    vit.blocks[0].register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].shape))
    first(method, pictures())
    assert sizes == [(COUNT, 2, 8)]


def test_flat_patches_have_a_finite_target() -> None:
    update = first(build(), torch.ones(2, CHANNELS, SIDE, SIDE, dtype=torch.float64))
    assert bool(update.loss.isfinite())


def test_one_image() -> None:
    ref.close(first(build(), pictures(1)).loss, slow_loss(build(), pictures(1), 0.75, True), rtol=1e-6)


def test_pictures_show_what_was_seen_and_what_was_painted() -> None:
    for norm_pix in (True, False):
        method, images = build(norm_pix=norm_pix).train(), pictures()
        before = torch.get_rng_state()
        seen, made = method.reconstruct(images)
        assert torch.equal(torch.get_rng_state(), before)
        assert method.training
        assert not seen.requires_grad and not made.requires_grad
        hidden = (split_patches(seen, PATCH) == 0).all(2)
        assert (hidden.sum(1) == 7).all()
        kept = join_patches((~hidden)[:, :, None].expand(-1, -1, D).double(), 3, 3, CHANNELS).bool()
        assert torch.equal(seen[kept], images[kept])
        assert torch.equal(made[kept], images[kept])
        assert not torch.isclose(made[~kept], images[~kept]).any()
        again = method.reconstruct(images)
        assert torch.equal(seen, again[0])
        assert torch.equal(made, again[1])


def test_a_right_guess_is_painted_as_the_image() -> None:
    class Knowing(MAE):
        def fill_in(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return self.target(images), super().fill_in(images)[1]

    for norm_pix in (True, False):
        images = pictures()
        torch.testing.assert_close(build(Knowing, norm_pix=norm_pix).reconstruct(images)[1], images)


def test_the_predictor_is_the_encoder_with_all_patches() -> None:
    model = encoder()
    assert MAE(model).predictor() is model
    assert model(pictures().float()).shape == (COUNT, 8)


def test_mistakes_are_named() -> None:
    with pytest.raises(SemisupError, match="model: method 'mae' hides patches, for which it needs the backbone 'vit'"):
        MAE(ref.linear_encoder())
    (problem, other) = check_options(MAE, {"decoder_width": 50, "decoder_heads": 3})
    assert problem.startswith("decoder_width: must be a multiple of 4") and "decoder_heads=3" in other
    with pytest.raises(SemisupError, match=r"method\.mask_ratio: of 9 patches 0 would be left, got 0\.99"):
        first(build(mask_ratio=0.99), pictures())


# --- sabotage --------------------------------------------------------------------------------------------------------


class AllPatches(MAE):
    """The loss counts patches in sight too."""

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        images = batch.unlabeled["image"]
        painted, hidden = self.fill_in(images)
        loss = masked_mse(painted, self.target(images), torch.ones_like(hidden))
        yield Update(loss, log={"reconstruction": loss})


class VisiblePatches(MAE):
    """The loss counts the others."""

    def fill_in(self, images: Tensor) -> tuple[Tensor, Tensor]:
        painted, hidden = super().fill_in(images)
        return painted, ~hidden


class WrongUnshuffle(MAE):
    """Guesses come back in the order of the order."""

    def fill_in(self, images: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.get_rng_state()
        painted, hidden = super().fill_in(images)
        torch.set_rng_state(state)
        order = random_order(len(images), T, images.device)
        return painted.gather(1, order[:, :, None].expand_as(painted)), hidden


class BiasedDeviation(MAE):
    """The std divides by n."""

    def target(self, images: Tensor) -> Tensor:
        return super().target(images) * (D / (D - 1)) ** 0.5


class Placeless(MAE):
    """Positions of the encoder are counted after the masking."""

    def fill_in(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vit = require_vit(self.encoder.backbone, "mae")
        place = vit.positions(images)
        encode = vit.encode
        vit.positions = lambda images: torch.zeros_like(place)  # type: ignore[method-assign]
        vit.encode = lambda tokens: encode(tokens + place[: tokens.shape[1]])  # type: ignore[method-assign]
        return super().fill_in(images)


class OneMean(MAE):
    """Images are normalized whole."""

    def target(self, images: Tensor) -> Tensor:
        mean, std = images.mean((1, 2, 3), keepdim=True), images.std((1, 2, 3), keepdim=True)
        return split_patches((images - mean) / std, PATCH)


@pytest.mark.parametrize("cls", [AllPatches, VisiblePatches, WrongUnshuffle, BiasedDeviation, Placeless, OneMean])
def test_equation_finds(cls: type[MAE]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_equation(cls)

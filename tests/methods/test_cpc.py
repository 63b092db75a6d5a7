"""CPC against its equation, one number at a time, and by gradients: no context sees what it must predict."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.methods.cpc import CPC, overlapping_patches
from semisup.models import Encoder
from semisup.models.cnn import SmallCNN
from tests.methods import methods_reference as ref

GRID, PATCH, CONTEXT, TEMPERATURE = 3, 4, 3, 0.5


def bare(cls: type[CPC] = CPC, **options: Any) -> CPC:
    """Patches of 4x4 pixels of an 8x8 image are their own features."""
    torch.manual_seed(0)
    given = {"grid": GRID, "nearest": 1, "farthest": 2, "context": CONTEXT, "temperature": TEMPERATURE} | options
    return cls(Encoder(ref.Flat(PATCH * PATCH)), **given)


def pictures(n: int, seed: int = 0, size: int = 8) -> Tensor:
    return torch.randn(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


# --- patches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "grid", "stride", "start"), [(8, 3, 2, 0), (28, 6, 4, 0), (28, 7, 3, 2), (32, 7, 4, 0)]
)
def test_patches_are_cut_row_by_row_with_half_an_overlap(size: int, grid: int, stride: int, start: int) -> None:
    images = torch.arange(2.0 * 3 * size * size).view(2, 3, size, size)
    patches = overlapping_patches(images, grid)
    assert patches.shape == (2, grid, grid, 3, 2 * stride, 2 * stride)
    for r in range(grid):
        for c in range(grid):
            top, left = start + r * stride, start + c * stride
            wanted = images[:, :, top : top + 2 * stride, left : left + 2 * stride]
            assert torch.equal(patches[:, r, c], wanted)


def test_images_too_small_for_the_grid() -> None:
    with pytest.raises(SemisupError, match=r"grid: patches must have at least 4 px, hence at most 5 .* 12 px, got 6"):
        overlapping_patches(pictures(1, size=12), 6)
    assert overlapping_patches(pictures(1, size=12), 5).shape[-1] == 4


# --- the loss --------------------------------------------------------------------------------------------------------


def sigmoid(x: ref.Array) -> ref.Array:
    return 1 / (1 + np.exp(-x))


def contexts(method: CPC, z: ref.Array) -> ref.Array:
    """(N, G, G, CONTEXT): the GRU's equations, down each column."""
    gru = {name: p.detach().double().numpy() for name, p in method.read.named_parameters()}
    out = np.zeros((*z.shape[:3], CONTEXT))
    for n in range(len(z)):
        for c in range(GRID):
            h = np.zeros(CONTEXT)
            for r in range(GRID):
                x = gru["weight_ih_l0"] @ z[n, r, c] + gru["bias_ih_l0"]
                y = gru["weight_hh_l0"] @ h + gru["bias_hh_l0"]
                reset, keep = sigmoid(x[:3] + y[:3]), sigmoid(x[3:6] + y[3:6])
                h = (1 - keep) * np.tanh(x[6:] + reset * y[6:]) + keep * h
                out[n, r, c] = h
    return out


def loss(method: CPC, images: ref.Array) -> float:
    """Mean over distances of the mean over predictions of -log of the true patch's share among all targets."""
    n = len(images)
    z = np.zeros((n, GRID, GRID, PATCH * PATCH))
    for i, r, c in np.ndindex(n, GRID, GRID):
        patch = images[i, 0, 2 * r : 2 * r + 4, 2 * c : 2 * c + 4].flatten()
        z[i, r, c] = (patch - patch.mean()) / np.sqrt(patch.var() + 1e-5)
    context, subtotals = contexts(method, z), []
    for k, layer in enumerate(method.maps, start=1):
        assert isinstance(layer, nn.Linear)
        w, b = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        places = [(i, r, c) for i in range(n) for r in range(GRID - k) for c in range(GRID)]
        targets = np.array([z[i, r + k, c] for i, r, c in places])
        losses = []
        for j, place in enumerate(places):
            prediction = w @ context[place] + b
            lengths = np.sqrt((targets**2).sum(1)) * math.sqrt(float(prediction @ prediction))
            losses.append(-math.log(ref.softmax((targets @ prediction / lengths)[None], TEMPERATURE)[0, j]))
        subtotals.append(ref.mean(losses))
    return ref.mean(subtotals)


def check_values(cls: type[CPC]) -> None:
    """The equation in value and in the gradient of every pixel."""
    method, images = bare(cls), pictures(2).requires_grad_()
    update = ref.first(method, ref.batch(unlabeled={"image": images}))
    x = images.detach().double().numpy()
    ref.close(update.loss, loss(method, x), rtol=1e-4)
    (slope,) = torch.autograd.grad(update.loss, images)
    ref.close(slope, ref.numeric_gradient(lambda pixels: loss(method, pixels), x), rtol=2e-3, atol=2e-5)


def test_values() -> None:
    check_values(CPC)


def test_equal_patches_cost_the_logarithm_of_their_number() -> None:
    """Of 5 images: 5 x 2 x 3 targets one row down, 5 x 1 x 3 two rows down."""
    update = ref.first(bare(), ref.batch(unlabeled={"image": torch.ones(5, 1, 8, 8)}))
    ref.close(update.loss, (math.log(30) + math.log(15)) / 2)


def check_gray_images_lose_their_color(cls: type[CPC]) -> None:
    """With `gray: 1` colors that keep the mean change nothing, without it they do."""
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    turned = images.roll(1, 1)
    torch.manual_seed(0)
    encoder = Encoder(ref.Flat(3 * PATCH * PATCH))
    for gray in (0.0, 1.0):
        torch.manual_seed(0)
        method = cls(encoder, grid=GRID, nearest=1, farthest=2, context=CONTEXT, gray=gray)
        losses = [ref.first(method, ref.batch(unlabeled={"image": x})).loss for x in (images, turned)]
        assert torch.allclose(*losses, rtol=1e-4) == bool(gray)


def test_gray_images_lose_their_color() -> None:
    check_gray_images_lose_their_color(CPC)


def test_the_default_view_keeps_the_size_of_things() -> None:
    """The paper shows 256 of 300 pixels, mirrored: moved, never resized."""
    assert dict(CPC.views.unlabeled) == {"image": "weak"}


def check_no_context_sees_its_target(cls: type[CPC]) -> None:
    """Pixels that move a prediction lie above the lower edge of the row that it is made from; those of the target are
    others, since the nearest target is two rows down."""
    torch.manual_seed(0)
    method = cls(Encoder(SmallCNN(2, in_channels=1)), grid=5, nearest=2, farthest=4, context=CONTEXT).eval()
    images = pictures(2, size=24).requires_grad_()  # patches of 8 px, each 4
    patches = overlapping_patches(images, 5)
    latents = method.norm(method.encoder(patches.flatten(0, 2))).unflatten(0, patches.shape[:3])
    for k, predictions in enumerate(method.predict(latents), start=2):
        assert predictions.shape[:3] == (2, 5 - k, 5)
        for row in range(5 - k):
            (slope,) = torch.autograd.grad(predictions[0, row].square().sum(), images, retain_graph=True)
            seen = slope[0, 0].abs().amax(1).nonzero().flatten().tolist()
            assert not slope[1].any(), "another image"
            assert seen, "nothing is seen"
            assert seen[-1] < 4 * row + 8, f"row {row} sees pixels of rows below it"
            assert seen[-1] < 4 * (row + k), f"the prediction from row {row} sees pixels of row {row + k}"


def test_no_context_sees_its_target() -> None:
    check_no_context_sees_its_target(CPC)


def test_a_context_sees_all_rows_above() -> None:
    method = bare(nearest=2)
    latents = torch.randn(1, GRID, GRID, PATCH * PATCH).requires_grad_()
    method.predict(latents)[0][0, 0, 1].sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().amax(3).ne(0)[0].tolist() == [[False, True, False], [False] * 3, [False] * 3]
    latents = torch.randn(1, GRID, GRID, PATCH * PATCH).requires_grad_()
    bare().predict(latents)[0][0, 1, 1].sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().amax(3).ne(0)[0].tolist() == [[False, True, False], [False, True, False], [False] * 3]


@pytest.mark.parametrize(("grid", "nearest", "farthest"), [(7, 3, 2), (7, 2, 7), (3, 2, 5)])
def test_distances_that_the_grid_does_not_have(grid: int, nearest: int, farthest: int) -> None:
    with pytest.raises(SemisupError, match=rf"farthest: must lie .* {nearest} and {grid - 1}, got {farthest}"):
        bare(grid=grid, nearest=nearest, farthest=farthest)


# --- sabotage --------------------------------------------------------------------------------------------------------


class FromBelow(CPC):
    """The context is read from the bottom up: it begins with the targets."""

    def predict(self, latents: Tensor) -> list[Tensor]:
        return super().predict(latents.flip(1))


class WholeColumn(CPC):
    """Every prediction is made from what the whole column shows."""

    def predict(self, latents: Tensor) -> list[Tensor]:
        columns = latents.transpose(1, 2)
        read = self.read(columns.flatten(0, 1))[0].unflatten(0, columns.shape[:2]).transpose(1, 2)
        last = read[:, -1:].expand_as(read)
        return [each(last[:, : -(self.nearest + i)]) for i, each in enumerate(self.maps)]


class OneRowOff(CPC):
    """The positive is the patch of the next row."""

    def predict(self, latents: Tensor) -> list[Tensor]:
        return [each.roll(1, 1) for each in super().predict(latents)]


class RowByRow(CPC):
    """The context is read along rows, over the neighbors and not from above."""

    def predict(self, latents: Tensor) -> list[Tensor]:
        return super().predict(latents.transpose(1, 2))


@pytest.mark.parametrize("cls", [FromBelow, WholeColumn, OneRowOff, RowByRow])
def test_values_find(cls: type[CPC]) -> None:
    with pytest.raises(AssertionError, match="Not equal"):
        check_values(cls)


@pytest.mark.parametrize("cls", [FromBelow, WholeColumn])
def test_gradient_check_finds_contexts_that_see_their_targets(cls: type[CPC]) -> None:
    with pytest.raises(AssertionError, match="sees pixels of row"):
        check_no_context_sees_its_target(cls)

"""Histograms of oriented gradients, pixel by pixel from the definition, and what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from semisup.augment.kernels.hog import BINS, hog


def slow_hog(image: np.ndarray, cell: int, window: int) -> np.ndarray:
    """(9, H / cell, W / cell) of one channel (H, W)."""
    height, width = image.shape

    def at(i: int, j: int) -> float:  # mirrored at the border, which is not repeated
        i = -i if i < 0 else 2 * (height - 1) - i if i >= height else i
        j = -j if j < 0 else 2 * (width - 1) - j if j >= width else j
        return float(image[i, j])

    votes = np.zeros((BINS, height // cell, width // cell))
    for i in range(height):
        for j in range(width):
            gx = sum(w * (at(i + k, j - 1) - at(i + k, j + 1)) for k, w in ((-1, 1), (0, 2), (1, 1)))
            gy = sum(w * (at(i - 1, j + k) - at(i + 1, j + k)) for k, w in ((-1, 1), (0, 2), (1, 1)))
            direction = math.floor(math.atan2(gx, gy) / math.pi * 9) % 9
            y, x = (p % window - (window - 1) / 2 for p in (i, j))
            near = math.exp(-(x * x + y * y) / (2 * (window / 2) ** 2))
            votes[direction, i // cell, j // cell] += near * math.sqrt(gx * gx + gy * gy)
    lengths = np.sqrt((votes**2).sum(0))
    return votes / np.where(lengths > 0, lengths, 1)


def pictures(n: int = 2, channels: int = 2, height: int = 8, width: int = 12) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, height, width, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize(("cell", "window"), [(4, 4), (2, 4), (4, 2), (1, 2)])
def test_definition(cell: int, window: int) -> None:
    images = pictures()
    got = hog(images, cell, window)
    assert got.shape == (2, 2, 9, 8 // cell, 12 // cell)
    for n in range(2):
        for c in range(2):
            wanted = slow_hog(images[n, c].numpy(), cell, window)
            np.testing.assert_allclose(got[n, c].numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_contrast_brightness_and_negation_change_nothing() -> None:
    images = pictures(4, 1, 16, 16)
    plain = hog(images, 4, 8)
    for other in (3 * images, images + 7, -images, 2 - 0.1 * images):
        torch.testing.assert_close(hog(other, 4, 8), plain)


def test_cells_have_unit_length_so_that_a_zero_prediction_costs_a_ninth() -> None:
    cells = hog(pictures(4, 3, 16, 16), 4, 4)
    torch.testing.assert_close(cells.square().mean(2), torch.full_like(cells[:, :, 0], 1 / 9))


def test_flat_cells_are_zero() -> None:
    images = torch.ones(1, 1, 8, 8)
    images[..., 0] = 2  # an edge in the left cells alone
    cells = hog(images, 4, 4)
    assert not cells[..., 1].any()
    assert cells[..., 0].square().sum() == pytest.approx(2)


@pytest.mark.parametrize("degrees", [5, 25, 65, 85, 100, 130, 175])
def test_a_ramp_falls_into_the_bin_of_its_direction(degrees: int) -> None:
    """Atan2(across, down): 0 degrees is a gradient along the rows' axis, 90 along the columns'."""
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    ramp = math.sin(math.radians(degrees)) * x + math.cos(math.radians(degrees)) * y
    inside = hog(ramp[None, None], 4, 4)[0, 0, :, 1, 1]
    wanted = torch.zeros(9)
    wanted[degrees // 20] = 1
    torch.testing.assert_close(inside, wanted)


def test_device_precision_and_input() -> None:
    assert hog(torch.empty(2, 1, 8, 8, device="meta"), 4, 4).shape == (2, 1, 9, 2, 2)
    images = pictures().float()
    before = images.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hog(images, 4, 4)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, hog(images, 4, 4))
    assert torch.equal(images, before)
    last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(hog(last, 4, 4), inside)

"""Lab by the formulas of CIE 15, number by number, and the two pictures that are made of one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from semisup.augment.kernels.lab import rgb_to_lab
from semisup.augment.pretext.two_views import intensity_and_edges, lightness_and_color


def lab_of(red: float, green: float, blue: float) -> tuple[float, float, float]:
    """IEC 61966-2-1 to XYZ, then CIE 15 with the white D65."""

    def linear(v: float) -> float:
        return v / 12.92 if v <= 0.04045 else math.pow((v + 0.055) / 1.055, 2.4)

    def f(t: float) -> float:
        return math.pow(t, 1 / 3) if t > (6 / 29) ** 3 else (29 / 6) ** 2 * t / 3 + 4 / 29

    r, g, b = linear(red), linear(green), linear(blue)
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    return 116 * f(y) - 16, 500 * (f(x) - f(y)), 200 * (f(y) - f(z))


def colors(n: int = 4, size: int = 5) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_lab_by_the_formulas() -> None:
    images = colors()
    images[0, :, 0, 0] = torch.tensor([0.0, 0.01, 0.04])  # the straight pieces
    lab = rgb_to_lab(images)
    for at in [(n, i, j) for n in range(4) for i in range(5) for j in range(5)]:
        n, i, j = at
        assert lab[n, :, i, j].tolist() == pytest.approx(lab_of(*images[n, :, i, j].tolist()), abs=0.01)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((1, 1, 1), (100, 0, 0)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
    ],
)
def test_known_colors(rgb: tuple[float, ...], lab: tuple[float, ...]) -> None:
    found = rgb_to_lab(torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1)).flatten()
    assert found.tolist() == pytest.approx(lab, abs=0.02)


def test_lightness_and_color_of_normalized_images_are_those_of_the_images() -> None:
    raw = colors()
    raw[0, :, 0, 0], raw[0, :, 0, 1] = 0, 1  # every channel goes from black to white
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    lightness, color = lightness_and_color((raw - mean) / std)
    assert lightness.shape == color.shape == raw.shape
    lab = rgb_to_lab(raw)
    torch.testing.assert_close(lightness, (lab[:, :1] / 100 - mean) / std, rtol=1e-4, atol=1e-4)
    a, b = lab[:, 1], lab[:, 2]
    scaled = torch.stack([(a - 6.025) / 92.208, (b + 6.6895) / 101.1675, 0 * a], dim=1)
    torch.testing.assert_close(color, scaled, rtol=1e-4, atol=1e-4)


def test_what_one_view_shows_the_other_does_not() -> None:
    gray = colors()[:, :1].expand(-1, 3, -1, -1)
    _, color = lightness_and_color(gray)
    assert color.std((0, 2, 3)).max() < 1e-4
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).T.reshape(1, 3, 2, 4)
    _, color = lightness_and_color(corners)
    assert color[:, :2].amin((0, 2, 3)).tolist() == pytest.approx([-1, -1], abs=1e-3)
    assert color[:, :2].amax((0, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-3)


def test_images_of_one_color_do_not_divide_by_zero() -> None:
    for view in lightness_and_color(torch.full((2, 3, 4, 4), 0.7)):
        assert view.isfinite().all()


def test_edges_by_sobel_s_weights() -> None:
    images = colors(2, 6)[:, :1]
    same, edges = intensity_and_edges(images)
    assert torch.equal(same, images)
    for n in range(2):
        for i in range(6):
            for j in range(6):
                around = [
                    [float(images[n, 0, min(max(i + p, 0), 5), min(max(j + q, 0), 5)]) for q in (-1, 0, 1)]
                    for p in (-1, 0, 1)
                ]
                weights = (1, 2, 1)
                across = sum(weights[p] * (around[p][2] - around[p][0]) for p in range(3))
                down = sum(weights[q] * (around[2][q] - around[0][q]) for q in range(3))
                assert float(edges[n, 0, i, j]) == pytest.approx(math.hypot(across, down) / 4, abs=1e-5)


def test_an_edge_from_black_to_white_is_one() -> None:
    images = torch.zeros(1, 1, 6, 6)
    images[..., 3:] = 1
    edges = intensity_and_edges(images)[1]
    assert torch.equal(edges[0, 0], torch.tensor([0.0, 0, 1, 1, 0, 0]).expand(6, 6))
    assert torch.equal(intensity_and_edges(1 - images)[1], edges)
    assert torch.equal(intensity_and_edges(images.mT)[1], edges.mT)

"""CIE L*a*b* against published values and against the CIE's formulas in Python floats."""

from __future__ import annotations

import pytest
import torch

from semisup.augment.kernels.lab import rgb_to_lab

PUBLISHED = {  # sRGB 8 bit: L*, a*, b* under D65, as color calculators give them
    (255, 255, 255): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (0, 255, 255): (91.11, -48.09, -14.13),
    (255, 0, 255): (60.32, 98.23, -60.82),
    (255, 255, 0): (97.14, -21.55, 94.48),
    (128, 128, 128): (53.59, 0.0, 0.0),
    (128, 0, 0): (25.54, 48.05, 38.06),
}


def slow_lab(r: float, g: float, b: float) -> list[float]:
    """By way of X, Y and Z with the matrix rounded to four digits, as the standard prints it, and the white D65."""

    def light(v: float) -> float:
        return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4

    def f(t: float) -> float:
        return t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116

    r, g, b = light(r), light(g), light(b)
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.0890
    return [116 * f(y) - 16, 500 * (f(x) - f(y)), 200 * (f(y) - f(z))]


@pytest.mark.parametrize(("rgb", "lab"), PUBLISHED.items())
def test_published_values(rgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    got = rgb_to_lab((torch.tensor(rgb) / 255).view(1, 3, 1, 1))
    assert got.flatten().tolist() == pytest.approx(lab, abs=0.01)


def test_formulas() -> None:
    images = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    got = rgb_to_lab(images)
    for n in range(4):
        for i in range(5):
            for j in range(6):
                assert got[n, :, i, j].tolist() == pytest.approx(slow_lab(*images[n, :, i, j].tolist()), abs=0.05)


def test_grays_have_no_color_and_lightness_rises() -> None:
    grays = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    lab = rgb_to_lab(grays)
    assert float(lab[:, 1:].abs().max()) < 1e-4
    assert (lab[0, 0].flatten().diff() > 0).all()


def test_bounds_precision_device_and_input() -> None:
    corners = torch.cartesian_prod(*[torch.linspace(0, 1, 9)] * 3).T.reshape(1, 3, 27, 27)
    before = corners.clone()
    lab = rgb_to_lab(corners)
    assert lab.amin((0, 2, 3)).tolist() == pytest.approx([0, -86.18, -107.86], abs=0.01)
    assert lab.amax((0, 2, 3)).tolist() == pytest.approx([100, 98.23, 94.48], abs=0.01)
    assert torch.equal(corners, before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rgb_to_lab(corners), lab)
    assert rgb_to_lab(torch.empty(2, 3, 4, 4, device="meta")).shape == (2, 3, 4, 4)

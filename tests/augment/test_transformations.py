"""Transformations: where corners go, what is to be predicted, and that every image has a draw of its own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from semisup.augment.kernels import ops
from semisup.augment.pretext.transformations import (
    affine_matrices,
    affine_targets,
    draw_affine,
    draw_colors,
    draw_projective,
    projective_matrices,
    projective_targets,
    recolor,
    warp,
)

CPU = torch.device("cpu")
FRAME = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def images(n: int = 3, size: int = 6, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def sent(matrices: Tensor, points: Tensor) -> Tensor:
    """(N, P, 2): where the matrices lead the points (P, 2) or (N, P, 2), divided by hand."""
    out = torch.zeros(len(matrices), points.shape[-2], 2)
    for n, matrix in enumerate(matrices.tolist()):
        for p, (x, y) in enumerate((points if points.ndim == 2 else points[n]).tolist()):
            a, b, w = (row[0] * x + row[1] * y + row[2] for row in matrix)
            out[n, p] = torch.tensor([a / w, b / w])
    return out


def affine(degrees: float = 0, right: float = 0, down: float = 0, scale: float = 1, shear: float = 0) -> Tensor:
    return affine_matrices(*(torch.tensor([float(v)]) for v in (degrees, right, down, scale, shear)))


def test_no_change() -> None:
    """methods.md 1.10: (1, 0, 0, 0, 0, 0) and (1, 0, -0.8, 0, 1, -0.8, 0, 0)."""
    targets = affine_targets(*(torch.tensor([v]) for v in (0.0, 0.0, 0.0, 1.0, 0.0)))
    torch.testing.assert_close(targets, torch.tensor([[1.0, 0, 0, 0, 0, 0]]))
    torch.testing.assert_close(affine(), torch.eye(3)[None])
    matrices = projective_matrices(FRAME[None])
    torch.testing.assert_close(matrices, torch.eye(3)[None])
    torch.testing.assert_close(projective_targets(matrices), torch.tensor([[1.0, 0, -0.8, 0, 1, -0.8, 0, 0]]))
    torch.testing.assert_close(warp(images(), torch.eye(3).expand(3, 3, 3)), images())
    torch.testing.assert_close(recolor(images(), torch.ones(3, 4)), images())


def test_affine_by_hand() -> None:
    """Each matrix reads from where the content came from."""
    center_and_right = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    moved = sent(affine(right=0.1, down=-0.2), center_and_right)[0]
    torch.testing.assert_close(moved, torch.tensor([[-0.2, 0.4], [0.8, 0.4]]))
    # Turned clockwise, what is now at the right was at the top.
    torch.testing.assert_close(sent(affine(degrees=90), center_and_right)[0, 1], torch.tensor([0.0, -1.0]))
    torch.testing.assert_close(sent(affine(scale=1.25), center_and_right)[0, 1], torch.tensor([0.8, 0.0]))
    down = torch.tensor([[0.0, math.cos(math.radians(30))]])
    torch.testing.assert_close(sent(affine(shear=30), down)[0, 0], torch.tensor([0.5, 1.0]))


def test_projective_warp_equals_torchvision() -> None:
    torch.manual_seed(5)
    size, x = 16, torch.rand(6, 3, 16, 16)
    places = FRAME + torch.empty(6, 4, 2).uniform_(-0.3, 0.3)
    ours = warp(x, projective_matrices(places))
    edges = [[0, 0], [size, 0], [size, size], [0, size]]
    for image, out, place in zip(x, ours, places, strict=True):
        theirs = tv.perspective_image(image, edges, ((place + 1) * size / 2).tolist())
        torch.testing.assert_close(out, theirs, atol=1e-4, rtol=0)


def test_warp_moves_pixels() -> None:
    x = images()
    by_one = affine(right=1 / 6).expand(3, 3, 3)
    torch.testing.assert_close(warp(x, by_one)[..., 1:], x[..., :-1])
    torch.testing.assert_close(warp(x, by_one)[..., 0], torch.zeros(3, 3, 6))
    torch.testing.assert_close(warp(x, affine(degrees=-90).expand(3, 3, 3)), torch.rot90(x, 1, (2, 3)))
    # Quarter turns of the corners are quarter turns of the image.
    for quarters in range(4):
        turned = projective_matrices(FRAME.roll(-quarters, 0)[None]).expand(3, 3, 3)
        torch.testing.assert_close(warp(x, turned), torch.rot90(x, -quarters, (2, 3)), rtol=1e-4, atol=1e-5)


def test_projective_matrices_lead_back_to_the_frame() -> None:
    corners = FRAME + 0.2 * torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sent(projective_matrices(corners), corners), FRAME.expand(5, 4, 2), rtol=1e-4, atol=1e-5)


def test_projective_targets_are_coefficients_in_pixels() -> None:
    """PIL's eight numbers for a 32 x 32 image, found point by point, less AET's mean and over its std."""
    torch.manual_seed(0)
    matrices, targets = draw_projective(4, CPU)
    mean, std = (0, 0, 16, 0, 0, 16, 0, 0), (1, 1, 20, 1, 1, 20, 0.015, 0.015)
    points = torch.tensor([[-0.7, 0.1], [0.3, 0.4], [0.9, -0.5]])
    for n in range(4):
        a, b, c, d, e, f, g, h = (t * s + m for t, s, m in zip(targets[n].tolist(), std, mean, strict=True))
        read = sent(matrices, points)[n]
        for p, (x, y) in enumerate((16 * points + 16).tolist()):
            w = g * x + h * y + 1
            expected = torch.tensor([(a * x + b * y + c) / w, (d * x + e * y + f) / w])
            torch.testing.assert_close(16 * read[p] + 16, expected, rtol=1e-4, atol=1e-3)


def test_affine_draws_are_what_their_targets_say() -> None:
    torch.manual_seed(0)
    for scale, shear in ((True, True), (True, False), (False, False)):
        matrices, targets = draw_affine(200, CPU, scale=scale, shear=shear)
        assert targets.shape == (200, 4 + scale + shear)
        cos, sin, right, down = targets[:, :4].T
        size = 1 + 0.2 * targets[:, 4] if scale else torch.ones(200)
        slant = 30 * targets[:, 5] if shear else torch.zeros(200)
        again = affine_matrices(torch.rad2deg(torch.atan2(sin, cos)), 0.2 * right, 0.2 * down, size, slant)
        torch.testing.assert_close(matrices, again, rtol=1e-3, atol=1e-4)
        assert float(targets.abs().max()) <= 1
        # Every number of every family uses its range: targets are normalized, and images differ.
        assert float(targets.amax(0).min()) > 0.9
        assert float(targets.amin(0).max()) < -0.9


def test_projective_draws_keep_the_horizon_out_of_the_image() -> None:
    torch.manual_seed(0)
    matrices, targets = draw_projective(5000, CPU)
    depth = matrices[:, 2, :2] @ FRAME.T + matrices[:, 2, 2:]
    assert float(depth.min()) > 0
    assert float(targets.std(0).min()) > 0.2
    assert float(targets.std(0).max()) < 2


def test_colors_against_the_single_operations() -> None:
    x = images()
    low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
    unit = (x - low) / (high - low)
    for column, operation in enumerate((ops.saturation, ops.contrast, ops.brightness, ops.sharpness)):
        factors = torch.ones(3, 4)
        factors[:, column] = torch.tensor([0.3, 1.0, 1.7])
        expected = operation(unit, factors[:, column]) * (high - low) + low
        torch.testing.assert_close(recolor(x, factors), expected)
        torch.testing.assert_close(recolor(x, factors)[1], x[1])
    assert bool(recolor(torch.zeros(2, 1, 4, 4), torch.full((2, 4), 0.5)).isfinite().all())


def test_color_draws() -> None:
    torch.manual_seed(0)
    factors = draw_colors(300, CPU)
    assert factors.shape == (300, 4)
    assert 0.2 <= float(factors.min()) < 0.25
    assert 1.75 < float(factors.max()) <= 1.8


def test_oblong_images_are_refused() -> None:
    with pytest.raises(ValueError, match="warp needs square images, got 4 x 5"):
        warp(torch.zeros(1, 1, 4, 5), torch.eye(3)[None])


def test_autocast_rounds_no_coordinate() -> None:
    def everything() -> list[Tensor]:
        torch.manual_seed(0)
        matrices, targets = draw_projective(3, CPU)
        return [matrices, targets, *draw_affine(3, CPU, scale=True, shear=True), warp(images(), matrices)]

    outside = everything()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = everything()
    for a, b in zip(outside, inside, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)

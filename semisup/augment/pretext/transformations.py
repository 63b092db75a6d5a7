"""Transformations of images whose parameters can be asked for: what AET and EnAET predict.

Drawn on the CPU from torch's global generator, so that every device sees the same numbers, and moved without waiting.
Matrices (N, 3, 3) lead from a place (x, y, 1) in the result to the place in the image that is read there, as PIL's do;
both run from -1 (left, top edge) to 1 (right, bottom edge). Images are square.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.augment.kernels import ops
from semisup.augment.kernels.normalize import batch_range

__all__ = [
    "affine_matrices",
    "affine_targets",
    "draw_affine",
    "draw_colors",
    "draw_projective",
    "projective_matrices",
    "projective_targets",
    "recolor",
    "warp",
]

# Ranges of ops/argparser.py of maple-research-lab/EnAET.
DEGREES = 180.0  # of the turn, to either side
SHIFT = 0.2  # of the side
SCALE = (0.8, 1.2)
SHEAR = 30.0  # degrees to either side
CORNER_SHIFT = 4 / 32  # of the side, of each corner along each axis; there whole pixels
COLOR = (0.2, 1.8)
# Of the eight coefficients in pixels of a 32 x 32 image, the origin at its corner: from AET's code.
COEFFICIENT_MEAN = (0.0, 0.0, 16.0, 0.0, 0.0, 16.0, 0.0, 0.0)
COEFFICIENT_STD = (1.0, 1.0, 20.0, 1.0, 1.0, 20.0, 0.015, 0.015)


def draw_affine(count: int, device: torch.device, *, scale: bool, shear: bool) -> tuple[Tensor, Tensor]:
    """Draw affine transformations; without shear similarities, without scale too Euclidean motions.

    Args:
        count: N.
        device: where the images are.
        scale: whether sizes change, by 0.8 to 1.2.
        shear: whether images are sheared, by up to 30 degrees.

    Returns:
        Matrices (N, 3, 3) and targets (N, 4 + scale + shear), see `affine_targets`.
    """
    draws = torch.rand(5, count, device="cpu").mul(2).sub(1)
    degrees, right, down = draws[0] * DEGREES, draws[1] * SHIFT, draws[2] * SHIFT
    factors = (SCALE[0] + SCALE[1] + draws[3] * (SCALE[1] - SCALE[0])) / 2 if scale else torch.ones_like(degrees)
    slants = draws[4] * SHEAR if shear else torch.zeros_like(degrees)
    matrices = affine_matrices(degrees, right, down, factors, slants)
    targets = affine_targets(degrees, right, down, factors, slants)[:, : 4 + scale + shear]
    return matrices.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def affine_matrices(degrees: Tensor, right: Tensor, down: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """(N, 3, 3) matrices that shear, scale, turn clockwise about the center, and then move the content.

    Args:
        degrees: (N,) of the turn.
        right: (N,) fractions of the side.
        down: (N,) fractions of the side.
        scale: (N,) factors > 0; above 1 enlarges.
        shear: (N,) degrees in (-90, 90).
    """
    turn, slant = torch.deg2rad(degrees), torch.deg2rad(degrees + shear)
    zero, one = torch.zeros_like(turn), torch.ones_like(turn)
    forward = [
        *(scale * turn.cos(), -scale * slant.sin(), 2 * right),
        *(scale * turn.sin(), scale * slant.cos(), 2 * down),
        *(zero, zero, one),
    ]
    matrices: Tensor = torch.linalg.inv(torch.stack(forward, dim=1).view(-1, 3, 3))
    return matrices


def affine_targets(degrees: Tensor, right: Tensor, down: Tensor, scale: Tensor, shear: Tensor) -> Tensor:
    """(N, 6) in [-1, 1]: cosine and sine of the turn, shifts, scale and shear, each over its range.

    The angle itself would jump where a turn is full. No change at all is (1, 0, 0, 0, 0, 0).

    Args: as of `affine_matrices`.
    """
    turn = torch.deg2rad(degrees)
    size = (2 * scale - SCALE[0] - SCALE[1]) / (SCALE[1] - SCALE[0])
    return torch.stack([turn.cos(), turn.sin(), right / SHIFT, down / SHIFT, size, shear / SHEAR], dim=1)


def draw_projective(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw projective transformations: the frame is scaled, turned by quarters, and each of its corners moved.

    Args:
        count: N.
        device: where the images are.

    Returns:
        Matrices (N, 3, 3) and targets (N, 8), see `projective_targets`.
    """
    scale = torch.empty(count, 1, 1, device="cpu").uniform_(*SCALE)
    quarters = torch.randint(4, (count, 1), device="cpu")
    shifts = torch.empty(count, 4, 2, device="cpu").uniform_(-2 * CORNER_SHIFT, 2 * CORNER_SHIFT)
    corners = _corners()[(torch.arange(4, device="cpu") + quarters) % 4]
    matrices = projective_matrices(corners * scale + shifts)
    return matrices.to(device, non_blocking=True), projective_targets(matrices).to(device, non_blocking=True)


def projective_matrices(corners: Tensor) -> Tensor:
    """(N, 3, 3) matrices that put the image's corners at (N, 4, 2) places (x, y): top left one first, then clockwise.

    Solves eight equations for each, in double precision.
    """
    x, y = corners.double().unbind(2)
    u, v = (c.expand_as(x) for c in _corners().double().unbind(1))
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    left = torch.cat(
        [
            torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], dim=2),
            torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], dim=2),
        ],
        dim=1,
    )
    coefficients = torch.linalg.solve(left, torch.cat([u, v], dim=1))
    return torch.cat([coefficients, one[:, :1]], dim=1).view(-1, 3, 3).to(corners.dtype)


def projective_targets(matrices: Tensor) -> Tensor:
    """(N, 8) coefficients of (N, 3, 3) `matrices`, in pixels of a 32 x 32 image, less a mean and over a std.

    As they are the last two would vanish next to the others. No change at all is (1, 0, -0.8, 0, 1, -0.8, 0, 0).
    """
    half = 16.0
    to_pixels = torch.tensor([[half, 0, half], [0, half, half], [0, 0, 1]], dtype=torch.float64, device=matrices.device)
    pixels = to_pixels @ matrices.double() @ torch.linalg.inv(to_pixels)
    coefficients: Tensor = (pixels / pixels[:, 2:, 2:]).flatten(1)[:, :8]
    mean, std = (coefficients.new_tensor(values) for values in (COEFFICIENT_MEAN, COEFFICIENT_STD))
    return ((coefficients - mean) / std).to(matrices.dtype)


def _corners() -> Tensor:
    """(4, 2): top left, top right, bottom right, bottom left."""
    return torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], device="cpu")


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Resample every image once, bilinearly, at the places that its matrix names.

    Outside is 0, which is the mean of normalized images.

    Args:
        images: (N, C, S, S), of any range.
        matrices: (N, 3, 3).

    Raises:
        ValueError: the images are not square.
    """
    size = images.shape[-1]
    if images.shape[-2] != size:
        raise ValueError(f"warp needs square images, got {images.shape[-2]} x {size}")
    centers = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * (2 / size) - 1
    y, x = centers[:, None], centers
    # Sums and not a matrix product, which autocast would round.
    at = [m[:, 0, None, None] * x + m[:, 1, None, None] * y + m[:, 2, None, None] for m in matrices.unbind(1)]
    grid = torch.stack([at[0] / at[2], at[1] / at[2]], dim=3).to(images.dtype)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def draw_colors(count: int, device: torch.device) -> Tensor:
    """Draw (N, 4) factors of saturation, contrast, brightness and sharpness in [0.2, 1.8]; 1 changes nothing.

    EnAET predicts them as they are.
    """
    return torch.empty(count, 4, device="cpu").uniform_(*COLOR).to(device, non_blocking=True)


def recolor(images: Tensor, factors: Tensor) -> Tensor:
    """Change saturation, contrast, brightness and sharpness of normalized images, in this order.

    Black and white are taken to be the darkest and the brightest value of each channel in the batch, since what the
    images were normalized by is not known here. Gray images have no saturation.

    Args:
        images: (N, C, H, W), of any range.
        factors: (N, 4) >= 0.
    """
    low, span = batch_range(images)
    out = (images - low) / span
    for operation, factor in zip((ops.saturation, ops.contrast, ops.brightness, ops.sharpness), factors.T, strict=True):
        out = operation(out, factor)
    return out * span + low

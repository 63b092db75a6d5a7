"""Patches of images that are easy to recognize, and the transformations of one that Exemplar-CNN takes for a class.

What is random here comes from torch's global generator, on the images' device. Images are normalized ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.augment.kernels import ops
from semisup.augment.kernels.normalize import batch_range

__all__ = ["draw_changes", "draw_places", "transform_patches"]

# Ranges of arXiv:1406.6909, sec. 3.1. Factors and powers are drawn uniformly in their logarithms, powers and factors of
# saturation and value as in google-research/s4l.
SHIFT = 0.2  # of the patch's side
SCALE = 0.5  # octaves: 0.71 to 1.41
DEGREES = 20.0
CONTRAST = 1.0  # octaves: 0.5 to 2, of each axis of color
POWER = 2.0  # octaves: 1/4 to 4, of value and of saturation
FACTOR = 0.5  # octaves: 0.71 to 1.41, likewise
OFFSET = 0.1  # likewise
HUE = 0.1  # of the circle
NUMBERS = 14
# Light, blue to yellow, green to red: near the principal components of photographs, and found without looking at data.
COLOR_AXES = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))


def draw_places(images: Tensor, width: int) -> Tensor:
    """Draw a patch of every image where something is to be seen: more likely the larger its mean squared gradient.

    Args:
        images: (N, C, S, S).
        width: of a patch in pixels, at most S.

    Returns:
        (N, 2): center (x, y) of each patch, between -1 (left, top edge) and 1 (right, bottom edge). The patch is inside
        the image.
    """
    side = images.shape[-1]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).square().sum(1, keepdim=True)
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).square().sum(1, keepdim=True)
    energy = F.avg_pool2d(across + down, width, stride=1).flatten(1) + 1e-8  # an image of one value: anywhere
    chosen = (energy / torch.empty_like(energy).exponential_()).argmax(1)  # each as likely as its share
    places = side - width + 1
    corners = torch.stack([chosen % places, chosen // places], dim=1)
    return (corners + width / 2) * (2 / side) - 1


def draw_changes(count: int, device: torch.device) -> Tensor:
    """Draw (N, 14) numbers in [-1, 1] for `transform_patches`; 0 changes nothing."""
    return torch.rand(count, NUMBERS, device=device) * 2 - 1


def transform_patches(images: Tensor, places: Tensor, width: int, changes: Tensor) -> Tensor:
    """Cut a patch out of every image, moved, scaled, turned and recolored.

    Columns of `changes`: shift to the right and down, scale, turn; contrast of the three axes of color (gray images
    have one); power, factor and offset of the value of HSV, the same of its saturation; hue. What lies beyond the edge
    of the image repeats it. Black and white are the extremes of each channel in the batch.

    Args:
        images: (N, C, S, S) normalized; mean 0 is what contrast is about.
        places: (N, 2) of `draw_places`.
        width: of a patch in pixels.
        changes: (N, 14) in [-1, 1], the full range of each.

    Returns:
        (N, C, width, width).
    """
    part = width / images.shape[-1]
    low, span = batch_range(images)

    extent = part * torch.exp2(-SCALE * changes[:, 2])  # a larger scale reads a smaller piece
    turn = torch.deg2rad(DEGREES * changes[:, 3])
    centers = (torch.arange(width, device=images.device, dtype=images.dtype) + 0.5) * (2 / width) - 1
    x, y = centers.expand(width, width), centers[:, None].expand(width, width)
    cos, sin = ((extent * f).view(-1, 1, 1) for f in (turn.cos(), turn.sin()))
    middle = (places - 2 * SHIFT * part * changes[:, :2]).view(-1, 2, 1, 1)
    grid = torch.stack([middle[:, 0] + cos * x + sin * y, middle[:, 1] - sin * x + cos * y], dim=3)
    patches = F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)

    unit = ((_contrast(patches, torch.exp2(CONTRAST * changes[:, 4:7])) - low) / span).clamp(0, 1)
    return _recolor(unit, changes[:, 7:]) * span + low


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Stretch every image about 0 by (N, 3) factors of the axes of color, a gray one by its first."""
    if images.shape[1] == 1:
        return images * factors[:, :1, None, None]
    colors = torch.tensor(COLOR_AXES, dtype=images.dtype, device="cpu")
    axes = F.normalize(colors.to(images.device, non_blocking=True), dim=1)
    # (N, 3, 3): axes' diag(factors) axes. Products and sums, since autocast would round a matrix product.
    mixing = (axes[None, :, :, None] * axes[None, :, None, :] * factors[:, :, None, None]).sum(1)
    return (mixing[..., None, None] * images[:, None]).sum(2)


def _recolor(images: Tensor, changes: Tensor) -> Tensor:
    """Change value, saturation and hue of images in [0, 1] by (N, 7) numbers in [-1, 1]."""

    def curve(x: Tensor, column: int) -> Tensor:
        power, factor, offset = (changes[:, column + i].view(-1, 1, 1, 1) for i in range(3))
        return (torch.exp2(FACTOR * factor) * x ** torch.exp2(POWER * power) + OFFSET * offset).clamp(0, 1)

    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    saturation = chroma / value.clamp(min=1e-6)
    # Gray pixels have no hue and stay gray.
    shade = (value - images) / chroma.clamp(min=1e-6)
    recolored = curve(value, 0) * (1 - curve(saturation, 3) * shade)
    return ops.hue(recolored, HUE * changes[:, 6])

"""Images as grids of patches, and which of the patches to hide."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["hide_blocks", "join_patches", "random_order", "split_patches"]

ASPECT = 0.3  # of a block, height over width at the least; at most 1 / 0.3, as in BEiT
TRIES = 10  # blocks drawn for an image; as many as BEiT tries before it gives up


def split_patches(images: Tensor, patch: int) -> Tensor:
    """Cut images `(N, C, H, W)` into patches `(N, T, patch * patch * C)`, row by row, channels last within each.

    Args:
        images: sides are multiples of `patch`.
        patch: side of a patch in pixels.
    """
    count, channels, height, width = images.shape
    grid = images.reshape(count, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def join_patches(patches: Tensor, rows: int, columns: int, channels: int) -> Tensor:
    """Put patches back together: the inverse of `split_patches`.

    Args:
        patches: (N, rows * columns, patch * patch * channels).
        rows: of patches.
        columns: of patches.
        channels: of the images.
    """
    count, _, values = patches.shape
    side = math.isqrt(values // channels)
    grid = patches.reshape(count, rows, columns, side, side, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(count, channels, rows * side, columns * side)


def random_order(count: int, patches: int, device: torch.device) -> Tensor:
    """Draw a permutation of the patches for each image: (count, patches) int64."""
    return torch.rand(count, patches, device=device).argsort(dim=1)


def hide_blocks(count: int, rows: int, columns: int, hidden: int, smallest: int, device: torch.device) -> Tensor:
    """Draw which patches to hide, in rectangles that may overlap: (count, rows * columns) bool, `hidden` in each row.

    BEiT (Bao et al. 2022, arXiv:2106.08254, alg. 1): rectangles of a random area between `smallest` and what is left
    to hide, of a log-uniform aspect between 0.3 and 1 / 0.3, one after another, leaving out those that would hide too
    much. There an image draws until enough is hidden, here all images draw ten, and what is missing then is filled by
    single patches: nothing waits for the device, and every image has equally many.

    Args:
        count: number of images.
        rows: of patches.
        columns: of patches.
        hidden: number of patches to hide in each image, at most rows * columns.
        smallest: area of a rectangle at the least, in patches.
        device: where to draw.
    """
    row = torch.arange(rows, device=device)[:, None]
    column = torch.arange(columns, device=device)
    mask = torch.zeros(count, rows, columns, dtype=torch.bool, device=device)
    for _ in range(TRIES):
        area, aspect, top, left = torch.rand(4, count, 1, 1, device=device)
        missing = hidden - mask.sum((1, 2), keepdim=True)
        area = smallest + area * (missing - smallest).clamp(min=0)
        aspect = torch.exp((2 * aspect - 1) * math.log(ASPECT))
        height = (area * aspect).sqrt().round().clamp(1, rows)
        width = (area / aspect).sqrt().round().clamp(1, columns)
        top, left = (top * (rows - height + 1)).floor(), (left * (columns - width + 1)).floor()
        block = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        larger = mask | block
        mask = torch.where(larger.sum((1, 2), keepdim=True) <= hidden, larger, mask)
    # Hidden patches come first, the others in a random order behind them.
    order = (mask.flatten(1).float() + torch.rand(count, rows * columns, device=device)).argsort(dim=1, descending=True)
    return order.argsort(dim=1) < hidden

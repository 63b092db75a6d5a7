"""Histograms of oriented gradients: which way the edges of a small cell run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["hog"]

BINS = 9  # of 20 degrees: an edge and its negative fall into one


def hog(images: Tensor, cell: int, window: int) -> Tensor:
    """Return normalized histograms of oriented gradients, one for each cell and channel.

    Dalal and Triggs 2005 in the form that MaskFeat predicts (arXiv:2112.09133, sec. 2.2; HOGGenerator of
    open-mmlab/mmpretrain): Sobel's kernels on the image mirrored at its border, nine unsigned directions, votes
    weighted by the gradient's length and a Gaussian over each window, unit length over the bins. A cell without any
    edge is 0. Contrast and brightness of a channel, also negative contrast, change nothing. Computed without a matrix
    product or convolution, hence in float32 inside autocast too.

    Args:
        images: (N, C, H, W), of any range; sides are multiples of `cell` and `window`, at least 2.
        cell: side of a cell in pixels. MaskFeat: 8 of 224.
        window: side of the Gaussian's tiles in pixels, whose std is half of it. MaskFeat: 16, its patch.

    Returns:
        (N, C, 9, H / cell, W / cell).
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    across = rows[..., :-2] - rows[..., 2:]  # (N, C, H, W)
    down = columns[:, :, :-2] - columns[:, :, 2:]
    direction = (torch.atan2(across, down) / math.pi * BINS).floor().long() % BINS
    weight = torch.hypot(across, down) * _gaussian(window, images).repeat(height // window, width // window)
    votes = weight.new_zeros(count, channels, BINS, height, width)
    votes.scatter_(2, direction[:, :, None], weight[:, :, None])
    cells = votes.unflatten(4, (width // cell, cell)).sum(5).unflatten(3, (height // cell, cell)).sum(4)
    return F.normalize(cells, dim=2)


def _gaussian(side: int, like: Tensor) -> Tensor:
    """(side, side), 1 in the middle of all pixels; its height cancels out."""
    place = torch.arange(side, device=like.device, dtype=like.dtype) - (side - 1) / 2
    profile = torch.exp(-0.5 * (place / (side / 2)) ** 2)
    return profile[:, None] * profile

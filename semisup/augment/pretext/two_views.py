"""Two pictures of one image that have no number in common but show the same thing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.augment.kernels.lab import rgb_to_lab
from semisup.augment.kernels.normalize import batch_range

__all__ = ["intensity_and_edges", "lightness_and_color"]

# What a and b of Lab can be on a screen, as in HobbitLong/CMC, train_CMC.py.
LOWEST, HIGHEST = (-86.183, -107.857), (98.233, 94.478)


def lightness_and_color(images: Tensor) -> tuple[Tensor, Tensor]:
    """Take normalized color images apart into how light and of what color they are (L, and a and b, of CIE Lab).

    Black and white are taken to be the darkest and the brightest value of each channel in the batch, as in
    `semisup.augment.pretext.transformations.recolor`, since what the images were normalized by is not known here.

    Args:
        images: (N, 3, H, W), of any range.

    Returns:
        The lightness as a gray image, normalized as the input was, and a, b over their ranges in [-1, 1], with a third
        channel of 0: both (N, 3, H, W), for networks that take color images.
    """
    low, span = batch_range(images)
    lab = rgb_to_lab((images - low) / span)
    lightness = lab[:, :1] / 100 * span + low
    ends = torch.tensor([LOWEST, HIGHEST], dtype=lab.dtype, device="cpu").view(2, 2, 1, 1)
    lowest, highest = ends.to(lab.device, non_blocking=True)
    color = (2 * lab[:, 1:] - lowest - highest) / (highest - lowest)
    return lightness, torch.cat([color, torch.zeros_like(color[:, :1])], dim=1)


def intensity_and_edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return images and how steeply they rise and fall: the length of Sobel's gradient, over 4.

    An upright edge from 0 to 1 gives 1. At the border the image goes on as it ends. Sums and no convolution, which
    autocast would round.

    Args:
        images: (N, C, H, W), of any range.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 2:] - padded[..., :-2]
    down = padded[..., 2:, :] - padded[..., :-2, :]
    across = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    down = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return images, torch.hypot(across, down) / 4

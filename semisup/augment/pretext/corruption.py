"""Damage to images that a network is to undo."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Corruption", "corrupt"]

Corruption = Literal["masking", "gaussian", "salt_and_pepper"]


def corrupt(images: Tensor, kind: Corruption, amount: float) -> Tensor:
    """Damage normalized images at random, every pixel for itself (Vincent et al. 2010, JMLR 11, sec. 3.3).

    A pixel is hit in all its channels at once, or the others would tell the one that was hit. Draws from torch's
    global generator of the images' device.

    Args:
        images: (N, C, H, W).
        kind: "masking" sets pixels to 0, the mean of the data; "salt_and_pepper" sets them to the brightest or the
            darkest value of each channel in the batch, at even odds; "gaussian" adds noise to all of them.
        amount: the part of the pixels that is hit, 0 to 1; for "gaussian" the noise's std, in the images' units.

    Returns:
        New images; the input stays as it is.
    """
    if kind == "gaussian":
        return images + amount * torch.randn_like(images)
    hit, side = torch.rand(2, len(images), 1, *images.shape[2:], device=images.device)
    if kind == "masking":
        return torch.where(hit < amount, 0.0, images)
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    return torch.where(hit < amount, torch.where(side < 0.5, low, high), images)

"""Puzzles that an image poses without any label: which way up is it?"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["four_rotations", "rotate_quarters"]


def four_rotations(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate every image by 0, 1, 2 and 3 quarter turns.

    RotNet (Gidaris et al. 2018, arXiv:1803.07728, sec. 2.1): all four copies of one augmented image. Augment before
    rotating: what padding or cropping draws afterwards would tell the answer.

    Args:
        images: (N, C, S, S), square.

    Returns:
        Copies (4N, C, S, S) in channels_last memory, the four of an image side by side, and their quarter turns (4N,)
        int64: 0, 1, 2, 3, 0, 1, ... What belongs to an image (its label) goes with `repeat_interleave(4)`.

    Raises:
        ValueError: the images are not square.
    """
    quarters = torch.arange(4, device=images.device).repeat(len(images))
    return _turned(images).transpose(0, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last), quarters


def rotate_quarters(images: Tensor, quarters: Tensor) -> Tensor:
    """Rotate every image by a number of quarter turns of its own, anticlockwise, as `torch.rot90` does.

    No host synchronisation; costs the memory of four copies for a moment.

    Args:
        images: (N, C, S, S), square.
        quarters: (N,) int64 in [0, 4), on the images' device.

    Returns:
        (N, C, S, S) in channels_last memory.

    Raises:
        ValueError: the images are not square, or `quarters` is not (N,).
    """
    if quarters.shape != images.shape[:1]:
        raise ValueError(f"quarters must have shape ({len(images)},), one per image, got {tuple(quarters.shape)}")
    chosen = _turned(images)[quarters, torch.arange(len(images), device=images.device)]
    return chosen.contiguous(memory_format=torch.channels_last)


def _turned(images: Tensor) -> Tensor:
    """(4, N, C, S, S): the batch by 0, 1, 2 and 3 quarter turns."""
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"rotation by quarters takes square images (N, C, S, S), got {tuple(images.shape)}")
    # Transposing and mirroring move pixels without computing on them, so that turns compose bit for bit.
    across = images.transpose(2, 3)
    return torch.stack([images, across.flip(2), images.flip(2, 3), across.flip(3)])

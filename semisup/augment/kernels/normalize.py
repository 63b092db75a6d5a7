"""From stored bytes to augmented floats, and from those to what the network is fed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Normalize", "batch_range", "to_float"]


def to_float(images: Tensor) -> Tensor:
    """Turn stored images into what augmentation works on.

    Args:
        images: (N, H, W, C) uint8, on any device.

    Returns:
        (N, C, H, W) float32 in [0, 1], channels_last (the same order in memory: one pass, no transposition).
    """
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)


class Normalize(nn.Module):
    """(x - mean) / std per channel: the last step before the network.

    Mean and std are buffers: they follow the module to its device and are saved with its weights.

    Args:
        mean: C numbers, of images in [0, 1].
        std: C numbers above 0.

    Raises:
        ValueError: unequal lengths, or a std that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"mean and std must be as long as each other, got {len(mean)} and {len(std)} numbers")
        if not all(value > 0 for value in std):
            raise ValueError(f"std must be above 0, got {list(std)}")
        self.register_buffer("mean", torch.tensor([float(value) for value in mean]))
        self.register_buffer("std", torch.tensor([float(value) for value in std]))

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, C, H, W) images, normalized.

        Raises:
            ValueError: the images have other than C channels (one would be stretched to three without a word).
        """
        if images.shape[1] != len(self.mean):
            raise ValueError(f"images have {images.shape[1]} channels, mean and std {len(self.mean)}")
        return (images - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def undo(self, images: Tensor) -> Tensor:
        """Return what (N, C, H, W) normalized images were before."""
        return images * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)


def batch_range(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the darkest value of each channel in the batch and how far it is to the brightest, both (1, C, 1, 1).

    Stands in for black and white where it is not known what the images were normalized by.

    Args:
        images: (N, C, H, W), of any range.
    """
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    return low, (high - low).clamp(min=1e-6)

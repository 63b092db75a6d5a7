"""What a stage is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semisup.augment import Normalize, to_float
from semisup.config import Recipe, StageConfig
from semisup.data import ImageData, LabelBudget
from semisup.stages.artifact import Artifact

__all__ = ["StageContext", "channel_statistics"]


@dataclass(frozen=True)
class StageContext:
    """One stage of one recipe, with everything it may read and the folder it may write."""

    name: str
    config: StageConfig
    recipe: Recipe
    data: ImageData
    """Holds every label, hidden ones too: for the evaluator. Training gets `training_images` alone."""
    budget: LabelBudget
    inputs: Mapping[str, Artifact]
    """Finished stages that this one names."""
    steps: int
    folder: Path
    device: torch.device
    precision: str
    statistics: tuple[list[float], list[float]]
    """Mean and deviation per channel of the training images."""
    on_log: Callable[[int, dict[str, float]], None] = field(default=lambda step, values: None)

    def normalize(self) -> Normalize:
        """The last step before the network."""
        return Normalize(*self.statistics).to(self.device)

    def clean_batches(self, images: np.ndarray, size: int = 512) -> Iterator[Tensor]:
        """Images (N, H, W, C) uint8 as normalised batches without augmentation, for evaluation."""
        normalize = self.normalize()
        for start in range(0, len(images), size):
            chunk = torch.tensor(images[start : start + size], device=self.device)  # a copy: the store may be read-only
            yield normalize(to_float(chunk))


def channel_statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of (N, H, W, C) uint8 images scaled to [0, 1].

    A constant channel gets deviation 1. Sums run over 64-bit integers: exact, and without a float copy of the set.
    """
    values = images.reshape(-1, images.shape[-1])
    mean, std = [], []
    for channel in range(values.shape[1]):
        counts = np.bincount(values[:, channel], minlength=256)
        levels = np.arange(256) / 255
        m = float((counts * levels).sum() / counts.sum())
        v = float((counts * (levels - m) ** 2).sum() / counts.sum())
        mean.append(m)
        std.append(v**0.5 or 1.0)
    return mean, std

"""What a stage is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from semisup.augment import Normalize, to_float
from semisup.data import ImageData, LabelBudget, take
from semisup.settings import Recipe, StageConfig
from semisup.stages.artifact import Artifact
from semisup.stages.networks import Network

__all__ = ["StageContext", "clean_batches"]


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
    network: Network | None
    """That it trains; None for a stage that does not train."""
    device: torch.device
    precision: str
    statistics: tuple[list[float], list[float]]
    """Mean and standard deviation per channel of the training images."""
    on_log: Callable[[int, dict[str, float]], None] = field(default=lambda step, values: None)
    say: Callable[[str], None] = field(default=lambda line: None)
    """Tells a person what a long stage without steps does."""
    again: Callable[[str, LabelBudget, Path], StageContext] | None = None
    """Runs an earlier stage, and those before it that read labels, once more with other labels below a folder; returns
    a context that has the finished ones among its inputs. Test images have no part in it."""

    def origins(self, own: str | None = None) -> list[str]:
        """Return which published or own weights this stage and those that it reads began with, and their licenses.

        Args:
            own: this stage's; None: random ones, or none.
        """
        found = {note for artifact in self.inputs.values() for note in artifact.record.get("origins", [])}
        return sorted(found | ({own} if own is not None else set()))

    def normalize(self) -> Normalize:
        """Return the last step before the network."""
        return Normalize(*self.statistics).to(self.device)

    def clean_batches(self, images: np.ndarray, rows: np.ndarray | None = None, size: int = 128) -> Iterator[Tensor]:
        """Yield images (N, H, W, C) uint8, or some rows of them, as `clean_batches`."""
        return clean_batches(images, self.normalize(), self.device, rows, size)


def clean_batches(
    images: np.ndarray, normalize: Normalize, device: torch.device, rows: np.ndarray | None = None, size: int = 128
) -> Iterator[Tensor]:
    """Yield images (N, H, W, C) uint8 as normalized batches without augmentation, for evaluation.

    Args:
        images: in memory, or a memory map, which is read a batch at a time.
        normalize: the last step.
        device: of the batches.
        rows: which images, in this order; None: all of them.
        size: images per batch. On 2 cores 128 take no longer than 512, with the same predictions bit for bit, and need
            less memory than a training step.
    """
    for start in range(0, len(images) if rows is None else len(rows), size):
        part = slice(start, start + size)
        yield normalize(to_float(torch.from_numpy(take(images, part if rows is None else rows[part])).to(device)))

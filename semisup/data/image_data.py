"""The one shape every data source takes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["ImageData", "channel_statistics"]


@dataclass(frozen=True)
class ImageData:
    """Images and labels of one data set, all of one size, decoded and in memory.

    Attributes:
        name: the source's name, e.g. ``digits``.
        x_train: training images, uint8 (n, size, size, channels), channels 1 or 3.
        y_train: their classes, int64 (n,), 0 .. num_classes - 1, or -1 where the label is unknown.
        x_test: test images, same size and channels; never shown to training code.
        y_test: their classes, int64, all known.
        classes: the classes' names.
        flip: whether mirroring left to right keeps an image's class.
    """

    name: str
    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    classes: list[str]
    flip: bool

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def size(self) -> int:
        """Height and width of every image, pixels."""
        return int(self.x_train.shape[1])

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (colour)."""
        return int(self.x_train.shape[3])

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and deviation per channel of the training images, see :func:`channel_statistics`; computed once."""
        return channel_statistics(self.x_train)

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 of shapes, pixels, labels and class names; about 0.2 s per 100 MB, computed once."""
        digest = hashlib.sha256()
        # Fixed byte order, so that every machine finds the same hash.
        labels = [self.y_train.astype("<i8"), self.y_test.astype("<i8")]
        for array in (self.x_train, self.x_test, *labels):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        digest.update(repr(self.classes).encode())
        return digest.hexdigest()


def channel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
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

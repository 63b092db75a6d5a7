"""The one shape every data source takes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from semisup.data.rows import resident_bytes, take

__all__ = ["ImageData", "Known", "channel_levels", "channel_statistics", "level_notes", "mean_and_deviation"]


@dataclass(frozen=True)
class Known:
    """What is known of stored images without reading them again.

    Attributes:
        pixels: a hash of all images in their order.
        statistics: mean and std per channel of the training images.
    """

    pixels: str
    statistics: tuple[list[float], list[float]]


@dataclass(frozen=True)
class ImageData:
    """Images and labels of one data set, all of one size, decoded.

    The images are in memory, or in a read-only `numpy.memmap` where they may not fit: look at those through
    `semisup.data.take`, some at a time.

    Attributes:
        name: the source's name, e.g. `digits`.
        x_train: training images, uint8 (n, size, size, channels), channels 1 or 3.
        y_train: their classes, int64 (n,), 0 .. num_classes - 1, or -1 where the label is unknown.
        x_test: test images, same size and channels; never shown to training code.
        y_test: their classes, int64, all known.
        classes: the classes' names.
        flip: whether mirroring left to right keeps an image's class.
        x_val: images that only validate, never trained on, same size and channels; None: the source has none.
        y_val: their classes, int64, all known.
        known: what was measured when the images were stored; None: it is measured when it is asked for.
        notes: what a person should know about the data, a sentence each.
    """

    name: str
    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    classes: list[str]
    flip: bool
    x_val: NDArray[np.uint8] | None = None
    y_val: NDArray[np.int64] | None = None
    known: Known | None = None
    notes: tuple[str, ...] = ()

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
        """1 (gray) or 3 (color)."""
        return int(self.x_train.shape[3])

    def validation(self, held: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        """Return what validates: images, the rows of them, and the classes of these; no rows where nothing does.

        Args:
            held: rows of the training images that the label budget holds out; the data's own validation images, if
                there are any, take their place.
        """
        if self.x_val is not None and self.y_val is not None:
            return self.x_val, np.arange(len(self.x_val)), self.y_val
        return self.x_train, held, self.y_train[held]

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the images take."""
        parts = [self.x_train, self.x_test] if self.x_val is None else [self.x_train, self.x_test, self.x_val]
        return sum(resident_bytes(images) for images in parts)

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and std per channel of the training images, see `channel_statistics`; computed once."""
        return channel_statistics(self.x_train) if self.known is None else self.known.statistics

    @cached_property
    def background(self) -> float:
        """What one-channel images have around their objects, 0 to 1; 0 in color, where gray stands for it.

        It is the median of the borders of the first 2,000 training images.
        """
        if self.channels != 1:
            return 0.0
        images = take(self.x_train, slice(0, 2000))[..., 0]
        border = [images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]]
        return round(float(np.median(np.concatenate([side.ravel() for side in border]))) / 255, 2)

    @cached_property
    def hash(self) -> str:
        """Hex SHA-256 of shapes, pixels, labels and class names; about 0.2 s per 100 MB, computed once.

        Of stored images, the hash that their store has is taken for their pixels.
        """
        digest = hashlib.sha256()
        images = [self.x_train, self.x_test]
        # Fixed byte order, so that every machine finds the same hash.
        labels = [self.y_train.astype("<i8"), self.y_test.astype("<i8")]
        if self.x_val is not None and self.y_val is not None:
            images, labels = [*images, self.x_val], [*labels, self.y_val.astype("<i8")]
        if self.known is not None:
            digest.update(self.known.pixels.encode())
        for array in (*images, *labels):
            digest.update(repr(array.shape).encode())
            if self.known is None or array.ndim == 1:
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        digest.update(repr(self.classes).encode())
        return digest.hexdigest()


def channel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of (N, H, W, C) uint8 images scaled to [0, 1].

    A constant channel gets std 1. Sums run over 64-bit integers: exact, and without a float copy of the set.
    """
    return mean_and_deviation(channel_levels(images))


def channel_levels(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many pixels of (N, H, W, C) images have each of the 256 levels, (C, 256).

    Read a million bytes at a time, of which numpy makes 64-bit integers.
    """
    chunk = max(1, 2**20 // max(1, images[:1].size))
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), chunk):
        values = take(images, slice(start, start + chunk)).reshape(-1, images.shape[-1])
        for channel in range(len(counts)):
            counts[channel] += np.bincount(values[:, channel], minlength=256)
    return counts


def level_notes(images: NDArray[np.uint8], what: str = "images") -> list[str]:
    """Say so if the first images have hardly any levels: of 12-bit values in files of 16 bits, 17 are left.

    Args:
        images: (N, H, W, C).
        what: they are called.
    """
    some = take(images, slice(0, 200))
    top = int(some.max()) if some.size else 255
    if top > 31:
        return []
    return [
        f"the brightest value of the first {len(some)} {what} is {top} of 255; if they are 12-bit values in 16 bits, "
        f"or 0 to 1, scale them to the whole range first"
    ]


def mean_and_deviation(levels: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Turn `channel_levels` into what `channel_statistics` returns."""
    mean, std = [], []
    for counts in levels:
        values = np.arange(256) / 255
        m = float((counts * values).sum() / counts.sum())
        v = float((counts * (values - m) ** 2).sum() / counts.sum())
        mean.append(m)
        std.append(v**0.5 or 1.0)
    return mean, std

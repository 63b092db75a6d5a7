"""Arrays of numbers as images: flat vectors folded, floats scaled to bytes."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from semisup.data.inputs import images_of
from semisup.errors import SemisupError

__all__ = ["SMALLEST", "ImageShape", "check_scale", "folded", "pixel_range", "scaled", "squares"]

SMALLEST, LARGEST = 8, 518
"""Sides of the images that networks take, pixels."""
ImageShape: TypeAlias = tuple[int, ...] | Literal["square"] | None


def folded(values: NDArray[Any], image_shape: ImageShape) -> NDArray[Any]:
    """Return an array of images as (n, h, w, c), with the numbers that it has.

    Args:
        values: (n, h, w, c), (n, h, w) or flat vectors (n, d).
        image_shape: of flat vectors, (h, w) or (h, w, c) with h w c = d; "square": they are no images, and are laid
            row by row into the smallest square that holds them, at least 8 wide, the rest of it 0. Not for images.

    Raises:
        SemisupError: a shape that does not fit.
    """
    if values.ndim == 2:
        return _unfolded(values, image_shape)
    if image_shape is not None:
        raise SemisupError(f"image_shape: is for flat vectors (n, d), and X has shape {values.shape}; leave it out")
    images = values[..., None] if values.ndim == 3 else values
    if images.ndim != 4 or not images.size or images.shape[3] not in (1, 3):
        raise SemisupError(f"X: must be (n, h, w), (n, h, w, 1), (n, h, w, 3) or flat (n, d), not {values.shape}")
    return images


def _unfolded(vectors: NDArray[Any], image_shape: ImageShape) -> NDArray[Any]:
    count, length = vectors.shape
    if image_shape is None:
        raise SemisupError(
            f"image_shape: missing; X has flat vectors of {length} numbers, so give (height, width) or (height, width, "
            f"3), or 'square' where they are no images"
        )
    if isinstance(image_shape, str):
        if image_shape != "square":
            raise SemisupError(
                f"image_shape: must be (height, width), (height, width, 3) or 'square', not {image_shape!r}"
            )
        side = max(SMALLEST, math.isqrt(length - 1) + 1)
        return np.pad(vectors, ((0, 0), (0, side * side - length))).reshape(count, side, side, 1)
    shape = tuple(image_shape)
    if (
        any(not isinstance(side, Integral) or side < 1 for side in shape)
        or len(shape) not in (2, 3)
        or (len(shape) == 3 and shape[2] not in (1, 3))
        or math.prod(shape) != length
    ):
        raise SemisupError(f"image_shape: must be (h, w), (h, w, 1) or (h, w, 3) of {length} numbers, not {shape}")
    return vectors.reshape(count, *shape, *([1] if len(shape) == 2 else []))


def pixel_range(values: NDArray[Any]) -> tuple[float, float]:
    """Return the numbers that become black and white: of bytes 0 and 255, of others the smallest and the largest.

    Raises:
        SemisupError: their difference is no number.
    """
    if values.dtype == np.uint8:
        return 0.0, 255.0
    lowest, highest = float(values.min()), float(values.max())
    if not math.isfinite(highest - lowest):
        raise SemisupError(f"X: its numbers, from {lowest:.3g} to {highest:.3g}, are too far apart")
    return lowest, highest


def check_scale(values: NDArray[Any], lowest: float, highest: float) -> None:
    """Refuse numbers of another scale than those that became black and white, of which nothing would be seen.

    Args:
        values: to be scaled.
        lowest: that became black.
        highest: that became white.

    Raises:
        SemisupError: fractions of 1 where bytes were learned from, or numbers ten times beyond all that were.
    """
    largest = float(values.max(initial=0.0))
    learned = f"and fit had {lowest:.3g} to {highest:.3g} for black to white"
    if (lowest, highest) == (0.0, 255.0) and values.dtype.kind == "f" and 0 < largest <= 1:
        raise SemisupError(f"X: has fractions up to {largest:.3g}, {learned}; give 255 times as much")
    if 0 < 10 * max(abs(lowest), abs(highest)) < largest:
        raise SemisupError(f"X: has numbers up to {largest:.3g}, {learned}; give both on one scale")


def scaled(values: NDArray[Any], lowest: float, highest: float) -> NDArray[np.uint8]:
    """Return numbers as bytes, `lowest` as 0 and `highest` as 255; what is beyond them is cut off."""
    if values.dtype == np.uint8 and (lowest, highest) == (0.0, 255.0):
        return values
    span = highest - lowest or 1.0
    return np.rint((values.astype(np.float64) - lowest) * (255 / span)).clip(0, 255).astype(np.uint8)


def squares(images: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Return (n, size, size, c): the center square of each image, scaled; None: its own side, kept within 8 to 518."""
    side = min(images.shape[1:3]) if size is None else size
    return images_of(images, min(max(side, SMALLEST), LARGEST), images.shape[3])

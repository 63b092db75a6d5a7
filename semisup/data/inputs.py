"""Whatever a person hands to a predictor, as the images that its network is fed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semisup.data.decode import BadImageError, Fit, decode, fit_image
from semisup.errors import SemisupError, raise_all

__all__ = ["Images", "images_of"]

One: TypeAlias = str | Path | Image.Image | NDArray[np.uint8]
Images: TypeAlias = One | Sequence[One]
"""A path, a Pillow image or an array, or several of them. Arrays are uint8: (h, w) gray or (h, w, c), c = 1 or 3, for
one image; (n, h, w, c), or (n, h, w) where w is more than 4, for several."""


def images_of(given: Images, size: int, channels: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """Return images (n, size, size, channels), read and scaled as `semisup.data.decode` does for training.

    Args:
        given: see `Images`; an array of that shape already is returned as it is.
        size: side of the results, pixels.
        channels: 1 or 3.
        fit: how images that are no squares become some.

    Raises:
        SemisupError: files that cannot be read, or arrays of another type or shape; all of them in one message.
    """
    if isinstance(given, np.ndarray) and not (given.ndim == 1 and given.dtype.kind in "OUT"):  # not one of paths
        try:
            given = _batch(given)
        except ValueError as error:
            raise SemisupError(f"images: {error}") from error
        if given.shape[1:] == (size, size, channels):
            return given
    items = _items(given)
    images = np.empty((len(items), size, size, channels), np.uint8)
    problems: list[str] = []
    for i, item in enumerate(items):
        try:
            images[i] = _one(item, size, channels, fit)
        except (BadImageError, ValueError) as error:
            name = str(item) if isinstance(item, str | Path) else f"image {i}"
            problems.append(f"{name}: {error}")
    raise_all(problems, "images")
    return images


def _items(given: Any) -> list[Any]:
    """Return one image or several as a list.

    Raises:
        SemisupError: it is neither.
    """
    if isinstance(given, str | Path | Image.Image):
        return [given]
    items = list(given) if isinstance(given, Iterable) and not isinstance(given, bytes | Mapping) else [given]
    if items and not any(isinstance(item, str | Path | Image.Image | np.ndarray) for item in items):
        raise SemisupError(
            f"images: must be a path, a Pillow image or a uint8 array, or several of them, not {type(given).__name__}"
            + (f" of {type(items[0]).__name__}" if items[0] is not given else "")
            + ("; of a tensor hand over its numpy(), (n, h, w, c)" if hasattr(items[0], "numpy") else "")
        )
    return items


def _batch(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an array of one image or several as (n, h, w, c).

    Raises:
        ValueError: it has another type or shape.
    """
    if images.ndim == 3 and images.shape[2] in (2, 4):
        raise ValueError(
            f"an array {images.shape} may be one image with transparency, or gray ones of {images.shape[2]} columns; "
            "hand over a Pillow image, or (n, h, w, 1)"
        )
    if images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3)):
        images = images[None]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
        raise ValueError(
            f"must be uint8 of shape (n, h, w, c) with 1 or 3 channels, or one of (h, w) or (h, w, c), not "
            f"{images.dtype} of shape {images.shape}"
        )
    return images


def _one(item: One, size: int, channels: int, fit: Fit) -> NDArray[np.uint8]:
    if isinstance(item, str | Path):
        return decode(Path(item), size, channels, fit)
    if isinstance(item, np.ndarray):
        pixels = _batch(item)
        if len(pixels) != 1:
            raise ValueError("is several images; hand over one array, or one image each")
        item = Image.fromarray(pixels[0, :, :, 0] if pixels.shape[3] == 1 else pixels[0])
    if not isinstance(item, Image.Image):
        raise ValueError(f"must be a path, a Pillow image or an array, not {type(item).__name__}")
    return fit_image(item, size, channels, fit)

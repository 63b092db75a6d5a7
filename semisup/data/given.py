"""Data handed over as Python objects, written once as the .npz file that source npz reads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semisup.data.inputs import images_of
from semisup.data.table import UNLABELED
from semisup.errors import SemisupError, nearest, raise_all
from semisup.files import make_folder, replacing

__all__ = ["Given", "write_given"]

Given: TypeAlias = Any
"""Arrays by their names in an .npz file (x_train, y_train, x_test, ...); a pair (x, y) of training images and classes;
a map-style torch `Dataset` of (image, class); or such data sets by part, {"train": ..., "val": ..., "test": ...}."""
_PARTS = ("train", "val", "test")
SEVERAL_SIZES = "images of several sizes are handed over as a data set"


def write_given(given: Given, folder: Path, size: int | None = None) -> Path:
    """Write data as `<folder>/<hash>.npz`, unless that file is there, and return its path.

    Args:
        given: see `Given`. Images of a data set are Pillow images, uint8 arrays (h, w[, c]) or tensors (c, h, w), uint8
            or 0 to 1; a class of None or -1 is unlabeled. Each is read once.
        folder: made if missing.
        size: side that the images of data sets are scaled to, pixels; None: that of the first.

    Raises:
        SemisupError: it is none of these, or an image that cannot be read.
    """
    arrays = _arrays(given, size)
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data if array.dtype.kind != "U" else repr(array.tolist()).encode())
    path = folder / f"{digest.hexdigest()[:20]}.npz"
    if not path.exists():
        make_folder(folder)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    return path


def _arrays(given: Given, size: int | None) -> dict[str, NDArray[Any]]:
    if isinstance(given, tuple) and len(given) == 2:
        given = {"x_train": given[0], "y_train": given[1]}
    if isinstance(given, Mapping) and set(given) <= set(_PARTS):
        return _of_parts(given, size)
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in _PARTS] if set(given) & set(_PARTS) else []
        raise_all([f"unknown part '{name}'{nearest(str(name), _PARTS)}" for name in unknown], "data")
        arrays = {str(name): _array(str(name), array) for name, array in given.items()}
        wrong = [name for name, array in arrays.items() if array.dtype.kind not in "biufSU"]
        if wrong:
            hint = SEVERAL_SIZES if wrong[0][0] == "x" else "-1 is no label"
            raise SemisupError(
                f"data: {wrong[0]} must be an array of numbers or text, not {arrays[wrong[0]].dtype}; {hint}"
            )
        return arrays
    if _is_dataset(given) and not isinstance(given, list | tuple | np.ndarray):
        return _of_parts({"train": given}, size)
    if isinstance(given, str | Path):
        raise SemisupError(f"data: is for Python objects; a folder or file is the recipe's: data.path={given}")
    raise SemisupError(
        f"data: must be a mapping of arrays (x_train, y_train, ...), a pair (x, y), or a torch Dataset, not "
        f"{type(given).__name__}"
    )


def _array(name: str, given: Any) -> NDArray[Any]:
    """Return what is given as an array, of plain numbers or text where it has them."""
    try:
        return _plain(np.asarray(given))
    except ValueError as error:  # of a list whose items differ in shape
        raise SemisupError(f"data: {name} must be an array, not items of several shapes; {SEVERAL_SIZES}") from error


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of objects as one of text if it has text and, besides, missing values alone; else as it is.

    A missing value is an object whose text is one of `UNLABELED`: None, NaN, pandas' NA and NaT, and -1.
    """
    values = array.tolist() if array.dtype.kind == "O" and array.ndim == 1 else []
    named = [isinstance(value, str) for value in values]
    unlabeled = [not isinstance(value, str) and str(value) in UNLABELED for value in values]
    if not any(named) or not all(one or other for one, other in zip(named, unlabeled, strict=True)):
        return array
    return np.array([value if isinstance(value, str) else "" for value in values])


def _is_dataset(given: Any) -> bool:
    """Whether items can be asked for by their numbers; of a data frame columns are."""
    asked = hasattr(given, "__getitem__") and hasattr(given, "__len__")
    return asked and not isinstance(given, str | bytes | Mapping) and not hasattr(given, "columns")


def _of_parts(parts: Mapping[str, Any], size: int | None) -> dict[str, NDArray[Any]]:
    """Read data sets item by item."""
    wrong = [part for part, dataset in parts.items() if not _is_dataset(dataset)]
    if wrong:
        raise SemisupError(f"data: '{wrong[0]}' must be a torch Dataset, not {type(parts[wrong[0]]).__name__}")
    read = {part: [dataset[i] for i in range(len(dataset))] for part, dataset in parts.items()}
    empty = [part for part, items in read.items() if not items]
    if empty or "train" not in read:
        raise SemisupError(f"data: the data set '{(empty or ['train'])[0]}' is {'empty' if empty else 'missing'}")
    for part, items in read.items():
        if any(not isinstance(item, tuple | list) or len(item) < 2 for item in items):
            raise SemisupError(f"data: the items of the data set '{part}' must be pairs of an image and a class")
    images = {part: [_image(item[0]) for item in items] for part, items in read.items()}
    everything = [image for part in images.values() for image in part]
    side = min(everything[0].size) if size is None else size
    channels = 1 if all(image.mode in ("1", "L") for image in everything) else 3
    arrays: dict[str, NDArray[Any]] = {f"x_{part}": images_of(own, side, channels) for part, own in images.items()}
    for part, items in read.items():
        arrays[f"y_{part}"] = np.array([_class(item[1]) for item in items], np.int64)
    names = getattr(parts["train"], "classes", None)
    return arrays if names is None else arrays | {"classes": np.array([str(name) for name in names])}


def _class(label: Any) -> int:
    """Return a class as a number; None is -1."""
    value = np.asarray(-1 if label is None else label)
    if value.ndim or value.dtype.kind not in "iubf" or not np.isfinite(value) or value % 1 != 0:
        raise SemisupError(f"data: a class of a data set must be a whole number, or None for no label, not {label!r}")
    return int(value)


def _image(image: Any) -> Image.Image:
    """Return a Pillow image, an array (h, w[, c]) or a tensor (c, h, w) as a Pillow image."""
    if isinstance(image, Image.Image):
        return image
    pixels = np.asarray(image)
    if hasattr(image, "permute") and pixels.ndim == 3:  # a tensor: channels come first
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype.kind == "f":
        if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
            raise SemisupError(
                f"data: float images must be within 0 and 1, not {pixels.min():.3g} to {pixels.max():.3g}; hand them "
                f"over before they are normalized"
            )
        pixels = np.rint(pixels * 255).astype(np.uint8)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or not 1 <= channels <= 4:
        hint = "; transpose(1, 2, 0) moves channels to the end" if pixels.ndim == 3 and channels > 4 else ""
        raise SemisupError(
            f"data: an image must be uint8 or 0 to 1, (h, w) or (h, w, c), not {pixels.dtype} {pixels.shape}{hint}"
        )
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)

"""A data set of one's own: one .npz file of arrays, checked as a whole."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisup.data.image_data import ImageData
from semisup.errors import SemisupError, nearest, raise_all

__all__ = ["read_npz"]

_NEEDED = ("x_train", "y_train", "x_test", "y_test")


def read_npz(path: Path) -> ImageData:
    """Read and check an ``.npz`` file; flips are off unless the recipe's ``data.flip`` says otherwise.

    The arrays are ``x_train`` and ``x_test``, uint8 (n, h, w) or (n, h, w, c) with h = w from 8 to 224 and 1 or 3
    channels; ``y_train`` and ``y_test``, integers 0 .. C - 1, in ``y_train`` also -1 for unlabeled; optionally
    ``classes``, C names. Pickled objects are refused.

    Raises:
        SemisupError: one message with every problem of the file.
    """
    if not zipfile.is_zipfile(path):
        raise SemisupError(f"{path}: not an .npz file (as written by numpy.savez), or cut short")
    problems: list[str] = []
    arrays = _read_arrays(path, problems)
    for name in _NEEDED:
        if name in arrays:
            problems += [
                f"{name}: {wrong}" for wrong in (_image_problems if name[0] == "x" else _label_problems)(arrays[name])
            ]
    raise_all(problems, str(path))

    x_train, x_test = (
        images if images.ndim == 4 else images[..., None] for images in (arrays["x_train"], arrays["x_test"])
    )
    y_train, y_test = arrays["y_train"].astype(np.int64), arrays["y_test"].astype(np.int64)
    for part, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(images) != len(labels):
            problems.append(f"y_{part}: must be as long as x_{part}, {len(images)}, not {len(labels)}")
    if x_train.shape[1:] != x_test.shape[1:]:
        problems.append(f"x_test: must have the training images' shape {x_train.shape[1:]}, not {x_test.shape[1:]}")
    problems += _class_problems(y_train, y_test)
    raise_all(problems, str(path))
    num_classes = int(y_train.max()) + 1
    return ImageData(
        name="npz",
        x_train=np.ascontiguousarray(x_train),
        y_train=y_train,
        x_test=np.ascontiguousarray(x_test),
        y_test=y_test,
        classes=_class_names(arrays.get("classes"), num_classes, path),
        flip=False,
    )


def _read_arrays(path: Path, problems: list[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays that can be read."""
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            present = list(archive.files)
            for name in (*_NEEDED, "classes"):
                if name not in present:
                    continue
                try:
                    array = archive[name]
                except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
                    problems.append(
                        f"{name}: cannot be read: {str(error).splitlines()[0] if str(error) else 'no memory'}"
                    )
                    continue
                if isinstance(array, np.ndarray):
                    arrays[name] = array
                else:  # numpy hands over a member without its array header as bytes
                    problems.append(f"{name}: not a numpy array")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise SemisupError(f"{path}: cannot be read: {error}") from error
    missing = [name for name in _NEEDED if name not in present]
    problems += [f"{name}: missing" for name in missing]
    strange = [name for name in present if name not in (*_NEEDED, "classes")]
    if missing:  # further arrays do no harm, but may be the missing ones misspelled
        problems += [f"{name}: unknown array{nearest(name, missing)}" for name in strange]
    return arrays


def _image_problems(images: NDArray[Any]) -> list[str]:
    problems = []
    if images.dtype != np.uint8:
        hint = "; scale 0..1 by 255 and round" if images.dtype.kind == "f" else ""
        problems.append(f"must be uint8, 0 to 255, not {images.dtype}{hint}")
    if images.ndim not in (3, 4):
        return [*problems, f"must be (n, h, w) or (n, h, w, c), not {images.ndim}-dimensional {images.shape}"]
    if len(images) == 0:
        problems.append("must have at least one image")
    height, width = images.shape[1:3]
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        hint = "; it looks like (n, c, h, w)" if height in (1, 3) else ""
        problems.append(f"must have 1 or 3 channels in its last axis, not {images.shape[3]}{hint}")
    elif height != width:
        problems.append(f"images must be square, not {height} x {width}; pad or crop them")
    elif not 8 <= height <= 224:
        problems.append(f"images must be 8 to 224 pixels wide and high, not {height}")
    return problems


def _label_problems(labels: NDArray[Any]) -> list[str]:
    if labels.ndim != 1:
        return [f"must be (n,), one class per image, not {labels.ndim}-dimensional {labels.shape}"]
    if labels.dtype.kind not in "iu":
        return [f"must be integers, not {labels.dtype}"]
    if labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        return ["must be classes 0 .. C - 1, not beyond 64 bits"]
    return []


def _class_problems(y_train: NDArray[np.int64], y_test: NDArray[np.int64]) -> list[str]:
    """Check that the labels are 0 .. C - 1, all in the training set, and -1 only there."""
    problems = []
    if y_train.size and y_train.min() < -1:
        problems.append(f"y_train: must be classes from 0 on, or -1 for unlabeled, not {y_train.min()}")
    if y_test.size and y_test.min() < 0:
        problems.append(f"y_test: every test image needs its class, from 0 on, not {y_test.min()}")
    seen = np.unique(y_train[y_train >= 0])
    if seen.size < 2:
        problems.append(f"y_train: needs labeled images of at least two classes, not {seen.size}")
    elif seen.size != seen[-1] + 1:
        gap = int(np.flatnonzero(seen != np.arange(seen.size))[0])
        problems.append(f"y_train: classes must be 0 .. C - 1 without gaps, but they go up to {seen[-1]} without {gap}")
    unseen = np.setdiff1d(y_test[y_test >= 0], seen)
    if seen.size and unseen.size:
        problems.append(f"y_test: class {unseen[0]} has no labeled training image")
    return problems


def _class_names(names: NDArray[Any] | None, num_classes: int, path: Path) -> list[str]:
    if names is None:
        return [str(k) for k in range(num_classes)]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise SemisupError(f"{path}: classes: must be a list of text, not {names.dtype} {names.shape}")
    if len(names) != num_classes or len(set(names.tolist())) != num_classes:
        raise SemisupError(
            f"{path}: classes: must be {num_classes} different names, one per class, not {names.tolist()}"
        )
    return [str(name) for name in names]

"""A data set of one's own: one .npz file of arrays, checked as a whole."""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisup.data.duplicates import Item, find_duplicates, image_hashes
from semisup.data.entries import class_notes, like
from semisup.data.image_data import ImageData, level_notes
from semisup.data.table import UNLABELED
from semisup.errors import UNREADABLE, SemisupError, first_line, nearest, raise_all, refuse_special
from semisup.settings.schema import DataConfig
from semisup.text import printable

__all__ = ["read_images", "read_npz", "without_duplicates"]

_PARTS = ("train", "val", "test")
_WORDS = {"val": "validation", "test": "test"}
_UNSEEN = "has no labeled training image"
_NEEDED = ("x_train", "y_train")
_NAMES = {f"{kind}_{part}": f"{part}_{word}" for kind, word in (("x", "images"), ("y", "labels")) for part in _PARTS}
"""The arrays, and how MedMNIST calls them."""
_PREDICTED = ("x", "images", "x_test", "test_images", "x_train", "train_images")


def read_npz(path: Path, unlabeled: Collection[str] = UNLABELED) -> ImageData:
    """Read and check an `.npz` file; flips are off unless the recipe's `data.flip` says otherwise.

    The arrays are `x_train`, uint8 (n, h, w) or (n, h, w, c) with h = w from 8 to 518 and 1 or 3 channels, and
    `y_train`, integers 0 .. C - 1 or -1 for unlabeled, or text; both for `test` and `val` if there are such
    images; optionally `classes`, C names. MedMNIST's names (`train_images`, `train_labels`, ...) are read too.
    Pickled objects are refused.

    Args:
        path: of the file.
        unlabeled: texts that stand for no label, besides the empty one.

    Raises:
        SemisupError: one message with every problem of the file.
    """
    problems: list[str] = []
    notes: list[str] = []
    arrays = _read_arrays(path, problems, notes)
    for name, array in arrays.items():
        check = {"x": _image_problems, "y": _label_problems}.get(name[0])
        problems += [] if check is None else [f"{name}: {wrong}" for wrong in check(array)]
    raise_all(problems, str(path))

    parts = [part for part in _PARTS if f"x_{part}" in arrays]
    images = {p: x if x.ndim == 4 else x[..., None] for p in parts for x in [arrays[f"x_{p}"]]}
    labels = {part: arrays[f"y_{part}"].reshape(len(arrays[f"y_{part}"])) for part in parts}
    names = None
    if labels["train"].dtype.kind in "US":
        labels, names = _named(labels, unlabeled, problems, notes)
    else:
        texts = [part for part, values in labels.items() if values.dtype.kind in "US"]
        problems += [f"y_{part}: must be integers, as y_train is" for part in texts]
    raise_all(problems, str(path))
    labels = {part: values.astype(np.int64) for part, values in labels.items()}
    for part in parts:
        if len(images[part]) != len(labels[part]):
            problems.append(f"y_{part}: must be as long as x_{part}, {len(images[part])}, not {len(labels[part])}")
        if images[part].shape[1:] != images["train"].shape[1:]:
            shapes = f"{images['train'].shape[1:]}, not {images[part].shape[1:]}"
            problems.append(f"x_{part}: must have the training images' shape {shapes}")
    given = None if "classes" not in arrays else _as_text(arrays["classes"])
    problems += _class_problems(labels, names or (None if given is None else given.tolist()))
    raise_all(problems, str(path))
    count = int(labels["train"].max()) + 1 or (0 if given is None else len(given))
    if names is not None and given is not None:
        raise_all(_other_names(names, given.ravel().tolist()), str(path))
    classes = _class_names(given, count, path) if names is None else names
    x_train = np.ascontiguousarray(images["train"])
    none = x_train[:0], np.empty(0, np.int64)
    return ImageData(
        name="npz",
        x_train=x_train,
        y_train=labels["train"],
        x_test=np.ascontiguousarray(images.get("test", none[0])),
        y_test=labels.get("test", none[1]),
        classes=[printable(name) for name in classes],
        flip=False,
        x_val=np.ascontiguousarray(images["val"]) if "val" in parts else None,
        y_val=labels.get("val"),
        notes=(*notes, *class_notes(classes), *_levels(images)),
    )


def _levels(images: dict[str, NDArray[np.uint8]]) -> list[str]:
    return [note for part, x in images.items() for note in level_notes(x, f"images of x_{part}")]


def without_duplicates(data: ImageData, config: DataConfig) -> ImageData:
    """Refuse test images among the training images and pictures under two classes, or leave out and tell.

    Args:
        data: read by `read_npz`, its images not scaled yet.
        config: `allow_leakage`, `drop_leaks` and `allow_conflicts` are read.

    Raises:
        SemisupError: there are some, and they are not allowed.
    """
    parts = [("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)]
    if data.x_val is not None and data.y_val is not None:
        parts.insert(1, ("val", data.x_val, data.y_val))
    items = [
        Item(f"x_{part}[{i}]", part, None if y < 0 else data.classes[y], digest)
        for part, images, labels in parts
        for i, (y, digest) in enumerate(zip(labels.tolist(), image_hashes(images), strict=True))
    ]
    found = find_duplicates(items, drop_leaks=config.drop_leaks)
    raise_all(list(found.problems(config).values()), f"{config.path}")
    data = replace(data, notes=(*data.notes, *found.notes(config).values()))
    if not (found.leaks and config.drop_leaks):
        return data
    dropped = {name for name, _ in found.leaks}
    kept = {p: np.array([f"x_{p}[{i}]" not in dropped for i in range(len(y))], bool) for p, _, y in parts}
    data = replace(data, x_test=data.x_test[kept["test"]], y_test=data.y_test[kept["test"]])
    if data.x_val is None or data.y_val is None:
        return data
    return replace(data, x_val=data.x_val[kept["val"]], y_val=data.y_val[kept["val"]])


def read_images(path: Path) -> tuple[str, NDArray[np.uint8]]:
    """Return the images of an `.npz` file that are to be classified, (n, h, w, c), and their array's name.

    It is `x` or `images`, else the test images, else the training images.

    Raises:
        SemisupError: no such array, or one that is no uint8 images.
    """
    with _opened(path) as archive:
        name = next((name for name in _PREDICTED if name in archive.files), None)
        if name is None:
            raise SemisupError(f"{path}: none of the arrays {', '.join(_PREDICTED)}; it has {', '.join(archive.files)}")
        problems: list[str] = []
        images = _read_array(archive, name, name, problems)
    problems += [] if images is None else [f"{name}: {wrong}" for wrong in _pixel_problems(images)]
    raise_all(problems, str(path))
    assert images is not None
    return name, images if images.ndim == 4 else images[..., None]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Give the archive; the file is opened here, because numpy leaves it open where it fails."""
    refuse_special(path)
    if not zipfile.is_zipfile(path):
        raise SemisupError(f"{path}: not an .npz file (as written by numpy.savez), or cut short")
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except UNREADABLE as error:
            raise SemisupError(f"{path}: cannot be read: {first_line(error)}") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):  # one array with a zip file behind it
            raise SemisupError(f"{path}: not an .npz file (as written by numpy.savez)")
        yield archive


def _read_arrays(path: Path, problems: list[str], notes: list[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays that can be read, under the names of `_NAMES`."""
    arrays: dict[str, NDArray[Any]] = {}
    with _opened(path) as archive:
        present = list(archive.files)
        stored = {name: other if name not in present else name for name, other in _NAMES.items()}
        stored = {name: key for name, key in (stored | {"classes": "classes"}).items() if key in present}
        if "y_val" not in stored or "x_val" not in stored:
            stored = {name: key for name, key in stored.items() if name not in ("x_val", "y_val")}
        wanted = (*_NEEDED, *(("x_test", "y_test") if {"x_test", "y_test"} & stored.keys() else ()))
        missing = [name for name in wanted if name not in stored]
        strange = [name for name in present if name not in stored.values()]
        problems += [f"{name}: missing" for name in missing]
        for name, key in stored.items():
            array = _read_array(archive, key, name, problems)
            if array is not None:
                arrays[name] = array
    if missing:  # further arrays do no harm, but may be the missing ones misspelled
        problems += [f"{name}: unknown array{nearest(name, missing)}" for name in strange]
    elif strange:
        notes.append(f"arrays that are not read: {', '.join(strange)}")
    if arrays.get("x_test", np.empty(1)).size == 0:  # an empty test set is none
        arrays = {name: array for name, array in arrays.items() if not name.endswith("_test")}
    return arrays


def _read_array(archive: Any, key: str, name: str, problems: list[str]) -> NDArray[Any] | None:
    try:
        array = archive[key]
    except UNREADABLE as error:
        hint = "; save it as numbers or text, e.g. .astype(str)" if "Object arrays" in str(error) else ""
        problems.append(f"{name}: cannot be read: {first_line(error) if str(error) else 'no memory'}{hint}")
        return None
    if not isinstance(array, np.ndarray):
        problems.append(f"{name}: not a numpy array")  # numpy hands over a member without its array header as bytes
        return None
    if _is_no_text(array):
        problems.append(f"{name}: not text (it has numbers that stand for no character)")
        return None
    return array


def _is_no_text(array: NDArray[Any]) -> bool:
    """Return whether an array of text has what is no character, or half of one, which Python could not write."""
    if array.dtype.kind != "U" or not array.nbytes:
        return False
    codes = np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
    return bool(((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes <= 0xDFFF))).any())


def _image_problems(images: NDArray[Any]) -> list[str]:
    problems = _pixel_problems(images)
    height, width = images.shape[1:3] if images.ndim in (3, 4) else (8, 8)
    if len(problems) > (images.dtype != np.uint8):
        return problems
    if height != width:
        problems.append(f"images must be square, not {height} x {width}; pad or crop them")
    elif not 8 <= height <= 518:
        problems.append(f"images must be 8 to 518 pixels wide and high, not {height}")
    return problems


def _pixel_problems(images: NDArray[Any]) -> list[str]:
    """Check type, axes and channels; images of any size."""
    problems = []
    if images.dtype != np.uint8:
        hints = {"f": "; scale 0..1 by 255 and round", "u": "; scale its range to 0..255", "i": "", "b": ""}
        problems.append(f"must be uint8, 0 to 255, not {images.dtype}{hints.get(images.dtype.kind, '')}")
    if images.ndim not in (3, 4):
        return [*problems, f"must be (n, h, w) or (n, h, w, c), not {images.ndim}-dimensional {images.shape}"]
    if images.size == 0:
        problems.append("must have at least one image")
    height, width = images.shape[1:3]
    if images.ndim == 3 and width in (1, 3, 4) and height > 4:
        problems.append(f"must be (n, h, w) or (n, h, w, c), not {images.shape}; it looks like one image (h, w, c)")
    elif images.ndim == 4 and images.shape[3] not in (1, 3):
        hint = "; lay it on white, or take [..., :3]" if images.shape[3] == 4 else ""
        hint = "; it looks like (n, c, h, w), which transpose(0, 2, 3, 1) mends" if height in (1, 3) else hint
        problems.append(f"must have 1 or 3 channels in its last axis, not {images.shape[3]}{hint}")
    return problems


def _label_problems(labels: NDArray[Any]) -> list[str]:
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iufb":
        with np.errstate(all="ignore"):  # of floats that are no numbers
            sums = labels.sum(1)
        has_class = sums == 1
        if has_class.all() or (has_class.any() and (has_class | (sums == 0)).all()):
            hint = "" if has_class.all() else ", and -1 where a row has no 1"
            return [f"must be (n,), one class per image, not one-hot {labels.shape}; take its argmax(1){hint}"]
    if labels.ndim != 1 and not (labels.ndim == 2 and labels.shape[1] == 1):
        return [f"must be (n,), one class per image, not {labels.ndim}-dimensional {labels.shape}"]
    if labels.dtype.kind not in "iuUS":
        hint = "; write whole numbers, and -1 in place of nan" if labels.dtype.kind == "f" else ""
        return [f"must be integers or text, not {labels.dtype}{hint}"]
    if labels.dtype.kind in "iu" and labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        return ["must be classes 0 .. C - 1, not beyond 64 bits"]
    return []


def _as_text(names: NDArray[Any]) -> NDArray[Any]:
    """Return bytes as text, those that are no UTF-8 by their numbers, and anything else as it is."""
    return np.char.decode(names, "utf-8", "backslashreplace") if names.dtype.kind == "S" else names


def _named(
    labels: dict[str, NDArray[Any]], unlabeled: Collection[str], problems: list[str], notes: list[str]
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Turn classes given as text into numbers, in the order of the text; no label becomes -1."""
    texts = {part: np.char.strip(_as_text(values)) for part, values in labels.items() if values.dtype.kind in "US"}
    problems += [f"y_{part}: must be text, as y_train is" for part in labels if part not in texts]
    none = [value for value in np.unique(texts["train"]).tolist() if value in unlabeled]
    if none:
        counts = ", ".join(f"{np.count_nonzero(texts['train'] == value):,} '{value}'" for value in none)
        notes.append(
            f"labels that are read as unlabeled: {counts}; if one is a class, leave it out of data.unlabeled_values"
        )
    names = sorted(set(texts["train"].tolist()) - {"", *unlabeled})
    numbers = {name: k for k, name in enumerate(names)}
    for part in [part for part in _PARTS[1:] if part in texts]:
        for name in sorted(set(texts[part].tolist()) - set(names)):
            if name in ("", *unlabeled):
                problems.append(f"y_{part}: every {_WORDS[part]} image needs its class, not '{name}'")
            else:
                problems.append(f"y_{part}: class '{name}' {_UNSEEN}{like(name, names)}")
    return {p: np.array([numbers.get(v, -1) for v in t.tolist()], np.int64) for p, t in texts.items()}, names


def _class_problems(labels: dict[str, NDArray[np.int64]], names: list[str] | None) -> list[str]:
    """Check that the labels are 0 .. C - 1, all in the training set, and -1 only there."""
    problems = []
    y_train = labels["train"]
    if y_train.size and y_train.min() < -1:
        problems.append(f"y_train: must be classes from 0 on, or -1 for unlabeled, not {y_train.min()}")
    seen = np.unique(y_train[y_train >= 0])
    if not seen.size and names is not None and len(names) >= 2:
        seen = np.arange(len(names))  # no label at all: the classes are those that the file names
    if seen.size < 2:
        problems.append(f"y_train: needs labeled images of at least two classes, not {seen.size}")
    elif seen.size != seen[-1] + 1:
        gap = int(np.flatnonzero(seen != np.arange(seen.size))[0])
        problems.append(f"y_train: classes must be 0 .. C - 1 without gaps, but they go up to {seen[-1]} without {gap}")
    for part in [part for part in _PARTS[1:] if part in labels]:
        values = labels[part]
        if values.size and values.min() < 0:
            problems.append(f"y_{part}: every {_WORDS[part]} image needs its class, from 0 on, not {values.min()}")
        unseen = np.setdiff1d(values[values >= 0], seen)
        if seen.size and unseen.size:
            k = int(unseen[0])
            called = f"{k} '{names[k]}'" if names is not None and k < len(names) else f"{k}"
            problems.append(f"y_{part}: class {called} {_UNSEEN}")
    return problems


def _other_names(names: Sequence[str], given: Sequence[Any]) -> list[str]:
    """Return where the classes that text names are not those of the array `classes`."""
    listed = [str(name) for name in given]
    return [
        *(f"y_train: class '{name}' is not in classes{nearest(name, listed)}" for name in names if name not in listed),
        *(f"classes: class '{name}' {_UNSEEN}" for name in listed if name not in names),
    ]


def _class_names(names: NDArray[Any] | None, num_classes: int, path: Path) -> list[str]:
    if names is None:
        return [str(k) for k in range(num_classes)]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise SemisupError(f"{path}: classes: must be a list of text, not {names.dtype} {names.shape}")
    if len(names) != num_classes or len(set(names.tolist())) != num_classes:
        raise SemisupError(
            f"{path}: classes: must be {num_classes} different names, one per class, not {names.tolist()}"
        )
    empty = [k for k, name in enumerate(names.tolist()) if not name.strip()]
    raise_all([f"classes[{k}]: must not be empty" for k in empty], str(path))
    return [str(name) for name in names]

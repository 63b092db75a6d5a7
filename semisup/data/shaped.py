"""A data set as the world might have it: unequal classes, images of no class, no test images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from semisup.data.duplicates import image_hashes
from semisup.data.image_data import ImageData
from semisup.data.rows import take
from semisup.errors import SemisupError

__all__ = ["held_out", "long_tail", "with_foreign"]

_SEED = 2019  # of the images that stay; never the recipe's seed, so that all runs share one data set
_AT_ONCE = 1024  # images that are read to be compared


def long_tail(data: ImageData, ratio: float) -> ImageData:
    """Return data whose training classes get smaller from the first to the last; the test images stay.

    Class k keeps n ratio^(-k / (C - 1)) of its images, at least one, n being the size of the smallest (Cui et al. 2019,
    arXiv:1901.05555, sec. 5).

    Args:
        data: with labels.
        ratio: of the largest class to the smallest, > 1.
    """
    counts = np.bincount(data.y_train[data.y_train >= 0], minlength=data.num_classes)
    random = np.random.RandomState(_SEED)
    kept = [np.flatnonzero(data.y_train < 0)]
    for k in range(data.num_classes):
        size = max(1, round(counts.min() * ratio ** (-k / max(1, data.num_classes - 1))))
        kept.append(random.permutation(np.flatnonzero(data.y_train == k))[:size])
    return _training_rows(data, np.sort(np.concatenate(kept)))


def with_foreign(data: ImageData, foreign: int) -> ImageData:
    """Return data whose last classes are none: their training images have no label, their test images are left out.

    Args:
        data: with labels.
        foreign: how many classes; at least two are left.

    Raises:
        SemisupError: too many.
    """
    own = data.num_classes - foreign
    if own < 2:
        raise SemisupError(f"data.foreign: must leave two classes of {data.num_classes}, not {own}")
    tested = np.flatnonzero(data.y_test < own)
    return replace(
        data,
        y_train=np.where(data.y_train < own, data.y_train, -1),
        x_test=take(data.x_test, tested),
        y_test=data.y_test[tested],
        classes=data.classes[:own],
        known=None,
    )


def held_out(data: ImageData, part: float, fold: int = 0) -> ImageData:
    """Return data of which a part of every class's labeled images is the test; as it is where there is a test.

    They stay among the training images without their label, as unlabeled photos of the same kind would. A class with
    one label is not tested, nor is an image whose exact copy keeps its label.

    Args:
        data: perhaps with labels.
        part: in (0, 0.5], of every class; one image at least.
        fold: which part, from 0.
    """
    if len(data.x_test):
        return data
    random = np.random.RandomState(_SEED)
    held = []
    for k in range(data.num_classes):
        rows = random.permutation(np.flatnonzero(data.y_train == k))
        start, end = (round(n * part * len(rows)) for n in (fold, fold + 1))
        held.append(np.roll(rows, -start)[: max(1, end - start) if len(rows) > 1 else 0])
    tested = _without_copies(data, np.sort(np.concatenate(held)))
    if not len(tested):
        note = "there are no test images, and no labels for data.holdout to leave out: nothing is tested"
        return replace(data, notes=(*data.notes, note))
    y_train = data.y_train.copy()
    y_train[tested] = -1
    note = f"there are no test images: {len(tested):,} labeled ones became them (data.holdout)"
    x_test, y_test = take(data.x_train, tested), data.y_train[tested]
    return replace(data, y_train=y_train, x_test=x_test, y_test=y_test, notes=(*data.notes, note))


def _without_copies(data: ImageData, held: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the held out rows of which no labeled image that stays is an exact copy."""
    stays = np.setdiff1d(np.flatnonzero(data.y_train >= 0), held)
    known = set(_hashes(data, stays))
    return np.array(
        [row for row, digest in zip(held, _hashes(data, held), strict=True) if digest not in known], np.int64
    )


def _hashes(data: ImageData, rows: NDArray[np.int64]) -> list[str]:
    parts = (rows[i : i + _AT_ONCE] for i in range(0, len(rows), _AT_ONCE))
    return [digest for part in parts for digest in image_hashes(take(data.x_train, part))]


def _training_rows(data: ImageData, rows: NDArray[np.int64]) -> ImageData:
    return replace(data, x_train=take(data.x_train, rows), y_train=data.y_train[rows], known=None)

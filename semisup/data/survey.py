"""What a folder of images is like, before anybody has said how to train on it: sizes, colors, balance, copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from semisup.data.decode import BadImageError, decode
from semisup.data.entries import Entry
from semisup.data.folder import PreparedFolder
from semisup.data.near import same_picture, thumbnails
from semisup.data.rows import take

__all__ = ["Shapes", "Survey", "look_at", "near_duplicates", "shapes_of"]

LOOKED_AT = 400
"""Files whose size and colors are looked at before all are decoded, evenly over the listing."""
COMPARED = 10_000
"""Most images that are compared with each other: a second or two."""


@dataclass(frozen=True)
class Shapes:
    """How large the files' images are, by those that were looked at.

    Attributes:
        sides: smallest, median and largest shorter side, pixels.
        gray: no image has a color.
        long: part of them of which the center square leaves out more than a third.
    """

    sides: tuple[int, int, int]
    gray: bool
    long: float = 0.0

    @property
    def told(self) -> str:
        """The sides in words."""
        smallest, median, largest = self.sides
        if smallest == largest:
            return f"all have {median} px on the shorter side"
        return f"{smallest} to {largest} px on the shorter side, {median} in the middle"

    @property
    def long_told(self) -> str:
        """What the center square leaves out, in words."""
        return f"the center square leaves out more than a third of {max(self.long, 0.01):.0%} of the images"


@dataclass(frozen=True)
class Survey:
    """A folder that was looked at.

    Attributes:
        shapes: of its files.
        prepared: its listing and its decoded images.
        near: pairs of training images that are nearly the same, by path; equal ones are not among them.
        copies: training images that are equal to an earlier one.
    """

    shapes: Shapes
    prepared: PreparedFolder
    near: list[tuple[str, str]]
    copies: int

    @property
    def labels(self) -> dict[str, int]:
        """Class -> readable labeled training images, in the order of the classes."""
        counts = self.prepared.counts()["train"]
        return {name: counts[name] for name in self.prepared.listing.classes}

    @property
    def unlabeled(self) -> int:
        """Readable training images without a label."""
        return self.prepared.counts()["train"][None]

    @property
    def tested(self) -> int:
        """Readable test images."""
        return self.prepared.counts()["test"].total()

    @property
    def validates(self) -> int:
        """Readable images that only validate."""
        return self.prepared.counts()["val"].total()


def shapes_of(root: Path, entries: Sequence[Entry]) -> Shapes | None:
    """Look at some files; None: none of them can be read."""
    step = max(1, len(entries) // LOOKED_AT)
    sides, long, gray = [], 0, True
    for entry in entries[::step]:
        path = root / entry.path
        try:
            small = decode(path, 32, 3)
            with Image.open(path) as image:
                sides.append(min(image.size))
                long += max(image.size) > 1.5 * min(image.size)
        except (BadImageError, OSError):
            continue  # it is told of when all are decoded
        gray = gray and bool((small[..., 0] == small[..., 1]).all() and (small[..., 0] == small[..., 2]).all())
    if not sides:
        return None
    return Shapes((min(sides), int(np.median(sides)), max(sides)), gray, long / len(sides))


def look_at(shapes: Shapes, prepared: PreparedFolder) -> Survey:
    """Compare the training images of a prepared folder with each other."""
    store = prepared.store
    paths = [record.path for record in store.records if record.hash is not None and record.part == "train"]
    hashes = [str(record.hash) for record in store.records if record.hash is not None and record.part == "train"]
    rows = np.sort(np.random.default_rng(0).permutation(len(paths))[:COMPARED])
    images = take(store.images(mapped=True), rows.astype(np.int64))
    pairs = near_duplicates(images)
    near = [(int(rows[i]), int(rows[j])) for i, j in pairs]
    told = [(paths[j], paths[i]) for i, j in near if hashes[i] != hashes[j]]
    return Survey(shapes, prepared, told, len(hashes) - len(set(hashes)))


def near_duplicates(images: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Return pairs of images that are nearly one picture (`semisup.data.near`).

    Of an image with several such twins only the first pair is told.

    Args:
        images: (N, S, S, C).

    Returns:
        Rows (earlier, later), by the later one.
    """
    earliest: dict[int, int] = {}
    for earlier, later, _ in same_picture(thumbnails(images)):
        earliest.setdefault(later, earlier)
    return [(earliest[later], later) for later in sorted(earliest)]

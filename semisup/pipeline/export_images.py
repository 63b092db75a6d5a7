"""The images that an export is calibrated and measured on: those of the run, or of a folder or an .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semisup.data import load_data, take
from semisup.data.addresses import refuse_recorded
from semisup.data.decode import BadImageError, decode
from semisup.data.entries import several, some
from semisup.data.folder import prepare_folder
from semisup.data.inputs import images_of
from semisup.data.npz import read_images
from semisup.data.walk import images_below
from semisup.errors import SemisupError
from semisup.files import parent_of
from semisup.pipeline.plan import load_checked
from semisup.settings.schema import DataConfig
from semisup.stages.deployed import Facts
from semisup.stages.predictor import Predictor
from semisup.text import printable

__all__ = ["ExportImages", "export_images"]

CALIBRATION, TESTED = 512, 10_000
"""Images that give the ranges of 8 bits, and images that accuracy is of, at the most."""


@dataclass(frozen=True)
class ExportImages:
    """What a stage was trained and tested on, as far as it is at hand.

    Attributes:
        train: images to calibrate 8 bits on.
        test: images that the files are compared on.
        y_test: their classes; None: nobody knows, agreement with torch is measured instead.
        files: that hold such images, test images where there are some.
        notes: what to tell of them.
    """

    train: NDArray[np.uint8]
    test: NDArray[np.uint8]
    y_test: NDArray[np.int64] | None = None
    files: Sequence[Path] = ()
    notes: Sequence[str] = ()


def export_images(stage: Path, facts: Facts, given: Path | None, predictor: Predictor) -> ExportImages:
    """Return images for 8 bits.

    Raises:
        SemisupError: there are none.
    """
    if given is not None:
        return _given_images(given, predictor)
    recipe = parent_of(stage) / "recipe.yaml"
    if not recipe.is_file():
        raise SemisupError(f"--int8: there is no {recipe}, so name training images: --data FOLDER or --data FILE.npz")
    recorded = load_checked(recipe).data
    refuse_recorded(recorded.path, "name images: --data FOLDER or --data FILE.npz")
    data = load_data(recorded)
    known = facts.record.get("data", {}).get("hash")
    if known is not None and known != data.hash:
        raise SemisupError(f"{recipe}: its data have changed since the stage was trained; name images: --data FOLDER")
    train = take(data.x_train, np.linspace(0, len(data.x_train) - 1, min(CALIBRATION, len(data.x_train))).astype(int))
    files = _files(recorded) if recorded.source == "folder" else []
    if not len(data.x_test):
        return ExportImages(train, train, files=files)
    return ExportImages(train, take(data.x_test, slice(0, TESTED)), data.y_test[:TESTED], files)


def _given_images(given: Path, predictor: Predictor) -> ExportImages:
    """Return the images of a folder or an .npz file; files that cannot be read are left out, as training does."""
    shape = (predictor.image_size, predictor.channels, predictor.fit)
    if given.is_file():
        arrays = images_of(_some(read_images(given)[1], CALIBRATION), *shape)
        if not len(arrays):
            raise SemisupError(f"--data {given}: no images found")
        return ExportImages(arrays, arrays)
    images, bad = dict[Path, NDArray[np.uint8]](), list[str]()
    for file in _some([Path(one.path) for one in images_below(given, str(given).removesuffix("/"))], CALIBRATION):
        try:
            images[file] = decode(file, *shape)
        except BadImageError as error:
            bad.append(f"{printable(str(file))} ({error})")
    if not images:
        raise SemisupError(f"--data {given}: no images found that can be read{f': {some(bad)}' if bad else ''}")
    left_out = f"{several(len(bad), 'file', 'files')} that cannot be read left out: {some(bad)}"
    notes = [f"--data {given}: {left_out}"] if bad else []
    stacked = np.stack(list(images.values()))
    return ExportImages(stacked, stacked, files=list(images), notes=notes)


def _files(config: DataConfig) -> list[Path]:
    """Return the files of a folder's test images, or of its other images where it has none of those."""
    prepared = prepare_folder(config)
    root, found = Path(str(prepared.listing.root)), prepared.readable
    return [root / one.path for one in [entry for entry in found if entry.part == "test"] or found]


def _some(found: NDArray[np.uint8] | list[Path], most: int) -> NDArray[np.uint8] | list[Path]:
    """Return at most so many of these, evenly spread."""
    places = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).astype(int))
    return found[places] if isinstance(found, np.ndarray) else [found[i] for i in places]

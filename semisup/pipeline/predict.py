"""Classify images with a finished stage: files, folders, patterns, arrays of an .npz, rows of a CSV."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semisup.data.decode import SUFFIXES
from semisup.data.decoders import decoders
from semisup.data.entries import several, some
from semisup.data.image_data import level_notes
from semisup.data.inputs import images_of
from semisup.data.npz import read_images
from semisup.data.store import Watch, unwatched
from semisup.data.table import read_paths
from semisup.data.walk import is_system, walk
from semisup.engine import resolve_device
from semisup.errors import SemisupError, raise_all
from semisup.files import whole
from semisup.pipeline.tables import Columns, check_table_name, open_table
from semisup.stages import Predictor, load_predictor
from semisup.text import printable

__all__ = ["PredictOptions", "Predicted", "predict_files"]

BLOCK = 512
"""Images in memory at a time, and as many that are being decoded meanwhile."""


@dataclass(frozen=True)
class PredictOptions:
    """What is asked for besides the best class of each image.

    Attributes:
        device: auto, cpu, cuda or mps.
        top: how many of the best classes, at least 1.
        probabilities: of every class.
        embed: the features that the last layer sees.
        mirror: take the mean over each image and its mirror image.
        abstain: name no class below this confidence, 0 to 1.
        workers: processes that decode; None: one per core.
        raw: probabilities as the network gives them, where validation labels have calibrated them.
    """

    device: str = "auto"
    top: int = 1
    probabilities: bool = False
    embed: bool = False
    mirror: bool = False
    abstain: float = 0.0
    workers: int | None = None
    raw: bool = False


@dataclass(frozen=True)
class Predicted:
    """How many images were predicted, how many could not be read, and what a person should know."""

    good: int
    bad: int
    notes: tuple[str, ...]


def predict_files(
    model: Path,
    inputs: Sequence[Path],
    out: Path | None = None,
    options: PredictOptions | None = None,
    watch: Watch = unwatched,
) -> Predicted:
    """Write a table with a row for every image: path, class, confidence and, where it could not be read, the error.

    Files are found and read as in training, see `semisup.data.walk` and `semisup.data.decode`. Rows are written as they
    come. Confidences are calibrated where the stage had validation labels.

    Args:
        model: folder of a finished stage.
        inputs: image files, folders of them at any depth, patterns such as `photos/*.png`, .npz files (their images),
            .csv files (a column of paths).
        out: a .csv, .jsonl or .parquet file; None: CSV to standard output.
        options: what is asked for.
        watch: shows progress.

    Raises:
        SemisupError: no model there, no images, or the file cannot be written.
    """
    options = PredictOptions() if options is None else options
    check_table_name(out)
    predictor = load_predictor(model, resolve_device(options.device), raw=options.raw)
    notes: list[str] = []
    files = [file for given in inputs for file in _named(given)]
    if out is not None and any(_same(out, file) for file in files):
        raise SemisupError(f"--out {out}: is what is read; name another file")
    sources = [source for file in files for source in _sources(file, notes)]
    total = sum(len(source.names) for source in sources)
    if not total:
        where = some([printable(str(given)) for given in inputs])
        raise SemisupError(f"predict: no images found in {where}; looked for {', '.join(SUFFIXES)}")
    bad = 0
    with open_table(out, _columns(predictor, options)) as write, watch("predicting", total) as advance:
        done = 0
        for names, images, errors in _blocks(sources, predictor, options):
            write(_rows(predictor, options, names, images, errors))
            if not bad:
                notes += [f"{printable(name)}: {error}" for name, error in zip(names, errors, strict=True) if error][:1]
            bad += sum(error != "" for error in errors)
            done += len(names)
            advance(done)
    return Predicted(total - bad, bad, tuple(notes))


@dataclass(frozen=True)
class _Source:
    """Images by name: files, or the rows of an array; and those that are known to be bad."""

    names: list[str]
    array: NDArray[np.uint8] | None = None
    error: str = ""


def _named(given: Path) -> list[Path]:
    """Return the files and folders that one word of the command line stands for, without what lies in these folders.

    Raises:
        SemisupError: a pattern that stands for none.
    """
    if not glob.has_magic(str(given)) or os.path.lexists(given):
        return [given]
    found = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - takes absolute patterns too
    paths = [path for path in map(Path, found) if not is_system(path.name)]
    raise_all([] if paths else [f"{given}: no file has such a name"], "predict")
    folders = {path for path in paths if path.is_dir()}
    return [path for path in paths if folders.isdisjoint(path.parents)]


def _same(one: Path, other: Path) -> bool:
    """Whether two names are those of one file, there or not."""
    if whole(one) == whole(other):
        return True
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return False


def _sources(given: Path, notes: list[str]) -> Iterator[_Source]:
    """Return the images of a file or folder."""
    suffix = given.suffix.lower()
    try:
        folder, file = given.is_dir(), given.is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        yield _Source([str(given)], error=f"cannot be opened ({error.strerror})")
        return
    if folder:
        yield from _folder(given, notes)
    elif suffix == ".npz" and file:
        name, images = read_images(given)
        notes += [f"{given}: {note}" for note in level_notes(images)]
        yield _Source([f"{given}[{name}][{i}]" for i in range(len(images))], images)
    elif suffix in (".csv", ".tsv") and file:
        yield _Source([str(path) for path in read_paths(given, notes)])
    else:
        yield _Source([str(given)])


def _folder(folder: Path, notes: list[str]) -> Iterator[_Source]:
    others: list[str] = []
    failed: list[OSError] = []
    prefix = str(folder)
    names = [found.path for found in walk(folder, prefix.removesuffix("/"), others, failed.append)]
    yield _Source(names)
    if not (names or failed):
        notes.append(f"{printable(prefix)}: no image is in this folder")
    for error in failed:
        yield _Source([str(error.filename or folder)], error=f"cannot be opened ({error.strerror})")
    if others:
        files = several(len(others), "file is no image", "files are no images")
        notes.append(f"below {printable(prefix)}, {files} by name or content, e.g. {printable(others[0])}")


Block = tuple[list[str], NDArray[np.uint8], list[str]]
"""Names; the images that could be read; an error for each name, or nothing."""


def _blocks(sources: Sequence[_Source], predictor: Predictor, options: PredictOptions) -> Iterator[Block]:
    """All images, some at a time, while the next ones are being decoded."""
    size, channels, fit = predictor.image_size, predictor.channels, predictor.fit
    with decoders(options.workers) as run:
        waiting: tuple[list[str], Any] | None = None
        for source in sources:
            for start in range(0, len(source.names), BLOCK):
                names = source.names[start : start + BLOCK]
                if source.error or source.array is not None:
                    part = np.empty((0, 1, 1, channels), np.uint8) if source.array is None else source.array[start:]
                    results = [(image, "") for image in images_of(part[: len(names)], size, channels, fit)]
                    coming = iter(results or [(None, source.error)] * len(names))
                else:
                    coming = run(Path(), names, size, channels, fit)
                if waiting is not None:
                    yield _gathered(*waiting, size, channels)
                waiting = names, coming
        if waiting is not None:
            yield _gathered(*waiting, size, channels)


def _gathered(names: list[str], coming: Any, size: int, channels: int) -> Block:
    results = list(coming)
    good = [image for image, _ in results if image is not None]
    images = np.stack(good) if good else np.empty((0, size, size, channels), np.uint8)
    return names, images, ["" if image is not None else reason for image, reason in results]


def _columns(predictor: Predictor, options: PredictOptions) -> Columns:
    columns: dict[str, type[str] | type[float]] = {"path": str, "class": str, "confidence": float}
    for rank in range(2, min(options.top, len(predictor.classes)) + 1):
        columns |= {f"class_{rank}": str, f"confidence_{rank}": float}
    if options.probabilities:
        columns |= {f"p_{name}": float for name in predictor.classes}
    if options.embed:
        columns |= {f"e{i}": float for i in range(predictor.network.num_features)}
    return {**columns, "error": str}


def _rows(
    predictor: Predictor,
    options: PredictOptions,
    names: Sequence[str],
    images: NDArray[np.uint8],
    errors: Sequence[str],
) -> list[dict[str, Any]]:
    if options.embed:
        probs, features = predictor.predict_and_embed(images, mirror=options.mirror)
    else:
        probs, features = predictor.predict_proba(images, mirror=options.mirror), np.empty((len(images), 0))
    order = np.argsort(-probs, axis=1, kind="stable")[:, : options.top]  # all at once: a call for each costs as much
    best = np.take_along_axis(probs, order, axis=1)
    found = iter(zip(order.tolist(), best.tolist(), probs, features, strict=True))
    return [
        {"path": name, "class": "", "error": error} if error else _row(predictor, options, name, *next(found))
        for name, error in zip(names, errors, strict=True)
    ]


def _row(
    predictor: Predictor,
    options: PredictOptions,
    name: str,
    order: list[int],
    best: list[float],
    probs: NDArray[Any],
    features: NDArray[Any],
) -> dict[str, Any]:
    """Return the row of an image.

    Args:
        predictor: knows the classes.
        options: what is asked for.
        name: of the image.
        order: its best classes.
        best: their probabilities.
        probs: of all classes.
        features: of the image, perhaps none.
    """
    row: dict[str, Any] = {"path": name, "error": ""}
    for rank, (k, confidence) in enumerate(zip(order, best, strict=True), 1):
        end = "" if rank == 1 else f"_{rank}"
        row |= {f"class{end}": predictor.classes[k], f"confidence{end}": confidence}
    if row["confidence"] < options.abstain:
        row["class"] = ""
    if options.probabilities:
        row |= {f"p_{label}": float(p) for label, p in zip(predictor.classes, probs, strict=True)}
    return row | {f"e{i}": float(value) for i, value in enumerate(features)}

"""Export a finished stage: check it on real images, quantize it on training images, measure what came out."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from semisup.config import load_recipe
from semisup.data.decode import BadImageError, decode_whole
from semisup.errors import SemisupError
from semisup.export_files import ExportFiles
from semisup.files import parent_of, write_atomically
from semisup.pipeline.export_images import ExportImages, export_images
from semisup.records import refuse_stage_files
from semisup.stages.artifact import write_json
from semisup.stages.card import card
from semisup.stages.deployed import Facts, examples, facts_of, load_deployed
from semisup.stages.predictor import WEIGHTS, Predictor
from semisup.stages.programs import OPSET, Run, quantize, require_onnx, run_onnx, write_onnx, write_pt2
from semisup.text import aligned, markdown_table, percent

__all__ = ["SUFFIXES", "export_model"]

SUFFIXES = (".onnx", ".pt2")
PICTURES, PIXELS = 100, 2**28
"""Files that are compared in their own sizes, and pixels of them, at the most: some 20 s of one core."""
ROUNDS = 30
"""Times that each file is timed in turn; the median counts."""


def export_model(stage: Path, file: Path, *, int8: bool = False, data: Path | None = None) -> list[str]:
    """Write a stage's classifier for other programs, and next to it a model card and the metadata as JSON.

    The latter is for programs that cannot read a file's metadata, such as a page in a browser.

    Args:
        stage: folder of a finished stage.
        file: .onnx, or .pt2 of torch.export.
        int8: of .onnx: write `<name>-int8.onnx`, too, and measure both next to torch.
        data: a folder of images or an .npz file for `int8`; None: the data of the run that the stage's folder lies in.

    Returns:
        What to tell, line by line.

    Raises:
        SemisupError: no model there, no images for `int8`, a file that belongs to a finished stage would be replaced,
            or the file does not give what torch gives.
    """
    onnx = file.suffix.lower() == ".onnx"
    if data is not None and not int8:
        raise SemisupError(f"data: must be None without int8, which is calibrated on it, not {data}")
    if int8 and not onnx:
        raise SemisupError(f"--int8: is of .onnx files, not of {file}")
    written = ExportFiles(file, int8)
    refuse_stage_files(written.all)
    if onnx:
        require_onnx()
    facts = facts_of(stage)
    predictor, module = load_deployed(stage)
    images = export_images(stage, facts, data, predictor) if int8 else None
    write = write_onnx if onnx else write_pt2
    worst = write(predictor, module, facts.metadata, examples(stage), file)
    told = f", opset {OPSET}" if onnx else ""
    lines = [f"{file}: {file.stat().st_size:,} bytes{told}; differs from torch by at most {max(worst.values()):.1g}"]
    files, table = {file.name: file.stat().st_size}, ""
    if images is not None:
        small = written.small
        runs: dict[str, Run] = {"torch": lambda given: [predictor.predict_proba(given)], "onnx": run_onnx(file)}
        runs["onnx int8"] = quantize(file, images.train, facts.metadata, small)
        files[small.name] = small.stat().st_size
        sizes = [(stage / WEIGHTS).stat().st_size, *files.values()]
        header, rows = _measured(runs, sizes, images)
        lines += [*(f"note: {note}" for note in images.notes), f"{small}: {files[small.name]:,} bytes", ""]
        lines += ["  ".join(cells).rstrip() for cells in aligned(header, rows)]
        table = f"## Precision\n\n{markdown_table(header, rows)}"
        if own := _in_own_sizes(runs, predictor, images.files):
            lines.append(own)
            table += f"\n\n{own}"
    spec = facts.description["spec"]
    plain = {"classes": facts.description["classes"], "channels": spec["in_channels"], "image_size": spec["image_size"]}
    write_json(written.metadata, {**facts.metadata, **plain})
    write_atomically(
        written.card, card(facts, files, table, run=_run_name(stage, facts)).encode("utf-8", "backslashreplace")
    )
    return [*lines, f"model card: {written.card}"]


def _run_name(stage: Path, facts: Facts) -> str | None:
    """Return the name of the recipe next to a stage, where there is one that can be read and has such a stage."""
    try:
        recipe = load_recipe(parent_of(stage) / "recipe.yaml")
    except SemisupError:
        return None
    return recipe.name if facts.record["name"] in recipe.stages else None


def _measured(runs: Mapping[str, Run], sizes: list[int], images: ExportImages) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table: accuracy (or agreement with torch), latency on one thread, and bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the others have
    try:
        predictions = [_classes(run, images.test) for run in runs.values()]
        batch1, batch32 = (_latencies(runs, images.test[:batch]) for batch in (1, 32))
    finally:
        torch.set_num_threads(threads)
    truth, what = (predictions[0], "agreement, %") if images.y_test is None else (images.y_test, "accuracy, %")
    rows = [
        [name, percent(float((found == truth).mean()), 2), f"{one:.3f}", f"{many:.3f}", f"{length:,}"]
        for name, found, one, many, length in zip(runs, predictions, batch1, batch32, sizes, strict=True)
    ]
    return ["", what, "batch 1, ms", "batch 32, ms", "bytes"], rows


def _classes(run: Run, images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the predicted classes, a batch at a time."""
    parts = [run(images[start : start + 256])[0].argmax(1) for start in range(0, len(images), 256)]
    return np.concatenate(parts)


def _in_own_sizes(runs: Mapping[str, Run], predictor: Predictor, files: Sequence[Path]) -> str:
    """Say how often pictures of other sizes than the network's get the class that they get from `semisup predict`.

    The table is of squares as training has them; other programs hand pictures over as they are.

    Args:
        runs: torch and the exported files, by name.
        predictor: what `semisup predict` asks.
        files: some of them are read, drawn by a fixed seed.

    Returns:
        A sentence; nothing where all pictures have the network's size.
    """
    same = {name: list[bool]() for name in runs if name != "torch"}
    shapes = list[tuple[int, ...]]()
    for k in np.random.default_rng(0).permutation(len(files))[:PICTURES]:
        try:
            picture = decode_whole(files[k], predictor.channels)
        except BadImageError:
            continue
        shapes.append(picture.shape[:2])
        expected = predictor.predict_proba(files[k]).argmax()
        for name, agreed in same.items():
            agreed.append(bool(runs[name](picture[None])[0].argmax() == expected))
        if sum(height * width for height, width in shapes) > PIXELS:
            break
    if not set(shapes) - {(predictor.image_size, predictor.image_size)}:
        return ""
    small, large = (f"{width} x {height}" for height, width in (min(shapes, key=math.prod), max(shapes, key=math.prod)))
    told = ", ".join(f"{name} {percent(sum(agreed) / len(agreed), 2)}%" for name, agreed in same.items())
    seen = f"{len(shapes)} files in their own sizes ({small} to {large} px)"
    return f"{seen} get the class that `semisup predict` gives them: {told}"


def _latencies(runs: Mapping[str, Run], batch: NDArray[np.uint8]) -> list[float]:
    """Return the median time of each, in ms, taken in turn so that a busy machine slows all of them."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(ROUNDS + 3):
        for run, times in zip(runs.values(), seconds, strict=True):
            started = time.perf_counter()
            run(batch)
            if turn >= 3:  # the first ones warm up
                times.append(time.perf_counter() - started)
    return [1e3 * statistics.median(times) for times in seconds]

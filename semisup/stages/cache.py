"""Features of many images in a file: float16, memory-mapped, filled from where a stopped run left off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from semisup.errors import UNREADABLE, SemisupError
from semisup.files import write_atomically
from semisup.records import read_json

__all__ = ["extract", "read_features", "stored_views", "view_files"]

SAVE_EVERY = 20
"""Batches between notes of how far it is."""


def extract(network: nn.Module, batches: Callable[[int], Iterator[Tensor]], rows: int, width: int, path: Path) -> int:
    """Write a network's features of images to an .npy file (rows, width) of float16.

    The numbers go to `<path>.part`, which becomes `path` when it is whole; `<path>.json` says how many rows are done.

    Args:
        network: in eval mode, images to (n, width).
        batches: of the images from a row on, in order.
        rows: how many images there are.
        width: of the features.
        path: to write.

    Returns:
        The row that it went on from, 0 at the first start.

    Raises:
        SemisupError: a feature is no number of float16, at most 65,504.
    """
    if path.exists():
        return rows
    part, progress = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.json")
    start, written = _begun(part, progress, (rows, width))
    if written is None:
        written = np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=(rows, width))
    at = start
    for i, images in enumerate(batches(start)):
        with torch.inference_mode():
            features = network(images).cpu().half().numpy()
        if not np.isfinite(features).all():
            raise SemisupError(f"{path.name}: features of image {at} or later are not finite in float16")
        written[at : at + len(features)] = features
        at += len(features)
        if i % SAVE_EVERY == SAVE_EVERY - 1:
            written.flush()
            write_atomically(progress, json.dumps({"rows": at}).encode())
    written.flush()
    part.replace(path)
    progress.unlink(missing_ok=True)
    return start


def _begun(part: Path, progress: Path, shape: tuple[int, int]) -> tuple[int, np.memmap | None]:
    """Return the rows that are done and their file; 0 and None where there is nothing, or nothing to go on from."""
    if not (progress.exists() and part.exists()):
        return 0, None
    done = read_json(progress)
    try:
        written = np.lib.format.open_memmap(part, mode="r+")
        start = int(done["rows"])
    except UNREADABLE:
        return 0, None
    sound = written.shape == shape and written.dtype == np.float16 and 0 < start <= len(written)
    return (start, written) if sound else (0, None)


def read_features(path: Path, rows: np.ndarray | None = None) -> Tensor:
    """Read features (N, D) that `extract` wrote, or some rows of them, as float32 in memory."""
    stored = np.load(path, mmap_mode="r")
    return torch.from_numpy(np.array(stored if rows is None else stored[rows], dtype=np.float32))


def view_files(views: int) -> list[str]:
    """Return the names of the files that hold so many views of the training images, (N, D) each."""
    return [f"view{i}.npy" for i in range(views)]


def stored_views(folder: Path) -> Tensor | None:
    """Read the views (K, N, D) that a features stage has stored, as float32 in memory; None: it has none."""
    found = view_files(len(list(folder.glob("view*.npy"))))
    return torch.stack([read_features(folder / name) for name in found]) if found else None

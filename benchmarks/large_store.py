"""Training on a store that is larger than what one wants in memory: the share of reading in a step, and memory.

    python benchmarks/large_store.py                     # 2 million images of 32 px, 6 GB; writes results/large_store.*
    python benchmarks/large_store.py --images 50000      # fewer; writes nothing

The images are random bytes in one .npy file, as `semisup data prepare` leaves it, which is dropped from the page cache
before each part, so that reading is from the disk. Reading is that of the engine's batches: rows drawn over all of the
file. Three parts: batches of 512 random rows with the system's read-ahead and without (MADV_RANDOM, as the package
does it); memory over many batches; FixMatch with WRN-10-1, whose step's time is that of reading and of all the rest.
"""

from __future__ import annotations

import argparse
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from speed_results import circumstances, show, write

from semisup.augment import Normalize, build_policy
from semisup.data import take
from semisup.engine import Batches, FitSettings, TrainingImages, fit
from semisup.methods import METHODS
from semisup.models import ModelSpec, build_classifier
from semisup.settings import OptimizerConfig, ScheduleConfig

SIDE, ROWS, LABELED, UNLABELED = 32, 512, 16, 112
BLOCK = 20_000


def make(path: Path, images: int) -> None:
    """Write a store of random images to the disk."""
    block = np.random.default_rng(0).integers(0, 256, (BLOCK, SIDE, SIDE, 3), np.uint8)
    store = np.lib.format.open_memmap(path, "w+", np.uint8, (images, SIDE, SIDE, 3))
    for start in range(0, images, BLOCK):
        store[start : start + BLOCK] = block[: images - start]
        store.flush()
    del store


def drop(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> dict[str, float]:
    """Return MiB that this process holds: its own, and pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: float(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}
    return {"own": found["RssAnon"], "files": found["RssFile"]}


def from_disk() -> float:
    """Return MiB that this process has had read from the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("read_bytes")) / 2**20


def plainly(images: Any, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Take rows with the system's read-ahead."""
    images._mmap.madvise(mmap.MADV_NORMAL)
    part = np.ascontiguousarray(images[rows])
    images._mmap.madvise(mmap.MADV_DONTNEED)
    return part


def reading(path: Path, read: Any, batches: int) -> list[str]:
    """Return milliseconds and MiB from the disk of a batch of random rows, from a cold cache."""
    drop(path)
    images = np.load(path, mmap_mode="r")
    rng = np.random.default_rng(1)
    before, begun = from_disk(), time.perf_counter()
    for _ in range(batches):
        read(images, rng.integers(0, len(images), ROWS))
    milliseconds = 1000 * (time.perf_counter() - begun) / batches
    return [f"{milliseconds:.1f}", f"{(from_disk() - before) / batches:.1f}"]


def steady(path: Path, batches: int) -> list[str]:
    """Return MiB of this process after a tenth of so many batches, and after all."""
    images = np.load(path, mmap_mode="r")
    rng = np.random.default_rng(2)
    early = {}
    for number in range(batches):
        take(images, rng.integers(0, len(images), ROWS))
        if number == batches // 10:
            early = memory()
    late = memory()
    return [f"{early[kind]:,.0f} -> {late[kind]:,.0f}" for kind in ("own", "files")]


@contextmanager
def clocked(batches: Batches) -> Iterator[dict[str, float]]:
    """Count the seconds that the batches spend on reading, and on asking for the next images."""
    spent = {"seconds": 0.0}

    def timed(function: Callable[[Any], Any]) -> Any:
        def call(what: Any) -> Any:
            begun = time.perf_counter()
            found = function(what)
            spent["seconds"] += time.perf_counter() - begun
            return found

        return call

    batches._read = timed(batches._read)  # type: ignore[method-assign]
    batches._read_ahead = timed(batches._read_ahead)  # type: ignore[method-assign]
    yield spent


def training(path: Path, steps: int) -> list[str]:
    """Return seconds of a step of FixMatch, the share of reading in it, and MiB at its first and its last step."""
    drop(path)
    torch.manual_seed(0)
    method = METHODS["fixmatch"](build_classifier(ModelSpec("wrn", {"depth": 10, "width": 1}, 3, SIDE, 10)))
    images = TrainingImages(np.load(path, mmap_mode="r"), torch.arange(1000), torch.arange(1000) % 10)
    views = {name: build_policy(name, {}, flip=True) for name in ("weak", "randaugment")}
    batches = Batches(
        images,
        labeled={"weak": views["weak"]},
        unlabeled={"weak": views["weak"], "strong": views["randaugment"]},
        labeled_size=LABELED,
        unlabeled_size=UNLABELED,
        normalize=Normalize((0.5,) * 3, (0.25,) * 3),
        device=torch.device("cpu"),
        key=(0, "large"),
    )
    seen = []

    def watched(step: int) -> Any:
        seen.append(memory()["own"])
        return batches(step)

    watched.images_per_step = batches.images_per_step  # type: ignore[attr-defined]
    settings = FitSettings(
        steps=steps, optimizer=OptimizerConfig(), schedule=ScheduleConfig(), device=torch.device("cpu"), ema=0.99
    )
    with clocked(batches) as spent:
        begun = time.perf_counter()
        fit(method, watched, settings)  # type: ignore[arg-type]
        seconds = time.perf_counter() - begun
    share = 100 * spent["seconds"] / seconds
    return [f"{seconds / steps:.2f}", f"{share:.2f}", f"{seen[steps // 3]:,.0f} -> {seen[-1]:,.0f}"]


def main() -> None:
    """Measure, show and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=None, help="with room for the store; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "images.npy"
        make(path, arguments.images)
        size = path.stat().st_size / 2**30
        ahead, alone = reading(path, plainly, 50), reading(path, take, 50)
        own, files = steady(path, 500)
        step, share, held = training(path, arguments.steps)
    lines = [
        [f"{ROWS} random rows, cold, the system's read-ahead: ms; MiB from the disk", "; ".join(ahead)],
        [f"{ROWS} random rows, cold, as the package reads: ms; MiB from the disk", "; ".join(alone)],
        ["own memory over 500 batches, MiB", own],
        ["pages of the file held over 500 batches, MiB", files],
        [f"step of FixMatch, WRN-10-1, {LABELED + UNLABELED} images, s", step],
        ["reading in it, %", share],
        ["own memory from a third of the steps to the last, MiB", held],
    ]
    note = f"{arguments.images:,} images, {size:.1f} GiB on disk; {torch.get_num_threads()} threads, {circumstances()}"
    show(["what", "found"], lines, note)
    if arguments.images >= 500_000:
        write("large_store", {"machine": note, "found": dict(lines)}, ["what", "found"], lines, note)


if __name__ == "__main__":
    main()

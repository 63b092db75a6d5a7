"""A set in a memory map is trained on, measured and judged without being loaded."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semisup.augment import Normalize
from semisup.data import ImageData, channel_statistics, draw_budget
from semisup.engine import Batches
from semisup.methods import Views
from semisup.stages.context import clean_batches
from semisup.stages.targets import training_images
from semisup.stages.views import stage_policies

N, SIDE = 32_000, 64
VIEWS = Views(labeled={"weak": "none"}, unlabeled={"weak": "none", "strong": "none"})
CPU = torch.device("cpu")
NORMALIZE = Normalize([0.5] * 3, [0.25] * 3)


@pytest.fixture
def data(tmp_path: Path) -> ImageData:
    """400 MB; image i has its class, i mod 100, in every pixel."""
    y = np.arange(N) % 100
    images = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.uint8, shape=(N, SIDE, SIDE, 3))
    for start in range(0, N, 1000):
        images[start : start + 1000] = y[start : start + 1000, None, None, None]
    images.flush()
    del images
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    return ImageData("folder", mapped, y, mapped[:10], y[:10], [str(k) for k in range(100)], True)


def resident() -> int:
    """Bytes of memory that this process has."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("needs Linux")
    return int(status.read_text().split()[1]) * 4096


def training(data: ImageData) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of two views of every image, and the classes that their pixels say."""
    batches = Batches(
        training_images(data, draw_budget(data.y_train, 400, 0, 100), None),
        labeled=stage_policies({}, VIEWS, "labeled", flip=True, learned=None),
        unlabeled=stage_policies({}, VIEWS, "unlabeled", flip=True, learned=None),
        labeled_size=16,
        unlabeled_size=100,
        normalize=NORMALIZE,
        device=CPU,
        key=(0, "train"),
    )
    for step in range(N // 100):
        batch = batches(step)
        yield batch.unlabeled["strong"], batch.unlabeled.index % 100
        yield batch.labeled["weak"], batch.labeled.y


def judging(data: ImageData) -> Iterator[tuple[Tensor, Tensor]]:
    """All images in order, then in another one."""
    order = np.random.default_rng(0).permutation(N)
    for rows in (None, order):
        y = torch.from_numpy(data.y_train if rows is None else data.y_train[rows])
        yield from zip(clean_batches(data.x_train, NORMALIZE, CPU, rows, size=200), y.split(200), strict=True)


@pytest.mark.parametrize("read", [training, judging])
def test_every_image_is_read_and_the_process_stays_small(
    data: ImageData, read: Callable[[ImageData], Iterator[tuple[Tensor, Tensor]]]
) -> None:
    seen = 0
    most = before = 0
    for images, y in read(data):
        torch.testing.assert_close(images[:, 1, 5, 7] * 0.25 + 0.5, y / 255)
        seen += len(y)
        before = before or resident()  # after the first batch: with what torch needs for one
        most = max(most, resident() - before)
    assert seen >= N
    assert most < 200e6, "the set has 393 MB; a process that has run a recipe keeps what steps have freed"


def test_statistics_of_a_map(data: ImageData) -> None:
    before = resident()
    tracemalloc.start()
    mean, std = channel_statistics(data.x_train)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6
    assert mean == pytest.approx([49.5 / 255] * 3)
    assert std == pytest.approx([np.arange(100).std() / 255] * 3)
    assert resident() - before < 60e6

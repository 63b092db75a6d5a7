from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from semisup.augment import Normalize, build_policy
from semisup.augment.policies.ctaugment import CTAugmentProbe
from semisup.augment.policies.policy import Augmentation, Part
from semisup.engine import Batches, TrainingImages, seeding
from semisup.engine.batches import BalancedOrder, Order
from semisup.errors import SemisupError
from semisup.methods import Batch

CPU = torch.device("cpu")
N, CLASSES = 37, 3


def same(images: Tensor, rng: torch.Generator, *, part: Part | None = None) -> Tensor:
    return images


def noise(images: Tensor, rng: torch.Generator, *, part: Part | None = None) -> Tensor:
    return images + torch.rand(images.shape, generator=rng)


@pytest.fixture
def data() -> TrainingImages:
    """Image i is the constant i (both channels), so that a batch says which images it is made of."""
    images = torch.arange(N, dtype=torch.uint8).view(N, 1, 1, 1).expand(N, 8, 8, 1).contiguous()
    labeled = torch.tensor([3, 5, 8, 13, 21, 34, 36])
    return TrainingImages(images, labeled, labeled % CLASSES)


def make(
    data: TrainingImages,
    *,
    labeled: dict[str, Augmentation] | None = None,
    unlabeled: dict[str, Augmentation] | None = None,
    sizes: tuple[int, int] = (5, 11),
    key: tuple[object, ...] = (0, "train"),
    normalize: Normalize | None = None,
) -> Batches:
    return Batches(
        data,
        labeled={"weak": noise} if labeled is None else labeled,
        unlabeled={"weak": noise, "strong": noise} if unlabeled is None else unlabeled,
        labeled_size=sizes[0],
        unlabeled_size=sizes[1],
        normalize=Normalize([0.0], [1 / 255]) if normalize is None else normalize,
        device=CPU,
        key=key,
    )


def tensors(batch: Batch) -> dict[str, Tensor]:
    found = {f"labeled/{name}": view for name, view in batch.labeled.views.items()}
    found |= {f"unlabeled/{name}": view for name, view in batch.unlabeled.views.items()}
    found |= {"y": batch.labeled.y, "index": batch.unlabeled.index}
    if batch.labeled.trace is not None:
        found["bins"] = batch.labeled.trace
    if batch.labeled.index is not None:
        found["labeled index"] = batch.labeled.index
    return found


def assert_same(a: Batch, b: Batch) -> None:
    one, other = tensors(a), tensors(b)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_every_epoch_is_a_permutation(n: int) -> None:
    order = Order(n, "key")
    epochs = order.stretch(0, 5 * n).view(5, n)
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(n))
    if n == 100:
        assert not torch.equal(epochs[0], epochs[1])


def test_an_order_is_not_that_of_the_images_and_depends_on_its_key() -> None:
    assert Order(50, 0, "a").stretch(0, 50).tolist() != list(range(50))
    assert not torch.equal(Order(50, 0, "a").stretch(0, 50), Order(50, 1, "a").stretch(0, 50))
    assert not torch.equal(Order(50, 0, "a").stretch(0, 50), Order(50, 0, "b").stretch(0, 50))
    assert torch.equal(Order(50, 0, "a").stretch(0, 50), Order(50, 0, "a").stretch(0, 50))


def test_any_stretch_is_that_part_of_the_whole_in_any_sequence() -> None:
    whole = Order(13, "key").stretch(0, 200)
    used = Order(13, "key")
    rng = random.Random(0)
    for _ in range(200):
        start = rng.randrange(150)
        length = rng.randrange(1, 50)
        assert torch.equal(used.stretch(start, length), whole[start : start + length])
    for start in reversed(range(0, 195, 5)):
        assert torch.equal(used.stretch(start, 5), whole[start : start + 5])


def test_a_batch_larger_than_the_set_takes_every_image_equally_often() -> None:
    stretch = Order(3, "key").stretch(6, 3 * 40)
    assert torch.bincount(stretch, minlength=3).tolist() == [40, 40, 40]


def test_a_batch_is_a_function_of_the_step_alone(data: TrainingImages) -> None:
    steps = list(range(12))
    forward = {step: make(data)(step) for step in steps}
    shuffled = random.Random(1).sample(steps, len(steps))
    used = make(data)
    for step in shuffled:
        torch.manual_seed(step)  # no global draw has a part in it
        assert_same(used(step), forward[step])


def test_steps_and_seeds_and_stages_differ(data: TrainingImages) -> None:
    one = tensors(make(data)(0))
    others = {
        "step": make(data)(1),
        "seed": make(data, key=(1, "train"))(0),
        "stage": make(data, key=(0, "other"))(0),
    }
    for what, other in others.items():
        for name, tensor in tensors(other).items():
            if name != "y":
                assert not torch.equal(tensor, one[name]), (what, name)


def test_the_bins_of_a_probe_come_with_it(data: TrainingImages) -> None:
    probe = CTAugmentProbe(shift=0, flip=False)
    batch = make(data, labeled={"weak": same, "probe": probe})(3)
    assert batch.labeled.trace is not None and batch.labeled.trace.shape == (5, 2)
    view, bins = probe.probe(batch.labeled["weak"] / 255, seeding.generator(0, "train", "labeled", "probe", 3))
    assert torch.equal(batch.labeled.trace, bins)
    torch.testing.assert_close(batch.labeled["probe"], view * 255, atol=1e-3, rtol=0)
    assert make(data)(3).labeled.trace is None


def test_views_of_an_image_are_in_the_same_place_and_differ_in_their_draws(data: TrainingImages) -> None:
    batch = make(data, unlabeled={"a": same, "b": same, "c": noise, "d": noise})(4)
    a, b, c, d = (batch.unlabeled[name] for name in "abcd")
    index = batch.unlabeled.index
    assert torch.equal(a, b)
    torch.testing.assert_close(a[:, 0, 0, 0], index.float())
    assert not torch.equal(c, d)
    # noise adds at most 1 to [0, 1] values, hence at most 255 to the pixel.
    for view in (c, d):
        extra = view - a
        assert extra.min() >= -1e-3 and extra.max() <= 255.001


def test_labels_belong_to_their_images(data: TrainingImages) -> None:
    batches = make(data, labeled={"weak": same})
    seen = set()
    for step in range(20):
        batch = batches(step)
        rows = batch.labeled["weak"][:, 0, 0, 0].round().long()
        assert set(rows.tolist()) <= set(data.labeled_index.tolist())
        assert torch.equal(batch.labeled.y, rows % CLASSES)
        assert batch.labeled.index is not None
        assert torch.equal(batch.labeled.index, rows)
        seen |= set(rows.tolist())
    assert seen == set(data.labeled_index.tolist())


def test_unlabeled_images_are_all_images_once_an_epoch(data: TrainingImages) -> None:
    batches = make(data, sizes=(5, N))
    for step in range(3):
        assert batches(step).unlabeled.index.sort().values.tolist() == list(range(N))


def in_page_cache(images: np.memmap[Any, Any]) -> NDArray[np.bool_]:
    """Which pages of a mapped file the system holds, whoever has read them."""
    file = images._mmap  # type: ignore[attr-defined]
    pages = np.zeros(-(-len(file) // mmap.PAGESIZE), np.uint8)
    start = np.frombuffer(file, np.uint8, 1).ctypes.data
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(file)), pages.ctypes) == 0
    return pages & 1 == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the system says what it holds in another way")
def test_the_disk_brings_the_next_images_meanwhile(tmp_path: Path) -> None:
    path, count, size = tmp_path / "images.npy", 2000, 64 * 64 * 3
    np.save(path, np.zeros((count, 64, 64, 3), np.uint8))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    images = np.load(path, mmap_mode="r")
    if in_page_cache(images).mean() > 0.5:
        pytest.skip("this file system is memory")
    normalize = Normalize([0.0] * 3, [1.0] * 3)
    batches = make(TrainingImages(images, torch.arange(9, 99, 9), torch.zeros(10)), sizes=(2, 3), normalize=normalize)
    batches(4)
    rows = torch.cat(
        [batches.labeled_index[batches._labeled_order.stretch(10, 2)], batches._unlabeled_order.stretch(15, 3)]
    )
    bytes_of = images.offset + rows.numpy()[:, None] * size + np.arange(size)
    asked, deadline = np.unique(bytes_of // mmap.PAGESIZE), time.monotonic() + 60
    while not in_page_cache(images)[asked].all():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert in_page_cache(images).sum() < 4 * len(asked), "and no others than those of this step, and the header"


@pytest.mark.parametrize("pool", [None, torch.tensor([2, 2, 2, 30, 17])])
def test_images_read_from_a_file_make_the_same_batches(
    data: TrainingImages, tmp_path: Path, pool: Tensor | None
) -> None:
    np.save(tmp_path / "images.npy", data.images.numpy())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    targets = torch.rand(N, CLASSES, generator=torch.Generator().manual_seed(0))
    inside = make(TrainingImages(data.images, data.labeled_index, data.labels, pool, targets))
    outside = make(TrainingImages(mapped, data.labeled_index, data.labels, pool, targets))
    for step in range(4):
        assert_same(inside(step), outside(step))


def test_pool_and_targets_of_a_relabel_stage_are_honoured(data: TrainingImages) -> None:
    pool = torch.tensor([2, 2, 2, 30, 17])
    targets = torch.rand(N, CLASSES, generator=torch.Generator().manual_seed(0))
    relabeled = TrainingImages(data.images, data.labeled_index, data.labels, pool, targets)
    batch = make(relabeled, unlabeled={"strong": same}, sizes=(5, 10))(0)
    assert torch.bincount(batch.unlabeled.index, minlength=N)[[2, 17, 30]].tolist() == [6, 2, 2]
    assert batch.unlabeled.target is not None
    assert torch.equal(batch.unlabeled.target, targets[batch.unlabeled.index])
    torch.testing.assert_close(batch.unlabeled["strong"][:, 0, 0, 0], batch.unlabeled.index.float())
    assert make(data)(0).unlabeled.target is None


def test_values_are_scaled_and_normalized_last() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8)
    data = TrainingImages(images, torch.arange(20), torch.zeros(20, dtype=torch.long))
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    seen: list[Tensor] = []

    def watch(views: Tensor, rng: torch.Generator, *, part: Part | None = None) -> Tensor:
        seen.append(views)
        return views

    batch = make(data, labeled={}, unlabeled={"weak": watch}, sizes=(4, 7), normalize=Normalize(mean, std))(0)
    rows = batch.unlabeled.index
    expected = images[rows].double().permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(seen[0].double(), expected, atol=1e-6, rtol=0)
    assert seen[0].min() >= 0 and seen[0].max() <= 1
    scaled = (expected - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    view = batch.unlabeled["weak"]
    torch.testing.assert_close(view.double(), scaled, atol=1e-5, rtol=0)
    assert view.dtype == torch.float32
    assert view.is_contiguous(memory_format=torch.channels_last)


def test_no_global_random_state_and_no_stored_image_is_touched(data: TrainingImages) -> None:
    policy = build_policy("randaugment", {}, flip=True)
    batches = make(data, labeled={"weak": policy}, unlabeled={"weak": policy, "strong": policy})
    torch.manual_seed(5)
    images = data.images.clone()
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    for step in range(3):
        batches(step)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]
    assert torch.equal(data.images, images)


def test_a_part_that_nobody_asks_for_is_empty(data: TrainingImages) -> None:
    only_labeled = make(data, unlabeled={})
    assert only_labeled.images_per_step == 5
    assert only_labeled(0).unlabeled.views == {} and len(only_labeled(0).unlabeled.index) == 0
    only_unlabeled = make(data, labeled={})
    assert only_unlabeled.images_per_step == 11
    assert only_unlabeled(0).labeled.views == {} and len(only_unlabeled(0).labeled.y) == 0
    assert make(data).images_per_step == 16


def test_no_image_to_draw_is_an_error_that_says_so(data: TrainingImages) -> None:
    nothing = torch.empty(0, dtype=torch.long)
    unlabeled_only = TrainingImages(data.images, nothing, nothing)
    with pytest.raises(SemisupError, match="needs labeled images, and there are none"):
        make(unlabeled_only)
    make(unlabeled_only, labeled={})(0)
    with pytest.raises(SemisupError, match="needs unlabeled images, and there are none"):
        make(TrainingImages(data.images, data.labeled_index, data.labels, pool=nothing))


def test_balanced_labels_come_class_by_class() -> None:
    labels = torch.tensor([0] * 12 + [1] * 3 + [2])
    order = BalancedOrder(labels, 0, "train")
    first = order.stretch(0, 36)
    assert torch.equal(torch.bincount(labels[first]), torch.tensor([12, 12, 12]))
    assert all(len(set(labels[first[i : i + 3]].tolist())) == 3 for i in range(0, 36, 3))
    assert set(first.tolist()) == set(range(16)), "of the largest class every label comes once"
    assert torch.equal(torch.cat([order.stretch(0, 5), order.stretch(5, 31)]), first), "a pure function of the position"

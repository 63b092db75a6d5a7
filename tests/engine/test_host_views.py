"""Views that begin on the host, image by image, in the batches of a stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semisup.augment import Normalize, build_policy, to_float
from semisup.augment.policies.backend import HostFirst, ImageByImage
from semisup.augment.policies.views import NoAugment
from semisup.engine import Batches, TrainingImages, generator
from semisup.methods import Batch

OWN = [{"name": "GaussNoise", "p": 1}]
KEY = (0, "train")


@pytest.fixture(params=[1, 3])
def data(request: pytest.FixtureRequest) -> TrainingImages:
    shape = (30, 12, 12, request.param)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return TrainingImages(images, torch.arange(0, 30, 3), torch.arange(10) % 2)


def host(name: str, own: list[dict[str, object]] | None = None) -> HostFirst:
    return HostFirst(ImageByImage(own or [], build_policy(name, {}, flip=True)), NoAugment())


def make(data: TrainingImages, strong: object, weak: object = None) -> Batches:
    """Labeled "weak" and unlabeled "strong"; values as they are in [0, 1]."""
    channels = data.images.shape[3]
    device = build_policy("weak", {}, flip=True)
    return Batches(
        data,
        labeled={"weak": weak or device},  # type: ignore[dict-item]
        unlabeled={"strong": strong, "weak": device},  # type: ignore[dict-item]
        labeled_size=4,
        unlabeled_size=8,
        normalize=Normalize([0.0] * channels, [1.0] * channels),
        device=torch.device("cpu"),
        key=KEY,
    )


def views(batch: Batch) -> list[Tensor]:
    return [*batch.labeled.views.values(), *batch.unlabeled.views.values()]


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(one, other) for one, other in zip(views(a), views(b), strict=True))


def test_a_batch_is_a_function_of_the_step(data: TrainingImages) -> None:
    """Whatever was made before: a resumed run sees the same images."""
    straight = make(data, host("simclr", OWN))
    batches = [straight(step) for step in range(4)]
    resumed = make(data, host("simclr", OWN))
    assert same(resumed(3), batches[3]) and same(straight(3), batches[3])
    assert not torch.equal(batches[2].unlabeled["strong"], batches[3].unlabeled["strong"])


def test_the_rng_are_those_of_the_device(data: TrainingImages) -> None:
    policy = build_policy("weak", {"shift": 0.25}, flip=True)
    on_host = make(data, HostFirst(ImageByImage((), policy), NoAugment()))
    on_device = make(data, policy)
    assert same(on_host(5), on_device(5))  # moving whole pixels is exact


def test_views_on_the_device_stay_what_they_are(data: TrainingImages) -> None:
    a, b = make(data, host("simclr"))(2), make(data, build_policy("simclr", {}, flip=True))(2)
    assert torch.equal(a.unlabeled["weak"], b.unlabeled["weak"])
    assert torch.equal(a.labeled["weak"], b.labeled["weak"])
    assert torch.equal(a.unlabeled.index, b.unlabeled.index)
    assert not torch.equal(a.unlabeled["strong"], b.unlabeled["strong"])


def test_the_same_image_in_two_views_and_parts_is_drawn_anew(data: TrainingImages) -> None:
    batches = make(data, host("none", OWN), host("none", OWN))
    first = batches(0)
    image = int(first.unlabeled.index[0])
    noise = first.unlabeled["strong"][0] - to_float(data.images[image : image + 1])[0]  # type: ignore[arg-type]
    other = first.unlabeled["strong"][1] - to_float(data.images[first.unlabeled.index[1]][None])[0]  # type: ignore[arg-type]
    assert noise.abs().max() > 0.01
    assert not torch.allclose(noise, other, atol=0.02)  # within a batch


def test_a_list_of_ones_own_goes_ahead_of_the_device(data: TrainingImages) -> None:
    policy = build_policy("weak", {}, flip=True)
    batch = make(data, HostFirst(ImageByImage(OWN, None), policy))(1)
    rng = generator(*KEY, "unlabeled", "strong", 1)
    noisy = ImageByImage(OWN, None)(data.images[batch.unlabeled.index], rng)  # type: ignore[arg-type]
    assert torch.equal(batch.unlabeled["strong"], policy(to_float(noisy), rng))


def test_the_probe_of_ctaugment_too(data: TrainingImages) -> None:
    probe = build_policy("ctaugment_probe", {}, flip=True)
    batch = make(data, host("weak"), HostFirst(ImageByImage(OWN, None), probe))(0)
    assert batch.labeled.trace is not None and batch.labeled.trace.shape == (4, 2)


def test_a_memory_map_is_read_as_a_tensor_is(data: TrainingImages, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asarray(data.images))
    mapped = TrainingImages(np.load(tmp_path / "a.npy", mmap_mode="r"), data.labeled_index, data.labels)
    assert same(make(mapped, host("simclr"))(3), make(data, host("simclr"))(3))


def test_stored_images_stay_as_they_are(data: TrainingImages) -> None:
    before = data.images.clone()  # type: ignore[union-attr]
    make(data, host("randaugment", OWN), host("weak"))(0)
    assert torch.equal(data.images, before)  # type: ignore[arg-type]

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Generator, Tensor

from semisup.augment import to_float
from semisup.augment.kernels.opencv import has_form
from semisup.augment.policies import backend
from semisup.augment.policies.backend import LARGEST_ON_DEVICE, ImageByImage, resolve_backend
from semisup.augment.policies.policy import Drawn, Part, Policy, Shape
from semisup.augment.policies.views import POLICIES, SimCLR, Weak, build_policy
from semisup.errors import SemisupError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FORMS, MIXED = {"weak": "weak", "strong": "randaugment"}, {"weak": "weak", "strong": "ctaugment"}
LARGE = LARGEST_ON_DEVICE + 1


def pictures(channels: int = 3, size: int = 12, count: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, size, size, channels), generator=generator, dtype=torch.uint8)


def seeded(seed: int = 5) -> Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However quick an image is."""
    monkeypatch.setattr(backend, "SHARED_FROM", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "policies", "device", "size", "expected"),
    [
        ("auto", FORMS, CPU, LARGEST_ON_DEVICE, "device"),
        ("auto", FORMS, CPU, LARGE, "albumentations"),
        ("auto", MIXED, CPU, LARGE, "device"),
        ("auto", FORMS, CUDA, 224, "device"),
        ("device", FORMS, CPU, 224, "device"),
        ("albumentations", FORMS, CPU, 8, "albumentations"),
        ("albumentations", FORMS, CUDA, 8, "albumentations"),
    ],
)
def test_the_choice(asked: str, policies: dict[str, str], device: torch.device, size: int, expected: str) -> None:
    assert resolve_backend(asked, policies, device, size) == expected


def test_a_policy_without_a_form_is_named_with_its_view() -> None:
    with pytest.raises(SemisupError, match=r"augment.backend: .*'ctaugment' \(view 'strong'\); use device or auto"):
        resolve_backend("albumentations", MIXED, CPU, 8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["none", "weak", "simclr", "local", "randaugment"])
def test_the_same_seed_makes_the_same_views_in_any_number_of_threads(
    name: str, channels: int, two_threads: None
) -> None:
    policy, images = build_policy(name, {}, flip=True), pictures(channels)
    two = ImageByImage((), policy)
    torch.set_num_threads(1)
    one = ImageByImage((), policy)
    assert (one.threads, two.threads) == (1, 2)
    before = images.clone()
    result = one(images, seeded())
    assert torch.equal(result, two(images, seeded()))
    assert torch.equal(images, before)
    assert result.dtype == torch.uint8 and result.shape[3] == channels
    assert torch.equal(result, one(images, seeded(6))) == (name == "none")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [name for name, cls in POLICIES.items() if has_form(cls)])
def test_parts_of_a_batch_are_those_of_the_whole(name: str, channels: int) -> None:
    own = [{"name": "GaussNoise", "p": 0.5}] if name == "simclr" else []
    images, view = pictures(channels), ImageByImage(own, build_policy(name, {}, flip=True))
    parts = [Part(9, slice(0, 2)), Part(9, slice(2, 9))]
    made = [view(images[part.rows], seeded(), part=part) for part in parts]
    assert torch.equal(torch.cat(made), view(images, seeded()))


def test_it_draws_what_the_policy_draws_on_the_device() -> None:
    images, policy = pictures(), Weak()
    one, other = seeded(), seeded()
    host = ImageByImage((), policy)(images, one)
    device = policy(to_float(images), other)
    assert torch.equal(to_float(host), device)
    assert torch.equal(one.get_state(), other.get_state())


def test_a_smaller_view_is_smaller() -> None:
    assert ImageByImage((), build_policy("local", {"size": 0.5}, flip=True))(pictures(), seeded()).shape == (9, 6, 6, 3)


def threads_at_work() -> set[int]:
    """Of a batch with a transform of one's own, the threads that made it."""
    view = ImageByImage([{"name": "HorizontalFlip", "p": 0.5}], SimCLR())
    assert len({id(own) for own in view.own}) == 2  # each its own, so that none remembers another's draw
    seen = set()
    for own in view.own:
        own.compose = lambda image, _own=own, _compose=own.compose: (
            seen.add(threading.get_ident()) or _compose(image=image)
        )  # type: ignore[attr-defined]
        own.compose.set_random_state = lambda *_: None  # type: ignore[attr-defined]
    view(pictures(), seeded())
    return seen


def test_the_work_is_shared_by_the_threads(two_threads: None) -> None:
    assert len(threads_at_work()) >= 2


def test_quick_images_are_made_by_one_thread(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "SHARED_FROM", 60.0)
    assert threads_at_work() == {threading.get_ident()}


def test_what_goes_wrong_in_a_thread_is_heard_of(two_threads: None) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Failing(Policy):
        def draw(self, shape: Shape, generator: Generator) -> Drawn:
            return {}

        def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
            return images

    with pytest.raises(SemisupError, match="Failing has no albumentations form"):
        ImageByImage((), Failing())(pictures(), seeded())
    view = ImageByImage([{"name": "RandomScale", "scale_limit": [0.5, 0.5], "p": 1}], None)
    with pytest.raises(SemisupError, match=r"RandomScale.*must keep height, width and channels \(12, 12, 3\)"):
        view(pictures(), seeded())


def test_a_list_of_ones_own_comes_first_and_has_seeds_of_its_own() -> None:
    images = pictures()
    flips = [{"name": "HorizontalFlip", "p": 0.5}]
    alone = ImageByImage(flips, None)(images, seeded())
    mirrored = (alone == images.flip(2)).flatten(1).all(1)
    assert 0 < mirrored.sum() < 9  # by image
    assert torch.equal(alone[~mirrored], images[~mirrored])
    generator = seeded()
    torch.randint(2**62, (9,), generator=generator)  # the seeds of the images
    expected = ImageByImage((), Weak())(alone, generator)
    assert torch.equal(ImageByImage(flips, Weak())(images, seeded()), expected)


def test_the_pool_is_made_once() -> None:
    assert backend._pool(2) is backend._pool(2)

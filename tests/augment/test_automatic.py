"""AutoAugment, RandAugment (N, M) and TrivialAugment: tables and ranges as published, operations as PIL does them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms import AutoAugment as TorchvisionAutoAugment
from torchvision.transforms import AutoAugmentPolicy

from semisup.augment.kernels import ops
from semisup.augment.policies import automatic
from semisup.augment.policies.automatic import OPERATIONS, AutoAugment, Listed, RandAugmentNM, TrivialAugment
from tests.augment.test_ops import from_pil, make_images, to_pil

MANY = 20_000
PLAIN: dict[str, Any] = {"shift": 0, "flip": False, "cutout": 0}
PAPER = {
    *("identity", "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast", "brightness"),
    *("sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made_by(policy: Listed, images: Tensor, choice: list[list[str]], levels: list[list[int]]) -> Tensor:
    """What the policy makes of these operations and levels."""
    drawn = policy.draw(images.shape, seeded())
    drawn["ops"] = torch.tensor([[OPERATIONS.index(name) for name in row] for row in choice])
    drawn["levels"] = torch.tensor(levels)
    return policy.apply(images, drawn)


# Operations at their levels ------------------------------------------------------------------------------------------

STANDARD: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "brightness": lambda image, n: ImageEnhance.Brightness(image).enhance(0.1 + n * 1.8 / 10),
    "color": lambda image, n: ImageEnhance.Color(image).enhance(0.1 + n * 1.8 / 10),
    "contrast": lambda image, n: ImageEnhance.Contrast(image).enhance(0.1 + n * 1.8 / 10),
    "sharpness": lambda image, n: ImageEnhance.Sharpness(image).enhance(0.1 + n * 1.8 / 10),
    "posterize": lambda image, n: ImageOps.posterize(image, max(1, 4 - int(n * 4 / 10))),
    "solarize": lambda image, n: ImageOps.solarize(image, 256 - int(n * 256 / 10)),
    "autocontrast": lambda image, n: ImageOps.autocontrast(image),
    "equalize": lambda image, n: ImageOps.equalize(image),
    "invert": lambda image, n: ImageOps.invert(image),
    "identity": lambda image, n: image,
}
"""The authors' code for CIFAR, ten levels."""
WIDE: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "brightness": lambda image, n: ImageEnhance.Brightness(image).enhance(0.01 + n * 1.99 / 30),
    "color": lambda image, n: ImageEnhance.Color(image).enhance(0.01 + n * 1.99 / 30),
    "contrast": lambda image, n: ImageEnhance.Contrast(image).enhance(0.01 + n * 1.99 / 30),
    "sharpness": lambda image, n: ImageEnhance.Sharpness(image).enhance(0.01 + n * 1.99 / 30),
    "posterize": lambda image, n: ImageOps.posterize(image, 8 - int(n * 6 / 30)),
    "solarize": lambda image, n: ImageOps.solarize(image, 256 - int(n * 256 / 30)),
}
"""TrivialAugment's wide space, thirty levels."""


@pytest.mark.parametrize(
    ("policy", "table", "name"),
    [(RandAugmentNM(operations=1, **PLAIN), STANDARD, name) for name in STANDARD]
    + [(TrivialAugment(**PLAIN), WIDE, name) for name in WIDE],
    ids=[f"standard-{name}" for name in STANDARD] + [f"wide-{name}" for name in WIDE],
)
def test_operations_equal_pil_at_every_level(
    policy: Listed, table: dict[str, Callable[[Image.Image, int], Image.Image]], name: str
) -> None:
    levels = range(policy.levels + 1)
    images = make_images(len(levels), 3, 32, 32)
    out = made_by(policy, images, [[name]] * len(levels), [[n] for n in levels])
    atol = 0 if name in ("solarize", "posterize", "invert", "identity", "equalize") else 1.6 / 255  # PIL's rounding
    for n, image, result in zip(levels, images, out, strict=True):
        torch.testing.assert_close(result, from_pil(table[name](to_pil(image), n)), atol=atol + 1e-6, rtol=0)


@pytest.mark.parametrize(
    ("policy", "degrees", "shear", "pixels"),
    [(RandAugmentNM(), 30, 0.3, 10), (AutoAugment(), 30, 0.3, 10), (TrivialAugment(), 135, 0.99, 32)],
)
@pytest.mark.parametrize("share", [-1.0, -0.5, 0.0, 0.7, 1.0])
def test_geometry_goes_as_far_as_published(
    policy: Listed, degrees: float, shear: float, pixels: float, share: float
) -> None:
    level, size, s = round(share * policy.levels), (32, 32), torch.tensor([share])
    expected = {
        "rotate": ops.rotation(degrees * s, size),
        "shear_x": ops.shear_x(shear * s, size),
        "shear_y": ops.shear_y(shear * s, size),
        "translate_x": ops.translation(pixels / 32 * s, 0 * s),
        "translate_y": ops.translation(0 * s, pixels / 32 * s),
    }
    matrices = automatic._matrices(policy.ranges, policy.levels, *size)[:, level + policy.levels]
    for place, name in enumerate(OPERATIONS):
        want = expected.get(name, ops.translation(0 * s, 0 * s))
        torch.testing.assert_close(matrices[place : place + 1], want, atol=1e-6, rtol=0)


def test_trivialaugment_moves_by_32_pixels_or_the_side() -> None:
    place = OPERATIONS.index("translate_x")
    for side, fraction in ((28, 1.0), (32, 1.0), (224, 32 / 224)):
        matrix = automatic._matrices(automatic.WIDE, 30, side, side)[place, -1]
        assert matrix[0, 2].item() == pytest.approx(-2 * fraction)


def test_three_operations_keep_their_order() -> None:
    images = make_images(3, 1, 28, 28)
    policy = RandAugmentNM(operations=3, **PLAIN)
    rows = [["rotate", "invert", "shear_x"], ["invert", "rotate", "translate_y"], ["posterize", "solarize", "rotate"]]
    levels = [[5, 0, -10], [0, -5, 10], [9, 7, 10]]
    out = made_by(policy, images, rows, levels)
    single = RandAugmentNM(operations=1, **PLAIN)
    for n, (names, steps) in enumerate(zip(rows, levels, strict=True)):
        image = images[n : n + 1]
        for name, level in zip(names, steps, strict=True):
            image = made_by(single, image, [[name]], [[level]])
        torch.testing.assert_close(out[n : n + 1], image, atol=1e-5, rtol=0)


# What is drawn -------------------------------------------------------------------------------------------------------


def even(counts: Tensor, expected: float) -> bool:
    return bool(((counts - expected).abs() < 5 * expected**0.5).all())


@pytest.mark.parametrize(("channels", "missing"), [(3, set()), (1, {"color", "solarize"})])
@pytest.mark.parametrize("policy", [RandAugmentNM(), TrivialAugment()])
def test_each_operation_of_the_paper_is_equally_likely(policy: Listed, channels: int, missing: set[str]) -> None:
    choice = policy.draw((MANY, channels, 32, 32), seeded())["ops"]
    counts = torch.bincount(choice.flatten(), minlength=len(OPERATIONS))
    assert {OPERATIONS[place] for place in counts.nonzero().flatten()} == PAPER - missing
    assert even(counts[counts > 0], choice.numel() / len(PAPER - missing))


def test_levels_and_signs() -> None:
    fixed = RandAugmentNM(operations=3, magnitude=7).draw((MANY, 3, 32, 32), seeded())["levels"]
    assert fixed.shape == (MANY, 3)
    assert fixed.abs().unique().tolist() == [7]
    assert fixed.sign().float().mean().abs() < 0.02
    free = TrivialAugment().draw((MANY, 3, 32, 32), seeded())["levels"]
    assert free.shape == (MANY, 1)
    counts = torch.bincount(free.abs().flatten())
    assert len(counts) == 31 and even(counts, MANY / 31)
    assert free.sign().float().mean().abs() < 0.02


# AutoAugment ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned_on", ["cifar10", "svhn", "imagenet"])
def test_the_pairs_are_those_that_torchvision_has(learned_on: str) -> None:
    theirs = TorchvisionAutoAugment(AutoAugmentPolicy(learned_on)).policies
    places, chances, levels = automatic._pairs(learned_on, 3)
    assert len(theirs) == len(places) == 25
    for n, pair in enumerate(theirs):
        for k, (name, chance, level) in enumerate(pair):
            assert OPERATIONS[places[n, k]].replace("_", "") == name.lower()
            assert chances[n, k].item() == pytest.approx(chance)
            assert level is None or levels[n, k] == level


@pytest.mark.parametrize("channels", [1, 3])
def test_autoaugment_applies_each_half_with_its_probability(channels: int) -> None:
    places, chances, _ = automatic._pairs("cifar10", channels)
    drawn = AutoAugment().draw((10 * MANY, channels, 8, 8), seeded())
    kinds = drawn["ops"][:, 0] * 1000 + drawn["levels"][:, 0].abs() * 20
    # The pair "rotate 2, translate_x 9" is the only one with a rotation: 1 of 25, applied with 0.7 and 0.3.
    rotate, move, still = (OPERATIONS.index(name) for name in ("rotate", "translate_x", "identity"))
    turned = kinds == rotate * 1000 + 2 * 20
    assert turned.float().mean().item() == pytest.approx(0.7 / 25, abs=0.002)
    second = drawn["ops"][turned, 1]
    assert set(second.unique().tolist()) == {move, still}
    assert (second == move).float().mean().item() == pytest.approx(0.3, abs=0.02)
    # Over all pairs each operation comes as often as the probabilities add up to.
    for k in range(2):
        want = torch.zeros(len(OPERATIONS)).index_add_(0, places[:, k], chances[:, k] / 25)
        want[still] += 1 - want.sum()
        got = torch.bincount(drawn["ops"][:, k], minlength=len(OPERATIONS)) / len(drawn["ops"])
        torch.testing.assert_close(got, want, atol=0.004, rtol=0)
    if channels == 1:
        gone = [OPERATIONS.index(name) for name in automatic.NOT_FOR_GRAY]
        assert not torch.isin(drawn["ops"], torch.tensor(gone)).any()


def test_cutout_and_fill_are_those_of_the_other_strong_views() -> None:
    images = torch.full((4096, 3, 28, 28), 0.25)
    policy = TrivialAugment(fill=[0.1, 0.5, 0.9])
    drawn = policy.draw(images.shape, seeded())
    drawn["ops"].fill_(OPERATIONS.index("identity"))
    out = policy.apply(images, drawn)
    for channel, paint in enumerate((0.1, 0.5, 0.9)):
        painted = (out[:, channel] - paint).abs() < 1e-6
        assert painted.float().mean().item() == pytest.approx(0.4375**2, abs=0.004)

"""Damage: how much of it there is, where, and of which kind."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from semisup.augment.pretext.corruption import Corruption, corrupt

IMAGES = torch.randn(200, 3, 10, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("amount", [0.1, 0.3, 0.5])
def test_masking_takes_its_part_of_the_energy(amount: float) -> None:
    """E ||damaged - x||^2 = amount ||x||^2."""
    damaged = corrupt(IMAGES, "masking", amount)
    assert float((damaged - IMAGES).square().sum() / IMAGES.square().sum()) == pytest.approx(amount, abs=0.01)
    hit = damaged != IMAGES
    assert not damaged[hit].any()
    assert torch.equal(hit.any(1), hit.all(1)), "channels are hit together"
    assert float(hit.any(1).float().mean(0).std()) < 0.06, "every place is as likely"
    assert len({tuple(image) for image in hit[:, 0].flatten(1).tolist()}) == 200, "every image has its own"


def test_gaussian_noise_has_its_standard_deviation() -> None:
    noise = corrupt(IMAGES, "gaussian", 0.4) - IMAGES
    assert float(noise.square().mean()) == pytest.approx(0.16, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float((noise[:, 0] * noise[:, 1]).mean()) == pytest.approx(0, abs=0.01)


def test_salt_and_pepper_are_the_extremes_of_each_channel() -> None:
    damaged = corrupt(IMAGES, "salt_and_pepper", 0.3)
    low, high = IMAGES.amin((0, 2, 3)), IMAGES.amax((0, 2, 3))
    hit = (damaged != IMAGES).any(1)
    assert float(hit.float().mean()) == pytest.approx(0.3, abs=0.01)
    pepper = (damaged.transpose(0, 1)[:, hit] == low[:, None]).all(0)
    salt = (damaged.transpose(0, 1)[:, hit] == high[:, None]).all(0)
    assert (pepper ^ salt).all()
    assert float(salt.float().mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("kind", get_args(Corruption))
def test_no_damage_the_input_new_draws_and_the_meta_device(kind: Corruption) -> None:
    before = IMAGES.clone()
    assert torch.equal(corrupt(IMAGES, kind, 0.0), IMAGES)
    first, second = corrupt(IMAGES, kind, 0.5), corrupt(IMAGES, kind, 0.5)
    assert not torch.equal(first, second)
    assert torch.equal(IMAGES, before)
    assert corrupt(torch.empty(2, 1, 8, 8, device="meta"), kind, 0.5).is_meta


@pytest.mark.parametrize("kind", ["masking", "salt_and_pepper"])
def test_all_of_it(kind: Corruption) -> None:
    damaged = corrupt(IMAGES, kind, 1.0)
    assert not (damaged == IMAGES).all(1).any() or kind == "salt_and_pepper"
    assert len(damaged[:, 0].unique()) == (1 if kind == "masking" else 2)

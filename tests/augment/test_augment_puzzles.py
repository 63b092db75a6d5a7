"""Rotations by quarters against torch.rot90 and against their group law."""

from __future__ import annotations

import pytest
import torch

from semisup.augment import four_rotations, rotate_quarters

IMAGES = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_four_rotations_are_those_of_rot90_side_by_side() -> None:
    rotated, quarters = four_rotations(IMAGES)
    assert quarters.tolist() == [0, 1, 2, 3] * 5
    for i, image in enumerate(IMAGES):
        for k in range(4):
            assert torch.equal(rotated[4 * i + k], torch.rot90(image, k, (-2, -1)))


@pytest.mark.parametrize("k", range(4))
def test_rotate_quarters_is_rot90(k: int) -> None:
    assert torch.equal(rotate_quarters(IMAGES, torch.full((5,), k)), torch.rot90(IMAGES, k, (-2, -1)))


def test_every_image_has_its_own_rotation() -> None:
    quarters = torch.tensor([3, 0, 1, 2, 1])
    rotated = rotate_quarters(IMAGES, quarters)
    for image, k, turned in zip(IMAGES, quarters.tolist(), rotated, strict=True):
        assert torch.equal(turned, torch.rot90(image, k, (-2, -1)))


@pytest.mark.parametrize("a", range(4))
@pytest.mark.parametrize("b", range(4))
def test_turns_add_up_bit_for_bit(a: int, b: int) -> None:
    twice = rotate_quarters(rotate_quarters(IMAGES, torch.full((5,), a)), torch.full((5,), b))
    assert torch.equal(twice, rotate_quarters(IMAGES, torch.full((5,), (a + b) % 4)))


def test_a_quarter_turns_anticlockwise() -> None:
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert rotate_quarters(image, torch.tensor([1])).flatten().tolist() == [2.0, 4.0, 1.0, 3.0]


@pytest.mark.parametrize("channels", [1, 3])
def test_results_are_channels_last_and_the_input_stays(channels: int) -> None:
    images = IMAGES[:, :channels].contiguous(memory_format=torch.channels_last)
    before = images.clone()
    for rotated in (four_rotations(images)[0], rotate_quarters(images, torch.arange(5) % 4)):
        assert rotated.is_contiguous(memory_format=torch.channels_last)
        rotated.zero_()
        assert torch.equal(images, before)


def test_one_image_and_none() -> None:
    assert four_rotations(IMAGES[:1])[0].shape == (4, 3, 6, 6)
    assert four_rotations(IMAGES[:0])[0].shape == (0, 3, 6, 6)
    assert rotate_quarters(IMAGES[:0], torch.zeros(0, dtype=torch.long)).shape == (0, 3, 6, 6)


def test_meta_device_and_gradient() -> None:
    images = torch.empty(4, 1, 8, 8, device="meta")
    assert rotate_quarters(images, torch.zeros(4, dtype=torch.long, device="meta")).is_meta
    assert all(x.is_meta for x in four_rotations(images))
    variable = IMAGES.clone().requires_grad_()
    (slope,) = torch.autograd.grad((four_rotations(variable)[0] * 2).sum(), variable)
    assert torch.equal(slope, torch.full_like(IMAGES, 8.0))


def test_mistakes_are_named() -> None:
    wide = torch.zeros(2, 1, 4, 6)
    with pytest.raises(ValueError, match=r"square images \(N, C, S, S\), got \(2, 1, 4, 6\)"):
        four_rotations(wide)
    with pytest.raises(ValueError, match="square"):
        rotate_quarters(wide, torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"quarters must have shape \(5,\), one per image, got \(1,\)"):
        rotate_quarters(IMAGES, torch.zeros(1, dtype=torch.long))

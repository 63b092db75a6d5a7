"""Both backends make the same views of the same draws; where they cannot, by how much they differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.augment import to_float
from semisup.augment.kernels import opencv, ops
from semisup.augment.kernels.opencv import has_form, image_by_image
from semisup.augment.policies.operations import PHOTOMETRIC
from semisup.augment.policies.policy import Drawn, Policy
from semisup.augment.policies.views import POLICIES, build_policy
from semisup.errors import SemisupError

EXACT = {"none", "weak"}
"""Nothing is computed with gray levels."""
CROPS = {"simclr", "moco", "byol_first", "byol_second", "local", "crop_flip"} | {
    *("swav", "swav_local", "dino_first", "dino_second", "dino_local", "cmc", "mae", "maskfeat")
}
OPERATIONS = {"randaugment", "randaugment_nm", "trivialaugment", "autoaugment"}
WITHOUT = {"ctaugment", "ctaugment_cutout", "ctaugment_probe"}
"""What they do depends on rates that are on the device."""
N = 64


def pictures(channels: int, size: int = 40, count: int = N) -> Tensor:
    """(N, H, W, C) uint8: smooth, as photographs mostly are, a bright box with edges, and a black border."""
    coarse = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    images = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True).clamp(0, 1)
    images[:, :, size // 4 : size // 2, size // 3 : size // 2] = 0.9
    images[:, :, :2] = 0
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def drawn_for(policy: Policy, images: Tensor, *, whole: bool) -> Drawn:
    """A batch's draws; with crops at whole pixels, where both backends cut the same."""
    count, height, width, channels = images.shape
    drawn = policy.draw((count, channels, height, width), seeded())
    if whole and "boxes" in drawn:
        first = (drawn["boxes"][:, :2] + 0.5).floor().minimum(torch.tensor([height - 1, width - 1]))
        last = (drawn["boxes"][:, :2] + drawn["boxes"][:, 2:] + 0.5).floor().maximum(first + 1)
        drawn["boxes"] = torch.cat([first, last - first], dim=1)
    return drawn


def one_by_one(policy: Policy, images: Tensor, drawn: Drawn) -> Tensor:
    """(N, C, H', W') gray levels by the host's backend."""
    count, height, width, channels = images.shape
    one = image_by_image(policy, drawn, (count, channels, height, width))
    source = images.numpy() if channels > 1 else images.numpy()[..., 0]
    made = [one(image, i) for i, image in enumerate(source)]
    assert all(image.dtype == np.uint8 for image in made)
    return torch.from_numpy(np.stack(made).reshape(count, *made[0].shape[:2], channels)).permute(0, 3, 1, 2).double()


def difference(name: str, images: Tensor, *, whole: bool = True, **options: object) -> Tensor:
    """(N, C, H', W') absolute differences of the two backends, in gray levels."""
    policy = build_policy(name, options, flip=True)
    drawn = drawn_for(policy, images, whole=whole)
    before = images.clone()
    result = one_by_one(policy, images, drawn)
    assert torch.equal(images, before)
    return (policy.apply(to_float(images), drawn).double() * 255 - result).abs()


def test_every_policy_has_a_form_or_is_known_to_have_none() -> None:
    assert set(POLICIES) == EXACT | CROPS | OPERATIONS | WITHOUT
    assert {name for name, policy in POLICIES.items() if not has_form(policy)} == WITHOUT


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_a_policy_without_a_form_says_so(name: str) -> None:
    policy = build_policy(name, {}, flip=True)
    with pytest.raises(SemisupError, match=r"CTAugment.* has no albumentations form"):
        image_by_image(policy, {}, (1, 1, 8, 8))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_moving_whole_pixels_is_exact(name: str, channels: int) -> None:
    assert difference(name, pictures(channels)).max() < 1e-3
    assert difference("weak", pictures(channels), shift=0.5).max() < 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(CROPS))
def test_crops_at_whole_pixels_differ_by_rounding(name: str, channels: int) -> None:
    """Half a level for each step and, in color, the hue's 256 steps: 3 levels in general, on average below one.

    A value at solarize's threshold may fall on either side: these are few.
    """
    found = difference(name, pictures(channels))
    assert found.mean() < (0.7 if channels == 3 else 0.4)
    assert (found > 4).double().mean() < (0.02 if channels == 3 else 0.002)
    assert found.flatten(1).mean(1).max() < 3


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_as_drawn_are_up_to_half_a_pixel_away(channels: int) -> None:
    """The boxes' edges are rounded: as far as moving the picture by half a pixel and no more."""
    images = pictures(channels)
    found = difference("crop_flip", images, whole=False)
    floats = to_float(images)
    half = (floats[..., 1:, 1:] - floats[..., :-1, :-1]).abs().mean() * 255 / 2
    assert 0.1 < found.mean() < 2 * half


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_differ_by_rounding(name: str, channels: int) -> None:
    found = difference(name, pictures(channels))
    assert found.mean() < 0.4
    assert (found > 3).double().mean() < 0.002


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"cutout": 0, "fill": 0.3, "probability": 1, "ranges": "paper"},
        {"pool": ["rotate", "shear_x"], "probability": 1},
        {"pool": ["translate_y", "shear_y", "invert"], "probability": 1, "fill": 1},
    ],
)
def test_options_reach_both(options: dict[str, object], channels: int) -> None:
    found = difference("randaugment", pictures(channels), **options)
    assert found.mean() < 0.4
    assert (found > 3).double().mean() < 0.002


def test_three_operations_keep_their_order() -> None:
    found = difference("randaugment_nm", pictures(3), operations=3, magnitude=6)
    assert (found > 3).double().mean() < 0.004


def test_a_color_for_gray_images_is_refused() -> None:
    with pytest.raises(SemisupError, match=r"fill .* needs images of 3 channels"):
        difference("randaugment", pictures(1), fill=[0.1, 0.2, 0.3])
    assert difference("randaugment", pictures(3), fill=[0.1, 0.2, 0.3]).mean() < 0.4


# One operation at a time ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("own", "batched", "values", "most"),
    [
        (opencv.brightness, ops.brightness, (0.0, 0.3, 1.0, 1.7), 0.51),
        (opencv.contrast, ops.contrast, (0.0, 0.3, 1.0, 1.7), 0.6),
        (opencv.saturation, ops.saturation, (0.0, 0.3, 1.0, 1.7), 0.9),
        (opencv.sharpness, ops.sharpness, (0.1, 1.0, 1.9), 0.51),
        (opencv.hue, ops.hue, (-0.5, -0.1, 0.0, 0.03, 0.4), 11),  # three times half of 256 steps of 1530 levels
    ],
)
def test_operations_with_a_strength(
    own: Callable[..., np.ndarray],
    batched: Callable[[Tensor, Tensor], Tensor],
    values: tuple[float, ...],
    most: float,
    channels: int,
) -> None:
    images = pictures(channels, count=4)
    for value in values:
        expected = batched(to_float(images), torch.full((4,), value)).double() * 255
        source = images.numpy() if channels == 3 else images.numpy()[..., 0]
        made = np.stack([own(image, value) for image in source]).reshape(images.shape)
        found = (torch.from_numpy(made).permute(0, 3, 1, 2) - expected).abs()
        assert found.max() < most, value
        assert found.mean() < max(0.4, most / 4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "strength", "most"),
    [
        ("autocontrast", 0.0, 0.51),
        ("equalize", 0.0, 1e-3),
        ("invert", 0.0, 1e-3),
        ("posterize", 1.0, 1e-3),
        ("posterize", 4.0, 1e-3),
        ("solarize", 230 / 255, 1e-3),
        ("solarize", 77 / 255, 1e-3),
        ("solarize", 256 / 255, 1e-3),
        ("identity", 0.0, 1e-3),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_operations_by_table(name: str, strength: float, most: float, channels: int, flat: bool) -> None:
    """Also of images of one value, in which there is nothing to stretch."""
    images = torch.full((2, 9, 9, channels), 77, dtype=torch.uint8) if flat else pictures(channels, count=4)
    operation = PHOTOMETRIC.get(name, lambda images, _: images)
    value = torch.full((len(images),), strength)
    expected = operation(to_float(images), value).double() * 255
    source = images.numpy() if channels == 3 else images.numpy()[..., 0]
    made = np.stack([opencv.light(image, name, float(np.float32(strength))) for image in source]).reshape(images.shape)
    assert (torch.from_numpy(made).permute(0, 3, 1, 2) - expected).abs().max() < most


@pytest.mark.parametrize("shape", [(40, 40), (24, 40)])
def test_resampling_of_images_that_need_not_be_square(shape: tuple[int, int]) -> None:
    images = pictures(3, count=8)[:, : shape[0], : shape[1]].contiguous()
    degrees = torch.linspace(-40, 40, 8)
    matrices = ops.compose(ops.rotation(degrees, shape), ops.shear_x(torch.full((8,), 0.2), shape))
    expected = ops.affine(to_float(images), matrices, 0.5) * 255
    for image, matrix, wanted in zip(images.numpy(), matrices.double().numpy(), expected, strict=True):
        made = torch.from_numpy(opencv.affine(image, matrix, (128, 128, 128))).permute(2, 0, 1)
        assert (made - wanted).abs().max() < 3  # weights of the four pixels are rounded too
        assert (made - wanted).abs().mean() < 0.4


@pytest.mark.parametrize("sigma", [0.1, 0.6, 2.0])
@pytest.mark.parametrize("size", [3, 9, 23])
def test_gaussian_blur(sigma: float, size: int) -> None:
    images = pictures(3, count=4)
    expected = ops.gaussian_blur(to_float(images), torch.full((4,), sigma), size) * 255
    made = np.stack([opencv.gaussian_blur(image, sigma, size) for image in images.numpy()])
    assert (torch.from_numpy(made).permute(0, 3, 1, 2) - expected).abs().max() < 0.6


def test_grayscale() -> None:
    images = pictures(3, count=4)
    made = np.stack([opencv.grayscale(image) for image in images.numpy()])
    assert (torch.from_numpy(made).permute(0, 3, 1, 2) - ops.grayscale(to_float(images)) * 255).abs().max() < 0.6

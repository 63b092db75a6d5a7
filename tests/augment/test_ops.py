"""Every operation against torchvision or PIL, image by image, at many parameters.

Tolerances: 1e-5 against float implementations (rounding of float32); PIL computes in whole gray levels, so one level
(1/255) where it rounds once; where both sides are integer arithmetic, none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms.v2 import functional as tv

from semisup.augment.kernels import ops

SIZES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 17, 24)]
FACTORS = torch.tensor([0.0, 0.05, 0.28, 0.5, 0.9, 1.0, 1.2, 1.72, 2.0])
FLOAT = 1e-5
LEVEL = 1 / 255


def make_images(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth random images in whole 1/255, of different contrast, the last one of a single color."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images = images * torch.linspace(0.3, 1, count).view(-1, 1, 1, 1)
    images[-1] = images[-1, :, :1, :1]
    return (images * 255).round() / 255


def to_pil(image: Tensor) -> Image.Image:
    levels = (image * 255).round().to(torch.uint8)
    return Image.fromarray(levels[0].numpy() if len(levels) == 1 else levels.permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    array = torch.from_numpy(np.array(image)).float() / 255
    return array[None] if array.ndim == 2 else array.permute(2, 0, 1)


def assert_each(ours: Tensor, images: Tensor, other: Callable[[Tensor, int], Tensor], atol: float) -> None:
    expected = torch.stack([other(image, place) for place, image in enumerate(images)])
    torch.testing.assert_close(ours, expected, atol=atol, rtol=0)


@pytest.fixture(params=SIZES, ids=str)
def images(request: pytest.FixtureRequest) -> Tensor:
    return make_images(len(FACTORS), *request.param)


# Light and color ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (ops.brightness, tv.adjust_brightness),
        (ops.contrast, tv.adjust_contrast),
        (ops.saturation, tv.adjust_saturation),
        (ops.color, tv.adjust_saturation),
        (ops.sharpness, tv.adjust_sharpness),
    ],
    ids=["brightness", "contrast", "saturation", "color", "sharpness"],
)
def test_enhancing_equals_torchvision(
    images: Tensor, ours: Callable[[Tensor, Tensor], Tensor], other: Callable[[Tensor, float], Tensor]
) -> None:
    # torchvision's luma weights are 0.2989, 0.587, 0.114 (they sum to 0.9999), ours 0.299: 2e-4 at a factor of 2.
    atol = 2e-4 if images.shape[1] == 3 and ours in (ops.contrast, ops.saturation) else FLOAT
    assert_each(ours(images, FACTORS), images, lambda image, n: other(image, FACTORS[n].item()), atol)


def test_hue_equals_torchvision(images: Tensor) -> None:
    turns = torch.tensor([-0.5, -0.37, -0.2, -0.04, 0.0, 0.1, 0.25, 0.4, 0.5])
    assert_each(ops.hue(images, turns), images, lambda image, n: tv.adjust_hue(image, turns[n].item()), 2e-5)


def test_hue_covers_every_sextant() -> None:
    # One pixel of each pure and mixed color, black, gray and white; a third of a turn moves red to green to blue.
    colors = torch.tensor([[a, b, c] for a in (0.0, 0.5, 1.0) for b in (0.0, 0.5, 1.0) for c in (0.0, 0.5, 1.0)])
    image = colors.T.reshape(1, 3, 3, 9)
    torch.testing.assert_close(ops.hue(image, torch.tensor([1 / 3])), image[:, [2, 0, 1]], atol=FLOAT, rtol=0)
    torch.testing.assert_close(ops.hue(image, torch.tensor([0.0])), image, atol=FLOAT, rtol=0)


def test_autocontrast_equals_torchvision_and_pil(images: Tensor) -> None:
    ours = ops.autocontrast(images)
    assert_each(ours, images, lambda image, _: tv.autocontrast(image), FLOAT)
    assert_each(ours, images, lambda image, _: from_pil(ImageOps.autocontrast(to_pil(image))), LEVEL + FLOAT)
    torch.testing.assert_close(ours[-1], images[-1])  # one color: as it is
    assert ours[0].amax() == 1


def test_equalize_equals_pil_exactly(images: Tensor) -> None:
    coarse = (images * 4).round() / 4
    coarse = (coarse * 255).round() / 255
    for batch in (images, coarse):
        assert_each(ops.equalize(batch), batch, lambda image, _: from_pil(ImageOps.equalize(to_pil(image))), 1e-7)


def test_equalize_equals_pil_on_a_large_image() -> None:
    batch = make_images(2, 3, 224, 200)
    assert_each(ops.equalize(batch), batch, lambda image, _: from_pil(ImageOps.equalize(to_pil(image))), 1e-7)


def test_posterize_equals_pil_exactly(images: Tensor) -> None:
    bits = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 8])
    between = (images - 0.3 * LEVEL).clamp(0)  # what another operation leaves: rounded to a gray level, as by PIL
    for batch in (images, between):
        ours = ops.posterize(batch, bits)
        assert_each(ours, batch, lambda image, n: from_pil(ImageOps.posterize(to_pil(image), int(bits[n]))), 1e-7)


def test_solarize_equals_pil_exactly(images: Tensor) -> None:
    levels = torch.tensor([0, 26, 77, 100, 128, 200, 231, 255, 256])
    ours = ops.solarize(images, levels / 255)
    assert_each(ours, images, lambda image, n: from_pil(ImageOps.solarize(to_pil(image), int(levels[n]))), 1e-6)


def test_invert_equals_pil(images: Tensor) -> None:
    assert_each(ops.invert(images), images, lambda image, _: from_pil(ImageOps.invert(to_pil(image))), 1e-6)


def test_grayscale_equals_pil(images: Tensor) -> None:
    channels = images.shape[1]
    expected = lambda image, _: from_pil(to_pil(image).convert("L")).expand(channels, -1, -1)  # noqa: E731
    assert_each(ops.grayscale(images), images, expected, LEVEL)


@pytest.mark.parametrize("size", [3, 5, 9])
def test_gaussian_blur_equals_torchvision(images: Tensor, size: int) -> None:
    sigmas = torch.linspace(0.1, 2.0, len(images))
    ours = ops.gaussian_blur(images, sigmas, size)
    assert_each(ours, images, lambda image, n: tv.gaussian_blur(image, [size, size], [sigmas[n].item()]), FLOAT)


def test_gaussian_blur_of_one_plane_is_that_of_it_among_others() -> None:
    """torch's convolution of one channel is another than that of several groups."""
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sigmas = torch.linspace(0.1, 2.0, 5)
    alone = [ops.gaussian_blur(images[n : n + 1], sigmas[n : n + 1], 3) for n in range(5)]
    assert torch.equal(torch.cat(alone), ops.gaussian_blur(images, sigmas, 3))


def test_gaussian_blur_refuses_sizes_that_cannot_be_reflected() -> None:
    with pytest.raises(ValueError, match="odd size below 16, got 4"):
        ops.gaussian_blur(torch.rand(1, 1, 8, 8), torch.ones(1), 4)
    with pytest.raises(ValueError, match="odd size below 16, got 17"):
        ops.gaussian_blur(torch.rand(1, 1, 8, 8), torch.ones(1), 17)


@pytest.mark.parametrize("op", [ops.hue, ops.saturation, ops.color, lambda images, _: ops.grayscale(images)])
def test_color_does_nothing_to_one_channel(op: Callable[[Tensor, Tensor], Tensor]) -> None:
    images = torch.rand(9, 1, 8, 8)
    assert torch.equal(op(images, FACTORS), images)


# Geometry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
def test_translate_reflect_is_reflection_padding_and_a_crop(images: Tensor, flip: bool) -> None:
    shifts = torch.tensor([[0, 0], [1, 0], [0, 1], [-1, 0], [0, -1], [2, -3], [-4, 4], [4, -4], [-3, -2]])
    flips = torch.arange(len(images)) % 2 == 1 if flip else None
    height, width = images.shape[2:]

    def other(image: Tensor, n: int) -> Tensor:
        padded = tv.pad(image, [4, 4, 4, 4], padding_mode="reflect")
        down, right = shifts[n].tolist()
        moved = tv.crop(padded, 4 - down, 4 - right, height, width)
        return tv.horizontal_flip(moved) if flips is not None and flips[n] else moved

    assert_each(ops.translate_reflect(images, shifts, flips), images, other, 0)


def test_translate_reflect_at_the_largest_shift() -> None:
    image = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert ops.translate_reflect(image, torch.tensor([[0, 3]]))[0, 0, 0].tolist() == [3, 2, 1, 0]


def test_rotate90_equals_rot90() -> None:
    images = torch.rand(9, 3, 8, 8)
    quarters = torch.tensor([0, 1, 2, 3, 4, 5, -1, -2, 7])
    assert_each(
        ops.rotate90(images, quarters), images, lambda image, n: torch.rot90(image, int(quarters[n]), (1, 2)), 0
    )
    with pytest.raises(ValueError, match="square images, got 8 x 9"):
        ops.rotate90(torch.rand(1, 1, 8, 9), torch.tensor([1]))


def test_resized_crop_equals_torchvision(images: Tensor) -> None:
    height, width = images.shape[2:]
    boxes = torch.tensor(
        [
            *([0, 0, height, width], [1, 2, 5, 4], [2, 1, 4, 6], [0, 0, 1, 1], [height - 3, width - 4, 3, 4]),
            *([3, 3, 2, 5], [0, 4, 8, 4], [4, 0, 4, 8], [1, 1, height - 1, width - 1]),
        ]
    )
    flips = torch.arange(len(images)) % 2 == 1
    ours = ops.resized_crop(images, boxes.float(), (height, width), flips)

    def other(image: Tensor, n: int) -> Tensor:
        crop = tv.resized_crop(image, *boxes[n].tolist(), [height, width], antialias=False)
        return tv.horizontal_flip(crop) if flips[n] else crop

    assert_each(ours, images, other, FLOAT)
    smaller = ops.resized_crop(images, boxes.float(), (7, 5))
    expected = [tv.resized_crop(image, *boxes[n].tolist(), [7, 5], antialias=False) for n, image in enumerate(images)]
    torch.testing.assert_close(smaller, torch.stack(expected), atol=FLOAT, rtol=0)


ANGLES = torch.tensor([-90.0, -30.0, -27.0, -3.0, 0.0, 3.0, 30.0, 45.0, 180.0])
SLOPES = torch.tensor([-0.3, -0.27, -0.1, -0.03, 0.0, 0.03, 0.15, 0.27, 0.3])


# torchvision's bilinear fill weights the border twice: mask * (sample - fill) + fill, where the sample has already been
# dimmed by the zeros outside. Shifting the colors so that the fill is 0 gives the blend that is meant.


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_rotation_equals_torchvision(images: Tensor, fill: float) -> None:
    ours = ops.affine(images, ops.rotation(ANGLES, images.shape[2:]), fill)

    def other(image: Tensor, n: int) -> Tensor:
        return tv.rotate(image - fill, ANGLES[n].item(), tv.InterpolationMode.BILINEAR) + fill

    # float32 cosines move a sample by 1e-7 of the side, which at an edge is 1e-6 of its contrast.
    assert_each(ours, images, other, 2e-5)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_shear_equals_torchvision(images: Tensor, axis: str) -> None:
    build = ops.shear_x if axis == "x" else ops.shear_y
    ours = ops.affine(images, build(SLOPES, images.shape[2:]), 0.5)

    def other(image: Tensor, n: int) -> Tensor:
        angle = math.degrees(math.atan(SLOPES[n].item()))
        sheared = tv.affine(
            image - 0.5,
            angle=0.0,
            translate=[0, 0],
            scale=1.0,
            shear=[angle, 0.0] if axis == "x" else [0.0, angle],
            interpolation=tv.InterpolationMode.BILINEAR,
            center=[0, 0],
        )
        return sheared + 0.5

    assert_each(ours, images, other, 2e-5)


def test_shear_has_the_sign_and_the_origin_of_pil() -> None:
    images = make_images(len(SLOPES), 1, 28, 28)
    ours = ops.affine(images, ops.shear_x(SLOPES, (28, 28)), 0.0)
    for n, image in enumerate(images):
        sheared = to_pil(image).transform((28, 28), Image.Transform.AFFINE, (1, SLOPES[n].item(), 0, 0, 1, 0), 2)
        # PIL repeats the border pixel where we mix with the fill, and rounds: compare where neither matters.
        inside = ops.affine(torch.ones(1, 1, 28, 28), ops.shear_x(SLOPES[n : n + 1], (28, 28)))[0] > 0.9999
        assert inside.float().mean() > 0.7
        torch.testing.assert_close(ours[n][inside], from_pil(sheared)[inside], atol=1.5 * LEVEL, rtol=0)


def test_translation_by_whole_pixels_is_exact(images: Tensor) -> None:
    height, width = images.shape[2:]
    right = torch.tensor([0, 1, -1, 2, 3, 0, 0, -2, 1]).float()
    down = torch.tensor([0, 0, 0, 1, -2, 3, -1, -1, 1]).float()
    ours = ops.affine(images, ops.translation(right / width, down / height), 0.5)

    def other(image: Tensor, n: int) -> Tensor:
        moved = [int(right[n]), int(down[n])]
        return tv.affine(image, 0.0, moved, 1.0, [0.0, 0.0], fill=[0.5] * len(image))

    assert_each(ours, images, other, 2e-5)


def test_composed_matrices_act_one_after_the_other() -> None:
    size = (20, 12)
    first = ops.rotation(torch.tensor([33.0]), size)
    second = ops.shear_x(torch.tensor([0.2]), size)
    # A place in the result is carried by the second operation's matrix, then by the first's.
    place = torch.tensor([0.3, -0.6, 1.0])
    through = torch.cat([second[0] @ place, torch.ones(1)])
    torch.testing.assert_close(ops.compose(first, second)[0] @ place, first[0] @ through)
    image = make_images(2, 3, 20, 12)[:1]
    image[..., 8:] = 0  # room to move in: nothing is pushed out of the frame
    twice = ops.affine(ops.affine(image, ops.translation(torch.tensor([0.25]), torch.tensor([0.0]))), second)
    once = ops.affine(image, ops.compose(ops.translation(torch.tensor([0.25]), torch.tensor([0.0])), second))
    torch.testing.assert_close(once, twice, atol=FLOAT, rtol=0)  # a move by 3 whole pixels loses nothing in between


def test_affine_takes_a_fill_per_channel() -> None:
    fill = torch.tensor([0.1, 0.5, 0.9])
    away = ops.translation(torch.tensor([1.5]), torch.tensor([0.0]))
    out = ops.affine(torch.rand(1, 3, 8, 8), away, fill)
    torch.testing.assert_close(out, fill.view(1, 3, 1, 1).expand(1, 3, 8, 8))


def test_cutout_paints_the_clipped_square() -> None:
    images = make_images(5, 3, 10, 12)
    centers = torch.tensor([[0, 0], [9, 11], [5, 6], [0, 11], [4, 1]])
    fill = torch.tensor([0.1, 0.5, 0.9])
    ours = ops.cutout(images, centers, 4, fill)
    for image, out, (row, column) in zip(images, ours, centers.tolist(), strict=True):
        expected = image.clone()
        expected[:, max(0, row - 2) : row + 2, max(0, column - 2) : column + 2] = fill.view(3, 1, 1)
        assert torch.equal(out, expected)


def test_cutout_takes_a_size_for_each_image() -> None:
    images, centers = make_images(3, 3, 10, 12), torch.tensor([[0, 0], [9, 11], [5, 6]])
    ours = ops.cutout(images, centers, torch.tensor([1, 4, 7]))
    for n, size in enumerate((1, 4, 7)):
        assert torch.equal(ours[n : n + 1], ops.cutout(images[n : n + 1], centers[n : n + 1], size))


@pytest.mark.parametrize("side", [32, 28, 8])
def test_cutout_of_half_the_side_paints_19_percent(side: int) -> None:
    # Every center once: 0.4375^2 = 19.14 %, whatever the (even) half.
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centers = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    out = ops.cutout(torch.zeros(side * side, 1, side, side), centers, side // 2, 1.0)
    assert out.mean().item() == pytest.approx(0.4375**2, abs=1e-5)


# All of them ---------------------------------------------------------------------------------------------------------

ALL: dict[str, Callable[[Tensor], Tensor]] = {
    "affine": lambda x: ops.affine(x, ops.rotation(torch.full((len(x),), 20.0, device=x.device), (9, 9)), 0.5),
    "autocontrast": ops.autocontrast,
    "blur": ops.blur,
    "brightness": lambda x: ops.brightness(x, torch.full((len(x),), 1.7, device=x.device)),
    "contrast": lambda x: ops.contrast(x, torch.full((len(x),), 1.7, device=x.device)),
    "cutout": lambda x: ops.cutout(x, torch.zeros(len(x), 2, dtype=torch.long, device=x.device), 4),
    "equalize": ops.equalize,
    "gaussian_blur": lambda x: ops.gaussian_blur(x, torch.ones(len(x), device=x.device), 3),
    "grayscale": ops.grayscale,
    "hue": lambda x: ops.hue(x, torch.full((len(x),), 0.2, device=x.device)),
    "invert": ops.invert,
    "posterize": lambda x: ops.posterize(x, torch.full((len(x),), 2, device=x.device)),
    "resized_crop": lambda x: ops.resized_crop(
        x, torch.tensor([[1.0, 1, 5, 6]]).to(x.device).repeat(len(x), 1), (9, 9)
    ),
    "rotate90": lambda x: ops.rotate90(x, torch.ones(len(x), dtype=torch.long, device=x.device)),
    "saturation": lambda x: ops.saturation(x, torch.full((len(x),), 1.7, device=x.device)),
    "sharpness": lambda x: ops.sharpness(x, torch.full((len(x),), 1.7, device=x.device)),
    "solarize": lambda x: ops.solarize(x, torch.full((len(x),), 0.5, device=x.device)),
    "translate_reflect": lambda x: ops.translate_reflect(x, torch.ones(len(x), 2, dtype=torch.long, device=x.device)),
}


def test_every_op_is_listed_here() -> None:
    helpers = {"color", "compose", "rotation", "shear_x", "shear_y", "translation", "zoom"}  # color is saturation
    assert set(ops.__all__) - helpers == set(ALL)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_ops_keep_shape_dtype_range_and_input(name: str, channels: int, memory: torch.memory_format) -> None:
    for count, dtype in ((1, torch.float32), (4, torch.float64)):
        images = torch.rand(count, channels, 9, 9, dtype=dtype, generator=torch.Generator().manual_seed(3))
        images = images.contiguous(memory_format=memory)
        before = images.clone()
        out = ALL[name](images)
        assert torch.equal(images, before)
        assert out.shape == images.shape and out.dtype == dtype
        assert out.amin() >= 0 and out.amax() <= 1
        on_meta = ALL[name](images.to("meta"))
        assert on_meta.shape == images.shape and on_meta.dtype == dtype


@pytest.mark.parametrize("name", ALL)
def test_ops_treat_images_independently(name: str) -> None:
    images = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(4))
    alone = torch.cat([ALL[name](image[None]) for image in images])
    torch.testing.assert_close(ALL[name](images), alone, atol=1e-6, rtol=0)


class _RunningSums(TorchDispatchMode):
    """Notes the type of what running sums are taken of."""

    def __init__(self) -> None:
        super().__init__()
        self.of: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.cumsum:
            self.of.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ALL)
def test_no_running_sum_of_floats_which_cuda_has_no_deterministic_form_of(name: str) -> None:
    with _RunningSums() as sums:
        ALL[name](torch.rand(2, 3, 9, 9))
    assert not any(dtype.is_floating_point for dtype in sums.of)

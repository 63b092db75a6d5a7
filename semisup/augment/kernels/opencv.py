"""The policies image by image, on whole gray levels (uint8): albumentations' way of working, with its kernels.

A policy draws here what it draws for the batched operations of `semisup.augment.kernels.ops` (`Policy.draw`),
so that the two backends make the same views but for rounding. What differs, measured by tests/augment/test_opencv.py:

- every step rounds to whole gray levels;
- crops are cut at whole pixels, as albumentations and torchvision cut them (batched: fractions of them, up to half a
  pixel away): resizing whole pixels takes 55 us of 224 x 224 x 3, resampling at fractions 300;
- hue is turned in 256 steps of the circle.

The kernels are OpenCV's and albucore's, of which albumentations is made; they are called without its transforms, whose
parameters could not all be handed over and some of which take longer (hue 460 us instead of 140, equalize 900 instead
of 130, and not as PIL does it).

Importing this module takes 0.5 s, and it turns off OpenCV's own threads, which would compete with those over images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, singledispatch
from typing import Any

import cv2
import numpy as np
from albucore import sz_lut
from numpy.typing import NDArray

from semisup.augment.policies.automatic import OPERATIONS, Listed
from semisup.augment.policies.operations import GEOMETRIC
from semisup.augment.policies.policy import Drawn, Policy, Shape, color_for, pixels
from semisup.augment.policies.views import CropFlip, NoAugment, RandAugment, SimCLR, Weak
from semisup.errors import SemisupError

__all__ = ["OneImage", "has_form", "image_by_image"]

cv2.setNumThreads(1)

Pixels = NDArray[np.uint8]
"""(H, W, C) in color, (H, W) of one channel."""

OneImage = Callable[[Pixels, int], Pixels]
"""From an image and its place in the batch to the augmented image; the given one stays as it is."""

LEVELS = np.arange(256, dtype=np.float32)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as in `ops`
GRAY, COLOR = np.tile(LUMA, (3, 1)), np.eye(3, dtype=np.float32)
"""What makes an image gray, and what leaves it alone: (3, 3), applied to the channels of every pixel."""


@singledispatch
def image_by_image(policy: Policy, drawn: Drawn, shape: Shape) -> OneImage:
    """Return what `policy` does to each image of a batch.

    Args:
        policy: which one.
        drawn: its `draw` for the batch.
        shape: (N, C, H, W) of the batch.

    Raises:
        SemisupError: the policy has no form of this kind.
    """
    raise SemisupError(f"{type(policy).__name__} has no albumentations form")


def has_form(policy: type[Policy]) -> bool:
    """Tell whether `image_by_image` knows the policy."""
    return image_by_image.dispatch(policy) is not image_by_image.dispatch(Policy)


# The policies --------------------------------------------------------------------------------------------------------


@image_by_image.register
def _none(policy: NoAugment, drawn: Drawn, shape: Shape) -> OneImage:
    return lambda image, i: image


@image_by_image.register
def _weak(policy: Weak, drawn: Drawn, shape: Shape) -> OneImage:
    return _shifts_and_flips(drawn)


@image_by_image.register
def _crop_flip(policy: CropFlip, drawn: Drawn, shape: Shape) -> OneImage:
    return _crops(drawn, shape, (shape[2], shape[3]))


@image_by_image.register
def _simclr(policy: SimCLR, drawn: Drawn, shape: Shape) -> OneImage:
    size = policy.result_size(shape[2], shape[3])
    crop = _crops(drawn, shape, size)
    taps = policy.blur_taps(size[0])
    kinds = drawn["factors"].shape[1]
    order, factors, sigmas = drawn["order"].tolist(), drawn["factors"].tolist(), drawn["sigmas"].tolist()
    gray, blurred = drawn["gray"].tolist(), drawn["blur"].tolist()
    inverted = drawn["solarize"].tolist() if "solarize" in drawn else [0] * shape[0]
    table = (brightness, contrast, saturation, hue)

    def one(image: Pixels, i: int) -> Pixels:
        image = crop(image, i)
        for kind in order[i]:
            if kind < kinds:
                image = table[kind](image, factors[i][kind])
        if gray[i]:
            image = grayscale(image)
        if blurred[i]:
            image = gaussian_blur(image, sigmas[i], taps)
        return _look_up(image, _solarized(0.5)) if inverted[i] else image

    return one


@image_by_image.register
def _randaugment(policy: RandAugment, drawn: Drawn, shape: Shape) -> OneImage:
    return _operations(policy, policy.pool_for(shape[1]), drawn, shape)


@image_by_image.register
def _listed(policy: Listed, drawn: Drawn, shape: Shape) -> OneImage:
    return _operations(policy, OPERATIONS, drawn, shape)


def _shifts_and_flips(drawn: Drawn) -> OneImage:
    """Move by whole pixels, fill by reflection, mirror."""
    shifts, flips = drawn["shifts"].tolist(), drawn["flips"].tolist()

    def one(image: Pixels, i: int) -> Pixels:
        (down, right), (height, width) = shifts[i], image.shape[:2]
        top, left = max(-down, 0), max(-right, 0)
        padded = cv2.copyMakeBorder(image, max(down, 0), top, max(right, 0), left, cv2.BORDER_REFLECT_101)
        moved = padded[top : top + height, left : left + width]
        return cv2.flip(moved, 1) if flips[i] else moved  # type: ignore[return-value]

    return one


def _crops(drawn: Drawn, shape: Shape, size: tuple[int, int]) -> OneImage:
    """Cut out, stretch to `size` (height, width) and mirror."""
    flips = drawn["flips"].tolist()
    boxes = drawn["boxes"].double()
    limits = np.array(shape[2:])
    first = np.minimum(np.floor(boxes[:, :2].numpy() + 0.5).astype(int), limits - 1)
    last = np.maximum(np.floor((boxes[:, :2] + boxes[:, 2:]).numpy() + 0.5).astype(int), first + 1)
    corners = np.concatenate([first, last], axis=1).tolist()

    def one(image: Pixels, i: int) -> Pixels:
        top, left, bottom, right = corners[i]
        stretched = cv2.resize(image[top:bottom, left:right], size[::-1], interpolation=cv2.INTER_LINEAR)
        return cv2.flip(stretched, 1) if flips[i] else stretched  # type: ignore[return-value]

    return one


def _operations(policy: RandAugment | Listed, names: tuple[str, ...], drawn: Drawn, shape: Shape) -> OneImage:
    """Return the weak view, operations on light and geometry in the order of `apply_in_turn`, and Cutout."""
    weak = _shifts_and_flips(drawn)
    strengths, matrices = (values.double().numpy() for values in policy.arguments(drawn, shape))
    choice = drawn["ops"].tolist()
    fill = _fill(policy.fill, shape[1])
    side = pixels(policy.cutout, min(shape[2:]))
    corners = (drawn["centers"] - side // 2).tolist()

    def one(image: Pixels, i: int) -> Pixels:
        image = weak(image, i)  # a new one, which may be painted on
        chosen = [names[place] for place in choice[i]]
        for first in range(0, len(chosen), 2):
            image = light(image, chosen[first], strengths[i, first])
            pair = chosen[first : first + 2]
            if any(name in GEOMETRIC for name in pair):
                matrix = matrices[i, first] if len(pair) == 1 else _composed(*matrices[i, first : first + 2])
                image = affine(image, matrix, fill)
            if len(pair) == 2:
                image = light(image, pair[1], strengths[i, first + 1])
        if side:
            top, left = corners[i]
            image[max(top, 0) : top + side, max(left, 0) : left + side] = fill
        return image

    return one


def _fill(fill: float | Sequence[float] | None, channels: int) -> tuple[int, ...]:
    """Color in gray levels, see `semisup.augment.policies.policy.fill_for`."""
    color = color_for(channels, fill)
    return tuple(pixels(value, 255) for value in ([color] * channels if isinstance(color, float) else color))


def _composed(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """(2, 3), see `semisup.augment.kernels.ops.compose`."""
    linear = first[:, :2] @ second[:, :2]
    return np.column_stack([linear, first[:, :2] @ second[:, 2] + first[:, 2]])


# Geometry, light and color ------------------------------------------------------------------------------------------


def affine(image: Pixels, matrix: NDArray[Any], fill: tuple[int, ...]) -> Pixels:
    """Resample once, bilinearly, with a (2, 3) matrix as of `semisup.augment.kernels.ops.affine`.

    Channel by channel, for which OpenCV 5 has vector code: 300 us of 224 x 224 x 3, all at once 950.
    """
    height, width = image.shape[:2]
    scale = np.array([width, height]) / 2
    linear = matrix[:, :2] * scale[:, None] / scale  # from pixels to pixels
    shift = (matrix[:, 2] + 1) * scale - 0.5 - linear @ (scale - 0.5)
    pixel_matrix = np.column_stack([linear, shift])
    planes = [
        cv2.warpAffine(
            plane,
            pixel_matrix,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=paint,
        )
        for plane, paint in zip(cv2.split(image), fill, strict=True)
    ]
    return _joined(planes)


def brightness(image: Pixels, factor: float) -> Pixels:
    """See `semisup.augment.kernels.ops.brightness`."""
    return cv2.convertScaleAbs(image, alpha=factor)  # type: ignore[return-value]  # rounds and clips


def contrast(image: Pixels, factor: float) -> Pixels:
    """See `semisup.augment.kernels.ops.contrast`."""
    means = cv2.mean(image)
    mean = means[0] if image.ndim == 2 else float(np.dot(means[:3], LUMA))
    return cv2.addWeighted(image, factor, image, 0, mean * (1 - factor))  # type: ignore[return-value]


def saturation(image: Pixels, factor: float) -> Pixels:
    """See `semisup.augment.kernels.ops.saturation`."""
    if image.ndim == 2:
        return image
    return cv2.transform(image, GRAY + np.float32(factor) * (COLOR - GRAY))  # type: ignore[return-value]


def hue(image: Pixels, turns: float) -> Pixels:
    """See `semisup.augment.kernels.ops.hue`; turned by whole 256ths of the circle."""
    if image.ndim == 2:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    added = np.zeros(3 * image.shape[1], np.uint8)
    added[::3] = round(turns * 256) % 256
    rows = hsv.reshape(len(hsv), -1)  # adding along whole rows is vectorized, to every third byte alone it is not
    rows += added  # wraps around, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)  # type: ignore[return-value]


def grayscale(image: Pixels) -> Pixels:
    """See `semisup.augment.kernels.ops.grayscale`."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]


def gaussian_blur(image: Pixels, sigma: float, size: int) -> Pixels:
    """See `semisup.augment.kernels.ops.gaussian_blur`; taps beyond four stds, weighing nothing, are out."""
    half = min(size // 2, math.ceil(4 * sigma))
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel = (taps / taps.sum()).astype(np.float32)
    return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)  # type: ignore[return-value]


def sharpness(image: Pixels, factor: float) -> Pixels:
    """See `semisup.augment.kernels.ops.sharpness`."""
    kernel = np.full((3, 3), (1 - factor) / 13, np.float32)
    kernel[1, 1] = factor + 5 * (1 - factor) / 13
    out = np.asarray(cv2.filter2D(image, -1, kernel), np.uint8)
    out[[0, -1]] = image[[0, -1]]
    out[:, [0, -1]] = image[:, [0, -1]]
    return out


def light(image: Pixels, name: str, strength: float) -> Pixels:
    """Run one of `semisup.augment.policies.operations.PHOTOMETRIC`; any other name changes nothing."""
    match name:
        case "brightness":
            return brightness(image, strength)
        case "color":
            return saturation(image, strength)
        case "contrast":
            return contrast(image, strength)
        case "sharpness":
            return sharpness(image, strength)
        case "posterize":
            return _look_up(image, _posterized(int(strength)))
        case "solarize":
            return _look_up(image, _solarized(float(strength)))
        case "invert":
            return _look_up(image, 255 - np.arange(256, dtype=np.uint8))
        case "autocontrast":
            return _each_channel(image, _stretching)
        case "equalize":
            return _each_channel(image, _equalizing)
    return image


# Tables --------------------------------------------------------------------------------------------------------------


def _look_up(image: Pixels, table: Pixels) -> Pixels:
    """Return a new image: table[value] of every value."""
    return sz_lut(image, table, inplace=False)  # type: ignore[no-any-return]


def _table(values: NDArray[Any]) -> Pixels:
    """(256,) numbers as gray levels."""
    table: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return table


@lru_cache(maxsize=64)
def _solarized(threshold: float) -> Pixels:
    return _table(np.where(LEVELS / np.float32(255) >= np.float32(threshold), 255 - LEVELS, LEVELS))


@lru_cache(maxsize=8)
def _posterized(bits: int) -> Pixels:
    step = 2 ** (8 - bits)
    return _table(LEVELS // step * step)


def _each_channel(image: Pixels, table: Callable[[NDArray[np.int64]], Pixels]) -> Pixels:
    """Look every channel up in the table that its histogram makes."""
    planes = []
    for plane in cv2.split(image):
        histogram = cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        planes.append(_look_up(np.asarray(plane, np.uint8), table(histogram)))
    return _joined(planes)


def _joined(planes: list[Any]) -> Pixels:
    return planes[0] if len(planes) == 1 else cv2.merge(planes)  # type: ignore[no-any-return]


def _stretching(histogram: NDArray[np.int64]) -> Pixels:
    """See `semisup.augment.kernels.ops.autocontrast`."""
    there = histogram.nonzero()[0]
    low, high = int(there[0]), int(there[-1])
    return _table(LEVELS if high == low else (LEVELS - low) * (255 / (high - low)))


def _equalizing(histogram: NDArray[np.int64]) -> Pixels:
    """See `semisup.augment.kernels.ops.equalize`: PIL's integer arithmetic."""
    brightest = histogram[histogram.nonzero()[0][-1]]
    step = (histogram.sum() - brightest) // 255
    if not step:
        return _table(LEVELS)
    return _table((histogram.cumsum() - histogram + step // 2) // step)

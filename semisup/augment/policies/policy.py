"""What every augmentation policy is, and what policies draw and apply by.

A policy works in two halves. `draw` makes every random number of a batch on the CPU, from one explicit generator, so
that they are the same whatever device the images are on, and so that one rank can draw for the whole global batch and
keep its slice. `apply` moves those numbers to the images without waiting, and computes. Because the host knows which
image drew which operation, each operation runs on just its images, picked by an index list made on the host: nothing
asks the device a question, and the policy runs on the `meta` device.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor

from semisup.augment.kernels import ops
from semisup.errors import SemisupError, raise_all
from semisup.options import check_options

__all__ = [
    "Augmentation",
    "Drawn",
    "Part",
    "Policy",
    "Shape",
    "apply_each",
    "apply_in_turn",
    "check_batch",
    "color_for",
    "draw_boxes",
    "draw_flips",
    "draw_for",
    "draw_shifts",
    "fill_for",
    "moved",
    "pixels",
    "usable",
]

Drawn = dict[str, Tensor]
"""A batch's random numbers by name: CPU tensors, first axis the images."""

Shape = Sequence[int]
"""(N, C, H, W)."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Which rows of a larger batch some images are; numbers are drawn for all of it, as of the whole."""

    count: int
    """Images in the whole batch."""
    rows: slice

    @classmethod
    def or_all(cls, part: Part | None, count: int) -> Part:
        """Return a part, or of None all of `count` rows."""
        return cls(count, slice(None)) if part is None else part

    def of(self, drawn: Drawn) -> Drawn:
        """Return the numbers of these rows."""
        return {name: numbers[self.rows] for name, numbers in drawn.items()}


class Augmentation(Protocol):
    """What makes a view of a batch: a policy, or one bound to what is learned. See `Policy.__call__`."""

    def __call__(self, images: Tensor, generator: Generator, /, *, part: Part | None = None) -> Tensor:
        """Augment every image differently."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """A random function of a batch of images; its options are its constructor's keywords.

    Args:
        flip: whether mirroring left and right keeps the label (clothes: yes; digits: no); by default the data's.

    Raises:
        SemisupError: an option is out of its range.
    """

    name: ClassVar[str]
    """What a recipe calls it."""
    flip: bool = True

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        raise_all(check_options(type(self), given), type(self).__name__)

    @abstractmethod
    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw every random number for a batch of `shape` (N, C, H, W); `generator` is a CPU one."""

    @abstractmethod
    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Return the augmented batch; the input stays as it is. `drawn` is `draw`'s, or a slice of it."""

    def __call__(self, images: Tensor, generator: Generator, *, part: Part | None = None) -> Tensor:
        """Augment every image differently.

        Args:
            images: (N, C, H, W), floating point in [0, 1], C 1 or 3, N at least 1, H and W at least 4.
            generator: a CPU generator; its state decides the result, and is moved on.
            part: the rows that `images` are of a larger batch; None: they are the batch.

        Returns:
            Images of the same shape (`local`: smaller) and dtype, in [0, 1], in channels_last memory.

        Raises:
            ValueError: `images` is not such a batch.
        """
        check_batch(images)
        return self.apply(images, draw_for(self, images.shape, generator, part))

    def result_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the view of an image of this height and width."""
        return height, width


def draw_for(policy: Policy, shape: Shape, generator: Generator, part: Part | None) -> Drawn:
    """Draw for images of `shape` (N, C, H, W), which may be a part of the batch that is drawn for."""
    whole = Part.or_all(part, shape[0])
    return whole.of(policy.draw((whole.count, *shape[1:]), generator))


def check_batch(images: Tensor) -> None:
    """Refuse what is no batch of images.

    Raises:
        ValueError: see `Policy.__call__`.
    """
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[0] < 1 or shape[1] not in (1, 3) or min(shape[2:]) < 4:
        raise ValueError(f"augmentation takes (N, C, H, W) with C 1 or 3 and H, W at least 4, got {shape}")
    if not images.is_floating_point():
        raise ValueError(f"augmentation takes floats in [0, 1] (see to_float), got {images.dtype}")


# Drawing -------------------------------------------------------------------------------------------------------------


def draw_flips(shape: Shape, allowed: bool, generator: Generator) -> Tensor:
    """(N,) bool, each true with probability 0.5; drawn even where not allowed, so that no later draw depends on it."""
    return torch.rand(shape[0], generator=generator, device="cpu") < (0.5 if allowed else 0.0)


def draw_shifts(shape: Shape, fraction: float, generator: Generator) -> Tensor:
    """(N, 2) whole pixels (down, right), uniform up to `fraction` of the side either way."""
    limits = [pixels(fraction, side) for side in shape[2:]]
    drawn = [torch.randint(-most, most + 1, (shape[0],), generator=generator, device="cpu") for most in limits]
    return torch.stack(drawn, dim=1)


def draw_boxes(shape: Shape, scale: Sequence[float] | None, ratio: Sequence[float], generator: Generator) -> Tensor:
    """(N, 4) crops (top, left, height, width) in pixels and fractions of them.

    As in torchvision, ten tries at an area and a shape per image, of which the first that fits is taken; should none
    fit, the last one is cut to the image. At least one pixel each way.
    """
    count, channels, height, width = shape
    low, high = scale or ((0.3, 1.0) if channels == 1 else (0.08, 1.0))
    draws = torch.rand(count, 10, 2, generator=generator, device="cpu")
    places = torch.rand(count, 2, generator=generator, device="cpu")
    area = (low + draws[:, :, 0] * (high - low)) * (height * width)
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    root = torch.exp((log_low + draws[:, :, 1] * (log_high - log_low)) / 2)
    side = area.sqrt()
    sizes = torch.stack([side / root, side * root], dim=2)  # (N, 10, 2): height, width
    limit = torch.tensor([height, width])
    fits = (sizes <= limit).all(2)
    fits[:, -1] = True
    first = fits.long().argmax(1)  # the first of equal maxima
    size = sizes[torch.arange(count), first].clamp(min=1).minimum(limit)
    return torch.cat([places * (limit - size), size], dim=1)


def usable(pool: Sequence[str] | None, color: Sequence[str], gray: Sequence[str], channels: int) -> tuple[str, ...]:
    """Return the names of the operations to draw from for images of so many channels.

    Args:
        pool: those asked for; None takes the default.
        color: default for three channels.
        gray: default for one channel, where "color" does nothing and is never in use.
        channels: 1 or 3.

    Raises:
        SemisupError: nothing is left of `pool` for one channel.
    """
    asked = pool or (gray if channels == 1 else color)
    left = tuple(name for name in asked if channels > 1 or name != "color")
    if not left:
        raise SemisupError(f"pool {list(asked)} has no operation for images of one channel")
    return left


def pixels(fraction: float, side: int) -> int:
    """Return a fraction of a side in whole pixels, halves upwards (round() would take 2.5 to 2 and 3.5 to 4)."""
    return int(fraction * side + 0.5)


# Applying ------------------------------------------------------------------------------------------------------------


def moved(values: Tensor, images: Tensor) -> Tensor:
    """Move what was drawn to the images' device (and dtype, if floating point) without waiting for it."""
    dtype = images.dtype if values.is_floating_point() else values.dtype
    return values.to(images.device, dtype, non_blocking=True)


def fill_for(images: Tensor, fill: float | Sequence[float] | None) -> float | Tensor:
    """Return a color for these images: a number, or (C,) on their device.

    Args:
        images: (N, C, H, W).
        fill: a number, three (red, green, blue), or None: gray (0.5), and black for one channel.

    Raises:
        SemisupError: three numbers for images of one channel.
    """
    color = color_for(images.shape[1], fill)
    return color if isinstance(color, float) else moved(torch.tensor(color), images)


def color_for(channels: int, fill: float | Sequence[float] | None) -> float | Sequence[float]:
    """Return a color for images of so many channels: a number, or one for each of them. See `fill_for`."""
    if fill is None:
        return 0.0 if channels == 1 else 0.5
    if isinstance(fill, int | float):
        return float(fill)
    if channels != len(fill):
        raise SemisupError(f"fill {list(fill)} needs images of {len(fill)} channels, not 1")
    return fill


def apply_each(
    images: Tensor, choice: Tensor, values: Tensor, table: Sequence[Callable[[Tensor, Tensor], Tensor] | None]
) -> Tensor:
    """Run on each image the one operation it drew. Writes into `images`, and returns it.

    Args:
        images: (N, C, H, W), free to be overwritten.
        choice: (N,) place in `table`, on the CPU.
        values: (N, ...) arguments for the operation, on the CPU or on the images' device.
        table: operations on (images, values); None leaves its images alone.
    """
    order = choice.argsort(stable=True)
    index = moved(order, images)
    values = moved(values, images).index_select(0, index)
    stop = 0
    for operation, count in zip(table, torch.bincount(choice, minlength=len(table)).tolist(), strict=True):
        start, stop = stop, stop + count
        if count and operation is not None:
            rows = index[start:stop]
            images.index_copy_(0, rows, operation(images.index_select(0, rows), values[start:stop]))
    return images


def apply_in_turn(
    images: Tensor,
    choice: Tensor,
    values: Tensor,
    table: Sequence[Callable[[Tensor, Tensor], Tensor] | None],
    matrices: Tensor,
    bends: Tensor,
    fill: float | Tensor,
) -> Tensor:
    """Run on each image the K operations it drew, one after another. Writes into `images`, and returns it.

    They are taken in pairs: light 1, geometry 1 and 2 as one resampling, light 2. This keeps the order of the two
    whichever of them are geometric.

    Args:
        images: (N, C, H, W), free to be overwritten.
        choice: (N, K) places in `table`, on the CPU.
        values: (N, K, ...) arguments for the operations on light, on the CPU or on the images' device.
        table: P operations on light, (images, values) to images; None where the operation is geometric, or identity.
        matrices: (N, K, 2, 3) of the geometric operations, identity for others; on the CPU or on the images' device.
        bends: (P,) bool, which operations are geometric, on the CPU.
        fill: see `semisup.augment.kernels.ops.affine`.
    """
    for first in range(0, choice.shape[1], 2):
        pair = choice[:, first : first + 2]
        images = apply_each(images, pair[:, 0], values[:, first], table)
        bent = bends[pair].any(1).nonzero().squeeze(1)  # on the host
        if len(bent):
            index = moved(bent, images)
            both = moved(matrices[:, first : first + 2], images).index_select(0, index)
            matrix = both[:, 0] if pair.shape[1] == 1 else ops.compose(both[:, 0], both[:, 1])
            images.index_copy_(0, index, ops.affine(images.index_select(0, index), matrix, fill))
        if pair.shape[1] == 2:
            images = apply_each(images, pair[:, 1], values[:, first + 1], table)
    return images

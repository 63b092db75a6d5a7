"""Augmentation policies: what a recipe names to make a view of a batch.

A policy works in two halves. ``draw`` makes every random number of a batch on the CPU, from one explicit generator, so
that they are the same whatever device the images are on, and so that one rank can draw for the whole global batch and
keep its slice. ``apply`` moves those numbers to the images without waiting, and computes. Because the host knows which
image drew which operation, each operation runs on just its images, picked by an index list made on the host: nothing
asks the device a question, and the policy runs on the ``meta`` device.

Apply policies outside autocast: a blur is a convolution, and would be rounded to bfloat16.

Milliseconds a batch, best of 60, on 2 cores (AMD EPYC), weak / randaugment / simclr: 0.15 / 1.3 / 0.8 for
112 x 1 x 28 x 28, 0.3 / 2 / 1.4 for 256 x 1 x 28 x 28, 0.5 / 2.5 / 4.5 for 112 x 3 x 32 x 32.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor

from semisup.augment import ops
from semisup.augment.options import (
    flag,
    fraction_or_colour,
    names,
    number,
    one_of,
    option,
    pair,
    problems,
)
from semisup.errors import SemisupError, nearest, raise_all

__all__ = [
    "POLICIES",
    "CropFlip",
    "LocalCrop",
    "NoAugment",
    "Policy",
    "RandAugment",
    "SimCLR",
    "Weak",
    "build_policy",
    "check_policy",
]

Drawn = dict[str, Tensor]
"""A batch's random numbers by name: CPU tensors, first axis the images."""

Shape = Sequence[int]
"""(N, C, H, W)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """A random function of a batch of images; its options are its constructor's keywords.

    Args:
        flip: whether mirroring left and right keeps the label (clothes: yes; digits: no).

    Raises:
        SemisupError: an option is out of its range.
    """

    flip: bool = option(True, flag)

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        raise_all(problems(type(self), given), type(self).__name__)

    @abstractmethod
    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw every random number for a batch of ``shape`` (N, C, H, W); ``generator`` is a CPU one."""

    @abstractmethod
    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Return the augmented batch; the input stays as it is. ``drawn`` is :meth:`draw`'s, or a slice of it."""

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        """Augment every image differently.

        Args:
            images: (N, C, H, W), floating point in [0, 1], C 1 or 3, N at least 1, H and W at least 4.
            generator: a CPU generator; its state decides the result, and is moved on.

        Returns:
            Images of the same shape (``local``: smaller) and dtype, in [0, 1], in channels_last memory.

        Raises:
            ValueError: ``images`` is not such a batch.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[0] < 1 or shape[1] not in (1, 3) or min(shape[2:]) < 4:
            raise ValueError(f"augmentation takes (N, C, H, W) with C 1 or 3 and H, W at least 4, got {shape}")
        if not images.is_floating_point():
            raise ValueError(f"augmentation takes floats in [0, 1] (see to_float), got {images.dtype}")
        return self.apply(images, self.draw(shape, generator))


# The policies --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAugment(Policy):
    """The images themselves (``flip`` is accepted, as by every policy, and has nothing to do)."""

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw nothing."""
        return {}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Return the same tensor."""
        return images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weak(Policy):
    """FixMatch's weak view: mirror with probability 0.5, move by whole pixels, fill by reflection.

    Source: K. Sohn et al., arXiv:2001.07685, section 2.3: up to 12.5 % along each axis.

    Args:
        flip: see :class:`Policy`.
        shift: largest move along each axis as a fraction of that side (rounded to pixels: 4 of 32, 1 of 8), 0 to 0.5.
    """

    shift: float = option(0.125, number(0, 0.5))

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw ``shifts`` (N, 2), pixels (down, right), and ``flips`` (N,)."""
        return {"shifts": _draw_shifts(shape, self.shift, generator), "flips": _draw_flips(shape, self.flip, generator)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Mirror and move."""
        out = ops.translate_reflect(images, _to(drawn["shifts"], images), _to(drawn["flips"], images))
        return out.contiguous(memory_format=torch.channels_last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropFlip(Policy):
    """Random resized crop and mirror: SimCLRv2's view for fine-tuning and distillation (arXiv:2006.10029).

    Args:
        flip: see :class:`Policy`.
        scale: area of the crop, uniform between these fractions of the image's. Null: (0.08, 1) in colour, and
            (0.3, 1) for one channel, where less of a digit or a shoe is often not recognisable.
        ratio: width over height of the crop, log-uniform between these.
    """

    scale: Sequence[float] | None = option(None, pair(0, 1, optional=True))
    ratio: Sequence[float] = option((3 / 4, 4 / 3), pair(0, 100))

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw ``boxes`` (N, 4), pixels (top, left, height, width), and ``flips`` (N,)."""
        boxes = _draw_boxes(shape, self.scale, self.ratio, generator)
        return {"boxes": boxes, "flips": _draw_flips(shape, self.flip, generator)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Crop, stretch and mirror in one resampling."""
        size = (images.shape[2], images.shape[3])
        out = ops.resized_crop(images, _to(drawn["boxes"], images), size, _to(drawn["flips"], images))
        return out.contiguous(memory_format=torch.channels_last)


PHOTOMETRIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": lambda images, _: ops.autocontrast(images),
    "brightness": ops.brightness,
    "color": ops.color,
    "contrast": ops.contrast,
    "equalize": lambda images, _: ops.equalize(images),
    "invert": lambda images, _: ops.invert(images),
    "posterize": ops.posterize,
    "sharpness": ops.sharpness,
    "solarize": ops.solarize,
}
"""RandAugment's operations on light and colour: images and (N,) strengths to images."""

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
IDENTITY = "identity"

COLOUR_POOL = (
    *(IDENTITY, "autocontrast", "equalize", "rotate", "solarize", "color", "contrast", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y", "posterize"),
)
# One channel: "color" would do nothing, and "solarize" would turn the black background of such sets white.
GRAY_POOL = tuple(name for name in COLOUR_POOL if name not in ("color", "solarize"))

LEVELS = 10  # strengths go by whole levels 1..9 of ten


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment(Policy):
    """FixMatch's strong view: the weak view, two operations drawn with replacement, then Cutout.

    Each of the two operations is applied with probability 0.5, at a level of 1 to 9 and, in geometry, a random sign.
    Sources: E. Cubuk et al., arXiv:1909.13719; K. Sohn et al., arXiv:2001.07685, and for the probability and the levels
    its code, google-research/fixmatch. The order of the two operations is kept. Differences: resampling is bilinear
    (there: nearest), two geometric operations on one image are composed into one resampling, and translations scale
    with the image (there: 1 to 9 pixels of 32, here 0.03 to 0.27 of the side).

    Args:
        flip: see :class:`Policy`.
        shift: of the weak view, see :class:`Weak`.
        pool: names of the operations to draw from. Null: the 14 of the paper; for one channel the 12 without "color"
            (does nothing there) and "solarize" (inverts the background). "invert" may be asked for.
        probability: that a drawn operation is applied.
        ranges: "code" for the strengths of the authors' code (enhance by 0.28..1.72, posterize to 4..1 bits), "paper"
            for those of the paper's table (0.14..0.86, 4..7 bits).
        cutout: side of the painted square as a fraction of the shorter side; 0 for none.
        fill: colour of cutout and of what geometry brings into the frame, a number or [red, green, blue]. Null: grey
            (0.5) in colour, black for one channel, where that is the background.
    """

    shift: float = option(0.125, number(0, 0.5))
    pool: Sequence[str] | None = option(None, names({IDENTITY, *PHOTOMETRIC, *GEOMETRIC}))
    probability: float = option(0.5, number(0, 1))
    ranges: str = option("code", one_of("code", "paper"))
    cutout: float = option(0.5, number(0, 1))
    fill: float | Sequence[float] | None = option(None, fraction_or_colour)

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw the weak view's numbers and, per image:

        ``ops`` (N, 2), places in :meth:`pool_for`, of which the last one, identity, stands for "not applied";
        ``levels`` (N, 2), -9..-1 and 1..9; ``centres`` (N, 2), row and column of the cutout.
        """
        count, channels, height, width = shape
        chosen = torch.randint(len(self.pool_for(channels)) - 1, (count, 2), generator=generator, device="cpu")
        skipped = torch.rand(count, 2, generator=generator, device="cpu") >= self.probability
        levels = torch.randint(1, LEVELS, (count, 2), generator=generator, device="cpu")
        signs = torch.randint(2, (count, 2), generator=generator, device="cpu") * 2 - 1
        rows = torch.randint(height, (count,), generator=generator, device="cpu")
        columns = torch.randint(width, (count,), generator=generator, device="cpu")
        return {
            "shifts": _draw_shifts(shape, self.shift, generator),
            "flips": _draw_flips(shape, self.flip, generator),
            "ops": chosen.masked_fill_(skipped, len(self.pool_for(channels)) - 1),
            "levels": levels * signs,
            "centres": torch.stack([rows, columns], dim=1),
        }

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Weak view, first operation, geometry, second operation, cutout.

        With two operations this keeps their order whichever of them are geometric: light 1, geometry 1 and 2 as one
        matrix, light 2.
        """
        _, channels, height, width = images.shape
        pool, fill = self.pool_for(channels), self._fill(images)
        table = [PHOTOMETRIC.get(name) for name in pool]
        choice, levels = drawn["ops"], drawn["levels"]
        strengths = _strengths(pool, self.ranges)[choice, levels.abs()]
        matrices = _geometry(pool, height, width)[choice, levels + LEVELS]

        out = ops.translate_reflect(images, _to(drawn["shifts"], images), _to(drawn["flips"], images))
        out = _apply_each(out, choice[:, 0], strengths[:, 0], table)
        moved = torch.tensor([name in GEOMETRIC for name in pool])[choice].any(1).nonzero().squeeze(1)  # on the host
        if len(moved):
            matrices = ops.compose(matrices[moved, 0], matrices[moved, 1])
            index = _to(moved, images)
            out.index_copy_(0, index, ops.affine(out.index_select(0, index), _to(matrices, images), fill))
        out = _apply_each(out, choice[:, 1], strengths[:, 1], table)
        side = _pixels(self.cutout, min(height, width))
        if side:
            out = ops.cutout(out, _to(drawn["centres"], images), side, fill)
        return out.contiguous(memory_format=torch.channels_last)

    def pool_for(self, channels: int) -> tuple[str, ...]:
        """Return the operations drawn from for images of so many channels, then identity for "not applied".

        Raises:
            SemisupError: nothing is left of ``pool`` for one channel.
        """
        pool = self.pool or (GRAY_POOL if channels == 1 else COLOUR_POOL)
        usable = tuple(name for name in pool if channels > 1 or name != "color")
        if not usable:
            raise SemisupError(f"RandAugment: pool {list(pool)} has no operation for images of one channel")
        return (*usable, IDENTITY)

    def _fill(self, images: Tensor) -> float | Tensor:
        """Return the fill: a number, or (C,) on the images' device.

        Raises:
            SemisupError: three numbers for images of one channel.
        """
        if self.fill is None:
            return 0.0 if images.shape[1] == 1 else 0.5
        if isinstance(self.fill, int | float):
            return float(self.fill)
        if images.shape[1] != len(self.fill):
            raise SemisupError(f"RandAugment: fill {list(self.fill)} needs images of {len(self.fill)} channels, not 1")
        return _to(torch.tensor(self.fill), images)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(Policy):
    """SimCLR's view: random resized crop, mirror, colour jitter, grayscale, blur.

    Source: T. Chen et al., arXiv:2002.05709, appendix A, with brightness as a factor (SimCLRv2's code), bilinear
    instead of bicubic, and contrast about the mean grey (PIL, torchvision) instead of each channel's mean (TF). The
    defaults are those for CIFAR: strength 0.5, no blur. One channel: saturation, hue and grayscale would do nothing and
    are left out.

    Args:
        flip: see :class:`Policy`.
        scale: see :class:`CropFlip`.
        ratio: see :class:`CropFlip`.
        jitter: probability of the colour jitter.
        strength: of the jitter, s: brightness, contrast and saturation by U(max(0, 1 - 0.8 s), 1 + 0.8 s), hue turned
            by U(-0.2 s, 0.2 s), in an order drawn for each image, clipped after each. 0 to 2.5.
        gray: probability of grayscale.
        blur: probability of a Gaussian blur (0.5 for ImageNet), its kernel a tenth of the height, made odd, at least 3.
        blur_sigma: standard deviation of the blur in pixels, uniform between these.
    """

    scale: Sequence[float] | None = option(None, pair(0, 1, optional=True))
    ratio: Sequence[float] = option((3 / 4, 4 / 3), pair(0, 100))
    jitter: float = option(0.8, number(0, 1))
    strength: float = option(0.5, number(0, 2.5))
    gray: float = option(0.2, number(0, 1))
    blur: float = option(0.0, number(0, 1))
    blur_sigma: Sequence[float] = option((0.1, 2.0), pair(0, 100))

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw the crop's numbers and, per image:

        ``order`` (N, J), the jitter's operations in order (J of them: brightness, contrast and, in colour,
        saturation, hue), all J where it is left out; ``factors`` (N, J), by operation; ``gray`` (N,), 0 or 1;
        ``blur`` (N,), 0 or 1; ``sigmas`` (N,).
        """
        count, channels = shape[:2]
        kinds = 2 if channels == 1 else 4
        factors = torch.rand(count, kinds, generator=generator, device="cpu")
        spread, turn = 0.8 * self.strength, 0.2 * self.strength
        factors[:, :3] = max(0.0, 1 - spread) + factors[:, :3] * (1 + spread - max(0.0, 1 - spread))
        factors[:, 3:] = (factors[:, 3:] * 2 - 1) * turn
        order = torch.rand(count, kinds, generator=generator, device="cpu").argsort(1)
        events = torch.rand(count, 4, generator=generator, device="cpu")
        low, high = self.blur_sigma
        return {
            "boxes": _draw_boxes(shape, self.scale, self.ratio, generator),
            "flips": _draw_flips(shape, self.flip, generator),
            "order": order.masked_fill_(events[:, :1] >= self.jitter, kinds),
            "factors": factors,
            "gray": (events[:, 1] < (self.gray if channels > 1 else 0)).long(),
            "blur": (events[:, 2] < self.blur).long(),
            "sigmas": low + events[:, 3] * (high - low),
        }

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Crop and mirror, jitter, grayscale, blur."""
        size = self.result_size(images.shape[2], images.shape[3])
        out = ops.resized_crop(images, _to(drawn["boxes"], images), size, _to(drawn["flips"], images))
        kinds = drawn["factors"].shape[1]
        table = [ops.brightness, ops.contrast, ops.saturation, ops.hue][:kinds]
        factors = drawn["factors"].gather(1, drawn["order"].clamp(max=kinds - 1))
        for place in range(kinds):
            out = _apply_each(out, drawn["order"][:, place], factors[:, place], [*table, None])
        out = _apply_each(out, drawn["gray"], drawn["sigmas"], [None, lambda x, _: ops.grayscale(x)])
        taps = max(3, size[0] // 10 // 2 * 2 + 1)
        out = _apply_each(out, drawn["blur"], drawn["sigmas"], [None, lambda x, s: ops.gaussian_blur(x, s, taps)])
        return out.contiguous(memory_format=torch.channels_last)

    def result_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the view of an image of this height and width."""
        return height, width


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalCrop(SimCLR):
    """The small view of multi-crop: SimCLR's view of a small part of the image, in a smaller picture.

    Sources: M. Caron et al., arXiv:2006.09882 (SwAV), section 3.3, and arXiv:2104.14294 (DINO), main_dino.py: areas of
    0.05 to 0.4 in 96 of 224 px. SwAV cuts them out of 0.05 to 0.14 and begins its large views there.

    Args: those of :class:`SimCLR`, and
        scale: area of the crop, uniform between these fractions of the image's, the same for any number of
            channels. Null: as of :class:`CropFlip`.
        size: sides of the result as fractions of the image's, rounded to pixels; at least 4 px.
    """

    scale: Sequence[float] | None = option((0.05, 0.4), pair(0, 1, optional=True))
    size: float = option(96 / 224, number(0, 1))

    def result_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the smaller height and width."""
        return max(4, _pixels(self.size, height)), max(4, _pixels(self.size, width))


POLICIES: dict[str, type[Policy]] = {
    "none": NoAugment,
    "weak": Weak,
    "randaugment": RandAugment,
    "simclr": SimCLR,
    "local": LocalCrop,
    "crop_flip": CropFlip,
}
"""Every policy a recipe can name."""


def check_policy(name: str, options: Mapping[str, object]) -> list[str]:
    """Return what is wrong with a policy as named in a recipe, one sentence each; an empty list if nothing.

    Args:
        name: a key of :data:`POLICIES`.
        options: keywords for its constructor.
    """
    if name not in POLICIES:
        return [f"unknown augmentation policy '{name}'{nearest(name, POLICIES)}"]
    return problems(POLICIES[name], options)


def build_policy(name: str, options: Mapping[str, object], *, flip: bool) -> Policy:
    """Make the policy that a recipe names.

    Args:
        name: a key of :data:`POLICIES`.
        options: keywords for its constructor.
        flip: whether the data set allows mirroring; ``flip`` in ``options`` wins.

    Raises:
        SemisupError: unknown policy or option, or a value out of its range; all of them at once.
    """
    raise_all(check_policy(name, options), f"augmentation policy '{name}'")
    return POLICIES[name](**{"flip": flip, **options})  # type: ignore[arg-type]  # checked by name, one line above


# Drawing -------------------------------------------------------------------------------------------------------------


def _draw_flips(shape: Shape, allowed: bool, generator: Generator) -> Tensor:
    """(N,) bool, each true with probability 0.5; drawn even where not allowed, so that no later draw depends on it."""
    return torch.rand(shape[0], generator=generator, device="cpu") < (0.5 if allowed else 0.0)


def _draw_shifts(shape: Shape, fraction: float, generator: Generator) -> Tensor:
    """(N, 2) whole pixels (down, right), uniform up to ``fraction`` of the side either way."""
    limits = [_pixels(fraction, side) for side in shape[2:]]
    drawn = [torch.randint(-most, most + 1, (shape[0],), generator=generator, device="cpu") for most in limits]
    return torch.stack(drawn, dim=1)


def _draw_boxes(shape: Shape, scale: Sequence[float] | None, ratio: Sequence[float], generator: Generator) -> Tensor:
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


def _pixels(fraction: float, side: int) -> int:
    """Return a fraction of a side in whole pixels, halves upwards (round() would take 2.5 to 2 and 3.5 to 4)."""
    return int(fraction * side + 0.5)


@lru_cache(maxsize=32)
def _strengths(pool: tuple[str, ...], ranges: str) -> Tensor:
    """(P, 10) argument of each photometric operation at each level; row 0 and column 0 order as in ``pool``, level."""

    def strength(name: str, level: int) -> float:
        share = level / LEVELS
        if name == "posterize":
            return 4 - int(4 * share) if ranges == "code" else 4 + int(4 * share)
        if name == "solarize":
            return (256 - int(256 * share)) / 255
        return 0.1 + 1.8 * share if ranges == "code" else 0.05 + 0.9 * share

    return torch.tensor([[strength(name, level) for level in range(LEVELS)] for name in pool])


@lru_cache(maxsize=32)
def _geometry(pool: tuple[str, ...], height: int, width: int) -> Tensor:
    """(P, 20, 2, 3) matrix of each operation at levels -10..9: identity for those that are not geometric."""
    share = torch.arange(-LEVELS, LEVELS) / LEVELS
    still = torch.zeros_like(share)
    builders: dict[str, Callable[[], Tensor]] = {
        "rotate": lambda: ops.rotation(30 * share, (height, width)),
        "shear_x": lambda: ops.shear_x(0.3 * share, (height, width)),
        "shear_y": lambda: ops.shear_y(0.3 * share, (height, width)),
        "translate_x": lambda: ops.translation(0.3 * share, still),
        "translate_y": lambda: ops.translation(still, 0.3 * share),
    }
    return torch.stack([builders.get(name, lambda: ops.translation(still, still))() for name in pool])


# Applying ------------------------------------------------------------------------------------------------------------


def _to(values: Tensor, images: Tensor) -> Tensor:
    """Move what was drawn to the images' device (and dtype, if floating point) without waiting for it."""
    dtype = images.dtype if values.is_floating_point() else values.dtype
    return values.to(images.device, dtype, non_blocking=True)


def _apply_each(
    images: Tensor, choice: Tensor, values: Tensor, table: Sequence[Callable[[Tensor, Tensor], Tensor] | None]
) -> Tensor:
    """Run on each image the one operation it drew. Writes into ``images``, and returns it.

    Args:
        images: (N, C, H, W), free to be overwritten.
        choice: (N,) place in ``table``, on the CPU.
        values: (N,) argument for the operation, on the CPU.
        table: operations on (images, values); None leaves its images alone.
    """
    order = choice.argsort(stable=True)
    index, values = _to(order, images), _to(values[order], images)
    stop = 0
    for operation, count in zip(table, torch.bincount(choice, minlength=len(table)).tolist(), strict=True):
        start, stop = stop, stop + count
        if count and operation is not None:
            rows = index[start:stop]
            images.index_copy_(0, rows, operation(images.index_select(0, rows), values[start:stop]))
    return images

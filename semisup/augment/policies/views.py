"""Augmentation policies: what a recipe names to make a view of a batch.

Apply policies outside autocast: a blur is a convolution, and would be rounded to bfloat16.

Milliseconds a batch, best of 60, on 2 cores (AMD EPYC), weak / randaugment / simclr: 0.15 / 1.3 / 0.8 for
112 x 1 x 28 x 28, 0.3 / 2 / 1.4 for 256 x 1 x 28 x 28, 0.5 / 2.5 / 4.5 for 112 x 3 x 32 x 32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Generator, Tensor

from semisup.augment.kernels import ops
from semisup.augment.policies.automatic import AutoAugment, RandAugmentNM, TrivialAugment
from semisup.augment.policies.ctaugment import CTAugment, CTAugmentCutout, CTAugmentProbe
from semisup.augment.policies.operations import GEOMETRIC, IDENTITY, PHOTOMETRIC, geometric_matrices, weak_then
from semisup.augment.policies.policy import (
    Drawn,
    Policy,
    Shape,
    apply_each,
    draw_boxes,
    draw_flips,
    draw_shifts,
    fill_for,
    moved,
    pixels,
    usable,
)
from semisup.errors import raise_all
from semisup.options import Color, Fraction, Range, check_named, pair, subset

__all__ = [
    "POLICIES",
    "BYOLFirst",
    "BYOLSecond",
    "CropFlip",
    "DINOFirst",
    "DINOLocal",
    "DINOSecond",
    "LocalCrop",
    "MAECrop",
    "MaskFeatCrop",
    "MoCo",
    "NoAugment",
    "Policy",
    "RandAugment",
    "SimCLR",
    "SwAVLarge",
    "SwAVSmall",
    "Weak",
    "build_policy",
    "check_policy",
]

# The policies --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoAugment(Policy):
    """The images themselves (`flip` is accepted, as by every policy, and has nothing to do)."""

    name: ClassVar = "none"

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
        shift: largest move along each axis as a fraction of that side (rounded to pixels: 4 of 32, 1 of 8), 0 to 0.5.
    """

    name: ClassVar = "weak"
    shift: Annotated[float, Range(0, 0.5)] = 0.125

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw `shifts` (N, 2), pixels (down, right), and `flips` (N,)."""
        return {"shifts": draw_shifts(shape, self.shift, generator), "flips": draw_flips(shape, self.flip, generator)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Mirror and move."""
        out = ops.translate_reflect(images, moved(drawn["shifts"], images), moved(drawn["flips"], images))
        return out.contiguous(memory_format=torch.channels_last)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropFlip(Policy):
    """Random resized crop and mirror: SimCLRv2's view for fine-tuning and distillation (arXiv:2006.10029).

    Args:
        scale: area of the crop, uniform between these fractions of the image's. Null: (0.08, 1) in color, and
            (0.3, 1) for one channel, where less of a digit or a shoe is often not recognizable.
        ratio: width over height of the crop, log-uniform between these.
    """

    name: ClassVar = "crop_flip"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = None
    ratio: Annotated[Sequence[float], pair(0, 100)] = (3 / 4, 4 / 3)

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw `boxes` (N, 4), pixels (top, left, height, width), and `flips` (N,)."""
        boxes = draw_boxes(shape, self.scale, self.ratio, generator)
        return {"boxes": boxes, "flips": draw_flips(shape, self.flip, generator)}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Crop, stretch and mirror in one resampling."""
        size = (images.shape[2], images.shape[3])
        out = ops.resized_crop(images, moved(drawn["boxes"], images), size, moved(drawn["flips"], images))
        return out.contiguous(memory_format=torch.channels_last)


COLOR_POOL = (
    *(IDENTITY, "autocontrast", "equalize", "rotate", "solarize", "color", "contrast", "brightness", "sharpness"),
    *("shear_x", "shear_y", "translate_x", "translate_y", "posterize"),
)
# One channel: "color" would do nothing, and "solarize" would sink bright objects into a black background.
GRAY_POOL = tuple(name for name in COLOR_POOL if name not in ("color", "solarize"))

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
        shift: largest move along each axis as a fraction of that side, as in `weak`, 0 to 0.5.
        pool: names of the operations to draw from. Null: the 14 of the paper; for one channel the 12 without "color"
            (does nothing there) and "solarize" (sinks bright objects into a black background). "invert" may be
            asked for.
        probability: that a drawn operation is applied.
        ranges: "code" for the strengths of the authors' code (enhance by 0.28..1.72, posterize to 4..1 bits), "paper"
            for those of the paper's table (0.14..0.86, 4..7 bits).
        cutout: side of the painted square as a fraction of the shorter side; 0 for none.
        fill: color of cutout and of what geometry brings into the frame, a number or [red, green, blue]. Null: gray
            (0.5) in color, black for one channel, where that is the background.
    """

    name: ClassVar = "randaugment"
    shift: Annotated[float, Range(0, 0.5)] = 0.125
    pool: Annotated[Sequence[str], subset([IDENTITY, *PHOTOMETRIC, *GEOMETRIC])] | None = None
    probability: Fraction = 0.5
    ranges: Literal["code", "paper"] = "code"
    cutout: Fraction = 0.5
    fill: Color | None = None

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw the weak view's numbers and, per image, what follows.

        `ops` (N, 2), places in `pool_for`, of which the last one, identity, stands for "not applied";
        `levels` (N, 2), -9..-1 and 1..9; `centers` (N, 2), row and column of the cutout.
        """
        count, channels, height, width = shape
        chosen = torch.randint(len(self.pool_for(channels)) - 1, (count, 2), generator=generator, device="cpu")
        skipped = torch.rand(count, 2, generator=generator, device="cpu") >= self.probability
        levels = torch.randint(1, LEVELS, (count, 2), generator=generator, device="cpu")
        signs = torch.randint(2, (count, 2), generator=generator, device="cpu") * 2 - 1
        rows = torch.randint(height, (count,), generator=generator, device="cpu")
        columns = torch.randint(width, (count,), generator=generator, device="cpu")
        return {
            "shifts": draw_shifts(shape, self.shift, generator),
            "flips": draw_flips(shape, self.flip, generator),
            "ops": chosen.masked_fill_(skipped, len(self.pool_for(channels)) - 1),
            "levels": levels * signs,
            "centers": torch.stack([rows, columns], dim=1),
        }

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Weak view, the two operations, cutout."""
        arguments = self.arguments(drawn, images.shape)
        return weak_then(
            images, drawn, self.pool_for(images.shape[1]), arguments, self.cutout, fill_for(images, self.fill)
        )

    def arguments(self, drawn: Drawn, shape: Shape) -> tuple[Tensor, Tensor]:
        """Return what the drawn operations do: (N, 2) strengths and (N, 2, 2, 3) matrices, see `apply_in_turn`."""
        _, channels, height, width = shape
        pool, choice, levels = self.pool_for(channels), drawn["ops"], drawn["levels"]
        strengths = _strengths(pool, self.ranges)[choice, levels.abs()]
        return strengths, _geometry(pool, height, width)[choice, levels + LEVELS]

    def pool_for(self, channels: int) -> tuple[str, ...]:
        """Return the operations drawn from for images of so many channels, then identity for "not applied".

        Raises:
            SemisupError: nothing is left of `pool` for one channel.
        """
        return (*usable(self.pool, COLOR_POOL, GRAY_POOL, channels), IDENTITY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(Policy):
    """SimCLR's view: random resized crop, mirror, color jitter, grayscale, blur, solarize.

    Source: T. Chen et al., arXiv:2002.05709, appendix A, with brightness as a factor (SimCLRv2's code), bilinear
    instead of bicubic, and contrast about the mean gray (PIL, torchvision) instead of each channel's mean (TF). The
    defaults are those for CIFAR: strength 0.5, no blur. One channel: saturation, hue and grayscale would do nothing and
    are left out. Solarizing is not SimCLR's; BYOL added it, see `BYOLSecond`.

    Args:
        scale: area of the crop, uniform between these fractions of the image's. Null: (0.08, 1) in color, and
            (0.3, 1) for one channel.
        ratio: width over height of the crop, log-uniform between these.
        jitter: probability of the color jitter.
        strength: of the jitter, s: brightness and contrast by U(max(0, 1 - 0.8 s), 1 + 0.8 s), hue turned by
            U(-0.2 s, 0.2 s), in an order drawn for each image, clipped after each. 0 to 2.5.
        saturation: the jitter's saturation by U(max(0, 1 - saturation * s), 1 + saturation * s).
        gray: probability of grayscale.
        blur: probability of a Gaussian blur (0.5 for ImageNet), its kernel a tenth of the height, made odd, at least 3.
        blur_sigma: standard deviation of the blur in pixels, uniform between these.
        solarize: probability that values from 0.5 on are inverted. Null: BYOL's 0.2 in color; 0 for one channel, where
            a bright object would sink into the black background.
    """

    name: ClassVar = "simclr"
    only_with: ClassVar = {"strength": ("jitter", True), "saturation": ("jitter", True), "blur_sigma": ("blur", True)}
    scale: Annotated[Sequence[float], pair(0, 1)] | None = None
    ratio: Annotated[Sequence[float], pair(0, 100)] = (3 / 4, 4 / 3)
    jitter: Fraction = 0.8
    strength: Annotated[float, Range(0, 2.5)] = 0.5
    saturation: Annotated[float, Range(0, 2.5)] = 0.8
    gray: Fraction = 0.2
    blur: Fraction = 0.0
    blur_sigma: Annotated[Sequence[float], pair(0, 100)] = (0.1, 2.0)
    solarize: Fraction | None = 0.0

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw the crop's numbers and, per image, what follows.

        `order` (N, J), the jitter's operations in order (J of them: brightness, contrast and, in color,
        saturation, hue), all J where it is left out; `factors` (N, J), by operation; `gray` (N,), 0 or 1;
        `blur` (N,), 0 or 1; `sigmas` (N,); and where images may be solarized `solarize` (N,), 0 or 1, which is
        drawn last.
        """
        count, channels = shape[:2]
        kinds = 2 if channels == 1 else 4
        factors = torch.rand(count, kinds, generator=generator, device="cpu")
        for kind, share in ((slice(0, 2), 0.8), (slice(2, 3), self.saturation)):
            low, high = max(0.0, 1 - share * self.strength), 1 + share * self.strength
            factors[:, kind] = low + factors[:, kind] * (high - low)
        factors[:, 3:] = (factors[:, 3:] * 2 - 1) * (0.2 * self.strength)
        order = torch.rand(count, kinds, generator=generator, device="cpu").argsort(1)
        events = torch.rand(count, 4, generator=generator, device="cpu")
        low, high = self.blur_sigma
        drawn = {
            "boxes": draw_boxes(shape, self.scale, self.ratio, generator),
            "flips": draw_flips(shape, self.flip, generator),
            "order": order.masked_fill_(events[:, :1] >= self.jitter, kinds),
            "factors": factors,
            "gray": (events[:, 1] < (self.gray if channels > 1 else 0)).long(),
            "blur": (events[:, 2] < self.blur).long(),
            "sigmas": low + events[:, 3] * (high - low),
        }
        solarize = self.solarize if self.solarize is not None else 0.2 if channels > 1 else 0.0
        if solarize:
            drawn["solarize"] = (torch.rand(count, generator=generator, device="cpu") < solarize).long()
        return drawn

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Crop and mirror, jitter, grayscale, blur, solarize."""
        size = self.result_size(images.shape[2], images.shape[3])
        out = ops.resized_crop(images, moved(drawn["boxes"], images), size, moved(drawn["flips"], images))
        kinds = drawn["factors"].shape[1]
        table = [ops.brightness, ops.contrast, ops.saturation, ops.hue][:kinds]
        factors = drawn["factors"].gather(1, drawn["order"].clamp(max=kinds - 1))
        for place in range(kinds):
            out = apply_each(out, drawn["order"][:, place], factors[:, place], [*table, None])
        out = apply_each(out, drawn["gray"], drawn["sigmas"], [None, lambda x, _: ops.grayscale(x)])
        taps = self.blur_taps(size[0])
        out = apply_each(out, drawn["blur"], drawn["sigmas"], [None, lambda x, s: ops.gaussian_blur(x, s, taps)])
        if "solarize" in drawn:
            half = torch.full_like(drawn["sigmas"], 0.5)
            out = apply_each(out, drawn["solarize"], half, [None, ops.solarize])
        return out.contiguous(memory_format=torch.channels_last)

    def blur_taps(self, height: int) -> int:
        """Return the width of the blur's kernel in a view of this height: a tenth, made odd, at least 3."""
        return max(3, height // 10 // 2 * 2 + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalCrop(SimCLR):
    """The small view of multi-crop: SimCLR's view of a small part of the image, at a smaller size.

    Sources: M. Caron et al., arXiv:2006.09882 (SwAV), section 3.3, and arXiv:2104.14294 (DINO), main_dino.py: areas of
    0.05 to 0.4 in 96 of 224 px; with SwAV's numbers see `SwAVSmall`, with all of DINO's `DINOLocal`.

    Args:
        scale: area of the crop, uniform between these fractions of the image's, the same for any number of
            channels. Null: as of `crop_flip`.
        size: sides of the result as fractions of the image's, rounded to pixels; at least 4 px.
    """

    name: ClassVar = "local"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = (0.05, 0.4)
    size: Fraction = 96 / 224

    def result_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the smaller height and width."""
        return max(4, pixels(self.size, height)), max(4, pixels(self.size, width))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoCo(SimCLR):
    """SimCLR's view with the numbers of MoCo v2 and SimSiam: crops of (0.2, 1) of the image, blur for half of them.

    Source: X. Chen et al., arXiv:2003.04297, and facebookresearch/moco main_moco.py (jitter 0.4, 0.4, 0.4, 0.1: the
    strength 0.5 of `SimCLR`). Options as there.
    """

    name: ClassVar = "moco"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = (0.2, 1.0)
    blur: Fraction = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BYOLFirst(SimCLR):
    """The first view of BYOL, Barlow Twins and VICReg: always blurred, never solarized.

    Source: J.-B. Grill et al., arXiv:2006.07733, appendix B: jitter 0.4, 0.4, 0.2, 0.1, crops of (0.08, 1) in color.
    Options as in `SimCLR`. solo-learn leaves the blur out at 32 pixels (`blur: 0`).
    """

    name: ClassVar = "byol_first"
    saturation: Annotated[float, Range(0, 2.5)] = 0.4
    blur: Fraction = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BYOLSecond(BYOLFirst):
    """The second view of BYOL, Barlow Twins and VICReg: seldom blurred, in color sometimes solarized.

    Source and options as in `BYOLFirst`: blur with probability 0.1, solarizing with probability 0.2.
    """

    name: ClassVar = "byol_second"
    blur: Fraction = 0.1
    solarize: Fraction | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwAVLarge(SimCLR):
    """A large view of SwAV: crops of (0.14, 1) of the image, the full jitter, blur for half of them.

    Source: M. Caron et al., arXiv:2006.09882, and facebookresearch/swav, src/multicropdataset.py. Options as in
    `SimCLR`.
    """

    name: ClassVar = "swav"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = (0.14, 1.0)
    strength: Annotated[float, Range(0, 2.5)] = 1.0
    blur: Fraction = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwAVSmall(LocalCrop):
    """A small view of SwAV: the parts of (0.05, 0.14) of the image that its large views leave out.

    Source as of `SwAVLarge`, options as in `LocalCrop`.
    """

    name: ClassVar = "swav_local"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = (0.05, 0.14)
    strength: Annotated[float, Range(0, 2.5)] = 1.0
    blur: Fraction = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOFirst(BYOLFirst):
    """The first large view of DINO: BYOL's, of crops of (0.4, 1).

    Source: M. Caron et al., arXiv:2104.14294, and facebookresearch/dino, main_dino.py. Options as in `SimCLR`.
    """

    name: ClassVar = "dino_first"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = (0.4, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOSecond(BYOLSecond):
    """The second large view of DINO: BYOL's, of crops of (0.4, 1), in color sometimes solarized.

    Source and options as of `DINOFirst`.
    """

    name: ClassVar = "dino_second"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = (0.4, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINOLocal(LocalCrop):
    """A small view of DINO: crops of (0.05, 0.4), half of them blurred.

    Source as of `DINOFirst`, options as in `LocalCrop`.
    """

    name: ClassVar = "dino_local"
    saturation: Annotated[float, Range(0, 2.5)] = 0.4
    blur: Fraction = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAECrop(CropFlip):
    """MAE's view: crops of (0.2, 1) of the image, mirrored.

    Source: K. He et al., arXiv:2111.06377, and facebookresearch/mae, main_pretrain.py. Options as in `CropFlip`.
    """

    name: ClassVar = "mae"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = (0.2, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CMCCrop(CropFlip):
    """CMC's view: crops of (0.2, 1) of the image, mirrored.

    Source: Y. Tian et al., arXiv:1906.05849, and HobbitLong/CMC, train_CMC.py (`crop_low`). Options as in `CropFlip`.
    """

    name: ClassVar = "cmc"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = (0.2, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFeatCrop(CropFlip):
    """MaskFeat's view: crops of (0.5, 1) of the image, mirrored.

    Source: C. Wei et al., arXiv:2112.09133, appendix. Options as in `CropFlip`.
    """

    name: ClassVar = "maskfeat"
    scale: Annotated[Sequence[float], pair(0, 1)] | None = (0.5, 1.0)


POLICIES: dict[str, type[Policy]] = {
    cls.name: cls
    for cls in (
        NoAugment,
        Weak,
        RandAugment,
        SimCLR,
        MoCo,
        BYOLFirst,
        BYOLSecond,
        SwAVLarge,
        SwAVSmall,
        DINOFirst,
        DINOSecond,
        DINOLocal,
        LocalCrop,
        CropFlip,
        CMCCrop,
        MAECrop,
        MaskFeatCrop,
        RandAugmentNM,
        TrivialAugment,
        AutoAugment,
        CTAugment,
        CTAugmentCutout,
        CTAugmentProbe,
    )
}
"""Every policy a recipe can name; `semisup.register` adds one."""


def check_policy(settings: Any, at: str = "") -> list[str]:
    """Return what is wrong with a policy as a recipe has it, one sentence each; an empty list if nothing.

    Args:
        settings: `policy`, a key of `POLICIES`, and keywords for its constructor.
        at: key of the mapping.
    """
    return check_named(settings, "policy", POLICIES, "policy", at)


def build_policy(name: str, options: Mapping[str, object], *, flip: bool) -> Policy:
    """Make the policy that a recipe names.

    Args:
        name: a key of `POLICIES`.
        options: keywords for its constructor.
        flip: whether the data set allows mirroring; `flip` in `options` wins.

    Raises:
        SemisupError: unknown policy or option, or a value out of its range; all of them at once.
    """
    raise_all(check_policy({"policy": name, **options}), f"augmentation policy '{name}'")
    return POLICIES[name](**{"flip": flip, **options})  # type: ignore[arg-type]  # checked by name, one line above


@lru_cache(maxsize=32)
def _strengths(pool: tuple[str, ...], ranges: str) -> Tensor:
    """(P, 10) argument of each photometric operation at each level; row 0 and column 0 order as in `pool`, level."""

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
    shares, size = torch.arange(-LEVELS, LEVELS) / LEVELS, (height, width)
    return torch.stack(
        [geometric_matrices(name, shares, size, degrees=30, shear=0.3, right=0.3, down=0.3) for name in pool]
    )

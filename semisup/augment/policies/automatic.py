"""AutoAugment and what followed it: RandAugment as first published, and TrivialAugment.

All make the weak view, run a few operations of one list at whole levels, and paint a square (Cutout), as their authors
do on CIFAR. Resampling is bilinear (there: nearest), and two geometric operations in a row are one resampling.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import torch
from torch import Generator, Tensor

from semisup.augment.policies.operations import GEOMETRIC, IDENTITY, PHOTOMETRIC, geometric_matrices, weak_then
from semisup.augment.policies.policy import (
    Drawn,
    Policy,
    Shape,
    draw_flips,
    draw_shifts,
    fill_for,
)
from semisup.options import Color, Fraction, Range

__all__ = ["OPERATIONS", "AutoAugment", "Listed", "RandAugmentNM", "TrivialAugment"]

OPERATIONS = (IDENTITY, *PHOTOMETRIC, *GEOMETRIC)
NOT_FOR_GRAY = ("color", "invert", "solarize")
"""Left out for one channel, where the background is often black: "color" does nothing there, "invert" turns the
background white, "solarize" sinks bright objects into it."""


@dataclass(frozen=True)
class Ranges:
    """Strengths of the operations: from those at level 0 to those at the highest level."""

    enhance: tuple[float, float]
    """Factor of brightness, color, contrast and sharpness."""
    bits: tuple[int, int]
    """That posterize keeps."""
    degrees: float
    shear: float
    side: float
    """Translation, as a fraction of the side."""
    most: float
    """Translation in pixels at most."""

    def strength(self, name: str, level: int, levels: int) -> float:
        """Argument of an operation on light at a level of so many."""
        if name == "posterize":
            return max(1, self.bits[0] + int(level * (self.bits[1] - self.bits[0]) / levels))  # PIL knows no 0 bits
        if name == "solarize":
            return (256 - int(256 * level / levels)) / 255
        return self.enhance[0] + level * (self.enhance[1] - self.enhance[0]) / levels

    def matrices(self, name: str, shares: Tensor, height: int, width: int) -> Tensor:
        """(L, 2, 3) of an operation at (L,) shares in [-1, 1]; identity for those on light."""
        right, down = (min(self.side, self.most / length) for length in (width, height))
        return geometric_matrices(
            name, shares, (height, width), degrees=self.degrees, shear=self.shear, right=right, down=down
        )


@lru_cache(maxsize=8)
def _strengths(ranges: Ranges, levels: int) -> Tensor:
    """(P, levels + 1) arguments of the operations on light; column: level."""
    return torch.tensor([[ranges.strength(name, n, levels) for n in range(levels + 1)] for name in OPERATIONS])


@lru_cache(maxsize=32)
def _matrices(ranges: Ranges, levels: int, height: int, width: int) -> Tensor:
    """(P, 2 levels + 1, 2, 3) matrices; column: level + levels, since geometry goes either way."""
    shares = torch.arange(-levels, levels + 1) / levels
    return torch.stack([ranges.matrices(name, shares, height, width) for name in OPERATIONS])


STANDARD = Ranges(enhance=(0.1, 1.9), bits=(4, 0), degrees=30, shear=0.3, side=10 / 32, most=torch.inf)
"""AutoAugment's code for CIFAR (its copy in google-research/fixmatch, third_party/auto_augment/augmentations.py).

Its paper has 4 to 8 bits for posterize, and translations up to 150 pixels of 331."""
WIDE = Ranges(enhance=(0.01, 2.0), bits=(8, 2), degrees=135, shear=0.99, side=1.0, most=32)
"""TrivialAugment's wide space (automl/trivialaugment, aug_lib.py)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed(Policy):
    """The weak view, some operations at whole levels, Cutout. Subclasses say which.

    Args:
        shift: largest move along each axis as a fraction of that side, as in `weak`, 0 to 0.5.
        cutout: side of the painted square as a fraction of the shorter side; 0 for none (as for ImageNet).
        fill: color of cutout and of what geometry brings into the frame, a number or [red, green, blue]. Null: gray
            (0.5) in color, black for one channel, where that is the background.
    """

    shift: Annotated[float, Range(0, 0.5)] = 0.125
    cutout: Fraction = 0.5
    fill: Color | None = None
    ranges: ClassVar[Ranges] = STANDARD
    levels: ClassVar[int] = 10

    @abstractmethod
    def draw_operations(self, count: int, channels: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw (N, K) places in `OPERATIONS` and (N, K) levels, 0 to `levels`."""

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw the weak view's numbers and, per image, what follows.

        `ops` (N, K), places in `OPERATIONS`; `levels` (N, K), with a sign; `centers` (N, 2), row and column of
        the cutout.
        """
        count, channels, height, width = shape
        choice, levels = self.draw_operations(count, channels, generator)
        signs = torch.randint(2, levels.shape, generator=generator, device="cpu") * 2 - 1
        rows = torch.randint(height, (count,), generator=generator, device="cpu")
        columns = torch.randint(width, (count,), generator=generator, device="cpu")
        return {
            "shifts": draw_shifts(shape, self.shift, generator),
            "flips": draw_flips(shape, self.flip, generator),
            "ops": choice,
            "levels": levels * signs,
            "centers": torch.stack([rows, columns], dim=1),
        }

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Weak view, the operations in order, cutout."""
        arguments = self.arguments(drawn, images.shape)
        return weak_then(images, drawn, OPERATIONS, arguments, self.cutout, fill_for(images, self.fill))

    def arguments(self, drawn: Drawn, shape: Shape) -> tuple[Tensor, Tensor]:
        """Return what the drawn operations do: (N, K) strengths and (N, K, 2, 3) matrices, see `apply_in_turn`."""
        choice, levels = drawn["ops"], drawn["levels"]
        strengths = _strengths(self.ranges, self.levels)[choice, levels.abs()]
        return strengths, _matrices(self.ranges, self.levels, shape[2], shape[3])[choice, levels + self.levels]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugmentNM(Listed):
    """RandAugment as first published: N operations drawn with replacement, all at one level M.

    Source: E. Cubuk et al., arXiv:1909.13719, with the strengths of AutoAugment's code, which grow with M for every
    operation (in the authors' later code posterize and solarize weaken). FixMatch's variant is "randaugment".

    Args:
        operations: N, 1 to 6.
        magnitude: M, 0 to 10, of all operations. Paper, for a ResNet-50 on ImageNet: N = 2, M = 9; both are to be
            searched for.
    """

    name: ClassVar = "randaugment_nm"
    operations: Annotated[int, Range(1, 6)] = 2
    magnitude: Annotated[int, Range(0, 10)] = 9

    def draw_operations(self, count: int, channels: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw each of the paper's 14 operations (11 for one channel) equally often."""
        choice = _draw_places(channels, (count, self.operations), generator)
        return choice, torch.full_like(choice, self.magnitude)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrivialAugment(Listed):
    """One operation at one level, both drawn evenly (S. Mueller and F. Hutter, arXiv:2103.10158; the wide space).

    Translations go to 32 pixels, or to the side of images smaller than that.
    """

    name: ClassVar = "trivialaugment"
    ranges: ClassVar[Ranges] = WIDE
    levels: ClassVar[int] = 30

    def draw_operations(self, count: int, channels: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw each of the paper's 14 operations (11 for one channel) and each of 31 levels equally often."""
        choice = _draw_places(channels, (count, 1), generator)
        return choice, torch.randint(self.levels + 1, (count, 1), generator=generator, device="cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoAugment(Listed):
    """One of 25 learned pairs of operations, each operation with a probability and a level of its own.

    Source: E. Cubuk et al., arXiv:1805.09501, appendix tables. Learned from the labels of all of that data set's
    training images: with few labels of the same data, the comparison with other policies is not a fair one.

    Args:
        learned_on: "cifar10", "svhn" or "imagenet".
    """

    name: ClassVar = "autoaugment"
    learned_on: Literal["cifar10", "svhn", "imagenet"] = "cifar10"

    def draw_operations(self, count: int, channels: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draw a pair evenly; what is not applied, or not for one channel, becomes identity."""
        places, chances, levels = _pairs(self.learned_on, channels)
        pair = torch.randint(len(places), (count,), generator=generator, device="cpu")
        skipped = torch.rand(count, 2, generator=generator, device="cpu") >= chances[pair]
        return places[pair].masked_fill(skipped, OPERATIONS.index(IDENTITY)), levels[pair]


def _draw_places(channels: int, shape: tuple[int, int], generator: Generator) -> Tensor:
    """Places of the paper's operations ("invert" is AutoAugment's alone)."""
    without = ("invert", *NOT_FOR_GRAY) if channels == 1 else ("invert",)
    pool = torch.tensor([place for place, name in enumerate(OPERATIONS) if name not in without])
    return pool[torch.randint(len(pool), shape, generator=generator, device="cpu")]


@lru_cache(maxsize=6)
def _pairs(learned_on: str, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """(25, 2) places, probabilities and levels."""
    pairs = [[half.split() for half in line.split(",")] for line in LEARNED[learned_on].strip().splitlines()]
    identity = OPERATIONS.index(IDENTITY)
    return (
        torch.tensor(
            [
                [identity if channels == 1 and name in NOT_FOR_GRAY else OPERATIONS.index(name) for name, _, _ in pair]
                for pair in pairs
            ]
        ),
        torch.tensor([[float(chance) for _, chance, _ in pair] for pair in pairs]),
        torch.tensor([[int(level) for _, _, level in pair] for pair in pairs]),
    )


LEARNED = {
    "cifar10": """
        invert 0.1 7, contrast 0.2 6
        rotate 0.7 2, translate_x 0.3 9
        sharpness 0.8 1, sharpness 0.9 3
        shear_y 0.5 8, translate_y 0.7 9
        autocontrast 0.5 8, equalize 0.9 2
        shear_y 0.2 7, posterize 0.3 7
        color 0.4 3, brightness 0.6 7
        sharpness 0.3 9, brightness 0.7 9
        equalize 0.6 5, equalize 0.5 1
        contrast 0.6 7, sharpness 0.6 5
        color 0.7 7, translate_x 0.5 8
        equalize 0.3 7, autocontrast 0.4 8
        translate_y 0.4 3, sharpness 0.2 6
        brightness 0.9 6, color 0.2 8
        solarize 0.5 2, invert 0.0 3
        equalize 0.2 0, autocontrast 0.6 0
        equalize 0.2 8, equalize 0.6 4
        color 0.9 9, equalize 0.6 6
        autocontrast 0.8 4, solarize 0.2 8
        brightness 0.1 3, color 0.7 0
        solarize 0.4 5, autocontrast 0.9 3
        translate_y 0.9 9, translate_y 0.7 9
        autocontrast 0.9 2, solarize 0.8 3
        equalize 0.8 8, invert 0.1 3
        translate_y 0.7 9, autocontrast 0.9 1
    """,
    "svhn": """
        shear_x 0.9 4, invert 0.2 3
        shear_y 0.9 8, invert 0.7 5
        equalize 0.6 5, solarize 0.6 6
        invert 0.9 3, equalize 0.6 3
        equalize 0.6 1, rotate 0.9 3
        shear_x 0.9 4, autocontrast 0.8 3
        shear_y 0.9 8, invert 0.4 5
        shear_y 0.9 5, solarize 0.2 6
        invert 0.9 6, autocontrast 0.8 1
        equalize 0.6 3, rotate 0.9 3
        shear_x 0.9 4, solarize 0.3 3
        shear_y 0.8 8, invert 0.7 4
        equalize 0.9 5, translate_y 0.6 6
        invert 0.9 4, equalize 0.6 7
        contrast 0.3 3, rotate 0.8 4
        invert 0.8 5, translate_y 0.0 2
        shear_y 0.7 6, solarize 0.4 8
        invert 0.6 4, rotate 0.8 4
        shear_y 0.3 7, translate_x 0.9 3
        shear_x 0.1 6, invert 0.6 5
        solarize 0.7 2, translate_y 0.6 7
        shear_y 0.8 4, invert 0.8 8
        shear_x 0.7 9, translate_y 0.8 3
        shear_y 0.8 5, autocontrast 0.7 3
        shear_x 0.7 2, invert 0.1 5
    """,
    "imagenet": """
        posterize 0.4 8, rotate 0.6 9
        solarize 0.6 5, autocontrast 0.6 5
        equalize 0.8 8, equalize 0.6 3
        posterize 0.6 7, posterize 0.6 6
        equalize 0.4 7, solarize 0.2 4
        equalize 0.4 4, rotate 0.8 8
        solarize 0.6 3, equalize 0.6 7
        posterize 0.8 5, equalize 1.0 2
        rotate 0.2 3, solarize 0.6 8
        equalize 0.6 8, posterize 0.4 6
        rotate 0.8 8, color 0.4 0
        rotate 0.4 9, equalize 0.6 2
        equalize 0.0 7, equalize 0.8 8
        invert 0.6 4, equalize 1.0 8
        color 0.6 4, contrast 1.0 8
        rotate 0.8 8, color 1.0 2
        color 0.8 8, solarize 0.8 7
        sharpness 0.4 7, invert 0.6 8
        shear_x 0.6 5, equalize 1.0 9
        color 0.4 0, equalize 0.6 3
        equalize 0.4 7, solarize 0.2 4
        solarize 0.6 5, autocontrast 0.6 5
        invert 0.6 4, equalize 1.0 8
        color 0.6 4, contrast 1.0 8
        equalize 0.8 8, equalize 0.6 3
    """,
}
"""Data set -> pairs of (operation, probability, level of ten); operations without a strength ignore the level."""

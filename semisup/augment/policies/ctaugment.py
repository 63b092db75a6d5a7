"""CTAugment: strong augmentation whose strengths are learned while training, from labeled images.

The strength of each operation falls into bins, and each bin has a rate: how well the network still tells the label of
images augmented so. Bins of low rate are not drawn. The rates are a tensor of the method, and so in its checkpoints;
the policies here are handed it and keep nothing. At each step

- a *probe* of each labeled image is made: two operations, each in a bin drawn evenly, whatever the rates are;
- the network's prediction for the probe moves the rates of those bins (`update_rates`);
- the *views* to train on are made: two operations, each in a bin drawn by the rates as the step before left them.

Which operation an image drew is known to the host. How strong it is depends on the rates, which never leave the device.
A view takes one and a half to two times as long as RandAugment's, which leaves half of its operations out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from semisup.augment.kernels import ops
from semisup.augment.policies.adaptive import Adaptive, Probe
from semisup.augment.policies.policy import (
    Augmentation,
    Drawn,
    Part,
    Shape,
    apply_in_turn,
    check_batch,
    draw_flips,
    draw_for,
    draw_shifts,
    fill_for,
    moved,
    pixels,
    usable,
)
from semisup.options import Color, Fraction, Range, subset

__all__ = ["BINS", "OPERATIONS", "CTAugment", "CTAugmentCutout", "CTAugmentProbe", "new_rates", "update_rates"]

BINS = 17
DEPTH = 2  # operations on each image
DECAY = 0.99
"""Of a rate at each of its probes. This and the depth: google-research/fixmatch, cta/lib/train.py; the bins:
libml/ctaugment.py there."""


def _partly(operation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Blend the image with the result: level 0 is the image, level 1 the result."""
    return lambda images, values: torch.lerp(images, operation(images), values[:, :1, None, None])


def _enhance(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Factors from 0.1 to 2."""
    return lambda images, values: operation(images, 0.1 + 1.9 * values[:, 0])


def _cutout(images: Tensor, values: Tensor, fill: float | Tensor) -> Tensor:
    """Paint a square, from one pixel to half the shorter side."""
    sides = 1 + (values[:, 0] * 0.499 * min(images.shape[2:])).floor()
    return ops.cutout(images, values[:, 1:], sides, fill)


LIGHT: dict[str, Callable[..., Tensor]] = {
    "autocontrast": _partly(ops.autocontrast),
    "blur": _partly(ops.blur),
    "brightness": _enhance(ops.brightness),
    "color": _enhance(ops.color),
    "contrast": _enhance(ops.contrast),
    "cutout": _cutout,
    "equalize": _partly(ops.equalize),
    "invert": _partly(ops.invert),
    "posterize": lambda images, values: ops.posterize(images, 1 + (values[:, 0] * 8).floor()),
    "sharpness": _enhance(ops.sharpness),
    "smooth": lambda images, values: ops.sharpness(images, 1 - values[:, 0]),
    "solarize": lambda images, values: ops.solarize(images, (values[:, 0] * 256).floor() / 255),
}
"""Operations on pixels in place: images and (N, 3) values, a level in [0, 1) and a pixel (row, column), to images; and
for cutout its color."""

GEOMETRY: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "rescale": lambda levels, size: ops.zoom(1 / (1 - 0.5 * levels)),
    "rotate": lambda levels, size: ops.rotation(45 * (2 * levels - 1), size),
    "shear_x": lambda levels, size: ops.shear_x(0.3 * (2 * levels - 1), size),
    "shear_y": lambda levels, size: ops.shear_y(0.3 * (2 * levels - 1), size),
    "translate_x": lambda levels, size: ops.translation(0.3 * (2 * levels - 1), 0 * levels),
    "translate_y": lambda levels, size: ops.translation(0 * levels, 0.3 * (2 * levels - 1)),
}
"""Operations that resample: (N,) levels in [0, 1) and (H, W) to (N, 2, 3) matrices."""

OPERATIONS = ("identity", *LIGHT, *GEOMETRY)
"""Rows of the rates."""
# "invert" would turn the black background of one-channel sets white, "solarize" would sink bright objects into it.
GRAY_POOL = tuple(name for name in OPERATIONS if name not in ("color", "invert", "solarize"))

BINS_OF = torch.tensor([{"identity": 1, "posterize": 8}.get(name, BINS) for name in OPERATIONS])
"""(19,) bins of each operation; posterize has one for each number of bits."""


# Rates ---------------------------------------------------------------------------------------------------------------


def new_rates() -> Tensor:
    """(19, 17) float32: 1 for each bin of each operation, -1 where an operation has no such bin."""
    return torch.tensor([[1.0] * count + [-1.0] * (BINS - count) for count in BINS_OF.tolist()])


def update_rates(rates: Tensor, bins: Tensor, matches: Tensor) -> None:
    """Move the rate of each bin that was probed: rate = 0.99 rate + 0.01 match, once for each of its probes, in order.

    As google-research/fixmatch does for CIFAR; its code for ImageNet takes the mean of a batch's probes of a bin, and
    so moves a bin once. Nothing here waits for the device, and sums are made in a fixed order.

    Args:
        rates: (19, 17), changed in place.
        bins: (N, 2) int64, of `CTAugmentProbe.probe`.
        matches: (N,) in [0, 1]: 1 - |p - onehot(y)|_1 / 2, which is p_y.
    """
    hits = F.one_hot(bins.flatten(), rates.numel())  # (2N, cells)
    matches = matches.repeat_interleave(bins.shape[1])[:, None]
    # m_1, ..., m_n make of r: d^n r + (1 - d) (d^(n-1) m_1 + ... + m_n).
    probes = hits.sum(0)
    after = probes - hits.cumsum(0)  # probes of the same bin that come later
    added = (hits * (1 - DECAY) * DECAY**after * matches).sum(0)
    rates.copy_(rates * DECAY ** probes.view_as(rates) + added.view_as(rates))


def _weights(rates: Tensor, threshold: float) -> Tensor:
    """(19, 17) in proportion to which bins are drawn; the best of each operation has 1, those below `threshold` 0."""
    lifted = rates + (1 - DECAY)  # so that not all are 0
    shares = lifted / lifted.amax(1, keepdim=True)
    return torch.where(shares < threshold, 0.0, shares)


def _draw_bins(weights: Tensor, races: Tensor) -> Tensor:
    """(...) int64 bins, each drawn in proportion to its weight by a race: the largest u^(1 / weight) wins.

    Source: Efraimidis and Spirakis 2006. A bin of weight 0 never wins; by a cumulative sum it could, in its last bit.

    Args:
        weights: (..., 17) >= 0, some above.
        races: (..., 17), evenly drawn in (0, 1).
    """
    return (races.log() / weights).argmax(-1)


# The policies --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTAugment(Adaptive):
    """ReMixMatch's strong view: the weak view, then two operations whose strengths are drawn by learned rates.

    Source: D. Berthelot et al., arXiv:1911.09785, section 3.2, and google-research/fixmatch, libml/ctaugment.py: bins
    in proportion to (rate + 0.01) / max, where that is at least the threshold, a level drawn evenly within the bin.
    (The older code in google-research/remixmatch draws between the middles of neighboring bins.) The two operations
    are drawn with replacement and always applied, in that order. Differences: resampling is bilinear (there: nearest;
    for "rescale" one of six filters, drawn by rates of its own), two geometric operations are composed into one
    resampling, and translations go to 0.3 of the side, as the paper says (there: to 0.3 pixels, which is nothing).

    Args:
        shift: largest move along each axis as a fraction of that side, as in `weak`, 0 to 0.5.
        pool: names of the operations to draw from. Null: all 19 of the paper; for one channel the 16 without "color"
            (does nothing there), "invert" (turns a black background white) and "solarize" (sinks bright objects
            into it).
        threshold: least weight of a bin that is drawn, relative to the best of its operation, 0 to 1. Paper: 0.8.
        cutout: side of a square painted last, as a fraction of the shorter side; 0 for none.
        fill: color of cutout and of what geometry brings into the frame, a number or [red, green, blue]. Null: as in
            the authors' code gray (0.5) for cutout and black for geometry; for one channel the background.
    """

    name: ClassVar = "ctaugment"
    shift: Annotated[float, Range(0, 0.5)] = 0.125
    pool: Annotated[Sequence[str], subset(OPERATIONS)] | None = None
    threshold: Fraction = 0.8
    cutout: Fraction = 0.0
    fill: Color | None = None

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw the numbers of `_draw` and `races` (N, 2, 17) in (0, 1): one for each bin, see `apply`."""
        races = torch.rand(shape[0], DEPTH, BINS, generator=generator, device="cpu").clamp_(min=1e-30)
        return _draw(self, shape, generator) | {"races": races}

    def apply(self, images: Tensor, drawn: Drawn, rates: Tensor | None = None) -> Tensor:
        """Augment; without `rates` (19, 17) all bins are as likely as each other, as at the start."""
        weights = _weights(moved(new_rates() if rates is None else rates, images), self.threshold)
        bins = _draw_bins(weights[moved(drawn["ops"], images)], moved(drawn["races"], images))
        out = _apply(images, drawn, bins, self.fill)
        side = pixels(self.cutout, min(images.shape[2:]))
        if side:
            out = ops.cutout(out, moved(drawn["centers"], images), side, fill_for(images, self.fill))
        return out.contiguous(memory_format=torch.channels_last)

    def __call__(
        self, images: Tensor, generator: Generator, rates: Tensor | None = None, *, part: Part | None = None
    ) -> Tensor:
        """Augment every image differently, see `Policy` and `apply`."""
        check_batch(images)
        return self.apply(images, draw_for(self, images.shape, generator, part), rates)

    def bound(self, learned: Tensor) -> Augmentation:
        """Return this policy drawn by rates (19, 17), by their values at each call."""
        return partial(self, rates=learned)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTAugmentCutout(CTAugment):
    """FixMatch's strong view by CTAugment: that, then Cutout (K. Sohn et al., arXiv:2001.07685, section 2.3).

    Args:
        cutout: side of the painted square as a fraction of the shorter side; 0 for none.
    """

    name: ClassVar = "ctaugment_cutout"
    cutout: Fraction = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CTAugmentProbe(Probe):
    """CTAugment's probe: the weak view, then two operations, each at a level drawn evenly.

    Args:
        shift: largest move along each axis as a fraction of that side, as in `weak`, 0 to 0.5.
        pool: names of the operations to draw from, as of the views that the rates are for. Null: as of `ctaugment`.
        fill: color of what geometry brings into the frame, as of `ctaugment`.
    """

    name: ClassVar = "ctaugment_probe"
    shift: Annotated[float, Range(0, 0.5)] = 0.125
    pool: Annotated[Sequence[str], subset(OPERATIONS)] | None = None
    fill: Color | None = None
    trace_width: ClassVar[int] = DEPTH

    def draw(self, shape: Shape, generator: Generator) -> Drawn:
        """Draw the numbers of `_draw` and `bins` (N, 2), of those that the operation has."""
        drawn = _draw(self, shape, generator)
        places = torch.rand(shape[0], DEPTH, generator=generator, device="cpu")
        return drawn | {"bins": (places * BINS_OF[drawn["ops"]]).long()}

    def apply(self, images: Tensor, drawn: Drawn) -> Tensor:
        """Augment."""
        out = _apply(images, drawn, moved(drawn["bins"], images), self.fill)
        return out.contiguous(memory_format=torch.channels_last)

    def probe(self, images: Tensor, generator: Generator, *, part: Part | None = None) -> tuple[Tensor, Tensor]:
        """Augment, and tell by what.

        Returns:
            The images, and (N, 2) int64: the bins they drew, counted through all rates (17 * operation + bin); of the
            whole batch that they are a part of.
        """
        check_batch(images)
        whole = Part.or_all(part, len(images))
        drawn = self.draw((whole.count, *images.shape[1:]), generator)
        return self.apply(images, whole.of(drawn)), moved(drawn["ops"] * BINS + drawn["bins"], images)


def _draw(policy: CTAugment | CTAugmentProbe, shape: Shape, generator: Generator) -> Drawn:
    """Draw all but the bins: the weak view's numbers and, per image, what follows.

    `ops` (N, 2), places in `OPERATIONS`; `within` (N, 2), where in its bin the level lies, in [0, 1); `places`
    (N, 2, 2) and `centers` (N, 2), row and column of squares to paint.
    """
    count, channels = shape[:2]
    pool = torch.tensor([OPERATIONS.index(name) for name in usable(policy.pool, OPERATIONS, GRAY_POOL, channels)])
    pixel = torch.rand(count, DEPTH + 1, 2, generator=generator, device="cpu").mul_(torch.tensor(shape[2:])).floor_()
    return {
        "shifts": draw_shifts(shape, policy.shift, generator),
        "flips": draw_flips(shape, policy.flip, generator),
        "ops": pool[torch.randint(len(pool), (count, DEPTH), generator=generator, device="cpu")],
        "within": torch.rand(count, DEPTH, generator=generator, device="cpu"),
        "places": pixel[:, :DEPTH],
        "centers": pixel[:, DEPTH],
    }


def _apply(images: Tensor, drawn: Drawn, bins: Tensor, fill: float | Sequence[float] | None) -> Tensor:
    """Make the weak view, and run the two operations in `bins` (N, 2), which are on the images' device."""
    light = LIGHT | {"cutout": partial(_cutout, fill=fill_for(images, fill))}
    choice, size = drawn["ops"], (images.shape[2], images.shape[3])
    levels = (bins + moved(drawn["within"], images)) / moved(BINS_OF[choice], images)
    values = torch.cat([levels[:, :, None], moved(drawn["places"], images)], dim=2)
    flat = levels.flatten()
    still = ops.translation(0 * flat, 0 * flat)
    all_of_them = torch.stack([still, *(make(flat, size) for make in GEOMETRY.values())])  # (7, 2N, 2, 3)
    which = torch.tensor([1 + list(GEOMETRY).index(name) if name in GEOMETRY else 0 for name in OPERATIONS])
    pick = moved(which[choice.flatten()], images)
    return apply_in_turn(
        ops.translate_reflect(images, moved(drawn["shifts"], images), moved(drawn["flips"], images)),
        choice,
        values,
        [light.get(name) for name in OPERATIONS],
        all_of_them[pick, torch.arange(len(flat), device=flat.device)].view(*choice.shape, 2, 3),
        which > 0,
        0.0 if fill is None else fill_for(images, fill),
    )

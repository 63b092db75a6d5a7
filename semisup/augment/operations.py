"""The operations that AutoAugment named, which RandAugment and its successors draw from."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from semisup.augment import ops

__all__ = ["GEOMETRIC", "IDENTITY", "PHOTOMETRIC"]

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
"""Operations on light and colour: images and (N,) strengths to images."""

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
IDENTITY = "identity"

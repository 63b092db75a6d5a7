"""The operations that AutoAugment named, which RandAugment and its successors draw from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from semisup.augment.kernels import ops

__all__ = ["GEOMETRIC", "IDENTITY", "PHOTOMETRIC", "geometric_matrices"]

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
"""Operations on light and color: images and (N,) strengths to images."""

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
IDENTITY = "identity"


def geometric_matrices(
    name: str, shares: Tensor, size: tuple[int, int], *, degrees: float, shear: float, right: float, down: float
) -> Tensor:
    """(L, 2, 3) matrices of an operation for `semisup.augment.kernels.ops.affine`; identity for those on light.

    Args:
        name: of the operation.
        shares: (L,) strengths in [-1, 1], of the full ones below.
        size: (H, W).
        degrees: of a turn.
        shear: pixels per pixel.
        right: translation, as a fraction of the width.
        down: likewise of the height.
    """
    still = torch.zeros_like(shares)
    builders: dict[str, Callable[[], Tensor]] = {
        "rotate": lambda: ops.rotation(degrees * shares, size),
        "shear_x": lambda: ops.shear_x(shear * shares, size),
        "shear_y": lambda: ops.shear_y(shear * shares, size),
        "translate_x": lambda: ops.translation(right * shares, still),
        "translate_y": lambda: ops.translation(still, down * shares),
    }
    return builders.get(name, lambda: ops.translation(still, still))()

"""The operations that AutoAugment named, which RandAugment and its successors draw from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from semisup.augment.kernels import ops
from semisup.augment.policies.policy import Drawn, apply_in_turn, moved, pixels

__all__ = ["GEOMETRIC", "IDENTITY", "PHOTOMETRIC", "geometric_matrices", "weak_then"]

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


def weak_then(
    images: Tensor,
    drawn: Drawn,
    pool: Sequence[str],
    arguments: tuple[Tensor, Tensor],
    cutout: float,
    fill: float | Tensor,
) -> Tensor:
    """Return the weak view of images (N, C, H, W), then the drawn operations in order, then a cutout.

    Args:
        images: stay as they are.
        drawn: `shifts`, `flips`, `ops` (N, K) places in `pool`, and `centers`.
        pool: names of operations.
        arguments: (N, K) strengths and (N, K, 2, 3) matrices of the drawn operations.
        cutout: side of the painted square as a part of the shorter side; 0: none.
        fill: color of the cutout and of what geometry brings into the frame.
    """
    strengths, matrices = arguments
    out = apply_in_turn(
        ops.translate_reflect(images, moved(drawn["shifts"], images), moved(drawn["flips"], images)),
        drawn["ops"],
        strengths,
        [PHOTOMETRIC.get(name) for name in pool],
        matrices,
        torch.tensor([name in GEOMETRIC for name in pool]),
        fill,
    )
    side = pixels(cutout, min(images.shape[2:]))
    if side:
        out = ops.cutout(out, moved(drawn["centers"], images), side, fill)
    return out.contiguous(memory_format=torch.channels_last)

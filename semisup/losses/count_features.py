"""What is counted in an image is the sum of what is counted in its parts."""

from __future__ import annotations

from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision

__all__ = ["counting"]


def counting(whole: Tensor, parts: Tensor, other: Tensor, margin: float) -> Tensor:
    """Return the mean over N of `|whole - sum of parts|^2 + max(0, margin - |other - sum of parts|^2)`.

    Noroozi et al. 2017, arXiv:1708.06734, eq. 4. Without the second term 0 would count everything right: all counts 0
    cost `margin`. A public re-implementation (clvrai) takes the maximum element by element; the paper's is of the
    squared length, as here. Nothing is detached.

    Args:
        whole: (N, D) counts of the image.
        parts: (N, P, D) counts of its P parts.
        other: (N, D) counts of another image.
        margin: >= 0.

    Raises:
        SemisupError: a shape other than these, or a negative margin.
    """
    if whole.ndim != 2 or not len(whole) or other.shape != whole.shape:
        got = f"{tuple(whole.shape)} and {tuple(other.shape)}"
        raise SemisupError(f"whole and other must both be (N, D) with N >= 1, got shapes {got}")
    if parts.ndim != 3 or parts.shape[::2] != whole.shape:
        raise SemisupError(f"parts must be ({len(whole)}, P, {whole.shape[1]}), got shape {tuple(parts.shape)}")
    if not margin >= 0:
        raise SemisupError(f"margin must be at least 0, got {margin}")
    total = full_precision(parts).sum(1)
    same = (full_precision(whole) - total).square().sum(1)
    different = (full_precision(other) - total).square().sum(1)
    return (same + (margin - different).clamp(min=0)).mean()

"""Distribution alignment: pull guessed labels towards the class frequencies they should have on average."""

from __future__ import annotations

from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision

__all__ = ["align_distribution"]


def align_distribution(probs: Tensor, target: Tensor, model: Tensor, eps: float = 1e-6) -> Tensor:
    """Return `probs * (target + eps) / (model + eps)`, renormalized per row.

    ReMixMatch, arXiv:1911.09785, section 3.1. Where `model` equals `target` nothing changes. Align first, sharpen
    after. Nothing is detached here: guessed labels are targets, and the caller detaches those.

    Args:
        probs: (N, C) predictions, rows sum to 1.
        target: (C,) class frequencies wanted.
        model: (C,) running mean of the model's *unaligned* predictions.
        eps: keeps a class the model never predicts from dividing by 0; the reference code's value.

    Raises:
        SemisupError: `target` or `model` is not (C,).
    """
    for name, frequencies in (("target", target), ("model", model)):
        if frequencies.shape != probs.shape[1:]:
            got = tuple(frequencies.shape)
            raise SemisupError(f"{name} must have shape ({probs.shape[1]},), one per class, got {got}")
    aligned = full_precision(probs) * (full_precision(target) + eps) / (full_precision(model) + eps)
    return aligned / aligned.sum(dim=1, keepdim=True)

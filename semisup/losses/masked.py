"""Errors of what was predicted for hidden places."""

from __future__ import annotations

from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision

__all__ = ["masked_mse"]


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over hidden places of the mean squared error of their D numbers; 0 if nothing is hidden.

    Masked autoencoders (arXiv:2111.06377, sec. 3) and MaskFeat (arXiv:2112.09133, sec. 2): what is in sight teaches
    nothing. A place counts alike whichever image it is in, as in facebookresearch/mae.

    Args:
        prediction: (N, T, D).
        target: (N, T, D). Gradient flows into it: detach what is a target and not a variable.
        mask: (N, T), bool or float weights; 1 where hidden.

    Raises:
        SemisupError: a shape other than these.
    """
    if prediction.shape != target.shape:
        raise SemisupError(
            f"the target must have the shape of the prediction {tuple(prediction.shape)}, got {tuple(target.shape)}"
        )
    if mask.shape != prediction.shape[:2]:
        raise SemisupError(f"mask must have shape {tuple(prediction.shape[:2])}, got {tuple(mask.shape)}")
    errors = (full_precision(prediction) - full_precision(target)).square().mean(dim=2)
    weights = mask.to(errors.dtype)
    return (errors * weights).sum() / weights.sum().clamp(min=1)

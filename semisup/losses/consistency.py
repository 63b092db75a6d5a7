"""Two predictions for one image should agree."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision

__all__ = ["kl_consistency", "mse_consistency", "sharpen"]


def mse_consistency(logits: Tensor, target_probs: Tensor) -> Tensor:
    """Return the mean over N of `||softmax(logits) - target||^2 / C`, in [0, 2/C].

    Π-model (arXiv:1610.02242), Mean Teacher (arXiv:1703.01780) and, over the mixed images, the unlabeled term of
    MixMatch (arXiv:1905.02249, eq. 4). Summing over classes instead would be C times too strong.

    Args:
        logits: (N, C).
        target_probs: (N, C). Not detached here: the paper of the Π-model sends gradient through both branches, Mean
            Teacher and MixMatch through one. The caller decides by detaching the target.

    Raises:
        SemisupError: the two shapes differ.
    """
    _check_same_shape(logits, target_probs)
    return F.mse_loss(F.softmax(full_precision(logits), dim=1), full_precision(target_probs))


def kl_consistency(logits: Tensor, target_logits: Tensor) -> Tensor:
    """Return the mean over N of KL(softmax(target_logits) || softmax(logits)), in nats.

    UDA (arXiv:1904.12848) and VAT (arXiv:1704.03976, eq. 5: clean || perturbed; the TensorFlow code of FixMatch has it
    the other way round). Pass `target_logits / T` for a sharpened target.

    Args:
        logits: (N, C) of the branch that learns.
        target_logits: (N, C). Not detached here, as in `mse_consistency`.

    Raises:
        SemisupError: the two shapes differ.
    """
    _check_same_shape(logits, target_logits)
    log_probs = F.log_softmax(full_precision(logits), dim=1)
    log_target = F.log_softmax(full_precision(target_logits), dim=1)
    # "batchmean" is the KL; "mean" would divide by C as well.
    return F.kl_div(log_probs, log_target, reduction="batchmean", log_target=True)


def sharpen(probs: Tensor, temperature: float) -> Tensor:
    """Return `probs^(1/T)` renormalized per row, which is softmax(z / T) for `probs = softmax(z)`.

    MixMatch, arXiv:1905.02249, eq. 7. T = 1 changes nothing, T -> 0 gives the argmax.

    Args:
        probs: (N, C), rows with a positive sum.
        temperature: T > 0.

    Raises:
        SemisupError: `temperature` is not positive.
    """
    if not temperature > 0:
        raise SemisupError(f"temperature must be positive, got {temperature}")
    probs = full_precision(probs)
    # The row's maximum becomes 1 first: 0.1^(1/T) underflows float32 from T = 0.02 on and the row would be 0/0. It
    # cancels out, hence carries no gradient.
    powers = (probs / probs.detach().amax(dim=1, keepdim=True)) ** (1.0 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def _check_same_shape(logits: Tensor, target: Tensor) -> None:
    if logits.shape != target.shape:
        raise SemisupError(f"the target must have the shape of logits {tuple(logits.shape)}, got {tuple(target.shape)}")

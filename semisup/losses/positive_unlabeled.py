"""Learning a class from examples of it and from unlabeled ones, of which some belong to it too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision

__all__ = ["positive_unlabeled"]


def positive_unlabeled(positive: Tensor, unlabeled: Tensor, prior: float) -> Tensor:
    """Return the risk `prior E_P l(z) + max(0, E_U l(-z) - prior E_P l(-z))`, `l(z) = log(1 + exp(-z))`.

    Kiryo et al. 2017 (nnPU), arXiv:1703.00593, eq. 6: what the unlabeled examples cost as negatives, less the positive
    ones among them; a training set can be overfitted until that difference is negative, hence the bound, beyond which
    it has no gradient. The paper's experiments use the sigmoid loss; with the logistic one `sigmoid(z)` is the
    probability that an unlabeled example is positive.

    Args:
        positive: (P,) logits of examples of the class, P >= 1.
        unlabeled: (U,) logits of unlabeled examples, U >= 1.
        prior: part of the unlabeled examples that belongs to the class, in [0, 1].

    Raises:
        SemisupError: a shape other than these, or `prior` is outside [0, 1].
    """
    for name, logits in (("positive", positive), ("unlabeled", unlabeled)):
        if logits.ndim != 1 or not len(logits):
            raise SemisupError(f"{name} must be a vector of one logit or more, got shape {tuple(logits.shape)}")
    if not 0 <= prior <= 1:
        raise SemisupError(f"prior must lie in [0, 1], got {prior}")
    p, u = full_precision(positive), full_precision(unlabeled)
    negatives = F.softplus(u).mean() - prior * F.softplus(p).mean()
    return prior * F.softplus(-p).mean() + negatives.clamp(min=0)

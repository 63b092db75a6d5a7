"""Cross-entropy in the forms plain `F.cross_entropy` does not cover.

Soft targets, masked pseudo-labels, annealed labels, entropy.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision

__all__ = ["annealed_cross_entropy", "entropy", "pseudo_label_cross_entropy", "soft_cross_entropy"]


def soft_cross_entropy(logits: Tensor, target_probs: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean over all N rows of `weight * H(target, softmax(logits))`.

    The labeled term of MixMatch (arXiv:1905.02249, eq. 3), every term of ReMixMatch (arXiv:1911.09785) and, with the
    confidence mask as weight, the consistency of UDA (arXiv:1904.12848): for a detached target its gradient equals
    that of KL(target || prediction).

    Args:
        logits: (N, C).
        target_probs: (N, C), rows sum to 1. Gradient flows into it: detach what is a target and not a variable.
        weight: (N,) per-sample factor or mask, bool or float; None means 1. The mean still runs over all N rows, so a
            weight is never divided out again.

    Raises:
        SemisupError: a shape other than these (a (N, 1) weight would silently broadcast to (N, N)).
    """
    if logits.shape != target_probs.shape:
        raise SemisupError(f"target_probs must have the shape of logits {_shape(logits)}, got {_shape(target_probs)}")
    losses = F.cross_entropy(full_precision(logits), full_precision(target_probs), reduction="none")
    if weight is None:
        return losses.mean()
    _check_one_per_row("weight", weight, logits)
    return (losses * weight.to(losses.dtype)).mean()


def pseudo_label_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over all N rows, kept or not, of `mask * CE(logits, labels)`.

    FixMatch, arXiv:2001.07685, eq. 4. Dividing by N and not by the number of kept rows is what lets the term grow with
    the network's confidence. With nothing kept, loss and gradient are exactly 0. (The `pseudo_label.py` of
    google-research/fixmatch multiplies (B,) by (B, 1), so its mean is mean(loss) * mean(mask); refused here.)

    Args:
        logits: (N, C), of the view that learns.
        labels: (N,) int64 in [0, C), also where the mask is 0.
        mask: (N,) bool, or float weights.

    Raises:
        SemisupError: `labels` or `mask` is not (N,).
    """
    _check_one_per_row("labels", labels, logits)
    _check_one_per_row("mask", mask, logits)
    losses = F.cross_entropy(full_precision(logits), labels, reduction="none")
    return (losses * mask.to(losses.dtype)).mean()


def annealed_cross_entropy(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return the mean cross-entropy of the rows whose label has a probability of at most `threshold`; 0 if none has.

    Training signal annealing of UDA, arXiv:1904.12848, section 3: what is known well enough is not learned any better.
    As in google-research/uda, the mean runs over the rows that are left; USB divides by all. Which rows these are
    carries no gradient.

    Args:
        logits: (N, C).
        labels: (N,) int64 in [0, C).
        threshold: in (0, 1]; 1 leaves no row out.

    Raises:
        SemisupError: `labels` is not (N,), or `threshold` is outside (0, 1].
    """
    _check_one_per_row("labels", labels, logits)
    if not 0 < threshold <= 1:
        raise SemisupError(f"threshold must lie in (0, 1], got {threshold}")
    losses = F.cross_entropy(full_precision(logits), labels, reduction="none")
    learned = ((-losses.detach()).exp() <= threshold).to(losses.dtype)
    return (losses * learned).sum() / learned.sum().clamp(min=1)


def entropy(logits: Tensor) -> Tensor:
    """Return the mean over N of the entropy of `softmax(logits)`, in nats, in [0, log C].

    Grandvalet and Bengio, NIPS 2004. Gradient flows through the probabilities too. At the uniform prediction it is 0,
    so the term alone cannot leave that point.

    Args:
        logits: (N, C).
    """
    log_probs = F.log_softmax(full_precision(logits), dim=1)
    return -(log_probs.exp() * log_probs).sum(dim=1).mean()


def _check_one_per_row(name: str, values: Tensor, logits: Tensor) -> None:
    if values.shape != logits.shape[:1]:
        raise SemisupError(f"{name} must have shape ({logits.shape[0]},), one per row, got {_shape(values)}")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)

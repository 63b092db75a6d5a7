"""FreeMatch's self-adaptive fairness: how the classes share the confident predictions of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision

__all__ = ["self_adaptive_fairness"]


def self_adaptive_fairness(logits: Tensor, mask: Tensor, expected: Tensor, histogram: Tensor) -> Tensor:
    """Return `sum_c a_c log b_c`, a = SumNorm(expected / histogram), b = the same of this batch's kept predictions.

    FreeMatch, arXiv:2205.07246, the term called L_f = -H(a, b): b is SumNorm(p / h) with p the mean probability of the
    kept rows and h the histogram of their most likely classes, which is constant. SumNorm divides by the sum.

    Minimized, as paper and authors' code do, it moves b *away* from a, whatever the paper's text says of equal shares:
    give it a tiny weight. For two classes and a uniform a it is -0.693 at b = (.5, .5), -1.204 at (.9, .1).

    The authors' code adds `a_c log 1e-12` for every class that no kept row has as its most likely one. That is a
    constant without a gradient, left out here. Without a kept row, value and gradient are exactly 0.

    Args:
        logits: (N, C), of the view that learns.
        mask: (N,) bool, or float weights.
        expected: (C,) running mean of the model's probabilities. No gradient is wanted into it.
        histogram: (C,) running histogram of its most likely classes; a class that never was one has no part in a.

    Raises:
        SemisupError: `mask` is not (N,), or `expected` or `histogram` not (C,).
    """
    if mask.shape != logits.shape[:1]:
        raise SemisupError(f"mask must have shape ({logits.shape[0]},), one per row, got {tuple(mask.shape)}")
    for name, frequencies in (("expected", expected), ("histogram", histogram)):
        if frequencies.shape != logits.shape[1:]:
            got = tuple(frequencies.shape)
            raise SemisupError(f"{name} must have shape ({logits.shape[1]},), one per class, got {got}")
    probs = F.softmax(full_precision(logits), dim=1)
    mask = mask.to(probs.dtype)
    # Sums for means: SumNorm divides the number of rows out again.
    counts = torch.zeros_like(probs[0]).scatter_add_(0, logits.argmax(dim=1), mask)
    a = _ratios(full_precision(expected), full_precision(histogram))
    b = _ratios((probs * mask[:, None]).sum(dim=0), counts)
    return (a * torch.where(counts > 0, b, 1.0).log()).sum()


def _ratios(shares: Tensor, counts: Tensor) -> Tensor:
    """SumNorm(shares / counts), 0 where the count is 0."""
    present = counts > 0
    ratios = torch.where(present, shares / torch.where(present, counts, 1.0), 0.0)
    return ratios / ratios.sum().clamp(min=torch.finfo(ratios.dtype).tiny)

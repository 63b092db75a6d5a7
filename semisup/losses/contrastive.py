"""NT-Xent: find the other view of each image among all views of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision, without_autocast

__all__ = ["nt_xent"]


def nt_xent(z: Tensor, temperature: float, extra_negatives: Tensor | None = None) -> Tensor:
    """Return the mean over all 2N rows of the cross-entropy of finding a row's other view.

    SimCLR, arXiv:2002.05709, eq. 1. Rows are ℓ2-normalised here; row i has row (i + N) mod 2N as its positive and all
    rows but itself as candidates. Both views get gradient. The official TensorFlow code adds the means of the two
    halves and so reports exactly twice this value. Chance level is log(2N - 1 + K); memory is 2N x (2N + K) floats.

    Args:
        z: (2N, D), the N first views stacked on the N second views, N >= 1.
        temperature: τ > 0, divides the cosine similarity.
        extra_negatives: (K, D) remembered embeddings, the MoCo-style memory of SimCLRv2 (arXiv:2006.10029).
            Normalised here, and constant: they get no gradient.

    Raises:
        SemisupError: an odd or zero number of rows, a width of ``extra_negatives`` other than D, or a temperature
            that is not positive.
    """
    if z.ndim != 2 or z.shape[0] == 0 or z.shape[0] % 2:
        raise SemisupError(f"z must be (2N, D), first views stacked on second views, got shape {tuple(z.shape)}")
    if not temperature > 0:
        raise SemisupError(f"temperature must be positive, got {temperature}")
    rows = z.shape[0]
    with without_autocast(z):
        unit = F.normalize(full_precision(z), dim=1)
        logits = unit @ unit.T / temperature
        logits.fill_diagonal_(float("-inf"))  # a row is no candidate for itself
        if extra_negatives is not None:
            if extra_negatives.ndim != 2 or extra_negatives.shape[1] != z.shape[1]:
                got = tuple(extra_negatives.shape)
                raise SemisupError(f"extra_negatives must be (K, {z.shape[1]}), as wide as z, got shape {got}")
            memory = F.normalize(extra_negatives.detach().to(unit.dtype), dim=1)
            logits = torch.cat([logits, unit @ memory.T / temperature], dim=1)
        positives = torch.arange(rows, device=z.device).roll(rows // 2)
        return F.cross_entropy(logits, positives)

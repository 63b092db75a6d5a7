"""Which unlabeled images are of no class: far from all labeled ones in the feature space of a network."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError

__all__ = ["kept", "openness"]

NEIGHBORS = 3
"""Of 1 and 3, 3 tells foreign images apart better: AUROC 0.81 to 0.96 against 0.77 to 0.88 on Fashion-MNIST, three
classes of ten foreign, 4 to 25 labels of each other class, features of SimCLR; on digits both 0.89 to 0.98. What
is foreign decides: with three drawn at random it is 0.75 to 0.81 (benchmarks/results/wrong_and_foreign.md). The energy
of a logistic regression (arXiv:2010.03759) does as well on digits, and worse than chance on Fashion-MNIST (0.37 to
0.49), where bags and boots look like nothing but are predicted with confidence."""
OWN = 0.9
"""Part of the labeled images that `auto` would keep: with 10 labels of a class 15% of the digits' foreign images stay
then, and 91% of the others; of Fashion-MNIST 60 and 91% (benchmarks/results/wrong_and_foreign.md)."""
CHUNK = 4096


def openness(features: Tensor, labeled: Tensor) -> Tensor:
    """Return how far each image (N,) is from the labeled ones: mean cosine distance to the nearest 3, in [0, 2].

    A labeled image is compared with the others. Features are standardized first, column by column, and constant ones
    left out.

    Args:
        features: (N, D).
        labeled: (L,) int64 rows, L >= 2.

    Raises:
        SemisupError: fewer than two labels.
    """
    if len(labeled) < 2:
        raise SemisupError(f"pool: needs two labeled images or more, to compare the others with, got {len(labeled)}")
    x = features.float()
    mean, std = x.mean(0), x.std(0)
    varies = std > 1e-5 * mean.abs()  # a constant one varies by rounding, which scaling would make as large as the rest
    x = F.normalize((x - mean)[:, varies] / std[varies].clamp(min=1e-6), dim=1)
    place = torch.full((len(x),), -1, device=x.device)
    place[labeled] = torch.arange(len(labeled), device=x.device)
    scores, bank = x.new_empty(len(x)), x[labeled].T
    block = x.new_empty(min(CHUNK, len(x)), len(labeled))  # one for all, as in `graph.nearest`
    for rows in torch.arange(len(x), device=x.device).split(CHUNK):
        near = torch.mm(x[rows], bank, out=block[: len(rows)])
        own = place[rows] >= 0
        near[own, place[rows][own]] = -2  # itself
        scores[rows] = 1 - near.topk(min(NEIGHBORS, len(labeled) - 1), dim=1).values.mean(1)
    return scores


def kept(scores: Tensor, labeled: Tensor, keep: float | Literal["auto"]) -> Tensor:
    """Return which images (N,) bool are not foreign; labeled ones never are.

    Args:
        scores: of `openness`.
        labeled: (L,) rows.
        keep: part of the unlabeled images that stays, the nearest; auto: those as near as 90% of the labeled ones.
    """
    if keep == "auto":
        limit = scores[labeled].quantile(OWN)
    else:
        rest = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        rest[labeled] = False
        limit = scores[rest].quantile(keep) if bool(rest.any()) else scores.max()
    stays = scores <= limit
    stays[labeled] = True
    return stays

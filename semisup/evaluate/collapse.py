"""Have the embeddings of a joint-embedding method collapsed? Six numbers that say so from one batch of two views."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.errors import SemisupError

__all__ = [
    "alignment",
    "collapse_panel",
    "collapsed",
    "effective_rank",
    "embedding_std",
    "negative_similarity",
    "uniformity",
]

SMALLEST = 1e-7
"""Added to each share of the singular values, as in RankMe's definition, where it stands for the precision of fp32."""

LEAST = {"std": 0.05, "rank": 1.5}
"""What counts as collapsed below. Ours: one embedding for all has std 0; embeddings on a line through the origin may
have any std, but rank 1. Embeddings that carry anything are far above both."""


def collapse_panel(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Return the measures below as 0-d float32 tensors, without gradient; the host waits for a GPU's singular values.

    Args:
        first: (N, D) embeddings of one view of N images, of any length.
        second: (N, D) those of another view of the same images, row by row.

    Returns:
        `std` and `rank` of the first view; `alignment`; `uniformity`, the mean of both views'; `positive`,
        the mean cosine of an image's two views; `negative`, that of two images' different views. Measures of pairs
        of images are NaN for a single image.

    Raises:
        SemisupError: the two are not both (N, D).
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise SemisupError(f"embeddings must both be (N, D), got shapes {tuple(first.shape)} and {tuple(second.shape)}")
    with torch.no_grad(), torch.autocast(first.device.type, enabled=False):  # bf16 would round the cosines
        x, y = (F.normalize(view.detach().float(), dim=1) for view in (first, second))
        return {
            "std": embedding_std(x),
            "rank": effective_rank(first.detach().float()),
            "alignment": alignment(x, y),
            "uniformity": (uniformity(x) + uniformity(y)) / 2,
            "positive": (x * y).sum(1).mean(),
            "negative": negative_similarity(x, y),
        }


def collapsed(panel: Mapping[str, float]) -> str | None:
    """Say which of the measures "std" and "rank" of a `collapse_panel` shows a collapse, or None."""
    for name, least in LEAST.items():
        if panel.get(name, least) < least:
            return f"{name} {panel[name]:.3g} is below {least:g}"
    return None


def embedding_std(x: Tensor) -> Tensor:
    """Return the standard deviation of unit vectors (N, D) over the batch, mean of the dimensions, times sqrt(D).

    Chen and He 2021 (SimSiam), arXiv:2011.10566, sec. 4.1, who compare with 1 / sqrt(D), that of directions spread
    evenly: times sqrt(D), this is 1 there, and 0 when all images have one embedding.
    """
    return x.std(dim=0, unbiased=False).mean() * math.sqrt(x.shape[1])


def effective_rank(x: Tensor) -> Tensor:
    """RankMe of embeddings (N, D): exp of the entropy of the singular values' shares, from 1 to min(N, D).

    Garrido et al. 2023, arXiv:2210.02885, eq. 1-2: p_k = sigma_k / sum(sigma) + 1e-7, exp(-sum p_k log p_k), of the
    embeddings as they are, not centered. The paper takes 25,600 images; a batch of N cannot show more than rank N.
    """
    sigma = torch.linalg.svdvals(x.nan_to_num(0, 0, 0))  # it would raise; NaN comes back below
    p = sigma / sigma.sum().clamp(min=torch.finfo(x.dtype).tiny) + SMALLEST
    entropy: Tensor = -(p * p.log()).sum()
    return entropy.exp() + 0 * x.sum()


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean of ||x_i - y_i||^2 of unit vectors (N, D), in [0, 4]; Wang and Isola 2020, arXiv:2005.10242, alpha = 2."""
    return (x - y).square().sum(1).mean()


def uniformity(x: Tensor) -> Tensor:
    """Return the log of the mean of exp(-2 ||x_i - x_j||^2) over pairs i < j of unit vectors (N, D), in [-8, 0].

    0 is collapse. Wang and Isola 2020, arXiv:2005.10242, t = 2. Evenly spread vectors of many dimensions come near
    to -4.
    """
    pairs = 2 * (x @ x.T - 1).clamp(max=0)  # minus the squared distances
    pairs.fill_diagonal_(-torch.inf)
    n = len(x)
    return (2 * pairs).flatten().logsumexp(0) - math.log(n * (n - 1)) if n > 1 else x.new_tensor(torch.nan)


def negative_similarity(x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine of x_i and y_j over i != j, of unit vectors (N, D), in [-1, 1]."""
    n = len(x)
    others = x.sum(0) @ y.sum(0) - (x * y).sum()  # all pairs but the positive ones
    return others / (n * (n - 1)) if n > 1 else others.new_tensor(torch.nan)

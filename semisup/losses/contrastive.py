"""Contrastive losses: tell one positive from negatives.

`weight` is that of `semisup.losses.soft_cross_entropy`: a factor per row, bool or float; the mean runs over all N
rows, kept or not, and a row of weight 0 is still a candidate for the others.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from semisup.errors import SemisupError
from semisup.losses.precision import full_precision, without_autocast

__all__ = ["info_nce", "n_pair", "nce", "nt_xent", "sup_con"]


def nt_xent(
    z: Tensor,
    temperature: float,
    extra_negatives: Tensor | None = None,
    *,
    decoupled: bool = False,
    chunk: int = 0,
) -> Tensor:
    """Return the mean over all 2N rows of the cross-entropy of finding a row's other view.

    SimCLR, arXiv:2002.05709, eq. 1. Rows are ℓ2-normalized here; row i has row (i + N) mod 2N as its positive and all
    rows but itself as candidates. Both views get gradient. The official TensorFlow code adds the means of the two
    halves and so reports exactly twice this value. Chance level is log(2N - 1 + K); memory is 2N x (2N + K) floats, or
    with `chunk` that many x (2N + K), at the price of computing the similarities once more for the gradient.

    Args:
        z: (2N, D), the N first views stacked on the N second views, N >= 1.
        temperature: τ > 0, divides the cosine similarity.
        extra_negatives: (K, D) remembered embeddings, the MoCo-style memory of SimCLRv2 (arXiv:2006.10029).
            Normalized here, and constant: they get no gradient.
        decoupled: leave the positive out of the candidates, so that an anchor whose other view is near learns as much
            from its negatives as any other (DCL, arXiv:2110.06848, eq. 6). Chance level is log(2N - 2 + K); the loss
            has no lower bound of 0.
        chunk: anchors that are compared at a time, for batches whose similarities do not fit into memory; 0: all.

    Raises:
        SemisupError: an odd or zero number of rows, a width of `extra_negatives` other than D, or a temperature
            that is not positive; decoupled, one pair without `extra_negatives`.
    """
    if z.ndim != 2 or z.shape[0] == 0 or z.shape[0] % 2:
        raise SemisupError(f"z must be (2N, D), first views stacked on second views, got shape {tuple(z.shape)}")
    if not temperature > 0:
        raise SemisupError(f"temperature must be positive, got {temperature}")
    rows = z.shape[0]
    if decoupled and rows == 2 and (extra_negatives is None or not len(extra_negatives)):
        raise SemisupError("decoupled: one pair has no negatives; it needs at least two")
    if extra_negatives is not None and (extra_negatives.ndim != 2 or extra_negatives.shape[1] != z.shape[1]):
        got = tuple(extra_negatives.shape)
        raise SemisupError(f"extra_negatives must be (K, {z.shape[1]}), as wide as z, got shape {got}")
    with without_autocast(z):
        unit = F.normalize(full_precision(z), dim=1)
        memory = None
        if extra_negatives is not None:
            memory = F.normalize(extra_negatives.detach().to(unit.dtype), dim=1)
        if not 0 < chunk < rows:
            return _found_by(unit, 0, unit, memory, temperature, decoupled) / rows
        parts = [
            checkpoint(
                *(_found_by, unit[start : start + chunk], start, unit, memory, temperature, decoupled),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, rows, chunk)
        ]
        return torch.stack(parts).sum() / rows


def _found_by(
    anchors: Tensor, start: int, unit: Tensor, memory: Tensor | None, temperature: float, decoupled: bool
) -> Tensor:
    """Return the sum of `nt_xent`'s cross-entropies over some rows of `unit`, from `start` on."""
    logits = anchors @ unit.T / temperature
    logits.diagonal(start).fill_(float("-inf"))  # a row is no candidate for itself
    if memory is not None:
        logits = torch.cat([logits, anchors @ memory.T / temperature], dim=1)
    positives = (torch.arange(start, start + len(anchors), device=unit.device) + len(unit) // 2) % len(unit)
    if not decoupled:
        return F.cross_entropy(logits, positives, reduction="sum")
    own = positives[:, None]
    negatives = logits.scatter(1, own, float("-inf"))
    return (negatives.logsumexp(1) - logits.gather(1, own)[:, 0]).sum()


def info_nce(
    queries: Tensor,
    positives: Tensor,
    temperature: float,
    negatives: Tensor | None = None,
    weight: Tensor | None = None,
    *,
    decoupled: bool = False,
) -> Tensor:
    """Return the mean over N rows of the cross-entropy of finding a query's positive among its candidates.

    CPC, arXiv:1807.03748, eq. 4; with a queue of negatives MoCo, arXiv:1911.05722, eq. 1. Rows are ℓ2-normalized here.
    log(candidates) minus this loss is a lower bound of the mutual information. Chance level is log(candidates). Nothing
    is detached: MoCo's keys and queue carry no gradient of themselves.

    Args:
        queries: (N, D), N >= 1.
        positives: (N, D); row i belongs to query i.
        temperature: τ > 0, divides the cosine similarity.
        negatives: (K, D) for all queries. None: the other queries' positives, N candidates in all.
        weight: (N,), see the top of this file.
        decoupled: leave the positive out of the candidates, see `nt_xent`; needs `negatives`.

    Raises:
        SemisupError: a shape other than these, a temperature that is not positive, or decoupled without `negatives`.
    """
    _check_pairs(queries, positives, "queries", "positives")
    if not temperature > 0:
        raise SemisupError(f"temperature must be positive, got {temperature}")
    if decoupled and negatives is None:
        raise SemisupError("decoupled: needs negatives that are not the other queries' positives")
    with without_autocast(queries):
        query, positive = (F.normalize(full_precision(x), dim=1) for x in (queries, positives))
        if negatives is None:
            return _weighted(_one_of_the_batch(query @ positive.T / temperature), weight)
        if negatives.ndim != 2 or negatives.shape[1] != queries.shape[1]:
            got = tuple(negatives.shape)
            raise SemisupError(f"negatives must be (K, {queries.shape[1]}), as wide as queries, got shape {got}")
        others = F.normalize(negatives.to(query.dtype), dim=1)
        logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ others.T], dim=1) / temperature
        candidates = logits[:, 1:] if decoupled else logits
        return _weighted(candidates.logsumexp(1) - logits[:, 0], weight)


def sup_con(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of finding the other rows of a row's class among all other rows.

    The mean runs over the N rows, and for each of them over the other rows of its class.

    SupCon, arXiv:2004.11362, eq. 2 (L_out, the mean outside of the logarithm, which the paper found better than L_in).
    Rows are ℓ2-normalized here, and all get gradient. A row without another one of its class adds 0. Equal or
    orthogonal rows: log(N - 1), for each row that has one.

    Args:
        z: (N, D), N >= 2.
        labels: (N,) int64.
        temperature: τ > 0, divides the cosine similarity. Paper: 0.1.

    Raises:
        SemisupError: a shape other than these, or a temperature that is not positive.
    """
    if z.ndim != 2 or len(z) < 2 or labels.shape != z.shape[:1]:
        got = f"{tuple(z.shape)} and {tuple(labels.shape)}"
        raise SemisupError(f"z and labels must be (N, D) and (N,) with N >= 2, got shapes {got}")
    if not temperature > 0:
        raise SemisupError(f"temperature must be positive, got {temperature}")
    with without_autocast(z):
        unit = F.normalize(full_precision(z), dim=1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
        log_probs = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(itself, 0.0)
        alike = (labels[:, None] == labels) & ~itself
        return -((log_probs * alike).sum(1) / alike.sum(1).clamp(min=1)).mean()


def n_pair(anchors: Tensor, positives: Tensor, norm_penalty: float = 0.0, weight: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of `anchors @ positives.T` plus `norm_penalty` times the two squared lengths.

    Sohn, NIPS 2016, sec. 3: N pairs of N different classes; each positive is the negative of the other
    anchors. Rows are not normalized; the penalty keeps them from growing instead. With products 0 the value is log N.

    Args:
        anchors: (N, D), N >= 1.
        positives: (N, D); row i has the class of anchor i and no other row has.
        norm_penalty: >= 0, of `|anchor|^2 + |positive|^2`.
        weight: (N,), see the top of this file; it weighs the penalty too.

    Raises:
        SemisupError: a shape other than these, or a negative penalty.
    """
    _check_pairs(anchors, positives, "anchors", "positives")
    if not norm_penalty >= 0:
        raise SemisupError(f"norm_penalty must be at least 0, got {norm_penalty}")
    with without_autocast(anchors):
        a, p = full_precision(anchors), full_precision(positives)
        lengths = a.square().sum(1) + p.square().sum(1)
        return _weighted(_one_of_the_batch(a @ p.T) + norm_penalty * lengths, weight)


def nce(positive: Tensor, negatives: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean over N rows of `-log h(positive) - sum over m of log(1 - h(negative))`.

    There `h = P_d / (P_d + m P_n)`.

    Gutmann and Hyvärinen, AISTATS 2010, with m noise samples: was it drawn from the data (P_d, the model) or from the
    noise (P_n)? The sum over negatives is a sum, so that the loss grows with m: log(1 + m) + m log(1 + 1/m) where
    P_d = P_n.

    Args:
        positive: (N,) log(P_d / P_n) of the true samples. NPID (arXiv:1805.01978), noise uniform over n images:
            similarity / τ - log Z + log n.
        negatives: (N, m) the same of the m >= 1 samples that were drawn from the noise.
        weight: (N,), see the top of this file.

    Raises:
        SemisupError: a shape other than these.
    """
    if positive.ndim != 1 or not len(positive):
        raise SemisupError(f"positive must be (N,) with N >= 1, got shape {tuple(positive.shape)}")
    if negatives.ndim != 2 or len(negatives) != len(positive) or not negatives.shape[1]:
        raise SemisupError(f"negatives must be ({len(positive)}, m) with m >= 1, got shape {tuple(negatives.shape)}")
    shift = math.log(negatives.shape[1])  # h = sigmoid(log ratio - log m)
    real, noise = full_precision(positive) - shift, full_precision(negatives) - shift
    return _weighted(F.softplus(-real) + F.softplus(noise).sum(1), weight)


def _one_of_the_batch(logits: Tensor) -> Tensor:
    """(N,) cross-entropy of candidate i in row i of (N, N) logits."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")


def _weighted(losses: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return losses.mean()
    if weight.shape != losses.shape:
        raise SemisupError(f"weight must have shape ({len(losses)},), one per row, got {tuple(weight.shape)}")
    return (losses * weight.to(losses.dtype)).mean()


def _check_pairs(first: Tensor, second: Tensor, name: str, other: str) -> None:
    if first.ndim != 2 or not len(first) or first.shape != second.shape:
        got = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise SemisupError(f"{name} and {other} must both be (N, D) with N >= 1, got shapes {got}")

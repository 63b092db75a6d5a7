"""The next images to label: a strategy, what a model predicts for them, and no picture twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from semisup.data.near import NEAR, without_copies
from semisup.errors import SemisupError
from semisup.evaluate import fit_probe, knn_predict
from semisup.labeling.strategies import coverage, disagreement, entropy, margin, typical, uncertain_and_different

__all__ = ["STRATEGIES", "Choice", "Question", "choose", "predictions", "resolve"]

STRATEGIES = {
    "auto": "coverage while there are fewer than 4 labels of a class on average, margin from then on",
    "typical": "the most typical image of each cluster without labels (TypiClust)",
    "coverage": "the image nearest to the center of each cluster without labels",
    "margin": "where the two best classes are nearly even, from different clusters",
    "entropy": "where the prediction is most spread out, from different clusters",
    "disagreement": "where models, or a model and its labeled neighbors, predict different classes",
    "random": "any, to compare with",
}
"""Name -> what is chosen."""
FEW = 4
"""Labels per class below which `auto` covers the images; see benchmarks/results/label_next.md."""


@dataclass(frozen=True)
class Question:
    """What there is to choose from.

    Attributes:
        features: (N, D).
        labels: (N,) int64, -1 where there is none.
        candidates: (N,) bool, which rows may be chosen.
        members: predictions (N, C) of one model or several; empty: nothing predicts.
        num_classes: C, of the labels or of the members.
        seed: of clusters, folds and random choices.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    candidates: NDArray[np.bool_]
    members: Sequence[NDArray[np.float32]]
    num_classes: int
    seed: int = 0

    @property
    def labeled(self) -> NDArray[np.int64]:
        """Rows with labels."""
        return np.flatnonzero(self.labels >= 0)


@dataclass(frozen=True)
class Choice:
    """An image to label: its row, the class that is predicted (-1: none) and the probability of that."""

    row: int
    guess: int
    confidence: float


def predictions(
    features: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int, seed: int
) -> list[NDArray[np.float32]]:
    """Return what a logistic regression on the labeled rows predicts for all, (N, C), in a list; empty below 2 classes.

    Args:
        features: (N, D).
        labels: (N,), -1 where there is none.
        num_classes: C.
        seed: of its cross-validation.
    """
    known = np.flatnonzero(labels >= 0)
    if len(np.unique(labels[known])) < 2:
        return []
    x = torch.from_numpy(features)
    probe = fit_probe(x[known], torch.from_numpy(labels[known]), seed)
    return [probe.logits(x, num_classes).exp().float().numpy()]


def resolve(strategy: str, question: Question) -> str:
    """Return the strategy that `auto` stands for, or the given one.

    Raises:
        SemisupError: it needs predictions, and there are none.
    """
    few = len(question.labeled) < FEW * question.num_classes
    if strategy == "auto":
        return "coverage" if few or not question.members else "margin"
    if strategy in ("margin", "entropy", "disagreement") and not question.members:
        raise SemisupError(
            f"--strategy {strategy}: needs predictions; name a classifier, or label images of two classes first "
            f"(typical and coverage need neither)"
        )
    if strategy == "disagreement" and len(question.members) < 2 and not len(question.labeled):
        raise SemisupError("--strategy disagreement: needs two models (--also MODEL), or labeled images and the one")
    return strategy


def choose(
    question: Question, n: int, strategy: str, small: NDArray[np.float32], near: float = NEAR
) -> tuple[list[Choice], int]:
    """Return the images to label, most useful first, and how many were passed over as near copies.

    Args:
        question: what there is to choose from.
        n: how many, at most.
        strategy: a key of `STRATEGIES` but auto, as `resolve` returns it.
        small: thumbnails of all rows, see `semisup.data.near`.
        near: correlation from which two pictures are one.
    """
    order = (row for row in _order(question, n, strategy) if question.candidates[row])
    rows, copies = without_copies(order, small, question.labeled, n, near)
    if not question.members:
        return [Choice(row, -1, 0.0) for row in rows], copies
    probs = np.mean(question.members, axis=0)
    return [Choice(row, int(probs[row].argmax()), float(probs[row].max())) for row in rows], copies


def _order(question: Question, n: int, strategy: str) -> Iterator[int]:
    """Yield rows that may be labeled, best first."""
    features, labeled, seed = question.features, question.labeled, question.seed
    if strategy == "random":
        order = np.random.default_rng(seed).permutation(len(features))
        return (int(row) for row in order[~np.isin(order, labeled)])
    if strategy == "typical":
        return typical(features, labeled, n, seed)
    if strategy == "coverage":
        return coverage(features, labeled, n, seed)
    score = _score(question, strategy)
    score[~question.candidates] = -1
    return uncertain_and_different(features, labeled, n, seed, score)


def _score(question: Question, strategy: str) -> NDArray[np.floating]:
    if strategy == "disagreement":
        members = list(question.members)
        return disagreement(members if len(members) > 1 else [*members, _neighbors(question)])
    probs = np.mean(question.members, axis=0)
    return margin(probs) if strategy == "margin" else entropy(probs)


def _neighbors(question: Question) -> NDArray[np.float32]:
    """Predictions (N, C) by the labels of the nearest labeled images."""
    x, labeled = torch.from_numpy(question.features), question.labeled
    votes = knn_predict(
        x[labeled], torch.from_numpy(question.labels[labeled]), x, num_classes=question.num_classes, k=5
    )
    found: NDArray[np.float32] = (votes / votes.sum(1, keepdim=True)).numpy()
    return found

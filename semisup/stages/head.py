"""A linear layer or a small MLP on features that were computed once, with or without self-training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["HeadSettings", "build_head", "fit_head"]


@dataclass(frozen=True)
class HeadSettings:
    """How a head is trained; the keys of a head stage, which documents them."""

    hidden: int
    dropout: float
    steps: int
    lr: float
    weight_decay: float
    threshold: float | None
    labeled: int
    unlabeled: int


def build_head(num_features: int, num_classes: int, hidden: int, dropout: float) -> nn.Sequential:
    """Return a head on features (N, D): dropout and a linear layer, after a hidden one if `hidden` > 0."""
    layers: list[nn.Module] = [nn.BatchNorm1d(num_features, affine=False, momentum=None)]
    if hidden:
        layers += [nn.Dropout(dropout), nn.Linear(num_features, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(hidden or num_features, num_classes))


def fit_head(
    labeled: Tensor,
    y: Tensor,
    unlabeled: Tensor,
    num_classes: int,
    settings: HeadSettings,
    seed: int,
    views: Tensor | None = None,
) -> nn.Sequential:
    """Train a head by AdamW with a cosine schedule; returns it in eval mode.

    L = CE(labels) + CE(guesses that reach the threshold, mean over all unlabeled features of the batch). A guess is the
    head's on whole features of the image as it is; what learns it sees, with dropout, the features of one of its
    augmented views: FixMatch (arXiv:2001.07685, eq. 3 and 4) on views that were made once. Without views dropout alone
    takes the place of strong augmentation.

    Args:
        labeled: (L, D) features.
        y: (L,) int64 classes.
        unlabeled: (U, D) features, also what they are standardized by.
        num_classes: C.
        settings: see `HeadSettings`.
        seed: of weights, batches and dropout; the global generator is left as it was.
        views: (K, U, D) features of augmented views, one of which is drawn for each image and step; None: there are
            none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = build_head(labeled.shape[1], num_classes, settings.hidden, settings.dropout)
        standardize = head[0].train()
        standardize(unlabeled)
        standardize.eval()
        optimizer = torch.optim.AdamW(head.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
        for _ in range(settings.steps):
            rows = torch.randint(len(labeled), (settings.labeled,))
            loss = F.cross_entropy(_dropped(head, labeled[rows]), y[rows])
            if settings.threshold is not None:
                loss = loss + _self_training(head, unlabeled, views, settings.threshold, settings.unlabeled)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def _dropped(head: nn.Sequential, features: Tensor) -> Tensor:
    """Logits with dropout; how features are standardized stays as it is."""
    head[1:].train()
    logits: Tensor = head(features)
    return logits


def _self_training(head: nn.Sequential, unlabeled: Tensor, views: Tensor | None, threshold: float, size: int) -> Tensor:
    rows = torch.randint(len(unlabeled), (size,))
    features = unlabeled[rows]
    with torch.no_grad():
        confidence, guesses = head.eval()(features).softmax(1).max(1)
    if views is not None:
        features = views[torch.randint(len(views), (size,)), rows]
    kept: Tensor = (confidence >= threshold).float()
    losses = F.cross_entropy(_dropped(head, features), guesses, reduction="none")
    return (losses * kept).mean()

"""Temporal ensembling: agree with the average of one's own predictions in earlier epochs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semisup.losses import mse_consistency
from semisup.methods.base import Batch, BelowOne, Fraction, Method, NonNegative, Progress, Update, Views
from semisup.methods.parts.memory import last_of
from semisup.methods.parts.ramps import gaussian_ramp
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["TemporalEnsembling"]


class TemporalEnsembling(Method):
    """Consistency with the average of the predictions of earlier epochs.

    L = CE(labeled) + w(t) * mean (1/C) ||p(u) - Z / (1 - momentum^k)||^2, where each of the k epochs so far has left
    Z <- momentum Z + (1 - momentum) p(u) (Laine & Aila 2017, arXiv:1610.02242, algorithm 2).

    Z has one row per training image, found by `batch.unlabeled.index`. A row takes in the train-mode prediction as soon
    as its image was seen, and counts its own epochs: no image is shown twice in an epoch, so that this equals the
    paper's update of all rows at the end of the epoch. An image that was never seen has no target and adds 0 to the
    mean, hence the term is 0 during the first epoch. A run must be many epochs long. The unlabeled images include the
    labeled ones.

    Args:
        model: the classifier.
        num_images: number of training images, given by the stage; Z takes 4 (C + 2) bytes for each.
        consistency: the final value of w(t). Authors' code (s-laine/tempens): 30 M/N, of M labels among N images,
            next to a cross-entropy that is divided by the whole batch. Divided by its labeled part, as here: 30.
        ramp: part of the run over which w(t) = consistency * exp(-5 (1 - t/ramp)^2) rises, in [0, 1]. Paper: 80 of 300
            epochs.
        momentum: of Z, per epoch, in [0, 1); 0 keeps the last prediction alone. Paper: 0.6.
    """

    name = "temporal_ensembling"
    family = "semi-supervised"
    summary = "Consistency with the average of the predictions of earlier epochs."
    citation = "Laine & Aila 2017, arXiv:1610.02242"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled=("weak",))
    ensemble: Tensor
    seen: Tensor

    def __init__(
        self,
        model: Classifier,
        num_images: int,
        *,
        consistency: NonNegative = 30.0,
        ramp: Fraction = 0.27,
        momentum: BelowOne = 0.6,
    ) -> None:
        super().__init__()
        self.model = model
        self.consistency = consistency
        self.ramp = ramp
        self.momentum = momentum
        self.register_buffer("ensemble", torch.zeros(num_images, model.head.out_features))
        self.register_buffer("seen", torch.zeros(num_images, dtype=torch.long))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update against the old rows of Z, which then take in the new predictions."""
        x, u, rows = batch.labeled["weak"], batch.unlabeled["weak"], batch.unlabeled.index
        logits, logits_u = together(self.model, x, u)
        probs = logits_u.detach().float().softmax(1)
        ensemble, seen = self.ensemble[rows], self.seen[rows]
        corrected = ensemble / (1 - self.momentum**seen).unsqueeze(1)  # 0/0 where nothing was seen, not used there
        target = torch.where(seen.unsqueeze(1) > 0, corrected, probs)  # its own prediction costs exactly 0
        self.ensemble[rows] = torch.lerp(probs, ensemble, self.momentum)[last_of(rows)]
        self.seen[rows] = seen + 1
        supervised = batch.labeled.cross_entropy(logits)
        consistency = mse_consistency(logits_u, target)
        yield Update(
            supervised + self.consistency * gaussian_ramp(progress, self.ramp) * consistency,
            log={"supervised": supervised, "consistency": consistency},
        )

    def predictor(self) -> nn.Module:
        """Return the classifier itself."""
        return self.model

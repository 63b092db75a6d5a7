"""Supervised learning on the labeled images: the baseline of everything and the fine-tuning stage."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import nn

from semisup.methods.base import Batch, BelowOne, Method, Progress, Update, Views
from semisup.models import Classifier

__all__ = ["Supervised"]


class Supervised(Method):
    """Cross-entropy on the labels, mean over the batch.

    Args:
        model: the classifier to train.
        strong: train on the strong view instead of the weak one. Report the baseline with both: a method that sees
            strong augmentation must not be compared with a baseline that does not (Oliver et al. 2018,
            arXiv:1804.09170).
        label_smoothing: in [0, 1).
        freeze: train only the head; the encoder stays in eval mode, as linear evaluation needs.
    """

    name = "supervised"
    family = "supervised"
    summary = "Cross-entropy on the labeled images: the baseline and the fine-tuning stage."
    citation = "Oliver et al. 2018, arXiv:1804.09170 (as the baseline)"

    def __init__(
        self, model: Classifier, *, strong: bool = False, label_smoothing: BelowOne = 0.0, freeze: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.view = "strong" if strong else "weak"
        self.views = Views(labeled=(self.view,))
        self.label_smoothing = label_smoothing
        self.freeze = freeze
        if freeze:
            model.requires_grad_(False)
            model.head.requires_grad_(True)

    def train(self, mode: bool = True) -> Supervised:
        """Set the mode; a frozen encoder keeps its BatchNorm statistics."""
        super().train(mode)
        if self.freeze:
            self.model.eval()
        return self

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """One cross-entropy update."""
        logits = self.model(batch.labeled[self.view])
        loss = F.cross_entropy(logits.float(), batch.labeled.y, label_smoothing=self.label_smoothing)
        yield Update(loss, log={"supervised": loss})

    def predictor(self) -> nn.Module:
        """The classifier itself."""
        return self.model

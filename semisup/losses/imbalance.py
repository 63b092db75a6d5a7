"""Cross-entropy on labels of unequal classes: weights, logit adjustment, focal loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from semisup.losses.precision import full_precision

__all__ = ["LabelLoss"]


@dataclass(frozen=True)
class LabelLoss:
    """Cross-entropy of labels, by default as it is; mean over the batch.

    Attributes:
        shift: (C,) added to the logits: tau log pi (Menon et al., arXiv:2007.07314, eq. 10). What is learned are then
            logits under equal classes.
        weights: (C,) of an image by its class.
        gamma: of the focal loss (1 - p)^gamma CE (Lin et al., arXiv:1708.02002, eq. 4); 0: none.
    """

    shift: Tensor | None = None
    weights: Tensor | None = None
    gamma: float = 0.0

    @staticmethod
    def of(
        labels: Tensor, *, class_weights: bool, logit_adjustment: float, focal: float, num_classes: int
    ) -> LabelLoss:
        """Return the loss for these labels (L,); a class without any counts as one with one.

        Args:
            labels: int64.
            class_weights: n / (C n_k), scikit-learn's "balanced": 1 on average over the labels.
            logit_adjustment: tau, >= 0.
            focal: gamma, >= 0.
            num_classes: C.
        """
        counts = torch.bincount(labels.cpu(), minlength=num_classes).clamp(min=1).float().to(labels.device)
        return LabelLoss(
            shift=logit_adjustment * (counts / counts.sum()).log() if logit_adjustment else None,
            weights=counts.sum() / (num_classes * counts) if class_weights else None,
            gamma=focal,
        )

    def to(self, device: torch.device) -> LabelLoss:
        """Return the same on another device."""
        shift, weights = (None if each is None else each.to(device) for each in (self.shift, self.weights))
        return LabelLoss(shift, weights, self.gamma)

    def __call__(self, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean loss of logits (B, C) and labels (B,) int64."""
        logits = full_precision(logits)
        if self.shift is None and self.weights is None and not self.gamma:
            return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        if self.shift is not None:
            logits = logits + self.shift
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        if self.gamma:
            right = logits.softmax(1).gather(1, labels[:, None])[:, 0]
            # Never 0, where a power below 1 has an infinite slope: not every torch has clamp cut that off at its bound.
            losses = losses * (1 - right).clamp(min=torch.finfo(right.dtype).tiny) ** self.gamma
        return (losses if self.weights is None else losses * self.weights[labels]).mean()

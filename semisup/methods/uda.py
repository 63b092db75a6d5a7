"""UDA: a strongly augmented image gets the sharpened prediction of the original."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from semisup.losses import annealed_cross_entropy, soft_cross_entropy
from semisup.methods.base import (
    Batch,
    Fraction,
    Method,
    NonNegative,
    Positive,
    Progress,
    PseudoLabels,
    Update,
    Views,
)
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["UDA", "Schedule", "tsa_threshold"]

Schedule = Literal["none", "linear", "exp", "log"]


def tsa_threshold(schedule: Schedule, progress: Progress, num_classes: int) -> float:
    """Return the probability up to which a label is still learned, from 1/C at the start to (about) 1 at the end.

    Training signal annealing (arXiv:1904.12848): with t in [0, 1), the rise above chance is t (linear), exp(5 (t - 1)),
    which lets go of labels late, or 1 - exp(-5 t) (log), which does so early; "none" is 1 throughout.
    """
    t = progress.fraction
    rise = {"none": 1.0, "linear": t, "exp": math.exp(5 * (t - 1)), "log": 1 - math.exp(-5 * t)}[schedule]
    return rise * (1 - 1 / num_classes) + 1 / num_classes


class UDA(Method):
    """Consistency of the strong view with the sharpened prediction on the weak one.

    L = TSA(labeled) + unlabeled_weight * mean[max p_w >= threshold] H(softmax(z_w / temperature), p_strong)
    (Xie et al. 2020, arXiv:1904.12848).

    The target carries no gradient, so that its cross-entropy teaches what the paper's KL(target || p_strong) does. The
    mask is taken from p_w as it is, not from the sharpened target; the mean runs over all unlabeled images. USB ignores
    the temperature, and its annealing goes by the largest probability and divides by the whole batch: we follow the
    authors' code. That makes one forward of all three views; here, as in fixmatch, the weak one runs first, without
    gradient.

    Args:
        model: the classifier.
        threshold: least confidence of a used target, in [0, 1]; 0 uses all. Paper, CIFAR-10: 0.8;
            google-research/fixmatch: 0.95.
        temperature: > 0, below 1 sharpens the target. Paper, CIFAR-10: 0.4; google-research/fixmatch: 1.
        unlabeled_weight: weight of the unlabeled term. Paper: 1.
        tsa: training signal annealing, "none", "linear", "exp" or "log": labels that the network gives more than a
            growing probability are left out. The paper advises exp where labels are few and soon learned by heart; the
            authors' scripts for CIFAR-10 have log at 250 labels, linear or none at 4,000.
    """

    name = "uda"
    family = "semi-supervised"
    summary = "A strongly augmented image gets the sharpened, confident prediction of its weak view."
    citation = "Xie et al. 2020, arXiv:1904.12848"
    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))

    def __init__(
        self,
        model: Classifier,
        *,
        threshold: Fraction = 0.8,
        temperature: Positive = 0.4,
        unlabeled_weight: NonNegative = 1.0,
        tsa: Schedule = "none",
    ) -> None:
        super().__init__()
        self.model = model
        self.threshold = threshold
        self.temperature = temperature
        self.unlabeled_weight = unlabeled_weight
        self.tsa = tsa

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        x, weak, strong = batch.labeled["weak"], batch.unlabeled["weak"], batch.unlabeled["strong"]
        with torch.no_grad():
            logits_weak = self.model(weak).float()
            confidence, labels = logits_weak.softmax(1).max(1)
            mask = (confidence >= self.threshold).float()
            target = (logits_weak / self.temperature).softmax(1)
        logits, logits_strong = together(self.model, x, strong)
        learned_up_to = tsa_threshold(self.tsa, progress, logits.shape[1])
        supervised = annealed_cross_entropy(logits, batch.labeled.y, learned_up_to)
        unlabeled = soft_cross_entropy(logits_strong, target, mask)
        yield Update(
            supervised + self.unlabeled_weight * unlabeled,
            log={"supervised": supervised, "unlabeled": unlabeled, "kept": mask.mean()},
            pseudo_labels=PseudoLabels(batch.unlabeled.index, labels, mask),
        )

    def predictor(self) -> nn.Module:
        """Return the classifier itself."""
        return self.model

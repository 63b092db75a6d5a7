"""SoftMatch: guesses count by how confident they are among the model's guesses, without a threshold."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semisup.losses import pseudo_label_cross_entropy
from semisup.methods.base import Batch, BelowOne, Method, NonNegative, Positive, Progress, PseudoLabels, Update, Views
from semisup.methods.parts.guesser import Guesser, average_of, guesser
from semisup.methods.parts.prior import AlignToAverage, Prior
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["SoftMatch", "truncated_gaussian"]


class SoftMatch(Method):
    """FixMatch with weights that follow the distribution of the confidence.

    FixMatch's loss with a soft weight, exp(-min(confidence - mu, 0)^2 / (2 (sigma / n)^2)), in place of the mask
    (Chen et al. 2023, arXiv:2301.10921).

    mu and sigma^2 are running mean and (unbiased) variance of the confidence on weak views. They start at 1 / classes
    and 1 and, as in the authors' code, take in the step's guesses before these are weighted.

    Confidence is measured after alignment; the label is the argmax before it, as in that code.

    Args:
        model: the classifier.
        momentum: of all running means, per step, in [0, 1). Paper: 0.999, for 2^20 steps; a run of under 1,000 ends
            before these have moved, and needs 0.99 or less.
        n_sigma: n, > 0: a guess d standard deviations below the mean weighs exp(-(n d)^2 / 2), so more is stricter.
            Authors' configurations: 2 (0.135 at d = 1); 1 is a plain Gaussian (0.607).
        unlabeled_weight: weight of the unlabeled term. Paper: 1.
        align: before confidence is measured, guesses are scaled by wanted class frequencies / running mean of the
            guesses, which begins with the first batch's, as in the authors' code. Paper: true.
        prior: the class frequencies to align with, "uniform", "labels", "estimated" or a list: see
            `semisup.methods.parts.prior`. Paper: uniform.
        teacher: who guesses, "student" or "ema": see `semisup.methods.parts.guesser`. With "ema" the average is the
            finished classifier too: set the stage's `ema: null`.
        teacher_decay: of that average, per step, in [0, 1).
    """

    name = "softmatch"
    family = "semi-supervised"
    summary = "FixMatch with weights that fall off as a Gaussian below the mean confidence, instead of a threshold."
    citation = "Chen et al. 2023, arXiv:2301.10921"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    only_with = {"prior": ("align", True), "teacher_decay": ("teacher", "ema")}
    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        model: Classifier,
        *,
        momentum: BelowOne = 0.999,
        n_sigma: Positive = 2.0,
        unlabeled_weight: NonNegative = 1.0,
        align: bool = True,
        prior: Prior = "labels",
        teacher: Guesser = "student",
        teacher_decay: BelowOne = 0.999,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = average_of(model, teacher, teacher_decay)
        self.averages = self.teacher is not None
        self.momentum = momentum
        self.n_sigma = n_sigma
        self.unlabeled_weight = unlabeled_weight
        num_classes = model.head.out_features
        self.alignment = AlignToAverage(prior, num_classes, momentum, from_first=True) if align else None
        self.register_buffer("mean", torch.full((), 1.0 / num_classes))
        self.register_buffer("variance", torch.ones(()))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        weak, strong = batch.unlabeled["weak"], batch.unlabeled["strong"]
        with torch.no_grad():
            probs = guesser(self.model, self.teacher)(weak).float().softmax(1)
            labels = probs.argmax(1)
            if self.alignment is not None:
                probs = self.alignment(probs, batch.labeled.y)
            confidence = probs.amax(1)
            self.mean.lerp_(confidence.mean(), 1 - self.momentum)
            # A single image has no unbiased variance.
            self.variance.lerp_(confidence.var(correction=min(1, len(confidence) - 1)), 1 - self.momentum)
            weight = truncated_gaussian(confidence, self.mean, self.variance, self.n_sigma)
        x = batch.labeled["weak"]
        logits, logits_strong = together(self.model, x, strong)
        supervised = batch.labeled.cross_entropy(logits)
        unlabeled = pseudo_label_cross_entropy(logits_strong, labels, weight)
        yield Update(
            supervised + self.unlabeled_weight * unlabeled,
            log={
                "supervised": supervised,
                "unlabeled": unlabeled,
                "kept": weight.mean(),
                "confidence": confidence.mean(),
            },
            pseudo_labels=PseudoLabels(batch.unlabeled.index, labels, weight),
        )
        if self.teacher is not None:
            self.teacher.update(self.model)

    def predictor(self) -> nn.Module:
        """Return the classifier, whose EMA recipes evaluate as the paper does; with `teacher: ema`, the teacher."""
        return guesser(self.model, self.teacher)


def truncated_gaussian(confidence: Tensor, mean: Tensor, variance: Tensor, n_sigma: float) -> Tensor:
    """Return each guess's weight (N,), 1 from the mean on and exp(-n^2 d^2 / 2) at d standard deviations below it.

    Args:
        confidence: (N,).
        mean: 0-d, of the confidence.
        variance: 0-d, of the confidence, >= 0.
        n_sigma: n.
    """
    below = (confidence - mean).clamp(max=0)
    return torch.exp(-(below**2) * n_sigma**2 / (2 * variance.clamp(min=1e-12)))

"""FreeMatch: thresholds that follow the model's own confidence, one for each class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semisup.losses import pseudo_label_cross_entropy, self_adaptive_fairness
from semisup.methods.base import Batch, BelowOne, Method, NonNegative, Progress, PseudoLabels, Update, Views
from semisup.methods.parts.guesser import Guesser, average_of, guesser
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["FreeMatch"]


class FreeMatch(Method):
    """FixMatch with thresholds that follow the confidence of the model, one for each class.

    FixMatch's loss with the threshold of class c at tau * p_c / max p, plus a fairness term
    (Wang et al. 2023, arXiv:2205.07246, algorithm 1).

    tau, p and h are running means of the weak views' confidence, probabilities and histogram of guesses. They start at
    1 / classes and, as in the authors' code, take in the step's guesses before these are compared with it.

    Fairness is `semisup.losses.self_adaptive_fairness` of the strong views that are kept. Formula and code of
    the authors agree on its sign, which is not the one that their text suggests: see there.

    Args:
        model: the classifier.
        momentum: of the running means, per step, in [0, 1). Paper: 0.999, for 2^20 steps; a run of under 1,000 ends
            before these have moved, and needs 0.99 or less.
        unlabeled_weight: weight of the unlabeled term. Paper: 1.
        fairness_weight: weight of the fairness term, which has no lower bound worth reaching: keep it small.
            Authors' configurations: 0.001 (the code's default: 0.01); 0 leaves it out.
        teacher: who guesses, "student" or "ema": see `semisup.methods.parts.guesser`. With "ema" the average is the
            finished classifier too: set the stage's `ema: null`.
        teacher_decay: of that average, per step, in [0, 1).
    """

    name = "freematch"
    family = "semi-supervised"
    summary = "FixMatch with thresholds that follow the model's own running confidence in each class."
    citation = "Wang et al. 2023, arXiv:2205.07246"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    only_with = {"teacher_decay": ("teacher", "ema")}
    confidence: Tensor
    expected: Tensor
    histogram: Tensor

    def __init__(
        self,
        model: Classifier,
        *,
        momentum: BelowOne = 0.999,
        unlabeled_weight: NonNegative = 1.0,
        fairness_weight: NonNegative = 0.001,
        teacher: Guesser = "student",
        teacher_decay: BelowOne = 0.999,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = average_of(model, teacher, teacher_decay)
        self.averages = self.teacher is not None
        self.momentum = momentum
        self.unlabeled_weight = unlabeled_weight
        self.fairness_weight = fairness_weight
        num_classes = model.head.out_features
        self.register_buffer("confidence", torch.full((), 1.0 / num_classes))  # tau
        self.register_buffer("expected", torch.full((num_classes,), 1.0 / num_classes))  # p
        self.register_buffer("histogram", torch.full((num_classes,), 1.0 / num_classes))  # h

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        weak, strong = batch.unlabeled["weak"], batch.unlabeled["strong"]
        with torch.no_grad():
            probs = guesser(self.model, self.teacher)(weak).float().softmax(1)
            confidence, labels = probs.max(1)
            share = torch.full_like(confidence, 1 / len(labels))
            counted = torch.zeros_like(self.histogram).scatter_add_(0, labels, share)
            self.confidence.lerp_(confidence.mean(), 1 - self.momentum)
            self.expected.lerp_(probs.mean(0), 1 - self.momentum)
            self.histogram.lerp_(counted, 1 - self.momentum)
            thresholds = self.confidence * self.expected / self.expected.max()
            mask = (confidence >= thresholds[labels]).float()
        x = batch.labeled["weak"]
        logits, logits_strong = together(self.model, x, strong)
        supervised = batch.labeled.cross_entropy(logits)
        unlabeled = pseudo_label_cross_entropy(logits_strong, labels, mask)
        fairness = self_adaptive_fairness(logits_strong, mask, self.expected, self.histogram)
        yield Update(
            supervised + self.unlabeled_weight * unlabeled + self.fairness_weight * fairness,
            log={
                "supervised": supervised,
                "unlabeled": unlabeled,
                "fairness": fairness,
                "kept": mask.mean(),
                "threshold": thresholds.mean(),
            },
            pseudo_labels=PseudoLabels(batch.unlabeled.index, labels, mask),
        )
        if self.teacher is not None:
            self.teacher.update(self.model)

    def predictor(self) -> nn.Module:
        """Return the classifier, whose EMA recipes evaluate as the paper does; with `teacher: ema`, the teacher."""
        return guesser(self.model, self.teacher)

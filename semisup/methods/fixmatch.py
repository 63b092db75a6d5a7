"""FixMatch: a confident guess on the weak view is the label of the strong view."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semisup.augment.policies.ctaugment import new_rates
from semisup.losses import pseudo_label_cross_entropy
from semisup.methods.base import Batch, BelowOne, Fraction, Method, NonNegative, Progress, PseudoLabels, Update, Views
from semisup.methods.parts.guesser import Guesser, average_of, guesser
from semisup.methods.parts.learned_rates import learn_rates
from semisup.methods.parts.prior import AlignToAverage, Prior
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["FixMatch"]


class FixMatch(Method):
    """Confident predictions on weak views as labels of strong views.

    L = CE(labeled weak) + unlabeled_weight * mean[max p_w >= threshold] CE(argmax p_w, strong)
    (Sohn et al. 2020, arXiv:2001.07685, eq. 3-4).

    The mean runs over all unlabeled images, kept or not. The paper makes one forward of all three views; here the weak
    view runs first, without gradient, which costs a third less work and gives it batch statistics of its own. The
    running statistics then see both forwards.

    Args:
        model: the classifier.
        threshold: least confidence of a used guess, in [0, 1]. Paper: 0.95.
        unlabeled_weight: weight of the unlabeled term. Paper: 1.
        align: distribution alignment (ReMixMatch, Berthelot et al. 2020, arXiv:1911.09785, sec. 3.1; FixMatch's own
            ablation): guesses are scaled by wanted class frequencies / running mean of the guesses before the
            threshold.
        align_momentum: of the running mean of guesses, per step, in [0, 1).
        prior: the class frequencies to align with, "uniform", "labels", "estimated" or a list: see
            `semisup.methods.parts.prior`.
        ctaugment: strong views by CTAugment and Cutout, the paper's other variant, instead of RandAugment; its
            strengths are learned from one more forward of the labeled images, without gradient.
        teacher: who guesses, "student" or "ema": see `semisup.methods.parts.guesser`. With "ema" the average is the
            finished classifier too: set the stage's `ema: null`.
        teacher_decay: of that average, per step, in [0, 1).
    """

    name = "fixmatch"
    family = "semi-supervised"
    summary = "Confident guesses on weak views label the strong views of the same images."
    citation = "Sohn et al. 2020, arXiv:2001.07685"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    only_with = {"prior": ("align", True), "align_momentum": ("align", True), "teacher_decay": ("teacher", "ema")}
    rates: Tensor | None

    def __init__(
        self,
        model: Classifier,
        *,
        threshold: Fraction = 0.95,
        unlabeled_weight: NonNegative = 1.0,
        align: bool = False,
        align_momentum: BelowOne = 0.99,
        prior: Prior = "labels",
        ctaugment: bool = False,
        teacher: Guesser = "student",
        teacher_decay: BelowOne = 0.999,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = average_of(model, teacher, teacher_decay)
        self.averages = self.teacher is not None
        self.threshold = threshold
        self.unlabeled_weight = unlabeled_weight
        self.alignment = AlignToAverage(prior, model.head.out_features, align_momentum) if align else None
        self.register_buffer("rates", new_rates() if ctaugment else None)
        if ctaugment:
            self.views = Views(
                labeled={"weak": "weak", "probe": "ctaugment_probe"},
                unlabeled={"weak": "weak", "strong": "ctaugment_cutout"},
            )

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        if self.rates is not None:
            learn_rates(self.rates, self.model, batch.labeled)
        weak, strong = batch.unlabeled["weak"], batch.unlabeled["strong"]
        with torch.no_grad():
            probs = guesser(self.model, self.teacher)(weak).float().softmax(1)
            if self.alignment is not None:
                probs = self.alignment(probs, batch.labeled.y)
            confidence, labels = probs.max(1)
            mask = (confidence >= self.threshold).float()
        x = batch.labeled["weak"]
        logits, logits_strong = together(self.model, x, strong)
        supervised = batch.labeled.cross_entropy(logits)
        unlabeled = pseudo_label_cross_entropy(logits_strong, labels, mask)
        yield Update(
            supervised + self.unlabeled_weight * unlabeled,
            log={"supervised": supervised, "unlabeled": unlabeled, "kept": mask.mean()},
            pseudo_labels=PseudoLabels(batch.unlabeled.index, labels, mask),
        )
        if self.teacher is not None:
            self.teacher.update(self.model)

    def predictor(self) -> nn.Module:
        """Return the classifier, whose EMA recipes evaluate as the paper does; with `teacher: ema`, the teacher."""
        return guesser(self.model, self.teacher)

    def learned(self) -> Tensor | None:
        """Return the rates, with `ctaugment`."""
        return self.rates

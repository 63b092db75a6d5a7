"""Pseudo-label: the network's own confident guesses are labels."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from semisup.losses import pseudo_label_cross_entropy
from semisup.methods.base import Batch, Fraction, Method, NonNegative, Progress, PseudoLabels, Update, Views
from semisup.methods.parts.ramps import linear_ramp
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["PseudoLabel"]


class PseudoLabel(Method):
    """The network's own confident predictions as labels.

    L = CE(labeled) + a(t) * mean[max p >= threshold] CE(argmax p, u), guess and loss on one and the same image
    (Lee 2013, eq. 15-16; the threshold is that of Oliver et al. 2018, arXiv:1804.09170).

    The guess is made anew at every step. The mean runs over all unlabeled images, kept or not. One joint forward: its
    logits serve as guess, where they carry no gradient, and as prediction. Labels made once, by a finished network, are
    the business of a `kind: relabel` stage and of noisy_student.

    Args:
        model: the classifier.
        threshold: least confidence of a used guess, in [0, 1]. google-research/fixmatch: 0.95;
            Lee: 0, which keeps all.
        unlabeled_weight: final value of a(t). google-research/fixmatch: 1; Lee: 3.
        start: part of the run in which a(t) is 0, in [0, 1]. At full weight from the first step the network would learn
            its initial guesses. google-research/fixmatch: 0; Lee: T1 = 100.
        ramp: part of the run over which a(t) then rises linearly, in [0, 1]. google-research/fixmatch: 0.4; Lee: up to
            T2 = 600.
    """

    name = "pseudo_label"
    family = "semi-supervised"
    summary = "The network's own confident guesses are labels, with a weight that grows over the run."
    citation = "Lee 2013, ICML workshop; Oliver et al. 2018, arXiv:1804.09170"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled=("weak",))

    def __init__(
        self,
        model: Classifier,
        *,
        threshold: Fraction = 0.95,
        unlabeled_weight: NonNegative = 1.0,
        start: Fraction = 0.0,
        ramp: Fraction = 0.4,
    ) -> None:
        super().__init__()
        self.model = model
        self.threshold = threshold
        self.unlabeled_weight = unlabeled_weight
        self.start = start
        self.ramp = ramp

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        x, u = batch.labeled["weak"], batch.unlabeled["weak"]
        logits, logits_u = together(self.model, x, u)
        confidence, labels = logits_u.detach().float().softmax(1).max(1)
        mask = (confidence >= self.threshold).float()
        supervised = batch.labeled.cross_entropy(logits)
        unlabeled = pseudo_label_cross_entropy(logits_u, labels, mask)
        weight = self.unlabeled_weight * linear_ramp(progress, self.ramp, self.start)
        yield Update(
            supervised + weight * unlabeled,
            log={"supervised": supervised, "unlabeled": unlabeled, "kept": mask.mean()},
            pseudo_labels=PseudoLabels(batch.unlabeled.index, labels, mask),
        )

    def predictor(self) -> nn.Module:
        """Return the classifier itself."""
        return self.model

"""Π-model: two noisy looks at one image give one prediction."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from semisup.losses import mse_consistency
from semisup.methods.base import Batch, Fraction, Method, NonNegative, Progress, Update, Views
from semisup.methods.parts.ramps import gaussian_ramp
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["PiModel"]


class PiModel(Method):
    """Consistency between two draws of augmentation and dropout.

    L = CE(labeled) + w(t) * mean (1/C) ||p(u') - p(u'')||^2, u' and u'' two draws of augmentation and dropout
    (Laine & Aila 2017, arXiv:1610.02242, algorithm 1).

    One joint forward in train mode. The unlabeled images include the labeled ones.

    In the paper both predictions get gradient. That is meant for two draws of one noise: next to a strong second view
    it flattens the prediction for the first (digits, draw 10, 10 and 40 labels: 23.1 and 86.4% instead of 76.3 and
    93.0%).

    Args:
        model: the classifier.
        consistency: the final value of w(t). google-research/fixmatch's port: 10; Oliver et al. (arXiv:1804.09170): 20.
            Authors' code (s-laine/tempens): 100 M/N, of M labels among N images, next to a cross-entropy that is
            divided by the whole batch. Divided by its labeled part, as here, that is 100.
        ramp: part of the run over which w(t) = consistency * exp(-5 (1 - t/ramp)^2) rises, in [0, 1]. Paper: 80 of 300
            epochs; google-research/fixmatch: 0.4, linearly.
        detach: the prediction for the view "first" is a target without gradient, as in the ports of
            google-research/fixmatch and USB. False, as in the paper, sends it through both.
    """

    name = "pi_model"
    family = "semi-supervised"
    summary = "Two augmented views of an image should get the same prediction."
    citation = "Laine & Aila 2017, arXiv:1610.02242"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled={"first": "weak", "second": "weak"})

    def __init__(
        self, model: Classifier, *, consistency: NonNegative = 10.0, ramp: Fraction = 0.4, detach: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.consistency = consistency
        self.ramp = ramp
        self.detach = detach

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        x, first, second = batch.labeled["weak"], batch.unlabeled["first"], batch.unlabeled["second"]
        logits, logits_first, logits_second = together(self.model, x, first, second)
        supervised = batch.labeled.cross_entropy(logits)
        target = logits_first.detach() if self.detach else logits_first
        consistency = mse_consistency(logits_second, target.float().softmax(1))
        yield Update(
            supervised + self.consistency * gaussian_ramp(progress, self.ramp) * consistency,
            log={"supervised": supervised, "consistency": consistency},
        )

    def predictor(self) -> nn.Module:
        """Return the classifier itself."""
        return self.model

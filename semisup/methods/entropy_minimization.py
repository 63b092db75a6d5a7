"""Entropy minimization: be sure of every unlabeled image."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from semisup.losses import entropy
from semisup.methods.base import Batch, Method, NonNegative, Progress, Update, Views
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["EntropyMinimization"]


class EntropyMinimization(Method):
    """Cross-entropy on the labels and the entropy of the predictions on unlabeled images.

    L = CE(labeled) + unlabeled_weight * mean H(p(u)), gradient through p, one joint forward
    (Grandvalet & Bengio 2004, NIPS 17).

    Alone it may give every image to one class; it is meant as a companion of a method that keeps neighbors together,
    and `vat` has it as an option.

    Args:
        model: the classifier.
        unlabeled_weight: weight of the entropy, which is in nats and at most log C. Next to VAT: 0.06 in
            google-research/fixmatch, 1.0 in S4L (arXiv:1905.03670) on ImageNet; 0.3 in S4L's mix of all methods.
    """

    name = "entropy_minimization"
    family = "semi-supervised"
    summary = "Predictions on unlabeled images are made certain."
    citation = "Grandvalet & Bengio 2004, NIPS; S4L's baseline: Zhai et al. 2019, arXiv:1905.03670"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled=("weak",))

    def __init__(self, model: Classifier, *, unlabeled_weight: NonNegative = 0.06) -> None:
        super().__init__()
        self.model = model
        self.unlabeled_weight = unlabeled_weight

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        x, u = batch.labeled["weak"], batch.unlabeled["weak"]
        logits, logits_u = together(self.model, x, u)
        supervised = batch.labeled.cross_entropy(logits)
        unlabeled = entropy(logits_u)
        yield Update(
            supervised + self.unlabeled_weight * unlabeled, log={"supervised": supervised, "entropy": unlabeled}
        )

    def predictor(self) -> nn.Module:
        """Return the classifier itself."""
        return self.model

"""Noisy Student: learn a teacher's predictions for clean images on noised ones."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from semisup.errors import SemisupError
from semisup.losses import soft_cross_entropy
from semisup.methods.base import Batch, BelowOne, Method, NonNegative, Progress, Update, Views
from semisup.methods.parts.noise import with_dropout
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["NoisyStudent"]


class NoisyStudent(Method):
    """Training of a student on the labels and on a teacher's pseudo-labels, with strong noise.

    L = CE(labeled) + unlabeled_weight * CE(pseudo-labels), both on strong views, one joint forward
    (Xie et al. 2020, arXiv:1911.04252, algorithm 1).

    The pseudo-labels come from a `kind: relabel` stage, where the teacher saw clean images in eval mode; filtering,
    balancing and the choice of soft or hard labels belong to that stage. Repeating the pair of stages, each student
    teaching the next, is the method. The student should be at least as large as its teacher.

    Args:
        model: the student.
        unlabeled_weight: weight of the pseudo-labeled term. Paper: 1.
        label_smoothing: on the true labels, in [0, 1). Paper's code: 0.1.
        dropout: on the features before the head, in [0, 1): the model noise that every network here has a place for.
            Paper: 0.5, next to stochastic depth.

    Raises:
        SemisupError: at the first step, if no relabel stage gave pseudo-labels.
    """

    name = "noisy_student"
    family = "semi-supervised"
    summary = "A noised student learns the pseudo-labels of a relabel stage; repeated, each student teaches the next."
    citation = "Xie et al. 2020, arXiv:1911.04252"
    reads_loss = True
    needs_pseudo_labels = True
    views = Views(labeled=("strong",), unlabeled=("strong",))

    def __init__(
        self,
        model: Classifier,
        *,
        unlabeled_weight: NonNegative = 1.0,
        label_smoothing: BelowOne = 0.1,
        dropout: BelowOne = 0.5,
    ) -> None:
        super().__init__()
        self.model = model
        self.unlabeled_weight = unlabeled_weight
        self.label_smoothing = label_smoothing
        self.dropout = dropout

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the student."""
        target = batch.unlabeled.target
        if target is None:
            raise SemisupError("method noisy_student: no pseudo-labels; name a relabel stage as `pseudo_labels`")
        x, u = batch.labeled["strong"], batch.unlabeled["strong"]
        logits, logits_u = together(with_dropout(self.model, self.dropout), x, u)
        supervised = batch.labeled.cross_entropy(logits, self.label_smoothing)
        unlabeled = soft_cross_entropy(logits_u, target)
        yield Update(
            supervised + self.unlabeled_weight * unlabeled, log={"supervised": supervised, "unlabeled": unlabeled}
        )

    def predictor(self) -> nn.Module:
        """Return the student."""
        return self.model

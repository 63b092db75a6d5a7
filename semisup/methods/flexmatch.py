"""FlexMatch: classes that are learned slowly are given a lower threshold."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semisup.losses import pseudo_label_cross_entropy
from semisup.methods.base import Batch, BelowOne, Fraction, Method, NonNegative, Progress, PseudoLabels, Update, Views
from semisup.methods.parts.guesser import Guesser, average_of, guesser
from semisup.methods.parts.memory import last_of
from semisup.methods.parts.together import together
from semisup.models import Classifier

__all__ = ["FlexMatch", "learning_status"]


class FlexMatch(Method):
    """FixMatch with a threshold for each class, lower where a class is learned slowly.

    FixMatch's loss with the threshold of class c at threshold * M(beta_c), M(beta) = beta / (2 - beta)
    (Zhang et al. 2021, arXiv:2110.08263, algorithm 1, the convex mapping).

    beta_c, the learning status, says how often c is the latest confident guess on an image of the data set, relative
    to the most frequent class. Confident means at least `threshold`, which does not move. The step's own guesses count
    from the next step on, as in TorchSSL.

    Until the first confident guess all beta are 0, and so are the thresholds: every image is used.

    Args:
        model: the classifier.
        num_images: images in the training set.
        num_unlabeled: those of them that batches are made of.
        threshold: of the most frequent class, in [0, 1]; those of the others lie below. Paper: 0.95.
        unlabeled_weight: weight of the unlabeled term. Paper: 1.
        warmup: unlabeled images without a confident guess yet count like one more class when beta is scaled, which
            keeps the first thresholds low. Paper and TorchSSL: true.
        teacher: who guesses, "student" or "ema": see `semisup.methods.parts.guesser`. With "ema" the average is the
            finished classifier too: set the stage's `ema: null`.
        teacher_decay: of that average, per step, in [0, 1).
    """

    name = "flexmatch"
    family = "semi-supervised"
    summary = "FixMatch with a threshold for each class that follows how well the class is learned."
    citation = "Zhang et al. 2021, arXiv:2110.08263"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled=("weak", "strong"))
    only_with = {"teacher_decay": ("teacher", "ema")}
    latest: Tensor

    def __init__(
        self,
        model: Classifier,
        num_images: int,
        num_unlabeled: int,
        *,
        threshold: Fraction = 0.95,
        unlabeled_weight: NonNegative = 1.0,
        warmup: bool = True,
        teacher: Guesser = "student",
        teacher_decay: BelowOne = 0.999,
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = average_of(model, teacher, teacher_decay)
        self.averages = self.teacher is not None
        self.threshold = threshold
        self.unlabeled_weight = unlabeled_weight
        self.warmup = warmup
        self.num_unlabeled = num_unlabeled
        # Each image's latest confident class; -1: none so far. 8 bytes an image.
        self.register_buffer("latest", torch.full((num_images,), -1))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss; then the guesses are remembered."""
        weak, strong, index = batch.unlabeled["weak"], batch.unlabeled["strong"], batch.unlabeled.index
        guessable = self.num_unlabeled if self.warmup else 0
        status = learning_status(self.latest, self.model.head.out_features, guessable)
        thresholds = self.threshold * status / (2 - status)
        with torch.no_grad():
            confidence, labels = guesser(self.model, self.teacher)(weak).float().softmax(1).max(1)
            mask = (confidence >= thresholds[labels]).float()
            confident = torch.where(confidence >= self.threshold, labels, self.latest[index])
            self.latest.index_copy_(0, index, confident[last_of(index)])
        x = batch.labeled["weak"]
        logits, logits_strong = together(self.model, x, strong)
        supervised = batch.labeled.cross_entropy(logits)
        unlabeled = pseudo_label_cross_entropy(logits_strong, labels, mask)
        yield Update(
            supervised + self.unlabeled_weight * unlabeled,
            log={
                "supervised": supervised,
                "unlabeled": unlabeled,
                "kept": mask.mean(),
                "threshold": thresholds.mean(),
            },
            pseudo_labels=PseudoLabels(index, labels, mask),
        )
        if self.teacher is not None:
            self.teacher.update(self.model)

    def predictor(self) -> nn.Module:
        """Return the classifier, whose EMA recipes evaluate as the paper does; with `teacher: ema`, the teacher."""
        return guesser(self.model, self.teacher)


def learning_status(latest: Tensor, num_classes: int, guessable: int) -> Tensor:
    """Return beta (C,) in [0, 1]: sigma_c / max(max sigma, guessable images without a guess).

    Args:
        latest: (N,) int64, the latest confident class of each image, -1 for none; sigma_c counts the c in it.
        num_classes: C.
        guessable: images that may get a guess, at most N; 0, without the warm-up: those without one do not count.
    """
    # Not bincount, which asks a GPU for the largest value.
    counts = torch.zeros(num_classes + 1, dtype=torch.int64, device=latest.device)
    counts = counts.scatter_add_(0, latest + 1, torch.ones_like(latest))[1:]
    return counts / torch.maximum(counts.max(), guessable - counts.sum()).clamp(min=1)

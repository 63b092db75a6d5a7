"""AdaMatch: FixMatch with a threshold and class frequencies that follow what the network says of labeled images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semisup.losses import align_distribution, soft_cross_entropy
from semisup.methods.base import Batch, BelowOne, Fraction, Method, NonNegative, Progress, PseudoLabels, Update, Views
from semisup.methods.parts.prior import RunningMean
from semisup.methods.parts.ramps import cosine_ramp
from semisup.methods.parts.together import together
from semisup.models import Classifier, frozen_statistics

__all__ = ["AdaMatch"]


class AdaMatch(Method):
    """FixMatch with a threshold relative to the confidence on labeled images, and with distribution alignment.

    L = CE(labeled weak) + CE(labeled strong) + w(t) * mean[max q >= c] H(q, strong)
    (Berthelot et al. 2022, arXiv:2106.04732, sec. 3, labeled and unlabeled images being of one domain).

    - Random logit interpolation: labeled images are seen in two forwards, together with the unlabeled ones and by
      themselves; their logits are mixed number by number in proportions drawn from U(0, 1). The second forward leaves
      BatchNorm's running statistics alone.
    - Distribution alignment: q is the prediction on the weak view, scaled by mean prediction on labeled weak views /
      mean prediction on unlabeled ones, renormalized; soft, and without gradient. Nothing is assumed of the classes.
    - Relative threshold: c = threshold * mean confidence on the labeled weak views of the batch. Nothing has to be
      tuned to how sure a network becomes in a run of this length.

    The paper writes the means of the alignment as expectations; here they are running means that begin with the first
    batch.

    Args:
        model: the classifier.
        threshold: part of the labeled images' mean confidence that a used guess must have, in [0, 1]. Paper: 0.9.
        unlabeled_weight: final value of w(t). Paper: 1.
        ramp: part of the run over which w(t) rises as half a cosine, in [0, 1]. Paper: 0.5.
        momentum: of the running means, per step, in [0, 1).
    """

    name = "adamatch"
    family = "semi-supervised"
    summary = "FixMatch with a threshold relative to, and class frequencies of, what is said of labeled images."
    citation = "Berthelot et al. 2022, arXiv:2106.04732"
    reads_loss = True
    views = Views(labeled=("weak", "strong"), unlabeled=("weak", "strong"))

    def __init__(
        self,
        model: Classifier,
        *,
        threshold: Fraction = 0.9,
        unlabeled_weight: NonNegative = 1.0,
        ramp: Fraction = 0.5,
        momentum: BelowOne = 0.99,
    ) -> None:
        super().__init__()
        self.model = model
        self.threshold = threshold
        self.unlabeled_weight = unlabeled_weight
        self.ramp = ramp
        self.of_labeled, self.of_unlabeled = (RunningMean(model.head.out_features, momentum) for _ in range(2))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        labeled = (batch.labeled["weak"], batch.labeled["strong"])
        unlabeled = (batch.unlabeled["weak"], batch.unlabeled["strong"])
        *joint, logits_weak, logits_strong = together(self.model, *labeled, *unlabeled)
        with frozen_statistics(self.model):
            own = self.model(torch.cat(labeled))
        mixed = torch.lerp(own.float(), torch.cat(joint).float(), torch.rand_like(own, dtype=torch.float32))
        logits, logits_labeled_strong = mixed.chunk(2)
        guesses, mask = self.guess(logits.detach(), logits_weak.detach())
        weak, strong = (batch.labeled.cross_entropy(part) for part in (logits, logits_labeled_strong))
        target = soft_cross_entropy(logits_strong, guesses, mask)
        yield Update(
            weak + strong + cosine_ramp(progress, self.ramp) * self.unlabeled_weight * target,
            log={"supervised": weak, "supervised_strong": strong, "unlabeled": target, "kept": mask.mean()},
            pseudo_labels=PseudoLabels(batch.unlabeled.index, guesses.argmax(1), mask),
        )

    def guess(self, logits_labeled: Tensor, logits_weak: Tensor) -> tuple[Tensor, Tensor]:
        """Return q (U, C) and mask (U,) from the logits of labeled (B, C) and unlabeled (U, C) weak views.

        Both kinds of logits move the running means.
        """
        probs_labeled, probs = logits_labeled.float().softmax(1), logits_weak.float().softmax(1)
        wanted, usual = self.of_labeled(probs_labeled.mean(0)), self.of_unlabeled(probs.mean(0))
        guesses = align_distribution(probs, wanted, usual)
        least = self.threshold * probs_labeled.amax(1).mean()
        return guesses, (guesses.amax(1) >= least).float()

    def predictor(self) -> nn.Module:
        """Return the classifier itself; recipes evaluate its EMA, as the paper does."""
        return self.model

"""Virtual adversarial training: the same prediction in the direction where it changes most."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from semisup.losses import entropy, kl_consistency
from semisup.losses.precision import without_autocast
from semisup.methods.base import Batch, Fraction, Method, NonNegative, Positive, Progress, Update, Views
from semisup.methods.parts.ramps import linear_ramp
from semisup.models import Classifier, frozen_statistics

__all__ = ["VAT", "adversarial_direction"]


def adversarial_direction(network: Callable[[Tensor], Tensor], images: Tensor, logits: Tensor, xi: float) -> Tensor:
    """Return the direction in which each image's prediction changes fastest: one power iteration from a random start.

    It is the gradient of KL(p(x) || p(x + xi d)) in the unit vector d (Miyato et al. 2018, arXiv:1704.03976, eq. 12),
    scaled to length 1 for each image; 0 where the gradient vanishes. d is drawn from torch's global generator.

    Args:
        network: images to logits, without randomness of its own.
        images: (N, ...).
        logits: (N, C), `network(images)`.
        xi: length of the probe.
    """
    d = torch.randn_like(images)
    d = (d / _length(d)).requires_grad_()
    change = kl_consistency(network(images + xi * d), logits.detach())
    (slope,) = torch.autograd.grad(change, d)
    # To a largest entry of 1 first: the squares of the slopes of a certain network underflow. Stays 0 if it is 0.
    largest = slope.abs().flatten(1).amax(1).view(-1, *[1] * (images.ndim - 1))
    slope = slope / torch.where(largest > 0, largest, 1.0)
    return slope / _length(slope).clamp(min=1.0)  # at least 1, unless all is 0


def _length(x: Tensor) -> Tensor:
    """L2 norm of each sample of (N, ...), as (N, 1, ...)."""
    norms: Tensor = x.flatten(1).norm(dim=1)
    return norms.view(-1, *[1] * (x.ndim - 1))


class VAT(Method):
    """Consistency in the direction of the image in which the prediction changes most.

    L = CE(labeled) + w(t) * mean KL(p(u) || p(u + r)) + entropy_weight * mean H(p(u)), r of length epsilon in the
    direction that changes the prediction most (Miyato et al. 2018, arXiv:1704.03976, eq. 5-12).

    Neither the target p(u) nor r carries gradient. The divergence is the paper's, clean || perturbed;
    google-research/fixmatch and S4L turn it round. Labeled and unlabeled images have forwards of their own, so that
    clean and perturbed images share their batch statistics. Both clean forwards update BatchNorm's running statistics,
    the perturbed ones do not (in the authors' code the labeled one alone does). Dropout would be drawn anew in each
    forward and be taken for a change: use a network without it. The unlabeled forwards run in float32 at every
    precision, for in bfloat16 the probe drowns in rounding.

    Args:
        model: the classifier.
        epsilon: length (L2) of r in normalized pixels, > 0; an image has about sqrt(channels x height x width).
            Authors' code on CIFAR-10: 8 with augmentation, 10 without, on whitened images; google-research/fixmatch: 6
            on images in [-1, 1], which are about half as long as normalized ones.
        xi: length of the probe that finds r, in the same unit, > 0. Both codes: 1e-6, whose difference float32 cannot
            see. On a WRN-10-1 and Fashion-MNIST the cosine to the exact direction is 0.57 at 1e-6, above 0.999 at 0.01
            and 0.995 at 0.1; with inputs rounded to TF32, as GPUs do, 0.9 at 0.01 and 0.993 at 0.1. Beyond, it falls.
        unlabeled_weight: final value of w(t). google-research/fixmatch: 0.3; paper: 1.
        ramp: part of the run over which w(t) rises linearly, in [0, 1]. google-research/fixmatch: 0.4; paper: 0.
        entropy_weight: weight of entropy minimization (VAT+EntMin), 0 for none. google-research/fixmatch: 0.06;
            paper: 1.
    """

    name = "vat"
    family = "semi-supervised"
    summary = "Predictions should withstand the worst small change of the image, and optionally be certain."
    citation = "Miyato et al. 2018, arXiv:1704.03976"
    reads_loss = True
    views = Views(labeled=("weak",), unlabeled=("weak",))

    def __init__(
        self,
        model: Classifier,
        *,
        epsilon: Positive = 6.0,
        xi: Positive = 0.1,
        unlabeled_weight: NonNegative = 0.3,
        ramp: Fraction = 0.4,
        entropy_weight: NonNegative = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.epsilon = epsilon
        self.xi = xi
        self.unlabeled_weight = unlabeled_weight
        self.ramp = ramp
        self.entropy_weight = entropy_weight

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        x, u = batch.labeled["weak"], batch.unlabeled["weak"]
        supervised = batch.labeled.cross_entropy(self.model(x))
        with without_autocast(u):
            with torch.set_grad_enabled(self.entropy_weight > 0):
                clean = self.model(u)
            with frozen_statistics(self.model):
                r = self.epsilon * adversarial_direction(self.model, u, clean, self.xi)
                adversarial = kl_consistency(self.model(u + r), clean.detach())
        loss = supervised + self.unlabeled_weight * linear_ramp(progress, self.ramp) * adversarial
        log = {"supervised": supervised, "adversarial": adversarial}
        if self.entropy_weight:
            log["entropy"] = entropy(clean)
            loss = loss + self.entropy_weight * log["entropy"]
        yield Update(loss, log=log)

    def predictor(self) -> nn.Module:
        """Return the classifier itself."""
        return self.model

"""MixMatch: guess, sharpen, and mix labeled and unlabeled images up."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import draw_mixing, mix
from semisup.losses import mse_consistency, sharpen, soft_cross_entropy
from semisup.methods.base import (
    Batch,
    Fraction,
    Method,
    NonNegative,
    Positive,
    Progress,
    PseudoLabels,
    Update,
    Views,
)
from semisup.methods.parts.ramps import linear_ramp
from semisup.models import Classifier

__all__ = ["MixMatch", "guess_and_mix"]


class MixMatch(Method):
    """Sharpened predictions, and labeled and unlabeled images mixed with each other.

    L = H(y', p(x')) + w(t) * mean over images and classes of (p(u') - q')^2
    (Berthelot et al. 2019, arXiv:1905.02249, algorithm 1 and eq. 2-12).

    q is the mean prediction for two weak views, then sharpened, without gradient. The labeled images and both views of
    the unlabeled ones are mixed with partners drawn from all of them together, each image in a proportion of its own of
    which it keeps the larger part.

    The reference code runs the mixed images in interleaved parts, of which only the first updates BatchNorm's running
    statistics. Here they are one forward, hence one set of batch statistics; the running ones see it and the guesses'.

    Args:
        model: the classifier.
        temperature: sharpens the guesses, > 0. Paper: 0.5.
        alpha: of the Beta distribution of the proportions, >= 0; 0 mixes nothing. Paper: 0.75.
        unlabeled_weight: final w. Paper: 75 (CIFAR-10), 250 (SVHN), 150 (CIFAR-100), 50 (STL-10). The mean over
            classes makes the term 1/classes of the squared distance, hence the size.
        ramp: part of the run over which w rises linearly from 0, in [0, 1]. Reference code: 16,384 of 1,048,576 steps;
            USB: 0.4.
    """

    name = "mixmatch"
    family = "semi-supervised"
    summary = "Sharpened guesses and labels, mixed up with each other image by image."
    citation = "Berthelot et al. 2019, arXiv:1905.02249"
    views = Views(labeled=("weak",), unlabeled={"first": "weak", "second": "weak"})

    def __init__(
        self,
        model: Classifier,
        *,
        temperature: Positive = 0.5,
        alpha: NonNegative = 0.75,
        unlabeled_weight: NonNegative = 75.0,
        ramp: Fraction = 1 / 64,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.alpha = alpha
        self.unlabeled_weight = unlabeled_weight
        self.ramp = ramp

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        x, first = batch.labeled["weak"], batch.unlabeled["first"]
        guesses, images, targets = guess_and_mix(self.model, batch, self.temperature, self.alpha)
        targets, targets_unlabeled = targets.split([len(x), 2 * len(first)])
        logits, logits_unlabeled = self.model(images).split([len(x), 2 * len(first)])
        supervised = soft_cross_entropy(logits, targets)
        unlabeled = mse_consistency(logits_unlabeled, targets_unlabeled)
        up = linear_ramp(progress, self.ramp)
        yield Update(
            supervised + up * self.unlabeled_weight * unlabeled,
            log={"supervised": supervised, "unlabeled": unlabeled},
            pseudo_labels=PseudoLabels(batch.unlabeled.index, guesses.argmax(1), torch.ones_like(guesses[:, 0])),
        )

    def predictor(self) -> nn.Module:
        """Return the classifier itself; recipes evaluate its EMA, as the paper does."""
        return self.model


def guess_and_mix(model: nn.Module, batch: Batch, temperature: float, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Guess the labels of the unlabeled images from their views "first" and "second", and mix all images and labels.

    Args:
        model: classifies; runs in its own mode, without gradient.
        batch: B labeled images in the view "weak" and U unlabeled ones.
        temperature: sharpens the mean of the two views' probabilities, > 0.
        alpha: of the Beta distribution of the mixing proportions, >= 0.

    Returns:
        Guesses (U, C); mixed images (B + 2U, C, H, W), labeled first; their mixed labels (B + 2U, C).
    """
    x, first, second = batch.labeled["weak"], batch.unlabeled["first"], batch.unlabeled["second"]
    with torch.no_grad():
        probs = model(torch.cat([first, second])).float().softmax(1)
        guesses = sharpen((probs[: len(first)] + probs[len(first) :]) / 2, temperature)
    labels = F.one_hot(batch.labeled.y, guesses.shape[1]).to(guesses.dtype)
    images, targets = torch.cat([x, first, second]), torch.cat([labels, guesses, guesses])
    partners, shares = draw_mixing(len(images), alpha, images.device)
    return guesses, mix(images, partners, shares), mix(targets, partners, shares)

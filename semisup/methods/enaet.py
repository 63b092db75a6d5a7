"""EnAET: MixMatch, and decoders that tell from two features which transformation lies between them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.pretext.transformations import draw_affine, draw_colors, draw_projective, recolor, warp
from semisup.losses import mse_consistency, soft_cross_entropy
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
from semisup.methods.mixmatch import guess_and_mix
from semisup.methods.parts.ramps import linear_ramp
from semisup.methods.parts.together import apart
from semisup.models import Classifier

__all__ = ["EnAET"]

# Family -> numbers to predict, and the weight it ends with; the reference code's.
FAMILIES = {
    "projective": (8, 1.0),
    "affine": (6, 0.75),
    "similarity": (5, 0.5),
    "euclidean": (4, 0.2),
    "color": (4, 0.05),
}


class EnAET(Method):
    """MixMatch and decoders of five families of transformations.

    L = MixMatch + a(t) transform_weight * sum_k w_k mean (D_k(E(u), E(t_k u)) - t_k)^2
    + r(t) agreement_weight * mean_k H(q, p(t_k u)) (Wang et al. 2021, arXiv:1911.09265).

    MixMatch is as in its own file; q are its guesses, u its first view. Each family k of transformations (projective,
    affine, similarity, Euclidean, color) is drawn for each image anew; its decoder D_k predicts the normalized
    parameters from both features, through which the gradient flows. w = 1, 0.75, 0.5, 0.2, 0.05. The paper has a KL
    divergence in place of H, which differs by a constant.

    Reference code: maple-research-lab/EnAET, AET_MultiT/train_AETall_fast.py. It draws one set of parameters for
    affine, similarity and Euclidean, mixes a batch in one proportion, decodes from the second last stage of the network
    by a residual block of each decoder's own, and trains decoders by SGD next to Adam; here every family has its own
    draw, and a linear layer on the network's features in the same optimizer. Its additional views (mosaics) are left
    out. As there, the images of each family have a forward of their own: their batch statistics are theirs alone, and
    the running ones see the mixed images and the guesses', as in MixMatch. In one joint forward three images of five
    would be turned, sheared and zero-filled, and the network would be evaluated by their statistics.

    The reference code has the agreement at full weight from the first step; here it rises as MixMatch's unlabeled term
    does, because in a short run the first guesses are wrong. Digits with 100 labels, 400 steps, draw 10: joint forward
    and no ramp 10.3%, ramp alone 49.3%, own forwards alone 37.0%, both 95.5%.

    Args:
        model: the classifier; the decoders are next to it and are dropped afterwards.
        temperature: sharpens the guesses, > 0. Paper: 0.5.
        alpha: of the Beta distribution of the mixing proportions, >= 0; 0 mixes nothing. Paper: 0.75.
        unlabeled_weight: final weight of MixMatch's unlabeled term. Reference code: 75 (CIFAR-10).
        ramp: part of the run over which that and the agreement rise linearly from 0, in [0, 1]. Reference code: 16 of
            1,024 epochs, for the former.
        transform_weight: factor of the final weights of all decoders. Reference code: 1.
        transform_ramp: part of the run over which a(t) rises linearly from 0 to 1, in [0, 1]. Reference code: 0.1.
        agreement_weight: final weight of the guesses as labels of transformed images. Reference code: 1.
    """

    name = "enaet"
    family = "semi-supervised"
    summary = "MixMatch, with decoders that predict how an image was transformed and guesses that must survive it."
    citation = "Wang et al. 2021, arXiv:1911.09265"
    views = Views(labeled=("weak",), unlabeled={"first": "weak", "second": "weak"})

    def __init__(
        self,
        model: Classifier,
        *,
        temperature: Positive = 0.5,
        alpha: NonNegative = 0.75,
        unlabeled_weight: NonNegative = 75.0,
        ramp: Fraction = 1 / 64,
        transform_weight: NonNegative = 1.0,
        transform_ramp: Fraction = 0.1,
        agreement_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.decoders = nn.ModuleDict(
            {family: nn.Linear(2 * model.num_features, numbers) for family, (numbers, _) in FAMILIES.items()}
        )
        self.temperature = temperature
        self.alpha = alpha
        self.unlabeled_weight = unlabeled_weight
        self.ramp = ramp
        self.transform_weight = transform_weight
        self.transform_ramp = transform_ramp
        self.agreement_weight = agreement_weight

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the joint loss."""
        x, first = batch.labeled["weak"], batch.unlabeled["first"]
        guesses, images, targets = guess_and_mix(self.model, batch, self.temperature, self.alpha)
        parts = [len(x), 2 * len(first)]
        targets, targets_unlabeled = targets.split(parts)
        transformed = transform(first)

        logits, logits_unlabeled = self.model(images).split(parts)
        seen = [first, *(changed for changed, _ in transformed.values())]
        plain, *changed = apart(self.model, self.model.features, *seen)
        supervised = soft_cross_entropy(logits, targets)
        unlabeled = mse_consistency(logits_unlabeled, targets_unlabeled)
        agreement = soft_cross_entropy(self.model.head(torch.cat(changed)), guesses.repeat(len(changed), 1))
        errors = [
            weight * F.mse_loss(self.decoders[family](torch.cat([plain, features], 1)).float(), transformed[family][1])
            for (family, (_, weight)), features in zip(FAMILIES.items(), changed, strict=True)
        ]
        transformation = torch.stack(errors).sum()
        yield Update(
            supervised
            + linear_ramp(progress, self.ramp) * (self.unlabeled_weight * unlabeled + self.agreement_weight * agreement)
            + linear_ramp(progress, self.transform_ramp) * self.transform_weight * transformation,
            log={
                "supervised": supervised,
                "unlabeled": unlabeled,
                "transformation": transformation,
                "agreement": agreement,
            },
            pseudo_labels=PseudoLabels(batch.unlabeled.index, guesses.argmax(1), torch.ones_like(guesses[:, 0])),
        )

    def predictor(self) -> nn.Module:
        """Return the classifier without the decoders; recipes evaluate its EMA, as the paper does."""
        return self.model


def transform(images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Family -> the images (N, C, S, S) transformed, each in its own way, and what to predict of it, (N, numbers)."""
    count, device = len(images), images.device
    drawn = {
        "projective": draw_projective(count, device),
        "affine": draw_affine(count, device, scale=True, shear=True),
        "similarity": draw_affine(count, device, scale=True, shear=False),
        "euclidean": draw_affine(count, device, scale=False, shear=False),
    }
    factors = draw_colors(count, device)
    warped = {family: (warp(images, matrices), targets) for family, (matrices, targets) in drawn.items()}
    return {**warped, "color": (recolor(images, factors), factors)}

"""Decoupled RotNet: one half of the features tells how an image was turned, the other half which image it is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import four_rotations
from semisup.losses import positive_unlabeled
from semisup.methods.base import (
    Batch,
    BelowOne,
    Count,
    Fraction,
    Method,
    NonNegative,
    Positive,
    Progress,
    Update,
    Views,
)
from semisup.methods.parts.instance_bank import InstanceBank
from semisup.models import Encoder

__all__ = ["DecoupledRotation"]


class DecoupledRotation(Method):
    """Rotation prediction on one half of the features, instance discrimination on the other.

    L = mean w CE(k, head(r)) + invariance_weight * mean (s - sg s̄)^2 + instance_weight * NCE(v, bank), r and s the
    halves of E(rot_k u), s̄ the mean of s over the four turns k of an image, v = W s̄ / |W s̄|
    (Feng et al. 2019, CVPR, "Self-Supervised Representation Learning by Rotation Feature Decoupling").

    The bank has the v of every image, an average over the epochs; NCE tells an image's own row from rows of random
    others (NPID, arXiv:1805.01978), with P(i | v) = exp(v . bank_i / temperature) / Z, see
    `semisup.methods.parts.instance_bank.InstanceBank`. An image that is shown for the first time has no row but
    what it says now; it adds 0 to the mean, where the reference code learns from a random row.

    Some images look the same however they are turned: w = 1 - p^gamma for turned images, p the probability that one
    looks upright, and w = 1 for upright ones.

    p is the prediction of a linear classifier that has upright images as examples and turned ones as unlabeled
    (nnPU, arXiv:1703.00593). The reference code reads it, four numbers for every image, from a file made beforehand;
    how is not in it. Here it learns from the first step on, from r, into which its gradient does
    not go, and w counts from a later part of the run on: one run and no file. Other differences: the halves are
    those of the backbone's features, in the paper of a layer on top of them; all images of a batch have the same random
    rows of the bank as negatives.

    Reference code: philiptheother/FeatureDecoupling.

    Args:
        model: the bare encoder, at least 2 features wide; the heads are next to it and are dropped afterwards.
        num_images: number of training images; the bank takes 4 * `embedding` + 8 bytes for each.
        invariance_weight: weight of the second term. Paper: 1.
        instance_weight: weight of the third term. Paper: 1.
        weighted_from: part of the run after which w counts, in [0, 1]; 1: never. Reference code: 210 of 245 epochs.
        gamma: > 0, of w. Paper: 2.
        prior: part of the turned images that look upright, in [0, 1]; not of the paper.
        embedding: width of v. Paper: 128.
        negatives: rows of the bank that an image is told from. Paper: 4,096.
        temperature: > 0. Paper: 0.07.
        bank_momentum: of the bank's rows, per epoch, in [0, 1). Paper: 0.5.
    """

    name = "decoupled_rotation"
    family = "self-supervised"
    summary = "One half of the features tells how an image was turned, the other which image it is."
    citation = "Feng et al. 2019, CVPR; negatives after Wu et al. 2018, arXiv:1805.01978"
    trains = "encoder"
    views = Views(unlabeled={"crop": "crop_flip"})

    def __init__(
        self,
        model: Encoder,
        num_images: int,
        *,
        invariance_weight: NonNegative = 1.0,
        instance_weight: NonNegative = 1.0,
        weighted_from: Fraction = 6 / 7,
        gamma: Positive = 2.0,
        prior: Fraction = 0.1,
        embedding: Count = 128,
        negatives: Count = 4096,
        temperature: Positive = 0.07,
        bank_momentum: BelowOne = 0.5,
    ) -> None:
        super().__init__()
        self.encoder = model
        width = (model.num_features + 1) // 2  # of r; s has the rest
        self.rotation_head = nn.Linear(width, 4)
        self.upright_head = nn.Linear(width, 1)
        self.embed = nn.Linear(model.num_features - width, embedding)
        self.invariance_weight = invariance_weight
        self.instance_weight = instance_weight
        self.weighted_from = weighted_from
        self.gamma = gamma
        self.prior = prior
        self.negatives = negatives
        self.temperature = temperature
        self.bank = InstanceBank(num_images, embedding, bank_momentum)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update against the old rows of the bank, which then take in the new embeddings."""
        images, rows = batch.unlabeled["crop"], batch.unlabeled.index
        rotated, quarters = four_rotations(images)
        turning, staying = self.encoder(rotated).tensor_split(2, dim=1)

        upright_logits = self.upright_head(turning.detach()).float().view(-1, 4)
        upright = positive_unlabeled(upright_logits[:, 0], upright_logits[:, 1:].flatten(), self.prior)
        weights = self.weights(upright_logits.detach())
        if progress.fraction < self.weighted_from:
            weights = torch.ones_like(weights)
        losses = F.cross_entropy(self.rotation_head(turning).float(), quarters, reduction="none")
        rotation = (weights.flatten() * losses).mean()

        staying = staying.float().view(len(images), 4, -1)
        mean = staying.mean(1)
        invariance = (staying - mean.detach().unsqueeze(1)).square().mean()
        v = F.normalize(self.embed(mean).float(), dim=1)
        places, new = self.bank.enter(v, rows)
        instance = self.bank.nce_loss(v, places, self.temperature, self.negatives, ~new)
        self.bank.take_in(v, places)
        yield Update(
            rotation + self.invariance_weight * invariance + self.instance_weight * instance + upright,
            log={
                "rotation": rotation,
                "invariance": invariance,
                "instance": instance,
                "upright": upright,
                "weight": weights[:, 1:].mean(),
            },
        )

    def weights(self, upright_logits: Tensor) -> Tensor:
        """(N, 4) factors of the losses of an image's four turns, the first of which is none."""
        weights = 1 - upright_logits.sigmoid() ** self.gamma
        return torch.cat([torch.ones_like(weights[:, :1]), weights[:, 1:]], dim=1)

    def predictor(self) -> nn.Module:
        """Return the encoder without the heads."""
        return self.encoder

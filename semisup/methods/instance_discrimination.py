"""NPID: every image is a class of its own, whose weights are what the network last said to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch.nn.functional as F
from torch import nn

from semisup.losses.precision import full_precision
from semisup.methods.base import Batch, BelowOne, Count, Method, NonNegative, Positive, Progress, Update, Views
from semisup.methods.parts.instance_bank import InstanceBank
from semisup.models import Encoder

__all__ = ["InstanceDiscrimination"]


class InstanceDiscrimination(Method):
    """Instance discrimination against a memory bank, as a softmax or by noise-contrastive estimation.

    L = mean of -log P(i | v_i), or its estimate by NCE, + proximal_weight * mean ||v_i - b_i||^2
    (Wu et al. 2018, arXiv:1805.01978, eq. 2, 7 and 10).

    v_i is the embedding of image i, of unit length, b_i its row in a bank with one for every image, and P(i | v) =
    exp(b_i . v / temperature) / Z. `loss: softmax` takes the sum over the whole bank for Z. `loss: nce` tells the
    image's own row from `noise` rows drawn evenly (h = P / (P + noise / n)); it is for more images than fit next to a
    batch. The bank, its first rows and the Z of nce are those of
    `semisup.methods.parts.instance_bank.InstanceBank`.

    After each update b_i <- bank_momentum * b_i + (1 - bank_momentum) * v_i, to unit length; it carries no gradient.
    The paper puts v_i in as it is and calms it by the proximal term (`bank_momentum: 0, proximal_weight: 30`); the
    authors' code, whose way is the default, has the momentum and no proximal term.

    Source: zhirongw/lemniscate.pytorch, lib/NCEAverage.py, lib/LinearAverage.py and cifar.py. Its views are MoCo's
    without blur, with more jitter of hue. Its loss is nce, with random first rows and the Z of the first batch.

    Args:
        model: the bare encoder; the embedding is next to it and is dropped afterwards.
        num_images: images in the training set, n; the bank takes 4 * out_features + 8 bytes for each.
        loss: softmax, which takes 4 * n bytes for each image of a batch, a few times: up to about 100,000 images; or
            nce.
        noise: rows drawn per step by nce, m. Paper: 4,096.
        temperature: > 0. Paper: 0.07; authors' CIFAR code: 0.1.
        bank_momentum: in [0, 1). Authors' code: 0.5; paper: 0.
        proximal_weight: lambda, >= 0. Authors' code: 0; paper: 30 (recalled).
        out_features: dimension of the embeddings. Paper: 128.
    """

    name = "instance_discrimination"
    family = "self-supervised"
    summary = "Each image is a class; a bank of what the network last said to every image is the classifier."
    citation = "Wu et al. 2018, arXiv:1805.01978"
    trains = "encoder"
    views = Views(unlabeled={"view": "moco"})
    only_with = {"noise": ("loss", "nce")}

    def __init__(
        self,
        model: Encoder,
        num_images: int,
        *,
        loss: Literal["softmax", "nce"] = "softmax",
        noise: Count = 4096,
        temperature: Positive = 0.1,
        bank_momentum: BelowOne = 0.5,
        proximal_weight: NonNegative = 0.0,
        out_features: Count = 128,
    ) -> None:
        super().__init__()
        self.encoder = model
        self.embed = nn.Linear(model.num_features, out_features)
        self.loss = loss
        self.noise = noise
        self.temperature = temperature
        self.proximal_weight = proximal_weight
        self.bank = InstanceBank(num_images, out_features, bank_momentum)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update against the bank of earlier steps, which then takes in the new embeddings."""
        v = F.normalize(full_precision(self.embed(self.encoder(batch.unlabeled["view"]))), dim=1)
        places, _ = self.bank.enter(v, batch.unlabeled.index)
        if self.loss == "nce":
            instance = self.bank.nce_loss(v, places, self.temperature, self.noise)
        else:
            instance = self.bank.softmax_loss(v, places, self.temperature)
        proximal = (v - self.bank.rows[places]).square().sum(1).mean()
        yield Update(
            instance + self.proximal_weight * proximal,
            log={"instance": instance, "proximal": proximal},
        )
        self.bank.take_in(v, places)

    def predictor(self) -> nn.Module:
        """Return the encoder, without the embedding."""
        return self.encoder

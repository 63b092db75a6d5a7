"""NPID: every image is a class of its own, whose weights are what the network last said to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.losses import nce, similarity
from semisup.losses.precision import full_precision
from semisup.methods.base import Batch, BelowOne, Count, Method, NonNegative, Positive, Progress, Update, Views
from semisup.models import Encoder

__all__ = ["InstanceDiscrimination"]


class InstanceDiscrimination(Method):
    """L = mean of -log P(i | v_i), or its estimate by NCE, + proximal_weight * mean ||v_i - b_i||^2
    (Wu et al. 2018, arXiv:1805.01978, eq. 2, 7 and 10).

    v_i is the embedding of image i, of unit length, b_i its row in a bank with one for every image, and P(i | v) =
    exp(b_i . v / temperature) / Z. `loss: softmax` takes the sum over the whole bank for Z. `loss: nce` tells the
    image's own row from `noise` rows drawn evenly (h = P / (P + noise / n)), with the Z of the first batch: n times
    the mean of exp(b . v / temperature) over its noise, kept for good.

    After each update b_i <- bank_momentum * b_i + (1 - bank_momentum) * v_i, to unit length; it carries no gradient.
    The paper puts v_i in as it is and calms it by the proximal term (`bank_momentum: 0, proximal_weight: 30`); the
    authors' code, whose way is the default, has the momentum and no proximal term.

    The noise is drawn once for the batch, not once for each image: the expectation is the same, and the products are a
    matrix product instead of N * noise * D gathered numbers (0.5 GB for 256 images). Z is the paper's, over noise
    alone; the code's mean has each image's own row among the noise. Bank rows start on the unit sphere.

    Source: zhirongw/lemniscate.pytorch, lib/NCEAverage.py, lib/LinearAverage.py and cifar.py. Its views are MoCo's
    without blur, with more jitter of hue.

    Args:
        model: the bare encoder; the embedding is beside it and is dropped afterwards.
        num_images: images in the training set, n; the bank takes 4 * out_features bytes for each.
        loss: nce, or softmax, which takes 4 * n bytes for each image of a batch, a few times.
        noise: rows drawn per step, m. Paper: 4,096.
        temperature: > 0. Paper: 0.07; authors' CIFAR code: 0.1.
        bank_momentum: in [0, 1). Authors' code: 0.5; paper: 0.
        proximal_weight: lambda, >= 0. Authors' code: 0; paper: 30 (recalled).
        out_features: dimension of the embeddings. Paper: 128.
    """

    family = "self-supervised"
    summary = "Each image is a class; a bank of what the network last said to every image is the classifier."
    citation = "Wu et al. 2018, arXiv:1805.01978"
    trains = "encoder"
    needs_num_images = True
    views = Views(unlabeled={"view": "moco"})
    bank: Tensor
    log_z: Tensor

    def __init__(
        self,
        model: Encoder,
        num_images: int,
        *,
        loss: Literal["nce", "softmax"] = "nce",
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
        self.bank_momentum = bank_momentum
        self.proximal_weight = proximal_weight
        self.register_buffer("bank", F.normalize(torch.randn(num_images, out_features), dim=1))
        # log Z; Z = 0 until the first batch.
        self.register_buffer("log_z", torch.tensor(-torch.inf))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """One update against the bank of earlier steps, which then takes in the new embeddings."""
        index = batch.unlabeled.index
        v = F.normalize(full_precision(self.embed(self.encoder(batch.unlabeled["view"]))), dim=1)
        before = self.bank[index]
        if self.loss == "nce":
            instance = self.nce_loss(v, before)
        else:
            instance = F.cross_entropy(similarity(v, self.bank, self.temperature), index)
        proximal = (v - before).square().sum(1).mean()
        yield Update(
            instance + self.proximal_weight * proximal,
            log={"instance": instance, "proximal": proximal},
        )
        # Where two epochs meet in a batch, an image may stand in it twice: one of its embeddings is then taken in.
        self.bank[index] = F.normalize(torch.lerp(v.detach(), before, self.bank_momentum), dim=1)

    def nce_loss(self, v: Tensor, own: Tensor) -> Tensor:
        """NCE of embeddings (N, D) and their own rows of the bank (N, D), against noise; fixes Z if it is not yet."""
        count = len(self.bank)
        drawn = torch.randint(count, (self.noise,), device=v.device)
        noise = similarity(v, self.bank[drawn], self.temperature)
        log_mean = noise.detach().flatten().logsumexp(0) - math.log(noise.numel())
        self.log_z.copy_(torch.where(self.log_z.isinf(), log_mean + math.log(count), self.log_z))
        # log of P / P_noise, P_noise = 1 / n.
        shift = self.log_z - math.log(count)
        return nce((v * own).sum(1) / self.temperature - shift, noise - shift)

    def predictor(self) -> nn.Module:
        """The encoder, without the embedding."""
        return self.encoder

"""SimCLR: two views of an image find each other among all the others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from semisup.losses import nt_xent
from semisup.methods.base import Batch, Count, CountOrZero, Method, Positive, Progress, Update, Views
from semisup.models import Encoder, ProjectionHead

__all__ = ["SimCLR"]


class SimCLR(Method):
    """NT-Xent over two views, one joint forward (Chen et al. 2020, arXiv:2002.05709, eq. 1).

    The loss is the paper's mean over 2N anchors; the official TensorFlow code sums two means and reports twice as much.

    Args:
        model: the bare encoder; a two-layer projection head is added to it.
        temperature: of the similarities, > 0. Paper: 0.1 on ImageNet, 0.5 on CIFAR-10.
        hidden: width of the head's middle layer; 0 means the encoder's width, as in the paper.
        out_features: dimension of the compared embeddings. Paper: 128.
        decoupled: leave the positive out of the denominator (arXiv:2110.06848); meant for small batches.
        chunk: views that are compared with all others at a time, for large batches: memory in its proportion, for one
            more computation of the similarities; 0: all of them.
    """

    name = "simclr"
    family = "self-supervised"
    summary = "Two views of an image attract each other among all other images of the batch."
    citation = "Chen et al. 2020, arXiv:2002.05709"
    trains = "encoder"
    views = Views(unlabeled={"first": "simclr", "second": "simclr"})

    def __init__(
        self,
        model: Encoder,
        *,
        temperature: Positive = 0.5,
        hidden: CountOrZero = 0,
        out_features: Count = 128,
        decoupled: bool = False,
        chunk: CountOrZero = 0,
    ) -> None:
        super().__init__()
        width = hidden or model.num_features
        self.encoder = Encoder(model.backbone, ProjectionHead(model.num_features, width, out_features, num_layers=2))
        self.temperature = temperature
        self.decoupled = decoupled
        self.chunk = chunk

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update; both views carry gradients."""
        views = torch.cat([batch.unlabeled["first"], batch.unlabeled["second"]])
        z = self.encoder.project(views)
        loss = nt_xent(z, self.temperature, decoupled=self.decoupled, chunk=self.chunk)
        first, second = z.chunk(2)
        yield Update(loss, log={"contrastive": loss}, embeddings=(first, second))

    def predictor(self) -> nn.Module:
        """Return the encoder, with its projection head next to it."""
        return self.encoder

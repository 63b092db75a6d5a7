"""Barlow Twins: features agree between two views of an image, and each says something of its own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from semisup.losses import barlow_twins
from semisup.methods.base import Batch, Count, Method, NonNegative, Positive, Progress, Update, Views
from semisup.models import Encoder, build_neck

__all__ = ["BarlowTwins"]


class BarlowTwins(Method):
    """Redundancy reduction: the cross-correlation of the features of two views is drawn to the identity.

    L = scale * (sum_i (1 - C_ii)^2 + redundancy_weight * sum_{i != j} C_ij^2), C the cross-correlation of the
    features of two views over the batch (Zbontar et al. 2021, arXiv:2103.03230, eq. 1).

    The two sums grow with out_features, which did best far above the encoder's width. Each view has its own forward, as
    in the authors' code.

    Source: facebookresearch/barlowtwins, main.py. Its separate learning rate for biases and norms is left out.

    Args:
        model: the bare encoder; the projector is next to it and is dropped afterwards.
        hidden: width of the projector's two middle layers. Paper: 8,192; solo-learn on CIFAR: 2,048.
        out_features: number of features that are correlated. Paper: 8,192; solo-learn on CIFAR: 2,048.
        redundancy_weight: lambda, >= 0. Authors' code: 0.0051.
        scale: of the whole loss, > 0; adaptive optimizers do not see it. Paper: 1; solo-learn on CIFAR: 0.1.
    """

    name = "barlow_twins"
    family = "self-supervised"
    summary = "The cross-correlation of two views' features becomes the identity."
    citation = "Zbontar et al. 2021, arXiv:2103.03230"
    trains = "encoder"
    views = Views(unlabeled={"first": "byol_first", "second": "byol_second"})

    def __init__(
        self,
        model: Encoder,
        *,
        hidden: Count = 2048,
        out_features: Count = 2048,
        redundancy_weight: NonNegative = 0.0051,
        scale: Positive = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = model
        self.project = nn.Sequential(
            build_neck(model.num_features, [hidden, hidden]), nn.Linear(hidden, out_features, bias=False)
        )
        self.redundancy_weight = redundancy_weight
        self.scale = scale

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update; both views carry gradients."""
        first, second = (self.project(self.encoder(batch.unlabeled[view])) for view in ("first", "second"))
        loss = self.scale * barlow_twins(first, second, self.redundancy_weight)
        yield Update(loss, log={"correlation": loss}, embeddings=(first, second))

    def predictor(self) -> nn.Module:
        """Return the encoder, without its projector."""
        return self.encoder

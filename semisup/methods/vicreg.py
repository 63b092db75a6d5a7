"""VICReg: two views of an image agree, while every feature varies and none repeats another."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import nn

from semisup.losses import covariance_penalty, variance_hinge
from semisup.losses.precision import full_precision
from semisup.methods.base import Batch, Count, Method, NonNegative, Progress, Update, Views
from semisup.models import Encoder, build_neck

__all__ = ["VICReg"]


class VICReg(Method):
    """L = 25 s(z, z') + 25 (v(z) + v(z')) / 2 + 1 (c(z) + c(z')) (Bardes et al. 2022, arXiv:2105.04906, eq. 6).

    s is the mean squared difference of the two views' embeddings, v the hinge that keeps every feature's
    std at 1, c the penalty on covariances (`variance_hinge`, `covariance_penalty`). Embeddings are not
    normalized. Each view has its own forward, as in the authors' code.

    Where paper and code disagree this is the code, facebookresearch/vicreg main_vicreg.py, with which the weights were
    found: s is a mean over features too (eq. 5 sums them), and the two v are averaged (eq. 6 adds them; both
    equations recalled).

    Args:
        model: the bare encoder; the expander is next to it and is dropped afterwards.
        hidden: width of the expander's two middle layers. Paper: 8,192; solo-learn on CIFAR: 2,048.
        out_features: dimension of the embeddings. Paper: 8,192; solo-learn on CIFAR: 2,048.
        invariance_weight: lambda, >= 0. Paper: 25.
        variance_weight: mu, >= 0; without it all images become one point. Paper: 25.
        covariance_weight: nu, >= 0. Paper: 1.
    """

    name = "vicreg"
    family = "self-supervised"
    summary = "Two views agree, while the batch's features keep their variance and lose their covariance."
    citation = "Bardes et al. 2022, arXiv:2105.04906"
    trains = "encoder"
    views = Views(unlabeled={"first": "byol_first", "second": "byol_second"})

    def __init__(
        self,
        model: Encoder,
        *,
        hidden: Count = 2048,
        out_features: Count = 2048,
        invariance_weight: NonNegative = 25.0,
        variance_weight: NonNegative = 25.0,
        covariance_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = model
        self.expand = nn.Sequential(
            build_neck(model.num_features, [hidden, hidden]), nn.Linear(hidden, out_features, bias=False)
        )
        self.invariance_weight = invariance_weight
        self.variance_weight = variance_weight
        self.covariance_weight = covariance_weight

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update; both views carry gradients."""
        first, second = (
            full_precision(self.expand(self.encoder(batch.unlabeled[view]))) for view in ("first", "second")
        )
        invariance = F.mse_loss(first, second)
        variance = (variance_hinge(first) + variance_hinge(second)) / 2
        covariance = covariance_penalty(first) + covariance_penalty(second)
        yield Update(
            self.invariance_weight * invariance + self.variance_weight * variance + self.covariance_weight * covariance,
            log={"invariance": invariance, "variance": variance, "covariance": covariance},
            embeddings=(first, second),
        )

    def predictor(self) -> nn.Module:
        """Return the encoder, without its expander."""
        return self.encoder

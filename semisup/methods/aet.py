"""AET: which transformation lies between two images?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.pretext.transformations import draw_affine, draw_projective, warp
from semisup.methods.base import Batch, Method, Progress, Update, Views
from semisup.models import Encoder

__all__ = ["AET", "AETTask"]

NUMBERS = {"affine": 6, "projective": 8}


class AETTask(nn.Module):
    """The decoder, and the loss of a batch of images; arguments are those of `AET`."""

    def __init__(self, num_features: int, *, transformation: Literal["affine", "projective"] = "projective") -> None:
        super().__init__()
        self.transformation = transformation
        self.decoder = nn.Linear(2 * num_features, NUMBERS[transformation])

    def forward(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Mean squared error of the numbers decoded for images (N, C, S, S), each transformed in its own way."""
        if self.transformation == "affine":
            matrices, targets = draw_affine(len(images), images.device, scale=True, shear=True)
        else:
            matrices, targets = draw_projective(len(images), images.device)
        features, changed = encoder(torch.cat([images, warp(images, matrices)])).chunk(2)
        return F.mse_loss(self.decoder(torch.cat([features, changed], dim=1)).float(), targets)


class AET(Method):
    """Auto-encoding transformations: a decoder tells from two features which transformation lies between the images.

    L = mean (D([E(u), E(t u)]) - t)^2 over images and the numbers of t (Zhang et al. 2019, arXiv:1901.04596, eq. 1
    and 3).

    t is drawn for every image: projective (four corners moved by up to 1/8 of the side, the whole scaled by 0.8 to 1.2
    and turned by quarters) or affine (turned, moved by up to 0.2 of the side, scaled by 0.8 to 1.2, sheared by up to 30
    degrees). What is decoded is normalized: see `semisup.augment.pretext.transformations`. Both images are in one
    forward, and both have a gradient.

    Reference code: maple-research-lab/AET. There corners move by whole pixels, an affine scale is 0.7 to 1.3 (here the
    later EnAET's), the outside is mid-gray (here the data's mean), and the encoder ends with a block that each task has
    of its own.

    Args:
        model: the bare encoder; a linear decoder of both images' features is next to it and is dropped afterwards.
        transformation: affine, 6 numbers, or projective, 8. Paper: projective is the better one.
    """

    name = "aet"
    family = "self-supervised"
    summary = "Decodes from the features of two images which transformation lies between them."
    citation = "Zhang et al. 2019, arXiv:1901.04596"
    trains = "encoder"
    views = Views(unlabeled=("weak",))

    def __init__(self, model: Encoder, *, transformation: Literal["affine", "projective"] = "projective") -> None:
        super().__init__()
        self.encoder = model
        self.task = AETTask(model.num_features, transformation=transformation)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        loss: Tensor = self.task(self.encoder, batch.unlabeled["weak"])
        yield Update(loss, log={"transformation": loss})

    def predictor(self) -> nn.Module:
        """Return the encoder without the decoder."""
        return self.encoder

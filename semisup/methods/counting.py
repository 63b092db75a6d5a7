"""Learning to count: four quarters of an image hold together what the image holds, and another image does not."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import halve, lose_color, quarters
from semisup.errors import SemisupError
from semisup.losses import counting
from semisup.methods.base import Batch, Count, Fraction, Method, NonNegative, Progress, Update, Views
from semisup.models import Encoder

__all__ = ["Counting", "CountingTask"]

SMALLEST_SIDE = 8  # of an image whose half a backbone still takes


class CountingTask(nn.Module):
    """The counts, and the loss of a batch of images; arguments are those of `Counting`."""

    def __init__(self, num_features: int, *, margin: float = 10.0, gray: float = 0.3, counts: int = 1000) -> None:
        super().__init__()
        self.margin = margin
        self.gray = gray
        self.head = nn.Sequential(nn.Linear(num_features, counts), nn.ReLU())

    def forward(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Mean loss over images (N, C, S, S); the other image of each is its neighbor in the batch.

        Raises:
            SemisupError: there is no other image.
        """
        count = len(images)
        if count < 2:
            raise SemisupError("method counting: a batch needs two images or more; raise batch.unlabeled")
        images = lose_color(images, self.gray)
        side = max(images.shape[-1] // 2 * 2, SMALLEST_SIDE)
        if side > images.shape[-1]:
            images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
        images = images[..., :side, :side]
        together = torch.cat([halve(images), quarters(images).flatten(0, 1)])
        together = together.contiguous(memory_format=torch.channels_last)
        whole, parts = self.head(encoder(together)).split([count, 4 * count])
        return counting(whole, parts.view(count, 4, -1), whole.roll(1, 0), self.margin)


class Counting(Method):
    """Learning to count: the features of the quarters add up to those of the whole image.

    L = mean |f(D x) - S|^2 + max(0, margin - |f(D y) - S|^2), S = sum over the quarters T_j x of f(T_j x)
    (Noroozi et al. 2017, arXiv:1708.06734, eq. 4).

    f = ReLU(linear(E(.))) >= 0 counts; D halves an image, so that it is as large as a quarter; y is another image of
    the batch, the one before it, whose order is random: D y is computed once, as the D x of its own. All five images
    are in one forward, and all have a gradient. D takes one of several filters for each image, and some color images
    lose their color, since either would tell a halved image from a quarter. An odd last row and column are lost.

    Args:
        model: the bare encoder, which must take images of half the size; the head is next to it.
        margin: M >= 0. Paper: 10.
        gray: part of color images that lose their color, in [0, 1]. Not verified against the paper.
        counts: how many things are counted. Paper: 1,000.

    Raises:
        SemisupError: at the first step, if a batch has a single image.
    """

    name = "counting"
    family = "self-supervised"
    summary = "Counts features that add up over the quarters of an image, and do not to another image's."
    citation = "Noroozi et al. 2017, arXiv:1708.06734"
    trains = "encoder"
    views = Views(unlabeled=("weak",))

    def __init__(
        self, model: Encoder, *, margin: NonNegative = 10.0, gray: Fraction = 0.3, counts: Count = 1000
    ) -> None:
        super().__init__()
        self.encoder = model
        self.task = CountingTask(model.num_features, margin=margin, gray=gray, counts=counts)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        loss: Tensor = self.task(self.encoder, batch.unlabeled["weak"])
        yield Update(loss, log={"counting": loss})

    def predictor(self) -> nn.Module:
        """Return the encoder without the counts."""
        return self.encoder

"""Context prediction: where around the middle tile of the image did this other tile lie?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import cut_tiles, drop_channels, normalize_tiles
from semisup.methods.base import Batch, Count, Method, Progress, Quarter, Update, Views
from semisup.models import Encoder, build_neck

__all__ = ["ContextPrediction", "ContextPredictionTask"]

MIDDLE = 4  # of nine tiles, row by row


class ContextPredictionTask(nn.Module):
    """The head, and the loss of a batch of images; arguments are those of `ContextPrediction`."""

    def __init__(self, num_features: int, *, gap: float = 0.24, jitter: float = 0.1, hidden: int = 256) -> None:
        super().__init__()
        self.gap = gap
        self.jitter = jitter
        self.head = nn.Sequential(build_neck(2 * num_features, [hidden]), nn.Linear(hidden, 8))

    def forward(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Mean cross-entropy over the eight neighbors of the middle of all images (N, C, S, S)."""
        return F.cross_entropy(*self.predict(encoder, images))

    def predict(self, encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (8N, 8) for the neighbors of the middle of all images, and their places (8N,)."""
        tiles = cut_tiles(images, 3, self.gap, self.jitter)
        count, cells = tiles.shape[:2]
        tiles = drop_channels(normalize_tiles(tiles.flatten(0, 1)))  # the other way round noise would grow to full size
        features = encoder(tiles.contiguous(memory_format=torch.channels_last)).view(count, cells, -1)
        middle = features[:, MIDDLE : MIDDLE + 1].expand(-1, cells - 1, -1)
        neighbors = torch.cat([features[:, :MIDDLE], features[:, MIDDLE + 1 :]], dim=1)
        places = torch.arange(cells - 1, device=images.device).repeat(count)
        pairs = torch.cat([middle, neighbors], dim=2).flatten(0, 1)
        return self.head(pairs).float(), places


class ContextPrediction(Method):
    """Prediction of where a tile lies next to the middle one.

    L = mean over the eight neighbors k of the middle tile m of CE(k, head([E(m), E(t_k)]))
    (Doersch et al. 2015, arXiv:1505.05192).

    Tiles are those of a 3 x 3 grid, cut with a gap and at a random place, and normalized one by one. In color images
    each tile keeps one channel; noise of 1/100 of its std stands in for the others, since a lens shifts them
    against one another, which would tell the place. The paper draws one pair at a time from anywhere in a large image;
    here all eight of an image share the forward of its nine tiles. Its tiles of random resolution are left out, for
    there is none to lose. Images with cells of less than 8 pixels are enlarged.

    Args:
        model: the bare encoder, which must take images as small as a tile; the head is next to it.
        gap: least distance of neighboring tiles as a part of a cell, in [0, 0.25]. Paper: 34 of 144 pixels.
        jitter: how far a tile may move in its cell, likewise. Paper: 14 of 144 pixels.
        hidden: width of the head's middle layer. Paper: 4,096, for features of as many.
    """

    name = "context_prediction"
    family = "self-supervised"
    summary = "Tells on which side of a tile another tile of the image lay."
    citation = "Doersch et al. 2015, arXiv:1505.05192"
    trains = "encoder"
    views = Views(unlabeled=("weak",))

    def __init__(self, model: Encoder, *, gap: Quarter = 0.24, jitter: Quarter = 0.1, hidden: Count = 256) -> None:
        super().__init__()
        self.encoder = model
        self.task = ContextPredictionTask(model.num_features, gap=gap, jitter=jitter, hidden=hidden)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        loss: Tensor = self.task(self.encoder, batch.unlabeled["weak"])
        yield Update(loss, log={"context": loss})

    def pretext_confusion(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which place is taken for which."""
        return self.task.predict(self.encoder, batch.unlabeled["weak"])

    def predictor(self) -> nn.Module:
        """Return the encoder without the head."""
        return self.encoder

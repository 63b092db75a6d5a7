"""Jigsaw: in which order were the nine tiles of the image shuffled?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import cut_tiles, lose_color, maximin_permutations, normalize_tiles
from semisup.methods.base import (
    AtLeastTwo,
    Batch,
    Count,
    CountOrZero,
    Fraction,
    Method,
    Progress,
    Quarter,
    Range,
    Update,
    Views,
)
from semisup.models import Encoder, build_neck

__all__ = ["Jigsaw", "JigsawTask"]


class JigsawTask(nn.Module):
    """The set of permutations, the head, and the loss of a batch of images; arguments are those of `Jigsaw`."""

    permutations: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        grid: int = 3,
        gap: float = 0.0,
        jitter: float = 0.15,
        gray: float = 0.3,
        permutations: int = 100,
        permutation_seed: int = 0,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.gap = gap
        self.jitter = jitter
        self.gray = gray
        # A buffer: the head has learned this set, whatever a later version of the rule would choose.
        chosen = maximin_permutations(grid**2, permutations, permutation_seed)
        self.register_buffer("permutations", torch.tensor(chosen))
        self.head = nn.Sequential(build_neck(grid**2 * num_features, [hidden]), nn.Linear(hidden, permutations))

    def forward(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Mean cross-entropy over images (N, C, S, S), each in one random permutation."""
        return F.cross_entropy(*self.predict(encoder, images))

    def predict(self, encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, permutations) for images, each in one random permutation, and which it was (N,)."""
        images = lose_color(images, self.gray)
        tiles = normalize_tiles(cut_tiles(images, self.grid, self.gap, self.jitter))
        # The encoder sees every tile by itself, so that shuffling what it says of them is shuffling the tiles.
        features = encoder(tiles.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        features = features.view(*tiles.shape[:2], -1)
        labels = torch.randint(len(self.permutations), (len(images),), device=images.device)
        sources = self.permutations[labels]  # slot t shows the tile from place sources[t]
        shuffled = features.gather(1, sources[:, :, None].expand_as(features))
        return self.head(shuffled.flatten(1)).float(), labels


class Jigsaw(Method):
    """Prediction of the permutation of an image's nine tiles.

    L = mean of CE(p, head([E(tile p(1)), ..., E(tile p(9))])), p one of a fixed set of permutations, drawn for
    every image (Noroozi and Favaro 2016, arXiv:1603.09246).

    Each tile is cut at a random place of its cell of the grid and normalized by itself; all go through one encoder in
    one forward. Permutations are chosen by their least distance, not the mean one: see
    `semisup.augment.maximin_permutations`. Left out: the shift of color channels against one another by up to 2
    of 64 pixels, less than one here. Images with cells of less than 8 pixels are enlarged.

    Args:
        model: the bare encoder, which must take images as small as a tile; the head is next to it.
        grid: tiles along each axis, 2 or 3. Paper: 3.
        gap: least distance of neighboring tiles as a part of a cell, in [0, 0.25]. Paper: 0.
        jitter: how far a tile may move in its cell, likewise. Paper: 11 of 75 pixels.
        gray: part of color images that lose their color, in [0, 1]. Paper: 0.3.
        permutations: how many, at most 24 for 4 tiles. Paper: 1,000; 100 for short runs.
        permutation_seed: of the set. It is saved with the state of the run.
        hidden: width of the head's middle layer. Paper: 4,096, for features of 9 x 1,024.

    Raises:
        SemisupError: more permutations than there are.
    """

    name = "jigsaw"
    family = "self-supervised"
    summary = "Tells in which order the tiles of an image were shuffled."
    citation = "Noroozi & Favaro 2016, arXiv:1603.09246"
    trains = "encoder"
    views = Views(unlabeled=("weak",))

    def __init__(
        self,
        model: Encoder,
        *,
        grid: Annotated[int, Range(2, 3)] = 3,
        gap: Quarter = 0.0,
        jitter: Quarter = 0.15,
        gray: Fraction = 0.3,
        permutations: AtLeastTwo = 100,
        permutation_seed: CountOrZero = 0,
        hidden: Count = 256,
    ) -> None:
        super().__init__()
        self.encoder = model
        self.task = JigsawTask(
            model.num_features,
            grid=grid,
            gap=gap,
            jitter=jitter,
            gray=gray,
            permutations=permutations,
            permutation_seed=permutation_seed,
            hidden=hidden,
        )

    @staticmethod
    def conflicts(grid: int, permutations: int, **_: object) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between the options; see `semisup.options.check_options`."""
        most = math.factorial(grid**2)
        if permutations > most:
            yield "permutations", f"must be at most {most:,}, those of {grid**2} tiles, not {permutations}"

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        loss: Tensor = self.task(self.encoder, batch.unlabeled["weak"])
        yield Update(loss, log={"jigsaw": loss})

    def pretext_confusion(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which permutation is taken for which."""
        return self.task.predict(self.encoder, batch.unlabeled["weak"])

    def predictor(self) -> nn.Module:
        """Return the encoder without the head."""
        return self.encoder

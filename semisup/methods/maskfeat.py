"""MaskFeat: say which way the edges run where nothing is to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn

from semisup.augment.kernels.hog import BINS, hog
from semisup.augment.pretext.patches import hide_blocks
from semisup.errors import SemisupError
from semisup.losses import masked_mse
from semisup.methods.base import Batch, Count, Fraction, Method, Progress, Range, Update, Views
from semisup.models import Encoder
from semisup.models.vit import require_vit

__all__ = ["MaskFeat"]


class MaskFeat(Method):
    """Mean squared error of the hidden patches' histograms of oriented gradients (Wei et al. 2022, arXiv:2112.09133).

    Unlike in a masked autoencoder the encoder gets all places, with one learned token in those that are hidden, and a
    linear layer on its outputs predicts. The histograms are those of the augmented image, of every channel, weighted by
    a Gaussian over each patch (open-mmlab/mmpretrain). What is hidden comes in rectangles, see
    `semisup.augment.pretext.patches.hide_blocks`.

    Args:
        model: the bare encoder around a `vit`; the linear layer is next to it and is dropped afterwards.
        mask_ratio: part of the patches that is hidden, in (0, 1). Paper: 0.4.
        smallest_block: area of a rectangle at the least, as a part of the patches, in [0, 1]. Reference code: 15/196.
        cell: side of a histogram's cell in pixels; must divide the backbone's patch. Paper: 8, half the patch; on
            small images so few pixels tell little, hence 4, the default patch.

    Raises:
        SemisupError: another backbone than `vit`; a cell that does not divide the patch.
    """

    name = "maskfeat"
    family = "self-supervised"
    summary = "A transformer tells, for hidden blocks of an image, the directions of the edges there."
    citation = "Wei et al. 2022, arXiv:2112.09133"
    trains = "encoder"
    views = Views(unlabeled={"image": "maskfeat"})

    def __init__(
        self,
        model: Encoder,
        *,
        mask_ratio: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.4,
        smallest_block: Fraction = 15 / 196,
        cell: Count = 4,
    ) -> None:
        super().__init__()
        vit = require_vit(model.backbone, "maskfeat")
        if vit.patch % cell:
            raise SemisupError(f"method.cell: must divide the patch of the model, {vit.patch}, got {cell}")
        self.encoder = model
        self.mask_ratio = mask_ratio
        self.smallest_block = smallest_block
        self.cell = cell
        self.mask_token = nn.Parameter(torch.empty(vit.num_features))
        nn.init.normal_(self.mask_token, std=0.02)
        self.predict = nn.Linear(vit.num_features, vit.in_channels * BINS * (vit.patch // cell) ** 2)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        images = batch.unlabeled["image"]
        vit = require_vit(self.encoder.backbone, "maskfeat")
        rows, columns = vit.grid(images)
        hidden = max(1, round(rows * columns * self.mask_ratio))
        smallest = max(1, round(rows * columns * self.smallest_block))
        mask = hide_blocks(len(images), rows, columns, hidden, smallest, images.device)
        loss = masked_mse(self.guess(images, mask), self.target(images), mask)
        yield Update(loss, log={"hog": loss})

    def guess(self, images: Tensor, mask: Tensor) -> Tensor:
        """Predict the histograms of all patches, (N, T, D), with those of `mask` (N, T) hidden."""
        vit = require_vit(self.encoder.backbone, "maskfeat")
        tokens = vit.patches(images)
        tokens = torch.where(mask[:, :, None], self.mask_token.to(tokens.dtype), tokens)
        guesses: Tensor = self.predict(vit.encode(tokens + vit.positions(images).to(tokens.dtype)))
        return guesses

    def target(self, images: Tensor) -> Tensor:
        """Return the histograms (N, T, D) of the patches: of each channel, the nine bins, in each the patch's cells."""
        vit = require_vit(self.encoder.backbone, "maskfeat")
        rows, columns = vit.grid(images)
        cells = hog(images, self.cell, vit.patch).unflatten(4, (columns, -1)).unflatten(3, (rows, -1))
        histograms: Tensor = cells.permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)
        return histograms

    def predictor(self) -> nn.Module:
        """Return the encoder, from which nothing is hidden from now on."""
        return self.encoder

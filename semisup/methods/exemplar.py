"""Exemplar-CNN: every one of a few thousand patches is a class, and its transformations are the examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.pretext.exemplars import draw_changes, draw_places, transform_patches
from semisup.methods.base import Batch, Count, Method, NonNegative, Progress, Range, Update, Views
from semisup.models import Encoder

__all__ = ["Exemplar"]

SMALLEST_PATCH = 4  # pixels that a backbone takes


class Exemplar(Method):
    """Exemplar networks: each of many image patches is a class of its own.

    L = mean over random transformations t of random seeds i of CE(i, head(E(t x_i)))
    (Dosovitskiy et al. 2014, arXiv:1406.6909, eq. 1 and 2).

    The first `surrogates` images that the stage shows become the seeds: no image is shown twice in an epoch, so that
    no two classes are one image, and their order is random. They and a place of each, where it has large gradients, are
    kept. A step draws as many seeds as it is given images, with replacement, and cuts one transformed patch of each:
    moved by up to 0.2 of its side, scaled by 0.7 to 1.4, turned by up to 20 degrees, with other contrast, saturation,
    value and hue (see `semisup.augment.pretext.exemplars.transform_patches`). Images that come after the last
    seed are not looked at. While seeds are still coming, those that are there are drawn from.

    Differences: the paper's patches are a third of a 96-pixel image wide; contrast changes along fixed axes of color
    instead of the data's principal components; no dropout.

    Args:
        model: the bare encoder, which must take images as small as a patch; the head is next to it.
        num_unlabeled: images that batches are made of: no more seeds than that.
        image_shape: channels, height and width of an image; a seed takes four bytes for each of its numbers.
        surrogates: number of seeds. Paper: 8,000, with about 100 examples of each: far fewer than the images, of which
            two that are nearly equal contradict one another.
        patch: side of a patch as a part of the image's, in (0, 1]. Paper: 32 of 96 pixels.
        strength: factor of the ranges of all transformations, those of scales and powers in their logarithms. Paper: 1.
    """

    name = "exemplar"
    family = "self-supervised"
    summary = "Every one of many patches is a class, whose examples are transformations of it."
    citation = "Dosovitskiy et al. 2014, arXiv:1406.6909"
    trains = "encoder"
    views = Views(unlabeled={"image": "none"})
    seeds: Tensor
    places: Tensor

    def __init__(
        self,
        model: Encoder,
        num_unlabeled: int,
        image_shape: tuple[int, int, int],
        *,
        surrogates: Count = 8000,
        patch: Annotated[float, Range(0, 1, open_low=True)] = 0.75,
        strength: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        surrogates = min(surrogates, num_unlabeled)
        self.encoder = model
        self.head = nn.Linear(model.num_features, surrogates)
        self.width = max(round(patch * image_shape[2]), SMALLEST_PATCH)
        self.strength = strength
        self.register_buffer("seeds", torch.zeros(surrogates, *image_shape))
        self.register_buffer("places", torch.zeros(surrogates, 2))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update, on seeds among which are this step's images if there was room for them."""
        images = batch.unlabeled["image"]
        # How many there are follows from the batches so far, which are known without asking the device.
        start = progress.batches * len(images)
        known = min(start + len(images), len(self.seeds))
        if start < known:
            new = images[: known - start]
            self.seeds[start:known] = new
            self.places[start:known] = draw_places(new, self.width)
        classes = torch.randint(known, (len(images),), device=images.device)
        changes = self.strength * draw_changes(len(images), images.device)
        patches = transform_patches(self.seeds[classes], self.places[classes], self.width, changes)
        features = self.encoder(patches.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(self.head(features).float(), classes)
        yield Update(loss, log={"exemplar": loss})

    def predictor(self) -> nn.Module:
        """Return the encoder without the head."""
        return self.encoder

"""PixelCNN auto-encoder: the code of an image tells what its earlier pixels do not."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.kernels.normalize import Normalize
from semisup.methods.base import AtLeastTwo, Batch, Count, Depth, Method, Progress, Statistics, Update, Views
from semisup.models import Encoder, image_channels
from semisup.models.gated_pixel_cnn import GatedPixelCNN

__all__ = ["PixelCNN"]


class PixelCNN(Method):
    """Density of the pixels given those before them and the code of the whole image.

    L = - mean log p(x_i | x_<i, f(x)), in nats per channel of a pixel (van den Oord et al. 2016, arXiv:1606.05328,
    sec. 2.4).

    The encoder f gives a code of the whole image; a conditional gated PixelCNN gives each pixel's distribution from
    the pixels before it, in the order of reading, and from the code. The decoder sees few pixels, so that the code has
    to hold what the image is like as a whole. For small images: the decoder works at full resolution.

    Differences. Pixels are rounded to `levels` brightnesses, there 256, and the decoder reads the rounded ones. The
    channels of a pixel are predicted side by side, there red before green before blue. The decoder is far smaller, and
    the code is the mean over the backbone's last map, there a fully connected layer.

    Args:
        model: the bare encoder; the decoder is next to it and is dropped afterwards.
        statistics: means and stds that the images were normalized by.
        levels: of brightness, at least 2.
        decoder_width: channels of each of the decoder's two stacks.
        decoder_layers: gated layers; a pixel sees as many rows above it and one more.
    """

    name = "pixel_cnn"
    family = "self-supervised"
    summary = "A decoder guesses an image pixel after pixel from those before and from the network's features."
    citation = "van den Oord et al. 2016, arXiv:1606.05328"
    trains = "encoder"
    views = Views(unlabeled={"image": "weak"})

    def __init__(
        self,
        model: Encoder,
        statistics: Statistics,
        *,
        levels: AtLeastTwo = 8,
        decoder_width: Count = 16,
        decoder_layers: Depth = 3,
    ) -> None:
        super().__init__()
        channels = image_channels(model.backbone)
        self.encoder = model
        self.decoder = GatedPixelCNN(
            channels, model.num_features, decoder_width, decoder_layers, out_channels=channels * levels
        )
        self.normalize = Normalize(*statistics)
        self.levels = levels

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        images = batch.unlabeled["image"]
        targets = self.quantize(images)
        loss = F.cross_entropy(self.logits(targets, self.encoder(images)).float(), targets)
        yield Update(loss, log={"pixels": loss})

    def quantize(self, images: Tensor) -> Tensor:
        """Round normalized images to (N, C, H, W) int64 levels, 0 for black."""
        brightness = self.normalize.undo(images)
        return (brightness * self.levels).long().clamp(0, self.levels - 1)

    def logits(self, targets: Tensor, codes: Tensor) -> Tensor:
        """Logits (N, levels, C, H, W) of each pixel, from codes (N, F) and from the levels before it."""
        visible = targets.to(codes.dtype) * (2 / (self.levels - 1)) - 1
        logits: Tensor = self.decoder(visible, codes).unflatten(1, (self.levels, -1))
        return logits

    def predictor(self) -> nn.Module:
        """Return the encoder."""
        return self.encoder

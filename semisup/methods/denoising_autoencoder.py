"""Denoising autoencoder: undo the damage."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.pretext.corruption import Corruption, corrupt
from semisup.errors import SemisupError
from semisup.losses.precision import full_precision
from semisup.methods.base import Batch, Count, Method, NonNegative, Progress, Update, Views
from semisup.methods.parts.looking import looking
from semisup.models import Encoder, image_channels
from semisup.models.decoder import MapDecoder, last_map

__all__ = ["DenoisingAutoencoder"]


class DenoisingAutoencoder(Method):
    """L = mean over images and pixels of (g(f(damaged x)) - x)^2 (Vincent et al. 2008, ICML; 2010, JMLR 11, eq. 5).

    The damage is drawn anew at every step, and never outside of training. Targets are the clean images, normalized as
    they come, hence squared errors and a linear output, in place of the papers' cross-entropy for pixels in [0, 1]. The
    papers train layer by layer, with fully connected layers and shared weights; here the whole convolutional backbone
    is trained at once, and a convolutional decoder enlarges its last map.

    Args:
        model: the bare encoder around a backbone that gives maps; the decoder is next to it and is dropped afterwards.
        corruption: masking, gaussian or salt_and_pepper, see `semisup.augment.pretext.corruption.corrupt`. Masked
            pixels become the data's mean, in the papers black.
        amount: the part of the pixels that is hit, in [0, 1]; for gaussian the noise's std, >= 0, in those of the
            data set. Papers: 0.1 to 0.5.
        decoder_width: channels of the decoder.

    Raises:
        SemisupError: a part of the pixels above 1; a backbone that gives no maps.
    """

    name = "denoising_autoencoder"
    family = "self-supervised"
    summary = "A small decoder paints the clean image from what the network made of a damaged one."
    citation = "Vincent et al. 2008, doi:10.1145/1390156.1390294"
    trains = "encoder"
    views = Views(unlabeled={"image": "weak"})

    def __init__(
        self,
        model: Encoder,
        *,
        corruption: Corruption = "masking",
        amount: NonNegative = 0.5,
        decoder_width: Count = 32,
    ) -> None:
        super().__init__()
        if corruption != "gaussian" and amount > 1:
            raise SemisupError(f"method.amount: {corruption} hits a part of the pixels, at most 1, got {amount}")
        self.encoder = model
        self.decoder = MapDecoder(
            model.backbone, decoder_width, image_channels(model.backbone), method="denoising_autoencoder"
        )
        self.corruption: Corruption = corruption
        self.amount = amount

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        images = batch.unlabeled["image"]
        repaired = self.repair(corrupt(images, self.corruption, self.amount))
        loss = F.mse_loss(full_precision(repaired), images)
        yield Update(loss, log={"reconstruction": loss})

    def repair(self, damaged: Tensor) -> Tensor:
        """Guess the clean images (N, C, H, W) from damaged ones."""
        height, width = damaged.shape[-2:]
        clean: Tensor = self.decoder(last_map(self.encoder.backbone, damaged), (height, width))
        return clean

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Show the images damaged and repaired, both (N, C, H, W). Always the same damage; changes nothing here."""
        with looking(self, images):
            damaged = corrupt(images, self.corruption, self.amount)
            return damaged, self.repair(damaged).to(images.dtype)

    def predictor(self) -> nn.Module:
        """Return the encoder; what it is asked about is not damaged."""
        return self.encoder

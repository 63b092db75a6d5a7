"""Colorization: which colors belong to a gray picture?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.kernels.lab import rgb_to_lab
from semisup.augment.kernels.normalize import Normalize
from semisup.errors import SemisupError
from semisup.losses import soft_cross_entropy
from semisup.methods.base import Batch, BelowOne, Count, Fraction, Method, Progress, Statistics, Update, Views
from semisup.models import Encoder, image_channels
from semisup.models.decoder import MapDecoder, last_map

__all__ = ["Colorization"]

REACH, SPACING = 110, 10  # the a and b of the bins' centers: -110, -100, ... 110, both as published
SIDE = 2 * REACH // SPACING + 1
BINS = SIDE**2
NEIGHBORS, STD = 5, 5.0  # of the soft targets, as published
SHRINK = 4  # colors are asked for at a quarter of the images' side, as published


class Colorization(Method):
    """L = mean over places of w(q*) * H(Z, softmax(z)) (Zhang et al. 2016, arXiv:1603.08511, eq. 2 to 4).

    The network sees the lightness L of an image and tells its colors a and b at a quarter of the side, as a
    distribution over a grid of bins. A target Z spreads over the 5 bins nearest to the color, by a Gaussian of
    std 5; q* is the nearest. w = ((1 - uniform) p + uniform / Q)^-1, scaled so that its mean over p is 1, makes
    rare colors count more; p is how often each bin occurs.

    Differences. p is the running mean of the batches' targets, in place of ImageNet's, smoothed. All Q = 529 bins of
    the grid are kept; the paper leaves out those that no screen can show, which never are a target. L is shown in all
    three channels, as a gray image normalized like the data, so that the backbone takes color images afterwards, by
    which it is evaluated; the paper goes on with L. Colors are the mean of their 4 x 4 pixels, and the decoder is a
    small one on the backbone's last map.

    Args:
        model: the bare encoder around a backbone that gives maps, for color images; the decoder is next to it and is
            dropped afterwards.
        statistics: means and stds that the images were normalized by.
        uniform: share of the uniform distribution in the weights, in [0, 1]; 1 weighs all alike. Paper: 0.5.
        momentum: of the running mean of the colors' frequencies, in [0, 1).
        decoder_width: channels of the decoder.

    Raises:
        SemisupError: a backbone for gray images, or one that gives no maps.
    """

    name = "colorization"
    family = "self-supervised"
    summary = "A small decoder tells the colors of an image of which the network saw the lightness."
    citation = "Zhang et al. 2016, arXiv:1603.08511"
    trains = "encoder"
    views = Views(unlabeled={"image": "weak"})
    frequencies: Tensor
    batches: Tensor

    def __init__(
        self,
        model: Encoder,
        statistics: Statistics,
        *,
        uniform: Fraction = 0.5,
        momentum: BelowOne = 0.99,
        decoder_width: Count = 64,
    ) -> None:
        super().__init__()
        channels = image_channels(model.backbone)
        if channels != 3:
            raise SemisupError(f"method.name: 'colorization' needs color images, of 3 channels; these have {channels}")
        self.encoder = model
        self.decoder = MapDecoder(model.backbone, decoder_width, BINS, method="colorization")
        self.normalize = Normalize(*statistics)
        self.uniform = uniform
        self.momentum = momentum
        self.register_buffer("frequencies", torch.full((BINS,), 1 / BINS))
        self.register_buffer("batches", torch.zeros(()))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update; the frequencies learn from the batch before it is weighted."""
        lab = rgb_to_lab(self.normalize.undo(batch.unlabeled["image"]).clamp(0, 1))
        logits = self.colors(lab[:, :1])
        targets = soft_bins(F.adaptive_avg_pool2d(lab[:, 1:], (logits.shape[2], logits.shape[3])))
        self.remember(targets)
        weights = bin_weights(self.frequencies, self.uniform)[targets.argmax(1)]
        loss = soft_cross_entropy(logits.permute(0, 2, 3, 1).flatten(0, 2), targets, weights)
        yield Update(loss, log={"color": loss})

    def colors(self, lightness: Tensor) -> Tensor:
        """Map L, (N, 1, H, W) in [0, 100], to logits of the bins, (N, Q, H / 4, W / 4)."""
        height, width = lightness.shape[-2:]
        gray = self.normalize((lightness / 100).expand(-1, 3, -1, -1))
        logits: Tensor = self.decoder(
            last_map(self.encoder.backbone, gray), (max(1, height // SHRINK), max(1, width // SHRINK))
        )
        return logits

    @torch.no_grad()
    def remember(self, targets: Tensor) -> None:
        """Move the frequencies towards those of (P, Q) targets; the plain mean until that forgets more slowly."""
        self.batches += 1
        share = (1 / self.batches).clamp(min=1 - self.momentum)
        self.frequencies.lerp_(targets.mean(0), share)

    def predictor(self) -> nn.Module:
        """Return the encoder."""
        return self.encoder


def soft_bins(colors: Tensor) -> Tensor:
    """Return the distribution over the bins, (N * h * w, Q), of colors (N, 2, h, w)."""
    centers = torch.arange(-REACH, REACH + 1, SPACING, device=colors.device, dtype=colors.dtype)
    a, b = ((c[..., None] - centers).square() for c in colors.permute(1, 0, 2, 3).flatten(1))
    distances, nearest = (a[:, :, None] + b[:, None, :]).flatten(1).topk(NEIGHBORS, dim=1, largest=False)
    shares = (-distances / (2 * STD**2)).softmax(1)
    return torch.zeros(len(a), BINS, device=colors.device, dtype=colors.dtype).scatter_(1, nearest, shares)


def bin_weights(frequencies: Tensor, uniform: float) -> Tensor:
    """Return (Q,) weights of bins of these frequencies, whose mean over the frequencies is 1."""
    weights = 1 / ((1 - uniform) * frequencies + uniform / len(frequencies)).clamp(min=1e-12)
    return weights / (frequencies * weights).sum()

"""MAE: see a quarter of the patches, paint the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn

from semisup.augment.pretext.patches import join_patches, random_order, split_patches
from semisup.errors import SemisupError
from semisup.losses import masked_mse
from semisup.methods.base import Batch, Count, Depth, Method, Progress, Range, Update, Views
from semisup.methods.parts.looking import looking
from semisup.models import Encoder
from semisup.models.vit import LN_EPS, TransformerBlock, require_vit, sincos_positions, width_conflicts

__all__ = ["MAE"]


class MAE(Method):
    """Masked autoencoder: mean squared error of the hidden patches' pixels (He et al. 2022, arXiv:2111.06377, sec. 3).

    The encoder gets the patches in sight alone, each with its position; a smaller decoder gets their codes and, in
    every other place, one learned token. As in facebookresearch/mae (models_mae.py) each image hides patches of its
    own, equally many, and targets are normalized patch by patch, by the std with n - 1 in its denominator. There
    is no class token here, see the backbone, and only the crop and mirroring of the paper as augmentation.

    Args:
        model: the bare encoder around a `vit`; the decoder is next to it and is dropped afterwards.
        mask_ratio: part of the patches that is hidden, in (0, 1). Paper: 0.75.
        norm_pix: whether to predict the pixels of each patch less their mean and over their std. Paper: better.
        decoder_width: of the decoder's tokens, a multiple of 4 and of `decoder_heads`. Paper: 512 next to an encoder of
            1,024; here likewise about half the backbone's.
        decoder_depth: blocks of the decoder. Paper: 8; 1 is as good if the whole network is tuned afterwards.
        decoder_heads: of the decoder's attention. Paper: 16.

    Raises:
        SemisupError: another backbone than `vit`; a decoder that cannot be built; at the first step, if of so few
            patches none would be hidden or none left.
    """

    name = "mae"
    family = "self-supervised"
    summary = "A transformer sees a quarter of an image's patches, and a small decoder paints the others."
    citation = "He et al. 2022, arXiv:2111.06377"
    trains = "encoder"
    views = Views(unlabeled={"image": "mae"})

    def __init__(
        self,
        model: Encoder,
        *,
        mask_ratio: Annotated[float, Range(0, 1, open_low=True, open_high=True)] = 0.75,
        norm_pix: bool = True,
        decoder_width: Count = 48,
        decoder_depth: Depth = 2,
        decoder_heads: Count = 3,
    ) -> None:
        super().__init__()
        vit = require_vit(model.backbone, "mae")
        self.encoder = model
        self.mask_ratio = mask_ratio
        self.norm_pix = norm_pix
        self.enter = nn.Linear(vit.num_features, decoder_width)
        self.mask_token = nn.Parameter(torch.empty(decoder_width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = nn.Sequential(
            *(TransformerBlock(decoder_width, decoder_heads, 4.0) for _ in range(decoder_depth)),
            nn.LayerNorm(decoder_width, eps=LN_EPS),
        )
        self.paint = nn.Linear(decoder_width, vit.in_channels * vit.patch**2)

    @staticmethod
    def conflicts(decoder_width: int, decoder_heads: int, **_: object) -> Iterator[tuple[str, str]]:
        """Yield what is wrong between the options; see `semisup.options.check_options`."""
        for key, sentence in width_conflicts(decoder_width, decoder_heads):
            yield f"decoder_{key}", sentence.replace("heads=", "decoder_heads=")

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        images = batch.unlabeled["image"]
        painted, hidden = self.fill_in(images)
        loss = masked_mse(painted, self.target(images), hidden)
        yield Update(loss, log={"reconstruction": loss})

    def fill_in(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Hide patches and guess all of them.

        Returns:
            Guesses (N, T, patch * patch * C), and which patches were hidden, (N, T) bool.
        """
        vit = require_vit(self.encoder.backbone, "mae")
        tokens = vit.patches(images)
        tokens = tokens + vit.positions(images).to(tokens.dtype)
        count, total, _ = tokens.shape
        kept = total - round(total * self.mask_ratio)
        if not 0 < kept < total:
            raise SemisupError(f"method.mask_ratio: of {total} patches {kept} would be left, got {self.mask_ratio}")
        order = random_order(count, total, images.device)
        place = order.argsort(dim=1)  # of each patch in the order
        codes = self.enter(vit.encode(_pick(tokens, order[:, :kept])))
        everywhere = torch.cat([codes, self.mask_token.to(codes.dtype).expand(count, total - kept, -1)], dim=1)
        everywhere = _pick(everywhere, place)
        positions = sincos_positions(*vit.grid(images), everywhere.shape[2], images.device)
        painted = self.paint(self.decoder(everywhere + positions.to(everywhere.dtype)))
        return painted, place >= kept

    def target(self, images: Tensor) -> Tensor:
        """Return what the patches (N, T, patch * patch * C) should be guessed as."""
        patches = split_patches(images, require_vit(self.encoder.backbone, "mae").patch)
        if not self.norm_pix:
            return patches
        mean, std = _scale(patches)
        return (patches - mean) / std

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Show the images with patches hidden (0, the mean of the data) and with these painted, both (N, C, H, W).

        Always hides the same; changes nothing in the method. With `norm_pix` the brightness and contrast of a painted
        patch are those of the hidden one, as in the authors' figures.
        """
        vit = require_vit(self.encoder.backbone, "mae")
        with looking(self, images):
            painted, hidden = self.fill_in(images)
            patches = split_patches(images, vit.patch)
            if self.norm_pix:
                mean, std = _scale(patches)
                painted = painted * std + mean
            shape = (*vit.grid(images), images.shape[1])
            seen = join_patches(patches.masked_fill(hidden[:, :, None], 0), *shape)
            return seen, join_patches(torch.where(hidden[:, :, None], painted.to(patches.dtype), patches), *shape)

    def predictor(self) -> nn.Module:
        """Return the encoder, which gets all patches from now on."""
        return self.encoder


def _pick(tokens: Tensor, index: Tensor) -> Tensor:
    """(N, K, width): tokens `index[n, k]` of each image."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def _scale(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std (N, T, 1) of each patch; 1e-6 is the reference code's, so that flat patches become 0."""
    return patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + 1e-6).sqrt()

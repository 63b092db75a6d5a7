"""CPC: what the upper part of an image shows predicts the patches below it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semisup.augment import lose_color
from semisup.errors import SemisupError
from semisup.losses import info_nce
from semisup.methods.base import AtLeastTwo, Batch, Count, Fraction, Method, Positive, Progress, Update, Views
from semisup.models import Encoder

__all__ = ["CPC", "overlapping_patches"]

SMALLEST = 4  # pixels of a patch: what the convolutional backbones take


class CPC(Method):
    """L = mean over k of InfoNCE(W_k c_r, z_{r + k}) (van den Oord et al. 2018, arXiv:1807.03748, eq. 4, sec. 3.3).

    An image is a grid of patches that overlap by half; z is the encoder's LayerNormed feature of a patch, c_r what a
    GRU has read of its column from the top down to row r, W_k a linear map for each distance k. A prediction must be
    told from all patches of the batch that are targets at the same distance: of other images, other columns and other
    rows. Rows next to each other share pixels, hence `nearest`.

    Differences. The paper's context is a PixelCNN, which sees the neighboring columns too. Its score is z W c; here it
    is the cosine over a temperature, as in all contrastive losses of this package. The paper's encoder has no
    BatchNorm, whose statistics tell one patch about the others. Our backbones have it, over all patches of the batch at
    once; what stands on top has LayerNorm. Afterwards the backbone sees whole images, where the paper averages over
    the grid. There images are squares of 256 out of 300 pixels, mirrored (here the weak view), always gray, and of each
    patch 60 x 60 of its 64 x 64 pixels are shown, at random (recalled; a patch here is a few pixels, and shown whole).

    Args:
        model: the bare encoder, around a backbone for images of any size; GRU and maps are next to it and are dropped
            afterwards.
        grid: patches along each side. Paper: 7, of 64 px each 32 in 256.
        nearest: first distance in rows that is predicted. Paper: 1; from 2 on no pixel of the target has been read.
        farthest: last distance, below `grid`. Paper: 5.
        temperature: of the similarities, > 0. Ours, see above.
        context: width of the GRU's state. Paper: 256 channels of its PixelCNN.
        gray: part of color images that lose their color, in [0, 1]. Paper: 1, when it asks the encoder afterwards, too.

    Raises:
        SemisupError: distances that the grid does not have; at the first step, images too small for the grid.
    """

    name = "cpc"
    family = "self-supervised"
    summary = "The patches above predict those below, among all patches of the batch."
    citation = "van den Oord et al. 2018, arXiv:1807.03748"
    trains = "encoder"
    views = Views(unlabeled={"image": "weak"})

    def __init__(
        self,
        model: Encoder,
        *,
        grid: AtLeastTwo = 7,
        nearest: Count = 2,
        farthest: Count = 5,
        temperature: Positive = 0.1,
        context: Count = 256,
        gray: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if not nearest <= farthest < grid:
            raise SemisupError(
                f"method.farthest: must lie between nearest and grid - 1, {nearest} and {grid - 1}, got {farthest}"
            )
        self.encoder = model
        self.norm = nn.LayerNorm(model.num_features)
        self.read = nn.GRU(model.num_features, context, batch_first=True)
        self.maps = nn.ModuleList(nn.Linear(context, model.num_features) for _ in range(nearest, farthest + 1))
        self.grid = grid
        self.nearest = nearest
        self.temperature = temperature
        self.gray = gray

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        images = batch.unlabeled["image"]
        patches = overlapping_patches(lose_color(images, self.gray) if self.gray else images, self.grid)
        latents = self.norm(self.encoder(patches.flatten(0, 2)))
        latents = latents.unflatten(0, patches.shape[:3])
        losses = [
            info_nce(predictions.flatten(0, 2), latents[:, -predictions.shape[1] :].flatten(0, 2), self.temperature)
            for predictions in self.predict(latents)
        ]
        loss = torch.stack(losses).mean()
        yield Update(loss, log={"prediction": loss})

    def predict(self, latents: Tensor) -> list[Tensor]:
        """For each distance k the predictions (N, G - k, G, D) of rows k to G of (N, G, G, D) latents."""
        columns = latents.transpose(1, 2)  # (N, column, row, D)
        context, _ = self.read(columns.flatten(0, 1))
        rows = context.unflatten(0, columns.shape[:2]).transpose(1, 2)
        return [each(rows[:, : -(self.nearest + i)]) for i, each in enumerate(self.maps)]

    def predictor(self) -> nn.Module:
        """Return the encoder."""
        return self.encoder


def overlapping_patches(images: Tensor, grid: int) -> Tensor:
    """Cut images (N, C, S, S) into (N, grid, grid, C, P, P) patches, row by row, each over half of the next.

    P is twice S / (grid + 1), rounded down; what is left over at the borders is left out.

    Raises:
        SemisupError: patches would be smaller than 4 px.
    """
    size = min(images.shape[-2:])
    stride = size // (grid + 1)
    if 2 * stride < SMALLEST:
        raise SemisupError(
            f"method.grid: patches must have at least {SMALLEST} px, hence at most {2 * size // SMALLEST - 1} of them "
            f"along {size} px, got {grid}"
        )
    used = stride * (grid + 1)
    top, left = ((side - used) // 2 for side in images.shape[-2:])
    inner = images[:, :, top : top + used, left : left + used]
    windows = inner.unfold(2, 2 * stride, stride).unfold(3, 2 * stride, stride)  # (N, C, grid, grid, P, P)
    return windows.permute(0, 2, 3, 1, 4, 5)

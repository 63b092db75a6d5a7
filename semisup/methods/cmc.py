"""CMC: find an image by its colors among others by their lightness, and the other way round."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment.pretext.two_views import intensity_and_edges, lightness_and_color
from semisup.losses import nce
from semisup.losses.precision import without_autocast
from semisup.methods.base import Batch, BelowOne, Count, Method, Positive, Progress, Update, Views
from semisup.methods.parts.instance_bank import find_places
from semisup.methods.parts.memory import last_of
from semisup.models import Encoder

__all__ = ["CMC", "log_mean_exp_cosine"]


class CMC(Method):
    """Contrastive multiview coding of lightness against color.

    L (Tian et al. 2020, arXiv:1906.05849, eq. 2 with NCE for its softmax) =
    NCE(first view against the bank of second ones) + NCE(second view against the bank of first ones).

    The views of a color image are its lightness and its colors (L, and a and b, of CIE Lab). A gray image has no
    colors: its views are the image and the length of its Sobel gradient, an alternative of ours, to be named as such.
    Each view has an encoder of its own; a bank holds one averaged unit vector of each image and view. The positive of
    an image is its row in the other view's bank, its negatives are rows drawn at random, which may be its own. Banks
    carry no gradient; rows move after the loss.

    Two backbones as in the paper, not one for both: each has BatchNorm statistics of one kind of picture. The stage
    leaves the first one, which saw the lightness as a gray image (or the gray image itself), normalized like any image
    that it will be asked about. The paper goes on with both encoders' features side by side, each half as wide.

    Reference code: HobbitLong/CMC, train_CMC.py and NCE/NCEAverage.py. There banks begin as random vectors that images
    must find in the first epoch, and NCE's constant Z / n is measured against those on the first batch. Here an image
    that was never shown is found by its present embedding, negatives are images shown before, and Z / n is what that
    measurement estimates, the mean of exp(cosine / temperature) over all directions. Negatives are drawn for a batch
    and not for each image: one matrix product.

    Args:
        model: the bare encoder, of the first view; that of the second one starts as its copy and is dropped afterwards.
        num_images: number of training images, given by the stage; banks take 8 `out_features` + 8 bytes for each.
        temperature: of the similarities, > 0. Reference code: 0.07.
        negatives: m of the NCE. Reference code: 4,096; paper: 16,384.
        momentum: of the bank's rows, per step that shows the image, in [0, 1). Reference code: 0.5.
        out_features: dimension of the embeddings. Reference code: 128.
    """

    name = "cmc"
    family = "self-supervised"
    summary = "Lightness and colors of an image (gray: intensity and edges) find each other among all images."
    citation = "Tian et al. 2020, arXiv:1906.05849"
    trains = "encoder"
    views = Views(unlabeled={"image": "cmc"})
    banks: Tensor
    row_in_bank: Tensor

    def __init__(
        self,
        model: Encoder,
        num_images: int,
        *,
        temperature: Positive = 0.07,
        negatives: Count = 4096,
        momentum: BelowOne = 0.5,
        out_features: Count = 128,
    ) -> None:
        super().__init__()
        self.encoder = model
        self.other = Encoder(copy.deepcopy(model.backbone))
        self.embed, self.embed_other = (nn.Linear(model.num_features, out_features) for _ in range(2))
        self.temperature = temperature
        self.negatives = negatives
        self.momentum = momentum
        self.offset = log_mean_exp_cosine(out_features, temperature)
        self.register_buffer("banks", torch.zeros(2, num_images, out_features))
        # Images get their row of the banks when they are first shown, so that those shown stand together; -1: none yet.
        self.register_buffer("row_in_bank", torch.full((num_images,), -1))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update against the banks of earlier steps, which then take in the new embeddings."""
        images = batch.unlabeled["image"]
        first, second = (intensity_and_edges if images.shape[1] == 1 else lightness_and_color)(images)
        z = torch.stack([self.embed(self.encoder(first)).float(), self.embed_other(self.other(second)).float()])
        z = F.normalize(z, dim=2)
        rows, new = self.find_rows(batch.unlabeled.index)
        taken_in = z.detach()[:, last_of(rows)]
        own = torch.where(new[:, None], taken_in, self.banks[:, rows])
        self.banks[:, rows] = own
        known = self.row_in_bank.max() + 1
        drawn = (torch.rand(self.negatives, device=z.device) * known).long().minimum(known - 1)
        others = self.banks[:, drawn]
        from_first, from_second = self.find(z[0], own[1], others[1]), self.find(z[1], own[0], others[0])
        self.banks[:, rows] = F.normalize(torch.lerp(taken_in, own, self.momentum), dim=2)
        yield Update(
            from_first + from_second,
            log={"from_first": from_first, "from_second": from_second},
            embeddings=(z[0], z[1]),
        )

    def find(self, z: Tensor, own: Tensor, others: Tensor) -> Tensor:
        """NCE of (N, D) embeddings: their rows (N, D) in the other view's bank against (m, D) other rows."""
        with without_autocast(z):
            positive, negatives = (z * own).sum(1), z @ others.T
        return nce(positive / self.temperature - self.offset, negatives / self.temperature - self.offset)

    def find_rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N,) of images (N,) in the banks, new ones behind the others, and which are new."""
        return find_places(self.row_in_bank, index)

    def predictor(self) -> nn.Module:
        """Return the encoder of the first view."""
        return self.encoder


def log_mean_exp_cosine(dimension: int, temperature: float) -> float:
    """Return log of the mean of exp(cosine / temperature) between directions drawn uniformly in `dimension` >= 1.

    The series of the hypergeometric function 0F1 at `dimension / 2`; near 1 / (2 dimension temperature^2) where that
    is small: 0.79 at 128 and 0.07.
    """
    x = 1 / (4 * temperature**2)
    total = term = 1.0
    order = 0
    while term > 1e-17 * total:
        term *= x / ((order + 1) * (dimension / 2 + order))
        total += term
        order += 1
    return math.log(total)

"""One remembered unit vector of every image, and telling an image's own from those of others."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.losses import nce, similarity
from semisup.methods.parts.memory import last_of

__all__ = ["InstanceBank", "find_places"]

Z_MOMENTUM = 0.9
"""Of the running mean of exp(cosine / temperature): about the last ten batches. Ours."""


class InstanceBank(nn.Module):
    """The memory bank of instance discrimination.

    Wu et al. 2018, arXiv:1805.01978: it has a row (D,) of unit length for each image that was shown, the average of
    what the network said to it.

    A row begins as the image's first embedding and not, as in zhirongw/lemniscate.pytorch, as a random vector, which
    images would have to find in the first epoch and which is then told from all others by chance alone. Rows stand in
    the order in which their images were first shown, so that those in use are the first ones. They carry no gradient.

    Args:
        num_images: rows at the most; the bank takes 4 * `width` + 8 bytes for each.
        width: D.
        momentum: of a row when its image is shown again, in [0, 1).
    """

    rows: Tensor
    place: Tensor
    log_mean: Tensor

    def __init__(self, num_images: int, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("rows", torch.zeros(num_images, width))
        self.register_buffer("place", torch.full((num_images,), -1))
        # log of the mean of exp(v . row / temperature) over the rows, which is log Z - log n; infinite: not known.
        self.register_buffer("log_mean", torch.tensor(torch.inf))

    def enter(self, v: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Give images (N,) that were never shown their embeddings `v` (N, D) as rows.

        Returns:
            The places (N,) of all of them, and which are new (N,) bool.
        """
        places, new = find_places(self.place, index)
        self.rows[places] = torch.where(new[:, None], v.detach()[last_of(places)], self.rows[places])
        return places, new

    def known(self) -> Tensor:
        """Return the number of rows in use, 0-d."""
        return self.place.max() + 1

    def draw(self, count: int) -> Tensor:
        """(count, D) rows in use, drawn evenly."""
        known = self.known()
        drawn = (torch.rand(count, device=self.rows.device) * known).long().minimum(known - 1)
        return self.rows[drawn]

    def softmax_loss(self, v: Tensor, places: Tensor, temperature: float) -> Tensor:
        """Mean over N of -log P(own row | v), among all rows in use (arXiv:1805.01978, eq. 2)."""
        logits = similarity(v, self.rows, temperature)
        unused = torch.arange(len(self.rows), device=v.device) >= self.known()
        return F.cross_entropy(logits.masked_fill(unused, -torch.inf), places)

    def nce_loss(
        self, v: Tensor, places: Tensor, temperature: float, noise: int, weight: Tensor | None = None
    ) -> Tensor:
        """NCE of unit vectors `v` (N, D) and their own rows against `noise` drawn ones (arXiv:1805.01978, eq. 7).

        The rows are drawn once for the batch: a matrix product, with the same expectation as rows for each image. The
        normalization follows the network: a running mean over the noise. The reference code measures it on the first
        batch, of an untrained network, and keeps it; chance is then no longer where the loss believes it.
        """
        others = similarity(v, self.draw(noise), temperature)
        estimate = others.detach().flatten().logsumexp(0) - math.log(others.numel())
        old = torch.where(self.log_mean.isinf(), estimate, self.log_mean)
        self.log_mean.copy_(torch.logaddexp(old + math.log(Z_MOMENTUM), estimate + math.log1p(-Z_MOMENTUM)))
        own = (v * self.rows[places]).sum(1) / temperature
        return nce(own - self.log_mean, others - self.log_mean, weight)

    def take_in(self, v: Tensor, places: Tensor) -> None:
        """Average embeddings (N, D) into their rows. An image that the batch holds twice is taken in once."""
        v = v.detach()[last_of(places)]
        self.rows[places] = F.normalize(torch.lerp(v, self.rows[places], self.momentum), dim=1)


def find_places(place: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Places (N,) of images (N,) in a bank, new ones behind the others, and which are new; no host synchronization.

    Args:
        place: (images,) int64, of each image its row, -1: none yet; changed in place.
        index: (N,) images.
    """
    new = place[index] < 0
    shown = torch.zeros_like(place, dtype=torch.bool).index_fill_(0, index, True)
    unknown = shown & (place < 0)
    place.copy_(torch.where(unknown, place.max() + unknown.cumsum(0), place))
    return place[index], new

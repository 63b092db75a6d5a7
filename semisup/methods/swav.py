"""SwAV: views of an image predict each other's place among prototypes that share the images evenly."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import cross_view_cross_entropy, sinkhorn
from semisup.losses.precision import without_autocast
from semisup.methods.base import Batch, Count, CountOrZero, Fraction, Method, Positive, Progress, Update, Views
from semisup.methods.parts.crops import crop_views, features_of_crops
from semisup.methods.parts.memory import enqueue
from semisup.models import Encoder, ProjectionHead

__all__ = ["SwAV"]


class SwAV(Method):
    """Swapped prediction of the prototypes that the views of an image belong to.

    Swapped prediction (Caron et al. 2020, arXiv:2006.09882): mean of H(q_g, softmax(z_v C^T / temperature)) over
    both large views g and all other views v.

    z are unit vectors, and so are the prototypes C, after each update again. The codes q_g are Sinkhorn's (`sinkhorn`)
    of the batch's scores z_g C^T, without gradient; a queue of earlier embeddings stands in for a larger batch where
    there are fewer images than prototypes. Large views are `first` and `second`, small ones `local_1`, `local_2`, ...

    Reference code: facebookresearch/swav, main_swav.py and scripts/swav_200ep_bs256_pretrain.sh. The queue is filled
    from the first step on, so that it is full where it begins to be used; there it begins empty at that epoch. The last
    layer of our projection head ends in BatchNorm, as in SimCLR; there it is linear.

    Args:
        model: the bare encoder; a two-layer projection head is added to it.
        prototypes: how many. Paper: 3,000 on ImageNet.
        temperature: of the predictions, > 0. Paper: 0.1.
        epsilon: of the codes, > 0; the smaller, the harder. Paper: 0.05.
        iterations: of Sinkhorn's algorithm. Paper: 3.
        crops: small views of each image. Paper: 6; published script without multi-crop: 0.
        queue: embeddings remembered of each large view, 0 for none, else at least the unlabeled batch. Paper: 3,840 for
            batches of 256.
        queue_start: part of the run before the queue is used, in [0, 1]. Published script: 15 of 200 epochs.
        freeze: part of the run during which the prototypes stay as they began, in [0, 1]. Published script: 5,005 of
            about 1,000,000 steps, one of 200 epochs.
        hidden: width of the head's middle layer; 0 means the encoder's width. Paper: 2,048, that of its ResNet-50.
        out_features: dimension of the embeddings. Paper: 128.

    Raises:
        SemisupError: at the first step, if the queue is smaller than the unlabeled batch.
    """

    name = "swav"
    family = "self-supervised"
    summary = "Views of an image predict each other's codes among prototypes that share the images evenly."
    citation = "Caron et al. 2020, arXiv:2006.09882"
    trains = "encoder"
    only_with = {"queue_start": ("queue", True)}
    queues: Tensor
    written: Tensor

    def __init__(
        self,
        model: Encoder,
        *,
        prototypes: Count = 3000,
        temperature: Positive = 0.1,
        epsilon: Positive = 0.05,
        iterations: Count = 3,
        crops: CountOrZero = 0,
        queue: CountOrZero = 0,
        queue_start: Fraction = 0.075,
        freeze: Fraction = 0.005,
        hidden: CountOrZero = 0,
        out_features: Count = 128,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            model.backbone,
            ProjectionHead(model.num_features, hidden or model.num_features, out_features, num_layers=2),
        )
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, out_features), dim=1))
        self.views = Views(unlabeled=crop_views("swav", "swav", "swav_local", crops))
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.queue = queue
        self.queue_start = queue_start
        self.freeze = freeze
        if queue:
            # Of the first and the second view; first in, first out.
            self.register_buffer("queues", torch.zeros(2, queue, out_features))
            self.register_buffer("written", torch.zeros((), dtype=torch.long))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update; then the prototypes get their length 1 again."""
        images = [batch.unlabeled[view] for view in self.views.policies("unlabeled")]
        if 0 < self.queue < len(images[0]):
            # One batch would write some rows twice.
            raise SemisupError(
                f"method.queue: must be 0 or at least the unlabeled batch of {len(images[0])} images, got {self.queue}"
            )
        assert self.encoder.projector is not None
        z = self.encoder.projector(features_of_crops(self.encoder.backbone, images))
        z = F.normalize(z.float(), dim=1).unflatten(0, (len(images), -1))
        # Without a gradient at all the optimizer leaves them alone, weight decay and momentum too.
        prototypes = self.prototypes.detach() if progress.fraction < self.freeze else self.prototypes
        with without_autocast(z):
            scores = z @ prototypes.T
        codes = self.codes(z[:2].detach(), scores[:2].detach(), progress)
        loss = cross_view_cross_entropy(scores / self.temperature, codes)
        yield Update(loss, log={"swapped": loss}, embeddings=(z[0], z[1]))
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))

    def codes(self, z: Tensor, scores: Tensor, progress: Progress) -> Tensor:
        """Codes (2, N, K) of the large views by their embeddings (2, N, D) and scores; these embeddings are queued."""
        alone = torch.stack([sinkhorn(view, self.epsilon, self.iterations) for view in scores])
        if not self.queue:
            return alone
        codes = alone
        if progress.fraction >= self.queue_start:
            with without_autocast(z):
                everything = torch.cat([self.queues @ self.prototypes.detach().T, scores], dim=1)
            queued = torch.stack([sinkhorn(view, self.epsilon, self.iterations) for view in everything])
            codes = torch.where(self.written >= self.queue, queued[:, self.queue :], alone)
        enqueue(self.queues.transpose(0, 1), self.written, z.transpose(0, 1))
        return codes

    def predictor(self) -> nn.Module:
        """Return the encoder, with its projection head next to it."""
        return self.encoder

"""Feature distillation: a student learns to see what a frozen network sees, without any label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.losses import feature_cosine, feature_mse, queue_distillation
from semisup.methods.base import Batch, Count, CountOrZero, Method, Positive, Progress, Update, Views, frozen
from semisup.methods.parts.memory import enqueue
from semisup.models import Classifier, Encoder, build_neck

__all__ = ["DistillFeatures"]


class DistillFeatures(Method):
    """Projected features of a student match those of a frozen teacher on the same augmented image.

    `form: cosine` is the mean of 1 - cos, `mse` the mean squared difference (Romero et al. 2015, arXiv:1412.6550, eq.
    3, without its factor 1/2). `queue` is a classification without classes: the cosines of an image with a queue of the
    teacher's embeddings of recent images become probabilities, and the student's are to be the teacher's (Fang et al.
    2021, SEED, arXiv:2101.04731, eq. 4; lightly-train's default). The batch itself is put into the queue first.

    `of: tokens` compares each place of the last maps, the larger map averaged to the size of the smaller, in place of
    the pooled features. The teacher is in eval mode; neck and backbone are asked, its head is not.

    Args:
        model: the bare encoder of the student, of any architecture.
        teacher: the network of an earlier train or features stage.
        image_shape: channels, height and width of the images.
        form: "cosine", "mse" or "queue".
        of: "pooled" features, or "tokens" of the last map.
        hidden: width of a middle layer of the projector; 0: the projector is linear.
        temperature: of the queue's probabilities, > 0. lightly-train: 0.07.
        memory: embeddings in the queue, at least as many as a batch has (places of its maps, for tokens).
        view: policy of the images, "weak" or "strong".

    Raises:
        SemisupError: tokens of a network without maps; at the first step, if the memory is too small.
    """

    name = "distill_features"
    family = "distillation"
    summary = "A (smaller) student matches the embeddings of a frozen teacher, without labels."
    citation = "Romero et al. 2015, arXiv:1412.6550; Fang et al. 2021, arXiv:2101.04731"
    only_with = {"temperature": ("form", "queue"), "memory": ("form", "queue")}
    trains = "encoder"
    teacher_gives = "features"

    queue: Tensor
    written: Tensor

    def __init__(
        self,
        model: Encoder,
        teacher: Classifier,
        image_shape: tuple[int, int, int],
        *,
        form: Literal["cosine", "mse", "queue"] = "cosine",
        of: Literal["pooled", "tokens"] = "pooled",
        hidden: CountOrZero = 0,
        temperature: Positive = 0.07,
        memory: Count = 4096,
        view: Literal["weak", "strong"] = "weak",
    ) -> None:
        super().__init__()
        self.encoder = model
        self.teacher = frozen(teacher)
        self.form = form
        self.of = of
        self.temperature = temperature
        self.view = view
        self.views = Views(unlabeled=(view,))
        if of == "tokens" and not all(hasattr(network.backbone, "maps") for network in (model, teacher)):
            raise SemisupError("method.of: the student's or the teacher's network has no maps; use pooled")
        like = next(model.parameters())
        self.side, widths = self._shapes(torch.zeros(1, *image_shape, device=like.device))
        neck = build_neck(widths[0], [hidden] if hidden else [])
        self.projector = nn.Sequential(neck, nn.Linear(hidden or widths[0], widths[1]))
        self.register_buffer("queue", torch.zeros(memory if form == "queue" else 0, widths[1]))
        self.register_buffer("written", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def _shapes(self, image: Tensor) -> tuple[int, tuple[int, int]]:
        """Return the side of the compared maps, and the widths of student and teacher."""
        training = self.encoder.training
        self.encoder.eval()
        found = [self._seen(network, image) for network in (self.encoder, self.teacher)]
        self.encoder.train(training)
        side = min((each.shape[-1] for each in found if each.ndim == 4), default=1)
        return side, (found[0].shape[1], found[1].shape[1])

    def _seen(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return the last map (N, D, h, w), or the pooled features (N, D)."""
        if self.of == "tokens":
            last: Tensor = network.backbone.maps(images)[-1]  # type: ignore[operator, union-attr]
            return last
        features: Tensor = network.features(images) if isinstance(network, Classifier) else network(images)
        return features

    def _rows(self, seen: Tensor) -> Tensor:
        """Return what is compared (M, D): one row for each image, or for each place of its map."""
        if seen.ndim == 2:
            return seen
        return F.adaptive_avg_pool2d(seen, self.side).permute(0, 2, 3, 1).flatten(0, 2)

    def train(self, mode: bool = True) -> DistillFeatures:
        """Set the mode of the student; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of student and projector."""
        images = batch.unlabeled[self.view]
        with torch.no_grad():
            wanted = self._rows(self._seen(self.teacher, images))
        given = self.projector(self._rows(self._seen(self.encoder, images)))
        loss = self._loss(given, wanted)
        yield Update(loss, log={"distillation": loss})

    def _loss(self, given: Tensor, wanted: Tensor) -> Tensor:
        if self.form == "cosine":
            return feature_cosine(given, wanted)
        if self.form == "mse":
            return feature_mse(given, wanted)
        if len(self.queue) < len(wanted):
            raise SemisupError(f"method.memory: must be at least the {len(wanted)} embeddings of a batch")
        enqueue(self.queue, self.written, F.normalize(wanted.float(), dim=1))
        filled = torch.arange(len(self.queue), device=given.device) < self.written
        return queue_distillation(given, wanted, self.queue, self.temperature, filled)

    def predictor(self) -> nn.Module:
        """Return the student's encoder."""
        return self.encoder

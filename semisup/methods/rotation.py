"""RotNet: which way up is the image?"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from semisup.augment import four_rotations
from semisup.methods.base import Batch, Method, Progress, Update, Views
from semisup.models import Encoder

__all__ = ["Rotation", "RotationTask"]


class RotationTask(nn.Module):
    """The head, and the loss of a batch of images; `multi_task` has it next to others."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.head = nn.Linear(num_features, 4)

    def forward(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Mean cross-entropy over the four rotations of all images (N, C, S, S)."""
        return F.cross_entropy(*self.predict(encoder, images))

    def predict(self, encoder: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (4N, 4) for the four rotations of all images, and the quarter turns (4N,)."""
        rotated, quarters = four_rotations(images)
        return self.head(encoder(rotated)).float(), quarters


class Rotation(Method):
    """Prediction of which of four ways an image was turned.

    L = mean over the four rotations k of every image of CE(k, head(E(rot_k u)))
    (RotNet, Gidaris et al. 2018, arXiv:1803.07728, eq. 2 and 3).

    All four copies of an augmented image are in one forward, as in the paper: a step costs that of four times the
    batch. Only for images that have an upright pose.

    Args:
        model: the bare encoder; a linear head on its features is next to it and is dropped afterwards.
    """

    name = "rotation"
    family = "self-supervised"
    summary = "Tells by how many quarters an image was turned."
    citation = "Gidaris et al. 2018, arXiv:1803.07728"
    trains = "encoder"
    views = Views(unlabeled=("weak",))

    def __init__(self, model: Encoder) -> None:
        super().__init__()
        self.encoder = model
        self.task = RotationTask(model.num_features)

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        loss: Tensor = self.task(self.encoder, batch.unlabeled["weak"])
        yield Update(loss, log={"rotation": loss})

    def pretext_confusion(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which turn is taken for which."""
        return self.task.predict(self.encoder, batch.unlabeled["weak"])

    def predictor(self) -> nn.Module:
        """Return the encoder without the head."""
        return self.encoder

"""The model noise that every network here has a place for: dropout on the features before the head."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from semisup.models import Classifier

__all__ = ["with_dropout"]


def with_dropout(model: Classifier, rate: float) -> Callable[[Tensor], Tensor]:
    """Return `model` with dropout of `rate` in [0, 1) before its head, in train mode: images to logits."""

    def classify(images: Tensor) -> Tensor:
        logits: Tensor = model.head(F.dropout(model.features(images), rate, training=model.training))
        return logits

    return classify

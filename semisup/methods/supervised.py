"""Supervised learning on the labeled images: the baseline of everything and the fine-tuning stage."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from semisup.errors import SemisupError
from semisup.losses import sup_con
from semisup.methods.base import Batch, BelowOne, Method, NonNegative, Positive, Progress, Update, Views
from semisup.models import Classifier

__all__ = ["Supervised"]


class Supervised(Method):
    """Cross-entropy on the labels, with supervised contrast of the features as an option.

    Cross-entropy on the labels, mean over the batch, + supcon * SupCon of the features (Khosla et al. 2020,
    arXiv:2004.11362, eq. 2), if that is asked for.

    The paper trains an encoder by SupCon alone, with two views of each image and a projection head, and a linear layer
    on top of it afterwards. Here it is a second term next to the cross-entropy while a network is fine-tuned, on what
    the head sees, as in arXiv:2011.01403.

    Args:
        model: the classifier to train.
        strong: train on the strong view instead of the weak one. Report the baseline with both: a method that sees
            strong augmentation must not be compared with a baseline that does not (Oliver et al. 2018,
            arXiv:1804.09170).
        label_smoothing: in [0, 1).
        freeze: train only the head; the encoder stays in eval mode, as linear evaluation needs.
        supcon: weight of SupCon, >= 0; 0: none. A batch should have several images of a class.
        supcon_temperature: > 0. Paper: 0.1.

    Raises:
        SemisupError: `supcon` next to `freeze`, which leaves it nothing to learn.
    """

    name = "supervised"
    family = "supervised"
    summary = "Cross-entropy on the labeled images: the baseline and the fine-tuning stage."
    citation = "Oliver et al. 2018, arXiv:1804.09170 (as the baseline)"
    only_with = {"supcon_temperature": ("supcon", True)}
    reads_loss = True

    def __init__(
        self,
        model: Classifier,
        *,
        strong: bool = False,
        label_smoothing: BelowOne = 0.0,
        freeze: bool = False,
        supcon: NonNegative = 0.0,
        supcon_temperature: Positive = 0.1,
    ) -> None:
        super().__init__()
        if freeze and supcon:
            raise SemisupError("method.supcon: the features do not learn with freeze: true; leave one of them out")
        self.model = model
        self.view = "strong" if strong else "weak"
        self.views = Views(labeled=(self.view,))
        self.label_smoothing = label_smoothing
        self.freeze = freeze
        self.supcon = supcon
        self.supcon_temperature = supcon_temperature
        if freeze:
            model.requires_grad_(False)
            model.head.requires_grad_(True)

    def train(self, mode: bool = True) -> Supervised:
        """Set the mode; a frozen encoder keeps its BatchNorm statistics."""
        super().train(mode)
        if self.freeze:
            self.model.eval()
        return self

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update."""
        images, y = batch.labeled[self.view], batch.labeled.y
        if not self.supcon:
            loss = batch.labeled.cross_entropy(self.model(images), self.label_smoothing)
            yield Update(loss, log={"supervised": loss})
            return
        features = self.model.features(images)
        loss = batch.labeled.cross_entropy(self.model.head(features), self.label_smoothing)
        contrast = sup_con(features, y, self.supcon_temperature)
        yield Update(loss + self.supcon * contrast, log={"supervised": loss, "supcon": contrast})

    def predictor(self) -> nn.Module:
        """Return the classifier itself."""
        return self.model

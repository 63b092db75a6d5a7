"""SimSiam: predict the network's own embedding of the image's other view, which is held still."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from semisup.losses import negative_cosine
from semisup.methods.base import Batch, Count, Depth, Method, Progress, Update, Views
from semisup.models import Encoder, ProjectionHead, build_neck

__all__ = ["SimSiam"]


class SimSiam(Method):
    """Prediction of the other view's projection, which gets no gradient.

    L = (D(q(z(first)), sg z(second)) + D(q(z(second)), sg z(first))) / 2, D the negative cosine, in [-1, 1]
    (Chen & He 2021, arXiv:2011.10566, eq. 1 to 4).

    z is encoder and projector, q the predictor; sg stops the gradient, without which all images become one point. That
    happens silently: the loss is then -1. Each view has its own forward, hence batch statistics of its own.

    Source: facebookresearch/simsiam, simsiam/builder.py. Its projector ends in a BatchNorm with neither scale nor
    shift, ours, SimCLRv2's head, has the scale; its predictor keeps its learning rate while the others decay, which is
    left out here.

    Args:
        model: the bare encoder; a projection head is added to it, and the predictor is next to it.
        hidden: width of the projector's middle layers. Paper: that of ResNet-50's features, 2,048.
        out_features: dimension of projection and prediction. Paper: 2,048.
        bottleneck: width of the predictor's middle layer. Paper: 512, a quarter of its input.
        layers: of the projector. Paper: 3, and 2 on CIFAR-10.
    """

    name = "simsiam"
    family = "self-supervised"
    summary = "A predictor finds what the same network, held still, says to the image's other view."
    citation = "Chen & He 2021, arXiv:2011.10566"
    trains = "encoder"
    views = Views(unlabeled={"first": "moco", "second": "moco"})

    def __init__(
        self,
        model: Encoder,
        *,
        hidden: Count = 2048,
        out_features: Count = 2048,
        bottleneck: Count = 512,
        layers: Depth = 3,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(
            model.backbone, ProjectionHead(model.num_features, hidden, out_features, num_layers=layers)
        )
        self.predict = nn.Sequential(build_neck(out_features, [bottleneck]), nn.Linear(bottleneck, out_features))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update; either view is predicted from the other."""
        first = self.encoder.project(batch.unlabeled["first"])
        second = self.encoder.project(batch.unlabeled["second"])
        forth = negative_cosine(self.predict(first), second.detach())
        back = negative_cosine(self.predict(second), first.detach())
        loss = (forth + back) / 2
        yield Update(loss, log={"prediction": loss}, embeddings=(first, second))

    def predictor(self) -> nn.Module:
        """Return the encoder, with its projection head next to it."""
        return self.encoder

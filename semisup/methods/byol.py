"""BYOL: predict how a slow copy of the network sees the image's other view."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from semisup.losses import negative_cosine
from semisup.methods.base import Batch, Count, Fraction, Method, Progress, Update, Views
from semisup.methods.parts.ramps import cosine_to_one
from semisup.models import EMA, Encoder, build_neck

__all__ = ["BYOL"]


class BYOL(Method):
    """Prediction of a moving average's projection of the other view, without negatives.

    L = mean of 2 - 2 cos(q(z(first)), z'(second)) + mean of 2 - 2 cos(q(z(second)), z'(first)), in [0, 8]
    (Grill et al. 2020, arXiv:2006.07733, eq. 2).

    z is encoder and projector, q the predictor, z' the target: the moving average of z, without gradient. After every
    update theta' <- tau theta' + (1 - tau) theta, where tau rises from its start to 1 along a cosine.

    Parameters are averaged; the target's BatchNorm statistics are those of its own batches, in train mode, as in the
    authors' code. There every view has its own forward, and so it has here.

    Source: google-deepmind/deepmind-research, byol/byol_experiment.py and utils/networks.py. Its bias before BatchNorm,
    which changes nothing, is left out; its target starts from other random weights, ours from the same ones.

    Args:
        model: the bare encoder; projector and predictor are next to it and are dropped afterwards.
        hidden: width of the middle layer of projector and predictor. Paper: 4,096.
        out_features: dimension of projection and prediction. Paper: 256.
        momentum: tau at the start, in [0, 1]. Paper: 0.996 for 1,000 epochs, 0.99 for 300 (its code's presets);
            shorter runs want less: at 0.99 the target is 69 updates behind.
    """

    name = "byol"
    family = "self-supervised"
    summary = "A predictor finds what the moving average of the network says to the image's other view."
    citation = "Grill et al. 2020, arXiv:2006.07733"
    trains = "encoder"
    views = Views(unlabeled={"first": "byol_first", "second": "byol_second"})

    def __init__(
        self, model: Encoder, *, hidden: Count = 4096, out_features: Count = 256, momentum: Fraction = 0.99
    ) -> None:
        super().__init__()
        self.online = nn.Sequential(model, mlp(model.num_features, hidden, out_features))
        self.predict = mlp(out_features, hidden, out_features)
        self.target = EMA(self.online, momentum, own_buffers=True, warm=False)
        self.momentum = momentum

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        """Yield one update of the online network, then of its average."""
        first, second = batch.unlabeled["first"], batch.unlabeled["second"]
        with torch.no_grad():
            target_first, target_second = self.target(first), self.target(second)
        z_first, z_second = self.online(first), self.online(second)
        loss = self.distance(z_first, target_second) + self.distance(z_second, target_first)
        yield Update(loss, log={"prediction": loss}, embeddings=(z_first, z_second))
        self.target.decay = self.tau(progress)
        self.target.update(self.online)

    def distance(self, z: Tensor, target: Tensor) -> Tensor:
        """Mean squared distance of unit vectors, in [0, 4]: what is predicted from `z` (N, D), and `target` (N, D)."""
        return 2 + 2 * negative_cosine(self.predict(z), target)

    def tau(self, progress: Progress) -> float:
        """Return the target's momentum at this step: 1 - (1 - start) (1 + cos(pi step / total)) / 2."""
        return cosine_to_one(progress, self.momentum)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return encoder, projector and predictor; the target follows."""
        return {"main": [*self.online.parameters(), *self.predict.parameters()]}

    def predictor(self) -> nn.Module:
        """Return the online encoder, without its heads."""
        return self.online[0]


def mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, linear without bias."""
    return nn.Sequential(build_neck(in_features, [hidden]), nn.Linear(hidden, out_features, bias=False))

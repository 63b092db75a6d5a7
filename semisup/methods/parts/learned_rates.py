"""CTAugment's lesson of a step: how well the network still tells labeled images apart, by how they were augmented."""

from __future__ import annotations

import torch
from torch import Tensor

from semisup.augment.policies.ctaugment import update_rates
from semisup.methods.base import Labeled
from semisup.models import Classifier

__all__ = ["learn_rates"]


def learn_rates(rates: Tensor, model: Classifier, labeled: Labeled) -> None:
    """Ask for the classes of the view "probe", and move the rates of the bins that made it by the true labels.

    The network predicts in eval mode, so that its BatchNorm statistics stay as they are; for as many images as there
    are labeled ones, without gradient. The reference code asks the average of the weights, which is the engine's and
    not the method's.

    Args:
        rates: (19, 17) of `semisup.augment.policies.ctaugment`, changed in place.
        model: in train mode, and left in it.
        labeled: of the batch, with the view "probe" and its trace, the bins.

    Raises:
        ValueError: the batch has no trace: "probe" was made by something else than the policy "ctaugment_probe".
    """
    if labeled.trace is None:
        raise ValueError('the view "probe" must be made by the policy "ctaugment_probe", which tells its bins')
    model.eval()
    with torch.no_grad():
        probs = model(labeled["probe"]).float().softmax(1)
    model.train()
    update_rates(rates, labeled.trace, probs.gather(1, labeled.y[:, None]).squeeze(1))

"""Who guesses the labels of weak views: the trained network itself, or the moving average of its weights."""

from __future__ import annotations

from typing import Literal

from semisup.models import EMA, Classifier

__all__ = ["Guesser", "average_of", "guesser"]

Guesser = Literal["student", "ema"]
"""`student`: the network that is trained, as FixMatch has it. `ema`: the moving average of its weights, which also is
the finished classifier (Semi-ViT, Cai et al. 2022, arXiv:2208.05688, sec. 3.2)."""


def average_of(model: Classifier, teacher: Guesser, decay: float) -> EMA | None:
    """Return the average that guesses, or None where the network itself does.

    It runs in train mode and has BatchNorm statistics of its own, those of the weak views, as in `mean_teacher`.

    Args:
        model: the network that is trained.
        teacher: who guesses.
        decay: of the average, per step.
    """
    return EMA(model, decay, own_buffers=True) if teacher == "ema" else None


def guesser(model: Classifier, average: EMA | None) -> Classifier:
    """Return the network that guesses, and that a finished stage is evaluated by."""
    if average is None:
        return model
    network = average.module
    assert isinstance(network, Classifier)
    return network

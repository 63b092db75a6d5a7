"""Run a network over batches without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from semisup.errors import SemisupError

__all__ = ["evaluating", "predict_logits"]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within this context the network is in eval mode and has no gradient.

    Afterwards, also after an error, every submodule is back in the mode it had of its own (a frozen BatchNorm in eval
    mode inside a model in train mode stays so).
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def predict_logits(model: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Return the float32 outputs of `model` for all batches, concatenated, on the device of the outputs.

    The network runs as `evaluating` has it; no parameter or buffer changes. An encoder instead of a classifier gives
    features.

    Args:
        model: maps a batch to (n, C).
        batches: image batches, already normalized and on the model's device. Read lazily, one at a time.

    Raises:
        SemisupError: there is no batch.
    """
    outputs: list[Tensor] = []
    with evaluating(model):
        for images in batches:
            # Only the forward runs in inference mode: tensors the iterator makes and keeps stay ordinary ones.
            with torch.inference_mode():
                outputs.append(model(images).float())
    if not outputs:
        raise SemisupError("there is nothing to predict: no batch of images was given")
    return torch.cat(outputs)  # outside inference mode, so the result may be used anywhere

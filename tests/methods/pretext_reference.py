"""For pretext tasks: a linear encoder, its equations in numpy, and the comparison in value and in every gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from semisup.methods import Batch
from semisup.models import Encoder
from tests.methods import methods_reference as ref

FEATURES = 3


def encoder(pixels: int, channels: int = 1, seed: int = 0) -> Encoder:
    """A linear encoder of images or tiles with so many pixels."""
    torch.manual_seed(seed)
    return Encoder(ref.Layer(FEATURES, channels * pixels))


def images(n: int, size: int, channels: int = 1, seed: int = 1) -> Tensor:
    """(n, channels, size, size) normal numbers."""
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def given(view: Tensor, name: str = "weak") -> Batch:
    """A batch of this unlabeled view alone."""
    return ref.batch(unlabeled={name: view})


def linear(*layers: nn.Module) -> list[nn.Parameter]:
    """Weight and bias of linear layers, one after the other."""
    found = []
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        found += [layer.weight, layer.bias]
    return found


def encoding(model: Encoder) -> nn.Linear:
    """The encoder's one layer."""
    layer = model.backbone.linear
    assert isinstance(layer, nn.Linear)
    return layer


def double(x: Tensor) -> ref.Array:
    """(N, everything else) in float64."""
    array: ref.Array = x.detach().double().flatten(1).numpy()
    return array


def cross_entropies(logits: ref.Array, labels: list[int]) -> list[float]:
    """Row by row."""
    return [-math.log(row[label]) for row, label in zip(ref.softmax(logits), labels, strict=True)]


def check(loss: Tensor, variables: list[nn.Parameter], reference: Callable[[list[ref.Array]], float]) -> None:
    """`loss` and its gradient in every variable agree with `reference`, a function of their values."""
    values = [p.detach().double().numpy() for p in variables]
    ref.close(loss, reference(values))
    slopes = torch.autograd.grad(loss, variables, retain_graph=True, allow_unused=True, materialize_grads=True)
    for i, slope in enumerate(slopes):

        def of_one(value: ref.Array, i: int = i) -> float:
            return reference([value if j == i else other for j, other in enumerate(values)])

        ref.close(slope, ref.numeric_gradient(of_one, values[i]), rtol=1e-3, atol=1e-5)

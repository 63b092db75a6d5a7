"""Tools for the slow references of this folder: python floats, loops, finite differences of the reference itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray


def softmax(z: Array, temperature: float = 1.0) -> Array:
    """Row by row, straight from the definition."""
    out = np.zeros_like(z, dtype=np.float64)
    for n in range(z.shape[0]):
        powers = [math.exp((value - max(z[n])) / temperature) for value in z[n]]
        out[n] = [power / sum(powers) for power in powers]
    return out


def numeric_gradient(f: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """Central differences, one entry at a time."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (f(up) - f(down)) / (2 * step)
    return gradient


def check(loss: Callable[[Tensor], Tensor], reference: Callable[[Array], float], x: Array) -> None:
    """Value in float32 and float64, and gradient in float64, of `loss` against those of `reference`."""
    expected = reference(x)
    single = loss(torch.tensor(x, dtype=torch.float32))
    assert single.dtype == torch.float32
    assert single.ndim == 0
    torch.testing.assert_close(float(single), expected, rtol=1e-5, atol=1e-6)
    variable = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = loss(variable)
    torch.testing.assert_close(float(value.detach()), expected, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(value, variable)
    np.testing.assert_allclose(gradient.numpy(), numeric_gradient(reference, x), rtol=1e-5, atol=1e-8)


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of `loss` at `x` by autograd."""
    variable = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(variable), variable)
    return result


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Seeded normal numbers in float64."""
    return np.random.default_rng(seed).normal(size=shape) * scale

"""Temperature scaling: one number by which a finished classifier's logits are divided.

Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (arXiv:1706.04599).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["fit_temperature", "probabilities"]

LIMITS = (0.05, 20.0)
"""Lowest and highest temperature."""


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """Return the temperature T whose softmax of `logits / T` fits labels best that training has not seen.

    It minimizes the summed negative log-likelihood and (log T)^2 / 2, a standard normal prior of log T. With hundreds
    of labels that term does not count; with a dozen, all of them predicted correctly, the likelihood alone would claim
    certainty (T -> 0).

    Args:
        logits: (N, C), finite, N >= 1.
        y: (N,) classes in [0, C).

    Returns:
        Within `LIMITS`. Above 1 where the classifier is overconfident. No temperature changes what is predicted.
    """
    from scipy.optimize import minimize_scalar

    logits, y = logits.detach().cpu().double(), y.cpu()

    def cost(log_temperature: float) -> float:
        nll = F.cross_entropy(logits / math.exp(log_temperature), y, reduction="sum")
        return float(nll) + log_temperature**2 / 2

    with torch.inference_mode():
        found = minimize_scalar(cost, bounds=tuple(map(math.log, LIMITS)), method="bounded", options={"xatol": 1e-4})
    return float(math.exp(found.x))


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return softmax(logits / T) over the last axis, float32, (..., C)."""
    return (logits.float() / temperature).softmax(-1)

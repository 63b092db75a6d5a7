"""LARS against timm's, on the parameters of a ResNet-50: CPU seconds of an optimizer step in pairs.

    pip install --no-deps timm
    python benchmarks/lars.py            # prints the median ratio ours / timm and its 95% interval

Both get the same gradients, weight decay 1e-4 and momentum 0.9 for weights, and no decay for biases and norms.
"""

from __future__ import annotations

import argparse
import time

import torch
import torchvision
from paired import compare
from timm.optim.lars import Lars
from torch import nn

from semisup.engine import keep_memory
from semisup.engine.optim import LARS

__all__ = ["main"]


def prepared(cls: type[torch.optim.Optimizer], adapt: dict[str, object]) -> torch.optim.Optimizer:
    """Return an optimizer of a network of its own, which has gradients."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50()
    for p in network.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    weights = [p for p in network.parameters() if p.ndim > 1]
    others: list[nn.Parameter] = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": 1e-4}, {"params": others, "weight_decay": 0.0, **adapt}]
    return cls(groups, lr=0.1, momentum=0.9)  # type: ignore[call-arg]


def seconds(optimizer: torch.optim.Optimizer) -> float:
    """Of the processors for one step: what other processes do in between is not counted."""
    began = time.process_time()
    optimizer.step()
    return time.process_time() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=30)
    blocks = parser.parse_args().blocks
    keep_memory()  # as the engine has it: otherwise the system's clearing of freed pages is what is measured
    ours, theirs = prepared(LARS, {"adapt": False}), prepared(Lars, {})
    for optimizer in (ours, theirs):
        seconds(optimizer)
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(blocks)]
    print(f"ours / timm: {compare([[a] for a, _ in pairs], [[b] for _, b in pairs])}")
    print(f"least seconds of a step: ours {min(a for a, _ in pairs):.4f}, timm {min(b for _, b in pairs):.4f}")


if __name__ == "__main__":
    main()

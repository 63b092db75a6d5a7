"""Exponential moving average of a network."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from semisup.errors import SemisupError

__all__ = ["EMA", "WINDOW", "stage_decay"]

WINDOW = 0.1
"""Part of a stage that an average of decay `auto` looks back: its time constant 1 / (1 - m), in stages."""


class EMA(nn.Module):
    """A frozen copy of `module` that follows it: `theta' <- m theta' + (1 - m) theta`.

    BatchNorm's running statistics are averaged like the weights. The reference implementations of semi-supervised
    learning copy them; that is harmless where BatchNorm forgets as slowly as the average does (momentum 0.001 next to m
    0.999), but statistics of the last ten steps do not fit weights of the last hundred: FixMatch on 40 labels of
    Fashion-MNIST, 600 steps, BatchNorm momentum 0.1, m 0.99, lost 3 to 10 points of accuracy to copied ones. A copy
    that runs in train mode keeps statistics of its own (`own_buffers`).

    The copy never gets gradients. Its train/eval mode is the caller's choice, and `train()` of an enclosing module
    reaches it too: Mean Teacher wants it in train mode, evaluation in eval mode. The number of updates is known on the
    host, so that an update is one fused operation; the state dict has it, so that a checkpoint holds everything.

    It starts warm, with `m_t = min(1 - 1 / (t + 1), m)` at update t = 1, 2, ...: the plain mean of the weights so far
    until that forgets more slowly than m, so that the random start does not linger for thousands of steps. Targets that
    should change slowly from the first step on (MoCo, BYOL) do without (`warm=False`).

    Attributes:
        module: the averaged network; calling the EMA calls it.
        decay: m; may be reassigned between updates (BYOL and DINO raise it along a cosine).
        step: number of updates so far.

    Args:
        module: the network to follow; copied now, so it starts as its own average.
        decay: m in [0, 1]. A change is forgotten to one half after ln 0.5 / ln m updates: 693 at 0.999.
        own_buffers: never touch the copy's buffers: for a teacher that sees batches in train mode itself.
        warm: start as the plain mean; False applies m from the first update on.

    Raises:
        SemisupError: `decay` is outside [0, 1].
    """

    def __init__(
        self, module: nn.Module, decay: float = 0.999, *, own_buffers: bool = False, warm: bool = True
    ) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise SemisupError(f"ema: decay must be between 0 and 1, got {decay!r}")
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay = decay
        self.own_buffers = own_buffers
        self.warm = warm
        self.step = 0

    def get_extra_state(self) -> Tensor:
        """Return what a state dict holds next to the averaged network: the number of updates."""
        return torch.tensor(self.step)

    def set_extra_state(self, state: Tensor) -> None:
        """Read it back."""
        self.step = int(state)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the averaged network."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, online: nn.Module) -> None:
        """Move one step towards `online`. Never waits for a GPU.

        Parameters and floating-point buffers are averaged, other buffers copied.

        Raises:
            SemisupError: `online` has parameters or buffers of another number or shape than `module`.
        """
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(online.parameters())
        my_buffers, their_buffers = list(self.module.buffers()), list(online.buffers())
        # Shapes are known to the host. Unequal ones could broadcast without a word.
        if [t.shape for t in mine + my_buffers] != [t.shape for t in theirs + their_buffers]:
            raise SemisupError(
                f"ema: the averaged {type(self.module).__name__} and the online {type(online).__name__} must be the "
                "same network, but their parameters or buffers differ in number or shape"
            )
        self.step += 1
        weight = 1 - self.decay
        if self.warm:
            weight = max(1 / (self.step + 1), weight)
        if not self.own_buffers:
            for my_buffer, their_buffer in zip(my_buffers, their_buffers, strict=True):
                if my_buffer.is_floating_point():
                    mine.append(my_buffer)
                    theirs.append(their_buffer)
                else:
                    my_buffer.copy_(their_buffer)  # num_batches_tracked and the like
        if mine:  # foreach functions refuse empty lists
            torch._foreach_lerp_(mine, theirs, weight)


def stage_decay(ema: float | Literal["auto"] | None, steps: int) -> float | None:
    """Return the decay m of a stage's average as a number: a given one, or the one whose window follows the stage.

    A fixed 0.99 remembers 100 steps: half of a stage of 200, while its learning rate is still high. `auto` remembers
    a tenth of the stage, m = 1 - 10 / steps, whatever its length: 0.95 at 200 steps, 0.999 at 10,000. FixMatch on
    digits, 200 steps, means of three draws, 40 / 600 labels: last weights 89.6 / 95.5%, 0.99 90.3 / 96.0, auto
    91.7 / 97.3; labels alone, 600: 94.5, 94.8, 96.2.

    Args:
        ema: the recipe's `ema`.
        steps: length of the stage, >= 1.
    """
    return max(0.0, 1 - 1 / (WINDOW * steps)) if ema == "auto" else ema

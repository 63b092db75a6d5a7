"""The bare limit of a training step: the forward calls of its network, their backward, and nothing else.

One real step is watched: every call of a module of the method that no other module of it made (a whole network, a
projection head, a part of a backbone), with the sizes and memory layout of its inputs, whether gradients were on, the
train and eval modes, and which of its outputs a gradient came back to. The same calls are then made again on random
tensors by a copy of the method, and backward starts from random gradients of those outputs. No data, no augmentation,
no loss, no optimizer, no average, no logging: what is left is what the network costs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from semisup.engine import autocast
from semisup.methods import Method

__all__ = ["Bare", "Call", "Recorder"]


@dataclass
class Call:
    """One call of a module, as it was seen."""

    module: str
    """Its name in the method."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    """Arguments, with a random tensor in place of each floating-point one."""
    grad: bool
    """Whether gradients were on."""
    modes: list[bool]
    """`training` of the module and all its parts."""
    gradients: dict[int, Tensor] = field(default_factory=dict)
    """Place among the outputs -> a random gradient, for each that got one."""


class Recorder:
    """Watches the forward calls of a method between `start` and `stop`, backward included."""

    def __init__(self, method: Method) -> None:
        self.names = {module: name for name, module in method.named_modules()}
        self.calls: list[Call] = []
        self._depth = 0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def start(self) -> None:
        """Begin a new record."""
        self.calls = []
        for module in self.names:
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after))

    def stop(self) -> list[Call]:
        """End it, and return the calls in the order they were made."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self.calls

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth == 0:
            modes = [part.training for part in module.modules()]
            call = Call(self.names[module], _random(args), _random(kwargs), torch.is_grad_enabled(), modes)
            self.calls.append(call)
        self._depth += 1

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        gradients = self.calls[-1].gradients

        def arrived(gradient: Tensor, place: int) -> None:
            gradients[place] = torch.randn_like(gradient)

        for place, tensor in enumerate(_tensors(output)):
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient, place=place: arrived(gradient, place))


class Bare:
    """Makes the recorded calls again; calling it is one bare step.

    Args:
        method: copied; never trained by this.
        device: of the method.
        precision: of the autocast context that the forward calls run in.
    """

    def __init__(self, method: Method, device: torch.device, precision: str) -> None:
        self.copy = copy.deepcopy(method)
        self.device = device
        self.precision = precision
        self.calls: list[tuple[Call, nn.Module, list[nn.Module]]] = []
        self.leaves: list[Tensor] = []

    def load(self, calls: list[Call]) -> None:
        """Take the calls of a record."""
        found = [(call, self.copy.get_submodule(call.module)) for call in calls]
        self.calls = [(call, module, list(module.modules())) for call, module in found]
        inputs = itertools.chain.from_iterable(_tensors((call.args, call.kwargs)) for call in calls)
        self.leaves = [t for t in itertools.chain(self.copy.parameters(), inputs) if t.requires_grad]

    def __call__(self) -> None:
        """One forward of every call, one backward through all of them."""
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        with autocast(self.device, self.precision):
            for call, module, parts in self.calls:
                for part, mode in zip(parts, call.modes, strict=True):
                    part.training = mode
                with torch.set_grad_enabled(call.grad):
                    found = list(_tensors(module(*call.args, **call.kwargs)))
                for place, gradient in call.gradients.items():
                    outputs.append(found[place])
                    gradients.append(gradient)
        torch.autograd.backward(outputs, gradients)
        for leaf in self.leaves:
            leaf.grad = None


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _random(value: Any) -> Any:
    """Return the value with random numbers in its floating-point tensors, each a leaf with a gradient or without."""
    if isinstance(value, Tensor):
        copied = value.detach().clone()  # keeps the memory layout
        return copied.normal_().requires_grad_(value.requires_grad) if copied.is_floating_point() else copied
    if isinstance(value, dict):
        return {key: _random(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_random(item) for item in value)
    return value

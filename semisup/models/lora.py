"""LoRA: a weight learns by the product of two small matrices, and is itself again when the stage has ended.

Hu et al. 2022, arXiv:2106.09685. The package peft has it for many kinds of layers, and needs transformers and
accelerate for it, which have nothing to do with images here; what linear layers and convolutions need are these lines
over `torch.nn.utils.parametrize`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence, Set

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from semisup.errors import SemisupError, nearest

__all__ = ["LowRank", "add_lora", "is_lora", "lora_targets", "merge_lora"]

WEIGHTS = ("weight", "in_proj_weight")
"""Tensors that learn so: of linear layers and convolutions, and queries, keys and values of torch's attention in one
(torchvision's transformers), whose path ends with `in_proj` here."""
PACKED = ".in_proj"


class LowRank(nn.Module):
    """`W + alpha / rank * up @ down` in place of a weight W of out x in numbers; of a convolution, in x its window.

    `up` begins at 0, so that the network begins as it was; `down` as a linear layer of its size (as in the authors'
    code, microsoft/LoRA). Unlike theirs the sum is formed and then applied: it costs as much gradient as W itself, but
    works for every layer that has a weight, also where a network reads the weight by itself (torch's attention).

    Args:
        weight: W, of at least two dimensions.
        rank: of the product.
        alpha: its factor, over `rank`.
        generator: on the CPU, draws `down`.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        inputs = weight[0].numel()
        bound = 1 / math.sqrt(inputs)
        down = (2 * torch.rand(rank, inputs, generator=generator, device="cpu") - 1) * bound
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, dtype=weight.dtype, device=weight.device))
        self.scale = alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight that is used."""
        return weight + (self.scale * (self.up @ self.down)).view(weight.shape)


def lora_targets(backbone: nn.Module, targets: Sequence[str] | None, frozen: Set[str] = frozenset()) -> list[str]:
    """Return the paths of the layers that learn so.

    Args:
        backbone: the network.
        targets: what their paths end with, such as `attn.qkv`; None: all linear layers of a network that has blocks of
            them (a transformer), else all convolutions of a 1 x 1 window.
        frozen: names of weights that do not learn at all; their layers are left out.

    Raises:
        SemisupError: a target fits no layer, with the nearest, or there is none.
    """
    plain = _layers(backbone)
    if targets is None:
        chosen = [path for path, layer in plain.items() if not isinstance(layer, nn.Conv2d)]
        chosen = chosen or [path for path, layer in plain.items() if layer.kernel_size == (1, 1)]
    else:
        for target in targets:
            if not any(_ends(path, target) for path in plain):
                raise SemisupError(f"lora.targets: no layer's path ends with '{target}'{nearest(target, plain)}")
        chosen = [path for path in plain if any(_ends(path, target) for target in targets)]
    chosen = [path for path in chosen if ".".join(_tensor(backbone, path)) not in frozen]
    if not chosen:
        raise SemisupError("lora: the network has no linear layer and no 1 x 1 convolution that could learn by it")
    return chosen


def _layers(backbone: nn.Module) -> dict[str, nn.Linear | nn.Conv2d | nn.MultiheadAttention]:
    """Return all that can learn so, by path; the packed weight of torch's attention stands for a layer of its own."""
    found: dict[str, nn.Linear | nn.Conv2d | nn.MultiheadAttention] = {}
    for path, layer in backbone.named_modules():
        if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            found[f"{path}{PACKED}"] = layer
        elif path and (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)):
            found[path] = layer
    return found


def _tensor(backbone: nn.Module, path: str) -> tuple[str, str]:
    """Return the path of the module that has a target's weight, and the weight's name."""
    home = path.removesuffix(PACKED)
    packed = home != path and isinstance(backbone.get_submodule(home), nn.MultiheadAttention)
    return (home, "in_proj_weight") if packed else (path, "weight")


def _ends(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def add_lora(backbone: nn.Module, paths: Sequence[str], rank: int, alpha: float, key: str) -> None:
    """Have the weights of some layers learn by two small matrices, in place; they are not frozen here.

    Args:
        backbone: the network. The matrices of one whose weights ask for no gradient, an average's, ask for none.
        paths: of its layers.
        rank: of the product, at most.
        alpha: its factor, over the rank.
        key: decides, with the layer's path, how `down` begins: copies of a network must begin alike.
    """
    for path in paths:
        home, name = _tensor(backbone, path)
        layer = backbone.get_submodule(home)
        weight = layer.get_parameter(name)
        learns, rows = weight.requires_grad, weight[0].numel()
        seed = int.from_bytes(hashlib.sha256(f"{key}/{path}".encode()).digest()[:7], "big")
        low = LowRank(weight.detach(), min(rank, rows, len(weight)), alpha, torch.Generator().manual_seed(seed))
        parametrize.register_parametrization(layer, name, low.requires_grad_(learns), unsafe=True)


def is_lora(name: str) -> bool:
    """Whether a parameter of this name is one of the small matrices."""
    inside = any(f".parametrizations.{weight}." in f".{name}" for weight in WEIGHTS)
    return inside and not name.endswith("original")


@torch.no_grad()
def merge_lora(module: nn.Module) -> None:
    """Put the products into the weights of all layers inside, in place: what is left is the network as it was built."""
    for layer in list(module.modules()):
        for name in WEIGHTS:
            if parametrize.is_parametrized(layer, name):
                shared = type(layer)  # torch takes the weight out of the class, which a deep copy (an average) has, too
                layer.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)

"""Parts of a backbone that do not learn: no gradient, nothing kept for one, BatchNorm and dropout in eval mode."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal

from torch import nn

from semisup.models.blocks import blocks_of
from semisup.models.classifier import Classifier, Encoder, Frozen
from semisup.models.lora import is_lora

__all__ = ["all_but", "first_blocks", "freeze", "thaw"]


def first_blocks(backbone: nn.Module, blocks: int | None) -> set[str]:
    """Return the names of the parameters of so many first blocks and of what comes before them; None: of all."""
    depth = blocks_of(backbone).depth
    return {name for name, at in depth.items() if blocks is None or at <= blocks}


def all_but(backbone: nn.Module, kept: Literal["none", "bias", "norm"]) -> set[str]:
    """Return the names of a backbone's parameters but for its biases, or its norms' factors and biases, or LoRA's.

    Learning the biases alone is BitFit (Ben Zaken et al. 2022, arXiv:2106.10199). LoRA's are never among them.
    """
    names = {name for name, _ in backbone.named_parameters() if not is_lora(name)}
    if kept == "bias":
        return {name for name in names if not name.endswith("bias")}
    return names - _of_norms(backbone) if kept == "norm" else names


def freeze(network: Classifier | Encoder, names: Set[str]) -> None:
    """Stop the learning of some parameters of a network's backbone; heads, necks and projectors learn on.

    Modules without any other parameters are kept in eval mode. Where nothing before a layer asks for a gradient either,
    autograd keeps no activations of it.

    Args:
        network: changed in place.
        names: as `network.backbone.named_parameters()` has them.
    """
    stopped = [name for name, p in network.backbone.named_parameters() if name in names and p.requires_grad]
    for name in stopped:
        network.backbone.get_parameter(name).requires_grad_(False)
    network.frozen = Frozen(tuple(_whole(network.backbone, names)), tuple(stopped))
    network.train(network.training)


def thaw(network: Classifier | Encoder) -> None:
    """Let everything learn again that `freeze` stopped; nothing where nothing is frozen."""
    if network.frozen is None:
        return
    for name in network.frozen.parameters:
        network.backbone.get_parameter(name).requires_grad_(True)
    network.frozen = None
    network.train(network.training)


def _whole(backbone: nn.Module, names: Set[str]) -> list[str]:
    """Paths of the largest modules that have parameters, and no others than these."""
    found: list[str] = []
    for path, module in backbone.named_modules():
        inside = {f"{path}.{name}" if path else name for name, _ in module.named_parameters()}
        if inside and inside <= names and not any(above == "" or path.startswith(f"{above}.") for above in found):
            found.append(path)
    return found


def _of_norms(backbone: nn.Module) -> set[str]:
    """Names of the parameters of norms: of layers whose own are all of one dimension, such as BatchNorm and its kin."""
    found: set[str] = set()
    for path, module in backbone.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if "weight" in own and all(p.ndim == 1 for p in own.values()):
            found |= {f"{path}.{name}" if path else name for name in own}
    return found

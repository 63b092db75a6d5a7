"""The blocks of a backbone, in the order in which images pass them: what is frozen first and learns most slowly."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from semisup.models.classifier import backbone_core

__all__ = ["LISTS", "Blocks", "blocks_of"]

LISTS = (nn.Sequential, nn.ModuleList)
"""What holds blocks one after the other; classes that inherit from these are blocks themselves."""
INNER = ("blocks", "layers")
"""What a stage calls its list of blocks in timm's Swin and ConvNeXt, and torchvision's transformers in theirs."""


@dataclass(frozen=True)
class Blocks:
    """A backbone cut into depths.

    Depth 0 is what comes before the first block (a stem, or the embedding of patches with class token and positions);
    what follows a block and is none, such as the last norm, belongs to it. That is timm's grouping
    (`group_matcher`) for its vision transformers, ResNets and EfficientNets; its ConvNeXt counts a stage's
    shrinking layers to the block before them instead of the one after.

    Attributes:
        depth: parameter's name -> its depth, 0 to `len(modules)`, names as `backbone.named_parameters()` has them.
        modules: the blocks alone, the first at depth 1.
    """

    depth: dict[str, int]
    modules: list[nn.Module]


def blocks_of(backbone: nn.Module) -> Blocks:
    """Cut a backbone into its blocks.

    A block is a module with modules inside that stands in a list of them. A network without such (VGG) is cut at each
    of its weights.
    """
    core, prefix = backbone_core(backbone)
    units = _units(core, prefix, in_list=False)
    depth = {name: 0 for name, _ in backbone.named_parameters()}
    modules: list[nn.Module] = []
    nested = any(block for _, _, block in units)
    for path, unit, block in units:
        if block or (not nested and any(p.ndim > 1 for p in unit.parameters())):
            modules.append(unit)
        depth |= {f"{path}.{name}": len(modules) for name, _ in unit.named_parameters()}
    return Blocks(depth, modules)


def _units(module: nn.Module, prefix: str, *, in_list: bool) -> list[tuple[str, nn.Module, bool]]:
    """List path, module and whether it is a block, of all that has weights, in order."""
    found: list[tuple[str, nn.Module, bool]] = []
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if type(child) in LISTS or any(type(getattr(child, inner, None)) in LISTS for inner in INNER):
            found += _units(child, f"{path}.", in_list=type(child) in LISTS)
        elif next(child.parameters(), None) is not None:
            found.append((path, child, in_list and _is_composite(child)))
    return found


def _is_composite(module: nn.Module) -> bool:
    """Whether there are weights in modules inside; a parametrization (LoRA) is none."""
    inside = (child for name, child in module.named_children() if name != "parametrizations")
    return any(next(child.parameters(), None) is not None for child in inside)

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from semisup.models import build_backbone
from semisup.models.recompute import recompute_blocks

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def kept_and_gradients(network: nn.Module) -> tuple[int, list[Tensor]]:
    """Bytes that autograd keeps of a forward outside of the blocks, and the gradients."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(IMAGES).square().sum()
    loss.backward()
    return sum(kept.values()), [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", ["vit", "resnet18", "timm/vit_tiny_patch16_224"])
def test_gradients_and_statistics_are_those_without_it(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    plain = build_backbone(name, {}, in_channels=3, image_size=16).train()
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3  # the second forward must draw as the first did
    again = copy.deepcopy(plain)
    recompute_blocks(again)
    average = copy.deepcopy(again)
    (kept, expected), (less, found) = kept_and_gradients(plain), kept_and_gradients(again)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(again.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs), "the running statistics count the batch once"
    assert less < 0.5 * kept
    assert again.state_dict().keys() == plain.state_dict().keys()
    kept_and_gradients(average)
    assert all(p.grad is not None for p in average.parameters()), "a copy runs its own blocks"

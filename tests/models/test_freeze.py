from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semisup.models import Classifier, Encoder, build_backbone, build_neck
from semisup.models.freeze import all_but, first_blocks, freeze, thaw

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def classifier(name: str = "wrn", **options: object) -> Classifier:
    torch.manual_seed(0)
    options = options or ({"depth": 10} if name == "wrn" else {})
    backbone = build_backbone(name, options, in_channels=3, image_size=16)
    return Classifier(backbone, build_neck(backbone.num_features, []), 2).train()  # type: ignore[arg-type]


def kept_bytes(network: nn.Module) -> int:
    """Bytes that autograd keeps of one forward, weights left out."""
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(IMAGES)
    return sum(found.values())


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_frozen_blocks_keep_statistics_get_no_gradient_and_cost_no_memory() -> None:
    network = classifier()
    free = kept_bytes(network)
    freeze(network, first_blocks(network.backbone, 2))
    before = state(network)
    network(IMAGES).sum().backward()
    learns = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None}
    assert learns == {"group3", "bn", "weight", "bias"}
    changed = {
        name.split(".")[1] for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"group3", "bn"}, "the statistics of what learns follow the images, those of the rest do not"
    assert kept_bytes(network) < 0.5 * free
    freeze(network, first_blocks(network.backbone, None))
    assert kept_bytes(network) < 0.01 * free


@pytest.mark.parametrize("enclosed", [False, True])
def test_no_change_of_the_mode_wakes_what_is_frozen(enclosed: bool) -> None:
    network = classifier()
    freeze(network, first_blocks(network.backbone, 2))
    owner = nn.ModuleList([network]) if enclosed else network
    owner.eval()
    owner.train()
    awake = {name for name, m in network.named_modules() if m.training and isinstance(m, nn.BatchNorm2d)}
    assert awake == {"backbone.group3.0.bn1", "backbone.group3.0.bn2", "backbone.bn"}
    average = copy.deepcopy(network).train()
    assert {name for name, m in average.named_modules() if m.training} == {
        name for name, m in network.named_modules() if m.training
    }


def test_thawing_undoes_it_and_leaves_a_copy_without_gradients_alone() -> None:
    network = Encoder(classifier().backbone).train()
    average = copy.deepcopy(network).requires_grad_(False)
    for each in (network, average):
        freeze(each, first_blocks(each.backbone, None))
        thaw(each)
        assert all(m.training for m in each.modules())
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize("which", ["bias", "norm"])
@pytest.mark.parametrize("name", ["wrn", "vit", "resnet18"])
def test_biases_or_norms_alone_learn(name: str, which: Any) -> None:
    network = classifier(name)
    freeze(network, all_but(network.backbone, which))
    learns = {n for n, p in network.backbone.named_parameters() if p.requires_grad}
    norms = {
        f"{path}.{own}"
        for path, m in network.backbone.named_modules()
        if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)
        for own, _ in m.named_parameters()
    }
    biases = {n for n, _ in network.backbone.named_parameters() if n.endswith("bias")}
    assert learns == (biases if which == "bias" else norms)
    assert all(p.requires_grad for p in network.head.parameters())
    network(IMAGES).sum().backward()
    assert {n for n, p in network.backbone.named_parameters() if p.grad is not None} == learns

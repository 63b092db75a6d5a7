from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from semisup.errors import SemisupError
from semisup.models import EMA, build_backbone
from semisup.models.freeze import all_but
from semisup.models.lora import LowRank, add_lora, is_lora, lora_targets, merge_lora

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def backbone(name: str = "vit") -> nn.Module:
    torch.manual_seed(0)
    options = {"vit": {"width": 24, "depth": 3}, "resnet50": {"width": 0.125}}.get(name, {})
    return build_backbone(name, options, in_channels=3, image_size=16).eval()


def with_lora(name: str = "vit", rank: int = 4, targets: list[str] | None = None) -> nn.Module:
    network = backbone(name)
    add_lora(network, lora_targets(network, targets), rank, 8.0, "key")
    return network


def moved(module: nn.Module) -> nn.Module:
    """Give the small matrices values as a training would."""
    torch.manual_seed(1)
    for name, p in module.named_parameters():
        if is_lora(name):
            nn.init.normal_(p, std=0.1)
    return module


def test_a_weight_is_the_papers_sum() -> None:
    low, weight = LowRank(torch.zeros(5, 3, 2, 2), 2, 6.0, torch.Generator()), torch.randn(5, 3, 2, 2)
    nn.init.normal_(low.up)
    found, up, down = low(weight).detach().flatten(1), low.up.detach(), low.down.detach()
    for i in range(5):
        for j in range(12):
            product = sum(float(up[i, k]) * float(down[k, j]) for k in range(2))
            assert float(found[i, j]) == pytest.approx(float(weight.flatten(1)[i, j]) + 6.0 / 2 * product, abs=1e-5)


@pytest.mark.parametrize("name", ["vit", "resnet50"])
def test_it_begins_as_the_network_and_is_merged_into_one_with_its_names(name: str) -> None:
    plain, network = backbone(name), with_lora(name)
    assert torch.equal(network(IMAGES), plain(IMAGES))
    before = moved(network)(IMAGES)
    assert not torch.allclose(before, plain(IMAGES), atol=1e-3)
    merge_lora(network)
    torch.testing.assert_close(network(IMAGES), before, atol=1e-5, rtol=1e-5)
    assert network.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(network.state_dict())
    assert torch.equal(plain(IMAGES), network(IMAGES))


def test_auto_takes_linear_layers_and_of_a_network_without_any_1x1_convolutions() -> None:
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert lora_targets(backbone(), None) == [f"blocks.{i}.{layer}" for i in range(3) for layer in layers]
    with torch.device("meta"):
        convolutional = backbone("resnet50")
    found = [convolutional.get_submodule(path) for path in lora_targets(convolutional, None)]
    assert len(found) == 2 * 16 + 4
    assert {layer.kernel_size for layer in found} == {(1, 1)}
    assert len(lora_targets(backbone(), ["qkv"])) == 3
    frozen = {"blocks.0.attn.qkv.weight"}
    assert lora_targets(backbone(), ["attn.qkv"], frozen) == ["blocks.1.attn.qkv", "blocks.2.attn.qkv"]
    with pytest.raises(
        SemisupError, match=r"lora.targets: no layer's path ends with 'attn.qvk'; did you mean .*attn.qkv"
    ):
        lora_targets(backbone(), ["attn.qvk"])
    with pytest.raises(SemisupError, match="no linear layer and no 1 x 1"):
        lora_targets(backbone("cnn"), None)


def test_queries_keys_and_values_of_torchs_attention_learn_so_in_one() -> None:
    """torchvision's ViT keeps them in a tensor that is no layer's; the others of its block are linear layers."""
    torch.manual_seed(0)
    network = VisionTransformer(image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=24)
    network.heads = nn.Identity()
    images = torch.randn(2, 3, 16, 16)
    paths = lora_targets(network.encoder, None)
    layers = ("self_attention.in_proj", "self_attention.out_proj", "mlp.0", "mlp.3")
    assert paths == [f"layers.encoder_layer_{i}.{layer}" for i in range(2) for layer in layers]
    names, before = set(network.state_dict()), network.eval()(images)
    packed = lora_targets(network.encoder, ["in_proj"])
    add_lora(network.encoder, packed, 2, 4.0, "key")
    assert torch.allclose(network(images), before, atol=1e-6)
    moved(network)
    learned = network.train()(images)
    assert not torch.allclose(learned, before, atol=1e-3)
    with torch.no_grad():
        assert torch.allclose(network.eval()(images), learned, atol=1e-5), "torch's fast path of inference sees it too"
    merge_lora(network)
    assert set(network.state_dict()) == names
    assert torch.allclose(network(images), learned, atol=1e-5)
    frozen = {f"layers.encoder_layer_0.{end}" for end in ("self_attention.in_proj_weight", "mlp.0.weight")}
    assert lora_targets(network.encoder, ["in_proj", "mlp.0"], frozen) == [paths[4], paths[6]]


def test_only_the_small_matrices_are_left_to_learn() -> None:
    network = with_lora(rank=2)
    left = {name for name, _ in network.named_parameters()} - all_but(network, "none")
    assert len(left) == 2 * 12
    assert all(is_lora(name) for name in left)
    sizes = [p.numel() for name, p in network.named_parameters() if name in left]
    assert sum(sizes) == 3 * 2 * (24 + 72 + 24 + 24 + 2 * (24 + 48))


def test_an_average_begins_as_what_it_follows_and_asks_for_no_gradient() -> None:
    network = backbone()
    average = EMA(network)
    for each in (network, average.module):
        add_lora(each, lora_targets(each, None), 4, 8.0, "key")
    for mine, theirs in zip(average.module.parameters(), network.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad and theirs.requires_grad
    average.update(moved(network))
    copied = copy.deepcopy(network)
    merge_lora(copied)
    assert any(is_lora(name) for name, _ in network.named_parameters()), "a copy's merge leaves the first as it was"


@pytest.mark.parametrize("name", ["vit", "resnet50"])
def test_an_average_that_was_made_afterwards_is_merged_too(name: str) -> None:
    network = moved(with_lora(name))
    average = EMA(network)
    expected = network(IMAGES)
    for each in (network, average.module):
        merge_lora(each)
        assert not any(is_lora(parameter) for parameter, _ in each.named_parameters())
        assert torch.allclose(each(IMAGES), expected, atol=1e-5)


def test_another_key_begins_elsewhere() -> None:
    one, other = backbone(), backbone()
    add_lora(one, ["blocks.0.mlp.fc1"], 4, 8.0, "a")
    add_lora(other, ["blocks.0.mlp.fc1"], 4, 8.0, "b")
    name = "blocks.0.mlp.fc1.parametrizations.weight.0.down"

    def of(network: nn.Module) -> Tensor:
        return network.get_parameter(name)

    assert not torch.equal(of(one), of(other))
    assert float(of(one).detach().abs().max()) <= 1 / 24**0.5

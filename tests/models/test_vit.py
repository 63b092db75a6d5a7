"""The vision transformer against its equations, and what masked methods do with its tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.models import build_backbone, count_parameters
from semisup.models.vit import VisionTransformer, sincos_positions


def small(depth: int = 3, heads: int = 2) -> VisionTransformer:
    torch.manual_seed(0)
    network = VisionTransformer(2, 8, depth, heads, 1.5, in_channels=3).double()
    with torch.no_grad():  # biases and norms of their own, so that a forgotten one shows
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return network


def slow_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean()
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean() + 1e-6) * weight + bias


def slow_vit(network: VisionTransformer, image: Tensor) -> list[Tensor]:
    """Tokens (T, width) before the first block and after each block, for one image, token by token."""
    state = network.state_dict()
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    width, _, p, _ = kernel.shape
    rows, columns = image.shape[1] // p, image.shape[2] // p
    tokens = []
    for i in range(rows):
        for j in range(columns):
            patch = image[:, p * i : p * (i + 1), p * j : p * (j + 1)]
            place = []
            for at in (i, j):
                angles = [at / 10_000 ** (k / (width // 4)) for k in range(width // 4)]
                place += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            tokens.append((kernel * patch).sum((1, 2, 3)) + bias + torch.tensor(place, dtype=image.dtype))
    found = [torch.stack(tokens)]
    for b in range(len(network.blocks)):
        w = {name.removeprefix(f"blocks.{b}."): t for name, t in state.items() if name.startswith(f"blocks.{b}.")}
        x = found[-1]
        qkv = torch.stack(
            [w["attn.qkv.weight"] @ slow_norm(t, w["norm1.weight"], w["norm1.bias"]) + w["attn.qkv.bias"] for t in x]
        )
        q, k, v = qkv.split(width, dim=1)
        size = width // network.blocks[b].attn.heads
        mixed = torch.zeros_like(x)
        for head in range(network.blocks[b].attn.heads):
            part = slice(head * size, (head + 1) * size)
            for i in range(len(x)):
                scores = [float(q[i, part] @ k[j, part]) / math.sqrt(size) for j in range(len(x))]
                powers = [math.exp(score) for score in scores]
                mixed[i, part] = sum(power / sum(powers) * v[j, part] for j, power in enumerate(powers))
        x = x + mixed @ w["attn.proj.weight"].T + w["attn.proj.bias"]
        hidden = torch.stack([slow_norm(t, w["norm2.weight"], w["norm2.bias"]) for t in x])
        hidden = hidden @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        found.append(x + hidden @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"])
    found.append(torch.stack([slow_norm(t, state["norm.weight"], state["norm.bias"]) for t in found[-1]]))
    return found


def test_it_computes_what_the_equations_say() -> None:
    network = small(depth=4)
    images = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    features, maps = network(images), network.maps(images)
    for n, image in enumerate(images):
        steps = slow_vit(network, image)
        # Positions of the network are float32, as its inputs mostly are.
        torch.testing.assert_close(features[n], steps[-1].mean(0), rtol=1e-6, atol=1e-6)
        # Four blocks in three groups: after the second, the third and, normalized, the fourth.
        for got, wanted in zip(maps, (steps[2], steps[3], steps[5]), strict=True):
            torch.testing.assert_close(got[n], wanted.T.reshape(8, 2, 3), rtol=1e-6, atol=1e-6)


def test_all_tokens_through_encode_are_the_last_map() -> None:
    network = small()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    encoded = network.encode(network.patches(images) + network.positions(images))
    torch.testing.assert_close(encoded.transpose(1, 2).reshape(2, 8, 4, 4), network.maps(images)[-1])


def test_tokens_that_are_left_out_have_no_say() -> None:
    network = small()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    kept = torch.tensor([0, 5, 9])
    other = images.clone()
    other[:, :, 0:2, 2:4] += 1  # the second patch
    encoded = [network.encode((network.patches(x) + network.positions(x))[:, kept]) for x in (images, other)]
    assert torch.equal(*encoded)
    assert not torch.allclose(network(images), network(other))


def test_patches_alone_do_not_know_where_they_are() -> None:
    network = small()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    tokens = network.patches(images)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.encode(tokens[:, order]), network.encode(tokens)[:, order])
    placed, moved = (network.encode(x + network.positions(images)) for x in (tokens, tokens[:, order]))
    assert not torch.allclose(moved, placed[:, order])


def test_patches_are_counted_row_by_row() -> None:
    network = small()
    image = torch.zeros(1, 3, 4, 6, dtype=torch.float64)
    image[0, :, 2:, :2] = 1  # second row, first column
    changed = (network.patches(image) != network.patches(torch.zeros_like(image))).any(2)
    assert changed.tolist() == [[False, False, False, True, False, False]]


def test_positions_differ_and_depend_on_the_offset_alone() -> None:
    table = sincos_positions(4, 5, 16, torch.device("cpu"))
    assert table.shape == (20, 16)
    assert len({tuple(row) for row in table.round(decimals=4).tolist()}) == 20
    products = (table @ table.T).view(4, 5, 4, 5)
    torch.testing.assert_close(products[0, 0, 1, 2], products[2, 2, 3, 4])
    torch.testing.assert_close(products.view(20, 20).diagonal(), torch.full((20,), 8.0))


def test_a_smaller_image_has_the_positions_of_the_top_left_corner() -> None:
    large, little = (sincos_positions(n, n, 16, torch.device("cpu")).view(n, n, 16) for n in (8, 3))
    assert torch.equal(large[:3, :3], little)


def test_sides_that_patches_do_not_fill_are_refused() -> None:
    network = VisionTransformer(4, in_channels=1)
    with pytest.raises(SemisupError, match="model vit: patch must divide the side of the images, 30 px, not 4"):
        network(torch.zeros(1, 1, 30, 30))
    with pytest.raises(SemisupError, match="28 x 30 px"):
        network.maps(torch.zeros(1, 1, 28, 30))
    with pytest.raises(SemisupError, match="model vit: patch must divide the side of the images, 32 px, not 5"):
        build_backbone("vit", {"patch": 5}, in_channels=3, image_size=32)


@pytest.mark.parametrize(("depth", "ends"), [(3, [1, 2, 3]), (6, [2, 4, 6]), (7, [3, 5, 7])])
def test_groups_are_even(depth: int, ends: list[int]) -> None:
    network = small(depth)
    done: list[Tensor] = []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: done.append(output))
    maps = network.maps(torch.randn(1, 3, 4, 4, dtype=torch.float64))
    tokens = [each.flatten(2).transpose(1, 2) for each in maps]
    assert all(torch.equal(got, done[end - 1]) for got, end in zip(tokens[:-1], ends, strict=False))
    assert torch.equal(tokens[-1], network.norm(done[-1]))


def test_weights_are_glorot_uniform_those_of_the_patches_too() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(width=192, in_channels=3)
    for weight in (
        network.patch_embed.proj.weight,
        network.blocks[0].attn.qkv.weight,
        network.blocks[5].mlp.fc2.weight,
    ):
        fan_out, fan_in = weight.flatten(1).shape
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert float(weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
        assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))


def test_the_default_is_small() -> None:
    assert count_parameters(VisionTransformer()) == 453_600  # 4,704 to embed, 74,784 a block, 192 in the last norm


def test_mistakes_are_listed() -> None:
    with pytest.raises(SemisupError) as error:
        VisionTransformer(0, 0, 1, 0, -1.0)
    assert "5 problems" in str(error.value)


# timm's names


def _timm_pair(name: str, **options: Any) -> tuple[nn.Module, VisionTransformer]:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 2, "img_size": 32, "patch_size": 8}
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True, **sizes).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    sizes = {"patch": 8, "width": 16, "depth": 3, "heads": 2, "mlp_ratio": 4.0, "class_token": True, "learned_grid": 4}
    return theirs, VisionTransformer(**sizes, **options).eval()


@pytest.mark.parametrize(
    ("name", "options"),
    [("vit_tiny_patch16_224", {"pool": "class"}), ("vit_small_patch14_dinov2", {"pool": "class", "layer_scale": 1.0})],
)
def test_timms_weights_load_strictly_and_compute_the_same(name: str, options: dict[str, Any]) -> None:
    """DINO's and MAE's networks are the first, DINOv2's the second; another image size interpolates the positions."""
    theirs, ours = _timm_pair(name, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for side in (32, 64):
        images = torch.randn(2, 3, side, side)
        assert torch.allclose(ours(images), theirs(images), atol=1e-6)
        last = theirs.forward_intermediates(images, intermediates_only=True, norm=True)[-1]
        assert torch.allclose(ours.maps(images)[-1], last, atol=1e-6)


def test_hidden_patches_see_the_class_token_too() -> None:
    _, ours = _timm_pair("vit_tiny_patch16_224")
    images = torch.randn(2, 3, 32, 32)
    tokens = ours.patches(images) + ours.positions(images)
    assert torch.allclose(ours.encode(tokens).mean(1), ours(images), atol=1e-6)


def test_the_class_token_as_features_needs_one() -> None:
    with pytest.raises(SemisupError, match="class_token"):
        VisionTransformer(pool="class")

"""The gated PixelCNN: what a pixel may see, asked of its gradients, and its layer pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from semisup.models.gated_pixel_cnn import GatedPixelCNN

SIDE = 6


def build(channels: int = 1, layers: int = 2, cls: type[GatedPixelCNN] = GatedPixelCNN) -> GatedPixelCNN:
    torch.manual_seed(0)
    return cls(channels, 5, 6, layers, 4).double()


def seen_by(network: GatedPixelCNN, i: int, j: int, channels: int = 1) -> Tensor:
    """(SIDE, SIDE) bool: pixels that have a gradient into the output at (i, j)."""
    images = torch.randn(2, channels, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    out = network(images, torch.randn(2, 5, dtype=torch.float64))
    (slope,) = torch.autograd.grad(out[0, :, i, j].square().sum(), images)
    assert not slope[1].any(), "images see each other"
    return slope[0].any(0)


def check_order(network: GatedPixelCNN, channels: int = 1) -> None:
    """No pixel sees itself or a later one."""
    for i in range(SIDE):
        for j in range(SIDE):
            for a, b in seen_by(network, i, j, channels).nonzero().tolist():
                assert (a, b) < (i, j), f"{(i, j)} sees {(a, b)}"


@pytest.mark.parametrize(("channels", "layers"), [(1, 1), (1, 3), (3, 2)])
def test_no_pixel_sees_itself_or_later_ones(channels: int, layers: int) -> None:
    check_order(build(channels, layers), channels)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_there_is_no_blind_spot(layers: int) -> None:
    """All pixels of the rows above within reach to both sides, and those to the left in its own row."""
    i, j = 4, 3
    seen = seen_by(build(layers=layers), i, j)
    for a in range(SIDE):
        for b in range(SIDE):
            above = 0 < i - a <= layers + 1 and abs(b - j) <= layers
            left = a == i and 0 < j - b <= layers + 1
            assert bool(seen[a, b]) == (above or left), (a, b)


def test_the_code_reaches_every_place() -> None:
    codes = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    out = build()(torch.randn(1, 1, SIDE, SIDE, dtype=torch.float64), codes)
    for i in range(SIDE):
        for j in range(SIDE):
            (slope,) = torch.autograd.grad(out[0, :, i, j].sum(), codes, retain_graph=True)
            assert slope.all()


def test_a_layer_computes_what_the_equation_says() -> None:
    """y = tanh(W_f x + V_f h) * sigmoid(W_g x + V_g h), for both stacks, at one place of the only layer."""
    network = build(layers=1).requires_grad_(False)
    image, code = torch.randn(1, 1, SIDE, SIDE, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    layer = network.layers[0]
    padded = torch.zeros(SIDE + 4, SIDE + 4, dtype=torch.float64)
    padded[2:-2, 2:-2] = image[0, 0]

    def at(i: int, j: int) -> float:
        return float(padded[i + 2, j + 2])

    added = layer.code.weight @ code[0]
    for i, j in ((0, 0), (3, 2), (5, 5), (2, 0)):
        rows, row = [], []
        for c in range(12):
            w = layer.above.weight[c, 0]
            above = sum(w[y, x] * at(i - 2 + y, j - 1 + x) for y in (0, 1) for x in (0, 1, 2))
            rows.append(layer.above.bias[c] + added[c] + above)
        for c in range(12):
            w = layer.left.weight[c, 0, 0]
            own = layer.left.bias[c] + added[12 + c] + w[0] * at(i, j - 2) + w[1] * at(i, j - 1)
            link = layer.link.bias[c] + sum(layer.link.weight[c, k, 0, 0] * rows[k] for k in range(12))
            row.append(float(own + link))
        gated = torch.tensor([math.tanh(row[c]) / (1 + math.exp(-row[6 + c])) for c in range(6)]).double()
        left = layer.out.weight[:, :, 0, 0] @ gated + layer.out.bias
        hidden = network.out[1].weight[:, :, 0, 0] @ left.clamp(min=0) + network.out[1].bias
        wanted = network.out[3].weight[:, :, 0, 0] @ hidden.clamp(min=0) + network.out[3].bias
        torch.testing.assert_close(network(image, code)[0, :, i, j], wanted, rtol=1e-6, atol=1e-6)


def test_every_parameter_learns_and_the_meta_device() -> None:
    network = build(3, 3)
    network(torch.randn(2, 3, SIDE, SIDE).double(), torch.randn(2, 5).double()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
    meta = build().to("meta")
    images, codes = torch.empty(2, 1, 4, 7).double().to("meta"), torch.empty(2, 5).double().to("meta")
    assert meta(images, codes).shape == (2, 4, 4, 7)


# --- sabotage --------------------------------------------------------------------------------------------------------


class Unmoved(GatedPixelCNN):
    """The image enters both stacks as it is."""

    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        above = left = images
        for layer in self.layers:
            above, left = layer(above, left, codes)
        out: Tensor = self.out(left)
        return out


class OneStack(GatedPixelCNN):
    """The rows above enter unmoved: those of a pixel's own row are among them."""

    def forward(self, images: Tensor, codes: Tensor) -> Tensor:
        above, left = images, nn.functional.pad(images, (1, -1))
        for layer in self.layers:
            above, left = layer(above, left, codes)
        out: Tensor = self.out(left)
        return out


@pytest.mark.parametrize("cls", [Unmoved, OneStack])
def test_order_check_finds(cls: type[GatedPixelCNN]) -> None:
    with pytest.raises(AssertionError, match="sees"):
        check_order(build(cls=cls))

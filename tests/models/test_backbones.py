"""Every backbone: shapes at the sizes we promise, memory layouts, the meta device, and published parameter counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.models import BACKBONES, build_backbone, build_classifier, count_parameters, image_channels
from semisup.models.build import ModelSpec
from semisup.models.cnn import SmallCNN
from semisup.models.wrn import WideResNet

WIDTHS = {"cnn": 128, "wrn": 128, "resnet18": 512, "resnet34": 512, "resnet50": 2048, "vit": 96}
VARIANTS = [  # narrow ones: the sizes in full are tried on the meta device, where they cost nothing
    ("cnn", {}),
    ("wrn", {"depth": 16, "width": 1}),
    *((name, {"width": 0.25}) for name in ("resnet18", "resnet34", "resnet50")),
    ("resnet18", {"stem": "imagenet", "width": 0.25}),
    ("resnet50", {"sk": True, "width": 0.25}),
    ("resnet50", {"sk": True, "width": 0.25, "stem": "imagenet"}),
    ("vit", {"width": 16, "depth": 4, "heads": 2}),
    ("torchvision/mobilenet_v3_small", {}),
]


def random_statistics(module: nn.Module) -> None:
    """Give every batch norm its own scale, shift and statistics, so that a misplaced one shows."""
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm2d):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.uniform_(bn.bias, -0.2, 0.2)
            nn.init.uniform_(bn.running_mean, -0.2, 0.2)
            nn.init.uniform_(bn.running_var, 0.5, 1.5)


def test_every_backbone_has_an_expected_width() -> None:
    assert set(WIDTHS) == set(BACKBONES)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_features_have_the_promised_shape_on_the_meta_device(name: str, in_channels: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, {}, in_channels=in_channels, image_size=8)
        for size in (8, 28, 32, 64, 224):
            features = backbone(torch.empty(4, in_channels, size, size))
            assert features.shape == (4, WIDTHS[name])
            assert features.is_meta
    assert backbone.num_features == WIDTHS[name]
    assert image_channels(backbone) == in_channels


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(("name", "options"), VARIANTS[:-1])
def test_channels_stay_last_from_layer_to_layer(name: str, options: dict[str, object], in_channels: int) -> None:
    """A map that comes out contiguous is turned around by every convolution after it."""
    network = build_backbone(name, options, in_channels=in_channels, image_size=32)
    network = network.to(memory_format=torch.channels_last)
    turned: list[str] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].is_contiguous(memory_format=torch.channels_last):
            turned.append(type(module).__name__)

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_pre_hook(look)
    network(torch.randn(2, in_channels, 32, 32).contiguous(memory_format=torch.channels_last))
    assert turned == []


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_step_runs_on_the_meta_device(name: str, options: dict[str, object]) -> None:
    classifier = build_classifier(ModelSpec(name, options, 1, 32, 10, neck=[16])).to("meta")
    logits = classifier(torch.empty(4, 1, 32, 32, device="meta").contiguous(memory_format=torch.channels_last))
    logits.sum().backward()
    assert logits.shape == (4, 10)
    assert all(p.grad is not None for p in classifier.parameters())


@pytest.mark.parametrize("size", [8, 28])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_parameter_learns_and_channels_last_changes_nothing(
    name: str, options: dict[str, object], size: int
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, options, in_channels=3, image_size=size).double()
    random_statistics(backbone)
    images = torch.randn(4, 3, size, size, dtype=torch.float64)
    plain = backbone.eval()(images)
    backbone.to(memory_format=torch.channels_last)
    last = backbone(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-9, atol=1e-9)
    assert plain.shape == (4, backbone.num_features)
    last.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.parameters())
    idle = [n for n, p in backbone.named_parameters() if not p.grad.abs().sum() > 0]
    # With one pixel left, squeeze-and-excitation and hard-swish of MobileNet may saturate; ours may not.
    assert not idle or name.startswith("torchvision/")


def test_an_image_does_not_depend_on_its_neighbors_in_eval_mode() -> None:
    torch.manual_seed(0)
    for name in ("cnn", "wrn"):
        backbone = build_backbone(name, {}, in_channels=1, image_size=8).eval()
        images = torch.randn(5, 1, 8, 8)
        torch.testing.assert_close(backbone(images)[2:3], backbone(images[2:3]), rtol=1e-4, atol=1e-5)


def test_small_cnn_takes_odd_and_large_images_with_the_same_weights() -> None:
    network = SmallCNN(4, in_channels=1).eval()
    sides: list[int] = []
    network.layer3.register_forward_hook(lambda _module, _inputs, maps: sides.append(maps.shape[-1]))
    for size in (4, 8, 9, 32, 49, 97, 224):
        assert network(torch.zeros(2, 1, size, size)).shape == (2, 16)
    assert sides == [1, 2, 2, 8, 6, 12, 14]  # a quarter up to 48 px, less beyond: large images stay affordable


# ---------------------------------------------------------------------------------------------------------------- WRN


def test_wrn_28_2_has_the_published_number_of_parameters() -> None:
    spec = ModelSpec("wrn", {"depth": 28, "width": 2}, 3, 32, 10)
    assert count_parameters(build_classifier(spec)) == 1_467_610


def test_wrn_28_8_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        network = build_classifier(ModelSpec("wrn", {"width": 8}, 3, 32, 100))
    assert round(count_parameters(network) / 1e6, 2) == 23.40  # as the papers' tables give it


def test_wrn_depth_counts_the_convolutions_on_the_longest_path() -> None:
    for depth in (10, 16, 28, 40):
        with torch.device("meta"):
            network = WideResNet(depth, 1)
        longest = [c for n, c in network.named_modules() if isinstance(c, nn.Conv2d) and "shortcut" not in n]
        assert len(longest) + 3 == depth  # the count of He et al.: the classifier and two projections on top


def slow_wrn(network: WideResNet, x: Tensor) -> Tensor:
    """The forward in google-research/mixmatch's order of operations, from the parameters alone, in eval mode."""
    state = network.state_dict()

    def bn(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            state[f"{name}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 0.001) * scale + shift

    def leaky(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    def conv(x: Tensor, name: str, stride: int) -> Tensor:
        kernel = state[f"{name}.weight"]
        return torch.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    x = conv(x, "stem", 1)
    for group in (1, 2, 3):
        for block in range(len(getattr(network, f"group{group}"))):
            name = f"group{group}.{block}"
            stride = 2 if group > 1 and block == 0 else 1
            active = leaky(bn(x, f"{name}.bn1"))
            if group == 1 and block == 0:
                x = active
            y = conv(active, f"{name}.conv1", stride)
            y = conv(leaky(bn(y, f"{name}.bn2")), f"{name}.conv2", 1)
            if f"{name}.shortcut.weight" in state:
                x = conv(x, f"{name}.shortcut", stride)
            x = x + y
    return leaky(bn(x, "bn")).flatten(2).mean(2)


def test_wrn_computes_what_the_reference_orders() -> None:
    torch.manual_seed(0)
    network = WideResNet(16, 2).double().eval()
    random_statistics(network)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(network(images), slow_wrn(network, images), rtol=1e-10, atol=1e-12)


def test_wrn_draws_its_kernels_as_stated_and_keeps_the_published_momentum() -> None:
    torch.manual_seed(0)
    network = WideResNet(28, 2)
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d)):
        k, c_out = conv.kernel_size[0], conv.out_channels
        expected = math.sqrt(2 / (k * k * c_out))
        assert abs(conv.weight.std().item() / expected - 1) < 5 / math.sqrt(2 * conv.weight.numel())
        assert conv.bias is None
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.001}
    assert {m.momentum for m in WideResNet(10, 1, bn_momentum=0.1).modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize("depth", [27, 29, 4, 0, 28.0, True, "28"])
def test_wrn_refuses_a_depth_that_is_not_6n_plus_4(depth: object) -> None:
    with pytest.raises(SemisupError, match="depth: must be"):
        WideResNet(depth)  # type: ignore[arg-type]


def test_wrn_names_the_nearest_depths() -> None:
    with pytest.raises(SemisupError, match="depth: must be 6n\\+4, not 30; the nearest are 28 and 34"):
        WideResNet(30)


def test_wrn_lists_every_problem() -> None:
    with pytest.raises(SemisupError) as error:
        WideResNet(9, 0, 2.0)
    assert all(word in str(error.value) for word in ("3 problems", "depth", "width", "bn_momentum"))


@pytest.mark.parametrize(("name", "options"), VARIANTS[:-1])
def test_maps_are_what_the_features_are_the_mean_of(name: str, options: dict[str, object]) -> None:
    network = build_backbone(name, options, in_channels=1, image_size=16).eval()
    images = torch.rand(3, 1, 16, 16)
    with torch.no_grad():
        maps = network.maps(images)
        kept = [each.clone() for each in maps]
        torch.testing.assert_close(maps[-1].mean(dim=(2, 3)), network(images), rtol=0, atol=0)
        for before, after in zip(kept, network.maps(images), strict=True):  # no layer wrote over the one before it
            torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert len(maps) >= 3
    assert [each.shape[1] for each in maps] == sorted(each.shape[1] for each in maps)
    assert [each.shape[2] for each in maps] == sorted((each.shape[2] for each in maps), reverse=True)

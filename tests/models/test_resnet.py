"""ResNets against torchvision's: counts, names and outputs; selective kernels from their definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from semisup.errors import SemisupError
from semisup.models import count_parameters
from semisup.models.resnet import ResNet18, ResNet34, ResNet50, SelectiveKernel

RESNETS = {18: ResNet18, 34: ResNet34, 50: ResNet50}

THEIRS = {18: models.resnet18, 34: models.resnet34, 50: models.resnet50}


@pytest.mark.parametrize(("depth", "expected"), [(18, 11_176_512), (34, 21_284_672), (50, 23_508_032)])
def test_parameter_counts_with_the_imagenet_stem(depth: int, expected: int) -> None:
    with torch.device("meta"):
        ours = RESNETS[depth](stem="imagenet")
        theirs = THEIRS[depth]()
    assert count_parameters(ours) == expected
    assert count_parameters(theirs) - count_parameters(theirs.fc) == expected


def test_the_cifar_stem_only_changes_the_first_kernel() -> None:
    with torch.device("meta"):
        assert count_parameters(ResNet18()) == 11_176_512 - 64 * 3 * (49 - 9)


@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_weights_load_by_name_and_give_the_same_output(depth: int) -> None:
    torch.manual_seed(0)
    theirs = THEIRS[depth]().double().eval()
    theirs.fc = nn.Identity()
    for bn in (m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.running_mean, -0.2, 0.2)
        nn.init.uniform_(bn.running_var, 0.5, 1.5)
    ours = RESNETS[depth](stem="imagenet").double().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for size in (32, 65):
        images = torch.randn(2, 3, size, size, dtype=torch.float64)
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-10, atol=1e-12)


def test_blocks_start_as_their_shortcuts() -> None:
    for depth, last in ((18, "bn2"), (50, "bn3")):
        zero = [
            n
            for n, p in RESNETS[depth](0.25).named_parameters()
            if p.ndim == 1 and n.endswith("weight") and not p.any()
        ]
        assert len(zero) == {18: 8, 50: 16}[depth]
        assert all(n.endswith(f"{last}.weight") for n in zero)


@pytest.mark.parametrize(("width", "features"), [(0.25, 512), (1.0, 2048), (1.5, 3072), (2, 4096), (3, 6144)])
def test_width_multiplies_the_features(width: float, features: int) -> None:
    with torch.device("meta"):
        assert ResNet50(width).num_features == features


# ------------------------------------------------------------------------------------------------- selective kernels


def test_stream_weights_sum_to_one_per_channel() -> None:
    torch.manual_seed(0)
    layer = SelectiveKernel(8, 16)
    streams = layer.streams(torch.randn(3, 8, 6, 6))
    mixing = layer.mixing(streams)
    assert mixing.shape == (3, 2, 16, 1, 1)
    torch.testing.assert_close(mixing.sum(dim=1), torch.ones(3, 16, 1, 1))
    assert mixing.std() > 0.01  # not simply one half


@pytest.mark.parametrize(("channels", "hidden"), [(64, 32), (512, 32), (1024, 64), (2048, 128)])
def test_mixing_network_is_never_narrower_than_32(channels: int, hidden: int) -> None:
    with torch.device("meta"):
        assert SelectiveKernel(8, channels).squeeze.out_channels == hidden


@pytest.mark.parametrize("stride", [1, 2])
def test_selective_kernel_matches_its_definition(stride: int) -> None:
    torch.manual_seed(0)
    layer = SelectiveKernel(4, 6, stride).double().eval()
    for bn in (layer.bn, layer.squeeze_bn):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.bias, -0.5, 0.5)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    maps = torch.relu(layer.bn(torch.conv2d(x, layer.conv.weight, stride=stride, padding=1)))
    expected = torch.empty(2, 6, 8 // stride, 8 // stride, dtype=torch.float64)
    for n in range(2):
        first, second = maps[n, :6], maps[n, 6:]
        context = (first + second).flatten(1).mean(1)
        bn = layer.squeeze_bn
        hidden = layer.squeeze.weight.flatten(1) @ context
        hidden = torch.relu((hidden - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias)
        scores = layer.excite.weight.flatten(1) @ hidden
        for c in range(6):
            a = scores[c].exp() / (scores[c].exp() + scores[6 + c].exp())
            expected[n, c] = a * first[c] + (1 - a) * second[c]
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


def test_sk_switches_on_the_stem_and_shortcuts_of_resnet_d() -> None:
    with torch.device("meta"):
        network = ResNet50(stem="imagenet", sk=True)
    stem = [m for m in network.conv1.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in stem] == [(32, 3, 2), (32, 3, 1), (64, 3, 1)]
    assert isinstance(network.layer2[0].downsample[0], nn.AvgPool2d)
    assert network.layer2[0].downsample[1].stride == (1, 1)
    assert not any(isinstance(m, nn.AvgPool2d) for m in network.layer1.modules())
    assert sum(isinstance(m, SelectiveKernel) for m in network.modules()) == 16


def test_sk_parameter_count_matches_the_paper() -> None:
    for width, sk, millions in ((1, False, 24), (1, True, 35), (2, False, 94), (2, True, 140)):
        with torch.device("meta"):
            network = ResNet50(width, stem="imagenet", sk=sk)
        assert round(count_parameters(network) / 1e6) == millions  # table 1 of arXiv:2006.10029


@pytest.mark.parametrize("depth", [18, 34])
def test_sk_is_refused_without_bottlenecks(depth: int) -> None:
    with pytest.raises(SemisupError, match=f"sk: needs the bottleneck blocks of resnet50: resnet{depth} has none"):
        RESNETS[depth](sk=True)


def test_wrong_options_are_listed_together() -> None:
    with pytest.raises(SemisupError) as error:
        ResNet50(-1, "cifr", "yes")  # type: ignore[arg-type]
    text = str(error.value)
    assert "3 problems" in text
    assert "width: must be at least" in text
    assert "did you mean 'cifar'?" in text
    assert "sk: must be true or false, not 'yes'" in text

"""What a network makes of its images before the first layer, against the same done by hand on [0, 1] images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.models import ModelSpec, build_classifier, check_model
from semisup.models.origin import Origin, input_spec
from semisup.models.prepared import NORMALIZATIONS, InputSpec, prepared

MEAN, STD = NORMALIZATIONS["imagenet"]


class Bare(nn.Module):
    """Hands its images on."""

    num_features = 3

    def forward(self, images: Tensor) -> Tensor:
        return images


def normalized(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    return (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@pytest.mark.parametrize(("channels", "mean", "std"), [(1, [0.3], [0.2]), (3, [0.1, 0.2, 0.3], [0.3, 0.2, 0.1])])
def test_images_reach_the_network_as_it_expects_them(channels: int, mean: list[float], std: list[float]) -> None:
    spec = InputSpec(3, 24, MEAN, STD, mean, std)
    network = prepared(Bare(), spec, in_channels=channels, image_size=16)
    raw = torch.rand(2, channels, 16, 16)
    scaled = F.interpolate(raw.expand(-1, 3, -1, -1), size=(24, 24), mode="bilinear", antialias=True)
    torch.testing.assert_close(network(normalized(raw, mean, std)), normalized(scaled, MEAN, STD), atol=1e-5, rtol=1e-5)
    crop = torch.rand(2, channels, 8, 8)
    assert network(crop).shape == (2, 3, 12, 12)  # small crops by the same factor


def test_shrinking_is_antialiased() -> None:
    spec = InputSpec(1, 8, [0.0], [1.0], [0.0], [1.0])
    stripes = (torch.arange(32) % 2).float().expand(1, 1, 32, 32)
    small = prepared(Bare(), spec, in_channels=1, image_size=32)(stripes)
    assert (small - 0.5).abs().max() < 0.1


def test_the_weights_own_images_are_the_default_and_a_wish_wins() -> None:
    origin = Origin("w", None, "0", "MIT", 224, MEAN, STD)
    given = {"in_channels": 1, "image_size": 28, "statistics": ([0.3], [0.2])}
    assert input_spec({}, None, None, **given) is None
    assert input_spec({}, origin, None, **given) == InputSpec(3, 224, MEAN, STD, [0.3], [0.2])
    assert input_spec({"resize": 64}, None, None, **given) == InputSpec(1, 64, [0.3], [0.2], [0.3], [0.2])
    mixed = input_spec({"resize": 64, "normalize": "half"}, origin, None, **given)
    assert mixed == InputSpec(3, 64, [0.5] * 3, [0.5] * 3, [0.3], [0.2])
    base = dataclasses.replace(mixed, data_mean=[0.9])
    assert input_spec({}, None, base, **given) == mixed  # an earlier stage's, on these data


def test_a_spec_with_an_input_survives_json_and_builds() -> None:
    spec = ModelSpec("cnn", {"width": 4}, 1, 8, 3, input=InputSpec(3, 16, MEAN, STD, [0.3], [0.2]))
    again = ModelSpec.from_json(spec.to_json())
    assert again == spec
    network = build_classifier(again)
    assert network.backbone.network.in_channels == 3
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert "input" not in dataclasses.replace(spec, input=None).to_json()
    assert not any("scale" in name for name in network.state_dict())


@pytest.mark.parametrize(
    ("options", "rule"),
    [({"resize": 4}, "model.resize: must be"), ({"normalize": "imagnet"}, "did you mean 'imagenet'")],
)
def test_wrong_values_are_refused(options: dict[str, object], rule: str) -> None:
    assert rule in " ".join(check_model({"name": "cnn", **options}, "model"))


def test_a_spec_of_another_version_is_refused() -> None:
    values = ModelSpec("cnn", {"width": 4}, 1, 8, 3).to_json() | {"input": {"pixels": 3}}
    with pytest.raises(SemisupError, match="input"):
        ModelSpec.from_json(values)

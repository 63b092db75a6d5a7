"""The decoder of maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semisup.errors import SemisupError
from semisup.models import build_backbone
from semisup.models.decoder import MapDecoder, last_map


@pytest.mark.parametrize("name", ["cnn", "wrn", "resnet18", "vit"])
def test_every_backbone_is_decoded_to_any_size(name: str) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, {}, in_channels=1, image_size=28)
        decoder = MapDecoder(backbone, 8, 3, method="m")
        maps = last_map(backbone, torch.empty(2, 1, 28, 28))
        assert maps.shape[:2] == (2, backbone.num_features)
        assert decoder(maps, (28, 28)).shape == (2, 3, 28, 28)
        assert decoder(maps, (14, 7)).shape == (2, 3, 14, 7)


def test_the_last_map_is_what_the_features_are_the_mean_of() -> None:
    backbone = build_backbone("cnn", {"width": 4}, in_channels=1, image_size=8).eval()
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(last_map(backbone, images).mean((2, 3)), backbone(images))


def test_places_stay_where_they_are() -> None:
    backbone = build_backbone("cnn", {"width": 4}, in_channels=1, image_size=32)
    decoder = MapDecoder(backbone, 8, 1, method="m").eval()
    maps = torch.zeros(1, 16, 8, 8)
    other = maps.clone()
    other[0, :, 4, 3] = 1
    changed = (decoder(maps, (32, 32)) != decoder(other, (32, 32)))[0, 0].nonzero()
    center = changed.float().mean(0)
    assert center.tolist() == pytest.approx([4 * 4 + 1.5, 3 * 4 + 1.5], abs=1.5)


def test_a_backbone_without_maps_is_refused() -> None:
    flat = nn.Flatten()
    flat.num_features = 4  # type: ignore[assignment]
    with pytest.raises(SemisupError, match="model: method 'm' decodes the maps of a backbone, and Flatten gives only"):
        MapDecoder(flat, 8, 1, method="m")

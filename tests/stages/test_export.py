"""Weights written for torchvision and timm: they load strictly there and compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from semisup.errors import SemisupError
from semisup.stages.export import export_weights
from semisup.stages.predictor import load_network
from tests.stages.stages_small import CPU, run_stages, small_data, train_stage


def trained(model: dict[str, Any], folder: Path, method: str = "supervised", channels: int = 3) -> Path:
    data = small_data(channels=channels)
    stages = {"s": train_stage(method, stage={"ema": None, "steps": 1, "model": model})}
    return run_stages(stages, data, folder)["s"].folder


def loaded(library: str, name: str, file: Path, classes: int, **args: Any) -> nn.Module:
    if library == "timm":
        timm = pytest.importorskip("timm")
        return timm.create_model(name, num_classes=classes, checkpoint_path=str(file), **args).eval()
    from torchvision import models

    network = models.get_model(name, num_classes=classes, **args)
    network.load_state_dict(load_file(file), strict=True)
    return network.eval()


@pytest.mark.parametrize(
    ("library", "model", "channels"),
    [
        ("torchvision", {"name": "resnet18", "stem": "imagenet"}, 1),
        ("timm", {"name": "resnet18", "stem": "imagenet"}, 3),
        ("timm", {"name": "timm/resnet10t", "resize": 32}, 3),
        ("timm", {"name": "timm/test_vit", "resize": 32}, 3),
        ("torchvision", {"name": "torchvision/mobilenet_v3_small", "resize": 32}, 3),
    ],
)
def test_the_library_loads_it_strictly_and_computes_the_same(
    library: str, model: dict[str, Any], channels: int, tmp_path: Path
) -> None:
    folder = trained(model, tmp_path / "run", channels=channels)
    done = export_weights(folder, library, tmp_path / "w.safetensors")
    assert done.classes == 3
    theirs, ours = loaded(library, done.model, tmp_path / "w.safetensors", 3, **done.args), load_network(folder, CPU)
    images = torch.randn(2, channels, 8, 8)
    given = images
    if model.get("resize"):
        given, ours = torch.randn(2, channels, 32, 32), nn.Sequential(ours.backbone.network, ours.neck, ours.head)
        images = given
    with torch.inference_mode():
        assert torch.allclose(theirs(given.expand(-1, 3, -1, -1)), ours(images), atol=1e-4)


def test_an_encoder_is_written_without_a_head(tmp_path: Path) -> None:
    folder = trained({"name": "resnet18", "stem": "imagenet"}, tmp_path / "run", "simclr")
    assert export_weights(folder, "torchvision", tmp_path / "w.safetensors").classes == 0
    assert "fc.weight" not in load_file(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("library", "model"),
    [
        ("timm", {"name": "timm/test_vit", "resize": 32, "pool": "mean"}),
        ("torchvision", {"name": "torchvision/squeezenet1_1", "resize": 32}),
    ],
)
def test_weights_with_which_the_library_computes_something_else_are_not_written(
    library: Literal["timm", "torchvision"], model: dict[str, Any], tmp_path: Path
) -> None:
    folder = trained(model, tmp_path / "run", channels=3)
    with pytest.raises(SemisupError, match="computes something else with these weights"):
        export_weights(folder, library, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        ({"name": "cnn", "width": 4}, "timm has no such network"),
        ({"name": "timm/test_vit", "resize": 32, "blocks": 2}, r"ends after 2 blocks \(model\.blocks\), .* FILE\.onnx"),
    ],
    ids=["ours", "cut"],
)
def test_a_network_that_the_library_does_not_have_is_refused(model: dict[str, Any], rule: str, tmp_path: Path) -> None:
    folder = trained(model, tmp_path / "run")
    with pytest.raises(SemisupError, match=rule):
        export_weights(folder, "timm", tmp_path / "w.safetensors")

"""The features stage: what it stores, how it resumes, and the stages that read it without any training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.errors import SemisupError
from semisup.models import load_weights, save_weights
from semisup.stages.cache import extract, read_features
from semisup.stages.predictor import load_features
from tests.stages.stages_small import CPU, run_stages, small_data, small_plan


def batches(images: Tensor, size: int, stop_at: int | None = None) -> Any:
    def from_row(start: int) -> Iterator[Tensor]:
        for i in range(start, len(images), size):
            if stop_at is not None and i >= stop_at:
                raise KeyboardInterrupt
            yield images[i : i + size]

    return from_row


def test_extraction_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    images, path = torch.randn(100, 3), tmp_path / "train.npy"
    with pytest.raises(KeyboardInterrupt):
        extract(nn.Identity(), batches(images, 2, stop_at=90), 100, 3, path)
    assert not path.exists()
    assert extract(nn.Identity(), batches(images, 2), 100, 3, path) == 80
    assert torch.equal(read_features(path), images.half().float())
    assert torch.equal(read_features(path, np.array([7, 3])), images[[7, 3]].half().float())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["train.npy"]


def test_features_beyond_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match="not finite"):
        extract(nn.Identity(), batches(torch.full((2, 1), 1e6), 2), 2, 1, tmp_path / "train.npy")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, timm.create_model("resnet10t").state_dict())
    return {"name": "timm/resnet10t", "weights": str(path), "resize": 32}


def test_probe_knn_and_propagate_read_it_without_training(model: dict[str, Any], tmp_path: Path) -> None:
    stages = {
        "features": {"kind": "features", "model": model},
        "probe": {"kind": "probe", "of": "features"},
        "knn": {"kind": "knn", "of": "features"},
        "spread": {"kind": "propagate", "teacher": "features", "propagate": {"neighbors": 5}},
    }
    done = run_stages(stages, small_data(channels=3), tmp_path)
    folder = done["features"].folder
    stored = read_features(folder / "train.npy")
    assert stored.shape == (60, 512)
    assert read_features(folder / "test.npy").shape == (24, 512)
    assert load_features(folder, CPU)(torch.zeros(1, 3, 8, 8)).shape == (1, 512)
    assert all("test/accuracy" in done[name].metrics for name in ("probe", "knn"))
    used = load_weights(done["probe"].folder / "features.safetensors")
    assert torch.equal(used["features"], read_features(folder / "train.npy", used["index"].numpy()))
    assert (done["spread"].folder / "targets.safetensors").exists()


@pytest.mark.parametrize(
    ("stage", "rule"),
    [
        ({"kind": "features"}, "random weights"),
        ({"kind": "features", "method": {"name": "simclr"}}, "does not train"),
        ({"kind": "features", "of": "x"}, "of"),
    ],
)
def test_what_makes_no_sense_is_refused(stage: dict[str, Any], rule: str) -> None:
    with pytest.raises(SemisupError, match=rule):
        small_plan({"features": stage}, small_data())

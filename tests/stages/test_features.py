"""The features stage: what it stores, how it resumes, and the stages that read it without any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semisup.data import draw_budget
from semisup.errors import SemisupError
from semisup.models import load_weights, save_weights
from semisup.stages.cache import extract, read_features
from semisup.stages.card import card
from semisup.stages.deployed import facts_of
from semisup.stages.features import Layers, stored_features
from semisup.stages.predictor import load_features
from tests.stages.stages_small import CPU, run_stages, small_data, small_plan, train_stage


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
        "spread": {"kind": "propagate", "teacher": "features", "neighbors": 5},
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


def test_what_pretrained_weights_have_taught_says_so_and_names_no_folder(model: dict[str, Any], tmp_path: Path) -> None:
    file = model["weights"]
    stages = {
        "features": {"kind": "features", "model": model},
        "probe": {"kind": "probe", "of": "features"},
        "labels": {"kind": "relabel", "teacher": "probe"},
        "student": train_stage("noisy_student", stage={"pseudo_labels": "labels"}),
        "tuned": train_stage("supervised", stage={"model": model}),
        "filled": train_stage("supervised", stage={"model": model | {"weights": None}, "init": {"weights": file}}),
    }
    done = run_stages(stages, small_data(channels=3), tmp_path)
    for name in ("student", "tuned", "filled"):
        facts = facts_of(done[name].folder)
        assert facts.metadata["license"] == "w.safetensors, license unknown (one's own file)"
        assert str(Path(file).parent) not in card(facts, {}) + str(facts.metadata)


@pytest.mark.parametrize(
    ("stage", "rule"),
    [
        ({"kind": "features"}, "random weights"),
        ({"kind": "features", "method": {"name": "simclr"}}, "method: unknown key"),
        ({"kind": "features", "of": "x"}, "of"),
    ],
)
def test_what_makes_no_sense_is_refused(stage: dict[str, Any], rule: str) -> None:
    with pytest.raises(SemisupError, match=rule):
        small_plan({"features": stage}, small_data())


SIX = draw_budget(small_data().y_train, "6/class", 0, 3)
ENCODER = {"encoder": train_stage("simclr", stage={"ema": None})}


def test_maps_in_parts_of_an_image_and_its_mirror_image(tmp_path: Path) -> None:
    """The last two maps of an encoder, each the means of four parts, averaged over both images, by hand."""
    data = dataclasses.replace(small_data(), flip=True)
    stages = {**ENCODER, "features": {"kind": "features", "of": "encoder", "grid": 2, "maps": 2, "mirror": True}}
    done = run_stages(stages, data, tmp_path)
    stored = read_features(done["features"].folder / "test.npy")
    backbone: Any = load_features(done["encoder"].folder, CPU)[0]  # type: ignore[index]
    mean, std = data.statistics
    images = (torch.from_numpy(data.x_test).permute(0, 3, 1, 2) / 255 - mean[0]) / std[0]
    parts = []
    with torch.no_grad():
        for image in (images, images.flip(3)):
            maps = [torch.nn.functional.adaptive_avg_pool2d(each, 2).flatten(1) for each in backbone.maps(image)[-2:]]
            parts.append(torch.cat(maps, 1))
    torch.testing.assert_close(stored, (parts[0] + parts[1]) / 2, rtol=2e-3, atol=2e-3)


def test_readers_take_what_is_stored(tmp_path: Path) -> None:
    """A probe, a vote of neighbors and a graph of stored features are those of the features' own numbers."""
    stages = {
        **ENCODER,
        "features": {"kind": "features", "of": "encoder", "grid": 2},
        "probe": {"kind": "probe", "of": "features"},
        "direct": {"kind": "probe", "of": "encoder", "grid": 2},
        "knn": {"kind": "knn", "of": "features"},
        "direct_knn": {"kind": "knn", "of": "encoder", "grid": 2},
        "spread": {"kind": "propagate", "teacher": "features", "neighbors": 5, "test": "induce"},
        "direct_spread": {"kind": "propagate", "teacher": "encoder", "grid": 2, "neighbors": 5, "test": "induce"},
    }
    done = run_stages(stages, small_data(), tmp_path, SIX)
    for reader in ("probe", "knn", "spread"):
        other = done[f"direct_{reader}" if reader != "probe" else "direct"]
        assert done[reader].metrics["test/accuracy"] == pytest.approx(other.metrics["test/accuracy"], abs=0.05)


@pytest.mark.parametrize("test", ["induce", "graph"])
def test_several_features_side_by_side_and_test_images(test: str, tmp_path: Path) -> None:
    """Each network's features get unit length, so that a wide one does not drown a narrow one."""
    stages = {
        **ENCODER,
        "one": {"kind": "features", "of": "encoder"},
        "two": {"kind": "features", "of": "encoder", "grid": 2},
        "spread": {
            "kind": "propagate",
            "teacher": ["one", "two"],
            "neighbors": 5,
            "components": 4,
            "whiten": "each",
            "test": test,
        },
    }
    done = run_stages(stages, small_data(), tmp_path, SIX)
    assert done["spread"].metrics["test/accuracy"] > 0.6
    assert "confusion.png" in done["spread"].record["files"]
    assert len(load_weights(done["spread"].folder / "targets.safetensors")["targets"]) == 60


def test_what_is_stored_is_read_only_where_it_is_what_was_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "train.npy", np.arange(6, dtype=np.float16).reshape(3, 2))
    stored, other = Layers(nn.Identity(), stored=True), Layers(nn.Identity(), grid=2)
    found = stored_features(tmp_path, stored, "train", np.array([2, 0]))
    assert found is not None and found.tolist() == [[4, 5], [0, 1]]
    assert stored_features(tmp_path, other, "train") is None
    assert stored_features(tmp_path, stored, "validation") is None


@pytest.mark.parametrize(
    ("stage", "rule"),
    [
        ({"model": {"name": "cnn"}}, "leave one of model and of out"),
        ({"mirror": True}, "mirror: a mirrored image"),
        ({"maps": 99}, "maps: must be at most 16"),
    ],
)
def test_a_look_that_makes_no_sense_is_refused(stage: dict[str, Any], rule: str) -> None:
    with pytest.raises(SemisupError, match=rule):
        small_plan({**ENCODER, "features": {"kind": "features", "of": "encoder", **stage}}, small_data())

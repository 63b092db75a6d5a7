"""What an encoder's stage draws: always neighbors and a map, and what its method offers; no trace in the method."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from semisup.data import draw_budget
from semisup.methods import METHODS, Batch, Method, Progress, Update, Views
from semisup.models import Encoder
from semisup.stages import Artifact, training
from tests.stages.stages_small import run_stages, small_data, train_stage


class Turned(Method):
    """Says whether an image stands on its head, and rebuilds its brightness from half of it."""

    family = "self-supervised"
    summary = "for the test"
    citation = "none"
    trains = "encoder"
    views = Views(unlabeled={"plain": "none"})
    looks: list[Any] = []

    def __init__(self, model: Encoder) -> None:
        super().__init__()
        self.encoder = model
        self.head = nn.Linear(model.num_features, 2)

    def ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.head(self.encoder(torch.cat([images, images.flip(2)])))
        return logits, torch.arange(2).repeat_interleave(len(images))

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        logits, truth = self.ask(batch.unlabeled["plain"])
        yield Update(F.cross_entropy(logits, truth))

    def predictor(self) -> nn.Module:
        return self.encoder

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.looks.append(("reconstruct", self.training or self.encoder.training, torch.is_grad_enabled(), images))
        seen = images * (torch.rand_like(images) > 0.5)
        return seen, images.mean((2, 3), keepdim=True).expand_as(images)

    def pretext_confusion(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.looks.append(("confusion", self.training, torch.is_grad_enabled(), batch.unlabeled["plain"]))
        return self.ask(batch.unlabeled["plain"])


@pytest.fixture(autouse=True)
def _turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "turned", Turned)
    monkeypatch.setattr(Turned, "looks", [])


def figures(artifact: Artifact) -> dict[str, str]:
    """Name -> hash of every figure of a stage; its record lists them all."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in artifact.folder.glob("*.png")}
    assert set(found) == {name for name in artifact.record["files"] if name.endswith(".png")}
    return found


@pytest.mark.usefixtures("with_figures")
def test_an_encoder_has_its_pictures_and_a_classifier_its_confusion(tmp_path: Path) -> None:
    done = run_stages({"a": train_stage("simclr"), "b": train_stage("supervised")}, small_data(), tmp_path)
    assert set(figures(done["a"])) == {"neighbors.png", "embedding.png"}
    assert set(figures(done["b"])) == {"confusion.png"}
    for path in done["a"].folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 300


def test_a_method_shows_what_it_offers(tmp_path: Path) -> None:
    done = run_stages({"a": train_stage("turned")}, small_data(), tmp_path)
    found = figures(done["a"])
    assert set(found) == {"neighbors.png", "embedding.png", "reconstruction.png", "pretext_confusion.png"}
    assert [(what, training, grad) for what, training, grad, _ in Turned.looks] == [
        ("reconstruct", False, False),
        *[("confusion", False, False)] * 84,  # of 12 images each: a thousand
    ]
    clean = Turned.looks[0][3]
    assert len(clean) == 12 and abs(float(clean.mean())) < 1, "normalized"


@pytest.mark.usefixtures("with_figures")
def test_pictures_repeat_and_change_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {"a": train_stage("turned"), "b": train_stage("supervised", stage={"init": "a"})}
    first, again = (run_stages(recipe, small_data(), tmp_path / name) for name in ("one", "two"))
    assert figures(first["a"]) == figures(again["a"])
    monkeypatch.setattr(training, "encoder_figures", lambda *args: [])
    blind = run_stages(recipe, small_data(), tmp_path / "three")
    for stage in ("a", "b"):
        assert blind[stage].record["files"]["model.safetensors"] == first[stage].record["files"]["model.safetensors"]
    assert not figures(blind["a"])


@pytest.mark.usefixtures("with_figures")
def test_pictures_know_classes_where_they_are_known(tmp_path: Path) -> None:
    data = small_data()
    nobody = dataclasses.replace(data, y_train=np.full(60, -1))
    nothing = draw_budget(nobody.y_train, "all", 0, 3)
    done = run_stages({"a": train_stage("simclr")}, nobody, tmp_path / "x", nothing)
    with Image.open(done["a"].folder / "neighbors.png") as image:
        color = np.asarray(image.convert("RGB")).astype(int)[40:]
    assert (color.max(2) - color.min(2)).max() == 0
    known = run_stages({"a": train_stage("simclr")}, data, tmp_path / "y")
    assert figures(known["a"])["embedding.png"] != figures(done["a"])["embedding.png"]


def test_too_few_images_have_no_neighbors(tmp_path: Path) -> None:
    few = small_data(n=6)
    done = run_stages({"a": train_stage("simclr")}, few, tmp_path)
    assert figures(done["a"]) == {}

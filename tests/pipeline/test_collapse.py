"""A run that really collapses is stopped; the same network with SimCLR's loss is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semisup.config import parse_recipe
from semisup.data import load_data
from semisup.engine import CollapseError
from semisup.errors import SemisupError
from semisup.losses import nt_xent
from semisup.methods import METHODS, Batch, Method, Progress, Update, Views
from semisup.models import Classifier, Encoder
from semisup.pipeline import make_plan, run
from semisup.settings import DataConfig

STAGE: dict[str, Any] = {
    "optimizer": {"lr": 0.1},
    "batch": {"unlabeled": 64},
    "steps": 60,
}


class Attract(Method):
    """An image's two views are drawn together, and nothing keeps two images apart (SimSiam without stop-gradient)."""

    family = "self-supervised"
    summary = "collapses"
    citation = "none"
    trains = "encoder"
    views = Views(unlabeled={"first": "simclr", "second": "simclr"})

    def __init__(self, model: Encoder, *, apart: bool = False) -> None:
        super().__init__()
        self.encoder = Encoder(model.backbone, nn.Linear(model.num_features, 16))
        self.apart = apart

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        z = [self.encoder.project(batch.unlabeled[view]) for view in ("first", "second")]
        loss = nt_xent(torch.cat(z), 0.2) if self.apart else -F.cosine_similarity(*z).mean()
        yield Update(loss, embeddings=(z[0], z[1]))

    def predictor(self) -> nn.Module:
        return self.encoder


def recipe(method: dict[str, Any], **stage: Any) -> Any:
    return parse_recipe(
        {
            "name": "small",
            "device": "cpu",
            "log_every": 5,
            "tracking": {"mlflow": False},
            "data": {"source": "digits", "labels": 40},
            "model": {"name": "cnn", "width": 4},
            "stages": {"pretrain": {"method": method, **STAGE, **stage}},
        }
    )


@pytest.fixture(autouse=True)
def _attract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "attract", Attract)


def test_a_run_that_collapses_is_stopped_with_step_measure_and_advice(tmp_path: Path) -> None:
    with pytest.raises(SemisupError) as caught:
        run(recipe({"name": "attract"}, stop_on_collapse=True), out=tmp_path / "a", quiet=True)
    assert type(caught.value) is CollapseError
    assert re.match(r"stages.pretrain: step \d+: the embeddings have collapsed, collapse/std 0\.0", str(caught.value))
    logged = [json.loads(line) for line in (tmp_path / "a" / "events.jsonl").read_text().splitlines()]
    assert any("collapse/std" in str(event) for event in logged), "the curve is there to look at"
    result = run(recipe({"name": "attract"}), out=tmp_path / "b", quiet=True)
    assert result["pretrain"].metrics["train/collapse/std"] < 0.05
    assert result["pretrain"].metrics["train/collapse/negative"] > 0.99


def test_a_run_that_does_not_goes_on(tmp_path: Path) -> None:
    result = run(recipe({"name": "attract", "apart": True}, stop_on_collapse=True), out=tmp_path / "a", quiet=True)
    metrics = result["pretrain"].metrics
    assert metrics["train/collapse/std"] > 0.3
    names = {name.removeprefix("train/collapse/") for name in metrics if name.startswith("train/collapse/")}
    assert names == {"std", "rank", "alignment", "uniformity", "positive", "negative"}
    assert metrics["train/collapse/positive"] > metrics["train/collapse/negative"] + 0.2


def test_a_method_without_embeddings_cannot_be_watched() -> None:
    with pytest.raises(SemisupError) as caught:
        make_plan(recipe({"name": "supervised"}, stop_on_collapse=True))
    assert "stages.pretrain.stop_on_collapse: method 'supervised' hands over no embeddings" in str(caught.value)
    make_plan(recipe({"name": "simclr_v2"}, stop_on_collapse=True))


class OneClass(Method):
    """Whatever it is shown, it learns to name class 0."""

    family = "supervised"
    summary = "collapses"
    citation = "none"
    views = Views(labeled=("weak",))

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def step(self, batch: Batch, progress: Progress) -> Iterator[Update]:
        yield Update(F.cross_entropy(self.model(batch.labeled["weak"]), torch.zeros_like(batch.labeled.y)))

    def predictor(self) -> nn.Module:
        return self.model


@pytest.mark.parametrize("tested", [True, False])
def test_a_classifier_of_one_class_is_told_in_log_summary_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tested: bool
) -> None:
    monkeypatch.setitem(METHODS, "one_class", OneClass)
    data = load_data(DataConfig())
    given = {"x_train": data.x_train, "y_train": data.y_train}
    given |= {"x_test": data.x_test, "y_test": data.y_test} if tested else {}
    settings = recipe({"name": "one_class"}, batch={"labeled": 16}, steps=10, refresh_batchnorm=True)
    result = run(settings, data=given, out=tmp_path / "a")
    told = f"pretrain: has collapsed: it predicts one class for 100.0% of the {'' if tested else 'labeled training'}"
    text = capsys.readouterr()
    assert told in text.err and told in text.out
    assert result["pretrain"].metrics["collapsed/most_frequent"] == 1
    assert told in (tmp_path / "a" / "report.html").read_text()
    sound = run(recipe({"name": "supervised"}, batch={"labeled": 16}, steps=10), data=given, out=tmp_path / "b")
    assert not any(name.startswith("collapsed/") for name in sound["pretrain"].metrics)
    assert "has collapsed" not in capsys.readouterr().out

"""`augment: auto`: labels that are left out choose how strong the views are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from semisup.config import parse_recipe
from semisup.data import ImageData, draw_budget
from semisup.errors import SemisupError
from semisup.methods import Views
from semisup.models.weights import load_weights
from semisup.settings import TrainConfig
from semisup.stages import StageContext, training
from semisup.stages.auto_views import CHOICE, FOLDS, STRENGTHS, _kept, with_strength
from semisup.stages.training import fit_quietly
from tests.stages.stages_small import run_stages, small_data, small_plan, train_stage


def auto(method: str = "fixmatch", **stage: Any) -> dict[str, Any]:
    return {"train": train_stage(method, stage={"augment": "auto", **stage})}


def kept(**losses: float) -> dict[str, Any]:
    """What is kept of a finished choice by 6 labels in three parts, of which half are predicted."""
    loss = dict.fromkeys(STRENGTHS, 0.5) | losses
    part = {"labels": 2, "right": 1, "seconds": 1000.0}
    return {"scores": {name: [part | {"loss": 2 * loss[name]}] * 3 for name in STRENGTHS}}


def sides(n: int = 40) -> ImageData:
    """Images whose brighter half, left or right, is the class; they are said to keep it when they are mirrored."""
    data = small_data(n, classes=2)
    images = np.random.default_rng(0).integers(0, 90, (n, 8, 8, 1)).astype(np.uint8)
    for image, y in zip(images, data.y_train, strict=True):
        image[:, 4 * y : 4 * y + 4] += 120
    return dataclasses.replace(data, x_train=images, flip=True)


def test_trains_as_if_the_chosen_views_had_been_asked_for(tmp_path: Path) -> None:
    found = run_stages(auto(), small_data(), tmp_path / "auto")["train"]
    strength = str(found.record["chosen"]).partition(" ")[0]
    (stage,) = auto().values()
    (config,) = parse_recipe({"name": "x", "stages": {"train": stage}}).stages.values()
    assert isinstance(config, TrainConfig)
    named = with_strength(config, Views(labeled=("weak",), unlabeled=("weak", "strong")), strength)
    asked = run_stages({"train": stage | {"augment": named}}, small_data(), tmp_path / "asked")["train"]
    one, other = (load_weights(artifact.folder / "model.safetensors") for artifact in (found, asked))
    assert all(one[name].equal(other[name]) for name in other)
    assert found.record["settings"]["augment"] == {"policy": "auto", "backend": "device", **named}
    assert {f"choice/{name}" for name in STRENGTHS} < set(found.metrics)
    assert not (found.folder / CHOICE).exists() and asked.record["chosen"] is None


def test_what_was_chosen_before_a_stop_is_not_chosen_again(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / CHOICE).write_text(json.dumps(kept(strong=0.25)))
    found = run_stages(auto("supervised"), small_data(), tmp_path)["train"]
    assert found.record["settings"]["augment"]["weak"]["policy"] == "randaugment"
    assert 9000 < found.record["seconds"] < 10_000
    assert found.metrics["choice/weak"] == 0.5 and "of 6 labels" in str(found.record["chosen"])


@pytest.mark.parametrize("stopped", [1, 2, 4, 9])
def test_a_stop_costs_the_short_training_in_flight_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    whole = run_stages(auto("supervised"), small_data(), tmp_path / "whole")["train"]
    begun = []

    def counted(context: StageContext) -> nn.Module:
        begun.append(context.config)
        if len(begun) == stopped:
            raise KeyboardInterrupt
        return fit_quietly(context)

    monkeypatch.setattr(training, "fit_quietly", counted)
    with pytest.raises(KeyboardInterrupt):
        run_stages(auto("supervised"), small_data(), tmp_path / "stopped")
    found = run_stages(auto("supervised"), small_data(), tmp_path / "stopped")["train"]
    assert len(begun) == FOLDS * len(STRENGTHS) + 1
    assert found.record["chosen"] == whole.record["chosen"]
    one, other = (load_weights(artifact.folder / "model.safetensors") for artifact in (found, whole))
    assert all(one[name].equal(other[name]) for name in other)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scores": {"brutal": []}}, "must be of weak, strong, gentle"),
        ({"scores": {"weak": [{"labels": -1, "right": "x"}]}}, r"labels: .*right: .*loss: "),
        ({"scores": kept()["scores"] | {"weak": [{"labels": 3, "right": 1, "loss": 1.0}]}}, "by other labels"),
        ({"more": 1}, "more: "),
        (None, "damaged"),
    ],
)
def test_a_damaged_choice_is_refused(changed: dict[str, Any] | None, said: str, tmp_path: Path) -> None:
    (tmp_path / CHOICE).write_text("{" if changed is None else json.dumps(kept() | changed))
    with pytest.raises(SemisupError, match=rf"(?s){CHOICE}: .*{said}.*delete it"):
        _kept(tmp_path / CHOICE, [2, 2, 2])


def test_weights_that_know_the_labels_have_no_part_in_the_choice(tmp_path: Path) -> None:
    before = {"before": train_stage("supervised", stage={"steps": 9, "optimizer": {"lr": 0.5}})}
    alone = run_stages(auto("supervised"), small_data(), tmp_path / "alone")["train"]
    after = run_stages(before | auto("supervised", init="before"), small_data(), tmp_path / "after")["train"]
    assert after.record["chosen"] == alone.record["chosen"]


def test_a_stage_that_starts_from_one_that_has_chosen_takes_its_views(tmp_path: Path) -> None:
    stages = auto("supervised") | {"next": auto("fixmatch", init="train")["train"]}
    stages["last"] = auto("supervised", init="next")["train"]
    planned = small_plan(stages, small_data())[0].stages
    assert [stage.short_trainings for stage in planned] == [True, False, False]
    assert planned[1].choice == "augment: auto takes the views that train has chosen"
    done = run_stages(stages, small_data(), tmp_path)
    strength = done["train"].record["strength"]
    planned_views = {stage.name: stage.views for stage in planned if stage.views is not None}
    for name in ("next", "last"):
        settings = done[name].record["settings"]["augment"]
        views = with_strength(planned[0].training.model_copy(update={"augment": {}}), planned_views[name], strength)
        assert {view: settings[view] for view in views} == views
        assert (done[name].record["chosen"], done[name].record["strength"]) == (None, strength)
        assert not any(key.startswith("choice/") for key in done[name].metrics)


@pytest.mark.slow
def test_classes_that_mirroring_turns_into_each_other_have_gentle_views(tmp_path: Path) -> None:
    stages = auto("supervised", steps=40, optimizer={"name": "adamw", "lr": 0.01})
    data = sides()
    found = run_stages(stages, data, tmp_path, draw_budget(data.y_train, "10/class", 0, 2))["train"]
    assert found.record["settings"]["augment"]["weak"] == STRENGTHS["gentle"]


def test_is_part_of_the_fingerprint() -> None:
    with_it, without = (
        small_plan({"train": stage}, small_data(), trial=False)[0].stages[0]
        for stage in (*auto().values(), train_stage("fixmatch"))
    )
    assert with_it.fingerprint != without.fingerprint
    assert with_it.choice is not None and without.choice is None


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ({"augment": {"policy": "auto", "strong": {"policy": "crop_flip"}}}, {"weak"}),
        ({"method": {"name": "supervised", "strong": True}, "augment": "auto"}, {"strong"}),
        ({"method": {"name": "supervised"}, "augment": "auto"}, {"weak"}),
    ],
)
def test_only_views_that_are_not_named_are_chosen(stage: dict[str, Any], named: set[str]) -> None:
    plan, _ = small_plan({"train": train_stage("fixmatch") | stage}, small_data(), trial=False)
    views = plan.stages[0].views
    assert views is not None and set(with_strength(plan.stages[0].training, views, "strong")) == named


def test_weak_views_are_never_strong_next_to_strong_ones() -> None:
    plan, _ = small_plan(auto(), small_data(), trial=False)
    views = plan.stages[0].views
    assert views is not None
    found = with_strength(plan.stages[0].training, views, "strong")
    assert found == {"weak": STRENGTHS["weak"], "strong": STRENGTHS["strong"]}


@pytest.mark.parametrize(
    ("stages", "labels", "said"),
    [
        (auto("simclr"), "2/class", r"augment\.policy: .*'simclr' leaves it none"),
        (auto(), "1/class", r"augment\.policy: .* no class has two"),
        (auto(augment={"policy": "weak"}), "2/class", r"stages\.train\.augment\.policy: must be auto"),
        (auto(augment="strong"), "2/class", r"stages\.train\.augment: must be auto or a mapping"),
    ],
)
def test_mistakes(stages: dict[str, Any], labels: str, said: str) -> None:
    data = small_data()
    with pytest.raises(SemisupError, match=said):
        small_plan(stages, data, draw_budget(data.y_train, labels, 0, 3), trial=False)

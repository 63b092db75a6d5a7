"""The choice among trained stages by labels that they were not given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semisup.data import draw_budget
from semisup.errors import SemisupError
from semisup.models import build_backbone, save_weights
from semisup.records import file_digest
from semisup.stages.targets import read_targets
from tests.stages.stages_small import run_stages, small_data, small_plan, train_stage

IDLE = {"optimizer": {"lr": 1e-9}, "steps": 1, "ema": None}
"""Of a stage that learns nothing."""


def best(*among: str, **options: Any) -> dict[str, Any]:
    return {"kind": "best", "among": list(among), "folds": 2, **options}


def learned(name: str = "supervised", **stage: Any) -> dict[str, Any]:
    return train_stage(name, stage={"steps": 30, "ema": None, **stage})


@pytest.mark.parametrize("order", [("idle", "learned"), ("learned", "idle")])
def test_the_network_that_is_right_is_taken_whole(order: tuple[str, str], tmp_path: Path) -> None:
    data = small_data()
    stages = {"idle": train_stage("supervised", stage=IDLE), "learned": learned(), "best": best(*order)}
    done = run_stages(stages, data, tmp_path, draw_budget(data.y_train, "4/class", 0, 3))
    metrics, chosen = done["best"].metrics, done["learned"]
    assert metrics["choice/learned"] > metrics["choice/idle"]
    assert metrics["test/accuracy"] == chosen.metrics["test/accuracy"]
    assert str(done["best"].record["chosen"]).startswith("learned, of labels that were left out: ")
    assert {**chosen.record["files"]} == {**done["best"].record["files"]}
    for name, digest in chosen.record["files"].items():
        assert file_digest(done["best"].folder / name) == digest
    assert {path.name for path in done["best"].folder.iterdir()} == {*chosen.record["files"], "stage.json"}


def test_what_is_trained_again_is_in_the_plan() -> None:
    stages = {"a": learned(), "b": learned(init="a"), "best": best("a", "b", folds=3, repeats=2)}
    *others, chosen = small_plan(stages, small_data())[0].stages
    assert chosen.trials == (6, ("a", "b"))
    assert chosen.choice is not None and "trains a, b 6 times more" in chosen.choice
    assert [one.trials for one in others] == [(0, ())] * 2


def test_of_equals_the_one_that_is_surer_is_taken(tmp_path: Path) -> None:
    stages = {"a": learned(), "b": learned(init="a"), "best": best("a", "b")}
    done = run_stages(stages, small_data(), tmp_path)
    found = done["best"]
    assert found.metrics["choice/a"] == found.metrics["choice/b"]
    assert str(found.record["chosen"]).startswith("b, ")


def test_no_network_is_asked_for_a_label_that_it_or_what_it_starts_from_was_given(tmp_path: Path) -> None:
    """Labels that are noise: whoever was given them all knows them, here by heart."""
    data = small_data()
    data.y_train[:] = np.random.default_rng(0).permutation(data.y_train)
    stages = {"a": learned(steps=150), "b": learned(init="a", steps=50), "best": best("a", "b", folds=5)}
    done = run_stages(stages, data, tmp_path, draw_budget(data.y_train, "all", 0, 3))
    assert max(done["best"].metrics[f"choice/{name}"] for name in "ab") < 0.6


def test_a_student_may_start_from_it_and_learn_from_it(tmp_path: Path) -> None:
    labels = {"kind": "relabel", "teacher": "best"}
    more = {
        "labels": labels,
        "student": train_stage("noisy_student", stage={"pseudo_labels": "labels", "init": "best"}),
    }
    stages = {"a": learned(), "b": train_stage("supervised", stage=IDLE), "best": best("a", "b"), **more}
    done = run_stages(stages | {"same": {"kind": "relabel", "teacher": "a"}}, small_data(), tmp_path)
    assert torch.equal(read_targets(done["labels"])[1], read_targets(done["same"])[1])


def test_networks_that_begin_with_other_weights_are_one_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = {"name": "torchvision/squeezenet1_1", "resize": 32}
    network = build_backbone("torchvision/squeezenet1_1", {}, in_channels=3, image_size=32)
    for name in ("one", "two"):
        save_weights(tmp_path / f"{name}.safetensors", network.state_dict())
    stages = {
        "a": learned(model={**model, "weights": str(tmp_path / "one.safetensors")}),
        "b": learned(model={**model, "weights": str(tmp_path / "two.safetensors")}),
        "best": best("a", "b"),
    }
    plan, _ = small_plan(stages, small_data())
    assert plan.stages[-1].network == plan.stages[0].network


@pytest.mark.parametrize(
    ("stages", "labels", "message"),
    [
        ({"best": best("a", "encoder")}, "2/class", "'encoder' trains an encoder and cannot predict"),
        ({"best": best("a", "wide")}, "2/class", "'wide' has another network than 'a'"),
        ({"best": best("a", "b")}, "1/class", "no class has two"),
        ({"labels": {"kind": "relabel", "teacher": "a", "vote": "best"}}, "1/class", "no class has two"),
        ({"best": best("a", "b", "labels"), "labels": {"kind": "relabel", "teacher": "a"}}, "2/class", "labels"),
    ],
)
def test_what_cannot_be_chosen_among_is_refused_in_the_plan(stages: dict[str, Any], labels: str, message: str) -> None:
    data = small_data()
    before = {
        "a": learned(),
        "b": learned(),
        "encoder": train_stage("simclr"),
        "wide": learned(model={"name": "cnn", "width": 8}),
    }
    with pytest.raises(SemisupError, match=message):
        small_plan({**before, **stages}, data, draw_budget(data.y_train, labels, 0, 3))


def test_a_stage_of_another_run_may_know_the_labels(tmp_path: Path) -> None:
    data = small_data()
    other = run_stages({"a": learned()}, data, tmp_path)["a"]
    finished = {"a": learned(), "other": {"kind": "finished", "path": str(other.folder)}}
    for chosen in (best("a", "other"), {"kind": "relabel", "teacher": ["a", "other"], "vote": "best"}):
        with pytest.raises(SemisupError, match="'other' comes from another run"):
            small_plan({**finished, "chosen": chosen}, data)


@pytest.mark.parametrize("among", [[], ["a"], ["a", "a"]])
def test_one_stage_is_no_choice(among: list[str]) -> None:
    with pytest.raises(SemisupError, match="two stages at least"):
        small_plan({"a": learned(), "best": best(*among)}, small_data())

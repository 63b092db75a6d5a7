"""Where a stage's first weights come from. A learning rate of 1e-30 leaves every weight as it was loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from semisup.config import parse_recipe
from semisup.errors import SemisupError
from semisup.models import ModelSpec, load_weights, save_weights
from semisup.pipeline.check import check_blocks
from semisup.settings import InitConfig
from semisup.stages import Artifact
from semisup.stages.initial import load_initial_weights
from semisup.stages.networks import build_method
from semisup.stages.predictor import load_network
from tests.stages.stages_small import run_stages, small_data, small_plan, train_stage

STILL = {"optimizer": {"lr": 1e-30, "weight_decay": 0.0}, "ema": None}


def still(method: str, **stage: Any) -> dict[str, Any]:
    return train_stage(method, stage=STILL | stage)


def trained_names(weights: dict[str, torch.Tensor]) -> list[str]:
    """Parameters: BatchNorm's statistics follow the images whatever the learning rate."""
    return [name for name in weights if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))]


def model(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_weights(artifact.folder / "model.safetensors")


@pytest.mark.parametrize(("head_layer", "kept"), [(0, 0), (1, 1), (2, 2), (3, 3), (-1, 3)])
def test_head_layer_keeps_exactly_these_projection_layers(head_layer: int, kept: int, tmp_path: Path) -> None:
    stages = {
        "pretrain": train_stage("simclr_v2"),
        "finetune": still("supervised", init={"from": "pretrain", "head_layer": head_layer}),
    }
    done = run_stages(stages, small_data(), tmp_path)
    before, after = model(done["pretrain"]), model(done["finetune"])
    for name in trained_names(after):
        if name.startswith("head."):
            assert after[name].abs().max() < 1e-20, "SimCLRv2's new head starts at zero"
        else:
            assert torch.equal(after[name], before[name.replace("neck.", "projector.layers.")]), name
    assert len({name.split(".")[1] for name in after if name.startswith("neck.")}) == kept
    # The last block of a projection head has no shift; a block inside it has one.
    assert any(name.startswith("neck.") and name.endswith("1.bias") for name in after) == (kept > 0)
    assert (f"neck.{kept - 1}.1.bias" in after) == (0 < kept < 3)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {
                "pretrain": train_stage("simclr_v2"),
                "next": train_stage("supervised", stage={"init": {"from": "pretrain", "head_layer": 4}}),
            },
            "stages.next.init.head_layer: the projection head of 'pretrain' has 3 layers, got 4",
        ),
        (
            {
                "first": train_stage("supervised"),
                "next": train_stage("supervised", stage={"init": {"from": "first", "head_layer": 1}}),
            },
            "stages.next.init.head_layer: 'first' trains a classifier, it has no projection head",
        ),
        (
            {
                "pretrain": train_stage("simclr_v2"),
                "next": train_stage("simclr", stage={"init": {"from": "pretrain", "head_layer": 1}}),
            },
            "stages.next.init.head_layer: this stage trains an encoder",
        ),
        (
            {
                "pretrain": train_stage("simclr"),
                "next": train_stage("supervised", stage={"init": "pretrain", "model": {"name": "cnn", "width": 6}}),
            },
            "stages.next.init: the weights of 'pretrain' are those of cnn {'width': 4}, this stage trains cnn",
        ),
        (
            {
                "pretrain": train_stage("simclr"),
                "next": train_stage("supervised", stage={"init": "pretrain", "model": {"name": "resnet18"}}),
            },
            "this stage trains resnet18",
        ),
        (
            {
                "pretrain": train_stage("simclr"),
                "next": train_stage("distill", stage={"teacher": "pretrain"}),
            },
            "stages.next.teacher: 'pretrain' trains an encoder and cannot predict; fine-tune it first",
        ),
        (
            {"pretrain": train_stage("simclr"), "next": {"kind": "relabel", "teacher": "pretrain"}},
            "stages.next.teacher: 'pretrain' trains an encoder",
        ),
        (
            {"pretrain": train_stage("colorization")},
            "stages.pretrain.method.name: 'colorization' needs color images, of 3 channels; these have 1",
        ),
        (
            {"pretrain": train_stage("mae")},
            "stages.pretrain.model: method 'mae' hides patches, for which it needs the backbone 'vit', got SmallCNN",
        ),
        (
            {"pretrain": train_stage("maskfeat")},
            "stages.pretrain.model: method 'maskfeat' hides patches, for which it needs the backbone 'vit'",
        ),
        (
            {"train": train_stage("supervised", stage={"model": {"name": "vit", "patch": 3}})},
            "stages.train.model vit: patch must divide the side of the images, 8 px, not 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_planning(stages: dict[str, Any], message: str) -> None:
    with pytest.raises(SemisupError) as caught:
        small_plan(stages, small_data())
    assert message in str(caught.value)


def test_a_spelled_out_default_is_the_same_architecture() -> None:
    stages = {
        "first": train_stage("supervised", stage={"model": {"name": "cnn"}}),
        "next": train_stage("supervised", stage={"init": "first", "model": {"name": "cnn", "width": 32}}),
    }
    plan, _ = small_plan(stages, small_data())
    assert [stage.parameters for stage in plan.stages] == [plan.stages[0].parameters] * 2


@pytest.mark.parametrize("method", ["supervised", "fixmatch", "mean_teacher", "meta_pseudo_labels"])
def test_from_a_classifier_comes_everything_its_head_too(method: str, tmp_path: Path) -> None:
    stages = {
        "pretrain": train_stage("simclr"),
        "finetune": train_stage("supervised", stage={"init": {"from": "pretrain", "head_layer": 1}}),
        "next": still(method, init="finetune"),
    }
    done = run_stages(stages, small_data(), tmp_path)
    before, after = model(done["finetune"]), model(done["next"])
    assert before.keys() == after.keys()
    assert any(name.startswith("neck.") for name in after)
    for name in trained_names(after):
        # Mean Teacher is judged by its average of equal weights: exact up to rounding.
        torch.testing.assert_close(after[name], before[name], rtol=1e-6, atol=1e-7)


def test_the_networks_of_a_method_start_from_the_same_weights(tmp_path: Path) -> None:
    """A teacher that a method makes for itself is loaded as well, not left at its random start."""
    data = small_data()
    plan, _ = small_plan({"first": train_stage("supervised"), "next": train_stage("mean_teacher")}, data)
    done = run_stages({"first": train_stage("supervised")}, data, tmp_path)
    for name in ("mean_teacher", "meta_pseudo_labels"):
        recipe = parse_recipe({"name": "x", "stages": {"s": train_stage(name)}})
        spec = plan.stages[0].network
        assert spec is not None
        method = build_method(
            recipe.stages["s"], spec.spec, [], num_images=60, num_labeled=6, statistics=data.statistics
        )
        load_initial_weights(method, InitConfig(), done["first"].folder / "model.safetensors", data.classes)
        before = model(done["first"])
        copies = [key for key in method.state_dict() if key.endswith("head.weight")]
        assert len(copies) == 2
        for key in copies:
            assert torch.equal(method.state_dict()[key], before["head.weight"])


def test_a_method_that_remembers_images_is_told_their_number(tmp_path: Path) -> None:
    data = small_data(n=45)
    method = build_method(
        parse_recipe({"name": "x", "stages": {"s": train_stage("flexmatch")}}).stages["s"],
        ModelSpec("cnn", {"width": 4}, 1, 8, 3),
        [],
        num_images=45,
        num_labeled=6,
        statistics=data.statistics,
    )
    assert method.state_dict()["latest"].shape == (45,)
    # 4 batches of 12 images go over every row: a smaller memory would be out of bounds.
    done = run_stages({"stage": train_stage("flexmatch", stage={"steps": 4})}, data, tmp_path)
    assert done["stage"].record


def test_a_method_that_remembers_labeled_images_is_told_their_number(tmp_path: Path) -> None:
    stages = {"stage": train_stage("simmatch", stage={"steps": 4})}
    plan, budget = small_plan(stages, small_data())
    assert plan.stages[0].network is not None
    method = build_method(
        plan.recipe.stages["stage"],
        plan.stages[0].network.spec,
        [],
        num_images=60,
        num_labeled=len(budget.index),
        statistics=plan.statistics,
    )
    assert method.state_dict()["bank"].shape[0] == len(budget.index) == 6
    # 4 batches of 6 images show them all: a smaller bank would be out of bounds.
    assert run_stages(stages, small_data(), tmp_path)["stage"].record


# Weights from a file


def from_file(path: Path, **init: Any) -> dict[str, Any]:
    return {"stage": still("supervised", init={"weights": str(path), **init})}


@pytest.fixture
def backbone_file(tmp_path: Path) -> Path:
    """A backbone without a head, as somebody else may have left it."""
    done = run_stages({"pretrain": train_stage("simclr")}, small_data(), tmp_path / "made")
    backbone = {name: t for name, t in model(done["pretrain"]).items() if name.startswith("backbone.")}
    save_weights(tmp_path / "backbone.safetensors", backbone)
    return tmp_path / "backbone.safetensors"


def test_a_backbone_file_is_loaded_and_reported(backbone_file: Path, tmp_path: Path) -> None:
    plan, _ = small_plan(from_file(backbone_file), small_data())
    assert plan.stages[0].loaded is not None
    assert str(plan.stages[0].loaded).startswith("100.00 % of the network's weights found")
    done = run_stages(from_file(backbone_file), small_data(), tmp_path / "run")["stage"]
    before, after = load_weights(backbone_file), model(done)
    assert all(torch.equal(after[name], before[name]) for name in trained_names(before))
    assert after["head.weight"].any()
    assert done.record["loaded"].startswith("100.00 % of the network's weights found")


def test_a_file_that_does_not_fit_is_refused_with_a_report(backbone_file: Path) -> None:
    partly = load_weights(backbone_file)
    gone = next(name for name in partly if name.endswith("weight"))
    wrong = [name for name in partly if name.endswith("weight")][1]
    del partly[gone]
    partly[wrong] = torch.zeros(3)
    partly["stranger"] = torch.zeros(2)
    save_weights(backbone_file, partly)
    with pytest.raises(SemisupError) as caught:
        small_plan(from_file(backbone_file), small_data())
    text = str(caught.value)
    assert f"stages.stage.init.weights {backbone_file}: do not fit, init.minimum_match asks for 100.0%" in text
    assert f"missing: {gone}" in text
    assert f"mismatched: {wrong} (network (" in text
    assert "unexpected: stranger" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_in_the_plan(backbone_file: Path, value: float) -> None:
    damaged = load_weights(backbone_file)
    names = [name for name in damaged if name.endswith("weight")]
    for name in names[:2]:
        damaged[name].view(-1)[-1] = value
    save_weights(backbone_file, damaged | {"stranger": torch.tensor(value)})
    with pytest.raises(SemisupError) as caught:
        small_plan(from_file(backbone_file), small_data())
    rule = f"{names[0]} and 1 other tensors hold NaN or infinite values"
    assert f"stages.stage.init.weights {backbone_file}: {rule}" in str(caught.value)


def test_a_lower_minimum_match_accepts_it(backbone_file: Path, tmp_path: Path) -> None:
    partly = load_weights(backbone_file)
    del partly[next(name for name in partly if name.endswith("weight"))]
    save_weights(backbone_file, partly)
    done = run_stages(from_file(backbone_file, minimum_match=0.5), small_data(), tmp_path / "run")["stage"]
    assert "missing: " in done.record["loaded"]


@pytest.mark.parametrize(
    ("content", "rule"), [(None, "no such file"), (b"not safetensors at all", "not a readable safetensors file")]
)
def test_an_unreadable_file_is_named_with_everything_else(content: bytes | None, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    recipe = parse_recipe({"name": "x", "model": {"name": "cnnn"}, "stages": from_file(path)})
    problems = check_blocks(recipe.model_dump(by_alias=True))  # knows no data
    assert [p.split(":")[0] for p in problems] == ["model.name", f"stages.stage.init.weights {path}"]
    assert rule in problems[1]


def test_a_file_has_no_projection_head_to_keep(backbone_file: Path) -> None:
    with pytest.raises(SemisupError, match=r"init\.head_layer: only a stage to start from"):
        small_plan(from_file(backbone_file, head_layer=1), small_data())


def test_a_file_of_other_classes_starts_the_backbone_alone(tmp_path: Path) -> None:
    """The head is new: by its shape, and, where the class names lie next to the weights, by those."""
    data = small_data(classes=3)
    done = run_stages({"first": train_stage("supervised")}, data, tmp_path / "made")["first"]
    file = done.folder / "model.safetensors"
    four = small_data(n=80, n_test=24, classes=4)
    renamed = dataclasses.replace(data, classes=["x", "y", "z"])
    for other, new in ((data, False), (four, True), (renamed, True)):
        plan, _ = small_plan(from_file(file), other)
        assert plan.stages[0].loaded is not None
        assert plan.stages[0].loaded.fraction == 1
        assert any("the head is new" in note for note in plan.stages[0].loaded.notes) == new
        after = model(run_stages(from_file(file), other, tmp_path / f"run {len(list(tmp_path.iterdir()))}")["stage"])
        before = load_weights(file)
        assert all(torch.equal(after[n], before[n]) for n in trained_names(before) if n.startswith("backbone."))
        assert torch.equal(after["head.bias"], before["head.bias"]) != new


def test_a_head_that_stands_on_projection_layers_is_not_put_on_the_backbone(tmp_path: Path) -> None:
    stages = {
        "pretrain": train_stage("simclr_v2"),
        "first": train_stage("supervised", stage={"init": {"from": "pretrain", "head_layer": 1}}),
    }
    done = run_stages(stages, small_data(), tmp_path / "made")["first"]
    plan, _ = small_plan(from_file(done.folder / "model.safetensors"), small_data())
    assert plan.stages[0].loaded is not None
    assert any("projection layers" in note for note in plan.stages[0].loaded.notes)


@pytest.mark.parametrize("classify", ["all", "upright"])
def test_a_finished_s4l_rotation_predicts_as_it_was_evaluated(classify: str, tmp_path: Path) -> None:
    """With `classify: all` the mean of the logits over four turns, also after it was written and read."""
    done = run_stages({"train": train_stage("s4l_rotation", classify=classify)}, small_data(), tmp_path)
    network = load_network(done["train"].folder, torch.device("cpu"))
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = network.head(network.neck(network.backbone(images)))
        turned = [network.head(network.neck(network.backbone(images.rot90(k, (2, 3))))) for k in range(4)]
        expected = torch.stack(turned).mean(0) if classify == "all" else alone
        torch.testing.assert_close(network(images), expected)
        assert not torch.allclose(torch.stack(turned).mean(0), alone)

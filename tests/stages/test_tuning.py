"""`freeze`, `train`, `lora`, `gradient_accumulation` and `activation_checkpointing` of a train stage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from semisup.config import parse_recipe
from semisup.engine import Stopped
from semisup.errors import SemisupError
from semisup.models import load_weights
from semisup.settings.read import read_mapping
from semisup.stages import Artifact
from semisup.stages.predictor import load_network, load_predictor
from tests.stages.stages_small import run_stages, small_data, small_plan, train_stage

VIT = {"name": "vit", "width": 12, "depth": 3, "patch": 4}
DATA = small_data()


def stages(method: str = "supervised", **keys: Any) -> dict[str, Any]:
    """Two stages, of which the second starts from the first with these keys."""
    options = keys.pop("options", {})
    second = train_stage(method, **options, stage={"init": "first", "ema": None, **keys})
    return {"first": train_stage("supervised"), "second": second}


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_weights(artifact.folder / "model.safetensors")


def moved(done: dict[str, Artifact]) -> set[str]:
    before, after = weights(done["first"]), weights(done["second"])
    assert before.keys() == after.keys(), "nobody who reads the weights has to know how they were trained"
    return {name for name in after if not torch.equal(before[name], after[name]) and not name.startswith("head")}


@pytest.mark.parametrize("method", ["supervised", "fixmatch", "mean_teacher"])
def test_a_frozen_backbone_stays_statistics_included(method: str, tmp_path: Path) -> None:
    assert moved(run_stages(stages(method, freeze=True), DATA, tmp_path)) == set()


def test_frozen_blocks_stay_and_a_part_of_the_stage_is_a_part(tmp_path: Path) -> None:
    learned = moved(run_stages(stages(freeze={"blocks": 2}), DATA, tmp_path / "blocks"))
    assert {name.split(".")[1] for name in learned} == {"layer3"}
    learned = moved(run_stages(stages(freeze={"until": "70%"}), DATA, tmp_path / "until"))
    assert {name.split(".")[1] for name in learned} == {"layer1", "layer2", "layer3"}
    counts = [tensor for name, tensor in weights_of(tmp_path / "until").items() if name.endswith("num_batches_tracked")]
    assert {int(count) for count in counts} == {3 + 1}, "three steps before, then the last of three"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(folder / "second" / "model.safetensors")


@pytest.mark.parametrize(
    ("keys", "learns"),
    [
        ({"train": "bias"}, (".bias",)),
        ({"train": "norm"}, ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "norm.weight", "norm.bias")),
        ({"lora": {"rank": 2}}, ("qkv.weight", "attn.proj.weight", "fc1.weight", "fc2.weight")),
        ({"lora": {"targets": ["qkv"]}, "freeze": {"blocks": 2}}, ("blocks.2.attn.qkv.weight",)),
        ({"lora": True, "train": "bias"}, (".bias", "qkv.weight", "attn.proj.weight", "fc1.weight", "fc2.weight")),
    ],
)
def test_what_is_asked_for_learns_and_nothing_else(keys: Any, learns: tuple[str, ...], tmp_path: Path) -> None:
    done = run_stages(stages("mean_teacher", **keys), DATA, tmp_path, model=VIT)
    found = moved(done)
    assert found and all(name.endswith(learns) for name in found)
    assert all(any(name.endswith(end) for name in found) for end in learns)
    network = load_network(done["second"].folder, torch.device("cpu"))
    assert network.frozen is None
    assert load_predictor(done["second"].folder).predict_proba(DATA.x_test).shape == (24, 3)


@pytest.mark.parametrize("keys", [{"lora": True, "ema": 0.5}, {"gradient_accumulation": 2}, {"freeze": {"until": 2}}])
def test_a_stage_that_is_stopped_ends_with_the_same_bits(keys: Any, tmp_path: Path) -> None:
    whole = run_stages(stages(**keys), DATA, tmp_path / "whole", model=VIT, checkpoint_seconds=0.0)

    def stop(step: int, values: dict[str, float]) -> None:
        if step == 2 and len(list((tmp_path / "stopped").iterdir())) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run_stages(stages(**keys), DATA, tmp_path / "stopped", on_log=stop, model=VIT, checkpoint_seconds=0.0)
    assert (tmp_path / "stopped" / "second" / "checkpoint.pt").exists()
    (tmp_path / "stopped" / "first").rename(tmp_path / "gone")
    resumed = run_stages(stages(**keys), DATA, tmp_path / "stopped", model=VIT)
    one, other = weights(whole["second"]), weights(resumed["second"])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_recomputed_activations_change_no_bit_and_blocks_inputs_alone_are_planned_for(tmp_path: Path) -> None:
    plain = run_stages(stages(), DATA, tmp_path / "plain", model=VIT)
    again = run_stages(stages(activation_checkpointing=True), DATA, tmp_path / "again", model=VIT)
    memory = [
        small_plan(stages(activation_checkpointing=asked), DATA, model=VIT)[0].stages[1].memory
        for asked in (False, True)
    ]
    assert memory[1] < 0.8 * memory[0]
    one, other = weights(plain["second"]), weights(again["second"])
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_plan_says_what_learns() -> None:
    keys = {"freeze": {"blocks": 2, "until": 2}, "optimizer": {"lr_decay": 0.8}, "gradient_accumulation": 2}
    plan, _ = small_plan(stages(**keys, activation_checkpointing=True), DATA, model=VIT)
    said = plan.stages[1].tuning
    assert said is not None
    assert said.startswith(
        "the first 2 of 3 blocks frozen until step 2; learning rate times 0.8 from block to block, 3 of them; "
        "2 batches per step; activations of 3 blocks computed twice; "
    )
    assert plan.stages[1].images_per_step == 12
    lora, _ = small_plan(stages(lora={"rank": 2}), DATA, model=VIT)
    small = 3 * 2 * (12 + 36 + 12 + 12 + 2 * (12 + 24))
    there = lora.stages[1].parameters - 39 + small
    said = f"LoRA of rank 2 in 12 layers; {small:,} of the backbone's {there:,} parameters learn, and 39 outside it"
    assert lora.stages[1].tuning == said
    assert plan.stages[0].tuning is None


def test_a_frozen_network_is_planned_with_less_memory() -> None:
    free, _ = small_plan(stages(), DATA, model=VIT)
    still, _ = small_plan(stages(freeze=True), DATA, model=VIT)
    assert still.stages[1].memory < 0.7 * free.stages[1].memory


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"init": None, "freeze": True, "lora": True}, "second.freeze: "),
        ({"init": None, "freeze": {"blocks": 1}}, "second.freeze: the network starts from random weights"),
        ({"init": None, "train": "bias"}, "second.train: the network starts from random weights"),
        ({"freeze": {"blocks": 4}}, "second.freeze.blocks: the network has 3 blocks, not 4"),
        ({"freeze": {"until": 3}}, "second.freeze.until: must be less than the stage's 3 steps, not 3"),
        ({"freeze": {"until": "x%"}}, "second.freeze.until: must be a percentage such as 30%"),
        ({"freeze": {"until": "200%"}}, "second.freeze.until: must be more than 0% and less than 100%"),
        ({"freeze": {"until": 1.5}}, "second.freeze.until: must be more than 0, and from 1 on a whole number"),
        ({"freeze": {"block": 4}}, "second.freeze.block: unknown key; did you mean 'blocks'"),
        ({"freeze": True, "lora": True}, "second.freeze: without `blocks`, nothing of it is left for lora"),
        (
            {"freeze": {"until": 1}, "train": "bias"},
            "second.freeze: with `until`, everything learns afterwards for train",
        ),
        ({"freeze": True, "optimizer": {"lr_decay": 0.5}}, "second.optimizer.lr_decay: freeze leaves no block"),
        ({"freeze": True, "activation_checkpointing": True}, "second.activation_checkpointing: nothing is kept"),
        ({"freeze": True, "refresh_batchnorm": True}, "second.refresh_batchnorm: would change the statistics"),
        ({"freeze": True, "options": {"freeze": True}}, "second.freeze: method.freeze leaves"),
        ({"lora": {"targets": ["qvk"]}}, "lora.targets: no layer's path ends with 'qvk'"),
        ({"lora": {"targets": "qkv"}}, "second.lora.targets: must be auto or a list"),
        ({"lora": True, "train": "norm"}, "second.train: with lora it is all"),
        ({"optimizer": {"lr_decay": 0}}, "second.optimizer.lr_decay: must be greater than 0"),
        (
            {"method": "meta_pseudo_labels", "gradient_accumulation": 2},
            "second.gradient_accumulation: method 'meta_pseudo_labels' makes updates one after the other",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_key(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SemisupError) as caught:
        small_plan(stages(**keys.copy()), DATA, model=VIT, trial=False)
    assert message in str(caught.value)


def test_short_forms_reach_the_command_line() -> None:
    recipe = {"name": "x", "stages": {"a": train_stage("supervised", stage={"freeze": False, "lora": False})}}
    assert parse_recipe(recipe).stages["a"].freeze is None  # type: ignore[attr-defined]
    found = parse_recipe(recipe, ["stages.a.freeze.blocks=2", "stages.a.lora.rank=4"]).stages["a"]
    assert found.freeze.blocks == 2 and found.lora.rank == 4  # type: ignore[attr-defined]
    assert parse_recipe(recipe, ["stages.a.freeze=true"]).stages["a"].freeze.blocks is None  # type: ignore[attr-defined]
    assert parse_recipe(recipe, ["stages.a.freeze.until=30%"]).stages["a"].freeze.until == 0.3  # type: ignore[attr-defined]


def test_the_stage_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.M)
    (tmp_path / "shown.yaml").write_text(shown, encoding="utf-8")
    stage = parse_recipe({"name": "x", "stages": read_mapping(tmp_path / "shown.yaml")}).stages["finetune"]
    assert stage.optimizer.lr_decay == 0.8 and stage.freeze.blocks == 12  # type: ignore[attr-defined]


def test_compiled_networks_choose_by_themselves_what_they_keep() -> None:
    with pytest.raises(SemisupError, match=r"second.activation_checkpointing: with compile: true torch decides"):
        small_plan(stages(activation_checkpointing=True), DATA, model=VIT, trial=False, compile=True)

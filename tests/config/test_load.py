from __future__ import annotations

import copy
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from semisup.config import find_recipe, load_recipe, parse_recipe, shipped_recipes, to_yaml
from semisup.errors import SemisupError
from semisup.settings import OptimizerConfig, Recipe
from semisup.settings.read import as_override
from semisup.stages.kinds import KINDS, knn, name_of, probe, propagate

KIND_NAMES = ", ".join(map(name_of, KINDS))
QUICKSTART = """
name: digits-quickstart
seed: 0
data: {source: digits, labels: 10%}
model: {name: cnn, width: 32}
stages:
  pretrain:
    method: {name: simclr_v2, temperature: 0.5}
    optimizer: {name: adamw, lr: 2e-3}
    epochs: 60
  finetune:
    init: {from: pretrain, head_layer: 1}
    method: {name: supervised}
    steps: 200
  selftrain:
    init: finetune
    method: {name: fixmatch, threshold: 0.95}
    steps: 400
  labels:
    kind: relabel
    teacher: [finetune, selftrain]
    threshold: 0.5
    per_class: 20
  student:
    teacher: selftrain
    pseudo_labels: labels
    model: {name: cnn, width: 12}
    method: {name: distill, temperature: 1.0}
    augment: {strong: {policy: randaugment, magnitude: 7}}
    ema: 0.99
    steps: 400
"""


@pytest.fixture
def quickstart(tmp_path: Path) -> Path:
    path = tmp_path / "quickstart.yaml"
    path.write_text(QUICKSTART)
    return path


def minimal(**stage: object) -> dict[str, object]:
    return {"name": "x", "stages": {"train": {"method": {"name": "supervised"}, "steps": 3, **stage}}}


def message(mapping: object, *overrides: str) -> str:
    with pytest.raises(SemisupError) as caught:
        parse_recipe(mapping, overrides)  # type: ignore[arg-type]
    return str(caught.value)


def file_message(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SemisupError) as caught:
        load_recipe(path)
    return str(caught.value).removeprefix(f"{path}: ")


# What is read


def test_a_recipe_becomes_dataclasses_with_defaults(quickstart: Path) -> None:
    recipe = load_recipe(quickstart)
    assert isinstance(recipe, Recipe)
    assert list(recipe.stages) == ["pretrain", "finetune", "selftrain", "labels", "student"]
    pretrain, student = recipe.stages["pretrain"], recipe.stages["student"]
    assert (pretrain.optimizer.name, pretrain.optimizer.lr, pretrain.optimizer.momentum) == ("adamw", 2e-3, 0.9)
    assert (pretrain.epochs, pretrain.steps, pretrain.kind) == (60.0, None, "train")
    assert recipe.stages["finetune"].init.source == "pretrain"
    assert recipe.stages["selftrain"].init.source == "finetune"
    assert recipe.stages["selftrain"].init.head_layer == 0
    assert student.teacher == ["selftrain"] and recipe.stages["labels"].teacher == ["finetune", "selftrain"]
    assert student.augment == {"strong": {"policy": "randaugment", "magnitude": 7}}
    assert recipe.data.labels == "10%" and recipe.data.split_seed is None
    assert type(student.method) is dict and type(student.teacher) is list


def test_the_default_model_is_a_cnn() -> None:
    assert parse_recipe(minimal()).model == {"name": "cnn"}


def test_to_yaml_can_be_loaded_again(quickstart: Path, tmp_path: Path) -> None:
    recipe = load_recipe(quickstart, ["data.labels='40'", "name=n_1e3", "tracking.experiment='null'"])
    text = to_yaml(recipe)
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load_recipe(again) == recipe
    assert to_yaml(load_recipe(again)) == text
    assert "from: pretrain" in text and "source: pretrain" not in text
    assert again.read_text().count("labels: '40'") == 1


def test_the_mapping_is_not_modified() -> None:
    mapping = {
        "name": "x",
        "stages": {
            "a": {"method": {"name": "supervised"}, "steps": 3},
            "b": {"method": {"name": "supervised"}, "epochs": 3, "init": "a", "teacher": "a"},
        },
    }
    before = copy.deepcopy(mapping)
    parse_recipe(mapping, ["stages.b.steps=3", "stages.b.init.head_layer=1"])
    assert mapping == before


# Overrides


def test_the_command_line_wins(quickstart: Path) -> None:
    overrides = ["seed=7", "stages.student.method.temperature=2", "data.labels=4/class", "seed=8", "device=cuda:1"]
    recipe = load_recipe(quickstart, overrides)
    assert (recipe.seed, recipe.data.labels, recipe.device) == (8, "4/class", "cuda:1")
    assert recipe.stages["student"].method == {"name": "distill", "temperature": 2}


def test_steps_replace_epochs_and_the_reverse(quickstart: Path) -> None:
    recipe = load_recipe(quickstart, ["stages.pretrain.steps=5", "stages.finetune.epochs=0.5"])
    assert (recipe.stages["pretrain"].steps, recipe.stages["pretrain"].epochs) == (5, None)
    assert (recipe.stages["finetune"].steps, recipe.stages["finetune"].epochs) == (None, 0.5)


def test_an_override_reaches_into_the_short_form_of_init(quickstart: Path) -> None:
    init = load_recipe(quickstart, ["stages.selftrain.init.head_layer=1"]).stages["selftrain"].init
    assert (init.source, init.head_layer) == ("finetune", 1)


def test_views_that_are_chosen_can_be_named_on_the_command_line() -> None:
    stage = {"method": {"name": "supervised"}, "augment": "auto", "steps": 1}
    recipe = {"name": "x", "stages": {"a": stage}}
    assert parse_recipe(recipe).stages["a"].augment == {"policy": "auto"}
    for words in (["={policy: null, weak: {policy: weak}}"], [".weak.policy=weak", ".policy=null"]):
        overrides = [f"stages.a.augment{word}" for word in words]
        assert parse_recipe(recipe, overrides).stages["a"].augment == {"weak": {"policy": "weak"}}


def test_another_networks_name_keeps_the_size_of_its_images() -> None:
    """`${model.resize}` of the student led nowhere, whatever network was named."""
    recipe = load_recipe("folder/few_labels", ["model.name=timm/vit_small_patch14_dinov2", "model.weights=w.pth"])
    assert recipe.model == {"name": "timm/vit_small_patch14_dinov2", "weights": "w.pth", "resize": 112}
    assert recipe.stages["student"].model == recipe.model | {"blocks": 8}
    own = load_recipe("folder/few_labels", ["stages.student.model={name: cnn, width: 4}"])
    assert own.stages["student"].model == {"name": "cnn", "width": 4}


def test_init_and_teacher_can_be_replaced(quickstart: Path) -> None:
    recipe = load_recipe(quickstart, ["stages.selftrain.init=null", "stages.student.teacher=[pretrain,finetune]"])
    assert recipe.stages["selftrain"].init is None
    assert recipe.stages["student"].teacher == ["pretrain", "finetune"]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.path=photos #1", "photos #1"),
        ("data.path=a: b", "a: b"),
        ("data.path='null'", "null"),
        ("data.labels=010", 10),
        ("data.labels=0o10", 8),
        ("data.labels=1:30", "1:30"),  # which is no budget: said when the recipe is checked for a run
        ("data.labels=1_000", "1_000"),
    ],
)
def test_a_value_of_the_command_line_is_what_it_looks_like(quickstart: Path, override: str, value: object) -> None:
    data = load_recipe(quickstart, [override]).data
    found = getattr(data, override.partition("=")[0].removeprefix("data."))
    assert (type(found), found) == (type(value), value)


def test_another_name_leaves_no_options_behind(quickstart: Path) -> None:
    overrides = [
        "model={name: resnet18}",
        "stages.selftrain.method={name: flexmatch}",
        "stages.pretrain.optimizer={name: sgd}",
        "stages.student.augment.strong={policy: weak}",
    ]
    recipe = load_recipe(quickstart, overrides)
    assert recipe.model == {"name": "resnet18"}
    assert recipe.stages["selftrain"].method == {"name": "flexmatch"}
    assert recipe.stages["pretrain"].optimizer == OptimizerConfig()
    assert recipe.stages["student"].augment == {"strong": {"policy": "weak"}}


def test_options_of_the_same_name_are_merged(quickstart: Path) -> None:
    recipe = load_recipe(quickstart, ["model={name: cnn, depth: 2}", "stages.pretrain.method.name=simclr_v2"])
    assert recipe.model == {"name": "cnn", "width": 32, "depth": 2}
    assert recipe.stages["pretrain"].method == {"name": "simclr_v2", "temperature": 0.5}


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.labels", "'data.labels': an override is written key=value, for example data.labels=10%"),
        ("=3", "'=3': an override is written key=value, for example data.labels=10%"),
        ("data..labels=3", "'data..labels=3': an override is written key=value, for example data.labels=10%"),
        ("data.labelz=10%", "data.labelz: unknown key; did you mean 'labels'?"),
        ("stages.pretrian.epochs=3", "stages.pretrian: the recipe has no such stage; did you mean 'pretrain'?"),
        ("seed=abc", "seed: must be a whole number, not 'abc'"),
        ("seed=[1", "seed: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("data=3", "data: must be a mapping, not 3"),
        ("model=cnn", "model: must be a mapping, such as {name: ...}, not 'cnn'"),
        ("seed.x=3", "seed: is 0, not a mapping, so nothing can be set inside it"),
        ("device=quantum", "device: must be auto, cpu, cuda, cuda:N or mps, not 'quantum'"),
        ("stages.finetune.steps=null", "stages.finetune: needs its length, steps or epochs"),
        (
            "stages.finetune={steps: 3, epochs: 2}",
            "stages.finetune: give steps or epochs, not both",
        ),
    ],
)
def test_a_wrong_override_is_named(quickstart: Path, override: str, problem: str) -> None:
    with pytest.raises(SemisupError) as caught:
        load_recipe(quickstart, [override])
    assert str(caught.value) == f"{quickstart} with {override}: {problem}"


# Several mistakes at once


def test_all_mistakes_are_reported_together(quickstart: Path) -> None:
    overrides = ["data.labelz=10%", "seed=abc", "data.size=7", "nonsense", "stages.finetune.optimizer.lr=-1"]
    with pytest.raises(SemisupError) as caught:
        load_recipe(quickstart, overrides)
    first, *rest = str(caught.value).splitlines()
    assert first == f"{quickstart} with {' '.join(overrides)}: 5 problems"
    assert sorted(rest) == [
        "  - 'nonsense': an override is written key=value, for example data.labels=10%",
        "  - data.labelz: unknown key; did you mean 'labels'?",
        "  - data.size: must be at least 8, not 7",
        "  - seed: must be a whole number, not 'abc'",
        "  - stages.finetune.optimizer.lr: must be greater than 0, not -1",
    ]


def test_a_wrong_length_is_not_called_missing() -> None:
    assert message(minimal(steps="many")) == "recipe: stages.train.steps: must be a whole number, not 'many'"


def test_a_broken_stage_is_not_called_unknown_by_the_others() -> None:
    stages = {"a": None, "b": {"method": {"name": "supervised"}, "steps": 1, "init": "a"}}
    assert message({"name": "x", "stages": stages}) == "recipe: stages.a: must be a mapping, not null"


# Types, ranges and choices


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ({"lr": 3}, "lr: unknown key; did you mean 'optimizer.lr'?"),
        ({"optimizer": {"lr": True}}, "optimizer.lr: must be a number, not true"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: must be a finite number, not inf"),
        ({"optimizer": {"lr": 10**400}}, "optimizer.lr: must be a number of at most 64 bits, not of 1329"),
        ({"optimizer": {"momentum": 1.0}}, "optimizer.momentum: must be less than 1, not 1.0"),
        (
            {"optimizer": {"name": "adam"}},
            "optimizer.name: must be one of sgd, adamw, lars, not 'adam'; did you mean 'adamw'?",
        ),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas: must have at least 2, not 1"),
        ({"optimizer": {"betas": [0.9, "x"]}}, "optimizer.betas[1]: must be a number, not 'x'"),
        ({"optimizer": {"group_lr": {"teacher": 0}}}, "optimizer.group_lr.teacher: must be greater than 0, not 0"),
        (
            {"optimizer": {"momentum": 0}},
            "optimizer: nesterov needs momentum > 0; with momentum 0, set nesterov: false",
        ),
        (
            {"schedule": {"name": "cosin"}},
            "schedule.name: must be one of cosine, cosine_7_16, constant, not 'cosin'; did you mean 'cosine'?",
        ),
        ({"schedule": {"warmup": -1}}, "schedule.warmup: must be at least 0, not -1"),
        ({"batch": {"labeled": 0}}, "batch.labeled: must be at least 1, not 0"),
        ({"batch": None}, "batch: must be a mapping, not null"),
        ({"steps": 2.5}, "steps: must be a whole number, not 2.5"),
        ({"ema": 1}, "ema: must be less than 1, not 1"),
        ({"ema": "atuo"}, "ema: must be a number, auto or null, not 'atuo'"),
        ({"refresh_batchnorm": 1}, "refresh_batchnorm: must be true, false or auto, not 1"),
        (
            {"kind": "trian"},
            f"kind: must be one of {KIND_NAMES}, not 'trian'; did you mean 'train'?",
        ),
        ({"method": "supervised"}, "method: must be a mapping, such as {name: ...}, not 'supervised'"),
        ({"method": None}, "method: must be a mapping, such as {name: ...}, not null"),
        ({"method": {"width": 3}}, "method.name: missing"),
        ({"method": {"name": 3}}, "method.name: must be text, not 3"),
        ({"model": {"width": 3}}, "model.name: missing"),
        ({"augment": {"strong": {}}}, "augment.strong.policy: missing"),
        ({"augment": "weak"}, "augment: must be auto or a mapping, such as {strong: {policy: ...}}, not 'weak'"),
        ({"freeze": "all"}, "freeze: must be true, false or a mapping, such as {blocks: 8}, not 'all'"),
        ({"lora": 8}, "lora: must be true, false or a mapping, such as {rank: 8}, not 8"),
        ({"init": 3}, "init: must be a stage's name or a mapping, such as {from: ...}, not 3"),
        ({"augment": {"strong": "weak"}}, "augment.strong: must be a mapping, not 'weak'"),
        ({"teacher": 3}, "teacher: must be a list, not 3"),
        ({"init": {"source": "x", "from": None}}, None),
        ({"init": {"head_layer": 1}}, "init: needs one of from (a stage) and weights (a file), and not both"),
        ({"init": {"weights": "w", "head_layer": -2}}, "init.head_layer: must be at least -1, not -2"),
        ({"init": {"weights": "w", "minimum_match": 2}}, "init.minimum_match: must be at most 1, not 2"),
    ],
)
def test_a_wrong_setting_of_a_stage(stage: dict[str, object], problem: str | None) -> None:
    text = message(minimal(**stage))
    if stage.get("method", {}) is None:
        assert text.splitlines()[1] == f"  - stages.train.{problem}"
    elif problem is None:  # the field's own name is not a key of the recipe
        assert "stages.train.init.source: unknown key" in text
    else:
        assert text == f"recipe: stages.train.{problem}"


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("name", 3, "must be text, not 3; quote it"),
        ("name", "../up", "must be 1 to 100 letters, digits and . _ -, not '../up'"),
        ("name", "", "must be 1 to 100 letters, digits and . _ -, not ''"),
        ("seed", -1, "must be at least 0, not -1"),
        ("seed", 2**32, "must be at most 4294967295, not 4294967296"),
        ("seed", True, "must be a whole number, not true"),
        ("device", "cuda:x", "must be auto, cpu, cuda, cuda:N or mps, not 'cuda:x'"),
        ("precision", "bf61", "must be one of auto, fp32, bf16, fp16, not 'bf61'; did you mean 'bf16'?"),
        ("tracking", {"mlflow": 1}, "must be true or false, not 1"),
        ("threads", 0, "must be at least 1, not 0"),
        ("labels", 40, "unknown key; did you mean 'data.labels'?"),
        ("data", {"size": 7}, "must be at least 8, not 7"),
        ("data", {"source": ""}, "must not be empty, not ''"),
        ("data", {"flip": "no!"}, "must be true or false, not 'no!'"),
        ("tracking", {"mlflow": "yes please"}, "must be true or false, not 'yes please'"),
        (
            "tracking",
            {"experiment": "e" * 501},
            f"must have at most 500 letters, which is MLflow's limit, not '{'e' * 56}...",
        ),
        ("stages", {}, "must have at least one stage"),
        ("stages", 3, "must be a mapping, not 3"),
    ],
)
def test_a_wrong_setting_of_a_recipe(key: str, value: object, problem: str) -> None:
    path = f"{key}.{next(iter(value))}" if isinstance(value, dict) and value else key
    assert message({**minimal(), key: value}) == f"recipe: {path}: {problem}"


def test_missing_name_and_stages() -> None:
    assert message({"seed": 1}).splitlines() == [
        "recipe: 2 problems",
        "  - name: missing",
        "  - stages: missing; a recipe needs at least one stage, e.g. stages: {train: {...}}",
    ]


@pytest.mark.parametrize("name", ["Pre", "a-b", "a b", "", "a" * 300])
def test_stage_names(name: str) -> None:
    mapping = {"name": "x", "stages": {name: minimal()["stages"]["train"]}}  # type: ignore[index]
    assert message(mapping) == f"recipe: stages.{name[:60]}: a stage's name is 1 to 60 lower-case letters, digits and _"


def test_keys_that_are_no_text() -> None:
    text = message({**minimal(), 3: 4, "stages": {1: {"steps": 3}}})
    assert "- 3: the key must be text" in text and "- stages.1: the key must be text; quote it" in text


@pytest.mark.parametrize("mapping", [3, "name: x", None, [1]])
def test_not_a_mapping(mapping: object) -> None:
    assert message(mapping).startswith("recipe: a recipe is a mapping of keys to values, not ")


# References between stages


def with_reference(key: str, target: object, kind: str = "train") -> dict[str, object]:
    train = {"method": {"name": "supervised"}, "steps": 1}
    stage = {**train, key: target} if kind == "train" else {"kind": kind, key: target}
    return {
        "name": "x",
        "stages": {
            "one": train,
            "labels": {"kind": "relabel", "teacher": "one"},
            "graph": {"kind": "propagate", "teacher": "one"},
            "this": stage,
            "late": train,
        },
    }


@pytest.mark.parametrize(
    ("key", "target", "problem"),
    [
        ("init", "on", "init.from: no stage 'on'; did you mean 'one'?"),
        ("init", "late", "init.from: 'late' runs later; a stage can only use the stages above it"),
        ("init", "this", "init.from: a stage cannot use itself"),
        ("init", "labels", "init.from: 'labels' is a relabel stage"),
        ("teacher", "labels", "teacher[0]: 'labels' is a relabel stage"),
        ("init", "graph", "init.from: 'graph' is a propagate stage"),
        ("teacher", ["one", "two"], "teacher[1]: no stage 'two'; valid: one"),
        ("pseudo_labels", "one", "pseudo_labels: 'one' is a train stage"),
        ("pseudo_labels", "label", "pseudo_labels: no stage 'label'; did you mean 'labels'?"),
        ("of", "one", "of: unknown key"),
    ],
)
def test_a_wrong_reference(key: str, target: object, problem: str) -> None:
    assert message(with_reference(key, target)).startswith(f"recipe: stages.this.{problem}")


def test_a_first_stage_has_nothing_to_refer_to() -> None:
    text = message(minimal(init="a"))
    assert text.startswith("recipe: stages.train.init.from: no stage 'a'; ")
    assert text.endswith(" stage above it")


@pytest.mark.parametrize("teacher", [None, [], "absent"])
def test_a_relabel_stage_needs_a_teacher(teacher: object) -> None:
    mapping = with_reference("teacher", teacher, kind="relabel")
    if teacher == "absent":
        del mapping["stages"]["this"]["teacher"]  # type: ignore[index]
    # An empty `teacher:` is also not a list.
    assert "stages.this.teacher: missing; a relabel stage needs the stage that predicts the labels" in message(mapping)


@pytest.mark.parametrize("teacher", [None, []])
def test_a_propagate_stage_needs_a_teacher(teacher: object) -> None:
    mapping = with_reference("teacher", teacher, kind="propagate")
    assert "stages.this.teacher: missing; a propagate stage needs a stage whose features" in message(mapping)


def test_a_teacher_of_the_wrong_type_is_one_mistake() -> None:
    for kind in ("relabel", "propagate"):
        text = message(with_reference("teacher", 3, kind=kind))
        assert text == "recipe: stages.this.teacher: must be a list, not 3"


@pytest.mark.parametrize("kind", ["probe", "knn"])
@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({}, "of: missing; a {kind} stage needs the train stage whose network it evaluates"),
        ({"of": None}, "of: missing; a {kind} stage needs the train stage whose network it evaluates"),
        ({"of": "on"}, "of: no stage 'on'; did you mean 'one'?"),
        ({"of": "labels"}, "of: 'labels' is a relabel stage"),
        ({"of": "late"}, "of: 'late' runs later; a stage can only use the stages above it"),
        ({"of": "one", "teacher": ["one"]}, "teacher: unknown key"),
        ({"of": "one", "steps": 3}, "steps: unknown key"),
        ({"of": "one", "grid": 0}, "grid: must be at least 1, not 0"),
    ],
)
def test_a_wrong_probe_or_knn_stage(kind: str, keys: dict[str, object], problem: str) -> None:
    mapping = with_reference("of", "one", kind=kind)
    mapping["stages"]["this"] = {"kind": kind, **keys}  # type: ignore[index]
    assert message(mapping).startswith(f"recipe: stages.this.{problem.format(kind=kind)}")


@pytest.mark.parametrize(
    ("kind", "keys", "problem"),
    [
        ("propagate", {"alpha": 1}, "alpha: must be less than 1, not 1"),
        ("propagate", {"neighbors": 0}, "neighbors: must be at least 1, not 0"),
        ("propagate", {"power": 0}, "power: must be greater than 0, not 0"),
        ("propagate", {"neighbours": 5}, "neighbours: unknown key; did you mean 'neighbors'?"),
        (
            "propagate",
            {"propagate": {"alpha": 0.5}},
            "propagate: its keys stand next to `kind` now: {kind: prop",
        ),
        ("propagate", {"threshold": 0.5}, "threshold: unknown key"),
        ("relabel", {"method": {"name": "fixmatch"}}, "method: unknown key"),
        (
            "relabel",
            {"relabel": {"soft": False}},
            "relabel: its keys stand next to `kind` now: {kind: rel",
        ),
        ("probe", {"layers": 1}, "layers: must be true or false, not 1"),
        ("probe", {"k": 20}, "k: unknown key"),
        ("knn", {"k": 0}, "k: must be at least 1, not 0"),
        ("knn", {"tau": 0}, "tau: must be greater than 0, not 0"),
        ("knn", {"bank": "labeled"}, "bank: must be one of labels, all, not 'labeled'; did you mean 'labels'?"),
        ("knn", {"knn": {"k": 5}}, "knn: its keys stand next to `kind` now: {kind: knn, k: 5}"),
        ("train", {"layers": True}, "layers: unknown key"),
        ("train", {"pool": {"by": "one"}}, "pool.by: has no effect without pool.keep"),
        ("relabel", {"pool": {"by": "one"}}, "pool.by: has no effect without pool.keep"),
        ("relabel", {"repeats": 2}, "repeats: has no effect without vote: best"),
        ("propagate", {"whiten": "each"}, "whiten: has no effect without components"),
        ("features", {"view": {"policy": "weak"}}, "view: has no effect without views"),
        ("head", {"threshold": None, "unlabeled": 9}, "unlabeled: has no effect without threshold"),
    ],
)
def test_a_kind_has_its_own_keys_and_no_others(kind: str, keys: dict[str, object], problem: str) -> None:
    mapping = with_reference("of", "one", kind="probe")
    needed: dict[str, dict[str, object]] = {
        "train": {"method": {"name": "supervised"}, "steps": 3},
        "relabel": {"teacher": "one"},
        "propagate": {"teacher": "one"},
    }
    mapping["stages"]["this"] = {"kind": kind, **needed.get(kind, {"of": "one"}), **keys}  # type: ignore[index]
    assert message(mapping).startswith(f"recipe: stages.this.{problem}")


def test_a_probe_and_a_knn_stage_are_read_and_spelled_out() -> None:
    mapping = with_reference("of", "one", kind="probe")
    mapping["stages"]["this"] |= {"layers": True}  # type: ignore[index]
    mapping["stages"]["near"] = {"kind": "knn", "of": "one", "k": 20, "bank": "all"}  # type: ignore[index]
    recipe = parse_recipe(mapping)
    assert recipe.stages["this"] == probe.Config(of="one", layers=True)
    assert recipe.stages["near"] == knn.Config(of="one", bank="all", k=20, tau=0.07)
    assert parse_recipe(yaml.safe_load(to_yaml(recipe))) == recipe


def test_a_judgment_is_nothing_to_train_from() -> None:
    mapping = with_reference("of", "one", kind="probe")
    mapping["stages"]["late"] = {**mapping["stages"]["late"], "init": "this"}  # type: ignore[index]
    assert message(mapping).startswith("recipe: stages.late.init.from: 'this' is a probe stage, and a train ")


def test_a_propagate_stage_is_read_and_spelled_out() -> None:
    mapping = with_reference("teacher", "one", kind="propagate")
    mapping["stages"]["this"] |= {"neighbors": 5, "soft": True}  # type: ignore[index]
    late = {**mapping["stages"]["late"], "pseudo_labels": "this"}  # type: ignore[index]
    mapping["stages"]["late"] = late  # type: ignore[index]
    recipe = parse_recipe(mapping)
    assert recipe.stages["this"] == propagate.Config(teacher=["one"], neighbors=5, alpha=0.99, power=3.0, soft=True)
    assert parse_recipe(yaml.safe_load(to_yaml(recipe))) == recipe


# Interpolations


def test_plain_references_are_followed() -> None:
    mapping = {**minimal(), "data": {"split_seed": "${seed}"}, "seed": 5}
    mapping["stages"]["two"] = {"method": "${stages.train.method}", "steps": "${stages.train.steps}"}  # type: ignore
    recipe = parse_recipe(mapping, ["seed=9"])
    assert recipe.data.split_seed == 9
    assert recipe.stages["two"].method == {"name": "supervised"} and recipe.stages["two"].steps == 3


def test_a_reference_finds_defaults() -> None:
    assert parse_recipe({**minimal(), "data": {"split_seed": "${seed}"}}).data.split_seed == 0


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "${oc.create:{a: 1}}", "x${oc.env:HOME,y}", r"\${seed}", "${a b}", "${"]
)
def test_resolvers_are_refused(value: str) -> None:
    text = message({**minimal(), "name": value})
    assert text == f"recipe: name: only plain references such as ${{seed}} are allowed, not {value!r}"


@pytest.mark.parametrize("value", ["${nope}", "${name}", "${stages.b}"])
def test_a_reference_that_leads_nowhere(value: str) -> None:
    assert message({**minimal(), "name": value}) == f"recipe: name: the reference '{value}' leads nowhere"


@pytest.mark.parametrize(
    "grows",
    [
        {"k0": "a", **{f"k{i + 1}": f"a${{k{i}}}a${{k{i}}}" for i in range(40)}},
        {"k0": ["a"], **{f"k{i + 1}": [f"${{k{i}}}", f"${{k{i}}}"] for i in range(40)}},
    ],
    ids=["text", "lists"],
)
def test_references_that_double_forty_times_are_named_at_once(grows: dict[str, object]) -> None:
    """By their length: two to the fortieth of anything would be waited for in vain."""
    tracemalloc.start()
    text = message({**minimal(), **grows})
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text == "recipe: the references ${...} stand for more than 20000 characters and values"
    assert most < 8 << 20


def test_resolvers_in_a_file_are_refused_with_their_line(tmp_path: Path, quickstart: Path) -> None:
    problem = "only plain references such as ${seed} are allowed, not '${oc.env:HOME}'"
    assert file_message(tmp_path, "name: x\nseed: ${oc.env:HOME}\n") == f"line 2: {problem}"
    with pytest.raises(SemisupError) as caught:
        load_recipe(quickstart, ["seed=${oc.env:HOME}"])
    assert str(caught.value).endswith(f": seed: {problem}")


def test_question_marks_are_refused() -> None:
    assert message({**minimal(), "name": "???"}) == "recipe: name: '???' stands for a value that is still to be given"


# Files


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/object/apply:pathlib.Path"],
)
@pytest.mark.parametrize("place", ["file", "override"])
def test_evil_yaml_runs_nothing(tmp_path: Path, quickstart: Path, tag: str, place: str) -> None:
    hacked = tmp_path / "hacked"
    evil = f'{tag} ["touch {hacked}"]'
    if place == "file":
        text = file_message(tmp_path, f"name: x\na: {evil}\n")
        assert text == f"line 2: the tag '{tag}' is not allowed: a recipe is plain data, nothing in it is ever run"
    else:
        with pytest.raises(SemisupError, match="is not allowed: a recipe is plain data"):
            load_recipe(quickstart, [f"name={evil}"])
    assert not hacked.exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "the file is empty; a recipe needs at least 'name' and 'stages'"),
        (" \n", "the file is empty; a recipe needs at least 'name' and 'stages'"),
        ("# name\n", "the file has only comments; a recipe needs at least 'name' and 'stages'"),
        ("stages: [\n", "line 2: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: b: c\n", "line 1: not valid YAML: mapping values are not allowed here"),
        ("- a\n", "line 1: a recipe is a mapping of keys to values"),
        ("hello\n", "line 1: a recipe is a mapping of keys to values"),
        ("3\n", "line 1: a recipe is a mapping of keys to values"),
        ("seed: 1\nname: x\nseed: 2\n", "line 3: 'seed' was already given on line 1"),
        ("a: b\n---\nc: d\n", "line 2: not valid YAML: but found another document"),
        ("? [a, b]\n: 3\n", "line 1: not valid YAML: found unhashable key"),
        ("a: &a [*a]\n", "line 1: the alias '*a' stands inside itself"),
        ("[" * 1500, "line 1: nested too deeply, more than 40 lists and mappings inside one another"),
        ("x: !thing 3\n", "line 1: the tag '!thing' is not allowed: a recipe is plain data, nothing in it is ever run"),
        (b"name: \xff\n", "line 1: a recipe must be UTF-8 text, found byte 0xff"),
        ("name: 'x\x00y'\n", "not valid YAML: unacceptable character #x0000: special characters are not allowed"),
        ("x" * (1 << 20) + "yz", "larger than 1 MiB; a recipe is a short YAML file"),
    ],
)
def test_a_broken_file(tmp_path: Path, content: str | bytes, problem: str) -> None:
    assert file_message(tmp_path, content) == problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("seed: 0b_", "seed: must be a whole number, not '0b_'"),
        (f"seed: {'9' * 5000}", "seed: must be a finite number, not inf"),
        (f"a: &a x\nb: [{'*a,' * 20000}]", "line 2: more than 10000 values"),
        (
            "b0: &b0 [x, x]\n" + "".join(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]\n" for i in range(1, 30)),
            "more than 10000",
        ),
        ("a: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("".join(f"{'  ' * i}a:\n" for i in range(80)), "nested too deeply"),
    ],
)
def test_what_a_yaml_library_trips_over(tmp_path: Path, content: str, problem: str) -> None:
    assert problem in file_message(tmp_path, content + "\n")


def test_two_foreign_tags_and_a_duplicate_are_reported_together(tmp_path: Path) -> None:
    text = file_message(tmp_path, "a: !x 1\nb: {c: !y 2, c: 3}\n")
    assert text.splitlines()[0] == "3 problems"


# Finding


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(SemisupError, match=r"nosuch/recipe: no such recipe, neither a file nor a shipped one"):
        load_recipe("nosuch/recipe")
    with pytest.raises(SemisupError, match=r"is a folder; a recipe is one \.yaml file"):
        load_recipe(tmp_path)
    with pytest.raises(SemisupError, match=r"is a folder; a recipe is one \.yaml file"):
        load_recipe("")
    (tmp_path / "x.txt").write_text("name: x")
    with pytest.raises(SemisupError, match=r"x.txt: a recipe is a .yaml file"):
        load_recipe(str(tmp_path / "x.txt"))
    with pytest.raises(SemisupError, match="File name too long"):
        load_recipe("x" * 5000)


def test_shipped_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("digits/quickstart", "digits/deep/er", "cifar10/fixmatch"):
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(QUICKSTART)
    monkeypatch.setattr("semisup.config.load._shipped_folder", lambda: tmp_path)
    assert shipped_recipes() == ["cifar10/fixmatch", "digits/deep/er", "digits/quickstart"]
    assert find_recipe("digits/quickstart") == tmp_path / "digits" / "quickstart.yaml"
    assert load_recipe("digits/quickstart").name == "digits-quickstart"
    with pytest.raises(SemisupError) as caught:
        find_recipe("digits/quickstrat")
    assert str(caught.value) == (
        "digits/quickstrat: no such recipe, neither a file nor a shipped one; did you mean 'digits/quickstart'?"
    )


def test_a_file_that_is_not_there_is_answered_with_the_one_that_is(
    quickstart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quickstart.parent
    monkeypatch.chdir(folder)
    (folder / "my-photos.yml").write_text(QUICKSTART)
    for asked, said in (
        ("my_photos.yaml", f"a shipped one (looked for {folder}/my_photos.yaml); did you mean 'my-photos.yml'?"),
        (str(folder / "my_photo.yaml"), f"a shipped one; did you mean '{folder}/my-photos.yml'?"),
        ("zzz.yaml", f"a shipped one (looked for {folder}/zzz.yaml)"),
        ("digits/quickstart.yaml", "; did you mean 'digits/quickstart'?"),
    ):
        with pytest.raises(SemisupError) as caught:
            find_recipe(asked)
        assert str(caught.value).startswith(f"{asked}: no such recipe")
        assert str(caught.value).endswith(said)


def test_the_checkout_has_a_folder_of_recipes() -> None:
    assert find_recipe.__module__ == "semisup.config.load"
    assert all(find_recipe(name).is_file() for name in shipped_recipes())


def test_reading_recipes_does_not_wait_for_torch(quickstart: Path) -> None:
    code = (
        "import sys; from semisup.config import load_recipe; load_recipe(sys.argv[1]);"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(quickstart)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ("labls", "must be one of uniform, labels, estimated, or a list"),
        ([0.5, "a"], "must be one of uniform, labels, estimated, or a list"),
        ([0.5, 0.2], "must be numbers of at least 0 whose sum is 1"),
        ([1.5, -0.5], "must be numbers of at least 0 whose sum is 1"),
        ([], "must be one of"),
    ],
)
def test_shares_of_classes_are_words_or_a_distribution(value: object, rule: str) -> None:
    with pytest.raises(SemisupError, match=rule) as error:
        parse_recipe(
            {
                "name": "x",
                "model": {"name": "cnn"},
                "stages": {
                    "a": {"method": {"name": "supervised"}, "steps": 2},
                    "g": {"kind": "propagate", "teacher": "a", "balance": value},
                },
            }
        )
    assert "stages.g.balance: " in str(error.value)


def test_text_that_looks_like_a_number_is_shown_quoted_for_the_shell() -> None:
    problem = "must be text, not 2024; quote it"
    assert message(minimal(), "data.path=2024").endswith(f"data.path: {problem}: 'data.path=\"2024\"'")
    assert message({**minimal(), "data": {"path": 2024}}).endswith(f"data.path: {problem}")
    for text in ("2024", "null", "", " a", "a\nb", "'q'", '"q"', "[a]", "a b", "猫", "\x1b", "#1", "a'\"b"):
        word = as_override("data.path", text)
        assert parse_recipe(minimal(), [word]).data.path == text if text else word == 'data.path=""'


@pytest.mark.parametrize("ref", [None, 3, ["a"]])
def test_what_cannot_be_a_recipe_is_named_by_its_type(ref: object) -> None:
    with pytest.raises(SemisupError, match=f"must be a file, a shipped name or a mapping, not {type(ref).__name__}"):
        load_recipe(ref)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"), [("seed=1", "the text 'seed=1'"), (None, "null"), ({"seed": 1}, "{'seed': 1}"), ([3], r"\[3\]")]
)
def test_what_is_no_list_of_overrides(given: Any, said: str) -> None:
    with pytest.raises(SemisupError, match=f"overrides: must be a list of key=value words, not {said}"):
        load_recipe("digits/quickstart", given)


def test_numbers_of_numpy_and_torch_and_paths_are_plain_ones() -> None:
    stage = {"method": {"name": "fixmatch", "threshold": np.float32(0.5)}, "steps": np.int64(3)}
    adam = {"name": "adamw", "betas": np.array([0.5, 0.25])}
    given = minimal() | {"seed": torch.tensor(2), "deterministic": np.bool_(True), "data": {"path": Path("a/b.npz")}}
    recipe = parse_recipe(given | {"stages": {"a": {**stage, "optimizer": adam}}})
    plain = (recipe.seed, recipe.deterministic, recipe.data.path, recipe.stages["a"].method["threshold"])
    assert [(value, type(value)) for value in plain] == [(2, int), (True, bool), ("a/b.npz", str), (0.5, float)]
    assert recipe.stages["a"].steps == 3 and recipe.stages["a"].optimizer.betas == [0.5, 0.25]

"""A finished stage is never trained again, and anything that could change its result makes it another stage."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from semisup import evaluate
from semisup.config import load_recipe
from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.models import load_weights, save_weights
from semisup.pipeline import make_plan, run
from semisup.pipeline.plan import plan_stages
from semisup.stages import training
from semisup.stages.artifact import RECORD
from tests.pipeline.pipeline_small import run_small, small, statuses

ALL = ["pretrain", "finetune", "labels", "student"]
AFTER_PRETRAIN = ["finetune", "labels", "student"]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs in which the recipe has run once, into `first`."""
    folder = tmp_path_factory.mktemp("runs")
    assert set(statuses(run_small(folder / "first")).values()) == {"trained"}
    return folder


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the first batch, and at the first prediction of a relabel stage."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this run was to train nothing")

    # By module, because `semisup.stages.train` is also the name of a function.
    monkeypatch.setattr(training, "fit", fail)
    monkeypatch.setattr(evaluate, "predict_logits", fail)


def snapshot(folder: Path) -> dict[str, int]:
    """Every stored file but the locks, and when it was written."""
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


@pytest.mark.usefixtures("no_training")
def test_the_second_run_trains_nothing(parent: Path) -> None:
    before = snapshot(parent / ".semisup")
    result = run_small(parent / "first")
    assert set(statuses(result).values()) == {"reused"}
    assert snapshot(parent / ".semisup") == before
    assert not list(parent.rglob("*.tmp"))


@pytest.mark.usefixtures("no_training")
def test_another_folder_below_the_same_parent_shares_the_stages(parent: Path) -> None:
    first, second = run_small(parent / "first"), run_small(parent / "second")
    assert set(statuses(second).values()) == {"reused"}
    assert [stage.metrics for stage in second.stages] == [stage.metrics for stage in first.stages]
    for name in ALL:
        for file in (parent / "first" / name).iterdir():
            assert file.samefile(parent / "second" / name / file.name)


@pytest.mark.usefixtures("no_training")
def test_the_stages_of_a_removed_folder_come_back(parent: Path) -> None:
    shutil.copytree(parent / "first", parent / "kept")
    shutil.rmtree(parent / "first")
    assert set(statuses(run_small(parent / "first")).values()) == {"reused"}
    names = {p.relative_to(parent / "kept") for p in (parent / "kept").rglob("*")}
    assert {p.relative_to(parent / "first") for p in (parent / "first").rglob("*")} == names
    shutil.rmtree(parent / "kept")


@pytest.mark.usefixtures("no_training")
def test_the_resolved_recipe_reproduces_the_run(parent: Path) -> None:
    run_small(parent / "first")
    assert load_recipe(parent / "first" / "recipe.yaml") == small()
    again = run(parent / "first" / "recipe.yaml", out=parent / "again", quiet=True)
    assert set(statuses(again).values()) == {"reused"}


def test_another_parent_shares_nothing(parent: Path, tmp_path: Path) -> None:
    result = run_small(tmp_path / "elsewhere")
    assert set(statuses(result).values()) == {"trained"}
    # ... and finds the same result: training is a function of the recipe.
    mine, theirs = (run_small(folder).stages for folder in (tmp_path / "elsewhere", parent / "first"))
    for a, b in zip(mine, theirs, strict=True):
        assert a.fingerprint == b.fingerprint
        assert a.metrics == b.metrics


def test_a_label_budget_shares_the_pretraining(parent: Path) -> None:
    result = run_small(parent / "more_labels", "data.labels=60")
    assert statuses(result) == {"pretrain": "reused", **dict.fromkeys(AFTER_PRETRAIN, "trained")}


def test_a_folder_may_be_named_by_a_dot(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(parent / "first")
    assert set(statuses(run_small(Path())).values()) == {"reused"}
    monkeypatch.chdir(parent / "first" / "pretrain")
    assert set(statuses(run_small(Path(".."))).values()) == {"reused"}


def test_only_what_depends_on_a_change_runs_again(parent: Path) -> None:
    result = run_small(parent / "warmer", "stages.student.method.temperature=2.0")
    assert statuses(result) == {**dict.fromkeys(ALL, "reused"), "student": "trained"}


def test_results_of_another_recipe_are_replaced_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "results of another recipe, or of other data, are replaced"
    for overrides, said in (([], False), (["data.labels=60"], True), (["data.labels=60", "log_every=1"], False)):
        run_small(tmp_path / "o", *overrides)
        assert (words in capsys.readouterr().err) == said, overrides
    (tmp_path / "o" / "result.json").write_text("{")
    run_small(tmp_path / "o", "data.labels=60")
    assert words in capsys.readouterr().err


def test_compiling_makes_other_stages_and_its_absence_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile: false` is not hashed: what was trained before there was the key is still found."""
    hashed: list[dict[str, Any]] = []

    def dumps(value: dict[str, Any], **how: Any) -> str:
        hashed.append(value)
        return json.dumps(value, **how)

    monkeypatch.setattr("semisup.pipeline.fingerprint.json", SimpleNamespace(dumps=dumps))
    monkeypatch.setattr("semisup.pipeline.check.check_compiler", lambda device: None)  # takes 10 s
    plain = {stage.name: stage.fingerprint for stage in make_plan(small(), trial=False).stages}
    assert len(hashed) == len(ALL) and not any("compile" in content for content in hashed)
    compiled = {stage.name: stage.fingerprint for stage in make_plan(small("compile=true"), trial=False).stages}
    assert [name for name in ALL if compiled[name] == plain[name]] == []


def test_fresh_runs_everything_again_to_the_same_result(tmp_path: Path) -> None:
    first = run_small(tmp_path / "a")
    before = snapshot(tmp_path / ".semisup")
    (folds,) = {
        path.parent / "folds" for path in tmp_path.rglob(f".semisup/**/{RECORD}") if "student" in path.read_text()
    }
    (folds / "0" / "train").mkdir(parents=True)  # of a choice that was stopped
    again = run_small(tmp_path / "a", fresh=True)
    assert not folds.exists()
    assert set(statuses(again).values()) == {"trained"}
    after = snapshot(tmp_path / ".semisup")
    assert after.keys() == before.keys()
    assert all(after[path] > before[path] for path in before)
    assert [stage.metrics for stage in again.stages] == [stage.metrics for stage in first.stages]
    assert set(statuses(run_small(tmp_path / "a")).values()) == {"reused"}


def test_damage_in_the_store_is_named_and_not_papered_over(tmp_path: Path) -> None:
    run_small(tmp_path / "a")
    (record,) = [p for p in tmp_path.rglob(f".semisup/**/{RECORD}") if '"name": "student"' in p.read_text()]
    (record.parent / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SemisupError, match=f"delete {record.parent} to run the stage again"):
        run_small(tmp_path / "a")
    shutil.rmtree(record.parent)
    assert statuses(run_small(tmp_path / "a")) == {**dict.fromkeys(ALL, "reused"), "student": "trained"}


def test_a_stage_that_changes_kind_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    """An encoder in the place of a classifier: the old model and plot would be taken for its own."""
    first = run_small(tmp_path / "a", "stages.pretrain.method={name: supervised}", "stages.finetune.init.head_layer=0")
    assert "test/accuracy" in first["pretrain"].metrics
    assert (tmp_path / "a" / "pretrain" / "confusion.png").exists()
    second = run_small(tmp_path / "a")
    assert "knn/accuracy" in second["pretrain"].metrics
    assert not (tmp_path / "a" / "pretrain" / "confusion.png").exists()


# Fingerprints


@pytest.fixture(scope="module")
def base() -> dict[str, str]:
    return {stage.name: stage.fingerprint for stage in make_plan(small()).stages}


EVERYTHING = [
    "seed=1",
    "init_seed=1",
    "precision=bf16",
    "model.width=5",
    "data.size=9",
    "data.flip=true",
    "stages.pretrain.optimizer.lr=0.01",
    "stages.pretrain.steps=5",
    "stages.pretrain.ema=0.9",
    "stages.pretrain.schedule.warmup=2",
    "stages.pretrain.batch.unlabeled=33",
    "stages.pretrain.method.temperature=0.2",
    "stages.pretrain.augment={first: {policy: weak}}",
    "stages.pretrain.stop_on_collapse=true",
]
LABELED = [
    "data.labels=60",
    "data.labels=4%",
    "data.split_seed=1",
    "stages.finetune.method.label_smoothing=0.1",
    "stages.finetune.init.head_layer=2",
    "stages.finetune.optimizer.name=adamw",
]
NOTHING = [
    "name=other",
    "threads=1",
    "device=auto",
    "log_every=7",
    "checkpoint_seconds=0",
    "tracking.experiment=other",
    "data.labels=4/class",
    "data.split_seed=0",
    "init_seed=0",
    "precision=fp32",
    "stages.pretrain.stop_on_collapse=false",
    "stages.pretrain.epochs=0.089",  # 0.089 * 1,438 images / 32 = 3.9996, rounded up to 4 steps
    "stages.student.model.width=3",
    "stages.finetune.model={name: cnn, width: 4}",
]


@pytest.mark.parametrize(
    ("override", "again"),
    [(key, ALL) for key in EVERYTHING]
    + [(key, AFTER_PRETRAIN) for key in LABELED]
    + [(key, []) for key in NOTHING]
    + [
        ("stages.student.method.temperature=2.0", ["student"]),
        ("stages.student.model.width=5", ["student"]),
        ("stages.student.steps=4", ["student"]),
        ("stages.labels.threshold=0.1", ["labels"]),
    ],
)
def test_a_key_changes_the_stages_that_depend_on_it(override: str, again: list[str], base: dict[str, str]) -> None:
    changed = {stage.name: stage.fingerprint for stage in make_plan(small(override)).stages}
    assert [name for name in ALL if changed[name] != base[name]] == again


def test_new_keys_of_stages_leave_old_fingerprints_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting at its default is not hashed. Whoever changes one of these trains everything again."""
    monkeypatch.setattr("semisup.pipeline.fingerprint.__version__", "golden")
    assert {stage.name: stage.fingerprint for stage in make_plan(small()).stages} == {
        "pretrain": "40b94ab8601cde904276",
        "finetune": "b0de82dfca245bffd208",
        "labels": "1a1d88fa660625ad83ea",
        "student": "4828e5fe9a9aef4b2084",
    }


@pytest.mark.parametrize("part", ["x_train", "y_train", "x_test", "y_test", "classes"])
def test_any_change_of_the_data_changes_every_stage(part: str) -> None:
    plan = make_plan(small())
    data = plan.data
    value = [*data.classes[:-1], "nine"] if part == "classes" else getattr(data, part).copy()
    if isinstance(value, np.ndarray):
        value[3] = (value[3] + 1) % 10
    other = dataclasses.replace(data, **{part: value})
    changed = plan_stages(dataclasses.replace(plan, data=other, stages=[])).stages
    assert all(a.fingerprint != b.fingerprint for a, b in zip(changed, plan.stages, strict=True))


def test_a_weights_file_counts_with_its_content(tmp_path: Path) -> None:
    run_small(tmp_path / "a")
    path = tmp_path / "w.safetensors"
    weights = load_weights(tmp_path / "a" / "pretrain" / "model.safetensors")

    def fingerprint(scale: float, path: Path = path) -> str:
        save_weights(path, {name: t * scale if t.is_floating_point() else t for name, t in weights.items()})
        return (
            make_plan(small(f"stages.finetune.init={{weights: {path}, from: null, head_layer: 0}}"))
            .stages[1]
            .fingerprint
        )

    assert fingerprint(1.0) == fingerprint(1.0) != fingerprint(2.0)
    assert fingerprint(1.0) == fingerprint(1.0, tmp_path / "moved.safetensors")
    shutil.copyfile(tmp_path / "a" / "pretrain" / "model.json", tmp_path / "model.json")
    assert fingerprint(1.0) != fingerprint(1.0, tmp_path / "a" / "alone.safetensors")


def test_the_data_is_read_from_its_own_place() -> None:
    """The data hash in the plan is the source's, so that two machines share fingerprints."""
    assert make_plan(small()).data.hash == load_data(small().data).hash

"""`augment.backend` and a view's own albumentations transforms, from the recipe to the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from semisup.augment.policies import backend
from semisup.bench.execution.jobs import step_kind
from semisup.config import parse_recipe, to_yaml
from semisup.engine.batches import Batches
from semisup.errors import SemisupError
from semisup.methods import METHODS, Batch
from semisup.pipeline import run
from semisup.pipeline.plan import Plan, make_plan
from semisup.pipeline.show import show_data
from tests.pipeline.pipeline_small import SMALL, small

OWN = "{albumentations: [{name: GaussNoise, std_range: [0.05, 0.1], p: 1}, {name: Blur, p: 0.5}], policy: weak}"
HOST = "stages.pretrain.augment.backend=albumentations"
SHORT = {**SMALL, "stages": {"pretrain": SMALL["stages"]["pretrain"]}}


def fingerprint(*overrides: str) -> str:
    return make_plan(parse_recipe(SHORT, overrides), trial=False).stages[0].fingerprint


def weights(out: Path) -> bytes:
    return (out / "pretrain" / "model.safetensors").read_bytes()


def test_no_method_has_a_view_of_that_name() -> None:
    """It would be taken for the backend."""
    stated = [
        method.views for method in METHODS.values() if hasattr(method, "views")
    ]  # of others it depends on options
    views = {view for said in stated for part in (said.labeled, said.unlabeled) for view in part}
    assert "weak" in views and "backend" not in views


@pytest.fixture(scope="module")
def on_device(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the recipe as it is."""
    out = tmp_path_factory.mktemp("device") / "run"
    run(parse_recipe(SHORT), out=out, quiet=True)
    return weights(out)


@pytest.mark.parametrize(
    "given", [[HOST], [f"stages.pretrain.augment.first={OWN}"], [HOST, f"stages.pretrain.augment.second={OWN}"]]
)
def test_a_run_with_each(given: list[str], tmp_path: Path, on_device: bytes) -> None:
    """Trains, repeats, and differs from a run on the device."""
    recipe = parse_recipe(SHORT, given)
    run(recipe, out=tmp_path / "run", quiet=True)
    first = weights(tmp_path / "run")
    run(recipe, out=tmp_path / "run", quiet=True, fresh=True)
    assert weights(tmp_path / "run") == first != on_device


@pytest.mark.parametrize("given", [HOST, f"stages.pretrain.augment.first={OWN}"])
def test_a_stopped_run_goes_on_to_the_same_weights(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(SHORT, [given, "checkpoint_seconds=0"])
    run(recipe, out=tmp_path / "whole" / "run", quiet=True)
    batch_of = Batches.__call__

    def breaks(self: Batches, step: int) -> Batch:
        if step == 2:
            raise KeyboardInterrupt
        return batch_of(self, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Batches, "__call__", breaks)
        run(recipe, out=tmp_path / "stopped" / "run", quiet=True)
    result = run(recipe, out=tmp_path / "stopped" / "run", quiet=True)
    assert result.stages[0].status == "resumed"
    assert weights(tmp_path / "stopped" / "run") == weights(tmp_path / "whole" / "run")


def test_the_fingerprint_knows_what_was_chosen_and_not_how(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = fingerprint()
    assert fingerprint("stages.pretrain.augment.backend=device") == usual
    assert fingerprint("stages.pretrain.augment.backend=auto") == usual
    chosen = fingerprint(HOST)
    assert chosen != usual
    monkeypatch.setattr(backend, "LARGEST_ON_DEVICE", 7)  # the digits have 8 pixels a side
    assert fingerprint() == chosen and fingerprint("stages.pretrain.augment.backend=device") == usual
    assert (
        len({usual, fingerprint(f"stages.pretrain.augment.first={OWN}", "stages.pretrain.augment.backend=device")}) == 2
    )


def test_a_bench_times_the_two_apart_and_the_device_as_before() -> None:
    def kind(*overrides: str) -> str:
        plan = make_plan(parse_recipe(SHORT, overrides), trial=False)
        return step_kind(plan, plan.stages[0])

    assert kind() == kind("stages.pretrain.augment.backend=device") != kind(HOST)
    plan = make_plan(parse_recipe(SHORT), trial=False)
    (stage,) = plan.stages
    unsaid = dataclasses.replace(stage, config=stage.config.model_copy(update={"augment": {}}))
    assert step_kind(plan, unsaid) == kind()


def test_a_worker_takes_what_the_planner_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it would choose otherwise, with a GPU or without."""
    plan = make_plan(small(), trial=False)
    stages = {stage.name: stage.config for stage in plan.stages}
    assert stages["pretrain"].backend == "device"
    monkeypatch.setattr(backend, "LARGEST_ON_DEVICE", 7)
    handed = make_plan(plan.recipe.model_copy(update={"stages": stages}), plan.data, trial=False)
    assert [stage.fingerprint for stage in handed.stages] == [stage.fingerprint for stage in plan.stages]


def test_the_choice_can_be_read_in_the_plan_and_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(parse_recipe(SHORT, [HOST]), out=tmp_path / "run")
    plan, _, _ = capsys.readouterr().out.partition("pretrain 0/4")
    rows = {words[0]: words for line in plan.splitlines() if (words := line.split())}
    assert "views" in rows["stage"] and "albumentations" in rows["pretrain"]
    assert '"backend": "albumentations"' in (tmp_path / "run" / "events.jsonl").read_text()


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("backend=alb", r"stages.pretrain.augment.backend: must be one of auto, device, albumentations, not 'alb'"),
        (
            "backend={policy: weak}",
            r"stages.pretrain.augment.backend: must be one of auto, device, albumentations, not {'policy'",
        ),
        ("backend=null", r"stages.pretrain.augment.backend: must be one of auto, device, albumentations, not null"),
        ("first=weak", r"stages.pretrain.augment.first: must be a mapping, not 'weak'"),
        ("first={shift: 0.1}", r"stages.pretrain.augment.first.policy: missing"),
        ("first={albumentations: [], policy: 3}", r"augment.first.policy: must be text, not 3"),
        (
            "bakend={policy: weak}",
            r"augment.bakend: method 'simclr_v2' asks for no such view; did you mean 'backend'\?",
        ),
        ("first={albumentations: []}", r"stages.pretrain.augment.first.albumentations: must be a list of transforms"),
        (
            "first={albumentations: [{name: GausNoise}]}",
            r"augment.first.albumentations\[0\].name: .*'GausNoise'; did you mean 'GaussNoise'\?",
        ),
        ("first={albumentations: [{name: Blur}], policy: weka}", r"first.policy: .*'weka'; did you mean 'weak'\?"),
        (
            "first={albumentations: [{name: RandomCrop, height: 4, width: 4}]}",
            r"stages.pretrain.augment.first.albumentations\[0\]: RandomCrop: must keep height, width and channels",
        ),
    ],
)
def test_a_mistake_is_named_before_training(override: str, problem: str) -> None:
    with pytest.raises(SemisupError, match=problem):
        make_plan(parse_recipe(SHORT, [f"stages.pretrain.augment.{override}"]), trial=False)


def test_a_policy_without_a_form_is_refused_or_left_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {"method": {"name": "fixmatch", "ctaugment": True}, "batch": {"labeled": 4, "unlabeled": 8}, "steps": 1}
    recipe: dict[str, Any] = {**SMALL, "stages": {"train": stage}}
    with pytest.raises(SemisupError, match=r"stages.train.augment.backend: albumentations has no form of the policy"):
        make_plan(parse_recipe(recipe, ["stages.train.augment.backend=albumentations"]), trial=False)
    monkeypatch.setattr(backend, "LARGEST_ON_DEVICE", 7)
    assert make_plan(parse_recipe(recipe), trial=False).stages[0].config.backend == "device"


def test_the_resolved_recipe_says_the_same() -> None:
    recipe = small(HOST, f"stages.pretrain.augment.first={OWN}")
    loaded = parse_recipe(yaml.safe_load(to_yaml(recipe)))
    assert loaded == recipe
    assert loaded.stages["pretrain"].backend == "albumentations"
    assert list(loaded.stages["pretrain"].view_settings) == ["first"]


@pytest.mark.usefixtures("with_figures")
def test_a_figure_shows_what_training_sees(tmp_path: Path) -> None:
    weak = "stages.pretrain.augment={first: {policy: weak}, second: {policy: weak}}"  # in which the two are the same

    def picture(*overrides: str) -> bytes:
        show_data(parse_recipe(SHORT, [weak, *overrides]), tmp_path / "a.png", images=2)
        return (tmp_path / "a.png").read_bytes()

    assert picture() == picture(HOST)
    own = "stages.pretrain.augment.first.albumentations=[{name: GaussNoise, p: 1}]"
    assert len({picture(), picture(own), picture(own.replace("GaussNoise", "InvertImg"))}) == 3


def test_runs_of_other_stages_say_nothing_of_views() -> None:
    plan: Plan = make_plan(small(), trial=False)
    assert "augment" not in plan.stages[2].config.model_dump()
